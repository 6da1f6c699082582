"""The workers that live in one event loop: whom requests of the network reach, heard at once or made up for later."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Protocol

from rush_async.errors import DecodeError
from rush_async.heartbeat.heartbeat import Resident as Beating
from rush_async.model import Failure
from rush_async.network.listener import ResetMessage
from rush_async.store.codec import decode
from rush_async.store.keys import NetworkKeys
from rush_async.store.tasks import TaskStore
from rush_async.store.workers import LOST_WORKER, WorkerStore
from rush_async.wire.link import Link

__all__ = ["Resident", "Residents"]

logger = logging.getLogger(__name__)

_RESET = "the network was reset"


class Resident(Beating, Protocol):
    """A worker that lives in this event loop."""

    @property
    def is_shut_out(self) -> bool: ...

    def held_keys(self) -> list[str]:
        """The tasks it holds."""
        ...

    def cancel_task(self, key: str) -> None: ...


class Residents:
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
        self.by_id: dict[str, Resident] = {}
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
        return {resident.lease_id for resident in self.by_id.values() if not resident.is_shut_out}

    async def settle(self, resident: Resident) -> None:
        """Requests to this worker reach it from now on."""
        if not self.by_id:
            self._link.subscription.subscribe(self._channel, self._hear, self._make_up)
        self.by_id[resident.worker_id] = resident
        await self._link.subscription.confirmed(self._channel)

    def unsettle(self, resident: Resident) -> None:
        """The worker has left."""
        if self.by_id.get(resident.worker_id) is resident:
            del self.by_id[resident.worker_id]
            if not self.by_id:
                self._link.subscription.unsubscribe(self._channel)

    def bury(self, worker_id: str, failure: Failure | None) -> None:
        """A worker that could not say good-bye is shut out as soon as the server is there, because others here may keep its
        lease alive. Once nobody is left here, or the event loop ends, the lease expires."""
        if self._link.supervisor.is_open:
            self._link.supervisor.start(
                self._link.sooner_or_later, lambda: self._workers.lose([worker_id], "lost", LOST_WORKER, failure)
            )

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
                    if (resident := self.by_id.get(worker_id)) is not None:
                        for key in keys:
                            resident.cancel_task(str(key))
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
        worker_ids = [worker_id for worker_id, resident in self.by_id.items() if resident.is_registered]
        holders = await self._link.sooner_or_later(lambda: self._workers.holders(worker_ids))
        missing = [worker_id for worker_id, holder in holders.items() if holder is None]
        entries = await self._link.sooner_or_later(lambda: self._workers.read_some(missing))
        for worker_id, holder in holders.items():
            resident = self.by_id.get(worker_id)
            if resident is None or not resident.is_registered:
                continue
            if holder is None:
                entry = entries.get(worker_id)
                resident.shut_out(_RESET if entry is None else "killed" if entry.state == "killed" else "lost")
            elif holder.endswith(b" stop"):
                resident.request_stop()
        await self._drop_cancelled()

    async def _drop_cancelled(self) -> None:
        """Tasks that somebody cancelled are not running any more."""
        held = {key: resident for resident in list(self.by_id.values()) for key in resident.held_keys()}
        running = await self._link.sooner_or_later(lambda: self._tasks.are_running(list(held)))
        for key, resident in held.items():
            if key not in running:
                resident.cancel_task(key)
