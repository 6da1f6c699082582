"""Chapter 2: many workers that search together, without a central controller."""

from __future__ import annotations

import math
import random
from typing import Any

from rush_async import Counts, Rush, RushWorker, TasksFinished


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
