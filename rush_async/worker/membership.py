"""A worker's membership in its network: its lease, the tasks that it holds, and the requests of the network to it."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from typing import Any

from rush_async.errors import NetworkStateError, NetworkStoppedError, WorkerLostError, listed
from rush_async.heartbeat.log_writer import LogWriter
from rush_async.model import Failure, TaskState, WorkerExit, WorkerState
from rush_async.network.local_workers import LocalWorkers
from rush_async.store.records import encode_failure
from rush_async.store.reports import ReportStore
from rush_async.store.tasks import Ended, TaskStore
from rush_async.store.workers import KILLED, WorkerStore
from rush_async.worker.guard import Guard, LoopTurns
from rush_async.worker.limits import Limiter, Limits

__all__ = ["Membership"]

logger = logging.getLogger(__name__)

_NOT_HELD = object()
_ENDED = 100  # tasks that a worker knows to have reported on and ended
_LONG = 1.0  # seconds for which a worker may block an event loop that it shares


class _Reported:
    """What a worker has reported on a task that it holds.

    Attributes:
        n: how many reports.
        error: why one was refused, for the next report.
        has_warned: whether the log tells of a refusal.
    """

    __slots__ = ("error", "has_warned", "n")

    def __init__(self) -> None:
        self.n = 0
        self.error: Exception | None = None
        self.has_warned = False


class Membership:
    """The state of a worker in its network, for the network and for the worker.

    The heartbeat thread reads `worker_id`, `lease_id` and `is_registered` and calls `note_stop`. Everything else runs in the
    worker's event loop.

    Attributes:
        worker_id: the worker's name.
        is_shared: whether other processes act under its name, too. It stays in the network when this one leaves.
        lease_id: the lease that keeps it alive; empty for a shared worker.
        number: its number in the order of registering; None until it has registered.
        is_registered: whether the network counts the worker as running, or did until it was shut out.
        shut_out_because: why the network shut the worker out (`lost`, `killed`, a reset); None while it has not.
        end: the state and failure to report when the worker deregisters; None until they are known.
        n_proposals: how many proposals it has made.
        has_logged: whether log records of the worker may not have been sent yet.
        waits: the worker's waits for a task or a place; a stop request ends them with False.
    """

    def __init__(self, network_id: str, worker_id: str, *, is_shared: bool = False) -> None:
        self.network_id = network_id
        self.worker_id = worker_id
        self.is_shared = is_shared
        self.lease_id = ""
        self.number: int | None = None
        self.is_registered = False
        self.shut_out_because: str | None = None
        self.end: tuple[WorkerState, Failure | None] | None = None
        self.has_logged = False
        self.n_proposals = 0
        self.waits: set[asyncio.Future[bool]] = set()
        self._is_asked_to_stop = False
        self._expelled = asyncio.Event()
        self._loop: asyncio.Task[Any] | None = None
        self._is_loop_cancelled = False
        self._is_noted = False
        self._limiter: Limiter | None = None
        self._held: dict[str, _Reported | None] = {}
        self._ended = deque[str](maxlen=_ENDED)  # the last tasks that were reported on
        self._guards: dict[str, Guard] = {}
        self._has_warned = False
        self._has_left = False
        self._tasks: TaskStore
        self._workers: WorkerStore
        self._reports: ReportStore
        self._most_reports: int
        self._log_writer: LogWriter | None = None
        self._turns: LoopTurns
        self._neighbours: LocalWorkers

    def limit(self, limits: Limits) -> None:
        """Sets the limits of the worker, before it registers."""
        self._limiter = Limiter(limits, self)
        self.waits = self._limiter.waits

    def join(
        self, tasks: TaskStore, workers: WorkerStore, log_writer: LogWriter, turns: LoopTurns, neighbours: LocalWorkers
    ) -> None:
        """The network counts the worker as running from here on.

        Args:
            tasks: where its tasks are ended.
            workers: where its end can be read.
            log_writer: writes its log.
            turns: counts the turns of its event loop.
            neighbours: the workers of this event loop, this one among them.
        """
        self._tasks, self._workers, self._log_writer, self._turns, self._neighbours = (
            tasks,
            workers,
            log_writer,
            turns,
            neighbours,
        )
        log_writer.start()
        self.is_registered = True
        if self._limiter is not None:
            self._limiter.start()

    def report_to(self, reports: ReportStore, most: int) -> None:
        """Sets where the worker's reports go, and how many of them the network keeps at least."""
        self._reports, self._most_reports = reports, most

    def check(self) -> None:
        """Raises `NetworkStateError` where the worker has not registered, or is leaving."""
        if not self.is_registered:
            raise self.leaving_error()

    def leaving_error(self) -> NetworkStateError:
        """The error for a call that would take a task."""
        return NetworkStateError(f"worker {self.worker_id} is leaving network {self.network_id!r}: open a new one")

    def note_deregistered(self) -> None:
        """Notes that the worker has deregistered: its later log records are dropped, and it can end no task."""
        self._log_writer = None
        self._has_left = True

    def log(self, record: bytes) -> None:
        """Sends a packed log record to the network. May be called in any thread.

        Raises:
            TypeError: the record is not bytes.
        """
        if not isinstance(record, bytes):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"log takes a packed LogEntry as bytes, not {type(record).__name__}")
        if (log_writer := self._log_writer) is not None:
            self.has_logged = True
            log_writer.log(record)

    # requests of the network

    @property
    def terminated(self) -> bool:
        """Whether the worker is to take no new task: it was asked to stop, its time is up, or the network has stopped."""
        return (
            self._is_asked_to_stop
            or (self._limiter is not None and self._limiter.is_out_of_time)
            or (self.is_registered and self._tasks.position.stop is not None)
        )

    def note_stop(self) -> None:
        """Sets `terminated`. May be called in any thread, because the event loop may be blocked."""
        self._is_asked_to_stop = self._is_noted = True

    def request_stop(self) -> None:
        """Sets `terminated` and ends the worker's waits."""
        self._is_asked_to_stop = True
        if self._limiter is not None:
            self._limiter.close()
        self.end_waits()

    def end_waits(self, error: Exception | None = None) -> None:
        """Ends the worker's waits, with an error where one is given."""
        for future in list(self.waits):
            if not future.done():
                if error is None:
                    future.set_result(False)
                else:
                    future.set_exception(error)

    def shut_out(self, why: str) -> None:
        """Notes that the network has shut the worker out, and why."""
        if self.shut_out_because is None and self.is_registered:
            self.shut_out_because = why
            self._notify_ended(list(self._held), None)
            self._held.clear()
            self.request_stop()
            # The loop of a lost worker continues: it gets a `WorkerLostError` and may open another worker.
            if why != "lost":
                self._expelled.set()
                self.cancel_loop()

    @property
    def is_shut_out(self) -> bool:
        """Whether the network shut the worker out."""
        return self.shut_out_because is not None

    @property
    def was_killed(self) -> bool:
        """Whether a kill request shut the worker out."""
        return self.shut_out_because == "killed"

    def run(self, loop: asyncio.Task[Any]) -> None:
        """Sets the task that runs the worker's loop. A kill or a reset cancels it."""
        self._loop = loop
        if self._expelled.is_set():
            self.cancel_loop()

    def cancel_loop(self) -> None:
        """Cancels the worker's loop, once: a later cancellation could interrupt the clean-up of the loop."""
        if self._loop is not None and not self._is_loop_cancelled:
            self._is_loop_cancelled = True
            self._loop.cancel()

    async def expelled(self) -> None:
        """Waits until a kill or a reset shuts the worker out."""
        await self._expelled.wait()

    async def raise_if_lost(self) -> None:
        """Raises `WorkerLostError` if the network has shut the worker out, also where only the heartbeat thread has noticed."""
        if self._is_noted and self.is_registered and not self.is_shut_out:
            if (await self._workers.alive([self.worker_id]))[self.worker_id] is None:
                raise self.lost_error()
            self._is_noted = False  # it was asked to stop
        if self.is_shut_out:
            raise self.lost_error()

    def lost_error(self) -> WorkerLostError:
        """Returns the error of a call that the network refused because the worker is not alive."""
        self.shut_out("lost")
        return WorkerLostError(
            f"worker {self.worker_id} is not alive in network {self.network_id!r} any more "
            f"({self.shut_out_because or 'lost'}): its tasks have failed. Open a new RushWorker to continue"
        )

    def stopped_error(self) -> NetworkStoppedError:
        """Returns the error for a block that has no task to open with."""
        if (stop := self._tasks.position.stop) is not None:
            why = f"network {self.network_id!r} has stopped ({stop})"
        elif self.terminated:
            why = f"worker {self.worker_id} was asked to stop"
        else:
            why = f"network {self.network_id!r} had stopped, and was resumed since"
        return NetworkStoppedError(
            f"{why}: no task starts. Check `rush.terminated` before each task, loop over `rush.proposals()`, or give a budget "
            "and check for None"
        )

    async def end_seen_by_network(self) -> WorkerExit:
        """Returns how a worker ended that the network has shut out: killed, lost, or terminated by a reset."""
        if self.was_killed:  # a later reset may have deleted its entry
            return WorkerExit(self.worker_id, "killed", KILLED)
        entry = (await self._workers.read_some([self.worker_id])).get(self.worker_id)
        if entry is None or entry.state in ("starting", "running"):
            return WorkerExit(self.worker_id, "terminated")
        if entry.state == "killed":
            return WorkerExit(self.worker_id, "killed", KILLED)
        return WorkerExit(self.worker_id, entry.state, entry.failure)

    # the tasks that it holds

    def held_keys(self) -> list[str]:
        """The keys of the tasks that the worker holds."""
        return list(self._held)

    @property
    def holds_tasks(self) -> bool:
        """Whether the worker runs a task."""
        return bool(self._held)

    def hold(self, keys: list[str]) -> list[str]:
        """Adds tasks that the network gave to the worker, and returns their keys."""
        for key in keys:
            self._held[key] = None
        if (observer := self._neighbours.observer) is not None:
            observer.tasks_held(keys)
        self._note_change()
        return keys

    def cancel_task(self, key: str) -> None:
        """Cancels the block of a task that the network has failed."""
        if self._held.pop(key, _NOT_HELD) is not _NOT_HELD:
            self._notify_ended([key], "failed")
            self._note_change()
            if (guard := self._guards.get(key)) is not None:
                guard.cancel()

    async def end_tasks(self, items: Sequence[Ended], *, quietly: bool = False) -> list[str]:
        """Ends tasks that the worker holds. Returns the keys that moved, and names the others in a warning.

        Raises:
            WorkerLostError: the worker is not alive.
        """
        if not items:
            return []
        if self._has_left:
            raise NetworkStateError(f"worker {self.worker_id} of network {self.network_id!r} is closed")
        keys, state = [str(item.key) for item in items], "finished" if items[0].kind == "finished" else "failed"
        try:
            marks = await self._tasks.end(items) or [0] * len(items)
        except asyncio.CancelledError:
            ended = [key for key in keys if key in self._held]
            self._forget(keys, n_ended=len(ended))  # the call takes effect nevertheless
            self._notify_ended(ended, state)
            raise
        moved = keys if marks == [1] else [key for key, mark in zip(keys, marks, strict=True) if mark == 1]
        if len(moved) < len(items):
            self._notify_ended([key for key in keys if key in self._held and key not in moved], None)
        self._forget(keys, n_ended=len(moved))
        self._notify_ended(moved, state)
        if len(moved) == len(items):
            return moved
        if None in marks:
            raise self.lost_error()
        if not quietly:
            missed = [key for key, mark in zip(keys, marks, strict=True) if mark != 1]
            logger.warning(
                "worker %s does not run %s: not %s (ended before, held by another worker, unknown, or deleted by a reset)",
                self.worker_id,
                listed(missed),
                state,
            )
        return moved

    def _forget(self, keys: Sequence[str], n_ended: int) -> None:
        for key in keys:
            if self._held.pop(key, None) is not None:
                self._ended.append(key)
        if self._limiter is not None:
            self._limiter.note_ended(n_ended)
        self._note_change()

    def _notify_ended(self, keys: Sequence[str], state: TaskState | None) -> None:
        if (observer := self._neighbours.observer) is not None:
            observer.tasks_ended(keys, state)

    def _note_change(self) -> None:
        if self._limiter is not None:
            self._limiter.note_change()

    def fail_later(self, key: str, error: Exception | bytes) -> None:
        """Fails a task whose end was given up, once the server is there, unless that end was executed after all."""
        if key in self._held:
            self._forget([key], n_ended=0)
            self._notify_ended([key], "failed")
            self._tasks.fail_later(key, self.worker_id, error)

    async def fail_held(self, failure: Failure) -> None:
        """Fails the tasks that the worker still holds."""
        if keys := list(self._held):
            self._notify_ended(keys, "failed")
            self._held.clear()
            ended = encode_failure(failure)
            await self._tasks.end([Ended("failed", key, self.worker_id, ended) for key in keys])

    # reports on them

    async def report(self, keys: Sequence[str], reports: Sequence[bytes]) -> None:
        """Hands over reports on tasks that the worker holds, one for each key.

        Raises:
            NetworkStateError: the worker does not run one of the tasks; nothing was handed over.
            WorkerLostError: the worker is not alive.
            RushError: an earlier report on one of the tasks was refused; nothing was handed over.
        """
        if self.is_shut_out:
            raise self.lost_error()
        found: list[_Reported] = []
        for key in keys:
            if key not in self._held:
                await asyncio.sleep(0)  # a block whose task was cancelled is cancelled here
                raise NetworkStateError(
                    f"task {key!r} is not running on worker {self.worker_id}, and takes no report: it ended, or was cancelled, "
                    "or deleted by a reset"
                )
            reported = self._held[key]
            if reported is None:
                reported = self._held[key] = _Reported()
            elif reported.error is not None:
                error, reported.error = reported.error, None
                raise error
            found.append(reported)
        for key, values, reported in zip(keys, reports, found, strict=True):
            reported.n += 1
            await self._reports.append(self, key, self.worker_id, reported.n, values, self._most_reports)

    def not_running(self, key: str) -> None:
        """A report was refused, because the network has ended the task. Its block is cancelled, as by `cancel_task`."""
        if key in self._held:
            logger.warning(
                "a report on task %s was refused: worker %s does not run it any more, it was cancelled, or deleted by a reset",
                key,
                self.worker_id,
            )
            self.cancel_task(key)
        elif key in self._ended:
            self._ended.remove(key)
            logger.warning(
                "a report on task %s of worker %s is lost: it came after the end of the task, because the server had forgotten "
                "its scripts (SCRIPT FLUSH)",
                key,
                self.worker_id,
            )

    def not_alive(self, key: str) -> None:
        """A report was refused, because the network has shut the worker out."""
        if not self.is_shut_out:
            logger.warning("a report on task %s was refused: %s", key, self.lost_error())

    def refused(self, key: str, error: Exception) -> None:
        """The server refused a report, or could not be reached. The next report on the task raises the error."""
        reported = self._held.get(key)
        if reported is None or not reported.has_warned:
            logger.warning("a report on task %s of worker %s is lost: %s", key, self.worker_id, error)
        if reported is not None:
            reported.error, reported.has_warned = error, True

    # their blocks

    def enter_block(self, key: str) -> None:
        """Opens a task's block: from here on `cancel_task` cancels it."""
        guard = self._guards[key] = Guard(self._turns)
        if key not in self._held and self.shut_out_because is None:
            guard.cancel()  # it was cancelled before its block opened

    def leave_block(self, key: str) -> Guard | None:
        """Ends a task's block and returns its guard. Warns once if the block kept other workers from running."""
        guard = self._guards.pop(key, None)
        if guard is not None and not self._has_warned and guard.blocked_for > _LONG and len(self._neighbours) > 1:
            self._has_warned = True
            logger.warning(
                "worker %s blocked the event loop that it shares with others for %.1f s: "
                "`await asyncio.to_thread(f, **task.xs)` for an objective that releases the GIL, "
                "`await anyio.to_process.run_sync(...)` for one pure-Python call, or start workers with on=Processes()",
                self.worker_id,
                guard.blocked_for,
            )
        return guard
