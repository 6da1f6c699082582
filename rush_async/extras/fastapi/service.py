"""What a program that serves others does with networks, whatever it speaks: runs, evaluations, and an end in good order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from dataclasses import dataclass
from types import FrameType
from typing import Any, Literal, Protocol, TypeAlias

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
from rush_async.launch.handle import Launcher
from rush_async.launch.pools import Submitter
from rush_async.manager.manager import Rush
from rush_async.model import Task, TaskState
from rush_async.supervisor import Supervisor, see_through
from rush_async.worker.worker import RushWorker

__all__ = ["Objective", "RunLoop", "RunState", "Service", "evaluate_queue", "follow", "state_of"]

logger = logging.getLogger(__name__)

_PAUSE = 1.0  # seconds after which an evaluator that was lost is replaced
_GRACE = 1.0  # seconds that streams have to tell of the end of drained runs
_SIGNALS = (signal.SIGTERM, signal.SIGINT)

Objective: TypeAlias = Callable[[dict[str, Any]], Awaitable[Any]]


class RunLoop(Protocol):
    """A worker loop with a budget."""

    def __call__(self, rush: RushWorker, /, *, evals: int) -> Awaitable[Any]: ...


async def evaluate_queue(rush: RushWorker, objective: Objective) -> None:
    """A loop that evaluates what is queued. An evaluation that raises fails its task and nothing else."""
    async for task in rush.tasks():
        try:
            async with task:
                task.ys = await objective(task.xs)
        except (RushConnectionError, WorkerLostError):
            raise
        except Exception as error:
            logger.info("task %s failed: %s: %s", task.key, type(error).__name__, error)


class Service:
    """The part of one process in a service.

    A *run* is a network of its own, `<network of the service>.<run id>`: every process that shares the database answers for it.
    Its workers live in the process that started it.

    Args:
        rush: the manager of the service's own network, open.
        drain: seconds that workers have to finish what they run when the service stops.
    """

    def __init__(self, rush: Rush, drain: float) -> None:
        self.rush = rush
        self._drain_time = drain
        self._supervisor = Supervisor(f"service {rush.network_id}")
        self._runs: dict[str, Rush] = {}  # those that were started here, by the ids of their networks
        self._evaluators: set[str] = set()
        self._streaming: set[Rush] = set()
        self._is_stopping = False
        self._drained = asyncio.Event()

    # opening and closing

    async def open(self, objective: Objective | None, n_evaluators: int) -> None:
        """Starts the evaluators of the service's own queue."""
        await self._supervisor.open()
        with contextlib.suppress(ServerFullError):
            await self.rush.worker_info()  # loads what the first request would have to wait for
        if objective is not None:
            for _ in range(n_evaluators):
                self._supervisor.start(self._keep_evaluator, objective)

    async def _keep_evaluator(self, objective: Objective) -> None:
        """One evaluator; another when it was lost, or has given up a server that was away for long."""
        while not self._is_stopping:
            with contextlib.suppress(RushError):
                (worker_id,) = await self.rush.start_workers(evaluate_queue, 1, args={"objective": objective})
                self._evaluators.add(worker_id)
                await self.rush.join_workers(worker_id, check=False)
                self._evaluators.discard(worker_id)
            if not self._is_stopping:
                await anyio.sleep(_PAUSE)

    @contextlib.contextmanager
    def told_by_signals(self) -> Generator[None]:
        """In this block SIGTERM and SIGINT stop the service before they are handled as they were.

        A server waits for open streams first and ends its lifespan then, so who streams has to hear of the signal itself.
        Outside of the main thread, where nobody can listen to signals, the block does nothing.
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
        """Begins to stop: nothing new is started, workers finish what they run, then streams end. May be called again."""
        if not self._is_stopping:
            self._is_stopping = True
            self._supervisor.start(self._drain)

    async def _drain(self) -> None:
        self._end_streams({rush for rush in self._streaming if rush.network_id not in self._runs})
        work = [rush.stop_workers(timeout=self._drain_time) for rush in self._runs.values()]
        work.append(self.rush.stop_workers(list(self._evaluators), timeout=self._drain_time))
        try:
            with anyio.move_on_after(self._drain_time + _GRACE):
                for error in await asyncio.gather(*work, return_exceptions=True):
                    if isinstance(error, Exception) and not isinstance(error, NetworkStateError):  # it has ended by itself
                        logger.warning("workers could not be drained: %s", error)
        finally:
            self._drained.set()
        await anyio.sleep(_GRACE)
        self._end_streams(self._streaming)

    def _end_streams(self, streams: set[Rush]) -> None:
        for rush in streams:
            self._supervisor.start(rush.aclose)  # whoever waits for its events gets a NetworkStateError

    async def aclose(self) -> None:
        """Stops, and waits until workers are drained."""
        try:
            self.stop()
            await self._drained.wait()
        finally:
            await self._supervisor.aclose()

    def _check_open(self) -> None:
        if self._is_stopping:
            raise NetworkStateError("this process is shutting down: ask again, another one will answer")

    # runs

    def client(self, run_id: str) -> Rush:
        """A client of a run, to be opened. It shares the connection of `rush`."""
        return Rush(f"{self.rush.network_id}.{run_id}", self.rush.config)

    @contextlib.contextmanager
    def streaming(self, run: Rush) -> Generator[None]:
        """A block that waits for events of this client, which is closed when the service stops."""
        self._check_open()
        self._streaming.add(run)
        try:
            yield
        finally:
            self._streaming.discard(run)

    async def start_run(self, loop: RunLoop, evals: int, n_workers: int, on: Launcher | Submitter | None) -> str:
        """Starts the workers of a new run; its id."""
        self._check_open()
        run_id = secrets.token_hex(8)
        run = await self.client(run_id)
        try:
            await run.start_workers(loop, n_workers, on=on, args={"evals": evals})
            self._check_open()  # it may have begun to stop meanwhile
        except BaseException:
            await see_through(run.aclose())
            raise
        self._runs[run.network_id] = run
        self._supervisor.start(self._see_off, run)
        return run_id

    async def _see_off(self, run: Rush) -> None:
        """Keeps a run's manager until its workers have ended."""
        try:
            await run.join_workers(check=False)
        finally:
            del self._runs[run.network_id]
            await run.aclose()

    # evaluations

    async def evaluate(
        self, rush: Rush, xs: Any, *, timeout: float, retries: int, left: Callable[[], Coroutine[Any, Any, None]]
    ) -> Task:
        """Queues one task and waits for its end. A task that nobody waits for any more is withdrawn.

        Args:
            rush: a client of the network in whose queue it goes.
            xs: the input.
            timeout: seconds to wait.
            retries: as in `push_tasks`.
            left: returns when the caller has gone away.

        Raises:
            TasksNotDoneError: no worker is there to evaluate it.
            RushTimeoutError: it did not end in time.
            NetworkStateError: the process stops, or the caller has gone.
        """
        self._check_open()
        (key,) = await rush.push_tasks([xs], retries=retries)
        answer = Supervisor.spawn(rush.wait_for_tasks(key))
        waits: list[asyncio.Task[Any]] = [answer, Supervisor.spawn(left()), Supervisor.spawn(self._wait_until_drained())]
        done: set[asyncio.Task[Any]] = set()
        ended: Task | None = None
        try:
            done, _ = await asyncio.wait(waits, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if answer in done:
                (ended,) = answer.result()
        finally:
            for wait in waits:
                wait.cancel()
            if ended is None:
                ended = await see_through(self._withdraw(rush, key))
            await asyncio.gather(*waits, return_exceptions=True)
        if ended is not None:
            return ended
        if not done:
            raise RushTimeoutError(f"task {key} did not end within {timeout:g} s and was withdrawn")
        self._check_open()
        raise NetworkStateError(f"the caller went away, task {key} was withdrawn")

    async def _withdraw(self, rush: Rush, key: str) -> Task | None:
        """Cancels a task; the task, where it has ended at the last moment."""
        return None if await rush.cancel_tasks(key) else (await rush.get_tasks(key))[0]

    async def _wait_until_drained(self) -> None:
        await self._drained.wait()


# looking at a run


@dataclass(frozen=True, slots=True)
class RunState:
    """Where a run stands.

    Attributes:
        id: the run.
        state: `running` while one of its workers starts or runs, else `ended`.
        workers: how many workers are in each state.
        failures: why workers failed, each reason once.
        counts: how many tasks are in each state.
        best: the finished task with the best output, or None.
    """

    id: str
    state: Literal["running", "ended"]
    workers: dict[str, int]
    failures: list[str]
    counts: dict[TaskState, int]
    best: Task | None


async def state_of(run: Rush, output: str, *, maximize: bool = False) -> RunState:
    """Where a run stands; one that nobody started has ended, without any worker.

    Args:
        run: a client of it.
        output: the numeric output by which tasks are compared.
        maximize: whether more of it is better.
    """
    info = await run.worker_info()
    names = info.filter(info["state"].is_in(["failed", "lost", "killed"]))["worker_id"].to_list()
    exits = await run.join_workers(names, check=False)
    workers: dict[str, int] = dict(info["state"].value_counts().sort("state").iter_rows())
    best = await _best(run, output, maximize)
    counts = await run.counts()  # the last, so that they include the best
    return RunState(
        id=run.network_id.rpartition(".")[2],
        state="running" if _living(workers) else "ended",
        workers=workers,
        failures=sorted({how.failure.message for how in exits if how.failure is not None}),
        counts={"queued": counts.queued, "running": counts.running, "finished": counts.finished, "failed": counts.failed},
        best=best,
    )


def _living(states: dict[str, int]) -> int:
    return states.get("starting", 0) + states.get("running", 0)


async def _best(run: Rush, output: str, maximize: bool) -> Task | None:
    frame = await run.fetch_finished_tasks()
    if output not in frame.columns or not frame.schema[output].is_numeric():
        return None
    column = frame[output].cast(float).fill_nan(None)
    at = column.arg_max() if maximize else column.arg_min()
    return None if at is None else (await run.get_tasks(frame["keys"][at]))[0]


async def follow(run: Rush, events: EventStream[Event]) -> AsyncIterator[Event]:
    """The events of a run up to the last worker's good-bye, of a stream that is open."""
    living = await _living_workers(run)
    while living:
        event = await anext(events)
        yield event
        match event:
            case WorkerStarted():
                living.add(event.worker_id)
            case WorkerStopped() | WorkerLost():
                living.discard(event.worker_id)
            case EventsMissed() | NetworkReset():
                living = await _living_workers(run)
            case _:
                pass


async def _living_workers(run: Rush) -> set[str]:
    info = await run.worker_info()
    return set(info.filter(info["state"].is_in(["starting", "running"]))["worker_id"])
