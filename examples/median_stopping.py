"""Early stopping by the median rule: the tutorial's second optimiser.

XGBoost predicts the fuel consumption of 32 cars from ten other columns. Each worker draws configurations and trains them round
by round. It stops a configuration as soon as it is worse than the median of the others at the same round:

    python examples/median_stopping.py
    python examples/median_stopping.py --workers 2 --evals 200 --seed 7 --no-comparison

Afterwards it trains the same configurations through all rounds, to show what stopping saved and what it cost.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import xgboost

from rush_async import Processes, Rush, RushWorker

CARS = Path(__file__).parent / "data" / "mtcars.csv"
ROUNDS = range(5, 21)  # the first task of a configuration trains five rounds at once, each further one a single round
N_FOLDS = 5
HYPERPARAMETERS = ("max_depth", "lambda", "alpha")


def draw_configurations(seed: int, worker: int) -> Iterator[dict[str, Any]]:
    """Yields random configurations for one worker without end. Each has a unique id."""
    rng = random.Random(f"{seed}/{worker}")
    for n in itertools.count(1):
        yield {
            "configuration": f"{worker}-{n}",
            "max_depth": rng.randint(1, 20),
            "lambda": rng.uniform(0, 1),
            "alpha": rng.uniform(0, 1),
        }


@dataclass(frozen=True)
class Fold:
    """One fold of a cross-validation: the cars to train on, and the cars to test on."""

    train: xgboost.DMatrix
    test: xgboost.DMatrix


def make_folds(cars: pl.DataFrame, seed: int) -> list[Fold]:
    """Splits the cars into folds for cross-validation. The seed determines the folds."""
    x, y = cars.drop("name", "mpg").to_numpy(), cars["mpg"].to_numpy()
    order = np.random.default_rng(seed).permutation(len(y))
    folds: list[Fold] = []
    for test in np.array_split(order, N_FOLDS):
        train = np.setdiff1d(order, test)
        folds.append(Fold(xgboost.DMatrix(x[train], y[train]), xgboost.DMatrix(x[test], y[test])))
    return folds


class Model:
    """A configuration in training, with one booster for each fold, which is kept from round to round."""

    def __init__(self, configuration: dict[str, Any], folds: Sequence[Fold]) -> None:
        # One thread for each model, because the number of workers determines the load of the machine.
        params = {"nthread": 1, **{name: configuration[name] for name in HYPERPARAMETERS}}
        self._folds = folds
        self._boosters = [xgboost.Booster(params, [fold.train, fold.test]) for fold in folds]

    def train_until(self, iteration: int) -> float:
        """Trains the missing rounds. Returns the RMSE over all cars, each predicted by the booster that has not seen it."""
        errors = [self._errors(booster, fold, iteration) for booster, fold in zip(self._boosters, self._folds, strict=True)]
        return float(np.sqrt(np.mean(np.concatenate(errors) ** 2)))

    def _errors(self, booster: xgboost.Booster, fold: Fold, iteration: int) -> np.ndarray:
        for n in range(booster.num_boosted_rounds(), iteration):
            booster.update(fold.train, n)
        return booster.predict(fold.test) - fold.test.get_label()


def should_stop(tasks: pl.DataFrame, configuration: str, iteration: int, rmse: float) -> bool:
    """The median rule: is it worse than the median of the other configurations at the same round?

    The first configuration at a round has no other to compare with and continues. See Golovin et al. (2017), Google Vizier: a
    service for black-box optimization, KDD. Their rule compares the best value so far with running averages; this one compares
    the values of one round.
    """
    others = tasks.filter(pl.col("iteration") == iteration, pl.col("configuration") != configuration)["rmse"].to_list()
    return bool(others) and rmse > statistics.median(others)


async def median_stopping(rush: RushWorker, cars: pl.DataFrame, seed: int, worker: int, evals: int) -> None:
    """The worker loop: trains one configuration after the other, until `evals` tasks are finished in all."""
    folds = make_folds(cars, seed)
    for configuration in draw_configurations(seed, worker):
        model = Model(configuration, folds)
        for iteration in ROUNDS:
            async with rush.task({**configuration, "iteration": iteration}, budget=evals) as task:
                if task is None:  # the budget is spent, perhaps midway through a configuration
                    return
                rmse = model.train_until(iteration)
                task.ys = {"rmse": rmse}
            if should_stop(await rush.fetch_finished_tasks(), configuration["configuration"], iteration, rmse):
                break


async def train_all_rounds(rush: RushWorker, cars: pl.DataFrame, seed: int, configurations: list[dict[str, Any]]) -> None:
    """The worker loop to compare with: trains these configurations through all rounds."""
    folds = make_folds(cars, seed)
    for configuration in configurations:
        model = Model(configuration, folds)
        for iteration in ROUNDS:
            if rush.terminated:
                return
            async with rush.task({**configuration, "iteration": iteration}) as task:
                task.ys = {"rmse": model.train_until(iteration)}


async def run_with_stopping(options: argparse.Namespace, cars: pl.DataFrame) -> pl.DataFrame:
    """Finishes exactly `--evals` tasks and returns them with their times."""
    async with Rush(config=options.url) as rush:
        for worker in range(options.workers):
            await rush.start_workers(
                median_stopping, on=Processes(), cars=cars, seed=options.seed, worker=worker, evals=options.evals
            )
        return await wait_and_report(rush, options.evals)


async def run_all_rounds(options: argparse.Namespace, cars: pl.DataFrame, configurations: pl.DataFrame) -> pl.DataFrame:
    """Trains these configurations through all rounds, on as many workers. Returns all tasks with their times."""
    async with Rush(config=options.url) as rush:
        for worker in range(options.workers):
            share = configurations[worker :: options.workers].to_dicts()
            await rush.start_workers(train_all_rounds, on=Processes(), cars=cars, seed=options.seed, configurations=share)
        return await wait_and_report(rush, len(configurations) * len(ROUNDS))


async def wait_and_report(rush: Rush, n: int) -> pl.DataFrame:
    """Prints the progress until n tasks are finished, then returns the tasks and clears the database."""
    async with asyncio.TaskGroup() as group:
        group.create_task(report_progress(rush, n))
        await rush.join_workers()  # raises what a worker raised, and so ends the report too
    tasks = await rush.fetch_finished_tasks(times=True)
    await rush.reset()
    return tasks


async def report_progress(rush: Rush, n: int) -> None:
    """Prints a line for each tenth of the tasks."""
    for due in sorted({max(n * tenth // 10, 1) for tenth in range(1, 11)}):
        await rush.wait_until(lambda counts, due=due: counts.finished >= due)
        tasks = await rush.fetch_finished_tasks()
        print(
            f"  {tasks.height:>6,} of {n:,} evaluations, {tasks['configuration'].n_unique():>4,} configurations, "
            f"best RMSE {tasks['rmse'].min():.3f}"
        )


def configurations_of(tasks: pl.DataFrame) -> pl.DataFrame:
    """The configurations of these tasks, in the order of their start."""
    return tasks.sort("started_at").select("configuration", *HYPERPARAMETERS).unique(maintain_order=True)


def describe(name: str, tasks: pl.DataFrame) -> str:
    """A line of the comparison."""
    n = tasks["configuration"].n_unique()
    return f"{name:<33}{n:>14,}{tasks.height:>13,}{seconds_in(tasks):>9.1f}{tasks['rmse'].min():>11.3f}"


def seconds_in(tasks: pl.DataFrame) -> float:
    """The sum of the durations of these tasks. Unlike wall-clock time it excludes the start of processes."""
    return tasks.select((pl.col("ended_at") - pl.col("started_at")).sum()).item().total_seconds()


def compare(stopped: pl.DataFrame, full: pl.DataFrame) -> None:
    """Prints what stopping saved: the same configurations with and without it, and as many evaluations without it."""
    affordable = configurations_of(stopped).head(max(stopped.height // len(ROUNDS), 1))
    same_cost = full.join(affordable, on="configuration", how="semi")
    print(f"{'':<33}{'configurations':>14}{'evaluations':>13}{'seconds':>9}{'best RMSE':>11}")
    print(describe("stopped by the median", stopped))
    print(describe("the same, all rounds", full))
    print(describe("as many evaluations, all rounds", same_cost))
    evaluations, seconds = 1 - stopped.height / full.height, 1 - seconds_in(stopped) / seconds_in(full)
    print(f"Stopping saved {evaluations:.0%} of the evaluations and {seconds:.0%} of the time.")


def show_best(tasks: pl.DataFrame, cars: pl.DataFrame, seed: int) -> None:
    """Prints the best configuration and its RMSE on other folds, because the best of many is partly luck."""
    best = tasks.sort("rmse").row(0, named=True)
    chosen = ", ".join(f"{name} {best[name]:.3g}" for name in HYPERPARAMETERS)
    print(f"Best: configuration {best['configuration']} ({chosen}) after {best['iteration']} rounds, RMSE {best['rmse']:.3f}")
    again = [Model(best, make_folds(cars, seed + n)).train_until(best["iteration"]) for n in range(1, 21)]
    print(f"On 20 other divisions into folds its average RMSE is {np.mean(again):.3f}.")


def read_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="XGBoost on mtcars with the median stopping rule.")
    parser.add_argument("--evals", type=int, default=1000, help="tasks to finish with stopping (default: 1000)")
    parser.add_argument("--workers", type=int, default=4, help="processes (default: 4)")
    parser.add_argument("--seed", type=int, default=1, help="for configurations and folds (default: 1)")
    parser.add_argument("--no-comparison", action="store_true", help="do not train the configurations again without stopping")
    parser.add_argument("--url", help="the database; without it a private server is started")
    options = parser.parse_args()
    if options.evals < 1 or options.workers < 1:
        parser.error("--evals and --workers must be at least 1")
    return options


async def main() -> None:
    """Runs the search and the comparison, and prints the results."""
    options = read_options()
    cars = pl.read_csv(CARS)
    print(f"Training with the median rule on {options.workers} workers:")
    stopped = await run_with_stopping(options, cars)
    if not options.no_comparison:
        print("Training the same configurations through all rounds:")
        full = await run_all_rounds(options, cars, configurations_of(stopped))
        compare(stopped, full)
    await asyncio.to_thread(show_best, stopped, cars, options.seed)


if __name__ == "__main__":
    asyncio.run(main())
