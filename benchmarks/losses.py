"""How soon the tasks of a killed process fail, what idle workers cost, and rounds of kills in which no task may be lost.

python -m benchmarks.losses [--quick]
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import random
import signal
import sys
import time

from benchmarks.measure import facts, resident_memory
from benchmarks.report import Row, Table
from rush_async import Processes, Rush, RushWorker
from rush_async.wire.link import Link

__all__ = ["measure_deaths", "measure_idle"]

N_TASKS = 500


async def hold(rush: RushWorker, n: int = 1) -> None:
    """Runs n tasks that never end."""
    await rush.push_running_tasks([{"x": x} for x in range(n)])
    await asyncio.Event().wait()


async def serve(rush: RushWorker) -> None:
    """Finishes the tasks of the queue."""
    async for task in rush.tasks():
        async with task:
            task.ys = {"y": task.xs["x"]}


async def pids(rush: Rush) -> dict[str, int]:
    """The process ids of the running workers, by worker id."""
    info = await rush.worker_info()
    info = info.filter(info["state"] == "running")
    return dict(zip(info["worker_id"], info["pid"], strict=True))


# a death


WATCHER = """
import asyncio, sys, time
from rush_async import Rush, TasksFailed

async def main():
    async with Rush(sys.argv[1], sys.argv[2]) as rush, rush.events(TasksFailed) as events:
        print("ready", flush=True)
        async for event in events:
            print(time.time(), len(event.keys), flush=True)

asyncio.run(main())
"""


async def measure_deaths(table: Table, repetitions: int) -> None:
    """The time from the kill of a process until another process has seen all its tasks fail."""
    for n_running in (1, 1_000):
        seconds = await _measure_death(repetitions, n_running)
        name = f"a process of {n_running:,} running task{'s' * (n_running > 1)} killed to all of them failed elsewhere"
        table.add(Row("Deaths", name, seconds, "s", "<= 0.2"))


async def _measure_death(repetitions: int, n_running: int) -> list[float]:
    async with Rush() as rush:
        assert rush.config.url is not None
        words = (sys.executable, "-c", WATCHER, rush.network_id, rush.config.url)
        watcher = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
        assert watcher.stdout is not None
        await watcher.stdout.readline()
        seconds: list[float] = []
        for _ in range(repetitions):
            (worker_id,) = await rush.start_workers(hold, 1, on=Processes(), n=n_running)
            await rush.wait_until(lambda counts: counts.running == n_running)
            pid = (await pids(rush))[worker_id]
            killed_at = time.time()
            os.kill(pid, signal.SIGKILL)
            n = 0
            while n < n_running:
                seen_at, n_keys = (await watcher.stdout.readline()).split()
                n += int(n_keys)
            seconds.append(float(seen_at) - killed_at)
            await rush.join_workers(worker_id, check=False)
        watcher.kill()
        await watcher.wait()
        await rush.reset()
    return seconds


# rounds


async def measure_rounds(rounds: int, retries: int) -> None:
    """Kills one of four processes that serve a queue at a random moment, replaces it, and checks that every task ends once."""
    chance = random.Random(retries)
    begun = time.perf_counter()
    n_failed = 0
    async with Rush() as rush:
        workers = await rush.start_workers(serve, 4, on=Processes())
        await rush.wait_for_workers(4)
        for at in range(rounds):
            await rush.push_tasks([{"x": x} for x in range(N_TASKS)], retries=retries)
            moment = at * N_TASKS + chance.randrange(N_TASKS)
            await rush.wait_until(lambda counts, moment=moment: counts.finished + counts.failed >= moment)
            running = await pids(rush)
            victim = chance.choice(sorted(running))
            workers.remove(victim)
            os.kill(running[victim], signal.SIGKILL)
            workers += await rush.start_workers(serve, 1, on=Processes())
            counts = await rush.wait_until(lambda counts: counts.queued == counts.running == 0, timeout=60)
            assert counts.finished + counts.failed == (at + 1) * N_TASKS, counts
            n_failed = counts.failed
        finished = (await rush.fetch_finished_tasks())["keys"].to_list()
        failed = (await rush.fetch_failed_tasks())["keys"].to_list()
        assert len(set(finished)) == len(finished)
        assert len(set(finished) | set(failed)) == len(finished) + len(failed) == rounds * N_TASKS
        assert not (retries and failed)
        await rush.reset()
    took = time.perf_counter() - begun
    text = f"{rounds} rounds, retries={retries}: {rounds * N_TASKS:,} tasks ended once each, {n_failed} as lost"
    print(f"{text}  ({took:,.0f} s)", flush=True)


# idle workers


async def wait_and_finish(rush: RushWorker) -> None:
    """Waits for tasks without a timeout and finishes them."""
    while (task := await rush.pop_task(timeout=None)) is not None:
        await rush.finish_tasks(task.key, [{"y": 1}])


async def scripts_called(link: Link) -> int:
    """How many scripts the server has run."""
    return int((await facts(link, "commandstats"))["cmdstat_evalsha"].split(",")[0].removeprefix("calls="))


async def measure_idle(table: Table, n: int) -> None:
    """The cost of many workers in one process that wait for tasks."""
    section = f"{n:,} idle coroutine workers in one process"
    async with Rush() as rush:
        link = await Link.acquire(rush.config)
        period = rush.config.heartbeat_period
        before, begun = resident_memory(), time.perf_counter()
        await rush.start_workers(wait_and_finish, n)
        await rush.wait_for_workers(n)
        table.add(Row(section, "started", [time.perf_counter() - begun], "s"))
        table.add(Row(section, "memory a worker", [(resident_memory() - before) / n / 1024], "KiB"))
        await asyncio.sleep(period)  # until the heartbeat has connected
        clients = (await link.connection.ask("CLIENT", "LIST")).decode().splitlines()
        table.add(Row(section, "connections", [len(clients)], "", "<= 3"))
        n_called = await scripts_called(link)
        await asyncio.sleep(4 * period)
        beats = (await scripts_called(link) - n_called) / 4
        table.add(Row(section, f"scripts called in a period of {period:g} s", [beats], "", "<= 1.25", "one heartbeat in each"))
        n_called, begun = await scripts_called(link), time.perf_counter()
        await rush.push_tasks([{"x": x} for x in range(n)])
        await rush.wait_until(lambda counts: counts.finished == n)
        seconds, n_called = time.perf_counter() - begun, await scripts_called(link) - n_called
        table.add(Row(section, f"a batch of {n:,} tasks taken and finished by them", [seconds], "s", note=f"{n_called} calls"))
        begun = time.perf_counter()
        await rush.stop_workers()
        table.add(Row(section, "stopped", [time.perf_counter() - begun], "s"))
        await link.release()
        await rush.reset()


async def main() -> None:
    """Prints all figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.losses", description="Killed processes and idle workers.")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions and rounds")
    quick = parser.parse_args().quick
    logging.disable(logging.ERROR)  # the deaths are intended
    table = Table()
    await measure_deaths(table, 5 if quick else 20)
    await measure_idle(table, 1_000 if quick else 10_000)
    for retries in (0, 3):
        await measure_rounds(20 if quick else 100, retries)


if __name__ == "__main__":
    asyncio.run(main())
