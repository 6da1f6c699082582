"""Frames of many tasks or reports, made in parts that fit into memory and all have the same columns."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import polars as pl

from rush_async.frames.column import INSTANT
from rush_async.frames.inference import Inference, Layout, values_of
from rush_async.model import TaskState
from rush_async.store.decoding import decode_flat
from rush_async.store.fields import END, XS
from rush_async.store.report_entry import Report

__all__ = ["REPORT_COLUMNS", "ReportParts", "TaskParts", "free_name", "shown_names"]

REPORT_COLUMNS = {"keys": pl.String, "worker_id": pl.String, "at": INSTANT, "attempt": pl.Int64, "step": pl.Int64}


class TaskParts:
    """Tasks of all states. Every record is looked at first, so that the columns and dtypes are those of all."""

    def __init__(self) -> None:
        self._inference = Inference()

    def note(self, state: TaskState, records: Sequence[bytes]) -> None:
        """Notes the types of the values of complete records."""
        if records:
            self._inference.update(values_of(decode_flat(b"".join(records), len(records)), state))

    @cached_property
    def _layout(self) -> Layout:
        return self._inference.layout(with_condition=True).extended(times=True, schema={})

    @cached_property
    def record_column(self) -> str:
        """The name of the column that has the records as they are stored: `record` where no task has that name."""
        return free_name("record", [column.name for column in self._layout.columns])

    def frame(self, state: TaskState, records: Sequence[bytes], stored: Sequence[bytes]) -> pl.DataFrame:
        """A frame with `state`, the columns of frames of tasks with times, and the records as they are stored.

        Args:
            state: the state of the tasks.
            records: their complete records, which were looked at.
            stored: their records as they are stored.
        """
        values = values_of(decode_flat(b"".join(records), len(records)), state) if records else {}
        return self._layout.build(values, len(records)).select(
            pl.lit(state).alias("state"), pl.all(), pl.Series(self.record_column, stored, dtype=pl.Binary)
        )


class ReportParts:
    """Reports. Every one is looked at first, as for tasks."""

    def __init__(self) -> None:
        self._inference = Inference()
        self._inference.update({(XS, "step"): [1]})  # so that it is there without a report, too

    def note(self, packed: Sequence[bytes]) -> None:
        """Notes the types of the values of reports."""
        if packed:
            self._inference.update(values_of(_flat(packed), "finished"))

    @cached_property
    def _shown(self) -> tuple[Layout, dict[str, str]]:
        layout = self._inference.layout().extended(times=True, schema={})
        return layout, shown_names(layout)

    @cached_property
    def entry_columns(self) -> tuple[str, str]:
        """The names of the columns that have the ids of the stream and the reports as they are stored."""
        names = list(self._shown[1].values())
        return free_name("id", names), free_name("record", names)

    def frame(self, ids: Sequence[bytes], packed: Sequence[bytes]) -> pl.DataFrame:
        """A frame as `ReportTable.frame` returns it, and the entries of the stream."""
        (layout, columns), (name, record) = self._shown, self.entry_columns
        rows = layout.build(values_of(_flat(packed), "finished") if packed else {}, len(packed))
        return rows.select(
            *[pl.col(own).alias(shown) for own, shown in columns.items()],
            pl.Series(name, [each.decode() for each in ids], dtype=pl.String),
            pl.Series(record, packed, dtype=pl.Binary),
        )


def _flat(packed: Sequence[bytes]) -> list[object]:
    return decode_flat(b"".join([Report.of(each).as_record() for each in packed]), len(packed))


def free_name(name: str, taken: Sequence[str]) -> str:
    """The name, with `stored.` in front as often as it is taken."""
    while name in taken:
        name = f"stored.{name}"
    return name


def shown_names(layout: Layout) -> dict[str, str]:
    """The columns of reports in their order: the name in a layout of the records with times, and the name that is shown."""
    columns = {"keys": "keys", "worker_id": "worker_id", "created_at": "at", "attempt": "attempt", "step": "step"}
    names = {(column.slot, column.name) for column in layout.columns if column.slot[0] == END}
    taken = {*REPORT_COLUMNS, *(slot[1] for slot, _ in names)}
    for column in layout.columns:
        if column.slot[0] != END:
            continue
        name = column.slot[1]
        while name in REPORT_COLUMNS or (name != column.slot[1] and name in taken):
            name = f"values.{name}"
        taken.add(name)
        columns[column.name] = name
    return columns
