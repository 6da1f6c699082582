"""The limits of a worker's life: each stops it between two tasks, as a request to stop does."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from rush_async import Rush, RushWorker, WorkerExit
from rush_async.worker.limits import Limiter, Limits
from rush_async.worker.loop import bind_loop
from rush_async.worker.worker import Runner
from tests.launch.loops_of_tests import serve

Loop = Callable[..., Awaitable[Any]]


def runner(rush: Rush, loop: Loop, limits: Limits, **arguments: Any) -> Runner:
    return Runner(rush.network_id, rush.config, ["owl"], bind_loop(loop, None, arguments), None, limits)


async def run(rush: Rush, loop: Loop, limits: Limits, **arguments: Any) -> None:
    """Runs one worker to its end, which is that of a worker that was asked to stop."""
    async with asyncio.timeout(20):
        assert await runner(rush, loop, limits, **arguments).run() == [WorkerExit("owl", "terminated")]


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Returns what was logged of limits."""
    caplog.set_level(logging.INFO, "rush_async.worker.limits")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "rush_async.worker.limits"]


# max_tasks


async def test_max_tasks_counts_the_tasks_that_the_worker_finished_or_failed(rush: Rush, told: Callable[[], list[str]]) -> None:
    async def loop(rush: RushWorker) -> None:
        (foreign,) = await rush.push_running_tasks([{"x": 1}])
        await rush.cancel_tasks([foreign])  # neither finished nor failed by the worker
        await rush.push_finished_tasks([{"x": 1}], [{"y": 1}])
        n = 0
        while not rush.terminated:
            n += 1
            keys = await rush.push_running_tasks([{"x": n}])
            if n % 2:
                await rush.fail_tasks(keys)
            else:
                await rush.finish_tasks(keys, [{"y": n}])

    await run(rush, loop, Limits(max_tasks=5))
    counts = await rush.counts()
    assert (counts.finished, counts.failed) == (1 + 2, 1 + 3)
    assert told() == ["worker owl has ended 5 tasks (max_tasks): it takes no new task"]


async def test_a_worker_with_max_tasks_leaves_the_queue_to_others_and_finishes_what_it_runs_beside(rush: Rush) -> None:
    await rush.push_tasks([{"x": x} for x in range(5)])
    await run(rush, serve, Limits(max_tasks=2))
    counts = await rush.counts()
    assert (counts.queued, counts.finished) == (3, 2)

    async def loop(rush: RushWorker) -> None:
        keys = await rush.push_running_tasks([{"x": 1}, {"x": 2}])
        await rush.finish_tasks(keys[0], [{"y": 1}])
        assert rush.terminated
        assert await rush.pop_task(timeout=None) is None
        await rush.finish_tasks(keys[1], [{"y": 2}])

    await rush.reset()
    await run(rush, loop, Limits(max_tasks=1))
    assert (await rush.counts()).finished == 2


async def test_a_task_whose_end_was_cancelled_counts_once(rush: Rush) -> None:
    async def loop(rush: RushWorker) -> None:
        keys = await rush.push_running_tasks([{"x": 1}, {"x": 2}, {"x": 3}])
        ending = asyncio.ensure_future(rush.finish_tasks(keys[:1], [{"y": 1}]))
        await asyncio.sleep(0)
        ending.cancel()
        assert await asyncio.gather(ending, return_exceptions=True) != [keys[:1]]
        assert await rush.fail_tasks(keys[0]) == []  # it has finished
        assert not rush.terminated
        await rush.fail_tasks(keys[1])
        assert rush.terminated

    await run(rush, loop, Limits(max_tasks=2))
    counts = await rush.counts()
    assert (counts.finished, counts.failed) == (1, 2)


# max_time


async def test_max_time_ends_a_wait(rush: Rush, told: Callable[[], list[str]]) -> None:
    begun = asyncio.get_running_loop().time()
    await run(rush, serve, Limits(max_time=0.1))
    assert asyncio.get_running_loop().time() - begun >= 0.1
    assert told() == ["worker owl has run for 0.1 s (max_time): it takes no new task"]


async def test_max_time_is_seen_by_a_loop_that_computes_and_the_task_finishes(
    rush: Rush, told: Callable[[], list[str]]
) -> None:
    async def loop(rush: RushWorker) -> None:
        async with rush.task({"x": 1}) as task:
            while not rush.terminated:
                time.sleep(0.001)  # noqa: ASYNC251 - computes, so no timer runs
            assert await asyncio.to_thread(lambda: rush.terminated)
            task.ys = {"y": 1}

    await run(rush, loop, Limits(max_time=0.05))
    assert (await rush.counts()).finished == 1
    assert told() == ["worker owl has run for 0.05 s (max_time): it takes no new task"]


async def test_max_time_ends_a_loop_that_never_awaits(rush: Rush, told: Callable[[], list[str]]) -> None:
    async def loop(rush: RushWorker) -> None:
        while not rush.terminated:
            time.sleep(0.001)  # noqa: ASYNC251 - the loop never awaits

    await run(rush, loop, Limits(max_time=0.02))
    assert told() == ["worker owl has run for 0.02 s (max_time): it takes no new task"]


async def test_a_worker_that_ends_or_is_stopped_before_leaves_no_timer_and_no_word(
    rush: Rush, told: Callable[[], list[str]]
) -> None:
    started = runner(rush, serve, Limits(max_time=0.2, max_tasks=1, idle_timeout=0.2))
    await rush.wait_for_workers(1)
    await rush.stop_workers("owl")
    await started.run()
    await asyncio.sleep(0.25)
    assert told() == []


# idle_timeout


async def test_idle_timeout_adds_up_the_waits_since_the_last_task(rush: Rush, told: Callable[[], list[str]]) -> None:
    async def loop(rush: RushWorker, waited: list[float]) -> None:
        event_loop = asyncio.get_running_loop()
        while not rush.terminated:
            begun = event_loop.time()
            assert await rush.pop_task(timeout=0.03) is None
            waited.append(event_loop.time() - begun)

    waited: list[float] = []
    await run(rush, loop, Limits(idle_timeout=0.1), waited=waited)
    assert len(waited) > 2
    assert sum(waited) >= 0.1
    assert sum(waited[:-1]) < 0.1
    assert told() == ["worker owl has waited 0.1 s without a task (idle_timeout): it takes no new task"]


async def test_a_worker_is_idle_neither_while_it_runs_a_task_nor_while_it_does_something_else(rush: Rush) -> None:
    async def loop(rush: RushWorker) -> None:
        await asyncio.sleep(0.1)  # fits a model
        (key,) = await rush.push_running_tasks([{"x": 1}])
        assert await rush.pop_task(timeout=0.1) is None  # waits for a second task while it runs the first
        assert not rush.terminated
        waiting = asyncio.ensure_future(rush.pop_task(timeout=None))
        await rush.finish_tasks(key, [{"y": 1}])
        assert await waiting is None  # from the end of the task on it is idle
        assert rush.terminated

    await run(rush, loop, Limits(idle_timeout=0.05))


async def test_a_worker_whose_task_is_cancelled_while_it_waits_is_idle(rush: Rush) -> None:
    async def loop(rush: RushWorker) -> None:
        keys = await rush.push_running_tasks([{"x": 1}])
        assert await rush.pop_task(timeout=0.01) is None  # from here on it hears of tasks, so the next wait is one
        waiting = asyncio.ensure_future(rush.pop_task(timeout=None))
        await asyncio.sleep(0)
        await rush.cancel_tasks(keys)
        assert await waiting is None

    await run(rush, loop, Limits(idle_timeout=0.05))


class Clock:
    """An event loop whose time the test moves on."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[asyncio.TimerHandle] = []

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Callable[[], object]) -> asyncio.TimerHandle:
        self.timers.append(asyncio.TimerHandle(self.now + delay, callback, (), asyncio.get_running_loop()))
        return self.timers[-1]

    @property
    def ends_at(self) -> list[float]:
        return [timer.when() for timer in self.timers if not timer.cancelled()]


@dataclass
class Idler:
    """A worker with a limit."""

    worker_id: str = "owl"
    holds_tasks: bool = False

    def request_stop(self) -> None: ...


async def test_a_task_starts_the_idle_time_anew() -> None:
    clock, worker = Clock(), Idler()
    limiter = Limiter(Limits(idle_timeout=10), worker)
    limiter._loop = clock  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
    wait: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    limiter.waits.add(wait)
    assert clock.ends_at == [10.0]
    clock.now = 6.0
    limiter.waits.discard(wait)
    assert clock.ends_at == []
    limiter.waits.add(wait)  # the next wait, without a task before it
    assert clock.ends_at == [10.0]
    limiter.waits.discard(wait)
    for worker.holds_tasks in (True, False):  # it takes a task, and ends it
        limiter.note_change()
    limiter.waits.add(wait)
    assert clock.ends_at == [16.0]
    limiter.waits.discard(wait)


async def test_waiting_for_a_place_within_a_budget_is_idle(rush: Rush, rush_worker: RushWorker) -> None:
    async def loop(rush: RushWorker) -> None:
        async with rush.task({"x": 2}, budget=1) as task:
            assert task is None

    (key,) = await rush_worker.push_running_tasks([{"x": 1}])
    await run(rush, loop, Limits(idle_timeout=0.05))
    await rush_worker.finish_tasks(key, [{"y": 1}])


# what is no limit


@pytest.mark.parametrize("seconds", [0, -1, math.nan, math.inf, 1e300])
def test_a_time_that_is_no_limit_is_refused(seconds: float) -> None:
    for name in ("max_time", "idle_timeout"):
        with pytest.raises(ValueError, match=f"{name} must be (more than 0 seconds and )?finite, not"):
            Limits(**{name: seconds})  # pyright: ignore[reportArgumentType]


def test_what_is_no_number_is_refused() -> None:
    no_numbers: list[Any] = ["60", True]
    for value in no_numbers:
        with pytest.raises(TypeError, match="idle_timeout must be a number, not"):
            Limits(idle_timeout=value)
    with pytest.raises(TypeError, match="max_tasks must be a whole number, not float"):
        Limits(max_tasks=1.5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="max_tasks must be at least 1, not 0: leave it out"):
        Limits(max_tasks=0)
