"""A client with an identity: it takes tasks, holds them, and ends them."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, overload
from weakref import WeakKeyDictionary

import anyio

from rush_async.client.arguments import as_failures, as_keys, as_number, check_lengths
from rush_async.client.client import RushClient
from rush_async.client.session import Schema
from rush_async.config import RushConfig
from rush_async.errors import NetworkStateError, RushConnectionError, WorkerIdTakenError, WorkerLostError, listed
from rush_async.model import Failure, Task, WorkerExit, WorkerState
from rush_async.network.network import Network
from rush_async.store.codec import as_record, decode_task, encode_failure
from rush_async.store.keys import check_worker_id
from rush_async.store.tasks import Ended, Lost, Popped
from rush_async.store.workers import KILLED
from rush_async.worker.names import worker_name
from rush_async.worker.task_block import Catch, Guard, TaskBlock, Ticks, end_block

__all__ = ["RushWorker"]

logger = logging.getLogger(__name__)

_LONG = 1.0  # seconds for which a worker may block a loop that it shares
_PATIENCE = 5.0  # seconds that a worker's good-bye may take


_ticks: WeakKeyDictionary[asyncio.AbstractEventLoop, Ticks] = WeakKeyDictionary()


def _ticks_of_loop() -> Ticks:
    """What all workers of this event loop tell its turns by."""
    loop = asyncio.get_running_loop()
    if (ticks := _ticks.get(loop)) is None:
        ticks = _ticks[loop] = Ticks()
    return ticks


class RushWorker(RushClient):
    """A worker of a network: it registers itself when it is opened and leaves when it is closed.

    ```python
    async with RushWorker("branin") as rush:
        while not rush.terminated:
            (key,) = await rush.push_running_tasks([{"x1": 1.0, "x2": 2.0}])
            await rush.finish_tasks(key, [{"y": 3.0}])
    ```

    Args:
        network_id: the network to work in.
        config: a URL or a `RushConfig`; by default `RUSH_URL`, else `REDIS_URL`, else the embedded server.
        worker_id: the worker's name, new in this network; a random one by default.
        schema: columns that frames always have, with their dtypes.
    """

    def __init__(
        self,
        network_id: str,
        config: RushConfig | str | None = None,
        *,
        worker_id: str | None = None,
        schema: Schema | None = None,
    ) -> None:
        super().__init__(network_id, config, schema=schema)
        self._worker_id = worker_name() if worker_id is None else check_worker_id(worker_id)
        self._held: dict[str, None] = {}
        self._guards: dict[str, Guard] = {}
        self._waits: set[asyncio.Future[bool]] = set()
        self._lease_id = ""
        self._ticks: Ticks
        self._has_warned = False
        self._has_logged = False
        self._is_terminated = False
        self._lost_because: str | None = None
        self._has_entered = False
        self._end: tuple[WorkerState, Failure | None] | None = None
        self.on_shut_out: Callable[[], None] | None = None  # what ends the loop of a worker that is shut out

    @property
    def worker_id(self) -> str:
        """The worker's name."""
        return self._worker_id

    @property
    def terminated(self) -> bool:
        """Whether this worker was asked to stop; local and free to read."""
        return self._is_terminated

    @property
    def has_entered(self) -> bool:
        """Whether the network knows this worker as running."""
        return self._has_entered

    # entering and leaving

    async def _enter(self, network: Network) -> None:
        info = {"pid": os.getpid(), "hostname": socket.gethostname(), "heartbeat": True}
        lease = network.pulse.lease(self._config.heartbeat_period, self._config.heartbeat_expire)
        self._lease_id = lease.lease_id

        def undo(answer: Any) -> None:
            if answer in ("1", "2"):
                network.tasks.calls.give_back(network.workers.bye_group(self._worker_id, "terminated", None))

        if self._worker_id in network.residents.by_id:
            raise self._name_is_taken()
        try:
            await network.residents.settle(self)
            answer = await network.workers.enter(self._worker_id, lease, info, give_back=undo)
            if answer == "0":
                raise self._name_is_taken()
        except BaseException:
            network.residents.unsettle(self)
            raise
        self._has_entered = True
        self._ticks = _ticks_of_loop()
        if answer == "2":  # while it was being started
            self.stop_requested()

    def _name_is_taken(self) -> WorkerIdTakenError:
        return WorkerIdTakenError(
            f"worker_id {self._worker_id!r} is or was in use in network {self._network_id!r}: choose another, "
            "or leave it out for a random one"
        )

    def end_as(self, state: WorkerState, failure: Failure | None) -> None:
        """Sets how the worker's end is to be reported when it is closed."""
        self._end = (state, failure)

    async def _leave(self, error: BaseException | None) -> None:
        network = self._network
        if network is None or not self._has_entered:
            return
        self._has_entered = False
        self.stop_requested()
        if self._end is None:
            is_own = isinstance(error, Exception)
            self._end = ("failed", Failure.of(error)) if is_own else ("terminated", None)
        state, failure = self._end
        is_gone = False
        try:
            # Nobody else is to wait for us longer than this.
            with anyio.move_on_after(_PATIENCE, shield=True):
                if self._has_logged:
                    await network.pulse.flush()
                await network.standby.retire(self._worker_id, self._waits)
                if self._lost_because is None:
                    await network.tasks.calls.quiet()  # it may be given tasks just now
                    await self._fail_held(failure or Failure("cancelled", None, "Its worker ended"))
                    await network.tasks.calls.settled()
                    await network.workers.bye(self._worker_id, state, failure)
                is_gone = True
            if not is_gone:
                logger.warning("worker %s could not say good-bye within %g s", self._worker_id, _PATIENCE)
        except RushConnectionError as reason:
            logger.warning("worker %s could not say good-bye: %s", self._worker_id, reason)
        finally:
            network.residents.unsettle(self)
            if not network.residents:
                network.standby.close()
            if not is_gone:
                network.residents.bury(self._worker_id, failure)

    def log(self, record: bytes) -> None:
        """Keeps a packed log record in the network; from any thread."""
        if (network := self._network) is not None:
            self._has_logged = True
            network.pulse.log(record)

    async def _fail_held(self, failure: Failure) -> None:
        if keys := list(self._held):
            self._held.clear()
            ended = encode_failure(failure)
            await self._net.tasks.end([Ended("X", key, self._worker_id, ended) for key in keys])

    # what the network tells it

    @property
    def lease_id(self) -> str:
        """The lease it lives under."""
        return self._lease_id

    @property
    def is_idle(self) -> bool:
        """Whether it holds no task."""
        return not self._held

    def held_keys(self) -> list[str]:
        """The tasks it holds."""
        return list(self._held)

    def task_cancelled(self, key: str) -> None:
        """A task that it holds has been failed by `cancel_tasks`: the block that runs it ends."""
        if self._held.pop(key, self) is None and (guard := self._guards.get(key)) is not None:
            guard.cancel()

    def note_stop(self) -> None:
        """From any thread: `terminated` is true from here on, though the loop may be computing."""
        self._is_terminated = True

    def stop_requested(self) -> None:
        """The worker is to take nothing new; whatever waits for tasks ends."""
        self._is_terminated = True
        for future in list(self._waits):
            if not future.done():
                future.set_result(False)

    def shut_out(self, why: str) -> None:
        """The network does not count this worker as alive any more."""
        if self._lost_because is None and self._has_entered:
            self._lost_because = why
            self._held.clear()
            self.stop_requested()
            # One that was lost may have come back: it learns by `WorkerLostError` and may go on under another name.
            if why != "lost" and self.on_shut_out is not None:
                self.on_shut_out()

    @property
    def was_killed(self) -> bool:
        """Whether the worker was shut out by a kill request."""
        return self._lost_because == "killed"

    @property
    def is_shut_out(self) -> bool:
        """Whether the network does not count this worker as alive any more, though it did not leave."""
        return self._lost_because is not None

    async def end_seen_by_others(self) -> WorkerExit:
        """How a worker that was shut out ended: killed, lost, or terminated by a reset."""
        if self.was_killed:  # a reset may have followed, and then nothing of it is there to read
            return WorkerExit(self._worker_id, "killed", KILLED)
        entry = (await self._net.workers.read_some([self._worker_id])).get(self._worker_id)
        if entry is None or entry.state in ("starting", "running"):
            return WorkerExit(self._worker_id, "terminated")
        if entry.state == "killed":
            return WorkerExit(self._worker_id, "killed", KILLED)
        return WorkerExit(self._worker_id, entry.state, entry.failure)

    def _lost(self) -> WorkerLostError:
        self.shut_out("lost")
        return WorkerLostError(
            f"worker {self._worker_id} is not alive in network {self._network_id!r} any more "
            f"({self._lost_because or 'lost'}): its tasks have been failed. Open a new RushWorker to go on"
        )

    # tasks

    async def push_running_tasks(
        self, xss: Iterable[Any], *, xss_extra: Iterable[Any] | None = None, budget: int | None = None
    ) -> list[str]:
        """Creates tasks that this worker runs.

        Args:
            xss: the inputs, a record each.
            xss_extra: what to store beside each input.
            budget: at most this many tasks of the network are to be queued, running or finished; failed ones give
                their place back.

        Returns:
            The keys, in the order of `xss`; with a budget, of as many as found a place.

        Raises:
            EncodeError: a value cannot be stored; nothing was pushed.
            WorkerLostError: this worker was declared lost or was killed.
        """
        budget = None if budget is None else as_number(budget, "budget")
        tasks = self._new_tasks(xss, xss_extra)
        if not tasks:
            return []
        network = self._begin()
        if len(tasks) == 1:  # the way of a loop
            key = tasks[0].key
            return [key] if self._took_place(key, await network.tasks.push_one(tasks[0], self._worker_id, budget)) else []
        return self._hold(await network.tasks.push("R", tasks, worker_id=self._worker_id, budget=budget))

    def _begin(self) -> Network:
        """The network, for a call that takes a task: nobody in this event loop stands by any more."""
        network = self._net
        if not self._has_entered:
            raise NetworkStateError(f"worker {self._worker_id} is leaving network {self._network_id!r}: open a new one")
        network.standby.stand_down()
        return network

    def _hold(self, keys: list[str] | Lost) -> list[str]:
        if isinstance(keys, Lost):
            raise self._lost()
        self._held.update(dict.fromkeys(keys))
        return keys

    async def finish_tasks(
        self, keys: str | Sequence[str], yss: Iterable[Any], *, yss_extra: Iterable[Any] | None = None
    ) -> list[str]:
        """Finishes tasks that this worker runs.

        Args:
            keys: one key or several.
            yss: the outputs, a record each.
            yss_extra: what to store beside each output.

        Returns:
            The keys that moved, in the order given. A task that this worker does not hold (any more) moves nothing and is
            named in a warning.

        Raises:
            EncodeError: a value cannot be stored; nothing moved, the tasks are still running.
            WorkerLostError: this worker was declared lost or was killed.
        """
        keys = as_keys(keys)
        ends = self._encode_ends(yss, yss_extra)
        check_lengths("keys", keys, "yss", ends)
        return await self.end_tasks([Ended("F", key, self._worker_id, end) for key, end in zip(keys, ends, strict=True)])

    async def fail_tasks(self, keys: str | Sequence[str], failures: Any = None) -> list[str]:
        """Fails tasks that this worker runs; the keys that moved, in the order given.

        Args:
            keys: one key or several.
            failures: one for all or one for each: an exception, a string or a `Failure`.

        Raises:
            WorkerLostError: this worker was declared lost or was killed.
        """
        keys = as_keys(keys)
        found = as_failures(failures, len(keys), "keys")
        return await self.end_tasks(
            [Ended("X", key, self._worker_id, encode_failure(why)) for key, why in zip(keys, found, strict=True)]
        )

    async def end_tasks(self, items: Sequence[Ended], *, quietly: bool = False) -> list[str]:
        """Ends tasks that this worker holds; the keys that moved."""
        if not items:
            return []
        try:
            marks = await self._net.tasks.end(items) or "0" * len(items)
        except asyncio.CancelledError:
            for item in items:  # it is said all the same
                self._held.pop(item.key, None)
            raise
        if marks == "1":  # the way of a loop
            self._held.pop(items[0].key, None)
            return [items[0].key]
        for item in items:
            self._held.pop(item.key, None)
        moved = [item.key for item, mark in zip(items, marks, strict=True) if mark == "1"]
        if len(moved) == len(items):
            return moved
        if "L" in marks:
            raise self._lost()
        if not quietly:
            missed = [item.key for item, mark in zip(items, marks, strict=True) if mark != "1"]
            verb = "finished" if items[0].kind == "F" else "failed"
            logger.warning(
                "worker %s does not run %s: not %s (ended before, held by another worker, unknown, or deleted by a reset)",
                self._worker_id,
                listed(missed),
                verb,
            )
        return moved

    async def pop_task(self, timeout: float | None = 1.0) -> Task | None:
        """Takes the next queued task.

        Args:
            timeout: seconds to wait for one, without polling; 0 looks once, None waits for ever.

        Returns:
            The task, now running here, which is also a block: `async with task: task.ys = ...`. None when there was none in
            time, or when this worker was asked to stop.

        Raises:
            WorkerLostError: this worker was declared lost or was killed.
        """
        network = self._net
        if self._is_terminated:
            return self._nothing()
        if timeout == 0:
            return await self._look_in_queue()
        with network.watched:
            # Without a view of the queue, ask; with one that says it is empty, a waiting pop has nothing to ask.
            if not network.is_watching:
                if (task := await self._look_in_queue()) is not None:
                    return task
                await self._watch(network)
            deadline = None if timeout is None else asyncio.get_running_loop().time() + timeout
            while not self._is_terminated:
                left = None if deadline is None else deadline - asyncio.get_running_loop().time()
                is_our_turn, handed = await network.standby.turn(self._worker_id, left, self._waits)
                try:
                    if handed is not None:
                        return self._took([handed])
                    if not is_our_turn or self._is_terminated:
                        break
                    popped = self._took(await self._begin().tasks.pop(self._worker_id))
                finally:
                    if is_our_turn:
                        network.queue_line.done()
                if popped is not None:
                    return popped
        return self._nothing()

    async def _watch(self, network: Network) -> None:
        # A worker that is closed meanwhile has nothing to wait for, like one that was asked to stop.
        with suppress(NetworkStateError), self._until_closed():
            await network.watch()

    def _nothing(self) -> None:
        if self._lost_because is not None:
            raise self._lost()

    async def _look_in_queue(self) -> Task | None:
        if self._is_terminated:
            return None
        network = self._begin()
        while True:
            task = self._took(await network.tasks.pop(self._worker_id))
            # A call skips a thousand stale entries of the queue at the most, and then leaves off.
            if task is not None or not network.counts.queued:
                return task

    def _took(self, popped: list[Popped] | Lost) -> Task | None:
        if isinstance(popped, Lost):
            raise self._lost()
        if not popped:
            return None
        key, record = popped[0]
        self._held[key] = None
        task = decode_task("running", record)
        task._holder = self  # pyright: ignore[reportPrivateUsage]
        return task

    # blocks

    @overload
    def task(
        self,
        xs: Any,
        *,
        xs_extra: Any = None,
        budget: None = None,
        max_failed: None = None,
        timeout: float | None = None,
    ) -> TaskBlock[Task, None]: ...

    @overload
    def task(
        self,
        xs: Any,
        *,
        xs_extra: Any = None,
        budget: None = None,
        max_failed: None = None,
        catch: Catch,
        timeout: float | None = None,
    ) -> TaskBlock[Task, bool]: ...

    @overload
    def task(
        self,
        xs: Any,
        *,
        xs_extra: Any = None,
        budget: int | None,
        max_failed: int | None = None,
        timeout: float | None = None,
    ) -> TaskBlock[Task | None, None]: ...

    @overload
    def task(
        self,
        xs: Any,
        *,
        xs_extra: Any = None,
        budget: int | None,
        max_failed: int | None = None,
        catch: Catch,
        timeout: float | None = None,
    ) -> TaskBlock[Task | None, bool]: ...

    def task(
        self,
        xs: Any,
        *,
        xs_extra: Any = None,
        budget: int | None = None,
        max_failed: int | None = None,
        catch: Catch = (),
        timeout: float | None = None,
    ) -> TaskBlock[Any, Any]:
        """A task as a block: pushed as running when it opens, finished with the `ys` set in it when it is left.

        ```python
        async with rush.task({"x1": 1.0, "x2": 2.0}) as task:
            task.ys = {"y": branin(**task.xs)}
        ```

        An exception fails the task and goes on, but for what `catch` names; left without `ys`, the task fails and `ValueError`
        is raised; a cancellation from outside fails it and goes on.

        Args:
            xs: the input.
            xs_extra: what to store beside it.
            budget: the block opens once the network has a place among this many queued, running or finished tasks, waiting
                while the last places are running elsewhere; a task that is queued is taken instead (`task.xs` tells).
                It gives None once that many have finished, or when this worker is asked to stop.
            max_failed: with a budget, give None as well once this many tasks have failed.
            catch: exceptions that fail the task and end here.
            timeout: seconds the block may take; then the task fails and `TimeoutError` is raised.
        """
        return TaskBlock(self, xs, xs_extra, budget, max_failed, catch, timeout)

    async def open_task(self, xs: Any, xs_extra: Any, budget: int | None, max_failed: int | None) -> Task | None:
        """A task that this worker runs from here on; None when the budget is spent or a stop was requested."""
        budget = None if budget is None else as_number(budget, "budget")
        max_failed = None if max_failed is None else as_number(max_failed, "max_failed")
        record, extra = as_record(xs, "xs"), None if xs_extra is None else as_record(xs_extra, "xs_extra")
        new = self._new_task(record, extra, "xs")
        task = Task(new.key, "running", record, extra, attempt=1, worker_id=self._worker_id, _holder=self)
        network = self._begin()
        if budget is None:
            self._took_place(new.key, await network.tasks.push_one(new, self._worker_id))
            return task
        with network.watched, network.budget_line(budget, max_failed) as line:
            is_our_turn = False
            while not self._is_terminated:
                try:
                    if self._took_place(new.key, await network.tasks.push_one(new, self._worker_id, budget, max_failed)):
                        return task
                    counts = network.counts
                    if counts.finished >= budget or (max_failed is not None and counts.failed >= max_failed):
                        return None
                    if counts.queued and (queued := await self._look_in_queue()) is not None:
                        return queued
                finally:
                    if is_our_turn:
                        line.done()
                        is_our_turn = False
                await self._watch(network)
                if not self._is_terminated:
                    is_our_turn = await line.turn(None, self._waits)
            if is_our_turn:
                line.done()
        return self._nothing()

    def _took_place(self, key: str, taken: int | Lost) -> bool:
        if isinstance(taken, Lost):
            raise self._lost()
        if taken:
            self._held[key] = None
        return taken > 0

    async def tasks(self, *, timeout: float | None = None) -> AsyncIterator[Task]:
        """Queued tasks one after the other, until this worker is asked to stop, or until none came for `timeout` seconds.

        ```python
        async for task in rush.tasks():
            async with task:
                task.ys = {"y": branin(**task.xs)}
        ```
        """
        while (task := await self.pop_task(timeout)) is not None:
            yield task

    def enter_block(self, task: Task) -> None:
        """A task's block opens; part of how `async with task` works."""
        guard = self._guards[task.key] = Guard(self._ticks)
        if task.key not in self._held and self._lost_because is None:
            guard.cancel()  # it was cancelled before its block opened

    async def leave_block(self, task: Task, error: BaseException | None) -> bool:
        """A popped task's block is left; part of how `async with task` works."""
        return await end_block(self, task, error, ())

    def leave_guard(self, task: Task) -> Guard | None:
        """A task's block is being left: the network cannot cancel it any more."""
        guard = self._guards.pop(task.key, None)
        if guard is not None and not self._has_warned and guard.blocked_for > _LONG and len(self._net.residents) > 1:
            self._has_warned = True
            logger.warning(
                "worker %s blocked the event loop that it shares with others for %.1f s: "
                "`await asyncio.to_thread(f, **task.xs)` for an objective that releases the GIL, "
                "`await anyio.to_process.run_sync(...)` for one pure-Python call, or start workers with on=Processes()",
                self._worker_id,
                guard.blocked_for,
            )
        return guard
