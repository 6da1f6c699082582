"""Results from elsewhere that are pushed as finished tasks: the rows of a frame, or the finished tasks of an export."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from rush_async.client.export.reading import Archive
from rush_async.model import RESERVED_NAMES
from rush_async.store.decoding import decode_flat
from rush_async.store.fields import END, END_EXTRA, XS, XS_EXTRA

__all__ = ["Rows", "holds_rows", "rows_of"]

_PREFIXES = {"ys": END, "xs_extra": XS_EXTRA, "ys_extra": END_EXTRA}


class Rows(NamedTuple):
    """Finished tasks as `push_finished_tasks` takes them."""

    xss: list[dict[str, Any]]
    yss: list[dict[str, Any]]
    xss_extra: list[dict[str, Any]]
    yss_extra: list[dict[str, Any]]


def holds_rows(given: Any) -> bool:
    """Whether this is a frame of polars or pandas, or an export."""
    return isinstance(given, Archive) or hasattr(given, "iter_rows") or (hasattr(given, "notna") and hasattr(given, "columns"))


def rows_of(given: Any, yss: Any, xss_extra: Any, yss_extra: Any) -> Rows:
    """Returns what a frame or an export holds. It may take long: call it in a thread.

    Args:
        given: a frame of polars or pandas, or an export.
        yss: of a frame the names of its outputs.
        xss_extra: of a frame the names of what is stored beside each input.
        yss_extra: of a frame the names of what is stored beside each output.

    Raises:
        ValueError: the frame has no such column, or no outputs are named; or names are given for an export.
    """
    if isinstance(given, Archive):
        if (yss, xss_extra, yss_extra) != (None, None, None):
            raise ValueError("an export knows which values are outputs: leave yss, xss_extra and yss_extra out")
        return _rows_of_archive(given)
    columns = [str(name) for name in given.columns]
    fields = dict.fromkeys(columns, XS)
    for what, names, field in (("yss", yss, END), ("xss_extra", xss_extra, XS_EXTRA), ("yss_extra", yss_extra, END_EXTRA)):
        fields |= dict.fromkeys(_names(names, what, columns), field)
    if END not in fields.values():
        raise ValueError(f'name the outputs of the frame, as in yss=["y"]: its columns are {", ".join(columns)}')
    places = [(column, *_place(column, field, columns)) for column, field in fields.items() if column not in RESERVED_NAMES]
    rows = Rows([], [], [], [])
    by_field = {XS: rows.xss, END: rows.yss, XS_EXTRA: rows.xss_extra, END_EXTRA: rows.yss_extra}
    for row in _dicts_of(given):
        if row.get("state", "finished") != "finished":
            continue
        records: dict[int, dict[str, Any]] = {field: {} for field in by_field}
        for column, field, name in places:
            if row[column] is not None:
                records[field][name] = row[column]
        for field, found in by_field.items():
            found.append(records[field])
    return rows


def _rows_of_archive(archive: Archive) -> Rows:
    rows = Rows([], [], [], [])
    for record in archive.complete_records(("finished",))["finished"]:
        fields = decode_flat(record, 1)
        for found, field in zip(rows, (XS, END, XS_EXTRA, END_EXTRA), strict=True):
            found.append(fields[field])
    return rows


def _dicts_of(given: Any) -> Iterable[dict[str, Any]]:
    """The rows of a frame, None where a value is missing."""
    if hasattr(given, "iter_rows"):  # of polars
        return given.iter_rows(named=True)
    return given.astype(object).where(given.notna(), None).to_dict("records")  # of pandas: a missing value is nan or the like


def _names(names: Any, what: str, columns: Sequence[str]) -> Sequence[str]:
    """The names of columns that a caller gave."""
    names = [] if names is None else [names] if isinstance(names, str) else list(names)
    for name in names:
        if name not in columns:
            raise ValueError(f"{what} names {name!r:.80}, which is no column of the frame: it has {', '.join(columns)}")
    return names


def _place(column: str, field: int, columns: Sequence[str]) -> tuple[int, str]:
    """The field of a column, and its name there: a frame of tasks has `ys.x` for the output `x` beside the input `x`."""
    prefix, _, name = column.partition(".")
    return (_PREFIXES[prefix], name) if prefix in _PREFIXES and name in columns else (field, column)
