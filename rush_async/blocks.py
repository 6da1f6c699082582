"""A task as a block: whatever leaves the block ends the task."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from types import TracebackType
from typing import Any, Generic, Protocol, TypeAlias, TypeVar, cast

import anyio

from rush_async.errors import RushError, WorkerLostError
from rush_async.model import Failure, FailureKind, Task
from rush_async.store.codec import as_record, encode_ended, encode_failure
from rush_async.store.tasks import Ended, EndKind

__all__ = ["Catch", "Holder", "TaskBlock", "end_block"]

_PATIENCE = 5.0  # seconds that ending the task of a cancelled block may take

Catch: TypeAlias = type[BaseException] | tuple[type[BaseException], ...]
Opened = TypeVar("Opened", covariant=True)
Caught = TypeVar("Caught", covariant=True)


class Holder(Protocol):
    """The worker that holds the task of a block."""

    @property
    def worker_id(self) -> str: ...

    @property
    def was_killed(self) -> bool: ...

    @property
    def is_shut_out(self) -> bool: ...

    def open_task(self, xs: Any, xs_extra: Any, budget: int | None, max_failed: int | None) -> Awaitable[Task | None]: ...

    def end_task(self, task: Task, ended: Ended, *, quietly: bool = False) -> Awaitable[bool]: ...

    def check_size(self, packed: bytes, what: str) -> None: ...


class TaskBlock(Generic[Opened, Caught]):
    """What `RushWorker.task` gives: `async with rush.task(xs) as task: task.ys = ...`.

    The first parameter is what the block opens with: `Task`, or with a budget `Task | None`. The second tells type checkers
    whether an exception may end at the block: `bool` when it was told what to catch, else `None`.
    """

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
        self._task = await self._worker.open_task(*self._asked)
        if self._task is not None and self._timeout is not None:
            await self._timeout.__aenter__()
        return cast("Opened", self._task)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Caught:
        return cast("Caught", await self._leave(kind, error, trace))

    async def _leave(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        if self._task is None:
            return False
        timed_out: TimeoutError | None = None
        if self._timeout is not None:
            try:
                await self._timeout.__aexit__(kind, error, trace)
            except TimeoutError as expired:
                timed_out = expired
        if timed_out is None:
            return await end_block(self._worker, self._task, error, self._catch)
        if await end_block(self._worker, self._task, timed_out, self._catch, "timeout"):
            return True
        raise timed_out from error


async def end_block(worker: Holder, task: Task, error: BaseException | None, catch: Catch, kind: FailureKind = "error") -> bool:
    """Ends a task whose block was left with `error` or without; whether the error ends here."""
    if error is None:
        await _finish(worker, task)
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


async def _finish(worker: Holder, task: Task) -> None:
    try:
        if task.ys is None:
            raise ValueError(f"the block of task {task.key!r} was left without setting task.ys: set it to a record of outputs")
        ys = as_record(task.ys, "ys")
        extra = None if task.ys_extra is None else as_record(task.ys_extra, "ys_extra")
        packed = encode_ended(ys, extra, "ys")
        worker.check_size(packed, "ys")
    except Exception as error:
        await end_block(worker, task, error, ())
        raise
    try:
        if await worker.end_task(task, Ended("F", task.key, worker.worker_id, packed)):
            task.state = "finished"
    except asyncio.CancelledError as error:
        # It may have been too late to finish; then there is nothing left to fail.
        await _fail_shielded(worker, task, error)
        raise


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
    if await worker.end_task(task, ended, quietly=quietly):
        task.state = "failed"
        task.failure = failure
