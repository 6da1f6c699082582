"""Tasks as blocks: every way out of a block ends its task, and a budget is exact."""

# A task that is used after `pytest.raises` was set before the block raised.
# pyright: reportPossiblyUnboundVariable=false

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest

from rush_async import (
    Counts,
    EncodeError,
    Failure,
    NetworkStateError,
    Rush,
    RushClient,
    RushWorker,
    Task,
    TasksStarted,
    WorkerLostError,
)
from rush_async.testing import wait_until
from rush_async.worker.worker import membership_of

XS = {"x1": 1.0, "x2": 2.0}


async def get(client: RushClient, key: str) -> Task:
    (task,) = await client.get_tasks(key)
    assert task is not None
    return task


async def failure_of(client: RushClient, key: str) -> Failure:
    task = await get(client, key)
    assert task.state == "failed"
    assert task.failure is not None
    return task.failure


async def kill(rush: Rush, worker: RushWorker) -> None:
    """Kills a worker on the server alone, as a kill request does."""
    killed = Failure("killed", None, "Worker was killed")
    assert await rush._net.workers.lose([worker.worker_id], "killed", killed, killed)  # pyright: ignore[reportPrivateUsage]


async def ask_to_stop(rush: Rush, *workers: RushWorker) -> None:
    ids = [worker.worker_id for worker in workers]
    assert await rush._net.workers.ask_to_stop(ids) == ids  # pyright: ignore[reportPrivateUsage]


@asynccontextmanager
async def workers(rush: Rush, n: int, *, n_processes: int = 1) -> AsyncGenerator[list[RushWorker]]:
    """Opens workers that use as many connections as workers in `n_processes` processes."""
    async with AsyncExitStack() as stack:
        configs = [replace(rush.config, response_timeout=30.0 + at) for at in range(n_processes)]
        yield [await stack.enter_async_context(RushWorker(rush.network_id, configs[at % n_processes])) for at in range(n)]


# pushed as running


async def test_a_block_finishes_its_task_with_the_ys_set_in_it(rush: Rush, rush_worker: RushWorker) -> None:
    async with rush_worker.task(XS, xs_extra={"seed": 1}) as task:
        assert task is not None
        assert (task.state, task.xs, task.xs_extra, task.worker_id) == ("running", XS, {"seed": 1}, rush_worker.worker_id)
        assert task.ys is None
        running = await get(rush, task.key)
        assert (running.state, running.xs, running.xs_extra, running.attempt) == ("running", XS, {"seed": 1}, task.attempt)
        task.ys = {"y": task.xs["x1"] + task.xs["x2"]}
        task.ys_extra = {"note": "good"}
    assert task.state == "finished"
    done = await get(rush, task.key)
    assert (done.state, done.ys, done.ys_extra, done.worker_id) == (
        "finished",
        {"y": 3.0},
        {"note": "good"},
        rush_worker.worker_id,
    )


async def test_a_block_without_async_is_an_error_that_says_so(rush: Rush, rush_worker: RushWorker) -> None:
    block: Any = rush_worker.task(XS)
    with pytest.raises(TypeError, match=r"`async with rush.task\(...\) as task:`"), block:
        pass
    await rush.push_tasks([XS])
    task: Any = await rush_worker.pop_task()
    with pytest.raises(TypeError, match="`async with task:`"), task:
        pass
    assert await rush.counts() == Counts(running=1)


async def test_a_block_makes_two_calls(rush: Rush, rush_worker: RushWorker, raw: Any) -> None:
    async with rush_worker.task(XS) as task:
        task.ys = XS
    before = raw.info("commandstats")["cmdstat_evalsha"]["calls"]
    async with rush_worker.task(XS) as task:
        task.ys = XS
    assert raw.info("commandstats")["cmdstat_evalsha"]["calls"] == before + 2


async def test_blocks_accept_dataclasses_as_inputs_and_outputs(rush: Rush, rush_worker: RushWorker) -> None:
    @dataclass
    class Point:
        x1: float

    async with rush_worker.task(Point(2.0), xs_extra=Point(3.0)) as task:
        assert (task.xs, task.xs_extra) == ({"x1": 2.0}, {"x1": 3.0})
        task.ys = Point(4.0)
        task.ys_extra = Point(5.0)
    done = await get(rush, task.key)
    assert (done.xs, done.xs_extra, done.ys, done.ys_extra) == ({"x1": 2.0}, {"x1": 3.0}, {"x1": 4.0}, {"x1": 5.0})


async def test_changing_xs_in_a_block_changes_neither_the_stored_task_nor_the_callers_xs(
    rush: Rush, rush_worker: RushWorker
) -> None:
    xs = {"x1": 1.0}
    async with rush_worker.task(xs) as task:
        task.xs["x1"] = 5.0
        task.ys = {"y": 1}
    assert xs == {"x1": 1.0}
    assert (await get(rush, task.key)).xs == {"x1": 1.0}


async def test_an_exception_fails_the_task_and_propagates(rush: Rush, rush_worker: RushWorker) -> None:
    with pytest.raises(ZeroDivisionError):
        async with rush_worker.task(XS) as task:
            _ = 1 / 0
    assert task.state == "failed"
    failure = await failure_of(rush, task.key)
    assert (failure.kind, failure.type, failure.message) == ("error", "ZeroDivisionError", "division by zero")
    assert "_ = 1 / 0" in (failure.traceback or "")
    assert task.failure == failure


@pytest.mark.parametrize("catch", [ZeroDivisionError, ArithmeticError, (KeyError, ArithmeticError), Exception])
async def test_an_exception_that_catch_names_fails_the_task_and_does_not_propagate(
    rush: Rush, rush_worker: RushWorker, catch: Any
) -> None:
    async with rush_worker.task(XS, catch=catch) as task:
        _ = 1 / 0
    assert task.state == "failed"
    assert (await failure_of(rush, task.key)).type == "ZeroDivisionError"


async def test_an_exception_that_catch_does_not_name_propagates(rush: Rush, rush_worker: RushWorker) -> None:
    with pytest.raises(KeyError):
        async with rush_worker.task(XS, catch=(ArithmeticError,)) as task:
            raise KeyError("x")
    assert (await failure_of(rush, task.key)).type == "KeyError"


async def test_a_block_left_without_ys_fails_its_task_and_raises(rush: Rush, rush_worker: RushWorker) -> None:
    with pytest.raises(ValueError, match=r"without setting task\.ys"):
        async with rush_worker.task(XS) as task:
            pass
    failure = await failure_of(rush, task.key)
    assert (failure.kind, failure.type) == ("error", "ValueError")


async def test_a_block_left_by_return_or_break_finishes_its_task(rush: Rush, rush_worker: RushWorker) -> None:
    async def evaluate() -> str:
        async with rush_worker.task(XS) as task:
            task.ys = {"y": 1}
            return task.key

    key = await evaluate()
    for _ in range(3):
        async with rush_worker.task(XS) as task:
            task.ys = {"y": 1}
            break
    assert await rush.counts() == Counts(finished=2)
    assert (await get(rush, key)).state == "finished"


@pytest.mark.parametrize(
    ("ys", "kind", "words"),
    [
        ({"model": object()}, EncodeError, ["ys['model']", "object"]),
        ([1.0], TypeError, ["ys", "list", "mapping"]),
        ({2: 1.0}, TypeError, ["ys", "2", "int"]),
    ],
)
async def test_ys_that_cannot_be_stored_fail_the_task_and_raise(
    rush: Rush, rush_worker: RushWorker, ys: Any, kind: type[Exception], words: list[str]
) -> None:
    with pytest.raises(kind) as caught:
        async with rush_worker.task(XS) as task:
            task.ys = ys
    assert [word for word in words if word not in str(caught.value)] == []
    assert (await failure_of(rush, task.key)).type == kind.__name__


async def test_ys_over_max_record_size_fail_the_task_and_raise(rush: Rush) -> None:
    async with RushWorker(rush.network_id, replace(rush.config, max_record_size=1_000)) as worker:
        with pytest.raises(EncodeError, match="max_record_size"):
            async with worker.task(XS) as task:
                task.ys = {"y": "a" * 2_000}
        assert (await failure_of(rush, task.key)).type == "EncodeError"


async def test_ys_set_before_an_exception_do_not_finish_the_task(rush: Rush, rush_worker: RushWorker) -> None:
    with pytest.raises(KeyError):
        async with rush_worker.task(XS) as task:
            task.ys = {"y": 1}
            raise KeyError("x")
    assert (await get(rush, task.key)).ys is None


async def test_blocks_may_be_nested_and_open_side_by_side(rush: Rush, rush_worker: RushWorker) -> None:
    async with rush_worker.task({"n": 0}) as outer:
        async with rush_worker.task({"n": 1}) as inner:
            inner.ys = {"y": 1}
        assert inner.state == "finished"
        outer.ys = {"y": 0}

    async def one(n: int) -> None:
        async with rush_worker.task({"n": n}) as task:
            task.ys = {"y": n}

    await asyncio.gather(*[one(n) for n in range(2, 202)])
    frame = await rush.fetch_finished_tasks()
    assert sorted(frame["n"]) == list(range(202))
    assert frame["n"].to_list() == frame["y"].to_list()


async def test_a_task_finished_by_a_call_in_its_block_ends_once(
    rush: Rush, rush_worker: RushWorker, caplog: pytest.LogCaptureFixture
) -> None:
    async with rush_worker.task(XS) as task:
        await rush_worker.finish_tasks(task.key, [{"y": "by hand"}])
        task.ys = {"y": "by the block"}
    assert (await get(rush, task.key)).ys == {"y": "by hand"}
    assert any(task.key in text for text in caplog.messages)


# cancelled, killed, out of time


async def test_a_block_cancelled_from_outside_fails_its_task_and_stays_cancelled(rush: Rush, rush_worker: RushWorker) -> None:
    opened: asyncio.Future[Task] = asyncio.get_running_loop().create_future()

    async def run() -> None:
        async with rush_worker.task(XS) as task:
            opened.set_result(task)
            await asyncio.Event().wait()

    running = asyncio.create_task(run())
    task = await opened
    running.cancel("enough")
    with pytest.raises(asyncio.CancelledError):
        await running
    assert running.cancelled()
    assert task.state == "failed"
    failure = await failure_of(rush, task.key)
    assert (failure.kind, failure.type) == ("cancelled", "CancelledError")


@pytest.mark.parametrize("catch", [BaseException, asyncio.CancelledError, (Exception, asyncio.CancelledError)])
async def test_a_cancellation_is_never_caught(rush: Rush, rush_worker: RushWorker, catch: Any) -> None:
    opened = asyncio.Event()

    async def run() -> None:
        async with rush_worker.task(XS, catch=catch):
            opened.set()
            await asyncio.Event().wait()
        raise AssertionError("the cancellation must propagate")

    running = asyncio.create_task(run())
    await opened.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert await rush.counts() == Counts(failed=1)


async def test_a_block_that_is_cancelled_repeatedly_fails_its_task(rush: Rush, rush_worker: RushWorker) -> None:
    opened = asyncio.Event()

    async def run() -> None:
        async with rush_worker.task(XS):
            opened.set()
            await asyncio.Event().wait()

    running = asyncio.create_task(run())
    await opened.wait()
    while not running.done():
        running.cancel()
        await asyncio.sleep(0)
    assert running.cancelled()
    assert await rush.counts() == Counts(failed=1)


async def test_a_timeout_around_a_block_raises_in_the_caller_and_fails_the_task_as_cancelled(
    rush: Rush, rush_worker: RushWorker
) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            async with rush_worker.task(XS) as task:
                await asyncio.Event().wait()
    assert (await failure_of(rush, task.key)).kind == "cancelled"


async def test_a_blocks_own_timeout_raises_and_fails_the_task(rush: Rush, rush_worker: RushWorker) -> None:
    with pytest.raises(TimeoutError):
        async with rush_worker.task(XS, timeout=0.02) as task:
            await asyncio.Event().wait()
    assert (await failure_of(rush, task.key)).kind == "timeout"
    current = asyncio.current_task()
    assert current is not None
    assert current.cancelling() == 0


async def test_a_blocks_own_timeout_may_be_caught(rush: Rush, rush_worker: RushWorker) -> None:
    async with rush_worker.task(XS, timeout=0.02, catch=TimeoutError) as task:
        await asyncio.Event().wait()
    assert (await failure_of(rush, task.key)).kind == "timeout"


async def test_a_block_that_ends_within_its_timeout_finishes_its_task(rush: Rush, rush_worker: RushWorker) -> None:
    async with rush_worker.task(XS, timeout=60) as task:
        task.ys = {"y": 1}
    assert (await get(rush, task.key)).state == "finished"


async def test_an_error_in_a_block_with_a_timeout_propagates_unchanged(rush: Rush, rush_worker: RushWorker) -> None:
    with pytest.raises(KeyError):
        async with rush_worker.task(XS, timeout=60) as task:
            raise KeyError("x")
    assert (await failure_of(rush, task.key)).kind == "error"


async def test_a_block_with_a_timeout_that_is_cancelled_from_outside_stays_cancelled(
    rush: Rush, rush_worker: RushWorker
) -> None:
    opened: asyncio.Future[Task] = asyncio.get_running_loop().create_future()

    async def run() -> None:
        async with rush_worker.task(XS, timeout=60, catch=Exception) as task:
            opened.set_result(task)
            await asyncio.Event().wait()

    running = asyncio.create_task(run())
    task = await opened
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (await failure_of(rush, task.key)).kind == "cancelled"


async def test_the_timeout_of_a_block_does_not_include_the_wait_for_a_place(rush: Rush, rush_worker: RushWorker) -> None:
    # A block's `timeout` is for its evaluation: it begins when the block opens.
    async with workers(rush, 2) as (first, second):
        (key,) = await first.push_running_tasks([XS], budget=1)

        async def wait() -> Task | None:
            async with second.task(XS, budget=1, timeout=0.05) as task:
                return task

        waiting = asyncio.create_task(wait())
        await wait_until(lambda: second._net.feed.is_watching)  # pyright: ignore[reportPrivateUsage]
        done, _ = await asyncio.wait([waiting], timeout=0.2)
        assert not done
        await first.finish_tasks(key, [{"y": 1}])
        assert await waiting is None


async def test_a_timeout_that_is_no_number_is_refused_before_there_is_a_task(rush: Rush, rush_worker: RushWorker) -> None:
    with pytest.raises(TypeError):
        async with rush_worker.task(XS, timeout="soon"):  # pyright: ignore[reportArgumentType, reportCallIssue]
            pass
    assert await rush.counts() == Counts()


async def test_the_timeout_of_a_block_begins_when_the_block_has_a_place(rush: Rush) -> None:
    async with workers(rush, 2) as (first, second):
        (key,) = await first.push_running_tasks([XS], budget=1)

        async def wait() -> None:
            async with second.task(XS, budget=1, timeout=0.1) as task:
                assert task is not None
                await second.counts()
                task.ys = {"y": 1}

        waiting = asyncio.create_task(wait())
        done, _ = await asyncio.wait([waiting], timeout=0.2)
        assert not done
        await first.fail_tasks(key)
        await waiting
        assert (await rush.counts()).finished == 1


async def test_the_task_of_a_killed_worker_fails_with_kind_killed(rush: Rush) -> None:
    opened: asyncio.Future[Task] = asyncio.get_running_loop().create_future()
    async with RushWorker(rush.network_id, rush.config) as worker:

        async def run() -> None:
            async with worker.task(XS) as task:
                opened.set_result(task)
                await asyncio.Event().wait()

        async def cancel() -> None:
            await membership_of(worker).expelled()
            running.cancel()

        running = asyncio.create_task(run())
        cancelling = asyncio.create_task(cancel())
        task = await opened
        await kill(rush, worker)
        with pytest.raises(asyncio.CancelledError):
            await running
        await cancelling
        assert await failure_of(rush, task.key) == Failure("killed", None, "Worker was killed")
        with pytest.raises(WorkerLostError, match=worker.worker_id):
            await worker.push_running_tasks([XS])
    assert await rush.counts() == Counts(failed=1)


async def test_a_block_of_a_lost_worker_raises_worker_lost_error_at_its_end(rush: Rush) -> None:
    async with RushWorker(rush.network_id, rush.config) as worker:
        with pytest.raises(WorkerLostError, match=worker.worker_id):
            async with worker.task(XS) as task:
                await kill(rush, worker)
                task.ys = {"y": 1}
        assert (await failure_of(rush, task.key)).kind == "killed"
        for call in [lambda: worker.pop_task(0), lambda: worker.pop_task(0.01), lambda: worker.pop_task(None)]:
            with pytest.raises(WorkerLostError):
                await call()
        with pytest.raises(WorkerLostError):
            async with worker.task(XS, budget=5):
                raise AssertionError("the block must not open")


async def test_the_worker_lost_error_of_another_worker_fails_the_task_of_the_block(rush: Rush, rush_worker: RushWorker) -> None:
    async with RushWorker(rush.network_id, rush.config) as other:
        await kill(rush, other)
        with pytest.raises(WorkerLostError, match=other.worker_id):
            async with rush_worker.task(XS) as task:
                await other.push_running_tasks([XS])
    assert (await failure_of(rush, task.key)).type == "WorkerLostError"


async def test_keyboard_interrupt_and_exit_fail_the_task_and_propagate(rush: Rush, rush_worker: RushWorker) -> None:
    for kind in (KeyboardInterrupt, SystemExit, GeneratorExit):
        with pytest.raises(kind):
            async with rush_worker.task(XS, catch=Exception) as task:
                raise kind
        assert (await failure_of(rush, task.key)).type == kind.__name__


async def test_catch_does_not_look_into_an_exception_group(rush: Rush, rush_worker: RushWorker) -> None:
    with pytest.raises(ExceptionGroup):
        async with rush_worker.task(XS, catch=KeyError) as task:
            async with asyncio.TaskGroup():
                raise KeyError("x")
    failure = await failure_of(rush, task.key)
    assert failure.type == "ExceptionGroup"
    assert "KeyError" in (failure.traceback or "")


# popped


async def test_a_popped_task_may_be_used_as_a_block(rush: Rush, rush_worker: RushWorker) -> None:
    (key,) = await rush.push_tasks([XS])
    task = await rush_worker.pop_task(0)
    assert task is not None
    async with task as same:
        assert same is task
        task.ys = {"y": 1}
    assert task.state == "finished"
    assert (await get(rush, key)).ys == {"y": 1}


async def test_an_exception_in_the_block_of_a_popped_task_fails_it_and_propagates(rush: Rush, rush_worker: RushWorker) -> None:
    (key,) = await rush.push_tasks([XS])
    task = await rush_worker.pop_task(0)
    assert task is not None
    with pytest.raises(KeyError):
        async with task:
            raise KeyError("x")
    assert (await failure_of(rush, key)).type == "KeyError"


async def test_tasks_ends_once_no_task_came_within_the_timeout(rush: Rush, rush_worker: RushWorker) -> None:
    keys = await rush.push_tasks([{"n": n} for n in range(5)])
    done: list[str] = []
    async for task in rush_worker.tasks(timeout=0.01):
        async with task:
            task.ys = {"y": task.xs["n"]}
        done.append(task.key)
    assert done == keys
    assert await rush.counts() == Counts(finished=5)


async def test_tasks_ends_when_a_stop_is_requested(rush: Rush, rush_worker: RushWorker) -> None:
    await rush.push_tasks([XS] * 3)
    done: list[str] = []

    async def serve() -> None:
        async for task in rush_worker.tasks():
            async with task:
                task.ys = {"y": 1}
            done.append(task.key)

    serving = asyncio.create_task(serve())
    await rush.wait_until(lambda counts: counts.finished == 3)
    await rush.push_tasks([XS])
    await rush.wait_until(lambda counts: counts.finished == 4)
    await ask_to_stop(rush, rush_worker)
    await serving
    assert rush_worker.terminated
    assert len(done) == 4


async def test_after_a_stop_request_the_running_task_ends_and_no_other_is_taken(rush: Rush, rush_worker: RushWorker) -> None:
    keys = await rush.push_tasks([XS] * 3)
    async for task in rush_worker.tasks():
        async with task:
            await ask_to_stop(rush, rush_worker)
            await wait_until(lambda: rush_worker.terminated)
            task.ys = {"y": 1}
    assert await rush.keys_with_state("finished", "queued") == {"finished": keys[:1], "queued": keys[1:]}


async def test_workers_share_the_queue_and_each_task_goes_to_one(rush: Rush) -> None:
    keys = await rush.push_tasks([{"n": n} for n in range(300)])
    async with workers(rush, 20, n_processes=3) as all_workers:

        async def serve(worker: RushWorker) -> list[str]:
            done: list[str] = []
            async for task in worker.tasks(timeout=0.05):
                async with task:
                    task.ys = {"y": task.xs["n"]}
                done.append(task.key)
            return done

        done = await asyncio.gather(*[serve(worker) for worker in all_workers])
    assert sorted(key for some in done for key in some) == sorted(keys)
    assert await rush.counts() == Counts(finished=300)


async def test_waiting_workers_are_woken_by_a_push(rush: Rush) -> None:
    async with workers(rush, 10, n_processes=2) as all_workers:
        pops = [asyncio.create_task(worker.pop_task(None)) for worker in all_workers]
        for worker in all_workers:
            await wait_until(lambda worker=worker: worker._net.feed.is_watching)  # pyright: ignore[reportPrivateUsage]
        keys = await rush.push_tasks([XS] * 10)
        tasks = await asyncio.wait_for(asyncio.gather(*pops), 5)
        assert sorted(task.key for task in tasks if task is not None) == sorted(keys)


# budgets


async def evaluate(worker: RushWorker, budget: int) -> int:
    """The tutorial's loop with a budget. Returns how many tasks this worker finished."""
    n = 0
    while True:
        async with worker.task(XS, budget=budget) as task:
            if task is None:
                return n
            await asyncio.sleep(0)
            task.ys = {"y": n}
            n += 1


@pytest.mark.parametrize(("n_workers", "n_processes"), [(1, 1), (2, 2), (64, 1), (64, 4)])
@pytest.mark.parametrize("budget", [1, 10, 100])
async def test_row_22_exactly_n_tasks_finish(rush: Rush, n_workers: int, n_processes: int, budget: int) -> None:
    async with workers(rush, n_workers, n_processes=n_processes) as all_workers:
        finished = await asyncio.wait_for(asyncio.gather(*[evaluate(worker, budget) for worker in all_workers]), 30)
    assert sum(finished) == budget
    assert await rush.counts() == Counts(finished=budget)


async def test_row_22_a_budget_of_0_or_max_failed_of_0_opens_no_block(rush: Rush, rush_worker: RushWorker) -> None:
    assert await evaluate(rush_worker, 0) == 0
    async with rush_worker.task(XS, budget=10, max_failed=0) as task:
        assert task is None
    assert await rush.counts() == Counts()


async def test_a_forgotten_check_for_a_task_is_named(rush_worker: RushWorker) -> None:
    with pytest.raises(AttributeError) as raised:
        async with rush_worker.task({"x": 1}, budget=0) as task:
            task.ys = {"y": 1}  # pyright: ignore[reportOptionalMemberAccess]
    assert "Begin it with `if task is None: break`" in "".join(traceback.format_exception(raised.value))
    with pytest.raises(AttributeError) as raised:
        async with rush_worker.task({"x": 1}, budget=0) as task:
            assert getattr(task, "no_field")  # noqa: B009
    assert not hasattr(raised.value, "__notes__")


async def test_an_output_that_is_set_item_by_item_is_named(rush_worker: RushWorker) -> None:
    with pytest.raises(TypeError) as raised:
        async with rush_worker.task({"x": 1}) as task:
            task.ys["y"] = 1
    assert raised.value.__notes__ == ['`task.ys` is None until the block sets it. Set the whole output: `task.ys = {"y": ...}`']
    (failed,) = (await rush_worker.fetch_failed_tasks())["condition"]
    assert "Set the whole output" in failed["traceback"]


async def test_row_22_a_failed_task_gives_its_place_back(rush: Rush) -> None:
    n_tries = 0

    async def run(worker: RushWorker) -> None:
        nonlocal n_tries
        while True:
            async with worker.task(XS, budget=30, catch=RuntimeError) as task:
                if task is None:
                    return
                n_tries += 1
                mine = n_tries
                await asyncio.sleep(0)
                if mine % 3 == 0:
                    raise RuntimeError("every third")
                task.ys = {"y": 1}

    async with workers(rush, 16, n_processes=2) as all_workers:
        await asyncio.wait_for(asyncio.gather(*[run(worker) for worker in all_workers]), 30)
    counts = await rush.counts()
    assert (counts.finished, counts.running, counts.queued) == (30, 0, 0)
    assert counts.failed == n_tries - 30 == n_tries // 3


async def test_row_22_the_tasks_of_a_lost_worker_give_their_places_back(rush: Rush) -> None:
    async with workers(rush, 3, n_processes=2) as (lost, *others):
        assert len(await lost.push_running_tasks([XS] * 10, budget=5)) == 5
        waiting = [asyncio.create_task(evaluate(worker, 5)) for worker in others]
        await wait_until(lambda: all(worker._net.feed.is_watching for worker in others))  # pyright: ignore[reportPrivateUsage]
        await kill(rush, lost)
        assert sum(await asyncio.wait_for(asyncio.gather(*waiting), 10)) == 5
    assert await rush.counts() == Counts(finished=5, failed=5)


async def test_row_22_a_budget_ends_once_max_failed_have_failed(rush: Rush) -> None:
    async def run(worker: RushWorker) -> int:
        n = 0
        while True:
            async with worker.task(XS, budget=100, max_failed=5, catch=RuntimeError) as task:
                if task is None:
                    return n
                n += 1
                await asyncio.sleep(0)
                raise RuntimeError("always")

    async with workers(rush, 8, n_processes=2) as all_workers:
        n_tries = sum(await asyncio.wait_for(asyncio.gather(*[run(worker) for worker in all_workers]), 10))
    counts = await rush.counts()
    assert counts == Counts(failed=n_tries)
    # Tasks that were running when the fifth failed fail as well.
    assert 5 <= counts.failed < 5 + 8


async def test_max_failed_without_a_budget_is_refused(rush_worker: RushWorker) -> None:
    with pytest.raises(ValueError, match="budget"):
        rush_worker.task(XS, max_failed=3)  # pyright: ignore[reportArgumentType]


async def test_row_22_a_block_waits_while_other_workers_run_the_last_places(rush: Rush) -> None:
    async with workers(rush, 2, n_processes=2) as (first, second):
        (key,) = await first.push_running_tasks([XS], budget=1)
        waiting = asyncio.create_task(evaluate(second, 1))
        await wait_until(lambda: second._net.feed.is_watching)  # pyright: ignore[reportPrivateUsage]
        assert not waiting.done()
        await first.fail_tasks(key, "try again")
        assert await asyncio.wait_for(waiting, 5) == 1
    assert await rush.counts() == Counts(finished=1, failed=1)


async def test_a_block_that_waits_for_a_place_sends_no_call(rush: Rush, raw: Any) -> None:
    async with workers(rush, 5) as (first, *others):
        (key,) = await first.push_running_tasks([XS], budget=1)
        waiting = [asyncio.create_task(evaluate(worker, 1)) for worker in others]
        await wait_until(lambda: others[0]._net.feed.is_watching)  # pyright: ignore[reportPrivateUsage]
        quiet = await quiet_calls(raw)
        done, _ = await asyncio.wait(waiting, timeout=0.3)
        assert not done
        assert await quiet_calls(raw) == quiet
        await first.finish_tasks(key, [{"y": 1}])
        assert await asyncio.gather(*waiting) == [0] * 4


async def quiet_calls(raw: Any) -> int:
    """Returns how many scripts were called, once the number no longer changes."""
    seen: list[int] = []

    def steady() -> bool:
        seen.append(raw.info("commandstats")["cmdstat_evalsha"]["calls"])
        return len(seen) > 5 and len(set(seen[-5:])) == 1

    await wait_until(steady)
    return seen[-1]


async def test_row_22_a_block_without_a_place_takes_a_queued_task(rush: Rush, rush_worker: RushWorker) -> None:
    (key,) = await rush.push_tasks([{"x1": "from the queue"}])
    async with rush_worker.task(XS, budget=1) as task:
        assert task is not None
        assert (task.key, task.xs) == (key, {"x1": "from the queue"})
        task.ys = {"y": 1}
    async with rush_worker.task(XS, budget=1) as task:
        assert task is None
    assert await rush.counts() == Counts(finished=1)


async def test_row_22_queued_tasks_count_and_are_run_within_the_budget(rush: Rush) -> None:
    await rush.push_tasks([XS] * 7)
    async with workers(rush, 8, n_processes=2) as all_workers:
        await asyncio.wait_for(asyncio.gather(*[evaluate(worker, 20) for worker in all_workers]), 10)
    assert await rush.counts() == Counts(finished=20)


async def test_a_wait_for_a_place_ends_when_a_stop_is_requested(rush: Rush) -> None:
    async with workers(rush, 2) as (first, second):
        await first.push_running_tasks([XS], budget=1)
        waiting = asyncio.create_task(evaluate(second, 1))
        await wait_until(lambda: second._net.feed.is_watching)  # pyright: ignore[reportPrivateUsage]
        await ask_to_stop(rush, second)
        assert await asyncio.wait_for(waiting, 5) == 0
        assert second.terminated
        assert not first.terminated
        async with second.task(XS, budget=10) as task:
            assert task is None


async def test_a_wait_for_a_place_ends_with_a_place_after_a_reset_of_the_tasks(rush: Rush) -> None:
    async with workers(rush, 3, n_processes=2) as (first, *others):
        await first.push_running_tasks([XS], budget=1)
        waiting = [asyncio.create_task(evaluate(worker, 1)) for worker in others]
        await wait_until(lambda: all(worker._net.feed.is_watching for worker in others))  # pyright: ignore[reportPrivateUsage]
        await rush.reset(workers=False)
        assert sum(await asyncio.wait_for(asyncio.gather(*waiting), 5)) == 1
    assert await rush.counts() == Counts(finished=1)


async def test_a_cancelled_wait_for_a_place_passes_its_turn_to_the_next(rush: Rush) -> None:
    async with workers(rush, 4) as (first, *others):
        (key,) = await first.push_running_tasks([XS], budget=1)
        waiting = [asyncio.create_task(evaluate(worker, 1)) for worker in others]
        await wait_until(lambda: others[0]._net.feed.is_watching)  # pyright: ignore[reportPrivateUsage]
        waiting[0].cancel()
        await asyncio.wait([waiting[0]])
        ended = asyncio.create_task(first.fail_tasks(key, "try again"))
        waiting[1].cancel()
        await ended
        assert await asyncio.wait_for(waiting[2], 5) == 1
        await asyncio.wait(waiting)
    counts = await rush.counts()
    assert (counts.finished, counts.running, counts.queued) == (1, 0, 0)


async def test_row_22_a_cancelled_block_gives_its_place_back(rush: Rush) -> None:
    async with workers(rush, 6, n_processes=2) as all_workers:

        async def run(worker: RushWorker) -> None:
            async with worker.task(XS, budget=5):
                await asyncio.Event().wait()

        hanging = [asyncio.create_task(run(worker)) for worker in all_workers]
        await rush.wait_until(lambda counts: counts.running == 5)
        for task in hanging:
            task.cancel()
        await asyncio.wait(hanging)
        finished = await asyncio.wait_for(asyncio.gather(*[evaluate(worker, 5) for worker in all_workers]), 10)
    assert sum(finished) == 5
    assert await rush.counts() == Counts(finished=5, failed=5)


# the block and its client


async def test_a_block_whose_worker_is_not_open_does_not_open(rush: Rush) -> None:
    worker = RushWorker(rush.network_id, rush.config)
    with pytest.raises(NetworkStateError, match="not open yet"):
        async with worker.task(XS):
            raise AssertionError("the block must not open")


async def test_a_block_that_ends_after_its_worker_was_closed_raises_network_state_error(
    rush: Rush, caplog: pytest.LogCaptureFixture
) -> None:
    worker = await RushWorker(rush.network_id, rush.config)
    with pytest.raises(NetworkStateError, match="closed"):
        async with worker.task(XS) as task:
            await worker.aclose()
            task.ys = {"y": 1}
    assert (await failure_of(rush, task.key)).kind == "cancelled"


async def test_an_error_in_the_block_of_a_closed_worker_propagates_unchanged(rush: Rush) -> None:
    worker = await RushWorker(rush.network_id, rush.config)
    with pytest.raises(KeyError):
        async with worker.task(XS):
            await worker.aclose()
            raise KeyError("the real one")


async def test_a_block_whose_task_was_reset_logs_a_warning_and_keeps_the_state_running(
    rush: Rush, rush_worker: RushWorker, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        async with rush_worker.task(XS) as task:
            await rush.reset(workers=False)
            task.ys = {"y": 1}
    assert task.state == "running"
    assert any(task.key in text for text in caplog.messages)
    assert await rush.counts() == Counts()


async def test_events_name_the_worker_of_a_block(rush: Rush, rush_worker: RushWorker) -> None:
    async with rush.events(TasksStarted) as events:
        async with rush_worker.task(XS) as task:
            task.ys = {"y": 1}
        async with asyncio.timeout(5):
            event = await anext(events)
    assert isinstance(event, TasksStarted)
    assert (event.keys, event.worker_id) == ((task.key,), rush_worker.worker_id)
