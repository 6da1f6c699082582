"""Workers as coroutines of the manager's event loop; what holds for processes as well is in `test_workers`."""

from __future__ import annotations

import asyncio
import time

import pytest

from rush_async import Coroutines, Rush, RushWorker
from tests.launch.loops_of_tests import hold, serve


async def test_a_stop_reaches_workers_that_have_not_come_in_yet(rush: Rush) -> None:
    seen: list[bool] = []

    async def loop(rush: RushWorker) -> None:
        seen.append(rush.terminated)
        async with rush.task({"x": 1}) as task:
            await asyncio.sleep(0)
            task.ys = {"y": 1}

    await rush.start_workers(loop, 3, on=Coroutines())
    await rush.stop_workers()
    assert seen == [True] * 3
    # Asked, not cancelled: what they had begun is finished.
    assert await rush.counts() == (0, 0, 3, 0)
    assert set((await rush.worker_info())["state"]) == {"terminated"}


async def test_a_kill_reaches_workers_that_have_not_come_in_yet(rush: Rush) -> None:
    ids = await rush.start_workers(hold, 3)
    await rush.stop_workers(mode="kill")
    assert set((await rush.worker_info())["state"]) == {"killed"}
    assert [end.state for end in await rush.join_workers(ids)] == ["killed"] * 3
    assert (await rush.counts()).running == 0


async def test_the_loop_of_a_killed_worker_ends_before_stop_workers_returns(rush: Rush) -> None:
    ended: list[str] = []

    async def loop(rush: RushWorker) -> None:
        try:
            await rush.pop_task(timeout=None)
        finally:
            await asyncio.sleep(0.01)
            ended.append(rush.worker_id)

    ids = await rush.start_workers(loop, 2)
    await rush.wait_for_workers(2)
    await rush.stop_workers(mode="kill")
    assert sorted(ended) == sorted(ids)


async def test_one_that_swallows_its_cancellation_does_not_hold_up_the_closing(
    rush: Rush, caplog: pytest.LogCaptureFixture
) -> None:
    may_end = asyncio.Event()

    async def loop(rush: RushWorker) -> None:
        while not may_end.is_set():
            try:
                await may_end.wait()
            except asyncio.CancelledError:
                continue

    async with Rush(rush.network_id, rush.config) as other:
        await other.start_workers(loop, 1)
        await other.wait_for_workers(1)
        begun = time.monotonic()
    assert time.monotonic() - begun < 8
    assert "swallows its cancellation" in caplog.text
    assert (await rush.worker_info())["state"].to_list() == ["killed"]
    may_end.set()


async def test_a_thousand_start_and_stop_quickly(rush: Rush) -> None:
    begun = time.monotonic()
    await rush.start_workers(serve, 1000)
    await rush.wait_for_workers(1000)
    await rush.stop_workers()
    assert time.monotonic() - begun < 5  # measured: 0.4 s
    assert set((await rush.worker_info())["state"]) == {"terminated"}
