"""streaq: `concurrency` 64 and as many prefetched, no result stored (ttl 0), no log line a job.

Jobs lie in a stream with a consumer group, so it does not poll. They are acknowledged when done, and run at least once.
"""

from __future__ import annotations

from stopwatch import Starts, WorkerProcess, arguments, consume, one_by_one, report, run
from streaq import Worker
from streaq.task import AsyncRegisteredTask


def made(url: str, starts: Starts | None, concurrency: int) -> tuple[Worker, AsyncRegisteredTask]:
    """The worker and its one task, for both sides."""
    worker = Worker(redis_url=url, concurrency=concurrency, handle_signals=False)

    async def job(sent_at: float) -> None:
        assert starts is not None
        starts(sent_at)

    return worker, worker.task(job, name="job", ttl=0, silent=True)


def work(url: str, starts: Starts, concurrency: int) -> None:
    """The worker's process."""
    worker, _ = made(url, starts, concurrency)
    run(worker.run_async())


async def fill(url: str, concurrency: int, n: int) -> None:
    """Enqueues n jobs."""
    worker, job = made(url, None, concurrency)
    async with worker:
        for first in range(0, n, 500):
            await worker.enqueue_many([job.enqueue(0.0) for _ in range(first, min(n, first + 500))])


async def latency(url: str, concurrency: int, n: int) -> list[float]:
    """The milliseconds from enqueuing to start of n jobs."""
    worker, job = made(url, None, concurrency)

    async def enqueue(now: float) -> None:
        await job.enqueue(now)

    async with worker:
        with WorkerProcess(work, url, concurrency) as process:
            return await one_by_one(enqueue, process, n)


if __name__ == "__main__":
    asked = arguments("consume", "latency")
    if asked.action == "consume":
        run(fill(asked.url, asked.coroutines, asked.n))
        report(seconds=consume(work, asked.url, asked.coroutines, asked.n), n=asked.n - 1)
    else:
        report(milliseconds=run(latency(asked.url, asked.coroutines, asked.n)))
