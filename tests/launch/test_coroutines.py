"""Workers as coroutines of the manager's event loop; behaviour that processes share is tested in `test_workers`."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from rush_async import Coroutines, Rush, RushWorker, Task
from rush_async.testing import wait_until
from tests.launch.loops_of_tests import hold


async def test_a_stop_reaches_workers_that_have_not_registered_yet(rush: Rush, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    subscription, may_register = rush._net.link.subscription, asyncio.Event()  # pyright: ignore[reportPrivateUsage]
    confirmed = subscription.confirmed

    async def confirmed_later(name: str) -> None:
        await may_register.wait()
        await confirmed(name)

    async def loop(rush: RushWorker) -> None:
        seen.append(rush.terminated)
        async with rush.task({"x": 1}) as task:
            await asyncio.sleep(0)
            task.ys = {"y": 1}

    monkeypatch.setattr(subscription, "confirmed", confirmed_later)
    await rush.start_workers(loop, 3, on=Coroutines())
    await rush.stop_workers(timeout=0)
    may_register.set()
    await rush.join_workers()
    assert seen == [True] * 3
    # They are asked to stop, not cancelled, so the tasks that they had begun are finished.
    assert await rush.counts() == (0, 0, 3, 0)
    assert set((await rush.worker_info())["state"]) == {"terminated"}


async def test_a_kill_reaches_workers_that_have_not_registered_yet(rush: Rush) -> None:
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


async def test_a_worker_that_swallows_its_cancellation_does_not_delay_the_closing(
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


async def test_idle_workers_share_three_connections_and_send_no_commands(rush: Rush, raw: Any) -> None:
    n, n_impatient = 2_000, 50
    popped: list[Task | None] = []

    async def wait(rush: RushWorker) -> None:
        while (task := await rush.pop_task(timeout=None)) is not None:
            await rush.finish_tasks(task.key, [{"y": task.xs["x"]}])

    async def wait_a_moment(rush: RushWorker, begins: asyncio.Event) -> None:
        await begins.wait()
        popped.append(await rush.pop_task(timeout=0.01))

    def n_scripts() -> int:
        return raw.info("commandstats")["cmdstat_evalsha"]["calls"]

    others = len(raw.client_list())
    begins = asyncio.Event()
    await rush.start_workers(wait, n)
    impatient = await rush.start_workers(wait_a_moment, n_impatient, begins=begins)
    await rush.wait_for_workers(n + n_impatient)
    network = rush._net  # pyright: ignore[reportPrivateUsage]
    await wait_until(lambda: network.feed.is_watching and network.feed.n_users == n)
    await network.tasks.calls.quiet()
    assert len(raw.client_list()) - others <= 1 + 2  # the client was counted, a heartbeat may have connected
    before = n_scripts()
    begins.set()
    await wait_until(lambda: len(popped) == n_impatient)
    assert popped == [None] * n_impatient
    await rush.join_workers(impatient)
    # They only deregister: no call asks a queue that is known to be empty.
    assert n_scripts() - before <= n_impatient
    before = n_scripts()
    keys = await rush.push_tasks([{"x": x} for x in range(n)])
    await rush.wait_until(lambda counts: counts.finished == n, timeout=60)
    assert sorted((await rush.fetch_finished_tasks())["keys"]) == sorted(keys)
    assert n_scripts() - before < 60  # pops and finishes are merged
    await rush.stop_workers()
    assert set((await rush.worker_info())["state"]) == {"terminated"}
