"""docket: `concurrency` 64, nothing stored of a finished job (execution_ttl 0), a poll every ms instead of every 250.

Jobs lie in a stream with a consumer group. They are acknowledged when done, and run at least once.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta

from docket import Docket, Worker
from stopwatch import Starts, WorkerProcess, arguments, consume, enqueue_all, one_by_one, report, run


def made(url: str, starts: Starts | None) -> tuple[Docket, Callable[[float], Awaitable[None]]]:
    """The queue and its one task, for both sides."""
    docket = Docket(url=url, execution_ttl=timedelta(0))

    async def job(sent_at: float) -> None:
        assert starts is not None
        starts(sent_at)

    docket.register(job)
    return docket, job


def work(url: str, starts: Starts, concurrency: int) -> None:
    """The worker's process."""
    logging.disable()

    async def main() -> None:
        docket, _ = made(url, starts)
        often = timedelta(milliseconds=1)
        async with docket, Worker(docket, concurrency=concurrency, minimum_check_interval=often) as worker:
            await worker.run_forever()

    run(main())


async def fill(url: str, n: int) -> None:
    """Enqueues n jobs."""
    docket, job = made(url, None)
    async with docket:
        await enqueue_all(lambda now: docket.add(job)(now), n)  # `add` gives each its key


async def latency(url: str, concurrency: int, n: int) -> list[float]:
    """The milliseconds from enqueuing to start of n jobs."""
    docket, job = made(url, None)
    async with docket:
        with WorkerProcess(work, url, concurrency) as worker:
            return await one_by_one(lambda now: docket.add(job)(now), worker, n)


if __name__ == "__main__":
    asked = arguments("consume", "latency")
    if asked.action == "consume":
        run(fill(asked.url, asked.n))
        report(seconds=consume(work, asked.url, asked.coroutines, asked.n), n=asked.n - 1)
    else:
        report(milliseconds=run(latency(asked.url, asked.coroutines, asked.n)))
