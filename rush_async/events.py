"""The events of a network, as frozen dataclasses."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

from rush_async.model import StopRule, Task

__all__ = [
    "EVENT_KINDS",
    "Event",
    "EventsMissed",
    "NetworkReset",
    "NetworkResumed",
    "NetworkStopped",
    "TaskReported",
    "TasksFailed",
    "TasksFinished",
    "TasksQueued",
    "TasksStarted",
    "WorkerLost",
    "WorkerStarted",
    "WorkerStopped",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class _NetworkEvent:
    """The attributes of every event.

    Attributes:
        network_id: the network it happened in.
        seq: the number of the event, one higher than that of the event before; starts anew with `NetworkReset`.
        at: when it happened, by the server's clock (UTC).
    """

    network_id: str
    seq: int
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class TasksQueued(_NetworkEvent):
    """Tasks entered the queue: they were pushed or retried, or a worker returned them."""

    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TasksStarted(_NetworkEvent):
    """A worker took tasks: it popped them, or pushed them as running."""

    keys: tuple[str, ...]
    worker_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TasksFinished(_NetworkEvent):
    """Tasks finished. `tasks` is filled for listeners that asked for results."""

    keys: tuple[str, ...]
    worker_id: str | None
    tasks: tuple[Task, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TasksFailed(_NetworkEvent):
    """Tasks failed. `tasks` is filled for listeners that asked for results."""

    keys: tuple[str, ...]
    worker_id: str | None
    tasks: tuple[Task, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStarted(_NetworkEvent):
    """A worker registered with the network."""

    worker_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStopped(_NetworkEvent):
    """A worker left the network by itself, on request, or because its loop failed."""

    worker_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLost(_NetworkEvent):
    """A worker died or was killed; the tasks it ran have failed or are queued again."""

    worker_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkStopped(_NetworkEvent):
    """The network has stopped: no task starts from here to `NetworkResumed`.

    Attributes:
        rule: the rule of `stop_when` that became true first, or `manual` for `stop`.
        detail: the reason in words.
    """

    rule: StopRule
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkResumed(_NetworkEvent):
    """The stop of the network was lifted: tasks may start again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskReported(_NetworkEvent):
    """A worker reported on a task that it runs: `task.report({...})`. Only `events(TaskReported, ...)` has them.

    Reports have numbers of their own: `seq` is the number of the report in the network. `values` is None where they take more
    than about a KiB; `fetch_reports` has them.
    """

    key: str
    worker_id: str
    attempt: int
    step: int
    values: dict[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkReset(_NetworkEvent):
    """Every task of the network was deleted; `seq` starts anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventsMissed(_NetworkEvent):
    """The listener missed events before `seq`: the connection broke, an event was lost, or the listener was too slow."""


Event: TypeAlias = (
    TasksQueued
    | TasksStarted
    | TasksFinished
    | TasksFailed
    | WorkerStarted
    | WorkerStopped
    | WorkerLost
    | NetworkStopped
    | NetworkResumed
    | TaskReported
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
    NetworkStopped,
    NetworkResumed,
    TaskReported,
    NetworkReset,
    EventsMissed,
)
