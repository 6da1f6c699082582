"""The finished tasks of a network as polars frames, and tasks in other states beside them."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any, Protocol

import polars as pl

from rush_async.frames.inference import Inference, Layout, Values, values_of
from rush_async.frames.schema import Schema, schema_columns
from rush_async.frames.table import Table
from rush_async.model import Task, TaskState
from rush_async.store.decoding import decode_flat
from rush_async.store.finished import CHUNK, Records

__all__ = ["Archive", "archive_of", "frame_of", "proposal_frame"]

# Columns that differ from run to run, though the tasks are the same.
_RUN_TO_RUN = ("worker_id", "condition", "created_at", "started_at", "ended_at", "attempt", "keys")


class Archive:
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
        _warn(layout, self._warned)
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
        portions = [(state, _decoded(state, others.get(state, ()), inference)) for state in states]
        layout = inference.layout(with_condition="failed" in states).extended(times=times, schema=asked)
        finished = self._table.frame_once(layout).head(self._row(n))  # more may have been read since the snapshot
        frames = [(state, finished if state == "finished" else _built(found, layout)) for state, found in portions]
        _warn(layout, set())
        return _stacked(frames, with_state)

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
        return _as_proposals_see(frame)

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


def archive_of(results: Results) -> Archive:
    """Returns the frames of finished tasks that all clients of an event loop share."""
    if not isinstance(results.decoder, Archive):
        results.decoder = Archive(results.records)
    return results.decoder


def frame_of(
    groups: Sequence[tuple[TaskState, Sequence[bytes]]], *, with_state: bool, times: bool = False, schema: Schema | None = None
) -> pl.DataFrame:
    """The frame of complete records of several states, in the order given.

    Args:
        groups: states with their records, as `codec.complete` returns them.
        with_state: whether the first column is `state` (String).
        times: as in `Archive.frame`.
        schema: as in `Archive.frame`.

    Returns:
        A frame as `Archive.frame` returns it. If failed tasks are among the states, with or without rows, it also has
        `condition` (Struct of kind, type, message and traceback, null for other tasks).
    """
    asked, inference = schema_columns(schema), Inference()
    # The columns of finished tasks come first, whatever the order of the states: as in the frames of an archive.
    in_order = sorted(groups, key=lambda group: group[0] != "finished")
    decoded = {state: _decoded(state, records, inference) for state, records in in_order}
    portions = [(state, decoded[state]) for state, _ in groups]
    with_condition = any(state == "failed" for state, _ in groups)
    layout = inference.layout(with_condition=with_condition).extended(times=times, schema=asked)
    frame = _stacked([(state, _built(found, layout)) for state, found in portions], with_state)
    _warn(layout, set())
    return frame


def proposal_frame(groups: Sequence[tuple[TaskState, Sequence[bytes]]], *, schema: Schema | None = None) -> pl.DataFrame:
    """The frame of complete records of several states as a proposal sees them, see `Archive.proposal_frame`."""
    return _as_proposals_see(frame_of(groups, with_state=True, times=True, schema=schema))


def _as_proposals_see(frame: pl.DataFrame) -> pl.DataFrame:
    # In one piece each time: the sum of a column in several pieces differs in its last bits.
    return frame.select("state", "index", pl.exclude("state", "index", *_RUN_TO_RUN)).rechunk()


def _decoded(state: TaskState, records: Sequence[bytes], inference: Inference) -> list[tuple[Values, int]]:
    """The values of records in portions, whose types the inference now has."""
    portions: list[tuple[Values, int]] = []
    for first in range(0, len(records), CHUNK):
        part = records[first : first + CHUNK]
        values = values_of(decode_flat(b"".join(part), len(part)), state)
        inference.update(values)
        portions.append((values, len(part)))
    return portions


def _built(portions: list[tuple[Values, int]], layout: Layout) -> pl.DataFrame:
    return pl.concat([layout.build(values, n) for values, n in portions] or [layout.build({}, 0)], rechunk=True)


def _stacked(frames: Sequence[tuple[str, pl.DataFrame]], with_state: bool) -> pl.DataFrame:
    if not with_state:
        return pl.concat([frame for _, frame in frames])
    return pl.concat([frame.select(pl.lit(state).alias("state"), pl.all()) for state, frame in frames])


def _warn(layout: Layout, warned: set[str]) -> None:
    """Warns of each column whose values became text, once."""
    for name, mixture in layout.mixtures.items():
        if name in warned:
            continue
        warned.add(name)
        level, frame = 1, inspect.currentframe()
        while frame is not None and str(frame.f_globals.get("__name__")).startswith("rush_async."):
            level, frame = level + 1, frame.f_back
        warnings.warn(
            f"column {name!r} is text: the values of {mixture} have no dtype in common that holds each unchanged; "
            f'give them one type, or ask for text with schema={{"{name}": pl.String}}',
            UserWarning,
            stacklevel=level,
        )
