"""The rows of finished tasks: columns that widen, few chunks, and the cost of a new row."""

from __future__ import annotations

import gc
import math
import time as clock
from collections.abc import Sequence
from itertools import pairwise

import polars as pl
import pytest

from rush_async.frames.finished import FinishedTable
from rush_async.frames.schema import schema_columns
from rush_async.frames.table import CHUNK, Records, Table
from rush_async.store.fields import FIELDS
from tests.frames.records import Decodings, finished, rows_of_y


def test_an_int_column_becomes_float_when_a_float_arrives() -> None:
    archive = FinishedTable()
    archive.extend(rows_of_y(range(5_000)))
    before = archive.frame()
    assert before.schema["y"] == pl.Int64
    archive.extend(rows_of_y([2.5]))
    assert archive.frame()["y"].to_list() == [*range(5_000), 2.5]
    assert archive.frame().schema["y"] == pl.Float64
    assert before.schema["y"] == pl.Int64


def test_a_large_int_is_not_rounded_when_a_float_arrives() -> None:
    archive = FinishedTable()
    archive.extend(rows_of_y([*range(1_500), 2**53 + 1]))
    assert archive.frame().schema["y"] == pl.Int64
    archive.extend(rows_of_y([0.5]))
    with pytest.warns(UserWarning, match="'y'"):
        frame = archive.frame()
    assert frame["y"].to_list() == [*map(str, range(1_500)), "9007199254740993", "0.5"]


def test_a_str_in_a_numeric_column_makes_all_values_text() -> None:
    archive = FinishedTable()
    archive.extend(rows_of_y([0.1, 1e300, -0.0] * 1_000))
    archive.frame()
    archive.extend(rows_of_y(["fast"]))
    with pytest.warns(UserWarning, match="'y'"):
        column = archive.frame()["y"]
    assert column.to_list() == ["0.1", "1e+300", "-0.0"] * 1_000 + ["fast"]


def test_a_name_that_first_appears_in_row_5000_is_null_before() -> None:
    archive = FinishedTable()
    archive.extend([finished(f"k{at}", {"x": at}, {"y": 1.0}) for at in range(5_000)])
    archive.frame()
    archive.extend([finished("late", {"x": 1, "z": [1.5]}, {"y": 2.0, "w": {"a": 1}})])
    frame = archive.frame()
    assert frame.columns == ["worker_id", "x", "z", "y", "w", "keys"]
    assert frame["z"].null_count() == frame["w"].null_count() == 5_000
    assert frame.row(5_000) == ("brave_bear", 1, [1.5], 2.0, {"a": 1}, "late")


def test_rows_added_one_by_one_are_in_few_chunks() -> None:
    archive, records = FinishedTable(), rows_of_y([at / 2 for at in range(3_000)])
    for at, record in enumerate(records):
        archive.extend([record])
        frame = archive.frame(times=at % 7 == 0)
        assert frame.height == at + 1
        assert frame.n_chunks() <= 12
    assert archive.frame()["y"].to_list() == [at / 2 for at in range(3_000)]
    assert archive.frame(times=True)["keys"].to_list() == [f"k{at}" for at in range(3_000)]


def test_the_cost_of_a_new_row_does_not_grow_with_the_table() -> None:
    def increments(n: int) -> float:
        archive, block = FinishedTable(), rows_of_y([0.5] * 1_000)
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


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> Decodings:
    return Decodings(monkeypatch)


def table_of(records: Sequence[bytes]) -> Table:
    table = Table()
    table.extend(records)
    table.decode()
    return table


@pytest.mark.parametrize("n", [0, 1, CHUNK - 1, CHUNK, 2 * CHUNK + 345])
def test_records_are_returned_as_they_arrived(n: int) -> None:
    added, records = rows_of_y(range(n)), Records()
    records.extend(added[:7])
    records.extend(added[7:])
    assert len(records) == n
    assert records.raw(0, n + 1) == added
    assert records.raw(n // 2, n // 2 + 1) == added[n // 2 : n // 2 + 1]
    assert records.raw(3, 3) == []
    assert [row for first, last in records.windows(0, n) for row in range(first, last)] == list(range(n))
    keys = [key for window in records.windows(2, n) for key in records.decode(*window)[::FIELDS]]
    assert keys == [f"k{at}" for at in range(2, n)]


def test_each_record_is_decoded_once_but_the_last_rows(decodings: Decodings) -> None:
    table, records = Table(), rows_of_y([0.5] * (2 * CHUNK + 10))
    table.extend(records[: CHUNK // 2])
    assert decodings.take() == 0
    table.extend(records[CHUNK // 2 :])
    assert decodings.take() == 2 * CHUNK
    for _ in range(3):
        table.decode()
        assert table.frame(table.layout(False, {})).height == 2 * CHUNK + 10
    assert decodings.take() == 10


def test_only_what_no_other_layout_has_is_decoded_again_and_once(decodings: Decodings) -> None:
    table = table_of(rows_of_y(range(3 * CHUNK)))
    decodings.take()
    floats = schema_columns({"y": pl.Float64})
    cast = table.frame(table.layout(False, {**schema_columns({"x": pl.Float64}), **schema_columns({"new": pl.Date})}))
    assert (cast.schema["x"], cast.schema["new"], decodings.take()) == (pl.Float64, pl.Date, 0)
    assert table.frame(table.layout(False, floats)).schema["y"] == pl.Float64
    assert decodings.take() == 0
    for n in (3 * CHUNK, 0):
        assert table.frame(table.layout(True, floats)).columns[-3] == "attempt"
        assert decodings.take() == n
    assert table.frame(table.layout(True, {}))["attempt"].to_list() == [1] * 3 * CHUNK
    assert decodings.take() == 0


def test_a_frame_made_once_is_not_kept(decodings: Decodings) -> None:
    table = table_of(rows_of_y(range(2 * CHUNK + 5)))
    decodings.take()
    layout = table.inference.layout(with_condition=True).extended(times=True, schema={})
    for _ in range(2):
        frame = table.frame_once(layout)
        assert decodings.take() == 2 * CHUNK
        assert frame.drop("condition", "created_at", "started_at", "ended_at", "attempt", "index").equals(
            table.frame(table.layout(False, {}))
        )
        assert frame["condition"].null_count() == 2 * CHUNK + 5
    assert Table().frame_once(layout).height == 0


def test_the_layout_that_was_unused_longest_is_forgotten(decodings: Decodings) -> None:
    table = table_of(rows_of_y(["text"] * 100))
    decodings.take()
    enums = [schema_columns({"y": pl.Enum(["text", str(at)])}) for at in range(9)]
    for schema in enums:
        assert table.frame(table.layout(False, schema)).schema["y"] == schema["y"].dtype
    assert decodings.take() == 900
    table.frame(table.layout(False, enums[-1]))
    assert decodings.take() == 0
    assert table.frame(table.layout(False, enums[0]))["y"].to_list() == ["text"] * 100
    assert decodings.take() == 100


def test_heights_at_least_halve_from_block_to_block() -> None:
    table, records = Table(), rows_of_y([0.5] * 5_000)
    at = 0
    for step in [64, 70, 130, 1, 63, 900, 64, 64, 2_000, 65, 200, 100, 66]:
        table.extend(records[at : at + step])
        table.decode()
        at += step
        frame = table.frame(table.layout(False, {}))
        heights = [len(chunk) for chunk in frame["keys"].get_chunks()]
        assert sum(heights) == at
        blocks = heights if heights[-1] >= 64 else heights[:-1]  # the last rows are in no block yet
        assert all(height >= 2 * behind for height, behind in pairwise(blocks))


def test_a_record_that_cannot_be_decoded_keeps_its_place_and_has_no_row() -> None:
    table = Table()
    table.extend([*rows_of_y([1] * (CHUNK - 1)), b"\xc1"])
    assert len(table.records) == CHUNK
    table.decode()
    assert table.frame(table.layout(False, {})).height == CHUNK - 1
