"""The one view of a network that all clients of an event loop share: its position, events, results and local workers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress

import anyio

from rush_async.config import RushConfig, as_path
from rush_async.embedded.server import ServerLease, acquire_in_thread
from rush_async.errors import (
    DecodeError,
    NetworkStateError,
    RushConfigError,
    RushConnectionError,
    RushError,
    RushTimeoutError,
    TasksNotDoneError,
    listed,
)
from rush_async.heartbeat.heartbeat import Heartbeat
from rush_async.heartbeat.log_writer import LogWriter
from rush_async.model import Counts, Failure, StopReason, Task
from rush_async.network.event_feed import EventFeed
from rush_async.network.local_workers import LocalWorker, LocalWorkers, Reconciler
from rush_async.network.report_cache import ReportCache
from rush_async.network.report_feed import ReportFeed
from rush_async.network.results import Results
from rush_async.network.waiting import Conditions, Lines, describe
from rush_async.process import LoopValue
from rush_async.store.decoding import decode_task
from rush_async.store.exports import ExportReads
from rush_async.store.imports import ImportStore
from rush_async.store.keys import NetworkKeys
from rush_async.store.leases import LOST_WORKER, Beat
from rush_async.store.malformed import MalformedRecords
from rush_async.store.position import NetworkPosition, Position
from rush_async.store.reports import ReportStore
from rush_async.store.reservations import ReservationStore
from rush_async.store.scripts import Script
from rush_async.store.shared_state import SharedStateStore
from rush_async.store.stop_rules import StopRulesStore
from rush_async.store.tasks import TaskStore
from rush_async.store.worker_log import WorkerLog
from rush_async.store.workers import WorkerStore
from rush_async.supervisor import run_to_completion
from rush_async.wire.link import Link

__all__ = ["SOURCES", "Network", "start_server"]

logger = logging.getLogger(__name__)

_PATIENCE = 5.0  # seconds that the last calls of a network may take when it is closed

SOURCES = tuple([script.source for script in Script.all])

_networks = LoopValue[dict[tuple[RushConfig, str], "Network"]](dict)


class Network:
    """A network as one event loop sees it.

    Attributes:
        network_id: its name.
        link: the server it lives on.
        keys: its keys in the database.
        position: its counts and the like: never behind anything this event loop did itself, and up to date with all other
            clients once `feed.watch` was awaited.
        tasks: its tasks' transitions and reads.
        workers: its workers' transitions and reads.
        stop_rules: its stop rules.
        reservations: the reservations of its proposals.
        worker_log: what its workers logged.
        malformed: names what cannot be decoded.
        shared_state: its attributes, claims and rankings.
        reports: the reports of its running tasks: the transition and reads.
        report_cache: the reports that were read.
        report_feed: the events of reports.
        imports: takes exports in.
        exports: reads what an export holds beside tasks.
        results: its finished tasks.
        conditions: waits for counts.
        lines: waits for queued tasks and for places within a budget.
        feed: its events.
        local_workers: the workers that live in this event loop.
        reconciler: compares what they hold with what the database keeps.
        heartbeat: renews the leases of this event loop's workers.
        log_writer: writes what they log.
        waits: what waits for changes of the network; ended when the server has ended.
    """

    def __init__(self, network_id: str, link: Link) -> None:
        self.network_id = network_id
        self.link = link
        self.keys = NetworkKeys.of(network_id, link.db)
        self.position = NetworkPosition(network_id)
        self.tasks = TaskStore(link.connection, self.keys, self.position)
        self.malformed = MalformedRecords(network_id)
        self.workers = WorkerStore(link.connection, self.keys, self.tasks.calls, self.malformed)
        self.stop_rules = StopRulesStore(link.connection, self.keys, self.tasks.calls)
        self.reservations = ReservationStore(self.tasks)
        self.worker_log = WorkerLog(link.connection, self.keys, self.malformed)
        self.shared_state = SharedStateStore(link.connection, self.keys, self.tasks.calls)
        self.reports = ReportStore(link.connection, self.keys, self.tasks.calls)
        self.report_cache = ReportCache(network_id, self.reports, self.position)
        self.report_feed = ReportFeed(network_id, link, self.reports, self.position)
        self.imports = ImportStore(self.tasks, self.tasks.calls)
        self.exports = ExportReads(link.connection, self.keys)
        self.results = Results(network_id, self.tasks, self.malformed)
        self.conditions = Conditions(self.position)
        self.lines = Lines(self.position)
        self.feed = EventFeed(network_id, link, self.tasks, self.lines)
        self.local_workers = LocalWorkers(network_id, self.position)
        self.reconciler = Reconciler(self.local_workers, link, self.tasks, self.workers)
        self.heartbeat = Heartbeat(link.config, self.keys, self, self.local_workers.by_id)
        self.log_writer = LogWriter(link.config, self.keys, self)
        self.waits: set[anyio.CancelScope] = set()
        link.connection.watchers.add(self)
        self._users = 0
        self._seed_read_at: tuple[int, int | None, int] | None = None  # epoch, the seed given, and changes of the rules
        self._is_open = False
        self._opening = asyncio.Lock()

    # opening and closing

    @classmethod
    async def acquire(cls, network_id: str, config: RushConfig, seed: int | None = None) -> Network:
        """Returns the view of a network in this event loop, and opens it if it is the first.

        Args:
            network_id: its name.
            config: the server.
            seed: the seed that its proposals are to have.

        Raises:
            RushConnectionError: the server cannot be reached, or does not let this user publish events.
            ServerStartError: the embedded server did not start.
            NetworkStateError: it has another seed, or holds tasks and has none.
            RushError: the network is written in a newer wire version.
        """
        leases: list[ServerLease] = []
        if config.url is None:
            leases.append(await start_server(config))
            config = config.at(leases[0].url)
        link = await Link.acquire(config, SOURCES, leases, NetworkKeys.of(network_id).meta)
        networks = _networks.get()
        network = networks.get((link.config, network_id))
        if network is None or network.link is not link:
            network = networks[link.config, network_id] = cls(network_id, link)
        network._users += 1
        try:
            async with network._opening:
                if not network._is_open:
                    await network.tasks.read_position(probe=True)
                    network._is_open = True
                await network.adopt_seed(seed)
        except BaseException:
            await run_to_completion(network.release())
            raise
        return network

    async def adopt_seed(self, seed: int | None) -> None:
        """Takes the seed that a client has for the network."""
        position = self.position
        if seed is None or seed == position.seed:
            return
        if position.seed is not None:
            raise self._seeds_differ(f"has the seed {position.seed} in this process", seed)
        position.seed = seed
        try:
            await self.known_seed()
        except BaseException:
            position.seed = None
            raise

    async def known_seed(self) -> int | None:
        """Returns the seed of the proposals; None for none. It is read once, and again after what may have changed it.

        Raises:
            NetworkStateError: a client of this event loop gave another, or the network holds tasks and has none.
        """
        position, given = self.position, self.position.seed
        read_at = (position.epoch, given, self.lines.n_changes)
        if self._seed_read_at == read_at and position.epoch:
            return position.creation_seed
        await self.tasks.read_position()
        if not position.epoch or given is None:
            self._seed_read_at = (position.epoch, given, self.lines.n_changes)
            return position.creation_seed
        if position.stored_seed is None:
            position.stored_seed = await self.reservations.set_seed()
        if position.stored_seed != given:
            stored = position.stored_seed
            raise self._seeds_differ("holds tasks and has no seed" if stored is None else f"has the seed {stored}", given)
        self._seed_read_at = read_at
        return given

    def forget_seed(self) -> None:
        """The network has another seed than was read: it is read anew."""
        self._seed_read_at = None

    def _seeds_differ(self, has: str, given: int) -> NetworkStateError:
        return NetworkStateError(
            f"network {self.network_id!r} {has}, and {given} was given: leave the seed out, or take another network"
        )

    async def release(self) -> None:
        """Releases the view; the last user closes it."""
        self._users -= 1
        if self._users > 0:
            await self.link.release()
            return
        networks = _networks.get()
        if networks.get((self.link.config, self.network_id)) is self:
            del networks[self.link.config, self.network_id]
        self._is_open = False
        self.link.connection.watchers.discard(self)
        self.feed.close()
        self.link.subscription.unsubscribe(self.keys.control)
        try:
            await self.log_writer.aclose()
            await self.heartbeat.aclose()
            # The calls of cancelled callers are compensated before the connection may close.
            with anyio.move_on_after(self.link.connection.patience(_PATIENCE), shield=True):
                await self.tasks.calls.quiet()
                if leases := self.heartbeat.leases:
                    with suppress(RushError):  # then they expire
                        await self.workers.release_leases(leases)
                await self.tasks.forget_answers()
        finally:
            await self.link.release()

    @property
    def ended(self) -> RushConnectionError | None:
        """Why its server cannot come back; None while it can."""
        return self.link.connection.ended

    def server_ended(self, error: RushConnectionError) -> None:
        """Ends all waits: nothing is heard of the network any more."""
        self.feed.close()
        self.local_workers.server_ended(error)
        for wait in tuple(self.waits):
            wait.cancel()

    # its tasks

    async def find(self, keys: Sequence[str], *, skips_malformed: bool = False) -> dict[str, Task]:
        """Finds tasks in any state by key. Unknown keys are left out.

        Raises:
            DecodeError: one of these tasks is malformed, and `skips_malformed` is not set.
        """
        found: dict[str, Task] = {}
        for key, (state, record) in (await self.tasks.find(keys)).items():
            try:
                found[key] = decode_task(state, record)
            except DecodeError as error:
                if not skips_malformed:
                    raise DecodeError(f"network {self.network_id!r}: the {state} task {key!r} is malformed: {error}") from error
                self.malformed.note(state, key, record, error)
        if missing := [key for key in keys if key not in found]:
            await self.results.read()
            found |= self.results.records.find(missing)
        return found

    # stopping

    async def best_output(self, output: str, *, maximize: bool) -> tuple[float | None, int]:
        """Returns the best value of an output among the finished tasks but imported ones, and how many tasks were read."""
        await self.results.read()
        values = self.results.records.numbers(output, await self.stop_rules.imported_places())
        return (max if maximize else min)(values, default=None), len(self.results.records)

    def follow(self) -> None:
        """Begins to follow the network, until this view is closed."""
        self.feed.follow()

    async def wait_for_stop(self, timeout: float | None, *, need_workers: bool) -> StopReason:
        """Waits until the network has stopped.

        Raises:
            RushTimeoutError: it did not within `timeout` seconds.
            TasksNotDoneError: no worker is starting or running.
        """
        once = timeout is not None and timeout <= 0
        try:
            with self.feed:
                async with asyncio.timeout(None if once else timeout):
                    await (self.tasks.read_position() if once else self.feed.watch())
                    with self.feed.end_wait(()) as wait:
                        while (reason := self.position.stop) is None:
                            left = await self.stop_rules.judge_time()
                            if self.position.stop is not None:
                                continue
                            if once:
                                raise TimeoutError
                            if need_workers:
                                await self._check_workers("the network has not stopped", [])
                            with suppress(TimeoutError):
                                async with asyncio.timeout(left):  # `wait_for` of Python 3.11 may swallow a cancellation
                                    await wait.changed()
                        return reason
        except TasksNotDoneError:
            raise
        except TimeoutError:
            counts = describe(self.position.counts)
            raise RushTimeoutError(f"the network has not stopped within {timeout:g} s: there are {counts}") from None

    # waiting

    async def wait_for_counts(self, predicate: Callable[[Counts], bool], timeout: float | None) -> Counts:
        """Waits for the first counts that satisfy `predicate`. With a timeout of 0 it checks those on the server now.

        Raises:
            RushTimeoutError: none did within `timeout` seconds.
        """
        once = timeout is not None and timeout <= 0
        try:
            with self.feed:
                async with asyncio.timeout(None if once else timeout):
                    await (self.tasks.read_position() if once else self.feed.watch())
                    if predicate(self.position.counts):
                        return self.position.counts
                    if once:
                        raise TimeoutError
                    with self.conditions.waiter(predicate) as future:
                        counts = await future
                        assert counts is not None
                        return counts
        except TimeoutError:
            if timeout is None:
                raise  # the predicate's own
            counts = self.position.counts
            if predicate(counts):
                return counts
            raise RushTimeoutError(f"the condition did not hold within {timeout:g} s: there are {describe(counts)}") from None

    async def wait_for_ends(self, keys: Sequence[str], timeout: float | None, *, need_workers: bool) -> list[Task]:
        """Waits until all these tasks are finished or failed; the tasks in the order of `keys`.

        Raises:
            KeyError: a key that the network does not know, or does not know any more.
            TasksNotDoneError: the time is up, or no worker is there to run what is queued.
        """
        done: dict[str, Task] = {}
        once = timeout is not None and timeout <= 0
        try:
            with self.feed:
                async with asyncio.timeout(None if once else timeout):
                    if not once:
                        await self.feed.watch()
                    await self._wait_for_ends(keys, done, need_workers=need_workers, once=once)
        except TasksNotDoneError:
            raise  # it is a `TimeoutError`, and its message is complete
        except TimeoutError:
            pending = [key for key in keys if key not in done]
            raise TasksNotDoneError(
                f"{len(pending):,} of {len(keys):,} tasks did not end within {timeout:g} s: {listed(pending)}", pending
            ) from None
        return [done[key] for key in keys]

    async def _wait_for_ends(self, keys: Sequence[str], done: dict[str, Task], *, need_workers: bool, once: bool) -> None:
        with self.feed.end_wait(keys) as wait:
            while True:
                n_queued = await self._find_ends([key for key in keys if key not in done], done)
                wait.pending.difference_update(done)
                if len(done) == len(set(keys)):
                    return
                if once:
                    raise TimeoutError
                if n_queued:
                    pending = [key for key in keys if key not in done]
                    if self.position.stop is not None and n_queued == len(pending):
                        raise TasksNotDoneError(
                            f"the network has stopped ({self.position.stop}), and {n_queued:,} of these tasks are queued: "
                            f"{listed(pending)}. `resume` the network, or cancel them",
                            pending,
                        )
                    if need_workers:
                        await self._check_workers(f"{len(pending):,} of these tasks have not ended: {listed(pending)}", pending)
                if wait.pending:
                    await wait.changed()
                else:
                    # By the events all have ended, but one was queued again before it was read.
                    wait.pending.update(key for key in keys if key not in done)

    async def _find_ends(self, keys: Sequence[str], done: dict[str, Task]) -> int:
        """Adds the tasks that have ended to `done`. Returns how many of the others are queued."""
        n_queued = 0
        found = await self.find(keys)
        for key in keys:
            if (task := found.get(key)) is None:
                raise KeyError(f"network {self.network_id!r} has no task {key!r}: it never existed, or was deleted by a reset")
            if task.state in ("finished", "failed"):
                done[key] = task
            elif task.state == "queued":
                n_queued += 1
        return n_queued

    async def _check_workers(self, what: str, pending: list[str]) -> None:
        entries = await self.workers.read()
        if any(entry.state in ("starting", "running") and not entry.is_shared for entry in entries):
            return
        reasons = "".join(
            f"\n  {entry.worker_id} {entry.state}"
            + (f": {entry.failure.type or entry.failure.kind}: {entry.failure.message}" if entry.failure else "")
            for entry in entries[-5:]
        )
        raise TasksNotDoneError(
            f"no worker is starting or running, and {what}. Start workers, or wait with need_workers=False."
            + (f" Workers that ended:{reasons}" if reasons else " No worker was ever started."),
            pending,
        )

    # the workers that live here

    async def register(self, worker: LocalWorker) -> None:
        """Requests to this worker reach it from now on."""
        channel, subscription = self.keys.control, self.link.subscription
        if not self.local_workers:
            subscription.subscribe(channel, self)
        self.local_workers.by_id[worker.worker_id] = worker
        self.local_workers.leases |= {worker.lease_id} - {""}
        await subscription.confirmed(channel)

    def unregister(self, worker: LocalWorker) -> None:
        """The worker has left."""
        by_id = self.local_workers.by_id
        if by_id.get(worker.worker_id) is worker:
            del by_id[worker.worker_id]
            if not by_id:
                self.link.subscription.unsubscribe(self.keys.control)

    def report_as_lost(self, worker_id: str, failure: Failure | None) -> None:
        """Shuts out a worker that could not deregister, as soon as the server is there: other workers may keep its lease alive.
        Once none is left here, or the event loop ends, the lease expires."""
        if self.link.supervisor.is_open:
            self.link.supervisor.start(
                self.link.retry_until_reachable, lambda: self.workers.lose([worker_id], "lost", LOST_WORKER, failure)
            )

    def heard(self, channel: str, message: bytes) -> None:
        """Takes a message to the workers here."""
        self.local_workers.take_message(message)

    def confirmed(self, channel: str) -> None:
        """The server confirmed the subscription to requests: what it published before is gone."""
        self.link.supervisor.start(self._resynchronise)

    async def _resynchronise(self) -> None:
        if self.local_workers.registered:  # others learn by their registration whether the network has stopped
            await self.link.retry_until_reachable(self.tasks.read_position)
        await self.reconciler.take_requests()

    async def _take_requests(self, gone: Collection[str]) -> None:
        """`gone` are leases that have ended; workers may have registered under the same since."""
        await self.reconciler.take_requests()
        self.heartbeat.forget(set(gone) - self.local_workers.leases_in_use)

    # the heartbeat

    @property
    def epoch(self) -> int:
        """The epoch of the network."""
        return self.position.epoch

    @property
    def is_over(self) -> bool:
        """Whether the event loop has ended without closing this view."""
        return self._is_open and self.link.is_over

    def note(self, position: Position) -> None:
        """Notes the position in the heartbeat thread."""
        self.position.note(position)

    def known(self) -> tuple[int, int]:
        """The highest epoch and the number of the last event that are known here."""
        return self.position.highest_epoch, self.position.seq

    def take_beat(self, beat: Beat, has_requests: bool, asked: tuple[int, int]) -> None:
        """Takes the answer to a beat, which left when `asked` was known."""
        self.position.hear_epoch(beat.position.epoch, asked[0])
        self.position.take(beat.position, asked[1])
        if self.position.epoch == 0:
            self.feed.note_absence()
        if (has_requests or beat.gone) and not self.link.is_over:
            self.link.supervisor.start(self._take_requests, beat.gone)
        self.feed.expect(beat.position)


async def start_server(config: RushConfig) -> ServerLease:
    """Returns a lease of the embedded server."""
    if config.wait_replicas:
        raise RushConfigError("the embedded server has no replicas: leave wait_replicas out, or name a server with the url")
    data_dir = None if config.data_dir is None else as_path(config.data_dir)
    return await acquire_in_thread(data_dir, config.appendfsync)
