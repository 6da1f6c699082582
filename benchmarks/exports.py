"""Exports a network, reads it and imports it again, each in a process of its own: times and peak memory.

python -m benchmarks export [--tasks 1000000] [--state finished]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.reads import fill
from rush_async import Archive, Rush

__all__ = ["main"]

_FILE = "export.zip"
_STEPS = ("export", "open", "import")
_GOAL = 300  # MB, the peak of the exporting process


async def _push(rush: Rush, n: int, state: str) -> None:
    if state == "finished":
        await fill(rush, n)
        return
    push = rush.push_tasks if state == "queued" else rush.push_failed_tasks
    for first in range(0, n, 10_000):
        await push([{"x1": float(at), "x2": 0.5} for at in range(first, min(n, first + 10_000))])


async def _step(name: str, url: str, path: str) -> None:
    start = time.perf_counter()
    if name == "open":
        assert Archive.open(path).tasks(times=True).height
    else:
        network_id = "exported" if name == "export" else "imported"
        async with Rush(network_id, url, exist_ok=True) as rush:
            await (rush.export(path) if name == "export" else rush.import_archive(path))
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    goal = f", at most {_GOAL}" if name == "export" else ""
    print(f"{name:8}{time.perf_counter() - start:8.1f} s{peak / 1e6:8.0f} MB peak{goal}", flush=True)


async def _measure(n: int, state: str, folder: str) -> None:
    async with Rush("exported", data_dir=Path(folder) / "data") as rush:
        await _push(rush, n, state)
        assert rush.config.url is not None
        path = str(Path(folder, _FILE))
        for name in _STEPS:
            program = [sys.executable, "-m", "benchmarks.exports", "--step", name, rush.config.url, path]
            await asyncio.to_thread(subprocess.run, program, check=True)


def main(words: Sequence[str]) -> None:
    """Runs what the command line asks for."""
    if words[:1] == ["--step"]:
        asyncio.run(_step(*words[1:]))
        return
    parser = argparse.ArgumentParser(prog="python -m benchmarks export", description=__doc__)
    parser.add_argument("--tasks", type=int, default=1_000_000, help="how many tasks (default: 1,000,000)")
    parser.add_argument("--state", default="finished", choices=("finished", "queued", "failed"))
    options = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_measure(options.tasks, options.state, folder))
        print(f"{options.tasks:,} {options.state} tasks, {os.path.getsize(Path(folder, _FILE)) / 1e6:.0f} MB of file")


if __name__ == "__main__":
    main(sys.argv[1:])
