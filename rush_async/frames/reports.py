"""The reports of running tasks as polars frames."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Collection

import polars as pl

from rush_async.frames.parts import REPORT_COLUMNS, shown_names
from rush_async.frames.table import Table
from rush_async.store.finished import Records

__all__ = ["ReportTable"]


class ReportTable:
    """The reports of one network, a row each. Each is the record of a task whose input is the step and whose outputs are the
    values, so that rows are decoded once, and columns have the dtypes of `rush_async.frames.inference`.

    Args:
        records: the records, which may be shared.
    """

    def __init__(self, records: Records) -> None:
        self._table = Table(records)
        self._warned: set[str] = set()

    def decode_chunks(self) -> None:
        """Decodes what was added to the shared records, as far as it fills chunks."""
        self._table.decode_chunks()

    def clear(self) -> None:
        """Removes all reports. Frames that were returned stay as they are."""
        self._table.records.clear()
        self._table = Table(self._table.records)
        self._warned = set()

    def frame(self, keys: Collection[str] | None = None) -> pl.DataFrame:
        """The reports in their order, of all tasks or of some.

        Args:
            keys: the tasks.

        Returns:
            A frame with `keys`, `worker_id`, `at`, `attempt`, `step` and a column for each value; `values.<name>` for a value
            that has the name of one of the first five.
        """
        if not len(self._table.records):
            return pl.DataFrame(schema=REPORT_COLUMNS)
        self._table.decode()
        layout = self._table.layout(True, {})
        rows = self._table.frame(layout)
        if keys is not None:
            rows = rows.filter(pl.col("keys").is_in(list(keys)))
        columns = shown_names(layout)
        self._warn({columns[name]: name for name in layout.mixtures if name in columns})
        return rows.select(pl.col(name).alias(shown) for name, shown in columns.items())

    def _warn(self, mixtures: Collection[str]) -> None:
        """Warns of each column whose values became text, once."""
        for name in mixtures:
            if name in self._warned:
                continue
            self._warned.add(name)
            level, frame = 1, inspect.currentframe()
            while frame is not None and str(frame.f_globals.get("__name__")).startswith("rush_async."):
                level, frame = level + 1, frame.f_back
            warnings.warn(
                f"column {name!r} of the reports is text: its values have no dtype in common that holds each unchanged; report "
                "values of one type",
                UserWarning,
                stacklevel=level,
            )
