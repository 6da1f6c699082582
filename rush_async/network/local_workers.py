"""The workers that live in one event loop: whom requests of the network reach, heard at once or made up for later."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Protocol

from rush_async.errors import DecodeError
from rush_async.heartbeat.heartbeat import LocalWorker as Beating
from rush_async.model import Failure
from rush_async.network.listener import ResetMessage
from rush_async.store.codec import decode
from rush_async.store.keys import NetworkKeys
from rush_async.store.tasks import TaskStore
from rush_async.store.workers import LOST_WORKER, WorkerStore
from rush_async.wire.link import Link

__all__ = ["LocalWorker", "LocalWorkers"]

logger = logging.getLogger(__name__)

_RESET = "the network was reset"


class LocalWorker(Beating, Protocol):
    """A worker that lives in this event loop."""

    @property
    def is_shut_out(self) -> bool: ...

    def held_keys(self) -> list[str]:
        """The tasks it holds."""
        ...

    def cancel_task(self, key: str) -> None: ...


class LocalWorkers:
    """The workers of one network that live in this event loop.

    Args:
        take_reset: told of a reset that a request tells of.

    Attributes:
        by_id: the workers by their ids.
    """

    def __init__(
        self,
        link: Link,
        keys: NetworkKeys,
        tasks: TaskStore,
        workers: WorkerStore,
        take_reset: Callable[[ResetMessage], None],
    ) -> None:
        self.by_id: dict[str, LocalWorker] = {}
        self._link = link
        self._channel = keys.control
        self._tasks = tasks
        self._workers = workers
        self._take_reset = take_reset

    def __len__(self) -> int:
        return len(self.by_id)

    @property
    def leases_in_use(self) -> set[str]:
        """The leases of those that are not shut out."""
        return {worker.lease_id for worker in self.by_id.values() if not worker.is_shut_out}

    async def register(self, worker: LocalWorker) -> None:
        """Requests to this worker reach it from now on."""
        if not self.by_id:
            self._link.subscription.subscribe(self._channel, self)
        self.by_id[worker.worker_id] = worker
        await self._link.subscription.confirmed(self._channel)

    def unregister(self, worker: LocalWorker) -> None:
        """The worker has left."""
        if self.by_id.get(worker.worker_id) is worker:
            del self.by_id[worker.worker_id]
            if not self.by_id:
                self._link.subscription.unsubscribe(self._channel)

    def report_as_lost(self, worker_id: str, failure: Failure | None) -> None:
        """A worker that could not say good-bye is shut out as soon as the server is there, because others here may keep its
        lease alive. Once nobody is left here, or the event loop ends, the lease expires."""
        if self._link.supervisor.is_open:
            self._link.supervisor.start(
                self._link.retry_until_reachable, lambda: self._workers.lose([worker_id], "lost", LOST_WORKER, failure)
            )

    def heard(self, channel: str, message: bytes) -> None:
        self._hear(message)

    def confirmed(self, channel: str) -> None:
        self._make_up()

    def _hear(self, data: bytes) -> None:
        try:
            match decode(data):
                case ["reset", epoch, at, exists]:
                    self._take_reset(ResetMessage(int(epoch), datetime.fromtimestamp(at, UTC), bool(exists)))
                    if not exists:
                        self._shut_out(list(self.by_id), _RESET)
                case ["stop", _, *worker_ids]:
                    for worker_id in worker_ids:
                        if worker_id in self.by_id:
                            self.by_id[worker_id].request_stop()
                case ["out", _, state, *worker_ids]:
                    self._shut_out(worker_ids, str(state))
                case ["cancel", _, worker_id, *keys]:
                    if (worker := self.by_id.get(worker_id)) is not None:
                        for key in keys:
                            worker.cancel_task(str(key))
                case other:
                    logger.error("a request on %s is malformed: %r", self._channel, other)
        except (DecodeError, TypeError, ValueError) as error:
            logger.error("a request on %s is malformed: %s", self._channel, error)

    def _shut_out(self, worker_ids: Sequence[str], why: str) -> None:
        for worker_id in worker_ids:
            if worker_id in self.by_id:
                self.by_id[worker_id].shut_out(why)

    def _make_up(self) -> None:
        """After a confirmation: what was said before it was not heard."""
        self._link.supervisor.start(self.take_requests)

    async def take_requests(self) -> None:
        """What was asked of these workers, and may not have been heard of, stands beside their leases and in their tasks."""
        worker_ids = [worker_id for worker_id, worker in self.by_id.items() if worker.is_registered]
        holders = await self._link.retry_until_reachable(lambda: self._workers.holders(worker_ids))
        missing = [worker_id for worker_id, holder in holders.items() if holder is None]
        entries = await self._link.retry_until_reachable(lambda: self._workers.read_some(missing))
        for worker_id, holder in holders.items():
            worker = self.by_id.get(worker_id)
            if worker is None or not worker.is_registered:
                continue
            if holder is None:
                entry = entries.get(worker_id)
                worker.shut_out(_RESET if entry is None else "killed" if entry.state == "killed" else "lost")
            elif holder.is_asked_to_stop:
                worker.request_stop()
        await self._drop_cancelled()

    async def _drop_cancelled(self) -> None:
        """Tasks that somebody cancelled are not running any more."""
        held = {key: worker for worker in list(self.by_id.values()) for key in worker.held_keys()}
        running = await self._link.retry_until_reachable(lambda: self._tasks.are_running(list(held)))
        for key, worker in held.items():
            if key not in running:
                worker.cancel_task(key)
