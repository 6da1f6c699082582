"""Progress bars of tqdm, in a terminal, a notebook or a log, over all workers of all processes.

A bar follows the network by its counts and events, in a task of its own, and draws at most ten times a second. Finished tasks
are read for the best value only, each once.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import anyio

from rush_async.client.arguments import as_keys, as_number
from rush_async.client.client import RushClient
from rush_async.errors import NetworkStateError, RushConnectionError, RushError
from rush_async.events import EventsMissed, NetworkReset, TasksFailed, TasksFinished, TasksQueued
from rush_async.model import Counts, Task
from rush_async.store.finished import Best
from rush_async.supervisor import Supervisor, run_to_completion

try:
    from tqdm.auto import tqdm as auto_tqdm
    from tqdm.std import tqdm as std_tqdm
except ImportError as error:
    raise ImportError(f'progress bars need tqdm: pip install "rush-async[progress]" ({error})') from error

if TYPE_CHECKING:
    Tqdm = std_tqdm[Any]

__all__ = ["ProgressBar", "progress"]

logger = logging.getLogger(__name__)

_BETWEEN_LINES = 10.0  # seconds between two lines where the output is no terminal


class _Bar(auto_tqdm):  # pyright: ignore[reportUntypedBaseClass, reportMissingTypeArgument]
    """A bar of tqdm, without its thread that watches for bars which stand still: ours draw all that they get."""

    monitor_interval = 0


class _Lines(std_tqdm):  # pyright: ignore[reportMissingTypeArgument]
    """A bar that writes lines, for the log of a program without a terminal."""

    monitor_interval = 0

    @staticmethod
    def status_printer(file: Any) -> Any:
        def write(text: str) -> None:
            file.write(f"{text}\n")
            file.flush()

        return write


class _Counted(Protocol):
    """What a bar counts.

    Attributes:
        n: how many tasks are done.
        n_finished: how many tasks have finished.
        n_failed: how many tasks have failed.
        total: how many tasks there will be; None where nothing says so.
    """

    n: int
    n_finished: int
    n_failed: int
    total: int | None

    async def open(self) -> None:
        """Begins to count."""

    async def changed(self) -> None:
        """Waits until the numbers are others."""

    async def refresh(self, *, is_last: bool = False) -> None:
        """Brings the numbers and the best value up to date; `is_last` at the end, when events may still be on their way."""

    async def close(self) -> None:
        """Ends the count."""


class _Network:
    """Counts the finished tasks of a network.

    Args:
        rush: a client of it.
        total: how many tasks finish; by default what its stop rule says.
        best: gets the values of finished tasks.
    """

    def __init__(self, rush: RushClient, total: int | None, best: Best) -> None:
        self.n = self.n_finished = self.n_failed = 0
        self.total = total
        self._rush = rush
        self._best = best
        self._has_own_total = total is not None
        self._rules_at = -1
        self._counts = Counts()
        self._n_seen = 0
        self._generation = (0, 0)

    async def open(self) -> None:
        await self._rush.counts()

    async def changed(self) -> None:
        await self._rush.wait_until(lambda counts: counts != self._counts)

    async def refresh(self, *, is_last: bool = False) -> None:
        rush, network = self._rush, self._rush._net  # pyright: ignore[reportPrivateUsage]
        counts = self._counts = Counts(rush.n_queued_tasks, rush.n_running_tasks, rush.n_finished_tasks, rush.n_failed_tasks)
        self.n, self.n_finished, self.n_failed = counts.finished, counts.finished, counts.failed
        if not self._has_own_total and self._rules_at != network.lines.n_changes:
            at = network.lines.n_changes
            self.total = (await rush.stop_rules()).get("finished", self.total)
            self._rules_at = at
        if self._best.output is None or (self._n_seen, self._generation) == (self.n, network.position.generation):
            return
        await network.results.read()
        if self._generation != network.position.generation:  # after a reset there are other tasks
            self._generation, self._n_seen, self._best.value = network.position.generation, 0, None
        records = network.results.records
        self._best.take(records.numbers(self._best.output, [(0, self._n_seen)]))
        self._n_seen = len(records)

    async def close(self) -> None: ...


class _Tasks:
    """Counts those of some tasks that have ended.

    Args:
        rush: a client of their network.
        keys: their keys.
        best: gets the values of finished tasks.
    """

    def __init__(self, rush: RushClient, keys: Sequence[str], best: Best) -> None:
        self.n = self.n_finished = self.n_failed = 0
        self._keys = dict.fromkeys(keys)
        self.total: int | None = len(self._keys)
        self._rush = rush
        self._best = best
        self._has_failed: dict[str, bool] = {}  # those that have ended
        self._unread: list[str] = []
        self._is_behind = True
        self._events = rush.events(TasksFinished, TasksFailed, TasksQueued, NetworkReset)

    async def open(self) -> None:
        await self._events.__aenter__()

    async def changed(self) -> None:
        while not self._take(await anext(self._events)):
            pass
        with anyio.move_on_after(0):  # what is here already
            async for event in self._events:
                self._take(event)

    def _take(self, event: TasksFinished | TasksFailed | TasksQueued | NetworkReset | EventsMissed) -> bool:
        """Takes an event. Returns whether it concerns these tasks."""
        if isinstance(event, NetworkReset | EventsMissed):
            self._is_behind = True
            return True
        keys = self._keys.keys() & event.keys
        if isinstance(event, TasksQueued):  # a failed one was retried
            for key in keys:
                self._has_failed.pop(key, None)
        else:
            self._has_failed.update(dict.fromkeys(keys, isinstance(event, TasksFailed)))
        if isinstance(event, TasksFinished):
            self._unread += keys
        return bool(keys)

    async def refresh(self, *, is_last: bool = False) -> None:
        if self._is_behind or is_last:
            tasks = [task for task in await self._rush.get_tasks(list(self._keys)) if task is not None]
            self._has_failed = {task.key: task.state == "failed" for task in tasks if task.state in ("finished", "failed")}
            self._is_behind, self._unread, self._best.value = False, [], None
            self._take_values(tasks)
        elif self._unread and self._best.output is not None:
            network = self._rush._net  # pyright: ignore[reportPrivateUsage]
            self._take_values((await network.results.find(self._unread)).values())
            self._unread = []
        self.n, self.n_failed = len(self._has_failed), sum(self._has_failed.values())
        self.n_finished = self.n - self.n_failed

    def _take_values(self, tasks: Iterable[Task]) -> None:
        self._best.take(task.ys.get(self._best.output) for task in tasks if task.state == "finished")

    async def close(self) -> None:
        await self._events.__aexit__()


class ProgressBar:
    """The bar that `progress` returns. It follows its network within its block.

    Attributes:
        tqdm: the bar of tqdm, for what else it can do, such as `set_description`; None before the block.
    """

    def __init__(self, rush: RushClient, counted: _Counted, best: Best, options: dict[str, Any]) -> None:
        self.tqdm: Tqdm | None = None
        self._rush = rush
        self._counted = counted
        self._best = best
        self._options = options
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self.tqdm is not None:
            raise NetworkStateError("this bar was opened before: make a new one with `progress(...)`")
        counted = self._counted
        await counted.open()
        try:
            await counted.refresh()
            numbers = {"total": counted.total, "initial": counted.n, "postfix": self._notes or None}
            bar = self.tqdm = _new_bar({**numbers, **self._options})
        except BaseException:
            await counted.close()
            raise
        self._task = Supervisor.spawn(self._follow(bar), f"progress of {self._rush.network_id}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        bar, task = self.tqdm, self._task
        assert bar is not None
        assert task is not None
        task.cancel()
        try:
            await run_to_completion(asyncio.wait([task]))
            if error is None:
                with suppress(RushError):  # the client was closed, or its server is away
                    await self._counted.refresh(is_last=True)
                    self._check_best()
        finally:
            await self._counted.close()
            try:
                if not bar.disable:
                    self._update(bar, draws=False)
                    bar.close()  # draws it
            except (OSError, ValueError) as unwritable:  # such as a pipe whose reader has ended
                logger.warning("the bar of network %r could not be drawn: %s", self._rush.network_id, unwritable)

    async def _follow(self, bar: Tqdm) -> None:
        """Draws what changes, until the client is closed."""
        try:
            while not bar.disable:
                await self._counted.changed()
                try:
                    await self._counted.refresh()
                except RushConnectionError as error:
                    if error.is_final:
                        return
                self._update(bar)
                await anyio.sleep(bar.mininterval)  # what changes meanwhile is drawn at once
        except NetworkStateError:
            pass  # the client was closed
        except Exception as error:  # must not end the search that it shows
            logger.warning("the bar of network %r shows no more progress: %s", self._rush.network_id, error)

    def _check_best(self) -> None:
        if (output := self._best.output) is not None and self._best.value is None and self._counted.n_finished:
            logger.warning(
                "no finished task of network %r has a number as output %r, so its bar showed no best value: give the name of "
                "an output as `by`",
                self._rush.network_id,
                output,
            )

    @property
    def _notes(self) -> str:
        best, n_failed = self._best, self._counted.n_failed
        value = best.value if isinstance(best.value, int | None) else f"{best.value:.6g}"  # an int may be beyond any float
        notes = [] if value is None else [f"best {best.output}={value}"]
        return ", ".join([*notes, f"failed={n_failed}"] if n_failed else notes)

    def _update(self, bar: Tqdm, *, draws: bool = True) -> None:
        """Gives the bar the numbers, and draws it where they are others."""
        counted, notes = self._counted, self._notes
        if (counted.n, notes) == (bar.n, bar.postfix or "") and counted.total in (None, bar.total):
            return
        if counted.total is not None and counted.total != bar.total:
            if hasattr(bar, "container"):  # the widget of a notebook gets another total in `reset` only
                started = bar.start_t
                bar.reset(counted.total)
                bar.start_t = started
            bar.total = counted.total
        bar.set_postfix_str(notes, refresh=False)
        bar.initial = min(bar.initial, counted.n)  # fewer than at the beginning: the network was reset
        if not draws:
            bar.n = counted.n
        elif not bar.update(counted.n - bar.n):
            bar.refresh()


def _new_bar(options: dict[str, Any]) -> Tqdm:
    file = options.get("file") or sys.stderr
    # A terminal and the output of a notebook's cell draw one line again and again; a file or a pipe keeps what is written.
    is_drawn = getattr(file, "isatty", bool)() or type(file).__module__.partition(".")[0] == "ipykernel"
    if is_drawn:
        return _Bar(**options)
    options = {"mininterval": _BETWEEN_LINES, **options}
    return _Lines(**options)


def progress(
    rush: RushClient,
    n: int | None = None,
    *,
    keys: str | Sequence[str] | None = None,
    by: str | None = None,
    maximize: bool = False,
    **options: Any,
) -> ProgressBar:
    """Returns a progress bar of tqdm, which shows within its block what all workers of the network do, in all processes.

    It shows how many tasks have finished and of how many, the time passed and the time left, the rate, the best value, and how
    many tasks have failed:

    ```python
    async with progress(rush, by="y"):
        await rush.start_workers(loop, n_workers=4)
        await rush.join_workers()
    ```

    In a notebook with ipywidgets it is a widget. Where the output is no terminal it is a line every ten seconds, or every
    `mininterval` seconds.

    Args:
        rush: an open client of the network.
        n: how many tasks finish; by default what the stop rule says, `stop_when(finished=...)`, also one that is set later.
            Without either the bar shows no end.
        keys: the tasks to show in place of all finished ones, as for `wait_for_tasks`: how many of them have ended.
        by: the output whose best value the bar shows.
        maximize: whether the largest value is the best.
        options: arguments of `tqdm`, such as `desc`, `leave`, `file`, `mininterval` or `disable`.

    Returns:
        The bar, for `async with`. When the client is closed in the block, or its server ends, the bar shows what it saw last.

    Raises:
        NetworkStateError: the client is not open; raised at the beginning of the block, as are errors of reading.
        ValueError: both `n` and `keys` are given.
    """
    if n is not None and keys is not None:
        raise ValueError("keys say how many tasks there are: leave n out")
    best = Best(by, maximize=maximize)
    counted = (
        _Network(rush, None if n is None else as_number(n, "n"), best) if keys is None else _Tasks(rush, as_keys(keys), best)
    )
    return ProgressBar(rush, counted, best, {"desc": rush.network_id, "unit": "task", **options})
