"""Records and frames that the tests of frames share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl
import pytest

from rush_async.frames.column import text
from rush_async.frames.finished import FinishedTable
from rush_async.model import Failure
from rush_async.store.codec import encode
from rush_async.store.finished import Records
from rush_async.store.records import encode_created, encode_ended, encode_failure

AT = 1_760_000_000.123456


def finished(
    key: str,
    xs: dict[str, Any],
    ys: dict[str, Any] | None = None,
    *,
    xs_extra: dict[str, Any] | None = None,
    ys_extra: dict[str, Any] | None = None,
) -> bytes:
    """A complete record of a finished task."""
    started = encode("brave_bear", "worker_id") + encode(1, "attempt") + encode(AT + 1, "started_at")
    return queued(key, xs, xs_extra) + started + encode_ended(ys or {}, ys_extra) + encode(AT + 2, "ended_at")


def queued(key: str, xs: dict[str, Any], xs_extra: dict[str, Any] | None = None) -> bytes:
    """The first part of a record, which a queued task has."""
    return encode_created(key, xs, xs_extra) + encode(AT, "created_at") + encode(7, "index")


def failed(key: str, xs: dict[str, Any], failure: Failure) -> bytes:
    """A complete record of a failed task that never ran."""
    return queued(key, xs) + b"\xc0" * 3 + encode_failure(failure) + encode(AT + 2, "ended_at")


def rows_of_y(values: Sequence[Any]) -> list[bytes]:
    """A record of a finished task for each value of the output `y`."""
    return [finished(f"k{at}", {"x": float(at)}, {"y": value}) for at, value in enumerate(values)]


def frame_of_y(values: Sequence[Any], schema: Mapping[str, Any] | None = None) -> pl.DataFrame:
    """The frame of these records."""
    archive = FinishedTable()
    archive.extend(rows_of_y(values))
    return archive.frame(schema=schema)


def stands_for(cell: Any, value: Any) -> bool:
    """Whether a cell of a frame holds this value unchanged."""
    match value:
        case None:
            return cell is None
        case float() if math.isnan(value) and isinstance(cell, float):
            return math.isnan(cell)
        case list() if isinstance(cell, pl.Series | list):
            items: list[Any] = list(cell)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
            return all(stands_for(a, b) for a, b in zip(items, value, strict=True))  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
        case dict() if isinstance(cell, dict):
            return cell.keys() >= value.keys() and all(stands_for(cell[name], value.get(name)) for name in cell)  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType, reportUnknownVariableType]
        case _ if isinstance(cell, str):
            return cell == text(value)
        case _:
            return cell == value


class Decodings:
    """Counts the records that are decoded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._n = 0
        decode = Records.decode

        def counted(records: Records, first: int, last: int) -> list[Any]:
            self._n += last - first
            return decode(records, first, last)

        monkeypatch.setattr(Records, "decode", counted)

    def take(self) -> int:
        """How many were decoded since the last call."""
        n, self._n = self._n, 0
        return n
