"""The point of a task: its inputs as a digest that is the same for equal inputs, however they are written."""

from __future__ import annotations

import asyncio
import enum
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, TypeAlias, cast

from rush_async.store.codec import as_mapping, to_msgpack, to_plain

__all__ = ["Unique", "all_points_of", "as_unique", "canonical", "point_of", "points_of"]

Unique: TypeAlias = bool | str | Iterable[str]
"""Whether each point is to be there once; or the names of the inputs that make it."""

_SLICE = 1_000  # points that are made before the event loop runs again
_BYTES = 16  # of a digest
_SAME: frozenset[type] = frozenset({str, bytes, bool, type(None)})  # what is stored as it is, and is equal to no other type


def as_unique(unique: Unique) -> tuple[str, ...] | bool:
    """Returns the names of the inputs that make a point, True for all of them, False where points do not matter.

    Raises:
        TypeError: it is neither a bool nor names.
        ValueError: there are no names.
    """
    if isinstance(unique, bool):
        return unique
    given: Any = unique  # callers need not be typed
    if isinstance(given, bytes | Mapping) or not isinstance(given, Iterable):
        raise TypeError(f"unique must be True, or names of inputs, not {given!r:.80}")
    names = (unique,) if isinstance(unique, str) else tuple(unique)
    for name in names:
        if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance] - callers need not be typed
            raise TypeError(f"unique has the name {name!r:.80} of type {type(name).__name__}: names of inputs are strings")
    if not names:
        raise ValueError("unique names no input: name at least one, or pass True for all of them")
    return names


async def all_points_of(records: Iterable[Any], unique: tuple[str, ...] | bool) -> list[bytes]:
    """Returns what `points_of` returns, of many records in slices, between which the event loop runs."""
    points, rest = list[bytes](), iter(records if unique is not False else ())
    while some := list(islice(rest, _SLICE)):
        if points:
            await asyncio.sleep(0)
        points += points_of(some, unique, len(points))
    return points


def points_of(records: Iterable[Any], unique: tuple[str, ...] | bool, first: int = 0) -> list[bytes]:
    """Returns the point of each record; nothing where points do not matter. `first` is the index of the first, for errors."""
    if unique is False:
        return []
    names = () if unique is True else unique
    return [point_of(record, names, f"xss[{at}]") for at, record in enumerate(records, first)]


def point_of(xs: Mapping[str, Any], names: Sequence[str] = (), what: str = "xs") -> bytes:
    """Returns the point of inputs that can be encoded.

    Args:
        xs: the inputs.
        names: those that make the point; all of them by default.
        what: the name of `xs` in an error.

    Returns:
        16 bytes: the BLAKE2b digest of the canonical inputs as msgpack.

    Raises:
        ValueError: there is no input of one of these names.
    """
    for name in names:
        if name not in xs:
            raise ValueError(f"{what} has no input {name!r}, which unique names: its inputs are {', '.join(xs) or 'none'}")
    chosen = {name: xs[name] for name in names} if names else xs
    return hashlib.blake2b(to_msgpack(canonical(chosen)), digest_size=_BYTES).digest()


def canonical(value: Any) -> Any:
    """Returns what msgpack writes in the same way for equal values.

    Names come in order, and what is in sets; integral floats are integers, while bools stay; there is one nan; sequences are
    lists, and what numpy holds is Python's.
    """
    if type(value) in _SAME:
        return value
    if type(value) is float:
        return _canonical_plain(value)
    while isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, list | tuple):
        return [canonical(item) for item in cast("Sequence[Any]", value)]
    if isinstance(value, set | frozenset):
        return sorted([canonical(item) for item in cast("Iterable[Any]", value)], key=to_msgpack)
    if (record := as_mapping(value)) is not None:
        entries = {str.__str__(name): canonical(entry) for name, entry in record.items()}
        return {name: entries[name] for name in sorted(entries)}
    return _canonical_plain(to_plain(value, "xs", 0))


def _canonical_plain(value: Any) -> Any:
    if isinstance(value, list):  # an array of numpy
        return [_canonical_plain(item) for item in cast("list[Any]", value)]
    if isinstance(value, float):
        if math.isnan(value):
            return math.nan
        return to_plain(int(value), "xs", 0) if value.is_integer() else value
    return value
