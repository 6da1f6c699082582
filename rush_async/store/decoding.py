"""Decodes the records of tasks, see `rush_async.store.records`. Each may come from another program."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import chain
from operator import contains, methodcaller
from typing import Any

from rush_async.errors import DecodeError
from rush_async.model import FAILURE_KINDS, Failure, Task, TaskState
from rush_async.store.codec import check_nested, refuse_timestamps, unpack
from rush_async.store.fields import (
    ATTEMPT,
    CREATED_AT,
    END,
    END_EXTRA,
    END_OF_TIME,
    ENDED_AT,
    FIELDS,
    HEADER,
    INDEX,
    NIL,
    STARTED_AT,
    TIME_SIZE,
    WORKER,
    XS,
    XS_EXTRA,
)

__all__ = [
    "CHUNK",
    "attempt_end",
    "check_values",
    "complete",
    "decode_flat",
    "decode_records",
    "decode_task",
    "failure_of",
    "task_of",
]

CHUNK = 1_000  # records decoded in one call: with more, garbage collection takes longer
_FIXSTR, _STR8 = 0xA0, 0xD9
_NAMES: frozenset[type] = frozenset({str})
_VALUES: Any = methodcaller("values")
_ARRAY = struct.Struct(">BI")
_OPTIONAL_RECORD = frozenset({dict, type(None)})
_OPTIONAL_TIME = frozenset({float, type(None)})
_KINDS: tuple[frozenset[type], ...] = (
    _NAMES,
    frozenset({dict}),
    _OPTIONAL_RECORD,
    frozenset({bytes, type(None)}),
    frozenset({float}),
    frozenset({int}),
    frozenset({str, type(None)}),
    frozenset({int, type(None)}),
    _OPTIONAL_TIME,
    _OPTIONAL_RECORD,
    _OPTIONAL_RECORD,
    _OPTIONAL_TIME,
)
_RECORDS = (XS, XS_EXTRA, END, END_EXTRA)  # which of the values have names
_NEEDED: dict[TaskState, tuple[int, ...]] = {
    "queued": (),
    "running": (WORKER,),
    "finished": (END, ENDED_AT),
    "failed": (END, ENDED_AT),
}
_MOST = {CREATED_AT: END_OF_TIME, STARTED_AT: END_OF_TIME, ENDED_AT: END_OF_TIME, INDEX: 2**63, ATTEMPT: 2**63}


def decode_flat(chunk: bytes, n: int) -> list[Any]:
    """Decodes `n` complete records into one list with the twelve values of each.

    The types of the twelve values are checked, and that names are strings. For speed, inputs and outputs are not checked any
    deeper: a foreign writer may have put a `msgpack.Timestamp` into them, which callers that look at each value's type refuse.
    """
    flat: list[Any] = unpack(_ARRAY.pack(0xDD, n * FIELDS) + chunk)
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


def check_values(flat: list[Any], chunk: bytes) -> None:
    """Checks inputs and outputs as deep as they are nested; `flat` as `decode_flat` returns it.

    Raises:
        DecodeError: one of them is none that this library writes.
    """
    refuse_timestamps(flat, chunk)
    rows = filter(None, chain.from_iterable([flat[at::FIELDS] for at in _RECORDS]))
    check_nested(chain.from_iterable(map(_VALUES, rows)))


def decode_records(state: TaskState, chunk: bytes, n: int) -> list[Any]:
    """Decodes `n` complete records of a state as `decode_flat` does, and checks all that reading them depends on.

    Raises:
        DecodeError: one of them is malformed.
    """
    flat = decode_flat(chunk, n)
    check_values(flat, chunk)
    for at in _NEEDED[state]:
        if None in flat[at::FIELDS]:
            raise DecodeError(f"the record of a {state} task ends too early: {chunk[:80]!r}")
    for at, most in _MOST.items():
        for value in flat[at::FIELDS]:
            if value is not None and not 0 <= value < most:
                raise DecodeError(f"the record of a {state} task has a time or a number that is none: {chunk[:80]!r}")
    if state == "failed":
        for end in flat[END::FIELDS]:
            failure_of(end)
    return flat


def complete(state: TaskState, raw: bytes) -> bytes:
    """Completes a stored record of any state to twelve values: removes its header, and adds nil for what is missing."""
    if state == "finished":
        return raw
    end = len(raw) if state == "failed" else attempt_end(state, raw)
    return raw[HEADER.size : end] + NIL * {"queued": 6, "running": 3, "failed": 0}[state]


def attempt_end(state: TaskState, raw: bytes) -> int:
    """Returns where the record of a queued or running task ends. The failure of an earlier attempt may follow it."""
    if len(raw) < HEADER.size:
        raise DecodeError(f"the record of a {state} task is too short: {raw!r}")
    created_end = HEADER.size + HEADER.unpack_from(raw)[2]
    if state == "queued":
        return created_end
    first, second = raw[created_end : created_end + 2].ljust(2, NIL)
    owner = second + 2 if first == _STR8 else first - _FIXSTR + 1
    return created_end + owner + 1 + TIME_SIZE


def decode_task(state: TaskState, raw: bytes) -> Task:
    """Decodes a stored record."""
    failed_before = state in ("queued", "running") and len(raw) > attempt_end(state, raw)
    fields = decode_records(state, raw[HEADER.size :] if failed_before else complete(state, raw), 1)
    if fields[ATTEMPT] is None and state != "finished":
        fields[ATTEMPT] = raw[0]  # not running: the header has the number of attempts so far
    return task_of(state, fields)


def task_of(state: TaskState, fields: Sequence[Any]) -> Task:
    """Returns the twelve values of a record as a task."""
    key, xs, xs_extra, _, created, index, worker_id, attempt, started, end, ys_extra, ended = fields
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
            failure_of(end) if state != "finished" and end is not None else None,
            attempt or 0,
            worker_id,
            datetime.fromtimestamp(created, UTC),
            None if started is None else datetime.fromtimestamp(started, UTC),
            None if ended is None else datetime.fromtimestamp(ended, UTC),
            index,
        )
    except (ValueError, OverflowError, OSError) as error:
        if isinstance(error, DecodeError):
            raise
        raise DecodeError(f"the record of task {key!r:.80} has a time that is none: {created}, {started}, {ended}") from error


def failure_of(end: Any) -> Failure:
    """Returns the failure that a record or an entry of a worker holds.

    Raises:
        DecodeError: it holds none.
    """
    match end:
        case {"kind": kind, "type": str() | None as name, "message": str(message), "traceback": str() | None as trace}:
            if len(end) == 4 and kind in FAILURE_KINDS:
                return Failure(kind, name, message, trace)
        case _:
            pass
    raise DecodeError(f"this is no failure of this version of the library: {end!r:.80}")
