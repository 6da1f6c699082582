"""`rush-async export` and `rush-async import`."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from rush_async import Archive, Rush
from rush_async.cli.program import main


async def test_a_network_goes_into_a_file_and_back(rush: Rush, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def call(*words: str) -> tuple[int, str, str]:
        assert rush.config.url is not None
        code = await asyncio.to_thread(main, [*words, "--url", rush.config.url])
        said = capsys.readouterr()
        return code, said.out, said.err

    path = str(tmp_path / "a.zip")
    code, _, errors = await call("export", rush.network_id, path)
    assert (code, os.listdir(tmp_path)) == (78, [])
    assert "does not exist" in errors
    await rush.push_finished_tasks([{"x": 1}, {"x": 2}], [{"y": 1}, {"y": 2}])
    assert await call("export", rush.network_id, path) == (
        *(0, f"exported 2 tasks of network {rush.network_id!r} to {path}: 0 queued, 0 running, 2 finished, 0 failed\n"),
        "",
    )
    assert Archive.open(path).counts.finished == 2
    path_of_none = str(tmp_path / "no" / "a.zip")
    code, _, errors = await call("export", rush.network_id, path_of_none)
    assert (code, errors) == (1, f"rush-async export: {path_of_none}: No such file or directory\n")
    async with Rush(config=rush.config, exist_ok=True) as other:
        said = f"imported 2 of 2 tasks into network {other.network_id!r}\n"
        assert await call("import", other.network_id, path) == (0, said, "")
        said = f"imported 0 of 2 tasks into network {other.network_id!r}; it had the others\n"
        assert await call("import", other.network_id, path) == (0, said, "")
        code, _, errors = await call("import", other.network_id, str(tmp_path / "b.zip"))
        assert (code, "No such file or directory" in errors) == (1, True)
        (tmp_path / "b.zip").write_bytes(b"no zip")
        code, _, errors = await call("import", other.network_id, str(tmp_path / "b.zip"))
        assert (code, "is no export of a network" in errors) == (78, True)
        await other.reset()
