"""Chapter 2: many workers that search together, without a central controller."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from examples import random_search as program
from rush_async import Coroutines, Counts, Draw, Launcher, Processes, Rush, RushConfig, RushWorker, TasksFinished


def branin(x1: float, x2: float) -> float:
    """A function with three valleys; its minimum is 0.3979."""
    a = x2 - 5.1 / (4 * math.pi**2) * x1**2 + 5 / math.pi * x1 - 6
    return a**2 + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x1) + 10


async def random_search(rush: RushWorker, n: int) -> None:
    """The loop of each worker: proposes and evaluates until n tasks are finished in all."""
    while True:
        xs = {"x1": random.uniform(-5, 10), "x2": random.uniform(0, 15)}
        async with rush.task(xs, budget=n) as task:
            if task is None:
                return
            task.ys = {"y": branin(**task.xs)}


async def test_5_workers_share_a_budget_and_the_manager_waits_for_them(rush: Rush) -> None:
    await rush.start_workers(random_search, n_workers=4, n=100)
    await rush.join_workers()
    # Exactly 100, however many workers pushed at once.
    assert await rush.counts() == Counts(finished=100)


async def test_6_a_loop_is_debugged_by_calling_it(rush: Rush) -> None:
    async with RushWorker(rush.network_id, rush.config) as worker:
        await random_search(worker, n=10)
    assert rush.n_finished_tasks == 10  # updated in the background, free to read


async def test_7_results_are_a_frame_with_one_row_for_each_task(rush: Rush) -> None:
    await rush.start_workers(random_search, n_workers=2, n=50)
    await rush.join_workers()
    tasks = await rush.fetch_finished_tasks()
    assert tasks.columns == ["worker_id", "x1", "x2", "y", "keys"]
    best = tasks.sort("y").row(0, named=True)
    assert best["y"] == branin(best["x1"], best["x2"])


async def test_8_workers_learn_from_what_the_others_finished(rush: Rush) -> None:
    async def climb(rush: RushWorker, n: int) -> None:
        while True:
            # Only new tasks are transferred. The client caches the others.
            tasks = await rush.fetch_finished_tasks()
            centre = tasks.sort("y").row(0, named=True) if tasks.height else {"x": 5.0}
            async with rush.task({"x": centre["x"] + random.gauss(0, 1)}, budget=n) as task:
                if task is None:
                    return
                task.ys = {"y": task.xs["x"] ** 2}

    await rush.start_workers(climb, n_workers=3, n=200)
    await rush.join_workers()
    assert (await rush.fetch_finished_tasks())["y"].min() < 1  # pyright: ignore[reportOperatorIssue]


async def test_9_the_manager_sees_results_as_they_come(rush: Rush) -> None:
    async with rush.events(TasksFinished, results=True) as events:
        await rush.start_workers(random_search, n_workers=2, n=20)
        seen: list[float] = []
        async for event in events:
            if isinstance(event, TasksFinished):  # or `EventsMissed`, if this loop was too slow
                seen += [task.ys["y"] for task in event.tasks or ()]
            if len(seen) == 20:
                break
    assert seen == (await rush.fetch_finished_tasks())["y"].to_list()


async def test_10_a_reset_leaves_nothing_in_the_database(rush: Rush, raw: Any) -> None:
    await rush.start_workers(random_search, n_workers=2, n=10)
    await rush.wait_until(lambda counts: counts.finished == 10, timeout=10)
    await rush.reset()  # stops running workers, and deletes all tasks
    assert raw.keys("*") == []


# the program of this chapter, in its two forms


async def test_the_tutorials_loop_ends_at_its_budget_and_may_exceed_it_with_several_workers(rush: Rush) -> None:
    await rush.start_workers(program.random_search, n_workers=4, evals=100, seed=1)
    await rush.join_workers()
    counts = await rush.counts()
    assert 100 <= counts.finished <= 103
    tasks = await rush.fetch_finished_tasks()
    assert tasks["x1"].is_between(-5, 10).all()
    assert tasks["x2"].is_between(0, 15).all()
    assert tasks["x1"].n_unique() == tasks.height  # each worker draws numbers of its own
    assert tasks["y"].to_list() == [program.branin(x1, x2) for x1, x2 in tasks.select("x1", "x2").iter_rows()]


@pytest.mark.parametrize(("n_workers", "on"), [(1, Coroutines()), (4, Coroutines()), (2, Processes())])
async def test_with_a_seed_the_proposals_are_the_same_with_any_workers(
    rush_server: RushConfig, n_workers: int, on: Launcher
) -> None:
    async with Rush(config=rush_server, seed=3) as rush:
        await rush.start_workers(program.random_search_with_proposals, n_workers, on=on, evals=50)
        await rush.join_workers()
        tasks = await rush.fetch_finished_tasks(times=True)
        await rush.reset()
    assert sorted(tasks["index"]) == [*range(50)]
    for index, x1, x2, y in tasks.select("index", "x1", "x2", "y").iter_rows():
        assert {"x1": x1, "x2": x2} == program.propose(Draw(seed=3, index=index, worker=0, round=0))
        assert y == program.branin(x1, x2)
