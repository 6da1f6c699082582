"""`live` and `Runner`: how workers run, and how their ends are reported."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from rush_async import (
    NetworkStateError,
    Rush,
    RushWorker,
    WorkerExit,
    WorkerLostError,
)
from rush_async.store.workers import KILLED
from rush_async.testing import wait_until
from rush_async.worker.loop import bind_loop
from rush_async.worker.worker import Runner, live, membership_of


async def start_worker(
    rush: Rush, loop: Callable[..., Awaitable[Any]], **arguments: Any
) -> tuple[RushWorker, asyncio.Task[WorkerExit]]:
    worker = RushWorker(rush.network_id, rush.config)
    life = asyncio.create_task(live(worker, bind_loop(loop, None, arguments)))
    return worker, life


async def do_one(rush: RushWorker) -> None:
    async with rush.task({"x": 1}) as task:
        task.ys = {"y": 2}


async def state_of(rush: Rush, worker: RushWorker) -> str:
    info = await rush.worker_info()
    return dict(zip(info["worker_id"], info["state"], strict=True))[worker.worker_id]


async def hold(rush: RushWorker, seen: list[str]) -> None:
    await rush.push_running_tasks([{"x": 1}])
    try:
        seen.append("holds")
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        seen.append("cancelled")
        raise
    finally:
        await asyncio.sleep(0.01)  # a clean-up that awaits
        seen.append("cleaned up")


async def test_a_kill_cancels_the_loop_once_so_that_its_clean_up_may_await(rush: Rush) -> None:
    seen: list[str] = []
    worker, life = await start_worker(rush, hold, seen=seen)
    await wait_until(lambda: seen == ["holds"])
    await rush.stop_workers(worker.worker_id, mode="kill")
    end = await life
    assert (end.state, seen) == ("killed", ["holds", "cancelled", "cleaned up"])
    assert await state_of(rush, worker) == "killed"


@pytest.mark.parametrize("is_shut_out_first", [True, False])
async def test_a_worker_that_is_cancelled_and_killed_is_cancelled_once(rush: Rush, is_shut_out_first: bool) -> None:
    """The manager cancels the coroutine, and the network's message reaches it over another connection, in either order."""
    seen: list[str] = []
    worker, life = await start_worker(rush, hold, seen=seen)
    await wait_until(lambda: seen == ["holds"])
    if is_shut_out_first:
        membership_of(worker).shut_out("killed")
        life.cancel()
    else:
        life.cancel()
        await wait_until(lambda: "cancelled" in seen)
        membership_of(worker).shut_out("killed")
    await life
    assert seen == ["holds", "cancelled", "cleaned up"]
    await rush._net.workers.lose([worker.worker_id], "killed", KILLED, KILLED)  # pyright: ignore[reportPrivateUsage]


async def test_a_cancelled_worker_cleans_up_and_returns_its_end(rush: Rush) -> None:
    seen: list[str] = []
    worker, life = await start_worker(rush, hold, seen=seen)
    await wait_until(lambda: seen == ["holds"])
    life.cancel()
    assert await life == WorkerExit(worker.worker_id, "terminated")
    assert seen == ["holds", "cancelled", "cleaned up"]
    assert await state_of(rush, worker) == "terminated"
    failed = await rush.fetch_failed_tasks()
    assert failed["condition"][0]["kind"] == "cancelled"


async def test_an_error_in_the_clean_up_of_a_loop_fails_the_worker(rush: Rush) -> None:
    async def loop(rush: RushWorker) -> None:
        try:
            await rush.pop_task(timeout=None)
        finally:
            raise RuntimeError("the file is gone")

    worker, life = await start_worker(rush, loop)
    await rush.wait_for_workers(1)
    life.cancel()
    end = await life
    assert end.state == "failed"
    assert end.failure is not None
    assert end.failure.message == "the file is gone"
    assert await state_of(rush, worker) == "failed"


async def leave_the_process(rush: RushWorker) -> None:
    await rush.push_running_tasks([{"x": 1}])
    sys.exit("nothing to do")


async def await_what_is_cancelled(rush: RushWorker) -> None:
    await rush.push_running_tasks([{"x": 1}])
    gone = asyncio.get_running_loop().create_future()
    gone.cancel()
    await gone


async def use_another_worker_that_was_killed(rush: RushWorker) -> None:
    await rush.push_running_tasks([{"x": 1}])
    raise WorkerLostError("another worker")


async def start_one_more(rush: RushWorker) -> None:
    async with rush.task({"x": 1}):
        pass


async def start_some_more(rush: RushWorker) -> None:
    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(start_one_more(rush))


@pytest.mark.parametrize("loop", [start_one_more, start_some_more])
async def test_a_block_that_a_stopped_network_refuses_ends_the_loop_as_terminated(
    rush: Rush, loop: Callable[..., Awaitable[Any]]
) -> None:
    await rush.stop("enough")
    worker, life = await start_worker(rush, loop)
    assert await life == WorkerExit(worker.worker_id, "terminated")
    assert await state_of(rush, worker) == "terminated"


async def test_an_error_beside_a_refused_block_fails_the_worker(rush: Rush) -> None:
    async def fail() -> None:
        raise ArithmeticError("wrong")

    async def loop(worker: RushWorker) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(start_one_more(worker))
            group.create_task(fail())

    await rush.stop("enough")
    _, life = await start_worker(rush, loop)
    assert (await life).state == "failed"


@pytest.mark.parametrize(
    ("loop", "kind", "type_", "words"),
    [
        (leave_the_process, "error", "SystemExit", "nothing to do"),
        (await_what_is_cancelled, "cancelled", "CancelledError", "cancelled from within"),
        (use_another_worker_that_was_killed, "error", "WorkerLostError", "another worker"),
    ],
)
async def test_any_exception_that_leaves_a_loop_fails_its_worker_and_does_not_propagate(
    rush: Rush, loop: Callable[..., Awaitable[Any]], kind: str, type_: str, words: str
) -> None:
    worker, life = await start_worker(rush, loop)
    end = await life
    assert end.state == await state_of(rush, worker) == "failed"
    assert end.failure is not None
    assert (end.failure.kind, end.failure.type) == (kind, type_)
    assert words in end.failure.message
    condition = (await rush.fetch_failed_tasks())["condition"][0]
    assert (condition["kind"], condition["type"], condition["message"]) == (kind, type_, end.failure.message)


async def test_a_loop_that_swallows_its_cancellation_is_abandoned_and_its_worker_closed(
    rush: Rush, caplog: pytest.LogCaptureFixture
) -> None:
    refused: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    holds, may_end = asyncio.Event(), asyncio.Event()

    async def loop(rush: RushWorker) -> None:
        await rush.push_running_tasks([{"x": 1}])
        holds.set()
        while not may_end.is_set():
            try:
                await may_end.wait()
            except asyncio.CancelledError:
                continue
        try:
            await rush.push_running_tasks([{"x": 2}])
        except NetworkStateError as error:
            refused.set_result(str(error))

    worker, life = await start_worker(rush, loop)
    await holds.wait()
    life.cancel()
    assert (await life).state == "terminated"
    assert f"worker {worker.worker_id} swallows its cancellation" in caplog.text
    assert await state_of(rush, worker) == "terminated"
    may_end.set()
    assert "is closed" in await refused
    assert (await rush.counts()) == (0, 0, 0, 1)


# the runner


def start(rush: Rush, loop: Callable[..., Awaitable[Any]], *worker_ids: str, **arguments: Any) -> Runner:
    return Runner(rush.network_id, rush.config, worker_ids, bind_loop(loop, None, arguments), None)


async def test_a_runner_returns_every_end_in_order(rush: Rush) -> None:
    async def loop(rush: RushWorker) -> None:
        if rush.worker_id == "b":
            raise RuntimeError("the loop broke")

    runner = start(rush, loop, "c", "b", "a")
    assert runner.unfinished == ["c", "b", "a"]
    assert [(end.worker_id, end.state) for end in await runner.run()] == [
        ("c", "terminated"),
        ("b", "failed"),
        ("a", "terminated"),
    ]
    assert runner.unfinished == []


async def test_a_runner_reports_each_end_as_soon_as_it_is_known(rush: Rush) -> None:
    runner = start(rush, hold, "a", "b", seen=[])
    await rush.wait_until(lambda counts: counts.running == 2)
    runner.cancel(["b"])
    assert (await runner.ended["b"]).state == "terminated"
    assert runner.unfinished == ["a"]
    runner.cancel(runner.unfinished)
    await runner.run()


async def test_a_runner_asks_its_workers_to_stop(rush: Rush) -> None:
    async def loop(rush: RushWorker) -> None:
        assert await rush.pop_task(timeout=None) is None

    runner = start(rush, loop, "a", "b")
    await rush.wait_for_workers(2)
    runner.note_stop()
    runner.stop()
    assert {end.state for end in await runner.run()} == {"terminated"}


async def test_a_cancelled_runner_cancels_its_workers_and_waits_for_their_ends(rush: Rush) -> None:
    seen: list[str] = []
    runner = start(rush, hold, "a", "b", seen=seen)
    running = asyncio.ensure_future(runner.run())
    await wait_until(lambda: seen == ["holds"] * 2)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert seen == ["holds"] * 2 + ["cancelled"] * 2 + ["cleaned up"] * 2
    assert set((await rush.worker_info())["state"]) == {"terminated"}
    assert (await rush.counts()).failed == 2


async def test_a_worker_that_is_cancelled_before_it_registers_is_terminated(rush: Rush) -> None:
    runner = start(rush, do_one, "a")
    runner.cancel(["a"])
    assert await runner.run() == [WorkerExit("a", "terminated")]
    assert (await rush.worker_info()).is_empty()


async def test_a_worker_whose_id_is_taken_fails_and_is_refused(rush: Rush, rush_worker: RushWorker) -> None:
    runner = start(rush, do_one, rush_worker.worker_id)
    (end,) = await runner.run()
    assert end.state == "failed"
    assert end.failure is not None
    assert "is or was in use" in end.failure.message
    assert runner.refused == {rush_worker.worker_id}
    assert await state_of(rush, rush_worker) == "running"


async def test_a_loop_that_takes_a_used_id_fails_and_is_not_refused(rush: Rush, rush_worker: RushWorker) -> None:
    async def loop(rush: RushWorker, used: str) -> None:
        async with RushWorker(rush.network_id, rush.config, worker_id=used):
            pass

    runner = start(rush, loop, "a", used=rush_worker.worker_id)
    (end,) = await runner.run()
    assert end.failure is not None
    assert (end.state, end.failure.type, runner.refused) == ("failed", "WorkerIdTakenError", set())
