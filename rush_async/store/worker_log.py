"""The worker log: what workers logged, as a capped stream in the database."""

from __future__ import annotations

from typing import TypeAlias

from rush_async.errors import DecodeError
from rush_async.store.keys import NetworkKeys
from rush_async.store.log_entry import LogEntry
from rush_async.store.malformed import MalformedRecords
from rush_async.wire.connection import Connection

__all__ = ["WorkerLog"]

_CHUNK = 1_000  # entries that one reply holds
_BLOCK = 1_000  # milliseconds for which the server holds back the answer where there is no entry

_Chunk: TypeAlias = list[tuple[bytes, list[bytes]]]


class WorkerLog:
    """The log of the workers of one network."""

    def __init__(self, connection: Connection, keys: NetworkKeys, malformed: MalformedRecords) -> None:
        self._connection = connection
        self._malformed = malformed
        self._key = keys.log

    async def read(self, after: str = "0") -> tuple[str, list[LogEntry]]:
        """Reads the entries after an id of the stream.

        Args:
            after: the id of the last entry that was read; "0" reads from the start.

        Returns:
            The id of the last entry now, and the entries in the order of the stream, without malformed ones.
        """
        entries: list[LogEntry] = []
        while True:
            chunk: _Chunk = await self._connection.ask("XRANGE", self._key, f"({after}", "+", "COUNT", _CHUNK)
            entries += self._decoded(chunk)
            if chunk:
                after = chunk[-1][0].decode()
            if len(chunk) < _CHUNK:
                return after, entries

    async def wait(self, after: str) -> tuple[str, list[LogEntry]]:
        """Waits for entries after an id of the stream, and reads them. The server answers when there is one; meanwhile nothing
        else can be asked on the connection, and a cancelled wait keeps it for a second at most.

        Args:
            after: the id of the last entry that was read.

        Returns:
            As `read` does; no entries where none has come for a second.
        """
        ask = ("XREAD", "COUNT", _CHUNK, "BLOCK", _BLOCK, "STREAMS", self._key, after)
        found: list[tuple[bytes, _Chunk]] | None = await self._connection.ask(*ask)
        if not found:
            return after, []
        ((_, chunk),) = found
        return chunk[-1][0].decode(), self._decoded(chunk)

    def _decoded(self, chunk: _Chunk) -> list[LogEntry]:
        entries: list[LogEntry] = []
        for entry_id, fields in chunk:
            try:
                entries.append(LogEntry.of(fields[1]))
            except DecodeError as error:
                self._malformed.note("log", entry_id, fields[1], error)
        return entries
