"""Encodes and decodes values: msgpack, with extension types for what msgpack has no type for."""

from __future__ import annotations

import dataclasses
import enum
import struct
import uuid
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, cast

import msgpack  # pyright: ignore[reportMissingTypeStubs]

from rush_async.errors import DecodeError, EncodeError

__all__ = [
    "DEEPEST",
    "PLAIN_TYPES",
    "as_mapping",
    "check_nested",
    "decode",
    "decode_all",
    "encode",
    "ends_of",
    "new_packer",
    "refuse_timestamps",
    "to_msgpack",
    "to_plain",
    "unpack",
    "unpack_bytes",
]

_NESTED: frozenset[type] = frozenset({list, dict})
_TEXT: frozenset[type] = frozenset({str})
_ORDINAL = struct.Struct(">i")
DEEPEST = 100
_MOST_DIGITS = 4_300  # of an integer: by default Python converts no longer ones to text and back
_MOST_BITS = 14_285  # any integer of fewer bits has at most 4,300 digits and a sign

# Types that msgpack writes unchanged, whatever their value, but for integers beyond 64 bits and lone surrogates.
PLAIN_TYPES = frozenset({str, int, float, bool, type(None), bytes})

_INT, _DECIMAL, _UUID, _AWARE, _NAIVE, _DATE, _TIME, _DELTA = range(1, 9)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NAIVE_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - naive datetimes stay naive
_MICROSECOND = timedelta(microseconds=1)

new_packer: Callable[..., Any] = cast("Any", msgpack).Packer
_ExtType: Any = cast("Any", msgpack).ExtType


def to_msgpack(value: Any) -> bytes:
    """Packs a value of types that msgpack knows."""
    # A packer for each call: threads, or a finaliser in the middle of a call, would mix their bytes in a shared one.
    # Its small first buffer, which grows, makes that as cheap as a packer for each thread.
    return new_packer(buf_size=512).pack(value)


def as_mapping(value: object) -> dict[Any, Any] | None:
    """Returns a mapping, a dataclass instance or anything with `model_dump()` as a new dict; None for anything else."""
    opened = cast("Any", value) if isinstance(value, Mapping) else _opened(value)
    return dict(cast("Mapping[Any, Any]", opened)) if isinstance(opened, Mapping) else None


def _opened(value: object) -> object:
    """Returns the fields of a dataclass instance or a model; None for anything else."""
    if isinstance(value, type):
        return None
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    dump = getattr(value, "model_dump", None)
    return dump() if callable(dump) else None


# encoding


def encode(value: object, what: str) -> bytes:
    """Encodes a value.

    Raises:
        EncodeError: a part of it cannot be stored; the message has the path to that part, beginning with `what`.
    """
    return to_msgpack(to_plain(value, what, 0))


def to_plain(value: Any, path: str, depth: int) -> Any:
    """Converts a value to types that msgpack knows; raises an `EncodeError` that names its path."""
    if depth > DEEPEST:
        raise EncodeError(f"{path[:80]}... is nested more than {DEEPEST} deep, or contains itself: flatten it")
    match value:
        case None | bool():
            return value
        case enum.Enum():
            return to_plain(value.value, path, depth + 1)
        case float():
            return float(value)
        case int():
            return _plain_int(int(value), path)
        case str():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise EncodeError(f"{path}: the text {value!r:.80} cannot be written as UTF-8: {error.reason}") from None
            return str.__str__(value)  # what it holds: a class derived from str may show itself as something else
        case bytes() | bytearray() | memoryview():
            return bytes(cast("Any", value))
        case Mapping():
            return _plain_mapping(cast("Mapping[Any, Any]", value), path, depth)
        case list() | tuple() | set() | frozenset():
            return _plain_list(list(cast("Iterable[Any]", value)), path, depth)
        case _:
            return _plain_object(value, path, depth)


def _plain_int(number: int, path: str) -> Any:
    if -(2**63) <= number < 2**64:
        return number
    if number.bit_length() > _MOST_BITS or len(digits := _digits_of(number).lstrip(b"-")) > _MOST_DIGITS:
        raise EncodeError(
            f"{path}: an integer of {number.bit_length():,} bits cannot be stored: {_MOST_DIGITS:,} digits are possible, "
            "store it as bytes"
        )
    return _ExtType(_INT, digits if number > 0 else b"-" + digits)


def _plain_list(items: list[Any], path: str, depth: int) -> list[Any]:
    if depth < DEEPEST and PLAIN_TYPES.issuperset(map(type, items)):
        try:
            to_msgpack(items)  # much faster than a look at each
        except (OverflowError, UnicodeEncodeError):
            pass
        else:
            return items
    return [to_plain(item, f"{path}[{at}]", depth + 1) for at, item in enumerate(items)]


def _plain_mapping(value: Mapping[Any, Any], path: str, depth: int) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for name, entry in value.items():
        if not isinstance(name, str):
            raise EncodeError(
                f"{path} has the key {name!r:.80} of type {type(name).__name__}: keys are strings, write str(key)"
            )
        plain[to_plain(name, path, depth)] = to_plain(entry, f"{path}[{name!r}]", depth + 1)
    return plain


def _plain_object(value: Any, path: str, depth: int) -> Any:
    try:
        extension = _as_extension(value)
    except (ArithmeticError, TypeError, ValueError) as error:
        raise EncodeError(f"{path}: {_name_of(value)} {value!r:.80} cannot be stored: {error}") from error
    if extension is not None:
        return extension
    if _name_of(value).startswith("numpy.") and hasattr(value, "tolist"):
        return to_plain(_plain_numpy(value, path), path, depth + 1)
    if (opened := _opened(value)) is not None:
        return to_plain(opened, path, depth + 1)
    raise EncodeError(
        f"{path}: {_name_of(value)} cannot be stored: use numbers, strings, bytes, lists, mappings, dates, "
        "or store the object elsewhere and push where it is"
    )


def _name_of(value: Any) -> str:
    kind: type[Any] = value.__class__
    return f"{kind.__module__}.{kind.__qualname__}"


def _plain_numpy(value: Any, path: str) -> Any:
    """Converts a scalar or array of numpy, which is not imported, to Python's values. What these cannot hold is refused."""
    if value.dtype.names is not None:  # records: `tolist` would drop the names
        return {name: value[name] for name in value.dtype.names} if value.shape == () else list(value)
    plain = value.tolist()
    if value.dtype.kind in "mM":
        # Python has no date with nanoseconds, nor a span of months: numpy then hands out a bare number, with its unit lost.
        if value.dtype.str.endswith(("ns]", "ps]", "fs]", "as]")):
            exact, unit = value, f"{value.dtype.kind}8[us]"
            value = value.astype(unit)
            if ((value.astype(exact.dtype) != exact) & (exact == exact)).any():  # NaT differs from itself
                raise EncodeError(
                    f"{path}: {exact.dtype} is finer than the microseconds that are stored: use .astype('{unit}')"
                )
            plain = value.tolist()
        if any(isinstance(item, int) for item in value.ravel().tolist()):
            raise EncodeError(
                f"{path}: {value.dtype} holds what Python's datetime and timedelta cannot: store it as a string or a number"
            )
    elif type(plain) is type(value):  # of more bits than Python's
        if value.dtype.kind != "f":
            raise EncodeError(f"{path}: {_name_of(value)} cannot be stored: store its real and imaginary parts")
        plain = float(value)
        if plain != value and value == value:
            raise EncodeError(f"{path}: {_name_of(value)} {value!r:.80} has more digits than a float: store float(value)")
    return plain


def _as_extension(value: Any) -> Any:
    match value:
        case datetime() if value.utcoffset() is None:
            return _ExtType(_NAIVE, _microseconds(value - _NAIVE_EPOCH))
        case datetime():
            # In UTC first: what lies before year 1 or after year 9999 there could be written but not read.
            return _ExtType(_AWARE, _microseconds(value.astimezone(UTC) - _EPOCH))
        case date():
            return _ExtType(_DATE, _ORDINAL.pack(value.toordinal()))
        case time() if value.tzinfo is not None:
            raise ValueError("a time of day with a zone has no place in UTC: store a datetime, or time and zone apart")
        case time():
            return _ExtType(_TIME, value.isoformat().encode())
        case timedelta():
            return _ExtType(_DELTA, _microseconds(value))
        case Decimal():
            return _ExtType(_DECIMAL, str(value).encode())
        case uuid.UUID():
            return _ExtType(_UUID, value.bytes)
        case _:
            return None


def _microseconds(delta: timedelta) -> bytes:
    return _digits_of(int(delta // _MICROSECOND))


def _digits_of(number: int) -> bytes:
    # By way of Decimal: Python itself may be set to refuse integers of fewer than 4,300 digits.
    return str(Decimal(number)).encode()


# decoding


def _extension(code: int, data: bytes) -> Any:
    match code:
        case 1:
            return _number_of(data)
        case 2:
            return Decimal(data.decode())
        case 3:
            return uuid.UUID(bytes=data)
        case 4:
            return _EPOCH + _number_of(data) * _MICROSECOND
        case 5:
            return _NAIVE_EPOCH + _number_of(data) * _MICROSECOND
        case 6:
            return date.fromordinal(_ORDINAL.unpack(data)[0])
        case 7:
            return time.fromisoformat(data.decode())
        case 8:
            return _number_of(data) * _MICROSECOND
        case _:
            raise DecodeError(f"a value of unknown extension type {code}")


def _number_of(data: bytes) -> int:
    if not data.removeprefix(b"-").isdigit():  # a Decimal may also be text like 1E999999999, and that a huge integer
        raise DecodeError(f"{data[:80]!r} is no integer")
    if len(data) > _MOST_DIGITS + 1:  # reading takes time that grows with the square of the length
        raise DecodeError(f"an integer of {len(data):,} digits: this library writes at most {_MOST_DIGITS:,}")
    return int(Decimal(data.decode()))


# The limits on lengths stay msgpack's own, which follow from the length of the data: larger ones would let a few bytes
# announce a list of billions.
_OPTIONS: dict[str, Any] = {"ext_hook": _extension}
_unpackb: Callable[..., Any] = cast("Any", msgpack).unpackb


def unpack(data: bytes) -> Any:
    """Unpacks one value, without the check for timestamps of msgpack's own."""
    try:
        return _unpackb(data, **_OPTIONS)
    except DecodeError:
        raise
    except Exception as error:
        raise DecodeError(f"not a record of this library: {type(error).__name__}: {error}; {data[:80]!r}") from error


def unpack_bytes(data: bytes) -> Any:
    """Unpacks one value that a script packed. Its strings, which may be packed values themselves, come as bytes."""
    try:
        return _unpackb(data, raw=True)
    except Exception as error:
        raise DecodeError(f"not packed by a script: {type(error).__name__}: {error}; {data[:80]!r}") from error


_Timestamp: type[Any] = cast("Any", msgpack).Timestamp
_TIMESTAMPS = (b"\xd6\xff", b"\xd7\xff", b"\xc7\x0c\xff")


def check_nested(values: Iterable[Any]) -> None:
    """Raises `DecodeError` where a value is nested too deep, or holds a name that is no string."""
    level = [value for value in values if type(value) in _NESTED]
    for _ in range(DEEPEST + 1):
        if not level:
            return
        below: list[Any] = []
        for item in level:
            inner: Iterable[Any] = item
            if type(item) is dict:
                members = cast("dict[Any, Any]", item)
                if not _TEXT.issuperset(map(type, members)):
                    raise DecodeError(f"a record of this library has names that are no strings: {members!r:.80}")
                inner = members.values()
            below += [value for value in inner if type(value) in _NESTED]
        level = below
    raise DecodeError(f"a record holds a value nested more than {DEEPEST} deep, which this library never writes")


def refuse_timestamps(value: Any, data: bytes) -> None:
    """Raises `DecodeError` where a value holds a timestamp of msgpack's own."""
    # msgpack makes its own timestamps, which we never write, an object of its own without asking our hook. What they begin
    # with may also be the middle of a number, so the values decide.
    if b"\xff" not in data or not any(mark in data for mark in _TIMESTAMPS):
        return
    rest: list[Any] = [value]
    while rest:
        item = rest.pop()
        if isinstance(item, dict):
            rest.extend(cast("dict[Any, Any]", item).values())
        elif isinstance(item, list):
            rest.extend(cast("list[Any]", item))
        elif isinstance(item, _Timestamp):
            raise DecodeError(f"a timestamp of msgpack's own, which this library does not write: {data[:80]!r}")


def ends_of(data: bytes, n: int) -> list[int]:
    """Returns where each of the first `n` values ends in `data`, which holds one packed value after another."""
    unpacker, ends = cast("Any", msgpack).Unpacker(max_buffer_size=max(len(data), 1)), list[int]()
    try:
        unpacker.feed(data)
        for _ in range(n):
            unpacker.skip()
            ends.append(unpacker.tell())
    except Exception as error:
        raise DecodeError(f"not values of this library: {type(error).__name__}: {error}; {data[:80]!r}") from error
    return ends


def decode(data: bytes) -> Any:
    """Decodes one value. Raises `DecodeError` for anything else."""
    value = unpack(data)
    refuse_timestamps(value, data)
    return value


def decode_all(data: bytes) -> list[Any]:
    """Decodes values that follow one another."""
    unpacker = cast("Any", msgpack).Unpacker(max_buffer_size=max(len(data), 1), **_OPTIONS)
    try:
        unpacker.feed(data)
        values: list[Any] = []
        end = 0
        for value in unpacker:
            values.append(value)
            end = unpacker.tell()
    except DecodeError:
        raise
    except Exception as error:
        raise DecodeError(f"not values of this library: {type(error).__name__}: {error}; {data[:80]!r}") from error
    if end != len(data):
        raise DecodeError(f"values of this library are cut off: {data[:80]!r}")
    refuse_timestamps(values, data)
    return values
