"""arq: `max_jobs` 64, its poll every millisecond (500 ms by default), no result stored. Jobs run at least once.

It only polls, so a job in an empty queue waits for the next poll. A poll takes at most `queue_read_limit` (320) jobs.
"""

from __future__ import annotations

from arq import Worker, create_pool, func
from arq.connections import RedisSettings
from stopwatch import Starts, WorkerProcess, arguments, consume, enqueue_all, one_by_one, report, run


def work(url: str, starts: Starts, concurrency: int) -> None:
    """The worker's process."""

    async def job(_: object, sent_at: float) -> None:
        starts(sent_at)

    async def main() -> None:
        worker = Worker(
            [func(job, name="job", keep_result=0)],
            redis_settings=RedisSettings.from_dsn(url),
            max_jobs=concurrency,
            poll_delay=0.001,
            log_results=False,
        )
        await worker.async_run()

    run(main())


async def fill(url: str, n: int) -> None:
    """Enqueues n jobs."""
    pool = await create_pool(RedisSettings.from_dsn(url))
    await enqueue_all(lambda now: pool.enqueue_job("job", now), n)
    await pool.aclose()


async def latency(url: str, concurrency: int, n: int) -> list[float]:
    """The milliseconds from enqueuing to start of n jobs."""
    pool = await create_pool(RedisSettings.from_dsn(url))
    with WorkerProcess(work, url, concurrency) as worker:
        found = await one_by_one(lambda now: pool.enqueue_job("job", now), worker, n)
    await pool.aclose()
    return found


if __name__ == "__main__":
    asked = arguments("consume", "latency")
    if asked.action == "consume":
        run(fill(asked.url, asked.n))
        report(seconds=consume(work, asked.url, asked.coroutines, asked.n), n=asked.n - 1)
    else:
        report(milliseconds=run(latency(asked.url, asked.coroutines, asked.n)))
