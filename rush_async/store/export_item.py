"""A part of an export: a task, or what is kept under a name, as `lua/import.lua` takes it in."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["ExportItem"]


class ExportItem(NamedTuple):
    """A part of an export.

    Attributes:
        place: `finished`, `queued` or `failed`; `attributes`, `claims`, `task_attributes` or `points`; `ranking`; `reports` or
            `log`.
        name: the key of the task, the name of the value, or the id of the entry of the stream; of a ranking its direction, a
            blank and its name.
        data: the record, the value or the entry; of a ranking a key.
        detail: of a ranking the score of the key, as it is stored; of a report its number; of a task that is to get another
            index where *created* ends.
    """

    place: str
    name: bytes
    data: bytes
    detail: bytes = b""
