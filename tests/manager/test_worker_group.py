"""The group of workers that a manager started: the one place that reports their ends to the network."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import ClassVar

import pytest
import pytest_asyncio

from rush_async import Coroutines, Failure, Rush, RushConfig, RushWorker, WorkerExit
from rush_async.launch.handle import Launch, WorkerHandle
from rush_async.manager.worker_group import WorkerGroup
from rush_async.testing import wait_until
from rush_async.worker.loop import WorkerLoop
from tests.launch.loops_of_tests import do_some, hold, serve
from tests.proxy import Proxy


class Handle(WorkerHandle):
    """A handle whose worker the test ends."""

    def __init__(self, worker_id: str) -> None:
        super().__init__(worker_id)
        self.calls: list[str] = []

    def stop(self) -> None:
        self.calls.append("stop")

    def cancel(self) -> None:
        self.calls.append("cancel")

    async def kill(self) -> None:
        self.calls.append("kill")
        self.end(WorkerExit(self.worker_id, "terminated"))

    async def clear(self) -> None:
        self.calls.append("clear")


class ByHand:
    """A launcher that starts no worker: the test ends each one."""

    is_local: ClassVar[bool] = True

    def __init__(self) -> None:
        self.handles: list[Handle] = []

    async def launch(self, launch: Launch) -> list[WorkerHandle]:
        self.handles = [Handle(worker_id) for worker_id in launch.worker_ids]
        return list(self.handles)


class Refusing(ByHand):
    """Cannot start workers."""

    async def launch(self, launch: Launch) -> list[WorkerHandle]:
        raise OSError("no such machine")


class Remote(ByHand):
    """Starts workers that outlive their manager."""

    is_local = False


@pytest_asyncio.fixture
async def group(rush: Rush) -> AsyncIterator[WorkerGroup]:
    yield WorkerGroup(rush._net)  # pyright: ignore[reportPrivateUsage]


async def start(group: WorkerGroup, rush: Rush, launcher: ByHand, n: int = 2) -> list[Handle]:
    await group.start(launcher, WorkerLoop(serve, {}), n, rush.config, None, None)
    return launcher.handles


async def states(rush: Rush) -> dict[str, str]:
    info = await rush.worker_info()
    return dict(zip(info["worker_id"], info["state"], strict=True))


async def test_workers_are_registered_as_starting_before_they_are_launched(rush: Rush, group: WorkerGroup) -> None:
    a, b = await start(group, rush, ByHand())
    assert await states(rush) == {a.worker_id: "starting", b.worker_id: "starting"}
    assert group.worker_ids == group.living == group.to_dismiss == list(group.unseen) == [a.worker_id, b.worker_id]


async def test_a_launch_that_fails_leaves_failed_workers(rush: Rush, group: WorkerGroup) -> None:
    with pytest.raises(OSError, match="no such machine"):
        await start(group, rush, Refusing())
    assert list((await states(rush)).values()) == ["failed", "failed"]
    assert group.worker_ids == []


async def test_an_end_is_known_to_the_network_before_it_is_known_to_the_group(rush: Rush, group: WorkerGroup) -> None:
    a, b = await start(group, rush, ByHand())
    a.end(WorkerExit(a.worker_id, "failed", Failure("error", "ValueError", "the loop broke")))
    assert group.living == [a.worker_id, b.worker_id]
    end = await group.ends[a.worker_id]
    assert (end.state, await states(rush)) == ("failed", {a.worker_id: "failed", b.worker_id: "starting"})
    assert group.living == group.to_dismiss == [b.worker_id]


async def test_ends_are_known_at_once_while_the_server_is_away_and_reported_when_it_is_back(proxy: Proxy) -> None:
    async with Rush("away", RushConfig(proxy.url)) as rush:
        group = WorkerGroup(rush._net)  # pyright: ignore[reportPrivateUsage]
        (a,) = await start(group, rush, ByHand(), 1)
        proxy.refuse()
        proxy.cut_all()
        await wait_until(lambda: proxy.n_refused)
        a.end(WorkerExit(a.worker_id, "failed", Failure("error", "ValueError", "the loop broke")))
        async with asyncio.timeout(1):
            assert (await group.ends[a.worker_id]).state == "failed"
        proxy.refuse(False)

        async def is_reported() -> bool:
            return await states(rush) == {a.worker_id: "failed"}

        await wait_until(is_reported)
        await rush.reset()


async def test_a_failed_loop_is_logged_with_its_traceback(
    rush: Rush, group: WorkerGroup, caplog: pytest.LogCaptureFixture
) -> None:
    (a,) = await start(group, rush, ByHand(), 1)
    a.end(WorkerExit(a.worker_id, "failed", Failure("error", "ValueError", "the loop broke", "the traceback")))
    await group.ends[a.worker_id]
    assert f"the loop of worker {a.worker_id} failed: the traceback" in caplog.text


async def test_workers_lost_for_one_reason_are_logged_in_one_message(
    rush: Rush, group: WorkerGroup, caplog: pytest.LogCaptureFixture
) -> None:
    a, b, c = await start(group, rush, ByHand(), 3)
    for handle in (a, b):
        handle.end(WorkerExit(handle.worker_id, "lost", Failure("lost", None, "the process was ended by SIGKILL")))
    c.end(WorkerExit(c.worker_id, "lost"))
    await asyncio.wait(group.ends.values())
    assert set((await states(rush)).values()) == {"lost"}
    messages = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(messages) == 2
    assert messages[0].startswith(f"2 workers ({a.worker_id}, {b.worker_id}) are lost")
    assert messages[0].endswith(": the process was ended by SIGKILL")
    assert messages[1].startswith(f"worker {c.worker_id} is lost")


async def test_the_tasks_of_a_worker_that_ended_without_deregistering_fail(rush: Rush, group: WorkerGroup) -> None:
    (a,) = await start(group, rush, ByHand(), 1)
    async with RushWorker(rush.network_id, rush.config, worker_id=a.worker_id) as worker:
        await worker.push_running_tasks([{"x": 1}])
        a.end(WorkerExit(a.worker_id, "terminated"))
        await group.ends[a.worker_id]
        assert await states(rush) == {a.worker_id: "lost"}
        assert (await rush.counts()).failed == 1


async def test_a_killed_worker_counts_as_killed_whatever_its_launcher_reports(rush: Rush, group: WorkerGroup) -> None:
    (a,) = await start(group, rush, ByHand(), 1)
    await group.kill([a.worker_id])
    assert a.calls == ["kill"]
    assert ((await group.ends[a.worker_id]).state, await states(rush)) == ("killed", {a.worker_id: "killed"})


async def test_a_worker_that_cannot_be_asked_to_stop_is_cancelled(rush: Rush, group: WorkerGroup) -> None:
    a, b = await start(group, rush, ByHand())
    group.stop([a.worker_id, b.worker_id, "of another manager"], [a.worker_id])
    assert (a.calls, b.calls) == (["stop"], ["cancel"])


async def test_workers_that_outlive_their_manager_are_left_alone(rush: Rush, group: WorkerGroup) -> None:
    (local,), (remote,) = await start(group, rush, ByHand(), 1), await start(group, rush, Remote(), 1)
    assert list(group.ends_of(group.worker_ids)) == group.to_dismiss == [local.worker_id]
    await group.dismiss()
    assert (local.calls, remote.calls) == (["kill", "clear"], [])
    await group.clear()
    assert remote.calls == ["clear"]


async def test_after_cut_off_no_end_is_reported(rush: Rush, group: WorkerGroup) -> None:
    (a,) = await start(group, rush, ByHand(), 1)
    group.cut_off()
    await group.dismiss()
    assert group.ends[a.worker_id].done()
    assert await states(rush) == {a.worker_id: "starting"}


async def test_the_network_knows_every_end_when_a_manager_has_closed(rush: Rush) -> None:
    async with Rush(rush.network_id, rush.config) as manager:
        await manager.start_workers(do_some, 1, on=Coroutines())
        await manager.start_workers(hold, 1, on=Coroutines())
        await wait_until(lambda: manager.n_running_tasks == 1)
    assert sorted((await states(rush)).values()) == ["killed", "terminated"]
