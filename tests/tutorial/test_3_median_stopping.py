"""Chapter 3: workers that compare intermediate results, and stop configurations that are not promising."""

from __future__ import annotations

import itertools
import random
import re
from typing import Any

import numpy as np
import polars as pl
import pytest
import xgboost

from examples.median_stopping import (
    CARS,
    HYPERPARAMETERS,
    N_FOLDS,
    ROUNDS,
    Model,
    compare,
    draw_configuration,
    make_folds,
    median_stopping,
    median_stopping_with_reports,
    propose,
    should_stop,
)
from rush_async import Counts, Draw, Processes, Rush, RushConfig, RushWorker
from tests.test_examples import run


@pytest.fixture(scope="module")
def cars() -> pl.DataFrame:
    return pl.read_csv(CARS)


def results(*rows: tuple[int, float]) -> pl.DataFrame:
    """Results as (iteration, rmse)."""
    return pl.DataFrame(rows, orient="row", schema={"iteration": pl.Int64, "rmse": pl.Float64})


# the rule


def test_a_result_worse_than_the_median_at_the_same_round_stops() -> None:
    others = ((5, 1.0), (5, 2.0), (5, 3.0))
    assert should_stop(results(*others, (5, 2.1)), 5, 2.1)
    assert not should_stop(results(*others, (5, 1.9)), 5, 1.9)


def test_a_result_equal_to_the_median_continues() -> None:
    assert not should_stop(results((5, 1.0), (5, 3.0), (5, 2.0)), 5, 2.0)


def test_the_first_result_at_a_round_continues_and_other_rounds_do_not_count() -> None:
    assert not should_stop(results((5, 1.0), (6, 1.0), (7, 9.0)), 7, 9.0)


# the model


def test_each_car_is_held_out_once_and_never_trained_on_in_its_fold(cars: pl.DataFrame) -> None:
    folds = make_folds(cars, seed=1)
    assert len(folds) == N_FOLDS
    held_out = np.concatenate([fold.test.get_label() for fold in folds])
    assert sorted(held_out) == sorted(cars["mpg"].cast(pl.Float32))
    for fold in folds:
        assert sorted([*fold.train.get_label(), *fold.test.get_label()]) == sorted(held_out)


def test_training_round_by_round_gives_the_same_model_as_training_at_once(cars: pl.DataFrame) -> None:
    folds = make_folds(cars, seed=1)
    configuration = draw_configuration(random.Random(1))
    kept = Model(configuration, folds)
    by_round = [kept.train_until(iteration) for iteration in ROUNDS]
    assert by_round == [Model(configuration, folds).train_until(iteration) for iteration in ROUNDS]
    assert len(set(by_round)) == len(ROUNDS)

    params = {"nthread": 1, **{name: configuration[name] for name in HYPERPARAMETERS}}
    errors: list[Any] = []
    for fold in folds:
        booster = xgboost.train(params, fold.train, num_boost_round=ROUNDS[-1])
        errors.append(booster.predict(fold.test) - fold.test.get_label())
    assert by_round[-1] == pytest.approx(np.sqrt(np.mean(np.concatenate(errors) ** 2)))


def test_configurations_are_in_their_ranges() -> None:
    for configuration in (propose(Draw(seed=1, index=index, worker=0, round=0)) for index in range(50)):
        assert 1 <= configuration["max_depth"] <= 20
        assert 0 <= configuration["lambda"] <= 1
        assert 0 <= configuration["alpha"] <= 1


# the loops


def expected_stops(rounds: pl.DataFrame) -> tuple[int, int]:
    """Holds one worker's results, in their order, to the rule. Returns how many configurations it stopped and finished."""
    n_stopped = n_complete = 0
    for at, (now, after) in enumerate(itertools.pairwise(rounds.to_dicts())):
        stops = should_stop(rounds[: at + 1], now["iteration"], now["rmse"])
        continues = not stops and now["iteration"] != ROUNDS[-1]
        assert after["iteration"] == (now["iteration"] + 1 if continues else ROUNDS[0])
        assert continues == all(after[name] == now[name] for name in HYPERPARAMETERS)
        n_stopped += stops
        n_complete += not stops and not continues
    return n_stopped, n_complete


async def test_the_tutorials_loop_stops_where_the_rule_says_and_nowhere_else(rush: Rush, cars: pl.DataFrame) -> None:
    async with RushWorker(rush.network_id, rush.config) as worker:
        await median_stopping(worker, cars, evals=150, seed=1)
    tasks = await rush.fetch_finished_tasks()
    assert 150 <= tasks.height < 150 + len(ROUNDS)
    n_stopped, n_complete = expected_stops(tasks)
    assert n_stopped > 5
    assert n_complete > 0


async def test_the_loop_with_reports_stops_where_the_rule_says_and_nowhere_else(rush: Rush, cars: pl.DataFrame) -> None:
    async with RushWorker(rush.network_id, rush.config) as worker:
        await median_stopping_with_reports(worker, cars, evals=30, seed=1)
    assert await rush.counts() == Counts(finished=30)
    tasks = await rush.fetch_finished_tasks()
    reports = await rush.fetch_reports()
    n_stopped, n_complete = expected_stops(reports.join(tasks.drop("rmse"), on="keys", maintain_order="left"))
    assert n_stopped > 5
    assert n_complete > 0
    # The output of a task is its last report.
    last = reports.group_by("keys", maintain_order=True).last()
    assert last["rmse"].to_list() == tasks["rmse"].to_list()
    assert last["iteration"].to_list() == tasks["rounds"].to_list()


@pytest.mark.chaos
async def test_with_a_seed_both_runs_of_the_comparison_train_the_same_configurations(
    rush_server: RushConfig, cars: pl.DataFrame
) -> None:
    found: list[pl.DataFrame] = []
    for stops, n_workers in ((True, 3), (False, 2)):
        async with Rush(config=rush_server, seed=5) as rush:
            args: dict[str, Any] = {"cars": cars, "evals": 12, "seed": 5, "stops": stops}
            await rush.start_workers(median_stopping_with_reports, n_workers, on=Processes(), args=args)
            await rush.join_workers()
            found.append((await rush.fetch_finished_tasks(times=True)).sort("index"))
            await rush.reset()
    stopped, full = found
    assert stopped.select("index", *HYPERPARAMETERS).equals(full.select("index", *HYPERPARAMETERS))
    assert full["rounds"].to_list() == [ROUNDS[-1]] * 12
    assert stopped["rounds"].sum() < full["rounds"].sum()


# what it prints


def test_the_comparison_counts_configurations_and_rounds(capsys: pytest.CaptureFixture[str]) -> None:
    def rounds(iterations: range) -> pl.DataFrame:
        return pl.DataFrame(
            [
                {"index": index, "iteration": iteration, "rmse": 65 - index - iteration / 100}
                for index in range(4)
                for iteration in iterations
            ]
        )

    # With stopping, four configurations took 32 rounds; without it, two take as many.
    compare(rounds(range(5, 13)), rounds(ROUNDS))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-3:] for line in lines[1:4]] == [
        ["4", "32", "61.880"],
        ["4", "64", "61.800"],
        ["2", "32", "63.800"],  # the first two alone
    ]
    assert lines[4] == "Stopping saved 50% of the rounds."


@pytest.mark.chaos
async def test_the_program_trains_exactly_the_configurations_and_compares() -> None:
    text = await run("examples/median_stopping.py", "--workers", "2", "--evals", "12")
    n = re.findall(r"Best of (\d+) results", text)[0]
    assert re.search(rf"stopped by the median +12 +{n} ", text)
    assert re.search(rf"the same, all rounds +12 +{12 * len(ROUNDS)} ", text)
    assert re.search(r"results: max_depth \d+, lambda [\d.e-]+, alpha [\d.e-]+, after \d+ rounds, RMSE \d", text)


async def test_the_program_runs_the_tutorials_loop() -> None:
    text = await run("examples/median_stopping.py", "--form", "tutorial", "--workers", "2", "--evals", "45")
    assert 45 <= int(re.findall(r"Best of (\d+) results", text)[0]) < 45 + 2 * len(ROUNDS)
