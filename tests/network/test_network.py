"""The view of a network: one for all clients of an event loop, closed by the last of them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from rush_async import Counts, Rush, RushConfig, RushConfigError, RushTimeoutError, RushWorker, TasksNotDoneError
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
        assert network.link.db == 0
    finally:
        await network.release()


async def test_the_embedded_server_has_no_replicas_to_wait_for(directory: Path) -> None:
    with pytest.raises(RushConfigError, match="the embedded server has no replicas"):
        await Network.acquire("embedded", RushConfig(data_dir=directory, wait_replicas=1))
