"""The worker log in the manager: as a frame, and through the loggers of this process."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rush_async.store.worker_log import LogEntry

if TYPE_CHECKING:
    import polars as pl

__all__ = ["frame_of_log", "log_again"]

# without tab and line feed; with separators of lines, and with what turns the direction of writing
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def frame_of_log(entries: Sequence[LogEntry], *, time_difference: bool) -> pl.DataFrame:
    """Returns log entries as a frame.

    Args:
        entries: the entries, in order.
        time_difference: whether to add the column `time_difference`.

    Returns:
        The columns `worker_id`, `level` (String), `timestamp` (Datetime in UTC), `logger`, `caller`, `msg` (String), and
        `time_difference` (Duration) to the previous record of the same worker.
    """
    import polars as pl  # slow to import: loaded with the first frame

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


def log_again(entry: LogEntry) -> None:
    """Logs an entry through the logger it came from, with the worker's id in front of the message. Control characters are
    escaped, and further lines begin with `| `: a message cannot command the terminal or look like another record."""
    logger = logging.getLogger("" if entry.logger == "root" else entry.logger)
    level = logging.getLevelNamesMapping().get(entry.level, logging.INFO)
    caller, _, line = entry.caller.rpartition(":")
    line_number = int(line) if line.isdecimal() else 0
    texts = (_harmless(entry.worker_id), _harmless(entry.msg))
    record = logger.makeRecord(entry.logger, level, caller, line_number, "%s: %s", texts, None, caller)
    record.created = entry.timestamp.timestamp()
    record.msecs = entry.timestamp.microsecond / 1000
    logger.handle(record)


def _harmless(text: str) -> str:
    return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text).replace("\n", "\n| ")
