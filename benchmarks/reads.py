"""Frames of finished tasks (all, nothing new, one new), and how soon another process sees a finished task."""

from __future__ import annotations

import asyncio
import gc
import json
import statistics
import sys
import time
from collections.abc import Sequence

import msgpack

from benchmarks.measure import resident_memory, rounds
from benchmarks.report import Row, Table, ratio
from benchmarks.tasks import ping
from rush_async import Rush, RushWorker, TasksFinished
from rush_async.store.fields import FIELDS
from rush_async.store.keys import NetworkKeys
from rush_async.wire.link import Link

__all__ = ["fill", "measure_archive_memory", "measure_reads", "measure_seen_elsewhere"]

ELSEWHERE = "Finished here, seen by another process"


async def fill(rush: Rush, n: int) -> None:
    """Pushes finished tasks with two inputs and one output until there are n."""
    for first in range((await rush.counts()).finished, n, 10_000):
        numbers = range(first, min(n, first + 10_000))
        await rush.push_finished_tasks([{"x1": float(at), "x2": 0.5} for at in numbers], [{"y": 0.25} for _ in numbers])


async def measure_reads(table: Table, repetitions: int, most: int) -> None:
    """Reads frames of growing archives."""
    async with Rush() as rush:
        link = await Link.acquire(rush.config)
        increments: dict[int, list[float]] = {}
        for n in (1_000, 10_000, 100_000, 1_000_000):
            if n <= most:
                await fill(rush, n)
                increments[n] = await _measure_size(table, rush, link, n, repetitions if n < 1_000_000 else min(3, repetitions))
        if 1_000_000 in increments:
            name = "an increment at 1,000,000 over one at 100,000"
            n = len(increments[1_000_000])
            table.add(ratio("Reading, growth", name, increments[1_000_000], increments[100_000][:n], goal="<= 1.3"))
        await link.release()
        await rush.reset()


async def _measure_size(table: Table, rush: Rush, link: Link, n: int, repetitions: int) -> list[float]:
    section = f"Reading {n:,} finished tasks"
    key = NetworkKeys.of(rush.network_id).finished

    async def cold() -> int:
        rush.reset_cache()
        assert (await rush.fetch_finished_tasks()).height >= n
        return 1

    records = await link.connection.ask("LRANGE", key, 0, n - 1)
    chunks = [records[first : first + 1_000] for first in range(0, n, 1_000)]
    # Each chunk becomes one array that msgpack decodes in one call.
    packed = [b"\xdd" + (FIELDS * len(chunk)).to_bytes(4, "big") + b"".join(chunk) for chunk in chunks]
    del records, chunks

    async def decode() -> int:
        for chunk in packed:
            msgpack.unpackb(chunk)
        return 1

    found = await rounds({"cold": cold, "decode": decode}, repetitions)
    packed.clear()
    table.add(Row(section, "cold", [1e3 * each for each in found["cold"]], "ms"))
    goal = {"goal": "<= 3"} if n == 100_000 else {}
    table.add(ratio(section, "cold over msgpack decoding the same bytes", found["cold"], found["decode"], **goal))

    async def cached() -> int:
        for _ in range(50):
            await rush.fetch_finished_tasks()
        return 50

    fetches: list[float] = []

    async def one_new() -> int:
        for _ in range(100):
            await rush.push_finished_tasks([{"x1": 1.0, "x2": 0.5}], [{"y": 0.25}])
            begun = time.perf_counter()
            await rush.fetch_finished_tasks()
            fetches.append(time.perf_counter() - begun)
        return 100

    await rush.fetch_finished_tasks()
    found = await rounds({"ping": lambda: ping(link, 300), "cached": cached}, repetitions)
    table.add(ratio(section, "nothing new", found["cached"], found["ping"], "round trips"))
    medians: list[float] = []
    pings: list[float] = []
    for _ in range(repetitions):
        fetches.clear()
        pings.append((await rounds({"ping": lambda: ping(link, 300)}, 1))["ping"][0])
        await one_new()
        medians.append(statistics.median(fetches))
    goal = {"goal": "<= 8"} if n == 100_000 else {}
    table.add(ratio(section, "one new", medians, pings, "round trips", **goal))
    if n >= 100_000:
        fetches.clear()
        gc.collect()
        for _ in range(20):
            await one_new()
        at_99 = statistics.quantiles(fetches, n=100)[98]
        table.add(Row(section, "p99 of 2,000 increments over their median", [at_99 / statistics.median(fetches)], "x", "<= 20"))
    return medians


async def measure_archive_memory(table: Table, repetitions: int, sizes: Sequence[int]) -> None:
    """The memory of a finished task in a process that has read it."""
    async with Rush() as rush:
        for n in sizes:
            await fill(rush, n)
            found: list[float] = []
            for _ in range(repetitions):
                process = await asyncio.create_subprocess_exec(*_elsewhere("memory", rush, n), stdout=asyncio.subprocess.PIPE)
                found.append(float((await process.communicate())[0]) / n)
            table.add(Row("The archive", f"memory a row, of {n:,}", found, "bytes", note="two inputs, one output"))
        await rush.reset()


def _elsewhere(what: str, rush: Rush, n: int) -> tuple[str, ...]:
    """The command line that runs this module in another process."""
    return (sys.executable, "-m", "benchmarks.reads", what, rush.network_id, str(rush.config.url), str(n))


async def measure_seen_elsewhere(table: Table, repetitions: int, n: int) -> None:
    """The time from the call of `finish_tasks` until another process has the task, from an event, and its row, from a frame."""
    async with Rush() as rush:
        link = await Link.acquire(rush.config)
        medians: dict[str, list[float]] = {"task": [], "frame": []}
        late: list[float] = []
        pings: list[float] = []
        for _ in range(repetitions):
            beside: list[float] = []
            for how in medians:
                process = await asyncio.create_subprocess_exec(*_elsewhere(how, rush, n), stdout=asyncio.subprocess.PIPE)
                assert process.stdout is not None
                await process.stdout.readline()  # it is subscribed
                called: dict[str, float] = {}
                async with RushWorker(rush.network_id, rush.config) as worker:
                    for at in range(n):
                        (key,) = await worker.push_running_tasks([{"x1": float(at), "x2": 0.5}])
                        called[key] = time.perf_counter()
                        await worker.finish_tasks(key, [{"y": 0.25}])
                        await process.stdout.readline()  # it has seen it
                        # After each task, because a processor that slept for less time wakes faster.
                        begun = time.perf_counter()
                        await ping(link, 1)
                        beside.append(time.perf_counter() - begun)
                seen: dict[str, float] = json.loads(await process.stdout.readline())
                await process.wait()
                taken = sorted(seen[key] - begun for key, begun in called.items())
                medians[how].append(statistics.median(taken))
                if how == "task":
                    late.append(taken[int(len(taken) * 0.99)])
            pings.append(statistics.median(beside))
        await link.release()
        await rush.reset()
    table.add(
        Row(ELSEWHERE, "finish_tasks called to its task decoded there, p50", [1e3 * each for each in medians["task"]], "ms")
    )
    table.add(Row(ELSEWHERE, "a bare round trip beside each", [1e6 * each for each in pings], "us"))
    table.add(Row(ELSEWHERE, "the same, p99", [1e3 * each for each in late], "ms"))
    table.add(ratio(ELSEWHERE, "p50 in round trips", medians["task"], pings, "round trips", goal="<= 7"))
    table.add(ratio(ELSEWHERE, "to its row in a frame there", medians["frame"], pings, "round trips"))


async def listen(how: str, network_id: str, url: str, n: int) -> None:
    """The other process: records when it saw each task. All processes of a machine share this clock."""
    seen: dict[str, float] = {}
    async with Rush(network_id, url) as rush:
        if how == "task":
            async with rush.events(TasksFinished, results=True) as events:
                print("listening", flush=True)
                while len(seen) < n:
                    event = await anext(aiter(events))
                    assert isinstance(event, TasksFinished)
                    seen |= dict.fromkeys([task.key for task in event.tasks or ()], time.perf_counter())
                    print(len(seen), flush=True)
        else:
            await rush.fetch_new_tasks()
            print("listening", flush=True)
            while len(seen) < n:
                frame = await rush.fetch_new_tasks(timeout=10)
                seen |= dict.fromkeys(frame["keys"], time.perf_counter())
                print(len(seen), flush=True)
    print(json.dumps(seen), flush=True)


async def read_all(network_id: str, url: str, n: int) -> None:
    """The other process: prints by how many bytes it has grown after it has read all tasks."""
    async with Rush(network_id, url) as rush:
        await rush.fetch_tasks_with_state("running")  # imports polars
        before = resident_memory()
        frame = await rush.fetch_finished_tasks()
        assert frame.height == n
        print(resident_memory() - before)


if __name__ == "__main__":
    what, rest = sys.argv[1], (sys.argv[2], sys.argv[3], int(sys.argv[4]))
    asyncio.run(read_all(*rest) if what == "memory" else listen(what, *rest))
