"""`rush-async workers`."""

from __future__ import annotations

import json
import socket

from rush_async import Rush, RushWorker
from tests.cli.programs import Command


async def test_workers_that_run_are_listed_with_their_oldest_task(searched: Rush, command: Command) -> None:
    head, row = (await command("workers")).lines
    assert head.split() == ["worker", "state", "host", "pid", "age", "seen", "tasks", "oldest", "task"]
    (key,) = (await searched.keys_with_state("running"))["running"]
    assert row.split()[1:3] == ["running", socket.gethostname()]
    assert row.endswith(f"1  {key}, 0 s")
    (found,) = json.loads((await command("workers", "--json")).out)
    assert [task["key"] for task in found["tasks"]] == [key]
    assert found["failure"] is None


async def fail(rush: RushWorker) -> None:
    raise RuntimeError("out of money")


async def test_workers_that_have_ended_are_listed_on_request(rush: Rush, command: Command) -> None:
    await rush.start_workers(fail)
    await rush.join_workers(check=False)
    assert len((await command("workers")).lines) == 1
    _, row = (await command("workers", "--all")).lines
    assert row.split()[1] == "failed"
    assert "RuntimeError" in row or row.endswith("out of money")
