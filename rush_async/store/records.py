"""Encodes the records of tasks; `rush_async.store.decoding` decodes them.

A complete record is twelve msgpack values one after another: key, xs, xs_extra, basis, created_at, index | worker_id, attempt,
started_at | ys or failure, ys_extra, ended_at. The scripts append the three times and the index. While a
task is queued, running or failed, a header of six bytes precedes the record: attempt, retries left, length of the first part.
"""

from __future__ import annotations

import asyncio
import itertools
import struct
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, cast

from rush_async.errors import EncodeError
from rush_async.model import RESERVED_NAMES, Failure
from rush_async.process import forget_in_child
from rush_async.store.codec import (
    DEEPEST,
    PLAIN_TYPES,
    as_mapping,
    new_packer,
    to_msgpack,
    to_plain,
)
from rush_async.store.fields import HEADER, NIL
from rush_async.store.keys import ALPHABET, client_id

__all__ = [
    "NewTask",
    "RecordEncoder",
    "as_extras",
    "as_record",
    "as_records",
    "check_names",
    "encode_created",
    "encode_ended",
    "encode_failure",
    "encode_time",
    "encode_worker_failure",
    "header",
    "stamped",
    "stamped_failure",
    "task_key",
]

_TIME, _INDEX = struct.Struct(">Bd"), struct.Struct(">BI")  # what the scripts append
_SLICE = 1_000  # records of one call that are encoded before the event loop runs again
_LONGEST_TEXT = 50_000  # characters of a message or traceback
_DICTS: frozenset[type] = frozenset({dict})
_SCALARS = PLAIN_TYPES - {bytes}
_NAMES: frozenset[type] = frozenset({str})
_LISTS: frozenset[type] = frozenset({list, tuple})


def _base62(number: int) -> str:
    digits = ""
    while number:
        number, digit = divmod(number, 62)
        digits = ALPHABET[digit] + digits
    return digits or "0"


class _TaskKeys:
    """Unique task keys at 0.2 us each: nine random characters a process (53 bits), then a counter."""

    def __init__(self) -> None:
        self._stamp()

    def _stamp(self) -> None:
        self._prefix = client_id()[:9]
        self._high = itertools.count()
        self._low = iter(())

    def __call__(self) -> str:
        for low in self._low:
            return low
        head = self._prefix + _base62(next(self._high))
        self._low = iter([head + a + b for a in ALPHABET for b in ALPHABET])
        return next(self._low)

    def forget(self) -> None:
        """Begins a new series: a forked child must not repeat its parent's keys."""
        self._stamp()


task_key = _TaskKeys()
forget_in_child(task_key)


class NewTask(NamedTuple):
    """A task to push.

    Attributes:
        key: its key.
        created: the first part of its record, behind a header unless it is pushed as finished.
        ended: the last part of its record, if it is pushed as finished or failed.
    """

    key: str
    created: bytes
    ended: bytes = b""


class RecordEncoder:
    """Encodes the inputs and outputs of callers. It raises before anything is sent.

    Args:
        max_record_size: the largest part of a record, in bytes.
    """

    def __init__(self, max_record_size: int) -> None:
        self._max_size = max_record_size

    async def all_tasks(
        self, xss: Iterable[Any], xss_extra: Iterable[Any] | None = None, *, retries: int = 0, has_header: bool = True
    ) -> list[NewTask]:
        """Encodes inputs as `tasks` does, many of them in slices, between which the event loop runs."""
        if type(xss) is list and len(given := cast("list[Any]", xss)) <= _SLICE:
            return self.tasks(given, xss_extra, retries=retries, has_header=has_header)
        records, extras = _as_list(cast("object", xss), "xss"), None if xss_extra is None else _as_list(xss_extra, "xss_extra")
        _check_lengths(records, extras, "xss")
        records = records.copy()  # their caller may change the list meanwhile
        tasks: list[NewTask] = []
        for first in range(0, len(records), _SLICE):
            some = slice(first, first + _SLICE)
            tasks += self.tasks(records[some], extras and extras[some], retries=retries, has_header=has_header, first=first)
            await asyncio.sleep(0)
        return tasks

    def tasks(
        self,
        xss: Iterable[Any],
        xss_extra: Iterable[Any] | None = None,
        *,
        retries: int = 0,
        has_header: bool = True,
        first: int = 0,
    ) -> list[NewTask]:
        """Encodes inputs as new tasks.

        Args:
            xss: the inputs.
            xss_extra: what to store beside each.
            retries: of each task.
            has_header: whether the tasks are not finished.
            first: the index of the first one, for errors.

        Raises:
            EncodeError: a value cannot be stored, or a record is too large.
            ValueError: a name is reserved, or the lengths differ.
        """
        records = as_records(xss, "xss", first)
        if len(records) == 1 and xss_extra is None and not first:
            return [self.task(records[0], None, "xs", retries, has_header)]
        pairs = enumerate(_paired(records, xss_extra, "xss", first), first)
        return [self.task(record, extra, f"xss[{at}]", retries, has_header) for at, (record, extra) in pairs]

    def task(
        self,
        record: dict[str, Any],
        extra: dict[str, Any] | None,
        what: str = "xs",
        retries: int = 0,
        has_header: bool = True,
        basis: bytes | None = None,
    ) -> NewTask:
        """Encodes one input as a new task; `basis` is an encoded `Basis`."""
        check_names(record, what)
        key = task_key()
        created = encode_created(key, record, extra, what, basis)
        if len(created) > self._max_size:
            raise self._too_large(created, what)
        if has_header:
            created = header(created, retries=retries) + created
        return NewTask(key, created)

    async def finished_tasks(
        self, xss: Iterable[Any], yss: Iterable[Any], xss_extra: Iterable[Any] | None, yss_extra: Iterable[Any] | None
    ) -> list[NewTask]:
        """Encodes inputs and outputs as finished tasks, many of them in slices, between which the event loop runs."""
        tasks = await self.all_tasks(xss, xss_extra, has_header=False)
        records, extras = _as_list(yss, "yss"), None if yss_extra is None else _as_list(yss_extra, "yss_extra")
        _check_lengths(records, extras, "yss")
        if len(records) != len(tasks):
            raise ValueError(f"xss has {len(tasks):,} entries and yss has {len(records):,}: give one for each")
        for first in range(0, len(records), _SLICE):
            if first:
                await asyncio.sleep(0)
            some = slice(first, first + _SLICE)
            ends = self.ends(records[some], extras and extras[some], first)
            tasks[some] = [NewTask(task.key, task.created, end) for task, end in zip(tasks[some], ends, strict=True)]
        return tasks

    def ends(self, yss: Iterable[Any], yss_extra: Iterable[Any] | None = None, first: int = 0) -> list[bytes]:
        """Encodes outputs as the last parts of records; `first` is the index of the first one, for errors."""
        records = as_records(yss, "yss", first)
        if len(records) == 1 and yss_extra is None and not first:
            return [self._end(records[0], None, "ys")]
        pairs = enumerate(_paired(records, yss_extra, "yss", first), first)
        return [self._end(record, extra, f"yss[{at}]") for at, (record, extra) in pairs]

    def end(self, ys: Any, ys_extra: Any = None) -> bytes:
        """Encodes one output as the last part of a record."""
        return self._end(as_record(ys, "ys"), None if ys_extra is None else as_record(ys_extra, "ys_extra"), "ys")

    def _end(self, record: dict[str, Any], extra: dict[str, Any] | None, what: str) -> bytes:
        ended = encode_ended(record, extra, what)
        if len(ended) > self._max_size:
            raise self._too_large(ended, what)
        return ended

    def reports(self, values: Iterable[Any]) -> list[bytes]:
        """Encodes the values of reports."""
        return [self.report(record, f"reports[{at}]") for at, record in enumerate(_as_sequence(values, "reports"))]

    def report(self, values: Any, what: str = "values") -> bytes:
        """Encodes the values of a report: numbers, strings, bools and None."""
        record = as_record(values, what)
        try:
            if not _SCALARS.issuperset(map(type, record.values())):
                record = _plain_scalars(record, what)
            packed = to_msgpack(record)
        except (OverflowError, UnicodeEncodeError):
            packed = to_msgpack(_plain_scalars(record, what))
        if len(packed) > self._max_size:
            raise self._too_large(packed, what)
        return packed

    def _too_large(self, packed: bytes, what: str) -> EncodeError:
        return EncodeError(
            f"{what} takes {len(packed):,} bytes, max_record_size allows {self._max_size:,}: "
            "store the large part elsewhere and push where it is, or raise RushConfig(max_record_size=...)"
        )


def _plain_scalars(record: dict[str, Any], what: str) -> dict[str, Any]:
    """The values of a report as msgpack takes them, those of numpy as Python's; raises an error that names the one that is no
    scalar."""
    plain: dict[str, Any] = to_plain(record, what, 0)
    for name, value in plain.items():
        if type(value) not in _SCALARS:
            raise EncodeError(
                f"{what}[{name!r}] is {record[name]!r:.80}: a report has numbers of at most 64 bits, strings, bools and None; "
                "what is larger belongs into the outputs of the task"
            )
    return plain


def _paired(
    records: Sequence[dict[str, Any]], extras: Iterable[Any] | None, what: str, first: int
) -> Iterable[tuple[dict[str, Any], dict[str, Any] | None]]:
    if extras is None:
        return [(record, None) for record in records]
    found = as_extras(extras, f"{what}_extra", first)
    _check_lengths(records, found, what)
    return zip(records, found, strict=True)


def _check_lengths(records: Sequence[Any], extras: Sequence[Any] | None, what: str) -> None:
    if extras is not None and len(extras) != len(records):
        raise ValueError(f"{what} has {len(records):,} entries and {what}_extra has {len(extras):,}: give one for each")


def as_record(value: Any, what: str, at: int | None = None) -> dict[str, Any]:
    """Returns a mapping, a dataclass instance or anything with `model_dump()` as a new dict with string names."""
    # Most are dicts, and asking whether something else is a Mapping takes longer than encoding it.
    record: dict[Any, Any] | None = value.copy() if type(value) in _DICTS else as_mapping(value)
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


def as_records(values: object, what: str, first: int = 0) -> list[dict[str, Any]]:
    """Returns each entry as a record. A string, bytes or a single record instead of a sequence is refused."""
    return [as_record(value, what, at) for at, value in enumerate(_as_sequence(values, what), first)]


def as_extras(values: object, what: str, first: int = 0) -> list[dict[str, Any] | None]:
    """Returns each entry as a record, or None for None."""
    return [None if value is None else as_record(value, what, at) for at, value in enumerate(_as_sequence(values, what), first)]


def _as_list(values: object, what: str) -> list[Any]:
    found = _as_sequence(values, what)
    return cast("list[Any]", found) if type(found) is list else list(found)


def _as_sequence(values: object, what: str) -> Iterable[Any]:
    if type(values) is list:
        return cast("list[Any]", values)  # as most are
    if isinstance(values, str | bytes) or as_mapping(values) is not None or not isinstance(values, Iterable):
        raise TypeError(
            f"{what} must be a sequence of records, not {type(values).__name__}: {values!r:.80}; "
            "a single record goes in a list, [record]"
        )
    return cast("Iterable[Any]", values)


def check_names(record: dict[str, Any], what: str) -> None:
    """Checks that no name is that of a fixed column."""
    if RESERVED_NAMES.isdisjoint(record):
        return
    for name in record:
        if name in RESERVED_NAMES:
            raise ValueError(
                f"{what} has an input named {name!r}, which is the name of a column of every frame: rename it "
                f"(reserved are {', '.join(sorted(RESERVED_NAMES))})"
            )


# encoding


def _is_plain_mapping(mapping: Any, depth: int = 0) -> bool:
    """Whether msgpack writes this mapping with string names unchanged."""
    return _NAMES.issuperset(map(type, mapping)) and _are_plain(mapping.values(), depth)


def _are_plain(values: Iterable[Any], depth: int = 0) -> bool:
    """Whether msgpack writes these values as they are, whatever is in them."""
    if depth >= DEEPEST:
        return False
    if PLAIN_TYPES.issuperset(map(type, values)):
        return True
    for value in values:
        if type(value) in PLAIN_TYPES:
            continue
        if type(value) in _LISTS:
            if not _are_plain(value, depth + 1):
                return False
        elif type(value) is not dict or not _is_plain_mapping(value, depth + 1):
            return False
    return True


def encode_created(
    key: str, xs: dict[str, Any], xs_extra: dict[str, Any] | None, what: str = "xs", basis: bytes | None = None
) -> bytes:
    """Encodes the first part of a record, without its time and index."""
    # The values of a short list stand one after another behind one byte, so a part is packed in one call.
    try:
        if _is_plain_mapping(xs) and (xs_extra is None or _is_plain_mapping(xs_extra)):
            return new_packer(buf_size=512).pack([key, xs, xs_extra, basis])[1:]
    except (OverflowError, UnicodeEncodeError):
        pass  # `to_plain` stores the integer, or raises an error that names the text
    plain_extra = to_plain(xs_extra, _extra_of(what), 0)
    return to_msgpack([to_plain(key, "key", 0), to_plain(xs, what, 0), plain_extra, basis])[1:]


def encode_ended(ys: dict[str, Any], ys_extra: dict[str, Any] | None, what: str = "ys") -> bytes:
    """Encodes the last part of a record, without its time."""
    try:
        if _is_plain_mapping(ys) and (ys_extra is None or _is_plain_mapping(ys_extra)):
            return new_packer(buf_size=512).pack([ys, ys_extra])[1:]
    except (OverflowError, UnicodeEncodeError):
        pass
    return to_msgpack([to_plain(ys, what, 0), to_plain(ys_extra, _extra_of(what), 0)])[1:]


def _extra_of(what: str) -> str:
    """Returns `xss_extra[3]` for `xss[3]`."""
    name, bracket, rest = what.partition("[")
    return f"{name}_extra{bracket}{rest}"


def encode_failure(failure: Failure) -> bytes:
    """Encodes the last part of the record of a failed task, without its time."""
    return _failure(failure) + NIL


def encode_worker_failure(failure: Failure | None) -> bytes:
    """Encodes a failure, or nil for None, for the entry of a worker."""
    return NIL if failure is None else _failure(failure)


def _failure(failure: Failure) -> bytes:
    fields = {"kind": failure.kind, "type": failure.type, "message": failure.message, "traceback": failure.traceback}
    # A traceback may quote anything, also a whole data set or text that has no encoding.
    for name, value in fields.items():
        if value is not None:
            if len(value) > _LONGEST_TEXT:
                half = _LONGEST_TEXT // 2
                value = f"{value[:half]}\n[... {len(value) - 2 * half:,} characters left out ...]\n{value[-half:]}"
            fields[name] = value.encode("utf-8", "backslashreplace").decode()
    return to_msgpack(fields)


def header(created: bytes, *, retries: int = 0) -> bytes:
    """Returns the header that precedes the record of a task that is not finished."""
    return HEADER.pack(0, retries, len(created) + _TIME.size + _INDEX.size)


def encode_time(at: float) -> bytes:
    """Encodes a time as the scripts do."""
    return _TIME.pack(0xCB, at)


def stamped(created: bytes, at: float, index: int) -> bytes:
    """Returns the first part of a record with its time and index, which the scripts append."""
    return b"%b%b%b" % (created, encode_time(at), _INDEX.pack(0xCE, index))


def stamped_failure(failure: Failure, at: float) -> bytes:
    """Returns what follows the first part of the record of a task that failed without having run."""
    return b"%b%b%b" % (NIL * 3, encode_failure(failure), encode_time(at))
