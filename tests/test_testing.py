"""The fixtures and `wait_until`, which users import for their own tests."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from rush_async import Rush, RushConfig, RushWorker
from rush_async.testing import wait_until
from tests.launch.loops_of_tests import serve

GUIDE = Path(__file__).parents[1] / "docs/guides/testing.md"
USERS_TEST = """
import pytest
pytest_plugins = ["rush_async.testing"]

async def test_fixtures(rush, rush_worker, rush_server):
    keys = await rush.push_tasks([{"x": 1}])
    async for task in rush_worker.tasks(timeout=0):
        async with task:
            task.ys = {"y": 2}
    (task,) = await rush.wait_for_tasks(keys)
    assert task.ys == {"y": 2}
    assert rush.config.url == rush_server.url
"""


def test_a_suite_needs_one_line_in_its_conftest_and_the_settings_of_the_guide(tmp_path: Path) -> None:
    page = GUIDE.read_text()
    (settings,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    assert "timeout" in tomllib.loads(settings)["tool"]["pytest"]["ini_options"]  # else a test that hangs says nothing
    (installed,) = re.findall(r"pip install (.*)", page)
    assert {"pytest-asyncio", "pytest-timeout"} <= set(installed.split())  # whose settings they are
    (tmp_path / "pyproject.toml").write_text(settings)
    (tmp_path / "test_user.py").write_text(USERS_TEST)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error"]  # also of an unknown setting
    result = subprocess.run([*command, "-p", "no:valkey", str(tmp_path)], capture_output=True, text=True, cwd=tmp_path)
    assert "1 passed" in result.stdout, result.stdout + result.stderr


async def test_the_fixtures_rush_and_rush_worker_share_a_new_network(
    rush: Rush, rush_worker: RushWorker, rush_server: RushConfig
) -> None:
    assert rush.network_id == rush_worker.network_id
    assert rush.config.url == rush_server.url
    async with Rush(config=rush_server) as other:
        assert other.network_id != rush.network_id


async def test_a_stop_without_names_asks_rush_worker_too_which_stays_open(rush: Rush, rush_worker: RushWorker) -> None:
    (started,) = await rush.start_workers(serve)
    await rush.stop_workers(started)
    assert not rush_worker.terminated
    await rush.stop_workers(timeout=0)
    await wait_until(lambda: rush_worker.terminated)
    assert (await rush.worker_info()).filter(worker_id=rush_worker.worker_id)["state"].item() == "running"


async def test_wait_until_returns_the_first_true_value_and_raises_with_the_last_false_one(rush: Rush) -> None:
    values = iter([0, None, "", "found"])
    assert await wait_until(lambda: next(values)) == "found"

    async def is_queue_empty() -> bool:
        return (await rush.counts()).queued == 0

    assert await wait_until(is_queue_empty)
    with pytest.raises(AssertionError, match=r"within 0\.01 s: it returned 0"):
        await wait_until(lambda: 0, timeout=0.01)
