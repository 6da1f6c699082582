"""A client with an identity: it takes tasks, holds them, and ends them; and what runs such clients with their loops."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, overload

from rush_async.client.arguments import Schema, as_failures, as_keys, as_number, as_seconds, as_states, as_text, check_lengths
from rush_async.client.client import RushClient
from rush_async.client.draw import Draw
from rush_async.config import RushConfig
from rush_async.errors import NetworkStateError, RushConnectionError, WorkerIdTakenError, explain_arguments
from rush_async.model import Catch, Failure, Task, TaskState, WorkerExit
from rush_async.network.network import Network
from rush_async.store.keys import check_worker_id
from rush_async.store.points import Unique, all_points_of, as_unique
from rush_async.store.records import as_records, encode_failure
from rush_async.store.scripts import Lost
from rush_async.store.tasks import Created, Ended
from rush_async.supervisor import Supervisor
from rush_async.worker.limits import Limits
from rush_async.worker.log_capture import capture
from rush_async.worker.loop import WorkerLoop
from rush_async.worker.membership import Membership
from rush_async.worker.names import worker_name
from rush_async.worker.proposals import Proposals
from rush_async.worker.registration import deregister, register
from rush_async.worker.run import end_of, run_loop
from rush_async.worker.task_block import Place, TaskBlock, TaskBlocks

__all__ = ["Runner", "RushWorker", "live", "membership_of"]

logger = logging.getLogger(__name__)

_PAUSE = 0.2  # seconds between two tries to open a worker whose server cannot be reached


def membership_of(worker: RushWorker) -> Membership:
    """Returns the membership of a worker, for the code that runs the worker."""
    return worker._membership  # pyright: ignore[reportPrivateUsage]


class RushWorker(RushClient):
    """A worker of a network: it registers when it is opened and deregisters when it is closed.

    ```python
    async with RushWorker("branin") as rush:
        while not rush.terminated:
            (key,) = await rush.push_running_tasks([{"x1": 1.0, "x2": 2.0}])
            await rush.finish_tasks(key, [{"y": 3.0}])
    ```

    Args:
        network_id: the network to work in.
        config: a URL or a `RushConfig`; by default `RUSH_URL`, else `REDIS_URL`, else `RUSH_DATA_DIR`, else a private server.
        data_dir: a directory where the embedded server keeps its data for the next run, instead of a `config`.
        worker_id: the worker's id, new in this network; a random name by default.
        schema: columns that frames always have, with their dtypes.
        seed: the seed of the network's proposals, 0 to 2**63 - 1; that of the network by default.
        shared: whether other processes may open a worker with the same id, and act under its name: each may finish and fail
            what any of them has started. It has no lease. It stays, with the tasks that it runs, when its clients are closed
            or their processes die, until `reset` or `stop_workers(worker_id, mode="kill")`.

    Raises:
        ValueError: a shared worker has no `worker_id`.
    """

    def __init__(
        self,
        network_id: str,
        config: RushConfig | str | None = None,
        *,
        worker_id: str | None = None,
        data_dir: str | os.PathLike[str] | None = None,
        schema: Schema | None = None,
        seed: int | None = None,
        shared: bool = False,
    ) -> None:
        super().__init__(network_id, config, data_dir=data_dir, schema=schema, seed=seed)
        if shared and worker_id is None:
            raise ValueError("a shared worker needs a worker_id, the same in each process: give both")
        worker_id = worker_name() if worker_id is None else check_worker_id(worker_id)
        self._membership = Membership(self.network_id, worker_id, is_shared=shared)
        self._blocks = TaskBlocks(self._membership, self._encoder)
        self._opening_patience = 0.0

    @property
    def worker_id(self) -> str:
        """The worker's id."""
        return self._membership.worker_id

    @property
    def number(self) -> int:
        """The worker's number: 0, 1, 2 ... in the order in which the workers of the network registered.

        Raises:
            NetworkStateError: the worker has not registered yet.
        """
        if self._membership.number is None:
            raise NetworkStateError(f"worker {self.worker_id!r} has no number before it is opened: use `async with` first")
        return self._membership.number

    @property
    def terminated(self) -> bool:
        """Whether this worker is to take no new task: it was asked to stop, it has reached a limit such as `max_time`, or the
        network has stopped. Reading it makes no call."""
        return self._membership.terminated

    @property
    def _notes(self) -> dict[str, str]:
        return {"This Worker": self.worker_id + (" (takes no new task)" if self.terminated else "")}

    # registering and deregistering

    async def _acquire(self) -> Network:
        deadline = asyncio.get_running_loop().time() + self._opening_patience
        while True:
            try:
                return await super()._acquire()
            except RushConnectionError as error:
                if error.is_final or error.is_password_refused or asyncio.get_running_loop().time() > deadline:
                    raise
                logger.debug("worker %s waits for the server: %s", self.worker_id, error)
                await asyncio.sleep(_PAUSE)

    async def _on_open(self, network: Network) -> None:
        await register(network, self._membership, self._config)

    async def _on_close(self, error: BaseException | None) -> None:
        if self._network is not None and self._membership.is_registered:
            await deregister(self._network, self._membership, error)

    # tasks

    @overload
    async def push_running_tasks(
        self,
        xss: Iterable[Any],
        *,
        xss_extra: Iterable[Any] | None = None,
        budget: int | None = None,
        unique: Literal[False] = False,
    ) -> list[str]: ...

    @overload
    async def push_running_tasks(
        self,
        xss: Iterable[Any],
        *,
        xss_extra: Iterable[Any] | None = None,
        budget: int | None = None,
        unique: Unique,
    ) -> list[str | None]: ...

    async def push_running_tasks(
        self,
        xss: Iterable[Any],
        *,
        xss_extra: Iterable[Any] | None = None,
        budget: int | None = None,
        unique: Unique = False,
    ) -> Sequence[str | None]:
        """Creates tasks that this worker runs.

        Args:
            xss: the inputs, a record each.
            xss_extra: extra values to store with each input, a record each.
            budget: the largest number of tasks of the network that may be queued, running or finished together. Failed tasks
                do not count.
            unique: whether to push only points that the network does not have: True for all inputs, or the names of those that
                make the point; see `push_tasks`.

        Returns:
            The keys, in the order of `xss`; with a budget or a limit of `stop_when(finished=)`, only those of the tasks that
            found a place. While the last places of that limit are taken and no budget is given, the call waits for one. A
            network that has stopped gives no key. With `unique`, there is None for each input whose point is taken: it takes
            no place.

        Raises:
            EncodeError: a value cannot be stored; nothing was pushed.
            ValueError: `unique` names what is no input; nothing was pushed.
            WorkerLostError: this worker was declared lost or was killed.
        """
        network, membership = self._net, self._membership
        budget = None if budget is None else as_number(budget, "budget")
        names = unique is not False and as_unique(unique)
        xss = as_records(xss, "xss") if names else xss
        tasks = await self._encoder.all_tasks(xss, xss_extra)
        points = await all_points_of(xss, names) if names else []
        if not tasks:
            return []
        if not membership.is_registered:
            raise membership.leaving_error()
        mark = network.lines.mark
        if len(tasks) == 1:  # the usual case of a loop
            taken = await network.tasks.push_one(tasks[0], membership.worker_id, budget, point=points[0] if points else b"")
            if not isinstance(taken, Lost) and taken.n:
                return membership.hold([tasks[0].key])
        else:
            taken = await network.tasks.push("running", tasks, worker_id=membership.worker_id, budget=budget, points=points)
        if not isinstance(taken, Lost) and taken.refusal == "full" and budget is None:
            taken = await self._blocks.start_in_turn(network, tasks, mark, points)
        if isinstance(taken, Lost):
            raise membership.lost_error()
        await membership.raise_if_lost()
        if not isinstance(taken, Created):
            return taken.entries(tasks)
        membership.hold(taken.keys)
        return list(taken.entries) if points else taken.keys

    async def finish_tasks(
        self, keys: str | Sequence[str], yss: Iterable[Any], *, yss_extra: Iterable[Any] | None = None
    ) -> list[str]:
        """Finishes tasks that this worker runs.

        Args:
            keys: one key or several.
            yss: the outputs, a record each.
            yss_extra: extra values to store with each output, a record each.

        Returns:
            The keys of the tasks that finished, in the order given. A warning names the tasks that this worker does not run;
            they do not change.

        Raises:
            EncodeError: a value cannot be stored; no task has finished, all are still running.
            WorkerLostError: this worker was declared lost or was killed.
        """
        keys = as_keys(keys)
        self._net  # noqa: B018 - raises if the client is not open, before the values are checked
        ends = self._encoder.ends(yss, yss_extra)
        check_lengths("keys", keys, "yss", ends)
        return await self._membership.end_tasks(
            [Ended("finished", key, self.worker_id, end) for key, end in zip(keys, ends, strict=True)]
        )

    async def fail_tasks(self, keys: str | Sequence[str], failures: Any = None) -> list[str]:
        """Fails tasks that this worker runs.

        Args:
            keys: one key or several.
            failures: one for all or one for each: an exception, a string or a `Failure`.

        Returns:
            The keys of the tasks that failed, in the order given. A warning names the tasks that this worker does not run;
            they do not change.

        Raises:
            WorkerLostError: this worker was declared lost or was killed.
        """
        self._net  # noqa: B018
        keys = as_keys(keys)
        found = as_failures(failures, len(keys), "keys")
        return await self._membership.end_tasks(
            [Ended("failed", key, self.worker_id, encode_failure(why)) for key, why in zip(keys, found, strict=True)]
        )

    async def report_tasks(self, keys: str | Sequence[str], reports: Iterable[Any]) -> None:
        """Reports on tasks that this worker runs, as `task.report` does for one.

        Args:
            keys: one key or several.
            reports: what to report, a record each of numbers, strings, bools and None.

        Raises:
            EncodeError: a value cannot be stored; nothing was reported.
            NetworkStateError: this worker does not run one of the tasks; nothing was reported.
            WorkerLostError: this worker was declared lost or was killed.
        """
        keys = as_keys(keys)
        self._net  # noqa: B018
        packed = self._encoder.reports(reports)
        check_lengths("keys", keys, "reports", packed)
        await self._membership.report(keys, packed)

    async def pop_task(self, timeout: float | None = 1.0, *, key: str | None = None) -> Task | None:
        """Takes the next queued task, or the one with this key.

        Args:
            timeout: seconds to wait for one, without polling; 0 does not wait, None waits without a limit.
            key: the task to take, wherever it is in the queue. The call does not wait until it is queued, only for a place
                while the network is full.

        Returns:
            The task, which this worker now runs. It can be used as a block: `async with task: task.ys = ...`. None if no task
            came in time, the one with the key is not queued, or this worker was asked to stop.

        Raises:
            WorkerLostError: this worker was declared lost or was killed.
        """
        network, membership, timeout = self._net, self._membership, as_seconds(timeout)
        key = None if key is None else as_text(key, "key")
        if not membership.terminated and timeout == 0 and key is None:
            return await self._blocks.look_in_queue(network)
        task = None
        if not membership.terminated:
            with network.feed:
                blocks = self._blocks
                task = await (blocks.pop_in_turn(network, timeout) if key is None else blocks.pop_named(network, key, timeout))
        if task is None:
            await membership.raise_if_lost()
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
        """Returns a task as a block: pushed as running when it opens, finished with the `ys` that were set when it ends.

        ```python
        async with rush.task({"x1": 1.0, "x2": 2.0}) as task:
            task.ys = {"y": branin(**task.xs)}
        ```

        An exception in the block fails the task. Then it leaves the block: where the loop does not handle it, it ends the
        worker as `failed`, and `join_workers` raises a `WorkerLoopError`. An exception that `catch` names does not leave the
        block, and the loop continues with its next task. A cancellation fails the task and leaves the block always.

        Args:
            xs: the input.
            xs_extra: extra values to store with it, a record.
            budget: the largest number of tasks of the network that may be queued, running or finished together. The block
                opens once there is a place, and waits while other workers run the tasks of the last places. If a task is
                queued, the block opens with that task instead; `task.xs` is its input. The block opens with None once `budget`
                tasks have finished, or when this worker is asked to stop.
            max_failed: with a budget, the block also opens with None once this many tasks have failed.
            catch: exceptions that fail the task and do not leave the block, so that the worker continues.
            timeout: seconds the block may take; then the task fails and `TimeoutError` is raised.

        Returns:
            The block, for `async with`.

        Raises:
            ValueError: `max_failed` is given without a budget; at the end of the block, `task.ys` was not set.
            EncodeError: `xs` or `task.ys` cannot be stored.
            WorkerLostError: this worker was declared lost or was killed.
        """
        if max_failed is not None and budget is None:
            raise ValueError("max_failed needs a budget: give both")
        budget = None if budget is None else as_number(budget, "budget")
        max_failed = None if max_failed is None else as_number(max_failed, "max_failed")
        place = Place(self._net, self._blocks, xs, xs_extra, budget, max_failed)
        return TaskBlock(self._blocks, place, catch, as_seconds(timeout))

    async def proposals(
        self,
        propose: Callable[[Draw], Any | Awaitable[Any]],
        *,
        read: TaskState | Sequence[TaskState] = (),
        budget: int | None = None,
        max_failed: int | None = None,
        queued: bool = True,
        unique: Unique = False,
        retries: int = 0,
        catch: Catch = (),
        schema: Schema | None = None,
    ) -> AsyncIterator[Task]:
        """Proposes tasks one after the other, until the network stops or the budget is spent.

        ```python
        def propose(draw: Draw) -> dict[str, float]:
            rng = draw.random()
            return {"x1": rng.uniform(-5, 10), "x2": rng.uniform(0, 15)}


        async for task in rush.proposals(propose):
            async with task:
                task.ys = {"y": branin(**task.xs)}
        ```

        Each turn takes a queued task if there is one. Otherwise it waits for a place, and then reads, proposes and starts the
        task. Nothing is held between two turns. In a network with a seed, the place is reserved first: the proposal knows its
        index, and draws the same numbers in every run.

        Args:
            propose: a function or coroutine function of a `Draw`. It returns an input, a record, or an input and what is stored
                with it. It runs in the event loop; a slow one is `async def` and awaits `asyncio.to_thread`. Its error
                propagates.
            read: states of tasks that each proposal sees as `draw.tasks`, in one consistent view.
            budget: as for `task`; reserved tasks count, too.
            max_failed: as for `task`.
            queued: whether queued tasks come first; False leaves them to others.
            unique: as in `push_tasks`: a point that the network has is drawn again, under the same index, at most 100 times.
            retries: how often a task goes to the head of the queue when its worker is lost or killed; 0 - 127.
            catch: exceptions that fail a task and do not leave its block, so that the worker continues; any other that the
                loop does not handle ends the worker.
            schema: columns that `draw.tasks` always has; those of the client by default.

        Yields:
            Each task, which this worker now runs.

        Raises:
            DuplicateError: with `unique`, 100 proposals in a row were points that the network has.
            NetworkStateError: the network has another seed than this process knows.
            WorkerLostError: this worker was declared lost or was killed.
        """
        if max_failed is not None and budget is None:
            raise ValueError("max_failed needs a budget: give both")
        proposals = Proposals(
            self._net,
            self._blocks,
            propose,
            read=as_states([read] if isinstance(read, str) else read) if read else (),
            budget=None if budget is None else as_number(budget, "budget"),
            max_failed=None if max_failed is None else as_number(max_failed, "max_failed"),
            queued=queued,
            unique=unique,
            retries=as_number(retries, "retries", 127),
            catch=catch,
            schema=schema or self._schema,
        )
        while (task := await proposals.next()) is not None:
            yield task

    async def tasks(self, *, timeout: float | None = None, catch: Catch = ()) -> AsyncIterator[Task]:
        """Takes queued tasks one after the other, until this worker is asked to stop.

        ```python
        async for task in rush.tasks():
            async with task:
                task.ys = {"y": branin(**task.xs)}
        ```

        Args:
            timeout: seconds to wait for the next task before the iteration ends; None waits without a limit.
            catch: exceptions that fail a task and do not leave its block, so that the worker continues; any other that the
                loop does not handle ends the worker.

        Yields:
            Each task, which this worker now runs.

        Raises:
            WorkerLostError: this worker was declared lost or was killed.
        """
        while (task := await self.pop_task(timeout)) is not None:
            task._catch = catch  # pyright: ignore[reportPrivateUsage]
            yield task


explain_arguments(RushWorker, "__init__", "task")


async def live(worker: RushWorker, loop: WorkerLoop, log_levels: Mapping[str, str | int] | None = None) -> WorkerExit:
    """Runs one worker from its registration to its deregistration, and returns how it ended.

    An exception of the loop does not propagate: it is the worker's end, and the tasks that the worker still holds fail with it.
    The loop is cancelled when a kill or a reset shuts the worker out, and when `live` itself is cancelled. A loop that swallows
    its cancellation is abandoned after two seconds.

    Args:
        worker: the worker, not open yet.
        loop: its loop.
        log_levels: the loggers whose records the network keeps, with their levels.

    Raises:
        WorkerIdTakenError: the id is or was in use.
        asyncio.CancelledError: the worker was cancelled before it had registered.
    """
    end: WorkerExit | None = None
    membership = membership_of(worker)
    try:
        async with worker:
            with capture(worker.worker_id, log_levels, membership):
                end = await run_loop(worker, membership, loop)
            if membership.is_shut_out:
                end = await membership.end_seen_by_network()
            membership.end = (end.state, end.failure)
    except asyncio.CancelledError:
        if end is None:
            raise  # the worker had not registered yet
    except Exception as error:
        # The worker could not register or deregister.
        if end is None and isinstance(error, WorkerIdTakenError):
            raise  # for `Runner`: a loop that fails raises nothing here
        if end is None or end.state == "terminated":
            end = WorkerExit(worker.worker_id, "failed", Failure.of(error))
    return end


class Runner:
    """Runs workers in this event loop, each until its end. Coroutines, child processes, pools and the command all use it.

    The workers start when the runner is created, and run until their loops end or are cancelled.

    Args:
        network_id: the network to work in.
        config: the server and the settings.
        worker_ids: the workers.
        loop: their loop with its arguments.
        log_levels: the loggers whose records the network keeps, with their levels.
        limits: when each of them stops by itself; None for no limit.
        schema: columns that their frames always have, with their dtypes.
        waits_for_server: whether they wait for a server that cannot be reached, up to the `retry_deadline`: a manager that
            has reached it started them, so it may be restarting.

    Attributes:
        ended: how each worker ended; set when it has ended.
        refused: the workers that never ran because their id was in use.
    """

    def __init__(
        self,
        network_id: str,
        config: RushConfig,
        worker_ids: Sequence[str],
        loop: WorkerLoop,
        log_levels: Mapping[str, str | int] | None,
        limits: Limits | None = None,
        schema: Schema | None = None,
        *,
        waits_for_server: bool = False,
    ) -> None:
        event_loop = asyncio.get_running_loop()
        self.ended: dict[str, asyncio.Future[WorkerExit]] = {}
        self.refused: set[str] = set()
        worker_class: type[RushWorker] = loop.worker_class or RushWorker
        self._workers = {name: worker_class(network_id, config, worker_id=name, schema=schema) for name in worker_ids}
        self._tasks: dict[str, asyncio.Task[WorkerExit]] = {}
        for name, worker in self._workers.items():
            if waits_for_server:
                worker._opening_patience = config.retry_deadline  # pyright: ignore[reportPrivateUsage]
            if limits is not None:
                membership_of(worker).limit(limits)
            self.ended[name] = event_loop.create_future()
            self._tasks[name] = Supervisor.spawn(live(worker, loop, log_levels), name=f"worker {name}")
            self._tasks[name].add_done_callback(functools.partial(self._note_end, worker))

    async def run(self) -> list[WorkerExit]:
        """Waits for the workers and returns how they ended, in order. A cancellation is passed on to them and awaited."""
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        return [ended.result() for ended in self.ended.values()]

    @property
    def unfinished(self) -> list[str]:
        """The workers that have not ended yet."""
        return [name for name, ended in self.ended.items() if not ended.done()]

    def note_stop(self) -> None:
        """Sets `terminated` of every worker, even while a loop blocks. May be called in a signal handler or another thread."""
        for worker in self._workers.values():
            membership_of(worker).note_stop()

    def stop(self) -> None:
        """Asks every worker to stop: it takes no new task."""
        for worker in self._workers.values():
            membership_of(worker).request_stop()

    def cancel(self, worker_ids: Collection[str]) -> None:
        """Cancels the loops of these workers."""
        for name in worker_ids:
            self._tasks[name].cancel()

    def _note_end(self, worker: RushWorker, task: asyncio.Task[WorkerExit]) -> None:
        if not task.cancelled() and isinstance(task.exception(), WorkerIdTakenError):
            self.refused.add(worker.worker_id)
        if not self.ended[worker.worker_id].done():
            self.ended[worker.worker_id].set_result(end_of(worker.worker_id, task))
