"""Chapter 4: workers that learn from each other, each with its own model."""

from __future__ import annotations

import asyncio
import re
import threading
from functools import partial
from typing import Any

import numpy as np
import polars as pl
import pytest

from benchmarks import optimizers
from examples import bayesian_optimization as program
from examples.bayesian_optimization import (
    LOWER,
    NAMES,
    SURROGATES,
    UPPER,
    fit_forest,
    fit_gp,
    impute,
    jackknife_error,
    make_design,
    minimise_bound,
    next_point,
    propose,
    start,
)
from rush_async import Coroutines, Counts, Processes, Rush, RushConfig, replay
from tests.test_examples import run

# pytest resets the warning filters for each test, and so also those of the program.
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def rng() -> np.random.Generator:
    return np.random.default_rng(1)


def archive(ys: list[float | None], seed: int = 1) -> pl.DataFrame:
    """A running (None) or finished task for each y, at random points."""
    points = np.random.default_rng(seed).uniform(LOWER, UPPER, (len(ys), 2))
    return pl.DataFrame({"x1": points[:, 0], "x2": points[:, 1], "y": ys}, schema_overrides=program.SCHEMA)


def is_inside(xs: dict[str, float]) -> bool:
    point = np.array([xs[name] for name in NAMES])
    return bool((point >= LOWER).all() and (point <= UPPER).all())


# the design


def test_a_design_has_one_point_in_each_slice_of_each_input() -> None:
    points = np.array([[xs[name] for name in NAMES] for xs in make_design(25, seed=3)])
    slices = np.floor((points - LOWER) / (UPPER - LOWER) * 25)
    for column in slices.T:
        assert sorted(column) == list(range(25))


def test_a_design_is_that_of_its_seed() -> None:
    assert make_design(25, seed=3) == make_design(25, seed=3)
    assert make_design(25, seed=3) != make_design(25, seed=4)


# the surrogate


def test_running_tasks_get_the_mean_output_of_the_finished_ones() -> None:
    x, y = impute(archive([None, 1.0, None, 5.0]))
    assert y.tolist() == [3.0, 1.0, 3.0, 5.0]
    assert x.shape == (4, 2)


def slow_error(predictions: list[list[float]], in_bag: list[list[bool]]) -> list[float]:
    """The bias-corrected jackknife after bootstrap, computed with loops as in the paper."""
    errors: list[float] = []
    n_trees, n_tasks = len(in_bag), len(in_bag[0])
    for trees in predictions:
        mean = sum(trees) / n_trees
        variance = 0.0
        for task in range(n_tasks):
            without = [trees[tree] for tree in range(n_trees) if not in_bag[tree][task]]
            variance += (sum(without) / len(without) - mean) ** 2 * (n_tasks - 1) / n_tasks
        bias = (np.e - 1) * n_tasks / n_trees**2 * sum((prediction - mean) ** 2 for prediction in trees)
        errors.append(max(variance - bias, 0) ** 0.5)
    return errors


def test_the_jackknife_is_the_papers_formula() -> None:
    in_bag = rng().random((40, 9)) < 0.632
    predictions = rng().normal(size=(6, 40)) + 3 * in_bag[:, 0]  # it matters whether a tree has drawn the first task
    errors = jackknife_error(predictions, in_bag)
    assert errors == pytest.approx(slow_error(predictions.tolist(), in_bag.tolist()))
    assert errors.min() > 0


def test_the_jackknife_knows_the_standard_error_of_a_mean() -> None:
    # If each tree predicts the mean of its draws, the forest is a bagged mean, whose standard error is known.
    y = rng().normal(size=50)
    drawn = rng().integers(50, size=(20_000, 50))
    in_bag = np.zeros((20_000, 50), dtype=bool)
    np.put_along_axis(in_bag, drawn, True, axis=1)
    (error,) = jackknife_error(y[drawn].mean(axis=1)[None, :], in_bag)
    assert error == pytest.approx(y.std(ddof=1) / 50**0.5, rel=0.1)


def test_the_jackknife_leaves_out_tasks_that_every_tree_has_drawn() -> None:
    in_bag = rng().random((40, 9)) < 0.632
    predictions = rng().normal(size=(6, 40)) + 3 * in_bag[:, 0]
    with_another = np.column_stack([in_bag, np.ones(40, dtype=bool)])
    assert jackknife_error(predictions, with_another) == pytest.approx(jackknife_error(predictions, in_bag))
    assert jackknife_error(predictions, np.ones((40, 1), dtype=bool)).tolist() == [0.0] * 6


def test_trees_that_agree_have_no_error() -> None:
    in_bag = rng().random((40, 9)) < 0.632
    assert jackknife_error(np.full((3, 40), 7.0), in_bag).tolist() == [0.0] * 3


def test_a_forest_is_sure_where_many_tasks_agree_and_unsure_where_few_differ() -> None:
    x = np.column_stack([np.linspace(-5, 10, 40), np.full(40, 5.0)])
    y = np.where(x[:, 0] < 2, 0.0, np.arange(40.0))
    mean, error = fit_forest(x, y, rng())(np.array([[-4.0, 5.0], [10.0, 5.0]]))
    assert mean[0] == pytest.approx(np.sum(y == 0) / 2 + 0.5)  # the rank that equal results share
    assert 35 < mean[1] < 40
    assert error[0] == pytest.approx(0)
    assert error[1] > 0.1


def test_a_forest_learns_the_order_of_results_not_how_far_they_are_apart() -> None:
    x, y = impute(archive([3.0, -1.0, 2.0, 9.0, 4.0, 6.0, 5.0]))
    points = rng().uniform(LOWER, UPPER, (20, 2))
    for plain, stretched in zip(fit_forest(x, y, rng())(points), fit_forest(x, np.exp(y), rng())(points), strict=True):
        assert plain.tolist() == stretched.tolist()


def test_a_gaussian_process_passes_through_what_is_known_and_is_unsure_elsewhere() -> None:
    x = rng().uniform(LOWER, (2.0, 7.0), (20, 2))
    y = x[:, 0] ** 2 + x[:, 1]
    mean, error = fit_gp(x, y, rng())(np.vstack([x, [UPPER]]))
    assert mean[:-1] == pytest.approx(y, abs=0.1)
    assert error[:-1].max() < error[-1]


# the next point


def valley(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest at (2, 7), less and less sure towards the upper corner."""
    return ((points - [2.0, 7.0]) ** 2).sum(axis=1), points.sum(axis=1)


def test_without_lambda_the_lowest_mean_is_proposed() -> None:
    assert minimise_bound(valley, 0, (0.1, 0.03, 0.01), rng()) == pytest.approx([2.0, 7.0], abs=0.05)


def test_a_large_lambda_goes_where_the_model_is_unsure_and_stays_in_the_domain() -> None:
    # mean - 2 error is lowest one further in both directions, and for 100 the corner of the domain is the limit.
    assert minimise_bound(valley, 2, (0.1, 0.03, 0.01), rng()) == pytest.approx([3.0, 8.0], abs=0.05)
    assert minimise_bound(valley, 100, (0.1, 0.03, 0.01), rng()) == pytest.approx(UPPER, abs=0.01)


def test_rounds_of_refinement_never_make_it_worse() -> None:
    coarse, fine = (valley(minimise_bound(valley, 0, widths, rng())[None, :])[0][0] for widths in ((), (0.1, 0.03, 0.01)))
    assert fine < coarse


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("ys", [[3.0], [3.0, None], [3.0] * 10, [0.0, None, 0.0]])
def test_few_and_equal_results_are_enough_to_propose(surrogate: str, ys: list[float | None]) -> None:
    assert is_inside(next_point(archive(ys), surrogate, 1.0, rng()))


def test_with_nothing_finished_a_random_point_is_proposed() -> None:
    assert is_inside(next_point(archive([]), "forest", 1.0, rng()))
    assert is_inside(next_point(archive([None, None]), "gp", 1.0, rng()))


# the workers


async def search(
    rush: Rush,
    *,
    seed: int = 1,
    evals: int = 30,
    n_workers: int = 2,
    surrogate: str = "gp",
    form: str = "proposals",
    on: Coroutines | Processes | None = None,
) -> pl.DataFrame:
    await start(rush, seed=seed, evals=evals, n_workers=n_workers, surrogate=surrogate, form=form, on=on)
    await rush.join_workers()
    return await rush.fetch_finished_tasks(schema={"lambda": pl.Float64})


async def test_the_design_comes_first_and_then_each_worker_has_a_lambda_that_decays(rush: Rush) -> None:
    tasks = await search(rush, evals=33)
    assert await rush.counts() == Counts(finished=33)
    design, proposed = tasks.filter(pl.col("lambda").is_null()), tasks.filter(pl.col("lambda").is_not_null())
    assert sorted(design["x1"]) == sorted(xs["x1"] for xs in make_design(25, seed=1))
    assert proposed.height == 8
    firsts: set[float] = set()
    for _, lambdas in proposed.group_by("worker_id"):
        values = lambdas["lambda"].sort(descending=True).to_list()
        assert values == pytest.approx([values[0] * np.exp(-0.1 * t) for t in range(len(values))])
        firsts.add(values[0])
    assert len(firsts) == proposed["worker_id"].n_unique()


async def test_one_worker_alone_is_repeatable(rush_server: RushConfig) -> None:
    found: list[list[float]] = []
    for seed in (1, 1, 2):
        async with Rush(config=rush_server, seed=seed) as rush:
            tasks = await search(rush, seed=seed, n_workers=1, surrogate="forest")
            await rush.reset()
        found.append(tasks["y"].to_list())
    assert found[0] == found[1]
    assert set(found[0]).isdisjoint(found[2])


@pytest.mark.chaos
@pytest.mark.parametrize("surrogate", SURROGATES)
async def test_four_processes_can_be_replayed_without_a_divergence(rush_server: RushConfig, surrogate: str) -> None:
    async with Rush(config=rush_server, seed=3) as rush:
        tasks = await search(rush, seed=3, evals=200, n_workers=4, surrogate=surrogate, on=Processes())
        assert tasks.height == 200
        proposed = tasks.filter(pl.col("lambda").is_not_null())
        assert proposed["worker_id"].n_unique() > 1
        again = await replay(rush, partial(propose, surrogate=surrogate), schema=program.SCHEMA)
        assert (again.n_compared, again.divergence) == (proposed.height, None)

        other = await replay(
            rush, partial(propose, surrogate="gp" if surrogate == "forest" else "forest"), schema=program.SCHEMA
        )
        assert other.divergence is not None  # it does compare
        await rush.reset()


async def test_the_tutorials_loop_drains_the_queue_and_then_proposes(rush: Rush) -> None:
    tasks = await search(rush, evals=35, n_workers=3, surrogate="forest", form="tutorial")
    assert 35 <= tasks.height <= 37
    assert {xs["x1"] for xs in make_design(25, seed=1)} <= set(tasks["x1"])
    assert all(is_inside(xs) for xs in tasks.select(NAMES).iter_rows(named=True))


@pytest.mark.parametrize("evals", [1, 7, 25])
async def test_a_budget_within_the_design_is_all_design(rush: Rush, evals: int) -> None:
    tasks = await search(rush, evals=evals)
    assert await rush.counts() == Counts(finished=evals)
    assert sorted(tasks["x1"]) == sorted(xs["x1"] for xs in make_design(evals, seed=1))


async def test_more_workers_than_tasks_finish_the_budget(rush: Rush) -> None:
    await search(rush, evals=3, n_workers=8)
    assert await rush.counts() == Counts(finished=3)


async def test_the_event_loop_runs_while_a_worker_computes_a_proposal(rush: Rush, monkeypatch: pytest.MonkeyPatch) -> None:
    is_proposing, may_return = threading.Event(), threading.Event()

    def slow_next_point(*_: Any) -> dict[str, float]:
        is_proposing.set()
        assert may_return.wait(timeout=30)
        return {"x1": 1.0, "x2": 2.0}

    monkeypatch.setattr(program, "next_point", slow_next_point)
    await start(rush, seed=1, evals=26, n_workers=1, surrogate="forest")
    await rush.wait_until(lambda counts: counts.finished == 25)
    assert await asyncio.to_thread(is_proposing.wait, 10)
    assert await rush.counts() == Counts(finished=25)  # a blocked event loop could not make this call
    may_return.set()
    await rush.join_workers()
    assert await rush.counts() == Counts(finished=26)


# the program


async def test_the_program_finishes_exactly_the_budget_and_prints_the_best_y() -> None:
    lines = (await run("examples/bayesian_optimization.py", "--evals", "40", "--workers", "3")).splitlines()
    best = re.fullmatch(r"best y: (\d+\.\d{4})", lines[-1])
    assert best is not None
    assert 0.3978 < float(best[1]) < 10
    assert re.fullmatch(r"40 evaluations, workers that took part: [1-3]", lines[-2])
    improvements = [float(y) for y in re.findall(r"finished  best y +([\d.]+) at", "\n".join(lines))]
    assert improvements == sorted(improvements, reverse=True)
    assert improvements[-1] == float(best[1])


@pytest.mark.chaos
async def test_the_program_runs_a_gaussian_process_in_processes_on_a_given_database(rush: Rush) -> None:
    assert rush.config.url is not None
    words = ("--surrogate", "gp", "--on", "processes", "--workers", "2", "--evals", "40", "--replay", "--url", rush.config.url)
    lines = (await run("examples/bayesian_optimization.py", *words)).splitlines()
    assert "15 proposals made once more, first divergence: None" in lines
    assert lines[-2].startswith("40 evaluations,")
    best = float(lines[-1].removeprefix("best y: "))
    assert best < 0.9  # the best of the design is 1.12


@pytest.mark.parametrize("method", optimizers.METHODS)
async def test_the_benchmark_runs_every_method_to_the_budget(rush: Rush, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    assert rush.config.url is not None
    monkeypatch.setenv("RUSH_URL", rush.config.url)
    assert optimizers.OPTIMUM <= await optimizers.best_of(method, seed=1, evals=27, n_workers=2) < 20


async def test_no_branin_is_below_the_optimum_of_the_benchmark() -> None:
    assert program.branin(np.pi, 2.275) == pytest.approx(optimizers.OPTIMUM, abs=1e-6)
