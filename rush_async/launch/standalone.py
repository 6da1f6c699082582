"""Workers in a process that something else started: what any scheduler or pool can call."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from rush_async.client.arguments import Schema, as_keys, as_number
from rush_async.config import RushConfig, with_heartbeat
from rush_async.errors import NetworkStateError, RushConfigError
from rush_async.launch.packed_loop import check_may_start
from rush_async.model import WorkerExit
from rush_async.plan import resolve_config
from rush_async.process import is_in_event_loop
from rush_async.worker.limits import Limits
from rush_async.worker.loop import bind_loop
from rush_async.worker.names import worker_name
from rush_async.worker.worker import Runner

__all__ = ["run_worker"]


def run_worker(
    loop: Callable[..., Awaitable[Any]],
    network_id: str,
    config: RushConfig | str | None = None,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    n_workers: int = 1,
    worker_ids: Sequence[str] | None = None,
    args: Mapping[str, Any] | None = None,
    log_levels: Mapping[str, str | int] | None = None,
    heartbeat_period: float | None = None,
    heartbeat_expire: float | None = None,
    max_time: float | None = None,
    max_tasks: int | None = None,
    idle_timeout: float | None = None,
    schema: Schema | None = None,
    **kwargs: Any,
) -> list[WorkerExit]:
    """Runs workers in this process until their loops have ended. Any scheduler or pool can call it to start workers.

    It is a plain function that runs an event loop of its own.

    Args:
        loop: `async def loop(rush: RushWorker, ...)`, or a loop with its arguments by `bound(loop, ...)`.
        network_id: the network to work in.
        config: a URL or a `RushConfig`; by default `RUSH_URL`, else `REDIS_URL`, else `RUSH_DATA_DIR`, else a private server.
        data_dir: a directory where the embedded server keeps its data for the next run, instead of a `config`.
        n_workers: how many workers, as coroutines of one event loop. Has no effect if `worker_ids` are given.
        worker_ids: the ids of the workers, new in the network; random by default.
        args: the loop's arguments by name.
        log_levels: the loggers whose records the network keeps for `Rush.read_log`, with their levels.
        heartbeat_period: seconds between two heartbeats; by default that of the configuration.
        heartbeat_expire: seconds without a heartbeat after which a process counts as lost; by default that of the
            configuration.
        max_time: seconds for which each worker runs. This limit and the next two turn `rush.terminated` on, as a request to
            stop does: the worker finishes what it runs and takes no new task.
        max_tasks: how many tasks each worker finishes or fails.
        idle_timeout: for how many seconds, since its last task, each worker waits for another or for a place within a budget.
        schema: columns that frames of the workers always have, with their dtypes.
        kwargs: further arguments of the loop.

    Returns:
        How each worker ended, in order. A worker whose loop raised has the state `failed` and its `failure`.

    Raises:
        TypeError: the loop is not `async def`, or does not take these arguments.
        ValueError: a limit is not above 0.
        RushConfigError: a worker id is given twice, or the configuration is invalid.
        NetworkStateError: an event loop is already running in this thread.
    """
    bound = bind_loop(loop, args, kwargs, _OPTIONS, of="run_worker")
    names = [worker_name() for _ in range(as_number(n_workers, "n_workers"))] if worker_ids is None else as_keys(worker_ids)
    limits = Limits(max_time, max_tasks, idle_timeout)
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise RushConfigError(f"worker_ids names {twice[0]!r} twice: each worker has a name of its own")
    resolved = with_heartbeat(resolve_config(config, data_dir), heartbeat_period, heartbeat_expire)
    check_may_start()
    if is_in_event_loop():
        raise NetworkStateError(
            "run_worker runs an event loop of its own, and one is running here: "
            "`await rush.start_workers(loop)`, or `await asyncio.to_thread(run_worker, loop, network_id)`"
        )

    async def run_all() -> list[WorkerExit]:
        return await Runner(network_id, resolved, names, bound, log_levels, limits, schema).run()

    return asyncio.run(run_all())


_OPTIONS = frozenset(inspect.signature(run_worker).parameters) - {"kwargs"}
