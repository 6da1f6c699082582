"""Asynchronous decentralised Bayesian optimisation (ADBO; Egelé et al. 2023) of the Branin function.

A Latin hypercube design is pushed to the queue. Each worker takes points of it until none is left, then proposes its own: it
fits a surrogate to all that is finished and running, whoever does it, and minimises a lower confidence bound with a lambda of
its own.

    python examples/bayesian_optimization.py
    python examples/bayesian_optimization.py --surrogate gp --evals 60 --workers 8 --seed 7

The design follows from the seed; what comes after depends on who finishes first, so two runs of one seed differ.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
from scipy.stats import qmc
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
from sklearn.tree import DecisionTreeRegressor
from threadpoolctl import threadpool_limits

from rush_async import Coroutines, Processes, Rush, RushWorker

LOWER, UPPER = np.array([-5.0, 0.0]), np.array([10.0, 15.0])
N_DESIGN = 25
N_CANDIDATES = 1_000
N_TREES = 100
MEAN_LAMBDA = 1.96
Y = {"y": pl.Float64}

Surrogate = Callable[[np.ndarray, np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray]]


def branin(x1: float, x2: float) -> float:
    """The Branin function; its minimum is 0.3979."""
    a = x2 - 5.1 / (4 * math.pi**2) * x1**2 + 5 / math.pi * x1 - 6
    return a**2 + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x1) + 10


def design(n: int, seed: int) -> list[dict[str, float]]:
    """A Latin hypercube of n points: each of n equal slices of x1, and of x2, holds one."""
    points = qmc.scale(qmc.LatinHypercube(2, rng=seed).random(n), LOWER, UPPER)
    return [{"x1": x1, "x2": x2} for x1, x2 in points.tolist()]


def with_imputed(tasks: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Points and values to fit to. What is running has no value yet and gets the mean: so nobody tries next to it now."""
    points = tasks.select("x1", "x2").to_numpy()
    values = tasks["y"].fill_null(tasks["y"].mean()).to_numpy()
    return points, values


def forest(points: np.ndarray, values: np.ndarray, candidates: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A random forest's mean and standard error at the candidates.

    Made of its trees, since sklearn's own forests change the warning filters of the process and workers share one in threads.
    """
    rng, n = np.random.default_rng(seed), len(values)
    drawn = [np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(N_TREES)]  # how often a tree sees each point
    models = [DecisionTreeRegressor(max_features=1, random_state=at).fit(points, values, bag) for at, bag in enumerate(drawn)]
    trees = np.stack([model.predict(candidates) for model in models])
    return trees.mean(axis=0), jackknife_error(trees, np.stack(drawn) > 0)


def jackknife_error(trees: np.ndarray, in_bag: np.ndarray) -> np.ndarray:
    """The standard error of a bagged mean: jackknife after bootstrap, less its Monte Carlo bias (Wager, Hastie, Efron 2014).

    Args:
        trees: what each tree predicts, (trees, candidates).
        in_bag: whether a tree saw a point, (trees, points).
    """
    n_trees, n_points = in_bag.shape
    out_of_bag = (~in_bag).T.astype(float)  # (points, trees)
    n_without = out_of_bag.sum(axis=1)
    is_left_out = n_without > 0  # a point that every tree saw says nothing
    without = out_of_bag[is_left_out] @ trees / n_without[is_left_out, None]
    deviation = trees - trees.mean(axis=0)
    jackknife = (n_points - 1) / n_points * ((without - trees.mean(axis=0)) ** 2).sum(axis=0)
    bias = (math.e - 1) * n_points / n_trees**2 * (deviation**2).sum(axis=0)
    return np.sqrt(np.maximum(jackknife - bias, 0.0))


def gaussian_process(
    points: np.ndarray, values: np.ndarray, candidates: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """A Gaussian process' mean and standard deviation at the candidates, both axes scaled to [0, 1]."""
    kernel = ConstantKernel(1.0, (1e-2, 1e4)) * Matern([0.3, 0.3], (0.05, 5.0), nu=2.5) + WhiteKernel(1e-4, (1e-8, 1e-1))
    model = GaussianProcessRegressor(kernel, normalize_y=True, random_state=seed)
    model.fit((points - LOWER) / (UPPER - LOWER), values)
    return model.predict((candidates - LOWER) / (UPPER - LOWER), return_std=True)


SURROGATES: dict[str, Surrogate] = {"forest": forest, "gp": gaussian_process}


def draw_candidates(best: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Points anywhere, and as many near the best one, at distances of all orders of magnitude."""
    anywhere = rng.uniform(LOWER, UPPER, (N_CANDIDATES, 2))
    distances = 10 ** rng.uniform(-3, -0.5, (N_CANDIDATES, 1)) * (UPPER - LOWER)
    near = np.clip(best + rng.normal(size=(N_CANDIDATES, 2)) * distances, LOWER, UPPER)
    return np.concatenate([anywhere, near])


def propose(tasks: pl.DataFrame, surrogate: Surrogate, lambda_: float, rng: np.random.Generator) -> dict[str, float]:
    """The candidate with the lowest confidence bound: mean - lambda * error."""
    if tasks["y"].is_null().all():  # nothing is known yet
        x1, x2 = rng.uniform(LOWER, UPPER).tolist()
        return {"x1": x1, "x2": x2}
    points, values = with_imputed(tasks)
    candidates = draw_candidates(points[values.argmin()], rng)
    mean, error = surrogate(points, values, candidates, int(rng.integers(2**31)))
    x1, x2 = candidates[(mean - lambda_ * error).argmin()].tolist()
    return {"x1": x1, "x2": x2}


async def optimize(rush: RushWorker, evals: int, surrogate: str, seed: np.random.SeedSequence) -> None:
    """A worker: first what is queued, then its own proposals, until `evals` tasks are finished in all."""
    async for task in rush.tasks(timeout=0):
        async with task:
            task.ys = {"y": branin(**task.xs)}

    threadpool_limits(1)  # a surrogate is too small for threads of its own: they would only wait for each other
    warnings.simplefilter("ignore", ConvergenceWarning)  # of a kernel at a bound, which is as good as any
    rng = np.random.default_rng(seed)
    lambda_ = float(rng.exponential(MEAN_LAMBDA))  # some workers exploit, some explore
    print(f"{rush.worker_id}: the queue is empty, going on with lambda {lambda_:.2f}", flush=True)
    while not rush.terminated:
        tasks = await rush.fetch_tasks_with_state("running", "finished", schema=Y)
        xs = await asyncio.to_thread(propose, tasks, SURROGATES[surrogate], lambda_, rng)
        async with rush.task(xs, budget=evals) as task:
            if task is None:
                return
            task.ys = {"y": branin(**task.xs)}


async def minimize(
    rush: Rush, evals: int, n_workers: int, surrogate: str, seed: int, on: Coroutines | Processes | None = None
) -> pl.DataFrame:
    """Evaluates the design and whatever the workers propose after it; the finished tasks in their order."""
    await rush.push_tasks(design(min(N_DESIGN, evals), seed))
    for its_seed in np.random.SeedSequence(seed).spawn(n_workers):
        arguments: dict[str, Any] = {"evals": evals, "surrogate": surrogate, "seed": its_seed}
        await rush.start_workers(optimize, on=on or Coroutines(), args=arguments)
    await rush.join_workers()
    return await rush.fetch_finished_tasks(schema=Y)


async def main() -> None:
    """Runs one optimisation and shows what it found."""
    parser = argparse.ArgumentParser(description="Asynchronous decentralised Bayesian optimisation of the Branin function.")
    parser.add_argument("--evals", type=int, default=100, help="tasks to finish, the design among them (default: 100)")
    parser.add_argument("--workers", type=int, default=4, help="how many (default: 4)")
    parser.add_argument("--surrogate", choices=SURROGATES, default="forest", help="random forest or Gaussian process")
    parser.add_argument("--seed", type=int, default=1, help="of the design and of the workers (default: 1)")
    parser.add_argument("--on", choices=["coroutines", "processes"], default="coroutines", help="where the workers run")
    parser.add_argument("--url", help="the database; without it a private server is started")
    options = parser.parse_args()
    if options.evals < 1 or options.workers < 1:
        parser.error("--evals and --workers are at least 1")
    on = Processes() if options.on == "processes" else Coroutines()

    async with Rush("example-bayesian-optimization", options.url) as rush:
        tasks = await minimize(rush, options.evals, options.workers, options.surrogate, options.seed, on)
        await rush.reset()
    n_design = min(N_DESIGN, options.evals)
    print(f"the design of {n_design} points: best y {tasks['y'].head(n_design).min():.4f}")
    print(f"all {tasks.height} evaluations:")
    print(tasks.sort("y").head(5))
    print(f"best y: {tasks['y'].min():.4f}")


if __name__ == "__main__":
    asyncio.run(main())
