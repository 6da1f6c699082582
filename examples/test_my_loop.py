"""How to test a worker loop: on a real database that starts by itself, and without
fixed sleeps.

    python -m pip install pytest pytest-asyncio
    python -m pytest -p rush_async.testing examples/test_my_loop.py

In your own project, write `pytest_plugins = ["rush_async.testing"]` in the outermost
`conftest.py` instead of `-p`.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Awaitable, Callable

import pytest

from rush_async import Counts, Processes, Rush, RushConfig, RushWorker
from rush_async.testing import wait_until

pytestmark = pytest.mark.asyncio  # not needed with `asyncio_mode = "auto"`

Objective = Callable[[float], Awaitable[float]]


async def climb(
    rush: RushWorker, objective: Objective, evals: int, seed: int | None = None
) -> None:
    """The loop under test: tries points near the best one of all workers, until `evals`
    tasks are finished in all.

    It gives up when ten tasks have failed.
    """
    rng = random.Random(seed)
    while not rush.terminated:
        tasks = await rush.fetch_finished_tasks()
        centre = tasks.sort("y")["x"][0] if tasks.height else rng.uniform(-5, 5)
        xs, catch = {"x": centre + rng.gauss(0, 1)}, ArithmeticError
        async with rush.task(xs, budget=evals, max_failed=10, catch=catch) as task:
            if task is None:
                return
            task.ys = {"y": await objective(task.xs["x"])}


async def parabola(x: float) -> float:
    await asyncio.sleep(0)
    return (x - 2) ** 2


async def never(x: float) -> float:
    return await asyncio.get_running_loop().create_future()


async def broken(x: float) -> float:
    return x / 0


async def test_it_finds_the_minimum(rush: Rush, rush_worker: RushWorker) -> None:
    # The test calls the loop like any function, without starting a worker, so
    # breakpoints and `print` work.
    await climb(rush_worker, parabola, evals=100, seed=1)
    tasks = await rush.fetch_finished_tasks()
    assert min(tasks["y"]) < 0.01


async def test_workers_share_the_budget(rush: Rush) -> None:
    await rush.start_workers(climb, n_workers=4, objective=parabola, evals=50)
    await rush.join_workers(timeout=30)  # raises what a loop raised
    assert await rush.counts() == Counts(finished=50)


async def points_of(seed: int, server: RushConfig) -> list[float]:
    async with Rush(config=server) as rush:
        async with RushWorker(rush.network_id, rush.config) as worker:
            await climb(worker, parabola, evals=20, seed=seed)
        points = (await rush.fetch_finished_tasks())["x"].to_list()
        await rush.reset()
        return points


async def test_one_worker_with_a_seed_is_reproducible(rush_server: RushConfig) -> None:
    assert await points_of(1, rush_server) == await points_of(1, rush_server)
    assert await points_of(1, rush_server) != await points_of(2, rush_server)


async def test_it_starts_from_the_known_results(
    rush: Rush, rush_worker: RushWorker
) -> None:
    await rush.push_finished_tasks([{"x": 100.0}], [{"y": -1.0}])
    await climb(rush_worker, parabola, evals=2, seed=1)
    first, second = (await rush.fetch_finished_tasks())["x"]
    assert abs(second - first) < 5


async def test_it_gives_up_when_the_objective_always_fails(
    rush: Rush, rush_worker: RushWorker
) -> None:
    await climb(rush_worker, broken, evals=100)
    assert await rush.counts() == Counts(failed=10)
    failed = await rush.fetch_failed_tasks()
    assert {why["type"] for why in failed["condition"]} == {"ZeroDivisionError"}


async def test_it_ends_when_it_is_stopped(rush: Rush) -> None:
    best: list[float] = []

    async def watched(x: float) -> float:
        best.append(min([await parabola(x), *best[-1:]]))
        return await parabola(x)

    workers = await rush.start_workers(
        climb, n_workers=2, objective=watched, evals=1_000_000
    )
    # A condition on counts waits for events. `wait_until` polls any other condition.
    await rush.wait_until(lambda counts: counts.finished >= 10, timeout=10)
    await wait_until(lambda: best[-1] < 1, timeout=10)

    await rush.stop_workers(timeout=10)
    assert {how.state for how in await rush.join_workers(workers)} == {"terminated"}
    assert rush.n_running_tasks == rush.n_failed_tasks == 0


async def test_a_dead_worker_loses_one_task_and_no_result(rush: Rush) -> None:
    # The victim holds the last place of the budget and the others wait for it, so it
    # cannot die at a harmless moment.
    (victim,) = await rush.start_workers(
        climb, on=Processes(), objective=never, evals=20
    )
    await rush.wait_until(lambda counts: counts.running == 1, timeout=30)
    others = await rush.start_workers(climb, n_workers=2, objective=parabola, evals=20)
    await rush.wait_until(lambda counts: counts.finished == 19, timeout=30)

    workers = await rush.worker_info()
    os.kill(workers.filter(worker_id=victim)["pid"].item(), signal.SIGKILL)

    exits = await rush.join_workers(
        [victim, *others], timeout=30, check=False
    )  # it would raise because of the victim
    assert [how.state for how in exits] == ["lost", "terminated", "terminated"]
    assert await rush.counts() == Counts(finished=20, failed=1)
