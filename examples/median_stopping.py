"""Early stopping by the median rule: the tutorial's second optimiser.

XGBoost predicts the fuel consumption of 32 cars from ten other columns. Each worker
draws configurations and trains them round by round. It stops a configuration as soon as
it is worse than the median of all at the same round:

    python examples/median_stopping.py
    python examples/median_stopping.py --workers 2 --evals 50 --seed 7 --no-comparison

A configuration is one task, which reports each round. Afterwards the program trains the
same configurations through all rounds, to show what stopping saved and what it cost.
`--form tutorial` runs the loop as the tutorial of the R package has it: there each
round is a task.
"""

from __future__ import annotations

import argparse
import asyncio
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import xgboost

from rush_async import Draw, Processes, Rush, RushWorker

CARS = Path(__file__).parent / "data" / "mtcars.csv"
# The first result of a configuration is that of five rounds, each further one that of
# a single round more.
ROUNDS = range(5, 21)
N_FOLDS = 5
HYPERPARAMETERS = ("max_depth", "lambda", "alpha")


def draw_configuration(rng: random.Random) -> dict[str, Any]:
    """A random configuration."""
    return {
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
    """Splits the cars into folds for cross-validation, as the seed says."""
    x, y = cars.drop("name", "mpg").to_numpy(), cars["mpg"].to_numpy()
    order = np.random.default_rng(seed).permutation(len(y))
    folds: list[Fold] = []
    for test in np.array_split(order, N_FOLDS):
        train = np.setdiff1d(order, test)
        folds.append(
            Fold(xgboost.DMatrix(x[train], y[train]), xgboost.DMatrix(x[test], y[test]))
        )
    return folds


class Model:
    """A configuration in training, with one booster for each fold, which is kept from
    round to round.
    """

    def __init__(self, configuration: Mapping[str, Any], folds: Sequence[Fold]) -> None:
        # One thread for each model, because the number of workers determines the load
        # of the machine.
        params = {
            "nthread": 1,
            **{name: configuration[name] for name in HYPERPARAMETERS},
        }
        self._folds = folds
        self._boosters = [
            xgboost.Booster(params, [fold.train, fold.test]) for fold in folds
        ]

    def train_until(self, iteration: int) -> float:
        """Trains the missing rounds. Returns the RMSE over all cars, each predicted by
        the booster that has not seen it.
        """
        errors = [
            self._errors(booster, fold, iteration)
            for booster, fold in zip(self._boosters, self._folds, strict=True)
        ]
        return float(np.sqrt(np.mean(np.concatenate(errors) ** 2)))

    def _errors(
        self, booster: xgboost.Booster, fold: Fold, iteration: int
    ) -> np.ndarray:
        for n in range(booster.num_boosted_rounds(), iteration):
            booster.update(fold.train, n)
        return booster.predict(fold.test) - fold.test.get_label()


def should_stop(results: pl.DataFrame, iteration: int, rmse: float) -> bool:
    """The median rule: is it worse than the median of all configurations at the same
    round, itself included?

    The first one at a round is the median, and continues. See Golovin et al. (2017),
    Google Vizier: a service for black-box optimization, KDD. Their rule compares the
    best value so far with running averages; this one the values of one round.
    """
    return rmse > np.median(results.filter(pl.col("iteration") == iteration)["rmse"])


# the worker loop, line for line as in the tutorial of the R package


async def median_stopping(
    rush: RushWorker, cars: pl.DataFrame, evals: int, seed: int
) -> None:
    """Each round of a configuration is a task. The last configurations may exceed
    `evals`.
    """
    rng = random.Random(f"{seed}/{rush.number}")
    folds = make_folds(cars, seed)
    while rush.n_finished_tasks < evals:
        params = draw_configuration(rng)

        model = Model(params, folds)
        for iteration in ROUNDS:
            (key,) = await rush.push_running_tasks([{**params, "iteration": iteration}])

            rmse = model.train_until(iteration)
            await rush.finish_tasks(key, [{"rmse": rmse}])

            tasks = await rush.fetch_finished_tasks()
            if should_stop(tasks, iteration, rmse):
                break


# the worker loop, with proposals and reports


def propose(draw: Draw) -> dict[str, Any]:
    """A random configuration, the same in every run with this seed."""
    return draw_configuration(draw.random())


async def median_stopping_with_reports(
    rush: RushWorker, cars: pl.DataFrame, evals: int, seed: int, stops: bool = True
) -> None:
    """A configuration is one task, which reports each round. `stops=False` trains all
    of them to the end, to compare.
    """
    folds = make_folds(cars, seed)
    async for task in rush.proposals(propose, budget=evals):
        async with task:
            model = Model(task.xs, folds)
            for iteration in ROUNDS:
                rmse = model.train_until(iteration)
                await task.report({"iteration": iteration, "rmse": rmse})
                task.ys = {"rmse": rmse, "rounds": iteration}
                if stops and should_stop(await rush.fetch_reports(), iteration, rmse):
                    break


# the manager


async def run_tutorial(options: argparse.Namespace, cars: pl.DataFrame) -> pl.DataFrame:
    """Runs the tutorial's loop. Returns its tasks: a row for each round."""
    async with Rush(config=options.url, seed=options.seed) as rush:
        args: dict[str, Any] = {
            "cars": cars,
            "evals": options.evals or 1000,
            "seed": options.seed,
        }
        await rush.start_workers(
            median_stopping, options.workers, on=Processes(), args=args
        )
        await rush.join_workers()
        tasks = await rush.fetch_finished_tasks()
        await rush.reset()
    return tasks


async def run_with_reports(
    options: argparse.Namespace, cars: pl.DataFrame, *, stops: bool
) -> pl.DataFrame:
    """Trains configurations, with or without stopping. Returns a row for each round:
    its report and the input of its task.
    """
    async with Rush(config=options.url, seed=options.seed) as rush:
        args: dict[str, Any] = {
            "cars": cars,
            "evals": options.evals or 200,
            "seed": options.seed,
            "stops": stops,
        }
        await rush.start_workers(
            median_stopping_with_reports, options.workers, on=Processes(), args=args
        )
        await rush.join_workers()
        tasks = (await rush.fetch_finished_tasks(times=True)).select(
            "keys", "index", *HYPERPARAMETERS
        )
        reports = (await rush.fetch_reports()).join(tasks, on="keys")
        await rush.reset()
    return reports


def describe(name: str, rounds: pl.DataFrame) -> str:
    """A line of the comparison."""
    n, best = rounds["index"].n_unique(), rounds["rmse"].min()
    return f"{name:<33}{n:>14,}{rounds.height:>9,}{best:>11.3f}"


def compare(stopped: pl.DataFrame, full: pl.DataFrame) -> None:
    """Prints what stopping saved: the same configurations with and without it, and as
    many rounds without it.
    """
    affordable = full.filter(pl.col("index") < max(stopped.height // len(ROUNDS), 1))
    print(f"{'':<33}{'configurations':>14}{'rounds':>9}{'best RMSE':>11}")
    print(describe("stopped by the median", stopped))
    print(describe("the same, all rounds", full))
    print(describe("as many rounds, none stopped", affordable))
    print(f"Stopping saved {1 - stopped.height / full.height:.0%} of the rounds.")


def show_best(results: pl.DataFrame, cars: pl.DataFrame, seed: int) -> None:
    """Prints the best configuration and its RMSE on other folds, because the best of
    many is partly luck.
    """
    best = results.sort("rmse").row(0, named=True)
    chosen = ", ".join(f"{name} {best[name]:.3g}" for name in HYPERPARAMETERS)
    print(
        f"Best of {results.height:,} results: {chosen}, "
        f"after {best['iteration']} rounds, RMSE {best['rmse']:.3f}"
    )
    again = [
        Model(best, make_folds(cars, seed + n)).train_until(best["iteration"])
        for n in range(1, 21)
    ]
    print(f"On 20 other divisions into folds its average RMSE is {np.mean(again):.3f}.")


def read_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="XGBoost on mtcars with the median stopping rule."
    )
    parser.add_argument(
        "--evals",
        type=int,
        help="configurations (200); with --form tutorial rounds (1000)",
    )
    parser.add_argument("--workers", type=int, default=4, help="processes (default: 4)")
    parser.add_argument(
        "--seed", type=int, default=1, help="of configurations and folds (default: 1)"
    )
    parser.add_argument(
        "--form",
        choices=["reports", "tutorial"],
        default="reports",
        help="of the worker loop",
    )
    parser.add_argument(
        "--no-comparison",
        action="store_true",
        help="do not train the configurations again without stopping",
    )
    parser.add_argument(
        "--url", help="the database; without it a private server is started"
    )
    options = parser.parse_args()
    if options.workers < 1 or (options.evals is not None and options.evals < 1):
        parser.error("--evals and --workers must be at least 1")
    return options


async def main() -> None:
    """Runs the search and the comparison, and prints the results."""
    options = read_options()
    cars = pl.read_csv(CARS)
    print(f"Training with the median rule on {options.workers} workers.")
    if options.form == "tutorial":
        results = await run_tutorial(options, cars)
    else:
        results = await run_with_reports(options, cars, stops=True)
        if not options.no_comparison:
            print("Training the same configurations through all rounds.")
            compare(results, await run_with_reports(options, cars, stops=False))
    await asyncio.to_thread(show_best, results, cars, options.seed)


if __name__ == "__main__":
    asyncio.run(main())
