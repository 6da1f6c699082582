"""`rush-async reset` and `delete`."""

from __future__ import annotations

import json
import sys
from io import StringIO
from typing import Any

import pytest

from rush_async import Rush, RushWorker
from tests.cli.calling import Calling, calling


class Terminal(StringIO):
    """A terminal at which a user answers."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def call(rush: Rush, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Calling:
    return calling(rush, capsys, monkeypatch)


async def fill(rush: Rush) -> None:
    await rush.push_tasks([{"x": 1}])
    await rush.push_finished_tasks([{"x": 2}], [{"y": 1}])
    await rush.set_attrs({"note": 1})


async def test_reset_asks_first_and_empties_the_network(rush: Rush, call: Calling, monkeypatch: pytest.MonkeyPatch) -> None:
    net, url = rush.network_id, rush.config.url
    await fill(rush)
    async with RushWorker(net, rush.config):
        question = f"reset network '{net}' on {url}: delete 2 tasks (1 finished), and stop 1 running worker?"
        called = await call("reset")  # pytest has no terminal
        assert (called.code, called.out) == (2, "")
        assert f"{question} It is not asked, as stdin is no terminal: add --yes" in called.errors
        monkeypatch.setattr(sys, "stdin", Terminal("n\n"))
        called = await call("reset", "--keep-workers")
        assert (called.code, called.out) == (1, "")
        assert "delete 2 tasks (1 finished)? [y/N]" in called.errors
        assert (await rush.counts()).total == 2
        called = await call("reset", "--keep-workers", "--yes")
        assert called == (0, f"network '{net}' is empty: 2 tasks (1 finished) deleted\n", "")
        assert (await rush.worker_info())["state"].to_list() == ["running"]
        assert await rush.attrs() == {}
        await fill(rush)
        monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
        called = await call("reset")
        assert (called.code, called.out) == (0, f"network '{net}' is empty: 2 tasks (1 finished) deleted, 1 worker stopped\n")
        assert (await rush.worker_info()).is_empty()


async def test_delete_leaves_nothing_on_the_server(rush: Rush, call: Calling, raw: Any) -> None:
    net = "a*b[c]^?-\\"
    async with Rush(net, rush.config) as other, Rush("acb", rush.config) as neighbour:
        await fill(other)
        await other.ranking("best").add("k", 1.0)
        raw.set(f"rush:{{{net}}}:strange", "of another program")
        await neighbour.push_tasks([{"x": 1}])
        assert (await call("delete", net=net)).code == 2
        called = await call("delete", "--yes", "--json", net=net)
        assert (called.code, called.errors) == (0, "")
        said = json.loads(called.out)
        assert said["said"] == (
            f"network {net!r} is gone: 2 tasks (1 finished) deleted, 0 workers stopped, 1 key of other programs deleted"
        )
        assert (said["finished"], said["queued"], said["other_keys"]) == (1, 1, 1)
        assert {key.split(b":")[1] for key in raw.keys("*")} == {b"{acb}"}
        called = await call("delete", net=net)
        assert called.code == 78
        assert "does not exist" in called.errors
        await neighbour.reset()
