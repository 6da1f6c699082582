"""What an export reads: all of one moment, however much it is, without what cannot be decoded."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, MutableMapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from polars.testing import assert_frame_equal

from rush_async import Archive, Rush
from rush_async.client import snapshot
from rush_async.client.export import contents
from rush_async.client.export.spool import SpooledRecords
from rush_async.model import TaskState
from rush_async.store.keys import NetworkKeys
from rush_async.store.task_reads import View


def test_what_was_opened_before_an_error_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[SpooledRecords] = []

    def opening() -> SpooledRecords:
        opened.append(SpooledRecords())
        return opened[-1]

    monkeypatch.setattr(contents, "SpooledRecords", opening)
    with pytest.raises(FileNotFoundError), ExitStack() as stack:
        contents.Contents(tmp_path / "no", stack)
    assert len(opened) == 3
    for records in opened:
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            len(records)


async def test_many_tasks_are_read_in_steps_and_keep_their_order(
    rush: Rush, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "_STEP", 50)
    monkeypatch.setattr(contents, "_BATCH", 300)
    await rush.push_tasks([{"x": at, "pad": "a" * 100} for at in range(1_000)])
    failed = await rush.push_failed_tasks([{"x": at, "pad": "a" * 100} for at in range(600)])
    await rush.push_finished_tasks([{"x": at} for at in range(3_000)], [{"y": at / 2} for at in range(3_000)])
    await rush.retry_tasks(failed[:100])
    archive = Archive.open(await rush.export(tmp_path / "a.zip"))
    assert_frame_equal(archive.tasks(times=True), await rush.fetch_tasks(times=True))
    assert archive.counts == await rush.counts()


async def test_what_is_malformed_is_left_out_and_named(
    rush: Rush, raw: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await rush.push_finished_tasks([{"x": 1}], [{"y": 1}])
    await rush.push_failed_tasks([{"x": 2}])
    keys = NetworkKeys.of(rush.network_id)
    raw.rpush(keys.finished, b"junk", b"")
    raw.hset(keys.failed, "odd", b"junk")
    raw.xadd(keys.log, {"r": b"junk"})
    raw.xadd(keys.reports, {"r": b"junk"})
    archive = Archive.open(await rush.export(tmp_path / "a.zip"))
    assert archive.counts == (0, 0, 1, 1)
    assert (archive.tasks().height, archive.log().height, archive.reports().height) == (2, 0, 0)
    assert sum("is malformed and is left out" in record.message for record in caplog.records) == 3


async def test_a_network_that_is_reset_meanwhile_is_read_again(
    rush: Rush, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rush.push_finished_tasks([{"x": 1}] * 10, [{"y": 1}] * 10)
    plainly, n_reads = rush._read_view, 0  # pyright: ignore[reportPrivateUsage]

    async def and_reset(n_finished: int, many: Mapping[TaskState, MutableMapping[bytes, bytes]]) -> View:
        nonlocal n_reads
        view = await plainly(n_finished, many)
        n_reads += 1
        if n_reads < 3:
            await rush.reset()
            await rush.push_finished_tasks([{"x": 2}] * n_reads, [{"y": 1}] * n_reads)
        return view

    monkeypatch.setattr(rush, "_read_view", and_reset)
    archive = Archive.open(await rush.export(tmp_path / "a.zip"))
    assert archive.finished_tasks()["x"].to_list() == [2, 2]
    assert n_reads == 3
