"""Malformed records are listed and removed, and all other calls leave them out."""

from __future__ import annotations

from typing import Any

import pytest

from rush_async import DecodeError, Rush, RushWorker, TasksFailed, TasksFinished
from rush_async.store.keys import NetworkKeys


async def test_malformed_records_are_listed_and_removed(rush: Rush, rush_worker: RushWorker, raw: Any) -> None:
    keys = NetworkKeys.of(rush.network_id)
    (good,) = await rush.push_finished_tasks([{"x": 1}], [{"y": 1}])
    raw.rpush(keys.finished, b"junk")
    raw.hset(keys.failed, b"\xff", b"junk")
    raw.hset(keys.queued, "odd", b"junk")
    raw.hset(keys.workers, "odd", b"junk")
    entry = raw.xadd(keys.log, {"r": b"junk"}).decode()
    found = await rush.malformed_records()
    places = [("failed", "\udcff"), ("queued", "odd"), ("finished", "1"), ("workers", "odd"), ("log", entry)]
    assert sorted((record.place, record.name) for record in found) == sorted(places)
    assert all(record.data == b"junk" and record.reason for record in found)

    raw.hset(keys.queued, "odd", b"changed")
    assert await rush.remove_malformed_records(found) == 4
    (left,) = await rush.malformed_records()
    assert (left.name, left.data) == ("odd", b"changed")
    assert await rush.remove_malformed_records() == 1
    assert await rush.malformed_records() == []
    assert await rush.remove_malformed_records() == 0
    assert (await rush.fetch_finished_tasks())["keys"].to_list() == [good]
    assert (await rush.counts()).finished == 2  # it still counts as finished
    await rush.push_finished_tasks([{"x": 2}], [{"y": 2}])
    assert (await rush.fetch_finished_tasks())["y"].to_list() == [1, 2]
    assert (await rush_worker.fetch_new_tasks(timeout=0))["y"].to_list() == [1, 2]


async def test_a_call_that_names_a_malformed_task_says_which_it_is(rush: Rush, raw: Any) -> None:
    (good,) = await rush.push_tasks([{"x": 1}])
    raw.hset(NetworkKeys.of(rush.network_id).failed, "odd", b"junk")
    with pytest.raises(DecodeError, match=f"network '{rush.network_id}': the failed task 'odd' is malformed"):
        await rush.get_tasks([good, "odd"])
    (task,) = await rush.get_tasks(good)
    assert task is not None
    assert task.key == good


async def test_events_with_results_leave_out_what_is_malformed(rush: Rush, raw: Any) -> None:
    keys = NetworkKeys.of(rush.network_id)
    async with rush.events(TasksFailed, TasksFinished, results=True) as events:
        (failed,) = await rush.push_failed_tasks([{"x": 1}], "no")
        raw.hset(keys.failed, failed, b"junk")
        await rush.push_finished_tasks([{"x": 2}], [{"y": 2}])
        first, second = await anext(events), await anext(events)
    assert isinstance(first, TasksFailed)
    assert first.tasks == ()
    assert isinstance(second, TasksFinished)
    assert second.tasks is not None
    assert [task.xs for task in second.tasks] == [{"x": 2}]
