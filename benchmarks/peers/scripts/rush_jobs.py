"""Ours as a job queue: 64 coroutine workers in one process, each with `pop_task` and `finish_tasks`.

The database keeps the result of a job with its worker and times. An idle worker does not poll: it waits for the event of a
pushed task, and then pops it.
"""

from __future__ import annotations

import asyncio
from functools import partial

from rush_tasks import NETWORK
from stopwatch import Starts, WorkerProcess, arguments, consume, one_by_one, report

from rush_async import Rush, RushClient, RushWorker, run_worker


def run_on(loop: str) -> None:
    """Makes the event loops of this process those of uvloop, or leaves them as they are."""
    if loop == "uvloop":
        import uvloop

        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())


async def serve(rush: RushWorker, starts: Starts) -> None:
    """The loop of one worker."""
    while (task := await rush.pop_task(timeout=None)) is not None:
        starts(task.xs["sent_at"])
        await rush.finish_tasks(task.key, [{"y": 0.0}])


def work(url: str, starts: Starts, concurrency: int, *, loop: str) -> None:
    """The worker's process."""
    run_on(loop)
    run_worker(serve, NETWORK, url, n_workers=concurrency, args={"starts": starts})


async def enqueue_all(url: str, n: int) -> None:
    """Queues n tasks."""
    async with Rush(NETWORK, url) as rush:
        for first in range(0, n, 10_000):
            await rush.push_tasks([{"sent_at": 0.0} for _ in range(first, min(n, first + 10_000))])


async def latency(url: str, concurrency: int, n: int, loop: str) -> list[float]:
    """The milliseconds from enqueuing to start of n jobs.

    A client enqueues them, which hears of no events, as those of the peers. A manager would hear of every task.
    """
    async with RushClient(NETWORK, url) as rush:
        with WorkerProcess(partial(work, loop=loop), url, concurrency) as worker:
            return await one_by_one(lambda now: rush.push_tasks([{"sent_at": now}]), worker, n)


if __name__ == "__main__":
    asked = arguments("consume", "latency")
    run_on(asked.loop)
    if asked.action == "consume":
        asyncio.run(enqueue_all(asked.url, asked.n))
        report(seconds=consume(partial(work, loop=asked.loop), asked.url, asked.coroutines, asked.n), n=asked.n - 1)
    else:
        report(milliseconds=asyncio.run(latency(asked.url, asked.coroutines, asked.n, asked.loop)))
