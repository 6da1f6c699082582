"""Results in a private server are not lost silently."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from rush_async import Rush, RushConfig

XSS, YSS = [{"x": 1}, {"x": 2}], [{"y": 1}, {"y": 2}]


@pytest.fixture(autouse=True)
def no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RUSH_URL", "REDIS_URL", "RUSH_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)


async def leave(rush: Rush, error: BaseException | None, *, n: int = 2) -> None:
    """Leaves the block of a manager by an error."""
    try:
        async with rush:
            await rush.push_finished_tasks(XSS[:n], YSS[:n])
            if error is not None:
                raise error
    except type(error or ZeroDivisionError):
        pass
    async with Rush(rush.network_id, rush.config) as again:
        await again.reset()


async def test_a_block_left_by_an_error_tells_what_is_lost_and_how_to_keep_it(caplog: pytest.LogCaptureFixture) -> None:
    await leave(Rush("valley"), ValueError())
    assert (
        "network 'valley': its block was left by ValueError, and 2 finished tasks are lost when this program ends, because "
        "only a private server has them. To keep results give a directory, Rush('valley', data_dir='results'), or set "
        "RUSH_DATA_DIR"
    ) in caplog.text
    caplog.clear()
    await leave(Rush("valley"), asyncio.CancelledError())
    assert "left by CancelledError, and 2 finished tasks are lost" in caplog.text


async def test_there_is_no_warning_where_nothing_is_lost(
    rush_server: RushConfig, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await leave(Rush("valley"), None)
    await leave(Rush("valley"), ValueError(), n=0)
    await leave(Rush("valley", rush_server), ValueError())
    assert "lost" not in caplog.text
    with pytest.raises(ZeroDivisionError):
        async with Rush("valley", data_dir=directory) as rush:
            await leave(Rush("valley", rush.config), ValueError())
            await rush.push_finished_tasks(XSS, YSS)
            raise ZeroDivisionError
    assert "lost" not in caplog.text


def test_ctrl_c_tells_it_too() -> None:
    script = """
import asyncio, os, signal
from rush_async import Rush
async def main():
    async with Rush("valley") as rush:
        await rush.push_finished_tasks([{"x": 1}], [{"y": 1}])
        os.kill(os.getpid(), signal.SIGINT)
        await rush.wait_until(lambda counts: False)
asyncio.run(main())
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert "1 finished task is lost when this program ends" in ended.stderr
    assert ended.stderr.rstrip().endswith("KeyboardInterrupt")
