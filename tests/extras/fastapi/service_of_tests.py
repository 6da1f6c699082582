"""A service for the tests, run by uvicorn. Its inputs say how long an evaluation takes and whether it fails."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import fastapi.routing
from fastapi import FastAPI

from rush_async import RushConfig, RushWorker
from rush_async.extras.fastapi import rush_lifespan, rush_router

# FastAPI writes a comment into a stream that is idle for 15 seconds, which is too long for a test.
fastapi.routing._PING_INTERVAL = 0.2  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]


async def objective(xs: dict[str, Any]) -> dict[str, Any]:
    """Sleeps for `sleep` seconds, then raises with the message `fail`, or returns."""
    await asyncio.sleep(xs.get("sleep", 0))
    if "fail" in xs:
        raise ArithmeticError(xs["fail"])
    return {"y": -xs.get("x", 0), "pid": os.getpid()}


async def search(rush: RushWorker, evals: int) -> None:
    """Finishes tasks until the budget is spent."""
    while not rush.terminated:
        async with rush.task({"x": (rush.n_finished_tasks * 7) % 11}, budget=evals) as task:
            if task is None:
                break
            task.ys = await objective(task.xs)
        await asyncio.sleep(0)


async def queue(rush: RushWorker, evals: int) -> None:
    """Serves the queue of its run and proposes nothing."""
    async for task in rush.tasks():
        async with task:
            task.ys = await objective(task.xs)


async def orderly(rush: RushWorker, evals: int) -> None:
    """Runs tasks until it is asked to stop, and finishes the last one."""
    while not rush.terminated:
        async with rush.task({"x": 1}) as task:
            await asyncio.sleep(0.05)
            task.ys = {"y": 1.0}


async def reporting(rush: RushWorker, evals: int) -> None:
    """Reports twice on each task."""
    while not rush.terminated:
        async with rush.task({"x": rush.n_finished_tasks}, budget=evals) as task:
            if task is None:
                break
            await task.report({"loss": 1.0})
            await task.report({"loss": float("nan"), "epoch": 2})
            task.ys = {"y": 1.0}


async def stuck(rush: RushWorker, evals: int) -> None:
    """Runs one task that never ends."""
    async with rush.task({"x": 1}):
        await asyncio.sleep(3600)


async def broken(rush: RushWorker, evals: int) -> None:
    """Fails at once."""
    raise LookupError("the loop is broken")


LOOPS = {loop.__name__: loop for loop in (search, queue, orderly, reporting, stuck, broken)}


def create_app() -> FastAPI:
    """The service, configured by environment variables."""
    url, data_dir = os.environ.get("RUSH_URL"), os.environ.get("RUSH_DATA_DIR")
    config = RushConfig(url, data_dir, heartbeat_period=0.2, heartbeat_expire=2.0)
    drain = float(os.environ.get("DRAIN", "5"))
    app = FastAPI(lifespan=rush_lifespan("service", config, objective=objective, n_evaluators=2, drain=drain))
    app.include_router(rush_router(LOOPS))

    @app.get("/n-tasks")
    async def n_tasks() -> int:
        return len(asyncio.all_tasks())

    return app
