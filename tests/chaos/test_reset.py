"""A reset while other clients write, read, wait and listen: no key remains, no cache is stale, and every wait ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from typing import Any

import pytest

from rush_async import (
    Counts,
    Event,
    EventsMissed,
    NetworkReset,
    NetworkStateError,
    Rush,
    RushClient,
    RushConfig,
    RushWorker,
    TasksFinished,
    TasksQueued,
    WorkerLostError,
)
from rush_async.store.tasks import PUSH
from rush_async.testing import wait_until
from rush_async.worker.worker import membership_of
from tests.proxy import Proxy

TIMEOUT = 15.0
MOST_CHANGES = 20  # of the stop rules between two events


async def busy_worker(worker: RushWorker) -> None:
    with suppress(WorkerLostError):
        while not worker.terminated:
            if (task := await worker.pop_task(timeout=None)) is not None:
                await asyncio.sleep(0)
                await worker.finish_tasks(task.key, [{"y": task.xs["x"]}])


async def busy_blocks(worker: RushWorker) -> None:
    with suppress(WorkerLostError):
        while not worker.terminated:
            async with worker.task({"x": 1}, budget=10_000) as task:
                if task is not None:
                    await asyncio.sleep(0)
                    task.ys = {"y": 1}


async def repeatedly(call: Callable[[], Awaitable[object]], done: asyncio.Event) -> None:
    while not done.is_set():
        await call()


async def push_and_describe(client: RushClient) -> None:
    (key,) = await client.push_tasks([{"x": 1}])
    with suppress(NetworkStateError):  # it has ended, or a reset deleted it
        await client.set_task_attrs(key, {"a": 1})


async def push_and_wait(client: RushClient) -> None:
    keys = await client.push_tasks([{"x": 1}])
    with suppress(KeyError):  # a reset deleted it
        await client.wait_for_tasks(keys, need_workers=False)


@pytest.mark.parametrize("workers", [False, True])
async def test_a_reset_during_calls_of_every_kind_leaves_no_key_and_ends_every_wait(
    rush_server: RushConfig, raw: Any, workers: bool
) -> None:
    configs = [rush_server, replace(rush_server, retry_deadline=21.0), replace(rush_server, retry_deadline=22.0)]
    async with AsyncExitStack() as stack, asyncio.timeout(TIMEOUT):
        rush = await stack.enter_async_context(Rush(config=rush_server))
        name = rush.network_id
        clients = [rush] + [await stack.enter_async_context(Rush(name, config)) for config in configs[1:]]
        all_workers = [await stack.enter_async_context(RushWorker(name, config)) for config in configs * 2]
        done = asyncio.Event()
        seen: list[Event] = []
        events = await stack.enter_async_context(clients[1].events())

        async def listen() -> None:
            async for event in events:
                seen.append(event)  # noqa: PERF401 - others read while it grows

        busy = [asyncio.create_task(busy_worker(worker)) for worker in all_workers[:3]]
        busy += [asyncio.create_task(busy_blocks(worker)) for worker in all_workers[3:]]
        others = [asyncio.create_task(listen())]
        for client in clients:
            calls: list[Callable[[], Awaitable[object]]] = [
                lambda client=client: client.push_tasks([{"x": 0}]),
                lambda client=client: client.push_finished_tasks([{"x": 1}], [{"y": 1}]),
                lambda client=client: client.push_finished_tasks([{"x": 2}], [{"y": 1}], unique=True),
                client.fetch_finished_tasks,
                client.fetch_tasks,
                lambda client=client: client.fetch_new_tasks(timeout=0.05),
                client.empty_queue,
                client.retry_tasks,
                client.counts,
                lambda client=client: client.set_attrs({"a": 1}),
                lambda client=client: client.claim("a", 1),
                lambda client=client: push_and_describe(client),
                lambda client=client: client.ranking("rung").add("key", 1),
                lambda client=client: client.stop_when(finished=2**40, patience=("y", 2**40)),
                lambda client=client: client.resume(failed=2**40),
                lambda client=client: push_and_wait(client),
            ]
            others += [asyncio.create_task(repeatedly(call, done)) for call in calls]
        for n in range(1, 4):
            await wait_until(lambda: rush.n_finished_tasks > 20)
            await rush._net.tasks.reset(workers=workers)  # pyright: ignore[reportPrivateUsage]
            await wait_until(lambda n=n: sum(isinstance(event, NetworkReset) for event in seen) >= n)
            if workers:
                break
        done.set()
        if workers:
            await asyncio.wait(busy)
        else:
            await wait_until(lambda: all(not task.done() for task in busy))
            for worker in all_workers:
                membership_of(worker).request_stop()
            await asyncio.gather(*busy)
        waiting = others[1:]
        await asyncio.sleep(0)
        # A wait for a task that no worker will run ends with the reset.
        await rush._net.tasks.reset(workers=workers)  # pyright: ignore[reportPrivateUsage]
        await asyncio.gather(*waiting)
        await rush._net.tasks.reset(workers=workers)  # pyright: ignore[reportPrivateUsage]
        others[0].cancel()
        await asyncio.wait(others[:1])
        for client in [*clients, *all_workers]:
            assert await client.counts() == Counts()
            assert await client.attrs() == {}
            assert await client.ranking("rung").size() == 0
            assert len(await client.fetch_tasks()) == len(await client.fetch_finished_tasks()) == 0
            await wait_until(lambda client=client: client.n_tasks == 0)
        assert_in_order(seen)
        kept = {f"rush:{{{name}}}:{key}".encode() for key in ("meta", "calls", "alive", "workers", "leases", "processes")}
        assert set(raw.keys("*")) <= (set() if workers else kept)
    async with Rush(name, rush_server) as rush:
        await rush.reset()
    assert raw.keys("*") == []


def assert_in_order(seen: list[Event]) -> None:
    """Within an epoch `seq` rises, by more than one only where the stop rules have changed; after a reset it begins again."""
    last = None
    for event in seen:
        if isinstance(event, NetworkReset):
            last = 0
        else:
            if last is not None and not isinstance(event, EventsMissed):
                assert last < event.seq <= last + MOST_CHANGES, (last, event)
            last = event.seq


async def test_other_clients_drop_their_caches_after_a_reset(rush: Rush, rush_server: RushConfig) -> None:
    """Also a client that follows no events: it learns of the reset by its next call."""
    async with (
        Rush(rush.network_id, replace(rush_server, retry_deadline=21.0)) as still,
        Rush(rush.network_id, replace(rush_server, retry_deadline=22.0)) as watching,
    ):
        await rush.push_finished_tasks([{"x": x} for x in range(5)], [{"y": x} for x in range(5)])
        for client in (rush, still, watching):
            assert len(await client.fetch_finished_tasks()) == 5
            assert len(await client.fetch_new_tasks()) == 5
        await wait_until(lambda: watching.n_finished_tasks == 5)
        await rush.reset(workers=False)
        # As many finished tasks as before, all of them new.
        keys = await rush.push_finished_tasks([{"x": -x} for x in range(5)], [{"z": x} for x in range(5)])
        for client in (still, watching, rush):
            assert (await client.fetch_new_tasks())["keys"].to_list() == keys
            frame = await client.fetch_finished_tasks()
            assert frame["keys"].to_list() == keys
            assert "y" not in frame.columns
        await rush.reset()
        for client in (still, watching, rush):
            assert len(await client.fetch_finished_tasks()) == 0
            assert (await client.keys_with_state())["finished"] == []


async def test_a_worker_continues_after_a_reset_of_the_tasks_but_its_tasks_are_gone(rush: Rush) -> None:
    async with RushWorker(rush.network_id, rush.config) as worker:
        (key,) = await worker.push_running_tasks([{"x": 1}])
        await rush.push_tasks([{"x": 2}])
        popped = await worker.pop_task(0)
        assert popped is not None
        await rush.reset(workers=False)
        assert await worker.finish_tasks([key, popped.key], [{"y": 1}, {"y": 2}]) == []
        assert await rush.counts() == Counts()
        (again,) = await worker.push_running_tasks([{"x": 3}])
        assert await worker.finish_tasks(again, [{"y": 3}]) == [again]
        assert await rush.counts() == Counts(finished=1)


async def test_a_reset_wakes_every_wait(rush: Rush, rush_server: RushConfig) -> None:
    async with Rush(rush.network_id, replace(rush_server, retry_deadline=21.0)) as other:
        (key,) = await rush.push_tasks([{"x": 1}])
        async with other.events(NetworkReset) as events:
            ending = asyncio.create_task(other.wait_for_tasks(key, need_workers=False))
            emptied = asyncio.create_task(other.wait_until(lambda counts: counts.total == 0))
            refilled = asyncio.create_task(other.wait_until(lambda counts: counts.finished == 1))
            await other.wait_until(lambda counts: counts.queued == 1)
            await rush.reset()
            async with asyncio.timeout(TIMEOUT):
                with pytest.raises(KeyError, match=key):
                    await ending
                await emptied
                event = await anext(events)
                assert isinstance(event, NetworkReset)
                await rush.push_finished_tasks([{"x": 1}], [{"y": 1}])
                await refilled


async def test_a_reset_of_the_tasks_frees_the_places_of_a_full_network_and_ends_the_stop(
    rush: Rush, rush_worker: RushWorker, rush_server: RushConfig
) -> None:
    async with RushWorker(rush.network_id, replace(rush_server, retry_deadline=21.0)) as other:
        await rush.stop_when(finished=1)
        await rush_worker.push_running_tasks([{"x": 1}])
        starting = asyncio.create_task(other.push_running_tasks([{"x": 2}]))
        stopping = asyncio.create_task(other.wait_until_stopped())
        await other.wait_until(lambda counts: counts.running == 1)
        await other.counts()
        await rush.reset(workers=False)
        async with asyncio.timeout(TIMEOUT):
            assert len(await starting) == 1
            reason = await rush.stop("after the reset")
            assert await stopping == reason
        await rush.reset(workers=False)
        await wait_until(lambda: not other.terminated)
        assert len(await other.push_running_tasks([{"x": 3}])) == 1


async def test_the_first_event_after_a_reset_has_seq_1(rush: Rush) -> None:
    for workers in (False, True):
        await rush.push_tasks([{"x": 1}])
        async with rush.events() as events:
            await rush.reset(workers=workers)
            (key,) = await rush.push_tasks([{"x": 1}])
            async with asyncio.timeout(TIMEOUT):
                assert isinstance(await anext(events), NetworkReset)
                event = await anext(events)
            assert isinstance(event, TasksQueued)
            assert (event.keys, event.seq) == ((key,), 1)


async def test_the_repr_counts_no_worker_after_a_reset(rush: Rush) -> None:
    async with RushWorker(rush.network_id, rush.config) as worker:
        await worker.push_running_tasks([{"x": 1}])
        assert "Running Workers: 1" in repr(rush)
        await rush._net.tasks.reset(workers=True)  # pyright: ignore[reportPrivateUsage]
        assert "Running Workers: 0" in repr(rush)
        await wait_until(lambda: worker.terminated)


async def test_resetting_an_empty_network_creates_no_key(rush: Rush, raw: Any) -> None:
    for workers in (False, True):
        await rush.reset(workers=workers)
        assert raw.keys("*") == []
    async with rush.events(TasksFinished) as events:
        await rush.reset(workers=False)
        (key,) = await rush.push_finished_tasks([{"x": 1}], [{"y": 1}])
        async with asyncio.timeout(TIMEOUT):
            event = await anext(events)
        assert isinstance(event, TasksFinished)
        assert event.keys == (key,)
        assert len(await rush.fetch_finished_tasks()) == 1


async def test_a_late_copy_of_the_call_that_made_the_network_exist_does_not_bring_it_back_after_a_reset(
    proxy: Proxy, raw: Any, rush_server: RushConfig
) -> None:
    async with asyncio.timeout(TIMEOUT), Rush(config=rush_server.at(proxy.url)) as far:
        meta = f"rush:{{{far.network_id}}}:meta"
        await far.push_tasks([{"x": 1}])
        await far.reset()
        late = proxy.late_copy(
            lambda command: PUSH.digest.encode() in command and not command[3 + len(PUSH.keys) + 3].endswith(b" ")
        )
        pushing = asyncio.create_task(far.push_tasks([{"x": 1}]))
        await late.hit.wait()
        (key,) = await pushing
        async with Rush(far.network_id, rush_server) as near:
            assert (await near.get_tasks(key))[0] is not None
            await near.reset()
            await proxy.deliver_late()
            assert not raw.hexists(meta, "epoch")
            assert (await near.counts()).total == 0
            assert raw.ttl(meta) > 0  # what the refusal leaves goes by itself
            await near.push_tasks([{"x": 2}])
            assert raw.ttl(meta) == -1
            await near.reset()


async def test_a_client_follows_a_server_restored_from_older_data(rush: Rush, raw: Any) -> None:
    await rush.push_finished_tasks([{"x": 1}], [{"y": 1}])
    await rush.fetch_finished_tasks()
    async with asyncio.timeout(TIMEOUT), rush.events() as events:
        # As after a restore: the epoch is an earlier one.
        raw.hset(f"rush:{{{rush.network_id}}}:meta", mapping={"epoch": 5, "seq": 0})
        raw.delete(f"rush:{{{rush.network_id}}}:finished")
        keys = await rush.push_tasks([{"x": 2}])
        assert await rush.counts() == Counts(queued=1)
        assert isinstance(await anext(events), EventsMissed)
        event = await anext(events)
        assert isinstance(event, TasksQueued)
        assert list(event.keys) == keys
        assert (await rush.fetch_finished_tasks()).height == 0
