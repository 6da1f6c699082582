"""The transitions and reads of workers, typed: each method here is one script of `lua/`, or one read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple, cast

from rush_async.errors import DecodeError
from rush_async.model import Counts, Failure, WorkerState
from rush_async.store.calls import MOST_TASKS, Calls, Group, Position
from rush_async.store.codec import decode_all, encode
from rush_async.store.keys import NetworkKeys
from rush_async.store.records import encode_failure, encode_worker_failure
from rush_async.store.scripts import BEAT, BYE, ENTER, LOSE, PART, PREPARE, STOP, ScriptCaller
from rush_async.wire.connection import Connection
from rush_async.wire.transport import Word

__all__ = ["FAILURES", "KILLED", "LOST_WORKER", "Beat", "Lease", "LoseStep", "WorkerEntry", "WorkerStore", "beat_args"]

KILLED = Failure("killed", None, "Worker was killed")
LOST_WORKER = Failure("lost", None, "Worker has crashed or was killed")
FAILURES: dict[WorkerState, Failure] = {"killed": KILLED, "lost": LOST_WORKER}


class Lease(NamedTuple):
    """For how long a process is believed to be alive: its name, how often it is renewed, and when it expires (seconds)."""

    lease_id: str
    period: float
    expire: float


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

    @property
    def has_entered(self) -> bool:
        """Whether it ever came to run, whatever became of it."""
        return self.info.get("pid") is not None


class WorkerStore:
    """The workers of one network."""

    def __init__(self, connection: Connection, keys: NetworkKeys, calls: Calls) -> None:
        self.keys = keys
        self._connection = connection
        self._caller = ScriptCaller(keys)
        self._calls = calls

    async def enter(self, worker_id: str, lease: Lease, info: dict[str, Any], *, give_back: Callable[[Any], None]) -> str:
        """Registers a worker that is here: `1`; `2` when it was asked to stop already; `0` when the id is or was in use."""
        group = Group(ENTER, _coming("running", lease, worker_id, encode(info, "info")), give_back=give_back)
        return await self._calls.call(group)

    async def announce(self, worker_ids: Sequence[str], info: dict[str, Any], lease: Lease | None) -> list[str]:
        """Registers workers that are being started, lost with the process of `lease`; the ids that were free."""
        packed = encode(info, "info")
        groups = [Group(ENTER, _coming("starting", lease, worker_id, packed)) for worker_id in worker_ids]
        answers = await self._calls.call_all(groups)
        return [worker_id for worker_id, answer in zip(worker_ids, answers, strict=True) if answer == "1"]

    def bye_group(self, worker_id: str, state: WorkerState, failure: Failure | None, *, by: str = "self") -> Group:
        """A worker that holds nothing leaves."""
        return Group(BYE, [worker_id, state, encode_worker_failure(failure), by])

    async def bye(self, worker_id: str, state: WorkerState, failure: Failure | None = None) -> bool:
        """As `bye_group`; False when the worker was not there (any more)."""
        return await self._calls.call(self.bye_group(worker_id, state, failure)) == "1"

    async def report(self, worker_id: str, state: WorkerState, failure: Failure | None) -> None:
        """Whoever started a worker says how it ended, where it did not itself: one that never came is reported, one that
        left without a good-bye is shut out and what it ran is cleared."""
        if await self._calls.call(self.bye_group(worker_id, state, failure, by="starter")) == "2":
            await self.lose([worker_id], "lost", LOST_WORKER, failure)

    async def lose(
        self, worker_ids: Sequence[str], state: WorkerState, task_failure: Failure, failure: Failure | None = None
    ) -> list[str]:
        """Shuts workers out and clears what they run. Those that this call shut out: each is one caller's."""
        shut_out: list[str] = []
        for first in range(0, len(worker_ids), MOST_TASKS):
            step = LoseStep.begin(state, task_failure, failure, worker_ids[first : first + MOST_TASKS])
            while not step.is_done:
                step = step.next(await self._calls.call(Group(LOSE, step.args())))
                shut_out += step.shut_out
        return shut_out

    async def judge(self) -> list[str]:
        """Shuts out the workers whose leases have expired, and clears what they and others shut out before them ran. Those that
        this call shut out."""
        shut_out: list[str] = []
        args = beat_args((), ())
        by_digest = self._caller.call(BEAT, args)
        while True:
            beat = Beat.of(await self._connection.ask_script(by_digest, lambda: self._caller.call_by_source(BEAT, args)))
            shut_out += beat.shut_out
            for state, worker_ids in beat.clearing.items():
                await self.lose(worker_ids, state, FAILURES[state])
            if not beat.is_more:
                return shut_out

    async def part(self, leases: Sequence[Lease]) -> None:
        """Ends leases whose workers have all left."""
        await self._calls.call(Group(PART, [lease.lease_id for lease in leases], survives_reset=False))

    async def prepare(self, start_id: str, start: bytes) -> None:
        """Keeps how workers are to be started by a command."""
        await self._calls.call(Group(PREPARE, [start_id, start]))

    async def read_start(self, start_id: str) -> bytes | None:
        """How workers are to be started by a command; None when the network does not know it (any more)."""
        return await self._connection.ask("HGET", self.keys.starts, start_id)

    async def last_seen(self) -> dict[str, datetime]:
        """For each worker that is alive, when the event loop it lives in last answered."""
        holders, processes = await self._connection.ask_together(("HGETALL", self.keys.alive), ("HGETALL", self.keys.processes))
        seen = {lease: times.split() for lease, times in zip(processes[::2], processes[1::2], strict=True)}
        found: dict[str, datetime] = {}
        for worker_id, holder in zip(holders[::2], holders[1::2], strict=True):
            if (times := seen.get(holder.removesuffix(b" stop"))) is not None:
                found[worker_id.decode()] = datetime.fromtimestamp(float(times[2]), UTC)
        return found

    async def ask_to_stop(self, worker_ids: Sequence[str]) -> list[str]:
        """Asks workers to stop; those that were alive or are being started."""
        asked: list[str] = []
        for first in range(0, len(worker_ids), MOST_TASKS):
            chunk = worker_ids[first : first + MOST_TASKS]
            answer = await self._calls.call(Group(STOP, list(chunk), n_tasks=len(chunk)))
            asked += [worker_id for worker_id, mark in zip(chunk, (answer or b"").decode(), strict=False) if mark == "1"]
        return asked

    async def holders(self, worker_ids: Sequence[str]) -> dict[str, bytes | None]:
        """The leases of workers, with ` stop` behind that of one that was asked to stop; None for one that is not alive."""
        if not worker_ids:
            return {}
        leases: list[bytes | None] = await self._connection.ask("HMGET", self.keys.alive, *worker_ids)
        return dict(zip(worker_ids, leases, strict=True))

    async def read(self) -> list[WorkerEntry]:
        """All workers that the network knows, by the moment they registered."""
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


class LoseStep(NamedTuple):
    """One step of shutting workers out and clearing what they ran.

    Attributes:
        workers: whom it concerns; after the last step, nobody.
        shut_out: those that the step before this one shut out.
    """

    state: WorkerState
    task_failure: bytes
    failure: bytes
    cursor: str
    workers: Sequence[str]
    shut_out: Sequence[str] = ()

    @classmethod
    def begin(cls, state: WorkerState, task_failure: Failure, failure: Failure | None, workers: Sequence[str]) -> LoseStep:
        """The first step."""
        return cls(state, encode_failure(task_failure), encode_worker_failure(failure), "0", workers)

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do."""
        return not self.workers

    def args(self) -> list[Word]:
        """The arguments of its call."""
        return [self.state, self.task_failure, self.cursor, self.failure, *self.workers]

    def next(self, answer: bytes | None) -> LoseStep:
        """What follows from the answer."""
        if not answer:
            return self._replace(workers=(), shut_out=())
        cursor, n, *workers = answer.decode().split("|")
        return self._replace(cursor=cursor, workers=() if cursor == "0" else workers, shut_out=workers[: int(n)])


class Beat(NamedTuple):
    """What a beat answered.

    Attributes:
        position: where the network stands.
        is_more: whether more is to be judged at once.
        pace: how often somebody has to look after the leases (seconds); None without any.
        asks: how many requests were ever made.
        gone: leases that are not there any more.
        shut_out: workers that this beat shut out.
        clearing: workers whose tasks are to be cleared, by the state they end in.
    """

    position: Position
    is_more: bool
    pace: float | None
    asks: int
    gone: Sequence[str]
    shut_out: Sequence[str]
    clearing: dict[WorkerState, list[str]]

    @classmethod
    def of(cls, reply: Sequence[Any]) -> Beat:
        """The beat that a reply tells of."""
        epoch, seq, *counts, n_workers, more, pace, asks, gone, shut_out = reply[:12]
        clearing: dict[WorkerState, list[str]] = {}
        for state, worker in zip(reply[12::2], reply[13::2], strict=True):
            clearing.setdefault(cast("WorkerState", state.decode()), []).append(worker.decode())
        return cls(
            Position(int(epoch), seq, Counts(*counts), n_workers),
            more == b"1",
            float(pace) if pace else None,
            int(asks),
            gone.decode().split("|") if gone else (),
            shut_out.decode().split("|") if shut_out else (),
            clearing,
        )


def beat_args(leases: Iterable[tuple[str, float]], vouched: Iterable[str]) -> list[Word]:
    """The arguments of a beat: leases with the seconds since their loops answered, and workers vouched for."""
    args: list[Word] = [word for lease_id, silence in leases for word in (lease_id, f"{silence:.3f}")]
    return ["0", "", 0, encode_worker_failure(LOST_WORKER), len(args) // 2, *args, *vouched]


def _coming(state: str, lease: Lease | None, worker_id: str, info: bytes) -> list[Word]:
    times: list[Word] = ["", "", ""] if lease is None else [lease.lease_id, repr(lease.period), repr(lease.expire)]
    return [state, *times, worker_id, info]


def _decode_entry(name: bytes, raw: bytes) -> WorkerEntry:
    word, _, rest = raw.partition(b" ")
    state = word.decode().removeprefix("clearing-")
    values = decode_all(rest)
    try:
        info, started_at, *end = values
        failure, ended_at = (*end, None, None)[:2]
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
