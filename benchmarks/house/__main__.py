"""Prints every goal of the house beside what is true now.

python -m benchmarks.house [--names]

The rows are measured from the sources; one lets a worker push a task on the embedded server.
"""

from __future__ import annotations

import argparse
import asyncio

from benchmarks.house.goals import GOALS, Goal, Measured, Repository
from benchmarks.house.walk import files_to_socket
from rush_async import Rush, RushWorker


async def measure_walk() -> Measured:
    """Measures how many files a push of a worker passes, on the embedded server."""
    async with Rush() as rush, RushWorker(rush.network_id, rush.config) as worker:
        files = await files_to_socket(worker)
        await rush.reset(workers=False)
    return Measured.counted(files)


def print_row(name: str, now: str, goal: str, reached: str) -> None:
    """Prints one line of the table."""
    print(f"{name:<66} {now:>7} {goal:>22}  {reached}")


def print_goal(goal: Goal, measured: Measured, *, names: bool) -> None:
    """Prints a row, and the names behind it where asked for."""
    print_row(goal.name, f"{measured.value:,}", f"<= {goal.most:,}", "yes" if measured.value <= goal.most else "no")
    if names:
        for name in measured.names:
            print(f"    {name}")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.house", description="How the package is built, and the goals.")
    parser.add_argument("--names", action="store_true", help="print what each row counts, or what is in the way of its goal")
    options = parser.parse_args()
    at = Repository()
    print_row("", "now", "goal", "reached")
    for goal in GOALS:
        measured = goal.measure(at) if goal.measure is not None else asyncio.run(measure_walk())
        print_goal(goal, measured, names=options.names)
    print_row("places in store/ for a new transition (not counted)", "2", "2", "")


if __name__ == "__main__":
    main()
