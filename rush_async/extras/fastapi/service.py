"""One process of a service, independent of HTTP: it starts runs, evaluates tasks, and drains its workers at the end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Mapping
from datetime import UTC, datetime
from types import FrameType
from typing import Any, Protocol, TypeAlias

import anyio

from rush_async.client.event_stream import EventStream
from rush_async.errors import (
    NetworkStateError,
    RushConnectionError,
    RushError,
    RushTimeoutError,
    ServerFullError,
    WorkerLostError,
)
from rush_async.events import Event, EventsMissed, NetworkReset, WorkerLost, WorkerStarted, WorkerStopped
from rush_async.extras.fastapi.bodies import ReportView, RunStatus, StopReasonView, StopRules, TaskView
from rush_async.extras.fastapi.statuses import ShuttingDownError
from rush_async.launch.handle import Launcher
from rush_async.launch.pools import Submitter
from rush_async.manager.manager import Rush
from rush_async.model import Task
from rush_async.supervisor import Supervisor, run_to_completion
from rush_async.worker.worker import RushWorker

__all__ = [
    "Objective",
    "RunLoop",
    "Service",
    "events_until_end",
    "living_workers",
    "read_reports",
    "read_status",
]

logger = logging.getLogger(__name__)

_PAUSE = 1.0  # seconds until an evaluator that ended is replaced
_GRACE = 1.0  # seconds that streams have to send the last events of drained runs
_REPORT = ("keys", "worker_id", "at", "attempt", "step")  # columns of each report
_SIGNALS = (signal.SIGTERM, signal.SIGINT)

Objective: TypeAlias = Callable[[dict[str, Any]], Awaitable[Any]]


class RunLoop(Protocol):
    """A worker loop with a budget."""

    def __call__(self, rush: RushWorker, /, *, evals: int) -> Awaitable[Any]: ...


class Service:
    """One process of a service.

    A *run* is a network of its own, `<network of the service>.<run id>`, so every process that shares the database can show and
    stop it. Its workers live in the process that started it.

    Args:
        rush: the open manager of the service's own network.
        drain: seconds that workers have to finish their tasks when the service stops.
        objective: evaluates the tasks of the service's own queue; None if this process evaluates none.
        n_evaluators: how many of these tasks it evaluates at once.
    """

    def __init__(self, rush: Rush, drain: float, objective: Objective | None = None, n_evaluators: int = 0) -> None:
        self.rush = rush
        self._drain_time = drain
        self._objective = objective
        self._n_evaluators = n_evaluators
        self._supervisor = Supervisor(f"service {rush.network_id}")
        self._runs: set[Rush] = set()  # the managers of the workers that this process started
        self._evaluators: set[str] = set()
        self._streaming: set[Rush] = set()
        self._is_stopping = False
        self._drained = asyncio.Event()

    # opening and closing

    async def open(self) -> None:
        """Starts the evaluators."""
        await self._supervisor.open()
        with contextlib.suppress(ServerFullError):
            await self.rush.worker_info()  # imports polars now, so that the first request does not wait for it
        if self._objective is not None:
            for _ in range(self._n_evaluators):
                self._supervisor.start(self._keep_evaluator)

    async def _keep_evaluator(self) -> None:
        """Runs one evaluator. Replaces it when it was lost, or when it failed because the server was away."""
        while not self._is_stopping:
            with contextlib.suppress(RushError):
                (worker_id,) = await self.rush.start_workers(self._evaluate_queue)
                self._evaluators.add(worker_id)
                await self.rush.join_workers(worker_id, check=False)
                self._evaluators.discard(worker_id)
            if not self._is_stopping:
                await anyio.sleep(_PAUSE)

    async def _evaluate_queue(self, rush: RushWorker) -> None:
        """The worker loop of an evaluator. An objective that raises fails its task, not the evaluator."""
        assert self._objective is not None
        async for task in rush.tasks():
            try:
                async with task:
                    task.ys = await self._objective(task.xs)
            except (RushConnectionError, WorkerLostError):
                raise
            except Exception as error:
                logger.info("task %s failed: %s: %s", task.key, type(error).__name__, error)

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
        return Rush(f"{self.rush.network_id}.{run_id}", self.rush.config)

    @contextlib.contextmanager
    def streaming(self, run: Rush) -> Generator[None]:
        """A block that streams events of this client. The client is closed when the service stops."""
        self._check_open()
        self._streaming.add(run)
        try:
            yield
        finally:
            self._streaming.discard(run)

    async def start_workers(
        self,
        run_id: str,
        loop: RunLoop,
        evals: int,
        n_workers: int,
        on: Launcher | Submitter | None,
        stop_when: Mapping[str, Any] | None = None,
    ) -> None:
        """Starts workers of a run in this process. For a new run, `stop_when` has the stop rules that it begins with."""
        self._check_open()
        run = await self.client(run_id)
        try:
            if stop_when:
                await run.stop_when(**stop_when)
            await run.start_workers(loop, n_workers, on=on, args={"evals": evals})
            self._check_open()  # the service may have begun to stop meanwhile
        except BaseException:
            await run_to_completion(run.aclose())
            raise
        self._runs.add(run)
        self._supervisor.start(self._keep_run, run)

    async def _keep_run(self, run: Rush) -> None:
        """Keeps the manager of a run open until its workers have ended."""
        try:
            await run.join_workers(check=False)
        finally:
            self._runs.discard(run)
            await run.aclose()

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


# the state and the events of a run


async def read_status(run: Rush, output: str, *, maximize: bool = False) -> RunStatus:
    """Reads the state of a run. A run that does not exist has ended and has no workers.

    Args:
        run: a client of the run.
        output: the numeric output that ranks the tasks.
        maximize: whether the best task has the largest output, not the smallest.
    """
    info = await run.worker_info()
    names = info.filter(info["state"].is_in(["failed", "lost", "killed"]))["worker_id"].to_list()
    exits = await run.join_workers(names, check=False)
    workers: dict[str, int] = dict(info["state"].value_counts().sort("state").iter_rows())
    best = await _read_best(run, output, maximize)
    rules = await run.stop_rules()
    counts = await run.counts()  # read last, so that they include the best task; tells of a stop, too
    # Reading `run.stop_reason` would begin to follow the events of the run.
    reason = run._net.position.stop  # pyright: ignore[reportPrivateUsage]
    return RunStatus(
        id=run.network_id.rpartition(".")[2],
        state="running" if workers.get("starting") or workers.get("running") else "ended",
        workers=workers,
        failures=sorted({how.failure.message for how in exits if how.failure is not None}),
        counts={"queued": counts.queued, "running": counts.running, "finished": counts.finished, "failed": counts.failed},
        best=None if best is None else TaskView.model_validate(best),
        stopped=None if reason is None else StopReasonView.model_validate(reason),
        stop_when=StopRules.model_validate(rules) if rules else None,
    )


async def _read_best(run: Rush, output: str, maximize: bool) -> Task | None:
    frame = await run.fetch_finished_tasks()
    if output not in frame.columns or not frame.schema[output].is_numeric():
        return None
    column = frame[output].cast(float).fill_nan(None)
    at = column.arg_max() if maximize else column.arg_min()
    return None if at is None else (await run.get_tasks(frame["keys"][at]))[0]


async def read_reports(run: Rush, keys: list[str] | None, since: datetime | None, limit: int) -> list[ReportView]:
    """Reads reports on tasks, oldest first.

    Args:
        run: a client of the run.
        keys: the tasks; None for all.
        since: only reports later than this.
        limit: how many. The reports of one instant stay together, so that none is missed by the next `since`.
    """
    frame = await run.fetch_reports(keys)
    if since is not None:
        frame = frame.filter(frame["at"] > since.astimezone(UTC))
    if frame.height > limit:
        frame = frame.filter(frame["at"] <= frame["at"][limit - 1])
    reports: list[ReportView] = []
    for row in frame.iter_rows(named=True):
        values = {name: value for name, value in row.items() if name not in _REPORT and value is not None}
        reports.append(ReportView(key=row["keys"], values=values, **{name: row[name] for name in _REPORT[1:]}))
    return reports


async def events_until_end(run: Rush, events: EventStream[Event], living: set[str]) -> AsyncIterator[Event]:
    """Yields the events of a stream until the last worker of the run has ended.

    Args:
        run: a client of the run.
        events: the stream.
        living: the living workers, read when the stream was open.
    """
    while living:
        event = await anext(events)
        yield event
        match event:
            case WorkerStarted():
                living.add(event.worker_id)
            case WorkerStopped() | WorkerLost():
                living.discard(event.worker_id)
            case EventsMissed() | NetworkReset():
                living = await living_workers(run)
            case _:
                pass


async def living_workers(run: Rush) -> set[str]:
    """Reads which workers start or run."""
    info = await run.worker_info()
    return set(info.filter(info["state"].is_in(["starting", "running"]))["worker_id"])
