"""Tasks of several states as they were at one moment, in one step where they are few, and in several where they are many."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any, TypeAlias

import pytest
import pytest_asyncio

from rush_async import NetworkStateError, Rush, RushWorker
from rush_async.store.keys import NetworkKeys
from rush_async.testing import wait_until
from tests.proxy import Proxy

XS = {"x1": 1.0, "x2": 2.0}
PAD = "p" * 64  # a hash whose values are short is always read whole


async def finish(rush: Rush, n: int) -> list[str]:
    return await rush.push_finished_tasks([{"x": x} for x in range(n)], [{"y": 1}] * n)


def calls(raw: Any, name: str) -> int:
    """How often the server executed a command."""
    return raw.info("commandstats").get(f"cmdstat_{name}", {"calls": 0})["calls"]


@pytest_asyncio.fixture
async def far(rush: Rush, proxy: Proxy) -> AsyncIterator[Rush]:
    """A client of the network of `rush` behind the proxy, with a view of its own."""
    async with Rush(rush.network_id, proxy.url) as far:
        yield far


Happens: TypeAlias = Callable[[Callable[[], Awaitable[Any]]], None]


def once_after(read: str, far: Rush, monkeypatch: pytest.MonkeyPatch) -> Happens:
    """Sets what is to happen once when `far` has read something of its tasks, and has not looked at it."""

    def happens(work: Callable[[], Awaitable[Any]]) -> None:
        left, tasks = [work], far._net.tasks  # pyright: ignore[reportPrivateUsage]
        plainly = getattr(tasks, read)

        async def and_more(*args: Any) -> Any:
            found = await plainly(*args)
            if left:
                await left.pop()()
            return found

        monkeypatch.setattr(tasks, read, and_more)

    return happens


@pytest.fixture
def during_scan(far: Rush, monkeypatch: pytest.MonkeyPatch) -> Happens:
    """Sets what is to happen once while `far` reads in steps, each of few tasks."""
    monkeypatch.setattr("rush_async.client.snapshot._STEP", 20)
    return once_after("scan_into", far, monkeypatch)


@pytest.fixture
def before_join(far: Rush, monkeypatch: pytest.MonkeyPatch) -> Happens:
    """Sets what is to happen once when `far` has read a view in one step."""
    return once_after("view_of_few", far, monkeypatch)


@pytest.mark.parametrize("step", [5_000, 20])
async def test_a_snapshot_is_consistent_while_everything_moves(rush: Rush, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    monkeypatch.setattr("rush_async.client.snapshot._STEP", step)
    n, done = 200, asyncio.Event()
    async with (
        Rush(rush.network_id, replace(rush.config, response_timeout=28.0)) as other,
        RushWorker(rush.network_id, other.config) as worker,
    ):
        keys = await other.push_tasks([{"x": x, "pad": PAD} for x in range(n)])

        async def move() -> None:
            # Tasks go round through every state; the last round leaves them finished.
            while not done.is_set():
                if (task := await worker.pop_task(0)) is None:
                    if not await other.retry_tasks():
                        return
                elif task.xs["x"] % 7 == 0 and task.attempt > 3:
                    await worker.finish_tasks(task.key, [{"y": 1}])
                else:
                    await worker.fail_tasks(task.key, "again")

        movers = [asyncio.create_task(move()) for _ in range(8)]
        states: set[str] = set()
        try:
            for _ in range(60):
                frame = await rush.fetch_tasks()
                assert frame.height == n
                assert sorted(frame["keys"]) == sorted(keys)
                states |= set(frame["state"])
                by_state = await rush.keys_with_state()
                assert sorted(key for found in by_state.values() for key in found) == sorted(keys)
        finally:
            done.set()
            await asyncio.gather(*movers)
        assert states >= {"queued", "failed"}
        counts = await other.counts()
        assert counts.total == n
        assert (await rush.fetch_tasks()).height == n


async def test_a_snapshot_of_nothing_finished_reads_no_archive(rush: Rush, proxy: Proxy) -> None:
    await finish(rush, 5_000)
    await rush.push_tasks([XS])
    async with Rush(rush.network_id, proxy.url) as far:
        await wait_until(lambda: far._net.feed.is_watching)  # pyright: ignore[reportPrivateUsage]
        before = proxy.bytes_down
        assert (await far.fetch_queued_tasks()).height == 1
        assert (await far.fetch_tasks_with_state("running", "failed")).height == 0
        assert proxy.bytes_down - before < 2_000


async def test_a_snapshot_grows_the_archive_that_all_share(rush: Rush, proxy: Proxy) -> None:
    await finish(rush, 3_000)
    async with Rush(rush.network_id, proxy.url) as far:
        assert (await far.fetch_tasks()).height == 3_000
        before = proxy.bytes_down
        assert (await far.fetch_finished_tasks()).height == 3_000
        assert (await far.fetch_tasks_with_state("finished")).height == 3_000
        assert proxy.bytes_down - before < 1_500


async def test_many_tasks_are_read_in_steps_and_few_in_one(rush: Rush, rush_worker: RushWorker, raw: Any) -> None:
    await rush_worker.push_running_tasks([XS] * 12_000)
    raw.config_resetstat()
    assert (await rush.fetch_running_tasks()).height == 12_000
    assert calls(raw, "hscan") >= 4
    assert calls(raw, "hgetall") == 0
    await rush_worker.fail_tasks((await rush.keys_with_state("running"))["running"], "no")
    raw.config_resetstat()
    assert len(await rush.retry_tasks()) == 12_000  # likewise the keys of what has failed
    assert calls(raw, "hscan") >= 4
    assert calls(raw, "hkeys") == 0
    await rush.reset(workers=False)
    queued = await rush.push_tasks([XS] * 3_000)
    raw.config_resetstat()
    assert (await rush.fetch_queued_tasks())["keys"].to_list() == queued
    assert calls(raw, "exec") == calls(raw, "hscan") == 1


async def test_what_changes_while_it_is_read_is_read_again(
    rush: Rush,
    far: Rush,
    rush_worker: RushWorker,
    raw: Any,
    during_scan: Happens,
) -> None:
    queued = await rush.push_tasks([{"x": x, "pad": PAD} for x in range(600)], retries=1)
    running = await rush_worker.push_running_tasks([{"x": x, "pad": PAD} for x in range(600)])

    async def change() -> None:
        assert (task := await rush_worker.pop_task(0)) is not None  # from queued to running
        assert task.key == queued[0]
        await rush_worker.finish_tasks(running[0], [{"y": 1}])
        await rush_worker.fail_tasks(running[1], "broken")
        await rush.cancel_tasks([queued[1], queued[2], running[2]])
        await rush.retry_tasks(queued[2])  # to the end of the queue
        queued.extend([queued[2], *await rush.push_tasks([{"x": 1, "pad": PAD}])])
        await rush_worker.push_running_tasks([{"x": 1}])

    during_scan(change)
    raw.config_resetstat()
    frame = await far.fetch_tasks(times=True)
    assert calls(raw, "hgetall") == 0
    assert frame.sort("keys").equals((await rush.fetch_tasks(times=True)).sort("keys"))
    assert frame.filter(state="queued")["keys"].to_list() == queued[3:]
    assert frame.filter(state="running").height == 600 - 3 + 2
    assert frame.filter(state="failed")["keys"].sort().to_list() == sorted([running[1], running[2], queued[1]])


@pytest.mark.parametrize("only", ["pubsub", None])
async def test_where_changes_are_not_heard_of_all_is_read_in_one_step(
    rush: Rush,
    far: Rush,
    proxy: Proxy,
    raw: Any,
    during_scan: Happens,
    only: Any,
) -> None:
    keys = await rush.push_tasks([{"x": x, "pad": PAD} for x in range(600)])

    async def change() -> None:
        proxy.cut_all(only)
        await rush.cancel_tasks(keys[0])

    during_scan(change)
    assert (await far.fetch_queued_tasks())["keys"].to_list() == keys[1:]
    assert calls(raw, "hgetall") >= 1


@pytest.mark.parametrize("workers", [True, False])
async def test_a_reset_while_it_is_read_leaves_what_came_then(
    rush: Rush, far: Rush, during_scan: Happens, workers: bool
) -> None:
    await rush.push_tasks([{"x": x, "pad": PAD} for x in range(600)])
    keys: list[str] = []

    async def change() -> None:
        await rush.reset(workers=workers)
        keys.extend(await rush.push_tasks([{"x": x, "pad": PAD} for x in range(700)]))

    during_scan(change)
    assert (await far.fetch_tasks())["keys"].to_list() == keys


async def test_where_too_much_changes_all_is_read_in_one_step(rush: Rush, far: Rush, raw: Any, during_scan: Happens) -> None:
    keys = await rush.push_tasks([{"x": x, "pad": PAD} for x in range(600)])
    during_scan(lambda: rush.push_tasks([{"x": x} for x in range(6_000)]))
    raw.config_resetstat()
    frame = await far.fetch_queued_tasks()
    assert frame["keys"].to_list()[:600] == keys
    assert frame.height == 6_600
    assert calls(raw, "hgetall") == 1


async def test_a_cache_that_is_dropped_while_a_view_is_on_its_way_is_read_anew(
    rush: Rush, far: Rush, before_join: Happens
) -> None:
    keys = await finish(rush, 5)
    assert (await far.fetch_new_tasks())["keys"].to_list() == keys

    async def drop() -> None:
        far.reset_cache()

    before_join(drop)
    assert (await far.fetch_tasks())["keys"].to_list() == keys
    assert (await far.fetch_finished_tasks())["keys"].to_list() == keys
    assert (await far.fetch_new_tasks()).height == 0


async def test_a_view_of_a_network_that_was_reset_before_is_read_anew(
    rush: Rush, far: Rush, rush_worker: RushWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    await finish(rush, 5)
    assert (await far.fetch_finished_tasks()).height == 5
    keys: list[str] = []
    tasks = far._net.tasks  # pyright: ignore[reportPrivateUsage]
    view_of_few = tasks.view_of_few

    async def view_after_reset(*args: Any) -> Any:
        if keys:
            return await view_of_few(*args)
        await rush.reset(workers=False)
        keys.extend(await finish(rush, 6))
        view = await view_of_few(*args)
        await far.counts()  # the epoch is heard of
        return view

    monkeypatch.setattr(tasks, "view_of_few", view_after_reset)
    assert (await far.fetch_tasks())["keys"].to_list() == keys


async def test_steps_on_data_that_went_back_in_time_are_not_mixed(
    rush: Rush, far: Rush, proxy: Proxy, raw: Any, during_scan: Happens
) -> None:
    names = NetworkKeys.of(rush.network_id)
    kept = await rush.push_failed_tasks([{"x": x, "pad": PAD} for x in range(600)])
    lost = await rush.push_failed_tasks([{"x": 600, "pad": PAD}])

    async def roll_back() -> None:  # as a server does that has lost its last moment; it is heard later than it is read
        raw.hdel(names.failed, *lost)
        raw.hincrby(names.meta, "seq", -1)
        proxy.cut_all("pubsub")

    during_scan(roll_back)
    assert sorted((await far.fetch_failed_tasks())["keys"]) == sorted(kept)


async def test_without_events_all_is_read_in_one_step(
    rush: Rush, far: Rush, proxy: Proxy, raw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rush_async.client.snapshot._STEP", 20)
    monkeypatch.setattr("rush_async.client.snapshot._PATIENCE", 0.1)
    keys = await rush.push_tasks([{"x": x, "pad": PAD} for x in range(600)])
    proxy.refuse()  # the connection for commands stays
    try:
        assert (await asyncio.wait_for(far.fetch_queued_tasks(), 10))["keys"].to_list() == keys
    finally:
        proxy.refuse(False)
    assert calls(raw, "hgetall") >= 1


async def test_a_client_that_is_closed_while_it_reads_in_steps_says_so(
    rush: Rush, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rush_async.client.snapshot._STEP", 20)
    await rush.push_tasks([{"x": x, "pad": PAD} for x in range(600)])
    far = await Rush(rush.network_id, proxy.url)
    channels = far._net.link.subscription._channels  # pyright: ignore[reportPrivateUsage]
    proxy.refuse()
    fetching = asyncio.create_task(far.fetch_queued_tasks())
    await wait_until(lambda: NetworkKeys.of(rush.network_id).events in channels)
    await far.aclose()
    with pytest.raises(NetworkStateError, match="closed"):
        await asyncio.wait_for(fetching, 10)
    proxy.refuse(False)
