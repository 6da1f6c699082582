"""The transitions and reads of tasks, typed: each method here is one script of `lua/`, or one read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, Literal, NamedTuple, TypeAlias, TypeVar

from rush_async.errors import RushConnectionError, RushError, ServerFullError
from rush_async.model import Counts, Failure, TaskState
from rush_async.store.calls import MOST_BYTES, MOST_TASKS, Answer, Calls, Group, Position, wire_mismatch
from rush_async.store.keys import NetworkKeys
from rush_async.store.records import NewTask, encode_failure
from rush_async.store.scripts import (
    BYE,
    CANCEL,
    ENTER,
    FINISH,
    LOOK,
    POP,
    PUSH,
    REMOVE,
    RESET,
    RETRY,
    Script,
    ScriptCaller,
)
from rush_async.wire.connection import Connection
from rush_async.wire.refusals import acl_remedy
from rush_async.wire.transport import Word

__all__ = ["LOST", "Ended", "FinishedChunk", "Lost", "Popped", "Target", "TaskStore", "View"]

T = TypeVar("T")

Target: TypeAlias = Literal["Q", "R", "F", "X"]
EndKind: TypeAlias = Literal["F", "X", "B"]

_WAVE = 8  # chunks of one bulk push that are under way together
_SWEPT = 500  # tasks that a call ends, removes or tries again: it rewrites their records, and is to be over in 10 ms
_CHUNK = 2_000
_FIRST_CHUNK = 100  # as long as nobody told how large the records are


class Popped(NamedTuple):
    """A task taken from the queue: its key and its record as running."""

    key: str
    record: bytes


class Ended(NamedTuple):
    """How a running task is to end: finished (F), failed (X) or given back (B)."""

    kind: EndKind
    key: str
    worker_id: str
    ended: bytes = b""


class FinishedChunk(NamedTuple):
    """A piece of the list of finished records: the epoch it was read in, its position, how long the list was, the records."""

    epoch: int
    start: int
    total: int
    records: list[bytes]


class View(NamedTuple):
    """Tasks as they were at one moment.

    Attributes:
        epoch: the network's.
        seq: the number of its last event.
        records: of queued, running and failed ones, by state and key.
        queue: the keys of the queued ones in their order, and some that are stale.
        finished: the records of finished ones from a position on.
    """

    epoch: int
    seq: int
    records: dict[TaskState, dict[bytes, bytes]]
    queue: list[bytes]
    finished: list[bytes]


class Lost:
    """What a call answers for a worker that is not alive."""


LOST: Final = Lost()


class TaskStore:
    """The tasks of one network, as one process sees them.

    Args:
        connection: the connection everything goes through.
        keys: the network's keys.
        on_position: told where the network stands, by every reply.
        on_epoch: told when another epoch began.
    """

    def __init__(
        self,
        connection: Connection,
        keys: NetworkKeys,
        on_position: Callable[[Position], None],
        on_epoch: Callable[[int], None],
    ) -> None:
        self.keys = keys
        self._connection = connection
        self._caller = ScriptCaller(keys)
        self._largest = 0
        self.calls = Calls(connection, self._caller, _SPLIT, on_position, on_epoch)

    # transitions

    async def push(
        self,
        target: Target,
        tasks: Sequence[NewTask],
        *,
        worker_id: str = "",
        budget: int | None = None,
        max_failed: int | None = None,
    ) -> list[str] | Lost:
        """Creates tasks; the keys of those that found a place, in order. All or none, whatever happens to the caller:
        when a later chunk of a bulk push is refused, what the earlier ones created is taken back."""
        made: list[str] = []
        chunks = _chunks(tasks)
        for first in range(0, len(chunks), _WAVE):
            wave = chunks[first : first + _WAVE]
            groups = [self._push_group(target, chunk, worker_id, budget, max_failed) for chunk in wave]
            try:
                taken = await self.calls.call_all(groups)
            except BaseException as error:
                self._take_back(target, made, worker_id)
                if isinstance(error, ServerFullError):
                    if target in ("F", "X"):
                        error.keys = made
                    await self.calls.quiet()  # whoever looks after the error sees that nothing is left
                raise
            for chunk, n in zip(wave, taken, strict=True):
                if n is LOST:
                    return LOST
                made += [task.key for task in chunk[:n]]
        return made

    def push_one(
        self, task: NewTask, worker_id: str, budget: int | None = None, max_failed: int | None = None
    ) -> Awaitable[int | Lost]:
        """Creates one task that a worker runs: 1, or 0 when it found no place."""
        return self.calls.call(self._push_group("R", (task,), worker_id, budget, max_failed))

    def _push_group(
        self, target: Target, chunk: Sequence[NewTask], worker_id: str, budget: int | None, max_failed: int | None
    ) -> Group:
        limits = ("" if budget is None else budget, "" if max_failed is None else max_failed)
        args: list[Word] = [target, worker_id, *limits, len(chunk)]
        size = 0
        for task in chunk:
            args += task
            size += len(task[0]) + len(task[1]) + len(task[2])
        give_back = partial(self._take_back_taken, target, worker_id, chunk) if target in ("Q", "R") else None
        return Group(PUSH, args, n_tasks=len(chunk), size=size, give_back=give_back)

    def _take_back_taken(self, target: Target, worker_id: str, chunk: Sequence[NewTask], n: Any) -> None:
        if n is not LOST:
            self._take_back(target, [task.key for task in chunk[:n]], worker_id)

    def _take_back(self, target: Target, keys: Sequence[str], worker_id: str) -> None:
        """Fails what was created for a caller that is gone; what is finished or failed already stays."""
        ended = encode_failure(Failure("cancelled", None, "The call that pushed it was cancelled or refused"))
        if target == "R":
            for chunk in _slices(keys, MOST_TASKS):
                self.calls.give_back(self._end_group([Ended("X", key, worker_id, ended) for key in chunk]))
        elif target == "Q":
            for chunk in _slices(keys, MOST_TASKS):
                self.calls.give_back(self._remove_group(ended, MOST_TASKS, chunk))

    async def pop(self, worker_id: str, want: int = 1) -> list[Popped] | Lost:
        """Takes up to `want` tasks from the head of the queue."""

        def put_back(popped: Any) -> None:
            if popped is not LOST and popped:
                self.put_back(popped, worker_id)

        return await self.calls.call(Group(POP, [worker_id, want], n_tasks=want, give_back=put_back))

    def put_back(self, popped: Sequence[Popped], worker_id: str) -> None:
        """Tasks that nobody has seen return to the head of the queue."""
        self.calls.give_back(self._end_group([Ended("B", key, worker_id) for key, _ in popped]))

    def end(self, items: Sequence[Ended]) -> Awaitable[str | None]:
        """Ends running tasks; a character an item: `1` moved, `0` not held by that worker, `L` the worker is not alive. None
        when the network was reset and nothing moved."""
        return self.calls.call(self._end_group(items)) if len(items) <= _SWEPT else self._end_many(items)

    async def _end_many(self, items: Sequence[Ended]) -> str:
        chunks = list(_slices(items, _SWEPT))
        answers = await self.calls.call_all([self._end_group(chunk) for chunk in chunks])
        return "".join(["0" * len(chunk) if answer is None else answer for chunk, answer in zip(chunks, answers, strict=True)])

    def _end_group(self, items: Sequence[Ended]) -> Group:
        args: list[Word] = []
        size = 0
        for item in items:
            args += item
            size += len(item[1]) + len(item[2]) + len(item[3])
        return Group(FINISH, args, n_tasks=len(items), size=size, survives_reset=False)

    async def empty_queue(self, failure: Failure) -> list[str]:
        """Fails what is queued now, in steps; what others push meanwhile stays."""
        ended, removed = encode_failure(failure), list[str]()
        left = (await self.look()).counts.queued
        while left > 0:
            keys = await self.calls.call(self._remove_group(ended, min(left, _SWEPT)))
            if not keys:
                break
            removed += keys.decode().split()
            left -= len(keys.split())
        return removed

    def _remove_group(self, ended: bytes, most: int, keys: Sequence[str] = ()) -> Group:
        return Group(REMOVE, [most, ended, *keys], n_tasks=most)

    async def cancel(self, keys: Sequence[str], failure: Failure) -> list[str]:
        """Fails tasks that are queued or running, whoever holds them."""
        ended = encode_failure(failure)
        groups = [Group(CANCEL, [ended, *chunk], n_tasks=len(chunk)) for chunk in _slices(keys, _SWEPT)]
        return await self._moved(groups)

    async def retry(self, keys: Sequence[str] | None) -> list[str]:
        """Queues failed tasks again, all of them when no keys are given."""
        if keys is None:
            keys = [key.decode() for key in await self.scan("failed", MOST_TASKS)]
        groups = [Group(RETRY, chunk, n_tasks=len(chunk)) for chunk in _slices(keys, _SWEPT)]
        return await self._moved(groups)

    async def _moved(self, groups: Sequence[Group]) -> list[str]:
        return [key for answer in await self.calls.call_all(groups) for key in (answer or b"").decode().split()]

    async def reset(self, *, workers: bool) -> None:
        """Deletes every task of the network, and its workers too."""
        await self.look()
        # A refusal for its epoch means that somebody reset the network after the look: just as well.
        epoch = await self.calls.call(Group(RESET, ["all" if workers else "tasks"], survives_reset=False))
        if workers:
            self.calls.learn_epoch(0)  # nothing of the network exists until somebody begins again
        elif epoch is not None and self.calls.epoch:
            self.calls.learn_epoch(int(epoch))

    async def forget_answers(self) -> None:
        """Deletes the answers that the server keeps for this client, which is leaving and waits for none.

        They stay where a connection was ever lost, for a late copy of a call may still be on its way over that.
        """
        fields = self.calls.slots()
        if fields and self._connection.is_ready and self._connection.n_reconnects == 0:
            with suppress(RushError):
                await self._connection.ask("HDEL", self.keys.calls, *fields)

    # reads

    async def look(self, *, probe: bool = False) -> Position:
        """Asks where the network stands.

        Raises:
            RushConnectionError: `probe` is set and this user may not publish the network's events.
            RushError: the network is written in a newer wire version.
        """
        asked_at = self.calls.highest_epoch
        args: list[Word] = ["0", "", 0, "1" if probe else "0"]
        by_digest = self._caller.call(LOOK, args)
        reply = await self._connection.ask_script(by_digest, lambda: self._caller.call_by_source(LOOK, args))
        epoch, seq, *counts, n_workers, wire, denied = reply
        if (error := wire_mismatch(int(wire))) is not None:
            raise error
        if denied:
            raise RushConnectionError(f"this user may not publish on {self.keys.events} ({denied.decode()}). {acl_remedy()}")
        position = Position(int(epoch), seq, Counts(*counts), n_workers)
        if position.epoch == 0 and asked_at != self.calls.highest_epoch:
            return await self.look(probe=probe)  # an event of a later epoch overtook the reply
        self.calls.hear_epoch(position.epoch, asked_at)
        self.calls.take_position(position)
        return position

    def read_finished(self, start: int, on_leaving: Callable[[], None] | None = None) -> Callable[[], Awaitable[FinishedChunk]]:
        """Asks for a chunk of finished records from position `start`; what this returns waits for it. Its size follows from the
        largest record there is. `on_leaving` as in `Connection.begin_together`."""
        # Two at least: the first has been read before.
        count = _FIRST_CHUNK if not self._largest else max(2, min(_CHUNK, MOST_BYTES // self._largest))
        replies = self._connection.begin_together(
            ("HMGET", self.keys.meta, "epoch", "largest"),
            ("LLEN", self.keys.finished),
            ("LRANGE", self.keys.finished, start, start + count - 1),
            on_leaving=on_leaving,
        )

        async def chunk() -> FinishedChunk:
            (epoch, largest), total, records = await replies()
            self._largest = int(largest or MOST_BYTES // _CHUNK)
            return FinishedChunk(int(epoch or 0), start, total, records)

        return chunk

    async def view(self, states: Sequence[TaskState], finished_from: int) -> View:
        """All tasks in these states in one step, finished ones from a position on."""
        return await self._view(states, finished_from, lambda name: ("HGETALL", name), _paired)

    async def view_of_few(self, states: Sequence[TaskState], finished_from: int, most: int) -> View | None:
        """The same; None where there are more than about `most` queued, running or failed ones."""
        is_whole = True

        def paired(reply: tuple[bytes, list[bytes]]) -> dict[bytes, bytes]:
            nonlocal is_whole
            is_whole &= reply[0] == b"0"
            return _paired(reply[1])

        view = await self._view(states, finished_from, lambda name: ("HSCAN", name, 0, "COUNT", most), paired)
        return view if is_whole else None

    async def view_of_some(self, states: Sequence[TaskState], finished_from: int, keys: Sequence[bytes]) -> View:
        """The same, of queued, running and failed ones only those with these keys, at least one."""

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
        (epoch, seq), *replies = await self._connection.ask_together(("HMGET", self.keys.meta, "epoch", "seq"), *reads)
        parts = iter(replies)
        records: dict[TaskState, dict[bytes, bytes]] = {state: paired(next(parts)) for state in hashed}
        queue: list[bytes] = next(parts) if "queued" in states else []
        finished: list[bytes] = next(parts) if "finished" in states else []
        return View(int(epoch or 0), int(seq or 0), records, queue, finished)

    async def scan(self, state: TaskState, step: int) -> dict[bytes, bytes]:
        """The queued, running or failed tasks that were there from the beginning to the end of this, read in steps, and some
        of those that were not."""
        name, cursor, found = self._hash_of(state), b"0", dict[bytes, bytes]()
        while True:
            cursor, flat = await self._connection.ask("HSCAN", name, cursor, "COUNT", step)
            found |= _paired(flat)
            if cursor == b"0":
                return found

    def _hash_of(self, state: TaskState) -> str:
        return {"queued": self.keys.queued, "running": self.keys.running, "failed": self.keys.failed}[state]

    async def are_running(self, keys: Sequence[str]) -> set[str]:
        """Which of these tasks are running."""
        running: set[str] = set()
        for chunk in _slices(keys, MOST_TASKS):
            records = await self._connection.ask("HMGET", self.keys.running, *chunk)
            running.update([key for key, record in zip(chunk, records, strict=True) if record is not None])
        return running

    async def find(self, keys: Sequence[str]) -> dict[str, tuple[TaskState, bytes]]:
        """Looks keys up among queued, running and failed tasks in one step; those elsewhere are left out."""
        found: dict[str, tuple[TaskState, bytes]] = {}
        for chunk in _slices(keys, MOST_TASKS):
            states: tuple[TaskState, ...] = ("queued", "running", "failed")
            replies = await self._connection.ask_together(*[("HMGET", self._hash_of(state), *chunk) for state in states])
            for state, records in zip(states, replies, strict=True):
                found |= {key: (state, record) for key, record in zip(chunk, records, strict=True) if record is not None}
        return found


def _split_pushes(answer: Answer, groups: list[Group]) -> list[Any]:
    return [LOST if word == b"L" else int(word) for word in answer.text.split(b" ")]


def _split_pops(answer: Answer, groups: list[Group]) -> list[Any]:
    records = iter(answer.extra)
    results: list[Any] = []
    for word in answer.text.split(b"|"):
        if word == b"L":
            results.append(LOST)
        else:
            taken = [Popped(key.decode(), next(records)) for key in word.split()]
            results.append([popped for popped in taken if popped.record])
    return results


def _split_characters(answer: Answer, groups: list[Group]) -> list[Any]:
    text, at, results = answer.text.decode(), 0, list[Any]()
    for group in groups:
        results.append(text[at : at + group.n_tasks])
        at += group.n_tasks
    return results


_SPLIT: dict[Script, Callable[[Answer, list[Group]], list[Any]]] = {
    PUSH: _split_pushes,
    POP: _split_pops,
    FINISH: _split_characters,
    ENTER: _split_characters,
    BYE: _split_characters,
}


def _paired(flat: list[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _slices(items: Sequence[T], length: int) -> Iterator[Sequence[T]]:
    for first in range(0, len(items), length):
        yield items[first : first + length]


def _chunks(tasks: Sequence[NewTask]) -> list[Sequence[NewTask]]:
    """Cuts a bulk push into calls of at most 1,000 tasks and 1 MiB."""
    if len(tasks) == 1:
        return [tasks]
    chunks: list[Sequence[NewTask]] = []
    first = size = 0
    for at, task in enumerate(tasks):
        length = len(task.created) + len(task.ended)
        if at > first and (at - first == MOST_TASKS or size + length > MOST_BYTES):
            chunks.append(tasks[first:at])
            first, size = at, 0
        size += length
    if tasks:
        chunks.append(tasks[first:])
    return chunks
