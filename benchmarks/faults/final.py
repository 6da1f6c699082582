"""What a network holds when all its clients are gone, read without the library's clients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from benchmarks.faults.work import RANKING
from rush_async.errors import DecodeError
from rush_async.model import Task, TaskState
from rush_async.store.codec import decode, decode_all
from rush_async.store.decoding import decode_task
from rush_async.store.keys import NetworkKeys
from rush_async.store.points import point_of
from rush_async.store.report_entry import Report

__all__ = ["FinalState", "digest_of", "read_final_state"]


@dataclass(frozen=True)
class FinalState:
    """The state of a network.

    Attributes:
        tasks: every record, also where a key has several.
        misplaced: fields of hashes whose record has another key, and records that cannot be read.
        queue: the entries of the queue.
        alive: the workers that are alive.
        counts: what the server counts: queued, running, finished and failed tasks.
        seq: the number of the last event.
        next_index: the next index.
        n_reserved: how many indices `meta` says are reserved.
        reserved: reserved indices.
        returned: returned indices.
        points: the digest of each registered point and its task.
        attributes: those of the network.
        task_attributes: those of tasks, by key.
        claims: by name.
        ranking: the scores in the ranking of the network, by key.
        reports: in their order.
    """

    tasks: list[Task]
    misplaced: list[str]
    queue: list[str]
    alive: list[str]
    counts: tuple[int, int, int, int]
    seq: int
    next_index: int
    n_reserved: int
    reserved: list[int]
    returned: list[int]
    points: dict[bytes, str]
    attributes: dict[str, Any]
    task_attributes: dict[str, dict[str, Any]]
    claims: dict[str, Any]
    ranking: dict[str, float]
    reports: list[Report]


def read_final_state(raw: Any, network_id: str) -> FinalState:
    """Reads the state of a network that no client changes any more.

    Args:
        raw: a plain client of the server.
        network_id: the network.
    """
    keys = NetworkKeys.of(network_id)
    tasks: list[Task] = []
    misplaced: list[str] = []
    for state in ("queued", "running", "failed"):
        for key, record in raw.hgetall(getattr(keys, state)).items():
            if (task := _decoded(state, record, misplaced)) is not None and task.key != key.decode():
                misplaced.append(f"{key!r} of {state} holds the record of {task.key}")
            tasks += [] if task is None else [task]
    finished = [_decoded("finished", record, misplaced) for record in raw.lrange(keys.finished, 0, -1)]
    tasks += [task for task in finished if task is not None]
    meta = raw.hgetall(keys.meta)
    task_attributes: dict[str, dict[str, Any]] = {}
    for key, packed in raw.hgetall(keys.task_attributes).items():
        flat = decode_all(packed)
        task_attributes[key.decode()] = {name: decode(value) for name, value in zip(flat[::2], flat[1::2], strict=True)}
    return FinalState(
        tasks,
        misplaced,
        [key.decode() for key in raw.lrange(keys.queue, 0, -1)],
        [key.decode() for key in raw.hkeys(keys.alive)],
        (raw.hlen(keys.queued), raw.hlen(keys.running), raw.llen(keys.finished), raw.hlen(keys.failed)),
        int(meta.get(b"seq", 0)),
        int(meta.get(b"next_index", 0)),
        int(meta.get(b"reserved", 0)),
        [int(index) for indices in raw.hvals(keys.reserved) for index in indices.split()],
        [int(index) for index in raw.zrange(keys.returned, 0, -1)],
        {digest: key.decode() for digest, key in raw.hgetall(keys.points).items()},
        {name.decode(): decode(value) for name, value in raw.hgetall(keys.attributes).items()},
        task_attributes,
        {name.decode(): decode(value) for name, value in raw.hgetall(keys.claims).items()},
        {key.decode(): score for key, score in raw.zrange(f"{keys.rankings}:{RANKING}", 0, -1, withscores=True)},
        [Report.of(fields[b"r"]) for _, fields in raw.xrange(keys.reports)],
    )


def _decoded(state: str, record: bytes, wrong: list[str]) -> Task | None:
    try:
        return decode_task(cast("TaskState", state), record)
    except DecodeError as error:
        wrong.append(f"a {state} record cannot be read: {error}")
        return None


def digest_of(xs: dict[str, Any]) -> bytes:
    """Returns the digest of a point."""
    return point_of(xs)
