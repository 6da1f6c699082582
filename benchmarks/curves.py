"""Scaling: tasks a second and their cost over coroutines and processes; the time of a task and of a fetch, and the memory of
the archive, over finished tasks.

python -m benchmarks.curves [--quick] [--json FILE] [--plot docs/figures/curves.svg]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from pathlib import Path

from benchmarks.measure import usage
from benchmarks.reads import fill, measure_archive_memory
from benchmarks.report import Row, Table
from benchmarks.tasks import propose_and_report
from rush_async import Coroutines, Processes, Rush, RushWorker
from rush_async.wire.link import Link

RATES, CPU, TRAVEL = "Tasks a second, proposed and reported", "The server's CPU for a task", "What travels for a task"
GROWTH = "Time over what is finished already"
COROUTINES, PROCESSES = (1, 4, 16, 64, 256, 1024), (1, 2, 4)
SIZES = (1_000, 10_000, 100_000, 1_000_000)


async def work(rush: RushWorker, begin: float, seconds: float) -> None:
    """Proposes and reports tasks without an objective, from `begin` on for so many seconds."""
    await asyncio.sleep(begin - time.time())
    while time.time() < begin + seconds:
        await propose_and_report(rush, 4)


async def rate(n_workers: int, n_processes: int, seconds: float) -> tuple[float, float, float]:
    """Tasks a second of all workers, and for each task the microseconds of the server's CPU and the bytes on the network."""
    async with Rush() as rush:
        link = await Link.acquire(rush.config)
        begin = time.time() + 1 + n_processes + n_workers / 500
        on = Processes(n_processes) if n_processes > 1 else Coroutines()
        await rush.start_workers(work, n_workers, on=on, args={"begin": begin, "seconds": seconds})
        await asyncio.sleep(begin - time.time())
        before = await usage(link)
        await rush.join_workers()
        used = await usage(link) - before
        n = (await rush.counts()).finished
        await link.release()
        await rush.reset()
    return n / seconds, used.cpu / n * 1e6, (used.received + used.sent) / n


async def measure_rates(table: Table, repetitions: int, seconds: float) -> None:
    """Rates for all numbers of coroutines in one process, and for the larger numbers in several processes."""
    pairs = [(n, p) for p in PROCESSES for n in COROUTINES if n >= 16 or p == 1]
    found: dict[tuple[int, int], list[tuple[float, float, float]]] = {pair: [] for pair in pairs}
    for _ in range(repetitions):
        for pair in pairs:
            found[pair].append(await rate(*pair, seconds))
    for at, (section, unit) in enumerate(((RATES, "/s"), (CPU, "us"), (TRAVEL, "bytes"))):
        for (n, p), values in found.items():
            name = f"{n:,} coroutines in {p} process{'es' if p > 1 else ''}"
            table.add(Row(section, name, [value[at] for value in values], unit))


async def measure_growth(table: Table, repetitions: int, most: int) -> None:
    """The times of the same calls beside more and more finished tasks."""
    async with Rush() as rush, RushWorker(rush.network_id, rush.config) as worker:
        for n in SIZES:
            if n > most:
                break
            await fill(rush, n)
            await rush.fetch_finished_tasks()
            tasks: list[float] = []
            fetches: list[float] = []
            for _ in range(repetitions):
                begun = time.perf_counter()
                await propose_and_report(worker, 200)
                tasks.append((time.perf_counter() - begun) / 200 * 1e6)
                each: list[float] = []
                for _ in range(100):
                    await propose_and_report(worker, 1)
                    begun = time.perf_counter()
                    await rush.fetch_finished_tasks()
                    each.append(time.perf_counter() - begun)
                fetches.append(statistics.median(each) * 1e6)
            table.add(Row(GROWTH, f"a task beside {n:,}", tasks, "us"))
            table.add(Row(GROWTH, f"a fetch of one new beside {n:,}", fetches, "us"))
        await worker.aclose()
        await rush.reset()


def plot(table: Table, path: Path) -> None:
    """Draws rates over coroutines and times over finished tasks."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "curves"
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    medians = {row.name: row.median for row in table.rows if row.section in (RATES, GROWTH)}
    for p in PROCESSES:
        ending = f"coroutines in {p} process{'es' if p > 1 else ''}"
        points = [(n, medians[name]) for n in COROUTINES if (name := f"{n:,} {ending}") in medians]
        left.plot(*zip(*points, strict=True), marker="o", label=f"{p} process{'es' if p > 1 else ''}")
    left.set(xscale="log", xlabel="coroutines in all", ylabel="tasks a second", ylim=(0, None))
    left.legend()
    for what in ("a task", "a fetch of one new"):
        points = [(n, medians[name]) for n in SIZES if (name := f"{what} beside {n:,}") in medians]
        right.plot(*zip(*points, strict=True), marker="o", label=what)
    right.set(xscale="log", xlabel="finished tasks", ylabel="microseconds", ylim=(0, None))
    right.legend()
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None}, facecolor="white")


def main() -> None:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.curves", description="How throughput, times and memory scale.")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter repetitions")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the figures there, as SVG")
    options = parser.parse_args()
    repetitions, seconds = (1, 0.5) if options.quick else (3, 2.0)
    table = Table()
    asyncio.run(measure_rates(table, repetitions, seconds))
    most = 100_000 if options.quick else 1_000_000
    asyncio.run(measure_growth(table, repetitions, most))
    asyncio.run(measure_archive_memory(table, repetitions, [n for n in SIZES if 10_000 <= n <= most]))
    if options.json:
        table.write(options.json)
    if options.plot:
        plot(table, options.plot)


if __name__ == "__main__":
    main()
