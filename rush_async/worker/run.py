"""Runs workers: each registers, runs its loop, and deregisters with its end reported."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rush_async.client.arguments import as_keys, as_number
from rush_async.config import RushConfig
from rush_async.errors import NetworkStateError, RushConfigError, WorkerIdTakenError, WorkerLostError
from rush_async.model import Failure, WorkerExit
from rush_async.plan import resolve_config
from rush_async.supervisor import Supervisor
from rush_async.worker.log_capture import capture
from rush_async.worker.loop import WorkerLoop, bind_loop
from rush_async.worker.names import worker_name
from rush_async.worker.worker import RushWorker, membership_of

__all__ = ["Runner", "live", "run_worker"]

logger = logging.getLogger(__name__)

_PATIENCE = 2.0  # seconds that a cancelled loop has to end


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
                end = await _run(worker, loop)
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


async def _run(worker: RushWorker, loop: WorkerLoop) -> WorkerExit:
    """Runs the loop in a task of its own, which is cancelled only once, so that its clean-up may await, and which can be
    abandoned if it does not end."""
    event_loop = asyncio.get_running_loop()
    running = Supervisor.spawn(_run_loop(worker, loop), name=f"loop of worker {worker.worker_id}")
    membership_of(worker).run(running)
    expelled = Supervisor.spawn(membership_of(worker).expelled())
    deadline: float | None = None
    try:
        while not running.done() and (deadline is None or event_loop.time() < deadline):
            is_cancelled = False
            try:
                left = None if deadline is None else deadline - event_loop.time()
                waited = [running] if deadline is not None else [running, expelled]
                await asyncio.wait(waited, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            except asyncio.CancelledError:
                # Cancelling the worker cancels its loop; the caller gets the end of the loop.
                is_cancelled = True
                if (task := asyncio.current_task()) is not None:
                    task.uncancel()
            if deadline is None and (is_cancelled or expelled.done()) and not running.done():
                deadline = event_loop.time() + _PATIENCE
                if not expelled.done():
                    running.cancel()
    finally:
        expelled.cancel()
    if running.done():
        return _end_of(worker, running)
    logger.error(
        "worker %s swallows its cancellation: it deregisters, and its loop is abandoned; "
        "let the loop end on asyncio.CancelledError",
        worker.worker_id,
    )
    running.add_done_callback(_note_late_end)
    return WorkerExit(worker.worker_id, "terminated")


async def _run_loop(worker: RushWorker, loop: WorkerLoop) -> WorkerExit:
    """Runs the loop and returns how it ended, also for an error."""
    try:
        await loop(worker)
    except WorkerLostError as error:
        if not membership_of(worker).is_shut_out:  # the error of another worker that the loop opened
            return WorkerExit(worker.worker_id, "failed", Failure.of(error))
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        why = "the loop was cancelled from within: something it awaited had been cancelled"
        return WorkerExit(worker.worker_id, "failed", replace(Failure.of(error, "cancelled"), message=why))
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # `sys.exit()` in a loop ends the loop, not the process with all its workers
        return WorkerExit(worker.worker_id, "failed", Failure.of(error))
    return WorkerExit(worker.worker_id, "terminated")


def _end_of(worker: RushWorker, running: asyncio.Task[WorkerExit]) -> WorkerExit:
    if running.cancelled():
        return WorkerExit(worker.worker_id, "terminated")
    if (error := running.exception()) is not None:
        return WorkerExit(worker.worker_id, "failed", Failure.of(error))
    return running.result()


def _note_late_end(running: asyncio.Task[WorkerExit]) -> None:
    if not running.cancelled():
        logger.debug("the abandoned %s has ended", running.get_name(), exc_info=running.exception())


def run_worker(
    loop: Callable[..., Awaitable[Any]],
    network_id: str,
    config: RushConfig | str | None = None,
    *,
    n_workers: int = 1,
    worker_ids: Sequence[str] | None = None,
    args: Mapping[str, Any] | None = None,
    log_levels: Mapping[str, str | int] | None = None,
    heartbeat_period: float | None = None,
    heartbeat_expire: float | None = None,
    **kwargs: Any,
) -> list[WorkerExit]:
    """Runs workers in this process until their loops have ended. Any scheduler or pool can call it to start workers.

    It is a plain function that runs an event loop of its own.

    Args:
        loop: `async def loop(rush: RushWorker, ...)`.
        network_id: the network to work in.
        config: a URL or a `RushConfig`; by default `RUSH_URL`, else `REDIS_URL`, else the embedded server.
        n_workers: how many workers, as coroutines of one event loop. Has no effect if `worker_ids` are given.
        worker_ids: the ids of the workers, new in the network; random by default.
        args: the loop's arguments by name.
        log_levels: the loggers whose records the network keeps for `Rush.read_log`, with their levels.
        heartbeat_period: seconds between two heartbeats; by default that of the configuration.
        heartbeat_expire: seconds without a heartbeat after which a process counts as lost; by default that of the
            configuration.
        kwargs: further arguments of the loop.

    Returns:
        How each worker ended, in order. A worker whose loop raised has the state `failed` and its `failure`.

    Raises:
        TypeError: the loop is not `async def`, or does not take these arguments.
        RushConfigError: a worker id is given twice, or the configuration is invalid.
        NetworkStateError: an event loop is already running in this thread.
    """
    bound = bind_loop(loop, args, kwargs, _OPTIONS, of="run_worker")
    names = [worker_name() for _ in range(as_number(n_workers, "n_workers"))] if worker_ids is None else as_keys(worker_ids)
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise RushConfigError(f"worker_ids names {twice[0]!r} twice: each worker has a name of its own")
    resolved = resolve_config(config).beating(heartbeat_period, heartbeat_expire)
    if _is_in_event_loop():
        raise NetworkStateError(
            "run_worker runs an event loop of its own, and one is running here: "
            "`await rush.start_workers(loop)`, or `await asyncio.to_thread(run_worker, loop, network_id)`"
        )

    async def run_all() -> list[WorkerExit]:
        return await Runner(network_id, resolved, names, bound, log_levels).run()

    return asyncio.run(run_all())


_OPTIONS = frozenset(inspect.signature(run_worker).parameters) - {"kwargs"}


def _is_in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


class Runner:
    """Runs workers in this event loop, each until its end. Coroutines, child processes, pools and the command all use it.

    The workers start when the runner is created, and run until their loops end or are cancelled.

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
    ) -> None:
        event_loop = asyncio.get_running_loop()
        self.ended: dict[str, asyncio.Future[WorkerExit]] = {}
        self.refused: set[str] = set()
        self._workers = {name: RushWorker(network_id, config, worker_id=name) for name in worker_ids}
        self._tasks: dict[str, asyncio.Task[WorkerExit]] = {}
        for name, worker in self._workers.items():
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
            self.ended[worker.worker_id].set_result(_end_of(worker, task))
