"""taskiq on Redis streams: 64 tasks at a time, 1,000 messages a read, no result backend, arguments not validated.

A message is acknowledged when its job is done, so jobs run at least once. After each read it claims messages of dead workers.
"""

from __future__ import annotations

from typing import Any

from stopwatch import Starts, WorkerProcess, arguments, consume, enqueue_all, one_by_one, report, run
from taskiq.api import run_receiver_task
from taskiq_redis import RedisStreamBroker


def made(url: str, starts: Starts | None) -> tuple[RedisStreamBroker, Any]:
    """The broker and its one task, for both sides."""
    broker = RedisStreamBroker(url, xread_count=1_000, consumer_id="0")

    @broker.task("job")
    async def job(sent_at: float) -> None:
        assert starts is not None
        starts(sent_at)

    return broker, job


def work(url: str, starts: Starts, concurrency: int) -> None:
    """The worker's process."""

    async def main() -> None:
        broker, _ = made(url, starts)
        await run_receiver_task(broker, max_async_tasks=concurrency, validate_params=False, run_startup=True)

    run(main())


async def fill(url: str, n: int) -> None:
    """Enqueues n jobs."""
    broker, job = made(url, None)
    await broker.startup()
    await enqueue_all(job.kiq, n)
    await broker.shutdown()


async def latency(url: str, concurrency: int, n: int) -> list[float]:
    """The milliseconds from enqueuing to start of n jobs."""
    broker, job = made(url, None)
    await broker.startup()
    with WorkerProcess(work, url, concurrency) as worker:
        found = await one_by_one(job.kiq, worker, n)
    await broker.shutdown()
    return found


if __name__ == "__main__":
    asked = arguments("consume", "latency")
    if asked.action == "consume":
        run(fill(asked.url, asked.n))
        report(seconds=consume(work, asked.url, asked.coroutines, asked.n), n=asked.n - 1)
    else:
        report(milliseconds=run(latency(asked.url, asked.coroutines, asked.n)))
