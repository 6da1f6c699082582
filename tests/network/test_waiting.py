"""Waiting: it ends when it should, and asks nothing of the server meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from rush_async import (
    Counts,
    Failure,
    NetworkStateError,
    Rush,
    RushClient,
    RushTimeoutError,
    RushWorker,
    Task,
    TasksNotDoneError,
)
from rush_async.network.waiting import Lines
from rush_async.store.position import NetworkPosition, Position
from rush_async.testing import wait_until
from tests.proxy import Proxy

XS = {"x1": 1.0, "x2": 2.0}
ELSEWHERE = 28.0  # another setting makes another connection and another view of the network in the same loop
SOON = 5.0


def n_commands(raw: Any) -> int:
    """How many commands the server has executed, but for those that ask for this."""
    return sum(stat["calls"] for name, stat in raw.info("commandstats").items() if not name.startswith("cmdstat_info"))


async def n_commands_at_rest(raw: Any) -> int:
    """The same once nothing is under way any more."""
    seen: list[int] = []

    def rests() -> bool:
        seen.append(n_commands(raw))
        return len(seen) > 5 and len(set(seen[-5:])) == 1

    await wait_until(rests)
    return seen[-1]


def is_watching(client: RushClient) -> bool:
    return client._net.feed.is_watching  # pyright: ignore[reportPrivateUsage]


async def ask_to_stop(rush: Rush, worker: RushWorker) -> None:
    asked = await rush._net.workers.ask_to_stop([worker.worker_id])  # pyright: ignore[reportPrivateUsage]
    assert asked == [worker.worker_id]


async def kill(rush: Rush, worker: RushWorker) -> None:
    killed = Failure("killed", None, "Worker was killed")
    assert await rush._net.workers.lose([worker.worker_id], "killed", killed, killed)  # pyright: ignore[reportPrivateUsage]


async def waits(call: Awaitable[Any], client: RushClient) -> asyncio.Task[Any]:
    """The call as a task that has begun to wait."""
    task = asyncio.ensure_future(call)
    assert isinstance(task, asyncio.Task)
    await wait_until(lambda: task.done() or is_watching(client))
    for _ in range(5):
        await client.counts()  # a few round trips later it has looked at what there is
    assert not task.done()
    return task


# pop_task


async def test_a_pop_with_a_timeout_of_0_returns_at_once_and_costs_one_call(
    rush: Rush, rush_worker: RushWorker, raw: Any
) -> None:
    before = raw.info("commandstats")["cmdstat_evalsha"]["calls"]
    assert await rush_worker.pop_task(0) is None
    assert await rush_worker.pop_task(timeout=0) is None
    assert raw.info("commandstats")["cmdstat_evalsha"]["calls"] == before + 2


async def test_a_pop_waits_as_long_as_asked(rush_worker: RushWorker) -> None:
    for timeout in (0.05, 0.2):
        begin = time.monotonic()
        assert await rush_worker.pop_task(timeout) is None
        assert timeout <= time.monotonic() - begin + 0.002 < timeout + 2


async def test_a_pop_waits_for_a_second_by_default(rush_worker: RushWorker) -> None:
    begin = time.monotonic()
    assert await rush_worker.pop_task() is None
    assert 0.99 <= time.monotonic() - begin < 3


async def test_a_waiting_pop_asks_nothing(rush: Rush, rush_worker: RushWorker, raw: Any) -> None:
    popping = await waits(rush_worker.pop_task(None), rush_worker)
    before = await n_commands_at_rest(raw)
    done, _ = await asyncio.wait([popping], timeout=0.5)
    assert not done
    assert n_commands(raw) == before
    (key,) = await rush.push_tasks([XS])
    task = await asyncio.wait_for(popping, SOON)
    assert task is not None
    assert task.key == key


async def test_a_pop_that_waited_before_asks_nothing_until_its_time_is_up(rush_worker: RushWorker, raw: Any) -> None:
    assert await rush_worker.pop_task(0.01) is None
    before = await n_commands_at_rest(raw)
    for _ in range(3):
        assert await rush_worker.pop_task(0.05) is None
    assert n_commands(raw) == before


async def test_a_pop_is_woken_by_a_push_from_another_process(rush_worker: RushWorker, elsewhere: Rush) -> None:
    for n in range(20):
        popping = asyncio.create_task(rush_worker.pop_task(None))
        if n % 2:
            await waits(popping, rush_worker)
        (key,) = await elsewhere.push_tasks([{"n": n}])
        task = await asyncio.wait_for(popping, SOON)
        assert task is not None
        assert task.key == key


async def test_a_pop_is_woken_by_a_retry(rush: Rush, rush_worker: RushWorker, elsewhere: Rush) -> None:
    (key,) = await rush.push_failed_tasks([XS], "no")
    popping = await waits(rush_worker.pop_task(None), rush_worker)
    assert await elsewhere.retry_tasks(key) == [key]
    task = await asyncio.wait_for(popping, SOON)
    assert task is not None
    assert task.key == key


async def test_as_many_waiting_pops_are_woken_as_tasks_were_pushed(rush: Rush, rush_worker: RushWorker) -> None:
    popping = [asyncio.create_task(rush_worker.pop_task(None)) for _ in range(5)]
    await waits(popping[0], rush_worker)
    keys = await rush.push_tasks([XS] * 3)
    await rush.wait_until(lambda counts: counts.running == 3)
    await wait_until(lambda: sum(task.done() for task in popping) == 3)
    keys += await rush.push_tasks([XS] * 2)
    tasks = await asyncio.wait_for(asyncio.gather(*popping), SOON)
    assert sorted(task.key for task in tasks if task is not None) == sorted(keys)


async def test_a_cancelled_pop_does_not_take_the_task_of_the_next(rush: Rush, rush_worker: RushWorker) -> None:
    first = asyncio.create_task(rush_worker.pop_task(None))
    await waits(first, rush_worker)
    second = asyncio.create_task(rush_worker.pop_task(None))
    first.cancel()
    (key,) = await rush.push_tasks([XS])
    task = await asyncio.wait_for(second, SOON)
    assert task is not None
    assert (task.key, task.attempt) == (key, 1)
    await asyncio.wait([first])


async def test_a_pop_behind_a_thousand_removed_tasks_finds_the_next(rush: Rush, rush_worker: RushWorker) -> None:
    # A push that is cancelled leaves entries in the queue whose tasks have failed.
    old = await rush.push_tasks([{"n": n} for n in range(2_500)])
    (key,) = await rush.push_tasks([{"n": "last"}])
    store = rush._net.tasks  # pyright: ignore[reportPrivateUsage]
    store.take_back("queued", old, "")
    await rush.wait_until(lambda counts: counts.failed == 2_500)
    task = await asyncio.wait_for(rush_worker.pop_task(1), SOON)
    assert task is not None
    assert task.key == key


# stop requests


STOPPABLE: list[Callable[[RushWorker], Awaitable[Any]]] = [
    lambda worker: worker.pop_task(None),
    lambda worker: worker.pop_task(60),
]


@pytest.mark.parametrize("call", STOPPABLE, ids=["for ever", "for a minute"])
async def test_a_stop_request_ends_a_waiting_pop(
    rush: Rush, rush_worker: RushWorker, call: Callable[[RushWorker], Awaitable[Any]]
) -> None:
    popping = await waits(call(rush_worker), rush_worker)
    assert not rush_worker.terminated
    await ask_to_stop(rush, rush_worker)
    assert await asyncio.wait_for(popping, SOON) is None
    assert rush_worker.terminated


async def test_after_a_stop_request_no_task_is_popped(rush: Rush, rush_worker: RushWorker) -> None:
    await rush.push_tasks([XS])
    await ask_to_stop(rush, rush_worker)
    await wait_until(lambda: rush_worker.terminated)
    assert await rush_worker.pop_task(0) is None
    assert await rush_worker.pop_task(None) is None
    assert await rush.counts() == Counts(queued=1)


async def test_a_stop_request_of_one_worker_leaves_the_others_waiting(rush: Rush, rush_worker: RushWorker) -> None:
    async with RushWorker(rush.network_id, rush.config) as other:
        mine = await waits(rush_worker.pop_task(None), rush_worker)
        theirs = await waits(other.pop_task(None), other)
        await ask_to_stop(rush, rush_worker)
        assert await asyncio.wait_for(mine, SOON) is None
        (key,) = await rush.push_tasks([XS])
        task = await asyncio.wait_for(theirs, SOON)
        assert task is not None
        assert task.key == key
        assert not other.terminated


async def test_a_stop_request_that_comes_while_the_line_is_cut_is_seen_afterwards(rush: Rush, proxy: Proxy) -> None:
    async with RushWorker(rush.network_id, proxy.url) as worker:
        popping = await waits(worker.pop_task(None), worker)
        proxy.refuse()
        assert proxy.cut_all() > 0
        await ask_to_stop(rush, worker)
        assert not worker.terminated
        proxy.refuse(False)
        assert await asyncio.wait_for(popping, SOON) is None
        assert worker.terminated


async def test_a_push_that_comes_while_the_line_is_cut_is_seen_afterwards(rush: Rush, proxy: Proxy) -> None:
    async with RushWorker(rush.network_id, proxy.url) as worker:
        popping = await waits(worker.pop_task(None), worker)
        proxy.refuse()
        assert proxy.cut_all("pubsub") > 0
        (key,) = await rush.push_tasks([XS])
        proxy.refuse(False)
        task = await asyncio.wait_for(popping, SOON)
        assert task is not None
        assert task.key == key


async def test_closing_a_worker_ends_its_waits(rush: Rush) -> None:
    worker = await RushWorker(rush.network_id, rush.config)
    popping = await waits(worker.pop_task(None), worker)
    await worker.aclose()
    assert await asyncio.wait_for(popping, SOON) is None


# wait_until


async def test_wait_until_gives_the_counts_that_satisfy(rush: Rush, elsewhere: Rush) -> None:
    assert await rush.wait_until(lambda counts: counts.total == 0) == Counts()
    waiting = await waits(rush.wait_until(lambda counts: counts.queued >= 2), rush)
    await elsewhere.push_tasks([XS])
    await elsewhere.push_tasks([XS])
    assert await asyncio.wait_for(waiting, SOON) == Counts(queued=2)


async def test_wait_until_knows_at_once_what_holds_already(rush: Rush, elsewhere: Rush) -> None:
    await elsewhere.push_tasks([XS] * 3)
    assert await rush.wait_until(lambda counts: counts.queued == 3, timeout=SOON) == Counts(queued=3)


async def test_wait_until_sees_every_step(rush: Rush, rush_worker: RushWorker) -> None:
    # One task runs between the reply to its start and the reply to its end, however soon that is.
    waiting = await waits(rush.wait_until(lambda counts: counts.running == 1), rush)
    async with rush_worker.task(XS) as task:
        task.ys = {"y": 1}
    assert (await asyncio.wait_for(waiting, SOON)).running == 1


async def test_wait_until_raises_when_the_time_is_up_and_shows_the_counts(rush: Rush) -> None:
    await rush.push_tasks([XS] * 3)
    begin = time.monotonic()
    with pytest.raises(RushTimeoutError, match=r"0\.05 s.*3 queued, 0 running, 0 finished, 0 failed"):
        await rush.wait_until(lambda counts: counts.finished == 1, timeout=0.05)
    assert time.monotonic() - begin < 2


async def test_wait_until_with_no_time_looks_at_the_server_once(rush: Rush, elsewhere: Rush) -> None:
    await elsewhere.push_tasks([XS])
    assert await rush.wait_until(lambda counts: counts.queued == 1, timeout=0) == Counts(queued=1)
    with pytest.raises(RushTimeoutError):
        await rush.wait_until(lambda counts: counts.queued == 2, timeout=0)


async def test_a_waiting_wait_until_asks_nothing(rush: Rush, raw: Any) -> None:
    waiting = await waits(rush.wait_until(lambda counts: counts.finished == 1), rush)
    before = await n_commands_at_rest(raw)
    done, _ = await asyncio.wait([waiting], timeout=0.3)
    assert not done
    assert n_commands(raw) == before
    await rush.push_finished_tasks([XS], [{"y": 1}])
    await asyncio.wait_for(waiting, SOON)


async def test_an_error_of_the_predicate_reaches_only_its_caller(rush: Rush) -> None:
    def broken(counts: Counts) -> bool:
        if counts.queued:
            raise LookupError("my own mistake")
        return False

    good = await waits(rush.wait_until(lambda counts: counts.queued == 1), rush)
    bad = await waits(rush.wait_until(broken), rush)
    also_good = await waits(rush.wait_until(lambda counts: counts.queued == 1), rush)
    await rush.push_tasks([XS])
    with pytest.raises(LookupError, match="my own mistake"):
        await asyncio.wait_for(bad, SOON)
    assert await asyncio.wait_for(good, SOON) == await asyncio.wait_for(also_good, SOON) == Counts(queued=1)


async def test_wait_until_continues_after_a_reset(rush: Rush, elsewhere: Rush) -> None:
    await rush.push_tasks([XS] * 3)
    for n, workers in ((2, False), (3, True)):
        waiting = await waits(rush.wait_until(lambda counts, n=n: counts.finished == n), rush)
        await elsewhere.reset(workers=workers)
        await elsewhere.push_finished_tasks([XS] * n, [XS] * n)
        assert await asyncio.wait_for(waiting, SOON) == Counts(finished=n)


async def test_wait_until_sees_a_reset(rush: Rush, elsewhere: Rush) -> None:
    await rush.push_tasks([XS] * 3)
    waiting = await waits(rush.wait_until(lambda counts: counts.total == 0), rush)
    await elsewhere.reset()
    assert await asyncio.wait_for(waiting, SOON) == Counts()


# wait_for_tasks


async def test_row_16_waiting_for_tasks_gives_each_with_its_end_in_the_order_asked(rush: Rush, rush_worker: RushWorker) -> None:
    keys = await rush.push_tasks([{"n": n} for n in range(4)])
    waiting = await waits(rush.wait_for_tasks([keys[2], keys[0], keys[1], keys[0]]), rush)
    for n in range(3):
        task = await rush_worker.pop_task(0)
        assert task is not None
        if n == 1:
            await rush_worker.fail_tasks(task.key, "broken")
        else:
            await rush_worker.finish_tasks(task.key, [{"y": n}])
    tasks: list[Task] = await asyncio.wait_for(waiting, SOON)
    assert [(task.key, task.state, task.ys) for task in tasks] == [
        (keys[2], "finished", {"y": 2}),
        (keys[0], "finished", {"y": 0}),
        (keys[1], "failed", None),
        (keys[0], "finished", {"y": 0}),
    ]
    assert tasks[2].failure is not None
    assert tasks[2].failure.message == "broken"


async def test_row_16_one_key_may_stand_alone_and_ends_that_were_there_are_found(rush: Rush) -> None:
    (finished,) = await rush.push_finished_tasks([XS], [{"y": 1}])
    (failed,) = await rush.push_failed_tasks([XS], "no")
    (task,) = await rush.wait_for_tasks(finished, timeout=SOON)
    assert task.ys == {"y": 1}
    (task,) = await rush.wait_for_tasks(failed, timeout=SOON)
    assert task.failure is not None


async def test_row_16_a_waiting_wait_for_tasks_asks_nothing(rush: Rush, rush_worker: RushWorker, raw: Any) -> None:
    def n_reads() -> int:
        return raw.info("commandstats").get("cmdstat_lrange", {"calls": 0})["calls"]

    before_reads = n_reads()
    keys = await rush_worker.push_running_tasks([XS] * 50)
    waiting = await waits(rush.wait_for_tasks(keys), rush)
    before = await n_commands_at_rest(raw)
    done, _ = await asyncio.wait([waiting], timeout=0.3)
    assert not done
    assert n_commands(raw) == before
    for key in keys:
        await rush_worker.finish_tasks(key, [{"y": 1}])
    # 50 ends are heard of by events; they are read in a few chunks at the end.
    assert len(await asyncio.wait_for(waiting, SOON)) == 50
    assert n_reads() < before_reads + 20


async def test_row_16_a_lost_workers_tasks_end_the_wait(rush: Rush, elsewhere: Rush) -> None:
    async with RushWorker(rush.network_id, rush.config) as worker:
        keys = await worker.push_running_tasks([XS] * 3)
        waiting = await waits(elsewhere.wait_for_tasks(keys), elsewhere)
        await kill(rush, worker)
        tasks: list[Task] = await asyncio.wait_for(waiting, SOON)
    assert [task.failure and task.failure.kind for task in tasks] == ["killed"] * 3


async def test_row_16_emptying_the_queue_ends_the_wait(rush: Rush, rush_worker: RushWorker, elsewhere: Rush) -> None:
    keys = await rush.push_tasks([XS] * 3)
    waiting = await waits(rush.wait_for_tasks(keys), rush)
    await elsewhere.empty_queue()
    tasks: list[Task] = await asyncio.wait_for(waiting, SOON)
    assert [task.failure and task.failure.kind for task in tasks] == ["removed"] * 3


async def test_row_16_without_workers_queued_tasks_are_not_waited_for(rush: Rush) -> None:
    keys = await rush.push_tasks([XS] * 2)
    done = await rush.push_finished_tasks([XS], [{"y": 1}])
    with pytest.raises(TasksNotDoneError, match="no worker is starting or running") as caught:
        await asyncio.wait_for(rush.wait_for_tasks([*keys, *done]), SOON)
    assert caught.value.pending == keys
    assert isinstance(caught.value, TimeoutError)


async def test_row_16_the_failures_of_workers_that_ended_are_shown(rush: Rush) -> None:
    keys = await rush.push_tasks([XS])
    with pytest.raises(ZeroDivisionError):
        async with RushWorker(rush.network_id, rush.config, worker_id="bear"):
            _ = 1 / 0
    with pytest.raises(TasksNotDoneError, match=r"bear failed: ZeroDivisionError: division by zero") as caught:
        await asyncio.wait_for(rush.wait_for_tasks(keys), SOON)
    assert caught.value.pending == keys


async def test_row_16_the_last_worker_that_leaves_ends_the_wait(rush: Rush, elsewhere: Rush) -> None:
    keys = await rush.push_tasks([XS])
    worker = await RushWorker(rush.network_id, rush.config)
    waiting = await waits(elsewhere.wait_for_tasks(keys), elsewhere)
    await worker.aclose()
    with pytest.raises(TasksNotDoneError):
        await asyncio.wait_for(waiting, SOON)


async def test_row_16_without_need_of_workers_it_waits_on(rush: Rush) -> None:
    keys = await rush.push_tasks([XS])
    waiting = await waits(rush.wait_for_tasks(keys, need_workers=False), rush)
    async with RushWorker(rush.network_id, rush.config) as worker:
        task = await worker.pop_task(0)
        assert task is not None
        await worker.finish_tasks(keys, [{"y": 1}])
    (done,) = await asyncio.wait_for(waiting, SOON)
    assert done.ys == {"y": 1}


async def test_row_16_running_tasks_are_waited_for_though_other_workers_left(rush: Rush, rush_worker: RushWorker) -> None:
    keys = await rush_worker.push_running_tasks([XS])
    waiting = await waits(rush.wait_for_tasks(keys), rush)
    await (await RushWorker(rush.network_id, rush.config)).aclose()
    await rush_worker.finish_tasks(keys, [{"y": 1}])
    assert len(await asyncio.wait_for(waiting, SOON)) == 1


async def test_row_16_keys_that_do_not_exist_raise(rush: Rush) -> None:
    (key,) = await rush.push_finished_tasks([XS], [{"y": 1}])
    with pytest.raises(KeyError, match="nobody"):
        await asyncio.wait_for(rush.wait_for_tasks([key, "nobody"]), SOON)


async def test_row_16_a_reset_ends_the_wait(rush: Rush, rush_worker: RushWorker, elsewhere: Rush) -> None:
    keys = await rush_worker.push_running_tasks([XS])
    waiting = await waits(rush.wait_for_tasks(keys), rush)
    await elsewhere.reset(workers=False)
    with pytest.raises(KeyError, match=keys[0]):
        await asyncio.wait_for(waiting, SOON)


async def test_row_16_out_of_time_names_what_is_pending(rush: Rush, rush_worker: RushWorker) -> None:
    done, *pending = await rush_worker.push_running_tasks([XS] * 3)
    await rush_worker.finish_tasks(done, [{"y": 1}])
    with pytest.raises(TasksNotDoneError, match=r"2 of 3 tasks did not end within 0\.05 s") as caught:
        await rush.wait_for_tasks([done, *pending], timeout=0.05)
    assert caught.value.pending == pending


async def test_row_16_with_a_timeout_of_0_it_checks_once(rush: Rush, rush_worker: RushWorker) -> None:
    running, done = await rush_worker.push_running_tasks([XS] * 2)
    await rush_worker.finish_tasks(done, [{"y": 1}])
    assert [task.key for task in await rush.wait_for_tasks(done, timeout=0)] == [done]
    with pytest.raises(TasksNotDoneError) as caught:
        await rush.wait_for_tasks([running, done], timeout=0)
    assert caught.value.pending == [running]


async def test_row_16_a_task_that_fails_and_is_retried_may_end_the_wait_or_not_but_never_wrongly(
    rush: Rush, rush_worker: RushWorker
) -> None:
    for n in range(20):
        (key,) = await rush_worker.push_running_tasks([{"n": n}])
        waiting = await waits(rush.wait_for_tasks(key), rush)
        await rush_worker.fail_tasks(key, "first")
        await rush.retry_tasks(key)
        task = await rush_worker.pop_task(SOON)
        assert task is not None
        await rush_worker.finish_tasks(key, [{"y": n}])
        (ended,) = await asyncio.wait_for(waiting, SOON)
        assert ended.state in ("finished", "failed")
        assert (ended.ys is None) == (ended.state == "failed")


async def test_row_16_ends_that_came_while_the_line_was_cut_are_found(
    rush: Rush, rush_worker: RushWorker, proxy: Proxy
) -> None:
    keys = await rush_worker.push_running_tasks([XS] * 2)
    async with Rush(rush.network_id, proxy.url) as elsewhere:
        waiting = await waits(elsewhere.wait_for_tasks(keys), elsewhere)
        proxy.refuse()
        proxy.cut_all()
        await rush_worker.finish_tasks(keys, [{"y": 1}] * 2)
        proxy.refuse(False)
        assert len(await asyncio.wait_for(waiting, SOON)) == 2


# clients that close


async def test_waits_of_a_client_that_is_closed_end(rush: Rush, rush_worker: RushWorker) -> None:
    (key,) = await rush_worker.push_running_tasks([XS])
    calls: list[Callable[[Rush], Awaitable[Any]]] = [
        lambda client: client.wait_until(lambda counts: counts.finished == 1),
        lambda client: client.wait_for_tasks(key),
        lambda client: client.fetch_new_tasks(timeout=60),
    ]
    for call in calls:
        client = await Rush(rush.network_id, replace(rush.config, response_timeout=ELSEWHERE))
        waiting = await waits(call(client), client)
        await client.aclose()
        with pytest.raises(NetworkStateError, match="closed"):
            await asyncio.wait_for(waiting, SOON)


async def test_waits_of_a_client_that_is_closed_end_while_others_go_on(rush: Rush, rush_worker: RushWorker) -> None:
    (key,) = await rush_worker.push_running_tasks([XS])
    client = await Rush(rush.network_id, rush.config)
    waiting = await waits(client.wait_until(lambda counts: counts.finished == 1), client)
    others = await waits(rush.wait_until(lambda counts: counts.finished == 1), rush)
    await client.aclose()
    with pytest.raises(NetworkStateError, match="closed"):
        await asyncio.wait_for(waiting, SOON)
    await rush_worker.finish_tasks(key, [{"y": 1}])
    await asyncio.wait_for(others, SOON)


async def test_a_predicate_that_raises_stop_iteration_harms_no_other_wait(rush: Rush, elsewhere: Rush) -> None:
    def predicate(counts: Counts) -> bool:
        return next(iter([])) if counts.queued else False

    waiting = asyncio.ensure_future(rush.wait_until(predicate))
    await wait_until(lambda: rush._net.conditions._waiting)  # pyright: ignore[reportPrivateUsage]
    assert await asyncio.wait_for(rush.push_tasks([{"x": 1}]), 5)
    with pytest.raises(RuntimeError, match="StopIteration"):
        await asyncio.wait_for(waiting, 5)


# a task that counts as queued and has no entry in the queue


def add_unreachable(rush: Rush, raw: Any) -> None:
    """Adds a queued task that no pop finds, as a server that lost a part of its data may have one."""
    keys = rush._net.keys  # pyright: ignore[reportPrivateUsage]
    raw.hset(keys.queued, "unreachable", b"\x00\x00\x00\x00\x00\x00")


def forget_unreachable(rush: Rush, raw: Any) -> None:
    raw.hdel(rush._net.keys.queued, "unreachable")  # pyright: ignore[reportPrivateUsage]


async def test_a_pop_of_an_unreachable_task_ends_in_time_with_few_commands(
    rush: Rush, rush_worker: RushWorker, raw: Any
) -> None:
    add_unreachable(rush, raw)
    assert (await rush.counts()).queued == 1
    for timeout in (0, 0.3, 0.3):
        before, begin = n_commands(raw), time.monotonic()
        assert await asyncio.wait_for(rush_worker.pop_task(timeout), SOON) is None
        assert timeout <= time.monotonic() - begin + 0.002 < timeout + 2
        assert n_commands(raw) - before < 60  # with those that the scripts execute
    forget_unreachable(rush, raw)


async def test_a_waiting_pop_takes_what_is_pushed_behind_an_unreachable_task_at_once(
    rush: Rush, rush_worker: RushWorker, elsewhere: Rush, raw: Any
) -> None:
    add_unreachable(rush, raw)
    async with RushWorker(rush.network_id, rush.config) as other:
        popping = [await waits(worker.pop_task(None), worker) for worker in (rush_worker, other)]
        before = await n_commands_at_rest(raw)
        done, _ = await asyncio.wait(popping, timeout=0.3)
        assert not done
        assert n_commands(raw) - before < 5
        for pusher in (elsewhere, rush):
            (key,) = await pusher.push_tasks([XS])
            done, left = await asyncio.wait(popping, timeout=SOON, return_when=asyncio.FIRST_COMPLETED)
            (task,) = [each.result() for each in done]
            assert task is not None
            assert task.key == key
            popping = list(left)
        assert await n_commands_at_rest(raw) - before < 150  # with those that the scripts execute
    forget_unreachable(rush, raw)


async def test_a_block_with_a_budget_does_not_spin_on_an_unreachable_task(
    rush: Rush, rush_worker: RushWorker, elsewhere: Rush, raw: Any
) -> None:
    (key,) = await rush_worker.push_running_tasks([XS])
    add_unreachable(rush, raw)

    async def take() -> str:
        async with rush_worker.task(XS, budget=2) as task:
            assert task is not None
            task.ys = {"y": 1.0}
            return task.key

    taking = await waits(take(), rush_worker)
    before = await n_commands_at_rest(raw)
    done, _ = await asyncio.wait([taking], timeout=0.3)
    assert not done
    assert n_commands(raw) - before < 5
    await rush_worker.fail_tasks(key)  # gives its place back
    assert await asyncio.wait_for(taking, SOON) != key
    taking = await waits(take(), rush_worker)
    (pushed,) = await elsewhere.push_tasks([XS])
    assert await asyncio.wait_for(taking, SOON) == pushed
    forget_unreachable(rush, raw)


async def test_a_pop_passes_thousands_of_stale_entries(rush: Rush, rush_worker: RushWorker, raw: Any) -> None:
    raw.rpush(rush._net.keys.queue, *[f"stale-{n}" for n in range(3_500)])  # pyright: ignore[reportPrivateUsage]
    keys = await rush.push_tasks([XS] * 2)
    for timeout, key in zip((0, 1.0), keys, strict=True):
        task = await asyncio.wait_for(rush_worker.pop_task(timeout), SOON)
        assert task is not None
        assert task.key == key


def test_tasks_that_no_pop_finds_wake_no_worker_until_tasks_are_queued() -> None:
    position = NetworkPosition("net")
    lines = Lines(position)
    before = lines.n_arrivals
    position.take(Position(1, 1, Counts(queued=3), 0))
    assert lines.n_poppable == 3
    lines.found_empty(before)
    assert lines.n_poppable == 0
    position.take(Position(1, 2, Counts(queued=5), 0))
    assert lines.n_poppable == 2
    position.take(Position(1, 3, Counts(queued=1), 0))
    assert lines.n_poppable == 0
    position.take(Position(1, 4, Counts(queued=2), 0))
    assert lines.n_poppable == 1
    lines.tasks_queued()
    assert lines.n_poppable == 2
    lines.found_empty(before)  # by a pop that was under way meanwhile
    assert lines.n_poppable == 2


# places within the stop rules: without a server


class Waiters:
    """Coroutines in the lines of one event loop; each notes its turn and keeps it."""

    def __init__(self) -> None:
        self.position = NetworkPosition("net")
        self.lines = Lines(self.position)
        self.turns: list[str] = []
        self._tasks: list[asyncio.Task[None]] = []

    def at(self, seq: int, **counts: int) -> None:
        self.position.take(Position(1, seq, Counts(**counts), 0))

    async def wait_in(self, *names: str) -> None:
        for name in names:
            self._tasks.append(asyncio.create_task(self._wait(name)))
            await asyncio.sleep(0)

    async def _wait(self, name: str) -> None:
        if name == "budget":
            with self.lines.budget(10, 5) as line:
                assert await line.turn(None, set())
        else:
            assert await getattr(self.lines, name).turn(None, set())
        self.turns.append(name)

    async def turned(self) -> list[str]:
        for _ in range(3):
            await asyncio.sleep(0)
        turns, self.turns = self.turns, []
        return turns

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)


async def test_all_lines_share_the_places() -> None:
    waiters = Waiters()
    lines = waiters.lines
    waiters.at(1, queued=5)
    lines.found_full(lines.mark)
    await waiters.wait_in("queue", "places", "budget", "queue")
    assert await waiters.turned() == []
    lines.places_freed(1)
    assert await waiters.turned() == ["queue"]
    lines.places_taken(1, lines.mark)
    lines.queue.done()
    assert await waiters.turned() == []
    lines.places_freed(2)
    assert await waiters.turned() == ["queue", "places"]
    lines.queue.done()  # it found nothing: its place is for the next, whatever that waits in
    assert await waiters.turned() == ["budget"]
    await waiters.close()


async def test_places_that_become_free_while_a_start_is_refused_count() -> None:
    waiters = Waiters()
    lines = waiters.lines
    waiters.at(1, queued=5)
    before = lines.mark
    lines.places_freed(2)  # heard while the answer that refuses the start is on its way
    lines.found_full(before)
    await waiters.wait_in("queue", "places", "places")
    assert await waiters.turned() == ["queue", "places"]
    await waiters.close()


async def test_other_rules_wake_all_that_wait_for_places_alone_and_as_many_as_there_are_tasks() -> None:
    waiters = Waiters()
    lines = waiters.lines
    waiters.at(1, queued=1)
    lines.found_full(lines.mark)
    await waiters.wait_in("queue", "queue", "places", "places")
    lines.rules_changed()
    assert await waiters.turned() == ["queue", "places", "places"]
    await waiters.close()


async def test_a_spent_budget_ends_its_waits_though_there_is_no_place() -> None:
    waiters = Waiters()
    lines = waiters.lines
    waiters.at(1, running=3)
    lines.found_full(lines.mark)
    await waiters.wait_in("budget", "budget", "places")
    assert await waiters.turned() == []
    waiters.at(2, failed=5)
    assert await waiters.turned() == ["budget", "budget"]
    await waiters.close()
