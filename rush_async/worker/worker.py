"""A client with an identity: it takes tasks, holds them, and ends them."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any, overload
from weakref import WeakKeyDictionary

import anyio

from rush_async.client.arguments import as_failures, as_keys, as_number, check_lengths
from rush_async.client.client import RushClient
from rush_async.client.session import Schema
from rush_async.config import RushConfig
from rush_async.errors import RushConnectionError, WorkerIdTakenError
from rush_async.model import Failure, Task
from rush_async.network.network import Network
from rush_async.store.keys import check_worker_id
from rush_async.store.records import encode_failure
from rush_async.store.tasks import Ended, Lost
from rush_async.worker.guard import LoopTurns
from rush_async.worker.membership import Membership
from rush_async.worker.names import worker_name
from rush_async.worker.task_block import Catch, Place, TaskBlock, TaskBlocks

__all__ = ["RushWorker", "membership_of"]

logger = logging.getLogger(__name__)

_PATIENCE = 5.0  # seconds that leaving the network may take

_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, LoopTurns] = WeakKeyDictionary()


def membership_of(worker: RushWorker) -> Membership:
    """The membership of a worker, for who runs it."""
    return worker._membership  # pyright: ignore[reportPrivateUsage]


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
        worker_id = worker_name() if worker_id is None else check_worker_id(worker_id)
        self._membership = Membership(self.network_id, worker_id)
        self._blocks = TaskBlocks(self._membership, self._encoder)

    @property
    def worker_id(self) -> str:
        """The worker's name."""
        return self._membership.worker_id

    @property
    def terminated(self) -> bool:
        """Whether this worker was asked to stop; local and free to read."""
        return self._membership.terminated

    # registering and leaving

    async def _enter(self, network: Network) -> None:
        membership = self._membership
        info = {"pid": os.getpid(), "hostname": socket.gethostname(), "heartbeat": True}
        lease = network.heartbeat.lease(self._config.heartbeat_period, self._config.heartbeat_expire)
        membership.lease_id = lease.lease_id

        def undo(answer: Any) -> None:
            if answer in ("1", "2"):
                network.tasks.calls.give_back(network.workers.bye_group(membership.worker_id, "terminated", None))

        if membership.worker_id in network.local_workers.by_id:
            raise self._name_is_taken()
        try:
            await network.local_workers.register(membership)
            answer = await network.workers.enter(membership.worker_id, lease, info, give_back=undo)
            if answer == "0":
                raise self._name_is_taken()
        except BaseException:
            network.local_workers.unregister(membership)
            raise
        turns = _turns.setdefault(asyncio.get_running_loop(), LoopTurns())
        membership.join(network.tasks, network.workers, network.heartbeat, turns, network.local_workers)
        if answer == "2":  # while it was being started
            membership.request_stop()

    def _name_is_taken(self) -> WorkerIdTakenError:
        return WorkerIdTakenError(
            f"worker_id {self.worker_id!r} is or was in use in network {self._network_id!r}: choose another, "
            "or leave it out for a random one"
        )

    async def _leave(self, error: BaseException | None) -> None:
        network, membership = self._network, self._membership
        if network is None or not membership.is_registered:
            return
        membership.is_registered = False
        membership.request_stop()
        if membership.end is None:
            is_own = isinstance(error, Exception)
            membership.end = ("failed", Failure.of(error)) if is_own else ("terminated", None)
        state, failure = membership.end
        has_left = False
        try:
            # Others are not to wait for this worker longer than that.
            with anyio.move_on_after(_PATIENCE, shield=True):
                if membership.has_logged:
                    await network.heartbeat.flush()
                if not membership.is_shut_out:
                    await network.tasks.calls.quiet()  # calls under way may still give it tasks
                    await membership.fail_held(failure or Failure("cancelled", None, "Its worker ended"))
                    await network.tasks.calls.settled()
                    await network.workers.bye(membership.worker_id, state, failure)
                has_left = True
            if not has_left:
                logger.warning("worker %s could not deregister within %g s", membership.worker_id, _PATIENCE)
        except RushConnectionError as reason:
            logger.warning("worker %s could not deregister: %s", membership.worker_id, reason)
        finally:
            membership.leave()
            network.local_workers.unregister(membership)
            if not has_left:
                network.local_workers.report_as_lost(membership.worker_id, failure)

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
        network, membership = self._net, self._membership
        budget = None if budget is None else as_number(budget, "budget")
        tasks = self._encoder.tasks(xss, xss_extra)
        if not tasks:
            return []
        membership.check()
        if len(tasks) == 1:  # the usual case of a loop
            taken = await network.tasks.push_one(tasks[0], membership.worker_id, budget)
            keys = taken if isinstance(taken, Lost) else [tasks[0].key][:taken]
        else:
            keys = await network.tasks.push("R", tasks, worker_id=membership.worker_id, budget=budget)
        return membership.hold(keys)

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
        self._net  # noqa: B018 - a client that is not open says so before it complains about values
        ends = self._encoder.ends(yss, yss_extra)
        check_lengths("keys", keys, "yss", ends)
        return await self._membership.end_tasks(
            [Ended("F", key, self.worker_id, end) for key, end in zip(keys, ends, strict=True)]
        )

    async def fail_tasks(self, keys: str | Sequence[str], failures: Any = None) -> list[str]:
        """Fails tasks that this worker runs; the keys that moved, in the order given.

        Args:
            keys: one key or several.
            failures: one for all or one for each: an exception, a string or a `Failure`.

        Raises:
            WorkerLostError: this worker was declared lost or was killed.
        """
        self._net  # noqa: B018
        keys = as_keys(keys)
        found = as_failures(failures, len(keys), "keys")
        return await self._membership.end_tasks(
            [Ended("X", key, self.worker_id, encode_failure(why)) for key, why in zip(keys, found, strict=True)]
        )

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
        network, membership = self._net, self._membership
        if not membership.terminated and timeout == 0:
            return await self._blocks.look_in_queue(network)
        task = None
        if not membership.terminated:
            with network.watched:
                task = await self._wait_for_task(network, timeout)
        if task is None and membership.is_shut_out:
            raise membership.lost_error()
        return task

    async def _wait_for_task(self, network: Network, timeout: float | None) -> Task | None:
        membership = self._membership
        # Without a view of the queue, ask; with one that shows it empty, a waiting pop has nothing to ask.
        if not network.is_watching:
            if (task := await self._blocks.look_in_queue(network)) is not None:
                return task
            await self._blocks.watch(network)
        deadline = None if timeout is None else asyncio.get_running_loop().time() + timeout
        while not membership.terminated:
            left = None if deadline is None else deadline - asyncio.get_running_loop().time()
            if not await network.queue_line.turn(left, membership.waits):
                break
            try:
                if membership.terminated:
                    break
                membership.check()
                task = self._blocks.took(await network.tasks.pop(membership.worker_id))
            finally:
                network.queue_line.done()
            if task is not None:
                return task
        return None

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
        if max_failed is not None and budget is None:
            raise ValueError("max_failed goes with a budget: give both")
        budget = None if budget is None else as_number(budget, "budget")
        max_failed = None if max_failed is None else as_number(max_failed, "max_failed")
        place = Place(self._net, self._blocks, xs, xs_extra, budget, max_failed)
        return TaskBlock(self._blocks, place, catch, timeout)

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
