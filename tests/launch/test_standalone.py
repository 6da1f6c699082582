"""`run_worker`: workers in a process that something else started."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from rush_async import NetworkStateError, Rush, RushConfigError, RushWorker, WorkerExit, run_worker
from tests.launch.loops_of_tests import serve


async def do_one(rush: RushWorker, n: int = 1) -> None:
    async with rush.task({"x": n}) as task:
        task.ys = {"y": n * 2}


def run(rush: Rush, loop: Callable[..., Awaitable[Any]], **options: Any) -> Awaitable[list[WorkerExit]]:
    return asyncio.to_thread(functools.partial(run_worker, loop, rush.network_id, rush.config, **options))


async def test_run_worker_takes_one_worker_id_or_several(rush: Rush) -> None:
    assert await run(rush, do_one, worker_ids="alone") == [WorkerExit("alone", "terminated")]
    assert [end.worker_id for end in await run(rush, do_one, worker_ids=["b", "a"], args={"n": 4})] == ["b", "a"]
    assert await run(rush, do_one, n_workers=0) == []
    assert (await rush.fetch_finished_tasks())["y"].to_list() == [2, 8, 8]


async def test_each_worker_of_run_worker_has_the_limits(rush: Rush) -> None:
    await rush.push_tasks([{"x": x} for x in range(5)])
    for limits in ({"max_tasks": 2}, {"idle_timeout": 0.1}, {"max_time": 0.1}):
        ends = await run(rush, serve, n_workers=2, **limits)
        assert [end.state for end in ends] == ["terminated", "terminated"]
        assert (await rush.counts()).queued == (1 if "max_tasks" in limits else 0)
    assert (await rush.counts()).finished == 5


async def test_run_worker_refuses_invalid_arguments(rush: Rush) -> None:
    async def with_config(rush: RushWorker, config: str) -> None: ...

    with pytest.raises(RushConfigError, match="names 'a' twice"):
        await run(rush, do_one, worker_ids=["a", "a"])
    with pytest.raises(TypeError, match="n_workers must be a whole number"):
        await run(rush, do_one, n_workers="2")
    with pytest.raises(ValueError, match="idle_timeout must be more than 0 seconds"):
        await run(rush, do_one, idle_timeout=0)
    with pytest.raises(TypeError, match=r"'config', which is an option of run_worker: pass it as args="):
        await run(rush, with_config)
    with pytest.raises(NetworkStateError, match=r"await rush\.start_workers"):
        run_worker(do_one, rush.network_id, rush.config)
    assert (await rush.worker_info()).is_empty()
