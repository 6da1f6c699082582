"""Ours as a job queue: 64 coroutine workers in one process, each with `pop_task` and `finish_tasks`.

The database keeps the result of a job with its worker and times. An idle worker does not poll: it waits for the event of a
pushed task, and then pops it.
"""

from __future__ import annotations

import asyncio

from rush_tasks import NETWORK
from stopwatch import Starts, WorkerProcess, arguments, consume, one_by_one, report

from rush_async import Rush, RushWorker, run_worker


async def serve(rush: RushWorker, starts: Starts) -> None:
    """The loop of one worker."""
    while (task := await rush.pop_task(timeout=None)) is not None:
        starts(task.xs["sent_at"])
        await rush.finish_tasks(task.key, [{"y": 0.0}])


def work(url: str, starts: Starts, concurrency: int) -> None:
    """The worker's process."""
    run_worker(serve, NETWORK, url, n_workers=concurrency, args={"starts": starts})


async def enqueue_all(url: str, n: int) -> None:
    """Queues n tasks."""
    async with Rush(NETWORK, url) as rush:
        for first in range(0, n, 10_000):
            await rush.push_tasks([{"sent_at": 0.0} for _ in range(first, min(n, first + 10_000))])


async def latency(url: str, concurrency: int, n: int) -> list[float]:
    """The milliseconds from enqueuing to start of n jobs."""
    async with Rush(NETWORK, url) as rush:
        with WorkerProcess(work, url, concurrency) as worker:
            return await one_by_one(lambda now: rush.push_tasks([{"sent_at": now}]), worker, n)


if __name__ == "__main__":
    asked = arguments("consume", "latency")
    if asked.action == "consume":
        asyncio.run(enqueue_all(asked.url, asked.n))
        report(seconds=consume(work, asked.url, asked.coroutines, asked.n), n=asked.n - 1)
    else:
        report(milliseconds=asyncio.run(latency(asked.url, asked.coroutines, asked.n)))
