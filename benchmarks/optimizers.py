"""What the tutorial's optimisers find: the best value of Branin after exactly 100 evaluations by 4 workers, over 20 seeds.

python -m benchmarks.optimizers [--quick]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import os
import random
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

from benchmarks.report import Row, Table, ratio
from examples.bayesian_optimization import minimize
from examples.random_search import search_within_budget
from rush_async import Rush

EVALS, WORKERS = 100, 4
NAMES = {"random": "random search", "forest": "ADBO with a random forest", "gp": "ADBO with a Gaussian process"}


def best(seed: int, how: str) -> float:
    """One run, in a process of its own."""
    with contextlib.redirect_stdout(io.StringIO()):
        return asyncio.run(_best(seed, how))


async def _best(seed: int, how: str) -> float:
    async with Rush() as rush:
        if how == "random":
            random.seed(seed)
            await rush.start_workers(search_within_budget, WORKERS, evals=EVALS)
            await rush.join_workers()
        else:
            await minimize(rush, EVALS, WORKERS, how, seed)
        tasks = await rush.fetch_finished_tasks()
        assert tasks.height == EVALS
        return min(tasks["y"])


def main() -> None:
    """Prints median (min - max) of all seeds."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.optimizers", description="What the tutorial's optimisers find.")
    parser.add_argument("--quick", action="store_true", help="5 seeds instead of 20")
    seeds = range(1, 6 if parser.parse_args().quick else 21)
    section = f"Best value of Branin after {EVALS} evaluations by {WORKERS} workers, {len(seeds)} seeds (optimum 0.3979)"
    table, found = Table(), dict[str, list[float]]()
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        for how, name in NAMES.items():
            found[how] = list(pool.map(partial(best, how=how), seeds))
            table.add(Row(section, name, found[how], "", "<= 0.55" if how == "forest" else ""))
        medians = [sorted(found[how])[len(seeds) // 2] for how in ("gp", "forest")]
        table.add(ratio(section, "Gaussian process over forest, medians", medians[:1], medians[1:], goal="<= 1"))


if __name__ == "__main__":
    main()
