"""Many workers stop as one, while their processes are killed and replaced: exactly as many tasks finish as the rule says.

`RUSH_CHAOS_RUNS=200 python -m pytest -m chaos tests/chaos/test_stopping.py` makes 200 runs instead of 5.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from rush_async import (
    Coroutines,
    Event,
    EventsMissed,
    NetworkResumed,
    NetworkStopped,
    Processes,
    Rush,
    RushWorker,
    StopReason,
    TasksFinished,
    TasksStarted,
)
from rush_async.testing import wait_until
from tests.chaos.servers import SmallServer, small_server
from tests.chaos.test_lost_workers import pids
from tests.launch.loops_of_tests import start_until_stopped

__all__ = ["small_server"]

N_RUNS = int(os.environ.get("RUSH_CHAOS_RUNS", "5"))
N_TASKS, N_MORE = 500, 20
N_WORKERS, N_PROCESSES, N_KILLS = 64, 4, 3
TIMEOUT = 60.0


@asynccontextmanager
async def recorded(rush: Rush) -> AsyncGenerator[list[Event]]:
    """What happens in the network while the block is open."""
    seen: list[Event] = []
    async with rush.events(buffer=1_000_000) as events:

        async def listen() -> None:
            async for event in events:
                seen.append(event)  # noqa: PERF401 - others read while it grows

        listening = asyncio.create_task(listen())
        yield seen
        listening.cancel()
        await asyncio.wait([listening])


def assert_no_start_while_stopped(events: Sequence[Event], stops: Sequence[StopReason]) -> None:
    """From each stop to the resumption, no task starts; and there are no other stops."""
    stopped_at: list[int] = []
    is_stopped = False
    for event in events:
        assert not isinstance(event, EventsMissed)
        if isinstance(event, NetworkStopped):
            assert not is_stopped
            is_stopped = True
            stopped_at.append(event.seq)
        elif isinstance(event, NetworkResumed):
            is_stopped = False
        elif isinstance(event, TasksStarted):
            assert not is_stopped, f"{event} came after the stop {stopped_at[-1]}"
    assert stopped_at == [stop.seq for stop in stops]


async def assert_no_record_starts_after(rush: Rush, stop: StopReason) -> None:
    tasks = await rush.fetch_tasks(times=True)
    assert tasks.filter(tasks["started_at"] > stop.at).height == 0
    assert set(tasks["state"]) <= {"queued", "finished", "failed"}


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(N_RUNS))
async def test_exactly_so_many_tasks_finish_while_processes_are_killed_and_replaced(rush: Rush, seed: int) -> None:
    chance, killed = random.Random(seed), set[int]()
    await rush.stop_when(finished=N_TASKS)
    await rush.push_tasks([{"x": -1}] * N_TASKS, retries=1)
    async with asyncio.timeout(TIMEOUT), recorded(rush) as events:
        await rush.start_workers(start_until_stopped, N_WORKERS, on=Processes(N_PROCESSES), finished=N_TASKS)
        # The last kill hits a network that is full, or nearly so.
        moments = [*sorted(chance.randrange(1, N_TASKS - 50) for _ in range(N_KILLS - 1)), N_TASKS - chance.randrange(1, 30)]
        for moment in moments:
            await rush.wait_until(lambda counts, moment=moment: counts.finished >= moment)
            if running := sorted(set((await pids(rush)).values()) - killed):
                victim = chance.choice(running)
                killed.add(victim)
                with suppress(ProcessLookupError):  # the network has stopped meanwhile, and its workers have left
                    os.kill(victim, signal.SIGKILL)
                n = N_WORKERS // N_PROCESSES
                await rush.start_workers(start_until_stopped, n, on=Processes(1), finished=N_TASKS)
        stop = await rush.wait_until_stopped()
        ends = await rush.join_workers(check=False)
        assert {end.state for end in ends} <= {"terminated", "lost"}
        counts = await rush.counts()
        assert (counts.running, counts.finished) == (0, N_TASKS)
        assert stop.rule == "finished"
        await assert_no_record_starts_after(rush, stop)

        await rush.resume(finished=N_TASKS + N_MORE)
        await rush.start_workers(start_until_stopped, 8, on=Coroutines(), finished=N_TASKS + N_MORE)
        again = await rush.wait_until_stopped()
        await rush.join_workers(check=False)
        counts = await rush.counts()
        assert (counts.running, counts.finished) == (0, N_TASKS + N_MORE)
        await assert_no_record_starts_after(rush, again)
        await wait_until(lambda: n_finished(events) == N_TASKS + N_MORE)
        assert_no_start_while_stopped(events, [stop, again])


@pytest.mark.parametrize(
    ("rules", "yss", "detail"),
    [
        ({"finished": 2}, [1, 1], "2 tasks have finished"),
        ({"failed": 1}, [1, None], "1 tasks have failed"),
        ({"target": {"y": 0.5}}, [float("nan"), 2**63, 0.5], "y = 0.5 has reached 0.5"),
        ({"target": {"y": 1e18}, "maximize": True}, [-1, 2**63], "y = 9.223372037e+18 has reached 1e+18"),
        ({"patience": ("y", 2)}, [3, 2.5, 2.5, 4], "y has not improved in 2 finished tasks; its best is 2.5"),
        ({"seconds": 0.3}, [], "0.3 seconds have passed"),
    ],
    ids=["finished", "failed", "target", "maximize", "patience", "seconds"],
)
async def test_rules_are_judged_alike_by_valkey_and_redis(
    small_server: SmallServer, rules: dict[str, Any], yss: list[float | None], detail: str
) -> None:
    async with Rush("both", small_server.config) as rush, RushWorker("both", small_server.config) as worker:
        await rush.stop_when(**rules)
        for y in yss:
            assert rush.stop_reason is None
            (key,) = await worker.push_running_tasks([{"x": 1}])
            await (worker.fail_tasks(key) if y is None else worker.finish_tasks(key, [{"y": y}]))
        if "seconds" in rules:
            await rush.wait_until_stopped()
        reason = await rush.stop("in vain")
        assert (reason.rule, reason.detail) == (next(iter(rules)), detail)
        assert await worker.push_running_tasks([{"x": 1}]) == []
        assert await rush.stop_when(**rules) == reason
        await rush.resume()
        await wait_until(lambda: not worker.terminated)
        assert len(await worker.push_running_tasks([{"x": 1}])) == 1
        await rush.reset()


def n_finished(events: Sequence[Event]) -> int:
    return sum(len(event.keys) for event in events if isinstance(event, TasksFinished))
