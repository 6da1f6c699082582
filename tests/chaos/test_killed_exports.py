"""Programs that are killed while they export or import: nothing half done is left, and the next one completes it."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rush_async import Archive, Rush, RushWorker
from rush_async.store.keys import NetworkKeys
from rush_async.testing import wait_until
from tests.client.export.networks import dump, fill

pytestmark = [pytest.mark.chaos, pytest.mark.filterwarnings("ignore:column .* is text")]

N = 30_000

EXPORT = """
import asyncio, sys
from rush_async import Rush

async def main():
    async with Rush(sys.argv[1], sys.argv[2], exist_ok=True) as rush:
        while True:
            await rush.export(sys.argv[3])

asyncio.run(main())
"""
IMPORT = """
import asyncio, sys
from rush_async import Rush

async def main():
    async with Rush(sys.argv[1], sys.argv[2], exist_ok=True) as rush:
        await rush.import_archive(sys.argv[3])

asyncio.run(main())
"""


@contextmanager
def running(program: str, *words: str) -> Generator[subprocess.Popen[bytes]]:
    """A program that is killed where the block ends."""
    with subprocess.Popen([sys.executable, "-c", program, *words]) as process:
        try:
            yield process
        finally:
            process.kill()


def hidden(folder: Path) -> set[str]:
    return {name for name in os.listdir(folder) if name.startswith(".a.zip.")}


async def test_a_killed_export_leaves_the_one_before_and_nothing_of_its_own(
    rush: Rush, rush_worker: RushWorker, tmp_path: Path
) -> None:
    await fill(rush, rush_worker)
    await rush.push_finished_tasks([{"x": at} for at in range(N)], [{"y": at / 2} for at in range(N)])
    path = tmp_path / "a.zip"
    assert rush.config.url is not None
    n_left = 0
    for needs_one in (False, False, True, True):
        left = hidden(tmp_path)
        with running(EXPORT, rush.network_id, rush.config.url, str(path)):
            await wait_until(
                lambda left=left, needs_one=needs_one: hidden(tmp_path) - left and (not needs_one or path.exists()), timeout=20
            )
        n_left += len(hidden(tmp_path))
        assert set(os.listdir(tmp_path)) - hidden(tmp_path) <= {"a.zip"}
        if path.exists():
            with zipfile.ZipFile(path) as packed:
                assert packed.testzip() is None
            assert Archive.open(path).tasks().height == N + 8
    assert n_left > 0  # it was killed in the middle
    await rush.export(path)
    assert os.listdir(tmp_path) == ["a.zip"]


async def test_a_killed_import_leaves_whole_tasks_and_the_next_one_adds_the_rest(
    rush: Rush, rush_worker: RushWorker, raw: Any, tmp_path: Path
) -> None:
    names = await fill(rush, rush_worker)
    await rush.push_finished_tasks([{"x": at} for at in range(N)], [{"y": at / 2} for at in range(N)])
    await rush_worker.fail_tasks([names["running"], names["lost"]])
    await rush.retry_tasks(names["cancelled"])  # its stale entry of the queue is not exported
    path = await rush.export(tmp_path / "a.zip")
    before = dump(raw, rush.network_id)
    async with Rush(config=rush.config, exist_ok=True) as imported:
        assert rush.config.url is not None
        for at in (1, N // 3, 2 * N // 3):
            with running(IMPORT, imported.network_id, rush.config.url, str(path)):
                await imported.wait_until(lambda counts, at=at: counts.finished >= at, timeout=20)
        finished = raw.lrange(NetworkKeys.of(imported.network_id).finished, 0, -1)
        assert N // 3 < len(finished) < N  # it was killed in the middle
        assert finished == before["finished"][: len(finished)]
        keys = await imported.import_archive(path)
        assert len(keys) <= N + 8 - len(finished)
        assert dump(raw, imported.network_id) == before
        assert await imported.import_archive(path) == []
        await imported.reset()
