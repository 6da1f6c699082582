"""Random search on the Branin function: the tutorial's first example.

Workers propose points at random, evaluate them and report, until 100 tasks are finished in all:

    python examples/random_search.py
    python examples/random_search.py --workers 8 --on processes --evals 1000 --url redis://localhost
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random

from rush_async import Coroutines, Processes, Rush, RushWorker


def branin(x1: float, x2: float) -> float:
    """The Branin function; its minimum is 0.3979."""
    a = x2 - 5.1 / (4 * math.pi**2) * x1**2 + 5 / math.pi * x1 - 6
    return a**2 + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x1) + 10


def propose() -> dict[str, float]:
    """A random point of the domain."""
    return {"x1": random.uniform(-5, 10), "x2": random.uniform(0, 15)}


async def search_within_budget(rush: RushWorker, evals: int) -> None:
    """Finishes exactly `evals` tasks, however many workers share the work."""
    while not rush.terminated:
        async with rush.task(propose(), budget=evals) as task:
            if task is None:
                break
            task.ys = {"y": branin(**task.xs)}
        await asyncio.sleep(0)  # this objective awaits nothing, so the other workers of the event loop get their turn here


async def search_plainly(rush: RushWorker, evals: int) -> None:
    """The tutorial's loop. Each worker reads the count by itself, so the total may exceed `evals` by workers - 1."""
    while rush.n_finished_tasks < evals and not rush.terminated:
        xs = propose()
        (key,) = await rush.push_running_tasks([xs])
        await rush.finish_tasks(key, [{"y": branin(**xs)}])


async def main() -> None:
    """Starts the workers, waits for them, and prints the best points."""
    parser = argparse.ArgumentParser(description="Random search on the Branin function.")
    parser.add_argument("--workers", type=int, default=4, help="how many (default: 4)")
    parser.add_argument("--on", choices=["coroutines", "processes"], default="coroutines", help="where they run")
    parser.add_argument("--evals", type=int, default=100, help="tasks to finish (default: 100)")
    parser.add_argument("--loop", choices=["budget", "plain"], default="budget", help="exactly that many, or about")
    parser.add_argument("--url", help="the database; without it a private server is started")
    options = parser.parse_args()
    loop = search_within_budget if options.loop == "budget" else search_plainly
    on = Processes() if options.on == "processes" else Coroutines()

    async with Rush("example-random-search", options.url) as rush:
        print(rush, end="\n\n")
        await rush.start_workers(loop, n_workers=options.workers, on=on, evals=options.evals)
        await rush.join_workers()
        await rush.counts()
        print(rush, end="\n\n")
        tasks = await rush.fetch_finished_tasks()
        print(tasks.sort("y").head(5))
        await rush.reset()


if __name__ == "__main__":
    asyncio.run(main())
