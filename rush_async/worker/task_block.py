"""A task as a block: whatever leaves the block ends the task."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Coroutine, Sequence
from types import TracebackType
from typing import Any, Generic, Protocol, TypeAlias, TypeVar, cast

import anyio

from rush_async.errors import RushError, WorkerLostError
from rush_async.model import CANCELLED, Failure, FailureKind, Task
from rush_async.store.codec import as_record, encode_ended, encode_failure
from rush_async.store.tasks import Ended, EndKind

__all__ = ["Catch", "Guard", "Holder", "TaskBlock", "Ticks", "end_block"]

_PATIENCE = 5.0  # seconds that ending the task of a cancelled block may take

Catch: TypeAlias = type[BaseException] | tuple[type[BaseException], ...]
Opened = TypeVar("Opened", covariant=True)
Caught = TypeVar("Caught", covariant=True)


class Ticks:
    """Tells whether an event loop has gone on since: all blocks that open in one turn of it share one mark."""

    __slots__ = ("_is_due", "n")

    def __init__(self) -> None:
        self.n = 0
        self._is_due = False

    def mark(self) -> int:
        """The number of the present turn, as far as anybody asks."""
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._pass)
        return self.n

    def _pass(self) -> None:
        self._is_due = False
        self.n += 1


class Guard:
    """Lets the network cancel what runs in a block, as `asyncio.timeout` lets the clock."""

    __slots__ = ("_begun", "_cancelling", "_is_cancelled", "_is_left", "_task", "_tick", "_ticks")

    def __init__(self, ticks: Ticks) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self._is_cancelled = False
        self._is_left = False
        self._begun = time.monotonic()
        self._ticks = ticks
        self._tick = ticks.mark()

    def cancel(self) -> None:
        """The task of the block was cancelled: so is what runs in it."""
        if not self._is_cancelled and not self._is_left:
            self._is_cancelled = True
            self._task.cancel()

    @property
    def blocked_for(self) -> float:
        """Seconds for which the block let nothing else run; 0 if it did."""
        return time.monotonic() - self._begun if self._tick == self._ticks.n else 0.0

    def leave(self) -> bool:
        """The block is left: whether the network had cancelled it. From here on it does not."""
        self._is_left = True
        return self._is_cancelled

    async def was_all(self, error: BaseException | None) -> bool:
        """Whether the error with which a cancelled block was left was nothing but the cancellation, which ends here."""
        if error is None:
            # The cancellation may still be on its way, when nothing in the block awaited.
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                if self._task.uncancel() > self._cancelling:
                    raise
                return False
        is_all = self._task.uncancel() <= self._cancelling
        return is_all and isinstance(error, asyncio.CancelledError)


class Holder(Protocol):
    """The worker that holds the task of a block."""

    @property
    def worker_id(self) -> str: ...

    @property
    def was_killed(self) -> bool: ...

    @property
    def is_shut_out(self) -> bool: ...

    def open_task(self, xs: Any, xs_extra: Any, budget: int | None, max_failed: int | None) -> Awaitable[Task | None]: ...

    def enter_block(self, task: Task) -> None: ...

    def leave_guard(self, task: Task) -> Guard | None: ...

    def end_tasks(self, items: Sequence[Ended], *, quietly: bool = False) -> Awaitable[Sequence[str]]: ...

    def check_size(self, packed: bytes, what: str) -> None: ...


class TaskBlock(Generic[Opened, Caught]):
    """What `RushWorker.task` gives: `async with rush.task(xs) as task: task.ys = ...`.

    The first parameter is what the block opens with: `Task`, or with a budget `Task | None`. The second tells type checkers
    whether an exception may end at the block: `bool` when it was told what to catch, else `None`.
    """

    __slots__ = ("_asked", "_catch", "_task", "_timeout", "_worker")

    def __init__(
        self,
        worker: Holder,
        xs: Any,
        xs_extra: Any,
        budget: int | None,
        max_failed: int | None,
        catch: Catch,
        timeout: float | None,
    ) -> None:
        if max_failed is not None and budget is None:
            raise ValueError("max_failed goes with a budget: give both")
        self._worker = worker
        self._asked = (xs, xs_extra, budget, max_failed)
        self._catch = catch
        self._timeout = None if timeout is None else asyncio.timeout(timeout)
        self._task: Task | None = None

    async def __aenter__(self) -> Opened:
        task = self._task = await self._worker.open_task(*self._asked)
        if task is not None:
            self._worker.enter_block(task)
            if self._timeout is not None:
                await self._timeout.__aenter__()
        return cast("Opened", task)

    def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Coroutine[Any, Any, Caught]:
        if self._task is None or self._timeout is not None:
            ending = self._end(self._task, self._timeout, kind, error, trace)
        else:
            ending = end_block(self._worker, self._task, error, self._catch)
        return cast("Coroutine[Any, Any, Caught]", ending)

    async def _end(
        self,
        task: Task | None,
        timeout: asyncio.Timeout | None,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if task is None:
            return False
        if timeout is not None:
            try:
                await timeout.__aexit__(kind, error, trace)
            except TimeoutError as expired:
                if await end_block(self._worker, task, expired, self._catch, "timeout"):
                    return True
                raise expired from error
        return await end_block(self._worker, task, error, self._catch)


async def end_block(worker: Holder, task: Task, error: BaseException | None, catch: Catch, kind: FailureKind = "error") -> bool:
    """Ends a task whose block was left with `error` or without; whether the error ends here."""
    if (guard := worker.leave_guard(task)) is not None and guard.leave():
        is_all = await guard.was_all(error)
        task.state, task.failure = "failed", CANCELLED
        return is_all or (isinstance(error, Exception) and isinstance(error, catch))
    if error is None:
        try:
            ended = _encode_outputs(worker, task)
        except Exception as reason:
            await end_block(worker, task, reason, ())
            raise
        try:
            if await worker.end_tasks((Ended("F", task.key, worker.worker_id, ended),)):
                task.state = "finished"
        except asyncio.CancelledError as reason:
            # It may have been too late to finish; then there is nothing left to fail.
            await _fail_shielded(worker, task, reason)
            raise
        return False
    if isinstance(error, WorkerLostError) and worker.is_shut_out:
        return False  # what it ran has been failed
    if not isinstance(error, Exception):
        await _fail_shielded(worker, task, error)
        return False  # a cancellation is nobody's to catch
    is_caught = isinstance(error, catch)
    try:
        await _end(worker, task, "X", Failure.of(error, kind))
    except RushError as reason:
        if is_caught:
            raise
        error.add_note(f"task {task.key} could not be failed: {reason}")
    return is_caught


def _encode_outputs(worker: Holder, task: Task) -> bytes:
    if task.ys is None:
        raise ValueError("a task's block was left without setting task.ys: set it to a record of outputs")
    ys = as_record(task.ys, "ys")
    packed = encode_ended(ys, None if task.ys_extra is None else as_record(task.ys_extra, "ys_extra"), "ys")
    worker.check_size(packed, "ys")
    return packed


async def _fail_shielded(worker: Holder, task: Task, error: BaseException) -> None:
    kind: FailureKind = "error"
    if isinstance(error, asyncio.CancelledError):
        kind = "killed" if worker.was_killed else "cancelled"
    failure = Failure.of(error, kind)
    with anyio.move_on_after(_PATIENCE, shield=True):
        try:
            await _end(worker, task, "X", failure, quietly=True)
        except WorkerLostError:
            pass  # what it ran has been failed
        except RushError as reason:
            error.add_note(f"task {task.key} could not be failed: {reason}")


async def _end(worker: Holder, task: Task, kind: EndKind, failure: Failure, *, quietly: bool = False) -> None:
    ended = Ended(kind, task.key, worker.worker_id, encode_failure(failure))
    if await worker.end_tasks([ended], quietly=quietly):
        task.state = "failed"
        task.failure = failure
