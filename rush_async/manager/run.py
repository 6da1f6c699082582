"""A search as one plain call, for scripts without asyncio."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any

from rush_async.client.arguments import Schema, as_number
from rush_async.config import RushConfig
from rush_async.errors import NetworkStateError
from rush_async.launch.handle import Launcher
from rush_async.launch.packed_loop import check_may_start
from rush_async.launch.pools import Submitter
from rush_async.manager.manager import Rush
from rush_async.process import is_in_event_loop
from rush_async.worker.loop import bind_loop, with_worker_class
from rush_async.worker.worker import RushWorker

if TYPE_CHECKING:
    import polars as pl

__all__ = ["run"]

logger = logging.getLogger(__name__)

_INTERRUPTED = 10.0  # seconds that workers have to finish their tasks after Ctrl-C


def run(
    loop: Callable[..., Awaitable[Any]],
    n_workers: int | None = None,
    *,
    on: Launcher | Submitter | None = None,
    network_id: str | None = None,
    config: RushConfig | str | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    exist_ok: bool = False,
    schema: Schema | None = None,
    seed: int | None = None,
    finished: int | None = None,
    args: Mapping[str, Any] | None = None,
    worker_class: type[RushWorker] | None = None,
    **kwargs: Any,
) -> pl.DataFrame:
    """Starts workers, waits until they have ended, and returns all finished tasks. It is a plain function, without `await`.

    ```python
    archive = rush_async.run(loop, n_workers=4, finished=100)
    ```

    Ctrl-C stops the workers and returns what has finished: they have ten seconds to finish their tasks. A second Ctrl-C raises
    `KeyboardInterrupt` at once. SIGTERM stops the workers likewise, and then ends the process.

    Args:
        loop: `async def loop(rush: RushWorker, ...)`, or a loop with its arguments by `bound(loop, ...)`.
        n_workers: how many workers to start; by default that of the plan, else 1.
        on: where they run, as for `Rush.start_workers`.
        network_id: the network; a random one by default.
        config: a URL or a `RushConfig`, as for `Rush`.
        data_dir: where the embedded server keeps its data for the next run; needs a `network_id`.
        exist_ok: whether the network may hold tasks of an earlier run, which are among the results; without it, and without
            `finished`, a warning says how many.
        schema: columns that the frame always has, with their dtypes.
        seed: the seed of the proposals, as for `Rush`.
        finished: how many tasks finish, those of earlier runs included: a stop rule, by which `rush.proposals(...)` and
            `rush.terminated` end the loops. It lifts the stop of an earlier run.
        args: the loop's arguments by name.
        worker_class: a subclass of `RushWorker` for the workers.
        kwargs: further arguments of the loop.

    Returns:
        The frame of `fetch_finished_tasks`.

    Raises:
        NetworkStateError: an event loop is running here already, as in a notebook; the message says what to await.
        WorkerLoopError: loops failed.
        TypeError: the loop is not `async def` or does not take these arguments.
        ValueError: a number is too small, or a `data_dir` comes without a `network_id`.
    """
    bound = with_worker_class(bind_loop(loop, args, kwargs, _OPTIONS, of="run"), worker_class, RushWorker)
    if finished is not None and as_number(finished, "finished") < 1:
        raise ValueError(f"finished must be at least 1, not {finished}")
    check_may_start()
    if data_dir is not None and network_id is None:
        raise ValueError("data_dir keeps the results under the name of the network: give run a network_id")
    if is_in_event_loop():
        raise NetworkStateError(
            "run starts an event loop of its own, and one is running here, as in a notebook. Await instead: "
            f"`rush = await Rush({network_id or 'search'!r})`, `await rush.start_workers({bound.name}, n_workers=4)`, "
            "`await rush.join_workers()`, `await rush.fetch_finished_tasks()`"
        )
    manager = Rush(network_id, config, data_dir=data_dir, schema=schema, seed=seed, exist_ok=exist_ok or finished is not None)

    async def search() -> pl.DataFrame:
        async with manager as rush:
            try:
                if finished is None or await _has_work(rush, finished):
                    await rush.start_workers(bound, n_workers, on=on)
                    await rush.join_workers()
            except asyncio.CancelledError:
                await _stop(rush)
            return await rush.fetch_finished_tasks()

    return asyncio.run(_interrupted_by_sigterm(search()))


async def _interrupted_by_sigterm(search: Coroutine[Any, Any, pl.DataFrame]) -> pl.DataFrame:
    """Awaits a search. SIGTERM interrupts it as Ctrl-C does, and ends the process afterwards, as it would have without."""
    task, has_come = asyncio.current_task(), False

    def interrupt() -> None:
        nonlocal has_come
        has_come = True
        if task is not None:
            task.cancel()

    is_ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if is_ours:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, interrupt)
    try:
        return await search
    finally:
        if is_ours:
            asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)
        if has_come:
            os.kill(os.getpid(), signal.SIGTERM)


async def _has_work(rush: Rush, finished: int) -> bool:
    """Sets the stop rule, and returns whether fewer tasks have finished."""
    if (n := (await rush.counts()).finished) >= finished:
        logger.warning("network %r has %s finished tasks already, so no worker is started", rush.network_id, f"{n:,}")
        return False
    if rush.stop_reason is None:
        await rush.stop_when(finished=finished)
    else:
        await rush.resume(finished=finished)
    return True


async def _stop(rush: Rush) -> None:
    """Stops its workers after Ctrl-C, which cancels this task."""
    task = asyncio.current_task()
    assert task is not None
    task.uncancel()
    logger.warning(
        "interrupted: the workers have %g s to finish their tasks; a second interrupt ends them at once", _INTERRUPTED
    )
    living = rush._worker_group.living  # pyright: ignore[reportPrivateUsage]
    await rush.stop_workers(living, timeout=_INTERRUPTED)


_OPTIONS = frozenset(inspect.signature(run).parameters) - {"kwargs"}
