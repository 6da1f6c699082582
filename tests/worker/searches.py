"""Searches whose proposals are one function of their draw; in a module, so that processes can import them."""

from __future__ import annotations

import asyncio
from typing import Any

from rush_async import Draw, RushWorker

SEED = 42


def xs_of(draw: Draw) -> dict[str, float]:
    return {"x": draw.random().uniform(-5, 10)}


def search(draw: Draw) -> dict[str, float]:
    return xs_of(draw)


async def run_search(rush: RushWorker, budget: int | None = None, fails: bool = False, seconds: float = 0.0) -> None:
    """A random search. An objective that `fails` does so for a third of its inputs."""
    async for task in rush.proposals(search, budget=budget, catch=ValueError):
        async with task:
            x: Any = task.xs["x"]
            await asyncio.sleep(seconds)
            if fails and int(abs(x) * 1000) % 3 == 0:
                raise ValueError(f"the objective fails at {x}")
            task.ys = {"y": x * x}
