"""The best of 100 evaluations of the Branin function by random search and Bayesian optimisation, over several seeds.

python -m benchmarks.optimizers [--quick]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Sequence

from examples import bayesian_optimization, random_search
from rush_async import Rush

OPTIMUM = 0.397887
METHODS = ("random search", "forest", "gp")


async def best_of(method: str, seed: int, evals: int, n_workers: int) -> float:
    """Runs one search on coroutine workers and returns its best y."""
    async with Rush(seed=seed) as rush:
        if method == "random search":
            await rush.start_workers(random_search.random_search_with_proposals, n_workers, evals=evals)
        else:
            await bayesian_optimization.start(rush, seed=seed, evals=evals, n_workers=n_workers, surrogate=method)
        await rush.join_workers()
        ys = (await rush.fetch_finished_tasks())["y"].to_list()
        await rush.reset()
    assert len(ys) == evals, f"{len(ys)} tasks finished, not {evals}"
    return min(ys)


def show(name: str, bests: Sequence[float], seconds: float) -> None:
    """Prints median (min - max)."""
    spread = f"{statistics.median(bests):>8.4f}  ({min(bests):.4f} - {max(bests):.4f})"
    print(f"{name:<16}{spread}  {seconds / len(bests):>6.1f} s a run", flush=True)


async def main() -> None:
    """Prints all figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.optimizers", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="3 seeds instead of 20")
    parser.add_argument("--evals", type=int, default=100, help="tasks to finish in each run (default: 100)")
    parser.add_argument("--workers", type=int, default=4, help="how many (default: 4)")
    options = parser.parse_args()
    seeds = range(1, 4 if options.quick else 21)
    print(f"best y of {options.evals} evaluations, {options.workers} workers, {len(seeds)} seeds: median (min - max)")
    for method in METHODS:
        begun = time.perf_counter()
        bests = [await best_of(method, seed, options.evals, options.workers) for seed in seeds]
        show(method, bests, time.perf_counter() - begun)
    print(f"{'the optimum':<16}{OPTIMUM:>8.4f}")


if __name__ == "__main__":
    asyncio.run(main())
