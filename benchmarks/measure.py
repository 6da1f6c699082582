"""Repeating in turns: absolute times mean little on a shared machine, ratios within one run do."""

from __future__ import annotations

import gc
import time
from collections.abc import Awaitable, Callable

__all__ = ["rounds", "timed"]


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
