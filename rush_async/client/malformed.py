"""What another program wrote into a network and no client can decode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from rush_async.client.session import Session, Shared
from rush_async.model import TASK_STATES, TaskState
from rush_async.network.results import Results
from rush_async.store.malformed import MalformedRecord, MalformedRecords
from rush_async.store.tasks import TaskStore
from rush_async.store.worker_log import WorkerLog
from rush_async.store.workers import WorkerStore

__all__ = ["Repairs"]


class ReadableNetwork(Shared, Protocol):
    """The network of the client."""

    @property
    def tasks(self) -> TaskStore: ...

    @property
    def workers(self) -> WorkerStore: ...

    @property
    def worker_log(self) -> WorkerLog: ...

    @property
    def results(self) -> Results: ...

    @property
    def malformed(self) -> MalformedRecords: ...


S = TypeVar("S", bound=ReadableNetwork)


class Repairs(Session[S]):
    """The part of a client that lists and removes malformed records."""

    async def malformed_records(self) -> list[MalformedRecord]:
        """Reads the whole network, and returns the records of tasks, workers and the log that cannot be decoded.

        All other calls leave them out, and the first call of a process that meets one logs a warning. Only the call that names
        such a task raises `DecodeError`.

        Returns:
            For each its place, its name, what is wrong with it, and what is stored; at most 10,000.
        """
        with self._until_closed():
            network = self._net
            network.malformed.found.clear()
            await self._snapshot(TASK_STATES)
            network.results.records.check()
            await network.workers.read()
            await network.worker_log.read()
            return list(network.malformed.found.values())

    async def remove_malformed_records(self, records: Sequence[MalformedRecord] | None = None) -> int:
        """Removes records that cannot be decoded.

        A finished task keeps its place and still counts as finished, so that no other client has to read all of them again.

        Args:
            records: some of those that `malformed_records()` returned; all of them by default.

        Returns:
            How many were removed. What has changed since it was read stays.
        """
        network = self._net
        if records is None:
            records = await self.malformed_records()
        n_removed = await network.tasks.discard(records) if records else 0
        if any(record.place == "finished" for record in records):
            network.results.drop()
        return n_removed

    async def _snapshot(self, states: Sequence[TaskState]) -> object:
        """Reads the tasks in these states."""
        raise NotImplementedError
