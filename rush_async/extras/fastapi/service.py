"""One process of a service, independent of HTTP: it starts runs, evaluates tasks, and drains its workers at the end."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import signal
import threading
from collections.abc import Awaitable, Callable, Generator, Mapping
from types import FrameType
from typing import Any, Protocol, TypeAlias

import anyio

from rush_async.errors import (
    NetworkStateError,
    RushConnectionError,
    RushError,
    RushTimeoutError,
    ServerFullError,
    WorkerLostError,
)
from rush_async.extras.fastapi.bodies import RUN_ID, RunSummary, WorkersRequest
from rush_async.extras.fastapi.runs import START, read_summary
from rush_async.extras.fastapi.statuses import ShuttingDownError, TooManyStreamsError
from rush_async.launch.handle import Launcher
from rush_async.launch.pools import Submitter
from rush_async.manager.manager import Rush
from rush_async.model import Task
from rush_async.network.listing import list_networks
from rush_async.supervisor import Supervisor, run_to_completion
from rush_async.worker.loop import is_async
from rush_async.worker.worker import RushWorker

__all__ = ["Metrics", "Objective", "RunLoop", "Service"]

logger = logging.getLogger(__name__)

_PAUSE = 1.0  # seconds until an evaluator that ended is replaced
_GRACE = 1.0  # seconds that streams have to send the last events of drained runs
_AT_ONCE = 16  # runs that are read at once
_SIGNALS = (signal.SIGTERM, signal.SIGINT)

Objective: TypeAlias = Callable[[dict[str, Any]], Any]


class RunLoop(Protocol):
    """A worker loop with a budget."""

    def __call__(self, rush: RushWorker, /, *, evals: int) -> Awaitable[Any]: ...


class Metrics(Protocol):
    """Shows networks to Prometheus: `rush_async.extras.metrics.NetworkMetrics`."""

    def watch(self, client: Rush) -> None: ...

    def forget(self, client: Rush) -> None: ...

    async def scrape(self, accept: str) -> tuple[bytes, str]:
        """Returns the text and its content type."""
        ...


class Service:
    """One process of a service.

    A *run* is a network of its own, `<network of the service>.<run id>`, so every process that shares the database can show and
    stop it. Its workers live in the process that started it.

    Args:
        rush: the open manager of the service's own network.
        drain: seconds that workers have to finish their tasks when the service stops.
        objective: evaluates the tasks of the service's own queue; None if this process evaluates none.
        n_evaluators: how many of these tasks it evaluates at once.
        run_ttl: seconds after which an ended run is deleted; None if none is.
        max_streams: how many streams of events it sends at once.
        metrics: shows the service's own network, and the runs whose workers live in this process; None for none.
    """

    def __init__(
        self,
        rush: Rush,
        drain: float,
        objective: Objective | None = None,
        n_evaluators: int = 0,
        *,
        run_ttl: float | None = None,
        max_streams: int = 100,
        metrics: Metrics | None = None,
    ) -> None:
        self.rush = rush
        self.metrics = metrics
        self._drain_time = drain
        self._objective = objective
        self._n_evaluators = n_evaluators
        self._run_ttl = run_ttl
        self._max_streams = max_streams
        self._supervisor = Supervisor(f"service {rush.network_id}")
        self._runs: set[Rush] = set()  # the managers of the workers that this process started
        self._watched: set[str] = set()  # runs whose leases this process judges for a while
        self._evaluators: set[str] = set()
        self._streaming: set[Rush] = set()
        self._is_stopping = False
        self._drained = asyncio.Event()

    # opening and closing

    async def open(self) -> None:
        """Starts the evaluators, and the timer that deletes ended runs."""
        await self._supervisor.open()
        if self.metrics is not None:
            self.metrics.watch(self.rush)
        with contextlib.suppress(ServerFullError):
            await self.rush.worker_info()  # imports polars now, so that the first request does not wait for it
        if self._objective is not None:
            for _ in range(self._n_evaluators):
                self._supervisor.start(self._keep_evaluator)
        if self._run_ttl is not None:
            self._supervisor.start(self._delete_ended_runs, self._run_ttl)

    async def _keep_evaluator(self) -> None:
        """Runs one evaluator. Replaces it when it was lost, or when it failed because the server was away."""
        while not self._is_stopping:
            with contextlib.suppress(RushError):
                (worker_id,) = await self.rush.start_workers(self._evaluate_queue)
                self._evaluators.add(worker_id)
                await self.rush._wait_for_ends([worker_id])  # pyright: ignore[reportPrivateUsage]
                self._evaluators.discard(worker_id)
            if not self._is_stopping:
                await anyio.sleep(_PAUSE)

    async def _evaluate_queue(self, rush: RushWorker) -> None:
        """The worker loop of an evaluator. An objective that raises fails its task, not the evaluator."""
        async for task in rush.tasks():
            try:
                async with task:
                    task.ys = await self._evaluated(task.xs)
            except (RushConnectionError, WorkerLostError):
                raise
            except Exception as error:
                logger.info("task %s failed: %s: %s", task.key, type(error).__name__, error)

    async def _evaluated(self, xs: dict[str, Any]) -> Any:
        assert self._objective is not None
        if is_async(self._objective):
            return await self._objective(xs)
        ys = await asyncio.to_thread(self._objective, xs)
        return await ys if inspect.isawaitable(ys) else ys

    @contextlib.contextmanager
    def stop_on_signals(self) -> Generator[None]:
        """In this block SIGTERM and SIGINT stop the service, then call the handler that was installed before.

        The HTTP server waits for open streams before it ends the lifespan, so the streams have to end at the signal itself.
        Outside the main thread, where Python allows no signal handlers, the block does nothing.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        before = {number: handler for number in _SIGNALS if callable(handler := signal.getsignal(number))}

        def handle(number: int, frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(self.stop)
            before[signal.Signals(number)](number, frame)

        for number in before:
            signal.signal(number, handle)
        try:
            yield
        finally:
            for number, handler in before.items():
                if signal.getsignal(number) is handle:
                    signal.signal(number, handler)

    def stop(self) -> None:
        """Begins to stop: it starts nothing new, the workers finish their tasks, then the streams end. May be called again."""
        if not self._is_stopping:
            self._is_stopping = True
            self._supervisor.start(self._drain)

    async def _drain(self) -> None:
        own = {rush.network_id for rush in self._runs}
        self._end_streams({rush for rush in self._streaming if rush.network_id not in own})
        work = [rush.stop_workers(timeout=self._drain_time) for rush in self._runs]
        work.append(self.rush.stop_workers(list(self._evaluators), timeout=self._drain_time))
        try:
            with anyio.move_on_after(self._drain_time + _GRACE):
                for error in await asyncio.gather(*work, return_exceptions=True):
                    if isinstance(error, Exception) and not isinstance(error, NetworkStateError):  # the run has ended meanwhile
                        logger.warning("the service could not drain its workers: %s", error)
        finally:
            self._drained.set()
        await anyio.sleep(_GRACE)
        self._end_streams(self._streaming)

    def _end_streams(self, streams: set[Rush]) -> None:
        for rush in streams:
            self._supervisor.start(rush.aclose)  # raises a NetworkStateError in the stream that waits for its events

    async def aclose(self) -> None:
        """Stops, and waits until the workers are drained."""
        try:
            self.stop()
            await self._drained.wait()
        finally:
            await self._supervisor.aclose()

    def _check_open(self) -> None:
        if self._is_stopping:
            raise ShuttingDownError("this process is shutting down: send the request again, to another process")

    # runs

    def client(self, run_id: str) -> Rush:
        """A client of a run, not open yet. It shares the connection of `rush`."""
        return Rush(f"{self.rush.network_id}.{run_id}", self.rush.config, exist_ok=True)

    @contextlib.contextmanager
    def streaming(self, run: Rush) -> Generator[None]:
        """A block that streams events of this client. The client is closed when the service stops."""
        self._check_open()
        if len(self._streaming) >= self._max_streams:
            raise TooManyStreamsError(f"this process sends {self._max_streams} streams already: close one, or try again later")
        self._streaming.add(run)
        try:
            yield
        finally:
            self._streaming.discard(run)

    async def start_workers(
        self,
        run_id: str,
        loop: RunLoop,
        asked: WorkersRequest,
        on: Launcher | Submitter | None = None,
        stop_when: Mapping[str, Any] | None = None,
    ) -> None:
        """Starts workers of a run in this process. For a new run, `stop_when` has the stop rules that it begins with."""
        self._check_open()
        run = await self.client(run_id)
        if self.metrics is not None:
            self.metrics.watch(run)
        try:
            if stop_when:
                await run.stop_when(**stop_when)
            await run.start_workers(loop, asked.n_workers, on=on, args={"evals": asked.evals})
            await run.set_attrs({START: {"loop": asked.loop, "evals": asked.evals}})
            self._check_open()  # the service may have begun to stop meanwhile
        except BaseException:
            await self._close_run(run)
            raise
        self._runs.add(run)
        self._supervisor.start(self._keep_run, run)

    async def _keep_run(self, run: Rush) -> None:
        """Keeps the manager of a run open until its workers have ended."""
        try:
            await run._wait_for_ends(run._worker_group.worker_ids)  # pyright: ignore[reportPrivateUsage]
        finally:
            await self._close_run(run)

    async def _close_run(self, run: Rush) -> None:
        self._runs.discard(run)
        if self.metrics is not None and run.network_id not in {other.network_id for other in self._runs}:
            self.metrics.forget(run)
        await run_to_completion(run.aclose())

    async def runs(self) -> list[RunSummary]:
        """Reads all runs of the service, those of other processes too, the last started first."""
        prefix, at_once = f"{self.rush.network_id}.", asyncio.Semaphore(_AT_ONCE)
        networks = await list_networks(self.rush.config, prefix)

        async def read(run_id: str) -> RunSummary:
            async with at_once, self.client(run_id) as run:
                return await read_summary(run)

        ids = [network.network_id.removeprefix(prefix) for network in networks]
        found = await asyncio.gather(*[read(run_id) for run_id in ids if RUN_ID.fullmatch(run_id)])
        for run in found:
            self.watch(run)
        started = [(run.started_at, run) for run in found if run.started_at is not None]  # others were deleted meanwhile
        return [run for _, run in sorted(started, key=lambda pair: pair[0], reverse=True)]

    def watch(self, run: RunSummary) -> None:
        """Keeps a client of a running run open for a while: its process may be gone, and then no other judges its leases."""
        if run.state == "running" and run.id not in self._watched:
            self._watched.add(run.id)
            self._supervisor.start(self._judge_leases, run.id)

    async def _judge_leases(self, run_id: str) -> None:
        try:
            with contextlib.suppress(RushConnectionError):  # the next look at the run tries again
                async with self.client(run_id) as run:
                    await anyio.sleep(2 * run.config.heartbeat_expire)
        finally:
            self._watched.discard(run_id)

    async def _delete_ended_runs(self, ttl: float) -> None:
        """Deletes each run `ttl` seconds after its end. One that is running cannot be due sooner than in `ttl` seconds."""

        async def sweep() -> float:
            seconds, micros = await link.connection.ask("TIME")
            now, pause = int(seconds) + int(micros) / 1e6, ttl
            for run in await self.runs():
                if run.ended is None or run.ended.at is None:
                    continue
                if (left := run.ended.at.timestamp() + ttl - now) > 0:
                    pause = min(pause, left)
                    continue
                logger.info("run %s is deleted: it ended at %s", run.id, run.ended.at)
                async with self.client(run.id) as client:
                    await client.reset()
            return pause

        link = self.rush._net.link  # pyright: ignore[reportPrivateUsage]
        while True:
            pause = await link.retry_until_reachable(sweep)
            await anyio.sleep(pause)

    # evaluations

    async def evaluate(self, rush: Rush, xs: Any, *, timeout: float, retries: int, disconnected: asyncio.Future[None]) -> Task:
        """Queues one task and waits for its end. If it stops waiting earlier, it cancels the task.

        Args:
            rush: a client of the network that queues the task.
            xs: the input.
            timeout: seconds to wait.
            retries: as in `push_tasks`.
            disconnected: is done when the caller has disconnected.

        Returns:
            The task, finished or failed.

        Raises:
            TasksNotDoneError: there is no worker to evaluate it.
            RushTimeoutError: it did not end in time.
            ShuttingDownError: the service stops.
            NetworkStateError: the caller has disconnected.
        """
        self._check_open()
        (key,) = await rush.push_tasks([xs], retries=retries)
        answer = Supervisor.spawn(rush.wait_for_tasks(key))
        drained = Supervisor.spawn(self._wait_until_drained())
        done: set[asyncio.Future[Any]] = set()
        ended: Task | None = None
        try:
            waits: list[asyncio.Future[Any]] = [answer, drained, disconnected]
            done, _ = await asyncio.wait(waits, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if answer in done:
                (ended,) = answer.result()
        finally:
            answer.cancel()
            drained.cancel()
            if ended is None:
                ended = await run_to_completion(self._cancel(rush, key))
            await asyncio.gather(answer, drained, return_exceptions=True)
        if ended is not None:
            return ended
        if not done:
            raise RushTimeoutError(f"task {key} did not end within {timeout:g} s and was cancelled")
        self._check_open()
        raise NetworkStateError(f"the client disconnected, and task {key} was cancelled")

    async def _cancel(self, rush: Rush, key: str) -> Task | None:
        """Cancels a task. Returns the task if it ended before that."""
        return None if await rush.cancel_tasks(key) else (await rush.get_tasks(key))[0]

    async def _wait_until_drained(self) -> None:
        await self._drained.wait()
