"""Messages of the channels `events` and `control`: what is packed is unpacked, and anything else is a `DecodeError`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
import redis

from rush_async import Counts, Event, Rush, RushConfig, RushWorker, StopReason
from rush_async.errors import DecodeError
from rush_async.events import (
    EVENT_KINDS,
    EventsMissed,
    NetworkReset,
    NetworkResumed,
    NetworkStopped,
    TaskReported,
    TasksFailed,
    TasksFinished,
    TasksQueued,
    TasksStarted,
    WorkerLost,
    WorkerStarted,
    WorkerStopped,
)
from rush_async.store.codec import to_msgpack
from rush_async.store.messages import (
    CancelMessage,
    ControlMessage,
    EventMessage,
    NetworkStopMessage,
    ReportMessage,
    ResetMessage,
    ShutOutMessage,
    StopMessage,
    decode_control,
    decode_events,
    decode_reports,
    tells_progress,
)
from rush_async.store.position import Position
from rush_async.store.workers import KILLED
from rush_async.testing import wait_until

AT = datetime(2024, 5, 1, 12, 30, tzinfo=UTC)
COUNTS = [1, 2, 3, 4, 5]
EVENTS: list[Event] = [
    TasksQueued(network_id="net", seq=7, at=AT, keys=("a", "b")),
    TasksStarted(network_id="net", seq=8, at=AT, keys=("a",), worker_id="w"),
    TasksFinished(network_id="net", seq=9, at=AT, keys=("a",), worker_id="w"),
    TasksFailed(network_id="net", seq=10, at=AT, keys=("b",), worker_id=None),
    WorkerStarted(network_id="net", seq=11, at=AT, worker_id="w"),
    WorkerStopped(network_id="net", seq=12, at=AT, worker_id="w"),
    WorkerLost(network_id="net", seq=13, at=AT, worker_id="v"),
    NetworkStopped(network_id="net", seq=14, at=AT, rule="finished", detail="10 tasks have finished"),
    NetworkResumed(network_id="net", seq=15, at=AT),
]
REQUESTS: list[ControlMessage] = [
    ResetMessage(3, AT, True),
    ResetMessage(3, AT, False),
    StopMessage(3, ("a", "b")),
    ShutOutMessage(3, "lost", ("a",)),
    ShutOutMessage(3, "killed", ("a", "b")),
    CancelMessage(3, "a", ("key", "other")),
    NetworkStopMessage(3, 7, StopReason("target", AT, 7, "y = 0.1 has reached 0.2")),
    NetworkStopMessage(3, 8, None),
]


def test_events_of_all_kinds_are_unpacked_as_they_were_packed() -> None:
    message = decode_events("net", EventMessage.of(5, Counts(1, 2, 3, 4), 6, EVENTS).encode())
    assert isinstance(message, EventMessage)
    assert (message.epoch, message.first, message.last) == (5, 7, 15)
    assert message.position == Position(5, 15, Counts(1, 2, 3, 4), 6)
    assert message.events == EVENTS
    # Reports have a channel of their own, and the last two are made in the client.
    assert {*map(type, EVENTS), TaskReported, NetworkReset, EventsMissed} == set(EVENT_KINDS)


@pytest.mark.parametrize("message", REQUESTS, ids=str)
def test_a_request_is_unpacked_as_it_was_packed(message: ControlMessage) -> None:
    assert decode_control("net", message.encode()) == message


def test_a_reset_is_published_on_all_channels_alike() -> None:
    message = ResetMessage(3, AT, True)
    for decode in (decode_events, decode_control, decode_reports):
        assert decode("net", message.encode()) == message


def test_the_reports_of_a_call_are_events() -> None:
    entries = [[4, "a", "owl", 2, 1, AT.timestamp(), {"loss": 0.5}], [5, "b", "owl", 1, 3, AT.timestamp(), None]]
    message = decode_reports("net", to_msgpack(["17", *entries]))
    assert isinstance(message, ReportMessage)
    assert (message.epoch, message.first, message.last) == (17, 4, 5)
    common: Any = {"network_id": "net", "at": AT, "worker_id": "owl"}
    assert list(message.events) == [
        TaskReported(seq=4, key="a", attempt=2, step=1, values={"loss": 0.5}, **common),
        TaskReported(seq=5, key="b", attempt=1, step=3, values=None, **common),
    ]


@pytest.mark.parametrize(
    "value", [None, 7, "reset", [], ["1"], [1, [1]], ["x", [1]], ["1", [1, 2]], ["1", None], ["reset", "x"]]
)
def test_what_is_no_message_of_reports_is_a_decode_error(value: Any) -> None:
    with pytest.raises(DecodeError, match=r"an event of network 'net' is malformed"):
        decode_reports("net", to_msgpack(value))


@pytest.mark.parametrize(
    "value",
    [
        None,
        7,
        "reset",
        [],
        {"reset": 1},
        ["reset"],
        ["reset", "x", 1.0, 1],
        ["reset", None, 1.0, 1],
        ["reset", 1, "now", 1],
        ["reset", 1, 1e300, 1],
        ["reset", 1, float("nan"), 1],
        ["reset", float("inf"), 1.0, 1],
        ["reset", 1, 1.0, 1, 1],
        ["x", 1, 1.0, COUNTS, None, []],
        [None, 1, 1.0, COUNTS, None, []],
        ["1", "1", 1.0, COUNTS, None, []],
        ["1", 1, 1.0, COUNTS[:4], None, []],
        ["1", 1, 1.0, [*COUNTS[:4], "5"], None, []],
        ["1", 1, 1.0, COUNTS, None, None],
        ["1", 1, None, COUNTS, None, []],
        ["1", 1, 1.0, COUNTS, None, [7]],
        ["1", 1, 1.0, COUNTS, 7, []],
        ["1", 1, 1.0, COUNTS, ["moon", 1.0, 1, "full"], []],
        ["1", 1, 1.0, COUNTS, ["finished", 1e300, 1, "done"], []],
        ["1", 1, "1.0", COUNTS, None, []],
        ["1", 1.0, 1.0, COUNTS, None, []],
        [1.5, 1, 1.0, COUNTS, None, []],
        ["1", 1, 1.0, dict.fromkeys(COUNTS), None, []],
        ["1", 1, 1.0, COUNTS, None, {}],
        dict.fromkeys(["1", 1, 1.0, "four", None, "six"]),
    ],
    ids=repr,
)
def test_anything_else_on_events_is_a_decode_error(value: Any) -> None:
    with pytest.raises(DecodeError, match="an event of network 'net' is malformed"):
        decode_events("net", to_msgpack(value))


@pytest.mark.parametrize(
    "groups",
    [
        [[]],
        [["Q"]],
        [["Z", "", "key"]],
        [["Q", "", 7]],
        [["W", "w", ["key"]]],
        [["W", "w", "key"], ["S", 7, "key"]],
        [["T", ""]],
        [["T", "", "moon", "x"]],
    ],
    ids=repr,
)
def test_a_malformed_event_is_a_decode_error_when_it_is_looked_at(groups: Any) -> None:
    message = decode_events("net", to_msgpack(["1", 1, 1.0, COUNTS, None, groups]))
    assert isinstance(message, EventMessage)
    with pytest.raises(DecodeError, match="an event of network 'net' is malformed"):
        message.events  # noqa: B018


@pytest.mark.parametrize("at", [1e300, -1e300, float("nan"), float("inf")])
def test_an_impossible_time_is_a_decode_error_when_it_is_looked_at(at: float) -> None:
    message = decode_events("net", to_msgpack(["1", 1, at, COUNTS, None, [["Q", "", "key"]]]))
    assert isinstance(message, EventMessage)
    with pytest.raises(DecodeError):
        message.events  # noqa: B018


@pytest.mark.parametrize(
    "value",
    [
        None,
        "stop",
        [],
        ["stop"],
        ["stop", "x"],
        ["stop", "1", 7],
        ["out", "1"],
        ["out", "1", "asleep", "w"],
        ["out", "1", "lost", None],
        ["out", "1", ["lost"], "w"],
        ["cancel", "1"],
        ["cancel", "1", 7, "key"],
        ["cancel", "1", "w", 7],
        ["dance", "1", "w"],
        ["reset", "1", "now", 1],
        EVENTS[0].seq,
    ],
    ids=repr,
)
def test_anything_else_on_control_is_a_decode_error(value: Any) -> None:
    with pytest.raises(DecodeError, match="a request of network 'net' is malformed"):
        decode_control("net", to_msgpack(value))


@pytest.mark.parametrize("data", [b"", b"nonsense", b"\xc1", b"\x91", b"\xc7\x01\x55\x00", b"\x92\xa4stop\xa1\xff"], ids=repr)
def test_what_is_not_one_value_is_a_decode_error(data: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_events("net", data)
    with pytest.raises(DecodeError):
        decode_control("net", data)


def message_of(*groups: list[str]) -> EventMessage:
    message = decode_events("net", to_msgpack(["5", 7, AT.timestamp(), COUNTS, None, list(groups)]))
    assert isinstance(message, EventMessage)
    return message


@pytest.mark.parametrize(
    ("group", "n_freed"),
    [
        (["X", "owl", "a", "b"], 2),  # running tasks failed
        (["Q", "owl", "a"], 1),  # running tasks returned to the queue
        (["X", "", "a", "b"], 2),  # queued tasks failed: they held places of budgets
        (["Q", "", "a"], 0),
        (["F", "owl", "a"], 0),  # a finished task keeps its place
        (["S", "owl", "a"], 0),
        (["T", "", "finished", "1 tasks have finished"], 0),
        (["P", ""], 0),
        (["P", "owl", "3", "5"], 2),  # reservations returned
    ],
)
def test_a_message_tells_how_many_places_became_free(group: list[str], n_freed: int) -> None:
    assert message_of(group).n_freed == n_freed
    assert message_of(group, ["X", "owl", "c"], ["Q", "bee", "d", "e"], ["X", "", "f"]).n_freed == n_freed + 4


def test_a_change_of_the_rules_is_a_group_that_users_do_not_see() -> None:
    message = message_of(["S", "owl", "a"], ["P", ""], ["F", "owl", "a"])
    assert [(type(event), event.seq) for event in message.events] == [(TasksStarted, 7), (TasksFinished, 9)]
    assert (message.first, message.last) == (7, 9)
    assert message.changes_rules
    assert message_of(["R", ""]).changes_rules
    assert not message_of(["T", "", "manual", "enough"], ["X", "owl", "a"]).changes_rules


async def test_a_stop_and_a_resumption_are_published_on_both_channels_as_the_messages_encode_them(
    rush: Rush, rush_server: RushConfig
) -> None:
    assert rush_server.url is not None
    keys = rush._net.keys  # pyright: ignore[reportPrivateUsage]
    heard: list[tuple[str, bytes]] = []
    client: Any = redis.Redis.from_url(rush_server.url)  # pyright: ignore[reportUnknownMemberType]
    with client, client.pubsub() as listener:
        listener.ssubscribe(keys.events, keys.control)
        await rush.stop_when(finished=1)
        await rush.push_finished_tasks([{"x": 1}] * 2, [{"y": 1}] * 2)
        reason = rush.stop_reason
        await rush.resume()

        def take() -> bool:
            for message in iter(lambda: listener.parse_response(block=False, timeout=0.01), None):
                heard.extend([(message[1].decode(), message[2])] if message[0] == b"smessage" and message[2] else [])
            return len(heard) >= 5

        await wait_until(take)
    assert reason is not None
    requests = [(data, decode_control(rush.network_id, data)) for name, data in heard if name == keys.control]
    epoch = rush._net.position.epoch  # pyright: ignore[reportPrivateUsage]
    assert [request for _, request in requests] == [
        NetworkStopMessage(epoch, reason.seq, reason),
        NetworkStopMessage(epoch, reason.seq + 2, None),
    ]
    assert [request.encode() for _, request in requests] == [data for data, _ in requests]
    messages = [decode_events(rush.network_id, data) for name, data in heard if name == keys.events]
    assert all(isinstance(message, EventMessage) for message in messages)
    rules, stop, resumed = [message for message in messages if isinstance(message, EventMessage)]
    assert (rules.events, rules.changes_rules, rules.position.stop) == ([], True, None)
    assert [type(event) for event in stop.events] == [TasksFinished, NetworkStopped, TasksFinished]
    assert stop.position.stop == reason
    assert [type(event) for event in resumed.events] == [NetworkResumed]
    assert resumed.position.stop is None


async def test_scripts_publish_what_the_messages_encode(rush: Rush, rush_server: RushConfig) -> None:
    assert rush_server.url is not None
    network = rush._net  # pyright: ignore[reportPrivateUsage]
    keys = network.keys
    heard: list[tuple[str, bytes]] = []
    client: Any = redis.Redis.from_url(rush_server.url)  # pyright: ignore[reportUnknownMemberType]
    with client, client.pubsub() as listener:
        listener.ssubscribe(keys.events, keys.control)
        async with RushWorker(rush.network_id, rush.config, worker_id="worker") as worker:
            (key,) = await rush.push_tasks([{"x": 1}])
            assert await worker.pop_task(0) is not None
            await rush.cancel_tasks(key)
            await network.workers.ask_to_stop(["worker"])
            await network.workers.lose(["worker"], "killed", KILLED)
        await rush.reset()

        def take() -> bool:
            for message in iter(lambda: listener.parse_response(block=False, timeout=0.01), None):
                heard.extend([(message[1].decode(), message[2])] if message[0] == b"smessage" and message[2] else [])
            return sum(name == keys.control for name, _ in heard) >= 4

        await wait_until(take)
    events = [decode_events(rush.network_id, data) for name, data in heard if name == keys.events]
    requests = [decode_control(rush.network_id, data) for name, data in heard if name == keys.control]
    assert [type(request) for request in requests] == [CancelMessage, StopMessage, ShutOutMessage, ResetMessage]
    assert isinstance(requests[0], CancelMessage)
    assert requests[0].keys == (key,)
    assert requests[2].worker_ids == ("worker",) if isinstance(requests[2], ShutOutMessage) else False
    assert events[-1] == requests[-1]
    for name, data in heard:
        if name == keys.control:
            assert decode_control(rush.network_id, data).encode() == data
    told = [event for message in events if isinstance(message, EventMessage) for event in message.events]
    assert {type(event) for event in told} >= {TasksQueued, TasksStarted, TasksFailed, WorkerStarted, WorkerLost}


def test_a_message_tells_progress_where_only_its_position_matters() -> None:
    progress = {type(event) for event in EVENTS if tells_progress(EventMessage.of(5, Counts(), 1, [event]).encode())}
    assert progress == {TasksStarted, TasksFinished, WorkerStarted, WorkerStopped, WorkerLost}
    assert not tells_progress(EventMessage.of(5, Counts(), 1, EVENTS[1:4]).encode())
    assert not tells_progress(ResetMessage(3, AT, False).encode())


def test_the_failed_keys_are_those_of_tasks_that_a_worker_ran() -> None:
    by_worker = TasksFailed(network_id="net", seq=11, at=AT, keys=("c", "d"), worker_id="w")
    decoded = decode_events("net", EventMessage.of(5, Counts(), 1, [*EVENTS[:4], by_worker]).encode())
    assert isinstance(decoded, EventMessage)
    assert decoded.failed_keys == ["c", "d"]
