"""The finished tasks of a network as polars frames, and tasks in other states beside them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any, Protocol

import polars as pl

from rush_async.frames.frame import as_proposals_see, build, decode, frame_of, stack, warn
from rush_async.frames.schema import Schema, schema_columns
from rush_async.frames.table import Table
from rush_async.model import Task, TaskState
from rush_async.store.finished import Records

__all__ = ["FinishedTable", "table_of"]


class FinishedTable:
    """The finished tasks of one network, a row each.

    Frames have the columns `worker_id` (String), inputs, outputs, extras, with `times=True` the times (Datetime("us", "UTC"))
    `attempt` and `index` (Int64), and `keys` (String). `rush_async.frames.inference` has the dtypes of values. An output or
    extra whose name is taken is `ys.<name>`, `xs_extra.<name>` or `ys_extra.<name>`.
    """

    def __init__(self, records: Records | None = None) -> None:
        self._records = Records() if records is None else records
        self._table = Table(self._records)
        self._warned: set[str] = set()

    def clear(self) -> None:
        """Removes all tasks. Frames that were returned stay as they are."""
        self._records.clear()
        self._table = Table(self._records)
        self._warned = set()

    def __len__(self) -> int:
        return len(self._records)

    def extend(self, records: Sequence[bytes]) -> None:
        """Adds complete records in the order in which the tasks finished."""
        self._table.extend(records)

    def decode_chunks(self) -> None:
        """Decodes what was added to the shared records, as far as it fills chunks."""
        self._table.decode_chunks()

    def frame(self, start: int = 0, *, times: bool = False, schema: Schema | None = None) -> pl.DataFrame:
        """The tasks from place `start` on, without malformed ones, with the columns and dtypes of all. The caller owns it.

        Args:
            start: the first place.
            times: whether to add `created_at`, `started_at`, `ended_at`, `attempt` and `index`.
            schema: name -> dtype of columns that always exist. A value fits a dtype if it equals what the column then holds:
                2, 2.0 and True fit Int64 and Float64, 2.5 only Float64; Float32 rounds, String holds the text of anything.

        Raises:
            SchemaError: a value does not fit the schema, or the schema cannot be used.
        """
        self._table.decode()
        layout = self._table.layout(times, schema_columns(schema))
        frame = self._table.frame(layout)
        warn(layout, self._warned)
        return frame.slice(self._row(start)) if start else frame.clone()

    def _row(self, place: int) -> int:
        return place - self._records.n_malformed(place)

    def snapshot(
        self,
        n: int,
        others: Mapping[TaskState, Sequence[bytes]],
        states: Sequence[TaskState],
        *,
        with_state: bool,
        times: bool = False,
        schema: Schema | None = None,
    ) -> pl.DataFrame:
        """The first `n` finished tasks and tasks in other states, the states in the order given; see `frame_of`.

        Finished tasks are decoded again only for columns whose dtype the others change to one that polars cannot cast to.
        """
        self._table.decode()
        asked = schema_columns(schema)
        self._table.frame(self._table.layout(times, asked))  # kept by the table, so that the next snapshot decodes less
        inference = deepcopy(self._table.inference)
        portions = [(state, decode(state, others.get(state, ()), inference)) for state in states]
        layout = inference.layout(with_condition="failed" in states).extended(times=times, schema=asked)
        finished = self._table.frame_once(layout).head(self._row(n))  # more may have been read since the snapshot
        frames = [(state, finished if state == "finished" else build(found, layout)) for state, found in portions]
        warn(layout, set())
        return stack(frames, with_state)

    def proposal_frame(
        self,
        n: int,
        others: Mapping[TaskState, Sequence[bytes]],
        states: Sequence[TaskState],
        *,
        schema: Schema | None = None,
    ) -> pl.DataFrame:
        """The tasks that a proposal sees: the first `n` finished ones and others, without what differs from run to run.

        Columns and dtypes are those of these tasks alone, whatever finished later.

        Returns:
            A frame with `state` (String), `index` (Int64), inputs, outputs and extras.
        """
        if "finished" in states and len(self) == n:
            frame = self.snapshot(n, others, states, with_state=True, times=True, schema=schema)
        else:
            groups: list[tuple[TaskState, Sequence[bytes]]] = [
                (state, self._records.good(0, n) if state == "finished" else others[state]) for state in states
            ]
            frame = frame_of(groups, with_state=True, times=True, schema=schema)
        return as_proposals_see(frame)

    def find(self, keys: Iterable[str]) -> dict[str, Task]:
        """The tasks with these keys, as far as they are here."""
        return self._records.find(keys)

    def keys(self, start: int, stop: int) -> list[str]:
        """The keys of the tasks from row `start` to before row `stop`."""
        return self._records.keys(start, stop)

    def raw(self, start: int, stop: int) -> list[bytes]:
        """The records from row `start` to before row `stop`, as they arrived."""
        return self._records.raw(start, stop)


class Results(Protocol):
    """The finished tasks of a network as one event loop reads them."""

    records: Records
    decoder: Any


def table_of(results: Results) -> FinishedTable:
    """Returns the frames of finished tasks that all clients of an event loop share."""
    if not isinstance(results.decoder, FinishedTable):
        results.decoder = FinishedTable(results.records)
    return results.decoder
