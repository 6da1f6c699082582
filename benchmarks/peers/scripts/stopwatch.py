"""What the scripts of all peers share: their arguments, their processes and how jobs are timed.

Standard library only, since it is imported by the Python of each peer's own environment.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection
from threading import Barrier
from typing import Any

# Each process starts from nothing, as processes on other machines would.
PROCESSES = multiprocessing.get_context("spawn")
PATIENCE = 30.0  # seconds for all processes to be there, and for a job to start

barrier: Barrier


def arguments(*actions: str) -> argparse.Namespace:
    """What the script is asked to do."""
    parser = argparse.ArgumentParser()
    parser.add_argument("action", choices=actions)
    parser.add_argument("--url", default="", help="the server's")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--coroutines", type=int, default=64, help="how many tasks a process has in hand")
    parser.add_argument("--n", type=int, required=True, help="how many tasks or jobs, over all processes")
    return parser.parse_args()


def report(**figures: float | list[float] | str) -> None:
    """Tells the benchmark what was measured."""
    print(json.dumps(figures), flush=True)


def run(main: Coroutine[Any, Any, Any]) -> Any:
    """Runs a coroutine on uvloop where the environment has it."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    return uvloop.run(main)


# tasks


def wait_for_all() -> None:
    """Waits until every process of `in_processes` is here."""
    barrier.wait(PATIENCE)


def in_processes(n_processes: int, work: Callable[..., tuple[float, float]], *args: Any) -> float:
    """Seconds from the first begin to the last end of `work(*args)` in each of n processes.

    The work calls `wait_for_all` when it is ready, and returns when it began and ended, as `time.time()` tells.
    """
    together = PROCESSES.Barrier(n_processes)
    with ProcessPoolExecutor(n_processes, PROCESSES, _keep, (together,)) as pool:
        spans = [call.result() for call in [pool.submit(work, *args) for _ in range(n_processes)]]
    return max(ended for _, ended in spans) - min(begun for begun, _ in spans)


def _keep(given: Barrier) -> None:
    global barrier
    barrier = given


# jobs


class Starts:
    """Called by each job as it starts, in the worker's process: the first thing that it does.

    Args:
        pipe: to the process that enqueues.
        n: after how many starts to tell how long they took; 0 tells of each at once how long it had been under way.
    """

    def __init__(self, pipe: Connection, n: int) -> None:
        self._pipe = pipe
        self._n = n
        self._n_seen = 0
        self._first = 0.0

    def __call__(self, sent_at: float) -> None:
        if not self._n:
            self._pipe.send(time.time() - sent_at)
            return
        self._n_seen += 1
        if self._n_seen == 1:
            self._first = time.perf_counter()
        elif self._n_seen == self._n:
            self._pipe.send(time.perf_counter() - self._first)


class WorkerProcess:
    """A process with one worker, `work(url, starts, concurrency)`, as long as the block runs."""

    def __init__(self, work: Callable[[str, Starts, int], None], url: str, concurrency: int, n: int = 0) -> None:
        self.pipe, end = PROCESSES.Pipe(duplex=False)
        self._process = PROCESSES.Process(target=work, args=(url, Starts(end, n), concurrency), daemon=True)
        self._end = end

    def __enter__(self) -> WorkerProcess:
        self._process.start()
        self._end.close()
        return self

    def __exit__(self, *_: object) -> None:
        # The server's data is thrown away next, so that nothing has to be put in order.
        self._process.kill()
        self._process.join()


async def enqueue_all(enqueue: Callable[[float], Awaitable[Any]], n: int, at_once: int = 64) -> None:
    """Enqueues n jobs, some at a time."""

    async def some(n: int) -> None:
        for _ in range(n):
            await enqueue(0.0)

    await asyncio.gather(*[some(len(range(at, n, at_once))) for at in range(at_once)])


def consume(work: Callable[[str, Starts, int], None], url: str, concurrency: int, n: int) -> float:
    """Seconds from the start of the first to that of the last of n jobs that are enqueued already.

    As at most `concurrency` of them are in hand, all but as many are done and acknowledged then, whatever the library.
    """
    with WorkerProcess(work, url, concurrency, n) as worker:
        return worker.pipe.recv()


async def one_by_one(enqueue: Callable[[float], Awaitable[Any]], worker: WorkerProcess, n: int) -> list[float]:
    """Milliseconds from just before a job is enqueued to its start, for n jobs that follow one another at random pauses.

    The pauses are longer than any library's polls here, so that these are met at any moment.
    """
    loop = asyncio.get_running_loop()
    started: asyncio.Queue[float] = asyncio.Queue()
    loop.add_reader(worker.pipe.fileno(), lambda: started.put_nowait(worker.pipe.recv()))
    chance = random.Random(1)
    warm_up = 10
    seconds: list[float] = []
    try:
        for _ in range(warm_up + n):
            await enqueue(time.time())
            seconds.append(await asyncio.wait_for(started.get(), PATIENCE))
            await asyncio.sleep(chance.uniform(0.002, 0.012))
    finally:
        loop.remove_reader(worker.pipe.fileno())
    return [one * 1e3 for one in seconds[warm_up:]]


def split(n: int, parts: int) -> Sequence[int]:
    """n as a sum of nearly equal parts."""
    return [len(range(at, n, parts)) for at in range(parts)]
