"""The records of finished tasks, as they arrived, without the frames that can be made of them."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, chain
from typing import Any, Literal, Protocol, TypeGuard

from rush_async.errors import DecodeError
from rush_async.model import Task
from rush_async.store.decoding import CHUNK, check_values, decode_flat, decode_records, decode_task
from rush_async.store.fields import END, FIELDS

__all__ = ["CHUNK", "Best", "Decoder", "Records", "is_number"]


class Notes(Protocol):
    """Takes note of malformed records."""

    def note(self, place: Literal["finished"], name: str, data: bytes, error: DecodeError) -> None:
        """Notes a record that is left out."""


class Decoder(Protocol):
    """Makes frames of the records."""

    def decode_chunks(self) -> None:
        """Is called after records were added."""

    def clear(self) -> None:
        """Removes the records, and what was made of them."""


def is_number(value: object) -> TypeGuard[float]:
    """Returns whether an output has a value that can be compared: an int or a float, but nan."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


class Best:
    """The best value of an output among finished tasks.

    Args:
        output: its name; None for none.
        maximize: whether the largest value is the best.

    Attributes:
        value: the best value; None before the first.
    """

    def __init__(self, output: str | None, *, maximize: bool) -> None:
        self.output = output
        self.value: float | None = None
        self._better = max if maximize else min

    def take(self, values: Iterable[object]) -> None:
        """Takes the values of further tasks; what is no number is left out."""
        known = [] if self.value is None else [self.value]
        self.value = self._better([*known, *filter(is_number, values)], default=None)


class Records:
    """Complete records, a place each. Malformed ones keep their place, and are left out of what is made of the records.

    Args:
        notes: is given the malformed records.
    """

    def __init__(self, notes: Notes | None = None) -> None:
        self._notes = notes
        self._malformed: set[int] = set()  # their places
        self._chunks: list[bytes] = []  # of CHUNK records each
        self._bounds: list[array[int]] = []  # where the records of a chunk begin, and where the last one ends
        self._open: list[bytes] = []  # the records behind the last chunk
        self._rows: dict[str, int] = {}  # where those are that `find` has looked at
        self._n_looked = 0

    def __len__(self) -> int:
        return len(self._chunks) * CHUNK + len(self._open)

    def extend(self, records: Sequence[bytes]) -> None:
        """Adds records."""
        at = 0
        while at < len(records):
            n_free = CHUNK - len(self._open)
            self._open += records[at : at + n_free]
            at += n_free
            if len(self._open) == CHUNK:
                self._chunks.append(b"".join(self._open))
                self._bounds.append(array("L", accumulate(map(len, self._open), initial=0)))
                self._open = []

    def raw(self, start: int, stop: int) -> list[bytes]:
        """The records from row `start` to before row `stop`."""
        found: list[bytes] = []
        for first, last in self.windows(start, stop):
            at, offset = divmod(first, CHUNK)
            if at == len(self._chunks):
                found += self._open[offset : offset + last - first]
                continue
            chunk, bounds = self._chunks[at], self._bounds[at]
            found += [chunk[bounds[row] : bounds[row + 1]] for row in range(offset, offset + last - first)]
        return found

    def windows(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """The rows from `start` to before `stop`, those of one chunk at a time."""
        stop = min(stop, len(self))
        while start < stop:
            last = min(stop, start - start % CHUNK + CHUNK)
            yield start, last
            start = last

    def decode(self, first: int, last: int) -> list[Any]:
        """The records of a window, as `decode_flat` returns them, without malformed ones."""
        whole = last - first == CHUNK and first % CHUNK == 0
        try:
            chunk = self._chunks[first // CHUNK] if whole else b"".join(self.raw(first, last))
            return decode_flat(chunk, last - first)
        except DecodeError:
            good = self.good(first, last)
            return decode_flat(b"".join(good), len(good))

    def good(self, first: int, last: int) -> list[bytes]:
        """The records of a window that are not malformed, each looked at by itself; notes the others."""
        good: list[bytes] = []
        for place, raw in enumerate(self.raw(first, last), first):
            try:
                check_values(decode_flat(raw, 1), raw)
            except DecodeError as error:
                self._note(place, raw, error)
            else:
                good.append(raw)
        return good

    def _note(self, place: int, raw: bytes, error: DecodeError) -> None:
        self._malformed.add(place)
        if raw and self._notes is not None:  # an empty one was removed
            self._notes.note("finished", str(place), raw, error)

    def n_malformed(self, stop: int) -> int:
        """How many records before a place are malformed, as far as is known."""
        return sum(place < stop for place in self._malformed)

    def check(self) -> None:
        """Looks at each record, so that those that are malformed are noted."""
        for place, raw in enumerate(self.raw(0, len(self))):
            try:
                decode_records("finished", raw, 1)
            except DecodeError as error:
                self._note(place, raw, error)

    def decode_chunks(self) -> None:
        """Nothing is made of the records here."""

    def clear(self) -> None:
        """Removes all records."""
        self._chunks, self._bounds, self._open, self._rows, self._n_looked = [], [], [], {}, 0
        self._malformed = set()

    def find(self, keys: Iterable[str]) -> dict[str, Task]:
        """The tasks with these keys, as far as they are here."""
        for first, last in self.windows(self._n_looked, len(self)):
            found = self.decode(first, last)[::FIELDS]
            places = [place for place in range(first, last) if place not in self._malformed]
            self._rows.update(zip(found, places, strict=True))
            self._n_looked = last
        return {
            key: decode_task("finished", self.raw(row, row + 1)[0]) for key in keys if (row := self._rows.get(key)) is not None
        }

    def numbers(self, output: str, left_out: Sequence[tuple[int, int]] = ()) -> Iterator[float]:
        """The values of an output that are numbers, nan left out.

        Args:
            output: its name.
            left_out: places whose records are left out: the first, and the one behind the last of each run, in order.
        """
        starts, stops = [0, *[behind for _, behind in left_out]], [*[first for first, _ in left_out], len(self)]
        for window in chain.from_iterable(map(self.windows, starts, stops)):
            outputs: list[dict[str, Any] | None] = self.decode(*window)[END::FIELDS]
            for each in outputs:
                value = None if each is None else each.get(output)
                if is_number(value):
                    yield value

    def keys(self, start: int, stop: int) -> list[str]:
        """The keys of the tasks from row `start` to before row `stop`."""
        return [key for window in self.windows(start, stop) for key in self.decode(*window)[::FIELDS]]
