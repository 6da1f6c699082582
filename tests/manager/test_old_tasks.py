"""Tasks that a network held when its manager was opened: said once, before new ones join them."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from rush_async import NetworkStateError, Rush, RushClient, RushConfig, RushWorker
from rush_async.store.keys import NetworkKeys
from rush_async.store.leases import Lease
from rush_async.store.workers import WorkerStore
from rush_async.testing import wait_until
from tests.launch.loops_of_tests import do_some

XS = {"x1": 1.0}


@pytest_asyncio.fixture
async def old(rush: Rush) -> Rush:
    """The manager of a network that holds three tasks."""
    await rush.push_finished_tasks([XS] * 2, [{"y": 1.0}] * 2)
    await rush.push_failed_tasks([XS])
    return rush


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage() for record in caplog.records if record.levelno == logging.WARNING and "held tasks" in record.msg
    ]


async def start(rush: Rush) -> None:
    await rush.start_workers(do_some, 2)
    await rush.join_workers()


JOINS: dict[str, Callable[[Rush], Awaitable[Any]]] = {
    "start_workers": start,
    "push_tasks": lambda rush: rush.push_tasks([XS]),
    "push_finished_tasks": lambda rush: rush.push_finished_tasks([XS], [{"y": 2.0}], unique=True),
    "push_failed_tasks": lambda rush: rush.push_failed_tasks([XS]),
}


@pytest.mark.parametrize("name", JOINS)
async def test_new_tasks_that_join_old_ones_are_a_warning_once(old: Rush, caplog: pytest.LogCaptureFixture, name: str) -> None:
    async with Rush(old.network_id, old.config) as rush:
        assert said(caplog) == []
        for _ in range(2):
            await JOINS[name](rush)
    (text,) = said(caplog)
    assert repr(old.network_id) in text
    assert f"3 since {datetime.now(UTC):%Y-%m-%d}" in text
    assert "0 queued, 0 running, 2 finished, 1 failed" in text
    for remedy in ("await rush.reset()", "another network id", "exist_ok=True"):
        assert remedy in text


async def test_the_command_for_workers_is_such_a_start(old: Rush, caplog: pytest.LogCaptureFixture) -> None:
    async with Rush(old.network_id, str(old.config.url)) as rush:
        rush.worker_command(do_some)
        assert len(said(caplog)) == 1
        await rush.counts()


async def test_a_manager_shows_the_old_tasks_until_a_reset_and_says_nothing_then(
    old: Rush, caplog: pytest.LogCaptureFixture
) -> None:
    assert "Old Tasks" not in repr(old)  # it pushed them itself
    async with Rush(old.network_id, old.config) as rush:
        assert "• Old Tasks: 3 since 20" in repr(rush)
        assert "<td>Old Tasks</td><td>3 since 20" in rush._repr_html_()  # pyright: ignore[reportPrivateUsage]
        await rush.reset()
        assert "Old Tasks" not in repr(rush)
        await rush.push_tasks([XS])
    assert said(caplog) == []


async def test_there_is_no_warning_where_it_is_meant_where_nothing_is_old_or_only_read(
    old: Rush, rush_server: RushConfig, caplog: pytest.LogCaptureFixture
) -> None:
    async with Rush(old.network_id, old.config, exist_ok=True) as rush:
        await start(rush)
        await rush.push_tasks([XS])
        assert "Old Tasks" in repr(rush)
    async with Rush(old.network_id, old.config) as rush:
        await rush.fetch_tasks()
        await rush.retry_tasks()
        await rush.stop_workers()
    async with RushWorker(old.network_id, old.config) as worker:
        await worker.push_tasks([XS])
    async with Rush(config=rush_server) as rush:
        for _ in range(2):
            await start(rush)
        await rush.reset()
    assert said(caplog) == []


async def test_a_time_that_is_none_does_no_harm(rush: Rush, raw: Any, caplog: pytest.LogCaptureFixture) -> None:
    await rush.push_tasks([XS])
    raw.hset(NetworkKeys.of(rush.network_id).meta, "epoch", 2**62)
    async with Rush(rush.network_id, f"{rush.config.url}?db=0") as other:
        assert "• Old Tasks: 1 since an unknown time" in repr(other)
        await other.reset()
    assert said(caplog) == []


def named_as_dead(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "seem to be dead" in record.msg]


async def test_a_worker_of_this_machine_whose_process_is_gone_is_named_at_once(
    rush: Rush, caplog: pytest.LogCaptureFixture
) -> None:
    store, gone = rush._net.workers, await asyncio.create_subprocess_exec("true")  # pyright: ignore[reportPrivateUsage]
    await gone.wait()
    async with RushWorker(rush.network_id, rush.config) as alive:
        await alive.push_running_tasks([XS])
        for name, info in {
            "gone": {"pid": gone.pid, "hostname": socket.gethostname()},
            "far": {"pid": gone.pid, "hostname": "another machine"},
            "foreign": {"pid": "none", "hostname": socket.gethostname()},
        }.items():
            await store.register(name, Lease(name, 5.0, 20.0), info | {"heartbeat": True})
        async with Rush(rush.network_id, rush.config, exist_ok=True) as other:
            await other.push_tasks([XS])
            await other.push_tasks([XS])
            await wait_until(lambda: named_as_dead(caplog))
        for name in ("gone", "far", "foreign"):
            await store.deregister(name, "terminated")
    (text,) = named_as_dead(caplog)
    assert f"network {rush.network_id!r} has running tasks, and workers that seem to be dead" in text
    assert "was killed: gone. Until they are declared lost, within " in text


async def test_a_worker_that_turns_silent_a_little_later_is_named_too(
    rush: Rush, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[list[str]] = [[], ["silent"]]

    async def silent(_: WorkerStore) -> list[str]:
        return answers.pop(0)

    monkeypatch.setattr(WorkerStore, "silent", silent)
    config = replace(rush.config, heartbeat_period=0.05, heartbeat_expire=20)
    async with RushWorker(rush.network_id, rush.config) as holder:
        await holder.push_running_tasks([XS])
        async with Rush(rush.network_id, config, exist_ok=True) as other:
            await other.push_tasks([XS])
            await wait_until(lambda: named_as_dead(caplog))
    (text,) = named_as_dead(caplog)
    assert ": silent. Until they are declared lost, within 20 s" in text


async def test_nothing_is_asked_where_no_old_task_runs(old: Rush, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[WorkerStore] = []
    monkeypatch.setattr(WorkerStore, "silent", asked.append)
    async with Rush(old.network_id, old.config, exist_ok=True) as rush:
        await start(rush)
    assert asked == []


@pytest_asyncio.fixture
async def nothing(rush_server: RushConfig) -> AsyncIterator[str]:
    """The id of a network that does not exist."""
    async with Rush(config=rush_server) as rush:
        yield rush.network_id


@pytest.mark.parametrize("client", [Rush, RushClient])
async def test_a_network_that_must_exist_and_does_not_is_an_error(
    rush_server: RushConfig, nothing: str, rush: Rush, client: type[RushClient]
) -> None:
    with pytest.raises(NetworkStateError, match=f"network '{nothing}' does not exist on .*: nothing was ever written"):
        await client(nothing, rush_server, must_exist=True)
    await rush.push_tasks([XS])
    async with client(rush.network_id, rush_server, must_exist=True) as found:
        assert found.n_tasks == 1


async def test_a_data_directory_that_must_have_the_network_is_named_and_not_made(directory: Path) -> None:
    with pytest.raises(NetworkStateError, match=r"'net' does not exist on the embedded server in /.*/wrong: there is no such"):
        await Rush("net", data_dir=directory / "wrong", must_exist=True)
    assert not (directory / "wrong").exists()
    with pytest.raises(NetworkStateError, match=f"on the embedded server in {directory}: nothing was ever written"):
        await Rush("net", data_dir=directory, must_exist=True)


async def test_a_private_server_has_no_network_that_must_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RUSH_URL", "REDIS_URL", "RUSH_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(NetworkStateError, match=r"a private server, which is empty at first \(neither a URL nor a data_dir"):
        await Rush("net", must_exist=True)


async def test_a_network_that_must_exist_may_have_come_into_being_elsewhere(rush: Rush, elsewhere: Rush) -> None:
    async with RushClient(rush.network_id, rush.config):
        await elsewhere.push_tasks([XS])
        async with RushClient(rush.network_id, rush.config, must_exist=True) as found:
            assert found.n_tasks == 1
