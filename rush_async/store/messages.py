"""Encodes and decodes the messages of the shard channels `events`, `events:reports` and `control`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple, TypeAlias

from rush_async.errors import DecodeError
from rush_async.events import (
    Event,
    NetworkResumed,
    NetworkStopped,
    TaskReported,
    TasksFailed,
    TasksFinished,
    TasksQueued,
    TasksStarted,
    WorkerLost,
    WorkerStarted,
    WorkerStopped,
)
from rush_async.model import Counts, StopReason
from rush_async.store.codec import decode, to_msgpack
from rush_async.store.position import Position, stop_of
from rush_async.store.report_entry import Report

__all__ = [
    "CancelMessage",
    "ControlMessage",
    "EventMessage",
    "NetworkStopMessage",
    "ReportMessage",
    "ResetMessage",
    "ShutOutMessage",
    "StopMessage",
    "decode_control",
    "decode_events",
    "decode_reports",
    "tells_progress",
]

_TASK_EVENTS = {"S": TasksStarted, "F": TasksFinished, "X": TasksFailed}
_WORKER_EVENTS = {"W": WorkerStarted, "E": WorkerStopped, "L": WorkerLost}
_QUEUED, _FAILED, _STOPPED, _RESUMED = "Q", "X", "T", "R"
_PLACES = "P"  # the stop rules have changed, or a worker returned reservations. No event for users.
_LETTERS: dict[type[Any], str] = {
    **{kind: letter for letter, kind in (_TASK_EVENTS | _WORKER_EVENTS).items()},
    TasksQueued: _QUEUED,
    NetworkStopped: _STOPPED,
    NetworkResumed: _RESUMED,
}
# What else than the position matters in a message that no client listens to: queued and failed tasks, changed rules, a stop.
_MATTERS = re.compile(rb"\xa1[QXPRT]")
_MALFORMED = (ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError)


class EventMessage:
    """What happened in one call, and the position of the network after it.

    Attributes:
        epoch: the network's.
        first: the number of its first event.
        last: the number of its last event.
        position: the position of the network after its last event.
        queues_tasks: whether one of its events is a `TasksQueued`.
        changes_rules: whether the stop rules have changed, so that any number of places may be free.
        n_freed: how many places of budgets and stop rules became free: those of tasks that failed or that a worker returned to
            the queue, and of reservations that returned.
        failed_keys: the tasks that failed while a worker ran them.
    """

    __slots__ = (
        *("_at", "_events", "_groups", "_network_id"),
        *("changes_rules", "epoch", "failed_keys", "first", "last", "n_freed", "position", "queues_tasks"),
    )

    def __init__(
        self,
        network_id: str,
        epoch: int,
        first: int,
        at: float,
        counts: Counts,
        n_workers: int,
        stop: StopReason | None,
        groups: list[list[str]],
    ) -> None:
        self.epoch = epoch
        self.first = first
        self.last = first + len(groups) - 1
        self.position = Position(epoch, self.last, counts, n_workers, stop)
        self._network_id = network_id
        self._at = at
        self._groups = groups
        self._events: list[Event] | None = None
        self.queues_tasks = self.changes_rules = False
        self.n_freed = 0
        self.failed_keys: list[str] = []
        for group in groups:
            kind, is_of_worker = group[:1], group[1:2] != [""]
            if kind == [_FAILED]:
                self.n_freed += len(group) - 2
                self.failed_keys += group[2:] if is_of_worker else ()
            elif kind == [_RESUMED]:
                self.changes_rules = True
            elif kind == [_QUEUED] or kind == [_PLACES]:
                self.queues_tasks |= kind == [_QUEUED]
                self.n_freed += len(group) - 2 if is_of_worker else 0
                self.changes_rules |= group == [_PLACES, ""]

    @classmethod
    def of(cls, epoch: int, counts: Counts, n_workers: int, events: Sequence[Event]) -> EventMessage:
        """Returns the message of events with consecutive numbers."""
        groups = [_packed_event(event) for event in events]
        first = events[0]
        return cls(first.network_id, epoch, first.seq, first.at.timestamp(), counts, n_workers, None, groups)

    @property
    def at(self) -> datetime:
        """When it happened.

        Raises:
            DecodeError: the time is malformed.
        """
        try:
            return datetime.fromtimestamp(self._at, UTC)
        except _MALFORMED as error:
            raise _malformed("an event", self._network_id, self._at) from error

    @property
    def events(self) -> list[Event]:
        """What happened. Decoded on the first access, because most receivers only need the position.

        Raises:
            DecodeError: an event is malformed.
        """
        if self._events is None:
            at = self.at
            try:
                self._events = [
                    _event(group, self._network_id, self.first + offset, at)
                    for offset, group in enumerate(self._groups)
                    if group[:1] != [_PLACES]
                ]
            except _MALFORMED as error:
                raise _malformed("an event", self._network_id, self._groups) from error
        return self._events

    def encode(self) -> bytes:
        """Encodes the message for its channel."""
        _, _, counts, n_workers, stop = self.position
        reason = None if stop is None else [stop.rule, stop.at.timestamp(), stop.seq, stop.detail]
        return to_msgpack([str(self.epoch), self.first, self._at, [*counts, n_workers], reason, self._groups])


class ReportMessage:
    """The reports of one call.

    Attributes:
        epoch: the network's.
        first: the number of its first report.
        last: the number of its last report.
        at: when they were made.
        events: an event for each.
    """

    __slots__ = ("at", "epoch", "events", "first", "last")

    def __init__(self, epoch: int, events: Sequence[TaskReported]) -> None:
        self.epoch = epoch
        self.events = events
        self.first = events[0].seq
        self.last = events[-1].seq
        self.at = events[0].at


class ResetMessage(NamedTuple):
    """The network was reset.

    Attributes:
        epoch: the epoch that begins.
        at: when it was reset, by the server's clock.
        keeps_workers: whether its workers live on in that epoch; else nothing of the network exists.
    """

    epoch: int
    at: datetime
    keeps_workers: bool

    def encode(self) -> bytes:
        """Encodes the message for its channel."""
        return to_msgpack(["reset", str(self.epoch), self.at.timestamp(), int(self.keeps_workers)])


class StopMessage(NamedTuple):
    """Workers are asked to stop."""

    epoch: int
    worker_ids: tuple[str, ...]

    def encode(self) -> bytes:
        """Encodes the message for its channel."""
        return to_msgpack(["stop", str(self.epoch), *self.worker_ids])


class ShutOutMessage(NamedTuple):
    """Workers were shut out: the network does not count them as alive any more, because they are `lost` or were `killed`."""

    epoch: int
    state: Literal["lost", "killed"]
    worker_ids: tuple[str, ...]

    def encode(self) -> bytes:
        """Encodes the message for its channel."""
        return to_msgpack(["out", str(self.epoch), self.state, *self.worker_ids])


class CancelMessage(NamedTuple):
    """Tasks that a worker ran were cancelled."""

    epoch: int
    worker_id: str
    keys: tuple[str, ...]

    def encode(self) -> bytes:
        """Encodes the message for its channel."""
        return to_msgpack(["cancel", str(self.epoch), self.worker_id, *self.keys])


class NetworkStopMessage(NamedTuple):
    """The network has stopped, or was resumed.

    Attributes:
        epoch: the network's.
        seq: the number of the event.
        stop: why it has stopped; None where it was resumed.
    """

    epoch: int
    seq: int
    stop: StopReason | None

    def encode(self) -> bytes:
        """Encodes the message for its channel."""
        if self.stop is None:
            return to_msgpack(["resumed", str(self.epoch), self.seq])
        stop = self.stop
        return to_msgpack(["stopped", str(self.epoch), stop.rule, stop.at.timestamp(), stop.seq, stop.detail])


ControlMessage: TypeAlias = ResetMessage | StopMessage | ShutOutMessage | CancelMessage | NetworkStopMessage


def decode_events(network_id: str, data: bytes) -> EventMessage | ResetMessage:
    """Decodes a message of the channel `events`.

    Raises:
        DecodeError: it is malformed. Its events are decoded when they are accessed, which may raise it too.
    """
    # A pattern of types would take three times as long, and each event costs every process that receives it.
    try:
        fields = decode(data)
        if fields[0] == "reset":
            _, epoch, at, keeps_workers = fields
            return _reset(epoch, at, keeps_workers)
        epoch, first, at, numbers, stop, groups = fields
        queued, running, finished, failed, n_workers = numbers
        if {type(fields), type(numbers), type(groups), *map(type, groups)} != {list}:
            raise TypeError("not a list")
        if type(epoch) not in (str, int) or type(at) not in (float, int) or {type(first), *map(type, numbers)} != {int}:
            raise TypeError("not a number")
        reason = None if stop is None else stop_of(stop)
        counts = Counts(queued, running, finished, failed)
        return EventMessage(network_id, int(epoch), first, at, counts, n_workers, reason, groups)
    except _MALFORMED as error:
        raise _malformed("an event", network_id, data) from error


def tells_progress(data: bytes) -> bool:
    """Whether a message of the channel `events` tells of nothing but workers and tasks that started or finished. Where no
    client listens to events, only its position matters then. It may say no where this is so."""
    return data.startswith(b"\x96") and _MATTERS.search(data) is None


def decode_reports(network_id: str, data: bytes) -> ReportMessage | ResetMessage:
    """Decodes a message of the channel `events:reports`.

    Raises:
        DecodeError: it is malformed.
    """
    try:
        match decode(data):
            case ["reset", epoch, at, keeps_workers]:
                return _reset(epoch, at, keeps_workers)
            case [str(epoch), *entries] if entries:
                return ReportMessage(int(epoch), [_reported(network_id, Report.of_values(entry)) for entry in entries])
            case _:
                raise ValueError("no reports")
    except _MALFORMED as error:
        raise _malformed("an event", network_id, data) from error


def decode_control(network_id: str, data: bytes) -> ControlMessage:
    """Decodes a message of the channel `control`.

    Raises:
        DecodeError: it is malformed.
    """
    try:
        match decode(data):
            case ["reset", epoch, at, keeps_workers]:
                return _reset(epoch, at, keeps_workers)
            case ["stop", epoch, *worker_ids]:
                return StopMessage(int(epoch), _texts(worker_ids))
            case ["out", epoch, "lost" | "killed" as state, *worker_ids]:
                return ShutOutMessage(int(epoch), state, _texts(worker_ids))
            case ["cancel", epoch, str(worker_id), *keys]:
                return CancelMessage(int(epoch), worker_id, _texts(keys))
            case ["stopped", epoch, *fields]:
                stop = stop_of(fields)
                return NetworkStopMessage(int(epoch), stop.seq, stop)
            case ["resumed", epoch, int(seq)]:
                return NetworkStopMessage(int(epoch), seq, None)
            case _:
                pass
    except _MALFORMED as error:
        raise _malformed("a request", network_id, data) from error
    raise _malformed("a request", network_id, data)


def _reset(epoch: Any, at: Any, keeps_workers: Any) -> ResetMessage:
    return ResetMessage(int(epoch), datetime.fromtimestamp(at, UTC), bool(keeps_workers))


def _packed_event(event: Event) -> list[str]:
    further = (event.rule, event.detail) if isinstance(event, NetworkStopped) else getattr(event, "keys", ())
    return [_LETTERS[type(event)], getattr(event, "worker_id", None) or "", *further]


def _event(group: list[str], network_id: str, seq: int, at: datetime) -> Event:
    letter, worker, *rest = _texts(group)
    keys = tuple(rest)
    if letter == _STOPPED:
        stop = stop_of([*rest[:1], at.timestamp(), seq, *rest[1:]])
        return NetworkStopped(network_id=network_id, seq=seq, at=at, rule=stop.rule, detail=stop.detail)
    if letter == _RESUMED:
        return NetworkResumed(network_id=network_id, seq=seq, at=at)
    if letter == _QUEUED:
        return TasksQueued(network_id=network_id, seq=seq, at=at, keys=keys)
    if (kind := _TASK_EVENTS.get(letter)) is not None:
        return kind(network_id=network_id, seq=seq, at=at, keys=keys, worker_id=worker or None)
    return _WORKER_EVENTS[letter](network_id=network_id, seq=seq, at=at, worker_id=worker)


def _reported(network_id: str, report: Report) -> TaskReported:
    number, key, worker_id, attempt, step, at, values = report
    return TaskReported(
        network_id=network_id,
        seq=number,
        at=datetime.fromtimestamp(at, UTC),
        key=key,
        worker_id=worker_id,
        attempt=attempt,
        step=step,
        values=values,
    )


def _texts(values: Sequence[Any]) -> tuple[str, ...]:
    if not all(isinstance(value, str) for value in values):
        raise TypeError("not a string")
    return tuple(values)


def _malformed(what: str, network_id: str, content: object) -> DecodeError:
    return DecodeError(f"{what} of network {network_id!r} is malformed: {content!r:.200}")
