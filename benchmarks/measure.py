"""Repeating in turns: absolute times mean little on a shared machine, ratios within one run do."""

from __future__ import annotations

import gc
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from rush_async.wire.link import Link

__all__ = ["Usage", "facts", "resident_memory", "rounds", "timed", "usage"]


async def timed(work: Callable[[], Awaitable[int]]) -> float:
    """Seconds a unit: `work` returns how many units it did."""
    gc.collect()
    start = time.perf_counter()
    n = await work()
    return (time.perf_counter() - start) / n


async def rounds(works: dict[str, Callable[[], Awaitable[int]]], repetitions: int) -> dict[str, list[float]]:
    """Runs all works in turn, again and again, so that a slow moment of the machine hits each of them; seconds a unit."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repetitions):
        for name, work in works.items():
            seconds[name].append(await timed(work))
    return seconds


async def facts(link: Link, section: str) -> dict[str, str]:
    """What the server says of itself, by name."""
    lines = (await link.connection.ask("INFO", section)).decode().splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


@dataclass(frozen=True)
class Usage:
    """What the server has used so far.

    Attributes:
        cpu: seconds.
        received: bytes.
        sent: bytes.
    """

    cpu: float
    received: int
    sent: int

    def __sub__(self, earlier: Usage) -> Usage:
        return Usage(self.cpu - earlier.cpu, self.received - earlier.received, self.sent - earlier.sent)


async def usage(link: Link) -> Usage:
    """What the server has used so far."""
    cpu, stats = await facts(link, "cpu"), await facts(link, "stats")
    seconds = float(cpu["used_cpu_user"]) + float(cpu["used_cpu_sys"])
    return Usage(seconds, int(stats["total_net_input_bytes"]), int(stats["total_net_output_bytes"]))


def resident_memory() -> int:
    """Bytes of memory that this process has in use."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))
