"""Replays: the proposals of a network once more, each with what it saw."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from rush_async import (
    Archive,
    DecodeError,
    Divergence,
    Draw,
    NetworkStateError,
    Processes,
    Replay,
    Rush,
    RushConfig,
    RushWorker,
    fetch_tasks_as_of,
    replay,
)
from rush_async.store.keys import NetworkKeys
from tests.client.bayesian import READ, propose_best, run_optimization

STATES: Any = ("queued", "running", "finished", "failed")


@asynccontextmanager
async def seeded(config: RushConfig) -> AsyncGenerator[tuple[Rush, RushWorker]]:
    async with Rush(config=config, seed=42) as rush:
        try:
            async with RushWorker(rush.network_id, config) as worker:
                yield rush, worker
        finally:
            await rush.reset()


@pytest.mark.chaos
async def test_an_asynchronous_decentralised_optimization_of_four_processes_replays(
    rush_server: RushConfig, tmp_path: Path
) -> None:
    async with Rush(config=rush_server, seed=7) as rush:
        await rush.push_tasks([{"x1": float(x), "x2": 7.5 - x} for x in range(8)])
        await rush.stop_when(finished=200)
        await rush.start_workers(run_optimization, 4, on=Processes(4))
        async with asyncio.timeout(120):
            await rush.wait_until_stopped()
            await rush.join_workers()
        assert (await rush.counts()).finished == 200
        found = await replay(rush, propose_best)
        assert found == Replay(rush.n_tasks - 8)
        assert found.is_identical
        archive = Archive.open(await rush.export(tmp_path / "a.zip"))
        assert await replay(archive, propose_best) == found
        key = archive.finished_tasks()["keys"][-1]
        assert_frame_equal(await fetch_tasks_as_of(archive, key), await fetch_tasks_as_of(rush, key))
        await rush.reset()


async def walk(draw: Draw) -> dict[str, Any]:
    await asyncio.sleep(0)
    return {"x": draw.random().random(), "n": draw.tasks.height}


async def run(worker: RushWorker, n: int, **options: Any) -> None:
    async for task in worker.proposals(walk, read=READ, budget=n, **options):
        async with task:
            task.ys = {"y": task.xs["x"] ** 2}


def change(raw: Any, rush: Rush, at: int, old: bytes, new: bytes) -> None:
    finished = NetworkKeys.of(rush.network_id).finished
    record = raw.lindex(finished, at)
    assert record.count(old) == 1
    raw.lset(finished, at, record.replace(old, new))
    rush.reset_cache()


async def test_a_flipped_bit_in_an_input_is_found_and_named(rush_server: RushConfig, raw: Any) -> None:
    async with seeded(rush_server) as (rush, worker):
        await run(worker, 5)
        assert await replay(rush, walk) == Replay(5)
        tasks = await rush.get_tasks((await rush.fetch_finished_tasks())["keys"].to_list())
        task = tasks[3]
        assert task is not None
        key, xs = task.key, dict(task.xs)
        record = raw.lindex(NetworkKeys.of(rush.network_id).finished, 3)
        at = record.index(b"\xcb") + 8  # the last byte of the first float
        change(raw, rush, 3, record[at - 8 : at + 1], record[at - 8 : at] + bytes([record[at] ^ 1]))
        found = await replay(rush, walk)
        assert found.divergence is not None
        assert (found.n_compared, found.is_identical) == (4, False)
        divergence: Divergence = found.divergence
        assert (divergence.index, divergence.key, divergence.found) == (3, key, xs)
        assert divergence.expected["x"] != xs["x"]


async def test_another_function_diverges_at_its_first_proposal(rush_server: RushConfig) -> None:
    async with seeded(rush_server) as (rush, worker):
        await rush.push_tasks([{"x": 0.0, "n": 0}])
        await run(worker, 3)
        found = await replay(rush, lambda draw: {"x": 0.0})
        assert found.divergence is not None
        assert (found.n_compared, found.divergence.index) == (1, 1)  # the design was pushed, not proposed


async def test_what_is_stored_beside_an_input_may_differ(rush_server: RushConfig) -> None:
    async with seeded(rush_server) as (rush, worker):
        n = 0

        def timed(draw: Draw) -> Any:
            nonlocal n
            n += 1
            return {"x": draw.numpy().random()}, {"seconds": n}

        await anext(worker.proposals(timed))
        assert (await replay(rush, timed)).is_identical


async def test_an_error_of_the_function_propagates(rush_server: RushConfig) -> None:
    async with seeded(rush_server) as (rush, worker):
        await run(worker, 1)
        with pytest.raises(ZeroDivisionError):
            await replay(rush, lambda draw: 1 // 0)


async def test_a_network_without_a_seed_cannot_be_replayed(rush: Rush, rush_worker: RushWorker) -> None:
    await run(rush_worker, 1)
    with pytest.raises(NetworkStateError, match="has no seed, so its proposals cannot be repeated"):
        await replay(rush, walk)
    key = (await rush.fetch_finished_tasks())["keys"][0]
    with pytest.raises(KeyError, match="has no proposal"):
        await fetch_tasks_as_of(rush, key)


async def test_tasks_as_of_a_proposal_are_those_that_it_saw(rush_server: RushConfig) -> None:
    """Also when the columns of later tasks have other types, and whatever became of those that ran or had failed."""
    seen: list[tuple[str, pl.DataFrame]] = []

    async with seeded(rush_server) as (rush, worker):

        async def observe() -> str:
            def look(draw: Draw) -> dict[str, Any]:
                seen.append(("", draw.tasks))
                return {"x": len(seen), "by": "proposal"}

            task = await anext(worker.proposals(look, read=STATES, queued=False))
            seen[-1] = (task.key, seen[-1][1])
            return task.key

        await observe()
        keys = await worker.push_running_tasks([{"z": 1, "x": x} for x in range(4)], xss_extra=[{"e": [1]}] * 4)
        await observe()
        await worker.finish_tasks(keys[2], [{"y": 1}])
        await worker.fail_tasks(keys[0], "why")
        (queued,) = await rush.push_tasks([{"w": "text"}])
        await observe()
        await worker.finish_tasks(keys[1], [{"y": 2.5}], yss_extra=[{"more": {"a": 1}}])
        await rush.retry_tasks(keys[0])
        await rush.cancel_tasks(queued)
        await observe()
        await worker.finish_tasks(keys[3], [{"y": "text"}])
        await rush.push_finished_tasks([{"x": "text", "v": 1}], [{"y": None}])
        for key, frame in seen:
            assert_frame_equal(await fetch_tasks_as_of(rush, key), frame)
        assert seen[2][1].schema["y"] == pl.Int64()
        assert seen[3][1].schema["y"] == pl.Float64()
        assert not {"keys", "worker_id", "condition", "created_at", "attempt"} & set(seen[2][1].columns)
        with pytest.raises(KeyError, match="has no proposal"):
            await fetch_tasks_as_of(rush, keys[0])


async def test_columns_come_in_the_same_order_whether_more_has_finished_or_not(rush_server: RushConfig) -> None:
    async with seeded(rush_server) as (rush, worker):
        keys = await worker.push_running_tasks([{"a": 1, "b": 2}, {"c": 3, "a": 4}])
        await worker.finish_tasks(keys[0], [{"y": 1}])
        frames: list[pl.DataFrame] = []

        def look(draw: Draw) -> dict[str, Any]:
            frames.append(draw.tasks)
            return {"d": 1}

        task = await anext(worker.proposals(look, read=("running", "finished")))
        assert_frame_equal(await fetch_tasks_as_of(rush, task.key), frames[0])
        await worker.finish_tasks(keys[1], [{"y": 2}])
        assert_frame_equal(await fetch_tasks_as_of(rush, task.key), frames[0])


async def test_a_record_that_is_gone_is_an_error(rush_server: RushConfig, raw: Any) -> None:
    async with seeded(rush_server) as (rush, worker):
        await run(worker, 3)
        key = (await rush.fetch_finished_tasks())["keys"][2]
        finished = NetworkKeys.of(rush.network_id).finished
        raw.lpop(finished, 2)
        rush.reset_cache()
        with pytest.raises(DecodeError, match="a proposal saw 2 finished tasks, and the network has 1 of them now"):
            await fetch_tasks_as_of(rush, key)


async def test_running_and_failed_tasks_come_by_index_everywhere(rush_server: RushConfig) -> None:
    async with seeded(rush_server) as (rush, worker):
        keys = await worker.push_running_tasks([{"x": x} for x in range(300)])
        for key in reversed(keys[::3]):
            await worker.fail_tasks(key)
        running = [at for at in range(300) if at % 3]
        assert (await rush.fetch_running_tasks(times=True))["index"].to_list() == running
        assert (await rush.fetch_failed_tasks(times=True))["index"].to_list() == list(range(0, 300, 3))
        assert (await rush.fetch_tasks(times=True))["index"].to_list() == [*running, *range(0, 300, 3)]
        found = await rush.keys_with_state("running", "failed")
        assert found["failed"] == keys[::3]
        assert found["running"] == [keys[at] for at in running]
