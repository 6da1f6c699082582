"""A frame of records of several states, made at once."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence

import polars as pl

from rush_async.frames.inference import Inference, Layout, Values, values_of
from rush_async.frames.schema import Schema, schema_columns
from rush_async.model import TaskState
from rush_async.store.decoding import CHUNK, decode_flat

__all__ = ["as_proposals_see", "build", "decode", "frame_of", "proposal_frame", "stack", "warn"]

# Columns that differ from run to run, though the tasks are the same.
_RUN_TO_RUN = ("worker_id", "condition", "created_at", "started_at", "ended_at", "attempt", "keys")


def frame_of(
    groups: Sequence[tuple[TaskState, Sequence[bytes]]], *, with_state: bool, times: bool = False, schema: Schema | None = None
) -> pl.DataFrame:
    """The frame of complete records of several states, in the order given.

    Args:
        groups: states with their records, as `decoding.complete` returns them.
        with_state: whether the first column is `state` (String).
        times: as in `FinishedTable.frame`.
        schema: as in `FinishedTable.frame`.

    Returns:
        A frame as `FinishedTable.frame` returns it. If failed tasks are among the states, with or without rows, it also has
        `condition` (Struct of kind, type, message and traceback, null for other tasks).
    """
    asked, inference = schema_columns(schema), Inference()
    # The columns of finished tasks come first, whatever the order of the states: as in those of a `FinishedTable`.
    in_order = sorted(groups, key=lambda group: group[0] != "finished")
    decoded = {state: decode(state, records, inference) for state, records in in_order}
    portions = [(state, decoded[state]) for state, _ in groups]
    with_condition = any(state == "failed" for state, _ in groups)
    layout = inference.layout(with_condition=with_condition).extended(times=times, schema=asked)
    frame = stack([(state, build(found, layout)) for state, found in portions], with_state)
    warn(layout, set())
    return frame


def proposal_frame(groups: Sequence[tuple[TaskState, Sequence[bytes]]], *, schema: Schema | None = None) -> pl.DataFrame:
    """The frame of complete records of several states as a proposal sees them, see `FinishedTable.proposal_frame`."""
    return as_proposals_see(frame_of(groups, with_state=True, times=True, schema=schema))


def as_proposals_see(frame: pl.DataFrame) -> pl.DataFrame:
    # In one piece each time: the sum of a column in several pieces differs in its last bits.
    return frame.select("state", "index", pl.exclude("state", "index", *_RUN_TO_RUN)).rechunk()


def decode(state: TaskState, records: Sequence[bytes], inference: Inference) -> list[tuple[Values, int]]:
    """The values of records in portions, whose types the inference now has."""
    portions: list[tuple[Values, int]] = []
    for first in range(0, len(records), CHUNK):
        part = records[first : first + CHUNK]
        values = values_of(decode_flat(b"".join(part), len(part)), state)
        inference.update(values)
        portions.append((values, len(part)))
    return portions


def build(portions: list[tuple[Values, int]], layout: Layout) -> pl.DataFrame:
    return pl.concat([layout.build(values, n) for values, n in portions] or [layout.build({}, 0)], rechunk=True)


def stack(frames: Sequence[tuple[str, pl.DataFrame]], with_state: bool) -> pl.DataFrame:
    if not with_state:
        return pl.concat([frame for _, frame in frames])
    return pl.concat([frame.select(pl.lit(state).alias("state"), pl.all()) for state, frame in frames])


def warn(layout: Layout, warned: set[str]) -> None:
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
