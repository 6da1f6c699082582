"""Indices of proposals: at every moment still to come, returned, reserved, or exactly one task's."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rush_async import Rush, RushWorker
from rush_async.store.keys import NetworkKeys
from rush_async.store.records import NewTask, RecordEncoder
from rush_async.store.reservations import ReservationStore, Reserved
from rush_async.store.scripts import LOST, Lost
from rush_async.store.workers import KILLED


def store_of(worker: RushWorker) -> ReservationStore:
    return worker._net.reservations  # pyright: ignore[reportPrivateUsage]


async def reserve(worker: RushWorker, **limits: Any) -> Any:
    asked: dict[str, Any] = {"budget": None, "max_failed": None, "queued_first": False} | limits
    reserved = await store_of(worker).reserve(worker.worker_id, **asked)
    assert isinstance(reserved, Reserved)
    return reserved.place


async def unreserve(worker: RushWorker, index: int) -> None:
    store_of(worker).unreserve(worker.worker_id, index)
    await worker._net.tasks.calls.quiet()  # pyright: ignore[reportPrivateUsage]


def new_task() -> NewTask:
    return RecordEncoder(1000).task({"x": 1}, None)


async def start(worker: RushWorker, index: int) -> Any:
    return await store_of(worker).start(worker.worker_id, index, new_task())


class Indices:
    """Where the indices of a network are."""

    def __init__(self, rush: Rush, raw: Any) -> None:
        self._rush = rush
        self._raw = raw
        self._keys = NetworkKeys.of(rush.network_id)

    def reserved(self) -> dict[str, list[int]]:
        found = {
            name.decode(): [int(index) for index in value.split()]
            for name, value in self._raw.hgetall(self._keys.reserved).items()
        }
        assert sum(map(len, found.values())) == int(self._raw.hget(self._keys.meta, "reserved") or 0)
        return found

    def returned(self) -> list[int]:
        return [int(index) for index in self._raw.zrange(self._keys.returned, 0, -1)]

    async def check(self) -> None:
        """Every index up to the next one is in exactly one place."""
        tasks = (await self._rush.fetch_tasks(times=True))["index"].to_list()
        everywhere = [*tasks, *self.returned(), *[index for each in self.reserved().values() for index in each]]
        assert sorted(everywhere) == list(range(int(self._raw.hget(self._keys.meta, "next_index") or 0)))


@pytest.fixture
def indices(rush: Rush, raw: Any) -> Indices:
    return Indices(rush, raw)


async def test_the_lowest_returned_index_comes_first_else_the_next(
    rush: Rush, rush_worker: RushWorker, indices: Indices
) -> None:
    await rush.push_tasks([{"x": 1}])
    assert [await reserve(rush_worker) for _ in range(12)] == list(range(1, 13))
    for index in (10, 2, 9):
        await unreserve(rush_worker, index)
    await indices.check()
    assert indices.returned() == [2, 9, 10]
    assert [await reserve(rush_worker) for _ in range(4)] == [2, 9, 10, 13]
    await indices.check()


async def test_a_reserved_index_becomes_a_running_task(rush: Rush, rush_worker: RushWorker, indices: Indices) -> None:
    index = await reserve(rush_worker)
    assert indices.reserved() == {rush_worker.worker_id: [0]}
    assert await start(rush_worker, index) == "started"
    assert indices.reserved() == {}
    assert await rush.counts() == (0, 1, 0, 0)
    assert await start(rush_worker, index) == "gone"
    await unreserve(rush_worker, index)
    await indices.check()
    assert indices.returned() == []


async def test_another_workers_index_is_out_of_reach(rush: Rush, rush_worker: RushWorker, indices: Indices) -> None:
    async with RushWorker(rush.network_id, rush.config) as other:
        index = await reserve(rush_worker)
        assert await start(other, index) == "gone"
        await unreserve(other, index)
        assert indices.reserved() == {rush_worker.worker_id: [0]}
        assert indices.returned() == []


@pytest.mark.parametrize("how", ["deregistered", "killed", "lost"])
async def test_indices_return_when_their_worker_leaves(rush: Rush, rush_worker: RushWorker, indices: Indices, how: str) -> None:
    async with RushWorker(rush.network_id, rush.config) as leaver:
        for _ in range(3):
            await reserve(leaver)
        assert await reserve(rush_worker) == 3
        if how != "deregistered":
            state: Any = how
            await rush._net.workers.lose([leaver.worker_id], state, KILLED)  # pyright: ignore[reportPrivateUsage]
    assert indices.returned() == [0, 1, 2]
    assert indices.reserved() == {rush_worker.worker_id: [3]}
    await indices.check()
    assert await store_of(rush_worker).reserve(leaver.worker_id, budget=None, max_failed=None, queued_first=False) is LOST
    assert isinstance(await store_of(rush_worker).start(leaver.worker_id, 0, new_task()), Lost)
    assert await reserve(rush_worker) == 0


async def test_a_reservation_holds_a_place_of_a_budget(rush: Rush, rush_worker: RushWorker) -> None:
    await rush.push_tasks([{"x": 1}])
    await rush_worker.push_running_tasks([{"x": 1}])
    assert await reserve(rush_worker, budget=2) == "budget"
    assert await reserve(rush_worker, budget=3) == 2
    assert await reserve(rush_worker, budget=3) == "budget"
    assert await rush_worker.push_running_tasks([{"x": 2}], budget=3) == []
    await unreserve(rush_worker, 2)
    assert len(await rush_worker.push_running_tasks([{"x": 2}], budget=3)) == 1
    assert await reserve(rush_worker, budget=3) == "budget"


async def test_a_reservation_holds_a_place_of_the_stop_rules(rush: Rush, rush_worker: RushWorker) -> None:
    await rush.stop_when(finished=2)
    keys = await rush_worker.push_running_tasks([{"x": 1}])
    assert await reserve(rush_worker) == 1
    assert await reserve(rush_worker) == "full"
    await rush.push_tasks([{"x": 1}])
    assert await rush_worker.pop_task(0) is None
    await rush_worker.fail_tasks(keys)
    assert await rush_worker.pop_task(0) is not None
    assert await reserve(rush_worker) == "full"


async def test_why_there_is_no_index(rush: Rush, rush_worker: RushWorker) -> None:
    (key,) = await rush.push_tasks([{"x": 1}])
    assert await reserve(rush_worker, queued_first=True) == "queued"
    assert await reserve(rush_worker, queued_first=False) == 1
    await rush.cancel_tasks(key)
    assert await reserve(rush_worker, budget=9, max_failed=1) == "spent"
    await rush.push_finished_tasks([{"x": 1}], [{"y": 1}])
    assert await reserve(rush_worker, budget=1) == "spent"
    rush._net.position.seed = 5  # pyright: ignore[reportPrivateUsage]
    assert await reserve(rush_worker) == "seed"
    rush._net.position.seed = None  # pyright: ignore[reportPrivateUsage]
    await rush.stop("enough")
    assert await reserve(rush_worker) == "stopped"


async def test_an_index_returns_where_the_network_has_stopped(rush: Rush, rush_worker: RushWorker, indices: Indices) -> None:
    index = await reserve(rush_worker)
    await rush.stop("enough")
    assert await start(rush_worker, index) == "stopped"
    assert indices.returned() == [0]
    await indices.check()


@pytest.mark.parametrize("workers", [True, False])
async def test_a_reset_forgets_all_indices(rush: Rush, raw: Any, workers: bool) -> None:
    keys = NetworkKeys.of(rush.network_id)
    async with RushWorker(rush.network_id, rush.config) as worker:
        await reserve(worker)
        await unreserve(worker, await reserve(worker))
        await rush.reset(workers=workers)
        assert not raw.exists(keys.reserved)
        assert not raw.exists(keys.returned)
        assert raw.hget(keys.meta, "reserved") is None
        if not workers:
            assert await start(worker, 0) == "gone"
            assert await reserve(worker) == 0


async def test_reservations_of_one_tick_go_as_one_call(rush: Rush, rush_worker: RushWorker, raw: Any) -> None:
    await reserve(rush_worker)
    before = raw.info("commandstats")["cmdstat_evalsha"]["calls"]
    places = await asyncio.gather(*[reserve(rush_worker, budget=5) for _ in range(6)])
    assert places == [1, 2, 3, 4, "budget", "budget"]
    assert raw.info("commandstats")["cmdstat_evalsha"]["calls"] - before <= 2
