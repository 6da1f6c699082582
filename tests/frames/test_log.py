"""The worker log as a frame."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import polars as pl

from rush_async.frames.log import frame_of_log
from rush_async.store.log_entry import LogEntry


def test_a_frame_has_a_row_per_entry_and_the_time_differences_of_each_worker() -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    entries = [
        LogEntry(worker_id, "INFO", start + timedelta(seconds=seconds), "x", "a.b:1", "msg")
        for worker_id, seconds in [("a", 0), ("b", 1), ("a", 3), ("b", 2)]
    ]
    frame = frame_of_log(entries, time_difference=True)
    assert frame.schema["time_difference"] == pl.Duration("us")
    assert frame["time_difference"].to_list() == [None, None, timedelta(seconds=3), timedelta(seconds=1)]
    assert frame_of_log(entries, time_difference=False).rows() == [tuple(entry) for entry in entries]
