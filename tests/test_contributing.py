"""The transition that CONTRIBUTING.md shows works as it is written there."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import pytest_asyncio

from rush_async import Counts, Rush, RushWorker, WorkerLostError
from rush_async.model import Failure
from rush_async.store import scripts, tasks
from rush_async.store.scripts import Script
from rush_async.store.tasks import TaskStore
from rush_async.worker import membership
from rush_async.worker.membership import Membership
from rush_async.worker.worker import membership_of

PAGE = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


def defined(module: ModuleType, start: str) -> dict[str, Any]:
    """What the block of the page that begins so defines in a module."""
    (block,) = [block for block in blocks("python") if block.startswith(start)]
    names: dict[str, Any] = dict(vars(module))
    exec(compile(f"from __future__ import annotations\n{block}", "CONTRIBUTING.md", "exec"), names)
    return names


@pytest_asyncio.fixture
async def worker(rush: Rush, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[RushWorker]:
    """A worker of a library that has the transition of the page."""
    (script,) = blocks("lua")
    (tmp_path / "requeue.lua").write_text(script, "utf-8")
    (tmp_path / "lib").symlink_to(str(scripts._LUA / "lib"))  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(scripts, "_LUA", tmp_path)
    monkeypatch.setattr(Script, "all", [*Script.all])
    monkeypatch.setattr(tasks, "REQUEUE", defined(tasks, "REQUEUE = ")["REQUEUE"], raising=False)
    monkeypatch.setattr(TaskStore, "requeue", defined(tasks, "_SEARCHED = ")["requeue"], raising=False)
    for name in ("requeue_tasks", "_let_go"):
        monkeypatch.setattr(Membership, name, defined(membership, "async def requeue_tasks")[name], raising=False)
    # With another configuration it has a view of the network of its own, which knows the script.
    async with RushWorker(rush.network_id, replace(rush.config, retry_deadline=29.0)) as worker:
        yield worker


async def test_the_transition_of_the_page_moves_tasks_to_the_end_of_the_queue(rush: Rush, worker: RushWorker) -> None:
    member: Any = membership_of(worker)
    keys = await rush.push_tasks([{"x": x} for x in range(5)])
    popped = [await worker.pop_task(), await worker.pop_task(key=keys[2]), await worker.pop_task()]
    assert [task and task.key for task in popped] == [keys[0], keys[2], keys[1]]
    assert await member.requeue_tasks([keys[2], keys[0], "unknown", keys[4], keys[2]]) == [keys[2], keys[0]]
    assert member.held_keys() == [keys[1]]
    assert (await rush.keys_with_state("queued"))["queued"] == [keys[3], keys[4], keys[2], keys[0]]
    assert await rush.counts() == Counts(queued=4, running=1)
    again = [await worker.pop_task(key=keys[0]), *[await worker.pop_task() for _ in range(3)]]
    assert [task and (task.key, task.attempt) for task in again] == [(keys[0], 2), (keys[3], 1), (keys[4], 1), (keys[2], 2)]
    member.enter_block(keys[1])
    with pytest.raises(ValueError, match="leave the task's block first"):
        await member.requeue_tasks(keys)
    member.leave_block(keys[1])
    await rush._net.workers.lose([worker.worker_id], "lost", Failure())  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(WorkerLostError):
        await member.requeue_tasks(keys)
