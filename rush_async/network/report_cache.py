"""The reports of a network as one event loop reads them: each once, for all clients."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Protocol

from rush_async.errors import DecodeError
from rush_async.store.finished import Decoder, Records
from rush_async.store.keys import NetworkKeys
from rush_async.store.position import NetworkPosition
from rush_async.store.report_entry import Report, ReportChunk

__all__ = ["ReportCache"]

logger = logging.getLogger(__name__)

_CHUNK = 5_000  # entries that one reply holds, if they are small
_FIRST_CHUNK = 100  # while the size of the entries is unknown
_CHUNK_BYTES = 1024 * 1024


class ReportReads(Protocol):
    """Reads reports."""

    @property
    def keys(self) -> NetworkKeys: ...

    async def read(self, first: bytes, count: int) -> ReportChunk:
        """Reads at most `count` entries of the stream from an id on; `-` is its start."""
        ...


class ReportCache:
    """Reads reports once for all clients of an event loop, and keeps them though the network may have trimmed them since.

    Attributes:
        records: the reports that were read, as records of tasks.
        decoder: makes frames of them, once a client asked for frames.
    """

    def __init__(self, network_id: str, reports: ReportReads, position: NetworkPosition) -> None:
        self.records = Records()
        self.decoder: Decoder = self.records
        self._network_id = network_id
        self._reports = reports
        self._position = position
        self._generation = position.generation
        self._lock = asyncio.Lock()
        self._n_reads = 0
        self._n_last_read = 0
        self._last: tuple[bytes, bytes] | None = None  # the last entry of the stream that was read
        self._number = 0  # of the last report
        self._largest = _CHUNK_BYTES // _FIRST_CHUNK  # bytes of an entry of the last chunk, the largest

    async def read(self) -> None:
        """Reads all reports that the network had when this was called. Concurrent calls share a read."""
        number = self._n_reads + 1  # a read that has begun may miss what was appended since
        async with self._lock:
            self._drop_if_outdated()
            if self._n_last_read < number:
                self._n_reads += 1
                await self._read_to_end()
                self._n_last_read = self._n_reads

    def drop(self) -> None:
        """Drops the reports. The next call reads those that the network still has."""
        self._n_last_read = 0
        self._last, self._number = None, 0
        self.decoder.clear()

    def _drop_if_outdated(self) -> bool:
        """Drops what was read before a reset or a rollback."""
        if self._generation == self._position.generation:
            return False
        self._generation = self._position.generation
        self.drop()
        return True

    async def _read_to_end(self) -> None:
        n_missed, foreign = 0, list[bytes]()
        while True:
            self._drop_if_outdated()
            asked_at, known = self._position.highest_epoch, self._last
            count = max(2, min(_CHUNK, _CHUNK_BYTES // self._largest))  # the first has been read before
            # The last known entry is read again: that it is there, or was trimmed, shows that the stream only grew.
            chunk = await self._reports.read(b"-" if known is None else known[0], count)
            if chunk.epoch != self._position.epoch:
                self._position.hear_epoch(chunk.epoch, asked_at)
            if self._drop_if_outdated() or self._last is not known:
                n_missed, foreign = 0, []
                continue
            entries = chunk.entries
            if known is not None and entries[:1] == [known]:
                entries = entries[1:]
            elif self._went_back(chunk):
                logger.warning("the reports of network %r are not those read before: reading anew", self._network_id)
                self._position.begin_generation()
                continue
            n_missed += self._add(entries, chunk.last, foreign)
            if len(chunk.entries) < count:
                break
        self._warn(n_missed, foreign)

    def _went_back(self, chunk: ReportChunk) -> bool:
        """Whether the server has lost reports that were read, although it still has the last one or was trimmed behind it."""
        if self._last is None:
            return False
        if chunk.last < self._number:
            return True
        first = next((report for entry in chunk.entries if (report := _report_of(entry, chunk.last)) is not None), None)
        return first is not None and first.number <= self._number

    def _add(self, entries: Sequence[tuple[bytes, bytes]], last: int, foreign: list[bytes]) -> int:
        """Adds what was read. Returns how many reports are missing before or between."""
        n_missed = 0
        records: list[bytes] = []
        for entry in entries:
            report = _report_of(entry, last)
            if report is None:
                foreign.append(entry[0])
                continue
            n_missed += max(0, report.number - self._number - 1)
            self._number = max(self._number, report.number)
            records.append(report.as_record())
        if entries:
            self._last = entries[-1]
            self._largest = max([len(packed) for _, packed in entries]) + 1
            self.records.extend(records)
            self.decoder.decode_chunks()
        return n_missed

    def _warn(self, n_missed: int, foreign: list[bytes]) -> None:
        if n_missed:
            logger.warning(
                "%s reports of network %r were trimmed before they were read: raise RushConfig(max_reports=...), or fetch "
                "reports more often",
                f"{n_missed:,}",
                self._network_id,
            )
        if foreign:
            logger.warning(
                "network %r: %d entries of the stream %s are no reports and were left out, the first is %s; another program "
                "writes there",
                self._network_id,
                len(foreign),
                self._reports.keys.reports,
                foreign[0].decode(),
            )


def _report_of(entry: tuple[bytes, bytes], last: int) -> Report | None:
    """The report in an entry of the stream; None where another program wrote it."""
    try:
        report = Report.of(entry[1])
    except DecodeError:
        return None
    return report if report.number <= last else None
