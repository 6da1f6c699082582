"""Events: in order, each once, and never missed in silence."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
import redis

from rush_async import (
    Counts,
    Event,
    EventsMissed,
    EventStream,
    Failure,
    NetworkReset,
    NetworkStateError,
    Rush,
    RushConfig,
    RushWorker,
    TasksFailed,
    TasksFinished,
    TasksQueued,
    TasksStarted,
    WorkerLost,
    WorkerStarted,
    WorkerStopped,
)
from rush_async.testing import wait_until
from tests.proxy import Proxy

XS = {"x1": 1.0, "x2": 2.0}
SOON = 5.0


async def take(events: EventStream[Any], n: int) -> list[Any]:
    """The next n events."""
    async with asyncio.timeout(SOON):
        return [await anext(events) for _ in range(n)]


async def keys_of(events: EventStream[Any], n: int) -> list[str]:
    """The keys of the next events, until there are n of them."""
    keys: list[str] = []
    async with asyncio.timeout(SOON):
        while len(keys) < n:
            event = await anext(events)
            assert not isinstance(event, EventsMissed)
            keys += event.keys
    return keys


async def nothing(rush: Rush, events: EventStream[Any]) -> None:
    """No event is there but the one that this makes."""
    (key,) = await rush.push_tasks([XS])
    (event,) = await take(events, 1)
    assert isinstance(event, TasksQueued)
    assert event.keys == (key,)


def kinds(events: Iterable[Any]) -> list[str]:
    return [type(event).__name__ for event in events]


def are_without_gap(events: Sequence[Event]) -> bool:
    return [event.seq for event in events] == list(range(events[0].seq, events[0].seq + len(events)))


# what there is


async def test_events_tell_the_life_of_a_task(rush: Rush) -> None:
    async with rush.events() as events:
        async with RushWorker(rush.network_id, rush.config) as worker:
            (key,) = await rush.push_tasks([XS])
            assert await worker.pop_task(0) is not None
            await worker.fail_tasks(key, "no")
            await rush.retry_tasks(key)
            assert await worker.pop_task(0) is not None
            await worker.finish_tasks(key, [{"y": 1}])
        taken = await take(events, 8)
    assert kinds(taken) == [
        "WorkerStarted",
        "TasksQueued",
        "TasksStarted",
        "TasksFailed",
        "TasksQueued",
        "TasksStarted",
        "TasksFinished",
        "WorkerStopped",
    ]
    assert are_without_gap(taken)
    assert taken[0].seq == 1
    assert {event.network_id for event in taken} == {rush.network_id}
    assert [event.keys for event in taken[1:-1]] == [(key,)] * 6
    assert [event.worker_id for event in taken if not isinstance(event, TasksQueued)] == [worker.worker_id] * 6
    for event in taken:
        assert event.at.tzinfo is UTC
        assert abs((event.at - datetime.now(UTC)).total_seconds()) < 60
    assert [event.at for event in taken] == sorted(event.at for event in taken)
    assert all(event.tasks is None for event in taken if isinstance(event, TasksFailed | TasksFinished))


async def test_events_of_tasks_that_no_worker_ran_name_no_worker(rush: Rush) -> None:
    async with rush.events() as events:
        (finished,) = await rush.push_finished_tasks([XS], [{"y": 1}])
        (failed,) = await rush.push_failed_tasks([XS])
        await rush.push_tasks([XS])
        (removed,) = await rush.empty_queue()
        first, second, _, third = await take(events, 4)
    assert isinstance(first, TasksFinished)
    assert isinstance(second, TasksFailed)
    assert isinstance(third, TasksFailed)
    assert [first.keys, second.keys, third.keys] == [(finished,), (failed,), (removed,)]
    assert [first.worker_id, second.worker_id, third.worker_id] == [None] * 3


async def test_the_event_of_a_lost_worker_comes_after_the_ends_of_its_tasks(rush: Rush) -> None:
    async with RushWorker(rush.network_id, rush.config) as worker:
        keys = await worker.push_running_tasks([XS] * 3)
        async with rush.events() as events:
            lost = Failure("lost", None, "Worker has crashed or was killed")
            await rush._net.workers.lose([worker.worker_id], "lost", lost)  # pyright: ignore[reportPrivateUsage]
            failed, gone = await take(events, 2)
    assert isinstance(failed, TasksFailed)
    assert isinstance(gone, WorkerLost)
    assert sorted(failed.keys) == sorted(keys)
    assert failed.worker_id == gone.worker_id == worker.worker_id


async def test_what_moved_nothing_makes_no_event(rush: Rush, rush_worker: RushWorker) -> None:
    async with rush.events() as events:
        await rush_worker.finish_tasks("nobody", [{"y": 1}])
        await rush_worker.fail_tasks("nobody")
        await rush.retry_tasks()
        await rush.retry_tasks("nobody")
        await rush.empty_queue()
        await rush.push_tasks([])
        assert await rush_worker.pop_task(0) is None
        await nothing(rush, events)


async def test_events_are_frozen(rush: Rush) -> None:
    async with rush.events() as events:
        await rush.push_tasks([XS])
        (event,) = await take(events, 1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.seq = 7


async def test_events_begin_when_the_block_opens(rush: Rush, elsewhere: Rush) -> None:
    for _ in range(20):
        await elsewhere.push_tasks([XS])
        async with rush.events() as events:
            await nothing(elsewhere, events)


async def test_listeners_do_not_take_from_each_other(rush: Rush, elsewhere: Rush) -> None:
    async with rush.events() as first, rush.events() as second, elsewhere.events() as third:
        await rush.push_tasks([XS])
        await elsewhere.push_tasks([XS])
        taken = [await take(events, 2) for events in (first, second, third)]
    assert taken[0] == taken[1] == taken[2]


async def test_events_of_other_networks_are_not_heard(rush: Rush) -> None:
    async with rush.events() as events, Rush(config=rush.config) as other:
        await other.push_tasks([XS])
        await nothing(rush, events)
        await other.reset()


# filter


async def test_only_the_kinds_asked_for_come(rush: Rush, rush_worker: RushWorker) -> None:
    async with rush.events(TasksFinished, WorkerStopped) as events:
        keys = await rush.push_tasks([XS] * 2)
        for key in keys:
            assert await rush_worker.pop_task(0) is not None
            await rush_worker.finish_tasks(key, [{"y": 1}])
        await (await RushWorker(rush.network_id, rush.config)).aclose()
        taken = await take(events, 3)
    assert kinds(taken) == ["TasksFinished", "TasksFinished", "WorkerStopped"]
    assert [event.keys for event in taken[:2]] == [(key,) for key in keys]


@pytest.mark.parametrize("bad", [Counts, int, Event, "TasksFinished", TasksFinished.__mro__[1]], ids=repr)
async def test_what_is_no_kind_of_event_is_refused(rush: Rush, bad: Any) -> None:
    with pytest.raises(ValueError, match="no kind of event: choose from TasksQueued"):
        rush.events(bad)


@pytest.mark.parametrize("buffer", [0, -1])
async def test_a_buffer_of_nothing_is_refused(rush: Rush, buffer: int) -> None:
    with pytest.raises(ValueError, match=f"buffer must be .*, not {buffer}"):
        rush.events(buffer=buffer)


async def test_a_stream_that_is_not_open_says_so(rush: Rush) -> None:
    events = rush.events()
    with pytest.raises(NetworkStateError, match="async with"):
        await anext(events)
    async with events:
        await nothing(rush, events)
    with pytest.raises(NetworkStateError, match="async with"):
        await anext(events)


async def test_a_stream_that_is_open_does_not_open_again(rush: Rush) -> None:
    async with rush.events() as events:
        with pytest.raises(NetworkStateError, match="open"):
            async with events:
                raise AssertionError("the block must not open")
        await nothing(rush, events)


# results


async def test_with_results_ends_carry_their_tasks(rush: Rush, rush_worker: RushWorker) -> None:
    async with rush.events(results=True) as events:
        keys = await rush_worker.push_running_tasks([{"n": 0}, {"n": 1}, {"n": 2}])
        await rush_worker.finish_tasks([keys[1], keys[0]], [{"y": 1}, {"y": 0}])
        await rush_worker.fail_tasks(keys[2], "broken")
        started, finished, failed = await take(events, 3)
    assert isinstance(started, TasksStarted)
    assert isinstance(finished, TasksFinished)
    assert isinstance(failed, TasksFailed)
    assert finished.tasks is not None
    assert failed.tasks is not None
    assert [(task.key, task.xs, task.ys) for task in finished.tasks] == [
        (keys[1], {"n": 1}, {"y": 1}),
        (keys[0], {"n": 0}, {"y": 0}),
    ]
    assert [task.failure and task.failure.message for task in failed.tasks] == ["broken"]


async def test_with_results_a_cancelled_wait_loses_no_event(rush: Rush, rush_worker: RushWorker) -> None:
    keys = await rush_worker.push_running_tasks([{"n": n} for n in range(30)])
    async with rush.events(TasksFinished, results=True) as events:
        for key in keys:
            await rush_worker.finish_tasks(key, [{"y": 1}])
        seen: list[str] = []
        for ticks in range(len(keys)):
            # Cancelled at every point in turn: while waiting, while reading the results, in the tick of their coming.
            waiting = asyncio.ensure_future(anext(events))
            for _ in range(ticks):
                await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait([waiting])
            if not waiting.cancelled():
                event = waiting.result()
                assert isinstance(event, TasksFinished)
                seen += event.keys
        seen += await keys_of(events, len(keys) - len(seen))
    assert seen == keys


# order and size


async def test_the_events_of_a_bulk_push_of_10_000_are_whole_and_in_order(rush: Rush, raw: Any, elsewhere: Rush) -> None:
    async with rush.events() as events, elsewhere.events(TasksQueued) as others:
        keys = await rush.push_tasks({"n": n} for n in range(10_000))
        taken: list[Any] = []
        async with asyncio.timeout(SOON):
            while sum(len(event.keys) for event in taken) < 10_000:
                taken.append(await anext(events))
        assert [key for event in taken for key in event.keys] == keys
        assert are_without_gap(taken)
        assert await keys_of(others, 10_000) == keys
        await nothing(rush, events)


async def test_no_message_is_larger_than_a_kib(rush: Rush, rush_worker: RushWorker, rush_server: RushConfig) -> None:
    assert rush_server.url is not None
    channel = rush._net.keys.events  # pyright: ignore[reportPrivateUsage]
    sizes: list[int] = []

    client: Any = redis.Redis.from_url(rush_server.url)  # pyright: ignore[reportUnknownMemberType]
    with client, client.pubsub() as listener:
        listener.ssubscribe(channel)
        async with rush.events() as events:
            pushed = await rush_worker.push_running_tasks([XS] * 2_000)
            await rush_worker.finish_tasks(pushed[:1_500], [{"y": 1}] * 1_500)
            await rush_worker.fail_tasks(pushed[1_500:], "a long story " * 100)
            assert await keys_of(events, 4_000) == [*pushed, *pushed]
        # What the events told has been published, so nothing is waited for.
        for message in iter(lambda: listener.parse_response(block=False, timeout=0.01), None):
            sizes += [len(message[2])] if message[0] == b"smessage" else []
    assert max(sizes) <= 1024
    assert len(sizes) > 20


async def test_events_of_many_calls_of_one_tick_come_in_the_order_of_the_server(rush: Rush) -> None:
    async with rush.events(TasksQueued) as events:
        pushes = await asyncio.gather(*[rush.push_tasks([{"n": n}]) for n in range(500)])
        announced = await keys_of(events, 500)
    assert announced == [key for keys in pushes for key in keys]
    assert (await rush.keys_with_state("queued"))["queued"] == announced


async def test_counters_are_up_to_date_when_an_event_comes(rush: Rush, elsewhere: Rush) -> None:
    async with rush.events() as events:
        for n in range(1, 20):
            await elsewhere.push_tasks([XS])
            await take(events, 1)
            assert rush.n_queued_tasks == n


async def test_events_of_workers_with_the_longest_names_come(rush: Rush) -> None:
    name = "日" * 60
    async with rush.events() as events:
        async with RushWorker(rush.network_id, rush.config, worker_id=name) as worker:
            keys = await worker.push_running_tasks([XS] * 200)
            (event,) = await take(events, 1)
            assert isinstance(event, WorkerStarted)
            assert event.worker_id == name
            assert await keys_of(events, 200) == keys
            assert await worker.finish_tasks(keys, [{"y": 1}] * 200) == keys


# a slow listener


async def test_a_full_buffer_keeps_the_oldest_and_says_how_far_the_gap_reaches(rush: Rush, elsewhere: Rush) -> None:
    async with rush.events(buffer=5) as events, rush.events() as fast:
        for _ in range(20):
            await elsewhere.push_tasks([XS])
        everything = await take(fast, 20)
        taken = await take(events, 6)
        assert taken[:5] == everything[:5]
        assert isinstance(taken[5], EventsMissed)
        assert taken[5].seq == everything[-1].seq
        # It continues where it left off.
        await nothing(elsewhere, events)
        await take(fast, 1)


async def test_a_slow_listener_misses_only_what_is_reported_as_missed(rush: Rush, elsewhere: Rush) -> None:
    async with rush.events(buffer=3) as events, rush.events() as fast:
        seq, taken = 0, list[Any]()
        for n in range(100):
            await elsewhere.push_tasks([XS])
            await take(fast, 1)  # so many events have come
            if n % 7 == 0:
                taken += await take(events, 1)
        while not taken or taken[-1].seq < 100:
            taken += await take(events, 1)
    assert EventsMissed in {type(event) for event in taken}
    for event in taken:
        if isinstance(event, EventsMissed):
            assert event.seq > seq
        else:
            assert event.seq == seq + 1
        seq = event.seq
    assert seq == 100


async def test_a_filtered_listener_with_a_full_buffer_misses_only_its_own(rush: Rush, rush_worker: RushWorker) -> None:
    async with rush.events(TasksFinished, buffer=2) as events, rush.events() as fast:
        await rush.push_tasks([XS] * 3)
        for _ in range(5):
            await rush.push_tasks([XS])
        keys = await rush_worker.push_running_tasks([XS] * 2)
        for key in keys:
            await rush_worker.finish_tasks(key, [{"y": 1}])
        await take(fast, 9)
        assert await keys_of(events, 2) == keys


async def test_a_full_buffer_does_not_hide_a_reset(rush: Rush, elsewhere: Rush) -> None:
    async with rush.events(buffer=2) as events, rush.events() as fast:
        for _ in range(5):
            await elsewhere.push_tasks([XS])
        await elsewhere.reset(workers=False)
        (key,) = await elsewhere.push_tasks([XS])
        await take(fast, 7)
        taken = await take(events, 3)
        assert kinds(taken) == ["TasksQueued", "TasksQueued", "EventsMissed"]
        assert taken[-1].seq == 1  # of the new epoch: numbers went back, so there was a reset
        assert await rush.get_tasks(key) != [None]
        await nothing(elsewhere, events)


async def test_a_listener_that_does_not_read_disturbs_no_other_client(rush: Rush, rush_worker: RushWorker) -> None:
    async with rush.events(buffer=1):
        keys = await rush_worker.push_running_tasks([XS] * 3_000)
        assert await rush_worker.finish_tasks(keys, [{"y": 1}] * 3_000) == keys
        assert rush.n_finished_tasks == 3_000


async def test_two_tasks_that_read_one_stream_share_its_events(rush: Rush) -> None:
    async with rush.events() as events:
        readers = [asyncio.ensure_future(anext(events)) for _ in range(3)]
        await asyncio.sleep(0)
        keys = [*await rush.push_tasks([XS]), *await rush.push_tasks([XS]), *await rush.push_tasks([XS])]
        taken = await asyncio.wait_for(asyncio.gather(*readers), SOON)
        assert sorted(event.keys[0] for event in taken if isinstance(event, TasksQueued)) == sorted(keys)


async def test_a_reader_that_is_cancelled_leaves_the_events_to_the_other(rush: Rush) -> None:
    async with rush.events() as events:
        first, second = asyncio.ensure_future(anext(events)), asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.wait([second])
        (key,) = await rush.push_tasks([XS])
        event = await asyncio.wait_for(first, SOON)
        assert isinstance(event, TasksQueued)
        assert event.keys == (key,)


async def test_a_reader_ends_when_the_block_or_the_client_is_closed(rush: Rush) -> None:
    async def read(events: EventStream[Event]) -> int:
        return len([event async for event in events])

    async with rush.events() as events:
        reading = asyncio.ensure_future(read(events))
        await rush.push_tasks([XS])
        await asyncio.sleep(0)
    assert await asyncio.wait_for(reading, SOON) <= 1
    client = await Rush(rush.network_id, rush.config)
    async with client.events() as events:
        reading = asyncio.ensure_future(read(events))
        await asyncio.sleep(0)
        await client.aclose()
        with pytest.raises(NetworkStateError, match="closed"):
            await asyncio.wait_for(reading, SOON)


@pytest.mark.parametrize("n_waiting", [0, 1])
async def test_a_reader_that_was_busy_while_the_client_was_closed_does_not_wait_for_ever(rush: Rush, n_waiting: int) -> None:
    client = await Rush(rush.network_id, rush.config)
    async with client.events() as events:
        for _ in range(n_waiting):
            await rush.push_tasks([XS])
        await client.aclose()
        with pytest.raises(NetworkStateError, match="is closed: open a new one"):
            await asyncio.wait_for(anext(events), SOON)


# reset


@pytest.mark.parametrize("workers", [True, False])
async def test_a_reset_is_an_event_and_numbers_start_anew(rush: Rush, elsewhere: Rush, workers: bool) -> None:
    async with rush.events() as events, elsewhere.events() as others:
        await rush.push_tasks([XS])
        await elsewhere.reset(workers=workers)
        (key,) = await elsewhere.push_tasks([XS])
        for each in (events, others):
            first, reset, after = await take(each, 3)
            assert isinstance(first, TasksQueued)
            assert isinstance(reset, NetworkReset)
            assert isinstance(after, TasksQueued)
            assert (after.seq, after.keys) == (1, (key,))


async def test_the_client_that_resets_hears_of_it_once(rush: Rush) -> None:
    async with rush.events() as events:
        for _ in range(3):
            await rush.push_tasks([XS])
            await rush.reset()
            assert kinds(await take(events, 2)) == ["TasksQueued", "NetworkReset"]
        await nothing(rush, events)


async def test_a_listener_that_was_there_before_the_network_hears_its_first_event(rush: Rush, elsewhere: Rush) -> None:
    async with rush.events() as events:
        (key,) = await elsewhere.push_tasks([XS])
        (event,) = await take(events, 1)
    assert isinstance(event, TasksQueued)
    assert (event.seq, event.keys) == (1, (key,))


# a line that breaks


async def cut(proxy: Proxy, meanwhile: Any = None) -> None:
    """The line to the events breaks, something happens, and it comes back."""
    proxy.refuse()
    assert proxy.cut_all("pubsub") == 1
    n = proxy.count("SSUBSCRIBE")
    if meanwhile is not None:
        await meanwhile
    proxy.refuse(False)
    await asyncio.wait_for(proxy.seen("SSUBSCRIBE", times=n + 1), SOON)


async def test_a_gap_after_a_cut_is_reported_and_everything_behind_it_comes(rush: Rush, proxy: Proxy) -> None:
    async with Rush(rush.network_id, proxy.url) as far, far.events() as events:
        await rush.push_tasks([XS])
        (before,) = await take(events, 1)
        await cut(proxy, rush.push_tasks([XS] * 3))
        (missed,) = await take(events, 1)
        assert isinstance(missed, EventsMissed)
        assert (before.seq, missed.seq) == (1, 2)
        await nothing(rush, events)


async def test_a_cut_in_which_nothing_happened_is_no_gap(rush: Rush, proxy: Proxy) -> None:
    async with Rush(rush.network_id, proxy.url) as far, far.events() as events:
        for _ in range(3):
            await nothing(rush, events)
            await cut(proxy)
        await nothing(rush, events)


async def test_every_cut_with_a_change_is_reported_however_often(rush: Rush, proxy: Proxy) -> None:
    async with Rush(rush.network_id, proxy.url) as far, far.events(TasksFinished) as events:
        for n in range(1, 6):
            await cut(proxy, rush.push_tasks([XS]))
            (missed,) = await take(events, 1)
            assert isinstance(missed, EventsMissed)
            assert missed.seq == n
        (key,) = await rush.push_finished_tasks([XS], [{"y": 1}])
        (event,) = await take(events, 1)
        assert event.keys == (key,)


@pytest.mark.parametrize("workers", [True, False])
async def test_a_reset_during_a_cut_is_never_missed_in_silence(rush: Rush, proxy: Proxy, workers: bool) -> None:
    async with Rush(rush.network_id, proxy.url) as far, far.events() as events:
        await rush.push_tasks([XS])
        await take(events, 1)
        await cut(proxy, rush.reset(workers=workers))
        (missed,) = await take(events, 1)
        assert isinstance(missed, EventsMissed | NetworkReset)
        assert await far.counts() == Counts()
        await nothing(rush, events)


async def test_a_reset_and_a_new_beginning_during_a_cut_are_never_missed_in_silence(rush: Rush, proxy: Proxy) -> None:
    async def begin_anew() -> None:
        await rush.reset()
        await rush.push_tasks([XS])  # the same number as before: only the epoch tells

    async with Rush(rush.network_id, proxy.url) as far, far.events() as events:
        await rush.push_tasks([XS])
        await take(events, 1)
        await cut(proxy, begin_anew())
        (missed,) = await take(events, 1)
        assert isinstance(missed, EventsMissed | NetworkReset)
        await nothing(rush, events)
        assert await far.wait_until(lambda counts: counts.queued == 2, timeout=SOON) == Counts(queued=2)


async def test_counters_are_right_again_after_a_cut(rush: Rush, proxy: Proxy) -> None:
    async with Rush(rush.network_id, proxy.url) as far:
        await far.wait_until(lambda counts: counts.total == 0)
        await cut(proxy, rush.push_tasks([XS] * 3))
        await wait_until(lambda: far.n_queued_tasks == 3)
        await cut(proxy, rush.empty_queue())
        await wait_until(lambda: far.n_queued_tasks == 0 and far.n_failed_tasks == 3)


async def test_a_listener_opened_while_the_line_is_down_waits_for_it(rush: Rush, proxy: Proxy) -> None:
    async with Rush(rush.network_id, proxy.url) as far:
        proxy.refuse()
        events = far.events()
        opening = asyncio.ensure_future(events.__aenter__())
        await wait_until(lambda: proxy.n_refused > 1)
        assert not opening.done()
        proxy.refuse(False)
        await asyncio.wait_for(opening, SOON)
        await nothing(rush, events)
        await events.__aexit__()


async def test_one_connection_listens_however_many_listeners_there_are(rush: Rush, raw: Any) -> None:
    await wait_until(lambda: rush._net.feed.is_watching)  # pyright: ignore[reportPrivateUsage]
    before = len(raw.client_list())
    async with rush.events(), rush.events(), Rush(rush.network_id, rush.config) as other, other.events():
        await other.wait_until(lambda counts: counts.total == 0)
        assert len(raw.client_list()) == before
