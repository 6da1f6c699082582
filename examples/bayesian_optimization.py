"""Asynchronous decentralised Bayesian optimisation of the Branin function.

Each worker fits its own surrogate model on the finished and running tasks of all
workers, and evaluates the point whose lower confidence bound is lowest. No worker waits
for another:

    python examples/bayesian_optimization.py
    python examples/bayesian_optimization.py --surrogate gp --workers 8 --evals 200
    python examples/bayesian_optimization.py --seed 7 --replay

With `--replay` it afterwards makes each proposal once more and compares.
`--form tutorial` runs the loop as the tutorial of the R package has it.

The algorithm is that of Egelé, Guyon, Vishwanath and Balaprakash (2023), Asynchronous
decentralized Bayesian optimization for large scale hyperparameter optimization, IEEE
e-Science.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import polars as pl
from scipy.stats import qmc, rankdata
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern
from sklearn.tree import DecisionTreeRegressor

from rush_async import Coroutines, Draw, Processes, Rush, RushWorker, replay

NAMES = ("x1", "x2")
LOWER, UPPER = np.array([-5.0, 0.0]), np.array([10.0, 15.0])
SCHEMA = {
    "x1": pl.Float64,
    "x2": pl.Float64,
    "y": pl.Float64,
}  # the columns of a frame without tasks

DESIGN_SIZE = 25
N_TREES = 50
N_CANDIDATES = 1000
MEAN_LAMBDA, DECAY, PERIOD = (
    1.96,
    0.1,
    25,
)  # as the documentation of mlr3mbo describes ADBO

Predict = Callable[
    [np.ndarray], tuple[np.ndarray, np.ndarray]
]  # for points, a row each: mean and standard error
Fit = Callable[[np.ndarray, np.ndarray, np.random.Generator], Predict]


def branin(x1: float, x2: float) -> float:
    """The Branin function; its minimum is 0.3979."""
    a = x2 - 5.1 / (4 * math.pi**2) * x1**2 + 5 / math.pi * x1 - 6
    return a**2 + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x1) + 10


# the design


def as_xs(point: np.ndarray) -> dict[str, float]:
    """A point as the input of a task."""
    return dict(zip(NAMES, point.tolist(), strict=True))


def make_design(n: int, seed: int) -> list[dict[str, float]]:
    """A Latin hypercube: each of n slices of each input holds exactly one of the n
    points.
    """
    points = qmc.scale(qmc.LatinHypercube(len(NAMES), rng=seed).random(n), LOWER, UPPER)
    return [as_xs(point) for point in points]


# the surrogate


def impute(tasks: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """The inputs and outputs to learn from. A running task gets the mean output of the
    finished ones.

    That keeps workers apart: near a running task, the models of the others expect less
    and are more certain.
    """
    known = tasks.with_columns(pl.col("y").fill_null(pl.col("y").mean()))
    return known.select(NAMES).to_numpy(), known["y"].to_numpy()


def jackknife_error(predictions: np.ndarray, in_bag: np.ndarray) -> np.ndarray:
    """The standard error of a forest's mean prediction, for each point.

    The trees that have not drawn a task show how much the prediction changes without
    it. This is the jackknife after bootstrap, corrected for the bias of few trees:
    Wager, Hastie and Efron (2014), Confidence intervals for random forests, JMLR 15. In
    R, `ranger` returns it as `se`.

    Args:
        predictions: the prediction of each tree, shape (points, trees).
        in_bag: whether each tree has drawn each task, shape (trees, tasks).
    """
    out_of_bag = ~in_bag[
        :, ~in_bag.all(axis=0)
    ]  # without the tasks that every tree has drawn
    n_trees, n_tasks = out_of_bag.shape
    if n_tasks == 0:
        return np.zeros(len(predictions))
    mean = predictions.mean(axis=1, keepdims=True)
    without = predictions @ out_of_bag / out_of_bag.sum(axis=0)
    variance = (n_tasks - 1) / n_tasks * ((without - mean) ** 2).sum(axis=1)
    bias = (math.e - 1) * n_tasks / n_trees**2 * ((predictions - mean) ** 2).sum(axis=1)
    return np.sqrt(np.maximum(variance - bias, 0))


def fit_forest(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> Predict:
    """A random forest, with the jackknife's standard error.

    It learns ranks, so that a few very bad results do not hide the differences between
    good ones.
    """
    # Single trees, because workers fit in threads, and scikit-learn's forest changes
    # the warning filters of the whole process.
    n, ranks = len(x), rankdata(y)
    drawn = rng.integers(n, size=(N_TREES, n))
    seeds = rng.integers(2**32, size=N_TREES)
    trees = [
        DecisionTreeRegressor(max_features=1, random_state=int(seed)).fit(
            x[rows], ranks[rows]
        )
        for rows, seed in zip(drawn, seeds, strict=True)
    ]
    in_bag = np.zeros((N_TREES, n), dtype=bool)
    in_bag[np.arange(N_TREES)[:, np.newaxis], drawn] = True

    def predict(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        predictions = np.column_stack([tree.predict(points) for tree in trees])
        return predictions.mean(axis=1), jackknife_error(predictions, in_bag)

    return predict


def fit_gp(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> Predict:
    """A Gaussian process, with its posterior standard deviation."""
    kernel = ConstantKernel(1.0, (1e-3, 1e3)) * Matern(0.3, (0.02, 20.0), nu=2.5)
    gp = GaussianProcessRegressor(
        kernel, alpha=1e-6, normalize_y=True, random_state=int(rng.integers(2**32))
    )
    # Length scales at the end of their range are right where the function is flat. The
    # filter is set here, because a worker's process runs the loop but not this file.
    warnings.filterwarnings("ignore", category=ConvergenceWarning)
    gp.fit((x - LOWER) / (UPPER - LOWER), y)

    def predict(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean_and_error: Any = gp.predict(
            (points - LOWER) / (UPPER - LOWER), return_std=True
        )
        return mean_and_error

    return predict


# The function that fits each surrogate, and the widths of the rounds that refine the
# minimum of its bound. A forest has none: its bound is constant between cuts, so
# refinement would only find neighbours of known points.
SURROGATES: dict[str, tuple[Fit, Sequence[float]]] = {
    "forest": (fit_forest, ()),
    "gp": (fit_gp, (0.1, 0.03, 0.01)),
}


# the next point


def minimise_bound(
    predict: Predict, lambda_: float, widths: Sequence[float], rng: np.random.Generator
) -> np.ndarray:
    """The point with the lowest bound: the best of many random points, refined in ever
    narrower rounds around the best one.
    """

    def lowest(points: np.ndarray) -> np.ndarray:
        mean, error = predict(points)
        return points[np.argmin(mean - lambda_ * error)]

    best = lowest(rng.uniform(LOWER, UPPER, (N_CANDIDATES, len(NAMES))))
    for width in widths:
        around = best + width * (UPPER - LOWER) * rng.standard_normal(
            (N_CANDIDATES // 5, len(NAMES))
        )
        best = lowest(np.vstack([best, np.clip(around, LOWER, UPPER)]))
    return best


def next_point(
    tasks: pl.DataFrame, surrogate: str, lambda_: float, rng: np.random.Generator
) -> dict[str, float]:
    """The next point to evaluate, from the running and finished tasks."""
    if (
        tasks["y"].is_null().all()
    ):  # more workers than points in the design: nothing to learn from yet
        return as_xs(rng.uniform(LOWER, UPPER))
    x, y = impute(tasks)
    fit, widths = SURROGATES[surrogate]
    return as_xs(minimise_bound(fit(x, y, rng), lambda_, widths, rng))


# the worker loop, line for line as in the tutorial of the R package


async def bayesian_optimization(
    rush: RushWorker, evals: int, seed: int, surrogate: str = "forest"
) -> None:
    """Evaluates tasks of the design, then its own proposals. The total may exceed
    `evals` by workers - 1.
    """
    while (task := await rush.pop_task(timeout=0)) is not None:
        ys = {"y": branin(**task.xs)}
        await rush.finish_tasks(task.key, [ys])

    rng = np.random.default_rng([seed, rush.number])
    lambda_ = rng.uniform(0.01, 10)

    while rush.n_finished_tasks < evals:
        archive = await rush.fetch_tasks_with_state(
            "running", "finished", schema=SCHEMA
        )
        # In a thread, so that the event loop keeps serving the other workers and the
        # heartbeat.
        xs = await asyncio.to_thread(next_point, archive, surrogate, lambda_, rng)

        (key,) = await rush.push_running_tasks([xs])
        ys = {"y": branin(**xs)}
        await rush.finish_tasks(key, [ys])


# the worker loop, with proposals


async def propose(
    draw: Draw, surrogate: str
) -> tuple[dict[str, float], dict[str, float]]:
    """The next point, and the lambda to store with it. A large lambda explores, a small
    one refines.
    """
    lambda_ = draw.worker_numpy().exponential(MEAN_LAMBDA) * math.exp(
        -DECAY * (draw.round % PERIOD)
    )
    xs = await asyncio.to_thread(
        next_point, draw.tasks, surrogate, lambda_, draw.numpy()
    )
    return xs, {"lambda": lambda_}


async def bayesian_optimization_with_proposals(
    rush: RushWorker, evals: int, surrogate: str = "forest"
) -> None:
    """Evaluates tasks of the design, then its own proposals, until exactly `evals`
    tasks are finished in all.
    """
    proposer = partial(propose, surrogate=surrogate)
    async for task in rush.proposals(
        proposer, read=("running", "finished"), budget=evals, schema=SCHEMA
    ):
        async with task:
            task.ys = {"y": branin(**task.xs)}


# the manager


async def start(
    rush: Rush,
    *,
    seed: int,
    evals: int,
    n_workers: int,
    surrogate: str,
    form: str = "proposals",
    on: Coroutines | Processes | None = None,
) -> None:
    """Queues the design, and starts the workers."""
    await rush.push_tasks(make_design(min(DESIGN_SIZE, evals), seed))
    args: dict[str, Any] = {"evals": evals, "surrogate": surrogate}
    if form == "tutorial":
        await rush.start_workers(
            bayesian_optimization,
            n_workers,
            on=on or Coroutines(),
            args=args | {"seed": seed},
        )
    else:
        await rush.start_workers(
            bayesian_optimization_with_proposals,
            n_workers,
            on=on or Coroutines(),
            args=args,
        )


async def report(rush: Rush, evals: int, ended: asyncio.Task[Any]) -> None:
    """Prints each new best point, until all tasks are finished or the workers have
    ended.
    """
    n, best = 0, math.inf
    while n < evals and not ended.done():
        for task in (await rush.fetch_new_tasks(timeout=0.5)).iter_rows(named=True):
            n += 1
            if task["y"] < best:
                best = task["y"]
                how = (
                    "design"
                    if task.get("lambda") is None
                    else f"lambda {task['lambda']:.2f}"
                )
                print(
                    f"{n:>5} finished  best y {best:>8.4f} "
                    f"at ({task['x1']:6.3f}, {task['x2']:6.3f})  {how}"
                )


def read_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Decentralised Bayesian optimisation of the Branin function."
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=1,
        help="of the design and all proposals (default: 1)",
    )
    parser.add_argument(
        "--evals",
        type=int,
        default=100,
        help="tasks to finish, the design included (default: 100)",
    )
    parser.add_argument("--workers", type=int, default=4, help="how many (default: 4)")
    parser.add_argument(
        "--surrogate",
        choices=sorted(SURROGATES),
        default="forest",
        help="the model (default: forest)",
    )
    parser.add_argument(
        "--on",
        choices=["coroutines", "processes"],
        default="coroutines",
        help="where workers run",
    )
    parser.add_argument(
        "--form",
        choices=["proposals", "tutorial"],
        default="proposals",
        help="of the worker loop",
    )
    parser.add_argument(
        "--replay",
        action="store_true",
        help="make the proposals once more afterwards, and compare",
    )
    parser.add_argument(
        "--url", help="the database; without it a private server is started"
    )
    options = parser.parse_args()
    if options.evals < 1 or options.workers < 1 or options.seed < 0:
        parser.error("--evals and --workers must be at least 1, --seed at least 0")
    return options


async def main() -> None:
    """Starts the workers, reports their progress, and prints the best points."""
    options = read_options()
    on = Processes() if options.on == "processes" else Coroutines()
    async with Rush(config=options.url, seed=options.seed) as rush:
        await start(
            rush,
            seed=options.seed,
            evals=options.evals,
            n_workers=options.workers,
            surrogate=options.surrogate,
            form=options.form,
            on=on,
        )
        async with asyncio.TaskGroup() as group:
            ended = group.create_task(
                rush.join_workers()
            )  # raises what a worker raised, and so ends the report too
            group.create_task(report(rush, options.evals, ended))
        tasks = await rush.fetch_finished_tasks(schema=SCHEMA)
        if options.replay:
            again = await replay(
                rush, partial(propose, surrogate=options.surrogate), schema=SCHEMA
            )
            print(
                f"{again.n_compared} proposals made once more, "
                f"first divergence: {again.divergence}"
            )
        await rush.reset()
    print(tasks.sort("y").head(5))
    print(
        f"{tasks.height} evaluations, "
        f"workers that took part: {tasks['worker_id'].n_unique()}"
    )
    print(f"best y: {tasks['y'].min():.4f}")


if __name__ == "__main__":
    asyncio.run(main())
