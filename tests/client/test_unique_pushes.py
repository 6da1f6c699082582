"""Pushes with `unique`: a point is evaluated once, unless its task failed; what is refused, and what a point costs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from rush_async import EncodeError, Processes, Rush, RushWorker
from rush_async.store.keys import NetworkKeys
from rush_async.store.workers import KILLED
from rush_async.testing import wait_until

XSS = [{"x": x} for x in range(3)]


async def test_a_point_is_pushed_once_whatever_the_state_of_its_task(rush: Rush, rush_worker: RushWorker) -> None:
    keys = await rush.push_tasks(XSS, unique=True)
    assert None not in keys
    assert await rush.push_tasks(XSS, unique=True) == [None] * 3
    assert await rush_worker.push_running_tasks(XSS, unique=True) == [None] * 3
    assert await rush_worker.push_running_tasks(XSS[:1], unique=True) == [None]
    assert await rush.push_finished_tasks(XSS, XSS, unique=True) == [None] * 3
    async with asyncio.timeout(5):
        for _ in XSS:
            task = await rush_worker.pop_task()
            assert task is not None
            assert await rush.push_tasks([task.xs], unique=True) == [None]
            await rush_worker.finish_tasks(task.key, [{"y": 1}])
            assert await rush.push_tasks([task.xs], unique=True) == [None]
    assert await rush.counts() == (0, 0, 3, 0)


async def test_equal_inputs_are_one_point_and_of_equal_ones_in_a_call_the_first_is_pushed(rush: Rush) -> None:
    keys = await rush.push_tasks([{"x": 1, "z": [2]}, {"z": (2.0,), "x": True}, {"z": [2.0], "x": 1.0}], unique=True)
    assert [key is None for key in keys] == [False, False, True]
    assert (await rush.keys_with_state("queued"))["queued"] == keys[:2]


async def test_names_choose_the_inputs_that_make_the_point(rush: Rush) -> None:
    xss = [{"x": 1, "seed": 1}, {"x": 1, "seed": 2}, {"x": 2, "seed": 1}]
    assert [key is None for key in await rush.push_tasks(iter(xss), unique="x")] == [False, True, False]
    assert [key is None for key in await rush.push_tasks(xss, unique=("seed", "x"))] == [False] * 3
    assert await rush.push_tasks(xss, unique=True) == [None] * 3


async def test_only_pushes_with_unique_take_a_point_or_look_for_one(rush: Rush) -> None:
    await rush.push_tasks(XSS)
    assert None not in await rush.push_tasks(XSS, unique=True)
    assert len(set(await rush.push_tasks(XSS))) == 3
    assert len(await rush.push_tasks(XSS, unique=False)) == 3
    assert await rush.counts() == (12, 0, 0, 0)


async def finish(worker: RushWorker, key: str) -> None:
    await worker.finish_tasks(key, [{"y": 1}])


async def fail(worker: RushWorker, key: str) -> None:
    await worker.fail_tasks(key, "bad")


async def cancel(worker: RushWorker, key: str) -> None:
    await worker.cancel_tasks(key)


async def lose(worker: RushWorker, key: str) -> None:
    workers = worker._net.workers  # pyright: ignore[reportPrivateUsage]
    assert await workers.lose([worker.worker_id], "lost", KILLED, KILLED) == [worker.worker_id]


@pytest.mark.parametrize(("end", "is_free"), [(finish, False), (fail, True), (cancel, True), (lose, True)])
async def test_a_failed_task_leaves_its_point(rush: Rush, end: Callable[[RushWorker, str], Any], is_free: bool) -> None:
    async with RushWorker(rush.network_id, rush.config) as worker:
        (key,) = await worker.push_running_tasks([{"x": 1}], unique=True)
        assert key is not None
        await end(worker, key)
        (again,) = await rush.push_tasks([{"x": 1.0}], unique=True)
        assert (again is not None) == is_free
        assert await rush.push_tasks([{"x": 1}], unique=True) == [None]


async def test_queued_tasks_that_are_removed_or_cancelled_leave_their_points(rush: Rush) -> None:
    first, second, _ = await rush.push_tasks(XSS, unique=True)
    assert first is not None
    assert second is not None
    await rush.cancel_tasks(first)
    assert [key is None for key in await rush.push_tasks(XSS, unique=True)] == [False, True, True]
    await rush.empty_queue()
    assert None not in await rush.push_tasks(XSS, unique=True)


async def test_a_task_with_retries_keeps_its_point_when_its_worker_is_lost(rush: Rush) -> None:
    async with RushWorker(rush.network_id, rush.config) as worker:
        await rush.push_tasks([{"x": 1}], unique=True, retries=1)
        task = await worker.pop_task(0)
        assert task is not None
        await lose(worker, task.key)
        assert await rush.push_tasks([{"x": 1}], unique=True) == [None]
        assert await rush.counts() == (1, 0, 0, 0)


async def test_a_retried_task_has_its_point_again_unless_another_push_took_it_over(rush: Rush) -> None:
    first, second = await rush.push_tasks(XSS[:2], unique=True)
    assert first is not None
    assert second is not None
    await rush.empty_queue()
    (third,) = await rush.push_tasks(XSS[:1], unique=True)
    assert await rush.retry_tasks([first, second]) == [first, second]
    assert await rush.push_tasks(XSS[:2], unique=True) == [None, None]
    assert (await rush.keys_with_state("queued"))["queued"] == [third, first, second]


async def test_failed_pushes_take_no_point(rush: Rush) -> None:
    await rush.push_failed_tasks(XSS)
    assert None not in await rush.push_tasks(XSS, unique=True)


async def test_a_taken_point_takes_no_place_within_a_budget(rush: Rush, rush_worker: RushWorker) -> None:
    await rush.push_tasks(XSS[:1], unique=True)
    xss = [*XSS, {"x": 1}, {"x": 3}]
    keys = await rush_worker.push_running_tasks(xss, unique=True, budget=3)
    assert [key is None for key in keys] == [True, False, False, True]  # and no place for the last
    assert await rush_worker.push_running_tasks(xss, unique=True, budget=3) == []
    assert await rush.counts() == (1, 2, 0, 0)


async def test_a_push_that_waits_for_a_place_of_the_stop_rules_answers_for_taken_points_too(rush: Rush) -> None:
    async with RushWorker(rush.network_id, rush.config) as first, RushWorker(rush.network_id, rush.config) as second:
        await rush.stop_when(finished=2)
        keys = await first.push_running_tasks(XSS[:2], unique=True)
        waiting = asyncio.ensure_future(second.push_running_tasks(XSS, unique=True))
        await wait_until(lambda: len(rush._net.lines.places) == 1)  # pyright: ignore[reportPrivateUsage]
        await first.fail_tasks([key for key in keys if key is not None][:1])
        async with asyncio.timeout(5):
            assert [key is None for key in await waiting] == [False, True]  # the failed one again; no place for the last


async def test_a_stopped_network_gives_no_answer_for_points(rush: Rush, rush_worker: RushWorker) -> None:
    await rush.push_tasks(XSS, unique=True)
    await rush.stop("enough")
    assert await rush_worker.push_running_tasks(XSS, unique=True) == []
    assert await rush.push_tasks(XSS, unique=True) == [None] * 3


@pytest.mark.parametrize("workers", [False, True])
async def test_a_reset_deletes_the_points(rush: Rush, raw: Any, workers: bool) -> None:
    await rush.push_tasks(XSS, unique=True)
    await rush.reset(workers=workers)
    assert raw.keys("*points*") == []
    assert None not in await rush.push_tasks(XSS, unique=True)


@pytest.mark.parametrize("n", [1, 1_500])
@pytest.mark.parametrize("is_running", [False, True])
async def test_a_cancelled_push_leaves_no_point(rush: Rush, rush_worker: RushWorker, n: int, is_running: bool) -> None:
    push = rush_worker.push_running_tasks if is_running else rush.push_tasks
    n_cancelled = 0
    for n_ticks in range(8):
        pushing = asyncio.ensure_future(push([{"x": x} for x in range(n)], unique=True))
        for _ in range(n_ticks):
            await asyncio.sleep(0)
        pushing.cancel()
        await asyncio.wait([pushing])
        await rush._net.tasks.calls.quiet()  # pyright: ignore[reportPrivateUsage]
        if pushing.cancelled():
            n_cancelled += 1
            assert (await rush.counts())[:3] == (0, 0, 0)
        else:  # it was answered before
            await rush.cancel_tasks([key for key in pushing.result() if key is not None])
    assert n_cancelled > 1
    assert None not in await push([{"x": x} for x in range(n)], unique=True)


async def test_what_is_no_input_is_refused_before_anything_is_sent(rush: Rush, rush_worker: RushWorker, raw: Any) -> None:
    wrong: Any
    for wrong in ("y", ["x", "y"]):
        with pytest.raises(ValueError, match=r"xss\[0\] has no input 'y', which unique names: its inputs are x"):
            await rush.push_tasks([{"x": 1}], unique=wrong)
        with pytest.raises(ValueError, match="no input 'y'"):
            await rush_worker.push_running_tasks([{"x": 1}], unique=wrong)
        with pytest.raises(ValueError, match="no input 'y'"):
            await rush.push_finished_tasks([{"x": 1}], [{"y": 1}], unique=wrong)
    for wrong in (None, 1, [1], b"x"):
        with pytest.raises(TypeError, match="unique"):
            await rush.push_tasks(XSS, unique=wrong)
    with pytest.raises(EncodeError, match=r"xss\[1\]\['x'\]"):
        await rush.push_tasks([{"x": 1}, {"x": object()}], unique=True)
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(EncodeError, match="nested"):
        await rush.push_tasks([{"x": endless}], unique=True)
    assert await rush.push_tasks([], unique=True) == []
    assert await rush.counts() == (0, 0, 0, 0)
    assert raw.keys("*points*") == []


async def test_a_network_without_unique_pushes_has_no_points(rush: Rush, rush_worker: RushWorker, raw: Any) -> None:
    await rush.push_tasks(XSS)
    await rush_worker.push_running_tasks(XSS)
    await rush.push_finished_tasks(XSS, XSS)
    assert not raw.exists(NetworkKeys.of(rush.network_id).points)


async def push_the_design(rush: RushWorker) -> None:
    """Every worker pushes all points, in another order and type, and evaluates what is queued."""
    order = range(60) if rush.number % 2 else range(59, -1, -1)
    for x in order:
        await rush.push_tasks([{"x": float(x) if rush.number % 3 else x}], unique=True)
        while (task := await rush.pop_task(timeout=0)) is not None:
            await rush.finish_tasks(task.key, [{"y": task.xs["x"]}])


async def test_workers_of_several_processes_that_push_the_same_points_evaluate_each_once(rush: Rush) -> None:
    await rush.start_workers(push_the_design, n_workers=6, on=Processes(3))
    await rush.join_workers()
    frame = await rush.fetch_finished_tasks()
    assert sorted(frame["x"].to_list()) == [*range(60)]
    assert await rush.counts() == (0, 0, 60, 0)
