"""`rush-async retry` and `cancel`."""

from __future__ import annotations

import json

import pytest

from rush_async import Failure, Rush, RushWorker
from tests.cli.calling import Calling, calling


@pytest.fixture
def call(rush: Rush, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Calling:
    return calling(rush, capsys, monkeypatch)


async def test_failed_tasks_are_queued_again(rush: Rush, rush_worker: RushWorker, call: Calling) -> None:
    net = rush.network_id
    failures = [ValueError("no"), MemoryError(), Failure("lost"), ValueError("no")]
    keys = await rush.push_failed_tasks([{"x": x} for x in range(4)], failures)
    assert await call("retry", "--type", "MemoryError", "--type", "lost") == (
        0,
        f"2 failed tasks with MemoryError or lost of network '{net}' are queued again\n",
        "",
    )
    assert (await rush.keys_with_state("queued"))["queued"] == keys[1:3]
    called = await call("retry", "--type", "OSError")
    assert called == (0, f"network '{net}' has no failed task with OSError: nothing to do\n", "")
    called = await call("retry", "--key", keys[0], "--key", keys[1])
    assert called == (1, f"1 failed task of network '{net}' is queued again\n", f"no failed task: {keys[1]}\n")
    await rush.stop("enough")
    called = await call("retry", "--json")
    assert json.loads(called.out) == {
        "network": net,
        "said": f"1 failed task of network '{net}' is queued again; it has stopped (manual: enough), so they wait for "
        f"`rush-async resume {net}`",
        "keys": [keys[3]],
        "missing": [],
    }
    assert await call("retry") == (0, f"network '{net}' has no failed task: nothing to do\n", "")
    assert await rush_worker.pop_task(timeout=0) is None


async def test_queued_tasks_are_cancelled(rush: Rush, rush_worker: RushWorker, call: Calling) -> None:
    net = rush.network_id
    keys = await rush.push_tasks([{"x": x} for x in range(3)])
    (running,) = await rush_worker.push_running_tasks([{"x": 9}])
    called = await call("cancel", "--key", keys[0], "--key", "none")
    assert called == (1, f"1 task of network '{net}' has failed as cancelled\n", "neither queued nor running: none\n")
    called = await call("cancel", "--all")
    assert called == (0, f"2 tasks of network '{net}' removed from the queue\n", "")
    assert await call("cancel", "--all") == (0, f"network '{net}' has no queued task: nothing to do\n", "")
    assert await rush.keys_with_state("running", "failed") == {"running": [running], "failed": keys}
    called = await call("cancel", "--key", keys[0], "--json")
    assert (called.code, json.loads(called.out)["missing"]) == (1, [keys[0]])
    assert json.loads(called.out)["said"] == f"no task of network '{net}' has changed"


async def test_which_tasks_must_be_said(call: Calling) -> None:
    assert "one of the arguments --all --key is required" in (await call("cancel")).errors
    both = await call("retry", "--key", "k", "--type", "ValueError")
    assert both.code == 2
    assert "not allowed with argument" in both.errors
