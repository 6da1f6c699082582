"""Events of reports: only those who ask for them subscribe, each comes once and in order, and none is missed in silence."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC
from typing import Any

import pytest

from rush_async import (
    EventsMissed,
    EventStream,
    NetworkReset,
    Rush,
    RushWorker,
    TaskReported,
    TasksFinished,
    TasksStarted,
)
from rush_async.store.codec import to_msgpack
from rush_async.store.keys import NetworkKeys
from rush_async.testing import wait_until
from tests.proxy import Proxy

SOON = 10.0


@pytest.fixture
async def far(rush: Rush, proxy: Proxy) -> AsyncIterator[Rush]:
    """A client of the network of `rush` behind the proxy, with a view of its own."""
    async with Rush(rush.network_id, proxy.url) as far:
        yield far


async def take(events: EventStream[Any], n: int) -> list[Any]:
    async with asyncio.timeout(SOON):
        return [await anext(events) for _ in range(n)]


async def values(events: EventStream[Any], n: int) -> list[Any]:
    """What the next reports have."""
    return [None if event.values is None else event.values["n"] for event in await take(events, n)]


async def running(worker: RushWorker) -> str:
    (key,) = await worker.push_running_tasks([{"x": 1}])
    return key


async def report(worker: RushWorker, key: str, *numbers: int) -> None:
    for n in numbers:
        await worker.report_tasks(key, [{"n": n}])
    await worker._net.tasks.calls.quiet()  # pyright: ignore[reportPrivateUsage]


def channels(raw: Any, rush: Rush) -> dict[str, int]:
    """How many subscribers each channel of the network has."""
    keys = NetworkKeys.of(rush.network_id)
    names = {"events": keys.events, "reports": keys.report_events}
    return {name: dict(raw.pubsub_shardnumsub(channel))[channel.encode()] for name, channel in names.items()}


async def test_an_event_tells_of_each_report(rush_worker: RushWorker, far: Rush) -> None:
    async with far.events(TaskReported) as events:
        async with rush_worker.task({"x": 1}) as task:
            await task.report({"n": 1, "name": "a"})
            await task.report({"n": 2})
            task.ys = {"y": 1}
        first, second = await take(events, 2)
    assert [first.seq, second.seq] == [1, 2]
    assert (first.key, first.worker_id, first.attempt, first.step) == (task.key, rush_worker.worker_id, 1, 1)
    assert (first.values, second.values) == ({"n": 1, "name": "a"}, {"n": 2})
    assert first.network_id == far.network_id
    assert first.at.tzinfo is UTC
    assert second.step == 2
    frame = await far.fetch_reports()
    assert frame["at"].to_list() == [first.at, second.at]


async def test_a_large_report_comes_without_its_values(rush_worker: RushWorker, far: Rush) -> None:
    async with far.events(TaskReported) as events:
        await rush_worker.report_tasks(await running(rush_worker), [{"text": "x" * 5_000}])
        (event,) = await take(events, 1)
    assert event.values is None
    assert (await far.fetch_reports())["text"].to_list() == ["x" * 5_000]


async def test_only_listeners_of_reports_subscribe(rush: Rush, far: Rush, rush_worker: RushWorker, raw: Any) -> None:
    await wait_until(lambda: channels(raw, rush)["events"] == 2)  # managers follow
    async with rush.events() as every:
        assert channels(raw, rush) == {"events": 2, "reports": 0}
        await report(rush_worker, await running(rush_worker), 1)
        await rush.push_tasks([{"x": 1}])
        assert [type(event) for event in await take(every, 2)] != [TaskReported] * 2
        async with far.events(TaskReported) as events:
            assert channels(raw, rush) == {"events": 2, "reports": 1}
            async with far.events(TaskReported, TasksFinished):
                assert channels(raw, rush) == {"events": 2, "reports": 1}
            await report(rush_worker, await running(rush_worker), 2)
            assert await values(events, 1) == [2]
        await wait_until(lambda: channels(raw, rush)["reports"] == 0)


async def test_a_listener_begins_with_the_reports_after_its_opening(far: Rush, rush_worker: RushWorker) -> None:
    key = await running(rush_worker)
    await report(rush_worker, key, 1, 2)
    async with far.events(TaskReported) as events:
        await report(rush_worker, key, 3)
        async with far.events(TaskReported) as late:
            await report(rush_worker, key, 4)
            assert await values(events, 2) == [3, 4]
            assert await values(late, 1) == [4]


async def test_reports_and_other_events_come_in_one_stream_each_in_order(far: Rush, rush_worker: RushWorker) -> None:
    async with far.events(TaskReported, TasksStarted, TasksFinished) as events:
        for x in range(20):
            async with rush_worker.task({"x": x}) as task:
                await task.report({"n": 2 * x})
                await task.report({"n": 2 * x + 1})
                task.ys = {"y": x}
        seen = await take(events, 80)
    reports = [event for event in seen if isinstance(event, TaskReported)]
    assert [event.seq for event in reports] == list(range(1, 41))
    assert [event.values for event in reports] == [{"n": n} for n in range(40)]
    others = [event for event in seen if not isinstance(event, TaskReported)]
    assert [type(event) for event in others] == [TasksStarted, TasksFinished] * 20


async def test_a_slow_listener_learns_what_it_missed(far: Rush, rush_worker: RushWorker) -> None:
    async with far.events(TaskReported, buffer=3) as events:
        key = await running(rush_worker)
        await report(rush_worker, key, *range(1, 10))
        await wait_until(lambda: is_missed_up_to(events, 9))
        *heard, missed = await take(events, 4)
        assert [event.seq for event in heard] == [1, 2, 3]
        assert (type(missed), missed.seq) == (EventsMissed, 9)
        await report(rush_worker, key, 10)
        assert await values(events, 1) == [10]


def is_missed_up_to(events: EventStream[Any], seq: int) -> bool:
    listener = events._listener  # pyright: ignore[reportPrivateUsage]
    waiting = [] if listener is None else list(listener._events)  # pyright: ignore[reportPrivateUsage]
    return bool(waiting) and waiting[-1].seq == seq


async def test_reports_during_an_outage_are_reported_as_missed(far: Rush, rush_worker: RushWorker, proxy: Proxy) -> None:
    key = await running(rush_worker)
    async with far.events(TaskReported) as events:
        await report(rush_worker, key, 1)
        assert await values(events, 1) == [1]
        proxy.refuse()
        proxy.cut_all("pubsub")
        await report(rush_worker, key, 2, 3)
        proxy.refuse(False)
        (missed,) = await take(events, 1)
        assert (type(missed), missed.seq) == (EventsMissed, 3)
        await report(rush_worker, key, 4)
        assert await values(events, 1) == [4]
        proxy.cut_all("pubsub")  # nothing happens meanwhile
        await wait_until(lambda: proxy.count("SSUBSCRIBE") >= 3)
        await asyncio.wait_for(wait_until(lambda: is_following(far)), SOON)
        await report(rush_worker, key, 5)
        (event,) = await take(events, 1)
        if isinstance(event, TaskReported):
            assert event.values == {"n": 5}
        else:  # it was published before the subscription was confirmed
            assert event.seq == 5


def is_following(client: Rush) -> bool:
    following = client._net.report_feed._following  # pyright: ignore[reportPrivateUsage]
    return following is not None and following.is_set()


async def test_a_gap_in_the_numbers_is_reported_as_missed(rush: Rush, far: Rush, rush_worker: RushWorker, raw: Any) -> None:
    key = await running(rush_worker)
    async with far.events(TaskReported) as events:
        await report(rush_worker, key, 1)
        raw.hset(NetworkKeys.of(rush.network_id).meta, "reports", 5)
        await report(rush_worker, key, 2)
        first, missed, last = await take(events, 3)
        assert [(type(event), event.seq) for event in (first, missed, last)] == [
            (TaskReported, 1),
            (EventsMissed, 5),
            (TaskReported, 6),
        ]


@pytest.mark.parametrize("workers", [True, False])
async def test_numbers_begin_again_after_a_reset(rush: Rush, far: Rush, workers: bool) -> None:
    async with far.events(TaskReported) as events, far.events(TaskReported, NetworkReset) as both:
        for n in (1, 2):
            async with RushWorker(rush.network_id, rush.config) as worker:
                await report(worker, await running(worker), n, 10 + n)
            await rush.reset(workers=workers)
        seen = await take(events, 4)
        assert [(event.seq, event.values) for event in seen] == [(1, {"n": 1}), (2, {"n": 11}), (1, {"n": 2}), (2, {"n": 12})]
        kinds = [type(event).__name__ for event in await take(both, 6)]
        assert sorted(kinds) == ["NetworkReset"] * 2 + ["TaskReported"] * 4


def hear_nothing(message: list[Any]) -> None:
    pass


async def test_a_silent_subscription_is_noticed_for_a_listener_of_reports_alone(
    far: Rush, rush_worker: RushWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A beat tells the number of the last event, which did not arrive, and the connection is opened anew."""
    network = far._net  # pyright: ignore[reportPrivateUsage]
    key = await running(rush_worker)
    async with far.events(TaskReported) as events:
        await report(rush_worker, key, 1)
        assert await values(events, 1) == [1]
        with monkeypatch.context() as patch:
            patch.setattr(network.link.subscription, "pushed", hear_nothing)
            await running(rush_worker)
            await report(rush_worker, key, 2)
            network.feed.expect(await network.tasks.read_position())
        (missed,) = await take(events, 1)
        assert (type(missed), missed.seq) == (EventsMissed, 2)
        await report(rush_worker, key, 3)
        assert await values(events, 1) == [3]


async def test_a_listener_of_reports_alone_hears_of_a_reset(rush: Rush, far: Rush, rush_worker: RushWorker) -> None:
    """Its client follows no other events, and its counters begin again."""
    await rush.push_finished_tasks([{"x": 1}], [{"y": 1}])
    assert (await far.counts()).finished == 1
    async with far.events(TaskReported):
        await rush.reset(workers=False)
        await wait_until(lambda: far._net.position.counts.finished == 0)  # pyright: ignore[reportPrivateUsage]


async def test_a_rollback_of_the_server_is_reported_as_missed(rush: Rush, far: Rush, rush_worker: RushWorker, raw: Any) -> None:
    keys = NetworkKeys.of(rush.network_id)
    key = await running(rush_worker)
    async with far.events(TaskReported) as events:
        await report(rush_worker, key, 1, 2, 3)
        assert await values(events, 3) == [1, 2, 3]
        raw.hset(keys.meta, "reports", 1)
        far._net.position.begin_generation()  # pyright: ignore[reportPrivateUsage]
        (missed,) = await take(events, 1)
        assert (type(missed), missed.seq) == (EventsMissed, 1)
        await report(rush_worker, key, 12)
        (event,) = await take(events, 1)
        assert (event.seq, event.values) == (2, {"n": 12})


async def test_a_report_that_is_heard_while_the_numbers_are_read_is_no_rollback(
    far: Rush, rush_worker: RushWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a reset the numbers are read, and the answer may come later than reports that it does not have."""
    network = far._net  # pyright: ignore[reportPrivateUsage]
    key = await running(rush_worker)
    async with far.events(TaskReported) as events:
        await report(rush_worker, key, 1)
        assert await values(events, 1) == [1]
        read, is_answered = network.reports.read_last, asyncio.Event()

        async def overtaken() -> tuple[int, int]:
            answer = await read()
            await report(rush_worker, key, 2)
            await wait_until(lambda: is_missed_up_to(events, 2))
            is_answered.set()
            return answer

        monkeypatch.setattr(network.reports, "read_last", overtaken)
        network.position.begin_generation()
        await asyncio.wait_for(is_answered.wait(), SOON)
        await report(rush_worker, key, 3)
        assert await values(events, 2) == [2, 3]


MALFORMED = [
    b"\xc1",
    b"",
    to_msgpack("hello"),
    to_msgpack(["1"]),
    to_msgpack(["1", [1, 2]]),
    to_msgpack([1, [1]]),
    to_msgpack(["x", [1]]),
]


@pytest.mark.parametrize("message", MALFORMED, ids=repr)
async def test_a_malformed_message_is_logged_and_skipped(
    rush: Rush, far: Rush, rush_worker: RushWorker, raw: Any, message: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with far.events(TaskReported) as events:
        raw.execute_command("SPUBLISH", NetworkKeys.of(rush.network_id).report_events, message)
        await report(rush_worker, await running(rush_worker), 1)
        assert await values(events, 1) == [1]
    assert "ERROR" in caplog.text


async def test_a_user_who_may_not_listen_to_reports_gets_an_error(rush: Rush, raw: Any) -> None:
    raw.execute_command("ACL", "SETUSER", "deaf", "on", "nopass", "~*", "+@all", f"&{NetworkKeys.of(rush.network_id).events}")
    try:
        url = str(rush.config.url).replace("unix://", "unix://deaf:any@")
        async with Rush(rush.network_id, url) as deaf:
            with pytest.raises(ConnectionError, match=r"does not let this user listen on .*events:reports"):
                async with deaf.events(TaskReported):
                    pytest.fail("it listens")
            async with deaf.events():
                pass
    finally:
        raw.execute_command("ACL", "DELUSER", "deaf")
