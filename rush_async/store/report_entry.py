"""A report of a running task, as the stream of reports and the messages hold it."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

from rush_async.errors import DecodeError
from rush_async.store.codec import decode, to_msgpack
from rush_async.store.fields import END_OF_TIME

__all__ = ["Report", "ReportChunk"]

_SCALARS = frozenset({str, int, float, bool, type(None)})
_TEXTS = frozenset({str})


class Report(NamedTuple):
    """A report of a running task.

    Attributes:
        number: the number of the report in the network, from 1 on.
        key: the task.
        worker_id: the worker that ran it.
        attempt: which attempt of the task it was.
        step: which report of that attempt, from 1 on.
        at: when it was appended, by the server's clock (seconds since 1970).
        values: what was reported; in a message, None for more than about a KiB.
    """

    number: int
    key: str
    worker_id: str
    attempt: int
    step: int
    at: float
    values: dict[str, Any] | None

    @classmethod
    def of(cls, packed: bytes) -> Report:
        """Returns the report that an entry of the stream holds.

        Raises:
            DecodeError: it holds none.
        """
        report = cls.of_values(decode(packed))
        if report.values is None:
            raise DecodeError(f"a report of the network has no values: {packed!r:.200}")
        return report

    @classmethod
    def of_values(cls, entry: Any) -> Report:
        """Returns the report that these values are, perhaps without what was reported.

        Raises:
            DecodeError: they are none.
        """
        if type(entry) is list and len(fields := cast("list[Any]", entry)) == len(cls._fields):
            number, key, worker_id, attempt, step, at, values = fields
            are_texts = type(key) is str and type(worker_id) is str
            are_counts = _is_count(number) and _is_count(attempt) and _is_count(step)
            is_time = type(at) is float and 0 <= at < END_OF_TIME
            if are_texts and are_counts and is_time and (values is None or _are_scalars(values)):
                return cls(*fields)
        raise DecodeError(f"a report of the network is malformed: {entry!r:.200}")

    def as_record(self) -> bytes:
        """Returns the report as the complete record of a task: its step is the input, its values are the outputs."""
        started = (self.at, self.number, self.worker_id, self.attempt, None)
        return to_msgpack([self.key, {"step": self.step}, None, None, *started, self.values, None, self.at])[1:]


def _is_count(value: object) -> bool:
    return type(value) is int and 0 < value < 2**63


def _are_scalars(values: object) -> bool:
    if type(values) is not dict:
        return False
    entries = cast("dict[Any, Any]", values)
    return _TEXTS.issuperset(map(type, entries)) and _SCALARS.issuperset(map(type, entries.values()))


class ReportChunk(NamedTuple):
    """A part of the stream of reports.

    Attributes:
        epoch: the epoch of the network when it was read.
        last: the number of the last report of the network.
        entries: the ids of the stream, each with what is stored there.
    """

    epoch: int
    last: int
    entries: list[tuple[bytes, bytes]]
