"""Records as bytes and back: msgpack, with extension types of ours for what msgpack does not know.

A complete record is ten msgpack values one after another: key, xs, xs_extra, created_at | worker_id, attempt, started_at |
ys or failure, ys_extra, ended_at. The three times are appended by the scripts. While a task is queued, running or failed, a
header of six bytes stands in front: attempt, retries left, length of the first part.
"""

from __future__ import annotations

import dataclasses
import enum
import struct
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, cast

import msgpack  # pyright: ignore[reportMissingTypeStubs]

from rush_async.errors import DecodeError, EncodeError
from rush_async.model import Failure, Task, TaskState

__all__ = [
    "FIELDS",
    "RESERVED_NAMES",
    "as_record",
    "as_records",
    "check_names",
    "complete",
    "decode",
    "decode_all",
    "decode_flat",
    "decode_task",
    "encode",
    "encode_created",
    "encode_ended",
    "encode_failure",
    "header",
    "task_of",
]

RESERVED_NAMES = frozenset({"state", "worker_id", "condition", "created_at", "started_at", "ended_at", "attempt", "keys"})
FIELDS = 10

_HEADER = struct.Struct(">BBI")
_TIME_LENGTH = 9
_DEEPEST = 100
_NIL = b"\xc0"
_LIMIT = 2**31 - 1

# Types that msgpack writes as they are, whatever their value, but for integers beyond 64 bits and lone surrogates.
_PLAIN = frozenset({str, int, float, bool, type(None), bytes})

_INT, _DECIMAL, _UUID, _AWARE, _NAIVE, _DATE, _TIME, _DELTA = range(1, 9)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NAIVE_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - naive ones stay naive
_MICROSECOND = timedelta(microseconds=1)

_pack: Callable[[Any], bytes] = cast("Any", msgpack).Packer(autoreset=True).pack
_ExtType: Any = cast("Any", msgpack).ExtType


# records


def as_record(value: object, what: str) -> dict[str, Any]:
    """The value as a new dict with string names: a mapping, a dataclass instance, or anything with `model_dump()`."""
    record = _as_mapping(value)
    if record is None:
        raise TypeError(
            f"{what} must be a record (a mapping with string names, a dataclass instance, or anything with model_dump()), "
            f"not {type(value).__name__}: {value!r:.80}"
        )
    for name in record:
        if not isinstance(name, str):
            raise TypeError(f"{what} has the name {name!r:.80} of type {type(name).__name__}: names are strings")
    return cast("dict[str, Any]", record)


def _as_mapping(value: object) -> dict[Any, Any] | None:
    if isinstance(value, Mapping):
        return dict(cast("Mapping[Any, Any]", value))
    if isinstance(value, type):
        return None
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    dump = getattr(value, "model_dump", None)
    return dict(cast("Mapping[Any, Any]", dump())) if callable(dump) else None


def as_records(values: object, what: str) -> list[dict[str, Any]]:
    """Each entry as a record. A string, bytes or a single record where a sequence is meant is refused."""
    if isinstance(values, str | bytes) or _as_mapping(values) is not None or not isinstance(values, Iterable):
        raise TypeError(
            f"{what} must be a sequence of records, not {type(values).__name__}: {values!r:.80}; "
            "a single record goes in a list, [record]"
        )
    return [as_record(value, f"{what}[{at}]") for at, value in enumerate(cast("Iterable[object]", values))]


_good_names: dict[tuple[str, ...], None] = {}


def check_names(record: dict[str, Any], what: str) -> None:
    """Refuses inputs whose names are those of fixed columns."""
    names = tuple(record)
    if names in _good_names:
        return
    for name in names:
        if name in RESERVED_NAMES:
            raise ValueError(
                f"{what} has an input named {name!r}, which is the name of a column of every frame: rename it "
                f"(reserved are {', '.join(sorted(RESERVED_NAMES))})"
            )
    if len(_good_names) > 1_000:
        _good_names.clear()
    _good_names[names] = None


# encoding


def encode_created(key: str, xs: dict[str, Any], xs_extra: dict[str, Any] | None, what: str = "xs") -> bytes:
    """The first part of a record, without its time."""
    extra = _NIL if xs_extra is None else _encode_record(xs_extra, f"{what}_extra")
    return _pack(key) + _encode_record(xs, what) + extra


def encode_ended(ys: dict[str, Any], ys_extra: dict[str, Any] | None, what: str = "ys") -> bytes:
    """The last part of a record, without its time."""
    return _encode_record(ys, what) + (_NIL if ys_extra is None else _encode_record(ys_extra, f"{what}_extra"))


def encode_failure(failure: Failure) -> bytes:
    """The last part of the record of a failed task, without its time."""
    fields = {"kind": failure.kind, "type": failure.type, "message": failure.message, "traceback": failure.traceback}
    # A traceback may quote anything; what no encoding knows is shown as it would be in a listing.
    for name, value in fields.items():
        if value is not None:
            fields[name] = value.encode("utf-8", "backslashreplace").decode()
    return _pack(fields) + _NIL


def encode(value: object, what: str) -> bytes:
    """Any value; raises `EncodeError` with the path from `what` to what cannot be stored."""
    try:
        if type(value) in _PLAIN:
            return _pack(value)
    except (OverflowError, UnicodeEncodeError):
        pass
    return _pack(_plain(value, what, 0))


def _encode_record(record: dict[str, Any], what: str) -> bytes:
    try:
        if _PLAIN.issuperset(map(type, record.values())):
            return _pack(record)
    except (OverflowError, UnicodeEncodeError, TypeError):
        pass  # the careful way names the value
    return _pack(_plain(record, what, 0))


def header(created: bytes, *, retries: int = 0) -> bytes:
    """What stands before the record of a task that is not finished."""
    return _HEADER.pack(0, retries, len(created) + _TIME_LENGTH)


def _plain(value: Any, path: str, depth: int) -> Any:
    """The value in what msgpack knows, or an error that names its path."""
    if depth > _DEEPEST:
        raise EncodeError(f"{path[:80]}... is nested more than {_DEEPEST} deep, or contains itself: flatten it")
    match value:
        case None | bool():
            return value
        case enum.Enum():
            return _plain(value.value, path, depth + 1)
        case float():
            return float(value)
        case int():
            number = int(value)
            return number if -(2**63) <= number < 2**64 else _ExtType(_INT, str(number).encode())
        case str():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise EncodeError(f"{path}: the text {value!r:.80} cannot be written as UTF-8: {error.reason}") from None
            return str(value)
        case bytes() | bytearray() | memoryview():
            return bytes(cast("Any", value))
        case Mapping():
            return _plain_mapping(cast("Mapping[Any, Any]", value), path, depth)
        case list() | tuple() | set() | frozenset():
            items = cast("Iterable[Any]", value)
            return [_plain(item, f"{path}[{at}]", depth + 1) for at, item in enumerate(items)]
        case _:
            return _plain_object(value, path, depth)


def _plain_mapping(value: Mapping[Any, Any], path: str, depth: int) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for name, entry in value.items():
        if not isinstance(name, str):
            raise EncodeError(
                f"{path} has the key {name!r:.80} of type {type(name).__name__}: keys are strings, write str(key)"
            )
        plain[_plain(name, path, depth)] = _plain(entry, f"{path}[{name!r}]", depth + 1)
    return plain


def _plain_object(value: Any, path: str, depth: int) -> Any:
    if (extension := _as_extension(value)) is not None:
        return extension
    kind = cast("type[Any]", value.__class__)
    if kind.__module__.partition(".")[0] == "numpy" and hasattr(value, "tolist"):
        if kind.__name__.startswith("datetime64") or kind.__name__.startswith("timedelta64"):
            return _plain(value.item(), path, depth + 1)
        return _plain(value.tolist(), path, depth + 1)
    if (mapping := _as_mapping(value)) is not None:
        return _plain_mapping(mapping, path, depth)
    raise EncodeError(
        f"{path}: {kind.__module__}.{kind.__qualname__} cannot be stored: use numbers, strings, bytes, lists, mappings, "
        "dates, or store the object elsewhere and push where it is"
    )


def _as_extension(value: Any) -> Any:
    match value:
        case datetime() if value.tzinfo is None:
            return _ExtType(_NAIVE, _microseconds(value - _NAIVE_EPOCH))
        case datetime():
            return _ExtType(_AWARE, _microseconds(value - _EPOCH))
        case date():
            return _ExtType(_DATE, struct.pack(">i", value.toordinal()))
        case time() if value.tzinfo is None:
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
    # Up to 10^18 seconds' worth of microseconds does not fit 64 bits, so it is written as text.
    return str(delta // _MICROSECOND).encode()


# decoding


def _extension(code: int, data: bytes) -> Any:
    match code:
        case 1:
            return int(data)
        case 2:
            return Decimal(data.decode())
        case 3:
            return uuid.UUID(bytes=data)
        case 4:
            return _EPOCH + int(data) * _MICROSECOND
        case 5:
            return _NAIVE_EPOCH + int(data) * _MICROSECOND
        case 6:
            return date.fromordinal(struct.unpack(">i", data)[0])
        case 7:
            return time.fromisoformat(data.decode())
        case 8:
            return int(data) * _MICROSECOND
        case _:
            raise DecodeError(f"a value of unknown extension type {code}")


_LIMITS = {
    "max_str_len": _LIMIT,
    "max_bin_len": _LIMIT,
    "max_array_len": _LIMIT,
    "max_map_len": _LIMIT,
    "max_ext_len": _LIMIT,
}


def _unpack(data: bytes) -> Any:
    try:
        return cast("Any", msgpack).unpackb(data, ext_hook=_extension, **_LIMITS)
    except DecodeError:
        raise
    except Exception as error:
        raise DecodeError(f"not a record of this library: {type(error).__name__}: {error}; {data[:80]!r}") from error


def decode(data: bytes) -> Any:
    """One value. Raises `DecodeError` for anything that is not one."""
    return _unpack(data)


def decode_all(data: bytes) -> list[Any]:
    """All values that stand one after another."""
    unpacker = cast("Any", msgpack).Unpacker(ext_hook=_extension, max_buffer_size=_LIMIT, **_LIMITS)
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
    return values


_ARRAY = struct.Struct(">BI")


def decode_flat(chunk: bytes, n: int) -> list[Any]:
    """The ten values of each of `n` complete records, all in one list, in one call."""
    flat = _unpack(_ARRAY.pack(0xDD, n * FIELDS) + chunk)
    for at, kinds in enumerate(_KINDS):
        if not kinds.issuperset(map(type, flat[at::FIELDS])):
            raise DecodeError(f"a record of this library is malformed in its value {at}: {chunk[:80]!r}")
    return flat


_OPTIONAL_RECORD = frozenset({dict, type(None)})
_OPTIONAL_TIME = frozenset({float, type(None)})
_KINDS: tuple[frozenset[type], ...] = (
    frozenset({str}),
    frozenset({dict}),
    _OPTIONAL_RECORD,
    frozenset({float}),
    frozenset({str, type(None)}),
    frozenset({int, type(None)}),
    _OPTIONAL_TIME,
    _OPTIONAL_RECORD,
    _OPTIONAL_RECORD,
    _OPTIONAL_TIME,
)


def complete(state: TaskState, raw: bytes) -> bytes:
    """A stored record of any state as ten values: without its header, what is missing as nil."""
    if state == "finished":
        return raw
    record = raw[_HEADER.size :]
    missing = {"queued": 6, "running": 3, "failed": 0}[state]
    return record + _NIL * missing


def decode_task(state: TaskState, raw: bytes) -> Task:
    """A stored record as a task."""
    fields = decode_flat(complete(state, raw), 1)
    if fields[5] is None and state != "finished":
        fields[5] = raw[0]  # not running: the attempts so far stand in the header
    return task_of(state, fields)


def task_of(state: TaskState, fields: Sequence[Any]) -> Task:
    """The ten values of a record as a task."""
    key, xs, xs_extra, created, worker_id, attempt, started, end, ys_extra, ended = fields
    try:
        failure = Failure(**end) if state == "failed" else None
        return Task(
            key,
            state,
            xs,
            xs_extra,
            None if state == "failed" else end,
            ys_extra,
            failure,
            attempt or 0,
            worker_id,
            datetime.fromtimestamp(created, UTC),
            None if started is None else datetime.fromtimestamp(started, UTC),
            None if ended is None else datetime.fromtimestamp(ended, UTC),
        )
    except (TypeError, ValueError, OverflowError, OSError) as error:
        raise DecodeError(f"a record of this library is malformed: {fields!r:.200}") from error
