"""Events from the wire to those who listen: decoded once a process, buffered for each, never missed silently."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any, NamedTuple, cast

from rush_async.errors import DecodeError
from rush_async.events import (
    Event,
    EventsMissed,
    NetworkReset,
    TasksFailed,
    TasksFinished,
    TasksQueued,
    TasksStarted,
    WorkerLost,
    WorkerStarted,
    WorkerStopped,
)
from rush_async.model import Counts
from rush_async.store.codec import decode

__all__ = ["EventMessage", "Listener", "ResetMessage", "decode_message"]


class EventMessage:
    """One message of the `events` channel: where the network stands, and what happened.

    Attributes:
        epoch: the network's.
        first: the number of its first event.
        counts: how many tasks are in each state.
        n_workers: how many workers are running.
    """

    __slots__ = ("_at", "_events", "_groups", "_network_id", "counts", "epoch", "first", "n_workers")

    def __init__(
        self, network_id: str, epoch: int, first: int, at: float, counts: Counts, n_workers: int, groups: list[list[str]]
    ) -> None:
        self.epoch = epoch
        self.first = first
        self.counts = counts
        self.n_workers = n_workers
        self._network_id = network_id
        self._at = at
        self._groups = groups
        self._events: list[Event] | None = None

    @property
    def last(self) -> int:
        """The number of its last event."""
        return self.first + len(self._groups) - 1

    @property
    def events(self) -> list[Event]:
        """What happened; made when it is asked for, since most messages only tell where the network stands.

        Raises:
            DecodeError: something in it is not ours.
        """
        if self._events is None:
            try:
                at = datetime.fromtimestamp(self._at, UTC)
                self._events = [
                    _event(kind, worker, tuple(keys), self._network_id, self.first + offset, at)
                    for offset, (kind, worker, *keys) in enumerate(self._groups)
                ]
            except (OverflowError, OSError, TypeError, ValueError) as error:
                what = f"an event of network {self._network_id!r} is malformed: {self._groups!r:.200}"
                raise DecodeError(what) from error
        return self._events


class ResetMessage(NamedTuple):
    """The network was reset: the next epoch, and whether its workers go on in it (else nothing exists)."""

    epoch: int
    at: datetime
    workers_go_on: bool


def _event(kind: str, worker: str, keys: tuple[str, ...], network_id: str, seq: int, at: datetime) -> Event:
    worker_id = worker or None
    match kind:
        case "Q":
            return TasksQueued(network_id=network_id, seq=seq, at=at, keys=keys)
        case "S":
            return TasksStarted(network_id=network_id, seq=seq, at=at, keys=keys, worker_id=worker_id)
        case "F":
            return TasksFinished(network_id=network_id, seq=seq, at=at, keys=keys, worker_id=worker_id)
        case "X":
            return TasksFailed(network_id=network_id, seq=seq, at=at, keys=keys, worker_id=worker_id)
        case "W":
            return WorkerStarted(network_id=network_id, seq=seq, at=at, worker_id=worker)
        case "E":
            return WorkerStopped(network_id=network_id, seq=seq, at=at, worker_id=worker)
        case "L":
            return WorkerLost(network_id=network_id, seq=seq, at=at, worker_id=worker)
        case _:
            raise ValueError(f"unknown kind of event {kind!r}")


def decode_message(network_id: str, data: bytes) -> EventMessage | ResetMessage:
    """A message of the `events` channel.

    Raises:
        DecodeError: it is none of ours. What happened may turn out not to be when it is looked at.
    """
    try:
        match decode(data):
            case ["reset", epoch, at, exists]:
                return ResetMessage(int(epoch), datetime.fromtimestamp(at, UTC), bool(exists))
            case [epoch, int(first), at, [queued, running, finished, failed, n_workers], groups]:
                counts, told = Counts(queued, running, finished, failed), cast("list[list[str]]", list(groups))
                return EventMessage(network_id, int(epoch), first, at, counts, n_workers, told)
            case _:
                pass
    except (KeyError, TypeError, ValueError) as error:
        raise DecodeError(f"an event of network {network_id!r} is malformed: {data!r:.200}") from error
    raise DecodeError(f"an event of network {network_id!r} is malformed: {data!r:.200}")


class Listener:
    """One listener's buffer.

    Args:
        kinds: the events it wants; none means all. `EventsMissed` and `NetworkReset` it gets in any case where it matters.
        buffer: how many events may wait; more are dropped and reported as missed.
    """

    def __init__(self, network_id: str, kinds: Collection[type[Any]], buffer: int) -> None:
        self._network_id = network_id
        self._kinds = tuple(kinds)
        self._limit = buffer
        self._events: deque[Event] = deque()
        self._readers: set[asyncio.Future[None]] = set()
        self._is_closed = False
        self._epoch: int | None = None
        self._seq = 0
        self._early: list[EventMessage | ResetMessage] = []

    def __len__(self) -> int:
        """How many events wait."""
        return len(self._events)

    def begin(self, epoch: int, seq: int) -> None:
        """Everything after this position is wanted; what came meanwhile is looked through."""
        self._epoch, self._seq = epoch, seq
        early, self._early = self._early, []
        for message in early:
            self.take(message)

    def take(self, message: EventMessage | ResetMessage) -> None:
        """Buffers the events of a message that are new."""
        if self._epoch is None:
            self._early.append(message)
            return
        if isinstance(message, ResetMessage):
            if message.epoch > self._epoch:
                self._epoch, self._seq = message.epoch, 0
                self._offer(NetworkReset(network_id=self._network_id, seq=0, at=message.at))
            return
        if message.epoch < self._epoch or (message.epoch == self._epoch and message.last <= self._seq):
            return
        if message.epoch > self._epoch:
            # After 0 or a reset that was heard, the network has come into being. Otherwise its reset went unseen.
            is_unseen = self._seq > 0 and message.first == 1
            self._epoch, self._seq = message.epoch, 0
            if is_unseen:
                self._offer(EventsMissed(network_id=self._network_id, seq=0, at=message.events[0].at))
        if message.first > self._seq + 1:
            self.miss(message.epoch, message.first - 1, message.events[0].at)
        for event in message.events:
            if event.seq > self._seq:
                self._seq = event.seq
                self._offer(event)

    def miss(self, epoch: int, seq: int, at: datetime) -> None:
        """Events up to `seq` are not coming any more."""
        if self._epoch is None or (epoch, seq) == (self._epoch, self._seq):
            return
        if (epoch, seq) < (self._epoch, self._seq) and epoch != 0:  # 0: the network was reset, and nobody began again
            return
        self._epoch, self._seq = epoch, seq
        self._offer(EventsMissed(network_id=self._network_id, seq=seq, at=at))

    def roll_back(self, epoch: int, seq: int, at: datetime) -> None:
        """The network is at an earlier position than it was: its server was restored from older data."""
        if self._epoch is not None and epoch > 0 and (epoch, seq) < (self._epoch, self._seq):
            self._epoch, self._seq = epoch, seq
            self._offer(EventsMissed(network_id=self._network_id, seq=seq, at=at))

    def _offer(self, event: Event) -> None:
        if self._kinds and not isinstance(event, (*self._kinds, EventsMissed)):
            return
        if len(self._events) >= self._limit:
            # Whoever is too slow keeps the oldest and learns how far the gap reaches.
            last = self._events[-1]
            if isinstance(last, EventsMissed):
                self._events.pop()
            self._events.append(EventsMissed(network_id=self._network_id, seq=event.seq, at=event.at))
        else:
            self._events.append(event)
        self._wake_readers()

    def _wake_readers(self) -> None:
        for reader in self._readers:
            if not reader.done():
                reader.set_result(None)

    async def next(self) -> Event | None:
        """The next event; None once the listener is closed."""
        while not self._is_closed:
            if self._events:
                return self._events.popleft()
            reader: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._readers.add(reader)
            try:
                await reader
            finally:
                self._readers.discard(reader)
        return None

    def put_back(self, event: Event) -> None:
        """Returns an event that its reader could not use: it is the next one again."""
        self._events.appendleft(event)
        self._wake_readers()

    def close(self) -> None:
        """Nothing more is wanted; whoever reads stops."""
        self._is_closed = True
        self._wake_readers()
