"""`python -m benchmarks soak --minutes 30 --seed 1`: rounds of the fault bench, one after the other, for some time.

It prints a line a round, and in the end the faults by kind, tasks, violations, the longest pause, and memory over time.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.faults.bench import Bench, Result, plan_of
from benchmarks.faults.work import silence_log

__all__ = ["Soak", "main", "soak"]

_MIB = 1024 * 1024
_MOST_SHOWN = 5  # violations of a round that are printed


@dataclass
class Soak:
    """What became of all rounds.

    Attributes:
        seed: the seed.
        rounds: how many there were.
        n_tasks: how many tasks.
        n_calls: how many calls of clients.
        n_unknown: how many of them ended without an answer.
        n_cancelled: how many were cancelled.
        faults: by kind.
        n_violations: how many promises were not kept.
        pause: the longest time in which no call was answered, in seconds.
        memory: by whose it is, after each round, in bytes.
    """

    seed: int
    rounds: int = 0
    n_tasks: int = 0
    n_calls: int = 0
    n_unknown: int = 0
    n_cancelled: int = 0
    faults: Counter[str] = field(default_factory=Counter[str])
    n_violations: int = 0
    pause: float = 0.0
    memory: dict[str, list[int]] = field(default_factory=dict[str, list[int]])

    def add(self, result: Result, memory: dict[str, int]) -> None:
        """Adds a round."""
        self.rounds += 1
        self.n_tasks += result.n_tasks
        self.n_calls += result.n_calls
        self.n_unknown += result.n_unknown
        self.n_cancelled += result.n_cancelled
        self.faults += result.faults
        self.n_violations += len(result.violations)
        self.pause = max(self.pause, result.pause)
        for whose, size in memory.items():
            self.memory.setdefault(whose, []).append(size)

    def summary(self) -> str:
        """Returns the figures of all rounds as text."""
        lines = [f"{n:7,} {kind}" for kind, n in sorted(self.faults.items(), key=lambda item: -item[1])]
        lines.append(f"{self.faults.total():7,} faults, and {self.n_cancelled:,} calls cancelled at a random moment")
        lines.append(f"{self.n_tasks:,} tasks, {self.n_calls:,} calls, {self.n_unknown:,} of them without an answer")
        lines.append(f"longest pause without any answer: {self.pause:.1f} s")
        for whose, sizes in self.memory.items():
            tenths = [sizes[len(sizes) * at // 10] for at in range(10)] + sizes[-1:]
            lines.append(
                f"memory, {whose}: {' '.join(f'{size / _MIB:.1f}' for size in tenths)} MiB from the first round to the last"
            )
        lines.append(f"{self.n_violations} violations in {self.rounds} rounds, seed {self.seed}")
        return "\n".join(lines)


def describe(at: int, result: Result, memory: dict[str, int]) -> str:
    """Returns a round as a line."""
    queued, _, finished, failed = result.counts
    sizes = ", ".join(f"{whose} {size / _MIB:.1f}" for whose, size in memory.items())
    return (
        f"round {at} {result.plan.kind}: {finished:,} finished, {failed:,} failed, {queued:,} queued; "
        f"{result.faults.total()} faults, {result.n_calls:,} calls, {result.n_unknown} unknown; "
        f"longest pause {result.pause:.1f} s; {result.seconds:.1f} s; MiB: {sizes}"
    )


def report(at: int, seed: int, result: Result, words: str) -> str:
    """Returns the violations of a round, each with its history, and the line that runs the round again."""
    lines: list[str] = []
    for violation, history in result.violations[:_MOST_SHOWN]:
        lines += [f"VIOLATION: {violation}", *(f"    {line}" for line in history)]
    if len(result.violations) > _MOST_SHOWN:
        lines.append(f"... and {len(result.violations) - _MOST_SHOWN} more")
    faults = ", ".join(f"{n} x {kind}" for kind, n in result.faults.items())
    return "\n".join([*lines, f"faults: {faults}", f"again: python -m benchmarks soak --seed {seed} --round {at}{words}"])


async def soak(
    directory: Path,
    seed: int,
    rounds: Sequence[int] | None = None,
    *,
    minutes: float = 0.0,
    n_processes: int = 3,
    n_tasks: int = 6_000,
    n_workers: int = 12,
    rate: float = 8.0,
    binary: str = "",
) -> Soak:
    """Runs rounds, prints each, and returns their figures.

    Args:
        directory: for sockets, data and histories; a short path.
        seed: decides what happens in each round.
        rounds: which rounds; by default one after the other, until the time is over.
        minutes: how long.
        n_processes: how many processes work.
        n_tasks: about how many tasks a round has.
        n_workers: how many workers each process has.
        rate: how many faults a second, about.
        binary: the server, such as `redis-server`; by default the embedded one.
    """
    total, deadline = Soak(seed), time.monotonic() + 60 * minutes
    words = f" --processes {n_processes} --tasks {n_tasks} --workers {n_workers} --rate {rate:g}"
    words += f" --server {binary}" if binary else ""
    async with Bench.opened(directory, n_processes=n_processes, binary=binary) as bench:
        at = 0
        while at < len(rounds) if rounds is not None else time.monotonic() < deadline:
            number = at if rounds is None else rounds[at]
            plan = plan_of(seed, number, n_tasks=n_tasks, n_workers=n_workers, rate=rate)
            try:
                result = await bench.round(plan)
            except Exception as error:
                error.add_note(
                    f"in round {number} of seed {seed}: python -m benchmarks soak --seed {seed} --round {number}{words}"
                )
                raise
            memory = bench.memory()
            total.add(result, memory)
            print(describe(number, result, memory), flush=True)
            if result.violations:
                print(report(number, seed, result, words), flush=True)
            at += 1
    return total


def main(args: Sequence[str]) -> None:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks soak", description="The fault bench, for some time.")
    parser.add_argument("--minutes", type=float, default=5.0, help="how long (default: 5)")
    parser.add_argument("--seed", type=int, help="decides what happens (default: a random one)")
    parser.add_argument("--round", type=int, action="append", help="run only this round; may be given several times")
    parser.add_argument("--processes", type=int, default=3, help="how many processes work (default: 3)")
    parser.add_argument("--workers", type=int, default=12, help="how many workers each process has (default: 12)")
    parser.add_argument("--tasks", type=int, default=6_000, help="about how many tasks a round has (default: 6000)")
    parser.add_argument("--rate", type=float, default=8.0, help="how many faults a second, about (default: 8)")
    parser.add_argument("--server", default="", metavar="PROGRAM", help="such as redis-server (default: the embedded server)")
    options = parser.parse_args(args)
    seed = random.randrange(2**31) if options.seed is None else options.seed
    silence_log()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that processes and server end, too
    with tempfile.TemporaryDirectory(prefix="soak-") as directory:
        work = soak(
            Path(directory),
            seed,
            options.round,
            minutes=options.minutes,
            n_processes=options.processes,
            n_tasks=options.tasks,
            n_workers=options.workers,
            rate=options.rate,
            binary=options.server,
        )
        total = asyncio.run(work)
    print(total.summary())
    sys.exit(1 if total.n_violations else 0)
