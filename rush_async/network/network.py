"""The one view of a network that all clients of an event loop share: where it stands, its archive, and what happens in it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any
from weakref import WeakKeyDictionary

import anyio

from rush_async.config import RushConfig
from rush_async.errors import DecodeError, RushError
from rush_async.events import TasksFailed, TasksFinished, TasksQueued, TasksStarted
from rush_async.heartbeat.heartbeat import Heartbeat
from rush_async.heartbeat.log_writer import LogWriter
from rush_async.model import Counts
from rush_async.network.listener import EventMessage, Listener, ResetMessage, decode_message
from rush_async.network.local_workers import LocalWorkers
from rush_async.network.results import Results
from rush_async.network.waiting import Conditions, Line
from rush_async.store.keys import NetworkKeys
from rush_async.store.leases import Beat
from rush_async.store.position import NetworkPosition, Position
from rush_async.store.scripts import Script
from rush_async.store.tasks import TaskStore
from rush_async.store.worker_log import WorkerLog
from rush_async.store.workers import WorkerStore
from rush_async.supervisor import run_to_completion
from rush_async.wire.link import Link

__all__ = ["EndWait", "Network"]

logger = logging.getLogger(__name__)

_LATEST = 1.0  # seconds after a beat by which the events before it have arrived
_LINGER = 5.0  # seconds for which events are listened to when nobody waits for them any more
_PATIENCE = 5.0  # seconds that the last calls of a network may take when it is closed

SOURCES = tuple([script.source for script in Script.all])

_networks: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[RushConfig, str], Network]] = WeakKeyDictionary()


class Network:
    """A network as one event loop sees it.

    Attributes:
        network_id: its name.
        link: the server it lives on.
        tasks: its tasks' transitions and reads.
        workers: its workers' transitions and reads.
        worker_log: what its workers logged.
        counts: how many tasks are in each state: never behind anything this event loop did itself, and up to date with
            everybody else once `watch` was awaited.
        n_workers: how many workers are running, likewise.
        watched: a block in which somebody depends on `watch`.
        local_workers: the workers that live in this event loop.
        heartbeat: renews the leases of this event loop's workers.
        log_writer: writes what they log.
        reader: its finished tasks.
    """

    def __init__(self, network_id: str, link: Link) -> None:
        self.network_id = network_id
        self.link = link
        self.keys = NetworkKeys.of(network_id, link.db)
        self.position = NetworkPosition(network_id)
        self.position.watchers.add(self)
        self._known: tuple[int, int] = (0, 0)
        self.tasks = TaskStore(link.connection, self.keys, self.position)
        self.workers = WorkerStore(link.connection, self.keys, self.tasks.calls)
        self.results = Results(network_id, self.tasks)
        self.worker_log = WorkerLog(link.connection, self.keys)
        self.counts = Counts()
        self.n_workers = 0
        self.conditions = Conditions()
        self.queue_line = Line(lambda counts: counts.queued)
        self._budget_lines: dict[tuple[int, int | None], Line] = {}
        self._seq = 0
        self._users = 0
        self._is_open = False
        self._opening = asyncio.Lock()
        self._listeners: set[Listener] = set()
        self._end_waits: set[EndWait] = set()
        self.local_workers = LocalWorkers(link, self.keys, self.tasks, self.workers, self._take_reset)
        self.heartbeat = Heartbeat(link.config, self.keys, self, self.local_workers.by_id)
        self.log_writer = LogWriter(link.config, self.keys, self)
        self._heard_seq = 0
        self.watched = _Users(self._leave_soon)
        self._unwatched_at = 0.0
        self._linger: asyncio.TimerHandle | None = None
        self._readers: set[Callable[[], None]] = set()
        self._watching: asyncio.Event | None = None
        self._loop = asyncio.get_running_loop()

    # opening and closing

    @classmethod
    async def acquire(cls, network_id: str, config: RushConfig) -> Network:
        """The view of a network in this event loop, opened if it was not.

        Raises:
            RushConnectionError: the server cannot be reached, or does not let this user publish events.
            RushError: the network is written in a newer wire version.
        """
        link = await Link.acquire(config, SOURCES)
        networks = _networks.setdefault(asyncio.get_running_loop(), {})
        network = networks.get((link.config, network_id))
        if network is None or network.link is not link:
            network = networks[link.config, network_id] = cls(network_id, link)
        network._users += 1
        try:
            async with network._opening:
                if not network._is_open:
                    await network.tasks.look(probe=True)
                    network._is_open = True
        except BaseException:
            await run_to_completion(network.release())
            raise
        return network

    async def release(self) -> None:
        """Lets go; the last user closes it."""
        self._users -= 1
        if self._users == 0:
            networks = _networks.get(asyncio.get_running_loop(), {})
            if networks.get((self.link.config, self.network_id)) is self:
                del networks[self.link.config, self.network_id]
            self._is_open = False
            if self._linger is not None:
                self._linger.cancel()
            self.link.subscription.unsubscribe(self.keys.events)
            self.link.subscription.unsubscribe(self.keys.control)
            try:
                await self.log_writer.aclose()
                await self.heartbeat.aclose()
                # What cancelled callers were granted is given back before the connection may close.
                with anyio.move_on_after(_PATIENCE, shield=True):
                    await self.tasks.calls.quiet()
                    if leases := self.heartbeat.leases:
                        with suppress(RushError):  # then they expire
                            await self.workers.release_leases(leases)
                    await self.tasks.forget_answers()
            finally:
                await self.link.release()
        else:
            await self.link.release()

    # where it stands

    def position_changed(self) -> None:
        """The network moved on, was reset, or lost what happened last."""
        position, known = self.position, self._known
        self._known = position.generation
        if position.epoch != known[0]:
            self._on_epoch(position.epoch)
        elif position.n_rollbacks != known[1]:
            self.results.roll_back()
            for listener in list(self._listeners):
                listener.roll_back(position.epoch, position.seq, datetime.now(UTC))
        self.n_workers = position.n_workers
        self._set_counts(position.counts)

    def heard(self, channel: str, message: bytes) -> None:
        self._on_message(message)

    def confirmed(self, channel: str) -> None:
        self._on_confirmed()

    def _on_epoch(self, epoch: int) -> None:
        self._heard_seq = 0
        self.results.forget()
        for listener in list(self._listeners):
            listener.roll_back(epoch, 0, datetime.now(UTC))
        if epoch == 0:
            self.n_workers = 0
        self._set_counts(Counts())

    def _set_counts(self, counts: Counts) -> None:
        if counts != self.counts:
            self.counts = counts
            self.conditions.update(counts)
            self.queue_line.update(counts)
            for line in list(self._budget_lines.values()):
                line.update(counts)

    @property
    def epoch(self) -> int:
        """Rises with every reset; 0 while nothing of the network exists."""
        return self.position.epoch

    @property
    def generation(self) -> tuple[int, int]:
        """Changes whenever what was finished may not be any more: the epoch, and how often the server lost what was last."""
        return self.epoch, self.results.n_rollbacks

    @contextmanager
    def budget_line(self, budget: int, max_failed: int | None) -> Generator[Line]:
        """The line of those who wait for a place within a budget, or for its end."""

        def available(counts: Counts) -> int:
            if counts.finished >= budget or (max_failed is not None and counts.failed >= max_failed):
                return 1_000_000_000  # it is over: everybody may go
            used = counts.queued + counts.running + counts.finished
            return counts.queued + max(0, budget - used)

        line = self._budget_lines.get((budget, max_failed))
        if line is None:
            line = self._budget_lines[budget, max_failed] = Line(available)
            line.update(self.counts)
        # Who is between two waits does not stand in the line, and comes back to it.
        line.n_users += 1
        try:
            yield line
        finally:
            line.n_users -= 1
            if not line.n_users:
                del self._budget_lines[budget, max_failed]

    # what happens

    async def watch(self) -> None:
        """From here on `counts` follow what everybody does, and nothing that happens is missed silently, as long as the caller
        is in a block of `watched`, and a while longer.

        Raises:
            RushConnectionError: the server does not let this user listen, or cannot be reached.
        """
        self._watch()
        watching = self._watching
        assert watching is not None
        if not watching.is_set():
            await self.link.subscription.confirmed(self.keys.events)
            await watching.wait()

    def watch_soon(self, on_end: Callable[[], None] | None = None) -> None:
        """Begins to watch without waiting for it, and tells once that it has ended; outside of the event loop, as in a
        debugger, it does nothing."""
        with suppress(RuntimeError):
            if asyncio.get_running_loop() is self._loop:
                if on_end is not None:
                    self._readers.add(on_end)
                self._watch()
                self._leave_soon()

    @property
    def is_watching(self) -> bool:
        """Whether `counts` follow what everybody does."""
        return self._watching is not None and self._watching.is_set()

    def _watch(self) -> None:
        if self._watching is None:
            self._watching = asyncio.Event()
            self.link.subscription.subscribe(self.keys.events, self)

    def _leave_soon(self) -> None:
        """Nobody may be watching any more: events cost everybody who gets them, and fill the server where nobody reads."""
        self._unwatched_at = self._loop.time()
        if self._linger is None:
            self._linger = self._loop.call_later(_LINGER, self._leave)

    def _leave(self) -> None:
        self._linger = None
        left = self._unwatched_at + _LINGER - self._loop.time()
        if not self._is_open:
            return
        if left > 0:
            self._linger = self._loop.call_later(left, self._leave)
            return
        if self._watching is not None and not self.watched.n:
            self._watching = None
            self.link.subscription.unsubscribe(self.keys.events)
            readers, self._readers = self._readers, set()
            for tell in readers:
                tell()

    def forget_reader(self, on_end: Callable[[], None]) -> None:
        """Who wanted to be told that the watch has ended does not any more."""
        self._readers.discard(on_end)

    def _on_confirmed(self) -> None:
        self.link.supervisor.start(self._resynchronise)

    async def _resynchronise(self) -> None:
        """After a confirmation: what was published before it is gone, so look where the network stands now."""
        position = await self.link.retry_until_reachable(self.tasks.look)
        now = datetime.now(UTC)
        self._heard_seq = position.seq
        for listener in list(self._listeners):
            listener.miss(position.epoch, position.seq, now)
        for wait in list(self._end_waits):
            wait.look_again()
        if self._watching is not None:
            self._watching.set()

    def _on_message(self, data: bytes) -> None:
        if not data:
            return  # somebody probed whether it may publish
        try:
            message = decode_message(self.network_id, data)
        except DecodeError as error:
            logger.error("%s", error)
            return
        if isinstance(message, ResetMessage):
            self._take_reset(message)
        else:
            self._heard_seq = message.last
            self.position.take(Position(message.epoch, message.last, message.counts, message.n_workers))
        try:
            for listener in list(self._listeners):
                listener.take(message)
            if self._end_waits:
                self._tell_end_waits(message)
        except DecodeError as error:
            logger.error("%s", error)

    def _take_reset(self, message: ResetMessage) -> None:
        if message.epoch > self.position.highest_epoch:
            self.position.learn_epoch(message.epoch)
            if not message.workers_go_on:
                self.position.learn_epoch(0)

    def _tell_end_waits(self, message: EventMessage | ResetMessage) -> None:
        waits = list(self._end_waits)
        if isinstance(message, ResetMessage):
            for wait in waits:
                wait.look_again()
            return
        for event in message.events:
            is_end = isinstance(event, TasksFinished | TasksFailed)
            for wait in waits:
                if is_end:
                    wait.ended(event.keys)
                elif not isinstance(event, TasksQueued | TasksStarted):
                    wait.look_again()  # a worker came or went

    @contextmanager
    def listening(self, kinds: Collection[type[Any]], buffer: int) -> Generator[Listener]:
        """A listener that gathers what is published from now on; `begin` tells it where its past ends."""
        listener = Listener(self.network_id, kinds, buffer)
        self._listeners.add(listener)
        try:
            yield listener
        finally:
            self._listeners.discard(listener)

    @contextmanager
    def end_wait(self, keys: Collection[str]) -> Generator[EndWait]:
        """A wait for the ends of tasks."""
        wait = EndWait(keys)
        self._end_waits.add(wait)
        try:
            yield wait
        finally:
            self._end_waits.discard(wait)

    # the heartbeat

    @property
    def is_over(self) -> bool:
        """Whether the event loop has ended without closing this view."""
        return self._is_open and self.link.is_over

    def take_beat(self, beat: Beat, has_requests: bool) -> None:
        """Takes the answer to a beat: where the network is, and whether requests were made since the beat before."""
        position = beat.position
        if (has_requests or beat.gone) and not self.link.is_over:
            self.link.supervisor.start(self._take_requests, beat.gone)
        self.position.take(position)
        if self.is_watching and position.epoch == self.epoch and position.seq > self._heard_seq:
            self._loop.call_later(_LATEST, self._check_events, position)

    async def _take_requests(self, gone: Collection[str]) -> None:
        """`gone` are leases that had ended; since then, workers may have come in under the same."""
        await self.local_workers.take_requests()
        self.heartbeat.forget(set(gone) - self.local_workers.leases_in_use)

    def _check_events(self, position: Position) -> None:
        """Events up to a position are due by now: a connection that is silent without being broken is opened anew."""
        if self._is_open and position.epoch == self.epoch and self._heard_seq < position.seq:
            logger.warning("events of network %r do not arrive: subscribing anew", self.network_id)
            self.link.subscription.renew()


class _Users:
    """A block that counts who is in it."""

    def __init__(self, on_empty: Callable[[], None]) -> None:
        self.n = 0
        self._on_empty = on_empty

    def __enter__(self) -> None:
        self.n += 1

    def __exit__(self, *_: object) -> None:
        self.n -= 1
        if not self.n:
            self._on_empty()


class EndWait:
    """Someone waits for the ends of tasks.

    Attributes:
        pending: keys whose end was not seen yet.
    """

    def __init__(self, keys: Collection[str]) -> None:
        self.pending = set(keys)
        self._wake = asyncio.Event()

    def ended(self, keys: Sequence[str]) -> None:
        """These tasks ended, whoever waits for them."""
        if not self.pending.isdisjoint(keys):
            self.pending.difference_update(keys)
            if not self.pending:
                self._wake.set()

    def look_again(self) -> None:
        """Something happened that may concern the wait: look at the server."""
        self._wake.set()

    async def changed(self) -> None:
        """Waits until all have ended, or something wants a look."""
        await self._wake.wait()
        self._wake.clear()
