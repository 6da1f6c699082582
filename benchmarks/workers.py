"""The overhead of rush for 448 workers in 4 local processes. The paper behind the R package used as many workers.

python -m benchmarks.workers [--quick] [--workers 448] [--processes 4] [--spread 0.5]

Each worker runs a loop of 20 ms sleeps, once with a task proposed and reported around each sleep and once without these calls.
The starts of the loops are spread over one sleep. Sleeps of equal duration make the workers call in bunches, because calls that
are sent together are answered together. `--spread 0.5` varies the durations.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.measure import usage
from rush_async import Processes, Rush, RushWorker
from rush_async.wire.link import Link

SLEEP = 0.02


async def sleep_in_tasks(rush: RushWorker, begin: float, seconds: float, spread: float, out: str, with_rush: bool) -> None:
    """Sleeps again and again, with or without a task around each sleep. Writes how often, and the CPU time of the process."""
    await asyncio.sleep(begin - time.time() + random.uniform(0, SLEEP))
    clock = asyncio.get_running_loop().time
    end, n, cpu = clock() + seconds, 0, time.process_time()
    while clock() < end:
        duration = SLEEP * random.uniform(1 - spread, 1 + spread)
        if with_rush:
            async with rush.task({"x1": 1.0, "x2": 2.0}) as task:
                await asyncio.sleep(duration)
                task.ys = {"y": 1.0}
        else:
            await asyncio.sleep(duration)
        n += 1
    Path(out, rush.worker_id).write_text(f"{n} {time.process_time() - cpu}")  # noqa: ASYNC240 - after the measurement


async def measure(
    seconds: float, n_workers: int, n_processes: int, spread: float, *, with_rush: bool
) -> tuple[float, float, float]:
    """Iterations of all loops in a second, and the seconds of CPU that workers and server used in a second."""
    async with Rush() as rush:
        link = await Link.acquire(rush.config)

        with tempfile.TemporaryDirectory() as out:
            begin = time.time() + 5  # by then all workers run, and the manager no longer listens to events for them
            options = {"begin": begin, "seconds": seconds, "spread": spread, "out": out, "with_rush": with_rush}
            await rush.start_workers(sleep_in_tasks, n_workers, on=Processes(n_processes), args=options)
            await asyncio.sleep(begin - time.time())
            before = await usage(link)
            await asyncio.sleep(seconds)
            used = (await usage(link) - before).cpu
            await rush.join_workers()
            notes = [file.read_text().split() for file in Path(out).iterdir()]  # noqa: ASYNC240
        assert len(notes) == n_workers
        # Each loop wrote the CPU time of its whole process.
        cpu = sum(float(used) for _, used in notes) / (n_workers / n_processes)
        await link.release()
        await rush.reset()
    return sum(int(n) for n, _ in notes) / seconds, cpu / seconds, used / seconds


async def main() -> None:
    """Prints medians (min - max) of interleaved repetitions."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.workers", description="The overhead of rush for many workers.")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter repetitions")
    parser.add_argument("--workers", type=int, default=448)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--spread", type=float, default=0.0, help="the share of 20 ms by which the sleeps vary")
    given = parser.parse_args()
    repetitions, seconds = (2, 2.0) if given.quick else (5, 5.0)
    asked = (seconds, given.workers, given.processes, given.spread)
    with_rush: list[tuple[float, float, float]] = []
    without: list[tuple[float, float, float]] = []
    for _ in range(repetitions):
        without.append(await measure(*asked, with_rush=False))
        with_rush.append(await measure(*asked, with_rush=True))
    varied = f" that vary by {given.spread:.0%}" if given.spread else ""
    print(f"{given.workers} workers over {given.processes} processes, loops of {SLEEP * 1e3:g} ms sleeps{varied}")
    for name, runs in (("without rush", without), ("with rush", with_rush)):
        rates = [rate for rate, _, _ in runs]
        text = f"{name:<16} {statistics.median(rates):>10,.0f} iterations/s  ({min(rates):,.0f} - {max(rates):,.0f})"
        workers, server = (statistics.median([run[at] / run[0] * 1e6 for run in runs]) for at in (1, 2))
        print(f"{text}  {workers:5.1f} us of the workers' CPU and {server:4.1f} us of the server's an iteration")
    ratios = [one[0] / other[0] for one, other in zip(with_rush, without, strict=True)]
    print(f"with over without  {statistics.median(ratios):>8.1%}  ({min(ratios):.1%} - {max(ratios):.1%})")


if __name__ == "__main__":
    asyncio.run(main())
