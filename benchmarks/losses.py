"""What happens to tasks when processes die, and what idle workers cost:

python -m benchmarks.losses [--quick]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import statistics
import sys
import time
from collections.abc import Sequence

from rush_async import Processes, Rush, RushWorker
from rush_async.store.link import Link

N_TASKS = 500


async def hold(rush: RushWorker, n: int = 1) -> None:
    """Runs tasks that never end."""
    await rush.push_running_tasks([{"x": x} for x in range(n)])
    await asyncio.Event().wait()


async def serve(rush: RushWorker) -> None:
    """Works through the queue."""
    async for task in rush.tasks():
        async with task:
            task.ys = {"y": task.xs["x"]}


async def pids(rush: Rush) -> dict[str, int]:
    """The processes of the workers that are running."""
    info = await rush.worker_info()
    info = info.filter(info["state"] == "running")
    return dict(zip(info["worker_id"], info["pid"], strict=True))


def show(name: str, values: Sequence[float], unit: str, scale: float = 1.0) -> None:
    """Prints a figure: median (min - max)."""
    low, high = min(values) * scale, max(values) * scale
    print(f"{name:<64} {statistics.median(values) * scale:>10,.1f} {unit}  ({low:,.1f} - {high:,.1f})", flush=True)


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


async def measure_death(repetitions: int, n_running: int) -> None:
    """From the kill of a process to its tasks having failed, as another process sees it."""
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
            await rush.join_workers(worker_id)
        watcher.kill()
        await watcher.wait()
        await rush.reset()
    show(f"a process of {n_running:,} running tasks killed to all of them failed elsewhere", seconds, "ms", 1e3)


# rounds


async def measure_rounds(rounds: int, retries: int) -> None:
    """Four processes drain a queue while one of them is killed at a random moment, and replaced."""
    chance = random.Random(retries)
    begun = time.perf_counter()
    n_failed = 0
    async with Rush() as rush:
        crew = await rush.start_workers(serve, 4, on=Processes())
        await rush.wait_for_workers(4)
        for at in range(rounds):
            await rush.push_tasks([{"x": x} for x in range(N_TASKS)], retries=retries)
            moment = at * N_TASKS + chance.randrange(N_TASKS)
            await rush.wait_until(lambda counts, moment=moment: counts.finished + counts.failed >= moment)
            running = await pids(rush)
            victim = chance.choice(sorted(running))
            crew.remove(victim)
            os.kill(running[victim], signal.SIGKILL)
            crew += await rush.start_workers(serve, 1, on=Processes())
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
    what = f"{rounds} rounds, retries={retries}: {rounds * N_TASKS:,} tasks ended once each, {n_failed} as lost"
    print(f"{what}  ({took:,.0f} s)", flush=True)


# idle workers


def resident_memory() -> float:
    """MB of this process."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmRSS"))


async def wait_and_finish(rush: RushWorker) -> None:
    """Waits for tasks, however long."""
    while (task := await rush.pop_task(timeout=None)) is not None:
        await rush.finish_tasks(task.key, [{"y": 1}])


async def calls(link: Link) -> dict[str, int]:
    """How often each command was called, those of scripts aside."""
    reply: bytes = await link.connection.ask("INFO", "commandstats")
    found: dict[str, int] = {}
    for line in reply.decode().splitlines():
        if line.startswith(("cmdstat_evalsha:", "cmdstat_ssubscribe:", "cmdstat_eval:")):
            name, _, rest = line.removeprefix("cmdstat_").partition(":")
            found[name] = int(rest.split(",")[0].removeprefix("calls="))
    return found


async def measure_idle(n: int, seconds: float) -> None:
    """Many workers in one process that wait for tasks."""
    async with Rush() as rush:
        link = await Link.acquire(rush.config)
        begun = time.perf_counter()
        await rush.start_workers(wait_and_finish, n)
        await rush.wait_for_workers(n)
        started = time.perf_counter() - begun
        await asyncio.sleep(seconds)  # until the heartbeat has connected
        before = await calls(link)
        await asyncio.sleep(seconds)
        after = await calls(link)
        clients = (await link.connection.ask("CLIENT", "LIST")).decode().splitlines()
        beats = after["evalsha"] - before["evalsha"]
        print(
            f"{n:,} idle coroutine workers, started in {started:.1f} s: {resident_memory():,.0f} MB, {len(clients)} connections"
        )
        print(f"  in {seconds:g} s they called {beats} scripts")
        begun = time.perf_counter()
        await rush.push_tasks([{"x": x} for x in range(n)])
        await rush.wait_until(lambda counts: counts.finished == n)
        took = time.perf_counter() - begun
        drained = await calls(link)
        n_calls = drained["evalsha"] - after["evalsha"]
        print(f"  a batch of {n:,} tasks was taken and finished by them in {took:.1f} s, with {n_calls} scripts called")
        begun = time.perf_counter()
        await rush.stop_workers()
        print(f"  all were stopped in {time.perf_counter() - begun:.1f} s", flush=True)
        await link.release()
        await rush.reset()


async def main() -> None:
    """Prints all figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.losses", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions and rounds")
    quick = parser.parse_args().quick
    await measure_death(5 if quick else 20, 1)
    await measure_death(5 if quick else 20, 1_000)
    for retries in (0, 3):
        await measure_rounds(20 if quick else 100, retries)
    await measure_idle(1_000 if quick else 10_000, 6.0)


if __name__ == "__main__":
    asyncio.run(main())
