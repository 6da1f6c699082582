"""Reads of tasks: the position of the network, chunks of finished records, views of several states, keys that are looked up."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_asyncio

from rush_async import Counts, Rush, RushError, RushWorker
from rush_async.store import task_reads
from rush_async.store.keys import NetworkKeys
from rush_async.store.task_reads import TaskReads, slices


@pytest_asyncio.fixture
async def reads(rush: Rush) -> TaskReads:
    return rush._net.tasks  # pyright: ignore[reportPrivateUsage]


def raw_keys(keys: list[str]) -> list[bytes]:
    return [key.encode() for key in keys]


async def test_the_position_of_a_network_that_does_not_exist_has_epoch_0(reads: TaskReads) -> None:
    assert (await reads.read_position())[:3] == (0, 0, Counts())


async def test_the_position_has_the_counts_and_updates_the_position_of_the_client(rush: Rush, elsewhere: Rush) -> None:
    await elsewhere.push_tasks([{"x": 1}] * 3)
    await elsewhere.push_finished_tasks([{"x": 1}], [{"y": 1}])
    tasks = rush._net.tasks  # pyright: ignore[reportPrivateUsage]
    position = await tasks.read_position(probe=True)
    assert position.counts == tasks.position.counts == Counts(queued=3, finished=1)
    assert position.epoch == tasks.position.epoch > 0


async def test_the_position_of_a_network_of_a_newer_wire_version_is_an_error(rush: Rush, reads: TaskReads, raw: Any) -> None:
    await rush.push_tasks([{"x": 1}])
    meta = NetworkKeys.of(rush.network_id).meta
    raw.hset(meta, "wire", 99)
    with pytest.raises(RushError, match="written in wire version 99 and this library knows 1"):
        await reads.read_position()
    raw.hset(meta, "wire", 1)


async def test_finished_records_are_read_in_chunks_from_a_position(rush: Rush, reads: TaskReads) -> None:
    keys = await rush.push_finished_tasks([{"x": 1}] * 250, [{"y": 1}] * 250)
    first = await reads.read_finished(0).chunk()
    assert (first.start, first.total, len(first.records)) == (0, 250, 100)  # small, while the size of records is unknown
    rest = await reads.read_finished(100).chunk()
    assert (rest.start, len(rest.records)) == (100, 150)
    assert rest.epoch == first.epoch == reads.position.epoch
    records = [*first.records, *rest.records]
    assert all(key in record for key, record in zip(raw_keys(keys), records, strict=True))


async def test_chunks_of_large_records_hold_fewer(rush: Rush, reads: TaskReads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_reads, "MOST_BYTES", 100_000)
    await rush.push_finished_tasks([{"x": "x" * 20_000}] * 10, [{"y": 1}] * 10)
    await reads.read_finished(0).chunk()
    assert len((await reads.read_finished(0).chunk()).records) == 4


async def test_a_read_knows_whether_it_was_sent(rush: Rush, reads: TaskReads) -> None:
    await rush.push_finished_tasks([{"x": 1}], [{"y": 1}])
    read = reads.read_finished(0)
    assert not read.is_sent
    await read.chunk()
    assert read.is_sent


async def test_a_view_shows_the_tasks_of_each_state(rush: Rush, rush_worker: RushWorker, reads: TaskReads) -> None:
    queued = await rush.push_tasks([{"x": 1}] * 2)
    (running,) = await rush_worker.push_running_tasks([{"x": 1}])
    (failed,) = await rush.push_failed_tasks([{"x": 1}])
    await rush.push_finished_tasks([{"x": 1}] * 3, [{"y": 1}] * 3)
    view = await reads.view(["queued", "running", "failed", "finished"], finished_from=1)
    assert {state: set(records) for state, records in view.records.items()} == {
        "queued": set(raw_keys(queued)),
        "running": {running.encode()},
        "failed": {failed.encode()},
    }
    assert view.queue == raw_keys(queued)
    assert len(view.finished) == 2
    assert (view.epoch, view.seq) == (reads.position.epoch, reads.position.seq)
    assert not (await reads.view(["finished"], 0)).queue


async def test_a_view_of_few_tasks_is_none_where_there_are_many(rush: Rush, reads: TaskReads) -> None:
    keys = await rush.push_tasks([{"x": 1}] * 3)
    view = await reads.view_of_few(["queued"], 0, 100)
    assert view is not None
    assert set(view.records["queued"]) == set(raw_keys(keys))
    await rush.push_tasks([{"x": 1}] * 1_000)
    assert await reads.view_of_few(["queued"], 0, 100) is None


async def test_a_view_of_some_tasks_has_only_those(rush: Rush, reads: TaskReads) -> None:
    first, second, _ = await rush.push_tasks([{"x": 1}] * 3)
    view = await reads.view_of_some(["queued", "failed"], 0, raw_keys([second, first, "unknown"]))
    assert set(view.records["queued"]) == set(raw_keys([first, second]))
    assert view.records["failed"] == {}


async def test_a_scan_in_steps_returns_all_tasks_of_a_state(rush: Rush, reads: TaskReads) -> None:
    keys = await rush.push_tasks([{"x": 1}] * 2_000)
    assert set(await reads.scan("queued", 100)) == set(raw_keys(keys))
    assert await reads.scan("failed", 100) == {}


async def test_tasks_are_looked_up_by_key_in_all_states_but_finished(
    rush: Rush, rush_worker: RushWorker, reads: TaskReads
) -> None:
    (queued,) = await rush.push_tasks([{"x": 1}])
    (running,) = await rush_worker.push_running_tasks([{"x": 1}])
    (finished,) = await rush.push_finished_tasks([{"x": 1}], [{"y": 1}])
    found = await reads.find([queued, running, finished, "unknown"])
    assert {key: state for key, (state, _) in found.items()} == {queued: "queued", running: "running"}
    assert await reads.are_running([queued, running, finished, "unknown"]) == {running}


def test_slices_have_a_length_except_the_last() -> None:
    assert list(slices("abcde", 2)) == ["ab", "cd", "e"]
    assert list(slices("", 2)) == []
