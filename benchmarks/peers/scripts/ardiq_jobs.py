"""ardiq, whose worker loop is Rust: `concurrency` 64 and 1,024 prefetched, results kept for a millisecond.

Jobs lie in a stream with a consumer group, so it does not poll. They are acknowledged when done, and run at least once.
"""

from __future__ import annotations

from typing import Any

from ardiq import Ardiq
from stopwatch import Starts, WorkerProcess, arguments, consume, one_by_one, report, run


def made(url: str, starts: Starts | None, concurrency: int) -> tuple[Ardiq, Any]:
    """The application and its one task, for both sides."""
    app = Ardiq(redis_url=url, concurrency=concurrency, prefetch=1_024, result_ttl_ms=1)

    @app.task(name="job")
    async def job(sent_at: float) -> None:
        assert starts is not None
        starts(sent_at)

    return app, job


def work(url: str, starts: Starts, concurrency: int) -> None:
    """The worker's process."""

    async def main() -> None:
        app, _ = made(url, starts, concurrency)
        await app.run()

    run(main())


async def fill(url: str, concurrency: int, n: int) -> None:
    """Enqueues n jobs."""
    app, job = made(url, None, concurrency)
    for first in range(0, n, 1_000):
        await app.enqueue_many([job.prepare(0.0) for _ in range(first, min(n, first + 1_000))])


async def latency(url: str, concurrency: int, n: int) -> list[float]:
    """The milliseconds from enqueuing to start of n jobs."""
    _, job = made(url, None, concurrency)
    with WorkerProcess(work, url, concurrency) as worker:
        return await one_by_one(job.enqueue, worker, n)


if __name__ == "__main__":
    asked = arguments("consume", "latency")
    if asked.action == "consume":
        run(fill(asked.url, asked.coroutines, asked.n))
        report(seconds=consume(work, asked.url, asked.coroutines, asked.n), n=asked.n - 1)
    else:
        report(milliseconds=run(latency(asked.url, asked.coroutines, asked.n)))
