"""The events of a network, and that real ones fit their description."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields
from datetime import UTC, datetime
from typing import Any, get_args

import pytest

from rush_async import Rush, RushWorker, TasksFinished, TasksQueued, TasksStarted, WorkerStarted
from rush_async.events import EVENT_KINDS, Event

COMMON = {"network_id": "net", "seq": 1, "at": datetime(2025, 1, 1, tzinfo=UTC)}
OWN = {
    "keys": ("a", "b"),
    "worker_id": "w",
    "key": "a",
    "attempt": 1,
    "step": 1,
    "values": None,
    "rule": "finished",
    "detail": "10 tasks have finished",
}


def test_the_list_of_kinds_is_complete() -> None:
    assert get_args(Event) == EVENT_KINDS


@pytest.mark.parametrize("kind", EVENT_KINDS)
def test_an_event_cannot_be_changed_and_has_the_common_attributes(kind: Any) -> None:
    own = {name: value for name, value in OWN.items() if name in {field.name for field in fields(kind)}}
    event = kind(**COMMON, **own)
    assert (event.network_id, event.seq, event.at) == tuple(COMMON.values())
    assert event == kind(**COMMON, **own)
    assert event != kind(**{**COMMON, "seq": 2}, **own)
    with pytest.raises(FrozenInstanceError):
        event.seq = 2


async def test_the_events_of_a_network_are_numbered_and_name_tasks_and_workers(rush: Rush) -> None:
    async with rush.events() as events:
        (key,) = await rush.push_tasks([{"x": 1}])
        async with RushWorker(rush.network_id, rush.config) as worker:
            task = await worker.pop_task(timeout=0)
            assert task is not None
            await worker.finish_tasks([task.key], [{"y": 2}])
        seen: list[Event] = []
        async for event in events:
            seen.append(event)
            if isinstance(event, TasksFinished):
                break
    assert [type(event) for event in seen] == [TasksQueued, WorkerStarted, TasksStarted, TasksFinished]
    assert [event.seq for event in seen] == list(range(seen[0].seq, seen[0].seq + 4))
    assert {event.network_id for event in seen} == {rush.network_id}
    assert all(event.at.tzinfo is not None for event in seen)
    queued, started, taken, finished = seen
    assert isinstance(queued, TasksQueued)
    assert isinstance(started, WorkerStarted)
    assert isinstance(taken, TasksStarted)
    assert isinstance(finished, TasksFinished)
    assert queued.keys == taken.keys == finished.keys == (key,)
    assert started.worker_id == taken.worker_id == finished.worker_id == worker.worker_id
    assert finished.tasks is None
