"""The life of one worker, wherever it was started: enter, run the loop, leave with the end reported."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import anyio

from rush_async.config import RushConfig, resolve_config
from rush_async.errors import WorkerLostError
from rush_async.loops import WorkerLoop, bind_loop
from rush_async.model import Failure, WorkerExit
from rush_async.names import worker_name
from rush_async.worker import RushWorker

__all__ = ["live", "run_worker"]

logger = logging.getLogger(__name__)


async def live(
    loop: WorkerLoop,
    network_id: str,
    config: RushConfig,
    worker_id: str,
    on_entered: Callable[[RushWorker], None] | None = None,
) -> WorkerExit:
    """Runs one worker from its registration to its good-bye. An error of the loop is the worker's end, and never raised.

    What it still runs fails with the loop's error. Shut out by a kill or a reset, the loop is cancelled.
    """
    worker = RushWorker(network_id, config, worker_id=worker_id)
    end = WorkerExit(worker_id, "terminated")
    try:
        async with worker:
            if on_entered is not None:
                on_entered(worker)
            with anyio.CancelScope() as scope:
                worker.on_shut_out = scope.cancel
                try:
                    await loop(worker)
                except WorkerLostError:
                    pass
                except Exception as error:
                    end = WorkerExit(worker_id, "failed", Failure.of(error))
            if worker.is_shut_out:
                end = await worker.end_seen_by_others()
            worker.end_as(end.state, end.failure)
    except Exception as error:
        # It could not enter, or not say good-bye.
        if end.state == "terminated":
            end = WorkerExit(worker_id, "failed", Failure.of(error))
    return end


def run_worker(
    loop: Callable[..., Awaitable[Any]],
    network_id: str,
    config: RushConfig | str | None = None,
    *,
    n_workers: int = 1,
    worker_ids: Sequence[str] | None = None,
    args: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> list[WorkerExit]:
    """Runs workers in this process until their loops have ended: what any engine can call to start workers somewhere.

    A plain function with an event loop of its own.

    Args:
        loop: `async def loop(rush: RushWorker, ...)`.
        network_id: the network to work in.
        config: a URL or a `RushConfig`; by default `RUSH_URL`, else `REDIS_URL`, else the embedded server.
        n_workers: how many, as coroutines of one event loop.
        worker_ids: their names, new in the network; random by default.
        args: the loop's arguments.
        kwargs: more of them.

    Returns:
        How each worker ended, in order. A loop that raises is an end as `failed`, with its `failure`.

    Raises:
        TypeError: the loop is not `async def`, or does not take these arguments.
    """
    bound = bind_loop(loop, args, kwargs)
    names = list(worker_ids) if worker_ids is not None else [worker_name() for _ in range(n_workers)]
    resolved = resolve_config(config)

    async def run_all() -> list[WorkerExit]:
        return await asyncio.gather(*[live(bound, network_id, resolved, name) for name in names])

    return asyncio.run(run_all())
