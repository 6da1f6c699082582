"""Failures of tasks in the log of the manager."""

from __future__ import annotations

import asyncio
import logging

import pytest

from rush_async import Rush, RushWorker
from rush_async.testing import wait_until

XS = {"x1": 1.0}


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "rush_async.manager.task_failures" and record.levelno == logging.WARNING
    ]


async def fail(worker: RushWorker, n: int) -> None:
    for at in range(n):
        async with worker.task(XS, catch=ZeroDivisionError):
            raise ZeroDivisionError(f"number {at}")


async def test_the_first_failure_and_each_tenfold_are_warnings_of_one_manager(
    rush: Rush, elsewhere: Rush, caplog: pytest.LogCaptureFixture
) -> None:
    async with RushWorker(rush.network_id, rush.config) as worker, Rush(rush.network_id, rush.config):
        for client in (rush, elsewhere):
            await wait_until(lambda client=client: client._net.feed.is_watching)  # pyright: ignore[reportPrivateUsage]
        await fail(worker, 1)
        await wait_until(lambda: len(said(caplog)) == 2)  # `rush` and `elsewhere`
        (text,) = set(said(caplog))
        assert f"network {rush.network_id!r} has a failed task: " in text
        assert f"on worker {worker.worker_id} with ZeroDivisionError: number 0." in text
        assert "fetch_failed_tasks()" in text
        await fail(worker, 8)
        await rush.wait_until(lambda counts: counts.failed == 9)
        assert len(said(caplog)) == 2
        await fail(worker, 1)
        await wait_until(lambda: len(said(caplog)) == 4)
        assert "has 10 failed tasks: " in said(caplog)[-1]
        keys = await worker.push_running_tasks([XS] * 500)
        await worker.fail_tasks(keys, [ValueError("bad")] * 500)
        await wait_until(lambda: len(said(caplog)) == 6)
        assert "ValueError: bad" in said(caplog)[-1]
        await fail(worker, 3)  # 513
        await rush.wait_until(lambda counts: counts.failed == 513)
        await asyncio.gather(rush.counts(), elsewhere.counts())
        assert len(said(caplog)) == 6


async def test_what_was_asked_for_is_no_such_failure(
    rush: Rush, rush_worker: RushWorker, caplog: pytest.LogCaptureFixture
) -> None:
    feed = rush._net.feed  # pyright: ignore[reportPrivateUsage]
    await wait_until(lambda: feed.is_watching)
    await rush.push_tasks([XS] * 3)
    await rush.empty_queue()
    await rush.push_failed_tasks([XS], "known")
    keys = await rush_worker.push_running_tasks([XS] * 2)
    await rush.cancel_tasks(keys)
    async with RushWorker(rush.network_id, rush.config) as killed:
        await killed.push_running_tasks([XS])
        await rush.stop_workers(killed.worker_id, mode="kill")
    await wait_until(lambda: rush.n_failed_tasks == 7)
    await fail(rush_worker, 1)  # the first one of its kind
    await wait_until(lambda: said(caplog))
    assert len(said(caplog)) == 1
    assert "ZeroDivisionError: number 0" in said(caplog)[0]
