"""`rush-async failures`."""

from __future__ import annotations

import json

from rush_async import Rush, RushWorker
from tests.cli.programs import Command


async def test_each_reason_is_shown_once_the_most_frequent_first(searched: Rush, command: Command) -> None:
    keys = (await searched.keys_with_state("failed"))["failed"]
    lines = (await command("failures")).lines
    assert lines[0] == r"2 tasks: ValueError: no \x1b[2J"
    assert "first 0 s ago, last 0 s ago; no worker" in lines[1]
    assert all(key in lines[2] for key in keys[:2])
    assert lines[3:7] == ["    Traceback (most recent call last):", "      File ...", r"    ValueError: no \x1b[2J", ""]
    assert lines[7] == "1 task: removed: Removed from queue"
    lines = (await command("failures", "--no-traceback", "-n", "1")).lines
    assert len(lines) == 3
    first, second = json.loads((await command("failures", "--json")).out)["tasks"]
    assert (first["count"], first["type"], sorted(first["keys"])) == (2, "ValueError", sorted(keys[:2]))
    assert (second["count"], second["kind"], second["traceback"]) == (1, "removed", None)


async def fail(rush: RushWorker) -> None:
    raise RuntimeError("out of money")


async def test_without_failed_tasks_the_failures_of_loops_are_shown(rush: Rush, command: Command) -> None:
    (worker_id,) = await rush.start_workers(fail)
    await rush.join_workers(check=False)
    lines = (await command("failures")).lines
    assert lines[:3] == ["no task has failed", "", f"the loop of worker {worker_id} failed"]
    assert lines[-1] == "    RuntimeError: out of money"
