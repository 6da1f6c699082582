"""Exports: the call of a client."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from rush_async import Archive, NetworkStateError, Rush, RushWorker
from rush_async.client.export import exporting


async def test_an_export_fills_no_cache_and_changes_nothing(rush: Rush, rush_worker: RushWorker, tmp_path: Path) -> None:
    await rush.push_finished_tasks([{"x": 1}], [{"y": 1}])
    network = rush._net  # pyright: ignore[reportPrivateUsage]
    seq = network.position.seq
    path = await rush_worker.export(str(tmp_path / "a.zip"))
    assert path == tmp_path / "a.zip"
    assert len(network.results.records) == len(network.report_cache.records) == 0
    assert (await network.tasks.read_position()).seq == seq
    await rush.push_finished_tasks([{"x": 2}], [{"y": 2}])
    assert Archive.open(await rush.export(path)).finished_tasks().height == 2  # it took the place of the first


async def test_a_network_that_does_not_exist_is_an_error(rush: Rush, tmp_path: Path) -> None:
    with pytest.raises(NetworkStateError, match="does not exist, so there is nothing to export"):
        await rush.export(tmp_path / "a.zip")
    assert os.listdir(tmp_path) == []


async def test_a_cancelled_export_leaves_nothing(rush: Rush, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await rush.push_finished_tasks([{"x": 1}], [{"y": 1}])
    take: Any = getattr(exporting, "_take")  # noqa: B009 - private
    begun, is_cancelled = threading.Event(), threading.Event()

    def take_slowly(steps: Any) -> bool:
        begun.set()
        assert is_cancelled.wait(10)
        return take(steps)

    monkeypatch.setattr(exporting, "_take", take_slowly)
    task: asyncio.Task[Any] = asyncio.create_task(rush.export(tmp_path / "a.zip"))
    assert await asyncio.to_thread(begun.wait, 10)
    task.cancel()
    is_cancelled.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert os.listdir(tmp_path) == []
