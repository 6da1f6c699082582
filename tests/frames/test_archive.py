"""Frames: columns, dtypes and order, whatever portions the records came in."""

from __future__ import annotations

import gc
import math
import time as clock
import warnings
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from itertools import pairwise
from typing import Any
from uuid import UUID

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rush_async.errors import DecodeError, SchemaError
from rush_async.frames.archive import Archive, frame_of
from rush_async.frames.columns import text
from rush_async.model import Failure
from rush_async.store.codec import encode
from rush_async.store.records import encode_created, encode_ended, encode_failure

_AT = 1_760_000_000.123456


def finished(
    key: str,
    xs: dict[str, Any],
    ys: dict[str, Any] | None = None,
    *,
    xs_extra: dict[str, Any] | None = None,
    ys_extra: dict[str, Any] | None = None,
) -> bytes:
    """A complete record of a finished task."""
    started = encode("brave_bear", "worker_id") + encode(1, "attempt") + encode(_AT + 1, "started_at")
    return queued(key, xs, xs_extra) + started + encode_ended(ys or {}, ys_extra) + encode(_AT + 2, "ended_at")


def queued(key: str, xs: dict[str, Any], xs_extra: dict[str, Any] | None = None) -> bytes:
    """The first part of a record."""
    return encode_created(key, xs, xs_extra) + encode(_AT, "created_at")


def failed(key: str, xs: dict[str, Any], failure: Failure) -> bytes:
    """A complete record of a failed task that never ran."""
    return queued(key, xs) + b"\xc0" * 3 + encode_failure(failure) + encode(_AT + 2, "ended_at")


def rows_of_y(values: Sequence[Any]) -> list[bytes]:
    return [finished(f"k{at}", {"x": float(at)}, {"y": value}) for at, value in enumerate(values)]


def frame_of_y(values: Sequence[Any], schema: Mapping[str, Any] | None = None) -> pl.DataFrame:
    archive = Archive()
    archive.extend(rows_of_y(values))
    return archive.frame(schema=schema)


# columns and their order


def test_columns_come_in_the_promised_order() -> None:
    archive = Archive()
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
    assert archive.frame(times=True).columns[-5:] == ["created_at", "started_at", "ended_at", "attempt", "keys"]
    assert archive.frame().rows() == [("brave_bear", 1, "s", 0.5, True, 1, "k")]


def test_times_are_utc_to_the_microsecond() -> None:
    archive = Archive()
    archive.extend(rows_of_y([1.0]))
    row = archive.frame(times=True).row(0, named=True)
    assert row["created_at"] == datetime.fromtimestamp(_AT, UTC)
    assert row["created_at"].microsecond == 123456
    assert row["ended_at"] - row["started_at"] == timedelta(seconds=1)
    assert row["attempt"] == 1
    dtypes = archive.frame(times=True).schema
    assert [dtypes[name] for name in ("created_at", "started_at", "ended_at")] == [pl.Datetime("us", "UTC")] * 3
    assert dtypes["attempt"] == pl.Int64


def test_frame_without_rows_has_the_fixed_columns_and_those_of_the_schema() -> None:
    schema = {"y": pl.Float64, "v": pl.List(pl.Int64)}
    assert Archive().frame().schema == {"worker_id": pl.String, "keys": pl.String}
    assert Archive().frame(schema=schema, times=True).schema == {
        "worker_id": pl.String,
        "y": pl.Float64,
        "v": pl.List(pl.Int64),
        "created_at": pl.Datetime("us", "UTC"),
        "started_at": pl.Datetime("us", "UTC"),
        "ended_at": pl.Datetime("us", "UTC"),
        "attempt": pl.Int64,
        "keys": pl.String,
    }
    frame = frame_of([("failed", []), ("queued", [])], with_state=True, schema=schema)
    assert frame.columns == ["state", "worker_id", "y", "v", "condition", "keys"]
    assert Archive().frame(schema=schema).filter(pl.col("y") > 1).height == 0


def test_names_that_are_taken_get_the_prefix_of_their_group() -> None:
    archive = Archive()
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


def test_an_output_gives_its_name_away_when_an_input_of_that_name_appears_later() -> None:
    archive = Archive()
    archive.extend([finished("k0", {}, {"y": 1})])
    assert archive.frame().columns == ["worker_id", "y", "keys"]
    archive.extend([finished("k1", {"y": 2}, {"y": 3})])
    assert archive.frame().drop("worker_id").rows(named=True) == [
        {"y": None, "ys.y": 1, "keys": "k0"},
        {"y": 2, "ys.y": 3, "keys": "k1"},
    ]


def test_tasks_of_all_states_stand_in_one_frame_with_the_condition_of_failed_ones() -> None:
    failure = Failure("error", "ValueError", "no", "Traceback ...")
    frame = frame_of(
        [
            ("finished", [finished("k0", {"x": 1}, {"y": 2.5})]),
            (
                "failed",
                [failed("k1", {"x": 2}, failure), failed("k2", {"x": 3}, Failure("removed", None, "Removed from queue"))],
            ),
            ("queued", [queued("k3", {"x": 4}) + b"\xc0" * 6]),
        ],
        with_state=True,
        times=True,
    )
    assert frame.columns[:5] == ["state", "worker_id", "x", "y", "condition"]
    assert frame["state"].to_list() == ["finished", "failed", "failed", "queued"]
    assert frame["x"].to_list() == [1, 2, 3, 4]
    assert frame["y"].to_list() == [2.5, None, None, None]
    assert frame["condition"].is_null().to_list() == [True, False, False, True]
    assert frame["condition"].to_list()[1:3] == [
        {"kind": "error", "type": "ValueError", "message": "no", "traceback": "Traceback ..."},
        {"kind": "removed", "type": None, "message": "Removed from queue", "traceback": None},
    ]
    assert frame["started_at"].is_null().to_list() == [False, True, True, True]
    assert frame["attempt"].to_list() == [1, None, None, None]
    assert "condition" not in frame_of([("queued", [])], with_state=True).columns


# dtypes


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
    archive = Archive()
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


def test_a_column_of_nothing_but_none_is_null() -> None:
    frame = frame_of_y([None] * 3_000)
    assert frame.schema["y"] == pl.Null
    assert frame["y"].null_count() == 3_000


def test_an_int_column_that_meets_a_float_is_read_as_floats() -> None:
    archive = Archive()
    archive.extend(rows_of_y(range(5_000)))
    before = archive.frame()
    assert before.schema["y"] == pl.Int64
    archive.extend(rows_of_y([2.5]))
    assert archive.frame()["y"].to_list() == [*range(5_000), 2.5]
    assert archive.frame().schema["y"] == pl.Float64
    assert before.schema["y"] == pl.Int64


def test_a_large_int_among_many_is_not_rounded_when_a_float_comes() -> None:
    archive = Archive()
    archive.extend(rows_of_y([*range(1_500), 2**53 + 1]))
    assert archive.frame().schema["y"] == pl.Int64
    archive.extend(rows_of_y([0.5]))
    with pytest.warns(UserWarning, match="'y'"):
        frame = archive.frame()
    assert frame["y"].to_list() == [*map(str, range(1_500)), "9007199254740993", "0.5"]


def test_a_str_in_a_numeric_column_loses_no_value() -> None:
    archive = Archive()
    archive.extend(rows_of_y([0.1, 1e300, -0.0] * 1_000))
    archive.frame()
    archive.extend(rows_of_y(["fast"]))
    with pytest.warns(UserWarning, match="'y'"):
        column = archive.frame()["y"]
    assert column.to_list() == ["0.1", "1e+300", "-0.0"] * 1_000 + ["fast"]


def test_a_name_that_first_appears_in_row_5000_is_null_before() -> None:
    archive = Archive()
    archive.extend([finished(f"k{at}", {"x": at}, {"y": 1.0}) for at in range(5_000)])
    archive.frame()
    archive.extend([finished("late", {"x": 1, "z": [1.5]}, {"y": 2.0, "w": {"a": 1}})])
    frame = archive.frame()
    assert frame.columns == ["worker_id", "x", "z", "y", "w", "keys"]
    assert frame["z"].null_count() == frame["w"].null_count() == 5_000
    assert frame.row(5_000) == ("brave_bear", 1, [1.5], 2.0, {"a": 1}, "late")


def test_records_of_one_chunk_may_have_the_same_number_of_other_names() -> None:
    archive = Archive()
    archive.extend([finished("k0", {"a": 1}), finished("k1", {"b": 2}), finished("k2", {"b": 3, "a": 4})])
    assert archive.frame().select("a", "b").rows() == [(1, None), (None, 2), (4, 3)]


def test_values_nested_as_deep_as_can_be_stored_are_columns() -> None:
    lists: Any = 1
    for _ in range(99):
        lists = [lists]
    mappings: Any = 1
    for _ in range(99):
        mappings = {"a": mappings}
    archive = Archive()
    archive.extend([finished("k", {"l": lists, "m": mappings})])
    assert archive.frame()["l"].to_list() == [lists]
    assert archive.frame()["m"].to_list() == [mappings]


# any portions, one frame

_SCALARS: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 5),
    st.sampled_from([2**53, 2**53 + 1, -(2**53) - 1, 2**60, 2**63 - 1, -(2**63), 2**63, 2**64 - 1, 2**70]),
    st.floats(),
    st.text(max_size=3),
    st.binary(max_size=2),
    st.decimals(allow_nan=False, places=2),
    st.uuids(),
    st.dates(),
    st.datetimes(),
    st.datetimes(timezones=st.just(UTC)),
    st.times(),
    st.timedeltas(),
)


def _nested(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.lists(values, max_size=3), st.dictionaries(st.sampled_from("abc"), values, max_size=2))


_ANYTHING = st.recursive(_SCALARS, _nested, max_leaves=6)
# A few kinds at a time, so that common types other than text occur.
_NUMBERS: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(2**53 - 2, 2**53 + 2), st.floats()
)
_VALUES = st.one_of(_NUMBERS, st.recursive(_NUMBERS, _nested, max_leaves=4), _ANYTHING)
_RECORDS = st.dictionaries(st.sampled_from(["x", "y", "z"]), _VALUES, max_size=3)
_TASKS = st.tuples(_RECORDS, _RECORDS, st.none() | _RECORDS, st.none() | _RECORDS, st.integers(1, 90))


def stands_for(cell: Any, value: Any) -> bool:
    """Whether a cell of a frame is this value, nothing lost."""
    match value:
        case None:
            return cell is None
        case float() if math.isnan(value) and isinstance(cell, float):
            return math.isnan(cell)
        case list() if isinstance(cell, pl.Series | list):
            items: list[Any] = list(cell)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
            return all(stands_for(a, b) for a, b in zip(items, value, strict=True))  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
        case dict() if isinstance(cell, dict):
            return cell.keys() >= value.keys() and all(stands_for(cell[name], value.get(name)) for name in cell)  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType, reportUnknownVariableType]
        case _ if isinstance(cell, str):
            return cell == text(value)
        case _:
            return cell == value


@settings(max_examples=150, deadline=None)
@given(tasks=st.lists(_TASKS, min_size=1, max_size=6), cuts=st.lists(st.integers(0, 400), max_size=6), looks=st.integers(0, 63))
def test_frame_depends_on_the_records_and_not_on_their_portions(
    tasks: list[tuple[dict[str, Any], dict[str, Any], Any, Any, int]], cuts: list[int], looks: int
) -> None:
    tasks = [task for task in tasks for _ in range(task[4])]
    records = [
        finished(f"k{at}", xs, ys, xs_extra=xs_extra, ys_extra=ys_extra)
        for at, (xs, ys, xs_extra, ys_extra, _) in enumerate(tasks)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole, portions = Archive(), Archive()
        whole.extend(records)
        for at, (start, stop) in enumerate(pairwise([0, *sorted(cuts), len(records)])):
            portions.extend(records[start : max(start, stop)])
            if looks >> at & 1:
                portions.frame(times=bool(at & 1))
        portions.extend(records[len(portions) :])
        for times in (False, True):
            frame = whole.frame(times=times)
            for other in (portions.frame(times=times), frame_of([("finished", records)], with_state=False, times=times)):
                assert other.schema == frame.schema
                assert repr(other.rows()) == repr(frame.rows())
    inputs: set[str] = {name for task in tasks for name in task[0]}
    outputs = {name: f"ys.{name}" if name in inputs else name for task in tasks for name in task[1]}
    for row, (xs, ys, *_) in zip(frame.iter_rows(named=True), tasks, strict=True):
        assert all(stands_for(row[name], xs.get(name)) for name in inputs)
        assert all(stands_for(row[column], ys.get(name)) for name, column in outputs.items())


@settings(max_examples=100, deadline=None)
@given(tasks=st.lists(_TASKS, min_size=1, max_size=6), n_finished=st.integers(0, 300), times=st.booleans())
def test_a_snapshot_is_the_frame_of_its_records_whatever_was_decoded_before(
    tasks: list[tuple[dict[str, Any], dict[str, Any], Any, Any, int]], n_finished: int, times: bool
) -> None:
    tasks = [task for task in tasks for _ in range(task[4])]
    done = [finished(f"f{at}", xs, ys, xs_extra=extra) for at, (xs, ys, extra, _, _) in enumerate(tasks[:n_finished])]
    waiting = [queued(f"q{at}", xs, extra) + b"\xc0" * 6 for at, (xs, _, extra, _, _) in enumerate(tasks[n_finished:])]
    broken = [failed("x", {"x": 1}, Failure("lost"))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive = Archive()
        archive.extend(done)
        before = archive.frame()
        expected = frame_of([("finished", done), ("queued", waiting), ("failed", broken)], with_state=True, times=times)
        snapshot = archive.snapshot(
            len(done),
            {"queued": waiting, "failed": broken},
            ("finished", "queued", "failed"),
            with_state=True,
            times=times,
        )
        assert snapshot.schema == expected.schema
        assert repr(snapshot.rows()) == repr(expected.rows())
        assert repr(archive.frame()) == repr(before)


def test_a_snapshot_of_fewer_rows_and_in_another_order() -> None:
    archive = Archive()
    archive.extend([finished(f"f{at}", {"x": at}, {"y": 0.5}) for at in range(70)])
    waiting = [queued("q", {"x": 2.5}) + b"\xc0" * 6]
    frame = archive.snapshot(2, {"queued": waiting}, ("queued", "finished"), with_state=True)
    assert frame["keys"].to_list() == ["q", "f0", "f1"]
    assert frame["x"].to_list() == [2.5, 0.0, 1.0]
    assert archive.frame()["x"].dtype == pl.Int64


# schemas


def test_schema_decides_the_dtype_of_values_that_fit() -> None:
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
def test_value_that_equals_one_of_the_schemas_dtype_fits(value: Any, dtype: Any, cell: Any) -> None:
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
    ],
)
@pytest.mark.parametrize("n_before", [2, 3_000])
def test_value_that_does_not_fit_the_schema_names_task_and_column(value: Any, dtype: Any, n_before: int) -> None:
    archive = Archive()
    archive.extend(rows_of_y([*[None] * n_before, value]))
    with pytest.raises(SchemaError, match=f"task 'k{n_before}'.*column 'y'"):
        archive.frame(schema={"y": dtype})
    assert archive.frame(schema={"y": pl.String})["y"].to_list() == [*[None] * n_before, text(value)]


def test_schema_that_asks_for_text_silences_the_warning_and_others_find_the_text_that_does_not_fit() -> None:
    archive = Archive()
    archive.extend(rows_of_y([1, 2, "three"]))
    assert archive.frame(schema={"y": pl.String})["y"].to_list() == ["1", "2", "three"]
    with pytest.raises(SchemaError, match=r"task 'k2': the value 'three' of column 'y'"):
        archive.frame(schema={"y": pl.Float64})


def test_schema_may_not_name_fixed_columns_or_be_no_schema() -> None:
    with pytest.raises(SchemaError, match="'keys', a column of every frame"):
        Archive().frame(schema={"keys": pl.String})
    with pytest.raises(SchemaError, match="is not one"):
        Archive().frame(schema={"y": "float"})
    with pytest.raises(SchemaError, match="column 'y'"):
        Archive().frame(schema={"y": pl.Object})


def test_column_of_the_schema_that_comes_late_takes_its_place() -> None:
    archive, schema = Archive(), {"w": pl.Float64, "y": pl.Float64}
    archive.extend(rows_of_y([1.0] * 100))
    assert archive.frame(schema=schema)["w"].null_count() == 100
    archive.extend([finished("k", {"x": 1.0, "w": 2}, {"y": 1})] * 100)
    frame = archive.frame(schema=schema)
    assert frame.columns == ["worker_id", "x", "w", "y", "keys"]
    assert frame["w"].to_list() == [None] * 100 + [2.0] * 100


def test_error_in_one_schema_leaves_the_frames_of_others_alone() -> None:
    archive = Archive()
    for at in range(500):
        archive.extend(rows_of_y([1 if at < 450 else 2.5]))
        if at < 450:
            assert archive.frame(schema={"y": pl.Int32}).schema["y"] == pl.Int32
        assert archive.frame().height == at + 1
    with pytest.raises(SchemaError):
        archive.frame(schema={"y": pl.Int32})


# growth


def test_frames_are_the_callers_own() -> None:
    archive = Archive()
    archive.extend(rows_of_y([1.0] * 64))
    frame = archive.frame()
    frame[0, "y"] = 99.0
    frame.insert_column(0, pl.Series("mine", [0] * 64))
    frame.extend(frame)
    frame.drop_in_place("x")
    archive.frame().replace_column(1, pl.Series("x", ["gone"] * 64))
    assert archive.frame().columns == ["worker_id", "x", "y", "keys"]
    assert archive.frame()["y"].to_list() == [1.0] * 64


def test_frame_from_a_row_on_has_the_columns_of_all() -> None:
    archive = Archive()
    archive.extend(rows_of_y([1, 2.5, 3]))
    assert archive.frame(2)["y"].to_list() == [3.0]
    assert archive.frame(3).height == 0
    assert archive.frame(3).schema == archive.frame().schema


def test_rows_that_come_one_by_one_are_all_there_in_few_chunks() -> None:
    archive, records = Archive(), rows_of_y([at / 2 for at in range(3_000)])
    for at, record in enumerate(records):
        archive.extend([record])
        frame = archive.frame(times=at % 7 == 0)
        assert frame.height == at + 1
        assert frame.n_chunks() <= 12
    assert archive.frame()["y"].to_list() == [at / 2 for at in range(3_000)]
    assert archive.frame(times=True)["keys"].to_list() == [f"k{at}" for at in range(3_000)]


def test_records_and_tasks_are_found_by_row_and_key() -> None:
    archive, records = Archive(), rows_of_y(range(2_345))
    assert len(archive) == 0
    archive.extend(records[:1_000])
    assert archive.find(["k5", "unknown"]).keys() == {"k5"}
    archive.extend(records[1_000:])
    assert len(archive) == 2_345
    assert archive.raw(0, 2_345) == records
    assert archive.raw(998, 2_002) == records[998:2_002]
    assert archive.raw(2_340, 9_999) == records[2_340:]
    assert archive.raw(7, 7) == []
    assert archive.keys(999, 1_001) == ["k999", "k1000"]
    found = archive.find(["k2344", "k0"])
    assert list(found) == ["k2344", "k0"]
    assert found["k0"].ys == {"y": 0}
    assert found["k0"].state == "finished"
    assert [task.key for task in archive.records(1_999, 2_001)] == ["k1999", "k2000"]


def test_cleared_archive_starts_anew() -> None:
    archive = Archive()
    archive.extend(rows_of_y(["a"] * 1_100))
    kept = archive.frame()
    archive.find(["k1"])
    archive.clear()
    assert (len(archive), archive.find(["k1"])) == (0, {})
    assert archive.frame().columns == ["worker_id", "keys"]
    archive.extend(rows_of_y([1]))
    assert archive.frame().schema["y"] == pl.Int64
    assert kept.height == 1_100


@pytest.mark.parametrize(
    "bad",
    [
        b"\xc1",
        b"",
        finished("k", {"x": 1})[:-1],
        finished("k", {"x": 1}) + b"\xc0",
        queued("k", {"x": 1}) + b"\xc0" * 2 + encode(math.nan, "") + encode_ended({}, None) + encode(_AT, ""),
        queued("k", {"x": 1}) + b"\xc0" * 2 + encode(1e300, "") + encode_ended({}, None) + encode(_AT, ""),
        queued("k", {"x": 1}) + b"\xc0" + encode(2**64 - 1, "") + b"\xc0" + encode_ended({}, None) + encode(_AT, ""),
        finished("k", {"\0": 1}).replace(b"\xa1\0", b"\xc4\x01\0"),
        finished("k", {"x": {"\0": 1}}).replace(b"\xa1\0", b"\xc4\x01\0"),
        finished("k", {"x": "\0"}).replace(b"\xa1\0", b"\x91" * 300 + b"\xc0"),
        finished("k", {"x": "\0\1\2\3"}).replace(b"\xa4\0\1\2\3", b"\xd6\xff\1\2\3\4"),
    ],
)
def test_bytes_that_are_no_record_are_a_decode_error(bad: bytes) -> None:
    archive = Archive()
    archive.extend(rows_of_y([1.0]))
    assert archive.frame().height == 1
    archive.extend([bad])
    for _ in range(2):
        with pytest.raises(DecodeError):
            archive.frame(times=True)
    with pytest.raises(DecodeError):
        frame_of([("finished", [bad])], with_state=True, times=True)


def test_failed_record_without_a_failure_is_a_decode_error() -> None:
    for end in (encode({"kind": 1}, ""), b"\xc0"):
        record = queued("k", {}) + b"\xc0" * 3 + end + b"\xc0" + encode(_AT, "")
        with pytest.raises(DecodeError, match="no failure"):
            frame_of([("failed", [record])], with_state=True)


def test_a_new_row_costs_what_is_new_and_not_what_is_there() -> None:
    def increments(n: int) -> float:
        archive, block = Archive(), rows_of_y([0.5] * 1_000)
        for _ in range(n // 1_000):
            archive.extend(block)
        archive.frame()
        fastest = math.inf
        for record in block[:200]:
            begin = clock.perf_counter()
            archive.extend([record])
            archive.frame()
            fastest = min(fastest, clock.perf_counter() - begin)
        return fastest

    gc.collect()
    assert increments(200_000) < 3 * increments(2_000)
