"""How workers register and leave: a shared worker, which several processes act for, stays when its clients leave."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio

from rush_async import (
    NetworkStateError,
    Rush,
    RushConfig,
    RushWorker,
    Task,
    TasksNotDoneError,
    WorkerLostError,
    WorkersNotReadyError,
)
from rush_async.errors import WorkerIdTakenError
from rush_async.testing import wait_until
from tests.proxy import Proxy

TIMEOUT = 10.0


def elsewhere(config: RushConfig) -> RushConfig:
    """Other settings, which make another connection and another view of the network in the same loop, as in another process."""
    return replace(config, retry_deadline=29.0)


@pytest_asyncio.fixture
async def pair(rush: Rush) -> AsyncIterator[tuple[RushWorker, RushWorker]]:
    """Two clients of one shared worker."""
    async with (
        RushWorker(rush.network_id, rush.config, worker_id="study", shared=True) as first,
        RushWorker(rush.network_id, elsewhere(rush.config), worker_id="study", shared=True) as second,
    ):
        yield first, second


async def test_each_client_of_a_shared_worker_ends_what_any_of_them_started(
    rush: Rush, pair: tuple[RushWorker, RushWorker]
) -> None:
    first, second = pair
    assert first.number == second.number == 0
    (queued,) = await rush.push_tasks([{"x": 0}])
    popped = await first.pop_task(0)
    assert popped is not None
    keys = [queued, *await first.push_running_tasks([{"x": 1}, {"x": 2}])]
    assert await second.finish_tasks(keys[:2], [{"y": 0}, {"y": 1}]) == keys[:2]
    assert await second.fail_tasks(keys[2], "no") == keys[2:]
    assert await first.finish_tasks(keys, [{"y": 1}] * 3) == []
    tasks = await rush.get_tasks(keys)
    assert [(task.state, task.worker_id) for task in tasks if task] == [
        ("finished", "study"),
        ("finished", "study"),
        ("failed", "study"),
    ]


async def test_a_shared_worker_and_its_tasks_stay_when_its_clients_close(rush: Rush) -> None:
    async with RushWorker(rush.network_id, rush.config, worker_id="study", shared=True) as worker:
        (key,) = await worker.push_running_tasks([{"x": 1}])
        await rush.push_tasks([{"x": 2}])
        held = await worker.pop_task(0)
        assert held is not None
    with pytest.raises(NetworkStateError, match="is closed"):
        await worker.finish_tasks(key, [{"y": 1}])
    assert await rush.counts() == (0, 2, 0, 0)
    info = (await rush.worker_info()).select("worker_id", "pid", "hostname", "heartbeat", "state", "number")
    assert info.rows() == [("study", None, None, False, "running", 0)]
    async with RushWorker(rush.network_id, rush.config, worker_id="study", shared=True) as worker:
        assert worker.number == 0
        assert await worker.finish_tasks([key, held.key], [{"y": 1}, {"y": 2}]) == [key, held.key]


async def test_a_block_of_a_shared_worker_ends_its_task(pair: tuple[RushWorker, RushWorker], rush: Rush) -> None:
    first, second = pair
    with pytest.raises(KeyError):
        async with first.task({"x": 1}):
            raise KeyError("no")
    async with second.task({"x": 2}) as task:
        task.ys = {"y": 1}
    assert await rush.counts() == (0, 0, 1, 1)


async def test_an_id_is_either_shared_or_of_one_worker(rush: Rush, pair: tuple[RushWorker, RushWorker]) -> None:
    with pytest.raises(WorkerIdTakenError, match="worker_id 'study' is or was in use"):
        await RushWorker(rush.network_id, replace(rush.config, retry_deadline=28.0), worker_id="study")
    with pytest.raises(WorkerIdTakenError, match=r"shared worker 'study' cannot be opened .* open in this event loop already"):
        await RushWorker(rush.network_id, rush.config, worker_id="study", shared=True)
    async with RushWorker(rush.network_id, rush.config, worker_id="owl"):
        with pytest.raises(WorkerIdTakenError, match=r"shared worker 'owl' cannot be opened .* worker that is not shared"):
            await RushWorker(rush.network_id, elsewhere(rush.config), worker_id="owl", shared=True)
    with pytest.raises(WorkerIdTakenError):  # it was in use
        await RushWorker(rush.network_id, rush.config, worker_id="owl", shared=True)
    with pytest.raises(ValueError, match="a shared worker needs a worker_id"):
        RushWorker(rush.network_id, rush.config, shared=True)


async def test_a_cancelled_task_of_a_shared_worker_cancels_its_block_wherever_it_runs(
    rush: Rush, pair: tuple[RushWorker, RushWorker]
) -> None:
    first, second = pair
    opened = asyncio.Event()

    async def block(worker: RushWorker) -> Task:
        async with worker.task({"x": 1}) as task:
            opened.set()
            await asyncio.Event().wait()
        return task

    blocks = [asyncio.create_task(block(worker)) for worker in pair]
    await rush.wait_until(lambda counts: counts.running == 2)
    await opened.wait()
    keys = (await rush.keys_with_state("running"))["running"]
    assert sorted(await rush.cancel_tasks(keys)) == sorted(keys)
    async with asyncio.timeout(TIMEOUT):
        assert {(await block).state for block in blocks} == {"failed"}
    assert await first.finish_tasks(keys, [{"y": 1}] * 2) == await second.fail_tasks(keys) == []


async def test_a_shared_worker_is_stopped_only_by_name(rush: Rush, pair: tuple[RushWorker, RushWorker]) -> None:
    (key,) = await pair[0].push_running_tasks([{"x": 1}])
    for mode in ("terminate", "kill"):
        async with asyncio.timeout(TIMEOUT):
            await rush.stop_workers(mode=mode)
    assert not any(worker.terminated for worker in pair)
    async with asyncio.timeout(TIMEOUT):
        await rush.stop_workers("study", timeout=0.01)
    await wait_until(lambda: all(worker.terminated for worker in pair))
    async with RushWorker(rush.network_id, replace(rush.config, retry_deadline=28.0), worker_id="study", shared=True) as late:
        assert late.terminated
        assert await late.pop_task() is None
    assert await pair[1].finish_tasks(key, [{"y": 1}]) == [key]  # as a worker that is to stop may


async def test_a_shared_worker_that_is_killed_fails_its_tasks_and_moves_nothing_any_more(
    rush: Rush, pair: tuple[RushWorker, RushWorker]
) -> None:
    keys = await pair[0].push_running_tasks([{"x": 1}, {"x": 2}])
    await rush.stop_workers("study", mode="kill")
    (failed, _) = await rush.get_tasks(keys)
    assert failed is not None
    assert failed.failure is not None
    assert failed.failure.kind == "killed"
    for worker in pair:
        with pytest.raises(WorkerLostError):
            await worker.push_running_tasks([{"x": 1}])
    with pytest.raises(WorkerIdTakenError, match="was killed"):
        await RushWorker(rush.network_id, replace(rush.config, retry_deadline=28.0), worker_id="study", shared=True)
    assert (await rush.worker_info())["state"].to_list() == ["killed"]


@pytest.mark.parametrize("workers", [False, True])
async def test_a_reset_of_all_deletes_a_shared_worker(rush: Rush, pair: tuple[RushWorker, RushWorker], workers: bool) -> None:
    await pair[0].push_running_tasks([{"x": 1}])
    async with asyncio.timeout(TIMEOUT):
        await rush.reset(workers=workers)
    if workers:
        with pytest.raises(WorkerLostError, match="Open a new"):
            await pair[1].push_running_tasks([{"x": 1}])
        again = replace(rush.config, retry_deadline=28.0)
        async with RushWorker(rush.network_id, again, worker_id="study", shared=True) as worker:
            assert worker.number == 0
            assert len(await worker.push_running_tasks([{"x": 1}])) == 1
    else:
        assert len(await pair[1].push_running_tasks([{"x": 1}])) == 1


async def test_waits_that_need_workers_do_not_count_a_shared_one(rush: Rush, pair: tuple[RushWorker, RushWorker]) -> None:
    (queued,) = await rush.push_tasks([{"x": 1}])
    with pytest.raises(TasksNotDoneError, match="no worker is starting or running"):
        await rush.wait_for_tasks(queued, timeout=TIMEOUT)
    with pytest.raises(TasksNotDoneError, match="no worker is starting or running"):
        await rush.wait_until_stopped(timeout=TIMEOUT)
    with pytest.raises(WorkersNotReadyError, match="0 of 1 workers are running"):
        await rush.wait_for_workers(1, timeout=0)
    await rush.wait_for_workers(worker_ids="study", timeout=0)
    # A running task is waited for: any process may end it.
    (running,) = await pair[0].push_running_tasks([{"x": 2}])
    waiting = asyncio.create_task(rush.wait_for_tasks(running, timeout=TIMEOUT))
    await wait_until(lambda: rush._net.feed.is_watching)  # pyright: ignore[reportPrivateUsage]
    await pair[1].finish_tasks(running, [{"y": 1}])
    assert [task.state for task in await waiting] == ["finished"]


async def test_a_cancelled_opening_of_a_shared_worker_does_not_end_it(rush: Rush, pair: tuple[RushWorker, RushWorker]) -> None:
    config = replace(rush.config, retry_deadline=28.0)
    async with Rush(rush.network_id, config) as other:  # the connection is there
        for n in range(8):
            opening = asyncio.ensure_future(RushWorker(rush.network_id, config, worker_id="study", shared=True).__aenter__())
            for _ in range(n):
                await asyncio.sleep(0)
            opening.cancel()
            await asyncio.wait([opening])
            if not opening.cancelled():
                await opening.result().aclose()
        await other._net.tasks.calls.quiet()  # pyright: ignore[reportPrivateUsage]
    assert len(await pair[0].push_running_tasks([{"x": 1}])) == 1


async def test_the_number_of_running_workers_counts_a_shared_one_once(rush: Rush, pair: tuple[RushWorker, RushWorker]) -> None:
    assert rush.n_running_workers >= 0  # begins to follow the network
    await wait_until(lambda: rush.n_running_workers == 1)


async def test_workers_that_close_one_by_one_wait_for_a_frozen_server_as_long_as_one(
    rush: Rush, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("worker.registration", "network.network"):
        monkeypatch.setattr(f"rush_async.{module}._PATIENCE", 0.5)
    async with contextlib.AsyncExitStack() as closing:
        for _ in range(5):
            await closing.enter_async_context(RushWorker(rush.network_id, rush.config.at(proxy.url)))
        proxy.freeze()
        start = time.monotonic()
    assert time.monotonic() - start < 1.5
    proxy.thaw()
