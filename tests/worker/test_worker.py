"""A worker takes tasks from the queue: no task is lost and none is run twice, though calls are cancelled, cut or repeated."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio

from rush_async import (
    Rush,
    RushConfig,
    RushWorker,
    Task,
    WorkerLostError,
)
from rush_async.store.leases import BEAT
from rush_async.store.tasks import POP, POP_NAMED
from rush_async.testing import wait_until
from rush_async.worker.worker import membership_of
from tests.proxy import Proxy, named

TIMEOUT = 10.0


@pytest_asyncio.fixture
async def far(rush: Rush, proxy: Proxy) -> AsyncIterator[RushWorker]:
    """A worker in the network of `rush`, on a connection of its own that can be counted and broken."""
    async with RushWorker(rush.network_id, rush.config.at(proxy.url)) as worker:
        yield worker


def n_pops(proxy: Proxy) -> int:
    return sum(named("EVALSHA", POP.digest)(command) for command in proxy.commands)


async def finish(worker: RushWorker, task: Task) -> None:
    assert await worker.finish_tasks(task.key, [{"y": 1}]) == [task.key]


async def waiting_pop(worker: RushWorker, timeout: float | None = TIMEOUT) -> asyncio.Task[Task | None]:
    """A `pop_task` that waits for an event because the queue is empty."""
    pop = asyncio.create_task(worker.pop_task(timeout))
    await wait_until(lambda: len(worker._net.lines.queue) > 0)  # pyright: ignore[reportPrivateUsage]
    return pop


async def test_a_waiting_pop_sends_one_call_when_a_task_is_pushed(rush: Rush, far: RushWorker, proxy: Proxy) -> None:
    pop = await waiting_pop(far)
    before = n_pops(proxy)
    (key,) = await rush.push_tasks([{"x": 1}])
    task = await pop
    assert task is not None
    assert task.key == key
    assert n_pops(proxy) == before + 1
    await finish(far, task)


async def test_a_pushed_task_wakes_one_waiting_worker_of_an_event_loop(rush: Rush, far: RushWorker, proxy: Proxy) -> None:
    async with RushWorker(rush.network_id, far.config) as other:
        pops = [await waiting_pop(far), await waiting_pop(other)]
        before = n_pops(proxy)
        await rush.push_tasks([{"x": 1}])
        done, pending = await asyncio.wait(pops, return_when=asyncio.FIRST_COMPLETED)
        assert len(done) == len(pending) == 1
        assert n_pops(proxy) == before + 1
        (first,) = done
        task = first.result()
        assert task is not None
        await finish(far if task.worker_id == far.worker_id else other, task)
        for pop in pending:
            pop.cancel()


async def test_workers_of_several_event_loops_run_each_task_once(rush: Rush, rush_server: RushConfig) -> None:
    n, others = 300, [replace(rush_server, response_timeout=11.0 + at) for at in range(3)]
    seen: list[str] = []

    async def serve(config: RushConfig) -> None:
        async with RushWorker(rush.network_id, config) as first, RushWorker(rush.network_id, config) as second:

            async def loop(worker: RushWorker) -> None:
                while (task := await worker.pop_task(None)) is not None:
                    seen.append(task.key)
                    await worker.finish_tasks(task.key, [{"y": 0}])

            await asyncio.gather(loop(first), loop(second))

    serving = [asyncio.create_task(serve(config)) for config in others]
    await rush.wait_for_workers(6, timeout=TIMEOUT)
    keys: list[str] = []
    for at in range(n):
        keys += await rush.push_tasks([{"x": at}])
    await rush.wait_for_tasks(keys, timeout=TIMEOUT)
    assert sorted(seen) == sorted(keys)
    await rush.stop_workers()
    await asyncio.gather(*serving)
    assert await rush.counts() == (0, 0, n, 0)


async def test_cancelled_pops_lose_no_task(rush: Rush, far: RushWorker) -> None:
    n, seen = 300, list[str]()

    async def serve() -> None:
        at = 0
        while not far.terminated:
            at += 1
            try:
                async with asyncio.timeout(at % 7 / 1_000):
                    task = await far.pop_task(None)
            except TimeoutError:
                continue
            if task is not None:
                seen.append(task.key)
                await finish(far, task)

    serving = asyncio.create_task(serve())
    keys: list[str] = []
    for at in range(n):
        keys += await rush.push_tasks([{"x": at}])
    await rush.wait_for_tasks(keys, timeout=TIMEOUT, need_workers=False)
    membership_of(far).request_stop()
    await serving
    assert sorted(seen) == sorted(keys)


async def taken_over(rush: Rush, key: str, worker: RushWorker) -> Task:
    """Cancels a task, queues it again and lets this worker run it."""
    await rush.cancel_tasks(key)
    await rush.retry_tasks(key)
    task = await worker.pop_task(0)
    assert task is not None
    return task


async def test_a_repeated_pop_does_not_return_a_task_that_another_worker_runs_meanwhile(
    rush: Rush, rush_worker: RushWorker, far: RushWorker, proxy: Proxy
) -> None:
    (key,) = await rush.push_tasks([{"x": 1}])
    lost = proxy.drop_reply(named("EVALSHA", POP.digest))
    popping = asyncio.create_task(far.pop_task(0))
    proxy.refuse()
    await lost.hit.wait()
    task = await taken_over(rush, key, rush_worker)
    proxy.refuse(False)
    assert await popping is None
    await finish(rush_worker, task)


@pytest.mark.parametrize("ends", ["by its time", "by a stop"])
async def test_a_waiting_pop_ends_in_time_while_the_server_is_away(
    rush: Rush, far: RushWorker, proxy: Proxy, ends: str
) -> None:
    pop = await waiting_pop(far, timeout=0.1 if ends == "by its time" else None)
    proxy.refuse()
    proxy.cut_all()
    if ends == "by a stop":
        membership_of(far).request_stop()
    assert await asyncio.wait_for(pop, 5) is None  # a call fails only after 30 s
    proxy.refuse(False)


# a named task


async def test_a_worker_pops_a_named_task_and_ends_it_as_a_block(rush: Rush, rush_worker: RushWorker) -> None:
    keys = await rush.push_tasks([{"x": x} for x in range(3)])
    task = await rush_worker.pop_task(key=keys[1])
    assert task is not None
    assert (task.key, task.xs, task.attempt, task.worker_id) == (keys[1], {"x": 1}, 1, rush_worker.worker_id)
    async with task:
        task.ys = {"y": 1}
    assert await rush.keys_with_state("queued", "finished") == {"queued": [keys[0], keys[2]], "finished": [keys[1]]}


async def test_a_pop_of_a_key_that_is_not_queued_returns_none_in_one_call(rush: Rush, far: RushWorker, proxy: Proxy) -> None:
    (running,) = await far.push_running_tasks([{"x": 1}])
    (failed,) = await rush.push_failed_tasks([{"x": 1}])
    for key in (running, failed, "unknown"):
        proxy.commands.clear()
        assert await far.pop_task(timeout=None, key=key) is None
        # Beside the call there may be a beat, and what the worker reads once it hears the requests of its network.
        scripts = [command[1] for command in proxy.commands if command[0] == b"EVALSHA"]
        assert [script for script in scripts if script != BEAT.digest.encode()] == [POP_NAMED.digest.encode()]


async def test_a_named_task_goes_to_one_of_many_that_ask_for_it(rush: Rush, rush_worker: RushWorker, far: RushWorker) -> None:
    (key,) = await rush.push_tasks([{"x": 1}])
    pops = [worker.pop_task(key=key) for worker in (rush_worker, far) for _ in range(5)]
    tasks = [task for task in await asyncio.gather(*pops, rush_worker.pop_task(0)) if task is not None]
    assert [task.key for task in tasks] == [key]


async def test_a_pop_by_key_waits_for_a_place_while_the_network_is_full(rush: Rush, rush_worker: RushWorker) -> None:
    first, second = await rush.push_tasks([{"x": 1}, {"x": 2}])
    await rush.stop_when(finished=1)
    assert await rush_worker.pop_task(key=first) is not None
    assert await rush_worker.pop_task(0, key=second) is None
    assert await rush_worker.pop_task(0.01, key=second) is None
    line = rush_worker._net.lines.places  # pyright: ignore[reportPrivateUsage]
    pop = asyncio.create_task(rush_worker.pop_task(TIMEOUT, key=second))
    await wait_until(lambda: len(line) == 1)
    await rush_worker.fail_tasks(first)
    task = await pop
    assert task is not None
    assert task.key == second
    cancelled = asyncio.create_task(rush_worker.pop_task(TIMEOUT, key=second))
    assert await cancelled is None  # it is not queued any more
    await finish(rush_worker, task)
    assert await rush_worker.pop_task(key=first) is None
    assert rush_worker.terminated


async def test_a_wait_for_a_place_for_a_named_task_ends_when_a_stop_is_requested(rush: Rush, rush_worker: RushWorker) -> None:
    first, second = await rush.push_tasks([{"x": 1}, {"x": 2}])
    await rush.stop_when(finished=1)
    await rush_worker.pop_task(key=first)
    pop = asyncio.create_task(rush_worker.pop_task(None, key=second))
    await wait_until(lambda: len(rush_worker._net.lines.places) == 1)  # pyright: ignore[reportPrivateUsage]
    membership_of(rush_worker).request_stop()
    assert await pop is None
    assert await rush_worker.pop_task(key=second) is None
    assert await rush.keys_with_state("queued") == {"queued": [second]}


async def test_a_worker_that_was_killed_gets_no_named_task(rush: Rush, rush_worker: RushWorker) -> None:
    (key,) = await rush.push_tasks([{"x": 1}])
    await rush.stop_workers(rush_worker.worker_id, mode="kill")
    with pytest.raises(WorkerLostError, match="is not alive"):
        await rush_worker.pop_task(key=key)


@pytest.mark.parametrize(("key", "error"), [(1, TypeError), ("", ValueError), ("\ud800", ValueError), (["a"], TypeError)])
async def test_what_is_no_key_is_refused(rush_worker: RushWorker, key: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="key"):
        await rush_worker.pop_task(key=key)
