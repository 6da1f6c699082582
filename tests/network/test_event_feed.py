"""The feed of events: what a listener gathers, how long the channel is subscribed, and what a malformed message does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
import pytest_asyncio

from rush_async import Counts, EventsMissed, Rush, RushWorker, TasksQueued, TasksStarted
from rush_async.network.event_feed import EndWait, Listener
from rush_async.store.messages import EventMessage, ResetMessage
from rush_async.store.position import Position
from rush_async.testing import wait_until

XS = {"x1": 1.0, "x2": 2.0}
NOW = datetime.now(UTC)


@pytest_asyncio.fixture
async def worker_elsewhere(rush: Rush) -> AsyncIterator[RushWorker]:
    """A worker with a view of the network of its own, as in another process."""
    async with RushWorker(rush.network_id, replace(rush.config, response_timeout=11.5)) as worker:
        yield worker


def kinds(events: Iterable[Any]) -> list[str]:
    return [type(event).__name__ for event in events]


def message(epoch: int, *seqs: int) -> EventMessage:
    """A message with a queued task for each number."""
    queued = [TasksQueued(network_id="net", seq=seq, at=NOW, keys=(f"key-{seq}",)) for seq in seqs]
    return EventMessage.of(epoch, Counts(queued=1), 0, queued)


def listener_at(epoch: int, seq: int, *, limit: int = 10, wanted: tuple[type[Any], ...] = ()) -> Listener:
    listener = Listener("net", wanted, limit)
    listener.begin(epoch, seq)
    return listener


async def taken(listener: Listener) -> list[Any]:
    return [await listener.next() for _ in range(len(listener))]


async def test_a_listener_takes_each_event_once() -> None:
    listener = listener_at(5, 2)
    for each in (message(5, 1, 2), message(5, 2, 3), message(5, 3), message(5, 4, 5)):
        listener.take(each)
    assert [event.seq for event in await taken(listener)] == [3, 4, 5]


async def test_a_gap_is_reported_before_the_event_after_it() -> None:
    listener = listener_at(5, 2)
    listener.take(message(5, 7))
    assert [(type(event), event.seq) for event in await taken(listener)] == [(EventsMissed, 6), (TasksQueued, 7)]


async def test_what_came_before_the_listener_knew_its_position_is_gone_through() -> None:
    listener = Listener("net", (), 10)
    for each in (message(5, 1), message(5, 2), message(5, 3)):
        listener.take(each)
    assert len(listener) == 0
    listener.begin(5, 2)
    assert [event.seq for event in await taken(listener)] == [3]


async def test_a_full_listener_keeps_the_oldest_events_and_tells_how_far_the_gap_reaches() -> None:
    listener = listener_at(5, 0, limit=2)
    for seq in range(1, 7):
        listener.take(message(5, seq))
    assert [(type(event), event.seq) for event in await taken(listener)] == [
        (TasksQueued, 1),
        (TasksQueued, 2),
        (EventsMissed, 6),
    ]


async def test_a_listener_hears_of_a_rollback_only_if_it_was_further() -> None:
    listener = listener_at(5, 10, wanted=(TasksStarted,))
    listener.roll_back(5, 10, NOW)
    listener.roll_back(6, 0, NOW)
    listener.roll_back(0, 0, NOW)
    assert len(listener) == 0
    listener.roll_back(5, 7, NOW)
    assert kinds(await taken(listener)) == ["EventsMissed"]
    listener.take(message(5, 8))  # not wanted, and not missed
    assert len(listener) == 0


async def test_an_end_wait_wakes_when_all_have_ended_or_a_look_is_needed() -> None:
    wait = EndWait(["a", "b"])
    waiting = asyncio.ensure_future(wait.changed())
    assert wait.ended(["a", "c"])
    assert not wait.ended(["a", "c"])
    await asyncio.sleep(0)
    assert not waiting.done()
    wait.ended(["b"])
    await asyncio.wait_for(waiting, 5)
    assert not wait.pending
    wait.wake()
    await asyncio.wait_for(wait.changed(), 5)


async def test_the_feed_follows_the_network_in_its_blocks(elsewhere: Rush, worker_elsewhere: RushWorker) -> None:
    feed = worker_elsewhere._net.feed  # pyright: ignore[reportPrivateUsage]
    assert feed.following is None
    with feed, feed:
        await feed.watch()
        assert feed.is_watching
        assert feed.n_users == 2
        (key,) = await elsewhere.push_tasks([XS])
        with feed.listening((), 10) as listener:
            position = await feed.begin(listener)
            assert position.counts.queued == 1
            await elsewhere.cancel_tasks(key)
            assert kinds([await asyncio.wait_for(listener.next(), 5)]) == ["TasksFailed"]
    assert feed.n_users == 0
    assert feed.is_watching  # for a while


async def test_the_first_event_of_a_new_beginning_after_an_unseen_reset_tells_the_gap() -> None:
    # It may come before the position that is read after a reconnect, so what it carries must do.
    listener = Listener("net", (), 10)
    listener.begin(5, 0)
    listener.take(message(5, 1))
    listener.take(message(9, 1))
    assert kinds([await listener.next() for _ in range(3)]) == ["TasksQueued", "EventsMissed", "TasksQueued"]
    listener.take(ResetMessage(12, NOW, False))
    listener.take(message(14, 1))
    assert kinds([await listener.next() for _ in range(2)]) == ["NetworkReset", "TasksQueued"]


async def test_a_message_that_is_none_of_ours_is_logged_and_skipped(
    rush: Rush, raw: Any, caplog: pytest.LogCaptureFixture
) -> None:
    channel = rush._net.keys.events  # pyright: ignore[reportPrivateUsage]
    async with rush.events() as events:
        for bad in (
            b"nonsense",
            b"\xc1",
            b"\x93\x01\x02\x03",
            b"\x80",
            b"\x95\xa5reset\xc0\xc0\xc0\xc0",
            b"\x94\xa5reset\xa1a\xc0\xc0",
        ):
            raw.execute_command("SPUBLISH", channel, bad)
        raw.execute_command("SPUBLISH", channel, b"")  # this one is: a client tries whether it may publish
        (key,) = await rush.push_tasks([XS])
        event = await asyncio.wait_for(anext(events), 5)
        assert isinstance(event, TasksQueued)
        assert event.keys == (key,)
    assert len([text for text in caplog.messages if "malformed" in text]) == 6


async def test_a_worker_follows_the_network_while_it_needs_events_and_for_good_from_its_first_counter_on(
    rush: Rush, worker_elsewhere: RushWorker, raw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rush_async.network.event_feed._LINGER", 0.05)
    channel, worker = f"rush:{{{rush.network_id}}}:events".encode(), worker_elsewhere

    def subscribers() -> int:
        return raw.execute_command("PUBSUB", "SHARDNUMSUB", channel)[1]

    await wait_until(lambda: subscribers() == 1)  # the manager, from its opening on
    popping = asyncio.create_task(worker.pop_task(None))
    await wait_until(lambda: subscribers() == 2)
    async with worker.events(TasksQueued):
        (key,) = await rush.push_tasks([{"x": 1}])
        task = await asyncio.wait_for(popping, 10)
        assert task is not None
        assert task.key == key
        assert subscribers() == 2  # the listener still needs them
    await wait_until(lambda: subscribers() == 1)
    assert worker.n_tasks == 1  # from its own calls; from here on from those of others, too
    await wait_until(lambda: subscribers() == 2)
    waiting = asyncio.create_task(worker.wait_until(lambda counts: counts.queued == 1, timeout=10))
    await rush.push_tasks([{"x": 2}])
    assert (await waiting).queued == 1
    feed = worker._net.feed  # pyright: ignore[reportPrivateUsage]
    await wait_until(lambda: feed._linger is None)  # pyright: ignore[reportPrivateUsage]
    assert subscribers() == 2
    await worker.finish_tasks(key, [{"y": 1}])


async def test_where_nothing_listens_the_events_of_running_tasks_are_read_with_the_counters(
    worker_elsewhere: RushWorker, rush: Rush
) -> None:
    feed, position = rush._net.feed, rush._net.position  # pyright: ignore[reportPrivateUsage]
    await wait_until(lambda: feed.is_watching)
    keys = await worker_elsewhere.push_running_tasks([XS] * 3)
    await worker_elsewhere.finish_tasks(keys[:2], [{"y": 1}] * 2)
    await wait_until(lambda: feed._unread)  # pyright: ignore[reportPrivateUsage]
    assert position.counts == Counts()
    await wait_until(lambda: rush.n_finished_tasks == 2)
    assert feed._unread is None  # pyright: ignore[reportPrivateUsage]
    await rush.push_tasks([XS])  # what may wake a waiting coroutine is read at once
    await wait_until(lambda: feed._heard_seq == position.seq)  # pyright: ignore[reportPrivateUsage]
    await worker_elsewhere.finish_tasks(keys[2:], [{"y": 1}])
    await wait_until(lambda: feed._unread)  # pyright: ignore[reportPrivateUsage]
    with feed:
        assert position.counts == Counts(queued=1, finished=3)
    (key,) = await worker_elsewhere.push_running_tasks([XS])
    await worker_elsewhere.finish_tasks(key, [{"y": 1}])
    await wait_until(lambda: feed._unread)  # pyright: ignore[reportPrivateUsage]
    position.roll_back(Position(position.epoch, 5, Counts(queued=1), 0))  # the server was restored from older data
    assert rush.n_tasks == 1


async def test_while_workers_wait_the_events_of_running_tasks_are_read_together_when_the_tick_is_over(
    rush: Rush, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rush.push_tasks([XS])
    feed, position = rush._net.feed, rush._net.position  # pyright: ignore[reportPrivateUsage]
    await wait_until(lambda: feed.is_watching and feed._heard_seq == position.seq)  # pyright: ignore[reportPrivateUsage]
    decoded: list[bytes] = []
    decode = feed._decode  # pyright: ignore[reportPrivateUsage]

    def note(data: bytes) -> None:
        decoded.append(data)
        decode(data)

    monkeypatch.setattr(feed, "_decode", note)
    data = [
        EventMessage.of(
            position.epoch,
            Counts(running=n, finished=1),
            0,
            [TasksStarted(network_id=rush.network_id, seq=position.seq + n, at=NOW, keys=(f"key-{n}",), worker_id="owl")],
        ).encode()
        for n in (1, 2, 3)
    ]
    with feed:
        for each in data[:2]:
            feed.heard("events", each)
        assert not decoded
        await asyncio.sleep(0)
        assert decoded == data[1:2]
        assert position.counts == Counts(running=2, finished=1)
        with feed.end_wait(["key-3"]):  # which the events themselves matter to
            feed.heard("events", data[2])
            assert decoded == data[1:]


async def test_a_listener_may_gather_into_the_buffer_of_another() -> None:
    """Two listeners of two channels, whose numbers are their own, fill one stream."""
    main = Listener("net", (TasksQueued, TasksStarted), 10)
    other = Listener("net", (TasksQueued,), 10, into=main)
    main.begin(5, 10)
    other.begin(5, 0)
    other.take(message(5, 1))
    main.take(message(5, 11))
    other.take(message(5, 3))
    assert len(other) == 0
    assert [(type(event), event.seq) for event in await taken(main)] == [
        (TasksQueued, 1),
        (TasksQueued, 11),
        (EventsMissed, 2),
        (TasksQueued, 3),
    ]
