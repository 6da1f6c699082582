"""What happens in a network, as frozen facts in the past tense."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

from rush_async.model import Task

__all__ = [
    "EVENT_KINDS",
    "Event",
    "EventsMissed",
    "NetworkReset",
    "TasksFailed",
    "TasksFinished",
    "TasksQueued",
    "TasksStarted",
    "WorkerLost",
    "WorkerStarted",
    "WorkerStopped",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fact:
    """What every event carries.

    Attributes:
        network_id: the network it happened in.
        seq: rises by one an event of the network; starts anew with `NetworkReset`.
        at: when, in the server's time (UTC).
    """

    network_id: str
    seq: int
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class TasksQueued(_Fact):
    """Tasks entered the queue: pushed, retried, or given back by a worker."""

    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TasksStarted(_Fact):
    """A worker took tasks: popped them, or pushed them as running."""

    keys: tuple[str, ...]
    worker_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TasksFinished(_Fact):
    """Tasks finished. `tasks` is filled for listeners that asked for results."""

    keys: tuple[str, ...]
    worker_id: str | None
    tasks: tuple[Task, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TasksFailed(_Fact):
    """Tasks failed. `tasks` is filled for listeners that asked for results."""

    keys: tuple[str, ...]
    worker_id: str | None
    tasks: tuple[Task, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStarted(_Fact):
    """A worker entered the network."""

    worker_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStopped(_Fact):
    """A worker left the network by itself, on request, or because its loop failed."""

    worker_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLost(_Fact):
    """A worker died or was killed; what it ran has been failed or queued again."""

    worker_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkReset(_Fact):
    """Every task of the network was deleted; `seq` starts anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventsMissed(_Fact):
    """Events between the previous one and `seq` were not seen: a gap, a reconnect, or a listener that was too slow."""


Event: TypeAlias = (
    TasksQueued
    | TasksStarted
    | TasksFinished
    | TasksFailed
    | WorkerStarted
    | WorkerStopped
    | WorkerLost
    | NetworkReset
    | EventsMissed
)
EVENT_KINDS: tuple[type[Event], ...] = (
    TasksQueued,
    TasksStarted,
    TasksFinished,
    TasksFailed,
    WorkerStarted,
    WorkerStopped,
    WorkerLost,
    NetworkReset,
    EventsMissed,
)
