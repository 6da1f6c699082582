"""The events of a network, as one event loop hears them: decoded once, buffered for each listener, never missed silently."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Generator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar

from rush_async.errors import DecodeError
from rush_async.events import Event, EventsMissed, NetworkReset, TasksFailed, TasksFinished, TasksQueued, TasksStarted
from rush_async.network.waiting import Following, Lines
from rush_async.store.messages import EventMessage, ResetMessage, decode_events, tells_progress
from rush_async.store.position import Position
from rush_async.store.task_reads import TaskReads
from rush_async.supervisor import Supervisor
from rush_async.wire.subscription import Subscription

__all__ = ["EndWait", "EventFeed", "Listener"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_LATEST = 1.0  # seconds after a beat by which the events before it have arrived
_LINGER = 5.0  # seconds for which events still come when they are not needed any more


class ServerLink(Protocol):
    """What the feed needs of the link to the server."""

    @property
    def supervisor(self) -> Supervisor: ...

    @property
    def subscription(self) -> Subscription: ...

    async def retry_until_reachable(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Asks until the server answers."""
        ...


class FailureListener(Protocol):
    """Learns of tasks that failed while a worker ran them."""

    def tasks_failed(self, keys: Sequence[str]) -> None:
        """Is called with the keys of such tasks."""


class EventFeed:
    """The events of one network in one event loop: it updates the position, and wakes listeners and waits.

    Each event costs every process that receives it, so the feed follows the network only while it is needed: in its blocks
    (`with feed: await feed.watch()`) and for a few seconds after them; and for good once the counters are needed (`follow`).

    Args:
        network_id: the network.
        link: the connections to its server.
        tasks: reads the position after each confirmation of the subscription, because earlier events are gone.
        lines: notified of queued tasks.

    Attributes:
        following: None while the channel is not subscribed; set once the position is up to date, or cannot be read.
        n_users: how many blocks need the feed.
        is_behind: whether `follow` may bring the position up to date.
        failures: learns of failed tasks; None without a manager.
    """

    def __init__(self, network_id: str, link: ServerLink, tasks: TaskReads, lines: Lines) -> None:
        self.following: Following | None = None
        self.failures: FailureListener | None = None
        self._network_id = network_id
        self._link = link
        self._channel = tasks.keys.events
        self._tasks = tasks
        self._position = tasks.position
        self._lines = lines
        self._heard_seq = 0
        self._listeners: set[Listener] = set()
        self._end_waits: set[EndWait] = set()
        self.n_users = 0
        self._follows_for_good = False
        self.is_behind = True
        self._unread: bytes | None = None  # the last message, where only its position matters and nothing has asked for it
        self._unreadable = ""  # the last error that was logged for a position that cannot be read
        self._unused_since = 0.0
        self._linger: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._position.generation_watchers.add(self)

    # following the network

    def __enter__(self) -> None:
        self.catch_up()
        self.n_users += 1

    def __exit__(self, *_: object) -> None:
        self.n_users -= 1
        if not self.n_users:
            self._stop_soon()

    @property
    def is_watching(self) -> bool:
        """Whether the position follows what all clients do."""
        return self.following is not None and self.following.is_set()

    async def watch(self) -> None:
        """Waits until the position follows what all clients do. From then on no event is missed silently, as long as the caller
        is in a block of this feed.

        Raises:
            RushConnectionError: the server does not let this user listen, or cannot be reached.
            DecodeError: the position of the network is malformed.
        """
        following = self._start()
        if not following.is_set():
            await self._link.subscription.confirmed(self._channel)
            await following.wait()
            if following.error is not None:
                raise following.error

    def follow(self) -> None:
        """Brings the position up to date, and keeps it so until the feed is closed.

        The first call begins to follow the network, without waiting for it. Outside of the event loop, as in a debugger, it
        does nothing.
        """
        self.catch_up()
        if not self._follows_for_good:
            with suppress(RuntimeError):
                if asyncio.get_running_loop() is self._loop:
                    self._start()
                    self._follows_for_good = True
        self.is_behind = not self._follows_for_good

    def close(self) -> None:
        """Ends the feed."""
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        self._end()

    def _start(self) -> Following:
        following = self.following
        if following is None:
            following = self.following = Following()
            self._link.subscription.subscribe(self._channel, self)
        return following

    def _stop_soon(self) -> None:
        self._unused_since = self._loop.time()
        if self._linger is None and self.following is not None:
            self._linger = self._loop.call_later(_LINGER, self._stop_if_unused)

    def _stop_if_unused(self) -> None:
        self._linger = None
        left = self._unused_since + _LINGER - self._loop.time()
        if left > 0:
            self._linger = self._loop.call_later(left, self._stop_if_unused)
        elif not self.n_users and not self._follows_for_good:
            self._end()

    def _end(self) -> None:
        if self.following is not None:
            self.following = None
            self._link.subscription.unsubscribe(self._channel)

    def confirmed(self, channel: str) -> None:
        """The server confirmed the subscription: what it published before is gone."""
        self._link.supervisor.start(self._resynchronise)

    async def _resynchronise(self) -> None:
        position = await self._link.retry_until_reachable(self._read_position)
        now = datetime.now(UTC)
        self._heard_seq = position.seq
        for listener in tuple(self._listeners):
            listener.miss(position.epoch, position.seq, now)
        for wait in tuple(self._end_waits):
            wait.wake()
        self._lines.tasks_queued()
        self._lines.rules_changed()
        if self.following is not None:
            self.following.set()

    async def _read_position(self) -> Position:
        try:
            return await self._tasks.read_position()
        except DecodeError as error:
            # Who waits for the position learns why there is none. Who listens waits until it can be read.
            if (failed := self.following) is not None and not failed.is_set():
                self.following = Following()
                failed.error = error
                failed.set()
            if str(error) != self._unreadable:
                self._unreadable = str(error)
                logger.error("network %r cannot be followed: %s", self._network_id, error)
            raise

    def expect(self, position: Position) -> None:
        """Events up to this position are on their way. Where they do not arrive, the connection is opened anew: it is silent
        without being broken."""
        if self.is_watching and self._are_due(position):
            self._loop.call_later(_LATEST, self._check, position)

    def _check(self, position: Position) -> None:
        if self.following is not None and self._are_due(position):
            logger.warning("events of network %r do not arrive: subscribing anew", self._network_id)
            self._link.subscription.renew()

    def _are_due(self, position: Position) -> bool:
        self.catch_up()
        return position.epoch == self._position.epoch and position.seq > self._heard_seq

    # what happens

    def generation_changed(self) -> None:
        """Tells listeners when the network is at an earlier position than they know."""
        position = self._position
        self._heard_seq = position.seq
        self._unread = None  # it tells what the server has lost
        now = datetime.now(UTC)
        for listener in tuple(self._listeners):
            listener.roll_back(position.epoch, position.seq, now)

    def note_absence(self) -> None:
        """Nothing of the network exists. Those learn it who have not heard of a reset: the server was emptied."""
        unaware = [listener for listener in self._listeners if (listener.known or (0, 0))[1]]
        if unaware or self._end_waits:
            logger.warning("network %r does not exist any more: it was reset, or its server was emptied", self._network_id)
        for listener in unaware:
            listener.miss(0, 0, datetime.now(UTC))
        for wait in tuple(self._end_waits):
            wait.wake()

    def heard(self, channel: str, message: bytes) -> None:
        """Takes a message of the channel."""
        if not message:
            return  # it only tries whether a client may publish
        if not self._listeners and not self._end_waits and tells_progress(message):
            if self.n_users and self._unread is None:
                self._loop.call_soon(self.catch_up)  # after the replies of this tick, which waits for tasks depend on
            self._unread, self.is_behind = message, True  # a manager hears what its own workers do, thousands of times a second
        else:
            self._unread = None
            self._decode(message)

    def catch_up(self) -> None:
        """Takes the position of the last message, where that has not been done yet."""
        if (message := self._unread) is not None:
            self._unread = None
            self._decode(message)

    def _decode(self, message: bytes) -> None:
        try:
            self._take(decode_events(self._network_id, message))
        except DecodeError as error:
            logger.error("%s", error)

    def _take(self, message: EventMessage | ResetMessage) -> None:
        if isinstance(message, ResetMessage):
            self._position.take_reset(message.epoch, keeps_workers=message.keeps_workers)
            self._lines.rules_changed()
        else:
            self._lines.places_freed(message.n_freed)
            self._position.take(message.position)
            if message.epoch == self._position.epoch:
                self._heard_seq = message.last
            if message.queues_tasks:
                self._lines.tasks_queued()
            if message.changes_rules:
                self._lines.rules_changed()
            if self.failures is not None and (keys := message.failed_keys):
                self.failures.tasks_failed(keys)
        for listener in tuple(self._listeners):
            listener.take(message)
        if self._end_waits:
            self._wake_end_waits(message)

    def _wake_end_waits(self, message: EventMessage | ResetMessage) -> None:
        waits = tuple(self._end_waits)
        if isinstance(message, ResetMessage):
            for wait in waits:
                wait.wake()
            return
        # Once the network has stopped, the wait for a task depends on whether any other one still runs.
        is_stopped = self._position.stop is not None
        if message.changes_rules or (is_stopped and message.n_freed):
            for wait in waits:
                wait.wake()
        for event in message.events:
            is_end = isinstance(event, TasksFinished | TasksFailed)
            for wait in waits:
                if is_end:
                    if wait.ended(event.keys) and is_stopped:
                        wait.wake()
                elif not isinstance(event, TasksQueued | TasksStarted):
                    wait.wake()  # a worker came or went, or the network has stopped

    @contextmanager
    def listening(self, kinds: Collection[type[Any]], buffer: int) -> Generator[Listener]:
        """A listener that gathers what is published from now on. `begin` tells it from which position on it wants events."""
        listener = Listener(self._network_id, kinds, buffer)
        self._listeners.add(listener)
        try:
            yield listener
        finally:
            self._listeners.discard(listener)

    async def begin(self, listener: Listener) -> Position:
        """Reads the position from which on the listener wants events: none is missed or comes twice."""
        position = await self._tasks.read_position()
        listener.begin(position.epoch, position.seq)
        return position

    @contextmanager
    def end_wait(self, keys: Collection[str]) -> Generator[EndWait]:
        """A wait for the ends of tasks."""
        wait = EndWait(keys)
        self._end_waits.add(wait)
        try:
            yield wait
        finally:
            self._end_waits.discard(wait)


class NumberedEvents(Protocol):
    """A message of events whose numbers rise by one."""

    @property
    def epoch(self) -> int: ...

    @property
    def first(self) -> int: ...

    @property
    def last(self) -> int: ...

    @property
    def at(self) -> datetime: ...

    @property
    def events(self) -> Sequence[Event]: ...


class Listener:
    """One listener's buffer.

    Args:
        kinds: the events it wants; none means all. `EventsMissed` and `NetworkReset` it gets in any case where it matters.
        buffer: how many events may wait; more are dropped and reported as missed.
        into: the listener whose buffer takes the events; without one its own. Events of reports have numbers of their own, so
            that a stream with other events too has two listeners.
    """

    def __init__(self, network_id: str, kinds: Collection[type[Any]], buffer: int, *, into: Listener | None = None) -> None:
        self._network_id = network_id
        self._kinds = tuple(kinds)
        self._limit = buffer
        self._events: deque[Event] = deque()
        self._readers: set[asyncio.Future[None]] = set()
        self._is_closed = False
        self._epoch: int | None = None
        self._seq = 0
        self._early: list[NumberedEvents | ResetMessage] = []  # came before `begin`
        self._into = into

    def __len__(self) -> int:
        """How many events wait."""
        return len(self._events)

    @property
    def known(self) -> tuple[int, int] | None:
        """The epoch and the number of the last event that it knows of; None before `begin`."""
        return None if self._epoch is None else (self._epoch, self._seq)

    def begin(self, epoch: int, seq: int) -> None:
        """Wants everything after this position; goes through what came meanwhile."""
        self._epoch, self._seq = epoch, seq
        early, self._early = self._early, []
        for message in early:
            self.take(message)

    def take(self, message: NumberedEvents | ResetMessage) -> None:
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
                self._offer(EventsMissed(network_id=self._network_id, seq=0, at=message.at))
        if message.first > self._seq + 1:
            self.miss(message.epoch, message.first - 1, message.at)
        events, known = message.events, self._seq
        self._seq = message.last
        for event in events:
            if event.seq > known:
                self._offer(event)

    def miss(self, epoch: int, seq: int, at: datetime) -> None:
        """Events up to `seq` are not coming any more."""
        if self._epoch is None or (epoch, seq) == (self._epoch, self._seq):
            return
        if (epoch, seq) < (self._epoch, self._seq) and epoch != 0:  # 0: the network was reset, and does not exist
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
        if self._into is not None:
            self._into._offer(event)
            return
        if len(self._events) >= self._limit:
            # A slow reader keeps the oldest events and learns how far the gap reaches.
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
        """Puts an event back that its reader could not use: it is the next one again."""
        self._events.appendleft(event)
        self._wake_readers()

    def close(self) -> None:
        """Ends the listener: readers get None."""
        self._is_closed = True
        self._wake_readers()


class EndWait:
    """A wait for the ends of tasks.

    Attributes:
        pending: the keys of the tasks whose end was not seen yet.
    """

    def __init__(self, keys: Collection[str]) -> None:
        self.pending = set(keys)
        self._wake = asyncio.Event()

    def ended(self, keys: Sequence[str]) -> bool:
        """Is called with tasks that have ended. Those of this wait are pending no longer. Returns whether there were any."""
        if self.pending.isdisjoint(keys):
            return False
        self.pending.difference_update(keys)
        if not self.pending:
            self._wake.set()
        return True

    def wake(self) -> None:
        """Ends `changed`, because the server has to be asked again."""
        self._wake.set()

    async def changed(self) -> None:
        """Waits until all tasks have ended, or the server has to be asked again."""
        await self._wake.wait()
        self._wake.clear()
