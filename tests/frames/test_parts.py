"""Frames in parts: whatever is in one part, all have the columns of all."""

from __future__ import annotations

from typing import Any

import polars as pl
from polars.testing import assert_frame_equal

from rush_async.frames.frame import frame_of
from rush_async.frames.parts import ReportParts, TaskParts, free_name
from rush_async.store.codec import to_msgpack
from tests.frames.records import rows_of_y


def test_tasks_have_the_columns_and_dtypes_of_all_parts() -> None:
    first, second = rows_of_y([1, 2]), rows_of_y([0.5, "text"])
    parts = TaskParts()
    for part in (first, second):
        parts.note("finished", part)
    frames = [parts.frame("finished", part, [b"stored"] * 2) for part in (first, second)]
    assert parts.record_column == "record"
    assert [frame["record"].to_list() for frame in frames] == [[b"stored"] * 2] * 2
    empty = parts.frame("queued", [], [])
    assert empty.schema == frames[0].schema
    groups: list[Any] = [("finished", [*first, *second]), ("failed", [])]
    expected = frame_of(groups, with_state=True, times=True, schema={"y": pl.String})
    assert_frame_equal(pl.concat(frames).drop("record"), expected)


def test_reports_have_the_columns_of_all_parts() -> None:
    def report(number: int, **values: object) -> bytes:
        return to_msgpack([number, "key", "worker", 1, number, 1.0, values])

    parts = ReportParts()
    parts.note([report(1, loss=1, id=3)])
    parts.note([report(2, loss=0.5)])
    assert parts.entry_columns == ("stored.id", "record")
    frame = pl.concat([parts.frame([b"1-0"], [report(1, loss=1, id=3)]), parts.frame([b"2-0"], [report(2, loss=0.5)])])
    assert frame.select("keys", "step", "loss", "id", "stored.id").rows() == [
        ("key", 1, 1.0, 3, "1-0"),
        ("key", 2, 0.5, None, "2-0"),
    ]
    assert ReportParts().frame([], []).columns == ["keys", "worker_id", "at", "attempt", "step", "id", "record"]


def test_a_name_that_is_taken_gets_a_prefix() -> None:
    assert free_name("record", ["x"]) == "record"
    assert free_name("record", ["record", "stored.record"]) == "stored.stored.record"
