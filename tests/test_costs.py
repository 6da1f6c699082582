"""What fixed programs cost, counted in calls, commands, bytes and connections. The benchmarks measure times."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
import pytest_asyncio

from rush_async import Counts, Rush, RushConfig, RushWorker, TasksFinished, TasksStarted
from rush_async.store.keys import NetworkKeys
from rush_async.store.messages import EventMessage
from rush_async.testing import wait_until
from rush_async.wire.transport import pack
from tests.proxy import Proxy

XS, YS = {"x1": 0.25, "x2": 0.5}, {"y": 0.75}


class Costs:
    """Counts the commands that the server received since `restart`."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self.restart()

    def restart(self) -> None:
        self._raw.config_resetstat()

    @property
    def commands(self) -> Counter[str]:
        """Commands of clients by name, without those that scripts issue."""
        stats = self._raw.info("commandstats")
        own = ("cmdstat_config|resetstat", "cmdstat_info")
        inside = {
            "cmdstat_" + name
            for name in ("hget", "hset", "hdel", "hlen", "hincrby", "rpush", "time", "spublish", "hexists", "zadd", "zrange")
        }
        return Counter({name[8:]: each["calls"] for name, each in stats.items() if name not in inside and name not in own})

    @property
    def bytes_in(self) -> int:
        """Bytes that all clients sent."""
        return self._raw.info("stats")["total_net_input_bytes"]

    @property
    def bytes_out(self) -> int:
        """Bytes that all clients received."""
        return self._raw.info("stats")["total_net_output_bytes"]


@pytest.fixture
def costs(raw: Any) -> Costs:
    return Costs(raw)


@pytest_asyncio.fixture
async def lone_worker(rush_server: RushConfig) -> AsyncIterator[RushWorker]:
    """A worker of a network that no manager follows."""
    async with RushWorker("lone", rush_server) as worker:
        yield worker
    async with Rush("lone", rush_server) as rush:
        await rush.reset()


async def propose_and_report(worker: RushWorker, n: int) -> None:
    for _ in range(n):
        (key,) = await worker.push_running_tasks([XS])
        await worker.finish_tasks(key, [YS])


async def in_blocks(worker: RushWorker, n: int) -> None:
    for _ in range(n):
        async with worker.task(XS) as task:
            task.ys = YS


@pytest.mark.parametrize("program", [propose_and_report, in_blocks])
async def test_a_task_of_one_worker_takes_two_calls_of_few_bytes(
    lone_worker: RushWorker, costs: Costs, program: Callable[[RushWorker, int], Any]
) -> None:
    await program(lone_worker, 3)
    costs.restart()
    await program(lone_worker, 50)
    commands = costs.commands
    assert commands["evalsha"] == 100
    assert not commands.keys() - {"evalsha", "hmget", "llen"}  # the scripts read with the last two
    assert costs.bytes_in / 50 <= 1_900
    assert costs.bytes_out / 50 <= 260


async def test_a_manager_that_follows_costs_one_message_a_call(
    rush: Rush, rush_worker: RushWorker, elsewhere: Rush, costs: Costs
) -> None:
    """`elsewhere` and the worker's own event loop: two that follow."""
    for client in (rush, elsewhere):
        await wait_until(lambda client=client: client._net.feed.is_watching)  # pyright: ignore[reportPrivateUsage]
    costs.restart()
    await propose_and_report(rush_worker, 50)
    await wait_until(lambda: elsewhere.n_finished_tasks == 50)
    assert not costs.commands.keys() - {"evalsha", "hmget", "llen"}
    assert costs.bytes_out / 50 <= 260 + 2 * 240


async def test_opening_a_manager_waits_for_two_calls_and_not_for_its_subscription(rush: Rush, proxy: Proxy) -> None:
    async with Rush(rush.network_id, rush.config.at(proxy.url)) as far:
        feed = far._net.feed  # pyright: ignore[reportPrivateUsage]
        assert feed.following is not None
        assert not feed.is_watching
        assert proxy.count("EVALSHA") == 1
        assert proxy.count("SPUBLISH") == 1
        assert proxy.count("SSUBSCRIBE") == 0
        await wait_until(lambda: feed.is_watching)


async def test_tasks_of_many_coroutines_are_merged(lone_worker: RushWorker, costs: Costs) -> None:
    async with contextlib.AsyncExitStack() as stack:
        network_id, config = lone_worker.network_id, lone_worker.config
        workers = [await stack.enter_async_context(RushWorker(network_id, config)) for _ in range(64)]
        await asyncio.gather(*[propose_and_report(worker, 1) for worker in workers])
        costs.restart()
        await asyncio.gather(*[propose_and_report(worker, 10) for worker in workers])
        # 1,280 calls. How many go together depends on when replies come: 64 at best, 16 on a slow machine.
        assert costs.commands["evalsha"] <= 120
        assert costs.bytes_in / 640 <= 330
        assert costs.bytes_out / 640 <= 60


async def test_a_bulk_takes_one_call_per_thousand_tasks(rush: Rush, rush_worker: RushWorker, costs: Costs) -> None:
    await rush.counts()
    costs.restart()
    keys = await rush_worker.push_running_tasks([XS] * 10_000)
    assert costs.commands["evalsha"] == 10
    await rush_worker.finish_tasks(keys, [YS] * 10_000)
    assert costs.commands["evalsha"] == 10 + 20  # a call ends fewer tasks, because ending takes the server longer


async def test_a_push_with_points_takes_no_further_call_and_few_bytes(rush_worker: RushWorker, costs: Costs) -> None:
    async def push(n: int, unique: bool) -> float:
        costs.restart()
        for x in range(n):
            (key,) = await rush_worker.push_running_tasks([{"x1": n, "x2": x}], unique=unique)
            assert key is not None
        assert costs.commands["evalsha"] == n
        return costs.bytes_in / n

    await push(5, True)
    without, with_points = await push(50, False), await push(50, True)
    assert with_points - without <= 20
    costs.restart()
    await rush_worker.push_running_tasks([{"x1": x, "x2": None} for x in range(2_000)], unique=True)
    assert costs.commands["evalsha"] == 2


async def test_fetching_again_reads_only_what_is_new(rush: Rush, costs: Costs) -> None:
    await rush.push_finished_tasks([XS] * 10_000, [YS] * 10_000)
    costs.restart()
    assert (await rush.fetch_finished_tasks()).height == 10_000
    commands = costs.commands
    assert commands["lrange"] <= 7
    assert costs.bytes_out <= 10_000 * 110
    costs.restart()
    for _ in range(10):
        assert (await rush.fetch_finished_tasks()).height == 10_000
    assert costs.commands == {"exec": 10, "multi": 10, "hmget": 10, "llen": 10, "lrange": 10}
    assert costs.bytes_out <= 10 * 350
    await rush.push_finished_tasks([XS], [YS])
    costs.restart()
    assert (await rush.fetch_finished_tasks()).height == 10_001
    assert costs.commands["lrange"] == 1
    assert costs.bytes_out <= 1_000


async def test_clients_that_fetch_in_one_tick_share_one_read(rush: Rush, costs: Costs) -> None:
    await rush.push_finished_tasks([XS] * 10, [YS] * 10)
    await rush.fetch_finished_tasks()
    costs.restart()
    frames = await asyncio.gather(*[rush.fetch_finished_tasks() for _ in range(64)])
    assert {frame.height for frame in frames} == {10}
    assert costs.commands["exec"] == 1


async def test_results_of_events_are_read_once(rush: Rush, rush_worker: RushWorker, costs: Costs) -> None:
    keys = await rush_worker.push_running_tasks([XS] * 11)
    async with rush.events(TasksFinished, results=True) as events:

        async def told() -> list[str]:
            event = await anext(events)
            assert isinstance(event, TasksFinished)
            return [task.key for task in event.tasks or ()]

        await rush_worker.finish_tasks(keys[0], [YS])
        costs.restart()
        assert await told() == keys[:1]
        assert costs.commands["exec"] == 1
        for key in keys[1:]:
            await rush_worker.finish_tasks(key, [YS])
        await rush.fetch_finished_tasks()
        costs.restart()
        for key in keys[1:]:
            assert await told() == [key]
        assert costs.commands["exec"] == 0


async def test_all_clients_of_an_event_loop_share_two_connections(rush: Rush, raw: Any) -> None:
    before = raw.info("clients")["connected_clients"]
    async with contextlib.AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(RushWorker(rush.network_id, rush.config)) for _ in range(100)]
        for at in range(20):
            await stack.enter_async_context(Rush(f"net{at}", rush.config))
        await asyncio.gather(*[propose_and_report(worker, 2) for worker in workers])
        async with rush.events():
            assert raw.info("clients")["connected_clients"] <= before + 2  # the subscription and the heartbeat


async def test_subscribers_that_stop_reading_are_disconnected_before_they_fill_the_server(
    rush: Rush, rush_worker: RushWorker, raw: Any
) -> None:
    """One of them is the manager: this event loop is blocked while the events are published."""
    channel = NetworkKeys.of(rush.network_id).events
    path = str(rush.config.url).removeprefix("unix://")
    at = datetime(2020, 1, 1, tzinfo=UTC)
    started = TasksStarted(network_id=rush.network_id, seq=1, at=at, keys=("x" * 1_000,), worker_id="w")
    message = EventMessage.of(1, Counts(), 0, [started]).encode()  # of an epoch that is over
    with contextlib.ExitStack() as stack:
        for _ in range(8):
            stalled = stack.enter_context(socket.socket(socket.AF_UNIX))
            stalled.connect(path)
            stalled.sendall(pack(("SSUBSCRIBE", channel)))
        await wait_until(lambda: raw.execute_command("PUBSUB", "SHARDNUMSUB", channel)[1] == 9)
        subscription = rush._net.link.subscription  # pyright: ignore[reportPrivateUsage]
        transport = subscription._transport  # pyright: ignore[reportPrivateUsage]
        most = 0
        for _ in range(20):  # 5 MB of events for each of them
            raw.eval("for _ = 1, 250 do redis.call('SPUBLISH', KEYS[1], ARGV[1]) end", 1, channel, message)
            most = max(most, raw.info("memory")["mem_clients_normal"])
        assert raw.execute_command("PUBSUB", "SHARDNUMSUB", channel)[1] == 0
    assert most <= 9 * 5 * 2**20
    assert raw.info("memory")["mem_clients_normal"] <= 2**20
    # The manager reads on: it was disconnected, and knows what it missed.
    raw.eval("redis.call('HSET', KEYS[1], 'a', 'b')", 1, NetworkKeys.of(rush.network_id).failed)
    await wait_until(lambda: rush.n_failed_tasks == 1)
    assert subscription._transport is not transport  # pyright: ignore[reportPrivateUsage]


async def test_a_finished_task_takes_few_bytes_of_the_server(rush_worker: RushWorker, raw: Any) -> None:
    keys = await rush_worker.push_running_tasks([{"x1": at / 7, "x2": 0.5} for at in range(5_000)])
    await rush_worker.finish_tasks(keys, [{"y": at / 3} for at in range(5_000)])
    used = raw.memory_usage(NetworkKeys.of(rush_worker.network_id).finished, samples=0)
    assert used / 5_000 <= 130
