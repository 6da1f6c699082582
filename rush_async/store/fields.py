"""The values of a complete record, see `rush_async.store.records`: their number, and where each is."""

from __future__ import annotations

__all__ = [
    "ATTEMPT",
    "BASIS",
    "CREATED_AT",
    "END",
    "ENDED_AT",
    "END_EXTRA",
    "FIELDS",
    "INDEX",
    "KEY",
    "STARTED_AT",
    "WORKER",
    "XS",
    "XS_EXTRA",
]

FIELDS = 12
KEY, XS, XS_EXTRA, BASIS, CREATED_AT, INDEX, WORKER, ATTEMPT, STARTED_AT, END, END_EXTRA, ENDED_AT = range(FIELDS)
