"""Chapter 7: tests of your own loops. The tests of the example pass without configuration, and fail if the loop is broken."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "test_my_loop.py"


async def run_tests(source: str, directory: Path, *words: str) -> str:
    """Runs pytest in a directory with this file and a conftest of one line, as in a project of a user. Returns its output."""
    (directory / "conftest.py").write_text('pytest_plugins = ["rush_async.testing"]\n', "utf-8")
    (directory / "pytest.ini").write_text("[pytest]\nasyncio_default_fixture_loop_scope = function\n", "utf-8")
    (directory / "test_my_loop.py").write_text(source, "utf-8")
    command = [sys.executable, "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider", *words]
    environment = {name: value for name, value in os.environ.items() if name not in ("RUSH_URL", "REDIS_URL", "RUSH_DATA_DIR")}
    process = await asyncio.create_subprocess_exec(
        *command, cwd=directory, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    return output.decode()


@pytest.mark.chaos
async def test_the_tests_of_the_example_pass(directory: Path) -> None:
    source = EXAMPLE.read_text("utf-8")
    assert "sleep(" not in source.replace("sleep(0)", "")
    n = len(re.findall(r"^async def test_", source, flags=re.MULTILINE))
    assert n >= 7
    output = await run_tests(source, directory)
    assert f"{n} passed in" in output, output


async def test_the_tests_of_the_example_fail_when_the_loop_is_broken(directory: Path) -> None:
    source = EXAMPLE.read_text("utf-8")
    for right, wrong in (
        ("budget=evals, max_failed=10", "budget=evals + 1, max_failed=10"),
        ("rng = random.Random(seed)", "rng = random.Random()"),
        ("if tasks.height else", "if False else"),
    ):
        assert source.count(right) == 1
        source = source.replace(right, wrong)
    names = ["workers_share_the_budget", "one_worker_with_a_seed_is_reproducible", "it_starts_from_the_known_results"]
    output = await run_tests(source, directory, "-k", " or ".join(names))
    assert re.findall(r"^FAILED test_my_loop.py::test_(\w+)", output, flags=re.MULTILINE) == names, output
