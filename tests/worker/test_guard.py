"""Guards of task blocks: `cancel_tasks` cancels the code in a block, and a block that keeps the event loop is reported."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from rush_async import Failure, Rush, RushWorker, Task, TasksFailed
from rush_async.testing import wait_until
from rush_async.worker.worker import membership_of
from tests.proxy import Proxy, named

CANCELLED = Failure("cancelled", None, "Task was cancelled")


async def failures(rush: Rush) -> list[Failure | None]:
    keys = (await rush.keys_with_state("failed"))["failed"]
    return [None if task is None else task.failure for task in await rush.get_tasks(keys)]


@asynccontextmanager
async def block_of(worker: RushWorker, how: str) -> AsyncGenerator[Task]:
    """A task in a block: made by the worker, within a budget, or popped."""
    match how:
        case "made":
            async with worker.task({"x": 1}) as task:
                yield task
        case "budget":
            async with worker.task({"x": 1}, budget=10) as task:
                assert task is not None
                yield task
        case _:
            await worker.push_tasks([{"x": 1}])
            task = await worker.pop_task()
            assert task is not None
            async with task:
                yield task


HOWS = pytest.mark.parametrize("how", ["made", "budget", "popped"])


@HOWS
async def test_a_block_whose_task_is_cancelled_ends_without_an_error_and_the_loop_continues(
    rush: Rush, rush_worker: RushWorker, how: str
) -> None:
    seen: list[str] = []
    opened: asyncio.Future[Task] = asyncio.get_running_loop().create_future()

    async def loop() -> None:
        async with block_of(rush_worker, how) as task:
            opened.set_result(task)
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                seen.append("cancelled in the block")
                raise
        seen.append(f"after the block: {task.state} {task.failure and task.failure.kind}")
        async with rush_worker.task({"x": 2}) as after:
            await asyncio.sleep(0)
            after.ys = {"y": 2}

    running = asyncio.create_task(loop())
    task = await opened
    async with rush.events(TasksFailed) as events:
        assert await rush.cancel_tasks(task.key) == [task.key]
        event = await asyncio.wait_for(anext(aiter(events)), 10)
        assert isinstance(event, TasksFailed)
        assert (event.keys, event.worker_id) == ((task.key,), rush_worker.worker_id)
    await asyncio.wait_for(running, 10)
    assert running.cancelling() == 0
    assert seen == ["cancelled in the block", "after the block: failed cancelled"]
    assert await failures(rush) == [CANCELLED]
    assert (await rush.counts())[1:3] == (0, 1)


async def test_cancelled_tasks_leave_the_queue_and_others_stay(rush: Rush, rush_worker: RushWorker) -> None:
    first, second, third = await rush.push_tasks([{"x": 1}, {"x": 2}, {"x": 3}])
    finished = await rush.push_finished_tasks([{"x": 4}], [{"y": 4}])
    assert await rush.cancel_tasks([second, "unknown", *finished, second]) == [second]
    assert await rush.cancel_tasks(second) == []
    assert await failures(rush) == [CANCELLED]
    assert [(await rush_worker.pop_task(0) or task_of("none")).key for _ in range(3)] == [first, third, "none"]
    assert await rush.retry_tasks(second) == [second]
    task = await rush_worker.pop_task(0)
    assert task is not None
    assert (task.key, task.attempt, task.failure) == (second, 1, CANCELLED)


def task_of(key: str) -> Task:
    return Task(key, "queued", {})


async def test_a_cancelled_task_without_a_block_fails_and_its_later_finish_moves_nothing(
    rush: Rush, rush_worker: RushWorker, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = await rush_worker.push_running_tasks([{"x": 1}, {"x": 2}])
    assert await rush.cancel_tasks([first, second]) == [first, second]
    assert await rush_worker.finish_tasks([first], [{"y": 1}]) == []
    assert await rush_worker.fail_tasks([second], "too late") == []
    assert "ended before" in caplog.text
    assert await failures(rush) == [CANCELLED, CANCELLED]
    assert await rush_worker.push_running_tasks([{"x": 3}]) != []


async def test_cancelling_no_task_creates_no_key(rush: Rush, raw: Any) -> None:
    assert await rush.cancel_tasks([]) == []
    assert await rush.cancel_tasks("unknown") == []
    assert raw.keys("*") == []


async def test_the_block_of_a_task_cancelled_before_is_cancelled_at_its_first_await(
    rush: Rush, rush_worker: RushWorker
) -> None:
    (key,) = await rush.push_tasks([{"x": 1}])
    task = await rush_worker.pop_task()
    assert task is not None
    await rush.cancel_tasks(key)
    await wait_until(lambda: not membership_of(rush_worker).held_keys())
    reached: list[str] = []
    async with task:
        reached.append("begins")
        await asyncio.sleep(0)
        reached.append("never")
    assert reached == ["begins"]
    async with rush_worker.task({"x": 2}) as other:
        other.ys = {"y": 2}
    assert await rush.counts() == (0, 0, 1, 1)
    # A block that never awaits runs to its end, and its result does not count.
    again = await rush_worker.pop_task(0) if await rush.retry_tasks(key) else None
    assert again is not None
    await rush.cancel_tasks(key)
    await wait_until(lambda: not membership_of(rush_worker).held_keys())
    async with again:
        again.ys = {"y": 1}
    await asyncio.sleep(0)  # no cancellation is left over
    assert again.state == "failed"
    assert await rush.counts() == (0, 0, 1, 1)


async def test_a_block_that_swallows_the_cancellation_moves_nothing(rush: Rush, rush_worker: RushWorker) -> None:
    async with rush_worker.task({"x": 1}) as task:
        cancelling = asyncio.create_task(rush.cancel_tasks(task.key))
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        task.ys = {"y": 1}
    assert await cancelling == [task.key]
    assert task.state == "failed"
    current = asyncio.current_task()
    assert current is not None
    assert current.cancelling() == 0
    assert await rush.counts() == (0, 0, 0, 1)


async def fail_in_clean_up() -> None:
    try:
        await asyncio.Event().wait()
    finally:
        raise KeyError("in clean-up")


async def test_an_error_raised_by_a_cancelled_block_propagates(rush: Rush, rush_worker: RushWorker) -> None:
    cancelling: list[asyncio.Task[list[str]]] = []
    with pytest.raises(KeyError, match="in clean-up"):
        async with rush_worker.task({"x": 1}) as task:
            cancelling.append(asyncio.create_task(rush.cancel_tasks(task.key)))
            await fail_in_clean_up()
    assert await failures(rush) == [CANCELLED]
    async with rush_worker.task({"x": 1}, catch=KeyError) as task:
        cancelling.append(asyncio.create_task(rush.cancel_tasks(task.key)))
        await fail_in_clean_up()
    assert await failures(rush) == [CANCELLED, CANCELLED]
    assert [len(keys) for keys in await asyncio.gather(*cancelling)] == [1, 1]


async def test_a_cancellation_from_outside_in_the_same_tick_propagates(rush: Rush, rush_worker: RushWorker) -> None:
    opened: asyncio.Future[Task] = asyncio.get_running_loop().create_future()

    async def loop() -> None:
        async with rush_worker.task({"x": 1}) as task:
            opened.set_result(task)
            await asyncio.Event().wait()

    running = asyncio.create_task(loop())
    task = await opened
    # Both in one tick: the network's request, and a cancellation by the program.
    membership_of(rush_worker).cancel_task(task.key)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert running.cancelled()


async def test_a_blocks_own_timeout_is_not_mistaken_for_a_cancelled_task(rush: Rush, rush_worker: RushWorker) -> None:
    with pytest.raises(TimeoutError):
        async with rush_worker.task({"x": 1}, timeout=0.01):
            await asyncio.Event().wait()
    (failure,) = await failures(rush)
    assert failure is not None
    assert failure.kind == "timeout"
    # Inside an `asyncio.timeout` that expires later, a cancelled block suppresses only its own cancellation.
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            async with rush_worker.task({"x": 1}, timeout=60) as task:
                await rush.cancel_tasks(task.key)
                await asyncio.Event().wait()
            await asyncio.Event().wait()
    assert len(await failures(rush)) == 2


async def test_cancelling_tasks_of_many_workers_cancels_only_their_blocks(rush: Rush) -> None:
    keys: list[str] = []
    ended: list[str] = []

    async def loop(rush: RushWorker) -> None:
        async with rush.task({"x": 1}) as task:
            keys.append(task.key)
            await asyncio.Event().wait()
        ended.append(task.key)

    await rush.start_workers(loop, 40)
    await wait_until(lambda: len(keys) == 40)
    assert sorted(await rush.cancel_tasks(keys[::2])) == sorted(keys[::2])
    await wait_until(lambda: len(ended) == 20)
    assert sorted(ended) == sorted(keys[::2])
    assert (await rush.counts()) == (0, 20, 0, 20)
    await rush.cancel_tasks(keys)
    assert [how.state for how in await rush.join_workers(timeout=10)] == ["terminated"] * 40


async def test_a_cancellation_missed_during_an_outage_reaches_the_block_after_the_reconnect(
    rush: Rush, proxy: Proxy, rush_server: Any
) -> None:
    async with RushWorker(rush.network_id, rush_server.at(proxy.url)) as far:
        async with far.task({"x": 1}) as task:
            proxy.drop_reply(named("SSUBSCRIBE"))  # what the server sends next on this connection is lost
            far._net.link.subscription.renew()  # pyright: ignore[reportPrivateUsage]
            assert await rush.cancel_tasks(task.key) == [task.key]
            async with asyncio.timeout(20):
                await asyncio.Event().wait()
        assert task.state == "failed"


async def test_a_worker_that_blocks_a_shared_event_loop_is_warned_once(
    rush: Rush, rush_worker: RushWorker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    monkeypatch.setattr("rush_async.worker.guard.time.monotonic", lambda: now)
    async with RushWorker(rush.network_id, rush.config) as other:
        for _ in range(2):
            async with other.task({"x": 1}) as task:
                now += 1.5
                task.ys = {"y": 1}
        async with rush_worker.task({"x": 1}) as task:
            await asyncio.sleep(0)
            now += 1.5
            task.ys = {"y": 1}
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [record.args and record.args[0] for record in warnings] == [other.worker_id]  # pyright: ignore[reportArgumentType]
    assert "asyncio.to_thread" in caplog.text
    assert "Processes()" in caplog.text


async def test_a_block_that_ends_as_a_cancellation_from_outside_arrives_does_not_swallow_it(
    rush: Rush, rush_worker: RushWorker
) -> None:
    reached: list[str] = []

    async def loop() -> None:
        (key,) = await rush.push_tasks([{"x": 1}])
        task = await rush_worker.pop_task(0)
        assert task is not None
        await rush.cancel_tasks(key)
        await wait_until(lambda: not membership_of(rush_worker).held_keys())
        me = asyncio.current_task()
        assert me is not None
        asyncio.get_running_loop().call_soon(me.cancel)
        async with task:
            task.ys = {"y": 1}
        reached.append("after the block")

    running = asyncio.create_task(loop())
    await asyncio.wait([running])
    assert running.cancelled()
    assert reached == []
