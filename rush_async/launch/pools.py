"""Workers through anything that has `submit()`: a pool of `concurrent.futures`, loky, Dask, MPI, Slurm. One job is one worker.

The pool's processes are not ours: a job is taken back or asked to stop, and a process is never killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pickle
import sys
import threading
from collections.abc import Awaitable, Mapping
from concurrent.futures import CancelledError, ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, cast

import anyio.to_thread

from rush_async.config import RushConfig
from rush_async.errors import RushConnectionError
from rush_async.launch.handle import Launch, WorkerHandle
from rush_async.launch.payload import Parcel, adiscard, unwrap
from rush_async.launch.processes import pack
from rush_async.model import Failure, WorkerExit
from rush_async.store.workers import KILLED
from rush_async.supervisor import see_through
from rush_async.wire.link import process_generation
from rush_async.worker.loop import WorkerLoop
from rush_async.worker.run import live
from rush_async.worker.worker import RushWorker

__all__ = ["Pool", "Submitter", "work"]

logger = logging.getLogger(__name__)

_PATIENCE = 2.0  # seconds in which a worker that was shut out is to end
_IN_USE = "is or was in use"  # how a worker is refused that the pool runs a second time
_SILENT = Failure("lost", None, "its heartbeat had stopped")


class Submitter(Protocol):
    """What can be a pool: `submit(function, argument)` runs the function somewhere and returns a future."""

    def submit(self, *args: Any, **kwargs: Any) -> Any: ...


# on the other side


@dataclass(frozen=True, slots=True)
class _Orders:
    """What a job is to do.

    Attributes:
        network_id: the network to work in.
        config: the server, as the manager reached it.
        worker_id: the worker that the job is.
        loop: a `WorkerLoop` in the pickle of cloudpickle.
        log_levels: the loggers whose records are kept in the network.
    """

    network_id: str
    config: RushConfig
    worker_id: str
    loop: Parcel
    log_levels: Mapping[str, str | int] | None


def work(payload: bytes) -> bytes:
    """The job: one worker from its registration to its good-bye, in an event loop of its own. Returns its `WorkerExit`."""
    orders: _Orders = pickle.loads(payload)
    if process_generation() and "polars" in sys.modules:
        logger.warning(
            "the pool forked this process after polars was loaded, so whatever reads a frame here may hang: "
            "ProcessPoolExecutor(mp_context=multiprocessing.get_context('spawn')) starts processes that can"
        )
    try:
        loop: WorkerLoop = pickle.loads(unwrap(orders.loop))
        how = asyncio.run(_live(orders, loop))
    except Exception as error:
        # A package that is missing here, a module that cannot be imported, a file of large arguments that is gone.
        how = WorkerExit(orders.worker_id, "failed", Failure.of(error))
    return pickle.dumps(how)


async def _live(orders: _Orders, loop: WorkerLoop) -> WorkerExit:
    began = False

    def begin(worker: RushWorker, **arguments: Any) -> Awaitable[Any]:
        nonlocal began
        began = True
        return loop.function(worker, **arguments)

    worker = RushWorker(orders.network_id, orders.config, worker_id=orders.worker_id)
    how = await live(worker, WorkerLoop(begin, loop.arguments), orders.log_levels)
    if not began and how.failure is not None and _IN_USE in how.failure.message:
        why = "the pool ran its job a second time: the process that ran it first has died, or was given up by the pool"
        return WorkerExit(how.worker_id, "lost", Failure("lost", None, why))
    return how


# on the manager's side


class _Worker(WorkerHandle):
    """A worker that is a job of a pool."""

    outlives_manager = True

    def __init__(self, launch: Launch, worker_id: str, future: Any) -> None:
        super().__init__(worker_id)
        self._launch = launch
        self._future: Any = future
        self._is_taken_back = False
        here = asyncio.get_running_loop()

        def tell(future: Any) -> None:
            how = _outcome(future)
            with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits any more
                here.call_soon_threadsafe(self._take, how)

        if hasattr(future, "add_done_callback"):
            future.add_done_callback(tell)
        else:
            name = f"rush_async waits for {worker_id}"
            threading.Thread(target=tell, args=(future,), name=name, daemon=True).start()

    def end(self, how: WorkerExit) -> None:
        super().end(how)
        self._future = None  # Dask computes again what died with a process, as long as somebody holds the future

    def stop(self) -> None:
        if self.is_alive and self._launch.supervisor.is_open:
            self._launch.supervisor.start(self._take_back)

    def cancel(self) -> None:
        # The network has lost it. Its pool may never have noticed.
        if self.is_alive and self._launch.supervisor.is_open:
            self._launch.supervisor.start(self._give_up)

    async def _give_up(self) -> None:
        await self._take_back()
        await asyncio.wait([self.ended], timeout=_PATIENCE)
        self.end(WorkerExit(self.worker_id, "lost", _SILENT))

    async def kill(self) -> None:
        # It was shut out: one that runs hears of it on `control` and is cancelled, one that comes later is refused.
        await self._take_back()
        await asyncio.wait([self.ended], timeout=_PATIENCE)
        if self.is_alive:
            logger.warning(
                "worker %s was killed and what it ran has failed, but its loop has not ended within %g s: it computes without "
                "awaiting, or swallows its cancellation. Its process belongs to the pool and is left alone",
                self.worker_id,
                _PATIENCE,
            )
            self.end(WorkerExit(self.worker_id, "killed", KILLED))

    async def _take_back(self) -> None:
        """Cancels a job that has not begun. Dask would forget a running one too, and Slurm kill it: the network is asked."""
        if not await self._has_entered() and hasattr(self._future, "cancel"):
            self._is_taken_back = True
            await anyio.to_thread.run_sync(self._future.cancel)

    async def _has_entered(self) -> bool:
        try:
            return await self._launch.has_entered(self.worker_id)
        except RushConnectionError:
            return True  # then nothing is taken back, and what is gone is lost

    def _take(self, how: WorkerExit | BaseException) -> None:
        if isinstance(how, WorkerExit) and how.state != "lost":
            self.end(how)
        elif self._launch.supervisor.is_open:
            self._launch.supervisor.start(self._lose, how)
        else:
            self._end_as_lost(how)

    async def _lose(self, how: WorkerExit | BaseException) -> None:
        """A job without a good-bye: it was taken back before it began, or its worker is lost and what it ran fails at once."""
        try:
            is_cancelled = self._is_taken_back or isinstance(how, CancelledError | asyncio.CancelledError)
            if is_cancelled and not await self._has_entered():
                self.end(WorkerExit(self.worker_id, "terminated"))
            else:
                await self._launch.on_lost([self.worker_id], _failure(how))
        except Exception as error:
            logger.error("the network could not be told that worker %s is lost: %s", self.worker_id, error)
        finally:
            self._end_as_lost(how)

    def _end_as_lost(self, how: WorkerExit | BaseException) -> None:
        self.end(WorkerExit(self.worker_id, "lost", _failure(how)))


def _outcome(future: Any) -> WorkerExit | BaseException:
    """How the worker ended, or why the pool does not know."""
    try:
        # It comes by the pool alone, which runs what it is given anyway, so it may be a pickle.
        return cast("WorkerExit", pickle.loads(future.result()))
    except BaseException as error:
        return error


def _failure(how: WorkerExit | BaseException) -> Failure:
    if isinstance(how, WorkerExit):
        return how.failure or _SILENT
    if isinstance(how, CancelledError | asyncio.CancelledError):
        return Failure("lost", type(how).__name__, "the pool cancelled its job")
    return Failure.of(how, "lost")


@dataclass(frozen=True, init=False)
class Pool:
    """Start workers through anything with `submit()`: each is one job of the pool, and keeps one of its places while it lives.

    For `start_workers(on=...)` a pool may be given as it is; `Pool` is for the options of its `submit()`:

    ```python
    await rush.start_workers(loop, n_workers=4, on=Pool(client, resources={"GPU": 1}))
    ```

    Loop and arguments travel through the pool, as copies by cloudpickle; rush_async and your own modules must be importable
    there. Workers of a pool go on when the manager is closed. Stop them before the pool is shut down, which waits for them.
    They write where the pool lets them write, whatever `log_dir` says.

    Attributes:
        pool: a `concurrent.futures` executor, loky's, a Dask client or its `get_executor()`, a submitit executor, ...
        options: keywords for each `submit()`.

    Raises:
        TypeError: the pool has no `submit()`.
    """

    pool: Submitter
    options: Mapping[str, Any]
    is_local: ClassVar[bool] = False

    def __init__(self, pool: Submitter, /, **options: Any) -> None:
        if not callable(getattr(pool, "submit", None)):
            raise TypeError(
                f"a pool has a method submit(function, argument) that returns a future, not {type(pool).__name__}: {pool!r:.80}"
            )
        object.__setattr__(self, "pool", pool)
        object.__setattr__(self, "options", options)

    async def launch(self, launch: Launch) -> list[WorkerHandle]:
        """Submits the jobs and returns; if one cannot be submitted, those before it are taken back.

        Raises:
            EncodeError: the loop or one of its arguments cannot be pickled, or is too large.
        """
        loop = await pack(launch)
        futures: dict[str, Any] = {}

        def submit_all() -> None:
            for worker_id in launch.worker_ids:
                orders = _Orders(launch.network_id, launch.config, worker_id, loop, launch.log_levels)
                futures[worker_id] = self.pool.submit(work, pickle.dumps(orders), **self.options)
            if isinstance(self.pool, ProcessPoolExecutor):
                # It would not notice the death of the process that it has started last before it is given something else.
                self.pool.submit(int).cancel()

        try:
            # A thread, for it may take its time: processes are started, or Slurm is asked.
            await see_through(anyio.to_thread.run_sync(submit_all))
        except BaseException as error:
            await see_through(_withdraw(launch, futures, Failure.of(error)))
            await adiscard(loop)
            raise
        return [_Worker(launch, worker_id, future) for worker_id, future in futures.items()]


async def _withdraw(launch: Launch, futures: Mapping[str, Any], failure: Failure) -> None:
    """Takes back jobs that were submitted. Those that have begun are shut out, which ends them at their next call."""
    for future in futures.values():
        if hasattr(future, "cancel"):
            await anyio.to_thread.run_sync(future.cancel)
    if futures:
        with contextlib.suppress(RushConnectionError):
            await launch.on_lost(list(futures), failure)
