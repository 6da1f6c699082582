"""Waits for the ends of workers: what they log after a while, and which ends are an error."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from rush_async import Failure, Processes, Rush, RushWorker, WorkerExit, WorkerLoopError
from rush_async.manager.worker_failures import WorkerFailures
from rush_async.testing import wait_until
from rush_async.worker.loop import WorkerLoop
from tests.launch.loops_of_tests import serve
from tests.manager.test_worker_group import ByHand

XS = {"x": 1.0}
KILLED = Failure("lost", None, "the process was ended by SIGKILL")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rush_async.manager.ends._REMIND_AFTER", 0.05)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "rush_async.manager.ends" and record.levelno == logging.WARNING
    ]


@pytest.mark.usefixtures("impatient")
async def test_a_join_says_once_that_its_workers_wait_on_an_empty_queue(rush: Rush, caplog: pytest.LogCaptureFixture) -> None:
    async with RushWorker(rush.network_id, rush.config) as other:
        (held,) = await other.push_running_tasks([XS])
        (worker_id,) = await rush.start_workers(serve)
        joining = asyncio.create_task(rush.join_workers())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(joining), 0.2)
        assert said(caplog) == []  # a task is running
        await other.finish_tasks(held, [{"y": 1.0}])
        await wait_until(lambda: said(caplog))
        (text,) = said(caplog)
        assert f"join_workers() waits for workers of network {rush.network_id!r}, which has no queued and no" in text
        assert worker_id in text
        assert "await rush.stop_workers()" in text
        await rush.stop_workers(worker_id)
        assert [end.state for end in await joining] == ["terminated"]
    assert len(said(caplog)) == 1


@pytest.mark.usefixtures("impatient")
async def test_a_stop_names_the_workers_whose_loops_do_not_look_at_terminated(
    rush: Rush, caplog: pytest.LogCaptureFixture
) -> None:
    may_end = asyncio.Event()

    async def ignore(rush: RushWorker) -> None:
        await may_end.wait()

    ignoring, _ = [*await rush.start_workers(ignore), *await rush.start_workers(serve)]
    await rush.wait_for_workers(2)
    stopping = asyncio.create_task(rush.stop_workers())
    await wait_until(lambda: said(caplog))
    may_end.set()
    await stopping
    (text,) = said(caplog)
    assert f"stop_workers() waits for workers of network {rush.network_id!r} that have been asked to stop: {ignoring}." in text
    assert "rush.terminated" in text


@pytest.mark.usefixtures("impatient")
async def test_a_stop_that_waits_for_a_worker_without_a_loop_says_that_it_ends_once_closed(
    rush: Rush, caplog: pytest.LogCaptureFixture
) -> None:
    async with RushWorker(rush.network_id, rush.config) as worker:
        stopping = asyncio.create_task(rush.stop_workers())
        await wait_until(lambda: said(caplog))
    await stopping
    (text,) = said(caplog)
    assert f"asked to stop: {worker.worker_id}." in text
    assert "a worker opened by `RushWorker(...)` once it is closed" in text


async def raise_at_once(rush: RushWorker) -> None:
    raise LookupError


async def search(rush: RushWorker, budget: int) -> None:
    while not rush.terminated:
        async with rush.task(XS, budget=budget) as task:
            if task is None:
                return
            task.ys = {"y": 1.0}


async def test_workers_whose_budget_was_spent_before_they_were_started_are_a_warning(
    rush: Rush, caplog: pytest.LogCaptureFixture
) -> None:
    await rush.start_workers(raise_at_once)
    with pytest.raises(WorkerLoopError):
        await rush.join_workers()
    for on in (None, Processes(), None):  # the first and the last have work
        await rush.start_workers(search, 2, on=on, budget=3 if rush.n_finished_tasks < 3 or on else 4)
        await rush.join_workers()
        await rush.join_workers()
    await rush.start_workers(search, budget=4)
    await rush.stop("enough")
    await rush.join_workers()
    await rush.resume()
    stopped = await rush.start_workers(serve)
    await rush.stop_workers(stopped)
    await rush.join_workers(stopped)
    (text,) = said(caplog)
    assert f"workers of network {rush.network_id!r} have begun no task. It had 3 finished tasks already" in text
    assert "await rush.reset()" in text


def test_failed_and_dead_workers_are_named_with_each_cause_once() -> None:
    failure = Failure("error", "ValueError", "bad", "the traceback")
    exits = [
        *[WorkerExit(name, "failed", failure) for name in ("a", "b")],
        *[WorkerExit(name, "lost", KILLED) for name in ("c", "d", "e")],
        WorkerExit("f", "lost"),
        WorkerExit("g", "killed", Failure("killed")),
        WorkerExit("h", "terminated"),
    ]
    failures = WorkerFailures()
    failures.requeued.add("e")
    with pytest.raises(WorkerLoopError) as caught:
        failures.check(exits)
    assert str(caught.value).splitlines() == [
        "the loops of 2 of 8 workers failed:",
        "a, b:",
        "the traceback",
        "3 of 8 workers died:",
        "c, d:",
        "the process was ended by SIGKILL",
        "f:",
        "no cause is known: its process died, or its lease expired",
    ]
    failures.check([*exits[4:5], *exits[6:]])


async def nothing(worker: RushWorker) -> None:
    """Holds no task."""


async def one(worker: RushWorker) -> None:
    await worker.push_running_tasks([XS])


async def one_with_retries(worker: RushWorker) -> None:
    await worker.push_tasks([XS], retries=1)
    await worker.pop_task(0)


async def both(worker: RushWorker) -> None:
    await one(worker)
    await one_with_retries(worker)


HOLDS: list[tuple[Callable[[RushWorker], Awaitable[Any]], bool]] = [
    (nothing, True),
    (one, True),
    (one_with_retries, False),
    (both, True),
]


@pytest.mark.parametrize(("hold", "is_error"), HOLDS)
async def test_a_dead_worker_is_an_error_unless_all_its_tasks_are_queued_again(
    rush: Rush, hold: Callable[[RushWorker], Awaitable[Any]], is_error: bool
) -> None:
    launcher = ByHand()
    group = rush._worker_group  # pyright: ignore[reportPrivateUsage]
    (worker_id,) = await group.start(launcher, WorkerLoop(serve, {}), 1, rush.config, None, None)
    async with RushWorker(rush.network_id, rush.config, worker_id=worker_id) as worker:
        await hold(worker)
        launcher.handles[0].end(WorkerExit(worker_id, "lost", KILLED))
        if is_error:
            with pytest.raises(WorkerLoopError, match=r"1 of 1 workers died:\n.*:\nthe process was ended by SIGKILL"):
                await rush.join_workers()
        (end,) = await rush.join_workers(check=not is_error)
    assert end == WorkerExit(worker_id, "lost", KILLED)
    failed = await rush.fetch_failed_tasks()
    if failed.height:
        assert failed["condition"].struct.field("message").to_list() == [f"Worker has crashed or was killed: {KILLED.message}"]


async def test_a_worker_that_was_killed_on_purpose_is_none(rush: Rush) -> None:
    await rush.start_workers(serve)
    await rush.wait_for_workers(1)
    await rush.stop_workers(mode="kill")
    assert [end.state for end in await rush.join_workers()] == ["killed"]
