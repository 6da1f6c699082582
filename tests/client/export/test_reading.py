"""An export, read without a server."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from rush_async import Archive, DecodeError, Rush, RushError, RushWorker
from tests.client.export.networks import VALUES, fill

pytestmark = pytest.mark.filterwarnings("ignore:column .* is text")


async def test_frames_are_those_of_the_network(rush: Rush, rush_worker: RushWorker, tmp_path: Path) -> None:
    names = await fill(rush, rush_worker)
    await rush.stop_when(finished=10, target={"y": 0.0})
    archive = Archive.open(await rush.export(tmp_path / "a.zip"))
    assert_frame_equal(archive.tasks(times=True), await rush.fetch_tasks(times=True))
    assert_frame_equal(archive.tasks("failed", "queued"), await rush.fetch_tasks_with_state("failed", "queued"))
    schema = {"y": pl.Float32, "z": pl.String}
    assert_frame_equal(archive.finished_tasks(schema=schema), await rush.fetch_finished_tasks(schema=schema))
    assert_frame_equal(archive.failed_tasks(), await rush.fetch_failed_tasks())
    assert_frame_equal(archive.queued_tasks(), await rush.fetch_queued_tasks())
    assert_frame_equal(archive.running_tasks(), await rush.fetch_running_tasks())
    assert_frame_equal(archive.reports(), await rush.fetch_reports())
    assert archive.reports("unknown").height == 0
    assert_frame_equal(archive.log("quiet_owl"), await rush.read_log())
    assert archive.log([]).height == 0
    assert archive.counts == await rush.counts()
    assert repr(archive.attrs()) == repr(await rush.attrs())
    assert list(archive.attrs()) == sorted(VALUES)
    assert (archive.network_id, archive.seed) == (rush.network_id, None)
    assert archive.network["stop_rules"] == {"finished": 10, "target": {"y": 0.0}}
    assert archive.network["workers"][0]["worker_id"] == rush_worker.worker_id
    assert repr(archive) == f"<Archive {str(tmp_path / 'a.zip')!r} of network {rush.network_id!r}: 8 tasks>"
    assert names["queued"] in archive.queued_tasks()["keys"]


async def test_an_empty_network_has_empty_frames(rush: Rush, tmp_path: Path) -> None:
    await rush.set_attrs({"a": 1})
    archive = Archive.open(await rush.export(tmp_path / "a.zip"))
    assert_frame_equal(archive.tasks(times=True), await rush.fetch_tasks(times=True))
    assert_frame_equal(archive.reports(), await rush.fetch_reports())
    assert_frame_equal(archive.log(), await rush.read_log())


async def test_what_is_no_export_is_refused(rush: Rush, tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with pytest.raises(FileNotFoundError):
        Archive.open(path)

    def write(network: Any) -> Path:
        with zipfile.ZipFile(path, "w") as packed:
            packed.writestr("network.json", json.dumps(network))
        return path

    path.write_bytes(b"no zip")
    with pytest.raises(DecodeError, match=r"a\.zip is no export of a network: BadZipFile"):
        Archive.open(path)
    networks: list[Any] = [[], {}, {"format": 1, "wire": 1}]
    for network in networks:
        with pytest.raises(DecodeError, match="is no export of a network"):
            Archive.open(write(network))
    await rush.push_tasks([{"x": 1}])
    network = Archive.open(await rush.export(path)).network
    for field in ("format", "wire"):
        with pytest.raises(RushError, match=r"was written by rush_async 0.*: upgrade rush_async here to read it"):
            Archive.open(write(network | {field: 2}))
