"""Repeating, interleaving and printing: absolute times mean little on a shared machine, ratios within one run do."""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

__all__ = ["Figure", "interleaved", "show", "timed"]


@dataclass(frozen=True)
class Figure:
    """One measured quantity: what, its values in seconds a unit, and the units a repetition."""

    name: str
    seconds: list[float]

    @property
    def median(self) -> float:
        """The middle value."""
        return statistics.median(self.seconds)


async def timed(work: Callable[[], Awaitable[int]]) -> float:
    """Seconds a unit: `work` returns how many units it did."""
    start = time.perf_counter()
    n = await work()
    return (time.perf_counter() - start) / n


async def interleaved(works: dict[str, Callable[[], Awaitable[int]]], repetitions: int) -> dict[str, Figure]:
    """Runs all works in turn, again and again, so that a slow moment of the machine hits each of them."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repetitions):
        for name, work in works.items():
            seconds[name].append(await timed(work))
    return {name: Figure(name, values) for name, values in seconds.items()}


def show(figure: Figure, round_trip: Figure, *, rate: bool = False) -> None:
    """Prints a figure beside the bare round trip of the same run."""
    low, high = min(figure.seconds), max(figure.seconds)
    text = f"{figure.name:<44} {figure.median * 1e6:>12,.1f} us  ({low * 1e6:,.1f} - {high * 1e6:,.1f})"
    text += f"  {figure.median / round_trip.median:>9,.2f} round trips"
    if rate:
        text += f"  {1 / figure.median:>9,.0f} /s"
    print(text)
