"""Leases, the answers to heartbeats and to losses of workers, typed, and the calls of the heartbeat thread.

A worker is alive as long as its lease is renewed (leases: Gray and Cheriton 1989). A worker whose lease has expired is fenced:
no call of it changes anything any more, however late it arrives (fencing: Kleppmann 2016).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from rush_async.errors import DecodeError
from rush_async.model import Failure, WorkerState
from rush_async.store.keys import NetworkKeys, client_name
from rush_async.store.position import Position, number_of, position_of
from rush_async.store.records import encode_failure, encode_worker_failure
from rush_async.store.scripts import Script, ScriptCaller
from rush_async.wire.blocking import BlockingConnection
from rush_async.wire.transport import Word

__all__ = [
    "BEAT",
    "FAILURES",
    "KILLED",
    "LOSE",
    "LOST_WORKER",
    "AliveWorker",
    "Beat",
    "BlockingWorkerStore",
    "Lease",
    "LoseStep",
    "answered_at",
    "is_overdue",
    "lease_times",
    "lost_because",
]

KILLED = Failure("killed", None, "Worker was killed")
LOST_WORKER = Failure("lost", None, "Worker has crashed or was killed")
FAILURES: dict[WorkerState, Failure] = {"killed": KILLED, "lost": LOST_WORKER}
BEAT = Script(
    "beat",
    keys=("control", "workers", "passing", "leases", "processes", "reserved", "returned"),
    args=("failure", "n_leases"),
)
LOSE = Script(
    "lose",
    keys=("queue", "control", "workers", "passing", "reserved", "returned"),
    args=("state", "ended", "cursor", "failure"),
    item=("worker",),
)
LOG = Script("log", keys=("log",), args=("most",), item=("record",), memory="grows")

_OVERDUE = 1.2  # periods without a renewal after which a lease is overdue
_LONGEST_CAUSE = 200  # characters of the death of a worker that each of its tasks keeps
_MAX_LOG_RECORDS = 100_000  # that the log of a network keeps, approximately


def lost_because(failure: Failure | None) -> Failure:
    """Returns the failure of the tasks of a worker that was lost, with the cause where it is known."""
    if failure is None:
        return LOST_WORKER
    cause = failure.message.strip().partition("\n")[0][:_LONGEST_CAUSE]
    return Failure("lost", None, f"{LOST_WORKER.message}: {cause}")


class Lease(NamedTuple):
    """The time for which the workers of one event loop count as alive without a heartbeat.

    Attributes:
        lease_id: its name.
        period: how often it is renewed, in seconds.
        expire: how long it lasts after a renewal, in seconds.
    """

    lease_id: str
    period: float
    expire: float


class AliveWorker(NamedTuple):
    """A worker that is alive, as the network keeps it.

    Attributes:
        lease_id: the lease that keeps it alive.
        is_asked_to_stop: whether it was asked to take no new task.
    """

    lease_id: str
    is_asked_to_stop: bool

    @classmethod
    def of(cls, value: bytes) -> AliveWorker:
        """Parses a value of the hash `alive`."""
        lease_id, _, request = value.decode("utf-8", "replace").partition(" ")
        return cls(lease_id, request == "stop")

    @classmethod
    def of_each(cls, worker_ids: Iterable[str], values: Iterable[bytes | None]) -> dict[str, AliveWorker | None]:
        """Returns each worker as it is alive; None for one that is not."""
        pairs = zip(worker_ids, values, strict=True)
        return {worker_id: None if value is None else cls.of(value) for worker_id, value in pairs}


def answered_at(times: bytes) -> datetime | None:
    """Returns when the event loop of a lease last answered; None where a value of the hash `processes` cannot be parsed."""
    try:
        _, _, at = times.split()
        return datetime.fromtimestamp(float(at), UTC)
    except (ValueError, OverflowError, OSError):
        return None


def lease_times(times: bytes) -> tuple[float, float] | None:
    """Returns expiry and period of a lease, in seconds; None where a value of the hash `processes` cannot be parsed."""
    try:
        expire, period, _ = map(float, times.split())
    except ValueError:
        return None
    return expire, period


def is_overdue(times: bytes, expires_at: bytes, now: float) -> bool:
    """Returns whether a lease should have been renewed; False where a value of the hash `processes` cannot be parsed."""
    if (found := lease_times(times)) is None:
        return False
    expire, period = found
    return now - (float(expires_at) - expire) > _OVERDUE * period


class Beat(NamedTuple):
    """The answer to a beat.

    Attributes:
        position: the position of the network.
        is_more: whether another beat has to follow at once, because leases are left to judge.
        pace: how often some process has to judge the leases, in seconds; None without any lease.
        n_requests: how many requests to workers were made since the network exists.
        gone: leases of the caller that have ended.
        shut_out: workers that this beat shut out.
        clearing: workers whose tasks are to be cleared, by the state they end in.
    """

    position: Position
    is_more: bool
    pace: float | None
    n_requests: int
    gone: Sequence[str]
    shut_out: Sequence[str]
    clearing: dict[WorkerState, list[str]]

    @staticmethod
    def args(leases: Iterable[tuple[str, float]] = (), vouched: Iterable[str] = ()) -> list[Word]:
        """Returns the arguments of a beat that renews leases, each with the seconds since its event loop last answered, and
        those of the workers it vouches for."""
        words: list[Word] = [word for lease_id, silence in leases for word in (lease_id, f"{silence:.3f}")]
        return ["0", "", 0, encode_worker_failure(LOST_WORKER), len(words) // 2, *words, *vouched]

    @classmethod
    def of(cls, reply: Sequence[Any]) -> Beat:
        """Parses a reply.

        Raises:
            DecodeError: it is malformed, because another program wrote keys of the network.
        """
        try:
            more, pace, n_requests, gone, shut_out, clearing = reply[8:]
            by_state: dict[WorkerState, list[str]] = {}
            for state in FAILURES:
                names = [each for at, each in enumerate(clearing) if at % 2 and clearing[at - 1] == state.encode()]
                if worker_ids := _decoded(names):
                    by_state[state] = worker_ids
            return cls(
                position_of(reply),
                more == b"1" and bool(shut_out or by_state),
                float(pace) if pace else None,
                n_requests,
                _decoded(gone),
                _decoded(shut_out),
                by_state,
            )
        except (TypeError, ValueError) as error:
            raise DecodeError(f"the answer to a heartbeat is malformed: {reply!r:.200}") from error


class LoseStep(NamedTuple):
    """One step of shutting workers out and clearing what they run. The first step fences them.

    Attributes:
        state: the state in which the workers end.
        task_failure: the failure of the tasks that they run, packed.
        failure: their own failure, packed.
        cursor: the place in the running tasks.
        workers: the workers that it concerns; empty after the last step.
        shut_out: the workers that the step before this one shut out.
        n_failed: how many of their tasks failed in that step.
        n_requeued: how many of their tasks were queued again in that step.
    """

    state: WorkerState
    task_failure: bytes
    failure: bytes
    cursor: str
    workers: Sequence[str]
    shut_out: Sequence[str] = ()
    n_failed: int = 0
    n_requeued: int = 0

    @classmethod
    def begin(cls, state: WorkerState, task_failure: Failure, failure: Failure | None, workers: Sequence[str]) -> LoseStep:
        """Returns the first step."""
        return cls(state, encode_failure(task_failure), encode_worker_failure(failure), "0", workers)

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do."""
        return not self.workers

    def args(self) -> list[Word]:
        """Returns the arguments of its call."""
        return [self.state, self.task_failure, self.cursor, self.failure, *self.workers]

    def next(self, answer: Sequence[Any]) -> LoseStep:
        """Returns the step that follows an answer."""
        # `clearing`: workers that an earlier call shut out, and whose tasks are not all cleared.
        cursor, shut_out, clearing, n_failed, n_requeued = answer
        names = _decoded(shut_out)
        is_last = cursor == b"0"
        workers = () if is_last else names + _decoded(clearing)
        return self._replace(cursor=cursor.decode(), workers=workers, shut_out=names, n_failed=n_failed, n_requeued=n_requeued)


class BlockingWorkerStore:
    """The calls of the heartbeat thread in one network. Each blocks the thread until the server has answered.

    Every method raises `RushConnectionError` where the server cannot be reached or refuses the call.
    """

    def __init__(self, connection: BlockingConnection, keys: NetworkKeys) -> None:
        self._connection = connection
        self._keys = keys
        self._caller = ScriptCaller(keys)

    def _call(self, script: Script, args: list[Word]) -> list[Any]:
        return self._connection.call(self._caller.call(script, args), self._caller.call_by_source(script, args))

    def beat(self, leases: Iterable[tuple[str, float]], vouched: Iterable[str]) -> Beat:
        """Renews leases, as in `Beat.args`, and judges all that have expired."""
        return Beat.of(self._call(BEAT, Beat.args(leases, vouched)))

    def lose(self, state: WorkerState, worker_ids: Sequence[str], epoch: int) -> None:
        """Shuts workers out, which end in `state`, and clears what they run, unless the network is in another epoch."""
        step, client, number = LoseStep.begin(state, FAILURES[state], None, worker_ids), client_name(), 0
        while not step.is_done:
            number += 1
            reply = self._call(LOSE, [str(epoch), client, number, *step.args()])
            if reply[0] in (b"EPOCH", b"OLD"):
                return  # the network was reset, or the next beat of another process completes it
            if reply[0] == b"GONE":  # the clock of this machine is behind
                client = client_name(float(reply[1]))
            else:
                step = step.next(reply[8])

    def log(self, records: Sequence[bytes], epoch: int) -> int:
        """Appends packed records to the worker log, unless the network is in another epoch; returns the network's epoch."""
        reply = self._call(LOG, [str(epoch), "", 0, _MAX_LOG_RECORDS, *records])
        return number_of("epoch", reply[1]) if reply[0] == b"EPOCH" else epoch

    def alive(self, worker_ids: Sequence[str]) -> dict[str, AliveWorker | None]:
        """Returns each worker as it is alive; None for one that is not."""
        if not worker_ids:
            return {}
        return AliveWorker.of_each(worker_ids, self._connection.ask("HMGET", self._keys.alive, *worker_ids))


def _decoded(names: Sequence[bytes]) -> list[str]:
    """The names, without those of other programs that are not UTF-8."""
    return [text for name in names if (text := name.decode("utf-8", "ignore")).encode() == name]
