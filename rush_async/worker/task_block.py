"""A task as a block: opening the block takes a place for the task, and every way out of it ends the task."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import fields
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar, cast

import anyio

from rush_async.errors import DecodeError, RushConnectionError, RushError, WorkerLostError
from rush_async.model import CANCELLED, Catch, Failure, FailureKind, Task
from rush_async.network.network import Network
from rush_async.network.waiting import Mark
from rush_async.store.decoding import decode_task
from rush_async.store.records import NewTask, RecordEncoder, as_record, encode_failure
from rush_async.store.scripts import Lost
from rush_async.store.tasks import Created, Ended, EndKind, Popped, Refusal
from rush_async.worker.membership import Membership

__all__ = ["Place", "TaskBlock", "TaskBlocks"]

_PATIENCE = 5.0  # seconds that ending the task of a cancelled block may take

# What Python says where a block without a task uses its task, and where an output is set before there is one.
_ATTRIBUTES_OF_NONE = {f"'NoneType' object has no attribute {field.name!r}" for field in fields(Task)}
_ITEM_OF_NONE = "'NoneType' object does not support item assignment"

Opened = TypeVar("Opened", covariant=True)
Caught = TypeVar("Caught", covariant=True)


class TaskBlocks:
    """The task blocks of one worker. It is the holder of each task that the worker has popped.

    Args:
        membership: the worker.
        encoder: encodes inputs and outputs.
    """

    def __init__(self, membership: Membership, encoder: RecordEncoder) -> None:
        self.membership = membership
        self.encoder = encoder

    async def pop(self, network: Network) -> Task | None:
        """Pops the next queued task, if there is one.

        Raises:
            DecodeError: the task is not a record of this library; it has failed.
            WorkerLostError: the worker is not alive.
        """
        membership = self.membership
        membership.check()
        while True:
            n_arrivals, mark = network.lines.n_arrivals, network.lines.mark
            pop = await network.tasks.pop(membership.worker_id)
            if isinstance(pop.tasks, Lost):
                raise membership.lost_error()
            if pop.tasks or pop.refusal != "left off":
                break
        if pop.tasks:
            return self._hold(network, pop.tasks[0], mark)
        if pop.refusal == "full":
            network.lines.found_full(mark)
        elif pop.refusal == "empty":
            network.lines.found_empty(n_arrivals)
        return None

    async def pop_named(self, network: Network, key: str, timeout: float | None) -> Task | None:
        """Pops the task with a key if it is queued. While the network is full it waits for a place.

        Args:
            network: the network.
            key: the task.
            timeout: seconds to wait for a place; None waits for ever.

        Raises:
            DecodeError: the task is not a record of this library; it has failed.
            WorkerLostError: the worker is not alive.
        """
        membership, lines = self.membership, network.lines
        membership.check()
        loop = asyncio.get_running_loop()
        deadline = None if timeout is None else loop.time() + timeout
        mark = lines.mark
        pop = await network.tasks.pop_named(membership.worker_id, key)
        while not pop.tasks and pop.refusal == "full" and timeout != 0:
            lines.found_full(mark)
            await self.watch(network)
            left = None if deadline is None else deadline - loop.time()
            if membership.terminated or not await lines.places.turn(left, membership.waits):
                return None
            try:
                mark = lines.mark
                pop = await network.tasks.pop_named(membership.worker_id, key)
            finally:
                lines.places.done()
        if isinstance(pop.tasks, Lost):
            raise membership.lost_error()
        return self._hold(network, pop.tasks[0], mark) if pop.tasks else None

    def _hold(self, network: Network, popped: Popped, mark: Mark) -> Task:
        network.lines.places_taken(1, mark)
        key, record = popped
        try:
            task = decode_task("running", record)
        except DecodeError as error:
            network.tasks.fail_later(key, self.membership.worker_id, error)
            raise
        self.membership.hold([key])
        task._holder = self  # pyright: ignore[reportPrivateUsage]
        return task

    async def look_in_queue(self, network: Network) -> Task | None:
        """The next queued task, without waiting for one."""
        return None if self.membership.terminated else await self.pop(network)

    async def pop_in_turn(self, network: Network, timeout: float | None) -> Task | None:
        """Pops the next queued task once there is one; None after `timeout` seconds, or when the worker is to take no task."""
        membership = self.membership
        # A client that receives events knows whether the queue is empty; any other has to ask the server.
        if not network.feed.is_watching:
            if (task := await self.look_in_queue(network)) is not None:
                return task
            await self.watch(network)
        deadline = None if timeout is None else asyncio.get_running_loop().time() + timeout
        while not membership.terminated:
            left = None if deadline is None else deadline - asyncio.get_running_loop().time()
            if not await network.lines.queue.turn(left, membership.waits):
                break
            try:
                if membership.terminated:
                    break
                task = await self.pop(network)
            finally:
                network.lines.queue.done()
            if task is not None:
                return task
        return None

    async def start_in_turn(
        self, network: Network, tasks: Sequence[NewTask], mark: Mark, points: Sequence[bytes] = ()
    ) -> Created | Lost:
        """Pushes tasks that were refused because the network is full, as many as fit once there is a place.

        Args:
            network: the network.
            tasks: the tasks.
            mark: `lines.mark` as it was before the attempt that was refused.
            points: the points of the tasks, where they matter.

        Returns:
            The tasks that started; none where the worker is to take no task any more.
        """
        lines, line = network.lines, network.lines.places
        created: Created | Lost = Created([], refusal="full")
        with network.feed:
            while isinstance(created, Created) and created.refusal == "full":
                lines.found_full(mark)
                await self.watch(network)
                if self.membership.terminated or not await line.turn(None, self.membership.waits):
                    return Created([], refusal="stopped")
                try:
                    mark = lines.mark
                    created = await network.tasks.push("running", tasks, worker_id=self.membership.worker_id, points=points)
                    if isinstance(created, Created):
                        lines.places_taken(len(created.keys), mark)
                finally:
                    line.done()
        return created

    async def watch(self, network: Network) -> None:
        """Waits until the client receives the events of the network, or the worker is asked to stop."""
        stop: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.membership.waits.add(stop)
        try:
            with anyio.CancelScope() as scope:
                stop.add_done_callback(lambda _: scope.cancel())
                await network.feed.watch()
        finally:
            self.membership.waits.discard(stop)
        if stop.done():
            stop.result()  # raises the error that ended the wait

    def enter_block(self, task: Task) -> None:
        """Opens a task's block."""
        self.membership.enter_block(task.key)

    async def leave_block(self, task: Task, error: BaseException | None) -> bool:
        """Ends a popped task whose block was left, with or without an error. Returns whether to suppress the error."""
        return await self.end(task, error, task._catch)  # pyright: ignore[reportPrivateUsage]

    async def report(self, task: Task, values: Any) -> None:
        """Hands over a report of a task."""
        await self.membership.report((task.key,), (self.encoder.report(values),))

    async def end(self, task: Task, error: BaseException | None, catch: Catch, kind: FailureKind = "error") -> bool:
        """Ends a task whose block was left, with or without an error. Returns whether to suppress the error."""
        guard = self.membership.leave_block(task.key)
        if guard is not None and guard.end():
            is_only_cause = await guard.was_only_cause(error)
            task.state, task.failure = "failed", CANCELLED
            return is_only_cause or (isinstance(error, Exception) and isinstance(error, catch))
        if error is None:
            await self._finish(task)
            return False
        if isinstance(error, WorkerLostError) and self.membership.is_shut_out:
            return False  # the network has failed the task
        if not isinstance(error, Exception):
            await self._fail_shielded(task, error)
            return False  # `catch` never suppresses a cancellation
        if task.ys is None and isinstance(error, TypeError) and str(error) == _ITEM_OF_NONE:
            error.add_note('`task.ys` is None until the block sets it. Set the whole output: `task.ys = {"y": ...}`')
        is_caught = isinstance(error, catch)
        try:
            await self._fail(task, Failure.of(error, kind))
        except RushError as reason:
            if is_caught:
                raise
            error.add_note(f"task {task.key} could not be failed: {reason}")
        return is_caught

    async def _finish(self, task: Task) -> None:
        try:
            if task.ys is None:
                raise ValueError("a task's block was left without setting task.ys: set it to a record of outputs")
            ended = self.encoder.end(task.ys, task.ys_extra)
        except Exception as reason:
            await self.end(task, reason, ())
            raise
        try:
            if await self._end_as("finished", task, ended):
                task.state = "finished"
        except asyncio.CancelledError as reason:
            # The task may have been finished already; then failing it moves nothing.
            await self._fail_shielded(task, reason)
            raise

    async def _fail_shielded(self, task: Task, error: BaseException) -> None:
        kind: FailureKind = "error"
        if isinstance(error, asyncio.CancelledError):
            kind = "killed" if self.membership.was_killed else "cancelled"
        failure = Failure.of(error, kind)
        with anyio.move_on_after(_PATIENCE, shield=True):
            try:
                await self._fail(task, failure, quietly=True)
            except WorkerLostError:
                pass  # the network has failed the task
            except RushError as reason:
                error.add_note(f"task {task.key} could not be failed: {reason}")

    async def _fail(self, task: Task, failure: Failure, *, quietly: bool = False) -> None:
        if await self._end_as("failed", task, encode_failure(failure), quietly=quietly):
            task.state = "failed"
            task.failure = failure

    async def _end_as(self, kind: EndKind, task: Task, ended: bytes, *, quietly: bool = False) -> list[str]:
        item = Ended(kind, task.key, self.membership.worker_id, ended)
        try:
            return await self.membership.end_tasks((item,), quietly=quietly)
        except RushConnectionError as error:
            self.membership.fail_later(
                task.key, ended if kind == "failed" else error
            )  # nothing else would end it, and it would keep its place
            raise


class Place:
    """A place for one task, perhaps within a budget.

    Args:
        network: the network.
        blocks: the worker that takes the task.
        xs: the input.
        xs_extra: extra values that are stored with it.
        budget: how many tasks may be queued, running or finished; None for no limit.
        max_failed: with a budget, how many tasks may have failed.
    """

    def __init__(
        self, network: Network, blocks: TaskBlocks, xs: Any, xs_extra: Any, budget: int | None, max_failed: int | None
    ) -> None:
        self._network = network
        self._blocks = blocks
        self._membership = blocks.membership
        self._xs = xs
        self._xs_extra = xs_extra
        self._budget = budget
        self._max_failed = max_failed

    async def take(self) -> Task | None:
        """Returns a task that the worker now runs; None if the budget is spent or a stop was requested."""
        record = as_record(self._xs, "xs")
        extra = None if self._xs_extra is None else as_record(self._xs_extra, "xs_extra")
        new = self._blocks.encoder.task(record, extra)
        task = Task(
            *(new.key, "running", record, extra),
            attempt=1,
            worker_id=self._membership.worker_id,
            _holder=self._blocks,
        )
        self._membership.check()
        if self._budget is None:
            await self._start(new, task)
            return task
        with self._network.feed, self._network.lines.budget(self._budget, self._max_failed) as line:
            is_our_turn = False
            while not self._membership.terminated:
                mark = self._network.lines.mark
                try:
                    refusal = await self._push(new, task)
                    if refusal is None:
                        line.place_taken(mark)
                        return task
                    counts = self._network.position.counts
                    if counts.finished >= self._budget:
                        return None
                    if self._max_failed is not None and counts.failed >= self._max_failed:
                        return None
                    if (
                        refusal == "empty"
                        and counts.queued
                        and (queued := await self._blocks.look_in_queue(self._network)) is not None
                    ):
                        return queued
                    if refusal == "empty":
                        line.found_full(mark)
                finally:
                    if is_our_turn:
                        line.done()
                        is_our_turn = False
                await self._blocks.watch(self._network)
                if not self._membership.terminated:
                    is_our_turn = await line.turn(None, self._membership.waits)
            if is_our_turn:
                line.done()
        await self._membership.raise_if_lost()
        return None

    async def _push(self, new: NewTask, task: Task) -> Refusal | None:
        """Pushes the task. Returns why it did not start; `empty` where the budget has no place for it."""
        lines = self._network.lines
        mark = lines.mark
        taken = await self._network.tasks.push_one(new, self._membership.worker_id, self._budget, self._max_failed)
        if isinstance(taken, Lost):
            raise self._membership.lost_error()
        if taken.n:
            task.index = taken.first_index
            self._membership.hold([new.key])
            return None
        if taken.refusal == "full":
            lines.found_full(mark)
        return taken.refusal or "empty"

    async def _start(self, new: NewTask, task: Task) -> None:
        """Pushes the task without a budget, once there is a place within the stop rules."""
        mark = self._network.lines.mark
        refusal = await self._push(new, task)
        if refusal is None:
            self._network.lines.places_taken(1, mark)
        if refusal == "full":
            created = await self._blocks.start_in_turn(self._network, (new,), mark)
            if isinstance(created, Lost):
                raise self._membership.lost_error()
            if created.keys:
                task.index = created.first_index
                self._membership.hold([new.key])
                return
        if refusal is not None:
            await self._membership.raise_if_lost()
            raise self._membership.stopped_error()


class TaskBlock(Generic[Opened, Caught]):
    """The block that `RushWorker.task` returns: `async with rush.task(xs) as task: task.ys = ...`.

    The first type parameter is what the block opens with: `Task`, or with a budget `Task | None`. The second tells type
    checkers whether the block may suppress an exception: `bool` if it has exceptions to catch, else `None`.
    """

    __slots__ = ("_blocks", "_catch", "_place", "_seconds", "_task", "_timeout")

    def __init__(self, blocks: TaskBlocks, place: Place, catch: Catch, timeout: float | None) -> None:
        self._blocks = blocks
        self._place = place
        self._catch = catch
        self._seconds = timeout
        self._timeout = None if timeout is None else asyncio.timeout(timeout)
        self._task: Task | None = None

    if not TYPE_CHECKING:  # a checker would accept `with`, too

        def __enter__(self) -> NoReturn:
            raise TypeError("a task's block is `async with rush.task(...) as task:`, in an `async def`, and not `with`")

        def __exit__(self, *_: object) -> None: ...

    async def __aenter__(self) -> Opened:
        task = self._task = await self._place.take()
        if task is not None:
            self._blocks.enter_block(task)
            if self._timeout is not None and self._seconds is not None:
                await self._timeout.__aenter__()
                # It was made with the block, so that what is no number is refused before there is a task. Its time begins here.
                self._timeout.reschedule(asyncio.get_running_loop().time() + self._seconds)
        return cast("Opened", task)

    def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Coroutine[Any, Any, Caught]:
        if self._task is None or self._timeout is not None:
            ending = self._end(self._task, self._timeout, kind, error, trace)
        else:
            ending = self._blocks.end(self._task, error, self._catch)
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
            if isinstance(error, AttributeError) and str(error) in _ATTRIBUTES_OF_NONE:
                error.add_note(
                    "The block has no task: its budget is spent, or the worker was asked to stop. Begin it with "
                    "`if task is None: break`, or `return` where there is no loop"
                )
            return False
        if timeout is not None:
            try:
                await timeout.__aexit__(kind, error, trace)
            except TimeoutError as expired:
                if await self._blocks.end(task, expired, self._catch, "timeout"):
                    return True
                raise expired from error
        return await self._blocks.end(task, error, self._catch)
