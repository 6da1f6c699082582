"""`rush-async stop`, `resume` and `kill`."""

from __future__ import annotations

import json

import pytest

from rush_async import Rush, RushWorker
from tests.cli.calling import Calling, calling


@pytest.fixture
def call(rush: Rush, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Calling:
    return calling(rush, capsys, monkeypatch)


async def test_a_network_stops_and_continues(rush: Rush, rush_worker: RushWorker, call: Calling) -> None:
    net = rush.network_id
    await rush_worker.push_running_tasks([{"x": 1}])
    await rush.push_tasks([{"x": 2}, {"x": 3}])
    assert await call("resume") == (0, f"network '{net}' has not stopped: nothing was changed\n", "")
    assert await call("stop", "--reason", "enough\x1b") == (
        0,
        f"network '{net}' has stopped (manual: enough\\x1b): 1 running task may end, 2 queued ones wait for "
        f"`rush-async resume {net}`\n",
        "",
    )
    await rush.wait_until_stopped(timeout=5)
    again = json.loads((await call("stop", "--json")).out)
    assert again.pop("stopped_at").startswith("20")
    assert again == {
        "network": net,
        "said": f"network '{net}' had stopped already (manual: enough\\x1b): nothing to do",
        "changed": False,
        "rule": "manual",
        "detail": "enough\x1b",
        "queued": 2,
        "running": 1,
        "finished": 0,
        "failed": 0,
    }
    called = await call("resume", "--finished", "9", "--target", "y=0.4", "--patience", "y=5", "--maximize")
    assert called == (
        0,
        f"network '{net}' continues, with finished=9, target={{'y': 0.4}}, patience=('y', 5), maximize=True; 1 worker running "
        "(it had stopped: manual: enough\\x1b)\n",
        "",
    )
    assert await rush.stop_rules() == {"finished": 9, "target": {"y": 0.4}, "patience": ("y", 5), "maximize": True}
    await rush.stop()
    called = await call("resume", "--failed", "1", "--json")
    assert json.loads(called.out)["rules"] == {"failed": 1}


async def test_a_rule_that_is_true_already_is_refused(rush: Rush, call: Calling) -> None:
    await rush.push_finished_tasks([{"x": 1}], [{"y": 1}])
    await rush.stop()
    called = await call("resume", "--finished", "1")
    assert called.code == 1
    assert "the rule 'finished' is true already" in called.errors
    assert rush.stop_reason is not None


@pytest.mark.parametrize(
    ("command", "words", "complaint"),
    [
        ("stop", ("--reason", ""), "--reason takes 1 to 200 characters"),
        ("resume", ("--target", "y"), "'y' is not of the form y=0.4"),
        ("resume", ("--patience", "9"), "'9' is not of the form y=100"),
        ("resume", ("--maximize",), "--maximize is for --target or --patience"),
        ("kill", (), "name the workers to end, or add --all: one of the two"),
        ("kill", ("w", "--all"), "one of the two"),
    ],
)
async def test_wrong_usage_ends_with_2(command: str, words: tuple[str, ...], complaint: str, call: Calling) -> None:
    called = await call(command, *words)
    assert called.code == 2
    assert complaint in called.errors


async def test_workers_are_killed_by_name_and_all(rush: Rush, call: Calling, monkeypatch: pytest.MonkeyPatch) -> None:
    net = rush.network_id
    workers = [await RushWorker(net, rush.config, worker_id=name) for name in ("one", "two", "three")]
    await workers[0].push_running_tasks([{"x": 1}, {"x": 2}])
    assert await call("kill", "one", "none") == (
        1,
        f"1 worker of network '{net}' killed: 2 tasks failed, 0 queued again\n",
        "not alive: none; alive are: one, two, three\n",
    )
    assert (await rush.worker_info())["state"].to_list() == ["killed", "running", "running"]
    monkeypatch.setenv("RUSH_NETWORK", net)  # then all words are workers
    called = await call("kill", "--json", net="two")
    assert json.loads(called.out)["killed"] == ["two"]
    called = await call("kill", "--all")
    assert called.out == f"1 worker of network '{net}' killed: 0 tasks failed, 0 queued again\n"
    assert await call("kill", "--all") == (0, f"no worker of network '{net}' is alive: nothing to do\n", "")
    assert (await call("kill", "one")).code == 1
    for worker in workers:
        await worker.aclose()
