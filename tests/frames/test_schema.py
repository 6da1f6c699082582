"""The schema that a caller asks for: which values fit, and the errors for those that do not."""

from __future__ import annotations

import math
import time as clock
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import polars as pl
import pytest

from rush_async.errors import SchemaError
from rush_async.frames.column import text
from rush_async.frames.finished import FinishedTable
from rush_async.frames.schema import pack_schema, schema_columns, unpack_schema
from tests.frames.records import finished, frame_of_y, rows_of_y


def test_a_schema_decides_the_dtype_of_values_that_fit() -> None:
    schema = {"y": pl.Float64, "new": pl.Date, "x": pl.Int64}
    frame = frame_of_y([1, None, 3], schema)
    assert frame.schema == {"worker_id": pl.String, "x": pl.Int64, "y": pl.Float64, "new": pl.Date, "keys": pl.String}
    assert frame.select("x", "y", "new").rows() == [(0, 1.0, None), (1, None, None), (2, 3.0, None)]


@pytest.mark.parametrize(
    ("value", "dtype", "cell"),
    [
        (1, pl.Float64, 1.0),
        (3.0, pl.Int64, 3),
        (True, pl.Int64, 1),
        (1, pl.Boolean, True),
        (200, pl.UInt8, 200),
        (2**70, pl.Int128, 2**70),
        (0.5, pl.Float32, 0.5),
        ("a", pl.Enum(["a"]), "a"),
        ("a", pl.Categorical, "a"),
        (5, pl.String, "5"),
        ([1], pl.String, "[1]"),
        (Decimal("1.25"), pl.Decimal(10, 2), Decimal("1.25")),
        (b"x", pl.Binary, b"x"),
        ([1, 2.0], pl.List(pl.Int32), [1, 2]),
        ([1, 2], pl.Array(pl.Float64, 2), [1.0, 2.0]),
        ({"a": 1}, pl.Struct({"a": pl.Float64, "b": pl.String}), {"a": 1.0, "b": None}),
        (datetime(2024, 1, 1, tzinfo=UTC), pl.Datetime("ms", "UTC"), datetime(2024, 1, 1, tzinfo=UTC)),
        (timedelta(seconds=1), pl.Duration("ms"), timedelta(seconds=1)),
    ],
)
def test_a_value_that_equals_one_of_the_dtype_fits(value: Any, dtype: Any, cell: Any) -> None:
    frame = frame_of_y([value, None], {"y": dtype})
    assert frame.schema["y"] == dtype
    assert [list(got) if isinstance(got, pl.Series) else got for got in frame["y"]] == [cell, None]


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (2.5, pl.Int64),
        ("a", pl.Float64),
        ("1", pl.Int64),
        (2**53 + 1, pl.Float64),
        (2**63, pl.Int64),
        (300, pl.UInt8),
        (-1, pl.UInt64),
        (math.nan, pl.Int64),
        (2, pl.Boolean),
        (1e300, pl.Float32),
        ("b", pl.Enum(["a"])),
        ([1.5], pl.List(pl.Int64)),
        ([1, 2, 3], pl.Array(pl.Int64, 2)),
        ({"z": 1}, pl.Struct({"a": pl.Int64})),
        ({"a": 300}, pl.Struct({"a": pl.Int8})),
        (1, pl.List(pl.Int64)),
        (Decimal("1.255"), pl.Decimal(10, 2)),
        (datetime(2024, 1, 1, tzinfo=UTC), pl.Datetime("us")),
        (datetime(2024, 1, 1, 0, 0, 0, 1, tzinfo=UTC), pl.Datetime("ms", "UTC")),
        (1, pl.Null),
        ([Decimal("1.255")], pl.List(pl.Decimal(10, 2))),
        (Decimal(10) ** 9, pl.Decimal(10, 2)),
        (Decimal("sNaN"), pl.Float64),
        (Decimal("1E+999999"), pl.Float64),
    ],
)
@pytest.mark.parametrize("n_before", [2, 3_000])
def test_the_error_for_a_value_that_does_not_fit_names_task_and_column(value: Any, dtype: Any, n_before: int) -> None:
    archive = FinishedTable()
    archive.extend(rows_of_y([*[None] * n_before, value]))
    with pytest.raises(SchemaError, match=f"task 'k{n_before}'.*column 'y'"):
        archive.frame(schema={"y": dtype})
    assert archive.frame(schema={"y": pl.String})["y"].to_list() == [*[None] * n_before, text(value)]


def test_a_schema_with_text_silences_the_warning_and_one_with_numbers_names_the_text() -> None:
    archive = FinishedTable()
    archive.extend(rows_of_y([1, 2, "three"]))
    assert archive.frame(schema={"y": pl.String})["y"].to_list() == ["1", "2", "three"]
    with pytest.raises(SchemaError, match=r"task 'k2': the value 'three' of column 'y'"):
        archive.frame(schema={"y": pl.Float64})


def test_a_schema_that_cannot_be_used_is_refused() -> None:
    with pytest.raises(SchemaError, match="names 'keys', a reserved column"):
        FinishedTable().frame(schema={"keys": pl.String})
    with pytest.raises(SchemaError, match="does not map column names"):
        FinishedTable().frame(schema={"y": "float"})
    with pytest.raises(SchemaError, match="column 'y'"):
        FinishedTable().frame(schema={"y": pl.Object})


def test_a_column_of_the_schema_takes_its_place_once_a_record_has_it() -> None:
    archive, schema = FinishedTable(), {"w": pl.Float64, "y": pl.Float64}
    archive.extend(rows_of_y([1.0] * 100))
    assert archive.frame(schema=schema)["w"].null_count() == 100
    archive.extend([finished("k", {"x": 1.0, "w": 2}, {"y": 1})] * 100)
    frame = archive.frame(schema=schema)
    assert frame.columns == ["worker_id", "x", "w", "y", "keys"]
    assert frame["w"].to_list() == [None] * 100 + [2.0] * 100


def test_an_error_in_one_schema_leaves_the_frames_of_others_alone() -> None:
    archive = FinishedTable()
    for at in range(500):
        archive.extend(rows_of_y([1 if at < 450 else 2.5]))
        if at < 450:
            assert archive.frame(schema={"y": pl.Int32}).schema["y"] == pl.Int32
        assert archive.frame().height == at + 1
    with pytest.raises(SchemaError):
        archive.frame(schema={"y": pl.Int32})


@pytest.mark.parametrize("schema", [5, "y", {"y": None}, {"y": "float"}, {"y": pl.List}, {5: pl.Int64}])
def test_a_schema_that_does_not_map_names_to_dtypes_is_refused(schema: Any) -> None:
    with pytest.raises(SchemaError, match="does not map column names to polars dtypes"):
        schema_columns(schema)


@pytest.mark.parametrize("dtype", [pl.Object, pl.List(pl.Object), pl.Struct({"a": pl.Array(pl.Object, 2)})])
def test_a_dtype_that_no_value_of_a_task_fits_is_refused(dtype: Any) -> None:
    with pytest.raises(SchemaError, match="asks for Object in column 'y'"):
        schema_columns({"y": dtype})


def test_a_packed_schema_is_read_as_it_was_written() -> None:
    schema = {
        "text": pl.String,
        "number": pl.Int128(),
        "when": pl.Datetime("ns", "Europe/Berlin"),
        "span": pl.Duration("ms"),
        "price": pl.Decimal(10, 2),
        "kind": pl.Enum(["a", "b"]),
        "label": pl.Categorical,
        "nested": pl.Struct({"points": pl.List(pl.Array(pl.Int8, 2)), "raw": pl.Binary}),
        "nothing": pl.Null,
    }
    expected = {name: column.dtype for name, column in schema_columns(schema).items()}
    assert unpack_schema(pack_schema(schema)) == expected
    with pytest.raises(SchemaError, match="reserved column"):
        pack_schema({"keys": pl.String})


def test_without_a_schema_there_are_no_columns() -> None:
    assert schema_columns(None) == schema_columns({}) == {}


@pytest.mark.parametrize(
    "dtype",
    [
        pl.Array(pl.Float64, (2, 3)),
        pl.List(pl.Struct({"a": pl.Int8, "b": pl.List(pl.Datetime("ms", "UTC"))})),
        pl.Enum(["a"]),
        pl.Decimal(10, 2),
        pl.Int128,
        pl.Null,
    ],
)
def test_a_column_of_a_schema_has_the_dtype_asked_for(dtype: Any) -> None:
    (column,) = schema_columns({"y": dtype}).values()
    assert (column.name, column.dtype) == ("y", dtype)
    assert column.series([None, None], ["k0", "k1"]).dtype == dtype


@pytest.mark.parametrize(
    ("value", "dtype", "cell"),
    [
        ([[1, 2.0], [], None], pl.List(pl.List(pl.UInt8)), [[1, 2], [], None]),
        ([[1, 2], [3, 4]], pl.Array(pl.Int8, (2, 2)), [[1, 2], [3, 4]]),
        ([{"a": 1}, None, {}], pl.List(pl.Struct({"a": pl.String})), [{"a": "1"}, None, {"a": None}]),
        ({}, pl.Struct([]), {}),
    ],
)
def test_nested_values_fit_member_by_member(value: Any, dtype: Any, cell: Any) -> None:
    series = schema_columns({"y": dtype})["y"].series([value, None], ["k0", "k1"])
    assert series.dtype == dtype
    assert series.to_list() == [cell, None]


@pytest.mark.parametrize("dtype", [pl.Int64, pl.UInt8, pl.Boolean, pl.Decimal(10, 2), pl.Decimal])
@pytest.mark.parametrize("value", [*map(Decimal, ("1E+999999", "-1E+999999", "NaN", "sNaN", "1E-999999")), math.inf])
def test_a_number_out_of_range_is_refused_at_once(value: Any, dtype: Any) -> None:
    """The integer of such a Decimal has a million digits, which takes most of a minute to write down."""
    begin = clock.perf_counter()
    with pytest.raises(SchemaError, match=r"task 'k7': the value .* of column 'y' does not fit"):
        schema_columns({"y": dtype})["y"].series([value], ["k7"])
    assert clock.perf_counter() - begin < 5
