"""The transitions and reads of workers, typed: each method here is one script of `lua/`, or one read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

from rush_async.errors import DecodeError
from rush_async.model import Failure, WorkerState
from rush_async.store.calls import MOST_TASKS, Calls, Group
from rush_async.store.codec import decode_all, encode, encode_failure
from rush_async.store.connect import Connection
from rush_async.store.keys import NetworkKeys
from rush_async.store.scripts import BYE, ENTER, LOSE, STOP

__all__ = ["WorkerEntry", "WorkerStore"]


@dataclass(frozen=True, slots=True)
class WorkerEntry:
    """What the network keeps of a worker.

    Attributes:
        state: as in `worker_info`; a worker that is being cleared counts as what it will be.
        info: pid, hostname and the like, as the worker wrote them.
        started_at: when it registered.
        failure: of its loop, once it ended.
        ended_at: when it ended.
        is_clearing: it is shut out, but what it ran may not have been failed yet.
    """

    worker_id: str
    state: WorkerState
    info: dict[str, Any]
    started_at: datetime
    failure: Failure | None = None
    ended_at: datetime | None = None
    is_clearing: bool = False


class WorkerStore:
    """The workers of one network."""

    def __init__(self, connection: Connection, keys: NetworkKeys, calls: Calls) -> None:
        self.keys = keys
        self._connection = connection
        self._calls = calls

    async def enter(self, worker_id: str, lease: str, info: dict[str, Any], *, give_back: Callable[[Any], None]) -> bool:
        """Registers a worker that is here; False when the id is or was in use."""
        group = Group(ENTER, ["running", lease, worker_id, encode(info, "info")], give_back=give_back)
        return await self._calls.call(group) == "1"

    async def announce(self, worker_ids: Sequence[str], info: dict[str, Any]) -> list[str]:
        """Registers workers that are being started; the ids that were free."""
        packed = encode(info, "info")
        groups = [Group(ENTER, ["starting", "", worker_id, packed]) for worker_id in worker_ids]
        answers = await self._calls.call_all(groups)
        return [worker_id for worker_id, answer in zip(worker_ids, answers, strict=True) if answer == "1"]

    def bye_group(self, worker_id: str, state: WorkerState, failure: Failure | None) -> Group:
        """A worker that holds nothing leaves, or one that never came is reported by who started it."""
        return Group(BYE, [worker_id, state, encode_worker_failure(failure)])

    async def bye(self, worker_id: str, state: WorkerState, failure: Failure | None = None) -> bool:
        """As `bye_group`; False when the worker was not there (any more)."""
        return await self._calls.call(self.bye_group(worker_id, state, failure)) == "1"

    async def lose(self, worker_id: str, state: WorkerState, task_failure: Failure, failure: Failure | None = None) -> bool:
        """Shuts a worker out and fails what it runs. True for the one caller that completes it."""
        ended, cursor = encode_failure(task_failure), "0"
        end = encode_worker_failure(failure)
        while True:
            answer = await self._calls.call(Group(LOSE, [worker_id, state, ended, cursor, end]))
            if not answer:
                return False
            cursor = answer.decode()
            if cursor == "0":
                return True

    async def ask_to_stop(self, worker_ids: Sequence[str]) -> list[str]:
        """Asks workers to stop; those that were alive."""
        asked: list[str] = []
        for first in range(0, len(worker_ids), MOST_TASKS):
            chunk = worker_ids[first : first + MOST_TASKS]
            answer = await self._calls.call(Group(STOP, list(chunk), n_tasks=len(chunk)))
            asked += [worker_id for worker_id, mark in zip(chunk, (answer or b"").decode(), strict=False) if mark == "1"]
        return asked

    async def requests(self, worker_ids: Sequence[str]) -> dict[str, str]:
        """For each worker: `stop` when it was asked to stop, `out` when it is not alive, else nothing."""
        found: dict[str, str] = {}
        if not worker_ids:
            return found
        leases: list[bytes | None] = await self._connection.ask("HMGET", self.keys.alive, *worker_ids)
        for worker_id, lease in zip(worker_ids, leases, strict=True):
            if lease is None:
                found[worker_id] = "out"
            elif lease.endswith(b" stop"):
                found[worker_id] = "stop"
        return found

    async def read(self) -> list[WorkerEntry]:
        """All workers that the network knows, in the order they registered."""
        flat = await self._connection.ask("HGETALL", self.keys.workers)
        entries = [_decode_entry(name, raw) for name, raw in zip(flat[::2], flat[1::2], strict=True)]
        return sorted(entries, key=lambda entry: (entry.started_at, entry.worker_id))

    async def read_some(self, worker_ids: Sequence[str]) -> dict[str, WorkerEntry]:
        """The entries of these workers; those unknown are left out."""
        if not worker_ids:
            return {}
        raws = await self._connection.ask("HMGET", self.keys.workers, *worker_ids)
        pairs = zip(worker_ids, raws, strict=True)
        return {worker_id: _decode_entry(worker_id.encode(), raw) for worker_id, raw in pairs if raw is not None}


def encode_worker_failure(failure: Failure | None) -> bytes:
    """A failure or nil, as it stands in a worker's entry."""
    if failure is None:
        return b"\xc0"
    fields = {"kind": failure.kind, "type": failure.type, "message": failure.message, "traceback": failure.traceback}
    return encode(fields, "failure")


def _decode_entry(name: bytes, raw: bytes) -> WorkerEntry:
    word, _, rest = raw.partition(b" ")
    state = word.decode().removeprefix("clearing-")
    values = decode_all(rest)
    try:
        info, started_at, *end = values
        failure, ended_at = end if end else (None, None)
        return WorkerEntry(
            name.decode(),
            cast("WorkerState", state),
            dict(info),
            datetime.fromtimestamp(started_at, UTC),
            Failure(**failure) if failure is not None else None,
            datetime.fromtimestamp(ended_at, UTC) if ended_at is not None else None,
            word.startswith(b"clearing-"),
        )
    except (TypeError, ValueError, AttributeError, OverflowError, OSError) as error:
        raise DecodeError(f"the entry of worker {name!r} is malformed: {raw!r:.200}") from error
