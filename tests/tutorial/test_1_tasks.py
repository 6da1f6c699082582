"""Chapter 1: a task, from a proposal to a result. Each test is one idea and builds on those before it."""

from __future__ import annotations

import pytest

from rush_async import Counts, Rush, RushWorker


async def test_1_all_clients_of_a_network_share_its_tasks(rush: Rush) -> None:
    # A manager pushes tasks. The input of each is a mapping from names to values. Each task gets a key.
    keys = await rush.push_tasks([{"x1": 1.0, "x2": 2.0}, {"x1": 3.0, "x2": 4.0}])
    assert len(keys) == 2

    # Every client with the same network id sees them, in this process or on another machine.
    async with Rush(rush.network_id, rush.config) as other:
        assert await other.counts() == Counts(queued=2, running=0, finished=0, failed=0)


async def test_2_a_worker_proposes_evaluates_and_reports(rush: Rush) -> None:
    async with RushWorker(rush.network_id, rush.config) as worker:
        # The block is the evaluation of the task. The task is running inside it, and finished with `ys` after it.
        async with worker.task({"x1": 1.0, "x2": 2.0}) as task:
            assert await rush.counts() == Counts(running=1)
            task.ys = {"y": task.xs["x1"] + task.xs["x2"]}

    assert await rush.counts() == Counts(finished=1)


async def test_3_an_exception_in_a_block_fails_its_task(rush: Rush, rush_worker: RushWorker) -> None:
    with pytest.raises(ZeroDivisionError):
        async with rush_worker.task({"x": 0}) as task:
            task.ys = {"y": 1 / task.xs["x"]}

    # With `catch` the search continues after these exceptions.
    async with rush_worker.task({"x": 0}, catch=ZeroDivisionError) as task:
        task.ys = {"y": 1 / task.xs["x"]}

    failed = await rush.fetch_failed_tasks()
    assert [why["message"] for why in failed["condition"]] == ["division by zero"] * 2

    # Failed tasks can be queued again.
    assert len(await rush.retry_tasks()) == 2
    assert await rush.counts() == Counts(queued=2)


async def test_4_workers_take_queued_tasks_in_order(rush: Rush, rush_worker: RushWorker) -> None:
    await rush.push_tasks([{"x": 1}, {"x": 2}, {"x": 3}])

    seen: list[int] = []
    async for task in rush_worker.tasks(timeout=0.1):  # ends when no task came for so long
        async with task:
            seen.append(task.xs["x"])
            task.ys = {"y": task.xs["x"] ** 2}

    assert seen == [1, 2, 3]
    tasks = await rush.fetch_finished_tasks()
    assert tasks["y"].to_list() == [1, 4, 9]
