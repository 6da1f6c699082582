"""All figures in one table, beside a bare round trip or another reference of the same run: medians (min - max).

python -m benchmarks [--quick] [--repetitions N] [--json FILE] [--compare FILE] [--check 4]

A row with a goal says whether it is reached. Other libraries are measured if `python -m benchmarks peers install` has made
their environments. Other programs:

- `python -m benchmarks peers run` measures only the other libraries, and ours beside them;
- `python -m benchmarks pairs --with PATH` compares this checkout with another;
- `python -m benchmarks failovers` kills masters behind Sentinels and in a cluster, under load;
- `python -m benchmarks export --tasks 1000000` exports and imports a network, and shows times and peak memory;
- `python -m benchmarks soak --minutes N --seed S` breaks connections, servers and processes, and checks that nothing is lost;
- `python -m benchmarks.curves` shows how throughput, times and memory scale;
- `python -m benchmarks.losses` kills processes round by round;
- `python -m benchmarks.workers` runs 448 workers;
- `python -m benchmarks.optimizers` compares the optimisers of the tutorial.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import platform
import sys
from pathlib import Path

from benchmarks import exports, pairs
from benchmarks.faults import soak
from benchmarks.losses import measure_deaths, measure_idle
from benchmarks.peers import __main__ as peers
from benchmarks.reads import measure_archive_memory, measure_reads, measure_seen_elsewhere
from benchmarks.report import Table, compare, read
from benchmarks.server import measure_commands, measure_deaf_subscribers, measure_stalls, measure_start
from benchmarks.tasks import measure_counters, measure_fetching_loop, measure_tasks

PARTS = ("tasks", "loop", "counters", "reads", "elsewhere", "start", "stalls", "deaf", "memory", "deaths", "idle", "peers")


async def measure(table: Table, parts: list[str], repetitions: int, *, quick: bool) -> None:
    """Measures these parts and adds their rows to the table."""
    scale = 1 if quick else 4
    if "tasks" in parts:
        await measure_tasks(table, repetitions, scale)
    if "loop" in parts:
        await measure_fetching_loop(table, repetitions, scale)
    if "counters" in parts:
        await measure_counters(table, repetitions)
    if "reads" in parts:
        await measure_reads(table, repetitions, 100_000 if quick else 1_000_000)
    if "elsewhere" in parts:
        await measure_seen_elsewhere(table, repetitions, 100 if quick else 300)
    if "start" in parts:
        measure_start(table, repetitions)
        await measure_commands(table, repetitions)
    if "stalls" in parts:
        await measure_stalls(table, 100_000)
    if "deaf" in parts:
        await measure_deaf_subscribers(table, 200_000)
    if "memory" in parts:
        await measure_archive_memory(table, min(repetitions, 3), [100_000])
    if "deaths" in parts:
        await measure_deaths(table, 5 if quick else 20)
    if "idle" in parts:
        await measure_idle(table, 1_000 if quick else 10_000)


def main() -> None:
    """Runs what the command line asks for."""
    if sys.argv[1:2] == ["peers"]:
        peers.main(sys.argv[2:])
        return
    if sys.argv[1:2] == ["failovers"]:
        from benchmarks import failovers  # it needs what the tests need

        failovers.main(sys.argv[2:])
        return
    if sys.argv[1:2] == ["export"]:
        exports.main(sys.argv[2:])
        return
    if sys.argv[1:2] == ["soak"]:
        soak.main(sys.argv[2:])
        return
    if sys.argv[1:2] == ["pairs"]:
        pairs.main(sys.argv[2:], [part for part in PARTS if part != "peers"])
        return
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="The figures of the library and its goals.")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter repetitions")
    parser.add_argument("--repetitions", type=int, help="how often each is measured (default: 9, quick: 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="print the ratios to an earlier --json")
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--check", type=float, metavar="FACTOR", help="fail when a goal is missed by more than this factor")
    options = parser.parse_args()
    parts = options.only.split(",")
    if unknown := set(parts).difference(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}: choose from {', '.join(PARTS)}")
    earlier = read(options.compare) if options.compare else []
    table = Table()
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores; medians (min - max)")
    logging.disable(logging.ERROR)  # the deaths are intended
    repetitions = options.repetitions or (3 if options.quick else 9)
    asyncio.run(measure(table, parts, repetitions, quick=options.quick))
    if "peers" in parts:
        peers.measure(table, quick=options.quick)
    if options.json:
        table.write(options.json)
    if options.compare:
        compare(table.rows, earlier)
    if options.check and (missed := table.missed(options.check)):
        names = "; ".join(f"{row.section}: {row.name}" for row in missed)
        sys.exit(f"\nmissed by more than a factor of {options.check:g}: {names}")


if __name__ == "__main__":
    main()
