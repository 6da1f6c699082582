"""A worker takes tasks from the queue: no task is lost and none is run twice, though calls are cancelled, cut or repeated."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio

from rush_async import Rush, RushConfig, RushWorker, Task
from rush_async.store.tasks import POP
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
