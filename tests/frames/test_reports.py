"""Reports as frames: columns, dtypes, names that are taken, and values without a dtype in common."""

from __future__ import annotations

import warnings
from typing import Any

import polars as pl
import pytest

from rush_async.frames.reports import ReportTable
from rush_async.store.finished import Records
from rush_async.store.report_entry import Report

FIXED = {"keys": pl.String, "worker_id": pl.String, "at": pl.Datetime("us", "UTC"), "attempt": pl.Int64, "step": pl.Int64}


def table_of(*valuess: dict[str, Any]) -> ReportTable:
    records = Records()
    records.extend(
        [Report(n, f"key{n % 3}", "owl", 1, n, 1.5 + n, values).as_record() for n, values in enumerate(valuess, start=1)]
    )
    return ReportTable(records)


def test_without_reports_the_fixed_columns_are_there() -> None:
    frame = table_of().frame()
    assert dict(frame.schema) == FIXED
    assert dict(table_of().frame(["key"]).schema) == FIXED


def test_each_value_has_a_column_behind_the_fixed_ones() -> None:
    frame = table_of({"loss": 1, "name": "a"}, {"loss": 0.5, "is_best": True}, {}).frame()
    assert dict(frame.schema) == FIXED | {"loss": pl.Float64, "name": pl.String, "is_best": pl.Boolean}
    assert frame["loss"].to_list() == [1.0, 0.5, None]
    assert frame["step"].to_list() == [1, 2, 3]
    assert [at.timestamp() for at in frame["at"]] == [2.5, 3.5, 4.5]


def test_reports_without_values_are_rows() -> None:
    assert table_of({}, {}).frame().shape == (2, 5)


def test_reports_of_some_tasks_keep_their_order() -> None:
    frame = table_of(*[{"n": n} for n in range(9)]).frame(["key1", "key0", "unknown"])
    assert frame["n"].to_list() == [0, 2, 3, 5, 6, 8]
    assert table_of({"n": 1}).frame(["unknown"]).shape == table_of({"n": 1}).frame([]).shape == (0, 6)


@pytest.mark.parametrize("n_rows", [1, 100])
def test_a_value_with_the_name_of_a_fixed_column_has_another_name(n_rows: int) -> None:
    values = {"step": 7, "at": 8, "keys": 9, "state": 10, "values.step": 11, "created_at": 12, "ys.state": 13}
    frame = table_of(*[values] * n_rows).frame()
    shown = frame.row(0, named=True)
    assert {name: value for name, value in shown.items() if name not in FIXED} == {
        "values.values.step": 7,
        "values.at": 8,
        "values.keys": 9,
        "state": 10,
        "values.step": 11,
        "created_at": 12,
        "ys.state": 13,
    }
    assert shown["step"] == 1


def test_values_without_a_dtype_in_common_are_text_and_a_warning_once() -> None:
    table = table_of({"loss": 0.5, "at": 1}, {"loss": "diverged", "at": "noon"})
    with pytest.warns(UserWarning, match="of the reports is text") as caught:
        frame = table.frame()
    assert sorted(str(warning.message).split(" of ")[0] for warning in caught) == ["column 'loss'", "column 'values.at'"]
    assert caught[0].filename == __file__
    assert frame["loss"].to_list() == ["0.5", "diverged"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table.frame()


def test_a_frame_is_the_callers_own_and_a_cleared_table_is_empty() -> None:
    table = table_of({"n": 1}, {"n": 2})
    frame = table.frame()
    frame[0, "n"] = 99
    assert table.frame()["n"].to_list() == [1, 2]
    table.clear()
    assert table.frame().shape == (0, 5)
    assert frame["n"].to_list() == [99, 2]


def test_many_reports_in_portions_are_the_same_as_at_once() -> None:
    records = Records()
    table = ReportTable(records)
    every = [Report(n, f"key{n}", "owl", 1, n, 1.5, {"n": n} if n < 2_000 else {"n": n / 2}) for n in range(1, 3_001)]
    for first in range(0, 3_000, 700):
        records.extend([report.as_record() for report in every[first : first + 700]])
        table.decode_chunks()
        assert table.frame().height == len(records)
    assert table.frame()["n"].to_list() == [float(n) if n < 2_000 else n / 2 for n in range(1, 3_001)]
