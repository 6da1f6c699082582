"""Finished records -> polars.

Records are kept as the bytes they came as, in chunks, and are decoded once each. What was decoded becomes blocks, frames whose
heights fall by more than half from one to the next: merging them so costs each row a few copies in all, however they came. The
last rows, up to 64, are kept decoded and become a frame whenever one is asked for. A block is derived anew for a layout (dtypes
that widened, a schema, the times) once, from what it has, or from the records where only these can tell.
"""

from __future__ import annotations

import inspect
import math
import struct
import warnings
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from itertools import accumulate
from typing import Any, NoReturn, TypeAlias, cast

import polars as pl

from rush_async.errors import SchemaError
from rush_async.frames.columns import Column, Layout, Maker, Seen, Values, nulls, text, values_of
from rush_async.model import Task, TaskState
from rush_async.store.records import FIELDS, RESERVED_NAMES, decode_flat, decode_task

__all__ = ["Archive", "frame_of"]

# Records decoded in one call: the garbage collector makes larger ones slower.
_CHUNK = 1_000
# Rows that are made into a frame anew each time, rather than merged.
_TAIL = 64
# Layouts (schema, times or not) that are kept up to date at once.
_VIEWS = 8

Schema: TypeAlias = Mapping[str, Any]
# First row, row after the last -> decoded records with their state, in portions.
Reader: TypeAlias = Callable[[int, int], Iterable[tuple[list[Any], TaskState]]]


class Archive:
    """The finished tasks of one network, growing.

    Frames have the columns `worker_id` (String), inputs, outputs, extras, with `times=True` the times (Datetime("us", "UTC"))
    and `attempt` (Int64), and `keys` (String). `rush_async.frames.columns` says which dtypes the values get. An output or extra
    whose name is taken is `ys.<name>`, `xs_extra.<name>` or `ys_extra.<name>`.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forgets everything. Frames handed out stay as they are."""
        self._chunks: list[bytes] = []  # of exactly _CHUNK records each
        self._bounds: list[array[int]] = []  # where the records of a chunk begin, and where the last one ends
        self._open: list[bytes] = []  # the records behind the last chunk
        self._rows: dict[str, int] = {}
        self._table = _Table(self._flats, Seen())
        self._tail: list[Any] = []  # decoded, behind the rows of the table
        self._tail_values: Values = {}
        self._n_decoded = 0
        self._whole: tuple[int, Layout, pl.DataFrame] | None = None  # the frame that was asked for last
        self._warned: set[str] = set()

    def __len__(self) -> int:
        return len(self._chunks) * _CHUNK + len(self._open)

    def extend(self, records: Sequence[bytes]) -> None:
        """Adds complete records in the order they finished.

        Raises:
            DecodeError: one of them is not a record. They are kept all the same, so that reading again is not endless.
        """
        at = 0
        while at < len(records):
            n_free = _CHUNK - len(self._open)
            self._open += records[at : at + n_free]
            at += n_free
            if len(self._open) == _CHUNK:
                self._chunks.append(b"".join(self._open))
                self._bounds.append(array("L", accumulate(map(len, self._open), initial=0)))
                self._open = []
        # Full chunks at once, so that whoever reads many lets others run in between; the rest when a frame is asked for.
        if len(self) - self._n_decoded >= _CHUNK:
            self._decode(len(self._chunks) * _CHUNK)

    def frame(self, start: int = 0, *, times: bool = False, schema: Schema | None = None) -> pl.DataFrame:
        """The rows from `start`, with the columns and dtypes that all rows have. The frame is the caller's own.

        Args:
            start: the first row.
            times: whether to add `created_at`, `started_at`, `ended_at` and `attempt`.
            schema: name -> dtype of columns that always exist. A value fits a dtype if it equals what then stands in the
                column: 2, 2.0 and True fit Int64 and Float64, 2.5 only Float64; Float32 rounds, String takes the text of
                anything.

        Raises:
            SchemaError: a value does not fit the schema, or the schema is none.
            DecodeError: a record is not one.
        """
        self._decode(len(self))
        view = self._table.view(times, schema)
        if self._whole is None or self._whole[:2] != (self._n_decoded, view):
            frame = self._table.body(view)
            if self._tail:
                frame = frame.vstack(view.build(self._tail_values, len(self._tail) // FIELDS))
            self._whole = (self._n_decoded, view, frame)
        _warn(view, self._warned)
        frame = self._whole[2]
        return frame.slice(start) if start else frame.clone()

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
        """The first `n` finished tasks beside tasks in other states, the states in the order given; see `frame_of`.

        Where the others hold nothing that these columns do not hold already, no finished record is decoded again.
        """
        self._decode(len(self))
        rest: list[tuple[TaskState, Sequence[bytes]]] = [(state, others[state]) for state in states if state != "finished"]
        beside = _frame_of(rest, deepcopy(self._table.seen), with_state, times, schema)
        mine = self.frame(times=times, schema=schema).head(n)  # others may have read on meanwhile
        if with_state:
            mine = mine.with_columns(pl.lit("finished").alias("state"))
        if "condition" in beside.columns:
            mine = mine.with_columns(pl.lit(None, dtype=beside.schema["condition"]).alias("condition"))
        if dict(mine.schema) != dict(beside.schema):
            groups: list[tuple[TaskState, Sequence[bytes]]] = [
                (state, self.raw(0, n) if state == "finished" else others[state]) for state in states
            ]
            return _frame_of(groups, deepcopy(self._table.seen), with_state, times, schema)
        mine, at, parts = mine.select(beside.columns), 0, list[pl.DataFrame]()
        for state in states:
            parts.append(mine if state == "finished" else beside[at : at + len(others[state])])
            at += 0 if state == "finished" else len(others[state])
        return pl.concat(parts)

    def find(self, keys: Iterable[str]) -> dict[str, Task]:
        """The tasks with these keys, as far as they are here."""
        for first, last in _windows(len(self._rows), len(self)):
            flat = decode_flat(self._joined(first, last), last - first)
            self._rows.update(zip(flat[::FIELDS], range(first, last), strict=True))
        return {key: self.records(row, row + 1)[0] for key in keys if (row := self._rows.get(key)) is not None}

    def keys(self, start: int, stop: int) -> list[str]:
        """The keys of the tasks from row `start` to before row `stop`."""
        return [key for flat, _ in self._flats(start, stop) for key in flat[::FIELDS]]

    def records(self, start: int, stop: int) -> list[Task]:
        """The tasks from row `start` to before row `stop`."""
        return [decode_task("finished", record) for record in self.raw(start, stop)]

    def raw(self, start: int, stop: int) -> list[bytes]:
        """The records from row `start` to before row `stop`, as they came."""
        found: list[bytes] = []
        for first, last in _windows(start, min(stop, len(self))):
            at, offset = divmod(first, _CHUNK)
            if at == len(self._chunks):
                found += self._open[offset : offset + last - first]
                continue
            chunk, bounds = self._chunks[at], self._bounds[at]
            found += [chunk[bounds[row] : bounds[row + 1]] for row in range(offset, offset + last - first)]
        return found

    def _joined(self, first: int, last: int) -> bytes:
        """The bytes of records of one chunk."""
        if last - first == _CHUNK:
            return self._chunks[first // _CHUNK]
        return b"".join(self.raw(first, last))

    def _flats(self, start: int, stop: int) -> Iterator[tuple[list[Any], TaskState]]:
        for first, last in _windows(start, min(stop, len(self))):
            yield decode_flat(self._joined(first, last), last - first), "finished"

    def _decode(self, stop: int) -> None:
        for first, last in _windows(self._n_decoded, stop):
            self._decode_window(first, last)

    def _decode_window(self, first: int, last: int) -> None:
        # A function of its own: what it leaves alive, the garbage collector would look at while the next is decoded.
        rows = decode_flat(self._joined(first, last), last - first)
        if self._tail:
            rows = self._tail + rows
        values = values_of(rows, "finished")
        self._table.learn(values)
        if len(rows) >= _TAIL * FIELDS:
            self._table.add(values, len(rows) // FIELDS)
            rows, values = [], Values()
        self._tail, self._tail_values, self._n_decoded = rows, values, last


def _windows(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Rows of one chunk each."""
    while start < stop:
        last = min(stop, start - start % _CHUNK + _CHUNK)
        yield start, last
        start = last


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
        A frame as `Archive.frame` returns it; if failed tasks are among the states, with or without rows, then with
        `condition` (Struct of kind, type, message, traceback: null for other tasks).
    """
    return _frame_of(groups, Seen(), with_state, times, schema)


def _frame_of(
    groups: Sequence[tuple[TaskState, Sequence[bytes]]], seen: Seen, with_state: bool, times: bool, schema: Schema | None
) -> pl.DataFrame:
    """As `frame_of`, with columns that hold what was seen elsewhere as well."""
    portions: list[tuple[bytes, int, TaskState]] = []
    starts: list[int] = []

    def read(start: int, stop: int) -> Iterator[tuple[list[Any], TaskState]]:
        for first, (chunk, n, state) in zip(starts, portions, strict=True):
            if start <= first < stop:
                yield decode_flat(chunk, n), state

    with_condition = any(state == "failed" for state, _ in groups)
    table = _Table(read, seen, with_state=with_state, with_condition=with_condition)
    for state, records in groups:
        for first, last in _windows(0, len(records)):
            chunk = b"".join(records[first:last])
            starts.append(table.height)
            portions.append((chunk, last - first, state))
            values = values_of(decode_flat(chunk, last - first), state)
            table.learn(values)
            table.add(values, last - first)
    view = table.view(times, schema)
    frame = table.body(view)
    _warn(view, set())
    return frame


class _Block:
    """Rows `start` to before `stop`, in as many layouts as were asked for."""

    def __init__(self, start: int, stop: int, frames: dict[Layout, pl.DataFrame]) -> None:
        self.start = start
        self.stop = stop
        self.frames = frames

    def frame(self, layout: Layout, read: Reader) -> pl.DataFrame:
        """The rows in this layout."""
        found = self.frames.get(layout)
        if found is None:
            found = self.frames[layout] = self._derive(layout, read)
        return found

    def _derive(self, layout: Layout, read: Reader) -> pl.DataFrame:
        done: dict[str, pl.Series] = {}
        unsure: list[Column] = []
        for column in layout.columns:
            known = [(old.by_slot[column.slot], frame) for old, frame in self.frames.items() if column.slot in old.by_slot]
            casts = (column.recast(frame[old.name]) for old, frame in known)
            if (series := next((series for series in casts if series is not None), None)) is not None:
                done[column.name] = series
            elif known or column.in_every_record:
                unsure.append(column)
            else:  # a name that was not there when these rows came
                done[column.name] = nulls(column.name, column.dtype, self.stop - self.start)
        if unsure:
            part = Layout(tuple(unsure), {})
            frames = [part.build(values_of(flat, state), len(flat) // FIELDS) for flat, state in read(self.start, self.stop)]
            again = pl.concat(frames, rechunk=True)
            done |= {column.name: again[column.name] for column in unsure}
        return pl.DataFrame([done[column.name] for column in layout.columns])


class _Table:
    """Decoded rows as blocks, in layouts."""

    def __init__(self, read: Reader, seen: Seen, *, with_state: bool = False, with_condition: bool = False) -> None:
        self.seen = seen
        self._read = read
        self._parts = {"with_state": with_state, "with_condition": with_condition}
        self._layout = self.seen.layout(**self._parts)
        self._views: dict[tuple[Any, ...], Layout] = {}
        self._blocks: list[_Block] = []
        self._bodies: dict[Layout, pl.DataFrame] = {}

    @property
    def height(self) -> int:
        """Number of rows."""
        return self._blocks[-1].stop if self._blocks else 0

    def learn(self, values: Values) -> None:
        """Widens the columns to what these rows hold, which are added now or later."""
        if self.seen.learn(values):
            self._layout = self.seen.layout(**self._parts)
            self._views.clear()
            self._bodies.clear()

    def add(self, values: Values, n: int) -> None:
        """Adds rows that were learned."""
        self._blocks.append(_Block(self.height, self.height + n, {self._layout: self._layout.build(values, n)}))
        self._bodies.clear()

    def view(self, times: bool, schema: Schema | None) -> Layout:
        """The columns of all that was learned, as they are asked for."""
        if not times and not schema:
            return self._layout
        dtypes = _checked_schema(schema or {})
        asked = (times, *dtypes.items())
        view = self._views.get(asked)
        if view is None:
            while len(self._views) >= _VIEWS:
                self._bodies.pop(self._views.pop(next(iter(self._views))), None)
            known = {column.name: column for column in self._layout.columns}
            columns = {
                name: self._layout.column(name, dtype, _fitting(name, dtype))
                for name, dtype in dtypes.items()
                if name not in known or known[name].dtype != dtype
            }
            view = self._views[asked] = self._layout.view(times=times, columns=columns, asked=dtypes)
        return view

    def body(self, view: Layout) -> pl.DataFrame:
        """All rows in one frame of few chunks."""
        body = self._bodies.get(view)
        if body is None:
            if not self._blocks:
                return view.build({}, 0)
            live = {self._layout, view, *self._views.values()}
            for block in self._blocks:
                for layout in (self._layout, view):
                    block.frame(layout, self._read)
                block.frames = {layout: frame for layout, frame in block.frames.items() if layout in live}
            self._merge(view)
            body = self._blocks[0].frames[view]
            for block in self._blocks[1:]:
                body = body.vstack(block.frames[view])
            self._bodies[view] = body
        return body

    def _merge(self, view: Layout) -> None:
        """Merges the last blocks into one, so that heights fall by more than half from block to block."""
        first = len(self._blocks) - 1
        height = self.height - self._blocks[first].start
        while first and self._blocks[first - 1].stop - self._blocks[first - 1].start < 2 * height:
            first -= 1
            height = self.height - self._blocks[first].start
        parts = self._blocks[first:]
        if len(parts) == 1:
            return
        frames: dict[Layout, pl.DataFrame] = {}
        for layout in (self._layout, *self._views.values()):
            # What is in no use is derived when it is asked for again.
            if layout is view or layout is self._layout or all(layout in block.frames for block in self._blocks[: first + 1]):
                try:
                    frames[layout] = pl.concat([block.frame(layout, self._read) for block in parts], rechunk=True)
                except SchemaError:  # of another view, whose caller will be told
                    continue
        self._blocks[first:] = [_Block(parts[0].start, parts[-1].stop, frames)]


def _warn(layout: Layout, warned: set[str]) -> None:
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


# Schemas


class _Misfit(ValueError):
    """A value does not fit a dtype."""


def _checked_schema(schema: Schema) -> Mapping[str, pl.DataType]:
    try:
        dtypes = pl.Schema({name: _instance(dtype) for name, dtype in schema.items()})
    except (TypeError, ValueError) as error:
        raise SchemaError(f"the schema {schema!r:.200} is not one (column name -> polars dtype): {error}") from error
    for name in dtypes:
        if name in RESERVED_NAMES:
            raise SchemaError(f"the schema names {name!r}, a column of every frame with a dtype of its own: leave it out")
    return dtypes


def _fitting(name: str, dtype: pl.DataType) -> Maker:
    """What makes a column of this dtype, and names the task whose value does not fit."""
    dtype = _instance(dtype)
    fit = _fitter(name, dtype)
    may_round = dtype.is_temporal() or dtype.is_decimal()

    def make(values: list[Any], keys: list[str]) -> pl.Series:
        try:
            fitted = [None if value is None else fit(value) for value in values]
            series = pl.Series(name, fitted, dtype=dtype, strict=True)
            if may_round and series.to_list() != fitted:
                raise _Misfit
        except (TypeError, ValueError, ArithmeticError, pl.exceptions.PolarsError):
            if len(values) > 1:
                # One by one, to say which; the whole may fail only because one does.
                for value, key in zip(values, keys, strict=True):
                    make([value], [key])
                raise
            raise SchemaError(
                f"task {keys[0]!r}: the value {values[0]!r:.80} of column {name!r} does not fit {dtype}, which the schema asks "
                "for; ask for a dtype that holds it (pl.String takes anything), or leave the column out of the schema"
            ) from None
        return series

    return make


def _fitter(name: str, dtype: pl.DataType) -> Callable[[Any], Any]:
    """What turns a value into an equal one of this dtype, or raises."""
    base = dtype.base_type()
    if base in _FITTERS:
        return _FITTERS[base]
    if isinstance(dtype, pl.List | pl.Array):
        entry = _fitter(name, _instance(dtype.inner))
        return lambda value: [None if item is None else entry(item) for item in _of(value, list)]
    if isinstance(dtype, pl.Struct):
        return _struct_fitter({member.name: _fitter(name, _instance(member.dtype)) for member in dtype.fields})
    if isinstance(dtype, pl.Datetime):
        aware = dtype.time_zone is not None
        return lambda value: value if (_of(value, datetime).tzinfo is not None) == aware else _refuse(value)
    if dtype.is_integer():
        signed = not dtype.is_unsigned_integer()
        n_bits = int(str(dtype).lstrip("UInt")) - signed
        return lambda value: _integer(value, -(2**n_bits) if signed else 0, 2**n_bits)
    raise SchemaError(
        f"the schema asks for {dtype} in column {name!r}: use a dtype for numbers, text, bytes, dates or nested ones"
    )


def _instance(dtype: Any) -> Any:
    is_class: bool = isinstance(dtype, type) and issubclass(dtype, pl.DataType)
    return cast("Any", dtype)() if is_class else cast("Any", dtype)


def _refuse(value: Any) -> NoReturn:
    raise _Misfit(value)


def _of(value: Any, kind: type) -> Any:
    return value if type(value) is kind else _refuse(value)


def _number(value: Any) -> Any:
    return value if type(value) in (float, int, bool, Decimal) else _refuse(value)


def _integer(value: Any, least: int, behind: int) -> int:
    number = int(_number(value))
    return number if number == value and least <= number < behind else _refuse(value)


def _float(value: Any) -> float:
    number = float(_number(value))
    return number if number == value or math.isnan(number) else _refuse(value)


def _short_float(value: Any) -> float:
    struct.pack("<f", _float(value))  # refuses what would become infinite
    return float(value)


def _struct_fitter(members: dict[str, Callable[[Any], Any]]) -> Callable[[Any], Any]:
    def fit(value: Any) -> dict[str, Any]:
        if not members.keys() >= _of(value, dict).keys():
            _refuse(value)
        return {name: None if value.get(name) is None else member(value[name]) for name, member in members.items()}

    return fit


_FITTERS: dict[Any, Callable[[Any], Any]] = {
    pl.Null: _refuse,
    pl.Boolean: lambda value: bool(value) if _number(value) in (0, 1) else _refuse(value),
    pl.Float64: _float,
    pl.Float32: _short_float,
    pl.Decimal: lambda value: Decimal(_number(value)),
    pl.String: text,
    pl.Categorical: lambda value: _of(value, str),
    pl.Enum: lambda value: _of(value, str),
    pl.Binary: lambda value: _of(value, bytes),
    pl.Date: lambda value: _of(value, date),
    pl.Time: lambda value: _of(value, time),
    pl.Duration: lambda value: _of(value, timedelta),
}
