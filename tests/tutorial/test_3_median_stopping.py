"""Chapter 3: workers that compare intermediate results, and stop configurations that are not promising."""

from __future__ import annotations

import itertools
import re
from datetime import UTC, datetime, timedelta
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
    configurations_of,
    draw_configurations,
    make_folds,
    median_stopping,
    should_stop,
    train_all_rounds,
)
from rush_async import Counts, Rush, RushWorker
from tests.test_examples import run


@pytest.fixture(scope="module")
def cars() -> pl.DataFrame:
    return pl.read_csv(CARS)


def finished(*results: tuple[str, int, float]) -> pl.DataFrame:
    """An archive of (configuration, iteration, rmse)."""
    return pl.DataFrame(results, orient="row", schema={"configuration": pl.String, "iteration": pl.Int64, "rmse": pl.Float64})


# the rule


def test_a_result_worse_than_the_median_of_the_others_at_the_same_round_stops() -> None:
    tasks = finished(("a", 5, 1.0), ("b", 5, 2.0), ("c", 5, 3.0), ("mine", 5, 2.1))
    assert should_stop(tasks, "mine", 5, 2.1)
    assert not should_stop(tasks, "mine", 5, 1.9)


def test_a_result_equal_to_the_median_continues() -> None:
    assert not should_stop(finished(("a", 5, 1.0), ("b", 5, 3.0), ("mine", 5, 2.0)), "mine", 5, 2.0)


def test_the_first_result_at_a_round_continues() -> None:
    tasks = finished(("a", 5, 1.0), ("a", 6, 1.0), ("mine", 5, 9.0), ("mine", 7, 9.0))
    assert not should_stop(tasks, "mine", 7, 9.0)


def test_its_own_result_and_other_rounds_do_not_count() -> None:
    # With its own 3.0 the median would be 3.0, with round 6 it would be 4.0, and it would continue.
    tasks = finished(("a", 5, 2.0), ("b", 5, 3.0), ("mine", 5, 3.0), ("a", 6, 4.0), ("b", 6, 4.0), ("c", 6, 4.0))
    assert should_stop(tasks, "mine", 5, 3.0)


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
    configuration = next(draw_configurations(seed=1, worker=0))
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


def test_workers_draw_configurations_of_their_own_that_can_be_repeated() -> None:
    drawn = [list(itertools.islice(draw_configurations(seed=3, worker=worker), 50)) for worker in (0, 1, 0)]
    assert drawn[0] == drawn[2]
    assert not {each["configuration"] for each in drawn[0]} & {each["configuration"] for each in drawn[1]}
    assert not {each["lambda"] for each in drawn[0]} & {each["lambda"] for each in drawn[1]}
    for each in drawn[0] + drawn[1]:
        assert 1 <= each["max_depth"] <= 20
        assert 0 <= each["lambda"] <= 1
        assert 0 <= each["alpha"] <= 1


# the loop


async def test_a_worker_stops_where_the_rule_says_and_nowhere_else(rush: Rush, cars: pl.DataFrame) -> None:
    async with RushWorker(rush.network_id, rush.config) as worker:
        await median_stopping(worker, cars, seed=1, worker=0, evals=150)
    assert await rush.counts() == Counts(finished=150)
    tasks = await rush.fetch_finished_tasks()
    n_stopped = n_complete = 0
    for at, (now, after) in enumerate(itertools.pairwise(tasks.to_dicts())):
        stops = should_stop(tasks[: at + 1], now["configuration"], now["iteration"], now["rmse"])
        if stops or now["iteration"] == ROUNDS[-1]:
            assert (after["iteration"], after["configuration"]) == (ROUNDS[0], next_id(now["configuration"]))
        else:
            assert (after["iteration"], after["configuration"]) == (now["iteration"] + 1, now["configuration"])
        n_stopped += stops
        n_complete += not stops and now["iteration"] == ROUNDS[-1]
    assert n_stopped > 5
    assert n_complete > 0


def next_id(configuration: str) -> str:
    worker, n = configuration.split("-")
    return f"{worker}-{int(n) + 1}"


async def test_the_budget_may_end_a_configuration_midway(rush: Rush, cars: pl.DataFrame) -> None:
    async with RushWorker(rush.network_id, rush.config) as worker:
        await median_stopping(worker, cars, seed=1, worker=0, evals=7)
    tasks = await rush.fetch_finished_tasks()
    assert tasks["iteration"].to_list() == [5, 6, 7, 8, 9, 10, 11]
    assert tasks["configuration"].unique().to_list() == ["0-1"]


async def test_without_stopping_every_configuration_is_trained_to_the_end(rush: Rush, cars: pl.DataFrame) -> None:
    configurations = list(itertools.islice(draw_configurations(seed=1, worker=0), 3))
    async with RushWorker(rush.network_id, rush.config) as worker:
        await train_all_rounds(worker, cars, 1, configurations)
    tasks = await rush.fetch_finished_tasks()
    assert configurations_of(await rush.fetch_finished_tasks(times=True)).to_dicts() == configurations
    assert tasks["iteration"].to_list() == [*ROUNDS] * 3


# what it prints


def test_the_comparison_counts_configurations_evaluations_and_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)

    def tasks(names: str, iterations: range, seconds: float) -> pl.DataFrame:
        return pl.DataFrame(
            [
                {"configuration": name, "max_depth": 1, "lambda": 0.5, "alpha": 0.5, "iteration": iteration}
                | {"rmse": ord(name) - iteration / 100, "started_at": start, "ended_at": start + timedelta(seconds=seconds)}
                for name in names
                for iteration in iterations
            ]
        )

    compare(tasks("CBAD", range(5, 13), 1), tasks("CBAD", ROUNDS, 2))  # 32 evaluations, which two configurations need
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-4:] for line in lines[1:4]] == [
        ["4", "32", "32.0", "64.880"],
        ["4", "64", "128.0", "64.800"],
        ["2", "32", "64.0", "65.800"],  # C and B alone
    ]
    assert lines[4] == "Stopping saved 50% of the evaluations and 75% of the time."


async def test_the_program_finishes_exactly_the_budget_and_compares() -> None:
    text = await run("examples/median_stopping.py", "--workers", "2", "--evals", "45")
    n = re.findall(r" 45 of 45 evaluations, +(\d+) configurations", text)[-1]  # the last progress may be printed twice
    assert re.search(rf"stopped by the median +{n} +45 ", text)
    assert re.search(rf"the same, all rounds +{n} +{int(n) * len(ROUNDS)} ", text)
    assert re.search(
        r"Best: configuration [01]-\d+ \(max_depth \d+, lambda [\d.e-]+, alpha [\d.e-]+\) after \d+ rounds, RMSE \d", text
    )
