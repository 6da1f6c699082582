"""`rush-async replay`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from rush_async import Draw, Rush, RushWorker
from rush_async.cli.program import main


async def test_the_proposals_of_an_export_are_compared(
    rush: Rush, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def propose(draw: Draw) -> dict[str, float]:
        return {"x": draw.random().random()}

    path = str(tmp_path / "a.zip")
    async with Rush(config=rush.config, seed=7) as seeded:
        async with RushWorker(seeded.network_id, rush.config) as worker:
            async for task in worker.proposals(propose, budget=3):
                async with task:
                    task.ys = {"y": 1.0}
        await seeded.export(path)
        await seeded.reset()

    async def call(*words: str) -> tuple[int, str, str]:
        code = await asyncio.to_thread(main, ["replay", *words])
        said = capsys.readouterr()
        return code, said.out, said.err

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "again_of_test.py").write_text(
        "def propose(draw):\n    return {'x': draw.random().random()}\n\ndef other(draw):\n    return {'x': 0.5}\n"
    )
    code, out, _ = await call(path, "again_of_test:propose")
    assert (code, out.startswith("3 proposals of network "), out.endswith(" are identical\n")) == (0, True, True)
    code, out, _ = await call(path, "again_of_test:other")
    assert (code, "(index 0) was {'x': 0." in out, "and is {'x': 0.5} now" in out) == (1, True, True)
    code, _, errors = await call(path, "again_of_test:nothing")
    assert (code, "has no attribute 'nothing'" in errors) == (78, True)
    code, _, errors = await call(str(tmp_path / "b.zip"), "again_of_test:propose")
    assert (code, "No such file or directory" in errors) == (1, True)
    with pytest.raises(SystemExit):
        await call(path, "propose")
