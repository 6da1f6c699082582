"""Processes that die while they work: every task ends exactly once and nothing is left behind, without any further call."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from typing import Any

import pytest

from rush_async import Counts, Processes, Rush, WorkerLost
from tests.launch.loops_of_tests import hold_three, serve

N_TASKS = 500
ROUNDS = 10


async def pids(rush: Rush) -> dict[str, int]:
    """Returns the process ids of the running workers by worker id."""
    info = await rush.worker_info()
    info = info.filter(info["state"] == "running")
    return dict(zip(info["worker_id"], info["pid"], strict=True))


@pytest.mark.chaos
@pytest.mark.parametrize("retries", [0, 3])
async def test_every_task_ends_once_while_processes_are_killed_and_replaced(rush: Rush, retries: int) -> None:
    chance = random.Random(retries)
    worker_ids = await rush.start_workers(serve, 4, on=Processes())
    await rush.wait_for_workers(4, timeout=60)
    seen: set[str] = set()
    n_failed = 0
    for _ in range(ROUNDS):
        keys = await rush.push_tasks([{"x": x} for x in range(N_TASKS)], retries=retries)
        moment = len(seen) + chance.randrange(N_TASKS)
        await rush.wait_until(lambda counts, moment=moment: counts.finished + counts.failed >= moment, timeout=60)
        running = await pids(rush)
        victim = chance.choice(sorted(running))
        worker_ids.remove(victim)
        os.kill(running[victim], signal.SIGKILL)
        worker_ids += await rush.start_workers(serve, 1, on=Processes())
        counts = await rush.wait_until(lambda counts: counts.queued == counts.running == 0, timeout=60)
        assert counts.total == len(seen) + N_TASKS
        finished = (await rush.fetch_finished_tasks())["keys"].to_list()
        failed = (await rush.fetch_failed_tasks())["keys"].to_list()
        assert len(finished) == len(set(finished)), "a task finished twice"
        assert not set(finished) & set(failed)
        assert set(finished) | set(failed) == seen | set(keys)
        # A killed worker ran at most one task.
        assert len(failed) - n_failed <= (0 if retries else 1)
        n_failed = len(failed)
        seen |= set(keys)
        (how,) = await rush.join_workers(victim, timeout=60, check=False)
        assert how.state == "lost"
    await rush.wait_for_workers(worker_ids=worker_ids, timeout=60)
    condition = (await rush.fetch_failed_tasks())["condition"].struct.field("kind").to_list()
    assert set(condition) <= {"lost"}


async def test_killing_one_of_four_processes_fails_only_the_tasks_that_it_ran(rush: Rush, raw: Any) -> None:
    worker_ids = await rush.start_workers(hold_three, 4, on=Processes())
    await rush.wait_until(lambda counts: counts.running == 12, timeout=60)
    os.kill((await pids(rush))[worker_ids[2]], signal.SIGKILL)
    await rush.wait_until(lambda counts: counts.failed > 0, timeout=60)
    assert await rush.counts() == Counts(running=9, failed=3)
    failed = await rush.fetch_failed_tasks()
    assert failed["worker_id"].to_list() == [worker_ids[2]] * 3
    message = "Worker has crashed or was killed: the process was ended by SIGKILL"
    assert failed["condition"].struct.field("message").to_list() == [message] * 3
    survivors = [worker_id for worker_id in worker_ids if worker_id != worker_ids[2]]
    assert sorted((await rush.fetch_running_tasks())["worker_id"].unique()) == sorted(survivors)
    # The survivors' results count.
    await rush.stop_workers(survivors)
    assert await rush.counts() == Counts(finished=9, failed=3)
    ends = await rush.join_workers(timeout=60, check=False)
    assert [how.state for how in ends] == ["terminated", "terminated", "lost", "terminated"]


async def test_the_tasks_of_all_workers_of_a_dead_process_fail_in_one_sweep(rush: Rush, raw: Any) -> None:
    """The number of scans of the running tasks does not grow with the number of workers."""
    await rush.start_workers(hold_three, 300, on=Processes(1))
    await rush.wait_until(lambda counts: counts.running == 900, timeout=60)
    (pid,) = set((await pids(rush)).values())
    before = raw.info("commandstats").get("cmdstat_hscan", {"calls": 0})["calls"]
    async with rush.events(WorkerLost) as events:
        os.kill(pid, signal.SIGKILL)
        await rush.wait_until(lambda counts: counts.running == 0, timeout=60)
        assert await rush.counts() == Counts(failed=900)
        lost: set[str] = set()
        async with asyncio.timeout(30):
            while len(lost) < 300:
                event = await anext(aiter(events))
                assert isinstance(event, WorkerLost)
                lost.add(event.worker_id)
    assert raw.info("commandstats")["cmdstat_hscan"]["calls"] - before <= 10
