"""What an export has read, in temporary files: it need not fit into memory, and is gone with the process."""

from __future__ import annotations

import sqlite3
import struct
import tempfile
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path

from rush_async.store.fields import HEADER

__all__ = ["SpooledRecords", "SpooledRows"]

_LENGTH = struct.Struct(">I")


class SpooledRows:
    """Rows of bytes in an unnamed file, in the order in which they were added.

    Args:
        folder: where the file is.
        width: how many columns a row has.
    """

    def __init__(self, folder: Path, width: int) -> None:
        self.n_rows = 0
        self._width = width
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - `close` closes it

    def add(self, *row: bytes) -> None:
        """Adds a row."""
        for cell in row:
            self._file.write(_LENGTH.pack(len(cell)) + cell)
        self.n_rows += 1

    def __iter__(self) -> Iterator[Sequence[bytes]]:
        self._file.seek(0)
        for _ in range(self.n_rows):
            yield [self._file.read(_LENGTH.unpack(self._file.read(_LENGTH.size))[0]) for _ in range(self._width)]

    def close(self) -> None:
        """Removes the file."""
        self._file.close()


class SpooledRecords(MutableMapping[bytes, bytes]):
    """Records of tasks of one state by key: a temporary database of SQLite."""

    def __init__(self) -> None:
        # An empty name is a temporary file that SQLite removes. Nothing is committed: only this connection reads it.
        self._database = sqlite3.connect("", check_same_thread=False)
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("CREATE TABLE records (key BLOB PRIMARY KEY, record BLOB) WITHOUT ROWID")
        self._database.create_function("index_of", 1, _index_of, deterministic=True)

    def __getitem__(self, key: bytes) -> bytes:
        row = self._database.execute("SELECT record FROM records WHERE key = ?", (key,)).fetchone()
        if row is None:
            raise KeyError(key)
        return row[0]

    def __setitem__(self, key: bytes, record: bytes) -> None:
        self.add({key: record})

    def __delitem__(self, key: bytes) -> None:
        if not self._database.execute("DELETE FROM records WHERE key = ?", (key,)).rowcount:
            raise KeyError(key)

    def __iter__(self) -> Iterator[bytes]:
        return (key for (key,) in self._database.execute("SELECT key FROM records"))

    def __len__(self) -> int:
        return self._database.execute("SELECT count(*) FROM records").fetchone()[0]

    def add(self, records: Mapping[bytes, bytes]) -> None:
        """Adds records, in place of those with the same keys."""
        self._database.executemany("INSERT OR REPLACE INTO records VALUES (?, ?)", records.items())

    def update(self, other: Mapping[bytes, bytes], /) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Adds records all at once: one by one takes many times as long."""
        self.add(other)

    def by_index(self) -> Iterator[tuple[bytes, bytes]]:
        """The records by the indices of their tasks, each with its key."""
        return iter(self._database.execute("SELECT key, record FROM records ORDER BY index_of(record)"))

    def in_order(self, keys: Iterable[bytes]) -> Iterator[tuple[bytes, bytes]]:
        """The records of these keys, each with its key, once. Keys without a record are left out."""
        self._database.execute("CREATE TABLE places (key BLOB PRIMARY KEY, place INTEGER) WITHOUT ROWID")
        numbered = ((key, place) for place, key in enumerate(keys))
        self._database.executemany("INSERT OR IGNORE INTO places VALUES (?, ?)", numbered)
        return iter(self._database.execute("SELECT key, record FROM records JOIN places USING (key) ORDER BY place"))

    def close(self) -> None:
        """Removes the database."""
        self._database.close()


def _index_of(record: bytes) -> int:
    """The index of a task that is queued, running or failed; -1 where another program wrote something else."""
    try:
        end = HEADER.size + HEADER.unpack_from(record)[2]
        return struct.unpack_from(">I", record, end - 4)[0]
    except struct.error:
        return -1
