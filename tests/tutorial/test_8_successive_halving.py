"""Chapter 8: asynchronous successive halving, held to the definition of Li et al. (2020)."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import polars as pl
import pytest

from examples.successive_halving import CARS, ETA, RUNGS, Halving, Model, draw_configuration, successive_halving
from rush_async import Draw, Rush, RushConfig, RushWorker
from tests.test_examples import run


@pytest.fixture(scope="module")
def cars() -> pl.DataFrame:
    return pl.read_csv(CARS)


def definition(n: int, loss: Callable[[int, int], float]) -> list[tuple[int, int]]:
    """Algorithm 2 of Li et al. (2020) with one worker: the first n jobs, as (configuration, rung).

    A configuration has the number of its first job. `loss` gives its loss at a rung. Of equal losses that of the configuration
    that began first is the better one.
    """
    losses: list[dict[int, float]] = [{} for _ in RUNGS]
    promoted: list[set[int]] = [set() for _ in RUNGS]
    jobs: list[tuple[int, int]] = []

    def get_job() -> tuple[int, int]:
        for rung in reversed(range(len(RUNGS) - 1)):
            ordered = sorted(losses[rung], key=lambda each: (losses[rung][each], each))
            promotable = [each for each in ordered[: len(ordered) // ETA] if each not in promoted[rung]]
            if promotable:
                promoted[rung].add(promotable[0])
                return promotable[0], rung + 1
        return len(jobs), 0

    while len(jobs) < n:
        configuration, rung = get_job()
        losses[rung][configuration] = loss(configuration, rung)
        jobs.append((configuration, rung))
    return jobs


async def search(server: RushConfig, cars: pl.DataFrame, *, n_workers: int, evals: int, seed: int) -> pl.DataFrame:
    async with Rush(config=server, seed=seed) as rush:
        await rush.start_workers(successive_halving, n_workers, cars=cars, evals=evals, seed=seed)
        await rush.join_workers()
        tasks = await rush.fetch_finished_tasks(times=True)
        reports = await rush.fetch_reports()
        await rush.reset()
    assert tasks.height == evals
    for key, reached in reports.group_by("keys"):
        rung: int = tasks.filter(keys=key[0])["rung"].item()
        assert reached["round"].to_list() == [*range((0, *RUNGS)[rung] + 1, RUNGS[rung] + 1)]
    return tasks.with_columns(pl.col("configuration").cast(pl.Int64))


@pytest.mark.chaos
async def test_one_worker_does_the_jobs_of_the_sequential_definition(rush_server: RushConfig, cars: pl.DataFrame) -> None:
    seed = 1

    @cache
    def curve(configuration: int) -> list[float]:  # trained in one go, never saved and loaded
        params = draw_configuration(Draw(seed=seed, index=configuration, worker=0, round=0).random())
        model = Model(params, cars, seed)
        return [model.train(n) for n in range(RUNGS[-1])]

    def loss(configuration: int, rung: int) -> float:
        return curve(configuration)[RUNGS[rung] - 1]

    tasks = (await search(rush_server, cars, n_workers=1, evals=60, seed=seed)).sort("index")
    jobs = definition(60, loss)
    assert list(tasks.select("configuration", "rung").iter_rows()) == jobs
    assert tasks["rmse"].to_list() == [loss(*job) for job in jobs]
    assert {rung for _, rung in jobs} == set(range(len(RUNGS)))


@pytest.mark.chaos
async def test_many_workers_promote_each_configuration_once_and_only_from_the_best_third(
    rush_server: RushConfig, cars: pl.DataFrame
) -> None:
    tasks = await search(rush_server, cars, n_workers=6, evals=90, seed=3)
    assert tasks.select("configuration", "rung").is_duplicated().sum() == 0
    assert tasks["rung"].max() == len(RUNGS) - 1
    for promotion in tasks.filter(pl.col("rung") > 0).iter_rows(named=True):
        reached = tasks.filter(rung=promotion["rung"] - 1)
        before = reached.row(by_predicate=pl.col("configuration") == promotion["configuration"], named=True)
        # It was promoted after its last task had begun, and before this one was created.
        n_better = reached.filter(pl.col("ended_at") < before["started_at"], pl.col("rmse") < before["rmse"]).height
        n_at_most = reached.filter(pl.col("started_at") <= promotion["created_at"]).height
        assert n_better < n_at_most // ETA


async def test_equal_losses_are_promoted_in_the_order_of_their_beginning(rush: Rush, rush_worker: RushWorker) -> None:
    halving = Halving(rush_worker)
    for configuration in ("000004", "000001", "000003", "000000", "000002", "000005"):
        await rush.set_attrs({configuration: {"eta": 0.5}})
        await rush.ranking("rung 0").add(configuration, 3.0)
    proposals = [await halving.propose(Draw(seed=1, index=index, worker=0, round=index)) for index in (6, 7, 8)]
    assert proposals[:2] == [{"configuration": f"00000{n}", "rung": 1, "eta": 0.5} for n in (0, 1)]
    assert (proposals[2]["configuration"], proposals[2]["rung"]) == ("000008", 0)


async def test_two_workers_do_not_promote_the_same_configuration(rush: Rush, rush_worker: RushWorker) -> None:
    for n in range(3):
        await rush.set_attrs({f"{n:06}": {"eta": 0.5}})
        await rush.ranking("rung 0").add(f"{n:06}", float(n))
    first, second = Halving(rush_worker), Halving(rush_worker)
    draw = Draw(seed=1, index=3, worker=0, round=0)
    assert (await first.propose(draw))["rung"] == 1
    assert (await second.propose(Draw(seed=1, index=4, worker=1, round=0)))["rung"] == 0
    # The first worker died before its task began. The worker that gets its index makes the same promotion.
    assert (await Halving(rush_worker).propose(draw))["configuration"] == "000000"


def test_a_saved_model_continues_where_it_was(cars: pl.DataFrame) -> None:
    params = draw_configuration(random.Random(1))
    straight, begun = Model(params, cars, 1), Model(params, cars, 1)
    expected = [straight.train(n) for n in range(9)]
    found: list[Any] = [begun.train(n) for n in range(3)]
    resumed = Model(params, cars, 1, begun.save())
    assert found + [resumed.train(n) for n in range(3, 9)] == expected


@pytest.mark.chaos
async def test_the_program_runs_its_evaluations_and_shows_the_rungs() -> None:
    text = await run("examples/successive_halving.py", "--workers", "2", "--evals", "30", "--seed", "4")
    rungs = [(int(rung), int(n)) for rung, n in re.findall(r"^│ (\d) +┆ (\d+) ", text, flags=re.MULTILINE)]
    assert sum(n for _, n in rungs) == 30
    assert [rung for rung, _ in rungs] == [*range(len(rungs))]
    assert re.search(
        rf"^{rungs[0][1]} configurations in \d+ rounds; all rounds of all would be {27 * rungs[0][1]}\.$", text, re.M
    )
    assert re.search(r"^Its RMSE: \d\.\d{3} after 1", text, re.M)
