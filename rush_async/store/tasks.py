"""The transitions of tasks, typed: each method here is one script of `lua/`."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, Literal, NamedTuple, TypeAlias

from rush_async.errors import DecodeError, RushError, ServerFullError
from rush_async.model import Failure
from rush_async.store.calls import Batcher
from rush_async.store.keys import NetworkKeys
from rush_async.store.malformed import MalformedRecord
from rush_async.store.position import NetworkPosition
from rush_async.store.records import NewTask, encode_failure
from rush_async.store.scripts import LOST, MOST_BYTES, MOST_TASKS, Lost, Request, Script
from rush_async.store.task_reads import TaskReads, slices
from rush_async.wire.connection import Connection
from rush_async.wire.transport import Word

__all__ = ["Created", "Ended", "Popped", "Pushed", "Refusal", "Target", "TaskStore"]

# An imported task is a finished one that counts in no stop rule.
Target: TypeAlias = Literal["queued", "running", "finished", "imported", "failed"]
EndKind: TypeAlias = Literal["finished", "failed", "returned"]
# Why no task started: the network has stopped, the places of its stop rules are taken, the queue is empty, or the script left
# off at many stale entries of the queue and is worth another call; or the points of all that there were places for are taken.
Refusal: TypeAlias = Literal["stopped", "full", "empty", "left off", "duplicate"]

_WAVE = 8  # chunks of one bulk push that are in flight at once
_SWEPT = 500  # tasks that one call ends, removes or retries: it rewrites their records, and should take at most 10 ms

_PUSH_GROUP = ("target", "worker", "budget", "max_failed", "digests", "n")
PUSH = Script(
    *("push",),
    keys=("queue", "points"),
    group=_PUSH_GROUP,
    item=NewTask._fields,
    memory="grows",
    creates=True,
    merges=True,
)
POP = Script(
    *("pop",),
    keys=("queue",),
    item=("worker", "want"),
    merges=True,
)
POP_NAMED = Script("pop_named", item=("worker", "key"))
FINISH = Script(
    *("finish",),
    keys=("queue",),
    item=("kind", "key", "worker", "ended"),
    merges=True,
    is_final=True,
)
REMOVE = Script("remove", keys=("queue",), args=("most", "ended"), item=("key",))
RETRY = Script("retry", keys=("queue", "imported_failed"), item=("key",), memory="grows")
DISCARD = Script("discard", keys=("workers", "log", "imported_failed"), item=("place", "name", "data"))
CANCEL = Script("cancel", keys=("control",), args=("ended",), item=("key",))
RESET = Script(
    *("reset",),
    keys=(
        *("queue", "control", "workers", "passing", "leases", "processes", "log", "starts"),
        *("attributes", "claims", "rankings", "reports", "report_events", "reserved", "returned", "points", "task_attributes"),
        "imported_failed",
    ),
    args=("what",),
)


class Pushed(NamedTuple):
    """The answer of a push.

    Attributes:
        n: how many tasks were created: without points the first ones, as many as found a place.
        first_index: the index of the first of them; the others follow.
        refusal: why none was created; None where some were, or a budget did not allow it.
        marks: of a push with points, for each task up to the first that found no place: 1 created, 0 its point is taken.
    """

    n: int
    first_index: int
    refusal: Refusal | None = None
    marks: Sequence[int] | None = None

    def entries(self, tasks: Sequence[NewTask]) -> Sequence[str | None]:
        """The key of each of the pushed tasks that was created, None for one whose point is taken."""
        if self.marks is None:
            return [task.key for task in tasks[: self.n]]
        return [task.key if mark else None for task, mark in zip(tasks, self.marks, strict=False)]

    def keys(self, tasks: Sequence[NewTask]) -> list[str]:
        """The keys of those of the pushed tasks that were created."""
        return [key for key in self.entries(tasks) if key is not None]


class Created(NamedTuple):
    """The answer of a bulk push.

    Attributes:
        keys: the tasks that were created, in order.
        first_index: the index of the first of them.
        refusal: why none was created; None where some were, or a budget did not allow it.
        entries: of a push with points, for each task up to the first that found no place: its key, or None where its point is
            taken.
    """

    keys: list[str]
    first_index: int = 0
    refusal: Refusal | None = None
    entries: Sequence[str | None] = ()


class Popped(NamedTuple):
    """A task taken from the queue: its key and its record as running."""

    key: str
    record: bytes


class Ended(NamedTuple):
    """An end of a running task."""

    kind: EndKind
    key: Word
    worker: str
    ended: bytes = b""


class TaskStore(TaskReads):
    """The tasks of one network, as one process sees them.

    Attributes:
        calls: numbers and sends the calls of this process.
    """

    def __init__(self, connection: Connection, keys: NetworkKeys, position: NetworkPosition) -> None:
        super().__init__(connection, keys, position)
        self.calls = Batcher(connection, self._caller, position)

    async def push(
        self,
        target: Target,
        tasks: Sequence[NewTask],
        *,
        worker_id: str = "",
        budget: int | None = None,
        max_failed: int | None = None,
        points: Sequence[bytes] = (),
    ) -> Created | Lost:
        """Creates tasks, those that find a place within the budget. With the digests of their points, one for each task, only
        those whose point is not taken; the others take no place.

        When a chunk of a bulk push is refused, or the caller is cancelled, the tasks of the earlier chunks are taken back.
        """
        made: list[str] = []
        entries: list[str | None] = []
        first = Pushed(0, 0)
        chunks, n = _chunks(tasks), 0
        while wave := list(islice(chunks, _WAVE)):
            requests = list[_Push]()
            for chunk in wave:
                requests.append(_Push(self, target, chunk, worker_id, budget, max_failed, points[n : n + len(chunk)]))
                n += len(chunk)
            try:
                taken = await self.calls.call_all(requests)
            except BaseException as error:
                self.take_back(target, made, worker_id)
                if isinstance(error, ServerFullError):
                    await self.calls.quiet()  # the caller sees that nothing is left
                    if target in ("finished", "imported", "failed") and (made := made + _written(wave, requests)):
                        written = f"{len(made):,} of its tasks were written before, `keys` of this error has their keys"
                        raise ServerFullError(str(error).replace("nothing of it was done", written), made) from error
                raise
            for chunk, pushed in zip(wave, taken, strict=True):
                if pushed is LOST:
                    return LOST
                first = first if made else pushed
                made += pushed.keys(chunk)
                if points:
                    entries += pushed.entries(chunk)
        return Created(made, first.first_index, first.refusal, tuple(entries))

    def push_one(
        self,
        task: NewTask,
        worker_id: str,
        budget: int | None = None,
        max_failed: int | None = None,
        point: bytes = b"",
    ) -> Awaitable[Pushed | Lost]:
        """Creates one task that a worker runs, if there is a place within the budget; with a point, only if it is not taken."""
        return self.calls.call(_Push(self, "running", (task,), worker_id, budget, max_failed, (point,)))

    def take_back(self, target: Target, keys: Sequence[str], worker_id: str) -> None:
        """Fails tasks that were created for a caller that is gone, in the background. Finished and failed ones stay."""
        ended = encode_failure(Failure("cancelled", None, "The call that pushed it was cancelled or refused"))
        for chunk in slices(keys, MOST_TASKS):
            if target == "running":
                self.calls.detach(_End([Ended("failed", key, worker_id, ended) for key in chunk]))
            elif target == "queued":
                self.calls.detach(_remove(ended, MOST_TASKS, chunk))

    def pop(self, worker_id: str, want: int = 1) -> Awaitable[Pop]:
        """Takes up to `want` tasks from the head of the queue."""
        return self.calls.call(_Pop(self, POP, worker_id, want))

    async def pop_named(self, worker_id: str, key: str) -> Pop:
        """Takes one task if it is queued, wherever in the queue."""
        while True:
            pop: Pop = await self.calls.call(_Pop(self, POP_NAMED, worker_id, key))
            if pop.tasks or pop.refusal != "left off":
                return pop

    def put_back(self, popped: Sequence[Popped], worker_id: str) -> None:
        """Returns tasks that no caller has seen to the head of the queue."""
        self.calls.detach(_End([Ended("returned", key, worker_id) for key, _ in popped]))

    def fail_later(self, key: Word, worker_id: str, error: Exception | bytes) -> None:
        """Fails a task in the background that its worker cannot read or end, because of an error or a packed failure."""
        ended = error if isinstance(error, bytes) else encode_failure(Failure.of(error))
        self.calls.detach(_End([Ended("failed", key, worker_id, ended)]))

    def end(self, items: Sequence[Ended]) -> Awaitable[list[int | None] | None]:
        """Ends running tasks.

        Returns:
            For each item 1 if the task moved, 0 if that worker does not run it, None if the worker is not alive. None for all
            if the network was reset.
        """
        return self.calls.call(_End(items)) if len(items) <= _SWEPT else self._end_many(items)

    async def fail_running(self, owners: Mapping[str, str], failure: Failure) -> list[str]:
        """Fails running tasks, each of the worker that runs it. Returns the keys that moved."""
        ended = encode_failure(failure)
        marks = await self._end_many([Ended("failed", key, worker_id, ended) for key, worker_id in owners.items()])
        return [key for key, mark in zip(owners, marks, strict=True) if mark == 1]

    async def quiet(self) -> None:
        """Waits until every call issued before has been answered."""
        await self.calls.quiet()

    async def _end_many(self, items: Sequence[Ended]) -> list[int | None]:
        chunks = list(slices(items, _SWEPT))
        answers = await self.calls.call_all([_End(chunk) for chunk in chunks])
        ends: list[int | None] = []
        for chunk, answer in zip(chunks, answers, strict=True):
            ends += [0] * len(chunk) if answer is None else answer
        return ends

    async def empty_queue(self, failure: Failure) -> list[str]:
        """Fails the tasks that are queued now, in steps. Returns their keys. Tasks that are pushed meanwhile stay."""
        ended, removed = encode_failure(failure), list[str]()
        left = (await self.read_position()).counts.queued
        while left > 0:
            answer = await self.calls.call(_remove(ended, min(left, _SWEPT)))
            keys = _moved_keys([answer.keys])
            removed += keys
            left -= len(keys)
            if not answer.may_follow:
                break
        return removed

    async def discard(self, records: Sequence[MalformedRecord]) -> int:
        """Removes malformed records that are still as they were read. Returns how many were removed."""
        requests = [
            Request(
                DISCARD,
                [
                    word
                    for record in chunk
                    for word in (record.place, record.name.encode("utf-8", "surrogateescape"), record.data)
                ],
            )
            for chunk in slices(records, MOST_TASKS)
        ]
        return sum([n or 0 for n in await self.calls.call_all(requests)])

    async def cancel(self, keys: Sequence[str], failure: Failure) -> list[str]:
        """Fails tasks that are queued or running on any worker. Returns the keys that moved."""
        ended = encode_failure(failure)
        requests = [Request(CANCEL, [ended, *chunk], n_tasks=len(chunk)) for chunk in slices(keys, _SWEPT)]
        return _moved_keys(await self.calls.call_all(requests))

    async def retry(self, keys: Sequence[str] | None) -> list[str]:
        """Queues failed tasks again: these, or all of them for None. Returns the keys that moved."""
        wanted: Sequence[Word] = list(await self.scan("failed", MOST_TASKS)) if keys is None else keys
        moved: list[str] = []
        for some in slices(wanted, _SWEPT):
            chunk = some
            while chunk:
                n_looked_at, *keys = await self.calls.call(Request(RETRY, chunk, n_tasks=len(chunk)))
                moved += _moved_keys([keys])
                chunk = chunk[n_looked_at:]
        return moved

    async def reset(self, *, workers: bool) -> None:
        """Deletes every task of the network, and its workers too."""
        await self.read_position()
        # A refusal for its epoch means that the network was reset after the position was read: just as well.
        epoch = await self.calls.call(Request(RESET, ["all" if workers else "tasks"], survives_reset=False))
        if workers:
            self.position.learn_epoch(0)  # nothing of the network exists until it is created again
        elif epoch is not None and self.position.epoch:
            self.position.learn_epoch(int(epoch))

    async def forget_answers(self) -> None:
        """Deletes the answers that the server keeps for this client, which closes and waits for none.

        They stay if a connection was ever lost, because a late copy of a call may still arrive over it.
        """
        name = self.calls.name
        fields = name.slots(self.calls.number)
        if fields and self.connection.is_ready and self.connection.n_reconnects == 0:
            with suppress(RushError):
                clients = f"{self.keys.calls}:clients"
                await self.connection.ask_together(("HDEL", self.keys.calls, *fields), ("ZREM", clients, name.text))


def _written(chunks: Sequence[Sequence[NewTask]], requests: Sequence[_Push]) -> list[str]:
    """The keys of the tasks that were created by those of some pushes that succeeded."""
    keys: list[str] = []
    for chunk, request in zip(chunks, requests, strict=True):
        if request.future.done() and not request.future.cancelled() and request.future.exception() is None:
            pushed = request.future.result()
            keys += [] if pushed is LOST else pushed.keys(chunk)
    return keys


class _Push(Request):
    """Pushes some tasks."""

    __slots__ = ("_store", "_target", "_tasks", "_worker_id")

    def __init__(
        self,
        store: TaskStore,
        target: Target,
        tasks: Sequence[NewTask],
        worker_id: str,
        budget: int | None,
        max_failed: int | None,
        points: Sequence[bytes],
    ) -> None:
        limits = ("" if budget is None else budget, "" if max_failed is None else max_failed)
        digests = b"".join(points)
        args: list[Word] = [target, worker_id, *limits, digests, len(tasks)]
        size = len(digests)
        for task in tasks:
            args += task
            size += len(task[0]) + len(task[1]) + len(task[2])
        super().__init__(PUSH, args, n_tasks=len(tasks), n_answers=2, size=size)
        self._store = store
        self._target: Target = target
        self._tasks = tasks
        self._worker_id = worker_id

    def decode(self, answer: Any, extra: list[Any]) -> Pushed | Lost:
        match answer:
            case [None, _]:
                return LOST
            case [b"stopped" | b"full" as refusal, _]:
                return Pushed(0, 0, refusal.decode())
            case _:
                taken, index = answer
                if type(taken) is int:
                    return Pushed(taken, int(index))
                n = sum(taken)
                return Pushed(n, int(index), None if n else "duplicate", taken)

    @property
    def compensates(self) -> bool:
        return self._target in ("queued", "running")

    def compensate(self, result: Any) -> None:
        if result is not None and result is not LOST:
            self._store.take_back(self._target, result.keys(self._tasks), self._worker_id)


class Pop(NamedTuple):
    """The answer of a pop.

    Attributes:
        tasks: the tasks; or the worker is not alive.
        refusal: why there are no more.
    """

    tasks: list[Popped] | Lost
    refusal: Refusal = "empty"


class _Pop(Request):
    """Pops some tasks: as many as wanted, or the one with a key."""

    __slots__ = ("_store", "_worker_id")

    def __init__(self, store: TaskStore, script: Script, worker_id: str, which: int | str) -> None:
        super().__init__(script, [worker_id, which], n_tasks=which if isinstance(which, int) else 1, size=len(worker_id))
        self._store = store
        self._worker_id = worker_id

    def decode(self, answer: Any, extra: list[Any]) -> Pop:
        (given,) = answer
        if given is None:
            return Pop(LOST)
        popped: list[Popped] = []
        error: UnicodeDecodeError | None = None
        for key, record in zip(given[::2], given[1::2], strict=True):
            try:
                popped.append(Popped(key.decode(), record))
            except UnicodeDecodeError as reason:
                error = reason
                self._store.fail_later(key, self._worker_id, reason)
        if error is not None:
            if popped:
                self._store.put_back(popped, self._worker_id)
            raise error
        return Pop(popped, extra[0].decode())

    @property
    def compensates(self) -> bool:
        return True

    def compensate(self, result: Any) -> None:
        if result is not None and result.tasks is not LOST and result.tasks:
            self._store.put_back(result.tasks, self._worker_id)


class _End(Request):
    """Ends some tasks. The result is an entry for each."""

    __slots__ = ()

    def __init__(self, items: Sequence[Ended]) -> None:
        args: list[Word] = []
        size = 0
        for item in items:
            args += item
            size += len(item[3]) + 40
        super().__init__(FINISH, args, n_tasks=len(items), n_answers=len(items), size=size, survives_reset=False)


class _Removed(NamedTuple):
    keys: list[bytes]
    may_follow: bool


class _Remove(Request):
    __slots__ = ()

    def decode(self, answer: Any, extra: list[Any]) -> _Removed:
        return _Removed(answer, extra[0] == 1)


def _remove(ended: bytes, most: int, keys: Sequence[Word] = ()) -> Request:
    return _Remove(REMOVE, [most, ended, *keys], n_tasks=most)


def _chunks(tasks: Sequence[NewTask]) -> Iterator[Sequence[NewTask]]:
    """Cuts a bulk push into calls of at most 1,000 tasks and 1 MiB."""
    first = size = 0
    for at, task in enumerate(tasks):
        length = len(task.created) + len(task.ended)
        if at > first and (at - first == MOST_TASKS or size + length > MOST_BYTES):
            yield tasks[first:at]
            first, size = at, 0
        size += length
    if tasks:
        yield tasks[first:]


def _moved_keys(answers: Iterable[Any]) -> list[str]:
    """The keys in answers that list what moved; None is a network that was reset meanwhile.

    Raises:
        DecodeError: a key is not UTF-8; it moved, too.
    """
    keys = [key for answer in answers for key in answer or ()]
    try:
        return [key.decode() for key in keys]
    except UnicodeDecodeError as error:
        raise DecodeError(f"a task that moved has a key that is not UTF-8: {error.object!r:.200}") from error
