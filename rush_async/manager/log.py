"""The worker log in the manager, through the loggers of this process."""

from __future__ import annotations

import logging
import re

from rush_async.store.log_entry import LogEntry

__all__ = ["log_again"]

# without tab and line feed; with separators of lines, and with what turns the direction of writing
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


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
