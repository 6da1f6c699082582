"""The workers that live in one event loop: requests of the network reach them, at once or when they are read later."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Protocol

from rush_async.errors import DecodeError
from rush_async.store.leases import AliveWorker
from rush_async.store.messages import (
    CancelMessage,
    NetworkStopMessage,
    ResetMessage,
    ShutOutMessage,
    StopMessage,
    decode_control,
)
from rush_async.store.position import NetworkPosition

__all__ = ["LocalWorker", "LocalWorkers"]

logger = logging.getLogger(__name__)

_RESET = "the network was reset"


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


class LocalWorkers:
    """The workers of one network that live in this event loop.

    Args:
        network_id: the network.
        position: updated by resets and stops.

    Attributes:
        by_id: the workers by their ids.
    """

    def __init__(self, network_id: str, position: NetworkPosition) -> None:
        self.by_id: dict[str, LocalWorker] = {}
        self._network_id = network_id
        self._position = position
        position.watchers.add(self)

    def position_changed(self) -> None:
        """Ends the waits of the workers of a network that has stopped."""
        if self._position.stop is not None:
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
                self._position.take_reset(message.epoch, keeps_workers=message.keeps_workers)
                if not message.keeps_workers:
                    self._shut_out(list(self.by_id), _RESET)
            case StopMessage():
                self._ask_to_stop(message.worker_ids)
            case NetworkStopMessage():
                self._position.take_stop(message.epoch, message.seq, message.stop)
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
