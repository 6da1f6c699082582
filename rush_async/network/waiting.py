"""How coroutines of one event loop wait without asking the server: events keep the counts up to date."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import NamedTuple

from rush_async.errors import DecodeError
from rush_async.model import Counts
from rush_async.store.position import NetworkPosition

__all__ = ["BudgetLine", "Conditions", "Following", "Line", "Lines", "Mark", "describe"]

_ALL = 2**60


class Following(asyncio.Event):
    """A subscription: set once the position is up to date, or cannot be read, because of an error."""

    error: DecodeError | None = None


class Conditions:
    """Waits until the counts satisfy a predicate."""

    def __init__(self, position: NetworkPosition) -> None:
        self._position = position
        self._waiting: dict[asyncio.Future[Counts | None], Callable[[Counts], bool]] = {}
        position.watchers.add(self)

    def position_changed(self) -> None:
        """Ends the waits whose predicate is satisfied."""
        counts = self._position.counts
        for future, predicate in list(self._waiting.items()):
            if not future.done():
                try:
                    if predicate(counts):
                        future.set_result(counts)
                except StopIteration as error:  # which no future can hold
                    future.set_exception(RuntimeError(f"the predicate raised {error!r}"))
                except Exception as error:
                    future.set_exception(error)

    @contextmanager
    def waiter(self, predicate: Callable[[Counts], bool]) -> Generator[asyncio.Future[Counts | None]]:
        """Yields a future of the first counts that satisfy `predicate`. Setting it to None ends the wait."""
        future: asyncio.Future[Counts | None] = asyncio.get_running_loop().create_future()
        self._waiting[future] = predicate
        try:
            yield future
        finally:
            del self._waiting[future]
            future.cancel()


class Mark(NamedTuple):
    """A moment, by what was known of places then.

    Attributes:
        n_freed: how many places had become free, as far as events tell.
        n_refused: how many starts had been refused for want of a place.
    """

    n_freed: int = 0
    n_refused: int = 0


class Line:
    """Coroutines that wait in line for queued tasks. As many are woken as there are tasks and places."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self._line: dict[asyncio.Future[bool], None] = {}
        self._granted = 0

    def __len__(self) -> int:
        return len(self._line)

    @property
    def available(self) -> int:
        """How many coroutines may have a turn at once, if there are places."""
        return self._lines.n_poppable

    @property
    def n_turns(self) -> int:
        """How many more may have a turn now. Those of all lines share the places."""
        return min(self.available - self._granted, self._lines.n_places - self._lines.n_granted)

    def place_taken(self, mark: Mark) -> None:
        """A task has started here, which was asked for at `mark`."""
        self._lines.places_taken(1, mark)

    def wake(self) -> None:
        """Wakes as many as may have a turn."""
        if not self._line:
            return
        n = self.n_turns
        while n > 0 and self._line:
            future = next(iter(self._line))
            del self._line[future]
            if not future.done():
                future.set_result(True)
                self._grant()
                n -= 1

    def _grant(self) -> None:
        self._granted += 1
        self._lines.n_granted += 1

    async def turn(self, timeout: float | None, waits: set[asyncio.Future[bool]]) -> bool:
        """Waits in line.

        Args:
            timeout: seconds; None waits for ever.
            waits: the waits of the caller's worker, for a stop request to end them.

        Returns:
            True on the caller's turn: it calls `done` after its attempt. False if the time is up or the wait was ended.
        """
        if not self._line and self.n_turns > 0:
            self._grant()
            return True
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bool] = loop.create_future()
        timer = None if timeout is None else loop.call_later(max(timeout, 0), _end_wait, future)
        self._line[future] = None
        waits.add(future)
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.result():
                self.done()  # it got its turn in the tick of the cancellation: the next in line gets it
            raise
        finally:
            self._line.pop(future, None)
            waits.discard(future)
            if timer is not None:
                timer.cancel()

    def done(self) -> None:
        """Ends a turn, whether its attempt succeeded or not."""
        self._granted -= 1
        self._lines.n_granted -= 1
        self._lines.wake()


class _PlaceLine(Line):
    """Coroutines that wait in line for a place within the stop rules."""

    @property
    def available(self) -> int:
        """Any number: they need nothing but a place."""
        return _ALL


class BudgetLine(Line):
    """Coroutines that wait in line for a queued task or a place within a budget, or for the end of the budget."""

    def __init__(self, lines: Lines, budget: int, max_failed: int | None, *, takes_queued: bool) -> None:
        super().__init__(lines)
        self._budget = budget
        self._max_failed = max_failed
        self._takes_queued = takes_queued
        self._full_at: int | None = None  # how many places had been freed when the budget was full
        self._refused_at = 0
        self.n_users = 0

    def found_full(self, mark: Mark) -> None:
        """All places of the budget are taken, some by reservations, which the counts do not show.

        Args:
            mark: `lines.mark` as it was before a place was asked for. Places that have become free since may be there.
        """
        self._full_at = mark.n_freed
        self._refused_at = self._lines.note_refusal()

    def place_taken(self, mark: Mark) -> None:
        """A task has started here, which was asked for at `mark`."""
        super().place_taken(mark)
        if self._full_at is not None and mark.n_refused >= self._refused_at:
            self._full_at = min(self._full_at + 1, self._lines.mark.n_freed)

    @property
    def available(self) -> int:
        """One for each queued task, and for each place within the budget."""
        queued, running, finished, _ = self._lines.counts
        n_places = max(0, self._budget - queued - running - finished)
        if self._full_at is not None:
            n_places = min(n_places, self._lines.mark.n_freed - self._full_at)
        return (self._lines.n_poppable if self._takes_queued else 0) + n_places

    @property
    def n_turns(self) -> int:
        """As in any line; all once the budget is spent."""
        _, _, finished, failed = self._lines.counts
        if finished >= self._budget or (self._max_failed is not None and failed >= self._max_failed):
            return _ALL
        return super().n_turns


class Lines:
    """The lines in which the workers of an event loop wait: for queued tasks, for places, and one for each budget.

    Attributes:
        queue: the line for queued tasks.
        places: the line for places within the stop rules.
        n_arrivals: how many messages with queued tasks have come.
        n_changes: how often the stop rules or the seed have changed, or may have.
        mark: the present moment, for what follows from an attempt that leaves now.
        n_places: how many places are free, as far as refused starts and events tell; very many without such a refusal.
        n_granted: how many coroutines have a turn.
    """

    def __init__(self, position: NetworkPosition) -> None:
        self.queue = Line(self)
        self.places = _PlaceLine(self)
        self.n_arrivals = 0
        self.n_changes = 0
        self.mark = Mark()
        self.n_places = _ALL
        self._refused_at = 0
        self.n_granted = 0
        self._budgets: dict[tuple[int, int | None, bool], BudgetLine] = {}
        self._position = position
        self._n_unreachable = 0
        position.watchers.add(self)
        position.generation_watchers.add(self)

    @property
    def counts(self) -> Counts:
        """How many tasks are in each state."""
        return self._position.counts

    @property
    def n_poppable(self) -> int:
        """How many tasks count as queued, less those that no pop has found."""
        return self._position.counts.queued - self._n_unreachable

    def position_changed(self) -> None:
        """Wakes the coroutines for which there is a task or a place now."""
        self._n_unreachable = min(self._n_unreachable, self._position.counts.queued)
        self.wake()

    def generation_changed(self) -> None:
        """Any number of places may be free."""
        self.rules_changed()

    def tasks_queued(self) -> None:
        """Is called when tasks were queued, or may have been: all that count as queued may be popped again."""
        self.n_arrivals += 1
        if self._n_unreachable:
            self._n_unreachable = 0
            self.wake()

    def found_empty(self, n_arrivals: int) -> None:
        """A pop found the queue empty: tasks that count as queued now cannot be popped, as their entries in the queue are gone.

        Args:
            n_arrivals: as it was before the pop. Tasks that have been queued since may be there.
        """
        if n_arrivals == self.n_arrivals:
            self._n_unreachable = self._position.counts.queued

    def found_full(self, mark: Mark) -> None:
        """A start was refused because the network is full.

        Args:
            mark: as it was before the start was asked for. Places that have become free since may be there.
        """
        self.n_places = self.mark.n_freed - mark.n_freed
        self._refused_at = self.note_refusal()

    def note_refusal(self) -> int:
        """Counts a refused start. Returns how many there have been."""
        self.mark = Mark(self.mark.n_freed, self.mark.n_refused + 1)
        return self.mark.n_refused

    def places_taken(self, n: int, mark: Mark) -> None:
        """Tasks have started here, which were asked for at `mark`. Before the last refusal they took places that it knew."""
        if mark.n_refused >= self._refused_at:
            self.n_places = max(0, self.n_places - n)

    def places_freed(self, n: int) -> None:
        """Places have become free: as many coroutines are woken."""
        if n:
            self.mark = Mark(self.mark.n_freed + n, self.mark.n_refused)
            self.n_places += n
            self.wake()

    def rules_changed(self) -> None:
        """The stop rules or the seed have changed, or may have: any number of places may be free."""
        self.n_changes += 1
        self.places_freed(_ALL)

    def wake(self) -> None:
        """Wakes the coroutines that may have a turn, in all lines."""
        self.queue.wake()
        self.places.wake()
        for line in tuple(self._budgets.values()):
            line.wake()

    @contextmanager
    def budget(self, budget: int, max_failed: int | None, *, takes_queued: bool = True) -> Generator[BudgetLine]:
        """Yields the line for a queued task (if those are wanted), a place within a budget, or the end of the budget."""
        asked = budget, max_failed, takes_queued
        line = self._budgets.get(asked)
        if line is None:
            line = self._budgets[asked] = BudgetLine(self, budget, max_failed, takes_queued=takes_queued)
        # A user between two waits is not in the line, and returns to it.
        line.n_users += 1
        try:
            yield line
        finally:
            line.n_users -= 1
            if not line.n_users:
                del self._budgets[asked]


def describe(counts: Counts) -> str:
    """Describes counts in words."""
    return f"{counts.queued:,} queued, {counts.running:,} running, {counts.finished:,} finished, {counts.failed:,} failed tasks"


def _end_wait(future: asyncio.Future[bool]) -> None:
    """Ends a wait in a line without a turn."""
    if not future.done():
        future.set_result(False)
