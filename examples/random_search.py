"""Random search on the Branin function: the tutorial's first example.

Workers propose points at random, evaluate them and report, until 100 tasks are finished
in all:

    python examples/random_search.py
    python examples/random_search.py --workers 8 --on processes --evals 1000
    python examples/random_search.py --url redis://localhost
    python examples/random_search.py --seed 7 --workers 1
    python examples/random_search.py --seed 7 --workers 4

The last two evaluate the same points. `--form tutorial` runs the loop as the tutorial
of the R package has it.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random

from rush_async import Coroutines, Draw, Processes, Rush, RushWorker


def branin(x1: float, x2: float) -> float:
    """The Branin function; its minimum is 0.3979."""
    a = x2 - 5.1 / (4 * math.pi**2) * x1**2 + 5 / math.pi * x1 - 6
    return a**2 + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x1) + 10


# line for line as in the tutorial of the R package


async def random_search(rush: RushWorker, evals: int, seed: int) -> None:
    """The worker loop. Each worker reads the count by itself, so that the total may
    exceed `evals` by workers - 1.
    """
    rng = random.Random(f"{seed}/{rush.number}")  # each worker draws numbers of its own
    while rush.n_finished_tasks < evals:
        xs = {"x1": rng.uniform(-5, 10), "x2": rng.uniform(0, 15)}
        (key,) = await rush.push_running_tasks([xs])

        ys = {"y": branin(**xs)}
        await rush.finish_tasks(key, [ys])


# with proposals


def propose(draw: Draw) -> dict[str, float]:
    """A random point of the domain. Its numbers depend on the seed and on the index of
    the task alone.
    """
    rng = draw.random()
    return {"x1": rng.uniform(-5, 10), "x2": rng.uniform(0, 15)}


async def random_search_with_proposals(rush: RushWorker, evals: int) -> None:
    """The worker loop: exactly `evals` tasks, and with a seed the same ones however
    many workers share the work.
    """
    async for task in rush.proposals(propose, budget=evals):
        async with task:
            task.ys = {"y": branin(**task.xs)}


async def main() -> None:
    """Starts the workers, waits for them, and prints the best points."""
    parser = argparse.ArgumentParser(
        description="Random search on the Branin function."
    )
    parser.add_argument("--workers", type=int, default=4, help="how many (default: 4)")
    parser.add_argument(
        "--on",
        choices=["coroutines", "processes"],
        default="coroutines",
        help="where they run",
    )
    parser.add_argument(
        "--evals", type=int, default=100, help="tasks to finish (default: 100)"
    )
    parser.add_argument(
        "--seed", type=int, default=1, help="of the points (default: 1)"
    )
    parser.add_argument(
        "--form",
        choices=["proposals", "tutorial"],
        default="proposals",
        help="of the worker loop",
    )
    parser.add_argument(
        "--url", help="the database; without it a private server is started"
    )
    options = parser.parse_args()
    on = Processes() if options.on == "processes" else Coroutines()

    async with Rush("example-random-search", options.url, seed=options.seed) as rush:
        print(rush, end="\n\n")
        if options.form == "tutorial":
            await rush.start_workers(
                random_search,
                options.workers,
                on=on,
                evals=options.evals,
                seed=options.seed,
            )
        else:
            await rush.start_workers(
                random_search_with_proposals,
                options.workers,
                on=on,
                evals=options.evals,
            )
        await rush.join_workers()
        print(rush, end="\n\n")
        tasks = await rush.fetch_finished_tasks()
        print(tasks.sort("y").head(5))
        await rush.reset()


if __name__ == "__main__":
    asyncio.run(main())
