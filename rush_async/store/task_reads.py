"""The reads of tasks, typed: they change nothing on the server."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, MutableMapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

from rush_async.errors import DecodeError, RushConnectionError, RushError
from rush_async.model import TaskState
from rush_async.store.decoding import decode_task
from rush_async.store.key_types import explained
from rush_async.store.keys import NetworkKeys
from rush_async.store.position import NetworkPosition, Position, number_of, position_of
from rush_async.store.scripts import MOST_BYTES, MOST_TASKS, Script, ScriptCaller, wire_mismatch
from rush_async.wire.connection import Connection
from rush_async.wire.refusals import acl_remedy
from rush_async.wire.transport import FutureCommand, Word

__all__ = ["FinishedChunk", "FinishedRead", "TaskReads", "View", "slices"]

T = TypeVar("T")

_CHUNK = 2_000
_FIRST_CHUNK = 100  # while the size of the records is unknown

POSITION = Script("position", memory="reads")


class FinishedChunk(NamedTuple):
    """A part of the list of finished records.

    Attributes:
        epoch: the epoch of the network when it was read.
        start: the index of its first record in the list.
        total: the length of the list.
        records: the records.
    """

    epoch: int
    start: int
    total: int
    records: list[bytes]


class View(NamedTuple):
    """Tasks as they were at one moment.

    Attributes:
        epoch: the epoch of the network.
        seq: the number of its last event.
        records: the records of queued, running and failed tasks, by state and key.
        queue: the keys of the queued tasks in their order; keys without a record are stale.
        finished: the records of finished tasks from an index on.
    """

    epoch: int
    seq: int
    records: Mapping[TaskState, MutableMapping[bytes, bytes]]
    queue: list[bytes]
    finished: list[bytes]


class FinishedRead:
    """A read of a chunk of finished records that is under way."""

    def __init__(self, reads: TaskReads, start: int, command: FutureCommand) -> None:
        self._reads = reads
        self._start = start
        self._command = command

    @property
    def is_sent(self) -> bool:
        """Whether the read was sent: it may miss what has finished since."""
        return self._command.n_sent > 0

    async def chunk(self) -> FinishedChunk:
        """Waits for the chunk."""
        (epoch, largest), total, records = await self._reads.connection.result(self._command)
        self._reads.largest = number_of("largest", largest) or MOST_BYTES // _CHUNK
        return FinishedChunk(number_of("epoch", epoch), self._start, total, records)


class TaskReads:
    """Reads the tasks of one network.

    Args:
        connection: the connection everything goes through.
        keys: the network's keys.
        position: the position of the network, which replies update.
    """

    def __init__(self, connection: Connection, keys: NetworkKeys, position: NetworkPosition) -> None:
        self.keys = keys
        self.connection = connection
        self.position = position
        self.largest = 0
        self._caller = ScriptCaller(keys)

    async def read_position(self, *, probe: bool = False) -> Position:
        """Reads the position of the network: its epoch, its sequence number and its counts.

        Raises:
            RushConnectionError: `probe` is set and this user may not publish the network's events.
            RushError: the network is written in a newer wire version.
        """
        asked_at, asked_seq = self.position.highest_epoch, self.position.seq
        args: list[Word] = ["0", "", 0]
        try:
            reply = await self.connection.ask_script(*self._caller.both(POSITION, args))
        except RushError as error:
            raise await explained(self.connection, self.keys, error) from error.__cause__
        position = position_of(reply)
        if (error := wire_mismatch(number_of("wire", reply[8]))) is not None:
            raise error
        self.position.stored_seed = number_of("seed", reply[9]) if reply[9] else None
        if probe:
            await self._probe()
        if position.epoch == 0 and asked_at != self.position.highest_epoch:
            return await self.read_position()  # an event of a later epoch overtook the reply
        self.position.hear_epoch(position.epoch, asked_at)
        self.position.take(position, asked_seq)
        return position

    async def _probe(self) -> None:
        """Publishes an empty message, which subscribers skip: scripts ignore that the user may not publish."""
        try:
            await self.connection.ask("SPUBLISH", self.keys.events, "")
        except RushConnectionError as error:
            raise RushConnectionError(f"this user may not publish on {self.keys.events} ({error}). {acl_remedy()}") from None

    def read_finished(self, start: int) -> FinishedRead:
        """Begins to read a chunk of finished records from index `start`. Its size follows from the largest finished record."""
        # Two at least: the first has been read before.
        count = _FIRST_CHUNK if not self.largest else max(2, min(_CHUNK, MOST_BYTES // self.largest))
        command = self.connection.begin_together(
            ("HMGET", self.keys.meta, "epoch", "largest"),
            ("LLEN", self.keys.finished),
            ("LRANGE", self.keys.finished, start, start + count - 1),
        )
        return FinishedRead(self, start, command)

    async def view(self, states: Sequence[TaskState], finished_from: int) -> View:
        """Reads all tasks in these states in one step, of finished tasks those from an index on."""
        return await self._view(states, finished_from, lambda name: ("HGETALL", name), _paired)

    async def view_of_few(self, states: Sequence[TaskState], finished_from: int, most: int) -> View | None:
        """Reads as `view` does; None if a state other than finished has more than about `most` tasks."""
        is_whole = True

        def paired(reply: tuple[bytes, list[bytes]]) -> dict[bytes, bytes]:
            nonlocal is_whole
            is_whole &= reply[0] == b"0"
            return _paired(reply[1])

        view = await self._view(states, finished_from, lambda name: ("HSCAN", name, 0, "COUNT", most), paired)
        return view if is_whole else None

    async def view_of_some(self, states: Sequence[TaskState], finished_from: int, keys: Sequence[bytes]) -> View:
        """Reads as `view` does, but of queued, running and failed tasks only those with these keys, at least one."""

        def paired(records: list[bytes | None]) -> dict[bytes, bytes]:
            return {key: record for key, record in zip(keys, records, strict=True) if record is not None}

        return await self._view(states, finished_from, lambda name: ("HMGET", name, *keys), paired)

    async def _view(
        self,
        states: Sequence[TaskState],
        finished_from: int,
        read: Callable[[str], tuple[Word, ...]],
        paired: Callable[[Any], dict[bytes, bytes]],
    ) -> View:
        hashed: list[TaskState] = [state for state in states if state != "finished"]
        reads = [read(self._hash_of(state)) for state in hashed]
        if "queued" in states:
            reads.append(("LRANGE", self.keys.queue, 0, -1))
        if "finished" in states:
            reads.append(("LRANGE", self.keys.finished, finished_from, -1))
        (epoch, seq), *replies = await self.connection.ask_together(("HMGET", self.keys.meta, "epoch", "seq"), *reads)
        parts = iter(replies)
        records: dict[TaskState, dict[bytes, bytes]] = {state: paired(next(parts)) for state in hashed}
        queue: list[bytes] = next(parts) if "queued" in states else []
        finished: list[bytes] = next(parts) if "finished" in states else []
        return View(number_of("epoch", epoch), number_of("seq", seq), records, queue, finished)

    async def scan(self, state: TaskState, step: int) -> dict[bytes, bytes]:
        """Reads the queued, running or failed tasks in steps. Tasks that enter or leave the state meanwhile may be missing."""
        found: dict[bytes, bytes] = {}
        await self.scan_into(found, state, step)
        return found

    async def scan_into(self, found: MutableMapping[bytes, bytes], state: TaskState, step: int) -> None:
        """Reads as `scan` does, into a mapping of keys to records."""
        name, cursor = self._hash_of(state), b"0"
        while True:
            cursor, flat = await self.connection.ask("HSCAN", name, cursor, "COUNT", step)
            found.update(_paired(flat))
            if cursor == b"0":
                return

    def _hash_of(self, state: TaskState) -> str:
        return {"queued": self.keys.queued, "running": self.keys.running, "failed": self.keys.failed}[state]

    async def owners(self, worker_ids: Container[str]) -> dict[str, str]:
        """Returns the tasks that run on one of these workers, each with its worker."""
        found: dict[str, str] = {}
        for key, record in (await self.scan("running", MOST_TASKS)).items():
            with suppress(DecodeError):  # what reads tasks names it
                task = decode_task("running", record)
                if task.key.encode() == key and task.worker_id is not None and task.worker_id in worker_ids:
                    found[task.key] = task.worker_id
        return found

    async def are_running(self, keys: Sequence[str]) -> set[str]:
        """Returns which of these tasks are running."""
        running: set[str] = set()
        for chunk in slices(keys, MOST_TASKS):
            records = await self.connection.ask("HMGET", self.keys.running, *chunk)
            running.update([key for key, record in zip(chunk, records, strict=True) if record is not None])
        return running

    async def find(self, keys: Sequence[str]) -> dict[str, tuple[TaskState, bytes]]:
        """Finds queued, running and failed tasks by key, in one step for up to a thousand keys. Other keys are left out."""
        found: dict[str, tuple[TaskState, bytes]] = {}
        for chunk in slices(keys, MOST_TASKS):
            states: tuple[TaskState, ...] = ("queued", "running", "failed")
            replies = await self.connection.ask_together(*[("HMGET", self._hash_of(state), *chunk) for state in states])
            for state, records in zip(states, replies, strict=True):
                found |= {key: (state, record) for key, record in zip(chunk, records, strict=True) if record is not None}
        return found


def _paired(flat: list[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def slices(items: Sequence[T], length: int) -> Iterator[Sequence[T]]:
    """Cuts a sequence into slices of a length; the last may be shorter."""
    for first in range(0, len(items), length):
        yield items[first : first + length]
