"""Heartbeats, lost workers, and tasks that are tried again, with processes that really die, stop and stall."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from rush_async import (
    EventsMissed,
    Processes,
    Rush,
    RushConfig,
    RushWorker,
    WorkerLost,
    WorkerLostError,
    WorkerStopped,
)
from rush_async.store.keys import NetworkKeys
from rush_async.testing import wait_until
from rush_async.wire.subscription import ChannelListener
from rush_async.worker.worker import membership_of
from tests.launch.loops_of_tests import hold

ROOT = Path(__file__).parents[1]

# A process of its own without a manager: only the heartbeats of others find its death.
WORKER = """
import sys
from rush_async import run_worker
from tests.launch import loops_of_tests
run_worker(
    getattr(loops_of_tests, sys.argv[1]), sys.argv[2], sys.argv[3],
    worker_ids=sys.argv[4:], heartbeat_period=0.1, heartbeat_expire=0.4,
)
"""


@pytest.fixture
def quick(rush_server: RushConfig) -> RushConfig:
    return replace(rush_server, heartbeat_period=0.1, heartbeat_expire=0.4)


@pytest_asyncio.fixture
async def net(quick: RushConfig) -> AsyncIterator[Rush]:
    """A manager that looks after leases ten times a second."""
    async with Rush(config=quick) as net:
        yield net
        await net.reset()


Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start(net: Rush) -> Iterator[Start]:
    """Starts a process with workers that no manager watches."""
    started: list[subprocess.Popen[bytes]] = []

    def start(loop: str, *worker_ids: str) -> subprocess.Popen[bytes]:
        assert net.config.url is not None
        words = [sys.executable, "-c", WORKER, loop, net.network_id, net.config.url, *worker_ids]
        started.append(subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


@contextmanager
def stopped(pid: int) -> Generator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def states(rush: Rush) -> dict[str, str]:
    info = await rush.worker_info()
    return dict(zip(info["worker_id"], info["state"], strict=True))


def leases(raw: Any, rush: Rush) -> int:
    return raw.zcard(NetworkKeys.of(rush.network_id).leases)


# lost workers


async def test_row_14_a_dead_process_is_found_by_any_live_one_without_a_manager_and_by_one_alone(
    net: Rush, start: Start, quick: RushConfig
) -> None:
    process = start("hold", "victim")
    elsewhere = replace(quick, response_timeout=11)  # another connection, as in another process
    async with RushWorker(net.network_id, quick) as near, RushWorker(net.network_id, elsewhere) as far:
        await net.wait_until(lambda counts: counts.running == 1, timeout=30)
        own = await near.push_running_tasks([{"x": 1}]) + await far.push_running_tasks([{"x": 2}])
        async with far.events(WorkerLost) as events:
            process.kill()
            process.wait()
            event = await asyncio.wait_for(anext(aiter(events)), 10)
            assert isinstance(event, WorkerLost)
            assert event.worker_id == "victim"
            await net.wait_until(lambda counts: counts.failed == 1, timeout=10)
            # Exactly once: the next event of a worker is a regular end.
            await near.aclose()
            await far.finish_tasks(own[1], [{"y": 1}])
        failed = await net.fetch_failed_tasks()
        assert failed["condition"].struct.field("kind").to_list() == ["lost", "cancelled"]
        assert failed["condition"].struct.field("message")[0] == "Worker has crashed or was killed"
        assert failed["worker_id"][0] == "victim"
    found = await states(net)
    assert sorted(found.values()) == ["lost", "terminated", "terminated"]
    assert found["victim"] == "lost"


async def test_a_lost_worker_is_reported_once_however_many_look(net: Rush, start: Start, quick: RushConfig) -> None:
    process = start("hold", "a", "b", "c")
    others = [Rush(net.network_id, replace(quick, response_timeout=11 + at)) for at in range(4)]
    async with net.events(WorkerLost, WorkerStopped) as events:
        for other in others:
            await other
        await net.wait_until(lambda counts: counts.running == 3, timeout=30)
        process.kill()
        process.wait()
        seen = [await asyncio.wait_for(anext(aiter(events)), 10) for _ in range(3)]
        async with RushWorker(net.network_id, net.config, worker_id="last"):
            pass
        last = await asyncio.wait_for(anext(aiter(events)), 10)
    assert isinstance(last, WorkerStopped)
    assert sorted(event.worker_id for event in seen if isinstance(event, WorkerLost)) == ["a", "b", "c"]
    assert (await net.counts()).failed == 3
    for other in others:
        await other.aclose()


async def test_row_15_detect_lost_workers_returns_those_that_this_call_found(rush: Rush, raw: Any) -> None:
    """The manager's own heartbeat is too slow to find them."""
    keys = NetworkKeys.of(rush.network_id)
    async with RushWorker(rush.network_id, rush.config) as worker, RushWorker(rush.network_id, rush.config) as clean:
        (key,) = await worker.push_running_tasks([{"x": 1}])
        assert await rush.detect_lost_workers() == []
        lease = raw.hget(keys.alive, worker.worker_id)
        raw.hset(keys.alive, worker.worker_id, "another-process")
        raw.zadd(keys.leases, {"another-process": 1.0})
        raw.hset(keys.processes, "another-process", "20.0 5.0 1.0")
        await clean.aclose()
        assert await rush.detect_lost_workers() == [worker.worker_id]
        assert await rush.detect_lost_workers() == []
        assert await rush.is_failed_task(key) == [True]
        assert lease is not None
        with pytest.raises(WorkerLostError, match="not alive"):
            await worker.push_running_tasks([{"x": 2}])
    assert (await states(rush))[clean.worker_id] == "terminated"


async def test_a_manager_that_died_leaves_no_worker_that_is_starting_or_running(net: Rush, start: Start) -> None:
    manager = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", MANAGER, net.network_id, str(net.config.url)), cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    assert manager.stdout is not None
    try:
        assert await manager.stdout.readline() == b"ready\n"
        assert sorted((await states(net)).values()) == ["running", "starting"]
    finally:
        manager.kill()
        await manager.wait()
    await asyncio.wait_for(net.stop_workers(), 20)
    assert sorted((await states(net)).values()) == ["lost", "lost"]


MANAGER = """
import asyncio, sys
from rush_async import Rush, RushConfig
from tests.launch.loops_of_tests import hold

async def main():
    async with Rush(sys.argv[1], RushConfig(url=sys.argv[2], heartbeat_period=0.1, heartbeat_expire=0.4)) as rush:
        await rush.start_workers(hold, 1)
        await rush.wait_for_workers(1)
        network = rush._net
        await network.workers.announce(["coming"], {"pid": None}, network.heartbeat.leases[0])
        print("ready", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


# what loses no worker


async def test_a_loop_that_computes_is_not_lost_and_worker_info_shows_that_it_does_not_answer(net: Rush, start: Start) -> None:
    start("compute", "busy")
    await net.wait_until(lambda counts: counts.running == 1, timeout=30)
    begun = await last_seen(net, "busy")
    keys = NetworkKeys.of(net.network_id)
    beats: set[Any] = set()

    async def has_beaten_for_long() -> bool:
        beats.add(await net._net.link.connection.ask("ZSCORE", keys.leases, (await lease_of(net, "busy"))))  # pyright: ignore[reportPrivateUsage]
        return len(beats) > 10  # more than two expiries

    await wait_until(has_beaten_for_long, timeout=20)
    assert (await states(net)) == {"busy": "running"}
    assert await last_seen(net, "busy") - begun < 0.4
    await net.push_tasks([{"x": 1}])  # which ends the computation
    await net.wait_until(lambda counts: counts.finished == 1, timeout=20)
    await wait_until(lambda: has_ended(net, "busy"))


async def has_ended(net: Rush, worker_id: str) -> bool:
    return (await states(net))[worker_id] == "terminated"


async def lease_of(net: Rush, worker_id: str) -> bytes:
    return await net._net.link.connection.ask("HGET", net._net.keys.alive, worker_id)  # pyright: ignore[reportPrivateUsage]


async def last_seen(net: Rush, worker_id: str) -> float:
    info = await net.worker_info()
    return dict(zip(info["worker_id"], info["last_seen"], strict=True))[worker_id].timestamp()


async def test_a_server_that_stalls_for_longer_than_the_expiry_loses_no_worker(net: Rush, start: Start, raw: Any) -> None:
    start("hold", "a")
    start("hold", "b")
    await net.wait_until(lambda counts: counts.running == 2, timeout=30)
    with stopped(raw.info()["process_id"]):
        threading.Event().wait(1.2)  # three expiries: what is tested is this time itself
    keys = NetworkKeys.of(net.network_id)
    before = {name: raw.zscore(keys.leases, name) for name in raw.zrange(keys.leases, 0, -1)}
    assert len(before) >= 2
    # Until every process has beaten twice again.
    await wait_until(lambda: all((raw.zscore(keys.leases, name) or 0) > at + 0.2 for name, at in before.items()), timeout=10)
    assert set((await states(net)).values()) == {"running"}


async def test_a_worker_that_comes_back_from_the_dead_is_fenced_and_may_enter_again(net: Rush, start: Start) -> None:
    process = start("come_back", "zombie")
    await net.wait_until(lambda counts: counts.running == 1, timeout=30)
    (key,) = (await net.keys_with_state("running"))["running"]
    with stopped(process.pid):
        await net.wait_until(lambda counts: counts.failed == 1, timeout=10)
        assert (await states(net)) == {"zombie": "lost"}
    # Its finish came too late; it learnt so and continued under another name.
    await net.wait_until(lambda counts: counts.finished == 1, timeout=10)
    assert await asyncio.to_thread(process.wait, 20) == 0
    assert (await net.counts())[:] == (0, 0, 1, 1)
    (task,) = await net.get_tasks(key)
    assert task is not None
    assert task.failure is not None
    assert (task.state, task.failure.kind, task.ys) == ("failed", "lost", None)
    assert (await net.fetch_finished_tasks())["x"].to_list() == ["WorkerLostError"]
    assert sorted((await states(net)).values()) == ["lost", "terminated"]


async def test_a_stopped_child_is_lost_though_its_manager_lives(net: Rush) -> None:
    (worker_id,) = await net.start_workers(hold, 1, on=Processes())
    await net.wait_until(lambda counts: counts.running == 1, timeout=30)
    pid = (await net.fetch_running_tasks())["pid"][0]
    with stopped(pid):
        await net.wait_until(lambda counts: counts.failed == 1, timeout=10)
    await asyncio.wait_for(net.stop_workers(), 20)
    assert [how.state for how in await net.join_workers(timeout=20, check=False)] == ["lost"]
    assert await states(net) == {worker_id: "lost"}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # its sockets were not closed
async def test_an_event_loop_that_ended_without_closing_has_its_tasks_failed(net: Rush, quick: RushConfig) -> None:
    def forget() -> None:
        async def main() -> None:
            worker = await RushWorker(net.network_id, quick, worker_id="forgotten")
            await worker.push_running_tasks([{"x": 1}])

        asyncio.run(main())

    await asyncio.to_thread(forget)
    await net.wait_until(lambda counts: counts.failed == 1, timeout=10)
    assert await states(net) == {"forgotten": "lost"}


# shared workers


async def test_the_tasks_of_a_shared_worker_are_ended_by_another_process_when_one_is_killed(
    net: Rush, start: Start, quick: RushConfig, raw: Any
) -> None:
    queued = await net.push_tasks([{"x": 0}, {"x": 0}])
    processes = [start("hold_as_study", name) for name in ("first", "second")]
    await net.wait_until(lambda counts: counts.running == 6, timeout=30)
    running = await net.fetch_running_tasks()
    keys = running["keys"].filter(running["worker_id"] == "study").to_list()
    assert len(keys) == 4
    assert set(queued) < set(keys)
    async with net.events(WorkerLost) as events:
        processes[0].kill()
        event = await asyncio.wait_for(anext(aiter(events)), 10)
        assert isinstance(event, WorkerLost)
        assert event.worker_id == "first"  # so the leases have been judged
    await net.wait_until(lambda counts: counts == (0, 5, 0, 1), timeout=10)
    assert await net.detect_lost_workers() == []
    async with RushWorker(net.network_id, quick, worker_id="study", shared=True) as study:
        assert await study.finish_tasks(keys, [{"y": 1}] * 4) == keys
    assert (await states(net))["study"] == "running"
    assert raw.hget(NetworkKeys.of(net.network_id).alive, "study") == b""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # its sockets were not closed
async def test_a_shared_worker_stays_when_an_event_loop_ends_without_closing_it(net: Rush, quick: RushConfig) -> None:
    def forget() -> None:
        async def main() -> None:
            study = await RushWorker(net.network_id, quick, worker_id="study", shared=True)
            await study.push_running_tasks([{"x": 1}])
            worker = await RushWorker(net.network_id, quick, worker_id="forgotten")
            await worker.push_running_tasks([{"x": 2}])

        asyncio.run(main())

    await asyncio.to_thread(forget)
    await net.wait_until(lambda counts: counts.failed == 1, timeout=10)
    assert await states(net) == {"study": "running", "forgotten": "lost"}
    assert await net.counts() == (0, 1, 0, 1)


# row 8


@pytest.mark.parametrize(("period", "expire"), [(0.0, 20.0), (-1.0, 20.0), (1.0, 1.5)])
async def test_row_8_impossible_heartbeats_are_refused(rush: Rush, period: float, expire: float) -> None:
    with pytest.raises(ValueError, match="heartbeat"):
        RushConfig(heartbeat_period=period, heartbeat_expire=expire)
    with pytest.raises(ValueError, match="heartbeat"):
        await rush.start_workers(hold, 1, heartbeat_period=period, heartbeat_expire=expire)
    assert await states(rush) == {}


async def test_row_8_ending_cleanly_removes_the_heartbeat_at_once(rush_server: RushConfig, raw: Any) -> None:
    async with Rush(config=rush_server) as rush:
        async with RushWorker(rush.network_id, rush.config) as worker:
            assert leases(raw, rush) == 1
            assert (await rush.worker_info())["heartbeat"].to_list() == [True]
            # One process has one lease, however many workers.
            async with RushWorker(rush.network_id, rush.config):
                assert leases(raw, rush) == 1
            slow = replace(rush.config, heartbeat_period=6.0)
            async with RushWorker(rush.network_id, slow):
                assert leases(raw, rush) == 2
                assert worker.config.heartbeat_period == 5.0
    assert leases(raw, rush) == 0
    async with Rush(rush.network_id, rush_server) as rush:
        await rush.reset()


async def test_row_8_workers_beat_as_they_were_started(rush: Rush, raw: Any) -> None:
    await rush.start_workers(hold, 2, heartbeat_period=0.25, heartbeat_expire=1)
    await rush.wait_for_workers(2)
    processes = raw.hvals(NetworkKeys.of(rush.network_id).processes)
    assert sorted(tuple(map(float, times.split()[:2])) for times in processes) == [(1.0, 0.25)]


# tried again


async def test_a_task_of_a_lost_worker_is_tried_again_at_the_head_of_the_queue(net: Rush, start: Start) -> None:
    first, second = await net.push_tasks([{"x": 1}, {"x": 2}], retries=1)
    process = start("pop_and_hold", "a")
    await net.wait_until(lambda counts: counts.running == 1, timeout=30)
    process.kill()
    await net.wait_until(lambda counts: counts.running == 0, timeout=10)
    assert (await net.keys_with_state("queued"))["queued"] == [first, second]
    (waiting,) = await net.get_tasks(first)
    assert waiting is not None
    assert waiting.failure is not None
    assert (waiting.state, waiting.attempt, waiting.failure.kind, waiting.worker_id) == ("queued", 1, "lost", None)
    async with RushWorker(net.network_id, net.config) as worker:
        again = await worker.pop_task(0)
        assert again is not None
        assert again.failure is not None
        assert (again.key, again.attempt, again.failure.kind, again.xs) == (first, 2, "lost", {"x": 1})
        (running,) = await net.get_tasks(first)
        assert running is not None
        assert (running.state, running.attempt, running.failure) == ("running", 2, again.failure)
        assert (await net.fetch_running_tasks(times=True))["attempt"].to_list() == [2]
        await worker.finish_tasks(first, [{"y": 1}])
        (finished,) = await net.get_tasks(first)
        assert finished is not None
        assert (finished.ys, finished.attempt, finished.failure) == ({"y": 1}, 2, None)


async def test_a_task_that_was_lost_more_often_than_its_retries_is_failed(net: Rush) -> None:
    (key,) = await net.push_tasks([{"x": 1}], retries=2)
    for attempt in (1, 2, 3):
        async with RushWorker(net.network_id, net.config) as worker:
            task = await worker.pop_task(0)
            assert task is not None
            assert task.attempt == attempt
            await net.stop_workers(worker.worker_id, mode="kill")
    (task,) = await net.get_tasks(key)
    assert task is not None
    assert task.failure is not None
    assert (task.state, task.attempt, task.failure.kind) == ("failed", 3, "killed")
    assert await net.retry_tasks() == [key]
    async with RushWorker(net.network_id, net.config) as worker:
        task = await worker.pop_task(0)
        assert task is not None
        assert task.failure is not None
        assert (task.attempt, task.failure.kind) == (4, "killed")


async def test_a_task_returned_to_the_queue_keeps_its_last_failure(net: Rush) -> None:
    """It was popped for a caller that was cancelled before it could see it."""
    (key,) = await net.push_tasks([{"x": 1}], retries=1)
    async with RushWorker(net.network_id, net.config) as worker:
        assert await worker.pop_task(0) is not None
        await net.stop_workers(worker.worker_id, mode="kill")
    async with RushWorker(net.network_id, net.config) as worker:
        popping = asyncio.ensure_future(worker.pop_task(0))
        for _ in range(3):
            await asyncio.sleep(0)
        popping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await popping
        await worker._net.tasks.calls.quiet()  # pyright: ignore[reportPrivateUsage]
        (task,) = await net.get_tasks(key)
        assert task is not None
        assert task.failure is not None
        assert (task.state, task.attempt, task.failure.kind) == ("queued", 1, "killed")


# what the heartbeat carries


async def test_a_loop_that_computes_sees_that_it_is_to_stop(net: Rush, start: Start) -> None:
    start("compute_until_terminated", "busy")
    await net.wait_until(lambda counts: counts.running == 1, timeout=30)
    await asyncio.wait_for(net.stop_workers(), 20)
    assert (await states(net)) == {"busy": "terminated"}
    assert (await net.counts()).finished == 1


async def test_a_loop_that_computes_sees_that_the_network_has_stopped(net: Rush, start: Start) -> None:
    start("compute_until_terminated", "busy")
    await net.wait_until(lambda counts: counts.running == 1, timeout=30)
    reason = await net.stop("enough")
    await net.wait_until(lambda counts: counts.finished == 1, timeout=20)
    await wait_until(lambda: net.n_running_workers == 0)
    assert net.stop_reason == reason


async def test_a_loop_that_computes_is_stopped_when_the_time_of_the_network_is_up(net: Rush, start: Start) -> None:
    start("compute_until_terminated", "busy")
    await net.wait_until(lambda counts: counts.running == 1, timeout=30)
    await net.stop_when(seconds=0.3)
    await net.wait_until(lambda counts: counts.finished == 1, timeout=20)
    assert net.stop_reason is not None
    assert net.stop_reason.rule == "seconds"


class Deaf:
    """Hears no message of a channel, only that it is confirmed."""

    def __init__(self, listener: ChannelListener) -> None:
        self._listener = listener

    def heard(self, channel: str, message: bytes) -> None:
        pass

    def confirmed(self, channel: str) -> None:
        self._listener.confirmed(channel)


async def test_events_that_do_not_arrive_are_missed_by_the_next_beat(net: Rush, elsewhere_quick: Rush) -> None:
    """A subscription that is silent without being broken."""
    network = net._net  # pyright: ignore[reportPrivateUsage]
    await net.wait_until(lambda _: True)
    async with net.events() as events:
        channel = network.link.subscription._channels[network.keys.events]  # pyright: ignore[reportPrivateUsage]
        channel.listener = Deaf(channel.listener)
        await elsewhere_quick.push_tasks([{"x": 1}])
        event = await asyncio.wait_for(anext(aiter(events)), 20)
    assert isinstance(event, EventsMissed)
    assert net.n_queued_tasks == 1


@pytest_asyncio.fixture
async def elsewhere_quick(net: Rush) -> AsyncIterator[Rush]:
    async with Rush(net.network_id, replace(net.config, response_timeout=12)) as elsewhere:
        yield elsewhere


async def test_the_thread_ends_with_the_last_client(quick: RushConfig) -> None:
    def beating() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name == "rush_async heartbeat"]

    async with RushWorker("short", quick):
        assert len(beating()) == 1
        async with RushWorker("short", quick):
            assert len(beating()) == 1
    assert beating() == []
    async with Rush("short", quick) as rush:
        assert beating() == []  # no worker lives there, and a period has not passed
        await rush.reset()


async def test_a_beat_a_period_and_nothing_else(rush: Rush, raw: Any) -> None:
    config = replace(rush.config, heartbeat_period=0.05, heartbeat_expire=0.2)
    async with RushWorker(rush.network_id, config) as worker:
        waiting = asyncio.ensure_future(worker.pop_task(None))
        await wait_until(lambda: worker._net.feed.is_watching)  # pyright: ignore[reportPrivateUsage]
        lease = raw.hget(NetworkKeys.of(rush.network_id).alive, worker.worker_id)
        seen: set[float] = set()
        begun = time.monotonic()
        before = raw.info("commandstats")

        def has_beaten() -> bool:
            seen.add(raw.zscore(NetworkKeys.of(rush.network_id).leases, lease))
            return len(seen) > 8

        await wait_until(has_beaten)
        n = (time.monotonic() - begun) / 0.05
        after = raw.info("commandstats")
        calls = after["cmdstat_evalsha"]["calls"] - before["cmdstat_evalsha"]["calls"]
        assert 7 <= calls <= n + 2
        assert len([client for client in raw.client_list() if client["cmd"] != "client|list"]) <= 6
        await rush.stop_workers(timeout=0)
        assert await waiting is None


async def test_a_late_answer_of_a_beat_shuts_out_no_worker_that_registered_since(net: Rush, raw: Any) -> None:
    """A lease has ended, and before its process learns of it another worker registers under the same lease."""
    keys = NetworkKeys.of(net.network_id)
    lost = await RushWorker(net.network_id, net.config)
    lease = raw.hget(keys.alive, lost.worker_id)
    raw.hdel(keys.alive, lost.worker_id)
    raw.zrem(keys.leases, lease)
    raw.hdel(keys.processes, lease)
    async with RushWorker(net.network_id, net.config) as again:
        network = net._net  # pyright: ignore[reportPrivateUsage]
        await network._take_requests([lease.decode()])  # pyright: ignore[reportPrivateUsage]
        assert membership_of(lost).is_shut_out
        assert not membership_of(again).is_shut_out
        assert await again.push_finished_tasks([{"x": 1}], [{"y": 1}])
    await lost.aclose()
    assert (await states(net))[again.worker_id] == "terminated"
