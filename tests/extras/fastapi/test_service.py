"""A service without HTTP: a stop during a start, cancelled callers, and a full server."""

from __future__ import annotations

import asyncio
import math
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import anyio
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from rush_async import Coroutines, NetworkStateError, Rush, RushConfig, RushWorker
from rush_async.extras.fastapi import rush_lifespan, rush_router
from rush_async.extras.fastapi.bodies import WorkersRequest
from rush_async.extras.fastapi.service import Service
from rush_async.launch.handle import Launch, WorkerHandle
from rush_async.store.leases import Lease
from rush_async.testing import wait_until

ONE = WorkersRequest(loop="loop", evals=1, n_workers=1)


async def until_stopped(rush: RushWorker, evals: int) -> None:
    await rush.pop_task(None)


async def leaves(rush: RushWorker, evals: int) -> None:
    """Ends before its budget is spent."""


async def objective(xs: dict[str, Any]) -> dict[str, Any]:
    return {"y": 1}


class SlowStart:
    """Starts coroutines once the test sets `may_start`."""

    is_local: ClassVar[bool] = True

    def __init__(self) -> None:
        self.begun, self.may_start = asyncio.Event(), asyncio.Event()

    async def launch(self, launch: Launch) -> list[WorkerHandle]:
        self.begun.set()
        await self.may_start.wait()
        return await Coroutines().launch(launch)


async def test_a_service_that_stops_while_a_run_starts_leaves_no_worker_running(rush: Rush) -> None:
    service, slowly = Service(rush, 0.5), SlowStart()
    await service.open()
    starting = asyncio.ensure_future(service.start_workers("0" * 16, until_stopped, ONE, slowly))
    await slowly.begun.wait()
    await service.aclose()
    slowly.may_start.set()
    with pytest.raises(NetworkStateError, match="shutting down"):
        await starting
    others = [name for name in await networks(rush) if name != rush.network_id]
    assert len(others) == 1
    async with Rush(others[0], rush.config) as run:
        assert "running" not in (await run.worker_info())["state"].to_list()
        await run.reset()


async def networks(rush: Rush) -> list[str]:
    """The ids of all networks in the database."""
    found = await rush._net.link.connection.ask("KEYS", "rush:{*}:workers")  # pyright: ignore[reportPrivateUsage]
    return sorted(name.decode().partition("{")[2].rpartition("}")[0] for name in found)


@pytest.mark.parametrize("way", ["asyncio", "anyio"])
async def test_an_evaluation_whose_caller_is_cancelled_is_cancelled(rush: Rush, rush_worker: RushWorker, way: str) -> None:
    service = Service(rush, 0.5)
    await service.open()
    disconnected: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def evaluate() -> None:
        await service.evaluate(rush, {"x": 1}, timeout=60, retries=0, disconnected=disconnected)

    if way == "asyncio":
        asking = asyncio.ensure_future(evaluate())
        await rush.wait_until(lambda counts: counts.queued == 1, timeout=5)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
    else:
        async with anyio.create_task_group() as group:
            group.start_soon(evaluate)
            await rush.wait_until(lambda counts: counts.queued == 1, timeout=5)
            group.cancel_scope.cancel()
    assert await rush.counts() == (0, 0, 0, 1)
    await service.aclose()


async def test_evaluators_start_once_a_full_server_has_room_again(
    rush: Rush, raw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rush_async.extras.fastapi.service._PAUSE", 0.01)
    service = Service(rush, 0.5, objective, 2)
    raw.config_set("maxmemory", 1)
    try:
        await service.open()
        # Both have failed to start by now.
        await wait_until(lambda: raw.info("stats")["total_commands_processed"] and rush.counts())
    finally:
        raw.config_set("maxmemory", 0)
    await rush.wait_for_workers(2, timeout=10)
    await service.aclose()


async def test_an_evaluation_whose_caller_disconnects_is_cancelled(rush: Rush, rush_worker: RushWorker) -> None:
    service = Service(rush, 0.5)
    await service.open()
    disconnected: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    evaluation = asyncio.ensure_future(service.evaluate(rush, {"x": 1}, timeout=60, retries=0, disconnected=disconnected))
    await rush.wait_until(lambda counts: counts.queued == 1, timeout=5)
    disconnected.set_result(None)
    with pytest.raises(NetworkStateError, match="the client disconnected"):
        await evaluation
    assert await rush.counts() == (0, 0, 0, 1)
    await service.aclose()


async def test_ended_runs_are_deleted_after_their_time_to_live_and_running_ones_are_not(rush: Rush) -> None:
    service = Service(rush, 0.5, run_ttl=0.3)
    await service.open()
    ended, running = "0" * 16, "1" * 16
    await service.start_workers(running, until_stopped, ONE)
    await service.start_workers(ended, leaves, ONE)
    assert [run.id for run in await service.runs()] == [ended, running]

    async def only_the_older_one() -> bool:
        return [run.id for run in await service.runs()] == [running]

    await wait_until(only_the_older_one)
    await service.aclose()
    async with service.client(running) as run:
        await run.reset()
    assert await networks(rush) == []


async def test_a_run_whose_process_is_gone_is_found_lost_after_one_look_at_it(rush: Rush, raw: Any) -> None:
    run_id = "2" * 16
    async with Rush(rush.network_id, replace(rush.config, heartbeat_period=0.1, heartbeat_expire=0.3)) as quick:
        service = Service(quick, 0.5)
        await service.open()
        async with service.client(run_id) as run:
            workers = run._net.workers  # pyright: ignore[reportPrivateUsage]
            await workers.register("ghost", Lease("of-a-process-that-is-gone", 0.1, 0.3), {"pid": 1})
        assert [run.state for run in await service.runs()] == ["running"]
        entries = f"rush:{{{rush.network_id}.{run_id}}}:workers"
        await wait_until(lambda: raw.hget(entries, "ghost").startswith(b"lost "))
        (found,) = await service.runs()
        assert found.ended is not None
        assert (found.ended.why, found.ended.detail) == ("failed", "Worker has crashed or was killed")
        async with service.client(run_id) as run:
            await run.reset()
        await service.aclose()


def blocking(xs: dict[str, Any]) -> dict[str, Any]:
    return {"y": xs["x"], "thread": threading.get_ident()}


def test_a_plain_function_is_an_objective_in_a_thread_and_other_values_are_refused(directory: Path) -> None:
    app = FastAPI(lifespan=rush_lifespan("plain", RushConfig(data_dir=directory), objective=blocking))

    @app.get("/thread")
    async def thread() -> int:
        return threading.get_ident()

    app.include_router(rush_router({}))
    with TestClient(app) as client:
        ys = client.post("/evaluate", json={"xs": {"x": 2}}).json()["ys"]
        assert ys["y"] == 2
        assert ys["thread"] != client.get("/thread").json()
    with pytest.raises(TypeError, match="objective is a function of one input, not int: 3"):
        rush_lifespan("plain", objective=3)  # pyright: ignore[reportArgumentType]
    for arguments in ({"drain": "5"}, {"n_evaluators": True}, {"run_ttl": 0}, {"run_ttl": math.nan}):
        with pytest.raises((TypeError, ValueError), match=f"{next(iter(arguments))} must be"):
            rush_lifespan("plain", **arguments)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="the worker loop blocking is not `async def`"):
        rush_router({"blocking": blocking})  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"cannot be called with \['evals'\]"):
        rush_router({"no-evals": objective})  # pyright: ignore[reportArgumentType]
