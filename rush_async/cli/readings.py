"""What the commands that look read of a network without a frame: its rate, its failed and running tasks, its workers."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from rush_async.errors import DecodeError
from rush_async.model import StopReason, Task, TaskState
from rush_async.network.network import Network
from rush_async.store.decoding import decode_task
from rush_async.store.position import number_of
from rush_async.store.scripts import MOST_BYTES

__all__ = [
    "WINDOW",
    "FailedTasks",
    "Rate",
    "WorkerReading",
    "rate",
    "read_failed",
    "read_workers",
    "server_time",
    "stop_fields",
    "tasks_of",
]

WINDOW = 60.0  # seconds whose finished tasks make the rate
_MOST_FINISHED = 500  # finished tasks that are read for it


class Rate(NamedTuple):
    """How many tasks finish.

    Attributes:
        per_second: tasks that finished in a second.
        seconds: over how many seconds until now.
    """

    per_second: float
    seconds: float


class FailedTasks(NamedTuple):
    """Failed tasks, the last that failed first.

    Attributes:
        tasks: the tasks.
        is_whole: whether they are all.
    """

    tasks: list[Task]
    is_whole: bool


class WorkerReading(NamedTuple):
    """A worker of the network.

    Attributes:
        worker_id: its name.
        state: the state of `Rush.worker_info`.
        hostname: its machine; None for one that has not registered, and for a shared worker.
        pid: its process, likewise.
        started_at: when it registered.
        last_seen: when its event loop last answered, or when it ended.
        tasks: the tasks that it runs, the oldest first.
        failure: why its loop failed, in one line.
    """

    worker_id: str
    state: str
    hostname: str | None
    pid: int | None
    started_at: datetime
    last_seen: datetime
    tasks: list[Task]
    failure: str | None


async def server_time(network: Network) -> datetime:
    """Returns the time of the server, by which tasks and workers are stamped."""
    seconds, micros = await network.link.connection.ask("TIME")
    return datetime.fromtimestamp(int(seconds), UTC) + timedelta(microseconds=int(micros))


async def rate(network: Network, now: datetime) -> Rate:
    """Returns how many tasks have finished in the last minute, or of the last 500 where they are more. What finished before
    the network was created, such as imported tasks, is left out."""
    largest = await network.link.connection.ask("HGET", network.keys.meta, "largest")
    n_read = min(_MOST_FINISHED, max(1, MOST_BYTES // max(number_of("largest", largest), 512)))
    first = max(0, network.position.counts.finished - n_read)
    records = (await network.tasks.view(("finished",), first)).finished
    ends = [task.ended_at.timestamp() for task in tasks_of("finished", records) if task.ended_at is not None]
    seconds = min(WINDOW, max(now.timestamp() - network.position.epoch / 1e6, 1e-3))
    recent = [end for end in ends if now.timestamp() - end <= seconds]
    if recent and first and len(recent) == len(ends):  # more finished within the minute than were read
        seconds = max(now.timestamp() - min(recent), 1e-3)
    return Rate(len(recent) / seconds, seconds)


async def read_failed(network: Network, most: int | None = None) -> FailedTasks:
    """Returns the failed tasks; of more than `most`, about so many of them, not chosen by their time."""
    if most is None or network.position.counts.failed <= most:
        records, is_whole = list((await network.tasks.scan("failed", 1_000)).values()), True
    else:
        _, flat = await network.link.connection.ask("HSCAN", network.keys.failed, 0, "COUNT", most)
        records, is_whole = flat[1::2], False
    tasks = tasks_of("failed", records)
    return FailedTasks(sorted(tasks, key=lambda task: (_time_of(task), task.key), reverse=True), is_whole)


async def read_workers(network: Network) -> list[WorkerReading]:
    """Returns the workers in the order they registered, each with the tasks that it runs."""
    seen = await network.workers.last_seen()
    running: dict[str | None, list[Task]] = {}
    for task in tasks_of("running", (await network.tasks.scan("running", 1_000)).values()):
        running.setdefault(task.worker_id, []).append(task)
    return [
        WorkerReading(
            entry.worker_id,
            entry.state,
            entry.info.get("hostname"),
            entry.info.get("pid"),
            entry.started_at,
            max(entry.started_at, entry.seen_at or entry.ended_at or seen.get(entry.worker_id, entry.started_at)),
            sorted(running.get(entry.worker_id, []), key=lambda task: (task.started_at or entry.started_at, task.key)),
            None if entry.failure is None else entry.failure.message,
        )
        for entry in await network.workers.read()
    ]


def tasks_of(state: TaskState, records: Iterable[bytes]) -> list[Task]:
    """Decodes records, without those that cannot be decoded: `Rush.malformed_records` names them."""
    tasks: list[Task] = []
    for record in records:
        with suppress(DecodeError):
            tasks.append(decode_task(state, record))
    return tasks


def stop_fields(stop: StopReason | None) -> dict[str, Any] | None:
    """Returns the reason of a stop for JSON."""
    return None if stop is None else {"rule": stop.rule, "detail": stop.detail, "at": stop.at}


def _time_of(task: Task) -> float:
    return task.ended_at.timestamp() if task.ended_at is not None else 0.0
