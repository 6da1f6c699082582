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


class Restarting(ByHand):
    """Starts each worker again twice. `handles` are those of the last launch."""

    restart = 2


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


# starting again


def failed(handle: Handle) -> WorkerExit:
    return WorkerExit(handle.worker_id, "failed", Failure("error", "ValueError", "the loop broke"))


async def test_workers_that_fail_or_die_are_started_again_as_often_as_was_asked(
    rush: Rush, group: WorkerGroup, caplog: pytest.LogCaptureFixture
) -> None:
    launcher = Restarting()
    a, b, c = await start(group, rush, launcher, 3)
    a.end(failed(a))
    b.end(WorkerExit(b.worker_id, "lost", Failure("lost", None, "the process was ended by SIGKILL")))
    c.end(WorkerExit(c.worker_id, "terminated"))
    await asyncio.wait([group.ends[handle.worker_id] for handle in (a, b, c)])
    again = launcher.handles
    assert [group.latest(handle.worker_id) for handle in (a, b, c)] == [*(each.worker_id for each in again), c.worker_id]
    assert group.worker_ids == [c.worker_id, *(each.worker_id for each in again)]
    assert group.living == group.to_dismiss == [each.worker_id for each in again]
    assert set(group.unseen) == set(group.worker_ids)
    assert f"worker {a.worker_id} is started again as {again[0].worker_id} (restart 1 of 2)" in caplog.text
    again[0].end(failed(again[0]))
    await group.ends[again[0].worker_id]
    (last,) = launcher.handles
    assert (await states(rush))[last.worker_id] == "starting"
    last.end(failed(last))
    end = await group.ends[last.worker_id]
    assert launcher.handles == [last]
    assert group.ends_of([a.worker_id])[a.worker_id].result() == end
    assert group.is_replaced(a.worker_id)
    assert not group.is_replaced(last.worker_id)


async def test_a_worker_that_was_asked_to_end_is_not_started_again(rush: Rush, group: WorkerGroup) -> None:
    launcher = Restarting()
    a, b, c, d = handles = await start(group, rush, launcher, 4)
    group.stop([a.worker_id], [a.worker_id])
    await group.kill([b.worker_id])
    a.end(failed(a))
    await group.ends[a.worker_id]
    await rush.stop("enough")
    c.end(failed(c))
    await group.ends[c.worker_id]
    await rush.resume()
    await group.dismiss()
    assert (await group.ends[d.worker_id]).worker_id == d.worker_id
    assert launcher.handles == handles
    assert group.worker_ids == [handle.worker_id for handle in handles]


async def test_a_worker_that_is_stopped_while_it_is_started_again_stops(rush: Rush, group: WorkerGroup) -> None:
    class Slow(Restarting):
        async def launch(self, launch: Launch) -> list[WorkerHandle]:
            if self.handles:
                group.stop([self.handles[0].worker_id], [])
            return await super().launch(launch)

    launcher = Slow()
    (a,) = await start(group, rush, launcher, 1)
    a.end(failed(a))
    await group.ends[a.worker_id]
    assert launcher.handles[0].worker_id == group.latest(a.worker_id) != a.worker_id
    assert launcher.handles[0].calls == ["stop"]


async def test_a_worker_that_cannot_be_started_again_has_ended(
    rush: Rush, group: WorkerGroup, caplog: pytest.LogCaptureFixture
) -> None:
    class Once(Restarting):
        async def launch(self, launch: Launch) -> list[WorkerHandle]:
            if self.handles:
                raise OSError("no such machine")
            return await super().launch(launch)

    (a,) = await start(group, rush, Once(), 1)
    a.end(failed(a))
    assert (await group.ends[a.worker_id]).state == "failed"
    assert group.worker_ids == [a.worker_id]
    assert f"workers cannot be started again: {a.worker_id}: no such machine" in caplog.text
