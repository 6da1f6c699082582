"""The rows of finished tasks: their records, and the frames decoded from them.

Records are kept as they arrive, in chunks, and each is decoded once. Decoded rows become blocks whose heights at least halve
from one to the next: blocks are merged as in a log-structured merge tree (O'Neil et al. 1996), so each row is copied a
logarithmic number of times however the rows arrive. The last rows, fewer than 64, become a frame whenever one is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from rush_async.errors import DecodeError, SchemaError
from rush_async.frames.column import Column
from rush_async.frames.inference import Inference, Layout, Values, values_of
from rush_async.store.decoding import decode_flat
from rush_async.store.fields import FIELDS
from rush_async.store.finished import CHUNK, Records

__all__ = ["Table"]

_TAIL = 64  # decoded rows that become a block
_MOST_LAYOUTS = 8  # layouts, besides the one of the records, that are kept up to date


@dataclass(eq=False, slots=True)
class _Block:
    """The records from `start` to before `stop` in several layouts: `height` rows, as malformed records are left out."""

    records: Records
    start: int
    stop: int
    height: int
    frames: dict[Layout, pl.DataFrame]

    def frame(self, layout: Layout) -> pl.DataFrame:
        """The rows in this layout, which the block keeps."""
        found = self.frames.get(layout)
        if found is None:
            found = self.frames[layout] = self.derived(layout)
        return found

    def derived(self, layout: Layout) -> pl.DataFrame:
        """The rows in this layout, made from other layouts, or from the records where only these can tell."""
        done: dict[str, pl.Series] = {}
        unsure: list[Column] = []
        for column in layout.columns:
            known = [(old.by_slot[column.slot], frame) for old, frame in self.frames.items() if column.slot in old.by_slot]
            casts = (column.recast(frame[old.name]) for old, frame in known)
            if (series := next((series for series in casts if series is not None), None)) is not None:
                done[column.name] = series
            elif known or column.is_in_every_record:
                unsure.append(column)
            else:  # none of these records has it
                done[column.name] = column.nulls(self.height)
        if unsure:
            part = Layout(tuple(unsure), {})
            windows = (self.records.decode(*window) for window in self.records.windows(self.start, self.stop))
            frames = [part.build(values_of(rows, "finished"), len(rows) // FIELDS) for rows in windows]
            again = pl.concat(frames, rechunk=True)
            done |= {column.name: again[column.name] for column in unsure}
        return pl.DataFrame({column.name: done[column.name] for column in layout.columns})


class Table:
    """The rows of finished tasks in the layouts that callers ask for.

    Args:
        records: the rows, which may be shared; new ones without it.

    Attributes:
        records: the rows as they arrived.
        inference: the types of all decoded rows.
    """

    def __init__(self, records: Records | None = None) -> None:
        self.records = Records() if records is None else records
        self.inference = Inference()
        self._base = self.inference.layout()
        self._layouts: dict[tuple[Any, ...], Layout] = {}
        self._blocks: list[_Block] = []
        self._stacks: dict[Layout, pl.DataFrame] = {}  # all blocks in one frame
        self._n_decoded = 0
        self._tail_start = 0
        self._tail: list[Any] = []  # the decoded rows behind the last block
        self._tail_values: Values = {}
        self._latest: tuple[int, Layout, pl.DataFrame] | None = None  # the frame that was asked for last

    def extend(self, records: Sequence[bytes]) -> None:
        """Adds rows. Full chunks are decoded at once, the others when a frame is asked for."""
        self.records.extend(records)
        self.decode_chunks()

    def decode_chunks(self) -> None:
        """Decodes full chunks."""
        # A caller that adds many chunks lets others run between them, but a frame is made without a pause.
        if len(self.records) - self._n_decoded >= CHUNK:
            self.decode(len(self.records) // CHUNK * CHUNK)

    def decode(self, stop: int | None = None) -> None:
        """Decodes the rows before `stop`, by default all."""
        for first, last in self.records.windows(self._n_decoded, len(self.records) if stop is None else stop):
            self._decode_window(first, last)

    def _decode_window(self, first: int, last: int) -> None:
        # A function of its own: its values are gone before those of the next window burden the garbage collector.
        try:
            self._take(self._tail + self.records.decode(first, last), last)
        except DecodeError:  # some values are malformed: look at each record
            self.inference = Inference()
            for window in self.records.windows(0, self._tail_start):
                self.inference.update(values_of(self.records.decode(*window), "finished"))
            good = self.records.good(self._tail_start, last)
            self._take(decode_flat(b"".join(good), len(good)), last)

    def _take(self, rows: list[Any], last: int) -> None:
        values = values_of(rows, "finished")
        if self.inference.update(values):
            self._base = self.inference.layout()
            self._layouts.clear()
            self._stacks.clear()
        n = len(rows) // FIELDS
        if n >= _TAIL:
            self._blocks.append(_Block(self.records, self._tail_start, last, n, {self._base: self._base.build(values, n)}))
            self._stacks.clear()
            rows, values, self._tail_start = [], Values(), last
        self._tail, self._tail_values, self._n_decoded = rows, values, last

    def layout(self, times: bool, schema: Mapping[str, Column]) -> Layout:
        """The layout of the decoded rows, extended as a caller asks for it."""
        if not times and not schema:
            return self._base
        asked = (times, *((name, column.dtype) for name, column in schema.items()))
        layout = self._layouts.get(asked)
        if layout is None:
            while len(self._layouts) >= _MOST_LAYOUTS:
                self._stacks.pop(self._layouts.pop(next(iter(self._layouts))), None)
            layout = self._layouts[asked] = self._base.extended(times=times, schema=schema)
        return layout

    def frame(self, layout: Layout) -> pl.DataFrame:
        """All decoded rows in a layout that `layout` returned, in few chunks."""
        if self._latest is None or self._latest[:2] != (self._n_decoded, layout):
            self._latest = (self._n_decoded, layout, self._with_tail(self._stack(layout), layout))
        return self._latest[2]

    def frame_once(self, layout: Layout) -> pl.DataFrame:
        """All decoded rows in any layout, of which nothing is kept."""
        frames = [block.derived(layout) for block in self._blocks] or [layout.build({}, 0)]
        return self._with_tail(pl.concat(frames), layout)

    def _with_tail(self, frame: pl.DataFrame, layout: Layout) -> pl.DataFrame:
        if not self._tail:
            return frame
        return frame.vstack(layout.build(self._tail_values, len(self._tail) // FIELDS))

    def _stack(self, layout: Layout) -> pl.DataFrame:
        stack = self._stacks.get(layout)
        if stack is None:
            if not self._blocks:
                return layout.build({}, 0)
            live = {self._base, layout, *self._layouts.values()}
            for block in self._blocks:
                for each in (self._base, layout):
                    block.frame(each)
                block.frames = {each: frame for each, frame in block.frames.items() if each in live}
            self._merge(layout)
            stack = self._blocks[0].frames[layout]
            for block in self._blocks[1:]:
                stack = stack.vstack(block.frames[layout])
            self._stacks[layout] = stack
        return stack

    def _merge(self, layout: Layout) -> None:
        """Merges blocks, so that heights at least halve from block to block."""
        groups: list[list[_Block]] = []
        height = 0
        for block in reversed(self._blocks):
            if block.height < 2 * height:
                groups[-1].append(block)
                height += block.height
            else:
                groups.append([block])
                height = block.height
        self._blocks = [self._merged(group[::-1], layout) for group in reversed(groups)]

    def _merged(self, parts: list[_Block], layout: Layout) -> _Block:
        if len(parts) == 1:
            return parts[0]
        frames: dict[Layout, pl.DataFrame] = {}
        for each in (self._base, *self._layouts.values()):
            # A layout that is not in use is derived when it is asked for again.
            if each in (self._base, layout) or each in parts[0].frames:
                try:
                    frames[each] = pl.concat([block.frame(each) for block in parts], rechunk=True)
                except SchemaError:  # of another schema, whose caller gets it with the next frame
                    continue
        return _Block(self.records, parts[0].start, parts[-1].stop, sum(block.height for block in parts), frames)
