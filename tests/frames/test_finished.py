"""Frames of finished tasks and of tasks in other states, however the records arrive."""

from __future__ import annotations

import math
import warnings
from datetime import UTC
from itertools import pairwise
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rush_async.errors import DecodeError, SchemaError
from rush_async.frames.finished import FinishedTable
from rush_async.frames.frame import frame_of
from rush_async.model import Failure, TaskState
from rush_async.store.codec import encode
from rush_async.store.records import encode_ended
from tests.frames.records import AT, Decodings, failed, finished, queued, rows_of_y, stands_for


def test_a_frame_without_rows_has_the_fixed_columns_and_those_of_the_schema() -> None:
    schema = {"y": pl.Float64, "v": pl.List(pl.Int64)}
    assert FinishedTable().frame().schema == {"worker_id": pl.String, "keys": pl.String}
    assert FinishedTable().frame(schema=schema, times=True).schema == {
        "worker_id": pl.String,
        "y": pl.Float64,
        "v": pl.List(pl.Int64),
        "created_at": pl.Datetime("us", "UTC"),
        "started_at": pl.Datetime("us", "UTC"),
        "ended_at": pl.Datetime("us", "UTC"),
        "attempt": pl.Int64,
        "index": pl.Int64,
        "keys": pl.String,
    }
    frame = frame_of([("failed", []), ("queued", [])], with_state=True, schema=schema)
    assert frame.columns == ["state", "worker_id", "y", "v", "condition", "keys"]
    assert FinishedTable().frame(schema=schema).filter(pl.col("y") > 1).height == 0


def test_a_frame_of_several_states_has_the_condition_of_failed_tasks() -> None:
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


@settings(max_examples=150, deadline=None)
@given(tasks=st.lists(_TASKS, min_size=1, max_size=6), cuts=st.lists(st.integers(0, 400), max_size=6), looks=st.integers(0, 63))
def test_a_frame_depends_on_the_records_and_not_on_their_portions(
    tasks: list[tuple[dict[str, Any], dict[str, Any], Any, Any, int]], cuts: list[int], looks: int
) -> None:
    tasks = [task for task in tasks for _ in range(task[4])]
    records = [
        finished(f"k{at}", xs, ys, xs_extra=xs_extra, ys_extra=ys_extra)
        for at, (xs, ys, xs_extra, ys_extra, _) in enumerate(tasks)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole, portions = FinishedTable(), FinishedTable()
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
def test_a_snapshot_equals_the_frame_of_its_records(
    tasks: list[tuple[dict[str, Any], dict[str, Any], Any, Any, int]], n_finished: int, times: bool
) -> None:
    tasks = [task for task in tasks for _ in range(task[4])]
    done = [finished(f"f{at}", xs, ys, xs_extra=extra) for at, (xs, ys, extra, _, _) in enumerate(tasks[:n_finished])]
    waiting = [queued(f"q{at}", xs, extra) + b"\xc0" * 6 for at, (xs, _, extra, _, _) in enumerate(tasks[n_finished:])]
    broken = [failed("x", {"x": 1}, Failure("lost"))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive = FinishedTable()
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


def test_a_snapshot_may_have_fewer_rows_and_another_order_of_states() -> None:
    archive = FinishedTable()
    archive.extend([finished(f"f{at}", {"x": at}, {"y": 0.5}) for at in range(70)])
    waiting = [queued("q", {"x": 2.5}) + b"\xc0" * 6]
    frame = archive.snapshot(2, {"queued": waiting}, ("queued", "finished"), with_state=True)
    assert frame["keys"].to_list() == ["q", "f0", "f1"]
    assert frame["x"].to_list() == [2.5, 0.0, 1.0]
    assert archive.frame()["x"].dtype == pl.Int64


def test_an_empty_name_is_a_column_beside_names_that_polars_makes_up() -> None:
    archive = FinishedTable()
    archive.extend([finished(f"k{at}", {"": at, "column_1": -at}, {"y": 1.0}) for at in range(3)])
    for frame in (archive.frame(), archive.frame(), archive.frame(1), archive.frame(schema={"z": pl.Int64}, times=True)):
        assert frame.columns[:4] == ["worker_id", "", "column_1", "y"]
        assert frame[""].to_list() == list(range(3))[-frame.height :]
    assert frame_of([("queued", [queued("k", {"": 5}) + b"\xc0" * 6])], with_state=True)[""].to_list() == [5]


def test_a_caller_owns_its_frame() -> None:
    archive = FinishedTable()
    archive.extend(rows_of_y([1.0] * 64))
    frame = archive.frame()
    frame[0, "y"] = 99.0
    frame.insert_column(0, pl.Series("mine", [0] * 64))
    frame.extend(frame)
    frame.drop_in_place("x")
    archive.frame().replace_column(1, pl.Series("x", ["gone"] * 64))
    assert archive.frame().columns == ["worker_id", "x", "y", "keys"]
    assert archive.frame()["y"].to_list() == [1.0] * 64


def test_a_frame_from_a_row_on_has_the_columns_of_all_rows() -> None:
    archive = FinishedTable()
    archive.extend(rows_of_y([1, 2.5, 3]))
    assert archive.frame(2)["y"].to_list() == [3.0]
    assert archive.frame(3).height == 0
    assert archive.frame(3).schema == archive.frame().schema


def test_records_and_tasks_are_found_by_row_and_key() -> None:
    archive, records = FinishedTable(), rows_of_y(range(2_345))
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


def test_a_cleared_archive_starts_anew() -> None:
    archive = FinishedTable()
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
        finished("k", {"\0": 1}).replace(b"\xa1\0", b"\xc4\x01\0"),
        finished("k", {"x": {"\0": 1}}).replace(b"\xa1\0", b"\xc4\x01\0"),
        finished("k", {"x": "\0"}).replace(b"\xa1\0", b"\x91" * 300 + b"\xc0"),
        finished("k", {"x": "\0\1\2\3"}).replace(b"\xa4\0\1\2\3", b"\xd6\xff\1\2\3\4"),
    ],
)
def test_bytes_that_are_no_record_are_left_out(bad: bytes) -> None:
    archive = FinishedTable()
    archive.extend(rows_of_y([1.0]))
    assert archive.frame().height == 1
    archive.extend([bad])
    archive.extend(rows_of_y([2.0, 3.0]))
    for _ in range(2):
        assert archive.frame(times=True)["y"].to_list() == [1.0, 2.0, 3.0]
    assert archive.frame(2)["y"].to_list() == [2.0, 3.0]
    assert archive.snapshot(3, {}, ["finished"], with_state=False)["y"].to_list() == [1.0, 2.0]
    assert len(archive) == 4


@pytest.mark.parametrize("bad", [b"\xc0" + encode(math.nan, ""), b"\xc0" + encode(1e300, ""), encode(2**64 - 1, "") + b"\xc0"])
def test_a_time_or_an_attempt_that_is_none_is_null(bad: bytes) -> None:
    archive = FinishedTable()
    archive.extend([queued("k", {"x": 1}) + b"\xc0" + bad + encode_ended({}, None) + encode(AT, ""), *rows_of_y([1.0])])
    frame = archive.frame(times=True)
    assert frame.height == 2
    assert frame.select("started_at", "attempt").row(0) == (None, None)


def test_records_that_are_left_out_are_left_out_of_every_layout_and_merge() -> None:
    archive, expected = FinishedTable(), list[float]()
    for first in range(0, 3_000, 50):
        values = [float(value) for value in range(first, first + 50)]
        archive.extend([*rows_of_y(values), b"\xc1"])
        expected += values
        if first % 500 == 0:
            assert archive.frame()["y"].to_list() == expected
            assert archive.frame(schema={"y": pl.Float32})["y"].to_list() == expected
    assert archive.frame(times=True)["y"].to_list() == expected
    assert archive.frame(51 * 50, schema={"y": pl.String}).height == 500
    assert archive.proposal_frame(51, {}, ["finished"])["y"].to_list() == expected[:50]


def test_a_failed_record_without_a_failure_is_a_decode_error() -> None:
    for end in (encode({"kind": 1}, ""), b"\xc0"):
        record = queued("k", {}) + b"\xc0" * 3 + end + b"\xc0" + encode(AT, "")
        with pytest.raises(DecodeError, match="no failure"):
            frame_of([("failed", [record])], with_state=True)


def test_a_snapshot_decodes_finished_tasks_again_only_for_a_dtype_that_needs_their_values(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    archive = FinishedTable()
    archive.extend(rows_of_y(range(1_000)))
    decodings = Decodings(monkeypatch)

    def snapshot(xs: dict[str, Any]) -> pl.DataFrame:
        others: dict[TaskState, list[bytes]] = {"queued": [queued("q", xs) + b"\xc0" * 6]}
        return archive.snapshot(1_000, others, ("finished", "queued"), with_state=False)

    assert snapshot({"x": 2, "w": [True]})["w"].to_list() == [None] * 1_000 + [[True]]
    assert snapshot({"y": 0.5}).columns == ["worker_id", "x", "y", "ys.y", "keys"]
    assert decodings.take() == 0
    with pytest.warns(UserWarning, match="column 'x' is text") as warned:
        assert snapshot({"x": "s"})["x"].to_list() == [*[str(float(at)) for at in range(1_000)], "s"]
    assert [warning.filename for warning in warned] == [__file__]
    assert decodings.take() == 1_000
    assert archive.frame()["x"].dtype == pl.Float64


def test_a_schema_holds_for_snapshots_and_frames_of_other_states() -> None:
    schema = {"x": pl.Int32, "new": pl.Date}
    archive = FinishedTable()
    archive.extend(rows_of_y([1] * 70))
    waiting = [queued("q", {"x": 5.0}) + b"\xc0" * 6]
    for frame in (
        archive.snapshot(70, {"queued": waiting}, ("queued", "finished"), with_state=True, schema=schema),
        frame_of([("queued", waiting)], with_state=True, schema=schema),
    ):
        assert (frame.schema["x"], frame.schema["new"], frame["x"][0]) == (pl.Int32, pl.Date, 5)
    odd = queued("q2", {"x": 0.5}) + b"\xc0" * 6
    with pytest.raises(SchemaError, match=r"task 'q2'.*column 'x'"):
        frame_of([("queued", [*waiting, odd])], with_state=False, schema=schema)
    with pytest.raises(SchemaError, match=r"task 'q2'.*column 'x'"):
        archive.snapshot(70, {"queued": [*waiting, odd]}, ("finished", "queued"), with_state=True, schema=schema)
