"""The finished tasks of a network as one growing frame: what is new is decoded once, what is old is never touched again.

Records come into a short tail; full tails become tables, and tables of like size are merged, as the digits of a binary counter
carry. So a frame has few chunks, and a new row costs the same whatever is there already.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import polars as pl

from rush_async.errors import SchemaError
from rush_async.lattice import Kind, Scalar, dtype_of, is_mixed, join, kind_of, series_of, widen
from rush_async.model import Task, TaskState
from rush_async.store.codec import FIELDS, RESERVED_NAMES, decode_flat, task_of

__all__ = ["Archive", "Part", "frame_of_parts", "table_of_records"]

_CHUNK = 1_000  # records that are decoded in one call; the garbage collector dislikes many more
_BATCH = 20_000  # rows whose values are turned into columns together
_TAIL = 64

_TIMES = ("created_at", "started_at", "ended_at")
_GROUPS = {"xs": 1, "ys": 7, "xs_extra": 2, "ys_extra": 8}  # their places in a record
_CONDITION = pl.Struct(dict.fromkeys(("kind", "type", "message", "traceback"), pl.String()))


class Slot(NamedTuple):
    """Where a column's values come from: `xs`, `ys`, `xs_extra` or `ys_extra`, and the name in it."""

    group: str
    name: str


class Column(NamedTuple):
    """Values of one slot."""

    kind: Kind
    series: pl.Series


class Table:
    """Some records, decoded: what is the same in all of them as a frame, and a column for each slot."""

    def __init__(self, n: int, chunks: list[tuple[bytes, int]], fixed: pl.DataFrame, columns: dict[Slot, Column]) -> None:
        self.n = n
        self.chunks = chunks
        self.fixed = fixed
        self.columns = columns

    @classmethod
    def of(cls, chunks: Sequence[tuple[bytes, int]], *, failed: bool = False) -> Table:
        """The table of joined complete records; those of failed tasks have a failure in the place of the output."""
        fixed: list[list[Any]] = [[] for _ in range(6)]
        conditions: list[Any] = []
        values: dict[Slot, list[Any]] = {}
        n = 0
        for chunk, length in chunks:
            flat = decode_flat(chunk, length)
            for column, place in zip(fixed, (0, 4, 3, 6, 9, 5), strict=True):
                column += flat[place::FIELDS]
            for group, place in _GROUPS.items():
                if failed and group == "ys":
                    conditions += flat[place::FIELDS]
                else:
                    _gather(values, group, flat[place::FIELDS], n)
            n += length
            for gathered in values.values():
                gathered.extend([None] * (n - len(gathered)))
        columns: dict[Slot, Column] = {}
        for slot, gathered in values.items():
            kind = kind_of(gathered)
            columns[slot] = Column(kind, series_of("", gathered, kind))
        return cls(n, list(chunks), _fixed_frame(fixed, conditions if failed else None), columns)

    @classmethod
    def merged(cls, tables: Sequence[Table]) -> Table:
        """One table of several."""
        if len(tables) == 1:
            return tables[0]
        columns: dict[Slot, Column] = {}
        for slot, kind in kinds_of(tables).items():
            parts = [table.column(slot, kind) for table in tables]
            columns[slot] = Column(kind, pl.concat(parts, rechunk=True))
        fixed = pl.concat([table.fixed for table in tables], rechunk=True)
        chunks = [chunk for table in tables for chunk in table.chunks]
        return cls(sum(table.n for table in tables), chunks, fixed, columns)

    def column(self, slot: Slot, kind: Kind) -> pl.Series:
        """The values of a slot as a column of `kind`, which is that of this table or a wider one."""
        mine = self.columns.get(slot)
        if mine is None:
            return pl.Series("", [None], dtype=dtype_of(kind)).new_from_index(0, self.n)
        series = widen(mine.series, mine.kind, kind)
        # Text, and members of lists and mappings, are made from the values themselves, so those are decoded again.
        return series_of("", self.values(slot), kind) if series is None else series

    def values(self, slot: Slot) -> list[Any]:
        """The values of a slot, decoded from the records."""
        found: list[Any] = []
        for chunk, length in self.chunks:
            rows = decode_flat(chunk, length)[_GROUPS[slot.group] :: FIELDS]
            found += [None if row is None else row.get(slot.name) for row in rows]
        return found[: self.n]


def _gather(values: dict[Slot, list[Any]], group: str, rows: list[dict[str, Any] | None], n: int) -> None:
    """Adds the rows of one group to the columns; `n` rows were there before."""
    layouts = {None if row is None else tuple(row) for row in rows}
    if layouts == {None}:
        return
    if len(layouts) == 1:
        (names,) = layouts
        assert names is not None
        for name in names:
            _column_at(values, Slot(group, name), n).extend([row[name] for row in rows if row is not None])
        return
    for name in dict.fromkeys(chain.from_iterable([row for row in rows if row is not None])):
        column = _column_at(values, Slot(group, name), n)
        column.extend([None if row is None else row.get(name) for row in rows])


def _column_at(values: dict[Slot, list[Any]], slot: Slot, n: int) -> list[Any]:
    column = values.get(slot)
    if column is None:
        column = values[slot] = [None] * n
    return column


def _fixed_frame(fixed: list[list[Any]], conditions: list[Any] | None) -> pl.DataFrame:
    keys, worker_ids, *times, attempts = fixed
    columns = [
        pl.Series("keys", keys, dtype=pl.String()),
        pl.Series("worker_id", worker_ids, dtype=pl.String()),
        *[pl.Series(name, column, dtype=pl.Float64()) for name, column in zip(_TIMES, times, strict=True)],
        pl.Series("attempt", attempts, dtype=pl.Int64()),
    ]
    if conditions is not None:
        columns.append(pl.Series("condition", conditions, dtype=_CONDITION))
    return pl.DataFrame(columns)


def kinds_of(tables: Iterable[Table]) -> dict[Slot, Kind]:
    """The slots of several tables, in the order they appeared, each with the narrowest kind that holds all its values."""
    kinds: dict[Slot, Kind] = {}
    for table in tables:
        for slot, column in table.columns.items():
            kinds[slot] = join(kinds.get(slot, Scalar.NULL), column.kind)
    return kinds


def _names(slots: Iterable[Slot]) -> dict[str, Slot]:
    """The columns' names in their order: inputs, outputs, extras. What an input or a fixed column is named already gets its
    group in front."""
    order = sorted(slots, key=lambda slot: tuple(_GROUPS).index(slot.group))
    inputs = {slot.name for slot in order if slot.group == "xs"}
    outputs = {slot.name for slot in order if slot.group == "ys"} - inputs - RESERVED_NAMES
    extras = {slot.name for slot in order if slot.group == "xs_extra"} - inputs - outputs - RESERVED_NAMES
    taken = {"xs": set[str](), "ys": inputs, "xs_extra": inputs | outputs, "ys_extra": inputs | outputs | extras}
    names: dict[str, Slot] = {}
    for slot in order:
        is_taken = slot.name in taken[slot.group] or slot.name in RESERVED_NAMES
        name = f"{slot.group}.{slot.name}" if is_taken else slot.name
        while name in names:
            name += "_"
        names[name] = slot
    return names


class Part(NamedTuple):
    """Some tables of tasks in one state."""

    state: TaskState
    tables: Sequence[Table]


def frame_of_parts(
    parts: Sequence[Part],
    *,
    with_state: bool = False,
    times: bool = False,
    schema: Mapping[str, Any] | None = None,
    warned: set[str] | None = None,
) -> pl.DataFrame:
    """One frame of tasks in several states, with `condition` where failed ones were asked for."""
    tables = [table for part in parts for table in part.tables if table.n]
    fixed = _fixed_columns(parts, with_state, any(part.state == "failed" for part in parts))
    kinds = kinds_of(tables)
    columns: dict[str, pl.Series] = {}
    for name, slot in _names(kinds).items():
        kind = kinds[slot]
        if is_mixed(kind):
            _warn(name, warned)
        columns[name] = _stacked([table.column(slot, kind) for table in tables], kind)
    for name, dtype in (schema or {}).items():
        columns[name] = _fitted(name, columns.get(name), dtype, tables, _names(kinds).get(name), fixed)
    return _assembled(fixed, columns, times)


def _fixed_columns(parts: Sequence[Part], with_state: bool, with_condition: bool) -> pl.DataFrame:
    frames: list[pl.DataFrame] = []
    for part in parts:
        for table in part.tables:
            fixed = table.fixed
            if with_condition and "condition" not in fixed.columns:
                fixed = fixed.with_columns(pl.lit(None, dtype=_CONDITION).alias("condition"))
            if with_state:
                fixed = fixed.with_columns(pl.lit(part.state).alias("state"))
            frames.append(fixed)
    if not frames:
        fixed = _fixed_frame([[] for _ in range(6)], [] if with_condition else None)
        frames = [fixed.with_columns(pl.lit("").alias("state"))[:0] if with_state else fixed]
    return frames[0] if len(frames) == 1 else pl.concat(frames, rechunk=False)


def _assembled(fixed: pl.DataFrame, columns: Mapping[str, pl.Series], times: bool) -> pl.DataFrame:
    found = [fixed[name] for name in ("state",) if name in fixed.columns]
    found.append(fixed["worker_id"])
    found += [series.alias(name) for name, series in columns.items()]
    found += [fixed[name] for name in ("condition",) if name in fixed.columns]
    if times:
        for name in _TIMES:
            microseconds = (fixed[name] * 1_000_000).round().cast(pl.Int64())
            found.append(microseconds.cast(pl.Datetime("us", "UTC")))
        found.append(fixed["attempt"])
    found.append(fixed["keys"])
    return pl.DataFrame(found)


def _fitted(
    name: str, series: pl.Series | None, dtype: Any, tables: Sequence[Table], slot: Slot | None, fixed: pl.DataFrame
) -> pl.Series:
    """A column in the dtype asked for, if every value is the same in it."""
    if series is None or slot is None:
        return pl.Series(name, [None], dtype=dtype).new_from_index(0, fixed.height)
    if series.dtype == dtype and not is_mixed(kinds_of(tables)[slot]):
        return series
    values = [value for table in tables for value in table.values(slot)]
    for row, value in enumerate(values):
        if value is not None and not _fits(value, dtype):
            key = fixed["keys"][row]
            raise SchemaError(
                f"the column {name!r} is to be {dtype}, but task {key!r} has {value!r:.80} ({type(value).__name__}) in it: "
                "change the schema, or fix what the worker reports"
            )
    return pl.Series(name, values, dtype=dtype, strict=False)


def _fits(value: Any, dtype: Any) -> bool:
    try:
        fitted = pl.Series([value], dtype=dtype, strict=True)[0]
    except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError):
        fitted = None
        if isinstance(value, int | float) and dtype.is_numeric():
            fitted = pl.Series([value], dtype=dtype, strict=False)[0]
    if isinstance(fitted, pl.Series):
        fitted = fitted.to_list()
    if isinstance(value, float) and dtype.is_float():
        return fitted is not None  # narrower floats round, as whoever asks for them knows
    return bool(fitted == value) and isinstance(fitted, str) == isinstance(value, str)


def _warn(name: str, warned: set[str] | None) -> None:
    if warned is not None and name in warned:
        return
    if warned is not None:
        warned.add(name)
    warnings.warn(
        f"the values of {name!r} have no common type, so the column is text: report one type, or give a schema",
        UserWarning,
        stacklevel=2,
    )


class Archive:
    """The finished tasks of one network, in the order they finished."""

    def __init__(self) -> None:
        self._warned: set[str] = set()
        self.clear()

    def clear(self) -> None:
        """Forgets everything."""
        self._tables: list[Table] = []
        self._tail: list[bytes] = []
        self._n_in_tables = 0
        self._tail_table: Table | None = None
        self._kinds: list[tuple[Slot, Kind]] = []
        self._bases: dict[bool, pl.DataFrame] = {}  # with times and without
        self._rows: dict[str, int] = {}
        self._n_indexed = 0
        self.last: bytes | None = None

    def __len__(self) -> int:
        return self._n_in_tables + len(self._tail)

    def extend(self, records: Sequence[bytes]) -> None:
        """Adds complete records, in the order in which their tasks finished. They are decoded when they are looked at."""
        if records:
            self._tail += records
            self._tail_table = None
            self.last = records[-1]

    def raw(self, start: int, stop: int) -> list[bytes]:
        """The bytes of a few of the last records; for comparing."""
        n = self._n_in_tables
        if start >= n:
            return self._tail[start - n : stop - n]
        return [self.last] if stop == len(self) == start + 1 and self.last is not None else []

    # growing

    def settle(self) -> None:
        """Turns a long tail into tables, and merges tables of like size."""
        if len(self._tail) > _TAIL:
            for first in range(0, len(self._tail), _BATCH):
                batch = self._tail[first : first + _BATCH]
                self._tables.append(Table.of(list(_joined(batch))))
                self._n_in_tables += len(batch)
                while len(self._tables) > 1 and self._tables[-1].n * 2 > self._tables[-2].n:
                    self._tables[-2:] = [Table.merged(self._tables[-2:])]
            self._tail = []
            self._tail_table = None
            self._bases.clear()
        if self._tail and self._tail_table is None:
            self._tail_table = Table.of(list(_joined(self._tail)))

    def tables(self) -> list[Table]:
        """All that is finished, in a few tables."""
        self.settle()
        return [*self._tables, self._tail_table] if self._tail_table is not None else list(self._tables)

    # reading

    def frame(self, start: int = 0, *, times: bool = False, schema: Mapping[str, Any] | None = None) -> pl.DataFrame:
        """The rows from `start` on."""
        tables = self.tables()
        if schema:
            part = Part("finished", tables)
            return frame_of_parts([part], times=times, schema=schema, warned=self._warned).slice(start)
        frame = self._whole(tables, times)
        return frame.slice(start) if start else frame

    def _whole(self, tables: list[Table], times: bool) -> pl.DataFrame:
        """All rows. The tables' part is kept, as long as the tail does not change what the columns are."""
        kinds = kinds_of(tables)
        if self._kinds != list(kinds.items()):
            self._kinds = list(kinds.items())
            self._bases.clear()
        base = self._bases.get(times)
        if base is None:
            for name, slot in _names(kinds).items():
                if is_mixed(kinds[slot]):
                    _warn(name, self._warned)
            base = self._bases[times] = _part_frame(self._tables, kinds, times)
        if self._tail_table is None:
            return base.clone()
        return base.vstack(_part_frame([self._tail_table], kinds, times))

    def snapshot(
        self,
        n: int,
        others: Sequence[Part],
        states: Sequence[TaskState],
        *,
        with_state: bool,
        times: bool,
        schema: Mapping[str, Any] | None,
    ) -> pl.DataFrame:
        """The first `n` finished tasks and tasks in other states, in the order of `states`."""
        by_state = {part.state: part for part in others}
        mine = Part("finished", list(_first(self.tables(), n)))
        parts = [mine if state == "finished" else by_state[state] for state in states]
        return frame_of_parts(parts, with_state=with_state, times=times, schema=schema, warned=self._warned)

    def keys(self, start: int = 0, stop: int | None = None) -> list[str]:
        """The keys of some tasks."""
        found: list[str] = []
        first = 0
        for table in self.tables():
            if first + table.n > start:
                found += table.fixed["keys"][max(start - first, 0) :].to_list()
            first += table.n
        return found if stop is None else found[: stop - start]

    def find(self, keys: Iterable[str]) -> dict[str, Task]:
        """The tasks that have these keys, of those that are finished."""
        if self._n_indexed < len(self):
            for row, key in enumerate(self.keys(self._n_indexed), self._n_indexed):
                self._rows[key] = row
            self._n_indexed = len(self)
        rows = {key: self._rows[key] for key in keys if key in self._rows}
        return dict(zip(rows, self._tasks_at(list(rows.values())), strict=True))

    def _tasks_at(self, rows: Sequence[int]) -> list[Task]:
        wanted = sorted(set(rows))
        found: dict[int, Task] = {}
        first = 0
        chunks = [chunk for table in self.tables() for chunk in table.chunks]
        position = 0
        for chunk, length in chunks:
            here: list[int] = []
            while position < len(wanted) and wanted[position] < first + length:
                here.append(wanted[position])
                position += 1
            if here:
                flat = decode_flat(chunk, length)
                for row in here:
                    at = (row - first) * FIELDS
                    found[row] = task_of("finished", flat[at : at + FIELDS])
            first += length
        return [found[row] for row in rows]


def _joined(records: Sequence[bytes]) -> Iterator[tuple[bytes, int]]:
    for first in range(0, len(records), _CHUNK):
        chunk = records[first : first + _CHUNK]
        yield b"".join(chunk), len(chunk)


def table_of_records(records: Sequence[bytes], *, failed: bool = False) -> Table:
    """The table of complete records that are not in an archive."""
    return Table.of(list(_joined(records)), failed=failed)


def _first(tables: Sequence[Table], n: int) -> Iterator[Table]:
    """The first `n` rows of tables."""
    for table in tables:
        if n <= 0:
            return
        if table.n > n:
            columns = {slot: Column(kind, series[:n]) for slot, (kind, series) in table.columns.items()}
            yield Table(n, table.chunks, table.fixed[:n], columns)
        else:
            yield table
        n -= table.n


def _part_frame(tables: Sequence[Table], kinds: Mapping[Slot, Kind], times: bool) -> pl.DataFrame:
    fixed = _fixed_columns([Part("finished", tables)], False, False)
    columns = {
        name: _stacked([table.column(slot, kinds[slot]) for table in tables], kinds[slot])
        for name, slot in _names(kinds).items()
    }
    return _assembled(fixed, columns, times)


def _stacked(parts: Sequence[pl.Series], kind: Kind) -> pl.Series:
    if len(parts) == 1:
        return parts[0]
    return pl.concat(parts, rechunk=False) if parts else pl.Series("", [], dtype=dtype_of(kind))
