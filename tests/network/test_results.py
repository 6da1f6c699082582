"""Finished tasks are read once an event loop, each once for a caller, also when the server lost some or went back in time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import pytest_asyncio

from rush_async import EventsMissed, NetworkReset, Rush, RushWorker, TasksFinished
from rush_async.store.keys import NetworkKeys
from rush_async.testing import wait_until
from tests.proxy import Proxy

SOON = 10.0


@pytest_asyncio.fixture
async def far(rush: Rush, proxy: Proxy) -> AsyncIterator[Rush]:
    """A client of the network of `rush` behind the proxy, with a view of its own."""
    async with Rush(rush.network_id, proxy.url) as far:
        yield far


async def finish(rush: Rush, *values: Any) -> list[str]:
    return await rush.push_finished_tasks([{"x": value} for value in values], [{"y": 1}] * len(values))


async def results(events: Any) -> list[Any]:
    """The inputs in the next event."""
    event = await asyncio.wait_for(anext(events), SOON)
    assert isinstance(event, TasksFinished)
    assert event.tasks is not None
    assert tuple(task.key for task in event.tasks) == event.keys
    return [task.xs["x"] for task in event.tasks]


async def test_finished_tasks_come_with_their_events(rush: Rush, far: Rush, proxy: Proxy) -> None:
    async with far.events(TasksFinished, results=True) as events:
        for x in range(20):
            await finish(rush, x, -x)
            assert await results(events) == [x, -x]
    assert (await far.fetch_finished_tasks())["x"].to_list() == [sign * x for x in range(20) for sign in (1, -1)]


async def test_listeners_of_one_event_loop_share_the_read_of_an_event(rush: Rush, far: Rush, proxy: Proxy) -> None:
    async with AsyncExitStack() as stack:
        listeners = [await stack.enter_async_context(far.events(TasksFinished, results=True)) for _ in range(10)]
        for x in range(5):
            before = proxy.count("LRANGE")
            reads = [asyncio.create_task(results(events)) for events in listeners]
            await finish(rush, x)
            assert await asyncio.gather(*reads) == [[x]] * 10
            assert proxy.count("LRANGE") == before + 1


async def test_large_results_come_with_their_events(rush: Rush, far: Rush) -> None:
    async with far.events(TasksFinished, results=True) as events:
        for x in (1, "x" * 20_000, 2):
            await finish(rush, x)
            assert await results(events) == [x]


async def test_results_come_with_events_after_a_reset(rush: Rush, far: Rush, rush_worker: RushWorker) -> None:
    async with far.events(TasksFinished, NetworkReset, results=True) as events:
        for x in range(3):
            await finish(rush, x, x + 10)
            assert await results(events) == [x, x + 10]
            await rush.reset(workers=False)
            assert isinstance(await asyncio.wait_for(anext(events), SOON), NetworkReset)
            assert (await far.fetch_finished_tasks()).height == 0


async def test_results_are_read_anew_after_the_server_lost_some_while_disconnected(
    rush: Rush, far: Rush, proxy: Proxy, raw: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with far.events(TasksFinished, results=True) as events:
        for x in range(4):
            await finish(rush, x)
            assert await results(events) == [x]
        # The server lost its last results and continued while `far` was disconnected.
        proxy.refuse()
        proxy.cut_all("pubsub")
        name = NetworkKeys.of(rush.network_id).finished
        raw.ltrim(name, 0, 1)
        await finish(rush, 4, 5)
        proxy.refuse(False)
        assert isinstance(await asyncio.wait_for(anext(events), SOON), EventsMissed)
        await finish(rush, 6)
        assert await results(events) == [6]
        assert (await far.fetch_finished_tasks())["x"].to_list() == [0, 1, 4, 5, 6]
    assert any("reading anew" in text for text in caplog.messages)


async def test_every_finished_task_is_seen_once_whatever_breaks(rush: Rush, far: Rush, proxy: Proxy, raw: Any) -> None:
    n, seen = 300, list[str]()
    choose = random.Random(5)

    async def work(worker: RushWorker, at: int) -> None:
        for _ in range(n // 10):
            (key,) = await worker.push_running_tasks([{"x": "x" * choose.choice([1, 50, 5_000, 20_000])}])
            await worker.finish_tasks(key, [{"y": at}])

    async def follow() -> None:
        while len(seen) < n:
            seen.extend((await far.fetch_new_tasks(timeout=SOON))["keys"])

    async def read() -> None:
        while len(seen) < n:
            await far.fetch_finished_tasks()
            frame = await far.fetch_tasks()
            assert frame["keys"].n_unique() == frame.height
            if choose.random() < 0.1:
                far.reset_cache()

    async with RushWorker(rush.network_id, rush.config) as worker, far.events(TasksFinished, results=True) as events:
        work_and_reads = [asyncio.create_task(work(worker, at)) for at in range(10)]
        work_and_reads += [asyncio.create_task(follow()), asyncio.create_task(read())]
        n_seen = 0
        while n_seen < n:
            event = await asyncio.wait_for(anext(events), SOON)
            if isinstance(event, TasksFinished):
                n_seen += len(event.keys)
                assert event.tasks is not None
                assert tuple(task.key for task in event.tasks) == event.keys
            else:
                n_seen = (await rush.counts()).finished  # at least, by now
            if choose.random() < 0.05:
                proxy.cut_all(choose.choice(["pubsub", "commands"]))
        await asyncio.gather(*work_and_reads)
    assert sorted(seen) == sorted(set(seen))
    await far._net.results.read()  # pyright: ignore[reportPrivateUsage]
    archive = far._net.results.records  # pyright: ignore[reportPrivateUsage]
    assert archive.raw(0, n) == raw.lrange(NetworkKeys.of(rush.network_id).finished, 0, -1)
    assert seen == archive.keys(0, n)


async def test_results_are_read_anew_after_the_server_lost_some_while_connected(rush: Rush, far: Rush, raw: Any) -> None:
    async with far.events(TasksFinished, results=True) as events:
        for x in range(3):
            await finish(rush, 2 * x, 2 * x + 1)
            assert await results(events) == [2 * x, 2 * x + 1]
        # A server that lost its last moment without having lost its connections.
        raw.ltrim(NetworkKeys.of(rush.network_id).finished, 0, 3)
        await finish(rush, 10, 11, 12)
        assert await results(events) == [10, 11, 12]
        assert (await far.fetch_finished_tasks())["x"].to_list() == [0, 1, 2, 3, 10, 11, 12]


async def test_waiting_for_new_tasks_ends_when_the_server_is_restored_from_older_data(
    rush: Rush, far: Rush, proxy: Proxy, raw: Any
) -> None:
    names = NetworkKeys.of(rush.network_id)
    keys = await finish(rush, *range(4))
    seq = raw.hget(names.meta, "seq")
    await finish(rush, 4)
    await finish(rush, 5)
    assert (await far.fetch_new_tasks()).height == 6
    waiting = asyncio.create_task(far.fetch_new_tasks(timeout=None))
    await wait_until(lambda: far._net.feed.is_watching)  # pyright: ignore[reportPrivateUsage]
    raw.ltrim(names.finished, 0, 3)
    raw.hset(names.meta, "seq", seq)
    proxy.cut_all()
    # Whatever was seen may be what was lost: all of it is new again.
    assert (await asyncio.wait_for(waiting, SOON))["keys"].to_list() == keys


async def test_of_two_who_wait_for_new_tasks_only_one_gets_them(rush: Rush, far: Rush) -> None:
    await finish(rush, 0)
    await far.fetch_new_tasks()
    conditions = far._net.conditions  # pyright: ignore[reportPrivateUsage]
    waits = [asyncio.create_task(far.fetch_new_tasks(timeout=None)) for _ in range(2)]
    for x in (1, 2):
        await wait_until(lambda left=3 - x: len(conditions._waiting) == left)  # pyright: ignore[reportPrivateUsage]
        await finish(rush, x)
        done, pending = await asyncio.wait(waits, timeout=SOON, return_when=asyncio.FIRST_COMPLETED)
        assert len(pending) == 2 - x
        waits = list(pending)
        (first,) = done
        assert first.result()["x"].to_list() == [x]
