"""The columns of a frame, inferred from records: names, order and dtypes.

The dtype of a column follows from the set of types of its values. Sets are united, so the order and the portions in which
records arrive do not matter.

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
and mappings as JSON. No value is rounded or lost: nan stays a float, None becomes null.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from itertools import chain
from operator import itemgetter
from types import NoneType
from typing import Any, TypeAlias, cast
from uuid import UUID

import polars as pl

from rush_async.errors import DecodeError
from rush_async.frames.column import INSTANT, TIMES, Column, Slot
from rush_async.model import RESERVED_NAMES, TaskState
from rush_async.store.fields import END, END_EXTRA, FIELDS, KEY, WORKER, XS, XS_EXTRA

__all__ = ["Inference", "Layout", "Values", "values_of"]

# The values of some records by slot, each list as long as there are records.
Values: TypeAlias = dict[Slot, list[Any]]

_KEY, _WORKER = (KEY, ""), (WORKER, "")
_CONDITION = (FIELDS, "")
_FAILURE = ("kind", "type", "message", "traceback")

# The fields with names in the order of their columns, each with the prefix for a name that is taken.
_GROUPS = {XS: "xs", END: "ys", XS_EXTRA: "xs_extra", END_EXTRA: "ys_extra"}

# Types of values as bits. Uneven: an int that no float equals. Odd: a value that the dtype of its type cannot hold.
_BOOL, _INT, _UNEVEN, _FLOAT, _STR, _BYTES, _DECIMAL, _UUID, _DATE, _NAIVE, _AWARE, _TIME, _DELTA, _LIST, _DICT, _ODD = (
    1 << bit for bit in range(16)
)
_BITS: dict[type, int] = {
    NoneType: 0,
    bool: _BOOL,
    float: _FLOAT,
    str: _STR,
    bytes: _BYTES,
    Decimal: _DECIMAL,
    UUID: _UUID,
    date: _DATE,
}
# The first dtype whose types include all of a column is the narrowest for it.
_LATTICE: tuple[tuple[int, pl.DataType], ...] = (
    (0, pl.Null()),
    (_BOOL, pl.Boolean()),
    (_BOOL | _INT | _UNEVEN, pl.Int64()),
    (_BOOL | _INT | _FLOAT, pl.Float64()),
    (_STR | _UUID | _DECIMAL, pl.String()),
    (_BYTES, pl.Binary()),
    (_DATE, pl.Date()),
    (_NAIVE, pl.Datetime("us")),
    (_AWARE, INSTANT),
    (_TIME, pl.Time()),
    (_DELTA, pl.Duration("us")),
)
# Sets of types that polars takes as they are.
_PLAIN = {0, _BOOL, _INT, _UNEVEN, _INT | _UNEVEN, _FLOAT, _STR, _BYTES, _DATE, _NAIVE, _AWARE, _TIME, _DELTA}
_EXACT = 2**53
_LAST = 2**63
_DEEPEST = 100


class TypeSet:
    """The types of the values at one place, and of the members of its lists and mappings."""

    __slots__ = ("_bits", "_depth", "_item", "_members")

    def __init__(self, depth: int = 0) -> None:
        if depth > _DEEPEST:
            raise DecodeError(f"a record holds a value nested more than {_DEEPEST} deep, which this library never writes")
        self._depth = depth
        self._bits = 0
        self._item: TypeSet | None = None
        self._members: dict[str, TypeSet] = {}

    def update(self, values: list[Any]) -> bool:
        """Adds the types of these values; True if one is new."""
        before, is_changed = self._bits, False
        for kind in set(map(type, values)):
            if (bit := _BITS.get(kind)) is None:
                is_changed |= self._inspect([value for value in values if type(value) is kind], kind)
            else:
                self._bits |= bit
        return is_changed or self._bits != before

    def _inspect(self, values: list[Any], kind: type) -> bool:
        """Adds values of a type whose bit depends on the value; True if a nested type is new."""
        if kind is int:
            self._bits |= _bits_of_ints(values)
        elif kind is datetime:
            for value in values:
                self._bits |= _NAIVE if value.tzinfo is None else _AWARE
        elif kind is time:
            for value in values:
                self._bits |= _TIME if value.tzinfo is None else _ODD
        elif kind is timedelta:
            for value in values:
                self._bits |= _DELTA if -_LAST <= value // timedelta(microseconds=1) < _LAST else _ODD
        elif kind is list:
            self._bits |= _LIST
            self._item = self._item or TypeSet(self._depth + 1)
            return self._item.update(list(chain.from_iterable(values)))
        elif kind is dict:
            self._bits |= _DICT
            return self._update_members(values)
        else:
            raise DecodeError(f"a record holds a {kind.__module__}.{kind.__qualname__}, which this library never writes")
        return False

    def _update_members(self, mappings: list[dict[str, Any]]) -> bool:
        members: dict[str, list[Any]] = {}
        for mapping in mappings:
            for name, value in mapping.items():
                members.setdefault(name, []).append(value)
        is_changed = False
        for name, values in members.items():
            if name not in self._members:
                self._members[_checked_name(name)] = TypeSet(self._depth + 1)
                is_changed = True
            is_changed |= self._members[name].update(values)
        return is_changed

    @property
    def dtype(self) -> pl.DataType:
        """The narrowest dtype that holds all these values unchanged."""
        if self._bits == _LIST:
            assert self._item is not None
            return pl.List(self._item.dtype)
        if self._bits == _DICT:
            return pl.Struct({name: member.dtype for name, member in self._members.items()})
        return next((dtype for bits, dtype in _LATTICE if not self._bits & ~bits), pl.String())

    @property
    def is_plain(self) -> bool:
        """Whether polars takes the values for `dtype` as they are."""
        if self._bits == _LIST:
            assert self._item is not None
            return self._item.is_plain
        return self._bits in _PLAIN

    @property
    def has_exact_floats(self) -> bool:
        """Whether a float equals each int."""
        return not self._bits & _UNEVEN

    def mixtures(self, path: str) -> Iterator[str]:
        """Paths whose values have no dtype in common."""
        if self._bits == _LIST:
            assert self._item is not None
            yield from self._item.mixtures(f"{path}[]")
        elif self._bits == _DICT:
            for name, member in self._members.items():
                yield from member.mixtures(f"{path}.{name}")
        elif all(self._bits & ~bits for bits, _ in _LATTICE):
            yield path


def _bits_of_ints(values: list[int]) -> int:
    if min(values) >= -_EXACT and max(values) <= _EXACT:
        return _INT
    bits = 0
    for value in values:
        bits |= _ODD if not -_LAST <= value < _LAST else _INT if int(float(value)) == value else _UNEVEN
    return bits


def _checked_name(name: object) -> str:
    if type(name) is not str:
        raise DecodeError(f"a record holds the name {name!r:.80}: names are strings")
    return name


@dataclass(frozen=True, eq=False, slots=True)
class Layout:
    """The columns of a frame in their order.

    Attributes:
        columns: all of them.
        mixtures: column -> paths in it whose values are text because they have no dtype in common.
        by_slot: the columns by slot.
    """

    columns: tuple[Column, ...]
    mixtures: Mapping[str, str]
    by_slot: dict[Slot, Column] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_slot", {column.slot: column for column in self.columns})

    def build(self, values: Values, n: int) -> pl.DataFrame:
        """The frame of `n` records."""
        keys = values.get(_KEY, [])
        series = [
            column.series(values[column.slot], keys) if column.slot in values else column.nulls(n) for column in self.columns
        ]
        return pl.DataFrame({each.name: each for each in series})  # of a list, polars replaces the name '' by one of its own

    def extended(self, *, times: bool, schema: Mapping[str, Column]) -> Layout:
        """This layout as a caller asks for it.

        Args:
            times: whether it has the columns of the times, `attempt` and `index`.
            schema: the columns that it has in any case, with their dtypes. Text in them needs no warning.
        """
        if not times and not schema:
            return self
        missing = dict(schema)
        columns: list[Column] = []
        for column in self.columns:
            asked = missing.pop(column.name, column)
            if asked.dtype != column.dtype:
                column = replace(asked, slot=column.slot, has_exact_floats=column.has_exact_floats)
            columns.append(column)
        # A name that no record has yet is most likely an output.
        behind = 1 + max(at for at, column in enumerate(columns) if column.slot[0] in (XS, END) or column.slot == _WORKER)
        columns[behind:behind] = missing.values()
        if times:
            columns[-1:-1] = (
                Column(slot, name, INSTANT if name.endswith("_at") else pl.Int64()) for slot, name in TIMES.items()
            )
        return Layout(tuple(columns), {name: path for name, path in self.mixtures.items() if name not in schema})


class Inference:
    """The types of all values of some records, by slot."""

    def __init__(self) -> None:
        self._types: dict[Slot, TypeSet] = {}

    def update(self, values: Values) -> bool:
        """Adds the types of these values; True if that changes the layout."""
        is_changed = False
        for slot, column in values.items():
            if slot[0] not in _GROUPS:
                continue
            types = self._types.get(slot)
            if types is None:
                types = self._types[slot] = TypeSet()
                is_changed = True
            is_changed |= types.update(column)
        return is_changed

    def layout(self, *, with_condition: bool = False) -> Layout:
        """The columns of these records."""
        columns = [Column(_WORKER, "worker_id", pl.String())]
        taken, mixtures = set(RESERVED_NAMES), dict[str, str]()
        for group, prefix in _GROUPS.items():
            for slot, types in self._types.items():
                if slot[0] != group:
                    continue
                name = slot[1]
                while name in taken:
                    name = f"{prefix}.{name}"
                taken.add(name)
                columns.append(Column(slot, name, types.dtype, types.has_exact_floats, types.is_plain))
                if path := ", ".join(types.mixtures(name)):
                    mixtures[name] = path
        if with_condition:
            columns.append(Column(_CONDITION, "condition", pl.Struct(dict.fromkeys(_FAILURE, pl.String()))))
        columns.append(Column(_KEY, "keys", pl.String()))
        return Layout(tuple(columns), mixtures)


def values_of(flat: list[Any], state: TaskState) -> Values:
    """The values of records in this state by slot; `flat` as `decode_flat` returns it."""
    values: Values = {slot: flat[slot[0] :: FIELDS] for slot in (_KEY, _WORKER, *TIMES)}
    for group in _GROUPS:
        rows = flat[group::FIELDS]
        if state == "failed" and group == END:
            values[_CONDITION] = [_condition(row) for row in rows]
        else:
            values |= _members(group, rows)
    return values


def _members(group: int, rows: list[dict[str, Any] | None]) -> Values:
    names = rows[0]
    if names is None and rows.count(None) == len(rows):
        return {}
    if names is not None:
        # Mostly all rows have the same names, and then this is the fastest way; it fails where they have not.
        with suppress(KeyError, TypeError):
            alike = cast("list[dict[str, Any]]", rows)
            if set(map(len, alike)) == {len(names)}:
                return {(group, _checked_name(name)): list(map(itemgetter(name), alike)) for name in names}
    every = dict.fromkeys(chain.from_iterable(row for row in rows if row is not None))
    return {(group, _checked_name(name)): [None if row is None else row.get(name) for row in rows] for name in every}


def _condition(failure: dict[str, Any] | None) -> dict[str, str | None]:
    condition = {name: (failure or {}).get(name) for name in _FAILURE}
    if failure is None or not {str, NoneType}.issuperset(map(type, condition.values())):
        raise DecodeError(f"the record of a failed task holds no failure: {failure!r:.80}")
    return condition
