"""The heartbeat of an event loop in a network: it renews the leases of the workers, whatever the loop computes.

It also finds workers that are lost, and carries requests to workers whose event loop is blocked.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import signal
import time
from collections.abc import Collection, Mapping
from typing import Protocol

from rush_async.config import RushConfig
from rush_async.errors import listed
from rush_async.heartbeat.loop_probe import LoopProbe
from rush_async.heartbeat.thread import RETRY_DELAY, HeartbeatThread, NetworkView
from rush_async.process import forget_in_child
from rush_async.store.keys import NetworkKeys, client_id
from rush_async.store.leases import Beat, BlockingWorkerStore, Lease
from rush_async.store.position import Position
from rush_async.wire.blocking import BlockingConnection
from rush_async.wire.topology import slot_of

__all__ = ["Heartbeat", "HeartbeatOwner", "LocalWorker", "VouchedProcess", "own_this_process"]

logger = logging.getLogger(__name__)

_SHUT_OUT_GRACE = 2.0  # seconds in which the loop of a worker that was shut out answers, or its process is ended

_owns_process = False


def own_this_process() -> None:
    """Declares that this process exists only for its workers: it ends when one is shut out and its event loop is blocked."""
    global _owns_process
    _owns_process = True


class LocalWorker(Protocol):
    """A worker that lives in an event loop of this process."""

    @property
    def worker_id(self) -> str: ...

    @property
    def is_registered(self) -> bool: ...

    @property
    def lease_id(self) -> str: ...

    def note_stop(self) -> None:
        """Sets `terminated`, from any thread."""

    def request_stop(self) -> None: ...

    def shut_out(self, why: str) -> None: ...


class VouchedProcess(Protocol):
    """A process that this process started, whose workers it vouches for. The heartbeat thread asks."""

    @property
    def has_ended(self) -> bool:
        """Whether the process has ended."""
        ...

    @property
    def is_running(self) -> bool:
        """Whether it runs, and was not stopped by a signal."""
        ...


class HeartbeatOwner(NetworkView, Protocol):
    """The view of a network that a heartbeat belongs to."""

    @property
    def network_id(self) -> str: ...

    def note(self, position: Position) -> None:
        """Notes the position in the heartbeat thread: the event loop may be blocked."""

    def known(self) -> tuple[int, int]:
        """The highest epoch and the number of the last event that the event loop knows, from any thread."""
        ...

    def take_beat(self, beat: Beat, has_requests: bool, asked: tuple[int, int]) -> None:
        """Takes the answer to a beat, in the event loop; `has_requests` tells whether requests to workers were made since, and
        `asked` what was `known` before the beat left."""


class Heartbeat:
    """The heartbeat of one event loop in one network: a duty of the heartbeat thread.

    Args:
        config: the server.
        keys: the keys of the network.
        owner: the event loop's view of the network.
        local_workers: the workers that live in the event loop, by their ids.

    Attributes:
        n_beats: how many beats the server has answered.
        beaten_at: when the last of them was answered, on the monotonic clock; None before the first.
        max_stall: how many seconds the event loop may block before its workers are given up.
    """

    def __init__(
        self, config: RushConfig, keys: NetworkKeys, owner: HeartbeatOwner, local_workers: Mapping[str, LocalWorker]
    ) -> None:
        self.config = config
        self.slot = slot_of(config, keys.meta)
        self._keys = keys
        self._owner = owner
        self._local_workers = local_workers
        self._loop = asyncio.get_running_loop()
        self._probe = LoopProbe(self._loop)
        self._thread: HeartbeatThread | None = None
        self._start_timer: asyncio.TimerHandle | None = None
        self._store: BlockingWorkerStore | None = None
        self._leases: dict[tuple[float, float], Lease] = {}
        self._vouched: dict[str, VouchedProcess] = {}
        self._watch_period = self._pace = math.inf
        self.max_stall = math.inf
        self._n_requests = 0
        self._beat_at = self._end_process_at = math.inf
        self._is_closed = False
        self.n_beats = 0
        self.beaten_at: float | None = None

    # in the event loop

    def lease(self, period: float, expire: float) -> Lease:
        """Returns the lease of the workers with these times (seconds), which is renewed from here on."""
        lease = self._leases.get((period, expire))
        if lease is None:
            lease = self._leases[period, expire] = Lease(client_id(), period, expire)
            self._beat_within(period)
        self._start()
        return lease

    @property
    def leases(self) -> list[Lease]:
        """The leases that are renewed."""
        return list(self._leases.values())

    def forget(self, lease_ids: Collection[str]) -> None:
        """Stops renewing leases that have ended and that no worker of this loop lives under."""
        for times, lease in list(self._leases.items()):
            if lease.lease_id in lease_ids:
                del self._leases[times]

    def watch(self, period: float, max_stall: float | None) -> None:
        """Judges the leases of other processes every `period` seconds, and gives up the workers of this event loop when it is
        blocked for longer than `max_stall`."""
        self._watch_period = min(period, self._watch_period)
        if max_stall is not None and self.max_stall == math.inf:
            self.max_stall = max_stall
        self._beat_within(period)
        if self._thread is None and self._start_timer is None:
            self._start_timer = self._loop.call_later(period, self._start)  # a client that closes sooner needs no thread

    def _beat_within(self, period: float) -> None:
        self._beat_at = min(self._beat_at, time.monotonic() + period)
        if self._thread is not None:
            self._thread.wake()

    def _start(self) -> None:
        if self._thread is None and not self._is_closed:
            self._thread = HeartbeatThread.add(self)

    def vouch(self, worker_id: str, process: VouchedProcess) -> None:
        """Renews the lease of a worker as long as its process, which this process started, is running."""
        self._vouched[worker_id] = process

    async def aclose(self) -> None:
        """Stops beating. Leases that are still in use expire."""
        self._is_closed = True
        if self._start_timer is not None:
            self._start_timer.cancel()
        if self._thread is not None:
            await self._thread.remove(self)

    # in the heartbeat thread

    @property
    def due_at(self) -> float:
        """When the thread has something to do here, on the monotonic clock."""
        return min(self._beat_at, self._end_process_at)

    @property
    def retry_delay(self) -> float:
        """Seconds until a beat is tried again where the server could not be reached."""
        return min(RETRY_DELAY, self._period / 4)

    @property
    def _period(self) -> float:
        return min([self._watch_period, self._pace, *[lease.period for lease in self.leases]])

    def attend(self, connection: BlockingConnection) -> bool:
        """Beats, or ends the process where that is due. The duty ends with the event loop, whose workers are lost then."""
        store = self._store = self._store or BlockingWorkerStore(connection, self._keys)
        if self._loop.is_closed() or self._owner.is_over:
            self._lose_local_workers(store)
            return False
        now = time.monotonic()
        if now >= self._beat_at:
            self._beat(store)
        if now >= self._end_process_at:
            self._end_process_if_blocked(store)
            self._end_process_at = math.inf
        return True

    def _beat(self, store: BlockingWorkerStore) -> None:
        silence = self._probe.silence()
        is_given_up = self._probe.is_blocked_for(self.max_stall)
        leases = [] if is_given_up else [(lease.lease_id, silence) for lease in self.leases]
        vouched, asked = self._running_elsewhere(), self._owner.known()
        while True:
            beat = store.beat(leases, vouched)
            self._clear(store, beat)
            if not beat.is_more:
                break
        self._owner.note(beat.position)
        has_requests = beat.n_requests != self._n_requests
        if has_requests or beat.gone:
            self._note_requests(store)
        self._n_requests = beat.n_requests
        self._pace = math.inf if beat.pace is None else beat.pace
        self.n_beats, self.beaten_at = self.n_beats + 1, time.monotonic()
        self._beat_at = self.beaten_at + self._period
        with contextlib.suppress(RuntimeError):  # the loop has been closed
            self._loop.call_soon_threadsafe(self._take, beat, has_requests, asked)

    def _take(self, beat: Beat, has_requests: bool, asked: tuple[int, int]) -> None:
        if not self._is_closed:
            self._owner.take_beat(beat, has_requests, asked)

    def _running_elsewhere(self) -> list[str]:
        """Returns the workers in processes that this process vouches for."""
        for worker_id, process in list(self._vouched.items()):
            if process.has_ended:
                del self._vouched[worker_id]
        return [worker_id for worker_id, process in list(self._vouched.items()) if process.is_running]

    def _clear(self, store: BlockingWorkerStore, beat: Beat) -> None:
        for state, worker_ids in beat.clearing.items():
            if lost := set(beat.shut_out).intersection(worker_ids):
                logger.warning(
                    "workers of network %s did not renew their leases and are lost: %s", self._owner.network_id, listed(lost)
                )
            store.lose(state, worker_ids, beat.position.epoch)  # the loop may not know this epoch yet

    def _note_requests(self, store: BlockingWorkerStore) -> None:
        """Sets `terminated` of workers that are asked to stop or were shut out, though their loop may be blocked."""
        alive = store.alive(self._registered())
        for worker_id, entry in alive.items():
            if (entry is None or entry.is_asked_to_stop) and (worker := self._local_workers.get(worker_id)) is not None:
                worker.note_stop()
        if _owns_process and None in alive.values():
            self._probe.silence()
            self._end_process_at = time.monotonic() + _SHUT_OUT_GRACE

    def _registered(self, *, with_lease: bool = False) -> list[str]:
        """The workers here that have registered, or without the shared ones, which have no lease."""
        workers = [worker for worker in list(self._local_workers.values()) if worker.is_registered]
        return [worker.worker_id for worker in workers if worker.lease_id or not with_lease]

    def _end_process_if_blocked(self, store: BlockingWorkerStore) -> None:
        # A worker that has left meanwhile is not registered any more.
        if self._probe.is_blocked and None in store.alive(self._registered(with_lease=True)).values():
            logger.error("a worker was shut out and its event loop does not answer: the process is ended")
            os.kill(os.getpid(), signal.SIGKILL)

    def _lose_local_workers(self, store: BlockingWorkerStore) -> None:
        """Reports the workers of a loop that ended without closing its clients as lost: their tasks are cleared."""
        if worker_ids := self._registered(with_lease=True):
            logger.warning("the event loop of workers ended without closing them: %s", listed(worker_ids))
            store.lose("lost", worker_ids, self._owner.epoch)


class _ForkedChild:
    def forget(self) -> None:
        """Drops the threads of the parent: the child has none, and it decides anew whom it belongs to."""
        global _owns_process
        _owns_process = False
        HeartbeatThread.forget_all()


_forked_child = _ForkedChild()
forget_in_child(_forked_child)
