"""The transitions and reads of workers, typed: each method is one script of `lua/`, or one read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple, cast, get_args

from rush_async.errors import DecodeError, RushError
from rush_async.model import Failure, WorkerState
from rush_async.store.calls import Batcher
from rush_async.store.codec import decode_all, encode
from rush_async.store.decoding import failure_of
from rush_async.store.key_types import explained
from rush_async.store.keys import NetworkKeys
from rush_async.store.leases import (
    BEAT,
    FAILURES,
    KILLED,
    LOSE,
    LOST_WORKER,
    AliveWorker,
    Beat,
    Lease,
    LoseStep,
    answered_at,
    is_overdue,
)
from rush_async.store.malformed import MalformedRecords
from rush_async.store.records import encode_worker_failure
from rush_async.store.scripts import MOST_TASKS, Request, Script, ScriptCaller
from rush_async.wire.connection import Connection
from rush_async.wire.transport import Word

__all__ = ["KILLED", "LOST_WORKER", "Cleared", "WorkerEntry", "WorkerStore"]

REGISTER = Script(
    "register",
    keys=("workers", "passing", "leases", "processes"),
    item=("state", "lease", "period", "expire", "worker", "info"),
    memory="grows",
    creates=True,
    merges=True,
)
DEREGISTER = Script(
    *("deregister",),
    keys=("workers", "passing", "reserved", "returned"),
    item=("worker", "state", "failure", "by"),
    merges=True,
    is_final=True,
)
STOP = Script("stop", keys=("control", "passing"), item=("worker",))
PREPARE = Script("prepare", keys=("starts",), args=("id", "start"), memory="grows", creates=True)
RELEASE_LEASES = Script("release_leases", keys=("passing", "leases", "processes"), item=("lease",))


@dataclass(frozen=True, slots=True)
class WorkerEntry:
    """The entry of a worker in the network.

    Attributes:
        worker_id: its name.
        state: the state of `worker_info`; for a worker that is being cleared, the state in which it ends.
        info: pid, hostname and the like, as the worker wrote them.
        started_at: when it registered.
        number: its number in the order of registering as running, from 0 on; None if it never ran.
        failure: the failure of its loop, once it has ended.
        ended_at: when it ended.
        is_clearing: whether it was shut out and may still have running tasks.
        seen_at: when the event loop of a lost worker last answered, where its lease expired.
    """

    worker_id: str
    state: WorkerState
    info: dict[str, Any]
    started_at: datetime
    number: int | None = None
    failure: Failure | None = None
    ended_at: datetime | None = None
    is_clearing: bool = False
    seen_at: datetime | None = None

    @property
    def has_run(self) -> bool:
        """Whether the worker ran; one that was only being started did not."""
        return self.info.get("pid") is not None

    @property
    def is_shared(self) -> bool:
        """Whether it is a shared worker that is running: it has no process of its own, and no lease."""
        return self.state == "running" and self.info.get("heartbeat") is False


class Registration(NamedTuple):
    """The answer to a registration.

    Attributes:
        mark: 1; 2 where the worker was asked to stop while it was being started; 0 where the id is or was in use.
        number: the number of the worker.
    """

    mark: int
    number: int


class Cleared(NamedTuple):
    """What became of workers that were shut out.

    Attributes:
        shut_out: the workers that the call shut out.
        n_failed: how many of their tasks failed.
        n_requeued: how many of their tasks are queued again.
    """

    shut_out: list[str]
    n_failed: int = 0
    n_requeued: int = 0


class WorkerStore:
    """The workers of one network, for callers in an event loop."""

    def __init__(self, connection: Connection, keys: NetworkKeys, calls: Batcher, malformed: MalformedRecords) -> None:
        self.keys = keys
        self._connection = connection
        self._malformed = malformed
        self._caller = ScriptCaller(keys)
        self._calls = calls

    async def register(self, worker_id: str, lease: Lease | None, info: dict[str, Any]) -> Registration:
        """Registers a running worker. Cancelled, it leaves no worker behind.

        Without a lease it is a shared worker, which stays: it is registered by the first call, and joined by the others.
        """
        args = _registration("running", lease, worker_id, encode(info, "info"))
        return await self._calls.call(_Register(self, worker_id, args, is_shared=lease is None))

    async def announce(self, worker_ids: Sequence[str], info: dict[str, Any], lease: Lease | None) -> list[str]:
        """Registers workers that are being started, and returns the ids that were free. They are lost when `lease` expires."""
        packed = encode(info, "info")
        requests = [
            Request(REGISTER, _registration("starting", lease, worker_id, packed), n_answers=2) for worker_id in worker_ids
        ]
        answers = await self._calls.call_all(requests)
        return [worker_id for worker_id, answer in zip(worker_ids, answers, strict=True) if answer[0] == 1]

    async def deregister(self, worker_id: str, state: WorkerState, failure: Failure | None = None) -> bool:
        """Deregisters a worker that holds no task; returns False where it is not alive."""
        return await self._calls.call(_deregistration(worker_id, state, failure, "self")) == [1]

    def deregister_later(self, worker_id: str) -> None:
        """Deregisters a worker whose caller is gone, in the background."""
        self._calls.detach(_deregistration(worker_id, "terminated", None, "self"))

    async def report(self, worker_id: str, state: WorkerState, failure: Failure | None) -> None:
        """Reports the end of a worker on behalf of the process that started it. A worker that never ran is deregistered; one
        that ended without deregistering is shut out, and what it ran is cleared."""
        if await self._calls.call(_deregistration(worker_id, state, failure, "starter")) == [2]:
            await self.lose([worker_id], "lost", LOST_WORKER, failure)

    async def lose(
        self, worker_ids: Sequence[str], state: WorkerState, task_failure: Failure, failure: Failure | None = None
    ) -> list[str]:
        """Shuts workers out, which end in `state` with `failure`, and clears what they run. Returns the workers that this call
        shut out: of several concurrent calls, one returns each worker."""
        return (await self.clear(worker_ids, state, task_failure, failure)).shut_out

    async def clear(
        self, worker_ids: Sequence[str], state: WorkerState, task_failure: Failure, failure: Failure | None = None
    ) -> Cleared:
        """Does what `lose` does, and returns also what became of the tasks."""
        cleared = Cleared([])
        for first in range(0, len(worker_ids), MOST_TASKS):
            step = LoseStep.begin(state, task_failure, failure, worker_ids[first : first + MOST_TASKS])
            while not step.is_done:
                step = step.next(await self._calls.call(Request(LOSE, step.args())))
                cleared.shut_out.extend(step.shut_out)
                cleared = Cleared(cleared.shut_out, cleared.n_failed + step.n_failed, cleared.n_requeued + step.n_requeued)
        return cleared

    async def judge(self) -> list[str]:
        """Shuts out the workers whose leases have expired, clears what they and workers shut out earlier ran, and returns the
        workers that this call shut out."""
        shut_out: list[str] = []
        call = self._caller.both(BEAT, Beat.args())
        while True:
            try:
                beat = Beat.of(await self._connection.ask_script(*call))
            except RushError as error:
                raise await explained(self._connection, self.keys, error) from error.__cause__
            shut_out += beat.shut_out
            for state, worker_ids in beat.clearing.items():
                await self.lose(worker_ids, state, FAILURES[state])
            if not beat.is_more:
                return shut_out

    async def release_leases(self, leases: Sequence[Lease]) -> None:
        """Ends leases, except those that keep a worker alive."""
        await self._calls.call(Request(RELEASE_LEASES, [lease.lease_id for lease in leases], survives_reset=False))

    async def prepare(self, start_id: str, start: bytes) -> None:
        """Keeps the job of workers that a command will start."""
        await self._calls.call(Request(PREPARE, [start_id, start]))

    async def read_start(self, start_id: str) -> bytes | None:
        """Returns the job of workers that a command starts; None where the network does not keep it."""
        return await self._connection.ask("HGET", self.keys.starts, start_id)

    async def last_seen(self) -> dict[str, datetime]:
        """Returns, for each worker that is alive, when its event loop last answered."""
        alive, processes = await self._connection.ask_together(("HGETALL", self.keys.alive), ("HGETALL", self.keys.processes))
        seen = {lease.decode("utf-8", "replace"): answered_at(times) for lease, times in _pairs(processes)}
        return {
            worker_id.decode("utf-8", "backslashreplace"): at
            for worker_id, value in _pairs(alive)
            if (at := seen.get(AliveWorker.of(value).lease_id)) is not None
        }

    async def silent(self) -> list[str]:
        """Returns the workers that are alive as far as the network knows, and whose lease was not renewed in time."""
        alive, processes, leases, server_time = await self._connection.ask_together(
            ("HGETALL", self.keys.alive),
            ("HGETALL", self.keys.processes),
            ("ZRANGE", self.keys.leases, "0", "-1", "WITHSCORES"),
            ("TIME",),
        )
        now, expires_at = int(server_time[0]) + int(server_time[1]) / 1e6, dict(_pairs(leases))
        overdue = {
            lease.decode("utf-8", "replace")
            for lease, times in _pairs(processes)
            if lease in expires_at and is_overdue(times, expires_at[lease], now)
        }
        workers = [(name.decode("utf-8", "backslashreplace"), AliveWorker.of(value)) for name, value in _pairs(alive)]
        return [worker_id for worker_id, worker in workers if worker.lease_id in overdue]

    async def ask_to_stop(self, worker_ids: Sequence[str]) -> list[str]:
        """Asks workers to stop, and returns those that are alive or being started."""
        asked: list[str] = []
        for first in range(0, len(worker_ids), MOST_TASKS):
            chunk = worker_ids[first : first + MOST_TASKS]
            answer: list[int] = await self._calls.call(Request(STOP, list(chunk), n_tasks=len(chunk)))
            asked += [worker_id for worker_id, mark in zip(chunk, answer, strict=True) if mark == 1]
        return asked

    async def under_leases(self, lease_ids: Container[str]) -> list[str]:
        """Returns the workers that one of these leases keeps alive."""
        flat = await self._connection.ask("HGETALL", self.keys.alive)
        found = [(name.decode("utf-8", "replace"), AliveWorker.of(value)) for name, value in _pairs(flat)]
        return [worker_id for worker_id, worker in found if worker.lease_id in lease_ids]

    async def alive(self, worker_ids: Sequence[str]) -> dict[str, AliveWorker | None]:
        """Returns each worker as it is alive; None for one that is not."""
        if not worker_ids:
            return {}
        return AliveWorker.of_each(worker_ids, await self._connection.ask("HMGET", self.keys.alive, *worker_ids))

    async def read(self) -> list[WorkerEntry]:
        """Returns all workers that the network knows, ordered by the time at which they registered."""
        flat = await self._connection.ask("HGETALL", self.keys.workers)
        return sorted(self._entries(_pairs(flat)), key=lambda entry: (entry.started_at, entry.worker_id))

    async def count_states(self) -> dict[WorkerState, int]:
        """Returns how many workers are in each state; those that are being cleared are in the state in which they end."""
        entries: list[bytes] = await self._connection.ask("HVALS", self.keys.workers)
        states = Counter(entry.partition(b" ")[0].removeprefix(b"clearing-") for entry in entries)
        return {state: states[state.encode()] for state in get_args(WorkerState)}

    async def read_some(self, worker_ids: Sequence[str]) -> dict[str, WorkerEntry]:
        """Returns the entries of workers, without those that the network does not know."""
        if not worker_ids:
            return {}
        raws = await self._connection.ask("HMGET", self.keys.workers, *worker_ids)
        pairs = [(worker_id.encode(), raw) for worker_id, raw in zip(worker_ids, raws, strict=True) if raw is not None]
        return {entry.worker_id: entry for entry in self._entries(pairs)}

    def _entries(self, pairs: Iterable[tuple[bytes, bytes]]) -> list[WorkerEntry]:
        entries: list[WorkerEntry] = []
        for name, raw in pairs:
            try:
                entries.append(_decode_entry(name, raw))
            except DecodeError as error:
                self._malformed.note("workers", name, raw, error)
        return entries


def _pairs(flat: Sequence[bytes]) -> Iterable[tuple[bytes, bytes]]:
    return zip(flat[::2], flat[1::2], strict=True)


class _Register(Request):
    """Registers a worker."""

    __slots__ = ("_is_shared", "_store", "_worker_id")

    def __init__(self, store: WorkerStore, worker_id: str, args: list[Word], *, is_shared: bool) -> None:
        super().__init__(REGISTER, args, n_answers=2)
        self._store = store
        self._worker_id = worker_id
        self._is_shared = is_shared

    def decode(self, answer: Any, extra: list[Any]) -> Registration:
        mark, number = answer
        return Registration(int(mark), int(number))

    @property
    def compensates(self) -> bool:
        return not self._is_shared  # others may have joined it

    def compensate(self, result: Any) -> None:
        if result.mark and self.compensates:
            self._store.deregister_later(self._worker_id)


def _deregistration(worker_id: str, state: WorkerState, failure: Failure | None, by: str) -> Request:
    return Request(DEREGISTER, [worker_id, state, encode_worker_failure(failure), by])


def _registration(state: str, lease: Lease | None, worker_id: str, info: bytes) -> list[Word]:
    times: list[Word] = ["", "", ""] if lease is None else [lease.lease_id, repr(lease.period), repr(lease.expire)]
    return [state, *times, worker_id, info]


def _decode_entry(name: bytes, raw: bytes) -> WorkerEntry:
    word, _, rest = raw.partition(b" ")
    values = decode_all(rest)
    try:
        state = word.decode().removeprefix("clearing-")
        if state not in get_args(WorkerState):
            raise ValueError(f"no state of a worker: {state!r:.80}")
        info, started_at, number, *end = values
        failure, *times = end or [None]
        is_clearing = word.startswith(b"clearing-")
        ended_at = None if is_clearing or not times else times.pop()
        return WorkerEntry(
            name.decode(),
            cast("WorkerState", state),
            dict(info),
            datetime.fromtimestamp(started_at, UTC),
            number,
            None if failure is None else failure_of(failure),
            datetime.fromtimestamp(ended_at, UTC) if ended_at is not None else None,
            is_clearing,
            datetime.fromtimestamp(times[0], UTC) if times else None,
        )
    except (TypeError, ValueError, AttributeError, OverflowError, OSError) as error:
        raise DecodeError(f"the entry of worker {name!r} is malformed: {raw!r:.200}") from error
