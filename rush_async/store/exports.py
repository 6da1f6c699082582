"""The reads of an export: what a network keeps beside the records of its tasks. They change nothing on the server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple

from rush_async.store.keys import NetworkKeys
from rush_async.store.scripts import MOST_BYTES, MOST_TASKS
from rush_async.wire.connection import Connection

__all__ = ["ExportReads", "SharedData"]

_FIRST_COUNT = 100  # entries of a stream that are read first, while their size is unknown
_MOST_COUNT = 5_000


class SharedData(NamedTuple):
    """What the clients of a network share, as it is stored at one moment.

    Attributes:
        meta: the fields of the network itself.
        attributes: name -> value.
        claims: name -> value.
        directions: name of a ranking -> its direction.
        returned: the indices that were reserved and became no task, also those that are still reserved.
        starts: the digests of the loops that commands start, each with its arguments.
    """

    meta: dict[bytes, bytes]
    attributes: dict[bytes, bytes]
    claims: dict[bytes, bytes]
    directions: dict[bytes, bytes]
    returned: list[int]
    starts: list[str]


class ExportReads:
    """Reads a network for an export."""

    def __init__(self, connection: Connection, keys: NetworkKeys) -> None:
        self._connection = connection
        self._keys = keys

    async def shared(self) -> SharedData:
        """Reads what the clients share."""
        keys = self._keys
        *hashes, returned, starts = await self._connection.ask_together(
            *[("HGETALL", name) for name in (keys.meta, keys.attributes, keys.claims, keys.rankings, keys.reserved)],
            ("ZRANGE", keys.returned, 0, -1),
            ("HKEYS", keys.starts),
        )
        meta, attributes, claims, directions, reserved = [_paired(flat) for flat in hashes]
        indices = [int(index) for text in (*reserved.values(), *returned) for index in text.split() if index.isdigit()]
        return SharedData(
            meta, attributes, claims, directions, sorted(indices), sorted(name.decode("utf-8", "replace") for name in starts)
        )

    async def ranking(self, name: bytes) -> dict[bytes, bytes]:
        """Reads the keys of a ranking with their scores, as the sorted set has them."""
        return _paired(await self._connection.ask("ZRANGE", self._keys.rankings.encode() + b":" + name, 0, -1, "WITHSCORES"))

    async def pairs(self, name: str) -> AsyncIterator[dict[bytes, bytes]]:
        """Reads a hash in steps: a name that changes meanwhile comes as it was or as it is, one that is new may be missing."""
        cursor = b"0"
        while True:
            cursor, flat = await self._connection.ask("HSCAN", name, cursor, "COUNT", MOST_TASKS)
            yield _paired(flat)
            if cursor == b"0":
                return

    async def entries(self, name: str) -> AsyncIterator[Sequence[tuple[bytes, bytes]]]:
        """Reads a stream in steps: the ids of its entries, each with what is stored there. Foreign entries are left out."""
        after, count = b"-", _FIRST_COUNT
        while True:
            entries = await self._connection.ask("XRANGE", name, after, "+", "COUNT", count)
            ours = [(place, fields[1]) for place, fields in entries if len(fields) == 2 and fields[0] == b"r"]
            yield ours
            if len(entries) < count:
                return
            after = b"(" + entries[-1][0]
            largest = max([len(packed) for _, packed in ours], default=0)
            count = max(1, min(_MOST_COUNT, MOST_BYTES // (largest + 100)))


def _paired(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))
