"""The transitions of tasks: what each call answers, that a bulk push is all or nothing, and what is compensated."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
import pytest_asyncio

from rush_async import DecodeError, EncodeError, Failure, Rush, RushWorker
from rush_async.store import tasks as module
from rush_async.store.decoding import decode_task
from rush_async.store.keys import NetworkKeys
from rush_async.store.points import point_of
from rush_async.store.records import NewTask, RecordEncoder, encode_ended, encode_failure
from rush_async.store.scripts import LOST
from rush_async.store.tasks import Created, Ended, Pop, Popped, Pushed, TaskStore
from rush_async.store.workers import KILLED
from rush_async.testing import wait_until

ENCODER = RecordEncoder(1_000_000)
ENDED = encode_ended({"y": 1}, None)


@pytest_asyncio.fixture
async def store(rush: Rush) -> TaskStore:
    return rush._net.tasks  # pyright: ignore[reportPrivateUsage]


def new(n: int) -> list[NewTask]:
    return ENCODER.tasks([{"x": x} for x in range(n)])


async def popped(store: TaskStore, worker_id: str, want: int = 1) -> list[Popped]:
    answer = (await store.pop(worker_id, want)).tasks
    assert isinstance(answer, list)
    return answer


async def quiet(store: TaskStore) -> None:
    """Waits until what runs in the background has been answered."""
    await store.calls.quiet()


async def test_a_bulk_push_of_several_calls_queues_the_tasks_in_order(rush: Rush, store: TaskStore) -> None:
    tasks = new(2_500)
    assert await store.push("queued", tasks) == Created([task.key for task in tasks])
    assert (await rush.keys_with_state("queued"))["queued"] == [task.key for task in tasks]


async def test_a_refused_chunk_takes_the_earlier_chunks_back(
    rush: Rush, store: TaskStore, raw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_WAVE", 1)
    tasks = new(1_500)
    broken = NewTask("\ud800", tasks[-1].created)  # cannot be written
    with pytest.raises((ValueError, EncodeError)):
        await store.push("queued", [*tasks, broken])
    await quiet(store)
    assert await rush.counts() == (0, 0, 0, 1_000)
    keys = (await rush.keys_with_state("failed"))["failed"]
    (first,) = await rush.get_tasks(keys[:1])
    assert first is not None
    assert first.failure == Failure("cancelled", None, "The call that pushed it was cancelled or refused")


async def test_a_running_task_finds_a_place_only_within_the_budget(store: TaskStore, rush_worker: RushWorker) -> None:
    first, second = new(2)
    assert await store.push_one(first, rush_worker.worker_id, budget=1) == Pushed(1, 0)
    assert await store.push_one(second, rush_worker.worker_id, budget=1) == Pushed(0, 0)


async def test_a_task_whose_point_is_taken_is_not_created_and_takes_no_place(store: TaskStore, rush_worker: RushWorker) -> None:
    first, second, third = new(3)
    a, b = point_of({"x": "a"}), point_of({"x": "b"})
    assert await store.push_one(first, rush_worker.worker_id, point=a) == Pushed(1, 0, None, [1])
    assert await store.push_one(second, rush_worker.worker_id, point=a) == Pushed(0, 0, "duplicate", [0])
    assert await store.push_one(second, rush_worker.worker_id, 1, point=a) == Pushed(0, 0)  # the place comes first
    assert await store.push_one(second, rush_worker.worker_id, 2, point=a) == Pushed(0, 0, "duplicate", [0])
    assert await store.push_one(third, rush_worker.worker_id, 2, point=b) == Pushed(1, 1, None, [1])


async def test_a_bulk_push_answers_for_each_task_up_to_the_first_without_a_place(
    store: TaskStore, rush_worker: RushWorker
) -> None:
    tasks, points = new(6), [point_of({"x": x}) for x in (0, 1, 0, 2, 3, 0)]
    keys = [task.key for task in tasks]
    created = await store.push("running", tasks, worker_id=rush_worker.worker_id, budget=3, points=points)
    assert created == Created([keys[0], keys[1], keys[3]], 0, None, (keys[0], keys[1], None, keys[3]))
    assert await store.push("queued", tasks[:2], points=points[:2]) == Created([], 0, "duplicate", (None, None))


async def test_points_of_several_calls_of_one_push_are_each_taken_once(rush: Rush, store: TaskStore) -> None:
    tasks = new(2_500)
    points = [point_of({"x": at % 1_500}) for at in range(2_500)]
    created = await store.push("queued", tasks, points=points)
    assert isinstance(created, Created)
    assert created.keys == [task.key for task in tasks[:1_500]]
    assert created.entries == (*created.keys, *([None] * 1_000))
    assert (await rush.keys_with_state("queued"))["queued"] == created.keys


async def test_pushes_with_and_without_points_are_merged(rush: Rush, store: TaskStore, raw: Any) -> None:
    await store.read_position()
    await wait_until(lambda: rush._net.feed.is_watching)  # pyright: ignore[reportPrivateUsage]
    raw.config_resetstat()
    a, b, c, d = new(4)
    point = point_of({"x": 1})
    calls = [store.push("queued", [a], points=[point]), store.push("queued", [b]), store.push("finished", [c], points=[point])]
    assert await asyncio.gather(*calls, store.push("queued", [d], points=[point])) == [
        Created([a.key], 0, None, (a.key,)),
        Created([b.key], 1),
        Created([], 0, "duplicate", (None,)),
        Created([], 0, "duplicate", (None,)),
    ]
    assert raw.info("commandstats")["cmdstat_evalsha"]["calls"] == 2  # the first is given the token
    assert await rush.counts() == (2, 0, 0, 0)


async def test_the_stored_answer_of_a_push_with_points_takes_a_byte_a_task(store: TaskStore, raw: Any, rush: Rush) -> None:
    await store.push("queued", new(1_000), points=[point_of({"x": x}) for x in range(1_000)])
    answers: dict[bytes, bytes] = raw.hgetall(NetworkKeys.of(rush.network_id).calls)
    assert max(map(len, answers.values())) < 1_100


async def test_a_point_takes_85_bytes(store: TaskStore, raw: Any, rush: Rush) -> None:
    tasks = new(10_000)
    await store.push("queued", tasks, points=[point_of({"x": x}) for x in range(10_000)])
    assert raw.memory_usage(NetworkKeys.of(rush.network_id).points, samples=0) / 10_000 < 90


async def test_a_worker_that_is_not_alive_gets_no_task(store: TaskStore) -> None:
    await store.push("queued", new(1))
    assert await store.push_one(new(1)[0], "unknown") is LOST
    assert await store.push("running", new(2), worker_id="unknown") is LOST
    assert (await store.pop("unknown")).tasks is LOST
    assert await store.end([Ended("finished", "key", "unknown", ENDED)]) == [None]


async def test_pops_take_tasks_from_the_head_and_put_back_returns_them_there(store: TaskStore, rush_worker: RushWorker) -> None:
    tasks = new(4)
    await store.push("queued", tasks)
    taken = await popped(store, rush_worker.worker_id, 2)
    assert [each.key for each in taken] == [task.key for task in tasks[:2]]
    store.put_back(taken, rush_worker.worker_id)
    await quiet(store)
    assert [each.key for each in await popped(store, rush_worker.worker_id, 9)] == [task.key for task in tasks]


def queue_of(rush: Rush, raw: Any) -> list[str]:
    """The entries of the queue, stale ones too."""
    return [key.decode() for key in raw.lrange(NetworkKeys.of(rush.network_id).queue, 0, -1)]


async def popped_by_name(store: TaskStore, worker_id: str, key: str) -> Popped:
    (task,) = cast("list[Popped]", (await store.pop_named(worker_id, key)).tasks)
    return task


async def test_a_named_task_is_taken_from_the_middle_of_the_queue_once(store: TaskStore, rush_worker: RushWorker) -> None:
    tasks = new(4)
    keys, worker_id = [task.key for task in tasks], rush_worker.worker_id
    await store.push("queued", tasks)
    taken = await popped_by_name(store, worker_id, keys[2])
    assert taken.key == keys[2]
    assert decode_task("running", taken.record).worker_id == worker_id
    for key in (keys[2], "unknown"):
        assert await store.pop_named(worker_id, key) == Pop([], "empty")
    assert (await store.pop_named("unknown", keys[0])).tasks is LOST
    assert [each.key for each in await popped(store, worker_id, 9)] == [keys[0], keys[1], keys[3]]


async def test_a_pop_by_name_does_not_search_the_queue(store: TaskStore, rush_worker: RushWorker, raw: Any) -> None:
    tasks = new(50)
    await store.push("queued", tasks)
    raw.config_resetstat()
    await popped_by_name(store, rush_worker.worker_id, tasks[-1].key)
    assert not {"cmdstat_lrange", "cmdstat_lrem", "cmdstat_lpos"} & raw.info("commandstats").keys()


async def test_a_task_popped_by_name_that_failed_is_queued_once_when_it_is_retried(
    rush: Rush, store: TaskStore, rush_worker: RushWorker, raw: Any
) -> None:
    tasks = new(3)
    keys, worker_id = [task.key for task in tasks], rush_worker.worker_id
    await store.push("queued", tasks)
    for attempt in (1, 2):
        taken = decode_task("running", (await popped_by_name(store, worker_id, keys[0])).record)
        assert taken.attempt == attempt
        assert (taken.failure is None) == (attempt == 1)
        assert await rush_worker.fail_tasks(keys[0], "no") == [keys[0]]
        assert await store.retry([keys[0]]) == [keys[0]]
        assert queue_of(rush, raw) == [keys[1], keys[2], keys[0]]
    assert [each.key for each in await popped(store, worker_id, 9)] == [keys[1], keys[2], keys[0]]


async def test_a_task_popped_by_name_that_no_caller_saw_returns_to_the_head_of_the_queue(
    rush: Rush, store: TaskStore, rush_worker: RushWorker, raw: Any
) -> None:
    tasks = new(3)
    keys, hash_of_queued = [task.key for task in tasks], NetworkKeys.of(rush.network_id).queued
    await store.push("queued", tasks)
    before = {key: (record[:1], record[2:]) for key, record in raw.hgetall(hash_of_queued).items()}
    raw.config_resetstat()
    store.put_back([await popped_by_name(store, rush_worker.worker_id, keys[1])], rush_worker.worker_id)
    await quiet(store)
    assert "cmdstat_lrem" not in raw.info("commandstats")  # it would search the whole queue
    assert queue_of(rush, raw) == [keys[1], *keys]
    assert {key: (record[:1], record[2:]) for key, record in raw.hgetall(hash_of_queued).items()} == before
    assert [task.key for task in await popped(store, rush_worker.worker_id, 9)] == [keys[1], keys[0], keys[2]]
    await rush_worker.fail_tasks(keys[1])
    assert await store.retry([keys[1]]) == [keys[1]]
    assert queue_of(rush, raw) == [keys[1]]


@pytest.mark.parametrize("retries", [0, 1, 127])
async def test_a_task_popped_by_name_has_its_retries_when_its_worker_is_lost(rush: Rush, raw: Any, retries: int) -> None:
    store = rush._net.tasks  # pyright: ignore[reportPrivateUsage]
    keys = await rush.push_tasks([{"x": 1}, {"x": 2}], retries=retries)
    async with RushWorker(rush.network_id, rush.config) as worker:
        await popped_by_name(store, worker.worker_id, keys[1])
        workers = rush._net.workers  # pyright: ignore[reportPrivateUsage]
        raw.config_resetstat()
        await workers.lose([worker.worker_id], "killed", KILLED, KILLED)
        assert "cmdstat_lrem" not in raw.info("commandstats")  # it would search the whole queue
    assert await rush.counts() == ((1, 0, 0, 1) if not retries else (2, 0, 0, 0))
    if not retries:
        assert await rush.retry_tasks() == [keys[1]]
        assert queue_of(rush, raw) == keys
    else:
        assert queue_of(rush, raw) == [keys[1], *keys]
        assert raw.hget(NetworkKeys.of(rush.network_id).queued, keys[1])[1] == 128 + retries - 1
        assert (await rush.fetch_queued_tasks())["x"].to_list() == [2, 1]


async def test_a_cancelled_task_that_was_popped_by_name_is_queued_once_when_it_is_retried(
    rush: Rush, store: TaskStore, rush_worker: RushWorker, raw: Any
) -> None:
    keys = await rush.push_tasks([{"x": 1}, {"x": 2}])
    await popped_by_name(store, rush_worker.worker_id, keys[0])
    assert await rush.cancel_tasks(keys[0]) == [keys[0]]
    assert await rush.retry_tasks() == [keys[0]]
    assert queue_of(rush, raw) == [keys[1], keys[0]]


async def test_a_record_of_another_program_is_not_popped_by_name_and_stays(
    rush: Rush, store: TaskStore, rush_worker: RushWorker, raw: Any
) -> None:
    (key,) = await rush.push_tasks([{"x": 1}])
    place = NetworkKeys.of(rush.network_id).queued
    for record in (b"", b"\0\0\0\0\xff\xff", b"\0\0\0\0\0\0\xdf"):
        raw.hset(place, key, record)
        assert await store.pop_named(rush_worker.worker_id, key) == Pop([], "empty")
        assert raw.hget(place, key) == record


async def test_a_pop_by_name_needs_a_place_within_the_stop_rules_and_a_network_that_has_not_stopped(
    rush: Rush, store: TaskStore, rush_worker: RushWorker
) -> None:
    first, second = await rush.push_tasks([{"x": 1}, {"x": 2}])
    await rush.stop_when(finished=1)
    await popped_by_name(store, rush_worker.worker_id, second)
    assert await store.pop_named(rush_worker.worker_id, first) == Pop([], "full")
    await rush_worker.finish_tasks(second, [{"y": 1}])
    assert await store.pop_named(rush_worker.worker_id, first) == Pop([], "stopped")


async def test_each_task_ends_once_and_only_by_its_worker(rush: Rush, store: TaskStore, rush_worker: RushWorker) -> None:
    async with RushWorker(rush.network_id, rush.config) as other:
        await store.push("queued", new(2))
        (first,), (second,) = await popped(store, rush_worker.worker_id), await popped(store, other.worker_id)
        failure = encode_failure(Failure("error", None, "no"))
        ends = [
            Ended("finished", first.key, rush_worker.worker_id, ENDED),
            Ended("failed", first.key, rush_worker.worker_id, failure),
            Ended("finished", second.key, rush_worker.worker_id, ENDED),
        ]
        assert await store.end(ends) == [1, 0, 0]
        assert await rush.counts() == (0, 1, 1, 0)


async def test_more_ends_than_one_call_takes_are_answered_in_order(store: TaskStore, rush_worker: RushWorker) -> None:
    created = await store.push("running", new(1_200), worker_id=rush_worker.worker_id)
    assert isinstance(created, Created)
    keys = created.keys
    ends = [Ended("finished", key, rush_worker.worker_id, ENDED) for key in [*keys[:700], "unknown", *keys[700:]]]
    assert await store.end(ends) == [1] * 700 + [0] + [1] * 500


async def test_a_task_that_cannot_be_read_fails(rush: Rush, store: TaskStore, rush_worker: RushWorker) -> None:
    await store.push("queued", new(1))
    ((key, _),) = await popped(store, rush_worker.worker_id)
    store.fail_later(key, rush_worker.worker_id, ValueError("not a record"))
    await quiet(store)
    (task,) = await rush.get_tasks(key)
    assert task is not None
    assert task.failure is not None
    assert (task.state, task.failure.message) == ("failed", "not a record")


async def test_cancel_and_retry_return_the_keys_that_moved(store: TaskStore, rush_worker: RushWorker) -> None:
    tasks = new(3)
    queued = [task.key for task in tasks]
    await store.push("queued", tasks)
    await popped(store, rush_worker.worker_id)
    cancelled = Failure("cancelled", None, "Task was cancelled")
    assert await store.cancel([queued[0], queued[2], "unknown"], cancelled) == [queued[0], queued[2]]
    assert await store.retry(["unknown", queued[2]]) == [queued[2]]
    assert await store.retry(None) == [queued[0]]


async def test_emptying_the_queue_fails_what_is_queued_in_order(rush: Rush, store: TaskStore) -> None:
    tasks = new(1_300)  # more than one call removes
    await store.push("queued", tasks)
    assert await store.empty_queue(Failure("removed", None, "Removed from queue")) == [task.key for task in tasks]
    assert await rush.counts() == (0, 0, 0, 1_300)
    assert await store.empty_queue(Failure("removed", None, "Removed from queue")) == []


async def test_a_reset_of_tasks_begins_an_epoch_and_one_of_all_ends_the_network(rush: Rush, store: TaskStore, raw: Any) -> None:
    await store.push("queued", new(1))
    before = store.position.epoch
    await store.reset(workers=False)
    assert store.position.epoch == (await store.read_position()).epoch > before > 0
    await store.reset(workers=True)
    assert store.position.epoch == (await store.read_position()).epoch == 0
    assert raw.keys(f"rush:{{{rush.network_id}}}:*") == []


async def test_tasks_have_indices_in_the_order_of_creation_whatever_their_state(rush: Rush, rush_worker: RushWorker) -> None:
    keys = await rush.push_tasks([{"x": 0}, {"x": 1}])
    keys += await rush_worker.push_running_tasks([{"x": 2}, {"x": 3}, {"x": 4}], budget=4)  # the last finds no place
    keys += await rush.push_finished_tasks([{"x": 5}], [{"y": 1}])
    keys += await rush.push_failed_tasks([{"x": 6}])
    async with rush_worker.task({"x": 7}) as task:
        task.ys = {"y": 1}
    assert task.index == 6
    tasks = await rush.get_tasks(keys)
    assert [task.index for task in tasks if task is not None] == [0, 1, 2, 3, 4, 5]


async def test_a_task_keeps_its_index_when_it_moves(rush: Rush, rush_worker: RushWorker) -> None:
    await rush.push_tasks([{"x": 0}])
    (key,) = await rush.push_tasks([{"x": 1}])
    await rush.cancel_tasks(key)
    await rush.retry_tasks(key)
    for index in (0, 1):
        task = await rush_worker.pop_task(timeout=0)
        assert task is not None
        assert task.index == index
        await rush_worker.finish_tasks(task.key, [{"y": 1}])
    frame = await rush.fetch_finished_tasks(times=True)
    assert frame["index"].to_list() == [0, 1]


@pytest.mark.parametrize("workers", [True, False])
async def test_a_reset_begins_the_indices_anew(rush: Rush, store: TaskStore, workers: bool) -> None:
    await rush.push_tasks([{"x": 0}])
    await store.reset(workers=workers)
    (key,) = await rush.push_tasks([{"x": 1}])
    (task,) = await rush.get_tasks(key)
    assert task is not None
    assert task.index == 0


async def test_a_merged_push_gives_each_caller_the_index_of_its_own_tasks(rush: Rush, store: TaskStore) -> None:
    pushes = [rush.push_tasks([{"x": at}, {"x": at}]) for at in range(20)]
    for at, keys in enumerate(await asyncio.gather(*pushes)):
        assert [task.index for task in await rush.get_tasks(keys) if task is not None] == [2 * at, 2 * at + 1]


async def test_retries_of_cancelled_tasks_keep_the_server_for_a_moment_only(store: TaskStore, rush: Rush, raw: Any) -> None:
    """Each is searched for in a long queue, a few in a call."""
    await store.push("queued", new(30_000))
    keys = await rush.push_tasks([{"x": x} for x in range(200)])
    await rush.cancel_tasks(keys)
    raw.config_resetstat()
    assert await rush.retry_tasks(keys) == keys
    assert raw.info("commandstats")["cmdstat_evalsha"]["calls"] > 10
    assert (await rush.keys_with_state("queued"))["queued"][-200:] == keys
    assert raw.llen(NetworkKeys.of(rush.network_id).queue) == 30_200


async def test_a_lost_worker_s_task_that_cannot_return_to_a_replaced_queue_stays_running_until_it_can(
    rush: Rush, store: TaskStore, raw: Any
) -> None:
    await rush.push_tasks([{"x": 1}], retries=1)
    queue, workers = NetworkKeys.of(rush.network_id).queue, rush._net.workers  # pyright: ignore[reportPrivateUsage]
    async with RushWorker(rush.network_id, rush.config) as worker:
        (taken,) = await popped(store, worker.worker_id)
        raw.set(queue, "of another program")
        for _ in range(2):
            with pytest.raises(DecodeError, match=queue):
                await workers.lose([worker.worker_id], "killed", KILLED, KILLED)
        raw.delete(queue)
        assert await rush.counts() == (0, 1, 0, 0)
        await workers.lose([worker.worker_id], "killed", KILLED, KILLED)
    assert await rush.counts() == (1, 0, 0, 0)
    assert queue_of(rush, raw) == [taken.key]


async def test_a_task_that_cannot_return_to_a_replaced_queue_stays_running(
    rush: Rush, store: TaskStore, rush_worker: RushWorker, raw: Any
) -> None:
    await rush.push_tasks([{"x": 1}])
    (taken,) = await popped(store, rush_worker.worker_id)
    queue = NetworkKeys.of(rush.network_id).queue
    raw.set(queue, "of another program")
    with pytest.raises(DecodeError, match=queue):
        await store.end([Ended("returned", taken.key, rush_worker.worker_id)])
    raw.delete(queue)
    assert await rush.counts() == (0, 1, 0, 0)
