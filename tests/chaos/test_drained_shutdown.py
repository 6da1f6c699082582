"""SIGTERM to every worker process and to the manager in the middle of a run: started again, the run has exactly its tasks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from rush_async import Rush
from rush_async.testing import wait_until

pytestmark = pytest.mark.chaos

N = 400

LOOPS = """
import asyncio, os

async def serve(rush):
    async for task in rush.tasks():
        async with task:
            await asyncio.sleep(0.001 if os.path.exists("may-end") else 0.3)
            task.ys = {"y": task.xs["x"]}
"""

MANAGER = """
import sys
from loops import serve
from rush_async import Processes, run

run(serve, 4, on=Processes(2), network_id="net", data_dir=sys.argv[1], finished=int(sys.argv[2]))
"""


class Run:
    """A manager with two worker processes, and two commands with two workers each, on one data directory."""

    def __init__(self, directory: Path) -> None:
        data = str(directory / "data")
        command = [sys.executable, "-m", "rush_async", "worker", "net", "loops:serve", "--data-dir", data, "-n", "2"]
        programs = [[sys.executable, "-c", MANAGER, data, str(N)], command, command]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(directory), *sys.path])}
        self.processes = [subprocess.Popen(words, cwd=directory, env=environment) for words in programs]

    def terminate(self) -> None:
        """Sends SIGTERM to all processes, as systemd and a shutdown do; the server and its watchdog are none of the run."""
        children = [child for each in self.processes for child in psutil.Process(each.pid).children(recursive=True)]
        workers = [child for child in children if "rush_async.launch.child" in " ".join(child.cmdline())]
        assert len(workers) == 2
        for process in (*workers, *self.processes):
            process.send_signal(signal.SIGTERM)

    def codes(self) -> list[int]:
        return [process.wait(30) for process in self.processes]

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def runs(directory: Path) -> Iterator[list[Run]]:
    (directory / "loops.py").write_text(LOOPS)
    runs: list[Run] = []
    yield runs
    for run in runs:
        run.close()


async def test_a_run_that_was_shut_down_twice_ends_with_exactly_its_tasks(directory: Path, runs: list[Run]) -> None:
    n_before = 0
    async with Rush("net", data_dir=directory / "data") as rush:
        await rush.push_tasks([{"x": x} for x in range(N)])
    for _ in range(2):
        runs.append(Run(directory))
        async with Rush("net", data_dir=directory / "data", exist_ok=True) as rush:
            await rush.wait_until(lambda counts, n=n_before: counts.finished > n, timeout=30)
            await wait_until(lambda: is_served_by(rush, 8), timeout=30)
            runs[-1].terminate()
            assert runs[-1].codes() == [-signal.SIGTERM, 0, 0]
            counts = await rush.counts()
            assert (counts.running, counts.failed, counts.queued + counts.finished) == (0, 0, N)
            assert n_before < counts.finished < N
            n_before = counts.finished
    (directory / "may-end").touch()
    runs.append(Run(directory))
    assert runs[-1].codes() == [0, 0, 0]  # the network has stopped by its rule
    async with Rush("net", data_dir=directory / "data", exist_ok=True) as rush:
        assert await rush.counts() == (0, 0, N, 0)
        finished = await rush.fetch_finished_tasks()
        assert sorted(finished["x"]) == list(range(N))
        assert finished["keys"].n_unique() == N
        assert set((await rush.worker_info())["state"]) == {"terminated"}


async def is_served_by(rush: Rush, n: int) -> bool:
    return (await rush.worker_info())["state"].to_list().count("running") == n
