"""The values of a complete record, see `rush_async.store.records`: their number, and where each is."""

from __future__ import annotations

import struct
from datetime import UTC, datetime

__all__ = [
    "ATTEMPT",
    "BASIS",
    "CREATED_AT",
    "END",
    "ENDED_AT",
    "END_EXTRA",
    "END_OF_TIME",
    "FIELDS",
    "HEADER",
    "INDEX",
    "KEY",
    "NIL",
    "STARTED_AT",
    "TIME_SIZE",
    "WORKER",
    "XS",
    "XS_EXTRA",
]

FIELDS = 12
KEY, XS, XS_EXTRA, BASIS, CREATED_AT, INDEX, WORKER, ATTEMPT, STARTED_AT, END, END_EXTRA, ENDED_AT = range(FIELDS)

HEADER = struct.Struct(">BBI")  # attempt, retries left, length of the first part
TIME_SIZE = 9
NIL = b"\xc0"

END_OF_TIME = datetime.max.replace(tzinfo=UTC).timestamp()  # what datetimes hold
