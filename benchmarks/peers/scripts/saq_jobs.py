"""saq: `concurrency` 64, jobs dropped when done (ttl -1), its limit of 20 operations at a time raised.

BLMOVE moves a job to a list of active jobs while it runs, so saq does not poll. Jobs run at least once.
"""

from __future__ import annotations

from typing import Any

from saq import Queue, Worker
from saq.queue.redis import RedisQueue
from stopwatch import Starts, WorkerProcess, arguments, consume, enqueue_all, one_by_one, report, run


def queue_at(url: str) -> Queue:
    """The queue."""
    return RedisQueue.from_url(url, max_concurrent_ops=256)


def work(url: str, starts: Starts, concurrency: int) -> None:
    """The worker's process."""

    async def job(_: Any, *, sent_at: float) -> None:
        starts(sent_at)

    async def main() -> None:
        queue = queue_at(url)
        await queue.connect()
        await Worker(queue, [("job", job)], concurrency=concurrency).start()

    run(main())


async def fill(url: str, n: int) -> None:
    """Enqueues n jobs."""
    queue = queue_at(url)
    await enqueue_all(lambda now: queue.enqueue("job", ttl=-1, sent_at=now), n)
    await queue.disconnect()


async def latency(url: str, concurrency: int, n: int) -> list[float]:
    """The milliseconds from enqueuing to start of n jobs."""
    queue = queue_at(url)
    with WorkerProcess(work, url, concurrency) as worker:
        found = await one_by_one(lambda now: queue.enqueue("job", ttl=-1, sent_at=now), worker, n)
    await queue.disconnect()
    return found


if __name__ == "__main__":
    asked = arguments("consume", "latency")
    if asked.action == "consume":
        run(fill(asked.url, asked.n))
        report(seconds=consume(work, asked.url, asked.coroutines, asked.n), n=asked.n - 1)
    else:
        report(milliseconds=run(latency(asked.url, asked.coroutines, asked.n)))
