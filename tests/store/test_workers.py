"""The transitions and reads of workers: each worker registers once and ends once, whatever reports its end."""

from __future__ import annotations

import math
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest

from rush_async import Failure, NetworkStateError, Rush, RushError, RushWorker
from rush_async.store.codec import encode
from rush_async.store.keys import NetworkKeys
from rush_async.store.leases import Lease
from rush_async.store.workers import KILLED, WorkerStore
from rush_async.worker.worker import membership_of

INFO = {"pid": 1, "hostname": "host", "heartbeat": True}
LEASE = Lease("lease", 500.0, 2000.0)


def store_of(rush: Rush) -> WorkerStore:
    return rush._net.workers  # pyright: ignore[reportPrivateUsage]


def ignore(answer: Any) -> None:
    """Grants are not returned: no caller is cancelled here."""


async def states(rush: Rush) -> dict[str, str]:
    return {entry.worker_id: entry.state for entry in await store_of(rush).read()}


async def test_a_worker_registers_under_an_id_that_was_never_used(rush: Rush) -> None:
    store = store_of(rush)
    assert await store.register("a", LEASE, INFO) == (1, 0)
    assert (await store.register("a", LEASE, INFO)).mark == 0
    assert await store.deregister("a", "terminated")
    assert not await store.deregister("a", "failed")
    assert (await store.register("a", LEASE, INFO)).mark == 0
    assert await states(rush) == {"a": "terminated"}


async def test_a_worker_that_was_announced_registers_and_learns_of_a_stop(rush: Rush) -> None:
    store = store_of(rush)
    assert await store.announce(["a", "b", "a"], {"pid": None}, LEASE) == ["a", "b"]
    assert await store.announce(["b", "c"], {"pid": None}, LEASE) == ["c"]
    assert await store.ask_to_stop(["b", "unknown"]) == ["b"]
    assert await store.register("a", LEASE, INFO) == (1, 0)
    assert await store.register("b", LEASE, INFO) == (2, 1)
    alive = await store.alive(["a", "b", "c"])
    assert [None if entry is None else entry.is_asked_to_stop for entry in alive.values()] == [False, True, None]
    assert await states(rush) == {"a": "running", "b": "running", "c": "starting"}
    assert Counter(await store.count_states()) == Counter(running=2, starting=1)
    for worker_id in ("a", "b", "c"):
        assert await store.deregister(worker_id, "terminated")


async def test_a_worker_without_a_lease_is_shared_and_joined_under_its_id_and_number(rush: Rush, raw: Any) -> None:
    store, shared = store_of(rush), {"pid": None, "hostname": None, "heartbeat": False}
    assert await store.register("first", LEASE, INFO) == (1, 0)
    assert await store.register("study", None, shared) == (1, 1)
    assert await store.register("third", LEASE, INFO) == (1, 2)
    before = raw.hgetall(NetworkKeys.of(rush.network_id).workers)
    assert await store.register("study", None, shared) == (1, 1)
    assert (await store.register("study", LEASE, INFO)).mark == 0
    assert (await store.register("first", None, shared)).mark == 0
    assert await store.announce(["study"], {"pid": None}, LEASE) == []
    assert raw.hgetall(NetworkKeys.of(rush.network_id).workers) == before
    assert await store.ask_to_stop(["study"]) == ["study"]
    assert await store.register("study", None, shared) == (2, 1)
    entries = await store.read_some(["first", "study"])
    assert [entry.is_shared for entry in entries.values()] == [False, True]
    assert "study" not in await store.last_seen()
    assert await store.lose(["study"], "killed", KILLED, KILLED) == ["study"]
    assert (await store.register("study", None, shared)).mark == 0
    assert not (await store.read_some(["study"]))["study"].is_shared
    for worker_id in ("first", "third"):
        assert await store.deregister(worker_id, "terminated")


async def test_a_report_ends_a_worker_that_never_ran_and_shuts_out_one_that_did_not_deregister(rush: Rush) -> None:
    store, failure = store_of(rush), Failure("error", None, "it did not start")
    await store.announce(["never ran"], {"pid": None}, LEASE)
    await store.report("never ran", "failed", failure)
    async with RushWorker(rush.network_id, rush.config, worker_id="died") as worker:
        await worker.push_running_tasks([{"x": 1}])
        await store.report("died", "terminated", failure)
        assert (await rush.counts()).failed == 1
    async with RushWorker(rush.network_id, rush.config, worker_id="left"):
        pass
    await store.report("left", "failed", failure)
    entries = await store.read_some(["never ran", "died", "left", "unknown"])
    ends = {worker_id: (entry.state, entry.failure) for worker_id, entry in entries.items()}
    assert ends == {"never ran": ("failed", failure), "died": ("lost", failure), "left": ("terminated", None)}


async def test_leases_are_released_unless_a_worker_lives_or_starts_under_them(rush: Rush, raw: Any) -> None:
    store, keys = store_of(rush), NetworkKeys.of(rush.network_id)
    leases = [Lease(name, 500.0, 2000.0) for name in ("free", "lived-under", "started-under", "unknown")]
    await store.register("a", leases[0], INFO)
    await store.deregister("a", "terminated")
    await store.register("b", leases[1], INFO)
    await store.announce(["c"], {"pid": None}, leases[2])
    await store.ask_to_stop(["b", "c"])
    raw.hset(keys.processes, "odd", "\x00")
    await store.release_leases(leases)
    assert raw.zrange(keys.leases, 0, -1) == [b"lived-under", b"started-under"]
    for worker_id in ("b", "c"):
        await store.deregister(worker_id, "terminated")
    await store.release_leases(leases)
    assert raw.zrange(keys.leases, 0, -1) == []
    assert raw.hget(keys.meta, "pace") is None


@pytest.mark.parametrize("expire", [math.inf, math.nan])
async def test_a_lease_without_an_end_is_refused_before_anything_is_written(rush: Rush, raw: Any, expire: float) -> None:
    with pytest.raises(RushError, match="the times of a lease must be finite numbers"):
        await store_of(rush).register("ghost", Lease("lease", 5.0, expire), {"pid": 1})
    assert raw.keys("*") == []


async def test_last_seen_is_when_the_loop_of_a_worker_answered(rush: Rush) -> None:
    async with RushWorker(rush.network_id, rush.config) as worker:
        await rush.stop_workers(worker.worker_id, timeout=0)
        (entry,) = await store_of(rush).read()
        seen = await store_of(rush).last_seen()
        assert list(seen) == [worker.worker_id]
        assert abs((seen[worker.worker_id] - entry.started_at).total_seconds()) < 60
        assert not membership_of(worker).is_shut_out
    assert await store_of(rush).last_seen() == {}


async def test_a_lost_worker_was_last_seen_when_its_loop_answered_not_when_it_was_declared_lost(rush: Rush, raw: Any) -> None:
    store, keys = store_of(rush), store_of(rush).keys
    async with RushWorker(rush.network_id, rush.config) as worker:
        (lease,) = raw.zrange(keys.leases, 0, -1)
        (entry,) = await store.read()
        seen = entry.started_at + timedelta(seconds=2)  # later than its start, and not the time of the judgement
        await store.judge()  # where no process beat before, leases are renewed and none is judged
        raw.hset(keys.processes, lease, f"20 5 {seen.timestamp()}")
        raw.zadd(keys.leases, {lease: 1})
        assert await store.judge() == [worker.worker_id]
        (entry,) = await store.read()
        assert (entry.state, entry.is_clearing, entry.seen_at) == ("lost", False, seen)
        assert entry.ended_at is not None
        assert entry.ended_at < seen
        assert (await rush.worker_info())["last_seen"].to_list() == [seen]


async def test_the_job_of_a_command_is_kept_under_its_name(rush: Rush) -> None:
    await store_of(rush).prepare("name", b"\x00job")
    assert await store_of(rush).read_start("name") == b"\x00job"
    assert await store_of(rush).read_start("another") is None


@pytest.mark.parametrize(
    "entry",
    [
        b"running " + encode({}, "") + encode(math.inf, ""),
        b"running " + encode({}, "") + encode(1e300, ""),
        b"running " + encode(1, "") + encode(1.0, ""),
        b"failed " + encode({}, "") + encode(1.0, "") + encode("no failure", "") + encode(1.0, ""),
        b"running",
        b"",
    ],
)
async def test_an_entry_that_is_none_of_ours_is_left_out(rush: Rush, raw: Any, entry: bytes) -> None:
    raw.hset(f"rush:{{{rush.network_id}}}:workers", "another", entry)
    async with RushWorker(rush.network_id, rush.config) as worker:
        assert (await rush.worker_info())["worker_id"].to_list() == [worker.worker_id]


async def test_workers_have_numbers_in_the_order_of_registering_as_running(rush: Rush) -> None:
    store = rush._net.workers  # pyright: ignore[reportPrivateUsage]
    await store.announce(["c"], {"pid": None}, LEASE)
    async with RushWorker(rush.network_id, rush.config, worker_id="a") as first:
        async with RushWorker(rush.network_id, rush.config, worker_id="b") as second:
            assert (first.number, second.number) == (0, 1)
    async with RushWorker(rush.network_id, rush.config, worker_id="c") as third:
        assert third.number == 2
        await rush._net.tasks.reset(workers=False)  # pyright: ignore[reportPrivateUsage]
        async with RushWorker(rush.network_id, rush.config) as fourth:
            assert fourth.number == 3
    info = await rush.worker_info()
    assert info["number"].to_list()[:3] == [0, 1, 2]


async def test_a_worker_that_never_ran_has_no_number(rush: Rush) -> None:
    await rush._net.workers.announce(["a"], {"pid": None}, LEASE)  # pyright: ignore[reportPrivateUsage]
    assert (await rush.worker_info())["number"].to_list() == [None]
    worker = RushWorker(rush.network_id, rush.config, worker_id="b")
    with pytest.raises(NetworkStateError, match="no number before it is opened"):
        worker.number  # noqa: B018


async def test_a_worker_is_silent_once_its_lease_was_not_renewed_for_a_period_and_more(rush: Rush, raw: Any) -> None:
    store, keys = store_of(rush), NetworkKeys.of(rush.network_id)
    for name, silence in (("silent", 10.0), ("alive", 5.5), ("other", 0.0)):
        assert (await store.register(name, Lease(name, 5.0, 20.0), INFO)).mark == 1
        raw.zincrby(keys.leases, -silence, name)
    assert (await store.register("broken", Lease("broken", 5.0, 20.0), INFO)).mark == 1
    raw.hset(keys.processes, "broken", "no numbers")
    assert await store.silent() == ["silent"]
    for name in ("silent", "alive", "other", "broken"):
        assert await store.deregister(name, "terminated")
