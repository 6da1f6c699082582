"""The schema that a caller asks for: columns that exist in any case, and how values fit their dtypes."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Context, Decimal, Inexact, InvalidOperation
from io import BytesIO
from typing import Any, NoReturn, TypeAlias, cast

import polars as pl

from rush_async.errors import SchemaError
from rush_async.frames.column import NO_FIELD, Column, text
from rush_async.model import RESERVED_NAMES

__all__ = ["Schema", "SchemaColumn", "pack_schema", "schema_columns", "unpack_schema"]

Schema: TypeAlias = Mapping[str, Any]


def schema_columns(schema: Schema | None) -> dict[str, Column]:
    """The columns of a schema by name.

    Args:
        schema: column name -> polars dtype, a class or an instance.

    Raises:
        SchemaError: it is not a schema, names a reserved column, or has a dtype that no value of a task fits.
    """
    if not schema:
        return {}
    try:
        if not all(isinstance(name, str) for name in cast("Mapping[Any, Any]", schema)):
            raise TypeError("names are strings")
        dtypes = pl.Schema({name: _instance(dtype) for name, dtype in schema.items()})
    except (AttributeError, TypeError, ValueError) as error:
        raise SchemaError(f"the schema {schema!r:.200} does not map column names to polars dtypes: {error}") from error
    for name in dtypes:
        if name in RESERVED_NAMES:
            raise SchemaError(f"the schema names {name!r}, a reserved column whose dtype is fixed: remove it from the schema")
    return {name: SchemaColumn((NO_FIELD, name), name, _supported(dtype, name)) for name, dtype in dtypes.items()}


def pack_schema(schema: Schema) -> bytes:
    """Packs a schema as an empty Arrow file, which another process can read without running code of the sender.

    Raises:
        SchemaError: as `schema_columns`.
    """
    packed = BytesIO()
    pl.DataFrame(schema={name: column.dtype for name, column in schema_columns(schema).items()}).write_ipc(packed)
    return packed.getvalue()


def unpack_schema(packed: bytes) -> Schema:
    """Returns the schema that `pack_schema` packed."""
    return pl.read_ipc_schema(BytesIO(packed))  # which starts no thread: a process that was forked could hang


def _instance(dtype: Any) -> Any:
    is_class: bool = isinstance(dtype, type) and issubclass(dtype, pl.DataType)
    return cast("Any", dtype)() if is_class else cast("Any", dtype)


def _supported(dtype: Any, name: str) -> pl.DataType:
    """The dtype, with instances for the classes in it."""
    dtype = _instance(dtype)
    match dtype:
        case pl.List():
            return pl.List(_supported(dtype.inner, name))
        case pl.Array():
            return pl.Array(_supported(dtype.inner, name), dtype.size)
        case pl.Struct():
            return pl.Struct({member.name: _supported(member.dtype, name) for member in dtype.fields})
        case pl.DataType() if (
            dtype.base_type() in _FITTING or dtype.is_integer() or isinstance(dtype, pl.Datetime | pl.Decimal)
        ):
            return dtype
        case _:
            raise SchemaError(
                f"the schema asks for {dtype} in column {name!r}: use a dtype for numbers, text, bytes, dates or nested ones"
            )


class SchemaColumn(Column):
    """A column whose dtype a schema decides."""

    __slots__ = ()

    def series(self, values: list[Any], keys: list[str]) -> pl.Series:
        """These values as a series; `keys` are those of their tasks.

        Raises:
            SchemaError: a value does not fit the dtype.
        """
        try:
            cells = self._cells(values, self.dtype)
            series = pl.Series(self.name, cells, dtype=self.dtype, strict=True)
            if self.dtype.is_temporal() and series.to_list() != cells:
                raise ValueError  # polars has rounded a value
        except (TypeError, ValueError, ArithmeticError, pl.exceptions.PolarsError):
            if len(values) > 1:
                # One by one, to find the task.
                for value, key in zip(values, keys, strict=True):
                    self.series([value], [key])
                raise
            raise SchemaError(
                f"task {keys[0]!r}: the value {values[0]!r:.80} of column {self.name!r} does not fit {self.dtype}, the dtype "
                "in the schema; use a dtype that holds it (pl.String holds anything), or remove the column from the schema"
            ) from None
        return series

    def _lists(self, values: list[Any], inner: Any) -> list[Any]:
        for value in values:
            if value is not None:
                _of(value, list)
        return super()._lists(values, inner)

    def _mappings(self, values: list[Any], members: dict[str, Any]) -> list[Any]:
        for value in values:
            if value is not None and not members.keys() >= _of(value, dict).keys():
                _refuse(value)
        return super()._mappings(values, members)

    def _scalars(self, values: list[Any], dtype: pl.DataType) -> list[Any]:
        fit = _FITTING.get(dtype.base_type())
        if fit is not None:
            return [None if value is None else fit(value) for value in values]
        if isinstance(dtype, pl.Datetime):
            is_aware = dtype.time_zone is not None
            return [None if value is None else _datetime(value, is_aware) for value in values]
        if isinstance(dtype, pl.Decimal):
            unit = Decimal((0, (1,), -dtype.scale))
            context = Context(dtype.precision or 38, traps=[Inexact, InvalidOperation])
            return [None if value is None else _decimal(value, unit, context) for value in values]
        least, behind = _range_of_ints(dtype)
        return [None if value is None else _integer(value, least, behind) for value in values]


# Each function below returns a value that equals the given one and has the dtype, or raises.


def _refuse(value: Any) -> NoReturn:
    raise ValueError(value)


def _of(value: Any, kind: type) -> Any:
    return value if type(value) is kind else _refuse(value)


def _number(value: Any) -> Any:
    return value if type(value) in (float, int, bool, Decimal) else _refuse(value)


def _range_of_ints(dtype: pl.DataType) -> tuple[int, int]:
    """The least integer of an integer dtype, and the one behind the greatest."""
    n_bits = int(str(dtype).lstrip("UInt"))
    return (0, 2**n_bits) if dtype.is_unsigned_integer() else (-(2 ** (n_bits - 1)), 2 ** (n_bits - 1))


def _integer(value: Any, least: int, behind: int) -> int:
    # The range first: the int of a Decimal may have millions of digits.
    if not least <= _number(value) < behind:
        _refuse(value)
    number = int(value)
    return number if number == value else _refuse(value)


def _decimal(value: Any, unit: Decimal, context: Context) -> Decimal:
    number = Decimal(_number(value))
    # Checked here, for polars panics at some numbers.
    return _refuse(value) if number.is_nan() else number.quantize(unit, context=context)


def _float(value: Any) -> float:
    number = float(_number(value))
    return number if number == value or math.isnan(number) else _refuse(value)


def _short_float(value: Any) -> float:
    struct.pack("<f", _float(value))  # refuses a value that would become infinite
    return float(value)


def _datetime(value: Any, is_aware: bool) -> datetime:
    """Returns a datetime that has a time zone, or has none, as the column demands; else refuses it."""
    return value if (_of(value, datetime).tzinfo is not None) == is_aware else _refuse(value)


_FITTING: dict[Any, Callable[[Any], Any]] = {
    pl.Null: _refuse,
    pl.Boolean: lambda value: bool(value) if _number(value) in (0, 1) else _refuse(value),
    pl.Float64: _float,
    pl.Float32: _short_float,
    pl.String: text,
    pl.Categorical: lambda value: _of(value, str),
    pl.Enum: lambda value: _of(value, str),
    pl.Binary: lambda value: _of(value, bytes),
    pl.Date: lambda value: _of(value, date),
    pl.Time: lambda value: _of(value, time),
    pl.Duration: lambda value: _of(value, timedelta),
}
