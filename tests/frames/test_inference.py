"""The columns that follow from records: names, order, and the dtypes of the values."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import polars as pl
import pytest

from rush_async.errors import DecodeError
from rush_async.frames.column import NO_FIELD, Column
from rush_async.frames.finished import FinishedTable
from rush_async.frames.inference import Inference, Layout, values_of
from rush_async.model import Failure
from rush_async.store.decoding import decode_flat
from rush_async.store.fields import CREATED_AT, END, END_EXTRA, XS, XS_EXTRA
from tests.frames.records import AT, failed, finished, frame_of_y, queued, rows_of_y, stands_for


def test_columns_come_in_the_promised_order() -> None:
    archive = FinishedTable()
    archive.extend([finished("k", {"b": 1, "a": "s"}, {"y": 0.5}, ys_extra={"e": 1}, xs_extra={"d": True})])
    assert archive.frame().schema == {
        "worker_id": pl.String,
        "b": pl.Int64,
        "a": pl.String,
        "y": pl.Float64,
        "d": pl.Boolean,
        "e": pl.Int64,
        "keys": pl.String,
    }
    assert archive.frame(times=True).columns[-6:] == ["created_at", "started_at", "ended_at", "attempt", "index", "keys"]
    assert archive.frame().rows() == [("brave_bear", 1, "s", 0.5, True, 1, "k")]


def test_times_are_utc_to_the_microsecond() -> None:
    archive = FinishedTable()
    archive.extend(rows_of_y([1.0]))
    row = archive.frame(times=True).row(0, named=True)
    assert row["created_at"] == datetime.fromtimestamp(AT, UTC)
    assert row["created_at"].microsecond == 123456
    assert row["ended_at"] - row["started_at"] == timedelta(seconds=1)
    assert (row["attempt"], row["index"]) == (1, 7)
    dtypes = archive.frame(times=True).schema
    assert [dtypes[name] for name in ("created_at", "started_at", "ended_at")] == [pl.Datetime("us", "UTC")] * 3
    assert dtypes["attempt"] == dtypes["index"] == pl.Int64


def test_a_taken_name_gets_the_prefix_of_its_group() -> None:
    archive = FinishedTable()
    extras: dict[str, Any] = {"a": 3, "keys": 4}
    archive.extend([finished("k", {"a": 1}, {"a": 2, "ys.a": 5, "state": "s"}, xs_extra=extras, ys_extra=extras)])
    row = archive.frame().row(0, named=True)
    assert row == {
        "worker_id": "brave_bear",
        "a": 1,
        "ys.a": 2,
        "ys.ys.a": 5,
        "ys.state": "s",
        "xs_extra.a": 3,
        "xs_extra.keys": 4,
        "ys_extra.a": 3,
        "ys_extra.keys": 4,
        "keys": "k",
    }


def test_a_later_input_takes_the_name_of_an_output() -> None:
    archive = FinishedTable()
    archive.extend([finished("k0", {}, {"y": 1})])
    assert archive.frame().columns == ["worker_id", "y", "keys"]
    archive.extend([finished("k1", {"y": 2}, {"y": 3})])
    assert archive.frame().drop("worker_id").rows(named=True) == [
        {"y": None, "ys.y": 1, "keys": "k0"},
        {"y": 2, "ys.y": 3, "keys": "k1"},
    ]


_WITH_A_COMMON_TYPE: list[tuple[list[Any], pl.DataType]] = [
    ([None, None], pl.Null()),
    ([True, None], pl.Boolean()),
    ([True, 7], pl.Int64()),
    ([2**63 - 1, -(2**63)], pl.Int64()),
    ([1, 2.5, True], pl.Float64()),
    ([2**60, 0.5], pl.Float64()),
    ([math.inf, -0.0], pl.Float64()),
    (["a", None], pl.String()),
    ([b"\xff", b""], pl.Binary()),
    ([date(2024, 2, 29), date.max], pl.Date()),
    ([time(1, 2, 3, 4), time.max], pl.Time()),
    ([timedelta(-1, 2, 3)], pl.Duration("us")),
    ([datetime(2024, 1, 1, 1, 2, 3, 4)], pl.Datetime("us")),  # noqa: DTZ001
    ([datetime(1, 1, 1, tzinfo=UTC), datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=2)))], pl.Datetime("us", "UTC")),
    ([[], None], pl.List(pl.Null())),
    ([[1], [2.5], [None], []], pl.List(pl.Float64())),
    ([{}, None], pl.Struct([])),
    ([{}, {"a": 1}, {"b": [True]}, None], pl.Struct({"a": pl.Int64(), "b": pl.List(pl.Boolean())})),
    ([[{"a": 1}], [{"a": 0.5, "b": {}}, None]], pl.List(pl.Struct({"a": pl.Float64(), "b": pl.Struct([])}))),
]


@pytest.mark.parametrize(("values", "dtype"), _WITH_A_COMMON_TYPE)
def test_values_with_a_common_type_keep_it(values: list[Any], dtype: pl.DataType) -> None:
    frame = frame_of_y(values)
    assert frame.schema["y"] == dtype
    assert frame.height == len(values)
    assert all(stands_for(cell, value) for cell, value in zip(frame["y"], values, strict=True))


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([UUID(int=5)], ["00000000-0000-0000-0000-000000000005"]),
        ([Decimal("1.10"), Decimal("1E+40"), None], ["1.10", "1E+40", None]),
    ],
)
def test_uuids_and_decimals_are_text(values: list[Any], texts: list[Any]) -> None:
    frame = frame_of_y(values)
    assert frame.schema["y"] == pl.String
    assert frame["y"].to_list() == texts


@pytest.mark.parametrize(
    ("values", "texts", "where"),
    [
        ([1, "a", None, 2.5, True], ["1", "a", None, "2.5", "True"], "y"),
        ([2**53 + 1, 0.5], ["9007199254740993", "0.5"], "y"),
        ([2**64, 1], ["18446744073709551616", "1"], "y"),
        ([Decimal("0.1"), 1], ["0.1", "1"], "y"),
        ([[1, "ä"], 1, {"a": [None, date(2024, 1, 1)]}], ['[1, "ä"]', "1", '{"a": [null, "2024-01-01"]}'], "y"),
        ([b"\x00", datetime(2024, 1, 1, tzinfo=UTC)], ["b'\\x00'", "2024-01-01T00:00:00+00:00"], "y"),
        ([timedelta.max], ["999999999 days, 23:59:59.999999"], "y"),
        ([[1, "a"], [], None], [["1", "a"], [], None], "y[]"),
        ([{"a": 1}, {"a": "b"}], [{"a": "1"}, {"a": "b"}], "y.a"),
    ],
)
def test_values_without_a_common_type_are_text_with_one_warning_that_names_the_column(
    values: list[Any], texts: list[Any], where: str
) -> None:
    archive = FinishedTable()
    archive.extend(rows_of_y(values))
    with pytest.warns(UserWarning, match="column 'y' is text") as warned:
        frame = archive.frame()
    assert f"the values of {where} have" in str(warned[0].message)
    assert warned[0].filename == __file__
    assert frame["y"].to_list() == texts
    archive.extend(rows_of_y(values))
    assert archive.frame().height == 2 * len(values)


def test_nan_is_not_null_and_zero_keeps_its_sign() -> None:
    column = frame_of_y([math.nan, None, -0.0, math.inf])["y"]
    assert column.is_null().to_list() == [False, True, False, False]
    assert math.isnan(column[0])
    assert math.copysign(1, column[2]) == -1
    assert column[3] == math.inf


def test_a_column_of_only_none_has_dtype_null() -> None:
    frame = frame_of_y([None] * 3_000)
    assert frame.schema["y"] == pl.Null
    assert frame["y"].null_count() == 3_000


def test_records_of_one_chunk_may_have_different_names() -> None:
    archive = FinishedTable()
    archive.extend([finished("k0", {"a": 1}), finished("k1", {"b": 2}), finished("k2", {"b": 3, "a": 4})])
    assert archive.frame().select("a", "b").rows() == [(1, None), (None, 2), (4, 3)]


def test_values_nested_as_deep_as_can_be_stored_are_columns() -> None:
    lists: Any = 1
    for _ in range(99):
        lists = [lists]
    mappings: Any = 1
    for _ in range(99):
        mappings = {"a": mappings}
    archive = FinishedTable()
    archive.extend([finished("k", {"l": lists, "m": mappings})])
    assert archive.frame()["l"].to_list() == [lists]
    assert archive.frame()["m"].to_list() == [mappings]


# inference and layouts by themselves


_NESTED: list[tuple[list[Any], pl.DataType]] = [
    ([[True, 2], None, [None], []], pl.List(pl.Int64())),
    ([[1, 2.5], None, [True]], pl.List(pl.Float64())),
    (
        [{"a": [1, "s"]}, None, {"b": {"c": True}}, {"b": {"c": 3}}],
        pl.Struct({"a": pl.List(pl.String()), "b": pl.Struct({"c": pl.Int64()})}),
    ),
    ([[{}], [None, {}]], pl.List(pl.Struct([]))),
    ([{"a": 1, "b": "s"}, None, {"b": "t", "a": 2}], pl.Struct({"a": pl.Int64(), "b": pl.String()})),
    ([{"a": 1}, {}, None], pl.Struct({"a": pl.Int64()})),
    ([[[1], None], [[2.5, None]]], pl.List(pl.List(pl.Float64()))),
]


@pytest.mark.parametrize(("values", "dtype"), _NESTED)
@pytest.mark.filterwarnings("ignore:column 'y' is text")
def test_nested_values_of_several_types_keep_their_places(values: list[Any], dtype: pl.DataType) -> None:
    frame = frame_of_y(values)
    assert frame.schema["y"] == dtype
    assert all(stands_for(cell, value) for cell, value in zip(frame["y"], values, strict=True))


def test_an_update_tells_whether_the_layout_changes() -> None:
    inference = Inference()
    values: list[tuple[Any, bool]] = [(1, True), (None, False), (2, False), (2.5, True), (3, False), ([], True), ([1], True)]
    for value, is_new in values:
        assert inference.update({(XS, "x"): [value]}) is is_new
    mappings: list[tuple[dict[str, Any], bool]] = [({}, True), ({"a": None}, True), ({"a": 1}, True), ({"a": 5}, False)]
    for mapping, is_new in mappings:
        assert inference.update({(END, "y"): [mapping]}) is is_new
    assert inference.update({(END, "y"): [{"a": 1}], (CREATED_AT, ""): [AT]}) is False
    assert inference.update({(XS_EXTRA, "e"): [None]}) is True


def test_an_unknown_type_of_value_is_a_decode_error() -> None:
    with pytest.raises(DecodeError, match=r"holds a builtins\.complex"):
        Inference().update({(XS, "x"): [1j]})


def test_a_layout_is_extended_by_the_times_and_the_columns_of_a_schema() -> None:
    inference = Inference()
    inference.update(values_of(decode_flat(finished("k", {"x": 1}, {"y": 1}, xs_extra={"e": 1}), 1), "finished"))
    layout = inference.layout(with_condition=True)
    assert layout.extended(times=False, schema={}) is layout
    asked: dict[str, Column] = {name: Column((NO_FIELD, name), name, pl.Float64()) for name in ("new", "x")}
    extended = layout.extended(times=True, schema=asked)
    assert [column.name for column in extended.columns] == [
        *("worker_id", "x", "y", "new", "e", "condition"),
        *("created_at", "started_at", "ended_at", "attempt", "index", "keys"),
    ]
    assert extended.by_slot[1, "x"].dtype == pl.Float64
    assert layout.by_slot[1, "x"].dtype == pl.Int64


def test_the_values_of_a_failed_record_have_its_condition_and_no_outputs() -> None:
    record = failed("k", {"x": 1}, Failure("lost", None, "gone"))
    values = values_of(decode_flat(record, 1), "failed")
    assert [slot for slot in values if slot[0] in (END, END_EXTRA)] == []
    frame = Inference().layout(with_condition=True).build(values, 1)
    assert frame["condition"].to_list() == [{"kind": "lost", "type": None, "message": "gone", "traceback": None}]


def test_a_layout_without_records_builds_a_frame_without_rows() -> None:
    layout = Layout((Column((XS, "x"), "x", pl.Int64()), Column((0, ""), "keys", pl.String())), {})
    assert layout.build({}, 0).schema == {"x": pl.Int64, "keys": pl.String}
    values = values_of(decode_flat(queued("k", {}) + b"\xc0" * 6, 1), "queued")
    assert layout.build(values, 1).rows() == [(None, "k")]
