"""The archive: records become frames, and nothing is silently changed on the way."""

from __future__ import annotations

import struct
import warnings
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rush_async import SchemaError
from rush_async.frames import Archive, Part, frame_of_parts, table_of_records
from rush_async.store.codec import encode, encode_created, encode_ended

STAMP = b"\xcb" + struct.pack(">d", 1_700_000_000.25)
FIXED = ["worker_id", "keys"]


def record(
    key: str,
    xs: dict[str, Any],
    ys: dict[str, Any] | None = None,
    *,
    xs_extra: dict[str, Any] | None = None,
    ys_extra: dict[str, Any] | None = None,
) -> bytes:
    created = encode_created(key, xs, xs_extra) + STAMP
    return created + encode("owl", "") + b"\x01" + STAMP + encode_ended(ys or {}, ys_extra) + STAMP


def records(xss: list[dict[str, Any]]) -> list[bytes]:
    return [record(f"k{at}", xs, {"y": float(at)}) for at, xs in enumerate(xss)]


def frame(xss: list[dict[str, Any]], **options: Any) -> pl.DataFrame:
    archive = Archive()
    archive.extend(records(xss))
    return archive.frame(**options)


def test_columns_come_in_the_promised_order() -> None:
    archive = Archive()
    archive.extend([record("k", {"x": 1}, {"y": 2.0}, xs_extra={"seed": 3}, ys_extra={"seconds": 0.5})])
    assert archive.frame().columns == ["worker_id", "x", "y", "seed", "seconds", "keys"]
    assert archive.frame(times=True).columns[5:] == ["created_at", "started_at", "ended_at", "attempt", "keys"]


def test_times_are_utc_to_the_microsecond() -> None:
    found = frame([{"x": 1}], times=True)
    assert found["created_at"].dtype == pl.Datetime("us", "UTC")
    assert found["created_at"][0] == datetime.fromtimestamp(1_700_000_000.25, UTC)
    assert found["attempt"].to_list() == [1]


def test_an_empty_archive_has_the_fixed_columns_and_those_of_the_schema() -> None:
    found = Archive().frame(schema={"y": pl.Float64})
    assert found.schema == {"worker_id": pl.String, "y": pl.Float64, "keys": pl.String}
    assert Archive().frame().schema == {"worker_id": pl.String, "keys": pl.String}


def test_an_int_column_that_meets_2_5_becomes_float() -> None:
    found = frame([{"x": 1}] * 3000 + [{"x": 2.5}])
    assert found["x"].dtype == pl.Float64
    assert found["x"].to_list() == [1.0] * 3000 + [2.5]


def test_a_key_that_first_appears_in_row_5000_is_null_before() -> None:
    found = frame([{"x": 1.0}] * 5000 + [{"x": 1.0, "late": "here"}])
    assert found["late"].null_count() == 5000
    assert found["late"][5000] == "here"


def test_text_in_a_numeric_column_turns_it_into_text_and_says_so() -> None:
    with pytest.warns(UserWarning, match="'x' have no common type"):
        found = frame([{"x": 1}, {"x": 2.5}, {"x": "three"}, {"x": None}])
    assert found["x"].to_list() == ["1", "2.5", "three", None]


def test_the_warning_comes_once() -> None:
    archive = Archive()
    archive.extend(records([{"x": 1}, {"x": "a"}]))
    with pytest.warns(UserWarning, match="no common type"):
        archive.frame()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        archive.extend(records([{"x": 2}]))
        archive.frame()


def test_none_everywhere_is_a_null_column() -> None:
    found = frame([{"x": None}] * 100)
    assert found["x"].dtype == pl.Null


def test_nan_is_not_null() -> None:
    found = frame([{"x": float("nan")}, {"x": None}, {"x": float("inf")}])
    assert found["x"].null_count() == 1
    assert found["x"].is_nan().to_list() == [True, None, False]


def test_integers_no_float_equals_are_kept_as_text_beside_floats() -> None:
    with pytest.warns(UserWarning, match="no common type"):
        found = frame([{"x": 2**53 + 1}, {"x": 0.5}])
    assert found["x"].to_list() == [str(2**53 + 1), "0.5"]


def test_integers_beyond_64_bits_are_kept_as_text() -> None:
    with pytest.warns(UserWarning, match="no common type"):
        assert frame([{"x": 2**70}, {"x": 1}])["x"].to_list() == [str(2**70), "1"]


def test_vectors_and_mappings_are_list_and_struct_columns_never_extra_rows() -> None:
    found = frame([{"v": [1, 2], "m": {"a": 1, "b": "x"}}, {"v": [0.5], "m": {"b": "y", "c": True}}, {"v": [], "m": {}}])
    assert found.height == 3
    assert found["v"].dtype == pl.List(pl.Float64)
    assert found["v"].to_list() == [[1.0, 2.0], [0.5], []]
    assert found["m"].to_list() == [
        {"a": 1, "b": "x", "c": None},
        {"a": None, "b": "y", "c": True},
        {"a": None, "b": None, "c": None},
    ]


def test_a_mapping_that_meets_a_number_loses_neither() -> None:
    with pytest.warns(UserWarning, match="no common type"):
        assert frame([{"m": {"a": [1, 2]}}, {"m": 5}])["m"].to_list() == ['{"a": [1, 2]}', "5"]


def test_what_has_a_type_of_its_own_keeps_it() -> None:
    when, day, span = datetime(2024, 1, 2, 3, tzinfo=UTC), date(2024, 1, 2), timedelta(seconds=1.5)
    found = frame([{"when": when, "day": day, "span": span, "raw": b"\x00", "id": UUID(int=7), "cost": Decimal("1.50")}])
    assert found["when"].dtype == pl.Datetime("us", "UTC")
    assert found.row(0)[1:7] == (when, day, span, b"\x00", str(UUID(int=7)), "1.50")


def test_an_output_named_like_an_input_or_a_fixed_column_is_told_apart() -> None:
    archive = Archive()
    archive.extend([record("k", {"x": 1}, {"x": 2, "keys": 3}, xs_extra={"x": 4}, ys_extra={"x": 5, "z": 6})])
    found = archive.frame()
    assert found.columns == ["worker_id", "x", "ys.x", "ys.keys", "xs_extra.x", "ys_extra.x", "z", "keys"]
    assert found.row(0) == ("owl", 1, 2, 3, 4, 5, 6, "k")


def test_a_schema_sets_the_dtype_of_what_fits() -> None:
    found = frame([{"x": 1}, {"x": None}], schema={"x": pl.Float64, "never": pl.Int64})
    assert found["x"].to_list() == [1.0, None]
    assert found["never"].to_list() == [None, None]


@pytest.mark.parametrize(
    ("value", "dtype"),
    [(2.5, pl.Int64), ("2.5", pl.Float64), (1, pl.String), ([1], pl.Float64), (300, pl.Int8), (2**53 + 1, pl.Float64)],
)
def test_a_value_that_does_not_fit_the_schema_is_named_with_its_task(value: Any, dtype: Any) -> None:
    with pytest.raises(SchemaError, match=r"'x' is to be .*'k1'"):
        frame([{"x": None}, {"x": value}], schema={"x": dtype})


def test_a_frame_is_the_callers_own() -> None:
    archive = Archive()
    archive.extend(records([{"x": float(at)} for at in range(10)]))
    mine = archive.frame()
    mine[0, "x"] = -1.0
    mine.insert_column(0, pl.Series("added", range(10)))
    assert archive.frame()["x"][0] == 0.0
    assert "added" not in archive.frame().columns


def test_finding_by_key_follows_the_growth() -> None:
    archive = Archive()
    archive.extend(records([{"x": at} for at in range(2500)]))
    assert archive.find(["k0", "k2499", "nope"])["k2499"].xs == {"x": 2499}
    archive.extend([record("new", {"x": -1}, {"y": 0.0})])
    task = archive.find(["new"])["new"]
    assert (task.state, task.xs, task.ys, task.worker_id) == ("finished", {"x": -1}, {"y": 0.0}, "owl")
    assert archive.keys()[-1] == "new"


def test_many_small_growths_leave_few_chunks() -> None:
    archive = Archive()
    everything = records([{"x": float(at)} for at in range(5000)])
    for at in range(5000):
        archive.extend(everything[at : at + 1])
        if at % 7 == 0:
            archive.frame()
    found = archive.frame()
    assert found["x"].to_list() == [float(at) for at in range(5000)]
    assert found.n_chunks() <= 16


def test_tasks_of_several_states_share_one_lattice() -> None:
    archive = Archive()
    archive.extend(records([{"x": 1}, {"x": 2}]))
    running = table_of_records([record("r", {"x": 0.5, "new": "a"})])
    found = archive.snapshot(
        1, [Part("running", [running])], ["running", "finished"], with_state=True, times=False, schema=None
    )
    assert found["state"].to_list() == ["running", "finished"]
    assert found["x"].to_list() == [0.5, 1.0]
    assert archive.frame()["x"].dtype == pl.Int64  # the snapshot changed nothing


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**80), 2**80),
    st.integers(-5, 5),
    st.floats(),
    st.text(max_size=3),
    st.binary(max_size=2),
    st.dates(),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=4,
)
ROWS = st.lists(st.dictionaries(st.sampled_from(["p", "q", "r"]), VALUES, max_size=3), min_size=1, max_size=30)


@settings(max_examples=150, deadline=None)
@given(rows=ROWS, cuts=st.lists(st.integers(0, 30), max_size=6), reads=st.lists(st.booleans(), min_size=7, max_size=7))
def test_how_records_are_cut_and_read_changes_nothing(rows: list[dict[str, Any]], cuts: list[int], reads: list[bool]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        everything = records(rows * 5)  # longer than a tail
        whole = Archive()
        whole.extend(everything)
        pieces = Archive()
        places = [0, *sorted(cut * 5 for cut in cuts), len(everything)]
        for first, last, read in zip(places, places[1:], reads, strict=False):
            pieces.extend(everything[first:last])
            if read:
                pieces.frame()
        expected = whole.frame(times=True)
        found = pieces.frame(times=True)
        assert found.schema == expected.schema
        assert found.equals(expected)
        parts = [Part("finished", [table_of_records(everything[:3]), table_of_records(everything[3:])])]
        assert frame_of_parts(parts, times=True).equals(expected)


@settings(max_examples=100, deadline=None)
@given(rows=ROWS)
def test_every_value_can_be_read_off_the_frame(rows: list[dict[str, Any]]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = frame(rows)
    for at, row in enumerate(rows):
        for name, value in row.items():
            seen = found[name][at]
            if isinstance(seen, pl.Series):
                seen = seen.to_list()
            if isinstance(value, int | float) and not isinstance(seen, str):
                assert seen == value or (value != value and seen != seen)
            elif isinstance(value, str | date) and not isinstance(seen, str):
                assert seen == value
            elif value is None:
                assert seen is None
            else:
                assert seen is not None
