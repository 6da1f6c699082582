"""The view of a network: one for all clients of an event loop, closed by the last of them."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from rush_async import (
    Counts,
    Processes,
    Rush,
    RushConfig,
    RushConfigError,
    RushConnectionError,
    RushTimeoutError,
    RushWorker,
    TasksNotDoneError,
)
from rush_async.embedded.directories import RuntimeDirectory
from rush_async.network.network import Network


def view_of(client: Rush | RushWorker) -> Network:
    return client._net  # pyright: ignore[reportPrivateUsage]


async def test_clients_of_one_event_loop_share_a_view(rush: Rush, rush_worker: RushWorker, elsewhere: Rush) -> None:
    assert view_of(rush) is view_of(rush_worker)
    assert view_of(rush) is not view_of(elsewhere)
    async with Rush(config=rush.config) as other:
        assert view_of(other) is not view_of(rush)
        assert view_of(other).link is view_of(rush).link


async def test_a_view_is_closed_with_its_last_client_and_opened_anew(rush_server: RushConfig) -> None:
    first = await Rush("net", rush_server)
    second = await Rush("net", rush_server)
    view = view_of(first)
    await first.aclose()
    assert await view_of(second).tasks.read_position()
    await second.aclose()
    async with Rush("net", rush_server) as third:
        assert view_of(third) is not view


async def test_each_event_loop_has_a_view(rush: Rush, rush_server: RushConfig) -> None:
    async def view() -> Network:
        async with Rush(rush.network_id, rush_server) as client:
            return view_of(client)

    assert await asyncio.to_thread(asyncio.run, view()) is not view_of(rush)


async def test_tasks_of_every_state_are_found_by_their_keys(rush: Rush, rush_worker: RushWorker) -> None:
    (finished,) = await rush.push_finished_tasks([{"x": 1}], [{"y": 1}])
    (failed,) = await rush.push_failed_tasks([{"x": 2}])
    (running,) = await rush_worker.push_running_tasks([{"x": 3}])
    (queued,) = await rush.push_tasks([{"x": 4}])
    found = await view_of(rush).find([queued, finished, "unknown", running, failed])
    assert {key: task.state for key, task in found.items()} == {
        queued: "queued",
        finished: "finished",
        running: "running",
        failed: "failed",
    }


async def test_waits_end_with_the_counts_or_with_what_is_missing(rush: Rush) -> None:
    view = view_of(rush)
    (key,) = await rush.push_tasks([{"x": 1}])
    assert await view.wait_for_counts(lambda counts: counts.queued == 1, 0) == Counts(queued=1)
    with pytest.raises(RushTimeoutError, match="there are 1 queued, 0 running"):
        await view.wait_for_counts(lambda counts: counts.queued == 2, 0.01)
    with pytest.raises(TasksNotDoneError, match="No worker was ever started"):
        await view.wait_for_ends([key], None, need_workers=True)
    with pytest.raises(TasksNotDoneError, match=r"1 of 1 tasks did not end within 0\.01 s"):
        await view.wait_for_ends([key], 0.01, need_workers=False)
    with pytest.raises(KeyError, match="has no task 'unknown'"):
        await view.wait_for_ends(["unknown"], 0, need_workers=True)


async def test_the_embedded_server_is_started_for_a_config_without_a_url(directory: Path) -> None:
    network = await Network.acquire("embedded", RushConfig(data_dir=directory))
    try:
        assert network.link.is_embedded
        assert network.link.config.url is not None
        assert network.link.config.data_dir is None
        assert network.link.data_dir is not None
        assert network.link.data_dir.name == directory.name
        assert network.link.db == 0
    finally:
        await network.release()


async def test_the_embedded_server_has_no_replicas_to_wait_for(directory: Path) -> None:
    with pytest.raises(RushConfigError, match="the embedded server has no replicas"):
        await Network.acquire("embedded", RushConfig(data_dir=directory, wait_replicas=1))


def runtime_of(client: Rush) -> RuntimeDirectory:
    assert client.config.url is not None
    return RuntimeDirectory(Path(client.config.url.removeprefix("unix://")).parent)


async def work(rush: RushWorker) -> None:
    while not rush.terminated:
        async with rush.task({"x": 1}) as task:
            await asyncio.sleep(0.001)
            task.ys = {"y": 1}


async def test_row_23_a_killed_server_with_a_data_dir_is_back_and_everything_continues(directory: Path) -> None:
    async with Rush("net", RushConfig(data_dir=directory)) as rush:
        await rush.start_workers(work, 2)
        (process,) = await rush.start_workers(work, on=Processes())
        await rush.wait_for_workers(3)
        known: list[str] = []
        for n in (50, 300):
            known += await rush.push_finished_tasks([{"x": 2}] * 10, [{"y": 2}] * 10)
            waiting = asyncio.ensure_future(rush.wait_until(lambda counts, n=n: counts.finished > n))
            os.kill(runtime_of(rush).server_pid(), signal.SIGKILL)
            await waiting
        await rush.stop_workers()
        ends = await rush.join_workers()
        assert {end.state for end in ends} == {"terminated"}
        found = await rush.fetch_finished_tasks()
        assert set(known) <= set(found["keys"])
        assert found["keys"].is_unique().all()
        assert process in set(found["worker_id"])
        assert (await rush.counts()).running == 0


async def test_what_waits_ends_with_an_error_when_the_server_has_ended_for_good(directory: Path) -> None:
    async def pop(rush: RushWorker) -> None:
        await rush.pop_task(None)

    async with Rush("net", RushConfig(data_dir=directory)) as rush:
        await rush.start_workers(pop, 1)
        await rush.start_workers(pop, 1, on=Processes())
        await rush.wait_for_workers(2)
        waiting = asyncio.ensure_future(rush.wait_until(lambda counts: counts.finished > 0))
        await rush.counts()
        os.kill(int(runtime_of(rush).pids.read_text().split()[0]), signal.SIGTERM)  # its watchdog
        with pytest.raises(RushConnectionError, match=r"has ended, and what it had in memory is lost\. Open new clients"):
            await waiting
        with pytest.raises(RushConnectionError, match="has ended"):
            await rush.counts()
        for end in await rush.join_workers(check=False):
            assert end.failure is not None
            assert "has ended, and what it had in memory is lost" in end.failure.message
        closed_at = time.monotonic()
    assert time.monotonic() - closed_at < 2
