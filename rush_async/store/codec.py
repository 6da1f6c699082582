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
from operator import contains
from typing import Any, cast

import msgpack  # pyright: ignore[reportMissingTypeStubs]

from rush_async.errors import DecodeError, EncodeError
from rush_async.model import FAILURE_KINDS, Failure, Task, TaskState

__all__ = [
    "FIELDS",
    "RESERVED_NAMES",
    "as_extras",
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
_ORDINAL = struct.Struct(">i")
_TIME_LENGTH = 9
_DEEPEST = 100
_LONGEST_TEXT = 50_000  # characters of a message or traceback
_NIL = b"\xc0"
_FIXSTR, _STR8 = 0xA0, 0xD9

# Types that msgpack writes as they are, whatever their value, but for integers beyond 64 bits and lone surrogates.
_PLAIN = frozenset({str, int, float, bool, type(None), bytes})
_LISTS: frozenset[type] = frozenset({list, tuple})
_DICTS: frozenset[type] = frozenset({dict})
_NAMES: frozenset[type] = frozenset({str})

_INT, _DECIMAL, _UUID, _AWARE, _NAIVE, _DATE, _TIME, _DELTA = range(1, 9)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NAIVE_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - naive ones stay naive
_MICROSECOND = timedelta(microseconds=1)

_new_packer: Callable[..., Any] = cast("Any", msgpack).Packer
_ExtType: Any = cast("Any", msgpack).ExtType


def _pack(value: Any) -> bytes:
    # A packer for each call: one that is shared mixes what two threads, or a finaliser in the middle of a call, pack with it.
    # Its small first buffer (it grows) makes that as cheap as keeping a packer for each thread.
    return _new_packer(buf_size=512).pack(value)


# records


def as_record(value: Any, what: str, at: int | None = None) -> dict[str, Any]:
    """The value as a new dict with string names: a mapping, a dataclass instance, or anything with `model_dump()`."""
    # Most are dicts, and asking whether something else is a Mapping takes longer than encoding it.
    record: dict[Any, Any] | None = value.copy() if type(value) in _DICTS else _as_mapping(value)
    if record is not None and _NAMES.issuperset(map(type, record)):
        return record
    if at is not None:
        what = f"{what}[{at}]"
    if record is None:
        raise TypeError(
            f"{what} must be a record (a mapping with string names, a dataclass instance, or anything with model_dump()), "
            f"not {type(value).__name__}: {value!r:.80}"
        )
    for name in record:
        if not isinstance(name, str):
            raise TypeError(f"{what} has the name {name!r:.80} of type {type(name).__name__}: names are strings")
    return record


def _as_mapping(value: object) -> dict[Any, Any] | None:
    opened = cast("Any", value) if isinstance(value, Mapping) else _opened(value)
    return dict(cast("Mapping[Any, Any]", opened)) if isinstance(opened, Mapping) else None


def _opened(value: object) -> object:
    """What a dataclass instance or a model holds, or None for anything else."""
    if isinstance(value, type):
        return None
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    dump = getattr(value, "model_dump", None)
    return dump() if callable(dump) else None


def as_records(values: object, what: str) -> list[dict[str, Any]]:
    """Each entry as a record. A string, bytes or a single record where a sequence is meant is refused."""
    return [as_record(value, what, at) for at, value in enumerate(_as_sequence(values, what))]


def as_extras(values: object, what: str) -> list[dict[str, Any] | None]:
    """As `as_records`, for what may be None for an entry."""
    return [None if value is None else as_record(value, what, at) for at, value in enumerate(_as_sequence(values, what))]


def _as_sequence(values: object, what: str) -> Iterable[Any]:
    if type(values) is list:
        return cast("list[Any]", values)  # as most are
    if isinstance(values, str | bytes) or _as_mapping(values) is not None or not isinstance(values, Iterable):
        raise TypeError(
            f"{what} must be a sequence of records, not {type(values).__name__}: {values!r:.80}; "
            "a single record goes in a list, [record]"
        )
    return cast("Iterable[Any]", values)


def check_names(record: dict[str, Any], what: str) -> None:
    """Refuses inputs whose names are those of fixed columns."""
    if RESERVED_NAMES.isdisjoint(record):
        return
    for name in record:
        if name in RESERVED_NAMES:
            raise ValueError(
                f"{what} has an input named {name!r}, which is the name of a column of every frame: rename it "
                f"(reserved are {', '.join(sorted(RESERVED_NAMES))})"
            )


# encoding


def encode_created(key: str, xs: dict[str, Any], xs_extra: dict[str, Any] | None, what: str = "xs") -> bytes:
    """The first part of a record, without its time."""
    # The values of a short list stand one after another behind one byte, so a part is packed in one call.
    try:
        if _is_plain_mapping(xs) and (xs_extra is None or _is_plain_mapping(xs_extra)):
            return _pack([key, xs, xs_extra])[1:]
    except (OverflowError, UnicodeEncodeError):
        pass  # the careful way stores the integer, or names the text
    return _pack([_plain(key, "key", 0), _plain(xs, what, 0), _plain(xs_extra, _extra_of(what), 0)])[1:]


def encode_ended(ys: dict[str, Any], ys_extra: dict[str, Any] | None, what: str = "ys") -> bytes:
    """The last part of a record, without its time."""
    try:
        if _is_plain_mapping(ys) and (ys_extra is None or _is_plain_mapping(ys_extra)):
            return _pack([ys, ys_extra])[1:]
    except (OverflowError, UnicodeEncodeError):
        pass
    return _pack([_plain(ys, what, 0), _plain(ys_extra, _extra_of(what), 0)])[1:]


def _extra_of(what: str) -> str:
    """`xss_extra[3]` for `xss[3]`."""
    name, bracket, rest = what.partition("[")
    return f"{name}_extra{bracket}{rest}"


def encode_failure(failure: Failure) -> bytes:
    """The last part of the record of a failed task, without its time."""
    fields = {"kind": failure.kind, "type": failure.type, "message": failure.message, "traceback": failure.traceback}
    # A traceback may quote anything, a whole data set as well; what no encoding knows is shown as it would be in a listing.
    for name, value in fields.items():
        if value is not None:
            if len(value) > _LONGEST_TEXT:
                half = _LONGEST_TEXT // 2
                value = f"{value[:half]}\n[... {len(value) - 2 * half:,} characters left out ...]\n{value[-half:]}"
            fields[name] = value.encode("utf-8", "backslashreplace").decode()
    return _pack(fields) + _NIL


def encode(value: object, what: str) -> bytes:
    """Any value; raises `EncodeError` with the path from `what` to what cannot be stored."""
    return _pack(_plain(value, what, 0))


def header(created: bytes, *, retries: int = 0) -> bytes:
    """What stands before the record of a task that is not finished."""
    return _HEADER.pack(0, retries, len(created) + _TIME_LENGTH)


def _is_plain_mapping(mapping: Any, depth: int = 0) -> bool:
    return _NAMES.issuperset(map(type, mapping)) and _are_plain(mapping.values(), depth)


def _are_plain(values: Iterable[Any], depth: int = 0) -> bool:
    """Whether msgpack writes these values as they are, whatever is in them."""
    if depth >= _DEEPEST:
        return False
    if _PLAIN.issuperset(map(type, values)):
        return True
    for value in values:
        if type(value) in _PLAIN:
            continue
        if type(value) in _LISTS:
            if not _are_plain(value, depth + 1):
                return False
        elif type(value) is not dict or not _is_plain_mapping(value, depth + 1):
            return False
    return True


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
            return number if -(2**63) <= number < 2**64 else _ExtType(_INT, _digits_of(number))
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


def _plain_list(items: list[Any], path: str, depth: int) -> list[Any]:
    if depth < _DEEPEST and _PLAIN.issuperset(map(type, items)):
        try:
            _pack(items)  # much faster than a look at each
        except (OverflowError, UnicodeEncodeError):
            pass
        else:
            return items
    return [_plain(item, f"{path}[{at}]", depth + 1) for at, item in enumerate(items)]


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
    try:
        extension = _as_extension(value)
    except (ArithmeticError, TypeError, ValueError) as error:
        raise EncodeError(f"{path}: {_name_of(value)} {value!r:.80} cannot be stored: {error}") from error
    if extension is not None:
        return extension
    if _name_of(value).startswith("numpy.") and hasattr(value, "tolist"):
        return _plain(_plain_numpy(value, path), path, depth + 1)
    if (opened := _opened(value)) is not None:
        return _plain(opened, path, depth + 1)
    raise EncodeError(
        f"{path}: {_name_of(value)} cannot be stored: use numbers, strings, bytes, lists, mappings, dates, "
        "or store the object elsewhere and push where it is"
    )


def _name_of(value: Any) -> str:
    kind: type[Any] = value.__class__
    return f"{kind.__module__}.{kind.__qualname__}"


def _plain_numpy(value: Any, path: str) -> Any:
    """A scalar or array of numpy, which we do not import, as Python's values. Dates are cut to microseconds."""
    plain = value.tolist()
    if value.dtype.kind in "mM":
        # Python has no date with nanoseconds, nor a span of months: numpy then hands out a bare number, with its unit lost.
        if value.dtype.str.endswith(("ns]", "ps]", "fs]", "as]")):
            value = value.astype(f"{value.dtype.kind}8[us]")
            plain = value.tolist()
        if any(isinstance(item, int) for item in value.ravel().tolist()):
            raise EncodeError(
                f"{path}: {value.dtype} holds what Python's datetime and timedelta cannot: store it as a string or a number"
            )
    elif type(plain) is type(value):  # of more bits than Python's
        if value.dtype.kind != "f":
            raise EncodeError(f"{path}: {_name_of(value)} cannot be stored: store its real and imaginary parts")
        plain = float(value)
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
    # By way of Decimal, for Python itself refuses to write integers of more than 4,300 digits, or to read them.
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
    return int(Decimal(data.decode()))


# The limits on lengths stay msgpack's own, which follow from the length of the data: larger ones would let a few bytes
# announce a list of billions.
_OPTIONS: dict[str, Any] = {"ext_hook": _extension}
_unpackb: Callable[..., Any] = cast("Any", msgpack).unpackb


def _unpack(data: bytes) -> Any:
    try:
        return _unpackb(data, **_OPTIONS)
    except DecodeError:
        raise
    except Exception as error:
        raise DecodeError(f"not a record of this library: {type(error).__name__}: {error}; {data[:80]!r}") from error


_Timestamp: type[Any] = cast("Any", msgpack).Timestamp
_TIMESTAMPS = (b"\xd6\xff", b"\xd7\xff", b"\xc7\x0c\xff")


def _refuse_timestamps(value: Any, data: bytes) -> None:
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


def decode(data: bytes) -> Any:
    """One value. Raises `DecodeError` for anything that is not one."""
    value = _unpack(data)
    _refuse_timestamps(value, data)
    return value


def decode_all(data: bytes) -> list[Any]:
    """All values that stand one after another."""
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
    _refuse_timestamps(values, data)
    return values


_ARRAY = struct.Struct(">BI")
_OPTIONAL_RECORD = frozenset({dict, type(None)})
_OPTIONAL_TIME = frozenset({float, type(None)})
_KINDS: tuple[frozenset[type], ...] = (
    _NAMES,
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
_RECORDS = (1, 2, 7, 8)  # which of the ten values have names


def decode_flat(chunk: bytes, n: int) -> list[Any]:
    """The ten values of each of `n` complete records, all in one list, in one call.

    The ten have their types and names are strings. For speed nobody looks further into inputs and outputs: from a foreign
    writer there may be a `msgpack.Timestamp` in them, which whoever looks at each value's type anyway has to refuse.
    """
    flat: list[Any] = _unpack(_ARRAY.pack(0xDD, n * FIELDS) + chunk)
    # Records mostly look alike, and to compare their types with those of the first costs less than a look at each value.
    types: list[type] = list(map(type, flat))
    alike = types == types[:FIELDS] * n
    if not flat:
        return flat
    if alike:
        good = all(map(contains, _KINDS, types))
    else:
        good = all(kinds.issuperset(types[at::FIELDS]) for at, kinds in enumerate(_KINDS))
    if not good:
        raise DecodeError(f"a record of this library has a value of the wrong type: {chunk[:80]!r}")
    names = set[Any]()
    for at in _RECORDS:
        if not alike or types[at] is dict:
            names.update(*filter(None, flat[at::FIELDS]))
    if not _NAMES.issuperset(map(type, names)):
        raise DecodeError(f"a record of this library has names that are no strings: {chunk[:80]!r}")
    return flat


def complete(state: TaskState, raw: bytes) -> bytes:
    """A stored record of any state as ten values: without its header, what is missing as nil."""
    if state == "finished":
        return raw
    end = len(raw) if state == "failed" else _attempt_end(state, raw)
    return raw[_HEADER.size : end] + _NIL * {"queued": 6, "running": 3, "failed": 0}[state]


def _attempt_end(state: TaskState, raw: bytes) -> int:
    """Where the record of a queued or running task ends. The failure of an earlier attempt may stand behind it."""
    if len(raw) < _HEADER.size:
        raise DecodeError(f"the record of a {state} task is too short: {raw!r}")
    created_end = _HEADER.size + _HEADER.unpack_from(raw)[2]
    if state == "queued":
        return created_end
    first, second = raw[created_end : created_end + 2].ljust(2, _NIL)
    owner = second + 2 if first == _STR8 else first - _FIXSTR + 1
    return created_end + owner + 1 + _TIME_LENGTH


def decode_task(state: TaskState, raw: bytes) -> Task:
    """A stored record as a task."""
    failed_before = state in ("queued", "running") and len(raw) > _attempt_end(state, raw)
    fields = decode_flat(raw[_HEADER.size :] if failed_before else complete(state, raw), 1)
    _refuse_timestamps(fields, raw)
    if fields[5] is None and state != "finished":
        fields[5] = raw[0]  # not running: the attempts so far stand in the header
    return task_of(state, fields)


def task_of(state: TaskState, fields: Sequence[Any]) -> Task:
    """The ten values of a record as a task."""
    key, xs, xs_extra, created, worker_id, attempt, started, end, ys_extra, ended = fields
    if (ended is None or end is None) if state in ("finished", "failed") else (state == "running" and worker_id is None):
        raise DecodeError(f"the record of the {state} task {key!r:.80} ends too early")
    try:
        return Task(
            key,
            state,
            xs,
            xs_extra,
            end if state == "finished" else None,
            ys_extra,
            _failure_of(key, end) if state != "finished" and end is not None else None,
            attempt or 0,
            worker_id,
            datetime.fromtimestamp(created, UTC),
            None if started is None else datetime.fromtimestamp(started, UTC),
            None if ended is None else datetime.fromtimestamp(ended, UTC),
        )
    except (ValueError, OverflowError, OSError) as error:
        if isinstance(error, DecodeError):
            raise
        raise DecodeError(f"the record of task {key!r:.80} has a time that is none: {created}, {started}, {ended}") from error


def _failure_of(key: str, end: dict[str, Any]) -> Failure:
    match end:
        case {"kind": kind, "type": str() | None as name, "message": str(message), "traceback": str() | None as trace}:
            if len(end) == 4 and kind in FAILURE_KINDS:
                return Failure(kind, name, message, trace)
        case _:
            pass
    raise DecodeError(f"the record of the failed task {key!r:.80} holds no failure of this version of the library")
