"""The server: its start, the longest time that one call blocks it, and subscribers that stop reading."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import ExitStack, contextmanager
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.measure import facts, timed
from benchmarks.report import Row, Table, ratio
from benchmarks.tasks import subscriber
from rush_async import Rush, RushWorker
from rush_async.wire.link import Link

__all__ = ["measure_commands", "measure_deaf_subscribers", "measure_stalls", "measure_start"]

START, STALLS, DEAF = (
    "Opening",
    "The longest that one call keeps the server",
    "8 subscribers and a manager that stopped reading",
)

_IMPORT = "import time; t = time.perf_counter(); import redis.asyncio; print(time.perf_counter() - t)"
_OPEN = """
import time
t = time.perf_counter()
import asyncio
from rush_async import Rush
imported = time.perf_counter() - t
async def main():
    t = time.perf_counter()
    async with Rush("x") as rush:
        opened = time.perf_counter() - t
        await rush.reset()
    print(imported, opened)
asyncio.run(main())
"""


def _run(code: str) -> list[float]:
    words = [sys.executable, "-c", code]
    return [float(word) for word in subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()]


def measure_start(table: Table, repetitions: int) -> None:
    """The time to import and open `Rush("x")` on the embedded server, beside `import redis.asyncio`, in fresh interpreters."""
    bare: list[float] = []
    imported: list[float] = []
    opened: list[float] = []
    for at in range(repetitions + 1):
        found = [*_run(_IMPORT), *_run(_OPEN)]
        if at:  # the first round only fills the file cache
            for values, value in zip((bare, imported, opened), found, strict=True):
                values.append(value)
    table.add(Row(START, "import redis.asyncio", bare, "s"), Row(START, "from rush_async import Rush", imported, "s"))
    table.add(Row(START, 'Rush("x") on the embedded server, empty data', opened, "s", "<= 0.5"))
    table.add(ratio(START, "the same over import redis.asyncio", opened, bare, goal="<= 4"))


async def measure_commands(table: Table, repetitions: int) -> None:
    """The time that a command of the program takes as a process, beside `python -c pass`, in turn."""
    async with Rush() as rush:
        await rush.push_tasks([{"x": 1}] * 100)
        assert rush.config.url is not None
        status = ["-m", "rush_async", "status", rush.network_id, "--url", rush.config.url]
        bare, shown, asked = await asyncio.to_thread(
            _seconds_of, repetitions, ["-c", "pass"], ["-m", "rush_async", "--help"], status
        )
        await rush.reset()
    table.add(Row(START, "python -c pass", bare, "s"))
    table.add(ratio(START, "rush-async --help, over python -c pass", shown, bare, goal="<= 10"))
    table.add(ratio(START, "rush-async status, over python -c pass", asked, bare, goal="<= 35"))


def _seconds_of(repetitions: int, *programs: list[str]) -> list[list[float]]:
    """Returns how long each program takes, run in turn, with compiled modules as an installed package has them."""
    seconds: list[list[float]] = [[] for _ in programs]
    with TemporaryDirectory() as directory:
        environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": directory}
        for at in range(repetitions + 1):
            for program, values in zip(programs, seconds, strict=True):
                begun = time.perf_counter()
                subprocess.run([sys.executable, *program], stdout=subprocess.DEVNULL, env=environment, check=True)
                if at:  # the first round only fills the file cache
                    values.append(time.perf_counter() - begun)
    return seconds


async def measure_stalls(table: Table, n: int) -> None:
    """The longest command of each kind of call with n tasks queued or running, from the server's slow log."""
    async with Rush() as rush, RushWorker(rush.network_id, rush.config) as worker:
        link = await Link.acquire(rush.config)
        ask = link.connection.ask
        await ask("CONFIG", "SET", "slowlog-log-slower-than", 100, "slowlog-max-len", 10_000)
        xss = [{"x1": float(at), "x2": 0.5} for at in range(n)]

        async def longest(name: str, work: Callable[[], Awaitable[Any]], goal: str = "<= 10") -> None:
            await ask("SLOWLOG", "RESET")

            async def once() -> int:
                await work()
                return 1

            seconds = await timed(once)
            entries = await ask("SLOWLOG", "GET", "-1")
            slowest = max([entry[2] for entry in entries if entry[3][0] != b"SLOWLOG"], default=0.0)
            table.add(Row(STALLS, name, [slowest / 1e3], "ms", goal, f"{seconds:.2f} s in all"))

        await longest(f"push_tasks of {n:,}", lambda: rush.push_tasks(xss, retries=1))
        await longest("pop_task", lambda: worker.pop_task())
        await longest(f"fetch_queued_tasks of {n:,}", rush.fetch_queued_tasks)
        keys = (await rush.keys_with_state("queued"))["queued"]
        await longest("cancel_tasks of 10,000 queued", lambda: rush.cancel_tasks(keys[:10_000]))
        await longest("retry_tasks of 10,000", lambda: rush.retry_tasks(keys[:10_000]))
        await longest("empty_queue", rush.empty_queue)
        await longest(f"retry_tasks of all {n:,}", rush.retry_tasks)
        await rush.reset(workers=False)
        held = await worker.push_running_tasks(xss)
        await longest(f"push_running_tasks beside {n:,} running", lambda: worker.push_running_tasks(xss[:10]))
        await longest(f"fetch_running_tasks of {n:,}", rush.fetch_running_tasks)
        await longest("finish_tasks of 10,000", lambda: worker.finish_tasks(held[:10_000], [{"y": 0.25}] * 10_000))
        await longest(f"a worker killed that runs {n - 10_000:,}", lambda: rush.stop_workers(worker.worker_id, mode="kill"))
        await longest("reset", rush.reset)
        await ask("CONFIG", "SET", "slowlog-log-slower-than", 10_000)
        await link.release()


@contextmanager
def blocked_manager(network_id: str, url: str) -> Generator[None]:
    """A manager in a thread, whose event loop is blocked for the block: it reads nothing of what it follows."""
    begun, end = threading.Event(), threading.Event()

    async def manage() -> None:
        async with Rush(network_id, url) as rush:
            await rush.wait_until(lambda _: True)
            begun.set()
            end.wait()

    thread = threading.Thread(target=lambda: asyncio.run(manage()))
    thread.start()
    begun.wait()
    try:
        yield
    finally:
        end.set()
        thread.join()


async def measure_deaf_subscribers(table: Table, n: int) -> None:
    """The server's memory for subscribers of events that read nothing, one of them a blocked manager, while n tasks are done,
    twice."""
    async with Rush() as rush, RushWorker(rush.network_id, rush.config) as worker:
        link = await Link.acquire(rush.config)
        deaf = ExitStack()
        await asyncio.to_thread(deaf.enter_context, blocked_manager(rush.network_id, str(rush.config.url)))
        for _ in range(8):
            deaf.enter_context(subscriber(rush))

        async def held() -> float:
            return int((await facts(link, "memory"))["mem_clients_normal"]) / 2**20

        async def work() -> float:
            most = 0.0
            for _ in range(n // 1_000):
                keys = await worker.push_running_tasks([{"x": 1.0}] * 1_000)
                await worker.finish_tasks(keys, [{"y": 1.0}] * 1_000)
                most = max(most, await held())
            return most

        before = await held()
        first, second = await work(), await work()
        await asyncio.to_thread(deaf.close)
        await link.release()
        await rush.reset()
    table.add(Row(DEAF, "memory of all connections before", [before], "MiB"))
    table.add(Row(DEAF, f"at the most while {n:,} tasks were done", [first], "MiB"))
    table.add(Row(DEAF, f"at the most while another {n:,} were done, over that", [second / first], "x", "<= 1.1"))
