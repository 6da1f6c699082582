"""Tasks of several states as they were at one moment."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, MutableMapping, Sequence

from rush_async.errors import RushConnectionError
from rush_async.events import (
    Event,
    NetworkResumed,
    NetworkStopped,
    TasksFailed,
    TasksFinished,
    TasksQueued,
    TasksStarted,
    WorkerLost,
    WorkerStarted,
    WorkerStopped,
)
from rush_async.model import TaskState
from rush_async.network.event_feed import EventFeed, Listener
from rush_async.network.results import Results
from rush_async.store.basis import Seen
from rush_async.store.finished import Records
from rush_async.store.malformed import MalformedRecords, Sifted
from rush_async.store.task_reads import TaskReads, View

__all__ = ["Snapshot", "read_view", "take_snapshot"]

_STEP = 5_000  # tasks of a state that are read in one step, which keeps the server for about a millisecond
_MOST_TOUCHED = 5_000  # tasks that may change while others are read
_TRIES = 10
_PATIENCE = 2.0  # seconds within which events have to come; otherwise all is read in one step
_BUFFER = 100_000  # events that the listener holds during a step


class Snapshot:
    """Tasks of several states as they were at one moment. Malformed records are left out.

    Args:
        view: what was read.
        finished: where finished tasks were asked for, their records.
        n_finished: how many of them were finished at that moment; the records may have more.
        notes: names the malformed records.
    """

    def __init__(self, view: View, finished: Records | None, n_finished: int, notes: MalformedRecords) -> None:
        self.n_finished = n_finished
        self._finished = finished
        self._states: dict[TaskState, Sifted] = {}
        for state, records in view.records.items():
            if state == "queued":
                listed = {key: records.pop(key) for key in view.queue if key in records}
                notes.sift(state, records)  # tasks that the queue does not list are left out; malformed ones are noted
                records = listed
            sifted = notes.sift(state, records)
            self._states[state] = sifted if state == "queued" else sifted.in_order()

    def keys(self, state: TaskState) -> list[str]:
        """Returns the keys of the tasks in a state."""
        if state == "finished":
            return [] if self._finished is None else self._finished.keys(0, self.n_finished)
        return self._states[state].keys

    def seen(self, states: Sequence[TaskState]) -> tuple[Seen, ...]:
        """Returns which tasks are in these states, by their indices."""
        return tuple(
            [
                Seen(state, self.n_finished)
                if state == "finished"
                else Seen(state, len(indices := self._states[state].indices), tuple(indices))
                for state in states
            ]
        )

    def complete(self) -> dict[TaskState, list[bytes]]:
        """Returns the complete records of the tasks that are not finished, by their state."""
        return {state: sifted.records for state, sifted in self._states.items()}


async def take_snapshot(tasks: TaskReads, results: Results, feed: EventFeed, states: Sequence[TaskState]) -> Snapshot:
    """Reads all tasks in these states as they are at one moment. Finished tasks that were read before are not read again."""
    while True:
        if "finished" in states:
            await results.read()
        start = results.resumes_at
        view = await read_view(tasks, feed, states, start)
        if "finished" not in states:
            return Snapshot(view, None, 0, results.notes)
        # Others may have read more meanwhile. They read the same records unless the network was reset.
        if results.join(view.epoch, start, view.finished):
            return Snapshot(view, results.records, start + len(view.finished), results.notes)


async def read_view(
    tasks: TaskReads,
    feed: EventFeed,
    states: Sequence[TaskState],
    finished_from: int,
    many: Mapping[TaskState, MutableMapping[bytes, bytes]] | None = None,
) -> View:
    """Reads all tasks in these states as they are at one moment, of finished tasks those from an index on.

    Args:
        tasks: the reads of the network.
        feed: its events.
        states: the states.
        finished_from: the index of the first finished task.
        many: for each other state what takes the records, by key, where they are many.
    """
    many = many or {state: {} for state in states if state != "finished"}
    view = await tasks.view_of_few(states, finished_from, _STEP)
    view = view or await _view_in_steps(tasks, feed, states, finished_from, many)
    return view or await tasks.view(states, finished_from)


async def _view_in_steps(
    tasks: TaskReads,
    feed: EventFeed,
    states: Sequence[TaskState],
    finished_from: int,
    records: Mapping[TaskState, MutableMapping[bytes, bytes]],
) -> View | None:
    """Reads many tasks in steps, so that none keeps the server busy for long. Tasks that change meanwhile are read again in a
    last step. None if too many change, or if events are missing."""
    with feed, feed.listening((), _BUFFER) as listener:
        try:
            async with asyncio.timeout(_PATIENCE):
                await feed.watch()
        except (RushConnectionError, TimeoutError):
            return None
        begun = await feed.begin(listener)
        changes = _Changes(listener, begun.seq)
        for state, found in records.items():
            await tasks.scan_into(found, state, _STEP)
        for _ in range(_TRIES):
            await changes.hear()
            touched = list(changes.keys)
            if len(touched) > _MOST_TOUCHED or not changes.are_known:
                return None
            view = await tasks.view_of_some(states, finished_from, touched or [b""])
            await changes.hear(view.seq)
            if view.epoch == begun.epoch and changes.are_known and len(changes.keys) == len(touched):
                for state, found in records.items():
                    for key in touched:
                        found.pop(key, None)
                    found.update(view.records[state])
                return view._replace(records=records)
    for found in records.values():
        found.clear()
    return None


class _Changes:
    """The tasks that have changed, by their events.

    Attributes:
        keys: their keys.
        are_known: whether no event was missed.
    """

    def __init__(self, listener: Listener, seq: int) -> None:
        self.keys: dict[bytes, None] = {}
        self.are_known = True
        self._listener = listener
        self._seq = seq

    async def hear(self, until: int | None = None) -> None:
        """Takes the events up to a sequence number; without one, those that the listener holds already."""
        if until is not None and until < self._seq:
            self.are_known = False  # the server was restored from older data
        try:
            async with asyncio.timeout(_PATIENCE):
                while self.are_known and (len(self._listener) if until is None else self._seq < until):
                    self._take(await self._listener.next())
        except TimeoutError:
            self.are_known = False

    def _take(self, event: Event | None) -> None:
        match event:
            case TasksQueued() | TasksStarted() | TasksFinished() | TasksFailed():
                self.keys.update(dict.fromkeys([key.encode() for key in event.keys]))
                self._seq = event.seq
            case WorkerStarted() | WorkerStopped() | WorkerLost() | NetworkStopped() | NetworkResumed():
                self._seq = event.seq
            case _:
                self.are_known = False
