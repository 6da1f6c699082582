"""The finished tasks of a network as one event loop reads them: each record once, for all clients."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Sequence

from rush_async.errors import RushConnectionError
from rush_async.model import Task
from rush_async.store.finished import Decoder, Records
from rush_async.store.malformed import MalformedRecords
from rush_async.store.task_reads import FinishedRead, TaskReads

__all__ = ["Results"]

logger = logging.getLogger(__name__)


class Results:
    """Reads finished tasks once for all clients of an event loop.

    Attributes:
        records: the records that were read.
        decoder: makes frames of the records, once a client asked for frames.
        notes: names the malformed records of the network.
    """

    def __init__(self, network_id: str, tasks: TaskReads, notes: MalformedRecords) -> None:
        self.notes = notes
        self.records = Records(notes)
        self.decoder: Decoder = self.records
        self._network_id = network_id
        self._tasks = tasks
        self._position = tasks.position
        self._generation = tasks.position.generation
        self._reading: _Read | None = None
        self._n_reads = 0
        self._n_last_read = 0

    def _drop_if_outdated(self) -> None:
        """Drops what was read before a reset or a rollback."""
        if self._generation != self._position.generation:
            self._generation = self._position.generation
            self.drop()

    async def read(self) -> None:
        """Reads all tasks that had finished when this was called. Concurrent calls share one read."""
        # A read that was not sent yet covers this call; one that was sent may not.
        under_way = self._reading
        number = self._n_reads + 1 if under_way is None or under_way.is_sent else under_way.number
        self._drop_if_outdated()
        while self._n_last_read < number:
            if self._reading is None:
                await self._read_for_all()
            else:
                read = self._reading
                await read.over.wait()  # wakes all who wait in one tick, where a lock would take a tick for each
                if read.error is not None and read.number >= number:  # the call has waited as long as the read
                    raise RushConnectionError(str(read.error)) from read.error
            self._drop_if_outdated()

    async def find(self, keys: Collection[str]) -> dict[str, Task]:
        """Finds finished tasks by key. Tasks that were read before are not read again."""
        self._drop_if_outdated()
        found = self.records.find(keys)
        if len(found) < len(keys):
            await self.read()
            found = self.records.find(keys)
        return found

    def drop(self) -> None:
        """Drops the records. Calls that wait begin another read."""
        self._n_last_read = 0
        self.decoder.clear()

    # reading

    async def _read_for_all(self) -> None:
        self._n_reads += 1
        read = self._reading = _Read(self._n_reads)
        try:
            await self._read_to_end(read)
            self._n_last_read = read.number
        except RushConnectionError as error:
            read.error = error
            raise
        finally:  # if it failed otherwise, the first of the others tries for itself
            self._reading = None
            read.over.set()

    async def _read_to_end(self, read: _Read) -> None:
        """Reads until the end of the list."""
        known, position = self.records, self._position
        ahead: FinishedRead | None = None
        asked_at = overlap = 0
        while True:
            if ahead is None:
                # One record is read again: that it is the same shows that the list only grew.
                asked_at, overlap = position.highest_epoch, min(len(known), 1)
                ahead = self._tasks.read_finished(len(known) - overlap)
                read.first = read.first or ahead
            chunk = await ahead.chunk()
            ahead = None
            if chunk.epoch != position.epoch:
                position.hear_epoch(chunk.epoch, asked_at)
            if self._generation != position.generation:
                self._drop_if_outdated()
                continue
            n_known = len(known) - chunk.start
            if n_known < overlap:
                continue  # the network was reset, or the cache dropped, meanwhile
            if len(chunk.records) < overlap or not self._continues(chunk.start, chunk.records):
                logger.warning("the finished tasks of network %r are not those read before: reading anew", self._network_id)
                position.begin_generation()
                self._drop_if_outdated()
                continue
            end = chunk.start + len(chunk.records)
            if end < chunk.total:  # the server reads the next chunk while this one is decoded
                asked_at, overlap = position.highest_epoch, 1
                ahead = self._tasks.read_finished(end - 1)
            self._add(chunk.records[n_known:])
            if end >= chunk.total:
                return

    def _add(self, records: Sequence[bytes]) -> None:
        self.records.extend(records)
        self.decoder.decode_chunks()

    @property
    def resumes_at(self) -> int:
        """The index from which another read has to begin for `join`: the last record is read again."""
        self._drop_if_outdated()
        return max(len(self.records) - 1, 0)

    def join(self, epoch: int, start: int, records: Sequence[bytes]) -> bool:
        """Adds records that were read from `resumes_at` on. Returns False if they do not continue the records."""
        self._drop_if_outdated()
        if epoch != self._position.epoch or not self._continues(start, records):
            return False
        if len(self.records) > start and not records:
            return False  # it was to be read again, and is not there
        self._add(records[len(self.records) - start :])
        return True

    def _continues(self, start: int, records: Sequence[bytes]) -> bool:
        """Whether records that begin at index `start` continue those read before, without a gap or a record that differs."""
        n_both = min(len(self.records) - start, len(records))
        return n_both >= 0 and records[:n_both] == self.records.raw(start, start + n_both)


class _Read:
    """One read of the finished tasks, for all calls that wait for it.

    Attributes:
        number: it covers the calls that wait for this number or a lower one.
        over: set when it has ended.
        error: why it failed, if the server could not be reached.
        first: its first chunk.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.first: FinishedRead | None = None
        self.over = asyncio.Event()
        self.error: RushConnectionError | None = None

    @property
    def is_sent(self) -> bool:
        """Whether the first chunk was asked for: the read does not cover later calls."""
        return self.first is not None and self.first.is_sent
