"""Tasks proposed and reported, beside a bare round trip, redis-py's pool, the server's ceiling and unguarded scripts."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from unittest import mock

import polars as pl

from benchmarks.measure import facts, rounds, usage
from benchmarks.pooled import Pooled, PooledWorker
from benchmarks.replay import record_and_replay
from benchmarks.report import Row, Table, ratio
from rush_async import Rush, RushConfig, RushWorker
from rush_async.store.keys import NetworkKeys
from rush_async.store.tasks import FINISH, PUSH
from rush_async.wire.link import Link
from rush_async.wire.transport import pack

__all__ = ["COROUTINES", "measure_counters", "measure_fetching_loop", "measure_tasks", "ping", "subscriber"]

COROUTINES = 64
ONE, MANY, LOOP = "One worker, one task at a time", f"{COROUTINES} coroutines in one process", "Counters, without I/O"

# The same transitions without guards: no call numbers, no epoch, no check that the worker is alive, no counts in the reply.
_UNGUARDED_PUSH = """
local time = redis.call('TIME')
for i = 1, #ARGV, 2 do redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1] .. time[1]) end
redis.call('SPUBLISH', KEYS[1], cmsgpack.pack(ARGV))
return #ARGV / 2"""
_UNGUARDED_FINISH = """
local time = redis.call('TIME')
for i = 1, #ARGV, 2 do
  local record = redis.call('HGET', KEYS[2], ARGV[i])
  redis.call('HDEL', KEYS[2], ARGV[i])
  redis.call('RPUSH', KEYS[3], record .. ARGV[i + 1] .. time[1])
end
redis.call('SPUBLISH', KEYS[1], cmsgpack.pack(ARGV))
return #ARGV / 2"""


async def ping(link: Link, n: int) -> int:
    """Makes n round trips over the same transport, one after the other."""
    for _ in range(n):
        await link.connection.ask("PING")
    return n


async def propose_and_report(rush: RushWorker, n: int) -> int:
    """Pushes and finishes n tasks with two inputs and one output, one after the other."""
    for at in range(n):
        keys = await rush.push_running_tasks([{"x1": float(at), "x2": 0.5}])
        await rush.finish_tasks(keys, [{"y": 0.25}])
    return n


async def propose_and_report_pooled(worker: PooledWorker, n: int) -> int:
    """Does the same through redis-py."""
    for at in range(n):
        key = await worker.push_running_task({"x1": float(at), "x2": 0.5})
        await worker.finish_task(key, {"y": 0.25})
    return n


async def together(one: Callable[[int], Awaitable[int]]) -> int:
    """Runs 64 coroutines concurrently. Returns how many units they did."""
    return sum(await asyncio.gather(*[one(at) for at in range(COROUTINES)]))


@contextmanager
def subscriber(rush: Rush) -> Generator[socket.socket]:
    """A raw connection that is subscribed to the events of a network."""
    channel = NetworkKeys.of(rush.network_id).events
    with socket.socket(socket.AF_UNIX) as raw:
        raw.connect(str(rush.config.url).removeprefix("unix://"))
        raw.sendall(pack(("SSUBSCRIBE", channel)))
        yield raw


@asynccontextmanager
async def network() -> AsyncIterator[tuple[Rush, list[RushWorker], Link]]:
    """A new network with 64 workers, and a subscriber that discards what it reads."""
    # No heartbeat may come while the replay restores the database.
    async with Rush(config=RushConfig(heartbeat_period=600, heartbeat_expire=1200)) as rush:
        workers = [await RushWorker(rush.network_id, rush.config) for _ in range(COROUTINES)]
        link = await Link.acquire(rush.config)
        with subscriber(rush) as reader:
            loop = asyncio.get_running_loop()
            loop.add_reader(reader, reader.recv, 1 << 16)
            yield rush, workers, link
            loop.remove_reader(reader)
        for worker in workers:
            await worker.aclose()
        await link.release()
        await rush.reset()


async def measure_tasks(table: Table, repetitions: int, scale: int) -> None:
    """Tasks by one worker and by 64 coroutines, and the cost of a task on the server."""
    async with network() as (rush, workers, link):
        await propose_and_report(workers[0], 50)
        pairs = [await _alternate(link, workers[0], 30 * scale) for _ in range(repetitions)]
        pings, ones = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        table.add(Row(ONE, "a bare round trip (PING on the same transport)", [1e6 * each for each in pings], "us"))
        table.add(Row(ONE, "a task proposed and reported", [1e6 * each for each in ones], "us"))
        table.add(ratio(ONE, "the same in round trips", ones, pings, "round trips", goal="<= 4.2"))

        pooled = Pooled(workers[0], COROUTINES)
        await pooled.open()
        callers = [PooledWorker(pooled) for _ in workers]
        ours = 20 * scale
        found = await rounds(
            {
                "ours": lambda: together(lambda at: propose_and_report(workers[at], ours)),
                "pooled": lambda: together(lambda at: propose_and_report_pooled(callers[at], 3 * scale)),
            },
            repetitions,
        )
        await pooled.aclose()
        table.add(Row(MANY, "tasks proposed and reported", [1 / each for each in found["ours"]], "/s"))
        table.add(Row(MANY, "redis-py's pool, the same scripts, a call a task", [1 / each for each in found["pooled"]], "/s"))
        table.add(ratio(MANY, "ours over redis-py's pool", found["pooled"], found["ours"], goal=">= 5"))

        await _measure_ceiling(table, rush, workers, repetitions, scale)
        await _measure_guards(table, rush, link, repetitions)

        n = (await rush.counts()).finished
        used = await link.connection.ask("MEMORY", "USAGE", f"rush:{{{rush.network_id}}}:finished", "SAMPLES", "0")
        table.add(Row(MANY, "server memory a finished task", [used / n], "bytes", "<= 130", f"of {n:,}"))
        await _measure_parts(table, link, workers, repetitions, scale)


async def _alternate(link: Link, worker: RushWorker, n: int) -> tuple[float, float]:
    """Seconds of a round trip and of a task, in short turns: how fast a processor wakes depends on how long it slept before."""
    seconds = [0.0, 0.0]
    for _ in range(n):
        begun = time.perf_counter()
        await ping(link, 10)
        middle = time.perf_counter()
        await propose_and_report(worker, 5)
        seconds[0] += middle - begun
        seconds[1] += time.perf_counter() - middle
    return seconds[0] / n / 10, seconds[1] / n / 5


async def _measure_parts(table: Table, link: Link, workers: list[RushWorker], repetitions: int, scale: int) -> None:
    """The CPU time of this process and of the server for a task, the rest of its duration, and its bytes on the network."""
    programs: dict[str, Callable[[], Awaitable[int]]] = {
        ONE: lambda: propose_and_report(workers[0], 150 * scale),
        MANY: lambda: together(lambda at: propose_and_report(workers[at], 20 * scale)),
    }
    for section, program in programs.items():
        found: dict[str, list[float]] = {"our CPU": [], "the server's CPU": [], "in all": []}
        travelled: list[float] = []
        for _ in range(repetitions):
            before, own, begun = await usage(link), time.process_time(), time.perf_counter()
            n = await program()
            found["in all"].append((time.perf_counter() - begun) / n * 1e6)
            found["our CPU"].append((time.process_time() - own) / n * 1e6)
            used = await usage(link) - before
            found["the server's CPU"].append(used.cpu / n * 1e6)
            travelled.append((used.received + used.sent) / n)
        if section == ONE:  # client and server wait for each other, so the rest is two round trips between them
            parts = zip(found["in all"], found["our CPU"], found["the server's CPU"], strict=True)
            found["sockets and waking up"] = [whole - ours - theirs for whole, ours, theirs in parts]
        table.add(*[Row("Where the time of a task goes", f"{section}: {name}", each, "us") for name, each in found.items()])
        table.add(Row("Where the time of a task goes", f"{section}: what travels, both ways", travelled, "bytes"))


async def _measure_ceiling(table: Table, rush: Rush, workers: list[RushWorker], repetitions: int, scale: int) -> None:
    """The throughput of the server alone, when it gets the bytes of a run again over a raw socket."""
    n = 20 * scale

    async def program() -> None:
        await together(lambda at: propose_and_report(workers[at], n))

    merged: list[tuple[float, float]] = []
    single: list[tuple[float, float]] = []
    for _ in range(repetitions):
        merged.append(await record_and_replay(rush, program))
        with ExitStack() as stack:
            for script in (PUSH, FINISH):
                stack.enter_context(mock.patch.object(script, "merges", False))
            single.append(await record_and_replay(rush, program))
    tasks = n * COROUTINES
    for name, pairs in (("a call a task", single), ("calls merged", merged)):
        table.add(Row(MANY, f"{name}: tasks proposed and reported", [tasks / ours for ours, _ in pairs], "/s"))
        table.add(Row(MANY, f"{name}: the server's ceiling", [tasks / alone for _, alone in pairs], "/s"))
    rate = [ours for ours, _ in merged]
    name = "of the server's ceiling"
    table.add(ratio(MANY, f"share {name}, a call a task", [alone for _, alone in single], rate, goal=">= 1"))
    table.add(ratio(MANY, f"share {name}, calls merged", [alone for _, alone in merged], rate, goal=">= 0.25"))


async def _measure_guards(table: Table, rush: Rush, link: Link, repetitions: int) -> None:
    """The server's own time for a task, with all guards and without any."""
    ask = link.connection.ask
    unguarded = [await ask("SCRIPT", "LOAD", text) for text in (_UNGUARDED_PUSH, _UNGUARDED_FINISH)]
    keys = [f"rush:{{{rush.network_id}}}:{name}" for name in ("bare:events", "bare:running", "bare:finished")]

    async def server_us() -> float:
        return float((await facts(link, "commandstats"))["cmdstat_evalsha"].partition("usec=")[2].partition(",")[0])

    with_all: list[float] = []
    without: list[float] = []
    async with RushWorker(rush.network_id, rush.config) as worker:
        for _ in range(repetitions):
            await ask("CONFIG", "RESETSTAT")
            for _ in range(20):
                tasks = await worker.push_running_tasks([{"x1": 0.25, "x2": 0.5}] * COROUTINES)
                await worker.finish_tasks(tasks, [{"y": 0.25}] * COROUTINES)
            with_all.append(await server_us())
            await ask("CONFIG", "RESETSTAT")
            for _ in range(20):
                await ask("EVALSHA", unguarded[0], 3, *keys, *[word for key in tasks for word in (key, b"x" * 40)])
                await ask("EVALSHA", unguarded[1], 3, *keys, *[word for key in tasks for word in (key, b"x" * 10)])
            without.append(await server_us())
    await ask("DEL", *keys[1:])
    table.add(Row(MANY, f"server time a task in calls of {COROUTINES}", [us / 20 / COROUTINES for us in with_all], "us"))
    table.add(ratio(MANY, "guarded over unguarded scripts: the price of safety", with_all, without))


async def measure_fetching_loop(table: Table, repetitions: int, scale: int) -> None:
    """64 coroutine workers that each push, finish and fetch, ours and redis-py's. Each must find what it has just finished."""
    name = "the loop of push, finish and fetch"
    ours: list[float] = []
    others: list[float] = []
    seen: list[tuple[str, pl.DataFrame]] = []  # what a worker finished and the frame that it read then
    for _ in range(repetitions):
        async with network() as (_, workers, _):

            async def loop(at: int, workers: list[RushWorker] = workers) -> int:
                for _ in range(10 * scale):
                    keys = await workers[at].push_running_tasks([{"x1": 0.25, "x2": 0.5}])
                    await workers[at].finish_tasks(keys, [{"y": 0.25}])
                    seen.append((keys[0], await workers[at].fetch_finished_tasks()))
                return 10 * scale

            begun = time.perf_counter()
            n = await together(loop)
            ours.append(n / (time.perf_counter() - begun))
        async with network() as (_, workers, _):
            # The first task creates the epoch, which the pooled workers need.
            await workers[0].push_finished_tasks([{"x1": 0.25, "x2": 0.5}], [{"y": 0.25}])
            pooled = Pooled(workers[0], COROUTINES)
            await pooled.open()

            async def pooled_loop(at: int, pooled: Pooled = pooled) -> int:
                worker = PooledWorker(pooled)
                for _ in range(scale):
                    key = await worker.push_running_task({"x1": 0.25, "x2": 0.5})
                    await worker.finish_task(key, {"y": 0.25})
                    seen.append((key, await pooled.fetch_finished_tasks()))
                return scale

            begun = time.perf_counter()
            n = await together(pooled_loop)
            others.append(n / (time.perf_counter() - begun))
            await pooled.aclose()
        assert all(key in frame["keys"].tail(4 * COROUTINES) for key, frame in seen)
        seen.clear()
    table.add(Row(MANY, f"{name}: tasks", ours, "/s"))
    table.add(Row(MANY, f"{name}: redis-py's pool", others, "/s"))
    table.add(ratio(MANY, f"{name}: ours over redis-py's pool", ours, others, goal=">= 8"))


async def measure_counters(table: Table, repetitions: int) -> None:
    """The time to read a counter, and to read a plain attribute."""

    class Plain:
        """An object with a plain attribute."""

        n_finished_tasks = 0

    def seconds(owner: Rush | Plain) -> float:
        begun = time.perf_counter()
        for _ in range(100_000):
            owner.n_finished_tasks  # noqa: B018 - the read is measured
        return time.perf_counter() - begun

    async with Rush() as rush:
        await rush.wait_until(lambda _: True)
        plain = Plain()
        pairs = [(seconds(rush), seconds(plain)) for _ in range(repetitions)]
        table.add(Row(LOOP, "reading n_finished_tasks", [counter * 1e4 for counter, _ in pairs], "ns"))
        times = "over a plain attribute, loop included"
        table.add(ratio(LOOP, times, [one for one, _ in pairs], [other for _, other in pairs], goal="<= 10"))
        await rush.reset()
