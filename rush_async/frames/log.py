"""The worker log as a polars frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from rush_async.store.log_entry import LogEntry

__all__ = ["frame_of_log", "stored_log"]


def frame_of_log(entries: Sequence[LogEntry], *, time_difference: bool) -> pl.DataFrame:
    """Returns log entries as a frame.

    Args:
        entries: the entries, in order.
        time_difference: whether to add the column `time_difference`.

    Returns:
        The columns `worker_id`, `level` (String), `timestamp` (Datetime in UTC), `logger`, `caller`, `msg` (String), and
        `time_difference` (Duration) to the previous record of the same worker.
    """
    text = pl.String()
    schema: dict[str, Any] = {
        "worker_id": text,
        "level": text,
        "timestamp": pl.Datetime("us", "UTC"),
        "logger": text,
        "caller": text,
        "msg": text,
    }
    frame = pl.DataFrame(entries, schema=schema, orient="row")
    if time_difference:
        return frame.with_columns(time_difference=pl.col("timestamp").diff().over("worker_id"))
    return frame


def stored_log(ids: Sequence[bytes], packed: Sequence[bytes]) -> pl.DataFrame:
    """Returns entries of the stream as a frame, with their ids (String) and with what is stored (Binary)."""
    return frame_of_log([LogEntry.of(each) for each in packed], time_difference=False).with_columns(
        pl.Series("id", [each.decode() for each in ids], dtype=pl.String), pl.Series("record", packed, dtype=pl.Binary)
    )
