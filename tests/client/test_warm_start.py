"""Warm starts: results of another network are pushed as they were fetched, or as they were exported."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd  # pyright: ignore[reportMissingTypeStubs]
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from rush_async import Archive, Rush, RushWorker
from rush_async.client.warm_start import Rows, holds_rows, rows_of

XSS = [{"x": 1.0, "layers": [1, 2]}, {"x": 2.0}, {"x": math.nan, "at": datetime(2026, 1, 2, tzinfo=UTC)}]
YSS = [{"y": 0.5, "x": 7}, {"y": math.nan, "x": 8}, {"y": -1.0, "x": 9}]


async def results(rush: Rush) -> None:
    await rush.push_finished_tasks(XSS, YSS, xss_extra=[{"y": "e"}, None, None], yss_extra=[{"sd": 0.25}, {"sd": 0.5}, None])


def contents(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.drop("keys")


async def test_a_frame_of_another_network_goes_in_as_it_was_fetched(rush: Rush) -> None:
    await results(rush)
    await rush.push_tasks([{"x": 9.0}])
    await rush.push_failed_tasks([{"x": 8.0}])
    frame = await rush.fetch_finished_tasks()
    assert frame.columns == ["worker_id", "x", "layers", "at", "y", "ys.x", "xs_extra.y", "sd", "keys"]
    async with Rush(config=rush.config, exist_ok=True) as other:
        for given in (frame, await rush.fetch_finished_tasks(times=True), await rush.fetch_tasks()):
            await other.reset(workers=False)
            keys = await other.push_finished_tasks(given, ["y"], yss_extra="sd")
            assert set(keys).isdisjoint(frame["keys"])
            assert_frame_equal(contents(await other.fetch_finished_tasks()), contents(frame))
            assert (await other.counts()).total == 3
        await other.reset()


async def test_the_finished_tasks_of_an_export_go_in_as_they_are_and_count_in_no_rule(
    rush: Rush, rush_worker: RushWorker, tmp_path: Path
) -> None:
    await results(rush)
    archive = Archive.open(await rush.export(tmp_path / "a.zip"))
    await rush.stop_when(finished=5, target={"y": -2.0}, patience=("y", 2))
    keys = await rush.push_finished_tasks(archive)
    assert len(keys) == 3
    frame = await rush.fetch_finished_tasks()
    assert_frame_equal(contents(frame[3:]), contents(frame[:3]))
    assert rush.stop_reason is None
    running = await rush_worker.push_running_tasks([{"x": 1.0}] * 9)
    assert len(running) == 2  # three of five had finished when the rule was set
    await rush_worker.finish_tasks(running[0], [{"y": 0.75}])
    assert rush.stop_reason is None
    await rush_worker.finish_tasks(running[1], [{"y": 0.5}])
    assert rush.stop_reason is not None
    assert None not in await rush.push_finished_tasks(archive, unique="x")
    assert await rush.push_finished_tasks(archive, unique="x") == [None] * 3


def test_a_pandas_frame_leaves_out_what_is_missing() -> None:
    frame = pd.DataFrame({"x": [1.0, np.nan], "n": [1, 2], "name": ["a", None], "y": [0.5, 1.5], "keys": ["k", "l"]})
    found = rows_of(frame, "y", None, ["name"])
    assert found == Rows([{"x": 1.0, "n": 1}, {"n": 2}], [{"y": 0.5}, {"y": 1.5}], [{}, {}], [{"name": "a"}, {}])


def test_what_is_no_frame_is_left_alone_and_names_must_be_columns(tmp_path: Path) -> None:
    assert not holds_rows([{"x": 1}])
    frame: Any = pl.DataFrame({"x": [1], "y": [2]})
    with pytest.raises(ValueError, match=r'name the outputs of the frame, as in yss=\["y"\]: its columns are x, y'):
        rows_of(frame, None, None, None)
    with pytest.raises(ValueError, match="yss_extra names 'z', which is no column of the frame: it has x, y"):
        rows_of(frame, ["y"], None, ["z"])
    with pytest.raises(ValueError, match="an export knows which values are outputs"):
        rows_of(Archive(tmp_path, {}), ["y"], None, None)


async def test_inputs_without_outputs_are_an_error(rush: Rush) -> None:
    with pytest.raises(TypeError, match="yss must be a sequence of records, not NoneType"):
        await rush.push_finished_tasks([{"x": 1}])
