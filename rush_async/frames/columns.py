"""What records hold and as what it stands in a frame: one lattice of types, one order and one naming of columns.

A column's dtype is a function of the set of kinds of values that were seen in it, and such sets are united: it does not matter
in which portions the records were read.

| values of a column, besides None | dtype |
|---|---|
| none | Null |
| bool | Boolean |
| int, or int and bool | Int64 |
| float, or float with int and bool | Float64 |
| str, UUID, Decimal, or a mixture of them | String |
| bytes | Binary |
| date, time, timedelta | Date, Time, Duration("us") |
| aware datetime, naive datetime | Datetime("us", "UTC"), Datetime("us") |
| lists, mappings | List, Struct, each member by this table |
| ints beyond 64 bits, floats with ints that no float equals, anything else | String with a warning |

String holds the text of each value: a str itself, a number as Python writes it, bytes as their repr, dates in ISO format, lists
and mappings as JSON. No value is rounded or lost on the way; nan is a float and None is null.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from itertools import chain
from operator import itemgetter
from typing import Any, TypeAlias, cast
from uuid import UUID

import polars as pl

from rush_async.errors import DecodeError
from rush_async.model import TaskState
from rush_async.store.records import FIELDS, RESERVED_NAMES

__all__ = ["Column", "Layout", "Seen", "Slot", "Values", "nulls", "text", "values_of"]

# Where a value comes from: its place in a record, and its name there (empty for what is not a mapping).
Slot: TypeAlias = tuple[int, str]
Values: TypeAlias = dict[Slot, list[Any]]

_KEY, _WORKER, _ENDED = (0, ""), (4, ""), 7
_CONDITION, _STATE, _NOWHERE = (FIELDS, ""), (FIELDS + 1, ""), FIELDS + 2
_TIMES: dict[Slot, str] = {(3, ""): "created_at", (6, ""): "started_at", (9, ""): "ended_at", (5, ""): "attempt"}
_INSTANT = pl.Datetime("us", "UTC")
_FAILURE = ("kind", "type", "message", "traceback")

# The mappings of a record in the order of their columns, with the prefix of a name that is taken.
_GROUPS = {1: "xs", 7: "ys", 2: "xs_extra", 8: "ys_extra"}

# Kinds of values. Uneven are ints that no float equals; odd is what the dtype of its type cannot hold.
_BOOL, _INT, _UNEVEN, _FLOAT, _STR, _BYTES, _DECIMAL, _UUID, _DATE, _NAIVE, _AWARE, _TIME, _DELTA, _LIST, _DICT, _ODD = (
    1 << bit for bit in range(16)
)
_KINDS: dict[type, int] = {
    type(None): 0,
    bool: _BOOL,
    float: _FLOAT,
    str: _STR,
    bytes: _BYTES,
    Decimal: _DECIMAL,
    UUID: _UUID,
    date: _DATE,
}
_LATTICE: tuple[tuple[int, pl.DataType], ...] = (
    (0, pl.Null()),
    (_BOOL, pl.Boolean()),
    (_BOOL | _INT | _UNEVEN, pl.Int64()),
    (_BOOL | _INT | _FLOAT, pl.Float64()),
    (_STR | _UUID | _DECIMAL, pl.String()),
    (_BYTES, pl.Binary()),
    (_DATE, pl.Date()),
    (_NAIVE, pl.Datetime("us")),
    (_AWARE, _INSTANT),
    (_TIME, pl.Time()),
    (_DELTA, pl.Duration("us")),
)
# Widenings that polars may do on what is there already.
_CASTS = {(pl.Boolean(), pl.Int64()), (pl.Boolean(), pl.Float64()), (pl.Int64(), pl.Float64())}
_EXACT = 2**53
_LAST = 2**63
_DEEPEST = 100


def text(value: Any) -> str | None:
    """A value as it stands in a column of dtype String."""
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


class Shape:
    """What was seen at one place: kinds of values, and what is in its lists and mappings."""

    __slots__ = ("_depth", "_fields", "_item", "_kinds")

    def __init__(self, depth: int = 0) -> None:
        if depth > _DEEPEST:
            raise DecodeError(
                f"a record holds a value that is nested more than {_DEEPEST} deep, which this library never writes"
            )
        self._depth = depth
        self._kinds = 0
        self._item: Shape | None = None
        self._fields: dict[str, Shape] = {}

    def learn(self, values: list[Any]) -> bool:
        """Adds what these values are; True if that was not known."""
        before, news = self._kinds, False
        for kind in set(map(type, values)):
            if (bit := _KINDS.get(kind)) is None:
                news |= self._look([value for value in values if type(value) is kind], kind)
            else:
                self._kinds |= bit
        return news or self._kinds != before

    def _look(self, values: list[Any], kind: type) -> bool:
        news = False
        if kind is int:
            self._kinds |= _kinds_of_ints(values)
        elif kind is datetime:
            for value in values:
                self._kinds |= _NAIVE if value.tzinfo is None else _AWARE
        elif kind is time:
            for value in values:
                self._kinds |= _TIME if value.tzinfo is None else _ODD
        elif kind is timedelta:
            for value in values:
                self._kinds |= _DELTA if -_LAST <= value // timedelta(microseconds=1) < _LAST else _ODD
        elif kind is list:
            self._kinds |= _LIST
            self._item = self._item or Shape(self._depth + 1)
            news = self._item.learn(list(chain.from_iterable(values)))
        elif kind is dict:
            self._kinds |= _DICT
            news = self._learn_fields(values)
        else:
            raise DecodeError(f"a record holds a {kind.__module__}.{kind.__qualname__}, which this library never writes")
        return news

    def _learn_fields(self, mappings: list[dict[str, Any]]) -> bool:
        members: dict[str, list[Any]] = {}
        for mapping in mappings:
            for name, value in mapping.items():
                members.setdefault(name, []).append(value)
        news = False
        for name, values in members.items():
            if name not in self._fields:
                self._fields[_checked_name(name)] = Shape(self._depth + 1)
                news = True
            news |= self._fields[name].learn(values)
        return news

    @property
    def dtype(self) -> pl.DataType:
        """The narrowest dtype that holds all that was seen, unchanged."""
        if self._kinds == _LIST:
            assert self._item is not None
            return pl.List(self._item.dtype)
        if self._kinds == _DICT:
            return pl.Struct({name: shape.dtype for name, shape in self._fields.items()})
        return next((dtype for kinds, dtype in _LATTICE if not self._kinds & ~kinds), pl.String())

    @property
    def floats_hold_ints(self) -> bool:
        """Whether each int equals a float."""
        return not self._kinds & _UNEVEN

    def mixtures(self, path: str) -> Iterator[str]:
        """Paths whose values have no type in common."""
        if self._kinds == _LIST:
            assert self._item is not None
            yield from self._item.mixtures(f"{path}[]")
        elif self._kinds == _DICT:
            for name, shape in self._fields.items():
                yield from shape.mixtures(f"{path}.{name}")
        elif all(self._kinds & ~kinds for kinds, _ in _LATTICE):
            yield path

    def writer(self) -> Callable[[Any], Any] | None:
        """What turns a value into one that polars takes for the dtype as it is; None if it does already."""
        if self._kinds == _LIST:
            assert self._item is not None
            return _list_writer(self._item.writer())
        if self._kinds == _DICT:
            return _struct_writer({name: shape.writer() for name, shape in self._fields.items()})
        match self.dtype:
            case pl.String() if self._kinds != _STR:
                return text
            case pl.Int64() if self._kinds & _BOOL:
                return _as_int
            case pl.Float64() if self._kinds != _FLOAT:
                return _as_float
            case _:
                return None


def _kinds_of_ints(values: list[int]) -> int:
    if min(values) >= -_EXACT and max(values) <= _EXACT:
        return _INT
    kinds = 0
    for value in values:
        kinds |= _ODD if not -_LAST <= value < _LAST else _INT if int(float(value)) == value else _UNEVEN
    return kinds


def _as_int(value: Any) -> int | None:
    return None if value is None else int(value)


def _as_float(value: Any) -> float | None:
    return None if value is None else float(value)


def _list_writer(write: Callable[[Any], Any] | None) -> Callable[[Any], Any] | None:
    if write is None:
        return None
    return lambda value: None if value is None else [write(item) for item in value]


def _struct_writer(writers: dict[str, Callable[[Any], Any] | None]) -> Callable[[Any], Any]:
    def write(value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is None:
            return None
        return {name: write(value.get(name)) if write else value.get(name) for name, write in writers.items()}

    return write


def _checked_name(name: object) -> str:
    if type(name) is not str:
        raise DecodeError(f"a record holds the name {name!r:.80}: names are strings")
    return name


def nulls(name: str, dtype: pl.DataType, n: int) -> pl.Series:
    """A column without a value."""
    return pl.Series(name, [None], dtype=dtype).new_from_index(0, n) if n else pl.Series(name, [], dtype=dtype)


# Turns the values of a column, of which the tasks' keys are given too, into a series.
Maker: TypeAlias = Callable[[list[Any], list[str]], pl.Series]


@dataclass(frozen=True, eq=False, slots=True)
class Column:
    """One column: whence, name, dtype.

    Attributes:
        slot: where its values stand in a record.
        make: values and keys -> series.
        castable: whether ints of it may become floats without looking at each.
    """

    slot: Slot
    name: str
    dtype: pl.DataType
    make: Maker
    castable: bool = True

    @property
    def in_every_record(self) -> bool:
        """Whether it stands in a record of any layout."""
        return self.slot in _TIMES

    def recast(self, series: pl.Series) -> pl.Series | None:
        """A series of the same values in another dtype as this column, or None if only the values themselves can tell."""
        if series.dtype == self.dtype:
            return series if series.name == self.name else series.alias(self.name)
        if series.dtype == pl.Null:
            return nulls(self.name, self.dtype, len(series))
        if self.castable and (series.dtype, self.dtype) in _CASTS:
            return series.cast(self.dtype).alias(self.name)
        return None


def _maker(name: str, dtype: pl.DataType, write: Callable[[Any], Any] | None = None) -> Maker:
    def make(values: list[Any], _: list[str]) -> pl.Series:
        if write is not None:
            values = [write(value) for value in values]
        try:
            return pl.Series(name, values, dtype=dtype)
        except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError) as error:
            raise DecodeError(f"the values of column {name!r} are not those of a record of this library: {error}") from error

    return make


def _instant(name: str) -> Maker:
    def make(values: list[Any], _: list[str]) -> pl.Series:
        try:
            since_1970 = [None if value is None else round(value * 1e6) for value in values]
            return pl.Series(name, since_1970, dtype=pl.Int64).cast(_INSTANT)
        except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError) as error:
            raise DecodeError(f"a time in column {name!r} is not one: {error}") from error

    return make


def _plain(slot: Slot, name: str, dtype: pl.DataType) -> Column:
    return Column(slot, name, dtype, _instant(name) if dtype == _INSTANT else _maker(name, dtype))


@dataclass(frozen=True, eq=False, slots=True)
class Layout:
    """The columns of a frame in their order.

    Attributes:
        columns: all of them.
        mixtures: column -> what in it is text for want of a common type.
        by_slot: the same by where their values come from.
    """

    columns: tuple[Column, ...]
    mixtures: Mapping[str, str]
    by_slot: dict[Slot, Column] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_slot", {column.slot: column for column in self.columns})

    def build(self, values: Values, n: int) -> pl.DataFrame:
        """The frame of `n` records."""
        keys = values.get(_KEY, [])
        return pl.DataFrame(
            [
                column.make(values[column.slot], keys) if column.slot in values else nulls(column.name, column.dtype, n)
                for column in self.columns
            ]
        )

    def view(self, *, times: bool, columns: Mapping[str, Column], asked: Container[str]) -> Layout:
        """The same for somebody else.

        Args:
            times: whether the columns of the times belong to it.
            columns: what stands instead of, or beside, the columns of their names.
            asked: columns whose dtype was asked for, so that text in them is no surprise.
        """
        missing = dict(columns)
        every = [missing.pop(column.name, column) for column in self.columns]
        # What no record has yet is most likely an output.
        behind = 1 + max(at for at, column in enumerate(every) if column.slot[0] in (1, _ENDED) or column.slot == _WORKER)
        every[behind:behind] = missing.values()
        if times:
            every[-1:-1] = (_plain(slot, name, pl.Int64() if name == "attempt" else _INSTANT) for slot, name in _TIMES.items())
        return Layout(tuple(every), {name: path for name, path in self.mixtures.items() if name not in asked})

    def column(self, name: str, dtype: pl.DataType, make: Maker) -> Column:
        """A column of this name in another dtype, or one that no record has."""
        found = next((column for column in self.columns if column.name == name), None)
        if found is None:
            return Column((_NOWHERE, name), name, dtype, make)
        return Column(found.slot, name, dtype, make, found.castable)


class Seen:
    """What all records of a frame hold, so far."""

    def __init__(self) -> None:
        self._shapes: dict[Slot, Shape] = {}

    def learn(self, values: Values) -> bool:
        """Adds what these records hold; True if that changes the columns."""
        news = False
        for slot, column in values.items():
            if slot[0] not in _GROUPS:
                continue
            shape = self._shapes.get(slot)
            if shape is None:
                shape = self._shapes[slot] = Shape()
                news = True
            news |= shape.learn(column)
        return news

    def layout(self, *, with_state: bool, with_condition: bool) -> Layout:
        """The columns of all that was seen."""
        columns = [_plain(_STATE, "state", pl.String())] if with_state else []
        columns.append(_plain(_WORKER, "worker_id", pl.String()))
        taken, mixtures = set(RESERVED_NAMES), dict[str, str]()
        for place, prefix in _GROUPS.items():
            for slot, shape in self._shapes.items():
                if slot[0] != place:
                    continue
                name = slot[1]
                while name in taken:
                    name = f"{prefix}.{name}"
                taken.add(name)
                columns.append(
                    Column(slot, name, shape.dtype, _maker(name, shape.dtype, shape.writer()), shape.floats_hold_ints)
                )
                if path := ", ".join(shape.mixtures(name)):
                    mixtures[name] = path
        if with_condition:
            columns.append(_plain(_CONDITION, "condition", pl.Struct(dict.fromkeys(_FAILURE, pl.String()))))
        columns.append(_plain(_KEY, "keys", pl.String()))
        return Layout(tuple(columns), mixtures)


def values_of(flat: list[Any], state: TaskState) -> Values:
    """The values of records by where they stand, each list as long as there are records; `flat` as `decode_flat` returns it."""
    n = len(flat) // FIELDS
    values: Values = {slot: flat[slot[0] :: FIELDS] for slot in (_KEY, _WORKER, *_TIMES)}
    values[_STATE] = [state] * n
    for place in _GROUPS:
        rows = flat[place::FIELDS]
        if state == "failed" and place == _ENDED:
            values[_CONDITION] = [_condition(row) for row in rows]
        else:
            values |= _members(place, rows)
    return values


def _members(place: int, rows: list[dict[str, Any] | None]) -> Values:
    names = rows[0]
    if names is None and rows.count(None) == len(rows):
        return {}
    if names is not None:
        # The usual case: all have the same names. What is not so fails here.
        with suppress(KeyError, TypeError):
            alike = cast("list[dict[str, Any]]", rows)
            if set(map(len, alike)) == {len(names)}:
                return {(place, _checked_name(name)): list(map(itemgetter(name), alike)) for name in names}
    every = dict.fromkeys(chain.from_iterable(row for row in rows if row is not None))
    return {(place, _checked_name(name)): [None if row is None else row.get(name) for row in rows] for name in every}


def _condition(failure: dict[str, Any] | None) -> dict[str, str | None]:
    condition = {name: (failure or {}).get(name) for name in _FAILURE}
    if failure is None or not {str, type(None)}.issuperset(map(type, condition.values())):
        raise DecodeError(f"the record of a failed task holds no failure: {failure!r:.80}")
    return condition
