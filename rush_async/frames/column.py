"""One column of a frame: its place in the records, its name, and how its values become a series."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import date, time
from itertools import chain, islice
from types import NoneType
from typing import Any, TypeAlias

import polars as pl

from rush_async.errors import DecodeError
from rush_async.store.fields import ATTEMPT, CREATED_AT, END_OF_TIME, ENDED_AT, INDEX, STARTED_AT

__all__ = ["INSTANT", "NO_FIELD", "TIMES", "Column", "Slot", "text"]

# The place of a value in a record: the index of its field and, where the field has names, its name; else "".
Slot: TypeAlias = tuple[int, str]

NO_FIELD = -1  # of a column that no record has
TIMES: dict[Slot, str] = {
    (CREATED_AT, ""): "created_at",
    (STARTED_AT, ""): "started_at",
    (ENDED_AT, ""): "ended_at",
    (ATTEMPT, ""): "attempt",
    (INDEX, ""): "index",
}
INSTANT = pl.Datetime("us", "UTC")

# Casts that keep every value, of an int to Float64 only where a float equals it.
_CASTS = {(pl.Boolean(), pl.Int64()), (pl.Boolean(), pl.Float64()), (pl.Int64(), pl.Float64())}


def text(value: Any) -> str | None:
    """The text of a value in a column of dtype String."""
    match value:
        case None | str():
            return value
        case bytes():
            return repr(value)
        case date() | time():
            return value.isoformat()
        case list() | dict():
            return json.dumps(value, default=text, ensure_ascii=False)
        case _:
            return str(value)


@dataclass(frozen=True, eq=False, slots=True)
class Column:
    """One column, and how its values become a series.

    Attributes:
        slot: the place of its values in a record.
        name: its name in the frame.
        dtype: its dtype.
        has_exact_floats: whether a float equals each int in it.
        is_plain: whether polars takes its values for the dtype as they are.
    """

    slot: Slot
    name: str
    dtype: pl.DataType
    has_exact_floats: bool = True
    is_plain: bool = True

    @property
    def is_in_every_record(self) -> bool:
        """Whether each record has it, although no layout without times does."""
        return self.slot in TIMES

    def series(self, values: list[Any], keys: list[str]) -> pl.Series:
        """These values as a series; `keys` are those of their tasks.

        Raises:
            DecodeError: a value is not of the type that this library writes.
        """
        try:
            if self.slot in TIMES and self.dtype == INSTANT:
                since_1970 = [None if value is None else round(value * 1e6) for value in values]
                return pl.Series(self.name, since_1970, dtype=pl.Int64).cast(INSTANT)
            cells = values if self.is_plain else self._cells(values, self.dtype)
            return pl.Series(self.name, cells, dtype=self.dtype)
        except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError) as error:
            if self.slot in TIMES:  # another program wrote one that is no time, or no number of an attempt
                most = END_OF_TIME if self.dtype == INSTANT else 2**63
                fitting = [value if value is not None and 0 <= value < most else None for value in values]
                if fitting != values:
                    return self.series(fitting, keys)
            raise DecodeError(f"column {self.name!r} has values that this library never writes: {error}") from error

    def nulls(self, n: int) -> pl.Series:
        """A series of `n` nulls."""
        one = pl.Series(self.name, [None], dtype=self.dtype)
        return one.new_from_index(0, n) if n else one.clear()

    def recast(self, series: pl.Series) -> pl.Series | None:
        """A series of another layout as this column, or None if only the values themselves can tell."""
        if series.dtype == self.dtype:
            return series if series.name == self.name else series.alias(self.name)
        if series.dtype == pl.Null:
            return self.nulls(len(series))
        if self.has_exact_floats and (series.dtype, self.dtype) in _CASTS:
            return series.cast(self.dtype).alias(self.name)
        return None

    def _cells(self, values: list[Any], dtype: Any) -> list[Any]:
        """The values as polars takes them for this dtype."""
        match dtype:
            case pl.List() | pl.Array():
                return self._lists(values, dtype.inner)
            case pl.Struct():
                return self._mappings(values, {member.name: member.dtype for member in dtype.fields})
            case _:
                return self._scalars(values, dtype)

    def _lists(self, values: list[Any], inner: Any) -> list[Any]:
        items = iter(self._cells(list(chain.from_iterable(filter(None, values))), inner))
        return [None if value is None else list(islice(items, len(value))) for value in values]

    def _mappings(self, values: list[Any], members: dict[str, Any]) -> list[Any]:
        given = {name: [None if value is None else value.get(name) for value in values] for name in members}
        cells = {name: self._cells(given[name], dtype) for name, dtype in members.items()}
        sizes = {len(value) for value in values if value is not None}
        if sizes <= {len(members)} and all(cells[name] is given[name] for name in members):
            return values  # not copied, for that takes most of the time
        rows = zip(*cells.values(), strict=True)
        return [None if value is None else dict(zip(cells, row, strict=True)) for value, row in zip(values, rows, strict=True)]

    def _scalars(self, values: list[Any], dtype: pl.DataType) -> list[Any]:
        kinds = set(map(type, values)) - {NoneType}
        match dtype:
            case pl.String() if kinds != {str}:
                return list(map(text, values))
            case pl.Int64() if bool in kinds:
                return [None if value is None else int(value) for value in values]
            case pl.Float64() if kinds != {float}:
                return [None if value is None else float(value) for value in values]
            case _:
                return values
