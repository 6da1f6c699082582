"""Records that cannot be decoded, because another program wrote them: each is named once and left out."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from rush_async.errors import DecodeError
from rush_async.model import TaskState
from rush_async.store.decoding import CHUNK, complete, decode_records
from rush_async.store.fields import FIELDS, INDEX, KEY

__all__ = ["MalformedRecord", "MalformedRecords", "Place", "Sifted"]

logger = logging.getLogger(__name__)

Place: TypeAlias = Literal["queued", "running", "finished", "failed", "workers", "log"]

_MOST_KEPT = 10_000  # records of one network that are noted


@dataclass(frozen=True)
class MalformedRecord:
    """A record that cannot be decoded.

    Attributes:
        place: where it is: `queued`, `running`, `finished`, `failed`, `workers` or `log`.
        name: the key of the task or worker, where bytes that are not UTF-8 are surrogates; of a finished task its number in the
            list, of the log the id of the entry.
        reason: what is wrong with it.
        data: what is stored.
    """

    place: str
    name: str
    reason: str
    data: bytes


class Sifted(NamedTuple):
    """Records of tasks in one state, without malformed ones.

    Attributes:
        keys: the keys of the tasks.
        indices: their indices.
        records: their complete records.
    """

    keys: list[str]
    indices: list[int]
    records: list[bytes]

    def in_order(self) -> Sifted:
        """The records by their indices."""
        order = sorted(range(len(self.indices)), key=self.indices.__getitem__)
        keys, indices, records = self
        return Sifted([keys[at] for at in order], [indices[at] for at in order], [records[at] for at in order])


class MalformedRecords:
    """Names the malformed records of one network, each once, in a warning.

    Attributes:
        found: those that reads have met.
    """

    def __init__(self, network_id: str) -> None:
        self.found: dict[tuple[Place, str], MalformedRecord] = {}
        self._network_id = network_id
        self._named: set[tuple[Place, str, bytes]] = set()

    def note(self, place: Place, name: bytes | str, data: bytes, error: DecodeError) -> None:
        """Notes a record that is left out."""
        if isinstance(name, bytes):
            name = name.decode("utf-8", "surrogateescape")
        if len(self.found) < _MOST_KEPT:
            self.found[place, name] = MalformedRecord(place, name, str(error), data)
        mark = (place, name, data[:100])
        if mark in self._named or len(self._named) >= _MOST_KEPT:
            return
        self._named.add(mark)
        logger.warning(
            "network %r: what is stored as %r of %s is malformed and is left out: %s. `malformed_records()` lists all, "
            "`remove_malformed_records()` removes them",
            self._network_id,
            name,
            place,
            error,
        )

    def sift(self, state: TaskState, stored: Mapping[bytes, bytes]) -> Sifted:
        """Separates the records of tasks that are queued, running or failed from malformed ones.

        Args:
            state: the state.
            stored: what the network stores, by key.
        """
        sifted, items = Sifted([], [], []), list(stored.items())
        for first in range(0, len(items), CHUNK):
            self._sift(state, items[first : first + CHUNK], sifted)
        return sifted

    def _sift(self, state: TaskState, items: Sequence[tuple[bytes, bytes]], sifted: Sifted) -> None:
        try:
            records = [complete(state, raw) for _, raw in items]
            flat = decode_records(state, b"".join(records), len(records))
            keys: list[str] = flat[KEY::FIELDS]
            if [key.encode() for key in keys] != [key for key, _ in items]:
                raise DecodeError("it is the record of another task")
        except DecodeError as error:
            if len(items) == 1:
                self.note(state, *items[0], error)
                return
            for item in items:
                self._sift(state, [item], sifted)
        else:
            sifted.keys.extend(keys)
            sifted.indices.extend(flat[INDEX::FIELDS])
            sifted.records.extend(records)
