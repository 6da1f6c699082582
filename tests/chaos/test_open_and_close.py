"""Clients of every kind are opened and closed many times, and event loops end with open clients: nothing is left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rush_async import RushConfig

pytestmark = pytest.mark.chaos

N_CYCLES = int(os.environ.get("RUSH_CHAOS_RUNS", "40"))
CYCLES = {"url": N_CYCLES, "private": N_CYCLES // 8, "data_dir": N_CYCLES // 8}  # the last two start a server in each

PROGRAM = """
import asyncio, gc, json, os, sys, threading, time
import psutil
from rush_async import Rush, RushClient, RushConfig, RushWorker, rsh

kind, server, n, closes, folder = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "closes", sys.argv[5]
times = {"heartbeat_period": 0.1, "heartbeat_expire": 5.0}
place = {"private": {}, "data_dir": {"data_dir": folder + "/data"}}.get(server, {"url": server})
config = RushConfig(**times, **place)
process = psutil.Process()


async def opened():
    if kind == "rsh":
        return await rsh("net", config, exist_ok=True)
    options = {"exist_ok": True} if kind == "Rush" else {}
    return await {"Rush": Rush, "RushWorker": RushWorker, "RushClient": RushClient}[kind]("net", config, **options)


async def use(client):
    await client.counts()
    if kind == "RushWorker":
        await client.finish_tasks(await client.push_running_tasks([{"x": 1}]), [{"y": 1}])


async def cycle():
    client = await opened()
    await use(client)
    if closes:
        await client.aclose()
    else:
        asyncio.get_running_loop().client = client  # as a client that a cycle of references keeps


def left():
    # The heartbeat thread finds with its next beat that an event loop has ended.
    deadline, same, n_same = time.monotonic() + 10, before, 0
    while True:
        gc.collect()
        found = {
            "descriptors": process.num_fds(),
            "threads": sum(thread.name.startswith("rush_async") for thread in threading.enumerate()),
            "processes": len(process.children(recursive=True)),
            "files": len(os.listdir(folder)),
        }
        same, n_same = found, n_same + 1 if found == same else 0
        is_settled = n_same >= 20 if before is None else found == before
        if found["threads"] == 0 and is_settled or time.monotonic() > deadline:
            return found
        time.sleep(0.02)


before = None
if closes:
    async def main():
        global before
        for at in range(5 + n):
            if at == 5:
                before, tasks = left(), len(asyncio.all_tasks())
            await cycle()
        return before, left(), len(asyncio.all_tasks()) - tasks
    first, last, tasks = asyncio.run(main())
else:
    for at in range(5 + n):
        if at == 5:
            first = before = left()
        asyncio.run(cycle())
    last, tasks = left(), 0
print(json.dumps([first, last, tasks]))
"""


@pytest.mark.parametrize("end", ["closes", "leaves open"])
@pytest.mark.parametrize("server", ["url", "private", "data_dir"])
@pytest.mark.parametrize("kind", ["Rush", "RushWorker", "RushClient", "rsh"])
def test_cycles_leave_nothing_behind(
    kind: str, server: str, end: str, rush_server: RushConfig, directory: Path, raw: Any
) -> None:
    assert rush_server.url is not None
    folder = directory / "tmp"
    folder.mkdir()
    words = [kind, rush_server.url if server == "url" else server, str(CYCLES[server]), end, str(folder)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RUSH_", "REDIS_", "XDG_RUNTIME"))}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, *words],
        env=environment | {"TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    first, last, n_tasks = json.loads(done.stdout)
    assert last == first
    assert n_tasks == 0
    assert [path.name for path in folder.iterdir() if path.name != "data"] == []
    keys = {key.partition(b"}:")[2] for key in raw.keys("*")}
    raw.flushall()
    if (kind, server) != ("RushWorker", "url"):
        assert keys == set()
    elif end == "closes":
        assert keys == {b"meta", b"workers", b"finished"}  # what it did stays
