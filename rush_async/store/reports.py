"""Appends reports of running tasks to a capped stream of the database, and reads them."""

from __future__ import annotations

from typing import Any, Protocol

from rush_async.store.calls import Batcher
from rush_async.store.codec import to_msgpack
from rush_async.store.keys import NetworkKeys
from rush_async.store.position import number_of
from rush_async.store.report_entry import ReportChunk
from rush_async.store.scripts import Request, Script
from rush_async.wire.connection import Connection
from rush_async.wire.transport import Word

__all__ = ["ReportStore", "Reporter"]

REPORT = Script(
    *("report",),
    keys=("reports", "report_events"),
    item=("key", "worker", "step", "values", "most"),
    memory="grows",
    merges=True,
    leads=True,  # so that no report is refused because of the end that follows it
)
_NOT_ALIVE = -1


class Reporter(Protocol):
    """Hears which of the reports that it handed over were not appended."""

    def not_running(self, key: str) -> None:
        """Is called where the worker does not run the task any more."""

    def not_alive(self, key: str) -> None:
        """Is called where the worker is not alive."""

    def refused(self, key: str, error: Exception) -> None:
        """Is called where the server refused the call, or could not be reached."""


class ReportStore:
    """The reports of one network, as one process sees them.

    Attributes:
        keys: the network's keys.
    """

    def __init__(self, connection: Connection, keys: NetworkKeys, calls: Batcher) -> None:
        self.keys = keys
        self._connection = connection
        self._calls = calls

    async def append(self, reporter: Reporter, key: str, worker_id: str, step: int, values: bytes, most: int) -> None:
        """Hands over a report of a running task. Waits only while the connection takes nothing.

        Args:
            reporter: hears it if the report is not appended, unless this raises.
            key: the task.
            worker_id: the worker that runs it.
            step: which report of its attempt this is.
            values: what is reported, as msgpack.
            most: how many reports the network keeps at least.
        """
        request = _Append(reporter, key, [key, worker_id, to_msgpack(step), values, most])
        try:
            await self._calls.hand_over(request)
        finally:
            request.is_handed_over = True

    async def read(self, first: bytes, count: int) -> ReportChunk:
        """Reads at most `count` entries of the stream from an id on; `-` is its start. Reports handed over before are among
        them."""
        self._connection.flush()
        meta, entries = await self._connection.ask_together(
            ("HMGET", self.keys.meta, "epoch", "reports"),
            ("XRANGE", self.keys.reports, first, "+", "COUNT", count),
        )
        return ReportChunk(*_numbers(*meta), [(name, _packed(fields)) for name, fields in entries])

    async def read_last(self) -> tuple[int, int]:
        """Reads the epoch of the network and the number of its last report."""
        return _numbers(*await self._connection.ask("HMGET", self.keys.meta, "epoch", "reports"))


def _numbers(epoch: bytes | None, last: bytes | None) -> tuple[int, int]:
    return number_of("epoch", epoch), number_of("reports", last)


def _packed(fields: list[bytes]) -> bytes:
    """Returns what an entry of the stream holds; nothing where another program wrote it."""
    return fields[1] if len(fields) == 2 and fields[0] == b"r" else b""


class _Append(Request):
    """Appends a report."""

    __slots__ = ("_key", "_reporter", "is_handed_over")

    def __init__(self, reporter: Reporter, key: str, args: list[Word]) -> None:
        super().__init__(REPORT, args, survives_reset=False)
        self._reporter = reporter
        self._key = key
        self.is_handed_over = False

    def decode(self, answer: Any, extra: list[Any]) -> int:
        (mark,) = answer
        return _NOT_ALIVE if mark is None else int(mark)

    def resolve(self, result: Any) -> None:
        super().resolve(result)
        if result == _NOT_ALIVE:
            self._reporter.not_alive(self._key)
        elif not result:  # None after a reset
            self._reporter.not_running(self._key)

    def reject(self, error: Exception) -> None:
        super().reject(error)
        if self.is_handed_over:
            self._reporter.refused(self._key, error)
