"""How coroutines of one process wait for the network without asking it: on counts that events keep up to date."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextlib import contextmanager

from rush_async.model import Counts

__all__ = ["Conditions", "Line"]


class Conditions:
    """Waits until the counts satisfy a predicate."""

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Future[Counts | None], Callable[[Counts], bool]] = {}

    def update(self, counts: Counts) -> None:
        """Wakes whoever waits for what these counts are."""
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
        """A future of the first counts that satisfy `predicate`; `None` may be set from outside to end the wait."""
        future: asyncio.Future[Counts | None] = asyncio.get_running_loop().create_future()
        self._waiting[future] = predicate
        try:
            yield future
        finally:
            del self._waiting[future]
            future.cancel()


class Line:
    """Waiters for something that only so many can have: they stand in one line, and each freed one wakes one.

    Args:
        available: how many waiters the counts have something for.
    """

    def __init__(self, available: Callable[[Counts], int]) -> None:
        self._available = available
        self._counts = Counts()
        self._line: dict[asyncio.Future[bool], None] = {}
        self._granted = 0
        self.n_users = 0

    def __len__(self) -> int:
        return len(self._line)

    def update(self, counts: Counts) -> None:
        """Wakes as many as there is something for, but for those who were woken and have not come back yet."""
        self._counts = counts
        free = self._available(counts) - self._granted
        while free > 0 and self._line:
            future = next(iter(self._line))
            del self._line[future]
            if not future.done():
                future.set_result(True)
                self._granted += 1
                free -= 1

    async def turn(self, timeout: float | None, waits: set[asyncio.Future[bool]]) -> bool:
        """Waits in line. True: it is the caller's turn, and it calls `done` after its attempt. False: the time is up, or
        somebody ended the wait.

        Args:
            timeout: seconds; None waits for ever.
            waits: the waits of the caller's worker, by which others end this one.
        """
        if not self._line and self._available(self._counts) > self._granted:
            self._granted += 1
            return True
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bool] = loop.create_future()
        timer = None if timeout is None else loop.call_later(max(timeout, 0), end_wait, future)
        self._line[future] = None
        waits.add(future)
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.result():
                self.done()  # it was our turn in the very tick of the cancellation: the next one's now
            raise
        finally:
            self._line.pop(future, None)
            waits.discard(future)
            if timer is not None:
                timer.cancel()

    def done(self) -> None:
        """The attempt of one turn is over, whatever came of it."""
        self._granted -= 1
        self.update(self._counts)


def end_wait(future: asyncio.Future[bool]) -> None:
    """Ends a wait in a line with nothing."""
    if not future.done():
        future.set_result(False)
