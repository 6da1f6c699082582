"""Leases: what beats and losses answer, and that malformed entries in the database stop neither."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from rush_async import Failure, Rush, RushConfig, RushWorker
from rush_async.model import Counts
from rush_async.network.network import Network
from rush_async.store.keys import NetworkKeys, client_name
from rush_async.store.leases import (
    KILLED,
    LOSE,
    LOST_WORKER,
    AliveWorker,
    Beat,
    BlockingWorkerStore,
    Lease,
    LoseStep,
    answered_at,
    lost_because,
)
from rush_async.store.scripts import ScriptCaller
from rush_async.wire.blocking import BlockingConnection
from rush_async.wire.topology import Topology

LONG = Lease("long", 500.0, 2000.0)


@pytest.fixture
def connection(rush_server: RushConfig) -> Iterator[BlockingConnection]:
    connection = BlockingConnection(rush_server, Topology(rush_server))
    yield connection
    connection.close()


@pytest.fixture
def store(rush: Rush, connection: BlockingConnection) -> BlockingWorkerStore:
    return BlockingWorkerStore(connection, keys_of(rush))


def keys_of(rush: Rush) -> NetworkKeys:
    return NetworkKeys.of(rush.network_id)


def net_of(rush: Rush) -> Network:
    return rush._net  # pyright: ignore[reportPrivateUsage]


async def states(rush: Rush) -> dict[str, str]:
    info = await rush.worker_info()
    return dict(zip(info["worker_id"], info["state"], strict=True))


def expire(raw: Any, rush: Rush, *leases: str) -> None:
    """Lets leases expire, on a server that has always been beaten."""
    seconds, micros = raw.time()
    raw.zadd(keys_of(rush).leases, dict.fromkeys(leases, 1.0))
    raw.hset(keys_of(rush).meta, "beat_at", seconds + micros / 1e6)


# values


@pytest.mark.parametrize(
    ("value", "entry"),
    [
        (b"lease", AliveWorker("lease", False)),
        (b"lease stop", AliveWorker("lease", True)),
        (b"lease go", AliveWorker("lease", False)),
        (b"stop", AliveWorker("stop", False)),
        (b"", AliveWorker("", False)),
        (b"\xff stop", AliveWorker("\N{REPLACEMENT CHARACTER}", True)),
    ],
)
def test_the_value_of_an_alive_worker_is_its_lease_and_whether_it_is_asked_to_stop(value: bytes, entry: AliveWorker) -> None:
    assert AliveWorker.of(value) == entry


def test_a_worker_without_a_value_is_not_alive() -> None:
    assert AliveWorker.of_each(["a", "b"], [b"lease stop", None]) == {"a": AliveWorker("lease", True), "b": None}


@pytest.mark.parametrize("times", [b"", b"20 5", b"20 5 noon", b"20 5 nan", b"20 5 1e300", b"20 5 1 1", b"\xff \xff \xff"])
def test_times_that_cannot_be_parsed_have_no_answer(times: bytes) -> None:
    assert answered_at(times) is None


def test_times_tell_when_the_event_loop_answered() -> None:
    assert answered_at(b"20 5 1.5") == datetime.fromtimestamp(1.5, UTC)


def test_a_loss_ends_with_the_cursor_zero_and_names_the_workers_that_each_step_shut_out() -> None:
    first = LoseStep.begin("lost", LOST_WORKER, None, ["a", "b", "c"])
    second = first.next([b"17", [b"a"], [b"c"], 2, 1])
    assert (second.cursor, second.workers, second.shut_out, second.is_done) == ("17", ["a", "c"], ["a"], False)
    assert second.args()[4:] == ["a", "c"]
    last = second.next([b"0", [], [b"a", b"c"], 0, 4])
    assert (last.shut_out, last.is_done) == ([], True)
    assert (second.n_failed, second.n_requeued, last.n_failed, last.n_requeued) == (2, 1, 0, 4)


def test_the_tasks_of_a_lost_worker_name_the_cause_in_one_short_line() -> None:
    assert lost_because(None) == LOST_WORKER
    died = Failure("lost", None, "the process was ended by SIGKILL. It last wrote: Traceback:\n  a line")
    message = "Worker has crashed or was killed: the process was ended by SIGKILL. It last wrote: Traceback:"
    assert lost_because(died) == Failure("lost", None, message)
    assert len(lost_because(Failure("lost", None, "x" * 2_000)).message) < 300


# beats


def test_a_beat_in_a_network_that_does_not_exist_finds_every_lease_gone(connection: BlockingConnection) -> None:
    store = BlockingWorkerStore(connection, NetworkKeys.of("none"))
    beat = store.beat([("a", 0.0), ("b", 1.0)], ["worker"])
    assert beat == Beat(beat.position, False, None, 0, ["a", "b"], [], {})
    assert (beat.position.epoch, beat.position.counts) == (0, Counts())


async def test_a_beat_renews_leases_and_resurrects_none(rush: Rush, raw: Any, store: BlockingWorkerStore) -> None:
    await net_of(rush).workers.announce(["w"], {"pid": None}, LONG)
    before = raw.zscore(keys_of(rush).leases, "long")
    answered = answered_at(raw.hget(keys_of(rush).processes, "long"))
    beat = store.beat([("long", 0.0), ("ended | before", 0.0)], [])
    assert beat.gone == ["ended | before"]
    assert (beat.pace, beat.is_more, beat.shut_out, beat.clearing) == (750.0, False, [], {})
    assert raw.zscore(keys_of(rush).leases, "long") > before
    after = answered_at(raw.hget(keys_of(rush).processes, "long"))
    assert answered is not None
    assert after is not None
    assert after > answered
    assert raw.zscore(keys_of(rush).leases, "ended | before") is None


async def test_a_beat_renews_the_leases_of_vouched_workers(rush: Rush, raw: Any, store: BlockingWorkerStore) -> None:
    async with RushWorker(rush.network_id, rush.config) as worker:
        lease = raw.hget(keys_of(rush).alive, worker.worker_id)
        raw.zadd(keys_of(rush).leases, {lease: 1.0})
        assert store.beat([], [worker.worker_id, "unknown"]).shut_out == []
        assert raw.zscore(keys_of(rush).leases, lease) > 1.0


async def test_a_beat_shuts_out_the_workers_of_an_expired_lease_and_a_loss_clears_them(
    rush: Rush, raw: Any, store: BlockingWorkerStore
) -> None:
    await net_of(rush).workers.announce(["w | 1", "w 2"], {"pid": None}, LONG)
    requests = store.beat([], []).n_requests
    expire(raw, rush, "long")
    beat = store.beat([], [])
    assert sorted(beat.shut_out) == ["w 2", "w | 1"]
    assert {state: sorted(names) for state, names in beat.clearing.items()} == {"lost": ["w 2", "w | 1"]}
    assert beat.n_requests == requests + 1
    store.lose("lost", beat.clearing["lost"], beat.position.epoch)
    assert store.beat([], []).clearing == {}
    assert await states(rush) == {"w | 1": "lost", "w 2": "lost"}


async def test_a_loss_of_another_epoch_changes_nothing(rush: Rush, store: BlockingWorkerStore) -> None:
    await net_of(rush).workers.announce(["w"], {"pid": None}, LONG)
    epoch = store.beat([], []).position.epoch
    store.lose("killed", ["w"], epoch - 1)
    assert await states(rush) == {"w": "starting"}
    store.lose("killed", ["w"], epoch)
    assert await states(rush) == {"w": "killed"}


async def test_a_repeated_loss_answers_as_the_first_time(rush: Rush, connection: BlockingConnection) -> None:
    workers = net_of(rush).workers
    await workers.announce(["a | b", "c"], {"pid": None}, LONG)
    await workers.lose(["c"], "lost", LOST_WORKER)
    async with RushWorker(rush.network_id, rush.config) as worker:
        await worker.push_running_tasks([{"x": 1}] * 3000)
        step = LoseStep.begin("killed", KILLED, KILLED, ["a | b", "c", worker.worker_id])
        caller, args = ScriptCaller(keys_of(rush)), [str(net_of(rush).epoch), client_name(), 1, *step.args()]
        first, again = [connection.call(caller.call(LOSE, args), caller.call_by_source(LOSE, args)) for _ in range(2)]
        assert first == again
        step = step.next(first[8])
        assert not step.is_done
        assert step.shut_out == ["a | b", worker.worker_id]
        assert await rush.detect_lost_workers() == []  # it completes the loss
    assert await states(rush) == {"a | b": "killed", "c": "lost", worker.worker_id: "killed"}


async def test_it_is_read_who_is_alive_and_asked_to_stop(rush: Rush, raw: Any, store: BlockingWorkerStore) -> None:
    async with RushWorker(rush.network_id, rush.config) as worker:
        lease = raw.hget(keys_of(rush).alive, worker.worker_id).decode()
        ids = [worker.worker_id, "unknown"]
        assert store.alive(ids) == {worker.worker_id: AliveWorker(lease, False), "unknown": None}
        await rush.stop_workers(timeout=0)
        assert store.alive(ids) == {worker.worker_id: AliveWorker(lease, True), "unknown": None}
        assert await net_of(rush).workers.alive(ids) == store.alive(ids)
    assert store.alive([]) == {}


async def test_records_are_logged_in_the_present_epoch_only(rush: Rush, raw: Any, store: BlockingWorkerStore) -> None:
    await rush.push_tasks([{"x": 1}])
    epoch = net_of(rush).epoch
    assert store.log([b"\xc0"], epoch - 1) == epoch
    assert raw.xlen(keys_of(rush).log) == 0
    assert store.log([b"\xc0", b"\xc1"], epoch) == epoch
    assert raw.xlen(keys_of(rush).log) == 2
    await rush.reset()
    assert store.log([b"\xc0"], epoch) == 0


# malformed entries


@pytest.mark.parametrize("times", ["", "soon", "20", "nan 5 1", "inf 5 1", "20 often 1", "\x00"])
async def test_malformed_times_of_a_process_break_no_beat(rush: Rush, raw: Any, store: BlockingWorkerStore, times: str) -> None:
    await net_of(rush).workers.announce(["w"], {"pid": None}, LONG)
    raw.hset(keys_of(rush).processes, "odd", times)
    raw.zadd(keys_of(rush).leases, {"odd": 1.0})
    raw.hdel(keys_of(rush).meta, "beat_at")
    assert store.beat([("long", 0.0), ("odd", 0.0)], []).gone == []
    expire(raw, rush, "odd")
    beat = store.beat([("long", 0.0)], [])
    assert (beat.shut_out, beat.pace) == ([], 750.0)
    assert raw.zscore(keys_of(rush).leases, "odd") is None  # it expired, as it could not be renewed


async def test_malformed_entries_of_workers_break_no_beat(rush: Rush, raw: Any, store: BlockingWorkerStore) -> None:
    keys = keys_of(rush)
    await net_of(rush).workers.announce(["w"], {"pid": None}, LONG)
    raw.hset(keys.passing, mapping={"out of nowhere": "out", "odd": "\x00", "empty": "", "no entry": "in:long"})
    raw.hset(keys.alive, mapping={"ghost": "long", "bare": "long", "blank": ""})
    raw.hset(keys.workers, "bare", "running")
    expire(raw, rush, "long")
    beat = store.beat([], ["ghost", "blank"])
    expire(raw, rush, "long")
    beat = store.beat([], [])
    assert (beat.shut_out, beat.clearing) == (["w"], {"lost": ["w"]})
    assert sorted(raw.hkeys(keys.alive)) == [b"blank"]
    raw.hdel(keys.workers, "bare")
    assert await rush.detect_lost_workers() == []
    assert await states(rush) == {"w": "lost"}


@pytest.mark.parametrize("record", [b"", b"\x01", b"\x01\x00\xff\xff\xff\xff", b"no record"])
async def test_a_malformed_running_task_does_not_stop_the_clearing_of_workers(rush: Rush, raw: Any, record: bytes) -> None:
    async with RushWorker(rush.network_id, rush.config) as worker:
        (key,) = await worker.push_running_tasks([{"x": 1}])
        raw.hset(keys_of(rush).running, "odd", record)
        lost = Failure("lost", None, "gone")
        assert await net_of(rush).workers.lose([worker.worker_id], "lost", lost) == [worker.worker_id]
        assert await rush.is_failed_task(key) == [True]
        assert raw.hkeys(keys_of(rush).running) == [b"odd"]
    assert (await states(rush)) == {worker.worker_id: "lost"}


async def test_malformed_times_leave_the_worker_without_last_seen(rush: Rush, raw: Any) -> None:
    async with RushWorker(rush.network_id, rush.config) as worker:
        workers = net_of(rush).workers
        assert list(await workers.last_seen()) == [worker.worker_id]
        raw.hset(keys_of(rush).processes, raw.hget(keys_of(rush).alive, worker.worker_id), "\x00")
        assert await workers.last_seen() == {}
