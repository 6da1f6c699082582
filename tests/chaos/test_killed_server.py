"""An embedded server with a data directory that is killed again and again: workers carry on, and a budget stays exact."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from rush_async import Processes, Rush, RushWorker
from rush_async.embedded.directories import RuntimeDirectory

pytestmark = pytest.mark.chaos

BUDGET = 700


async def spend(rush: RushWorker) -> None:
    while True:
        async with rush.task({"x": 1}, budget=BUDGET) as task:
            if task is None:
                return
            await asyncio.sleep(0.002)
            task.ys = {"y": 1}


async def test_workers_spend_a_budget_exactly_while_the_server_is_killed(directory: Path) -> None:
    n_kills = 0
    async with Rush("net", data_dir=directory) as rush:
        assert rush.config.url is not None
        runtime = RuntimeDirectory(Path(rush.config.url.removeprefix("unix://")).parent)

        async def kill() -> None:
            nonlocal n_kills
            for n_finished in range(100, BUDGET, 150):
                await rush.wait_until(lambda counts, n=n_finished: counts.finished >= n)
                os.kill(runtime.server_pid(), signal.SIGKILL)
                n_kills += 1

        await rush.start_workers(spend, 4, on=Processes(2))
        await rush.start_workers(spend, 2)
        killing = asyncio.create_task(kill())
        ends = await rush.join_workers()
        killing.cancel()
        assert {end.state for end in ends} == {"terminated"}
        assert await rush.counts() == (0, 0, BUDGET, 0)
        assert (await rush.fetch_finished_tasks())["keys"].n_unique() == BUDGET
    assert n_kills >= 4
