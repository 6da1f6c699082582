"""What the scripts of all peers share: arguments, processes, and the timing of jobs.

It uses the standard library only, because the environments of all peers import it.
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

# A spawned process inherits no state, as a process on another machine.
PROCESSES = multiprocessing.get_context("spawn")
START_TIMEOUT = 30.0  # seconds for all processes to start, and for a job to start

barrier: Barrier


def arguments(*actions: str) -> argparse.Namespace:
    """Parses the command line of a script."""
    parser = argparse.ArgumentParser()
    parser.add_argument("action", choices=actions)
    parser.add_argument("--url", default="", help="the address of the server")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--coroutines", type=int, default=64, help="how many tasks a process runs at once")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio", help="of ours")
    parser.add_argument("--n", type=int, required=True, help="how many tasks or jobs, over all processes")
    return parser.parse_args()


def report(**figures: float | list[float] | str) -> None:
    """Prints the figures for the benchmark."""
    print(json.dumps(figures), flush=True)


def run(main: Coroutine[Any, Any, Any]) -> Any:
    """Runs a coroutine, on uvloop if the environment has it."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    return uvloop.run(main)


# tasks


def wait_for_all() -> None:
    """Waits until every process of `in_processes` is ready."""
    barrier.wait(START_TIMEOUT)


def in_processes(n_processes: int, work: Callable[..., tuple[float, float]], *args: Any) -> float:
    """Runs `work(*args)` in n processes. Returns the seconds from the first begin to the last end.

    The work calls `wait_for_all` when it is ready. It returns when it began and when it ended, in the time of `time.time()`.
    """
    together = PROCESSES.Barrier(n_processes)
    with ProcessPoolExecutor(n_processes, PROCESSES, _set_barrier, (together,)) as pool:
        spans = [call.result() for call in [pool.submit(work, *args) for _ in range(n_processes)]]
    return max(ended for _, ended in spans) - min(begun for begun, _ in spans)


def _set_barrier(given: Barrier) -> None:
    global barrier
    barrier = given


# jobs


class Starts:
    """Records the starts of jobs in the worker's process. Each job calls it first.

    Args:
        pipe: a pipe to the process that enqueues.
        n: after how many starts to send the seconds from the first to the last. With 0 it sends, for each job, the seconds from
            enqueuing to start.
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
    """A block in which a process runs one worker, `work(url, starts, concurrency)`."""

    def __init__(self, work: Callable[[str, Starts, int], None], url: str, concurrency: int, n: int = 0) -> None:
        self.pipe, end = PROCESSES.Pipe(duplex=False)
        self._process = PROCESSES.Process(target=work, args=(url, Starts(end, n), concurrency), daemon=True)
        self._end = end

    def __enter__(self) -> WorkerProcess:
        self._process.start()
        self._end.close()
        return self

    def __exit__(self, *_: object) -> None:
        # A kill is enough, because the data of the server are deleted next.
        self._process.kill()
        self._process.join()


async def enqueue_all(enqueue: Callable[[float], Awaitable[Any]], n: int, at_once: int = 64) -> None:
    """Enqueues n jobs in concurrent coroutines."""

    async def some(n: int) -> None:
        for _ in range(n):
            await enqueue(0.0)

    await asyncio.gather(*[some(len(range(at, n, at_once))) for at in range(at_once)])


def consume(work: Callable[[str, Starts, int], None], url: str, concurrency: int, n: int) -> float:
    """Seconds from the start of the first to the start of the last of n jobs that are in the queue already.

    At most `concurrency` of them run at once, so all other jobs are done and acknowledged then, in every library.
    """
    with WorkerProcess(work, url, concurrency, n) as worker:
        return worker.pipe.recv()


async def one_by_one(enqueue: Callable[[float], Awaitable[Any]], worker: WorkerProcess, n: int) -> list[float]:
    """Milliseconds from the call that enqueues a job to its start, for n jobs with random pauses between them.

    The pauses are longer than the poll interval of any library, so that jobs come at any moment of an interval.
    """
    loop = asyncio.get_running_loop()
    started: asyncio.Queue[float] = asyncio.Queue()
    loop.add_reader(worker.pipe.fileno(), lambda: started.put_nowait(worker.pipe.recv()))
    rng = random.Random(1)
    warm_up = 10
    seconds: list[float] = []
    try:
        for _ in range(warm_up + n):
            await enqueue(time.time())
            seconds.append(await asyncio.wait_for(started.get(), START_TIMEOUT))
            await asyncio.sleep(rng.uniform(0.002, 0.012))
    finally:
        loop.remove_reader(worker.pipe.fileno())
    return [one * 1e3 for one in seconds[warm_up:]]


def split(n: int, parts: int) -> Sequence[int]:
    """Splits n into nearly equal parts."""
    return [len(range(at, n, parts)) for at in range(parts)]
