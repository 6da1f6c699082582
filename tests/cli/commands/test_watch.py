"""`rush-async watch`."""

from __future__ import annotations

import asyncio
import io
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from rush_async import Rush, RushWorker
from rush_async.cli.program import main
from rush_async.testing import wait_until
from tests.cli.programs import Command, Run


async def test_it_shows_lines_until_the_network_has_stopped(searched: Rush, rush_worker: RushWorker, command: Command) -> None:
    (key,) = (await searched.keys_with_state("running"))["running"]
    watching = asyncio.create_task(command("watch", "--by", "y", "--every", "0"))
    await searched.stop("enough")
    await rush_worker.finish_tasks([key], [{"y": 0.5}])
    shown = await watching
    first, last = shown.lines[0], shown.lines[-1]
    assert re.match(r"\d\d:\d\d:\d\d 2 queued, [01] running, [34] finished, 3 failed; rate ", first)
    assert "2 queued, 0 running, 4 finished, 3 failed" in last
    assert "best y 0.5; last failure removed: Removed from queue; stopped manual: enough" in last


async def test_until_done_it_ends_once_nothing_is_queued_or_running(rush: Rush, command: Command) -> None:
    await rush.push_tasks([{"x": 1}])
    watching = asyncio.create_task(command("watch", "--until-done", "--every", "0"))
    async with RushWorker(rush.network_id, rush.config) as worker:
        task = await worker.pop_task()
        assert task is not None
        await worker.fail_tasks([task.key], ["bad luck"])
    shown = await watching
    assert "0 queued, 0 running, 0 finished, 1 failed" in shown.lines[-1]
    assert "bad luck" in shown.lines[-1]


async def test_the_best_value_may_be_that_of_an_imported_task(rush: Rush, command: Command, tmp_path: Path) -> None:
    async with Rush(config=rush.config) as other:
        await other.push_finished_tasks([{"x": 1}], [{"y": 0.125}])
        await rush.import_archive(await other.export(tmp_path / "a.zip"))
        await other.reset()
    await rush.stop("enough")
    assert "best y 0.125" in (await command("watch", "--by", "y")).lines[-1]


async def test_ctrl_c_ends_it_with_130_and_events_are_shown_as_they_come(searched: Rush, run: Run) -> None:
    assert searched.config.url is not None
    words = ("watch", searched.network_id, "--every", "0", "--by", "y", "--maximize")
    program = await run(sys.executable, "-m", "rush_async", *words, RUSH_URL=searched.config.url)
    assert program.process.stdout is not None
    assert b"best y 4;" in await program.process.stdout.readline()
    await searched.push_finished_tasks([{"x": 1.0}], [{"y": 5.0}])
    assert b"4 finished, 3 failed; " in (line := await program.process.stdout.readline())
    assert b"best y 5;" in line
    program.signal(signal.SIGINT)
    code, errors = await program.ended()
    assert (code, errors) == (130, "")


async def test_on_a_terminal_it_shows_a_picture(
    searched: Rush, rush_worker: RushWorker, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal: Any = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm")
    (key,) = (await searched.keys_with_state("running"))["running"]
    watching = asyncio.create_task(asyncio.to_thread(main, ["watch", "--every", "0.01"]))
    await wait_until(lambda: key in terminal.getvalue())
    await searched.stop("enough")
    await rush_worker.finish_tasks([key], [{"y": 0.5}])
    assert await watching == 0
    assert rush_worker.worker_id in terminal.getvalue()
    assert "0 running, 4 finished" in terminal.getvalue()
