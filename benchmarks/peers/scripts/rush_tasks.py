"""Tasks of ours: two calls push a running task and finish it; 64 coroutines of one worker in each process.

A finished task stays in the database with its inputs, output, worker and times. Both calls are guarded and take effect once.
"""

from __future__ import annotations

import asyncio
import time

import polars  # noqa: F401 - otherwise the first frame imports it, and imports are not timed
from stopwatch import arguments, in_processes, report, split, wait_for_all

from rush_async import Rush, RushWorker

NETWORK = "peers"


async def propose(rush: RushWorker, n: int) -> None:
    """Proposes and reports one task after the other."""
    for at in range(n):
        keys = await rush.push_running_tasks([{"x1": float(at), "x2": 0.5}])
        await rush.finish_tasks(keys, [{"y": 0.25}])


async def propose_together(url: str, n: int, coroutines: int) -> tuple[float, float]:
    """The work of one process."""
    async with RushWorker(NETWORK, url) as rush:
        await asyncio.to_thread(wait_for_all)
        begun = time.time()
        await asyncio.gather(*[propose(rush, part) for part in split(n, coroutines)])
        return begun, time.time()


def work(url: str, n: int, coroutines: int) -> tuple[float, float]:
    """Runs `propose_together` in a new event loop."""
    return asyncio.run(propose_together(url, n, coroutines))


async def count(url: str) -> int:
    """Counts the finished tasks, as another process sees them."""
    async with Rush(NETWORK, url) as rush:
        return (await rush.counts()).finished


async def fill(url: str, n: int) -> None:
    """Stores n finished tasks in the database."""
    async with Rush(NETWORK, url) as rush:
        for first in range(0, n, 10_000):
            numbers = range(first, min(n, first + 10_000))
            await rush.push_finished_tasks([{"x1": float(at), "x2": 0.5} for at in numbers], [{"y": 0.25} for _ in numbers])


async def read(url: str) -> tuple[float, int]:
    """Opens a client and reads all finished tasks into a frame."""
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
