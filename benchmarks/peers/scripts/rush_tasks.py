"""Ours, tasks: each is pushed as running and then finished, so two calls; 64 coroutines of one worker in each process.

A finished task stays in the database with its inputs, output, worker and times; both calls are guarded, and exactly once.
"""

from __future__ import annotations

import asyncio
import time

import polars  # noqa: F401 - loaded with the first frame otherwise, and nobody's imports are timed
from stopwatch import arguments, in_processes, report, split, wait_for_all

from rush_async import Rush, RushWorker

NETWORK = "peers"


async def propose(rush: RushWorker, n: int) -> None:
    """One task after the other."""
    for at in range(n):
        keys = await rush.push_running_tasks([{"x1": float(at), "x2": 0.5}])
        await rush.finish_tasks(keys, [{"y": 0.25}])


async def propose_together(url: str, n: int, coroutines: int) -> tuple[float, float]:
    """What one process does."""
    async with RushWorker(NETWORK, url) as rush:
        await asyncio.to_thread(wait_for_all)
        begun = time.time()
        await asyncio.gather(*[propose(rush, part) for part in split(n, coroutines)])
        return begun, time.time()


def work(url: str, n: int, coroutines: int) -> tuple[float, float]:
    """As `propose_together`, with an event loop of its own."""
    return asyncio.run(propose_together(url, n, coroutines))


async def count(url: str) -> int:
    """How many another process finds."""
    async with Rush(NETWORK, url) as rush:
        return (await rush.counts()).finished


async def fill(url: str, n: int) -> None:
    """Leaves n finished tasks in the database."""
    async with Rush(NETWORK, url) as rush:
        for first in range(0, n, 10_000):
            numbers = range(first, min(n, first + 10_000))
            await rush.push_finished_tasks([{"x1": float(at), "x2": 0.5} for at in numbers], [{"y": 0.25} for _ in numbers])


async def read(url: str) -> tuple[float, int]:
    """Opens a client and reads all that is finished into a frame."""
    begun = time.perf_counter()
    async with Rush(NETWORK, url) as rush:
        frame = await rush.fetch_finished_tasks()
        return time.perf_counter() - begun, frame.height


if __name__ == "__main__":
    asked = arguments("propose", "fill", "read")
    if asked.action == "propose":
        seconds = in_processes(asked.processes, work, asked.url, asked.n // asked.processes, asked.coroutines)
        report(seconds=seconds, n=asyncio.run(count(asked.url)))
    elif asked.action == "fill":
        asyncio.run(fill(asked.url, asked.n))
        report(n=asyncio.run(count(asked.url)))
    else:
        seconds, n = asyncio.run(read(asked.url))
        report(seconds=seconds, n=n)
