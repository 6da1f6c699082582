"""Fixtures that run the program `rush-async`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from rush_async import Failure, Rush, RushWorker
from rush_async.cli.program import main
from tests.cli.programs import ROOT, Command, Output, Program, Run, running


@pytest_asyncio.fixture
async def run() -> AsyncIterator[Run]:
    """Starts a program."""
    async with running() as run:
        yield run


@pytest_asyncio.fixture
async def worker(rush: Rush) -> AsyncIterator[Run]:
    """Starts `rush-async worker` in the network of `rush`."""
    assert rush.config.url is not None
    url = rush.config.url
    async with running() as run:

        async def run_worker(*words: str, cwd: Path = ROOT) -> Program:
            return await run(sys.executable, "-m", "rush_async", "worker", rush.network_id, *words, cwd=cwd, RUSH_URL=url)

        yield run_worker


@pytest.fixture
def command(rush: Rush, capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs a command of the program in the network of `rush`, in a thread of this process."""
    assert rush.config.url is not None
    for name in ("REDIS_URL", "RUSH_DATA_DIR", "RUSH_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RUSH_URL", rush.config.url)
    monkeypatch.setenv("RUSH_NETWORK", rush.network_id)

    def call(words: tuple[str, ...]) -> int:
        try:
            return main(words)
        except SystemExit as end:
            return int(end.code or 0)

    async def run_command(*words: str) -> Output:
        capsysbinary.readouterr()
        code = await asyncio.to_thread(call, words)
        written = capsysbinary.readouterr()
        return Output(code, written.out, written.err)

    return run_command


@pytest_asyncio.fixture
async def searched(rush: Rush, rush_worker: RushWorker) -> Rush:
    """A manager whose network has two queued, one running, three finished and three failed tasks."""
    await rush.push_tasks([{"x": 0.5, "tags": ["a", None]}] * 3)
    await rush_worker.pop_task()
    ys = [{"y": 4.0}, {"y": float("nan")}, {"y": 1.0, "note": {"by": "hand", "raw": b"\0"}}]
    await rush.push_finished_tasks([{"x": float(x)} for x in range(3)], ys)
    trace = "Traceback (most recent call last):\n  File ...\nValueError: no \x1b[2J"
    why = Failure("error", "ValueError", "no \x1b[2J", trace)
    await rush.push_failed_tasks([{"x": 1.0}, {"x": 2.0}], why)
    await rush.push_failed_tasks([{"x": 3.0}], Failure("removed", None, "Removed from queue"))
    return rush
