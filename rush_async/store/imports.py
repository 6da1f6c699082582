"""Takes parts of an export into a network: each is one step of the server, and the same part again changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from itertools import compress
from typing import Any

from rush_async.errors import DecodeError, NetworkStateError
from rush_async.store.calls import Batcher
from rush_async.store.decoding import decode_flat
from rush_async.store.export_item import ExportItem
from rush_async.store.fields import FIELDS
from rush_async.store.scripts import Request, Script
from rush_async.store.task_reads import TaskReads
from rush_async.wire.transport import Word

__all__ = ["Import", "ImportStore"]

_TASKS = frozenset({"finished", "queued", "failed"})

IMPORT = Script(
    *("import",),
    keys=(
        *("queue", "attributes", "claims", "task_attributes", "points", "rankings", "reports", "log", "returned"),
        "imported_failed",
    ),
    args=("archive", "next_index", "next_number", "indices", "n_read"),
    item=("place", "name", "data", "detail"),
    memory="grows",
    creates=True,
)


class ImportStore:
    """Takes exports into one network."""

    def __init__(self, tasks: TaskReads, calls: Batcher) -> None:
        self._tasks = tasks
        self._calls = calls

    async def begin(self, archive: str, next_index: int, next_number: int, indices: Sequence[int]) -> Import:
        """Begins to take an export in. The network exists from then on.

        Args:
            archive: the id of the export.
            next_index: the index that came next in the exported network.
            next_number: the number of a worker that came next there.
            indices: those that were reserved there and are no task.
        """
        begun = Import(self._tasks, self._calls, (archive, next_index, next_number, " ".join(map(str, indices))))
        await begun.read_new()
        await begun.add([])
        return begun


class Import:
    """An export that is taken into a network.

    Attributes:
        keeps_indices: whether the tasks keep their indices, as the network takes the export over.
        finished: the keys of the finished tasks that the network has, as far as they are known.
    """

    def __init__(self, tasks: TaskReads, calls: Batcher, args: Sequence[Word]) -> None:
        self.keeps_indices = False
        self.finished: set[str] = set()
        self._tasks = tasks
        self._calls = calls
        self._args = args
        self._n_read = 0
        self._epoch: int | None = None  # that of the network, from the first answer on

    async def add(self, items: Sequence[ExportItem]) -> list[bool]:
        """Adds those of the items that are not there. Returns for each whether it was added.

        Raises:
            NetworkStateError: the network was reset since `begin`.
        """
        position = self._tasks.position
        while True:
            if self._epoch not in (None, position.epoch):
                raise self._was_reset()
            fresh = [not (item.place in _TASKS and item.name.decode() in self.finished) for item in items]
            sent = list(compress(items, fresh))
            words = [word for item in sent for word in item]
            request = Request(IMPORT, [*self._args, self._n_read, *words], n_tasks=max(1, len(sent)), survives_reset=False)
            answer: list[Any] | None = await self._calls.call(request)
            if answer is None:
                raise self._was_reset()
            if answer[0] == b"behind":
                await self.read_new()
                continue
            self._epoch = position.epoch
            self.keeps_indices = answer[0] == b"kept"
            marks = answer[2:]
            own = [item.name.decode() for item, mark in zip(sent, marks, strict=True) if mark and item.place == "finished"]
            self.finished.update(own)
            if answer[1] == self._n_read + len(own):  # else others have finished: the next call looks at them, too
                self._n_read = answer[1]
            left = iter(marks)
            return [is_fresh and next(left) == 1 for is_fresh in fresh]

    def _was_reset(self) -> NetworkStateError:
        return NetworkStateError(f"{self._tasks.keys.meta} was reset while an export was imported there: import it again")

    async def read_new(self) -> None:
        """Reads the keys of the finished tasks that have come since the last call."""
        while True:
            chunk = await self._tasks.read_finished(self._n_read).chunk()
            if chunk.total < self._n_read:  # the server was restored from older data
                self._n_read = 0
                self.finished.clear()
                continue
            self.finished.update(_keys(chunk.records))
            self._n_read += len(chunk.records)
            if self._n_read >= chunk.total:
                return


def _keys(records: Sequence[bytes]) -> list[str]:
    try:
        return decode_flat(b"".join(records), len(records))[::FIELDS]
    except DecodeError:
        keys: list[str] = []
        for record in records:
            with suppress(DecodeError):  # what another program wrote is no task of an export
                keys.append(decode_flat(record, 1)[0])
        return keys
