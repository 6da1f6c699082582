"""Values of many records as polars columns, with one lattice of types that loses nothing.

Null < Boolean < Int64 < Float64 is the chain of numbers; lists and mappings widen by member; all else that meets something
different becomes text. What a column is follows from the values in it alone, never from how the records were cut into chunks.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from itertools import chain
from typing import Any, TypeAlias
from uuid import UUID

import polars as pl

__all__ = [
    "Kind",
    "ListOf",
    "Scalar",
    "StructOf",
    "dtype_of",
    "is_mixed",
    "join",
    "kind_of",
    "kind_of_all",
    "series_of",
    "widen",
]


class Scalar(enum.Enum):
    """What a plain value is."""

    NULL = enum.auto()
    BOOLEAN = enum.auto()
    INTEGER = enum.auto()
    LARGE = enum.auto()  # an integer that no float equals, beyond 2^53
    FLOAT = enum.auto()
    STRING = enum.auto()  # text, and what is written as text without loss: UUID, Decimal
    BINARY = enum.auto()
    DATE = enum.auto()
    TIME = enum.auto()
    DURATION = enum.auto()
    NAIVE = enum.auto()
    AWARE = enum.auto()
    MIXED = enum.auto()  # no common type, or integers beyond 64 bits: written as text, which is told

    # Members are single; without this a comparison in the hot path would go through Python.
    __hash__ = object.__hash__


@dataclass(frozen=True, slots=True)
class ListOf:
    """A list; `inner` is what all members have in common."""

    inner: Kind


@dataclass(frozen=True, slots=True)
class StructOf:
    """A mapping; what the values of each name have in common, in the order the names appeared."""

    fields: tuple[tuple[str, Kind], ...]


Kind: TypeAlias = Scalar | ListOf | StructOf

_BY_TYPE: dict[type, Scalar] = {
    type(None): Scalar.NULL,
    bool: Scalar.BOOLEAN,
    int: Scalar.INTEGER,
    float: Scalar.FLOAT,
    str: Scalar.STRING,
    UUID: Scalar.STRING,
    Decimal: Scalar.STRING,
    bytes: Scalar.BINARY,
    date: Scalar.DATE,
    time: Scalar.TIME,
    timedelta: Scalar.DURATION,
}
_DTYPES: dict[Scalar, Any] = {
    Scalar.NULL: pl.Null(),
    Scalar.BOOLEAN: pl.Boolean(),
    Scalar.INTEGER: pl.Int64(),
    Scalar.LARGE: pl.Int64(),
    Scalar.FLOAT: pl.Float64(),
    Scalar.STRING: pl.String(),
    Scalar.BINARY: pl.Binary(),
    Scalar.DATE: pl.Date(),
    Scalar.TIME: pl.Time(),
    Scalar.DURATION: pl.Duration("us"),
    Scalar.NAIVE: pl.Datetime("us"),
    Scalar.AWARE: pl.Datetime("us", "UTC"),
    Scalar.MIXED: pl.String(),
}
_WIDER: dict[frozenset[Scalar], Scalar] = {
    frozenset({Scalar.BOOLEAN, Scalar.INTEGER}): Scalar.INTEGER,
    frozenset({Scalar.BOOLEAN, Scalar.LARGE}): Scalar.LARGE,
    frozenset({Scalar.BOOLEAN, Scalar.FLOAT}): Scalar.FLOAT,
    frozenset({Scalar.INTEGER, Scalar.LARGE}): Scalar.LARGE,
    frozenset({Scalar.INTEGER, Scalar.FLOAT}): Scalar.FLOAT,
}
# Values of these kinds go into a column of the same dtype as they are.
_AS_THEY_ARE = frozenset(_DTYPES) - {Scalar.STRING, Scalar.MIXED}
_EXACT = 2**53


def join(one: Kind, other: Kind) -> Kind:
    """The narrowest kind that holds the values of both."""
    if one == other or other is Scalar.NULL:
        return one
    if one is Scalar.NULL:
        return other
    if isinstance(one, ListOf) and isinstance(other, ListOf):
        return ListOf(join(one.inner, other.inner))
    if isinstance(one, StructOf) and isinstance(other, StructOf):
        fields = dict(one.fields)
        for name, kind in other.fields:
            fields[name] = join(fields.get(name, Scalar.NULL), kind)
        return StructOf(tuple(fields.items()))
    if isinstance(one, Scalar) and isinstance(other, Scalar):
        return _WIDER.get(frozenset({one, other}), Scalar.MIXED)
    return Scalar.MIXED


def kind_of(values: Sequence[Any]) -> Kind:
    """What all these values have in common."""
    kind: Kind = Scalar.NULL
    types = set(map(type, values))
    for found in types:
        kind = join(kind, _kind_of_type(found, values, len(types) == 1))
    return kind


def _kind_of_type(found: type, values: Sequence[Any], is_only: bool) -> Kind:
    if found is not int and (scalar := _BY_TYPE.get(found)) is not None:
        return scalar
    mine: Sequence[Any] = values if is_only else [value for value in values if type(value) is found]
    if found is int:
        lowest, highest = min(mine), max(mine)
        if lowest >= -_EXACT and highest <= _EXACT:
            return Scalar.INTEGER
        return Scalar.LARGE if lowest >= -(2**63) and highest < 2**63 else Scalar.MIXED
    if found is list:
        return ListOf(kind_of(list(chain.from_iterable(mine))))
    if found is dict:
        names = dict.fromkeys(chain.from_iterable(mine))
        return StructOf(tuple([(name, kind_of([value.get(name) for value in mine])) for name in names]))
    if found is datetime:
        kinds = {Scalar.NAIVE if value.tzinfo is None else Scalar.AWARE for value in mine}
        return kinds.pop() if len(kinds) == 1 else Scalar.MIXED
    return Scalar.MIXED


def is_mixed(kind: Kind) -> bool:
    """Whether values without a common type were written as text somewhere in it."""
    match kind:
        case ListOf(inner):
            return is_mixed(inner)
        case StructOf(fields):
            return any(is_mixed(inner) for _, inner in fields)
        case _:
            return kind is Scalar.MIXED


def dtype_of(kind: Kind) -> Any:
    """The polars dtype of a column of this kind."""
    match kind:
        case ListOf(inner):
            return pl.List(dtype_of(inner))
        case StructOf(()):
            return pl.String()  # a mapping that never had a member: polars has no struct without fields
        case StructOf(fields):
            return pl.Struct([pl.Field(name, dtype_of(inner)) for name, inner in fields])
        case _:
            return _DTYPES[kind]


def series_of(name: str, values: Sequence[Any], kind: Kind) -> pl.Series:
    """The values, all of this kind or a narrower one, as a column."""
    if isinstance(kind, Scalar) and kind in _AS_THEY_ARE:
        if kind in (Scalar.FLOAT, Scalar.INTEGER, Scalar.LARGE):
            values = _numbers(values, kind)
    elif kind is not Scalar.STRING or not {str, type(None)}.issuperset(map(type, values)):
        values = [_as(value, kind) for value in values]
    return pl.Series(name, values, dtype=dtype_of(kind), strict=True)


def _numbers(values: Sequence[Any], kind: Kind) -> Sequence[Any]:
    plain = float if kind is Scalar.FLOAT else int
    if {plain, type(None)}.issuperset(map(type, values)):
        return values
    return [None if value is None else plain(value) for value in values]


def _as(value: Any, kind: Kind) -> Any:
    """A value as what a column of `kind` takes."""
    if value is None:
        return None
    match kind:
        case ListOf(inner):
            return [_as(item, inner) for item in value]
        case StructOf(()):
            return "{}"
        case StructOf(fields):
            return {name: _as(value.get(name), inner) for name, inner in fields}
        case Scalar.MIXED | Scalar.STRING:
            return _text(value)
        case Scalar.FLOAT:
            return float(value)
        case Scalar.INTEGER | Scalar.LARGE:
            return int(value)
        case _:
            return value


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list | dict):
        return json.dumps(value, default=str, ensure_ascii=False)
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    return str(value)


def widen(series: pl.Series, old: Kind, new: Kind) -> pl.Series | None:
    """A column as one of a wider kind; None where only the values themselves tell how."""
    if old == new or dtype_of(old) == dtype_of(new) != pl.String():
        return series
    if old is Scalar.NULL:
        return pl.Series(series.name, [None], dtype=dtype_of(new)).new_from_index(0, len(series))
    if isinstance(old, Scalar) and new in (Scalar.INTEGER, Scalar.LARGE, Scalar.FLOAT):
        return series.cast(dtype_of(new))
    return None


def kind_of_all(kinds: Iterable[Kind]) -> Kind:
    """The narrowest kind that holds them all."""
    result: Kind = Scalar.NULL
    for kind in kinds:
        result = join(result, kind)
    return result
