"""The heartbeat: one thread a process and server says that the workers of all event loops are alive, whatever those compute.

It also carries requests to workers whose loop is blocked, finds lost workers, and writes what workers log.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from typing import Protocol

import anyio.to_thread

from rush_async.config import RushConfig
from rush_async.errors import RushConnectionError, listed
from rush_async.store.blocking import BlockingConnection
from rush_async.store.keys import NetworkKeys, client_id
from rush_async.store.scripts import BEAT, LOG, LOSE, ScriptCaller
from rush_async.store.workers import FAILURES, LOST_WORKER, Beat, Lease, LoseStep, beat_args

__all__ = ["Heartbeat", "LocalWorker", "own_this_process"]

logger = logging.getLogger(__name__)

_GLANCE = 0.02  # seconds in which a loop that is well answers
_PATIENCE = 2.0  # seconds in which the loop of a worker that was shut out is to answer, where the process is ours to end
_RETRY = 1.0  # seconds until a beat that failed is tried again, at the most
_FLUSH = 0.1  # seconds for which log records are gathered
_MOST_RECORDS = 100_000  # that the stream of a network keeps, about
_MOST_WAITING = 10_000  # records that wait for a server that is gone; older ones are dropped
_RECORDS_A_CALL = 500
_MOMENT = 0.05  # seconds
_GOODBYE = 2.0  # seconds that the thread may take to let go of a heartbeat

_owns_process = False


def own_this_process() -> None:
    """Says that this process exists for its workers alone: it may be ended when a worker is killed and its loop is blocked."""
    global _owns_process
    _owns_process = True


class LocalWorker(Protocol):
    """A worker that lives in an event loop of this process: whom requests of the network reach."""

    @property
    def worker_id(self) -> str: ...

    @property
    def is_registered(self) -> bool: ...

    @property
    def lease_id(self) -> str: ...

    def note_stop(self) -> None:
        """Is called from any thread: `terminated` is true from here on."""

    def request_stop(self) -> None: ...

    def shut_out(self, why: str) -> None: ...


class Heartbeat:
    """One event loop's part of the heartbeat, in one network.

    Args:
        config: the server.
        keys: the network's.
        local_workers: the workers that live in this loop.
        epoch: gives the network's epoch as known here.
        is_over: whether the loop's part in the network has ended without having been closed.
        on_beat: told in the loop what a beat answered, and whether requests were made meanwhile.
    """

    def __init__(
        self,
        config: RushConfig,
        keys: NetworkKeys,
        local_workers: Mapping[str, LocalWorker],
        epoch: Callable[[], int],
        is_over: Callable[[], bool],
        on_beat: Callable[[Beat, bool], None],
    ) -> None:
        self.config = config
        self._caller = ScriptCaller(keys)
        self._keys = keys
        self._residents = local_workers
        self._epoch = epoch
        self._is_over = is_over
        self._on_beat = on_beat
        self._loop = asyncio.get_running_loop()
        self._thread: HeartbeatThread | None = None
        self._first: asyncio.TimerHandle | None = None
        self._leases: dict[tuple[float, float], Lease] = {}
        self._vouched: dict[str, Callable[[], bool | None]] = {}
        self._asks = 0
        self._pace: float | None = None
        self._watch_period: float | None = None
        self._max_stall: float | None = None
        self.due = math.inf
        self._answered_at = time.monotonic()
        self._probe = threading.Event()
        self._probe.set()
        self._probed_at = 0.0
        self._shut_out_at: float | None = None
        self._client, self._number = client_id(), 0
        self._records: deque[bytes] = deque(maxlen=_MOST_WAITING)
        self._flushes: list[asyncio.Future[None]] = []
        self._flush_at: float | None = None
        self._is_closed = False

    # in the event loop

    def lease(self, period: float, expire: float) -> Lease:
        """The lease under which workers with these times live; it is renewed from here on."""
        lease = self._leases.get((period, expire))
        if lease is None:
            lease = self._leases[period, expire] = Lease(client_id(), period, expire)
            self._be_due_in(period)
        self._start()
        return lease

    @property
    def leases(self) -> list[Lease]:
        """All leases in use here."""
        return list(self._leases.values())

    def forget(self, lease_ids: Collection[str]) -> None:
        """Leases that have ended and that nobody lives under are not renewed any more."""
        for times, lease in list(self._leases.items()):
            if lease.lease_id in lease_ids:
                del self._leases[times]

    def watch(self, period: float, max_stall: float | None) -> None:
        """Judges the leases of others every `period` seconds, though nobody may live here. A loop that hangs for longer than
        `max_stall` is given up."""
        self._watch_period = min(period, self._watch_period or period)
        self._max_stall = max_stall if self._max_stall is None else self._max_stall
        self._be_due_in(period)
        if self._thread is None and self._first is None:
            # Whoever does not stay for a period needs no thread.
            self._first = self._loop.call_later(period, self._start)

    def _be_due_in(self, period: float) -> None:
        self.due = min(self.due, time.monotonic() + period)
        if self._thread is not None:
            self._thread.wake()

    def _start(self) -> None:
        if self._thread is None and not self._is_closed:
            self._thread = HeartbeatThread.join(self)

    def vouch(self, worker_id: str, is_alive: Callable[[], bool | None]) -> None:
        """Renews the lease of a worker in a process that we started, as long as that `is_alive`, which is called in a thread;
        it gives None once the process has ended."""
        self._vouched[worker_id] = is_alive

    def log(self, record: bytes) -> None:
        """Takes a packed log record, from any thread; it is written soon."""
        self._records.append(record)
        if self._flush_at is None and self._thread is not None:
            self._flush_at = time.monotonic() + _FLUSH
            self._thread.wake()

    async def flush(self) -> None:
        """Waits until what was logged has been written, for a few seconds at the most."""
        if self._records and self._thread is not None:
            done: asyncio.Future[None] = self._loop.create_future()
            self._flushes.append(done)
            self._flush_at = time.monotonic()
            self._thread.wake()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(done, _GOODBYE)

    async def aclose(self) -> None:
        """Beats no more. Leases that are still in use expire."""
        self._is_closed = True
        if self._first is not None:
            self._first.cancel()
        if self._thread is not None:
            await self._thread.leave(self)

    # in the thread

    @property
    def wants_attention_at(self) -> float:
        """When the thread has something to do here."""
        times = [self.due, self._flush_at, None if self._shut_out_at is None else self._shut_out_at + _PATIENCE]
        return min(at for at in times if at is not None)

    def attend(self, connection: BlockingConnection) -> bool:
        """Does what is due; whether this heartbeat goes on."""
        now = time.monotonic()
        if self._loop.is_closed() or self._is_over():
            self._shut_out_at = self._flush_at = None
            self.due = self._retry_at
            return not self._tried(lambda: self._bury(connection))
        # The living first: a full server takes no log, and is told of them all the same.
        if now >= self.due and not self._tried(lambda: self._beat(connection)):
            self.due = self._retry_at
        elif self._shut_out_at is not None and now >= self._shut_out_at + _PATIENCE:
            is_seen = self._tried(lambda: self._end_process_if_blocked(connection))
            self._shut_out_at = None if is_seen else self._retry_at - _PATIENCE
        elif self._flush_at is not None and now >= self._flush_at:
            self._flush_at = None
            if not self._tried(lambda: self._write_records(connection)):
                self._flush_at = self._retry_at
        return True

    def _tried(self, act: Callable[[], None]) -> bool:
        """Whether the server let us."""
        try:
            act()
        except RushConnectionError as error:
            logger.debug("%s", error)
            return False
        return True

    @property
    def _retry_at(self) -> float:
        return time.monotonic() + min(_RETRY, self._period / 4)

    @property
    def _period(self) -> float:
        periods = [lease.period for lease in self.leases]
        return min([each for each in (*periods, self._watch_period, self._pace) if each is not None])

    def _beat(self, connection: BlockingConnection) -> None:
        silence = self._silence()
        leases = [] if self._is_stalled() else [(lease.lease_id, silence) for lease in self.leases]
        answers = {worker_id: is_alive() for worker_id, is_alive in list(self._vouched.items())}
        vouched = [worker_id for worker_id, is_alive in answers.items() if is_alive]
        for worker_id in [worker_id for worker_id, is_alive in answers.items() if is_alive is None]:
            del self._vouched[worker_id]
        while True:
            beat = Beat.of(connection.call(self._caller, BEAT, beat_args(leases, vouched)))
            for state, worker_ids in beat.clearing.items():
                if lost := set(beat.shut_out).intersection(worker_ids):
                    logger.warning(
                        "workers of network %s did not renew their leases and are lost: %s", self._network, listed(lost)
                    )
                # The loop may not have heard yet which epoch it is.
                self._lose(connection, LoseStep.begin(state, FAILURES[state], None, worker_ids), beat.position.epoch)
            if not beat.is_more:
                break
        has_requests = beat.asks != self._asks
        if has_requests or beat.gone:
            self._look_at_requests(connection)
        self._asks = beat.asks
        self._pace = beat.pace
        self.due = time.monotonic() + self._period
        with contextlib.suppress(RuntimeError):  # it was closed a moment ago
            self._loop.call_soon_threadsafe(self._take, beat, has_requests)

    @property
    def _network(self) -> str:
        return self._keys.meta.partition("{")[2].rpartition("}")[0]

    def _take(self, beat: Beat, has_requests: bool) -> None:
        if not self._is_closed:
            self._on_beat(beat, has_requests)

    def _silence(self) -> float:
        """Seconds since the loop last answered; asks it."""
        if self._probe.is_set():
            self._probe, self._probed_at = threading.Event(), time.monotonic()
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._answer, self._probe)
        return 0.0 if self._probe.wait(_GLANCE) else time.monotonic() - self._answered_at

    def _answer(self, probe: threading.Event) -> None:
        self._answered_at = time.monotonic()
        probe.set()

    def _is_stalled(self) -> bool:
        """Whether the loop has hung for so long that its workers are to be given up."""
        most = self._max_stall
        return most is not None and not self._probe.is_set() and time.monotonic() - self._probed_at > most

    def _look_at_requests(self, connection: BlockingConnection) -> None:
        """Sees what is asked of the workers that live here: those that compute without awaiting see `terminated` at once."""
        holders = self._holders(connection)
        for worker_id, holder in holders.items():
            if (holder is None or holder.endswith(b" stop")) and (worker := self._residents.get(worker_id)) is not None:
                worker.note_stop()
        if _owns_process and None in holders.values():
            self._silence()
            self._shut_out_at = time.monotonic()

    def _holders(self, connection: BlockingConnection) -> dict[str, bytes | None]:
        """The leases of the workers that live here; None for one that is not alive."""
        names = [worker.worker_id for worker in list(self._residents.values()) if worker.is_registered]
        found: list[bytes | None] = connection.ask("HMGET", self._keys.alive, *names) if names else []
        return dict(zip(names, found, strict=True))

    def _end_process_if_blocked(self, connection: BlockingConnection) -> None:
        # One that left meanwhile is no worker any more; one that computes has not heard of its end.
        if not self._probe.is_set() and None in self._holders(connection).values():
            logger.error("a worker was shut out and its loop does not answer: the process is ended")
            os.kill(os.getpid(), signal.SIGKILL)

    def _lose(self, connection: BlockingConnection, step: LoseStep, epoch: int) -> None:
        while not step.is_done:
            self._number += 1
            args = [str(epoch), self._client, self._number, *step.args()]
            reply = connection.call(self._caller, LOSE, args)
            if reply[0] in (b"EPOCH", b"OLD"):
                return  # reset meanwhile, or somebody else does it at the next beat
            step = step.next(reply[7])

    def _bury(self, connection: BlockingConnection) -> None:
        """The loop ended without having closed its clients: what their workers ran is cleared."""
        local_workers = [worker.worker_id for worker in list(self._residents.values()) if worker.is_registered]
        if local_workers:
            logger.warning("the event loop of workers ended without closing them: %s", listed(local_workers))
            self._lose(connection, LoseStep.begin("lost", LOST_WORKER, None, local_workers), self._epoch())

    def _write_records(self, connection: BlockingConnection) -> None:
        records = self._records
        while records:
            batch = [records[at] for at in range(min(len(records), _RECORDS_A_CALL))]
            reply = connection.call(self._caller, LOG, [str(self._epoch()), "", 0, _MOST_RECORDS, *batch])
            if reply[0] == b"EPOCH":
                # What was logged before a reset is gone with the network, unless that goes on in another epoch.
                if reply[1] == b"0":
                    records.clear()
                elif int(reply[1]) != self._epoch():
                    self._flush_at = time.monotonic() + _FLUSH
                    return
                continue
            for _ in batch:
                records.popleft()
        flushes, self._flushes = self._flushes, []
        for done in flushes:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(_resolve, done)


def _resolve(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)


class HeartbeatThread:
    """The thread of one server."""

    _all: dict[RushConfig, HeartbeatThread] = {}  # noqa: RUF012 - one table a process
    _lock = threading.Lock()

    def __init__(self, config: RushConfig) -> None:
        self._config = config
        self._condition = threading.Condition()
        self._heartbeats: list[Heartbeat] = []
        self._attended: Heartbeat | None = None
        self._connection = BlockingConnection(config, config.response_timeout)
        self._thread = threading.Thread(target=self._run, name="rush_async heartbeat", daemon=True)

    @classmethod
    def join(cls, heartbeat: Heartbeat) -> HeartbeatThread:
        """The thread for a heartbeat's server, which beats for it from here on."""
        with cls._lock:
            thread = cls._all.get(heartbeat.config)
            if thread is None:
                thread = cls._all[heartbeat.config] = cls(heartbeat.config)
                thread._heartbeats.append(heartbeat)
                thread._thread.start()
            else:
                with thread._condition:
                    thread._heartbeats.append(heartbeat)
                thread.wake()
        return thread

    @classmethod
    def forget_all(cls) -> None:
        """In a forked child there are no threads of its parent."""
        cls._all, cls._lock = {}, threading.Lock()

    def wake(self) -> None:
        """Something may be due earlier than it was."""
        with self._condition:
            self._condition.notify()

    async def leave(self, heartbeat: Heartbeat) -> None:
        """Beats no more for a heartbeat; with the last one the thread ends."""
        with self._lock, self._condition:
            if heartbeat in self._heartbeats:
                self._heartbeats.remove(heartbeat)
            is_last = not self._heartbeats
            if is_last and self._all.get(self._config) is self:
                del self._all[self._config]
            is_busy = self._attended is not None
            self._condition.notify()
        if is_last:
            if is_busy:
                self._connection.interrupt()
            self._thread.join(_MOMENT)
            if self._thread.is_alive():  # it is opening a connection, which cannot be interrupted
                await anyio.to_thread.run_sync(self._thread.join, _GOODBYE)

    def _run(self) -> None:
        while (heartbeat := self._next()) is not None:
            goes_on = True
            try:
                goes_on = heartbeat.attend(self._connection)
            except Exception:
                logger.exception("the heartbeat failed and goes on")
                heartbeat.due = time.monotonic() + _RETRY
            with self._condition:
                self._attended = None
                if not goes_on and heartbeat in self._heartbeats:
                    self._heartbeats.remove(heartbeat)
        self._connection.close()

    def _next(self) -> Heartbeat | None:
        """Waits until a heartbeat wants attention; None when none is left."""
        with self._lock, self._condition:
            if not self._heartbeats and self._all.get(self._config) is self:
                del self._all[self._config]  # the last one was buried
        with self._condition:
            while self._heartbeats:
                heartbeat = min(self._heartbeats, key=lambda heartbeat: heartbeat.wants_attention_at)
                left = heartbeat.wants_attention_at - time.monotonic()
                if left <= 0:
                    self._attended = heartbeat
                    return heartbeat
                self._condition.wait(left)
        return None


def _begin_anew() -> None:
    """In a forked child: it has no heartbeat yet, and whoever forked it decides about it."""
    global _owns_process
    _owns_process = False
    HeartbeatThread.forget_all()


os.register_at_fork(after_in_child=_begin_anew)
