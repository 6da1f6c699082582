"""The file of an export: what is in it, and how it takes its place."""

from __future__ import annotations

import fcntl
import json
import os
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from rush_async import Rush, RushWorker
from rush_async.client.export import writing
from rush_async.client.export.writing import replacing
from tests.client.export.networks import fill


async def test_the_file_is_read_without_this_library(
    rush: Rush, rush_worker: RushWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "_PART_ROWS", 2)
    await fill(rush, rush_worker)
    path = await rush.export(tmp_path / "a.zip")
    with zipfile.ZipFile(path) as packed:
        assert packed.testzip() is None
        names = packed.namelist()
        parts = [pl.read_parquet(BytesIO(packed.read(name))) for name in names if name.startswith("tasks/")]
        crate = json.loads(packed.read("ro-crate-metadata.json"))
        network = json.loads(packed.read("network.json"))
    assert len(parts) == 4
    tasks = pl.concat(parts)  # all have the same columns
    assert tasks["state"].value_counts(sort=True).rows() == [("finished", 2), ("queued", 2), ("running", 2), ("failed", 2)]
    assert tasks.columns[0] == "state"
    assert tasks.columns[-1] == "stored.record"
    assert tasks["y"].drop_nulls().to_list() == [0.5]
    described = [entity["@id"] for entity in crate["@graph"] if entity["@type"] == "File"]
    assert sorted([*described, "ro-crate-metadata.json"]) == sorted(names)
    assert network["attributes"]["nan"] == "nan"  # JSON has none
    assert network["attributes"]["flag"] is True
    assert network["environment"]["packages"]["polars"] == pl.__version__


def test_a_file_takes_its_place_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "a [1].zip"
    with replacing(path) as file:
        file.write(b"first")
        assert not path.exists()
    assert path.read_bytes() == b"first"
    with pytest.raises(ZeroDivisionError), replacing(path) as file:
        file.write(b"second")
        raise ZeroDivisionError
    assert [each.name for each in tmp_path.iterdir()] == ["a [1].zip"]
    assert path.read_bytes() == b"first"


def test_what_a_killed_export_left_is_removed_and_what_another_writes_is_not(tmp_path: Path) -> None:
    path, left, other = tmp_path / "a.zip", tmp_path / ".a.zip.0.partial", tmp_path / ".a.zip.1.partial"
    left.write_bytes(b"left")
    with other.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with replacing(path):
            pass
        assert not left.exists()
        assert other.exists()


async def test_a_folder_that_is_not_there_is_an_error(rush: Rush, tmp_path: Path) -> None:
    await rush.push_tasks([{"x": 1}])
    with pytest.raises(FileNotFoundError):
        await rush.export(tmp_path / "no" / "a.zip")


def test_a_file_that_vanished_before_it_was_locked_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locked: list[Any] = []
    lock = fcntl.flock

    def take(file: int, how: int) -> None:
        lock(file, how)
        locked.append(file)
        if len(locked) == 1:
            next(tmp_path.iterdir()).unlink()  # as another export does with what nothing has locked

    monkeypatch.setattr(fcntl, "flock", take)
    with replacing(tmp_path / "a.zip"):
        pass
    assert len(locked) == 2
    assert os.listdir(tmp_path) == ["a.zip"]
