"""Tasks from queue to end, as every client sees them: what moves, what does not, and what is refused before a byte is sent."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from rush_async import Counts, EncodeError, Failure, NetworkStateError, Rush, RushConfig, RushConfigError, RushWorker, Task
from rush_async.testing import wait_until
from tests.proxy import Proxy

XS = {"x1": 1.0, "x2": 2.0}


def dump(raw: Any) -> dict[bytes, bytes]:
    """All that is on the server, byte for byte."""
    return {key: raw.dump(key) for key in raw.keys("*")}


def n_commands(raw: Any) -> int:
    """How many commands the server has executed, but for those that ask."""
    stats = raw.info("commandstats")
    return sum(stat["calls"] for name, stat in stats.items() if not name.startswith("cmdstat_info"))


@dataclasses.dataclass
class Point:
    x1: float
    x2: float


# queue


async def test_pushed_tasks_are_queued_under_the_keys_returned(rush: Rush) -> None:
    keys = await rush.push_tasks([XS, {"x1": 3.0}], xss_extra=[{"seed": 1}, None])
    assert len(set(keys)) == 2
    first, second = await rush.get_tasks(keys)
    assert first is not None
    assert second is not None
    assert (first.key, first.state, first.xs, first.xs_extra, first.attempt) == (keys[0], "queued", XS, {"seed": 1}, 0)
    assert (first.ys, first.failure, first.worker_id, first.started_at, first.ended_at) == (None,) * 5
    assert (second.xs, second.xs_extra) == ({"x1": 3.0}, None)
    assert first.created_at is not None
    assert abs(first.created_at - datetime.now(UTC)).total_seconds() < 60


async def test_row_12_the_queue_is_first_in_first_out(rush: Rush, rush_worker: RushWorker) -> None:
    keys = [
        *await rush.push_tasks([{"n": 0}, {"n": 1}]),
        *await rush_worker.push_tasks([{"n": 2}]),
        *await rush.push_tasks([{"n": 3}]),
    ]
    popped = [await rush_worker.pop_task(0) for _ in range(4)]
    assert [task and task.key for task in popped] == keys
    assert [task and task.xs["n"] for task in popped] == [0, 1, 2, 3]
    assert await rush_worker.pop_task(0) is None


async def test_a_bulk_push_keeps_its_order_across_calls(rush: Rush, rush_worker: RushWorker) -> None:
    keys = await rush.push_tasks({"n": n} for n in range(3_500))
    assert len(set(keys)) == 3_500
    assert (await rush.keys_with_state("queued"))["queued"] == keys
    task = await rush_worker.pop_task(0)
    assert task is not None
    assert (task.key, task.xs) == (keys[0], {"n": 0})


async def test_records_may_be_mappings_dataclasses_or_models(rush: Rush) -> None:
    class Model:
        def model_dump(self) -> dict[str, Any]:
            return {"x1": 5.0}

    keys = await rush.push_tasks([Point(1.0, 2.0), Model()])
    assert [task and task.xs for task in await rush.get_tasks(keys)] == [XS, {"x1": 5.0}]


async def test_what_was_pushed_is_not_changed_by_its_owner_later(rush: Rush, rush_worker: RushWorker) -> None:
    xs: dict[str, Any] = {"x": [1]}
    (key,) = await rush.push_tasks([xs])
    xs["x"].append(2)
    (task,) = await rush.get_tasks(key)
    assert task is not None
    assert task.xs == {"x": [1]}


async def test_row_11_pushing_nothing_gives_no_keys_and_creates_no_key(rush: Rush, rush_worker: RushWorker, raw: Any) -> None:
    before = dump(raw)
    assert await rush.push_tasks([]) == []
    assert await rush.push_finished_tasks([], []) == []
    assert await rush.push_failed_tasks([]) == []
    assert await rush_worker.push_running_tasks([]) == []
    assert await rush_worker.push_running_tasks([], budget=3) == []
    assert await rush_worker.finish_tasks([], []) == []
    assert await rush_worker.fail_tasks([]) == []
    assert await rush.retry_tasks([]) == []
    assert await rush.get_tasks([]) == []
    assert await rush.wait_for_tasks([]) == []
    assert dump(raw) == before


async def test_row_11_a_network_of_nothing_has_no_key(rush: Rush, raw: Any) -> None:
    assert await rush.push_tasks([]) == []
    assert await rush.empty_queue() == []
    assert await rush.retry_tasks() == []
    assert await rush.counts() == Counts()
    assert (await rush.fetch_tasks()).height == 0
    assert await rush.keys_with_state() == {"queued": [], "running": [], "finished": [], "failed": []}
    assert await rush.is_running_task("unknown") == [False]
    assert raw.keys("*") == []


async def test_row_11_emptying_an_empty_queue_changes_nothing(rush: Rush, raw: Any) -> None:
    await rush.push_finished_tasks([XS], [{"y": 1}])
    before = set(raw.keys("*"))
    assert await rush.empty_queue() == []
    assert set(raw.keys("*")) == before


async def test_emptying_the_queue_fails_what_was_queued(rush: Rush, rush_worker: RushWorker) -> None:
    running, *queued = await rush.push_tasks([XS] * 4)
    assert await rush_worker.pop_task(0) is not None
    assert await rush.empty_queue() == queued
    tasks = await rush.get_tasks(queued)
    assert [task and task.failure for task in tasks] == [Failure("removed", None, "Removed from queue")] * 3
    assert await rush.counts() == Counts(running=1, failed=3)
    assert await rush.is_running_task(running) == [True]


async def test_emptying_a_queue_of_thousands_moves_all_and_only_once(rush: Rush, rush_worker: RushWorker) -> None:
    keys = await rush.push_tasks([{"n": n} for n in range(2_345)])
    assert await rush.empty_queue() == keys
    assert await rush.counts() == Counts(failed=2_345)
    assert await rush.retry_tasks(keys[:2]) == keys[:2]
    task = await rush_worker.pop_task(0)
    assert task is not None
    assert task.key == keys[0]


# ends


async def test_a_task_goes_from_queue_to_finish(rush: Rush, rush_worker: RushWorker) -> None:
    (key,) = await rush.push_tasks([XS], xss_extra=[{"a": 1}])
    task = await rush_worker.pop_task(0)
    assert task is not None
    assert (task.state, task.attempt, task.worker_id, task.xs, task.xs_extra) == (
        "running",
        1,
        rush_worker.worker_id,
        XS,
        {"a": 1},
    )
    assert await rush_worker.finish_tasks(key, [{"y": 3.0}], yss_extra=[{"b": 2}]) == [key]
    (done,) = await rush.get_tasks(key)
    assert done is not None
    assert (done.state, done.ys, done.ys_extra, done.worker_id, done.attempt, done.failure) == (
        "finished",
        {"y": 3.0},
        {"b": 2},
        rush_worker.worker_id,
        1,
        None,
    )
    assert done.created_at is not None
    assert done.started_at is not None
    assert done.ended_at is not None
    assert done.created_at <= done.started_at <= done.ended_at


async def test_failures_are_given_as_exceptions_sentences_or_failures(rush: Rush, rush_worker: RushWorker) -> None:
    keys = await rush_worker.push_running_tasks([XS] * 4)
    why = Failure("timeout", None, "too slow")
    with pytest.raises(ArithmeticError) as caught:
        raise ArithmeticError("no number")
    assert await rush_worker.fail_tasks(keys, [caught.value, "broken", why, None]) == keys
    failures = [task and task.failure for task in await rush.get_tasks(keys)]
    assert failures[0] is not None
    assert (failures[0].kind, failures[0].type, failures[0].message) == ("error", "ArithmeticError", "no number")
    assert failures[0].traceback is not None
    assert "raise ArithmeticError" in failures[0].traceback
    assert failures[1:] == [Failure("error", None, "broken"), why, Failure()]


async def test_one_failure_may_stand_for_all(rush: Rush, rush_worker: RushWorker) -> None:
    keys = await rush_worker.push_running_tasks([XS] * 3)
    assert await rush_worker.fail_tasks(keys, "power cut") == keys
    keys += await rush.push_failed_tasks([XS] * 2, ValueError("elsewhere"))
    messages = [task and task.failure and task.failure.message for task in await rush.get_tasks(keys)]
    assert messages == ["power cut"] * 3 + ["elsewhere"] * 2


async def test_finished_tasks_from_elsewhere_never_started(rush: Rush) -> None:
    (key,) = await rush.push_finished_tasks([XS], [{"y": 1}], xss_extra=[{"a": 1}], yss_extra=[{"b": 2}])
    (task,) = await rush.get_tasks(key)
    assert task is not None
    assert (task.state, task.ys, task.xs_extra, task.ys_extra) == ("finished", {"y": 1}, {"a": 1}, {"b": 2})
    assert (task.worker_id, task.attempt, task.started_at) == (None, 0, None)
    assert await rush.counts() == Counts(finished=1)


async def test_an_empty_record_is_a_record(rush: Rush) -> None:
    (key,) = await rush.push_finished_tasks([{}], [{}])
    (task,) = await rush.get_tasks(key)
    assert task is not None
    assert (task.xs, task.ys) == ({}, {})


async def test_keys_moved_come_in_the_order_given(rush: Rush, rush_worker: RushWorker) -> None:
    keys = await rush_worker.push_running_tasks([{"n": n} for n in range(5)])
    order = [keys[3], keys[0], keys[4]]
    assert await rush_worker.finish_tasks(order, [{"y": n} for n in range(3)]) == order
    assert (await rush.fetch_finished_tasks())["keys"].to_list() == order
    assert await rush_worker.fail_tasks([keys[2], keys[1]]) == [keys[2], keys[1]]


async def test_thousands_end_in_one_call(rush: Rush, rush_worker: RushWorker) -> None:
    keys = await rush_worker.push_running_tasks([{"n": n} for n in range(2_500)])
    assert await rush_worker.finish_tasks(keys, [{"y": n} for n in range(2_500)]) == keys
    assert await rush.counts() == Counts(finished=2_500)


# row 13


Ending = Callable[[RushWorker, list[str]], Awaitable[list[str]]]


async def finish(worker: RushWorker, keys: list[str]) -> list[str]:
    return await worker.finish_tasks(keys, [{"y": "second"}] * len(keys))


async def fail(worker: RushWorker, keys: list[str]) -> list[str]:
    return await worker.fail_tasks(keys, "second")


def said_by_the_worker(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The warnings, without those of the manager about failed tasks."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno == logging.WARNING and record.name == "rush_async.worker.membership"
    ]


@pytest.mark.parametrize("again", [finish, fail])
@pytest.mark.parametrize("first", [finish, fail])
async def test_row_13_the_first_end_stays(
    rush: Rush, rush_worker: RushWorker, first: Ending, again: Ending, caplog: pytest.LogCaptureFixture
) -> None:
    (key,) = await rush_worker.push_running_tasks([XS])
    assert await first(rush_worker, [key]) == [key]
    before = await rush.get_tasks(key)
    assert await again(rush_worker, [key]) == []
    assert await rush.get_tasks(key) == before
    (text,) = said_by_the_worker(caplog)
    assert key in text
    assert rush_worker.worker_id in text


@pytest.mark.parametrize("end", [finish, fail])
async def test_row_13_a_task_this_worker_does_not_hold_stays(
    rush: Rush, rush_worker: RushWorker, end: Ending, caplog: pytest.LogCaptureFixture
) -> None:
    (queued,) = await rush.push_tasks([XS])
    async with RushWorker(rush.network_id, rush.config) as other:
        (theirs,) = await other.push_running_tasks([XS])
        (mine,) = await rush_worker.push_running_tasks([XS])
        assert await end(rush_worker, [theirs, "unknown", mine, queued]) == [mine]
        (text,) = said_by_the_worker(caplog)
        assert all(key in text for key in (theirs, "unknown", queued))
        assert mine not in text
        assert await rush.is_running_task([theirs, mine, queued]) == [True, False, False]
        assert await other.finish_tasks(theirs, [{"y": "theirs"}]) == [theirs]


@pytest.mark.parametrize("end", [finish, fail])
async def test_row_13_a_task_gone_by_a_reset_moves_nothing(
    rush: Rush, rush_worker: RushWorker, end: Ending, raw: Any, caplog: pytest.LogCaptureFixture
) -> None:
    (key,) = await rush_worker.push_running_tasks([XS])
    await rush.reset(workers=False)
    before = await rush.counts()
    assert await end(rush_worker, [key]) == []
    assert await rush.counts() == before == Counts()
    assert any(key in text for text in caplog.messages)
    assert await rush.get_tasks(key) == [None]


async def test_row_13_a_key_given_twice_moves_once_with_its_first_values(rush: Rush, rush_worker: RushWorker) -> None:
    (key,) = await rush_worker.push_running_tasks([XS])
    assert await rush_worker.finish_tasks([key, key], [{"y": 1}, {"y": 2}]) == [key]
    (task,) = await rush.get_tasks(key)
    assert task is not None
    assert task.ys == {"y": 1}
    assert await rush.counts() == Counts(finished=1)


async def test_row_13_a_worker_whose_name_begins_like_anothers_does_not_hold_its_task(rush: Rush) -> None:
    async with (
        RushWorker(rush.network_id, rush.config, worker_id="bear") as short,
        RushWorker(rush.network_id, rush.config, worker_id="bearcat") as long,
    ):
        (theirs,) = await long.push_running_tasks([XS])
        (mine,) = await short.push_running_tasks([XS])
        assert await short.finish_tasks(theirs, [{"y": 1}]) == []
        assert await long.finish_tasks(mine, [{"y": 1}]) == []


# retry


async def test_retried_tasks_go_to_the_end_of_the_queue_with_their_attempts(rush: Rush, rush_worker: RushWorker) -> None:
    (key,) = await rush.push_tasks([XS])
    assert await rush_worker.pop_task(0) is not None
    await rush_worker.fail_tasks(key, "once")
    (other,) = await rush.push_tasks([XS])
    assert await rush.retry_tasks(key) == [key]
    assert (await rush.keys_with_state("queued"))["queued"] == [other, key]
    (queued,) = await rush.get_tasks(key)
    assert queued is not None
    assert queued.failure is not None
    assert (queued.failure.message, queued.worker_id, queued.attempt, queued.ended_at) == ("once", None, 1, None)
    assert (await rush.fetch_queued_tasks()).columns == ["worker_id", *XS, "keys"]
    assert await rush_worker.pop_task(0) is not None
    again = await rush_worker.pop_task(0)
    assert again is not None
    assert (again.key, again.attempt, again.xs) == (key, 2, XS)


async def test_only_failed_tasks_are_retried(rush: Rush, rush_worker: RushWorker) -> None:
    (failed,) = await rush.push_failed_tasks([XS], "no")
    (finished,) = await rush.push_finished_tasks([XS], [{"y": 1}])
    (running,) = await rush_worker.push_running_tasks([XS])
    (queued,) = await rush.push_tasks([XS])
    assert await rush.retry_tasks([queued, running, failed, finished, "unknown", failed]) == [failed]
    assert await rush.counts() == Counts(queued=2, running=1, finished=1)


async def test_without_keys_all_failed_tasks_are_retried(rush: Rush) -> None:
    keys = await rush.push_failed_tasks([{"n": n} for n in range(2_100)], "no")
    assert sorted(await rush.retry_tasks()) == sorted(keys)
    assert await rush.counts() == Counts(queued=2_100)


async def test_a_task_that_was_removed_and_retried_again_and_again_is_queued_once(rush: Rush, rush_worker: RushWorker) -> None:
    keys = await rush.push_tasks([XS] * 3)
    for _ in range(5):
        assert await rush.empty_queue() == keys
        assert await rush.retry_tasks(keys) == keys
    assert [task and task.key for task in [await rush_worker.pop_task(0) for _ in range(4)]] == [*keys, None]
    assert await rush.counts() == Counts(running=3)


async def test_a_client_that_was_there_before_the_network_retries_and_empties(rush: Rush) -> None:
    async with Rush(rush.network_id, replace(rush.config, response_timeout=10.5)) as elsewhere:
        keys = await elsewhere.push_failed_tasks([XS] * 2, "no")
        assert await rush.retry_tasks(keys[0]) == [keys[0]]
    async with Rush(rush.network_id, replace(rush.config, response_timeout=28.0)) as elsewhere:
        await elsewhere.reset(workers=False)
        new = await elsewhere.push_failed_tasks([XS] * 2, "no")
        # The keys come by a read, which says nothing of the reset.
        assert set((await rush.keys_with_state("failed"))["failed"]) == set(new)
        assert await rush.retry_tasks(new) == new
        assert await rush.empty_queue() == new


# looking


async def test_tasks_are_got_by_key_in_the_order_given_whatever_their_state(rush: Rush, rush_worker: RushWorker) -> None:
    (queued,) = await rush.push_tasks([{"n": 0}])
    (running,) = await rush_worker.push_running_tasks([{"n": 1}])
    (finished,) = await rush.push_finished_tasks([{"n": 2}], [{"y": 2}])
    (failed,) = await rush.push_failed_tasks([{"n": 3}], "no")
    tasks = await rush.get_tasks([failed, "unknown", finished, running, queued, finished])
    assert [task and task.state for task in tasks] == ["failed", None, "finished", "running", "queued", "finished"]
    assert [task and task.xs["n"] for task in tasks] == [3, None, 2, 1, 0, 2]


async def test_is_running_and_is_failed_answer_for_each_key(rush: Rush, rush_worker: RushWorker) -> None:
    (running,) = await rush_worker.push_running_tasks([XS])
    (failed,) = await rush.push_failed_tasks([XS])
    (finished,) = await rush.push_finished_tasks([XS], [{"y": 1}])
    keys = [running, "unknown", failed, finished]
    assert await rush.is_running_task(keys) == [True, False, False, False]
    assert await rush.is_failed_task(keys) == [False, False, True, False]
    assert await rush.is_failed_task(failed) == [True]


async def test_keys_with_state_names_the_states_asked_for(rush: Rush, rush_worker: RushWorker) -> None:
    queued = await rush.push_tasks([XS] * 2)
    finished = await rush.push_finished_tasks([XS] * 2, [{"y": 1}] * 2)
    failed = await rush.push_failed_tasks([XS])
    running = await rush_worker.push_running_tasks([XS])
    assert await rush.keys_with_state("finished", "queued") == {"finished": finished, "queued": queued}
    assert await rush.keys_with_state() == {"queued": queued, "running": running, "finished": finished, "failed": failed}
    with pytest.raises(ValueError, match="'done' is no state of a task: choose from queued, running, finished, failed"):
        await rush.keys_with_state("done")  # pyright: ignore[reportArgumentType]


async def test_row_12_a_task_is_in_one_state_and_n_tasks_is_the_sum(rush: Rush, rush_worker: RushWorker) -> None:
    async def check(**expected: int) -> None:
        counts = await rush.counts()
        assert counts == Counts(**expected)
        in_states = await rush.keys_with_state()
        keys = [key for found in in_states.values() for key in found]
        assert len(keys) == len(set(keys)) == counts.total == rush.n_tasks
        assert (rush.n_queued_tasks, rush.n_running_tasks, rush.n_finished_tasks, rush.n_failed_tasks) == counts

    keys = await rush.push_tasks([XS] * 4)
    await check(queued=4)
    assert await rush_worker.pop_task(0) is not None
    assert await rush_worker.pop_task(0) is not None
    await check(queued=2, running=2)
    await rush_worker.finish_tasks(keys[0], [{"y": 1}])
    await check(queued=2, running=1, finished=1)
    await rush_worker.fail_tasks(keys[1])
    await check(queued=2, finished=1, failed=1)
    await rush.empty_queue()
    await check(finished=1, failed=3)
    await rush.retry_tasks(keys[1:3])
    await check(queued=2, finished=1, failed=1)


async def test_counters_are_never_behind_what_this_process_did(rush: Rush, rush_worker: RushWorker) -> None:
    for n in range(1, 30):
        await rush.push_tasks([XS])
        assert rush.n_queued_tasks == 1
        task = await rush_worker.pop_task(0)
        assert task is not None
        assert (rush.n_queued_tasks, rush.n_running_tasks) == (0, 1)
        await rush_worker.finish_tasks(task.key, [{"y": 1}])
        assert (rush_worker.n_running_tasks, rush_worker.n_finished_tasks, rush_worker.n_tasks) == (0, n, n)


async def test_counters_of_a_manager_follow_what_other_processes_do_from_its_opening_on(rush: Rush, elsewhere: Rush) -> None:
    await elsewhere.push_tasks([XS] * 3)
    position = rush._net.position  # pyright: ignore[reportPrivateUsage]
    await wait_until(lambda: position.counts.queued == 3)  # without a call, and without the read of a counter
    assert "Queued Tasks: 3" in repr(rush)
    assert "<td>3</td>" in rush._repr_html_()  # pyright: ignore[reportPrivateUsage]
    await elsewhere.empty_queue()
    await wait_until(lambda: rush.n_failed_tasks == 3 and rush.n_queued_tasks == 0)


@pytest.mark.chaos
async def test_counters_follow_the_heartbeat_while_the_event_loop_is_blocked(rush: Rush) -> None:
    config = replace(rush.config, heartbeat_period=0.05, heartbeat_expire=10)

    async def push() -> None:
        async with Rush(rush.network_id, rush.config) as other:
            await other.push_tasks([XS] * 3)

    async with Rush(rush.network_id, config) as blocked:
        heartbeat = blocked._net.heartbeat  # pyright: ignore[reportPrivateUsage]
        await wait_until(lambda: heartbeat._thread is not None)  # pyright: ignore[reportPrivateUsage]
        elsewhere = threading.Thread(target=lambda: asyncio.run(push()))
        elsewhere.start()
        deadline = time.monotonic() + 10
        while blocked.n_queued_tasks != 3 and time.monotonic() < deadline:
            time.sleep(0.005)  # noqa: ASYNC251 - as in a cell of a notebook
        assert "Queued Tasks: 3" in repr(blocked)
        elsewhere.join()


async def test_counts_cost_one_round_trip(rush: Rush, raw: Any) -> None:
    await rush.push_tasks([XS] * 3)
    before = raw.info("commandstats")["cmdstat_evalsha"]["calls"]
    assert await rush.counts() == Counts(queued=3)
    assert raw.info("commandstats")["cmdstat_evalsha"]["calls"] == before + 1


# row 10


async def test_row_10_a_reset_leaves_no_key_and_no_worker(rush: Rush, rush_worker: RushWorker, raw: Any) -> None:
    await rush.push_tasks([XS] * 3)
    await rush.push_finished_tasks([XS], [{"y": 1}])
    await rush.push_failed_tasks([XS])
    assert await rush_worker.pop_task(0) is not None
    await rush_worker.aclose()
    await rush.reset()
    assert raw.keys("*") == []
    assert rush.n_tasks == 0
    assert (await rush.worker_info()).height == 0


async def test_row_10_a_reset_of_tasks_leaves_workers_running(rush: Rush, rush_worker: RushWorker) -> None:
    await rush.push_tasks([XS] * 2)
    held = await rush_worker.pop_task(0)
    assert held is not None
    await rush.reset(workers=False)
    assert await rush.counts() == Counts()
    assert not rush_worker.terminated
    (key,) = await rush.push_tasks([XS])
    task = await rush_worker.pop_task(0)
    assert task is not None
    assert task.key == key
    assert await rush_worker.finish_tasks([held.key, key], [{"y": 1}] * 2) == [key]
    assert await rush.counts() == Counts(finished=1)


@pytest.mark.parametrize("workers", [True, False])
async def test_row_10_other_clients_caches_start_anew(rush: Rush, workers: bool) -> None:
    async with Rush(rush.network_id, replace(rush.config, response_timeout=10.5)) as elsewhere:
        old = await rush.push_finished_tasks([{"n": n} for n in range(10)], [{"y": 1}] * 10)
        assert (await elsewhere.fetch_finished_tasks()).height == 10
        await rush.reset(workers=workers)
        # As many as there were before: only the epoch tells that they are others.
        new = await rush.push_finished_tasks([{"n": n} for n in range(10)], [{"y": 1}] * 10)
        assert (await elsewhere.fetch_finished_tasks())["keys"].to_list() == new
        assert (await elsewhere.fetch_new_tasks())["keys"].to_list() == new
        assert await elsewhere.get_tasks(old[0]) == [None]
        assert await elsewhere.counts() == Counts(finished=10)


async def test_row_10_a_worker_that_did_not_hear_of_a_reset_can_leave(
    rush: Rush, rush_server: RushConfig, directory: Path
) -> None:
    assert rush_server.url is not None
    async with Proxy(rush_server.url, directory) as proxy:
        async with RushWorker(rush.network_id, proxy.url):
            proxy.refuse()
            proxy.cut_all("pubsub")
            await rush.reset(workers=False)
        assert (await rush.worker_info())["state"].to_list() == ["terminated"]


async def test_row_10_a_missing_network_is_a_new_one(rush: Rush, raw: Any) -> None:
    await rush.push_finished_tasks([XS], [{"y": 1}])
    assert (await rush.fetch_finished_tasks()).height == 1
    raw.flushall()
    assert (await rush.fetch_finished_tasks()).height == 0
    assert await rush.counts() == Counts()
    (key,) = await rush.push_tasks([XS])
    assert (await rush.keys_with_state("queued"))["queued"] == [key]


async def test_row_10_nothing_of_a_worker_is_resurrected_by_its_end(rush: Rush, raw: Any) -> None:
    async with RushWorker(rush.network_id, rush.config) as worker:
        (key,) = await worker.push_running_tasks([XS])
        async with Rush(rush.network_id, replace(rush.config, response_timeout=10.5)) as elsewhere:
            await elsewhere.push_tasks([XS])
            # Everything is gone at once, as after a reset that does not wait for workers.
            raw.flushall()
            assert await elsewhere.counts() == Counts()
        del key
    assert raw.keys("*") == []


# bad input


async def refused(
    raw: Any, kind: type[Exception] | tuple[type[Exception], ...], words: list[str], call: Callable[[], Awaitable[object]]
) -> None:
    """A call raises a sentence with these words, sends nothing and changes nothing."""
    before, commands = dump(raw), n_commands(raw)
    with pytest.raises(kind) as caught:
        await call()
    sentence = str(caught.value)
    assert [word for word in words if word not in sentence] == [], sentence
    # Reading the server before the call counted itself: one KEYS and a DUMP for each key came before the number.
    assert n_commands(raw) == commands
    assert dump(raw) == before


async def test_unequal_lengths_are_refused(rush: Rush, rush_worker: RushWorker, raw: Any) -> None:
    keys = await rush_worker.push_running_tasks([XS, XS])
    two: list[dict[str, Any]] = [{"y": 1}, {"y": 2}]
    calls: list[tuple[list[str], Callable[[], Awaitable[object]]]] = [
        (["xss", "3", "yss", "2"], lambda: rush.push_finished_tasks([XS] * 3, two)),
        (["xss", "1", "yss", "0"], lambda: rush.push_finished_tasks([XS], [])),
        (["xss", "3", "xss_extra", "2"], lambda: rush.push_tasks([XS] * 3, xss_extra=two)),
        (["xss", "3", "xss_extra", "2"], lambda: rush_worker.push_running_tasks([XS] * 3, xss_extra=two)),
        (["xss", "3", "xss_extra", "2"], lambda: rush.push_failed_tasks([XS] * 3, xss_extra=two)),
        (["yss", "2", "yss_extra", "1"], lambda: rush.push_finished_tasks([XS] * 2, two, yss_extra=[{"z": 1}])),
        (["3 xss", "2 failures"], lambda: rush.push_failed_tasks([XS] * 3, ["a", "b"])),
        (["keys", "2", "yss", "1"], lambda: rush_worker.finish_tasks(keys, [{"y": 1}])),
        (["keys", "1", "yss", "2"], lambda: rush_worker.finish_tasks(keys[0], two)),
        (["yss", "2", "yss_extra", "3"], lambda: rush_worker.finish_tasks(keys, two, yss_extra=[XS] * 3)),
        (["2 keys", "3 failures"], lambda: rush_worker.fail_tasks(keys, ["a", "b", "c"])),
        (["2 keys", "0 failures"], lambda: rush_worker.fail_tasks(keys, [])),
    ]
    for words, call in calls:
        await refused(raw, ValueError, words, call)
    assert await rush.is_running_task(keys) == [True, True]


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ([1.0, 2.0], ["list", "[1.0, 2.0]"]),
        ("x1", ["str", "'x1'"]),
        (7, ["int", "7"]),
        (None, ["NoneType", "None"]),
        (Point, ["type", "Point"]),
    ],
)
async def test_xs_that_are_no_record_are_refused(
    rush: Rush, rush_worker: RushWorker, raw: Any, bad: Any, words: list[str]
) -> None:
    (key,) = await rush_worker.push_running_tasks([XS])

    async def block() -> None:
        async with rush_worker.task(bad):
            raise AssertionError("the block must not open")

    at, remedy = "[1]", "mapping with string names"
    await refused(raw, TypeError, ["xss" + at, remedy, *words], lambda: rush.push_tasks([XS, bad]))
    await refused(raw, TypeError, ["xss" + at, remedy, *words], lambda: rush_worker.push_running_tasks([XS, bad]))
    await refused(raw, TypeError, ["xss" + at, remedy, *words], lambda: rush.push_failed_tasks([XS, bad]))
    await refused(raw, TypeError, ["yss" + at, remedy, *words], lambda: rush.push_finished_tasks([XS] * 2, [XS, bad]))
    await refused(raw, TypeError, ["yss[0]", remedy, *words], lambda: rush_worker.finish_tasks(key, [bad]))
    await refused(raw, TypeError, [remedy, *words], block)
    assert await rush.is_running_task(key) == [True]


async def test_a_task_where_its_key_is_meant_is_refused(rush: Rush, rush_worker: RushWorker, raw: Any) -> None:
    await rush.push_tasks([XS])
    task: Any = await rush_worker.pop_task()
    await refused(raw, TypeError, ["task.key"], lambda: rush_worker.finish_tasks(task, [XS]))
    await refused(raw, TypeError, ["task.key"], lambda: rush.get_tasks(task))


@pytest.mark.parametrize("bad", ["branin", b"branin", XS, Point(1.0, 2.0), 5, None], ids=repr)
async def test_one_record_or_text_where_a_sequence_is_meant_is_refused(
    rush: Rush, rush_worker: RushWorker, raw: Any, bad: Any
) -> None:
    (key,) = await rush_worker.push_running_tasks([XS])
    xss, yss = ["xss must be a sequence of records", "in a list"], ["yss must be a sequence of records", "in a list"]
    await refused(raw, TypeError, xss, lambda: rush.push_tasks(bad))
    await refused(raw, TypeError, xss, lambda: rush_worker.push_running_tasks(bad))
    await refused(raw, TypeError, xss, lambda: rush.push_failed_tasks(bad))
    await refused(raw, TypeError, xss, lambda: rush.push_finished_tasks(bad, [XS]))
    await refused(raw, TypeError, yss, lambda: rush.push_finished_tasks([XS], bad))
    await refused(raw, TypeError, yss, lambda: rush_worker.finish_tasks(key, bad))


@pytest.mark.parametrize("bad", ["ab", XS, 5], ids=repr)
async def test_extras_that_are_no_sequence_of_records_are_refused(rush: Rush, raw: Any, bad: Any) -> None:
    await refused(raw, TypeError, ["xss_extra must be a sequence of records"], lambda: rush.push_tasks([XS] * 2, xss_extra=bad))
    await refused(
        raw,
        TypeError,
        ["yss_extra must be a sequence of records"],
        lambda: rush.push_finished_tasks([XS] * 2, [XS] * 2, yss_extra=bad),
    )


async def test_records_may_come_from_generators(rush: Rush) -> None:
    keys = await rush.push_finished_tasks(
        ({"x": n} for n in range(3)), ({"y": n} for n in range(3)), xss_extra=({"z": n} for n in range(3))
    )
    assert (await rush.fetch_finished_tasks()).select("x", "y", "z", "keys").rows() == [
        (n, n, n, key) for n, key in enumerate(keys)
    ]


async def test_names_that_are_no_strings_are_refused(rush: Rush, rush_worker: RushWorker, raw: Any) -> None:
    (key,) = await rush_worker.push_running_tasks([XS])
    bad: Any = {"x": 1, 2: 3}
    words = ["2", "int", "strings"]
    await refused(raw, TypeError, words, lambda: rush.push_tasks([bad]))
    await refused(raw, TypeError, words, lambda: rush.push_tasks([XS], xss_extra=[bad]))
    await refused(raw, TypeError, words, lambda: rush_worker.finish_tasks(key, [bad]))
    await refused(raw, TypeError, [*words, "xs['deep'][0]"], lambda: rush.push_tasks([{"deep": [bad]}]))


@pytest.mark.parametrize(
    "name", ["state", "worker_id", "condition", "created_at", "started_at", "ended_at", "attempt", "index", "keys"]
)
async def test_reserved_input_names_are_refused(rush: Rush, rush_worker: RushWorker, raw: Any, name: str) -> None:
    async def block() -> None:
        async with rush_worker.task({name: 1}):
            raise AssertionError("the block must not open")

    words = [repr(name), "rename"]
    await refused(raw, ValueError, words, lambda: rush.push_tasks([XS, {name: 1}]))
    await refused(raw, ValueError, words, lambda: rush_worker.push_running_tasks([{name: 1}]))
    await refused(raw, ValueError, words, lambda: rush.push_finished_tasks([{name: 1}], [XS]))
    await refused(raw, ValueError, words, lambda: rush.push_failed_tasks([{name: 1}]))
    await refused(raw, ValueError, words, block)
    # As outputs and extras they are told apart in frames, so they are fine.
    assert len(await rush.push_finished_tasks([XS], [{name: 1}], xss_extra=[{name: 2}])) == 1


class Secret:
    pass


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"deep": [1, Secret()]}, ["['deep'][1]", "Secret"]),
        (Secret(), ["Secret"]),
        ({1: 2}, ["1", "int"]),
        ("\ud800", ["UTF-8"]),
        (1j, ["complex"]),
        (lambda: None, ["function"]),
    ],
    ids=["nested", "object", "number as key", "surrogate", "complex", "function"],
)
async def test_values_that_do_not_serialise_are_refused_with_path_and_type(
    rush: Rush, rush_worker: RushWorker, raw: Any, value: Any, words: list[str]
) -> None:
    (key,) = await rush_worker.push_running_tasks([XS])
    bad = {"model": value}
    await refused(raw, EncodeError, ["xs['model']", *words], lambda: rush.push_tasks([bad]))
    await refused(raw, EncodeError, ["xss[1]['model']", *words], lambda: rush.push_tasks([XS, bad]))
    await refused(raw, EncodeError, ["_extra", "['model']", *words], lambda: rush.push_tasks([XS], xss_extra=[bad]))
    await refused(raw, EncodeError, ["ys['model']", *words], lambda: rush.push_finished_tasks([XS], [bad]))
    await refused(raw, EncodeError, ["ys['model']", *words], lambda: rush_worker.finish_tasks(key, [bad]))
    # Row 17: the task is running still, so that its worker can fail it.
    assert await rush_worker.fail_tasks(key, "cannot be stored") == [key]


@pytest.mark.parametrize(
    ("network_id", "words"),
    [
        ("", ["0"]),
        ("n" * 10_000, ["10,000", "200"]),
        ("a{b", ["'{'"]),
        ("a}b", ["'}'"]),
        ("a\nb", ["'\\n'"]),
        ("a\x00b", ["'\\x00'"]),
        ("a\x7fb", ["'\\x7f'"]),
        ("a\x85b", ["'\\x85'"]),
        ("a\ud800", ["surrogate"]),
        (7, ["int", "7"]),
        (b"net", ["bytes"]),
    ],
    ids=lambda given: repr(given)[:20],
)
def test_network_ids_that_cannot_be_used_are_refused(network_id: Any, words: list[str]) -> None:
    for kind in (Rush, RushWorker):
        with pytest.raises(RushConfigError) as caught:
            kind(network_id)
        assert [word for word in ["network_id", *words] if word not in str(caught.value)] == []
        assert len(str(caught.value)) < 400


@pytest.mark.parametrize("network_id", ["a b", "naïve", "日本", "a:b*?[x]", "'; DROP", "n" * 200, "%", "\u202e"])
async def test_other_network_ids_work(rush: Rush, network_id: str, raw: Any) -> None:
    async with Rush(network_id, rush.config) as other:
        async with RushWorker(network_id, rush.config) as worker:
            async with worker.task(XS) as task:
                task.ys = {"y": 1}
            await other.wait_until(lambda counts: counts.finished == 1)
            assert (await other.fetch_finished_tasks()).height == 1
        await other.reset()
    assert raw.keys("*") == []


async def test_a_record_over_max_record_size_is_refused(rush: Rush, raw: Any) -> None:
    config = replace(rush.config, max_record_size=1_000)
    async with Rush(rush.network_id, config) as small, RushWorker(rush.network_id, config) as worker:
        (key,) = await worker.push_running_tasks([XS])
        large = {"x": "a" * 1_000}
        words = ["1,000", "max_record_size", "store the large part elsewhere"]
        await refused(raw, EncodeError, ["xs", *words], lambda: small.push_tasks([large]))
        await refused(raw, EncodeError, ["xss[1]", *words], lambda: small.push_tasks([XS, large]))
        await refused(raw, EncodeError, ["xs", *words], lambda: worker.push_running_tasks([large]))
        await refused(raw, EncodeError, ["xs", *words], lambda: small.push_tasks([XS], xss_extra=[large]))
        await refused(raw, EncodeError, ["ys", *words], lambda: small.push_finished_tasks([XS], [large]))
        await refused(raw, EncodeError, ["ys", *words], lambda: worker.finish_tasks(key, [large]))
        await refused(raw, EncodeError, ["ys", *words], lambda: worker.finish_tasks(key, [XS], yss_extra=[large]))
        assert await worker.fail_tasks(key, "too large") == [key]


async def test_a_failure_that_quotes_a_whole_data_set_is_shortened(rush: Rush, rush_worker: RushWorker) -> None:
    (key,) = await rush_worker.push_running_tasks([XS])
    with pytest.raises(ValueError, match="last") as caught:
        raise ValueError("first " + "a" * 10_000_000 + " last")
    assert await rush_worker.fail_tasks(key, caught.value) == [key]
    (task,) = await rush.get_tasks(key)
    assert task is not None
    assert task.failure is not None
    assert task.failure.message.startswith("first a")
    assert task.failure.message.endswith("a last")
    assert "characters left out" in task.failure.message
    assert task.failure.traceback is not None
    assert "raise ValueError" in task.failure.traceback
    assert len(task.failure.message) + len(task.failure.traceback) < 200_000


@pytest.mark.parametrize("retries", [-1, 128, 1.5, "1"])
async def test_retries_that_are_no_small_number_are_refused(rush: Rush, raw: Any, retries: Any) -> None:
    await refused(raw, (ValueError, TypeError), ["retries"], lambda: rush.push_tasks([XS], retries=retries))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("budget", [-1, 2.5, "3", float("nan")])
async def test_budgets_that_are_no_whole_number_are_refused(rush: Rush, rush_worker: RushWorker, raw: Any, budget: Any) -> None:
    async def block(**limits: Any) -> None:
        async with rush_worker.task(XS, **limits):
            raise AssertionError("the block must not open")

    kinds: Any = (ValueError, TypeError)
    await refused(raw, kinds, ["budget"], lambda: rush_worker.push_running_tasks([XS] * 4, budget=budget))
    await refused(raw, kinds, ["budget"], lambda: block(budget=budget))
    await refused(raw, kinds, ["max_failed"], lambda: block(budget=3, max_failed=budget))
    # The connection is fine.
    assert len(await rush_worker.push_running_tasks([XS] * 4, budget=2)) == 2


async def test_keys_that_are_no_strings_are_refused(rush: Rush, rush_worker: RushWorker, raw: Any) -> None:
    bad: Any = [7]
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: rush.get_tasks(bad),
        lambda: rush.retry_tasks(bad),
        lambda: rush.is_running_task(bad),
        lambda: rush.is_failed_task(bad),
        lambda: rush.wait_for_tasks(bad),
        lambda: rush_worker.finish_tasks(bad, [XS]),
        lambda: rush_worker.fail_tasks(bad),
    ]
    for call in calls:
        await refused(raw, TypeError, ["key", "string", "int", "7"], call)


async def test_a_failure_that_is_none_is_refused(rush: Rush, rush_worker: RushWorker, raw: Any) -> None:
    (key,) = await rush_worker.push_running_tasks([XS])
    bad: Any = 7
    await refused(raw, TypeError, ["failure", "int", "7"], lambda: rush_worker.fail_tasks(key, bad))
    await refused(raw, TypeError, ["failure", "int", "7"], lambda: rush.push_failed_tasks([XS], [bad]))


async def test_one_bad_record_of_a_thousand_pushes_none(rush: Rush, raw: Any) -> None:
    xss: list[Any] = [{"n": n} for n in range(3_000)]
    xss[2_900] = {"n": Secret()}
    await refused(raw, EncodeError, ["xss[2900]['n']", "Secret"], lambda: rush.push_tasks(xss))


# row 17


async def test_row_17_values_come_back_as_promised(rush: Rush, rush_worker: RushWorker) -> None:
    import decimal
    import enum
    import math
    import uuid
    from datetime import timedelta, timezone

    import numpy as np

    class Colour(enum.Enum):
        RED = "red"

    when = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=timezone(timedelta(hours=5)))
    some = uuid.uuid4()
    xs: dict[str, Any] = {
        "scalar": np.float64(1.5),
        "count": np.int32(7),
        "flag": np.bool_(True),
        "vector": np.array([[1, 2], [3, 4]]),
        "tuple": (1, (2, 3)),
        "set": {1},
        "when": when,
        "bytes": b"\x00\xff",
        "nan": math.nan,
        "inf": -math.inf,
        "enum": Colour.RED,
        "uuid": some,
        "decimal": decimal.Decimal("0.10"),
        "large": 2**100,
        "nothing": None,
    }
    (key,) = await rush_worker.push_running_tasks([xs])
    await rush_worker.finish_tasks(key, [{"large": -(2**70), "when": when}])
    (task,) = await rush.get_tasks(key)
    assert task is not None
    found = task.xs
    assert math.isnan(found.pop("nan"))
    assert found == {
        "scalar": 1.5,
        "count": 7,
        "flag": True,
        "vector": [[1, 2], [3, 4]],
        "tuple": [1, [2, 3]],
        "set": [1],
        "when": when,
        "bytes": b"\x00\xff",
        "inf": -math.inf,
        "enum": "red",
        "uuid": some,
        "decimal": decimal.Decimal("0.10"),
        "large": 2**100,
        "nothing": None,
    }
    assert [type(found[name]) for name in ("scalar", "count", "flag")] == [float, int, bool]
    assert found["when"].tzinfo is UTC
    assert task.ys == {"large": -(2**70), "when": when}


# row 22


async def test_row_22_a_push_with_a_budget_takes_as_many_as_fit(rush: Rush, rush_worker: RushWorker) -> None:
    await rush.push_tasks([XS])
    await rush.push_finished_tasks([XS], [{"y": 1}])
    await rush.push_failed_tasks([XS] * 3)
    keys = await rush_worker.push_running_tasks([{"n": n} for n in range(10)], budget=5)
    assert [task and task.xs["n"] for task in await rush.get_tasks(keys)] == [0, 1, 2]
    assert await rush_worker.push_running_tasks([XS], budget=5) == []
    await rush_worker.fail_tasks(keys[0])
    assert len(await rush_worker.push_running_tasks([XS] * 2, budget=5)) == 1
    assert await rush.counts() == Counts(queued=1, running=3, finished=1, failed=4)


async def test_row_22_a_bulk_push_over_several_calls_keeps_the_budget(rush: Rush, rush_worker: RushWorker) -> None:
    assert len(await rush_worker.push_running_tasks([XS] * 2_500, budget=1_700)) == 1_700
    assert await rush.counts() == Counts(running=1_700)


# a worker that has left


async def test_tasks_of_a_worker_that_leaves_fail(rush: Rush) -> None:
    async with RushWorker(rush.network_id, rush.config) as worker:
        keys = await worker.push_running_tasks([XS] * 2)
    failures = [task and task.failure for task in await rush.get_tasks(keys)]
    assert [failure and failure.kind for failure in failures] == ["cancelled"] * 2
    assert await rush.counts() == Counts(failed=2)


async def test_row_19_an_error_in_the_workers_block_fails_what_it_runs(rush: Rush) -> None:
    keys: list[str] = []
    with pytest.raises(ZeroDivisionError):
        async with RushWorker(rush.network_id, rush.config) as worker:
            keys += await worker.push_running_tasks([XS])
            _ = 1 / 0
    (task,) = await rush.get_tasks(keys)
    assert task is not None
    assert task.failure is not None
    assert (task.failure.kind, task.failure.type) == ("error", "ZeroDivisionError")
    assert "1 / 0" in (task.failure.traceback or "")
    assert (await rush.worker_info())["state"].to_list() == ["failed"]


async def test_a_worker_id_is_used_once_in_a_network(rush: Rush) -> None:
    async with RushWorker(rush.network_id, rush.config, worker_id="bear"):
        with pytest.raises(RushConfigError, match="'bear' is or was in use"):
            await RushWorker(rush.network_id, rush.config, worker_id="bear")
    with pytest.raises(RushConfigError, match="'bear' is or was in use"):
        await RushWorker(rush.network_id, rush.config, worker_id="bear")
    assert (await rush.worker_info())["worker_id"].to_list() == ["bear"]


@pytest.mark.parametrize("worker_id", ["", "a" * 61, "a|b", "a{b", "a\nb", 7])
def test_worker_ids_that_cannot_be_used_are_refused(worker_id: Any) -> None:
    with pytest.raises(RushConfigError, match="worker_id"):
        RushWorker("net", worker_id=worker_id)


async def test_a_task_is_a_block_only_for_the_worker_that_popped_it(rush: Rush) -> None:
    (key,) = await rush.push_tasks([XS])
    (task,) = await rush.get_tasks(key)
    assert isinstance(task, Task)
    with pytest.raises(NetworkStateError, match="not held by a worker in this process"):
        async with task:
            pass
