"""The workers that live in one event loop: requests of the network reach them, at once or when they are read later."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Container, Mapping, Sequence
from typing import Protocol

from rush_async.errors import DecodeError, listed
from rush_async.model import Failure, TaskState, WorkerState
from rush_async.store.leases import LOST_WORKER, AliveWorker
from rush_async.store.messages import (
    CancelMessage,
    NetworkStopMessage,
    ResetMessage,
    ShutOutMessage,
    StopMessage,
    decode_control,
)
from rush_async.store.position import NetworkPosition
from rush_async.wire.link import Link

__all__ = ["LocalWorker", "LocalWorkers", "Reconciler", "TaskObserver"]

logger = logging.getLogger(__name__)

_RESET = "the network was reset"
_TURNS = 5  # of the event loop within which a caller notes the tasks that it was given
_ENDED_BEFORE = Failure("lost", None, "The server went back in time, and has lost how this task ended")


class LocalWorker(Protocol):
    """A worker that lives in this event loop."""

    @property
    def worker_id(self) -> str: ...

    @property
    def lease_id(self) -> str: ...

    @property
    def is_registered(self) -> bool: ...

    @property
    def is_shut_out(self) -> bool: ...

    def held_keys(self) -> list[str]:
        """The tasks it holds."""
        ...

    def cancel_task(self, key: str) -> None: ...

    def note_stop(self) -> None: ...

    def request_stop(self) -> None: ...

    def end_waits(self, error: Exception | None = None) -> None:
        """Ends its waits for a task or a place, with an error where one is given."""

    def shut_out(self, why: str) -> None: ...


class TaskObserver(Protocol):
    """Learns what the workers of this event loop run, such as for metrics. It is called in the event loop, and returns soon."""

    def tasks_held(self, keys: Sequence[str]) -> None:
        """A worker runs these tasks from here on."""

    def tasks_ended(self, keys: Sequence[str], state: TaskState | None) -> None:
        """Tasks have finished or failed here; None: they were taken from their worker, such as by a reset or its loss."""


class StoredTasks(Protocol):
    """The tasks of the network."""

    async def are_running(self, keys: Sequence[str]) -> set[str]: ...

    async def owners(self, worker_ids: Container[str]) -> dict[str, str]: ...

    async def quiet(self) -> None: ...

    async def fail_running(self, owners: Mapping[str, str], failure: Failure) -> list[str]: ...


class HasState(Protocol):
    """A worker as the network keeps it."""

    @property
    def state(self) -> WorkerState: ...


class StoredWorkers(Protocol):
    """The workers of the network."""

    async def alive(self, worker_ids: Sequence[str]) -> dict[str, AliveWorker | None]: ...

    async def read_some(self, worker_ids: Sequence[str]) -> Mapping[str, HasState]: ...

    async def under_leases(self, lease_ids: Container[str]) -> list[str]: ...

    async def lose(self, worker_ids: Sequence[str], state: WorkerState, task_failure: Failure) -> list[str]: ...


class LocalWorkers:
    """The workers of one network that live in this event loop.

    Args:
        network_id: the network.
        position: updated by resets and stops.

    Attributes:
        by_id: the workers by their ids.
        leases: the leases under which workers have lived here.
        observer: learns what they run; None where nothing asks.
    """

    def __init__(self, network_id: str, position: NetworkPosition) -> None:
        self.by_id: dict[str, LocalWorker] = {}
        self.leases: set[str] = set()
        self.observer: TaskObserver | None = None
        self.position = position
        self._network_id = network_id
        position.watchers.add(self)

    def position_changed(self) -> None:
        """Ends the waits of the workers of a network that has stopped."""
        if self.position.stop is not None:
            for worker in self.by_id.values():
                worker.end_waits()

    def __len__(self) -> int:
        return len(self.by_id)

    @property
    def leases_in_use(self) -> set[str]:
        """The leases of those that are not shut out."""
        return {worker.lease_id for worker in self.by_id.values() if not worker.is_shut_out}

    @property
    def registered(self) -> list[str]:
        """The ids of those that the network counts as running."""
        return [worker_id for worker_id, worker in self.by_id.items() if worker.is_registered]

    @property
    def held_keys(self) -> list[str]:
        """The tasks that they hold."""
        return [key for worker in self.by_id.values() for key in worker.held_keys()]

    def take_message(self, data: bytes) -> None:
        """Takes a message of the channel `control`."""
        try:
            message = decode_control(self._network_id, data)
        except DecodeError as error:
            logger.error("%s", error)
            return
        match message:
            case ResetMessage():
                self.position.take_reset(message.epoch, keeps_workers=message.keeps_workers)
                if not message.keeps_workers:
                    self._shut_out(list(self.by_id), _RESET)
            case StopMessage():
                self._ask_to_stop(message.worker_ids)
            case NetworkStopMessage():
                self.position.take_stop(message.epoch, message.seq, message.stop)
            case ShutOutMessage():
                self._shut_out(message.worker_ids, message.state)
            case CancelMessage():
                if (worker := self.by_id.get(message.worker_id)) is not None:
                    for key in message.keys:
                        worker.cancel_task(key)

    def take_alive(self, alive: Mapping[str, AliveWorker | None], ends: Mapping[str, str]) -> None:
        """Takes what the database keeps of workers: some were asked to stop, or shut out, before a message could reach them.

        Args:
            alive: each worker as it is alive; None for one that is not.
            ends: the states of those that are not alive; one that is not known was deleted by a reset.
        """
        for worker_id, entry in alive.items():
            if (worker := self.by_id.get(worker_id)) is None or not worker.is_registered:
                continue
            if entry is not None:
                if entry.is_asked_to_stop:
                    worker.request_stop()
            elif worker_id not in ends:
                worker.shut_out(_RESET)
            else:
                worker.shut_out("killed" if ends[worker_id] == "killed" else "lost")

    def server_ended(self, error: Exception) -> None:
        """Ends the waits of all workers with an error: the server has ended."""
        for worker in self.by_id.values():
            worker.end_waits(error)

    def drop_ended(self, keys: Sequence[str], running: set[str]) -> None:
        """Cancels those of the tasks `keys` that workers hold and that are not running any more."""
        ended = set(keys) - running
        for worker in tuple(self.by_id.values()):
            for key in ended.intersection(worker.held_keys()):
                worker.cancel_task(key)

    def _ask_to_stop(self, worker_ids: Sequence[str]) -> None:
        for worker_id in worker_ids:
            if worker_id in self.by_id:
                self.by_id[worker_id].request_stop()

    def _shut_out(self, worker_ids: Sequence[str], why: str) -> None:
        for worker_id in worker_ids:
            if worker_id in self.by_id:
                self.by_id[worker_id].shut_out(why)


class Reconciler:
    """Compares what the workers of an event loop are and hold with what the database keeps.

    Args:
        local: the workers.
        link: the server.
        tasks: the tasks of the network.
        workers: the workers of the network.
    """

    def __init__(self, local: LocalWorkers, link: Link, tasks: StoredTasks, workers: StoredWorkers) -> None:
        self._local = local
        self._link = link
        self._tasks = tasks
        self._workers = workers
        self._n_rollbacks = 0
        self._position = local.position
        self._position.generation_watchers.add(self)

    async def take_requests(self) -> None:
        """Reads what was asked of the workers here, and ends the tasks that do not run any more."""
        local, ask = self._local, self._link.retry_until_reachable
        alive = await ask(lambda: self._workers.alive(local.registered))
        missing = [worker_id for worker_id, entry in alive.items() if entry is None]
        entries = await ask(lambda: self._workers.read_some(missing))
        local.take_alive(alive, {worker_id: entry.state for worker_id, entry in entries.items()})
        held = local.held_keys
        local.drop_ended(held, await ask(lambda: self._tasks.are_running(held)))

    def generation_changed(self) -> None:
        """After the server lost what happened last, looks for what no worker will end."""
        if self._n_rollbacks != self._position.n_rollbacks:
            self._n_rollbacks = self._position.n_rollbacks
            if self._local.leases and self._link.supervisor.is_open:
                self._link.supervisor.start(self._reconcile)

    async def _reconcile(self) -> None:
        await self.take_requests()
        await self._link.retry_until_reachable(self._end_unheld)

    async def _end_unheld(self) -> None:
        """Tasks that run for a worker here which does not hold them fail, and workers that have left are lost."""
        local, tasks = self._local, self._tasks
        alive = await self._workers.under_leases(local.leases)
        owners = await tasks.owners(local.by_id)
        await tasks.quiet()  # what was given to workers meanwhile is known to them then
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        if left := [worker_id for worker_id in alive if worker_id not in local.by_id]:
            logger.warning("workers that had left are back on a server that went back in time, and are lost: %s", listed(left))
            await self._workers.lose(left, "lost", LOST_WORKER)
        held = set(local.held_keys)
        unheld = {
            key: worker_id
            for key, worker_id in owners.items()
            if key not in held and (worker := local.by_id.get(worker_id)) and worker.is_registered and worker.lease_id
        }
        if failed := await tasks.fail_running(unheld, _ENDED_BEFORE):
            logger.warning("the server went back in time, and tasks that had ended on it fail as lost: %s", listed(failed))
