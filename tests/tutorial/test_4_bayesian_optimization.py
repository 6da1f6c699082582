"""Chapter 4: every worker has a surrogate of its own, fitted to what all have found and are running."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import polars as pl
import pytest

from examples import bayesian_optimization as adbo
from rush_async import Rush, RushWorker
from tests.test_examples import run

# A kernel at a bound is as good as any; a worker says so for its process, which a test's own filters hide.
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def points_and_values(n: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    points = np.random.default_rng(seed).uniform(adbo.LOWER, adbo.UPPER, (n, 2))
    return points, np.array([adbo.branin(x1, x2) for x1, x2 in points])


# the pieces


def test_a_design_has_a_point_in_every_slice_of_both_axes() -> None:
    xss = adbo.design(25, seed=3)
    for name, low in (("x1", -5.0), ("x2", 0.0)):
        assert sorted(int((xs[name] - low) / 15 * 25) for xs in xss) == list(range(25))
    assert adbo.design(25, seed=3) == xss != adbo.design(25, seed=4)


def test_what_runs_gets_the_mean_of_what_is_finished() -> None:
    tasks = pl.DataFrame({"x1": [1.0, 2.0, 3.0], "x2": [4.0, 5.0, 6.0], "y": [None, 10.0, 30.0]})
    points, values = adbo.with_imputed(tasks)
    assert points.tolist() == [[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]]
    assert values.tolist() == [20.0, 10.0, 30.0]


def slow_error(trees: list[list[float]], in_bag: list[list[bool]]) -> list[float]:
    """The formula as it is printed, a sum at a time."""
    n_trees, n_points = len(trees), len(in_bag[0])
    errors: list[float] = []
    for at in range(len(trees[0])):
        mean = sum(tree[at] for tree in trees) / n_trees
        variance = 0.0
        for point in range(n_points):
            without = [tree[at] for tree, bag in zip(trees, in_bag, strict=True) if not bag[point]]
            if without:
                variance += (n_points - 1) / n_points * (sum(without) / len(without) - mean) ** 2
        variance -= (np.e - 1) * n_points / n_trees**2 * sum((tree[at] - mean) ** 2 for tree in trees)
        errors.append(max(variance, 0.0) ** 0.5)
    return errors


def test_the_error_is_the_jackknife_after_bootstrap() -> None:
    rng = np.random.default_rng(1)
    in_bag = rng.random((200, 12)) < 0.63
    # What a tree predicts depends on what it saw, and on chance.
    trees = in_bag @ rng.normal(size=(12, 7)) + rng.normal(size=(200, 7))
    found = adbo.jackknife_error(trees, in_bag)
    assert found.tolist() == pytest.approx(slow_error(trees.tolist(), in_bag.tolist()))
    assert found.min() > 0


def test_a_point_that_every_tree_saw_says_nothing_about_the_error() -> None:
    trees = np.array([[1.0], [2.0], [4.0], [5.0]] * 50)
    in_bag = np.array([[True, True], [False, True], [True, True], [False, True]] * 50)
    found = adbo.jackknife_error(trees, in_bag)
    assert found.tolist() == pytest.approx(slow_error(trees.tolist(), in_bag.tolist()))


@pytest.mark.parametrize("surrogate", adbo.SURROGATES)
def test_a_surrogate_knows_best_where_it_has_been(surrogate: str) -> None:
    points, values = points_and_values(60)
    mean, error = adbo.SURROGATES[surrogate](points, values, points, 1)
    assert np.corrcoef(mean, values)[0, 1] > 0.9
    elsewhere, _ = points_and_values(200, seed=5)
    _, unsure = adbo.SURROGATES[surrogate](points, values, elsewhere, 1)
    assert (error >= 0).all()
    assert unsure.mean() > 0


@pytest.mark.parametrize(("lambda_", "wanted"), [(0.0, 2.0), (1.0, 5.0)])
def test_the_lowest_bound_is_proposed(monkeypatch: pytest.MonkeyPatch, lambda_: float, wanted: float) -> None:
    """At 2 the mean is lowest; at 5 the mean is higher, but the error is larger by more."""
    candidates = np.array([[2.0, 2.0], [5.0, 5.0], [8.0, 8.0]])

    def given(*_: Any) -> np.ndarray:
        return candidates

    monkeypatch.setattr(adbo, "draw_candidates", given)
    tasks = pl.DataFrame({"x1": [0.0, 1.0], "x2": [0.0, 1.0], "y": [3.0, None]})

    def surrogate(*_: Any) -> tuple[np.ndarray, np.ndarray]:
        return np.array([1.0, 2.0, 3.0]), np.array([0.1, 1.5, 0.1])

    xs = adbo.propose(tasks, surrogate, lambda_, np.random.default_rng(1))
    assert xs == {"x1": wanted, "x2": wanted}


@pytest.mark.parametrize("surrogate", adbo.SURROGATES)
@pytest.mark.parametrize("values", [[], [None, None], [7.0], [7.0, 7.0, 7.0, None]])
def test_a_worker_can_propose_from_the_first_moment(surrogate: str, values: list[float | None]) -> None:
    n = len(values)
    tasks = pl.DataFrame(
        {"x1": [1.0] * n, "x2": [2.0] * n, "y": values}, schema={"x1": pl.Float64, "x2": pl.Float64, "y": pl.Float64}
    )
    xs = adbo.propose(tasks, adbo.SURROGATES[surrogate], 1.0, np.random.default_rng(1))
    assert -5 <= xs["x1"] <= 10
    assert 0 <= xs["x2"] <= 15


# the whole


@pytest.mark.parametrize(("evals", "n_workers"), [(1, 2), (10, 1), (25, 3), (30, 3)])
async def test_exactly_as_many_are_finished_the_design_first(rush: Rush, evals: int, n_workers: int) -> None:
    tasks = await adbo.minimize(rush, evals, n_workers, "forest", seed=2)
    assert tasks.height == evals
    assert await rush.counts() == (0, 0, evals, 0)
    wanted = adbo.design(min(25, evals), seed=2)
    assert tasks.select("x1", "x2").head(25).sort("x1").to_dicts() == sorted(wanted, key=lambda xs: xs["x1"])
    assert len(set(tasks.select("x1", "x2").iter_rows())) == evals


async def test_a_proposal_follows_from_the_tasks_of_all_workers(
    rush: Rush, rush_worker: RushWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What somebody else is running is among what a surrogate is fitted to."""
    await rush_worker.push_running_tasks([{"x1": 9.75, "x2": 14.75}])
    seen: list[pl.DataFrame] = []
    proposing = adbo.propose

    def watched(tasks: pl.DataFrame, *args: Any) -> dict[str, float]:
        seen.append(tasks)
        return proposing(tasks, *args)

    monkeypatch.setattr(adbo, "propose", watched)
    await rush_worker.push_finished_tasks([{"x1": 1.0, "x2": 1.0}], [{"y": 27.7}])
    worker_ids = await rush.start_workers(adbo.optimize, evals=4, surrogate="gp", seed=np.random.SeedSequence(1))
    await rush.wait_until(lambda counts: counts.finished >= 2)
    first = seen[0].filter(pl.col("state") == "running")
    assert first.select("x1", "x2", "y").rows() == [(9.75, 14.75, None)]
    await rush.stop_workers(worker_ids)


@pytest.mark.parametrize(("surrogate", "on"), [("forest", "coroutines"), ("gp", "processes")])
async def test_the_program_ends_with_the_best_value(surrogate: str, on: str) -> None:
    text = await run(
        "examples/bayesian_optimization.py", "--surrogate", surrogate, "--on", on, "--evals", "32", "--workers", "2"
    )
    *_, last = text.splitlines()
    assert re.fullmatch(r"best y: \d+\.\d{4}", last)
    assert "all 32 evaluations" in text
    assert len(re.findall("going on with lambda", text)) == (2 if on == "coroutines" else 0)  # a process has files of its own
    assert 0.3978 <= float(last.removeprefix("best y: ")) < 30
