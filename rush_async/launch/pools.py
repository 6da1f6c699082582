"""Workers through anything that has `submit()`: a pool of `concurrent.futures`, loky, Dask, MPI, Slurm. One job is one worker.

The pool owns its processes: a job is cancelled or its worker asked to stop, but no process is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import CancelledError, ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import anyio.to_thread

from rush_async.errors import RushConnectionError
from rush_async.launch.handle import Launch, WorkerHandle
from rush_async.launch.job import Job, digest_of, pack_report, unpack_report
from rush_async.model import Failure, WorkerExit
from rush_async.network.network import Network
from rush_async.process import process_generation
from rush_async.store.workers import KILLED, LOST_WORKER
from rush_async.supervisor import run_to_completion
from rush_async.worker.log_capture import WARNINGS
from rush_async.worker.loop import WorkerLoop
from rush_async.worker.worker import Runner

__all__ = ["PackedJob", "Pool", "Submitter", "run_job"]

logger = logging.getLogger(__name__)

_WORKER_END = 2.0  # seconds that a worker has to end once the network has shut it out
_SECOND_RUN = Failure(
    "lost",
    None,
    "the pool ran its job a second time: the process that ran it first has died, or the pool has lost it",
)


class Submitter(Protocol):
    """A pool: `submit(function, argument)` runs the function in one of its places and returns a future."""

    def submit(self, *args: Any, **kwargs: Any) -> Any:
        """Starts a job, and returns its future."""


class PackedJob(bytes):
    """A job as a pool gets it. The log of a pool may show its repr, and the job has the URL with its password."""

    def __repr__(self) -> str:
        return f"<job {digest_of(self)}>"


# in the pool


def run_job(packed: bytes) -> bytes:
    """Runs the one worker of a job in an event loop of its own, and returns the report of its end."""
    job = Job.of_pickle(packed)
    (worker_id,) = job.worker_ids
    if process_generation() and "polars" in sys.modules:
        logger.warning(
            "the pool forked this process after polars had been loaded, so a read of a frame may hang here: "
            "ProcessPoolExecutor(mp_context=multiprocessing.get_context('spawn')) starts processes where it does not"
        )
    try:
        end = asyncio.run(_run(job, job.loop.load()))
    except Exception as error:
        # A package or a module cannot be imported here, or a file of large arguments is missing.
        end = WorkerExit(worker_id, "failed", Failure.of(error))
    return pack_report(end)


async def _run(job: Job, loop: WorkerLoop) -> WorkerExit:
    log_levels = WARNINGS if job.log_levels is None else job.log_levels
    runner = Runner(
        *(job.network_id, job.config, job.worker_ids, loop, log_levels),
        schema=job.frame_schema,
        waits_for_server=True,
    )
    (end,) = await runner.run()
    return WorkerExit(end.worker_id, "lost", _SECOND_RUN) if end.worker_id in runner.refused else end


# in the manager


class _Worker(WorkerHandle):
    """A worker that is a job of a pool."""

    def __init__(self, network: Network, worker_id: str, future: Any) -> None:
        super().__init__(worker_id)
        self._network = network
        self._future: Any = future
        self._is_cancelled = False
        self._loop = asyncio.get_running_loop()
        if hasattr(future, "add_done_callback"):
            future.add_done_callback(self._note_done)
        else:
            name = f"rush_async waits for {worker_id}"
            threading.Thread(target=self._note_done, args=(future,), name=name, daemon=True).start()

    def end(self, end: WorkerExit) -> None:
        super().end(end)
        self._future = None  # Dask repeats a job that died with its process as long as its future is referenced

    def stop(self) -> None:
        if self.is_alive and self._network.link.supervisor.is_open:
            self._network.link.supervisor.start(self._cancel_unbegun)

    def cancel(self) -> None:
        # The network has lost the worker. Its pool may never notice.
        if self.is_alive and self._network.link.supervisor.is_open:
            self._network.link.supervisor.start(self._end_as_lost)

    async def _end_as_lost(self) -> None:
        await self._cancel_unbegun()
        await asyncio.wait([self.ended], timeout=_WORKER_END)
        self.end(WorkerExit(self.worker_id, "lost", Failure("lost", None, "its heartbeat had stopped")))

    async def kill(self) -> None:
        # The network has shut the worker out: a message on `control` cancels a running one, and a later start is refused.
        await self._cancel_unbegun()
        await asyncio.wait([self.ended], timeout=_WORKER_END)
        if self.is_alive:
            logger.warning(
                "worker %s was killed and its running tasks have failed, but its loop has not ended within %g s: it computes "
                "without awaiting, or swallows its cancellation. Its process belongs to the pool and is left alone",
                self.worker_id,
                _WORKER_END,
            )
            self.end(WorkerExit(self.worker_id, "killed", KILLED))

    async def _cancel_unbegun(self) -> None:
        """Cancels a job that has not begun. A running job is not cancelled: Dask would drop it, and Slurm would kill it."""
        if not await self._has_run() and hasattr(self._future, "cancel"):
            self._is_cancelled = True
            await anyio.to_thread.run_sync(self._future.cancel)

    async def _has_run(self) -> bool:
        try:
            entry = (await self._network.workers.read_some([self.worker_id])).get(self.worker_id)
        except RushConnectionError:
            return True  # then no job is cancelled, and a job that the pool has cancelled counts as lost
        return entry is not None and entry.has_run

    def _note_done(self, future: Any) -> None:
        """Takes the outcome of the job. The pool calls it in any thread."""
        outcome = _outcome(future)
        with contextlib.suppress(RuntimeError):  # the event loop is closed, and so is the manager
            self._loop.call_soon_threadsafe(self._take, outcome)

    def _take(self, outcome: WorkerExit | BaseException) -> None:
        if isinstance(outcome, WorkerExit):
            self.end(outcome)
        elif self._is_cancellation(outcome) and self._network.link.supervisor.is_open:
            self._network.link.supervisor.start(self._take_cancellation, outcome)
        else:
            self.end(WorkerExit(self.worker_id, "lost", _failure(outcome)))

    def _is_cancellation(self, outcome: BaseException) -> bool:
        return self._is_cancelled or isinstance(outcome, CancelledError | asyncio.CancelledError)

    async def _take_cancellation(self, outcome: BaseException) -> None:
        """Ends the worker of a cancelled job: as terminated if it had not begun, else as lost."""
        end = WorkerExit(self.worker_id, "lost", _failure(outcome))
        try:
            if not await self._has_run():
                end = WorkerExit(self.worker_id, "terminated")
        finally:
            self.end(end)


def _outcome(future: Any) -> WorkerExit | BaseException:
    """Returns how the worker ended, or the error of the job."""
    try:
        report = unpack_report(future.result())
    except BaseException as error:
        return error
    return report if isinstance(report, WorkerExit) else TypeError(f"the pool returned no report of a worker: {report!r:.80}")


def _failure(error: BaseException) -> Failure:
    if isinstance(error, CancelledError | asyncio.CancelledError):
        return Failure("lost", type(error).__name__, "the pool cancelled its job")
    return Failure.of(error, "lost")


@dataclass(frozen=True, init=False)
class Pool:
    """Start workers through anything with `submit()`: each is one job, and keeps one place of the pool while it runs.

    For `start_workers(on=...)` a pool may be given as it is; `Pool` is for the options of its `submit()`:

    ```python
    await rush.start_workers(loop, n_workers=4, on=Pool(client, resources={"GPU": 1}))
    ```

    The pool gets loop and arguments as copies by cloudpickle; rush_async and your own modules must be importable there. Workers
    of a pool continue when the manager closes. Stop them before you shut the pool down, which waits for them. Their output goes
    where the pool sends it; `log_dir` has no effect. Without `log_levels` the network keeps what they log at WARNING and up.

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
        """Submits the jobs and returns. If one cannot be submitted, those before it are cancelled.

        Raises:
            EncodeError: the loop or one of its arguments cannot be pickled, or is too large.
        """
        job = await launch.pack()
        futures: dict[str, Any] = {}
        try:
            # In a thread, because it may take long: a pool may start processes or call Slurm.
            await run_to_completion(anyio.to_thread.run_sync(self._submit, job, futures))
        except BaseException as error:
            await run_to_completion(_cancel_all(launch.network, futures, Failure.of(error)))
            await job.loop.payload.discard()
            raise
        return [_Worker(launch.network, worker_id, future) for worker_id, future in futures.items()]

    def _submit(self, job: Job, futures: dict[str, Any]) -> None:
        """Submits a job for each worker, and adds its future to `futures`."""
        for worker_id in job.worker_ids:
            packed = PackedJob(replace(job, worker_ids=[worker_id]).to_pickle())
            futures[worker_id] = self.pool.submit(run_job, packed, **self.options)
        if isinstance(self.pool, ProcessPoolExecutor):
            # The executor notices the death of the process that it started last only when it gets a further item.
            self.pool.submit(int).cancel()


async def _cancel_all(network: Network, futures: Mapping[str, Any], failure: Failure) -> None:
    """Cancels submitted jobs. Workers that have begun are shut out of the network, which ends them at their next call."""
    for future in futures.values():
        if hasattr(future, "cancel"):
            await anyio.to_thread.run_sync(future.cancel)
    if futures:
        with contextlib.suppress(RushConnectionError):
            await network.workers.lose(list(futures), "lost", LOST_WORKER, failure)
