"""A worker that waits in an event loop without work stands by: the next task is handed to it, and none is lost on the way."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio

from rush_async import (
    Failure,
    Rush,
    RushConfig,
    RushConnectionError,
    RushWorker,
    Task,
    TasksQueued,
    TasksStarted,
    WorkerLostError,
)
from rush_async.network import standby
from rush_async.store import scripts
from rush_async.store.keys import NetworkKeys
from rush_async.store.tasks import Popped
from rush_async.testing import wait_until
from tests.posts import ask, channel_of
from tests.proxy import Proxy, named

TIMEOUT = 10.0


@pytest.fixture(autouse=True)
def short_waits_are_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standby, "WORTH", 0.0)


@pytest_asyncio.fixture
async def far(rush: Rush, proxy: Proxy) -> AsyncIterator[RushWorker]:
    """A worker in the network of `rush`, on a connection of its own that can be counted and broken."""
    async with RushWorker(rush.network_id, rush.config.at(proxy.url)) as worker:
        yield worker


class Standing:
    """A worker that waits for a task, and stands by."""

    def __init__(self, raw: Any, worker: RushWorker, timeout: float | None = TIMEOUT) -> None:
        self.raw = raw
        self.worker = worker
        self.keys = NetworkKeys.of(worker.network_id)
        self.pop = asyncio.create_task(worker.pop_task(timeout))

    async def ready(self) -> Standing:
        """Waits until the server knows, and the worker that it does."""
        await wait_until(lambda: self.raw.hexists(self.keys.standby, self.worker.worker_id))
        standby = self.worker._net.standby  # pyright: ignore[reportPrivateUsage]
        await wait_until(lambda: standby._post is None or standby._post.asked is None)  # pyright: ignore[reportPrivateUsage]
        return self

    async def taken(self) -> Task:
        async with asyncio.timeout(TIMEOUT):
            task = await self.pop
        assert task is not None
        return task


async def standing(raw: Any, worker: RushWorker, timeout: float | None = TIMEOUT) -> Standing:
    return await Standing(raw, worker, timeout).ready()


def n_pops(proxy: Proxy) -> int:
    return sum(named("EVALSHA", scripts.POP.digest)(command) for command in proxy.commands)


def anybody(raw: Any, rush: Rush) -> dict[bytes, bytes]:
    return raw.hgetall(NetworkKeys.of(rush.network_id).standby)


async def hand(rush: Rush, waiting: Standing) -> None:
    """Pushes a task that a worker takes and finishes."""
    (key,) = await rush.push_tasks([{"x": 1}])
    task = await waiting.taken()
    assert task.key == key
    await finish(waiting.worker, task)


async def finish(worker: RushWorker, task: Task) -> None:
    assert await worker.finish_tasks(task.key, [{"y": 1}]) == [task.key]


async def test_a_task_is_handed_to_a_worker_that_waits(rush: Rush, far: RushWorker, proxy: Proxy, raw: Any) -> None:
    for x in range(3):
        waiting = await standing(raw, far)
        before = n_pops(proxy)
        (key,) = await rush.push_tasks([{"x": x}], retries=2)
        task = await waiting.taken()
        assert n_pops(proxy) == before
        assert (task.key, task.xs, task.attempt, task.worker_id) == (key, {"x": x}, 1, far.worker_id)
        assert await rush.is_running_task(key) == [True]
        assert await rush.counts() == (0, 1, x, 0)
        assert anybody(raw, rush) == {}
        await finish(far, task)
    frame = await rush.fetch_finished_tasks(times=True)
    assert frame["attempt"].to_list() == [1, 1, 1]
    assert raw.llen(NetworkKeys.of(rush.network_id).queue) == 0


async def test_both_events_of_a_task_that_is_handed_over_are_told(rush: Rush, far: RushWorker, raw: Any) -> None:
    waiting = await standing(raw, far)
    async with rush.events(TasksQueued, TasksStarted) as events:
        keys = tuple(await rush.push_tasks([{"x": 1}]))
        queued, started = await anext(events), await anext(events)
    assert isinstance(queued, TasksQueued)
    assert isinstance(started, TasksStarted)
    assert (queued.keys, started.keys, started.worker_id) == (keys, keys, far.worker_id)
    assert started.seq == queued.seq + 1
    await finish(far, await waiting.taken())


async def test_of_many_tasks_each_event_loop_is_handed_one(
    rush: Rush, rush_worker: RushWorker, far: RushWorker, raw: Any
) -> None:
    near, other = await standing(raw, rush_worker), await standing(raw, far)
    keys = await rush.push_tasks([{"x": x} for x in range(3)])
    tasks = [await near.taken(), await other.taken()]
    assert {task.key for task in tasks} == set(keys[:2])
    last = await rush_worker.pop_task(0)
    assert last is not None
    assert last.key == keys[2]
    for worker, task in zip((rush_worker, far, rush_worker), [*tasks, last], strict=True):
        await finish(worker, task)


async def test_nobody_stands_by_where_somebody_works(rush: Rush, rush_worker: RushWorker, raw: Any) -> None:
    async with RushWorker(rush.network_id, rush.config) as other:
        (held,) = await rush_worker.push_running_tasks([{"x": 0}])
        pop = asyncio.create_task(other.pop_task(TIMEOUT))
        line = other._net.queue_line  # pyright: ignore[reportPrivateUsage]
        await wait_until(lambda: len(line) == 1)
        await rush.counts()
        assert anybody(raw, rush) == {}
        await rush_worker.finish_tasks(held, [{"y": 0}])
        # When the last one waits too, it is the one that waits longest.
        last = Standing(raw, rush_worker)
        await wait_until(lambda: list(anybody(raw, rush)) == [other.worker_id.encode()])
        await rush.push_tasks([{"x": 1}])
        task = await pop
        assert task is not None
        assert not last.pop.done()
        await finish(other, task)
        await rush.push_tasks([{"x": 2}])
        await finish(rush_worker, await last.taken())


@pytest.mark.parametrize("way", ["push", "block", "pop"])
async def test_who_stands_by_is_relieved_when_another_worker_of_its_loop_gets_to_work(
    rush: Rush, rush_worker: RushWorker, raw: Any, way: str
) -> None:
    async with RushWorker(rush.network_id, rush.config) as other:
        waiting = Standing(raw, rush_worker)
        waits = [asyncio.create_task(other.pop_task(TIMEOUT))]
        await waiting.ready()
        if way == "push":
            keys = await other.push_running_tasks([{"x": 0}])
            assert anybody(raw, rush) == {}
            await other.finish_tasks(keys, [{"y": 0}])
        elif way == "block":
            async with other.task({"x": 0}) as task:
                assert anybody(raw, rush) == {}
                task.ys = {"y": 0}
        else:
            assert await other.pop_task(0) is None
            assert anybody(raw, rush) == {}
        await rush.push_tasks([{"x": 1}, {"x": 2}])
        tasks = [await waits[0], await waiting.taken()]
        for worker, task in zip((other, rush_worker), tasks, strict=True):
            assert task is not None
            await finish(worker, task)


async def test_what_is_queued_already_comes_first(rush: Rush, rush_worker: RushWorker, far: RushWorker, raw: Any) -> None:
    assert await ask(far, "in", far.worker_id) is True
    # A retry is not handed over, so there is a queue and somebody stands by.
    (key,) = await rush.push_failed_tasks([{"x": 0}], "bad")
    await rush.retry_tasks(key)
    await rush.push_tasks([{"x": 1}])
    assert await rush.counts() == (2, 0, 0, 0)
    assert await ask(far, "in", far.worker_id) is False
    assert await ask(far, "in", far.worker_id) is False
    for x in range(2):
        task = await rush_worker.pop_task(0)
        assert task is not None
        assert task.xs == {"x": x}
        await finish(rush_worker, task)


async def test_a_large_task_is_popped_as_before(rush: Rush, far: RushWorker, proxy: Proxy, raw: Any) -> None:
    waiting = await standing(raw, far)
    before = n_pops(proxy)
    await rush.push_tasks([{"x": "x" * 20_000}])
    task = await waiting.taken()
    assert n_pops(proxy) == before + 1
    await finish(far, task)


async def test_nobody_who_has_left_is_handed_anything(rush: Rush, rush_worker: RushWorker, raw: Any) -> None:
    keys = NetworkKeys.of(rush.network_id)
    raw.hset(keys.standby, mapping={"nobody": "client", "ghost": "client"})
    pushed = await rush.push_tasks([{"x": 1}, {"x": 2}])
    assert (await rush.keys_with_state("queued"))["queued"] == pushed
    assert anybody(raw, rush) == {}
    await rush.empty_queue()
    # One that was asked to stop is alive, and takes nothing new.
    assert await ask(rush_worker, "in", rush_worker.worker_id) is True
    assert await rush_worker._net.workers.ask_to_stop([rush_worker.worker_id]) == [rush_worker.worker_id]  # pyright: ignore[reportPrivateUsage]
    assert await ask(rush_worker, "in", rush_worker.worker_id) is False
    raw.hset(keys.standby, rush_worker.worker_id, "client")
    (key,) = await rush.push_tasks([{"x": 2}])
    assert (await rush.keys_with_state("queued"))["queued"] == [key]


@pytest.mark.parametrize("timeout", [0.001, 0.05])
async def test_a_wait_that_ends_leaves_nothing(rush: Rush, far: RushWorker, raw: Any, timeout: float) -> None:
    for _ in range(20):
        assert await far.pop_task(timeout) is None
    assert anybody(raw, rush) == {}
    network = far._net  # pyright: ignore[reportPrivateUsage]
    assert len(network.queue_line) == 0
    assert network.standby._post is None  # pyright: ignore[reportPrivateUsage]
    assert not network.standby._waiting  # pyright: ignore[reportPrivateUsage]
    assert not network.standby._handed  # pyright: ignore[reportPrivateUsage]


async def test_a_task_that_is_handed_over_as_the_wait_ends_is_returned(
    rush: Rush, far: RushWorker, proxy: Proxy, raw: Any
) -> None:
    waiting = await standing(raw, far, timeout=0.3)
    proxy.freeze(up=False)
    (key,) = await rush.push_tasks([{"x": 1}])
    await proxy.seen("EVALSHA", scripts.WAIT.digest, times=2)  # its time is up, and it says so
    proxy.thaw()
    task = await waiting.taken()
    assert task.key == key
    await finish(far, task)


async def test_a_cancelled_wait_puts_back_what_was_handed_over(rush: Rush, far: RushWorker, proxy: Proxy, raw: Any) -> None:
    waiting = await standing(raw, far)
    proxy.freeze(up=False)
    (key,) = await rush.push_tasks([{"x": 1}])
    assert await rush.is_running_task(key) == [True]
    waiting.pop.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting.pop
    proxy.thaw()
    await rush.wait_until(lambda counts: counts.queued == 1, timeout=TIMEOUT)
    task = await far.pop_task(0)
    assert task is not None
    assert (task.key, task.attempt) == (key, 1)
    await finish(far, task)


async def thaw_when_it_says_so(proxy: Proxy) -> None:
    await proxy.seen("EVALSHA", scripts.WAIT.digest, times=2)
    proxy.thaw()


async def test_a_worker_that_leaves_puts_back_what_was_handed_over(rush: Rush, proxy: Proxy, raw: Any) -> None:
    async with RushWorker(rush.network_id, rush.config.at(proxy.url)) as far:
        waiting = await standing(raw, far)
        proxy.freeze(up=False)
        (key,) = await rush.push_tasks([{"x": 1}])
        thawing = asyncio.create_task(thaw_when_it_says_so(proxy))
    await thawing
    assert await waiting.pop is None
    assert (await rush.keys_with_state("queued", "running")) == {"queued": [key], "running": []}
    assert raw.hgetall(NetworkKeys.of(rush.network_id).granted) == {}
    await rush.empty_queue()


@pytest.mark.parametrize("only", ["pubsub", None])
async def test_what_was_told_to_a_broken_connection_is_asked_for(
    rush: Rush, far: RushWorker, proxy: Proxy, raw: Any, only: Any
) -> None:
    waiting = await standing(raw, far)
    proxy.freeze(up=False)
    (key,) = await rush.push_tasks([{"x": 1}])
    proxy.cut_all(only)
    proxy.thaw()
    task = await waiting.taken()
    assert task.key == key
    await finish(far, task)
    await hand(rush, await standing(raw, far))  # and the next one too
    assert await rush.counts() == (0, 0, 2, 0)


async def test_a_worker_that_is_lost_loses_what_it_was_handed(rush: Rush, far: RushWorker, proxy: Proxy, raw: Any) -> None:
    waiting = await standing(raw, far, timeout=1)
    proxy.freeze(up=False)
    keys = await rush.push_tasks([{"x": 1}], retries=1)
    await rush._net.workers.lose([far.worker_id], "lost", Failure("lost", None, "Worker has crashed or was killed"))  # pyright: ignore[reportPrivateUsage]
    assert (await rush.keys_with_state("queued"))["queued"] == keys
    names = NetworkKeys.of(rush.network_id)
    assert raw.hgetall(names.granted) == raw.hgetall(names.standby) == {}
    proxy.thaw()
    task = await waiting.taken()  # it heard of that first
    with pytest.raises(WorkerLostError):
        await far.finish_tasks(task.key, [{"y": 1}])
    await rush.empty_queue()


async def test_after_a_reset_it_stands_by_again(rush: Rush, far: RushWorker, raw: Any) -> None:
    waiting = await standing(raw, far)
    await rush.push_finished_tasks([{"x": 0}], [{"y": 0}])
    await rush.reset(workers=False)
    await waiting.ready()
    (key,) = await rush.push_tasks([{"x": 1}])
    task = await waiting.taken()
    assert task.key == key
    await finish(far, task)


async def test_one_that_is_asked_to_stop_stands_by_no_more(rush: Rush, far: RushWorker, raw: Any) -> None:
    waiting = await standing(raw, far)
    far.stop_requested()
    assert await waiting.pop is None
    assert anybody(raw, rush) == {}


async def test_what_is_not_ours_is_named_and_skipped(
    rush: Rush, far: RushWorker, raw: Any, caplog: pytest.LogCaptureFixture
) -> None:
    waiting = await standing(raw, far)
    channel = channel_of(far)
    with caplog.at_level(logging.ERROR):
        for nonsense in (b"", b"\x00", b"\x00\x01\xc1", b"\x00\x02\x91\x01", b"\xff\xff\x93"):
            raw.execute_command("SPUBLISH", channel, nonsense)
        (key,) = await rush.push_tasks([{"x": 1}])
        task = await waiting.taken()
    assert task.key == key
    assert len([record for record in caplog.records if "is malformed" in record.message]) == 5
    await finish(far, task)


async def test_nobody_stands_by_whose_neighbour_has_stopped_waiting(rush: Rush, rush_server: RushConfig, raw: Any) -> None:
    here = replace(rush_server, response_timeout=11.0)
    async with RushWorker(rush.network_id, here) as one, RushWorker(rush.network_id, here) as other:
        waiting = asyncio.create_task(one.pop_task(None))
        popping = asyncio.create_task(other.pop_task(0.2))
        await wait_until(lambda: anybody(raw, rush))
        assert await popping is None  # and now it does something else in this event loop
        await wait_until(lambda: not anybody(raw, rush))
        one.stop_requested()
        assert await waiting is None


async def test_who_is_about_to_stop_waiting_does_not_stand_by(
    rush: Rush, rush_server: RushConfig, raw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = replace(rush_server, response_timeout=11.0)
    async with RushWorker(rush.network_id, here) as one, RushWorker(rush.network_id, here) as other:
        network = one._net  # pyright: ignore[reportPrivateUsage]
        waits = [asyncio.create_task(one.pop_task(60.0))]
        await wait_until(lambda: len(network.queue_line) == 1)
        monkeypatch.setattr(standby, "WORTH", 100.0)  # as if 60 seconds were the last moments of its wait
        waits.append(asyncio.create_task(other.pop_task(None)))
        await wait_until(lambda: anybody(raw, rush))
        assert list(anybody(raw, rush)) == [other.worker_id.encode()]
        for worker in (one, other):
            worker.stop_requested()
        assert await asyncio.gather(*waits) == [None, None]


async def test_the_answer_to_one_that_leaves_carries_what_it_was_handed(rush: Rush, far: RushWorker) -> None:
    assert await ask(far, "out", far.worker_id) is False
    assert await ask(far, "in", far.worker_id) is True
    (key,) = await rush.push_tasks([{"x": 1}])
    await far.fail_tasks(key)  # which it may not have known of: it goes back, or is failed here
    assert await ask(far, "out", far.worker_id) is False
    assert await ask(far, "in", far.worker_id) is True
    (key,) = await rush.push_tasks([{"x": 2}])
    handed = await ask(far, "in", far.worker_id)
    assert handed is False or (isinstance(handed, Popped) and handed.key == key)
    await rush.empty_queue()


async def test_a_full_round_at_speed_loses_and_doubles_nothing(rush: Rush, rush_server: RushConfig) -> None:
    n, others = 300, [replace(rush_server, response_timeout=11.0 + at) for at in range(3)]
    seen: list[str] = []

    async def serve(config: RushConfig) -> None:
        async with RushWorker(rush.network_id, config) as first, RushWorker(rush.network_id, config) as second:

            async def loop(worker: RushWorker) -> None:
                while (task := await worker.pop_task(None)) is not None:
                    seen.append(task.key)
                    await worker.finish_tasks(task.key, [{"y": 0}])

            await asyncio.gather(loop(first), loop(second))

    serving = [asyncio.create_task(serve(config)) for config in others]
    await rush.wait_for_workers(6, timeout=TIMEOUT)
    keys: list[str] = []
    for at in range(n):
        keys += await rush.push_tasks([{"x": at}])
    await rush.wait_for_tasks(keys, timeout=TIMEOUT)
    assert sorted(seen) == sorted(keys)
    await rush.stop_workers()
    await asyncio.gather(*serving)
    assert await rush.counts() == (0, 0, n, 0)


# what is late, said twice, or never said


class Deaf:
    """A block in which a worker's event loop does not hear what is told: it arrives behind it."""

    def __init__(self, worker: RushWorker) -> None:
        self._transport: Any = worker._net.link.subscription._transport  # pyright: ignore[reportPrivateUsage]
        self._held: list[bytes] = []

    def __enter__(self) -> None:
        self._transport.data_received = self._held.append

    def __exit__(self, *_: object) -> None:
        del self._transport.data_received
        for data in self._held:
            self._transport.data_received(data)


async def test_a_wait_that_is_cancelled_and_begun_again_is_another_one(rush: Rush, far: RushWorker, raw: Any) -> None:
    waiting = await standing(raw, far)
    with Deaf(far):
        (key,) = await rush.push_tasks([{"x": 1}])
        waiting.pop.cancel()
        again = Standing(raw, far)
        await asyncio.sleep(0)
    task = await again.taken()
    assert task.key == key
    # It runs that one, so it stands by for no other.
    (other,) = await rush.push_tasks([{"x": 2}])
    assert await rush.is_running_task(other) == [False]
    await finish(far, task)
    task = await far.pop_task(TIMEOUT)
    assert task is not None
    assert task.key == other
    await finish(far, task)


async def test_cancelled_waits_of_a_busy_event_loop_lose_no_task(rush: Rush, far: RushWorker) -> None:
    n, seen = 300, list[str]()

    async def serve() -> None:
        at = 0
        while not far.terminated:
            at += 1
            try:
                async with asyncio.timeout(at % 7 / 1_000):
                    task = await far.pop_task(None)
            except TimeoutError:
                continue
            if task is not None:
                seen.append(task.key)
                await finish(far, task)

    serving = asyncio.create_task(serve())
    keys: list[str] = []
    for at in range(n):
        keys += await rush.push_tasks([{"x": at}])
    await rush.wait_for_tasks(keys, timeout=TIMEOUT, need_workers=False)
    far.stop_requested()
    await serving
    assert sorted(seen) == sorted(keys)


async def test_what_is_told_late_is_not_taken_for_another_task(rush: Rush, far: RushWorker, raw: Any) -> None:
    assert await (await standing(raw, far, timeout=1)).pop is None
    with Deaf(far):
        for _ in range(2):
            await hand(rush, await standing(raw, far, timeout=1))  # the server says so when its time is up
        waiting = await standing(raw, far)
    await hand(rush, waiting)
    assert await rush.counts() == (0, 0, 3, 0)


async def test_a_late_answer_takes_nothing_from_who_runs_it(
    rush: Rush, rush_worker: RushWorker, proxy: Proxy, raw: Any
) -> None:
    config = replace(rush.config.at(proxy.url), retry_deadline=0.3)
    async with RushWorker(rush.network_id, config) as far:
        waiting = await standing(raw, far)
        # The channel breaks and comes back, and the connection breaks at the question that follows.
        fault = proxy.cut_before(named("EVALSHA", scripts.WAIT.digest))
        proxy.cut_all("pubsub")
        await fault.hit.wait()
        proxy.refuse()
        (key,) = await rush.push_tasks([{"x": 1}])
        task = await waiting.taken()
        assert task.key == key
        with pytest.raises(RushConnectionError):
            await far.finish_tasks(key, [{"y": 1}])  # the question is given up by now, too
        proxy.refuse(False)
        await far.counts()
        assert await rush_worker.pop_task(0) is None
        await finish(far, task)


async def taken_over(rush: Rush, key: str, worker: RushWorker) -> Task:
    """A task that somebody cancels, that is tried again, and that this worker runs then."""
    await rush.cancel_tasks(key)
    await rush.retry_tasks(key)
    task = await worker.pop_task(0)
    assert task is not None
    return task


async def test_a_repeated_answer_gives_away_nothing_that_another_runs(
    rush: Rush, rush_worker: RushWorker, far: RushWorker, proxy: Proxy, raw: Any
) -> None:
    waiting = await standing(raw, far, timeout=0.3)
    proxy.freeze(up=False)
    (key,) = await rush.push_tasks([{"x": 1}])
    proxy.cut_all("pubsub")
    proxy.refuse()
    proxy.thaw()
    lost = proxy.drop_reply(named("EVALSHA", scripts.WAIT.digest))
    await lost.hit.wait()
    task = await taken_over(rush, key, rush_worker)
    proxy.refuse(False)
    assert await waiting.pop is None
    await finish(rush_worker, task)


async def test_a_repeated_pop_gives_away_nothing_that_another_runs(
    rush: Rush, rush_worker: RushWorker, far: RushWorker, proxy: Proxy
) -> None:
    (key,) = await rush.push_tasks([{"x": 1}])
    lost = proxy.drop_reply(named("EVALSHA", scripts.POP.digest))
    popping = asyncio.create_task(far.pop_task(0))
    proxy.refuse()
    await lost.hit.wait()
    task = await taken_over(rush, key, rush_worker)
    proxy.refuse(False)
    assert await popping is None
    await finish(rush_worker, task)


async def test_a_worker_that_leaves_during_an_outage_keeps_nothing(rush: Rush, proxy: Proxy, raw: Any) -> None:
    far = await RushWorker(rush.network_id, replace(rush.config.at(proxy.url), retry_deadline=0.3))
    waiting = await standing(raw, far)
    with Deaf(far):
        (key,) = await rush.push_tasks([{"x": 1}])
        proxy.refuse()
        proxy.cut_all()
    waiting.pop.cancel()
    with pytest.raises(RushConnectionError):
        await far.counts()  # the question whether it was handed a task is given up by now, too
    closing = asyncio.create_task(far.aclose())
    await asyncio.sleep(0)
    proxy.refuse(False)
    await closing
    await rush.wait_until(lambda counts: counts.queued == 1, timeout=TIMEOUT)
    assert (await rush.keys_with_state("queued"))["queued"] == [key]


async def test_who_leaves_gives_back_what_it_never_saw(rush: Rush, far: RushWorker, raw: Any) -> None:
    assert await ask(far, "in", far.worker_id) is True
    keys = await rush.push_tasks([{"x": 1}, {"x": 2}])
    assert await rush.is_running_task(keys) == [True, False]
    await far._net.workers.bye(far.worker_id, "terminated")  # pyright: ignore[reportPrivateUsage]
    assert (await rush.keys_with_state("queued", "running")) == {"queued": keys, "running": []}
    assert raw.hgetall(NetworkKeys.of(rush.network_id).granted) == {}
    async with RushWorker(rush.network_id, rush.config) as other:
        task = await other.pop_task(0)
        assert task is not None
        assert (task.key, task.attempt) == (keys[0], 1)


@pytest.mark.parametrize("entry", ["nobody 1", "nonsense"])
async def test_nothing_is_handed_to_who_does_not_listen(rush: Rush, rush_worker: RushWorker, raw: Any, entry: str) -> None:
    raw.hset(NetworkKeys.of(rush.network_id).standby, rush_worker.worker_id, entry)
    (key,) = await rush.push_tasks([{"x": 1}])
    assert (await rush.keys_with_state("queued"))["queued"] == [key]
    assert anybody(raw, rush) == {}


async def test_who_may_not_tell_queues(rush: Rush, far: RushWorker, raw: Any) -> None:
    raw.acl_setuser(
        *("mute", True, True),
        commands=["+@all"],
        keys=["*"],
        channels=["rush:*:events", "rush:*:control"],
        reset_channels=True,
    )
    try:
        waiting = await standing(raw, far)
        url = str(rush.config.url).replace("unix://", "unix://mute@")
        async with Rush(rush.network_id, replace(rush.config, url=url)) as mute:
            (key,) = await mute.push_tasks([{"x": 1}])
        task = await waiting.taken()
        assert task.key == key
        await finish(far, task)
    finally:
        raw.acl_deluser("mute")
        raw.acl_log_reset()


async def test_the_workers_of_an_event_loop_take_turns(rush: Rush, rush_server: RushConfig) -> None:
    got: Counter[str] = Counter()
    async with contextlib.AsyncExitStack() as stack:
        config = replace(rush_server, response_timeout=11.0)
        workers = [await stack.enter_async_context(RushWorker(rush.network_id, config)) for _ in range(4)]

        async def serve(worker: RushWorker) -> None:
            while (task := await worker.pop_task(None)) is not None:
                got[worker.worker_id] += 1
                await finish(worker, task)

        serving = [asyncio.create_task(serve(worker)) for worker in workers]
        for x in range(12):
            await rush.wait_for_tasks(await rush.push_tasks([{"x": x}]), timeout=TIMEOUT)
        for worker in workers:
            worker.stop_requested()
        await asyncio.gather(*serving)
    assert sorted(got.values()) == [3, 3, 3, 3]


async def test_workers_that_leave_together_listen_no_more(rush: Rush, raw: Any) -> None:
    config = replace(rush.config, response_timeout=11.0)
    workers = [await RushWorker(rush.network_id, config) for _ in range(2)]
    async with Rush(rush.network_id, config):
        channel = channel_of(workers[0])
        waits = [asyncio.create_task(worker.pop_task(TIMEOUT)) for worker in workers]
        await wait_until(lambda: anybody(raw, rush))
        assert raw.pubsub_shardchannels(channel) == [channel.encode()]
        await asyncio.gather(*[worker.aclose() for worker in workers])
        assert await asyncio.gather(*waits) == [None, None]
        await wait_until(lambda: raw.pubsub_shardchannels(channel) == [])


@pytest.mark.parametrize("ends", ["by its time", "by a stop"])
async def test_a_wait_ends_though_the_server_is_away(rush: Rush, far: RushWorker, proxy: Proxy, raw: Any, ends: str) -> None:
    waiting = await standing(raw, far, timeout=0.1 if ends == "by its time" else None)
    proxy.refuse()
    proxy.cut_all()
    if ends == "by a stop":
        far.stop_requested()
    assert await asyncio.wait_for(waiting.pop, 5) is None  # a call is given up after 30 s
    proxy.refuse(False)


async def test_who_leaves_before_it_hears_the_answer_gives_back_what_that_tells(rush: Rush, far: RushWorker) -> None:
    assert await ask(far, "in", far.worker_id) is True
    (key,) = await rush.push_tasks([{"x": 1}])
    assert isinstance(await ask(far, "out", far.worker_id), Popped)
    await far._net.workers.bye(far.worker_id, "terminated")  # pyright: ignore[reportPrivateUsage]
    assert (await rush.keys_with_state("queued", "running")) == {"queued": [key], "running": []}
    await rush.empty_queue()
