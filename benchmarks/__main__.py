"""The first figures: proposing and reporting, reading, and memory, each beside a bare round trip of the same run.

python -m benchmarks [--quick]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform

from benchmarks.measure import interleaved, show
from rush_async import Rush, RushWorker
from rush_async.store.link import Link

COROUTINES = 64


async def ping(link: Link, n: int) -> int:
    """Bare round trips over the same transport, one after the other."""
    for _ in range(n):
        await link.connection.ask("PING")
    return n


async def propose_and_report(rush: RushWorker, n: int) -> int:
    """One worker, one task at a time, two inputs and one output."""
    for at in range(n):
        keys = await rush.push_running_tasks([{"x1": float(at), "x2": 0.5}])
        await rush.finish_tasks(keys, [{"y": 0.25}])
    return n


async def propose_and_report_together(rush: RushWorker, n: int) -> int:
    """Many coroutines of one process at once."""
    await asyncio.gather(*[propose_and_report(rush, n) for _ in range(COROUTINES)])
    return COROUTINES * n


async def measure_tasks(repetitions: int, scale: int) -> None:
    """Tasks by one and by 64 coroutines, with a subscriber attached; and what a finished task takes of the server."""
    async with Rush() as rush:
        async with RushWorker(rush.network_id) as worker:
            await measure_one_worker(rush, worker, repetitions, scale)
        await rush.reset()


async def measure_one_worker(rush: Rush, worker: RushWorker, repetitions: int, scale: int) -> None:
    """As `measure_tasks`, in an open network."""
    link = await Link.acquire(rush.config)
    await rush.wait_until(lambda _: True)  # from here on events arrive
    figures = await interleaved(
        {
            "a bare round trip": lambda: ping(link, 300 * scale),
            "one coroutine: a task proposed and reported": lambda: propose_and_report(worker, 150 * scale),
            f"{COROUTINES} coroutines: the same": lambda: propose_and_report_together(worker, 20 * scale),
        },
        repetitions,
    )
    round_trip, *others = figures.values()
    show(round_trip, round_trip, rate=True)
    for figure in others:
        show(figure, round_trip, rate=True)
    n = (await rush.counts()).finished
    key = f"rush:{{{rush.network_id}}}:finished"
    used = await link.connection.ask("MEMORY", "USAGE", key, "SAMPLES", "0")
    print(f"{'server memory a finished task':<44} {used / n:>12,.1f} bytes  (of {n:,})")
    await link.release()


async def measure_fetch(n: int, repetitions: int) -> None:
    """Reading n finished tasks: all anew, nothing new, one new."""
    async with Rush() as rush:
        link = await Link.acquire(rush.config)
        for first in range(0, n, 10_000):
            numbers = range(first, min(n, first + 10_000))
            await rush.push_finished_tasks([{"x1": float(at), "x2": 0.5} for at in numbers], [{"y": 0.25} for _ in numbers])

        async def cold() -> int:
            rush.reset_cache()
            assert (await rush.fetch_finished_tasks()).height >= n
            return 1

        async def cached() -> int:
            for _ in range(20):
                await rush.fetch_finished_tasks()
            return 20

        async def one_new() -> int:
            for _ in range(20):
                await rush.push_finished_tasks([{"x1": 1.0, "x2": 0.5}], [{"y": 0.25}])
                await rush.fetch_finished_tasks()
            return 20

        async def push_one() -> int:
            for _ in range(20):
                await rush.push_finished_tasks([{"x1": 1.0, "x2": 0.5}], [{"y": 0.25}])
            return 20

        figures = await interleaved(
            {
                "a bare round trip": lambda: ping(link, 300),
                f"fetch {n:,}: cold": cold,
                f"fetch {n:,}: nothing new": cached,
                f"fetch {n:,}: push one and fetch": one_new,
                f"fetch {n:,}: the push alone": push_one,
            },
            repetitions,
        )
        round_trip, *others = figures.values()
        for figure in others:
            show(figure, round_trip)
        await link.release()
        await rush.reset()


async def main() -> None:
    """Prints all figures: median (min - max) of the repetitions."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="What the library costs.")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter repetitions")
    parser.add_argument("--most", type=int, default=100_000, help="the most tasks to fetch (default: 100,000)")
    options = parser.parse_args()
    repetitions, scale = (3, 1) if options.quick else (9, 4)
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores; median (min - max) of {repetitions} repetitions\n")
    await measure_tasks(repetitions, scale)
    for n in (1_000, 10_000, 100_000):
        if n <= options.most:
            await measure_fetch(n, repetitions)


if __name__ == "__main__":
    asyncio.run(main())
