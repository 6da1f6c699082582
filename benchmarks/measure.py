"""Repeated measurements in turn: on a shared machine only ratios within one run are meaningful, not absolute times."""

from __future__ import annotations

import gc
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from rush_async.wire.link import Link

__all__ = ["Usage", "facts", "resident_memory", "rounds", "timed", "usage"]


async def timed(work: Callable[[], Awaitable[int]]) -> float:
    """Seconds for each unit of work. `work` returns how many units it did."""
    gc.collect()
    start = time.perf_counter()
    n = await work()
    return (time.perf_counter() - start) / n


async def rounds(works: dict[str, Callable[[], Awaitable[int]]], repetitions: int) -> dict[str, list[float]]:
    """Runs all works in turn, so that a slow moment of the machine affects all of them. Returns the seconds for each unit."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repetitions):
        for name, work in works.items():
            seconds[name].append(await timed(work))
    return seconds


async def facts(link: Link, section: str) -> dict[str, str]:
    """A section of the server's INFO, as a dict."""
    lines = (await link.connection.ask("INFO", section)).decode().splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


@dataclass(frozen=True)
class Usage:
    """What the server has used since its start.

    Attributes:
        cpu: seconds of CPU.
        received: bytes.
        sent: bytes.
    """

    cpu: float
    received: int
    sent: int

    def __sub__(self, earlier: Usage) -> Usage:
        return Usage(self.cpu - earlier.cpu, self.received - earlier.received, self.sent - earlier.sent)


async def usage(link: Link) -> Usage:
    """Reads what the server has used since its start."""
    cpu, stats = await facts(link, "cpu"), await facts(link, "stats")
    seconds = float(cpu["used_cpu_user"]) + float(cpu["used_cpu_sys"])
    return Usage(seconds, int(stats["total_net_input_bytes"]), int(stats["total_net_output_bytes"]))


def resident_memory() -> int:
    """The worker memory of this process in bytes."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))
