"""A network stops as one: by its rules or by hand, at one event, for every client, until it is resumed or reset."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from rush_async import (
    Event,
    EventsMissed,
    NetworkResumed,
    NetworkStateError,
    NetworkStopped,
    NetworkStoppedError,
    Rush,
    RushClient,
    RushTimeoutError,
    RushWorker,
    StopReason,
    TasksFailed,
    TasksFinished,
    TasksNotDoneError,
    TasksQueued,
    TasksStarted,
)
from rush_async.store.tasks import Created, Pushed
from rush_async.store.workers import KILLED
from rush_async.testing import wait_until
from rush_async.worker.worker import membership_of
from tests.proxy import Proxy

SOON = 5.0
XS = {"x": 1.0}


class Heard:
    """The events of a network since the block began."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    async def until(self, kind: type[Any], n: int = 1) -> list[Any]:
        await wait_until(lambda: len(self.of(kind)) >= n)
        return self.of(kind)


@asynccontextmanager
async def heard(rush: RushClient) -> AsyncGenerator[Heard]:
    result = Heard()
    async with rush.events() as events:

        async def listen() -> None:
            async for event in events:
                result.events.append(event)

        task = asyncio.create_task(listen())
        yield result
        task.cancel()
        await asyncio.wait([task])


def assert_no_start_while_stopped(events: Sequence[Event]) -> None:
    stopped = False
    for event in events:
        assert not isinstance(event, EventsMissed)
        assert not (stopped and isinstance(event, TasksStarted)), events
        stopped = (stopped or isinstance(event, NetworkStopped)) and not isinstance(event, NetworkResumed)


async def finish(worker: RushWorker, *yss: Any) -> None:
    """Finishes tasks with these outputs, one after the other."""
    for ys in yss:
        (key,) = await worker.push_running_tasks([XS])
        assert await worker.finish_tasks(key, [ys if isinstance(ys, dict) else {"y": ys}]) == [key]


async def waits(call: Awaitable[Any], client: RushClient) -> asyncio.Task[Any]:
    """The call as a task that has begun to wait."""
    task = asyncio.ensure_future(call)
    assert isinstance(task, asyncio.Task)
    feed = client._net.feed  # pyright: ignore[reportPrivateUsage]
    await wait_until(lambda: task.done() or feed.is_watching)
    for _ in range(5):
        await client.counts()
    assert not task.done()
    return task


def meta(rush: Rush, raw: Any) -> dict[bytes, bytes]:
    return raw.hgetall(rush._net.keys.meta)  # pyright: ignore[reportPrivateUsage]


def n_calls(raw: Any) -> int:
    return raw.info("commandstats")["cmdstat_evalsha"]["calls"]


def assert_reason(reason: StopReason | None, rule: str, detail: str) -> StopReason:
    assert reason is not None
    assert (reason.rule, reason.detail) == (rule, detail)
    assert abs(datetime.now(UTC) - reason.at) < timedelta(minutes=1)
    return reason


# each rule


async def test_a_network_stops_at_the_event_in_which_the_last_task_finishes(rush: Rush, rush_worker: RushWorker) -> None:
    async with heard(rush) as events:
        assert await rush.stop_when(finished=2) is None
        await finish(rush_worker, 1)
        assert rush_worker.stop_reason is None
        await finish(rush_worker, 2)
        reason = assert_reason(rush_worker.stop_reason, "finished", "2 tasks have finished")
        (stopped,) = await events.until(NetworkStopped)
        assert (stopped.seq, stopped.rule, stopped.detail, stopped.at) == (reason.seq, reason.rule, reason.detail, reason.at)
        assert events.of(TasksFinished)[-1].seq == stopped.seq - 1
    await wait_until(lambda: rush.stop_reason == reason)


async def test_tasks_pushed_as_finished_count_and_may_exceed(rush: Rush) -> None:
    await rush.stop_when(finished=3)
    await rush.push_finished_tasks([XS] * 5, [{"y": 1}] * 5)
    assert_reason(rush.stop_reason, "finished", "3 tasks have finished")
    assert rush.n_finished_tasks == 5


async def test_failed_counts_failed_cancelled_removed_and_pushed_tasks(rush: Rush, rush_worker: RushWorker) -> None:
    await rush.stop_when(failed=5)
    (key,) = await rush_worker.push_running_tasks([XS])
    await rush_worker.fail_tasks(key)
    (queued, _) = await rush.push_tasks([XS] * 2)
    await rush.cancel_tasks(queued)
    await rush.empty_queue()
    await rush.push_failed_tasks([XS])
    assert rush.n_failed_tasks == 4
    assert rush.stop_reason is None
    (key,) = await rush_worker.push_running_tasks([XS])
    await rush.cancel_tasks(key)
    assert_reason(rush.stop_reason, "failed", "5 tasks have failed")


@pytest.mark.parametrize("how", ["empty", "cancel", "lose"])
async def test_each_way_to_fail_judges_the_rules(rush: Rush, rush_worker: RushWorker, how: str) -> None:
    await rush.stop_when(failed=1)
    if how == "lose":
        await rush_worker.push_running_tasks([XS])
        await rush._net.workers.lose([rush_worker.worker_id], "killed", KILLED)  # pyright: ignore[reportPrivateUsage]
    else:
        (key,) = await rush.push_tasks([XS])
        await (rush.empty_queue() if how == "empty" else rush.cancel_tasks(key))
    assert_reason(rush.stop_reason, "failed", "1 tasks have failed")


async def test_tasks_with_retries_left_do_not_count_as_failed(rush: Rush, rush_worker: RushWorker) -> None:
    await rush.push_tasks([XS], retries=1)
    assert await rush_worker.pop_task(0) is not None
    await rush.stop_when(failed=1)
    await rush._net.workers.lose([rush_worker.worker_id], "killed", KILLED)  # pyright: ignore[reportPrivateUsage]
    assert (rush.n_queued_tasks, rush.n_failed_tasks) == (1, 0)
    assert rush.stop_reason is None


async def test_retrying_tasks_takes_them_out_of_the_failed(rush: Rush) -> None:
    await rush.stop_when(failed=2)
    await rush.push_failed_tasks([XS])
    await rush.retry_tasks()
    await rush.push_failed_tasks([XS])
    assert rush.stop_reason is None
    await rush.push_failed_tasks([XS])
    assert rush.stop_reason is not None


@pytest.mark.parametrize(
    ("maximize", "values", "detail"),
    [
        (False, [3, math.nan, 0.51, 0.5], "y = 0.5 has reached 0.5"),
        (False, [3, 0.2], "y = 0.2 has reached 0.5"),
        (False, [1, -math.inf], "y = -inf has reached 0.5"),
        (True, [-3, math.nan, 0.4, 2], "y = 2 has reached 0.5"),
        (True, [-3, np.float32(0.5)], "y = 0.5 has reached 0.5"),
        (True, [0, np.int64(7)], "y = 7 has reached 0.5"),
        (True, [0, 2**63], "y = 9.223372037e+18 has reached 0.5"),
        (False, [1, -(2**63)], "y = -9.223372037e+18 has reached 0.5"),
    ],
)
async def test_a_target_is_reached_by_a_value_as_good(
    rush: Rush, rush_worker: RushWorker, maximize: bool, values: list[Any], detail: str
) -> None:
    await rush.stop_when(target={"y": 0.5}, maximize=maximize)
    await finish(rush_worker, *values[:-1])
    assert rush_worker.stop_reason is None
    await finish(rush_worker, values[-1])
    assert_reason(rush_worker.stop_reason, "target", detail)


NO_NUMBERS: list[Any] = [
    *(None, True, False, "0.1", b"0.1", [0.1], {"y": 0.1}, Decimal("0.1"), UUID(int=0)),
    *(datetime(2026, 1, 1, tzinfo=UTC), np.bool_(True), "x" * 300, b"x" * 70_000, list(range(20)), 2**70, math.nan),
    {f"n{at}": at for at in range(20)},
]


@pytest.mark.parametrize("value", NO_NUMBERS, ids=lambda value: repr(value)[:30])
async def test_what_is_no_number_is_no_value_and_may_stand_before_it(rush: Rush, rush_worker: RushWorker, value: Any) -> None:
    await rush.stop_when(target={"y": 0.5}, patience=("y", 5))
    await finish(rush_worker, {"y": value}, {"before": value, "z": 1}, {}, {"before": {"y": 0}, "and": [{"y": value}, "y"]})
    assert rush_worker.stop_reason is None
    await finish(rush_worker, {"before": value, "and": [value], "y": 0.25, "behind": value})
    assert_reason(rush_worker.stop_reason, "target", "y = 0.25 has reached 0.5")


NAMES = {
    "short": "y",
    "31 bytes": "y" * 31,
    "32 bytes": "y" * 32,
    "100 bytes": "y" * 100,
    "200 bytes": "ü" * 100,
    "400 bytes": "🎲" * 100,
    "with a format": "a b\n%d",
}


@pytest.mark.parametrize(
    ("name", "n_before"), [*[(name, 2) for name in NAMES], *[("400 bytes", n) for n in (0, 14, 15, 20, 70_000)]]
)
async def test_an_output_is_found_under_any_name_behind_any_number_of_others(
    rush: Rush, rush_worker: RushWorker, name: str, n_before: int
) -> None:
    name = NAMES[name]
    await rush.stop_when(target={name: 0.5})
    others = {f"n{at}": at for at in range(n_before)}
    await finish(rush_worker, others | {name: 0.75})
    assert rush_worker.stop_reason is None
    await finish(rush_worker, others | {name: 0.5})
    assert_reason(rush_worker.stop_reason, "target", f"{name} = 0.5 has reached 0.5")


async def test_the_extra_of_an_end_is_no_output(rush: Rush, rush_worker: RushWorker) -> None:
    await rush.stop_when(target={"y": 0.5})
    (key,) = await rush_worker.push_running_tasks([XS], xss_extra=[{"y": 0}])
    await rush_worker.finish_tasks(key, [{"z": 1}], yss_extra=[{"y": 0}])
    await rush.push_finished_tasks([{"y": 0}], [{"z": 0}])
    assert rush.stop_reason is None
    await rush.push_finished_tasks([XS], [{"y": 0}])
    assert rush.stop_reason is not None


async def test_patience_counts_finished_tasks_without_a_better_value(rush: Rush, rush_worker: RushWorker) -> None:
    await rush.stop_when(patience=("y", 3))
    await finish(rush_worker, 5, 5, 6, 4, math.nan, {})
    (key,) = await rush_worker.push_running_tasks([XS])
    await rush_worker.fail_tasks(key)
    assert rush_worker.stop_reason is None
    await finish(rush_worker, 4)
    assert_reason(rush_worker.stop_reason, "patience", "y has not improved in 3 finished tasks; its best is 4")


async def test_patience_without_any_value_ends_too(rush: Rush, rush_worker: RushWorker) -> None:
    await rush.stop_when(patience=("y", 2))
    await finish(rush_worker, {}, {"y": None})
    assert_reason(rush_worker.stop_reason, "patience", "y has not improved in 2 finished tasks")


async def test_patience_begins_when_it_is_set_from_the_best_that_was_there(rush: Rush, rush_worker: RushWorker) -> None:
    await finish(rush_worker, 3, 1, math.nan, 5, 5)
    assert await rush.stop_when(patience=("y", 2)) is None
    await finish(rush_worker, 2)
    assert rush_worker.stop_reason is None
    await finish(rush_worker, 1)
    assert_reason(rush_worker.stop_reason, "patience", "y has not improved in 2 finished tasks; its best is 1")


@pytest.mark.parametrize(("maximize", "best"), [(False, 1), (True, 5)])
async def test_a_target_that_the_archive_has_reached_stops_at_once(rush: Rush, maximize: bool, best: int) -> None:
    await rush.push_finished_tasks([XS] * 4, [{"y": 3}, {"y": best}, {"y": math.nan}, {"y": True}])
    reason = await rush.stop_when(target={"y": best}, maximize=maximize)
    assert_reason(reason, "target", f"y = {best} has reached {best}")


async def test_rules_that_are_true_already_stop_at_once(rush: Rush) -> None:
    await rush.push_finished_tasks([XS] * 3, [{"y": 1}] * 3)
    await rush.push_failed_tasks([XS])
    assert_reason(await rush.stop_when(finished=2), "finished", "3 tasks have finished")
    await rush.resume()
    assert_reason(await rush.stop_when(failed=1), "failed", "1 tasks have failed")


async def test_the_best_of_tasks_that_finish_while_the_rules_are_set_counts(
    rush: Rush, elsewhere: Rush, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the reading of the archive and the call, first too many tasks finish for the script, then a few."""
    network, sizes = rush._net, [1_500, 1_000]  # pyright: ignore[reportPrivateUsage]
    answers: list[str] = []
    read, store = network.best_output, network.stop_rules.set

    async def read_and_be_late(output: str, *, maximize: bool) -> tuple[float | None, int]:
        best = await read(output, maximize=maximize)
        n = sizes.pop(0)
        await elsewhere.push_finished_tasks([XS] * n, [{"y": 2.0}] * (n - 1) + [{"y": n}])
        return best

    async def set_rules(*args: Any, **kwargs: Any) -> Any:
        answers.append(await store(*args, **kwargs))
        return answers[-1]

    monkeypatch.setattr(network, "best_output", read_and_be_late)
    monkeypatch.setattr(network.stop_rules, "set", set_rules)
    await rush.push_finished_tasks([XS], [{"y": 1.0}])
    reason = await rush.stop_when(target={"y": 1_000}, maximize=True)
    assert answers == ["behind", "set"]
    assert_reason(reason, "target", "y = 1500 has reached 1000")


# seconds


async def test_the_next_start_stops_a_network_whose_time_is_up(rush: Rush, rush_worker: RushWorker) -> None:
    async with heard(rush) as events:
        await rush.push_tasks([XS] * 2)
        assert await rush.stop_when(seconds=0.2) is None
        assert await rush_worker.pop_task(0) is not None
        await asyncio.sleep(0.21)
        assert await rush_worker.pop_task(0) is None
        reason = assert_reason(rush_worker.stop_reason, "seconds", "0.2 seconds have passed")
        (stopped,) = await events.until(NetworkStopped)
        assert stopped.seq == reason.seq
        assert_no_start_while_stopped(events.events)


@pytest.mark.parametrize("how", ["one", "many", "budget", "block"])
async def test_every_kind_of_start_is_refused_once_the_time_is_up(rush: Rush, rush_worker: RushWorker, how: str) -> None:
    await rush.stop_when(seconds=0.05)
    await asyncio.sleep(0.06)
    match how:
        case "one":
            assert await rush_worker.push_running_tasks([XS]) == []
        case "many":
            assert await rush_worker.push_running_tasks([XS] * 3) == []
        case "budget":
            async with rush_worker.task(XS, budget=5) as task:
                assert task is None
        case _:
            with pytest.raises(NetworkStoppedError, match=r"has stopped \(seconds: 0\.05 seconds have passed\)"):
                async with rush_worker.task(XS):
                    pass
    assert rush_worker.terminated
    assert (await rush.counts()).running == 0


async def test_the_heartbeat_stops_a_network_whose_time_is_up(rush_server: Any) -> None:
    quick = replace(rush_server, heartbeat_period=0.1, heartbeat_expire=2.0)
    async with Rush(config=quick) as rush, RushWorker(rush.network_id, quick) as worker:
        await rush.stop_when(seconds=0.3)
        popping = asyncio.create_task(worker.pop_task(None))
        assert await asyncio.wait_for(popping, SOON) is None
        assert_reason(worker.stop_reason, "seconds", "0.3 seconds have passed")
        await rush.reset()


async def test_a_client_that_waits_for_the_stop_notices_the_time_by_a_timer(rush: Rush, raw: Any) -> None:
    await rush.stop_when(seconds=0.4)
    begin = time.monotonic()
    waiting = await waits(rush.wait_until_stopped(need_workers=False), rush)
    before = n_calls(raw)
    assert_reason(await asyncio.wait_for(waiting, SOON), "seconds", "0.4 seconds have passed")
    assert time.monotonic() - begin > 0.3
    assert n_calls(raw) - before <= 3


async def test_the_time_continues_though_the_same_rules_are_set_again(rush: Rush, raw: Any) -> None:
    await rush.stop_when(seconds=60)
    rules = meta(rush, raw)[b"rules"]
    await rush.stop_when(seconds=60.0)
    assert meta(rush, raw)[b"rules"] == rules
    await rush.stop_when(seconds=61)
    assert meta(rush, raw)[b"rules"] != rules


# places


async def test_a_push_answers_as_many_as_fit_and_exactly_so_many_finish(rush: Rush, rush_worker: RushWorker) -> None:
    await rush.stop_when(finished=5)
    keys = await rush_worker.push_running_tasks([XS] * 3)
    assert len(keys) == 3
    more = await rush_worker.push_running_tasks([XS] * 4)
    assert len(more) == 2
    await rush_worker.finish_tasks(keys + more, [{"y": 1}] * 5)
    assert_reason(rush_worker.stop_reason, "finished", "5 tasks have finished")
    assert await rush_worker.push_running_tasks([XS] * 4) == []
    assert (await rush.counts()).finished == 5


async def test_a_bulk_push_of_many_calls_answers_as_many_as_fit(rush: Rush, rush_worker: RushWorker) -> None:
    await rush.stop_when(finished=2_500)
    keys = await rush_worker.push_running_tasks([{"x": at} for at in range(12_000)])
    assert len(keys) == 2_500
    tasks = await rush.get_tasks(keys[-1])
    assert tasks[0] is not None
    assert tasks[0].xs == {"x": 2_499}
    await rush_worker.fail_tasks(keys)


async def test_queued_tasks_hold_no_place(rush: Rush, rush_worker: RushWorker) -> None:
    await rush.stop_when(finished=2)
    await rush.push_tasks([XS] * 10)
    assert len(await rush_worker.push_running_tasks([XS] * 5)) == 2
    assert await rush_worker.pop_task(0) is None
    assert rush_worker.stop_reason is None  # full, not stopped


@pytest.mark.parametrize(("budget", "finished", "n"), [(3, 5, 3), (5, 3, 3), (3, 3, 3), (1, 5, 1)])
async def test_of_a_budget_and_a_rule_the_smaller_holds_and_the_push_never_waits(
    rush: Rush, rush_worker: RushWorker, budget: int, finished: int, n: int
) -> None:
    await rush.stop_when(finished=finished)
    assert len(await rush_worker.push_running_tasks([XS] * 9, budget=budget)) == n
    assert await asyncio.wait_for(rush_worker.push_running_tasks([XS] * 9, budget=budget), SOON) == []
    assert await asyncio.wait_for(rush_worker.push_running_tasks([XS], budget=budget), SOON) == []


async def test_queued_tasks_hold_a_place_of_the_budget_beside_a_rule(rush: Rush, rush_worker: RushWorker) -> None:
    await rush.stop_when(finished=4)
    await rush.push_tasks([XS] * 3)
    assert len(await rush_worker.push_running_tasks([XS] * 9, budget=5)) == 2


Free = Callable[[Rush, RushWorker, list[str]], Awaitable[Any]]


async def free_by_failure(rush: Rush, holder: RushWorker, keys: list[str]) -> None:
    await holder.fail_tasks(keys[0])


async def free_by_cancellation(rush: Rush, holder: RushWorker, keys: list[str]) -> None:
    await rush.cancel_tasks(keys[0])


async def free_by_loss(rush: Rush, holder: RushWorker, keys: list[str]) -> None:
    await rush._net.workers.lose([holder.worker_id], "killed", KILLED)  # pyright: ignore[reportPrivateUsage]


async def free_by_return(rush: Rush, holder: RushWorker, keys: list[str]) -> None:
    """As after a pop whose caller was cancelled."""
    tasks = holder._net.tasks  # pyright: ignore[reportPrivateUsage]
    tasks.put_back([(keys[0], b"")], holder.worker_id)  # pyright: ignore[reportArgumentType]
    await tasks.calls.quiet()


async def free_by_rules(rush: Rush, holder: RushWorker, keys: list[str]) -> None:
    await rush.stop_when(finished=3)


async def free_by_dropping_the_rules(rush: Rush, holder: RushWorker, keys: list[str]) -> None:
    await rush.resume()


FREE: dict[str, Free] = {
    "failure": free_by_failure,
    "cancellation": free_by_cancellation,
    "loss": free_by_loss,
    "return": free_by_return,
    "other rules": free_by_rules,
    "no rules": free_by_dropping_the_rules,
}


@pytest.mark.parametrize("how", ["push", "push many", "block", "budget block", "pop"])
@pytest.mark.parametrize("free", FREE)
async def test_a_full_network_lets_starts_wait_until_a_place_is_free(
    rush: Rush, rush_worker: RushWorker, elsewhere: Rush, raw: Any, how: str, free: str
) -> None:
    """In another process, with a connection of its own, the places are held and freed."""
    async with RushWorker(rush.network_id, elsewhere.config) as holder:
        queued = await rush.push_tasks([{"x": 2.0}] * 2)
        await rush.stop_when(finished=2)
        keys = [task.key for task in [await holder.pop_task(0), await holder.pop_task(0)] if task is not None]
        assert keys == queued
        if how == "pop":
            queued = await rush.push_tasks([{"x": 3.0}])

        async def start() -> list[str]:
            match how:
                case "push" | "push many":
                    return await rush_worker.push_running_tasks([XS] * (1 if how == "push" else 3))
                case "pop":
                    task = await rush_worker.pop_task(None)
                    return [] if task is None else [task.key]
                case "block":
                    task = await rush_worker.task(XS).__aenter__()
                    return [task.key]
                case _:
                    task = await rush_worker.task(XS, budget=50).__aenter__()
                    return [] if task is None else [task.key]

        starting = await waits(start(), rush_worker)
        before = n_calls(raw)
        await FREE[free](elsewhere, holder, keys)
        started = await asyncio.wait_for(starting, SOON)
        assert n_calls(raw) - before <= 6  # what freed the place, one start, and its neighbours
        assert started
        assert await rush.is_running_task(started) == [True] * len(started)
        if how == "pop" and free != "return":
            assert started == queued
        if free not in ("other rules", "no rules", "loss"):
            assert len(started) == 1
        running, finished = (await rush.counts())[1:3]
        assert running + finished <= 2 or free in ("other rules", "no rules")


@pytest.mark.parametrize("how", ["push", "block", "budget block", "pop", "tasks", "mixed"])
async def test_one_freed_place_wakes_one_waiter_of_a_process(
    rush: Rush, rush_worker: RushWorker, elsewhere: Rush, raw: Any, how: str
) -> None:
    await rush.stop_when(finished=3)
    async with RushWorker(rush.network_id, elsewhere.config) as holder:
        keys = await holder.push_running_tasks([XS] * 3)
        await rush.push_tasks([XS] * 20)

        async def one(kind: str) -> None:
            match kind:
                case "push":
                    assert len(await rush_worker.push_running_tasks([XS])) == 1
                case "block":
                    await rush_worker.task(XS).__aenter__()
                case "budget block":
                    await rush_worker.task(XS, budget=50).__aenter__()
                case "pop":
                    assert await rush_worker.pop_task(None) is not None
                case _:
                    async for _ in rush_worker.tasks():
                        break

        kinds = ["push", "block", "budget block", "pop", "tasks"] if how == "mixed" else [how] * 5
        waiting = [await waits(one(kind), rush_worker) for kind in kinds]
        for n in range(1, 4):
            before = n_calls(raw)
            await holder.fail_tasks(keys[n - 1])
            await wait_until(lambda n=n: sum(task.done() for task in waiting) == n)
            for _ in range(3):
                await rush.counts()
            await asyncio.wait(waiting, timeout=0.05)
            assert sum(task.done() for task in waiting) == n
            # The failure, the start, and where the budget's line pushes before it looks in the queue, one more.
            spent = n_calls(raw) - before - 3  # `counts` is a script too
            assert spent == 2 or (spent == 3 and how in ("budget block", "mixed")), spent
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)


async def test_a_pop_waits_up_to_its_timeout_though_tasks_are_queued(rush: Rush, rush_worker: RushWorker, raw: Any) -> None:
    await rush.stop_when(finished=1)
    await rush_worker.push_running_tasks([XS])
    await rush.push_tasks([XS] * 3)
    begin, before = time.monotonic(), n_calls(raw)
    assert await rush_worker.pop_task(0.3) is None
    assert time.monotonic() - begin >= 0.29
    assert n_calls(raw) - before <= 4
    assert not rush_worker.terminated


async def test_waiting_starts_end_when_the_last_task_finishes_and_the_network_stops(
    rush: Rush, rush_worker: RushWorker, elsewhere: Rush
) -> None:
    async with RushWorker(rush.network_id, elsewhere.config) as holder:
        await rush.stop_when(finished=1)
        (key,) = await holder.push_running_tasks([XS])
        await rush.push_tasks([XS])

        async def block(budget: int | None) -> Any:
            async with rush_worker.task(XS, budget=budget) as task:
                return task

        async def over_tasks() -> list[Any]:
            return [task async for task in rush_worker.tasks()]

        calls: list[Awaitable[Any]] = [
            *(rush_worker.push_running_tasks([XS]), rush_worker.push_running_tasks([XS] * 2), rush_worker.pop_task(None)),
            *(block(9), over_tasks(), block(None)),
        ]
        waiting = [await waits(call, rush_worker) for call in calls]
        await holder.finish_tasks(key, [{"y": 1}])
        *others, raising = waiting
        assert [await asyncio.wait_for(each, SOON) for each in others] == [[], [], None, None, []]
        with pytest.raises(NetworkStoppedError, match=r"has stopped \(finished: 1 tasks have finished\): no task starts"):
            await asyncio.wait_for(raising, SOON)
        assert (await rush.counts()).running == 0


async def test_a_stop_request_ends_waits_for_a_place(rush: Rush, rush_worker: RushWorker) -> None:
    await rush.stop_when(finished=1)
    await rush_worker.push_running_tasks([XS])
    pushing = await waits(rush_worker.push_running_tasks([XS]), rush_worker)
    opening = await waits(rush_worker.task(XS).__aenter__(), rush_worker)
    membership_of(rush_worker).request_stop()
    assert await asyncio.wait_for(pushing, SOON) == []
    with pytest.raises(NetworkStoppedError, match=f"worker {rush_worker.worker_id} was asked to stop: no task starts"):
        await asyncio.wait_for(opening, SOON)
    assert rush_worker.stop_reason is None


@pytest.mark.parametrize("n", [1, 3])
async def test_a_cancelled_wait_for_a_place_leaves_its_turn_to_the_next(rush: Rush, rush_worker: RushWorker, n: int) -> None:
    await rush.stop_when(finished=1)
    (key,) = await rush_worker.push_running_tasks([XS])
    first = await waits(rush_worker.push_running_tasks([XS] * n), rush_worker)
    second = await waits(rush_worker.push_running_tasks([XS] * n), rush_worker)
    failing = asyncio.create_task(rush_worker.fail_tasks(key))
    first.cancel()
    await asyncio.wait([first])
    await failing
    assert len(await asyncio.wait_for(second, SOON)) == 1


async def test_a_worker_that_is_killed_while_it_waits_for_a_place_gets_an_error(
    rush: Rush, rush_worker: RushWorker, elsewhere: Rush
) -> None:
    async with RushWorker(rush.network_id, elsewhere.config) as holder:
        await rush.stop_when(finished=1)
        await holder.push_running_tasks([XS])
        pushing = await waits(rush_worker.push_running_tasks([XS]), rush_worker)
        await elsewhere._net.workers.lose([rush_worker.worker_id], "killed", KILLED)  # pyright: ignore[reportPrivateUsage]
        with pytest.raises(Exception, match=f"{rush_worker.worker_id} is not alive"):
            await asyncio.wait_for(pushing, SOON)


async def test_waits_for_a_place_go_on_after_the_line_was_cut(rush: Rush, proxy: Proxy) -> None:
    async with RushWorker(rush.network_id, rush.config) as holder:
        await rush.stop_when(finished=1)
        (key,) = await holder.push_running_tasks([XS])
        async with RushWorker(rush.network_id, rush.config.at(proxy.url)) as worker:
            pushing = await waits(worker.push_running_tasks([XS]), worker)
            proxy.refuse()
            proxy.cut_all()
            await holder.fail_tasks(key)
            proxy.refuse(False)
            assert len(await asyncio.wait_for(pushing, SOON)) == 1


# the exact event


async def test_the_groups_of_one_merged_call_are_judged_one_by_one(rush: Rush, rush_worker: RushWorker) -> None:
    """Pushes of one tick are one call: what comes behind the stop in it does not start."""
    tasks = rush_worker._net.tasks  # pyright: ignore[reportPrivateUsage]
    async with heard(rush) as events:
        await rush.stop_when(finished=3)
        new = [rush_worker._encoder.tasks([XS], None)[0] for _ in range(4)]  # pyright: ignore[reportPrivateUsage]
        name, before = rush_worker.worker_id, await rush.counts()
        first, _, second, third = await asyncio.gather(
            tasks.push_one(new[0], name),
            rush_worker.push_finished_tasks([XS] * 4, [{"y": 1}] * 4),
            tasks.push_one(new[1], name),
            tasks.push("running", new[2:], worker_id=name),
        )
        assert before.total == 0
        assert first == Pushed(1, 0)
        assert second == Pushed(0, 0, "stopped")
        assert third == Created([], 0, "stopped")
        (stopped,) = await events.until(NetworkStopped)
        finished = events.of(TasksFinished)
        assert [event.seq - stopped.seq for event in finished] == [-1, 1]
        assert [len(event.keys) for event in finished] == [3, 1]
        assert stopped.seq == rush.stop_reason.seq if rush.stop_reason else False
        assert_no_start_while_stopped(events.events)
        tasks.take_back("running", [new[0].key], name)
        await tasks.calls.quiet()


async def test_ends_of_one_merged_call_are_judged_one_by_one(rush: Rush, rush_worker: RushWorker) -> None:
    async with heard(rush) as events:
        keys = await rush_worker.push_running_tasks([XS] * 6)
        await rush.stop_when(finished=2, failed=9, target={"y": 0})
        await asyncio.gather(*[rush_worker.finish_tasks(key, [{"y": 1}]) for key in keys])
        (stopped,) = await events.until(NetworkStopped)
        await wait_until(lambda: sum(len(event.keys) for event in events.of(TasksFinished)) == 6)
        ended = {key: event.seq for event in events.of(TasksFinished) for key in event.keys}
        assert sum(seq < stopped.seq for seq in ended.values()) == 2
        assert len(events.of(NetworkStopped)) == 1


async def test_what_is_no_start_continues_in_a_stopped_network(rush: Rush, rush_worker: RushWorker) -> None:
    async with heard(rush) as events:
        (retried,) = await rush.push_tasks([XS], retries=1)
        assert await rush_worker.pop_task(0) is not None
        running, cancelled = await rush_worker.push_running_tasks([XS] * 2)
        reason = await rush.stop("enough")
        await rush.push_tasks([XS])
        await rush.push_finished_tasks([XS], [{"y": 1}])
        await rush.push_failed_tasks([XS])
        await rush_worker.finish_tasks(running, [{"y": 1}])
        await rush.cancel_tasks(cancelled)
        await rush.retry_tasks(cancelled)
        await rush._net.workers.lose([rush_worker.worker_id], "killed", KILLED)  # pyright: ignore[reportPrivateUsage]
        assert {retried, cancelled} < set((await rush.keys_with_state("queued"))["queued"])
        assert await rush.counts() == (3, 0, 2, 1)
        assert rush.stop_reason == reason
        await wait_until(lambda: len(events.of(TasksQueued)) == 4)
        assert_no_start_while_stopped(events.events)


# a stop by hand, and which rules may be set


async def test_a_network_is_stopped_by_hand_from_any_client(rush: Rush, rush_worker: RushWorker, elsewhere: Rush) -> None:
    reason = await elsewhere.stop("the machine is needed")
    assert_reason(reason, "manual", "the machine is needed")
    assert str(reason) == "manual: the machine is needed"
    await wait_until(lambda: rush.stop_reason == reason and rush_worker.terminated)
    assert await rush_worker.stop("again") == reason
    assert await rush.stop() == reason


async def test_without_a_reason_one_is_given(rush: Rush) -> None:
    assert_reason(await rush.stop(), "manual", "stopped by hand")


async def test_a_stop_creates_the_network_which_no_task_then_enters(rush: Rush) -> None:
    async with RushWorker(rush.network_id, rush.config) as worker:
        await worker.stop("ü" * 200)
        assert await worker.push_running_tasks([XS]) == []


async def test_the_same_rules_again_change_nothing_also_on_a_stopped_network(rush: Rush, raw: Any) -> None:
    rules: dict[str, Any] = {"finished": 2, "failed": 9, "seconds": 60, "target": {"y": 0}, "patience": ("y", 50)}
    await rush.stop_when(**rules)
    await rush.push_finished_tasks([XS], [{"y": 3}])
    before = meta(rush, raw)
    assert await rush.stop_when(**rules) is None
    again: dict[str, Any] = {**rules, "target": {"y": 0.0}, "patience": ["y", 50]}
    assert await rush.stop_when(**again) is None
    assert meta(rush, raw) == before
    await rush.push_finished_tasks([XS], [{"y": 3}])
    before = meta(rush, raw)
    assert_reason(await rush.stop_when(**rules), "finished", "2 tasks have finished")
    assert meta(rush, raw) == before


async def test_whether_larger_is_better_means_nothing_without_an_output(rush: Rush, raw: Any) -> None:
    await rush.stop_when(finished=5)
    before = meta(rush, raw)
    await rush.stop_when(finished=5, maximize=True)
    assert meta(rush, raw) == before


async def test_rules_replace_all_that_were_there(rush: Rush) -> None:
    await rush.stop_when(finished=2, failed=2)
    await rush.stop_when(finished=3)
    await rush.push_failed_tasks([XS] * 4)
    await rush.push_finished_tasks([XS] * 2, [{"y": 1}] * 2)
    assert rush.stop_reason is None
    await rush.push_finished_tasks([XS], [{"y": 1}])
    assert rush.stop_reason is not None


@pytest.mark.parametrize("by_hand", [True, False])
async def test_other_rules_on_a_stopped_network_are_an_error(rush: Rush, raw: Any, by_hand: bool) -> None:
    if by_hand:
        await rush.stop("enough")
    else:
        await rush.stop_when(finished=1)
        await rush.push_finished_tasks([XS], [{"y": 1}])
    before = meta(rush, raw)
    with pytest.raises(NetworkStateError, match=r"has stopped \((manual|finished): .*\): set other rules with `resume"):
        await rush.stop_when(finished=5)
    assert meta(rush, raw) == before


async def test_a_resumption_lifts_the_stop_and_sets_the_rules_given(
    rush: Rush, rush_worker: RushWorker, elsewhere: Rush
) -> None:
    async with heard(elsewhere) as events:
        await rush.stop_when(finished=1)
        await finish(rush_worker, 1)
        assert rush_worker.terminated
        assert await rush_worker.push_running_tasks([XS]) == []
        await elsewhere.resume(finished=2)
        await wait_until(lambda: not rush_worker.terminated and rush.stop_reason is None)
        assert elsewhere.stop_reason is None
        await finish(rush_worker, 1)
        assert_reason(rush_worker.stop_reason, "finished", "2 tasks have finished")
        await events.until(NetworkStopped, 2)
        (resumed,) = events.of(NetworkResumed)
        assert [type(event) for event in events.events if event.seq >= resumed.seq] == [
            *(NetworkResumed, TasksStarted, TasksFinished, NetworkStopped)
        ]
        assert_no_start_while_stopped(events.events)


async def test_a_resumption_without_rules_drops_all(rush: Rush, rush_worker: RushWorker, raw: Any) -> None:
    await rush.stop_when(finished=1)
    await finish(rush_worker, 1)
    await rush.resume()
    assert not {b"stop", b"rules"} & meta(rush, raw).keys()
    await wait_until(lambda: not rush_worker.terminated)
    await finish(rush_worker, 1, 2, 3)
    assert rush_worker.stop_reason is None


@pytest.mark.parametrize(
    ("rules", "rule"),
    [
        ({"finished": 3}, "finished"),
        ({"failed": 2, "finished": 50}, "failed"),
        ({"target": {"y": 1}}, "target"),
        ({"target": {"y": 2}, "maximize": True, "seconds": 5}, "target"),
    ],
)
async def test_a_resumption_with_a_rule_that_is_true_already_changes_nothing(
    rush: Rush, rush_worker: RushWorker, raw: Any, rules: dict[str, Any], rule: str
) -> None:
    await rush.push_finished_tasks([XS] * 3, [{"y": 1}, {"y": 2}, {"y": math.nan}])
    await rush.push_failed_tasks([XS] * 2)
    reason = await rush.stop_when(failed=1)
    before = meta(rush, raw)
    with pytest.raises(ValueError, match=rf"the rule '{rule}' is true already.*3 tasks have finished and 2 have failed"):
        await rush.resume(**rules)
    assert meta(rush, raw) == before
    assert rush.stop_reason == reason
    assert await rush_worker.push_running_tasks([XS]) == []


async def test_patience_and_time_begin_anew_with_a_resumption(rush: Rush, rush_worker: RushWorker) -> None:
    await rush.stop_when(patience=("y", 2))
    await finish(rush_worker, 1, 1, 1)
    assert rush_worker.terminated
    await rush.resume(patience=("y", 2), seconds=60)
    await wait_until(lambda: not rush_worker.terminated)
    await finish(rush_worker, 1)
    assert not rush_worker.terminated
    await finish(rush_worker, 1)
    assert_reason(rush_worker.stop_reason, "patience", "y has not improved in 2 finished tasks; its best is 1")


async def test_resuming_a_network_that_runs_changes_its_rules_only(rush: Rush) -> None:
    async with heard(rush) as events:
        await rush.stop_when(finished=1)
        await rush.resume(finished=5)
        await rush.push_finished_tasks([XS] * 2, [{"y": 1}] * 2)
        await events.until(TasksFinished)
        assert rush.stop_reason is None
        assert not events.of(NetworkResumed)
        assert [event.seq for event in events.of(TasksFinished)] == [3]  # both changes of rules are events for clients
        assert not events.of(EventsMissed)


async def test_resuming_a_network_that_does_not_exist_creates_no_key(rush: Rush, raw: Any) -> None:
    await rush.resume()
    assert raw.keys("*") == []


async def test_a_worker_that_was_asked_to_stop_stays_asked_after_a_resumption(rush: Rush, rush_worker: RushWorker) -> None:
    membership_of(rush_worker).request_stop()
    await rush.stop()
    await rush.resume()
    assert rush_worker.stop_reason is None
    assert rush_worker.terminated


@pytest.mark.parametrize("workers", [False, True])
@pytest.mark.parametrize("stop", [False, True])
async def test_a_reset_clears_the_stop_and_the_rules(rush: Rush, elsewhere: Rush, raw: Any, workers: bool, stop: bool) -> None:
    watched = elsewhere.stop_reason
    await rush.stop_when(target={"y": 0}, patience=("y", 2), finished=9)
    await rush.push_finished_tasks([XS] * 2, [{"y": 1}] * 2)
    if stop:
        await rush.stop()
        await wait_until(lambda: elsewhere.stop_reason is not None)
    await rush.reset(workers=workers)
    assert watched is None
    assert rush.stop_reason is None
    await wait_until(lambda: elsewhere.stop_reason is None)
    assert not {b"stop", b"rules"} & meta(rush, raw).keys()
    async with RushWorker(rush.network_id, rush.config) as worker:
        await finish(worker, *range(12))
        assert worker.stop_reason is None


# how the stop is heard


async def test_a_worker_that_joins_a_stopped_network_learns_it_by_its_registration(
    rush: Rush, elsewhere: Rush, raw: Any
) -> None:
    await elsewhere.stop("enough")
    async with RushWorker(rush.network_id, replace(rush.config, retry_deadline=22.0)) as worker:
        assert membership_of(worker).terminated
        before = n_calls(raw)
        assert await worker.pop_task(None) is None
        assert [task async for task in worker.tasks()] == []
        assert n_calls(raw) == before


async def test_a_manager_elsewhere_that_only_watches_hears_the_stop(
    rush: Rush, rush_worker: RushWorker, elsewhere: Rush
) -> None:
    assert elsewhere.stop_reason is None
    assert elsewhere.n_running_workers in (0, 1)
    await wait_until(lambda: elsewhere.n_running_workers == 1)
    await rush.stop_when(finished=1)
    await finish(rush_worker, 1)
    await wait_until(lambda: elsewhere.stop_reason is not None)
    assert elsewhere.stop_reason == rush.stop_reason
    await rush.resume()
    await wait_until(lambda: elsewhere.stop_reason is None)


async def test_opening_a_stopped_network_tells_its_reason(rush: Rush) -> None:
    reason = await rush.stop("enough")
    async with Rush(rush.network_id, replace(rush.config, retry_deadline=23.0)) as late:
        assert late.stop_reason == reason


async def test_a_worker_that_waits_hears_of_a_stop_that_came_while_the_line_was_cut(rush: Rush, proxy: Proxy) -> None:
    async with RushWorker(rush.network_id, rush.config.at(proxy.url)) as worker:
        popping = await waits(worker.pop_task(None), worker)
        proxy.refuse()
        proxy.cut_all()
        reason = await rush.stop("during the outage")
        proxy.refuse(False)
        assert await asyncio.wait_for(popping, SOON) is None
        assert worker.stop_reason == reason


async def test_a_stop_and_a_resumption_during_an_outage_leave_a_worker_working(rush: Rush, proxy: Proxy) -> None:
    async with RushWorker(rush.network_id, rush.config.at(proxy.url)) as worker:
        popping = await waits(worker.pop_task(None), worker)
        proxy.refuse()
        proxy.cut_all()
        await rush.stop("for a moment")
        await rush.push_tasks([XS])
        await rush.resume()
        proxy.refuse(False)
        assert await asyncio.wait_for(popping, SOON) is not None
        assert not worker.terminated


async def test_an_idle_worker_that_only_reads_terminated_hears_of_a_stop_during_an_outage(rush: Rush, proxy: Proxy) -> None:
    """It follows no events: its subscription to requests comes back, or a heartbeat tells."""
    async with RushWorker(rush.network_id, rush.config.at(proxy.url)) as worker:
        proxy.refuse()
        proxy.cut_all()
        await rush.stop("during the outage")
        proxy.refuse(False)
        await wait_until(lambda: worker.terminated)
        await rush.resume()
        await wait_until(lambda: not worker.terminated)


async def test_a_server_restored_from_older_data_turns_terminated_back(rush: Rush, rush_worker: RushWorker, raw: Any) -> None:
    network = rush._net  # pyright: ignore[reportPrivateUsage]
    await rush.push_tasks([XS] * 2)
    assert rush.stop_reason is None
    dump = {name: raw.dump(name) for name in raw.keys(f"rush:{{{rush.network_id}}}:*")}
    await rush.push_tasks([XS] * 2)
    await rush.stop("what was lost")
    assert rush_worker.terminated
    for name, value in dump.items():
        raw.restore(name, 0, value, replace=True)
    await rush.counts()
    assert network.position.n_rollbacks == 1
    assert not rush_worker.terminated
    assert rush.stop_reason is None
    assert await asyncio.wait_for(rush_worker.pop_task(), SOON) is not None


async def test_workers_started_on_a_stopped_network_end_at_once_and_one_warning_tells_why(
    rush: Rush, caplog: pytest.LogCaptureFixture
) -> None:
    async def loop(worker: RushWorker) -> None:
        async with worker.task(XS) as task:
            task.ys = {"y": 1}

    await rush.stop("enough")
    await rush.start_workers(loop, 3)
    await rush.join_workers()
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == [
        f"network {rush.network_id!r} has stopped (manual: enough): the workers started just now take no task. "
        "`resume(...)` lifts the stop"
    ]
    assert (await rush.worker_info())["state"].to_list() == ["terminated"] * 3
    assert await rush.counts() == (0, 0, 0, 0)


# waiting for the stop


async def test_waiting_for_the_stop_returns_its_reason_while_tasks_still_run(rush: Rush, rush_worker: RushWorker) -> None:
    waiting = await waits(rush.wait_until_stopped(), rush)
    await rush_worker.push_running_tasks([XS])
    reason = await rush_worker.stop("enough")
    assert await asyncio.wait_for(waiting, SOON) == reason
    assert rush.n_running_tasks == 1
    assert await rush.wait_until_stopped(timeout=0) == reason
    assert await rush_worker.wait_until_stopped() == reason


async def test_waiting_for_the_stop_asks_nothing_while_tasks_come_and_go(
    rush: Rush, rush_worker: RushWorker, elsewhere: Rush, raw: Any
) -> None:
    waiting = await waits(elsewhere.wait_until_stopped(), elsewhere)
    before = raw.info("commandstats")["cmdstat_hgetall"]["calls"]
    await finish(rush_worker, *range(10))
    assert raw.info("commandstats")["cmdstat_hgetall"]["calls"] == before
    await rush.stop()
    await asyncio.wait_for(waiting, SOON)


async def test_waiting_for_the_stop_ends_in_time(rush: Rush, rush_worker: RushWorker) -> None:
    with pytest.raises(RushTimeoutError, match=r"not stopped within 0 s: there are 0 queued"):
        await rush.wait_until_stopped(timeout=0)
    begin = time.monotonic()
    with pytest.raises(RushTimeoutError, match=r"the network has not stopped within 0\.1 s: there are 0 queued, 0 running"):
        await rush.wait_until_stopped(timeout=0.1)
    assert time.monotonic() - begin >= 0.09


async def test_without_a_worker_that_starts_or_runs_no_client_waits_for_the_stop(rush: Rush) -> None:
    with pytest.raises(TasksNotDoneError, match=r"no worker is starting or running, and the network has not stopped\..*ever"):
        await asyncio.wait_for(rush.wait_until_stopped(), SOON)
    waiting = await waits(rush.wait_until_stopped(need_workers=False), rush)
    reason = await rush.stop()
    assert await asyncio.wait_for(waiting, SOON) == reason


async def test_the_last_worker_that_fails_ends_the_wait_with_its_failure(rush: Rush, elsewhere: Rush) -> None:
    async def loop(worker: RushWorker) -> None:
        await worker.wait_until(lambda counts: counts.queued > 0)
        raise ArithmeticError("n - 1 have finished")

    await rush.stop_when(finished=1)
    await rush.start_workers(loop)
    await rush.wait_for_workers(1)
    waiting = await waits(elsewhere.wait_until_stopped(), elsewhere)
    await rush.push_tasks([XS])
    with pytest.raises(TasksNotDoneError, match=r"failed: ArithmeticError: n - 1 have finished"):
        await asyncio.wait_for(waiting, SOON)


@pytest.mark.parametrize("after", range(6))
async def test_a_wait_for_the_stop_that_is_cancelled_while_something_changes_ends(rush: Rush, after: int) -> None:
    await rush.stop_when(seconds=1_000)  # so that it waits no longer than that
    waiting = await waits(rush.wait_until_stopped(need_workers=False), rush)
    for wait in rush._net.feed._end_waits:  # pyright: ignore[reportPrivateUsage]
        wait.wake()
    for _ in range(after):
        await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting], timeout=SOON)
    assert waiting.cancelled()


async def test_rules_that_change_while_it_waits_are_judged_in_their_time(rush: Rush, rush_worker: RushWorker) -> None:
    await rush.stop_when(seconds=60)
    waiting = await waits(rush.wait_until_stopped(), rush)
    await rush_worker.stop_when(seconds=0.2)
    assert_reason(await asyncio.wait_for(waiting, SOON), "seconds", "0.2 seconds have passed")
    await rush.resume(seconds=0.2)
    waiting = await waits(rush.wait_until_stopped(), rush)
    await rush_worker.stop_when(seconds=60)
    done, _ = await asyncio.wait([waiting], timeout=0.4)
    assert not done
    await rush.stop()
    assert_reason(await asyncio.wait_for(waiting, SOON), "manual", "stopped by hand")


@pytest.mark.parametrize("end", ["finish", "requeue", "return", "at once"])
async def test_waiting_for_tasks_ends_once_only_queued_ones_are_left(
    rush: Rush, rush_worker: RushWorker, elsewhere: Rush, end: str
) -> None:
    keys = await rush.push_tasks([XS] * 3, retries=1)
    if end != "at once":
        assert await rush_worker.pop_task(0) is not None
    waiting = await waits(elsewhere.wait_for_tasks(keys, need_workers=False), elsewhere)
    await rush.stop("enough")
    if end != "at once":
        done, _ = await asyncio.wait([waiting], timeout=0.2)
        assert not done  # one still runs
    left = keys
    match end:
        case "finish":
            await rush_worker.finish_tasks(keys[0], [{"y": 1}])
            left = keys[1:]
        case "requeue":
            await rush._net.workers.lose([rush_worker.worker_id], "killed", KILLED)  # pyright: ignore[reportPrivateUsage]
        case "return":
            await free_by_return(rush, rush_worker, keys)
        case _:
            pass
    with pytest.raises(TasksNotDoneError, match=r"has stopped \(manual: enough\), and [23] of these tasks are queued") as error:
        await asyncio.wait_for(waiting, SOON)
    assert error.value.pending == left


async def test_waiting_for_tasks_of_a_stopped_network_continues_while_they_run(rush: Rush, rush_worker: RushWorker) -> None:
    keys = await rush_worker.push_running_tasks([XS] * 2)
    await rush.stop()
    waiting = await waits(rush.wait_for_tasks(keys), rush)
    await rush_worker.finish_tasks(keys, [{"y": 1}, {"y": 2}])
    assert [task.ys for task in await asyncio.wait_for(waiting, SOON)] == [{"y": 1}, {"y": 2}]


# arguments


@pytest.mark.parametrize("call", ["stop_when", "resume"])
@pytest.mark.parametrize(
    ("rules", "error", "words"),
    [
        ({"finished": 0}, ValueError, "finished must be at least 1, not 0"),
        ({"failed": -1}, ValueError, "failed must be 0 to"),
        ({"finished": 1.5}, TypeError, "finished must be a whole number, not float"),
        ({"seconds": 0}, ValueError, "seconds must be positive, not 0"),
        ({"seconds": math.nan}, ValueError, "seconds must be finite, not nan"),
        ({"seconds": True}, TypeError, "seconds must be a number, not bool"),
        ({"target": {"y": math.inf}}, ValueError, "target of 'y' must be finite, not inf"),
        ({"target": {"y": "0.4"}}, TypeError, "target of 'y' must be a number, not str"),
        ({"target": {"y": 1, "z": 2}}, TypeError, "target must be a mapping of one output"),
        ({"target": {}}, TypeError, "target must be a mapping of one output"),
        ({"target": 0.4}, TypeError, "target must be a mapping of one output"),
        ({"target": {1: 0.4}}, ValueError, "an output has a name of 1 to 100 characters, not 1"),
        ({"target": {"y" * 101: 0.4}}, ValueError, "an output has a name of 1 to 100 characters"),
        ({"patience": "yz"}, TypeError, "patience must be an output and a number of tasks"),
        ({"patience": ("y",)}, TypeError, "patience must be an output and a number of tasks"),
        ({"patience": ("y", 0)}, ValueError, "patience must be at least 1, not 0"),
        ({"patience": ("", 5)}, ValueError, "an output has a name of 1 to 100 characters"),
        ({"patience": ("y", 5), "target": {"z": 1}}, ValueError, "target and patience judge one output: not 'z' and 'y'"),
        ({"finished": 5, "maximize": 1}, TypeError, "maximize must be True or False, not 1"),
    ],
    ids=repr,
)
async def test_rules_that_cannot_hold_are_refused(
    rush: Rush, raw: Any, call: str, rules: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        await getattr(rush, call)(**rules)
    assert raw.keys("*") == []


async def test_a_stop_without_a_rule_or_with_an_impossible_reason_is_refused(rush: Rush, raw: Any) -> None:
    for maximize in (False, True):
        with pytest.raises(ValueError, match="stop_when needs a rule: give finished="):
            await rush.stop_when(maximize=maximize)
    for why in ("", "x" * 201):
        with pytest.raises(ValueError, match="why must have 1 to 200 characters, not"):
            await rush.stop(why)
    with pytest.raises(TypeError, match="why must be a string, not int"):
        await rush.stop(5)  # pyright: ignore[reportArgumentType]
    assert raw.keys("*") == []


async def test_numbers_of_numpy_are_limits(rush: Rush) -> None:
    patience: Any = ("y", np.int32(9))
    rules: dict[str, Any] = {"finished": np.int64(2), "seconds": np.float32(60), "target": {"y": np.float64(0)}}
    await rush.stop_when(**rules, patience=patience)
    await rush.push_finished_tasks([XS] * 2, [{"y": 1}] * 2)
    assert_reason(rush.stop_reason, "finished", "2 tasks have finished")


async def test_every_worker_may_set_the_same_rules(rush: Rush) -> None:
    """A loop that sets its rules itself: each worker does, and exactly so many tasks finish."""

    async def loop(worker: RushWorker) -> None:
        await worker.stop_when(finished=20)
        while not worker.terminated:
            async with worker.task(XS) as task:
                task.ys = {"y": 1}

    await rush.start_workers(loop, 5)
    assert_reason(await asyncio.wait_for(rush.wait_until_stopped(), 10), "finished", "20 tasks have finished")
    await rush.join_workers()
    assert await rush.counts() == (0, 0, 20, 0)
    assert {row.state for row in await rush._net.workers.read()} == {"terminated"}  # pyright: ignore[reportPrivateUsage]
    assert not (await rush.fetch_failed_tasks()).height


async def test_events_of_failures_are_heard_beside_the_stop(rush: Rush, rush_worker: RushWorker) -> None:
    async with heard(rush) as events:
        await rush.stop_when(failed=1)
        (key,) = await rush_worker.push_running_tasks([XS])
        await rush_worker.fail_tasks(key)
        (stopped,) = await events.until(NetworkStopped)
        (failed,) = events.of(TasksFailed)
        assert (failed.keys, failed.seq) == ((key,), stopped.seq - 1)


@pytest.mark.parametrize("after", [0, -1, 2e9, math.nan])
async def test_a_time_to_live_is_a_number_of_seconds_above_0(rush: Rush, after: float) -> None:
    with pytest.raises(ValueError, match="after"):
        await rush.expire(after)
    with pytest.raises(TypeError, match="after"):
        await rush.expire("7d")  # pyright: ignore[reportArgumentType]
