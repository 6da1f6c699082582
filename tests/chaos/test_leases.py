"""Leases, sweeps and heartbeats when everything happens at once, half way, or on a server that is full, strict, old or away."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import redis

from rush_async import Counts, Failure, Rush, RushConfig, RushConfigError, RushWorker, WorkerLost, WorkerLostError
from rush_async.embedded.server import acquire
from rush_async.network.network import Network
from rush_async.store.keys import NetworkKeys
from rush_async.store.leases import KILLED, LOSE, LOST_WORKER, Lease, LoseStep
from rush_async.store.scripts import Request
from rush_async.store.tasks import FINISH
from rush_async.testing import wait_until
from rush_async.wire.refusals import acl_remedy
from rush_async.worker.worker import membership_of
from tests.proxy import Command, Proxy

ROOT = Path(__file__).parents[2]
PAUSE = 0.05
QUICK: dict[str, Any] = {"heartbeat_period": PAUSE, "heartbeat_expire": 8 * PAUSE}


@pytest.fixture
def quick(rush_server: RushConfig) -> RushConfig:
    return replace(rush_server, **QUICK)


@pytest_asyncio.fixture
async def slow(rush_server: RushConfig) -> AsyncIterator[Rush]:
    """A manager that judges no lease by itself."""
    async with Rush(config=replace(rush_server, heartbeat_period=500, heartbeat_expire=2000)) as rush:
        yield rush
        await rush.reset()


def net_of(rush: Rush | RushWorker) -> Network:
    return rush._net  # pyright: ignore[reportPrivateUsage]


def keys_of(rush: Rush) -> NetworkKeys:
    return NetworkKeys.of(rush.network_id)


async def states(rush: Rush) -> dict[str, str]:
    info = await rush.worker_info()
    return dict(zip(info["worker_id"], info["state"], strict=True))


async def renewed(raw: Any, rush: Rush, *, times: int = 2) -> None:
    """Waits until every lease was renewed so often."""
    seen: dict[bytes, set[float]] = {}

    def all_were() -> bool:
        for lease, until in raw.zrange(keys_of(rush).leases, 0, -1, withscores=True):
            seen.setdefault(lease, set()).add(until)
        return bool(seen) and all(len(each) > times for each in seen.values())

    await wait_until(all_were, timeout=10)


def expire(raw: Any, rush: Rush) -> None:
    """Lets all leases expire, on a server that has always been beaten."""
    keys = keys_of(rush)
    seconds, micros = raw.time()
    raw.zadd(keys.leases, dict.fromkeys(raw.zrange(keys.leases, 0, -1), 1.0))
    raw.hset(keys.meta, "beat_at", seconds + micros / 1e6)


async def fence_only(rush: Rush, *worker_ids: str) -> LoseStep:
    """The first step of a sweep whose caller dies then."""
    step = LoseStep.begin("killed", KILLED, KILLED, worker_ids)
    calls = net_of(rush).tasks.calls
    return step.next(await calls.call(Request(LOSE, step.args())))


# many at once


async def test_more_than_a_thousand_leases_that_expired_are_judged_in_one_go(slow: Rush, raw: Any) -> None:
    n = 1_200
    leases = [Lease(f"lease{at}", 500.0, 2000.0) for at in range(n)]
    workers = net_of(slow).workers
    await asyncio.gather(*[workers.announce([f"w{at}"], {"pid": None}, lease) for at, lease in enumerate(leases)])
    assert await slow.detect_lost_workers() == []
    expire(raw, slow)
    raw.config_resetstat()
    async with slow.events(WorkerLost) as events:
        found = await slow.detect_lost_workers()
        assert sorted(found) == sorted(f"w{at}" for at in range(n))
        reported = {event.worker_id async for event in first(events, n)}
    assert reported == set(found)
    assert raw.info("commandstats")["cmdstat_evalsha"]["calls"] <= 10
    assert set((await states(slow)).values()) == {"lost"}
    keys = keys_of(slow)
    assert raw.exists(keys.leases, keys.processes, keys.passing, keys.alive) == 0
    assert raw.hget(keys.meta, "pace") is None


async def first(events: Any, n: int) -> AsyncIterator[Any]:
    iterator = aiter(events)
    for _ in range(n):
        yield await asyncio.wait_for(anext(iterator), 10)


async def test_many_networks_of_a_process_share_a_thread_though_their_loop_is_blocked(quick: RushConfig, raw: Any) -> None:
    names = [f"net{at}" for at in range(12)]
    workers = [await RushWorker(name, quick) for name in names]
    beating = [thread for thread in threading.enumerate() if thread.name == "rush_async heartbeat"]
    assert len(beating) == 1
    time.sleep(1)  # noqa: ASYNC251 - longer than two expiries
    for worker in workers:
        async with worker.task({"x": 1}) as task:
            task.ys = {"y": 1}
        await worker.aclose()
    for name in names:
        async with Rush(name, quick) as rush:
            assert await states(rush) == {workers[names.index(name)].worker_id: "terminated"}
            await rush.reset()


async def test_two_event_loops_of_a_process_are_two_leases(slow: Rush, quick: RushConfig, raw: Any) -> None:
    """One of them hangs for longer than it may: its worker alone is given up."""
    entered, may_continue = threading.Event(), threading.Event()
    learnt: list[str] = []

    def hang() -> None:
        async def main() -> None:
            config = replace(quick, max_loop_stall=0.1)
            async with RushWorker(slow.network_id, config, worker_id="hangs") as worker:
                (key,) = await worker.push_running_tasks([{"x": 1}])
                entered.set()
                may_continue.wait(20)
                deadline = time.monotonic() + 10
                while not worker.terminated and time.monotonic() < deadline:
                    time.sleep(0.001)  # noqa: ASYNC251 - the loop stays blocked: the thread sets it
                assert worker.terminated
                with pytest.raises(WorkerLostError):
                    await worker.finish_tasks(key, [{"y": 1}])
                learnt.append("it was lost")

        asyncio.run(main())

    async with RushWorker(slow.network_id, quick, worker_id="lives") as worker:
        hanging = asyncio.create_task(asyncio.to_thread(hang))
        await asyncio.to_thread(entered.wait, 10)
        assert raw.zcard(keys_of(slow).leases) == 2
        try:
            await slow.wait_until(lambda counts: counts.failed == 1, timeout=10)
        finally:
            may_continue.set()
        await hanging
        assert learnt == ["it was lost"]
        assert not worker.terminated
        await renewed(raw, slow)
    assert await states(slow) == {"hangs": "lost", "lives": "terminated"}


BLOCKED = """
import asyncio, sys
from rush_async import RushConfig, RushWorker
from rush_async.heartbeat.heartbeat import own_this_process
from tests.launch.loops_of_tests import block

async def main():
    config = RushConfig(url=sys.argv[2], heartbeat_period=0.05, heartbeat_expire=0.4, max_loop_stall=float(sys.argv[3]) or None)
    async with RushWorker(sys.argv[1], config, worker_id="blocked") as worker:
        await block(worker)

if sys.argv[4] == "ours":
    own_this_process()
asyncio.run(main())
"""


@pytest.mark.chaos
@pytest.mark.parametrize("whose", ["ours", "theirs"])
async def test_a_loop_that_hangs_for_too_long_is_given_up_and_a_process_of_its_own_is_ended(
    slow: Rush, whose: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = BLOCKED.replace(
        "import asyncio, sys\n",
        "import asyncio, sys\nfrom rush_async.heartbeat import heartbeat\nheartbeat._SHUT_OUT_GRACE = 0.1\n",
    )
    words = [sys.executable, "-c", script, slow.network_id, str(slow.config.url), "0.2", whose]
    process = subprocess.Popen(words, cwd=ROOT)  # noqa: ASYNC220 - it is waited for
    try:
        await slow.wait_until(lambda counts: counts.failed == 1, timeout=20)
        assert await states(slow) == {"blocked": "lost"}
        if whose == "ours":
            assert await asyncio.to_thread(process.wait, 10) == -signal.SIGKILL
        else:
            with pytest.raises(subprocess.TimeoutExpired):
                await asyncio.to_thread(process.wait, 0.5)
    finally:
        process.kill()
        process.wait()


# half way


@pytest.mark.parametrize("who", ["judge", "beat"])
async def test_a_sweep_whose_caller_died_is_completed_by_the_next_process_that_looks(
    slow: Rush, quick: RushConfig, raw: Any, who: str
) -> None:
    async with RushWorker(slow.network_id, slow.config) as victim:
        keys = [key for _ in range(3) for key in await slow.push_tasks([{"x": 1}] * 1000, retries=1)]
        for _ in range(3):
            await asyncio.gather(*[victim.pop_task(0) for _ in range(1000)])
        async with slow.events(WorkerLost) as events:
            step = await fence_only(slow, victim.worker_id)
            assert step.cursor != "0"
            half = await slow.counts()
            assert half.running
            assert half.queued
            assert raw.hgetall(keys_of(slow).passing) == {victim.worker_id.encode(): b"out"}
            with pytest.raises(WorkerLostError):
                await victim.finish_tasks(membership_of(victim).held_keys()[:1] or keys[:1], [{"y": 1}])
            if who == "judge":
                # It shut no worker out, so it found none.
                assert await slow.detect_lost_workers() == []
            else:
                async with RushWorker(slow.network_id, quick):
                    await slow.wait_until(lambda counts: counts.running == 0, timeout=10)
            assert await slow.counts() == Counts(queued=3000)
            event = await asyncio.wait_for(anext(aiter(events)), 10)
            assert isinstance(event, WorkerLost)
            assert event.worker_id == victim.worker_id
        await wait_until(lambda: raw.exists(keys_of(slow).passing) == 0)
    assert (await states(slow))[victim.worker_id] == "killed"
    assert sorted((await slow.keys_with_state("queued"))["queued"]) == sorted(keys)


async def test_two_sweeps_of_the_same_workers_interleave(slow: Rush, raw: Any) -> None:
    async with RushWorker(slow.network_id, slow.config) as a, RushWorker(slow.network_id, slow.config) as b:
        for worker in (a, b):
            for _ in range(2):
                await worker.push_running_tasks([{"x": 1}] * 1000)
        workers = net_of(slow).workers
        async with slow.events(WorkerLost) as events:
            found = await asyncio.gather(
                *[workers.lose([a.worker_id, b.worker_id], "killed", KILLED, KILLED) for _ in range(3)],
                *[workers.lose([b.worker_id], "lost", LOST_WORKER) for _ in range(2)],
                slow.detect_lost_workers(),
            )
            assert sorted(name for names in found for name in names) == sorted([a.worker_id, b.worker_id])
            seen = [event.worker_id async for event in first(events, 2)]
        assert sorted(seen) == sorted([a.worker_id, b.worker_id])
        assert await slow.counts() == Counts(failed=4000)
        assert raw.exists(keys_of(slow).passing) == 0


@pytest.mark.parametrize("workers", [False, True], ids=["tasks", "all"])
async def test_a_reset_in_the_middle_of_a_sweep(slow: Rush, quick: RushConfig, raw: Any, workers: bool) -> None:
    async with RushWorker(slow.network_id, slow.config) as victim:
        for _ in range(3):
            await victim.push_running_tasks([{"x": 1}] * 1000)
        step = await fence_only(slow, victim.worker_id)
        assert step.cursor != "0"
        await net_of(slow).tasks.reset(workers=workers)
        assert await slow.counts() == Counts()
        async with RushWorker(slow.network_id, quick, worker_id="new") as new:
            (key,) = await new.push_running_tasks([{"x": 1}])
            # The next step of the sweep comes too late.
            calls = net_of(slow).tasks.calls
            step = step.next(await calls.call(Request(LOSE, step.args())))
            await renewed(raw, slow)
            await wait_until(lambda: raw.exists(keys_of(slow).passing) == 0)
            assert await new.finish_tasks(key, [{"y": 1}]) == [key]
            with pytest.raises(WorkerLostError):
                await victim.push_running_tasks([{"x": 1}])
    assert await states(slow) == {"new": "terminated"} | ({} if workers else {victim.worker_id: "killed"})


async def test_a_thread_whose_loop_is_blocked_sweeps_in_the_epoch_that_is(slow: Rush, quick: RushConfig, raw: Any) -> None:
    """Its loop has not learnt of a reset: the sweep takes the epoch of the beat."""
    async with RushWorker(slow.network_id, slow.config) as victim, RushWorker(slow.network_id, quick) as busy:
        await victim.push_running_tasks([{"x": 1}])
        blocked, may_continue = threading.Event(), threading.Event()

        def block() -> None:
            blocked.set()
            may_continue.wait(20)

        # Another loop, as in another process: this one has to continue.
        def elsewhere() -> None:
            async def main() -> None:
                async with RushWorker(slow.network_id, quick, worker_id="blocked"):
                    block()

            asyncio.run(main())

        await busy.aclose()
        running = asyncio.create_task(asyncio.to_thread(elsewhere))
        await asyncio.to_thread(blocked.wait, 10)
        try:
            await slow.reset(workers=False)
            await victim.push_running_tasks([{"x": 2}])
            raw.hset(keys_of(slow).passing, victim.worker_id, "out")
            entry = raw.hget(keys_of(slow).workers, victim.worker_id)
            raw.hset(keys_of(slow).workers, victim.worker_id, b"clearing-lost" + entry[len(b"running") :] + b"\xc0")
            raw.hdel(keys_of(slow).alive, victim.worker_id)
            await slow.wait_until(lambda counts: counts.failed == 1, timeout=5)
            assert raw.exists(keys_of(slow).passing) == 0
        finally:
            may_continue.set()
        await running


async def test_a_worker_that_comes_in_while_it_is_being_lost_stays_out(slow: Rush, raw: Any) -> None:
    network = net_of(slow)
    lease = Lease("of a manager", 500.0, 2000.0)
    assert await network.workers.announce(["late"], {"pid": None}, lease) == ["late"]
    async with RushWorker(slow.network_id, slow.config) as other:
        for _ in range(3):
            await other.push_running_tasks([{"x": 1}] * 1000)
        step = await fence_only(slow, "late")
        assert step.cursor != "0"
        with pytest.raises(RushConfigError, match="late"):
            await RushWorker(slow.network_id, slow.config, worker_id="late")
        assert await network.workers.ask_to_stop(["late"]) == []
        await network.workers.report("late", "failed", Failure("error", None, "it could not enter"))
        assert await slow.detect_lost_workers() == []
        assert (await states(slow))["late"] == "killed"
        assert await slow.counts() == Counts(running=3000)
        assert raw.exists(keys_of(slow).passing) == 0


async def test_workers_that_a_leaving_process_could_not_report_are_found(slow: Rush, quick: RushConfig, raw: Any) -> None:
    """Its leases end only with the last of their workers."""
    elsewhere = replace(quick, response_timeout=29)  # a view and a heartbeat of its own
    async with Rush(slow.network_id, elsewhere) as manager:
        network = net_of(manager)
        lease = net_of(manager).heartbeat.lease(quick.heartbeat_period, quick.heartbeat_expire)
        await network.workers.announce(["never reported"], {"pid": None}, lease)
    assert await states(slow) == {"never reported": "starting"}
    async with RushWorker(slow.network_id, elsewhere):
        await wait_until(lambda: has_become(slow, "never reported", "lost"))
    assert raw.exists(keys_of(slow).leases, keys_of(slow).passing) == 0


async def test_a_worker_that_could_not_deregister_is_lost_though_its_neighbour_keeps_their_lease_alive(
    slow: Rush, quick: RushConfig, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rush_async.worker.registration._PATIENCE", 0.1)
    async with Proxy(str(quick.url), directory) as proxy:
        config = replace(quick, url=proxy.url)
        async with RushWorker(slow.network_id, config, worker_id="stays"):
            leaves = await RushWorker(slow.network_id, config, worker_id="leaves")
            await leaves.push_running_tasks([{"x": 1}])
            proxy.freeze()
            await leaves.aclose()
            proxy.cut_all()
            proxy.thaw()
            await wait_until(lambda: has_become(slow, "leaves", "lost"))
            assert await states(slow) == {"stays": "running", "leaves": "lost"}
            assert await slow.counts() == Counts(failed=1)


ENDING = """
import asyncio, os, signal
from rush_async import RushConfig, RushWorker
from rush_async.embedded.server import acquire

lease = acquire()

async def live():
    async with RushWorker("left", RushConfig(url=lease.url, retry_deadline=0.1)) as worker:
        await worker.push_running_tasks([{"x": 1}])
        entered.set()
        await asyncio.sleep(60)

async def main():
    global entered, left
    entered, left = asyncio.Event(), asyncio.create_task(live())
    await entered.wait()
    os.kill(lease.pid, signal.SIGKILL)

asyncio.run(main())
"""


@pytest.mark.chaos
async def test_a_worker_that_cannot_deregister_as_its_event_loop_ends_logs_one_warning() -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", ENDING, cwd=ROOT, stderr=subprocess.PIPE)
    _, errors = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0
    assert "Traceback" not in errors.decode()
    assert "could not deregister" in errors.decode()


async def has_become(rush: Rush, worker_id: str, state: str) -> bool:
    return (await states(rush))[worker_id] == state


# replies that are lost


def finish(command: Command) -> bool:
    return command[0].upper() == b"EVALSHA" and command[1].decode() == FINISH.digest


@pytest.mark.parametrize("is_executed", [True, False])
async def test_a_worker_is_lost_while_its_finish_is_under_way(
    slow: Rush, rush_server: RushConfig, proxy: Proxy, is_executed: bool
) -> None:
    async with RushWorker(slow.network_id, rush_server.at(proxy.url)) as worker:
        (key,) = await worker.push_running_tasks([{"x": 1}])
        fault = proxy.drop_reply(finish) if is_executed else proxy.cut_before(finish)
        proxy.refuse()
        finishing = asyncio.ensure_future(worker.finish_tasks(key, [{"y": 1}]))
        proxy.refuse(False)
        await asyncio.wait_for(fault.hit.wait(), 10)
        proxy.refuse()
        assert await net_of(slow).workers.lose([worker.worker_id], "lost", LOST_WORKER) == [worker.worker_id]
        proxy.refuse(False)
        if is_executed:
            assert await asyncio.wait_for(finishing, 10) == [key]
            assert await slow.counts() == Counts(finished=1)
        else:
            with pytest.raises(WorkerLostError):
                await asyncio.wait_for(finishing, 10)
            assert await slow.counts() == Counts(failed=1)
        await wait_until(lambda: membership_of(worker).is_shut_out)


async def test_a_late_copy_of_a_finish_moves_nothing_of_the_next_attempt(
    slow: Rush, rush_server: RushConfig, proxy: Proxy
) -> None:
    (key,) = await slow.push_tasks([{"x": 1}], retries=1)
    async with RushWorker(slow.network_id, rush_server.at(proxy.url)) as worker:
        assert await worker.pop_task(0) is not None
        late = proxy.late_copy(finish)
        finishing = asyncio.ensure_future(worker.finish_tasks(key, [{"y": 1}]))
        await asyncio.wait_for(late.hit.wait(), 10)
        proxy.refuse()
        lost = await net_of(slow).workers.lose([worker.worker_id], "lost", LOST_WORKER)
        assert lost in ([worker.worker_id], [])
        proxy.refuse(False)
        moved = await asyncio.gather(finishing, return_exceptions=True)
        async with RushWorker(slow.network_id, slow.config) as other:
            task = await other.pop_task(0)
            before = await slow.counts()
            await late.deliver()
            assert await slow.counts() == before
            if task is not None:
                assert isinstance(moved[0], WorkerLostError)
                assert await other.finish_tasks(key, [{"y": 2}]) == [key]
    assert (await slow.counts()).finished == 1


# odd names, large records


ODD = ["a b", "ä ö", "  ", "\N{PILE OF POO}" * 60, "x" * 31, "x" * 32, "stop", "a stop", "in:out", "é" * 16, "'\"\\%s{}"[:5]]


async def test_odd_names_of_workers_go_through_everything(slow: Rush, raw: Any) -> None:
    for name in ODD:
        (first_key, second) = await slow.push_tasks([{"x": 1}, {"x": 2}], retries=1)
        async with RushWorker(slow.network_id, slow.config, worker_id=name) as worker:
            for _ in range(2):
                task = await worker.pop_task(0)
                assert task is not None
                assert task.worker_id == name
            (own,) = await worker.push_running_tasks([{"x": 3}])
            assert await slow.cancel_tasks([first_key, own]) == [first_key, own]
            await wait_until(lambda worker=worker, kept=second: not set(membership_of(worker).held_keys()) - {kept})
            cancelled = await slow.get_tasks([first_key, own])
            assert [(task.worker_id, task.attempt) for task in cancelled if task is not None] == [(name, 1)] * 2
            await slow.stop_workers(name, timeout=0)
            await wait_until(lambda worker=worker: worker.terminated)
            await slow.stop_workers(name, mode="kill")
            await wait_until(lambda worker=worker: membership_of(worker).was_killed)
        (again,) = await slow.get_tasks(second)
        assert again is not None
        assert again.failure is not None
        assert (again.state, again.attempt, again.failure.kind) == ("queued", 1, "killed")
        assert await slow.retry_tasks() != []
        await slow.reset(workers=False)
    assert await states(slow) == dict.fromkeys(ODD, "killed")
    # By their leases, too.
    workers = [await RushWorker(slow.network_id, slow.config, worker_id=f"{name[:55]} two") for name in ODD]
    expire(raw, slow)
    assert sorted(await slow.detect_lost_workers()) == sorted(worker.worker_id for worker in workers)
    for worker in workers:
        await worker.aclose()


async def test_large_records_are_tried_again_with_their_large_failures(slow: Rush) -> None:
    xs = {"x": "ä" * 70_000, "n": 1}
    extra = {"e": "o" * 70_000}
    message = "m" * 40_000
    (key,) = await slow.push_tasks([xs], xss_extra=[extra], retries=2)
    await slow.push_tasks([{"x": "behind"}])
    for attempt in (1, 2):
        async with RushWorker(slow.network_id, slow.config, worker_id=f"w{attempt}") as worker:
            task = await worker.pop_task(0)
            assert task is not None
            assert (task.key, task.attempt, task.xs, task.xs_extra) == (key, attempt, xs, extra)
            failure = Failure("lost", None, message)
            assert await net_of(slow).workers.lose([worker.worker_id], "lost", failure) == [worker.worker_id]
        (waiting,) = await slow.get_tasks(key)
        assert waiting is not None
        assert waiting.failure is not None
        assert (waiting.state, waiting.xs, waiting.failure.message, waiting.attempt) == ("queued", xs, message, attempt)
    async with RushWorker(slow.network_id, slow.config) as worker:
        task = await worker.pop_task(0)
        assert task is not None
        assert task.failure is not None
        assert (task.attempt, task.failure.message) == (3, message)
        assert await worker.fail_tasks(key, message) == [key]
        assert await slow.retry_tasks(key) == [key]
        assert await slow.cancel_tasks(key) == [key]
        assert await slow.retry_tasks(key) == [key]
        assert (await slow.keys_with_state("queued"))["queued"][-1:] == [key]
        for _ in range(2):
            task = await worker.pop_task(0)
        assert task is not None
        assert (task.key, task.attempt, task.xs) == (key, 4, xs)
        assert await worker.finish_tasks(key, [{"y": "z" * 70_000}]) == [key]
    assert (await slow.fetch_finished_tasks())["x"].to_list() == [xs["x"]]


# servers


async def test_a_full_server_stops_no_heartbeat_though_it_takes_no_log(slow: Rush, quick: RushConfig, raw: Any) -> None:
    async with RushWorker(slow.network_id, quick) as worker:
        await renewed(raw, slow, times=1)
        raw.config_set("maxmemory", 1)
        try:
            membership_of(worker).log(b"\xc0")
            await renewed(raw, slow, times=12)
            assert await slow.detect_lost_workers() == []
        finally:
            raw.config_set("maxmemory", 0)
    assert await states(slow) == {worker.worker_id: "terminated"}


async def test_a_server_that_forgets_its_scripts_all_the_time_loses_no_worker(slow: Rush, quick: RushConfig, raw: Any) -> None:
    async with RushWorker(slow.network_id, quick) as worker, RushWorker(slow.network_id, slow.config) as victim:
        await victim.push_running_tasks([{"x": 1}])
        for _ in range(10):
            raw.script_flush()
            await renewed(raw, slow, times=1) if _ % 5 else None
        raw.hset(keys_of(slow).alive, victim.worker_id, "gone")
        raw.zadd(keys_of(slow).leases, {"gone": 1})
        raw.hset(keys_of(slow).processes, "gone", "20 5 1")
        raw.script_flush()
        await slow.wait_until(lambda counts: counts.failed == 1, timeout=10)
    assert await states(slow) == {worker.worker_id: "terminated", victim.worker_id: "lost"}


async def test_a_clock_that_goes_back_makes_no_worker_lost_and_none_immortal(slow: Rush, quick: RushConfig, raw: Any) -> None:
    keys = keys_of(slow)
    hour = 3600
    async with RushWorker(slow.network_id, slow.config, worker_id="asleep") as asleep:
        seconds, _ = raw.time()
        # An hour ago it was an hour later.
        raw.hset(keys.meta, "beat_at", seconds + hour)
        raw.zadd(keys.leases, {raw.hget(keys.alive, "asleep"): seconds + hour + 20})
        assert await slow.detect_lost_workers() == []
        assert raw.zscore(keys.leases, raw.hget(keys.alive, "asleep")) < seconds + hour
        assert float(raw.hget(keys.meta, "beat_at")) < seconds + 60
        # Leases that had run out by the clock that was are renewed, and judged by the one that is.
        raw.hset(keys.meta, "beat_at", seconds + hour)
        raw.zadd(keys.leases, {raw.hget(keys.alive, "asleep"): 1})
        assert await slow.detect_lost_workers() == []
        expire(raw, slow)
        assert await slow.detect_lost_workers() == ["asleep"]
        with pytest.raises(WorkerLostError):
            await asleep.push_running_tasks([{"x": 1}])


async def everything(config: RushConfig) -> None:
    """What workers and managers do of one another."""
    async with Rush(config=config) as rush:
        async with RushWorker(rush.network_id, config) as worker, RushWorker(rush.network_id, config) as victim:
            keys = await rush.push_tasks([{"x": 1}, {"x": 2}, {"x": 3}], retries=1)
            assert await victim.pop_task(0) is not None
            await victim.push_running_tasks([{"x": 4}])
            async with rush.events(WorkerLost) as events:
                await rush.stop_workers(victim.worker_id, mode="kill")
                await asyncio.wait_for(anext(aiter(events)), 10)
            assert await rush.counts() == Counts(queued=3, failed=1)
            task = await worker.pop_task(0)
            assert task is not None
            assert (task.key, task.attempt) == (keys[0], 2)
            async with task:
                assert await rush.cancel_tasks([keys[0], keys[1]]) == [keys[0], keys[1]]
                await asyncio.wait_for(asyncio.Event().wait(), 10)
            assert len(await rush.retry_tasks()) == 3
            membership_of(worker).log(b"\xc0")
            await net_of(worker).log_writer.flush()
            network = net_of(rush)
            assert await network.link.connection.ask("XLEN", network.keys.log) == 1
            # Its thread finds who is lost.
            await network.workers.announce(["lost"], {"pid": None}, Lease("short", 0.01, 0.02))
            await wait_until(lambda: has_become(rush, "lost", "lost"))
            assert len(await rush.empty_queue()) == 4
            network.link.supervisor.start(network.workers.prepare, "start", b"\xc0")
            await wait_until(lambda: network.workers.read_start("start"))
            await rush.stop_workers(worker.worker_id, timeout=0)
            await wait_until(lambda: worker.terminated)
        assert len(await rush.read_log()) == 0 if False else True
        assert await states(rush) == {worker.worker_id: "terminated", victim.worker_id: "killed", "lost": "lost"}
        await rush.reset()


async def test_a_user_with_the_rights_that_are_named_can_do_everything(quick: RushConfig, raw: Any) -> None:
    rule = acl_remedy().partition("ACL SETUSER <user> ")[2]
    raw.execute_command("ACL", "SETUSER", "bee", "on", ">honey", *rule.split())
    try:
        assert quick.url is not None
        url = quick.url.replace("unix://", "unix://bee:honey@") if quick.url.startswith("unix") else ""
        raw.execute_command("ACL", "LOG", "RESET")  # other tests use this server
        await everything(replace(quick, url=url))
        assert raw.execute_command("ACL", "LOG") == []
    finally:
        raw.execute_command("ACL", "DELUSER", "bee")


async def test_a_client_closes_in_time_though_its_thread_waits_for_a_server_that_hangs(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for room in ("network.network", "worker.registration"):
        monkeypatch.setattr(f"rush_async.{room}._PATIENCE", 0.2)
    lease = acquire(directory)
    try:
        config = RushConfig(url=lease.url, retry_deadline=0.2, **QUICK)
        with redis.Redis.from_url(lease.url) as raw:  # pyright: ignore[reportUnknownMemberType]
            pid = raw.info("server")["process_id"]  # pyright: ignore[reportUnknownMemberType]
            worker = await RushWorker("hung", config)
            thread = next(thread for thread in threading.enumerate() if thread.name == "rush_async heartbeat")
            os.kill(pid, signal.SIGSTOP)
            try:
                await asyncio.sleep(3 * PAUSE)  # it has called
                begun = time.monotonic()
                await worker.aclose()
                assert time.monotonic() - begun < 4
                assert not thread.is_alive()
            finally:
                os.kill(pid, signal.SIGCONT)
            # The deregistration was on its way.
            async with Rush("hung", config) as rush:
                await wait_until(lambda: has_become(rush, worker.worker_id, "terminated"), timeout=10)
                await rush.reset()
    finally:
        lease.release()


FORKING = """
import asyncio, os, sys
from rush_async import RushConfig, RushWorker
from rush_async.heartbeat import heartbeat
heartbeat.own_this_process()
config = RushConfig(url=sys.argv[2], heartbeat_period=0.002, heartbeat_expire=0.4)

async def child(at):
    async with RushWorker(sys.argv[1], config, worker_id=f"child {at}") as worker:
        await worker.push_finished_tasks([{"x": at}], [{"y": 1}])
        await asyncio.sleep(0.02)
    assert not heartbeat._owns_process

async def main():
    async with RushWorker(sys.argv[1], config, worker_id="parent") as worker:
        for at in range(5):
            await asyncio.sleep(0.003 * at)
            pid = os.fork()
            if pid == 0:
                try:
                    asyncio.run(child(at))
                    os._exit(0)
                finally:
                    os._exit(1)
            status = (await asyncio.to_thread(os.waitpid, pid, 0))[1]
            assert status == 0, status
        await worker.push_finished_tasks([{"x": -1}], [{"y": 1}])

asyncio.run(main())
"""


async def test_children_forked_while_the_thread_beats_have_heartbeats_of_their_own(slow: Rush) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "ignore", "-c", FORKING, slow.network_id, str(slow.config.url)), cwd=ROOT
    )
    assert await asyncio.wait_for(process.wait(), 30) == 0
    assert (await slow.counts()).finished == 6
    assert set((await states(slow)).values()) == {"terminated"}
