"""Proposals: what a worker takes, waits for, proposes and starts, and that a seed makes it the same in every run."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import polars as pl
import psutil
import pytest

from rush_async import (
    Draw,
    EncodeError,
    NetworkStateError,
    Processes,
    Rush,
    RushConfig,
    RushWorker,
    ServerFullError,
    TasksFailed,
    WorkerLostError,
)
from rush_async.store.keys import NetworkKeys
from rush_async.store.workers import KILLED
from rush_async.testing import wait_until
from rush_async.worker.worker import membership_of
from tests.proxy import Proxy
from tests.worker.searches import SEED, run_search, xs_of

N = 40
Results = set[tuple[int, str, str]]


@asynccontextmanager
async def seeded(config: RushConfig, seed: int = SEED, name: str | None = None) -> AsyncGenerator[Rush]:
    async with Rush(name, config, seed=seed) as rush:
        try:
            yield rush
        finally:
            await rush.reset()


def meta(rush: Rush, raw: Any, name: str) -> bytes | None:
    return raw.hget(NetworkKeys.of(rush.network_id).meta, name)


def returned(rush: Rush, raw: Any) -> list[bytes]:
    return raw.zrange(NetworkKeys.of(rush.network_id).returned, 0, -1)


def propose(draw: Draw) -> dict[str, Any]:
    return xs_of(draw)


async def results_of(rush: Rush) -> Results:
    frame = await rush.fetch_finished_tasks(times=True)
    return {(row["index"], repr(row["x"]), repr(row["y"])) for row in frame.iter_rows(named=True)}


async def indices_of(rush: Rush) -> list[int]:
    return sorted((await rush.fetch_tasks(times=True))["index"].to_list())


async def wait_until_waiting(worker: RushWorker, n: int = 1) -> None:
    waits = worker._membership.waits  # pyright: ignore[reportPrivateUsage]
    await wait_until(lambda: len(waits) == n)


# the same run again


async def run_in_coroutines(rush: Rush, n_workers: int, budget: int | None, *, fails: bool = False) -> None:
    await rush.start_workers(run_search, n_workers, args={"budget": budget, "fails": fails})
    async with asyncio.timeout(60):
        await rush.join_workers()


@pytest.mark.parametrize("limit", ["budget", "finished"])
@pytest.mark.parametrize("is_designed", [False, True])
@pytest.mark.parametrize("fails", [False, True])
async def test_any_number_of_coroutines_and_processes_gives_the_same_results(
    rush_server: RushConfig, limit: str, is_designed: bool, fails: bool
) -> None:
    found: list[Results] = []
    for n_workers, on in ((1, None), (4, None), (64, None), (2, Processes())):
        if on is not None and is_designed and fails:
            continue  # a start of processes takes its time
        async with seeded(rush_server) as rush:
            if is_designed:
                await rush.push_tasks([{"x": float(x)} for x in range(10)])
            if limit == "finished":
                await rush.stop_when(finished=N)
            budget = N if limit == "budget" else None
            await rush.start_workers(run_search, n_workers, on=on, args={"budget": budget, "fails": fails})
            async with asyncio.timeout(60):
                await rush.join_workers()
            found.append(await results_of(rush))
            n_failed = rush.n_failed_tasks
            assert len(found[-1]) == N
            assert await indices_of(rush) == list(range(N + n_failed))
            assert n_failed > 0 or not fails
    assert all(results == found[0] for results in found)


@pytest.mark.parametrize("n_workers", [8, 64])
@pytest.mark.parametrize("limit", ["budget", "finished"])
async def test_workers_that_wait_for_the_places_of_failed_tasks_never_stand_still(
    rush_server: RushConfig, n_workers: int, limit: str
) -> None:
    found: set[frozenset[tuple[int, str, str]]] = set()
    for _ in range(3):
        async with seeded(rush_server) as rush:
            if limit == "finished":
                await rush.stop_when(finished=200)
            await run_in_coroutines(rush, n_workers, 200 if limit == "budget" else None, fails=True)
            found.add(frozenset(await results_of(rush)))
    assert len(found) == 1


async def test_after_a_sigkill_each_index_is_there_once_with_its_own_input(rush_server: RushConfig) -> None:
    async with seeded(rush_server) as rush:
        await run_in_coroutines(rush, 4, 60)
        undisturbed = {index: x for index, x, _ in await results_of(rush)}
    async with seeded(rush_server) as rush:
        # Its own settings, so that the loss of the killed process is soon noticed.
        hasty = replace(rush.config, heartbeat_period=0.1, heartbeat_expire=0.5)
        async with Rush(rush.network_id, hasty) as manager:
            await manager.start_workers(run_search, 4, on=Processes(2), args={"budget": 60, "seconds": 0.01})
            await manager.wait_until(lambda counts: counts.finished >= 10)
            children = psutil.Process().children(recursive=True)
            pids = set((await manager.worker_info())["pid"])
            victim = next(child for child in children if child.pid in pids)
            victim.send_signal(signal.SIGKILL)
            async with asyncio.timeout(60):
                await manager.wait_until(lambda counts: counts.finished >= 60)
                await manager.join_workers(check=False)
        frame = await rush.fetch_tasks(times=True)
        assert sorted(frame["index"].to_list()) == list(range(frame.height))
        for index, x in frame.select("index", "x").iter_rows():
            assert index >= 60 or repr(x) == undisturbed[index]


async def test_a_network_without_a_seed_draws_other_numbers_in_each_run(rush: Rush, elsewhere: Rush) -> None:
    await run_in_coroutines(rush, 2, 5)
    first = set((await rush.fetch_finished_tasks())["x"])
    await rush.reset()
    await run_in_coroutines(rush, 2, 5)
    assert first.isdisjoint((await rush.fetch_finished_tasks())["x"])
    assert (await indices_of(rush)) == list(range(5))


# what comes first, and when it ends


@pytest.mark.parametrize("seed", [None, SEED])
async def test_queued_tasks_come_first(rush_server: RushConfig, seed: int | None) -> None:
    async with Rush(config=rush_server, seed=seed) as rush, RushWorker(rush.network_id, rush_server) as worker:
        keys = await rush.push_tasks([{"x": -1.0}, {"x": -2.0}])
        taken: list[Any] = []
        async for task in worker.proposals(propose, budget=4):
            taken.append((task.key if task.key in keys else "new", task.index, task.attempt, task.state))
            async with task:
                task.ys = {"y": 1.0}
        assert taken == [
            (keys[0], 0, 1, "running"),
            (keys[1], 1, 1, "running"),
            ("new", 2, 1, "running"),
            ("new", 3, 1, "running"),
        ]
        await rush.reset()


@pytest.mark.parametrize("seed", [None, SEED])
async def test_queued_tasks_are_left_to_others_if_asked(rush_server: RushConfig, seed: int | None) -> None:
    async with Rush(config=rush_server, seed=seed) as rush, RushWorker(rush.network_id, rush_server) as worker:
        await rush.push_tasks([{"x": -1.0}])
        n = 0
        async for task in worker.proposals(propose, queued=False):
            async with task:
                task.ys = {"y": 1.0}
            n += 1
            if n == 3:
                break
        assert await rush.counts() == (1, 0, 3, 0)
        assert (await worker.pop_task(0)) is not None
        await rush.reset()


@pytest.mark.parametrize("seed", [None, SEED])
async def test_a_budget_with_failed_tasks_ends_at_either(rush_server: RushConfig, seed: int | None) -> None:
    async with Rush(config=rush_server, seed=seed) as rush, RushWorker(rush.network_id, rush_server) as worker:
        async for task in worker.proposals(propose, budget=10, max_failed=3, catch=ValueError):
            async with task:
                raise ValueError("too bad")
        assert await rush.counts() == (0, 0, 0, 3)
        with pytest.raises(ValueError, match="max_failed needs a budget"):
            await anext(worker.proposals(propose, max_failed=3))
        async for task in worker.proposals(propose, budget=2):
            async with task:
                task.ys = {"y": 1.0}
        assert await rush.counts() == (0, 0, 2, 3)
        await rush.reset()


@pytest.mark.parametrize("seed", [None, SEED])
async def test_proposals_end_when_the_network_stops_or_the_worker_is_asked_to(
    rush_server: RushConfig, seed: int | None
) -> None:
    async with Rush(config=rush_server, seed=seed) as rush, RushWorker(rush.network_id, rush_server) as worker:
        n = 0
        async for task in worker.proposals(propose):
            async with task:
                task.ys = {"y": 1.0}
            n += 1
            if n == 2:
                await rush.stop("enough")
        assert n == 2
        await rush.resume()
        membership_of(worker).request_stop()
        assert [task async for task in worker.proposals(propose)] == []
        await rush.reset()


@pytest.mark.parametrize("seed", [None, SEED])
async def test_a_worker_that_is_killed_ends_with_an_error(rush_server: RushConfig, raw: Any, seed: int | None) -> None:
    async with Rush(config=rush_server, seed=seed) as rush, RushWorker(rush.network_id, rush_server) as worker:
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def wait(draw: Draw) -> dict[str, Any]:
            begun.set()
            await go_on.wait()
            return {"x": 1.0}

        turn = asyncio.ensure_future(anext(worker.proposals(wait)))
        await begun.wait()
        await rush._net.workers.lose([worker.worker_id], "killed", KILLED)  # pyright: ignore[reportPrivateUsage]
        assert meta(rush, raw, "reserved") in (None, b"0")
        assert returned(rush, raw) == ([] if seed is None else [b"0"])
        go_on.set()
        with pytest.raises(WorkerLostError):
            await turn
        assert await rush.counts() == (0, 0, 0, 0)
        await rush.reset()


# what a proposal may be


@pytest.mark.parametrize("seed", [None, SEED])
async def test_a_proposal_is_a_record_or_a_record_with_extras_of_a_function_or_a_coroutine(
    rush_server: RushConfig, seed: int | None
) -> None:
    async def later(draw: Draw) -> dict[str, Any]:
        await asyncio.sleep(0)
        return {"x": draw.round}

    def with_extra(draw: Draw) -> Any:
        return {"x": draw.round}, {"model": "forest"}

    async with Rush(config=rush_server, seed=seed) as rush, RushWorker(rush.network_id, rush_server) as worker:
        for proposed, extra in ((later, None), (with_extra, {"model": "forest"})):
            task = await anext(worker.proposals(proposed))
            (stored,) = await rush.get_tasks([task.key])
            assert stored is not None
            assert (task.xs, task.xs_extra) == (stored.xs, stored.xs_extra)
            assert task.xs_extra == extra
            assert (task.index, task.worker_id) == (stored.index, worker.worker_id)
            assert task.key in worker._membership.held_keys()  # pyright: ignore[reportPrivateUsage]
        await rush.reset()


@pytest.mark.parametrize("seed", [None, SEED])
@pytest.mark.parametrize(
    ("bad", "error"),
    [(5, TypeError), (None, TypeError), ("text", TypeError), (({"x": 1}, 5), TypeError), ({"x": 1j}, EncodeError)],
)
async def test_what_is_no_proposal_propagates_and_gives_its_place_back(
    rush_server: RushConfig, raw: Any, seed: int | None, bad: Any, error: type[Exception]
) -> None:
    async with Rush(config=rush_server, seed=seed) as rush, RushWorker(rush.network_id, rush_server) as worker:
        with pytest.raises(error):
            await anext(worker.proposals(lambda draw: bad, budget=1))
        task = await anext(worker.proposals(propose, budget=1))
        assert task.index == 0
        assert meta(rush, raw, "reserved") in (None, b"0")
        await rush.reset()


@pytest.mark.parametrize("seed", [None, SEED])
async def test_an_error_in_a_proposal_propagates_and_wakes_one_that_waits(rush_server: RushConfig, seed: int | None) -> None:
    async with (
        Rush(config=rush_server, seed=seed) as rush,
        RushWorker(rush.network_id, rush_server) as worker,
        RushWorker(rush.network_id, replace(rush_server, response_timeout=10.5)) as other,
    ):
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def fail(draw: Draw) -> dict[str, Any]:
            begun.set()
            await go_on.wait()
            raise ZeroDivisionError

        failing = asyncio.ensure_future(anext(worker.proposals(fail, budget=1)))
        await begun.wait()
        waiting = asyncio.ensure_future(anext(other.proposals(propose, budget=1)))
        if seed is not None:
            await wait_until_waiting(other)
            assert not waiting.done()
        go_on.set()
        with pytest.raises(ZeroDivisionError):
            await failing
        task = await asyncio.wait_for(waiting, 5)
        assert task.index == 0
        await rush.reset()


async def test_a_cancelled_proposal_gives_its_reservation_back(rush_server: RushConfig, raw: Any) -> None:
    async with seeded(rush_server) as rush, RushWorker(rush.network_id, rush_server) as worker:
        for n_turns in range(12):  # cancelled at any moment
            turn = asyncio.ensure_future(anext(worker.proposals(lambda draw: asyncio.sleep(0, {"x": 1.0}), budget=1_000)))
            for _ in range(n_turns):
                await asyncio.sleep(0.001)
            turn.cancel()
            await asyncio.gather(turn, return_exceptions=True)
            await worker._net.tasks.calls.quiet()  # pyright: ignore[reportPrivateUsage]
            assert meta(rush, raw, "reserved") in (None, b"0")
        task = await anext(worker.proposals(propose))
        assert task.index is not None
        assert await indices_of(rush) == list(range(task.index + 1))
        assert returned(rush, raw) == []


async def test_slow_proposals_run_side_by_side_and_keep_no_one_from_a_free_place(rush_server: RushConfig) -> None:
    async with seeded(rush_server) as rush, RushWorker(rush.network_id, rush_server) as worker:
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def slow(draw: Draw) -> dict[str, Any]:
            begun.set()
            await go_on.wait()
            return {"x": 1.0}

        await rush.stop_when(finished=2)
        slow_turn = asyncio.ensure_future(anext(worker.proposals(slow)))
        await begun.wait()
        task = await anext(worker.proposals(propose))
        waiting = asyncio.ensure_future(anext(worker.proposals(propose)))
        await wait_until_waiting(worker)
        await worker.fail_tasks(task.key)  # the place is free now, while the first proposal is still slow
        assert (await asyncio.wait_for(waiting, 5)).index == 2
        go_on.set()
        assert (await slow_turn).index == 0


async def test_a_budget_full_of_reservations_is_waited_for_and_not_asked_for(rush_server: RushConfig, raw: Any) -> None:
    async with seeded(rush_server) as rush, RushWorker(rush.network_id, rush_server) as worker:
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def slow(draw: Draw) -> dict[str, Any]:
            begun.set()
            await go_on.wait()
            raise ZeroDivisionError

        async def block() -> Any:
            async with worker.task({"x": 5.0}, budget=1) as task:
                assert task is not None
                task.ys = {"y": 1.0}
                return task.index

        turn = asyncio.ensure_future(anext(worker.proposals(slow, budget=1)))
        await begun.wait()
        blocks = [asyncio.ensure_future(block())]
        await wait_until_waiting(worker)
        n_calls = raw.info("commandstats")["cmdstat_evalsha"]["calls"]
        await asyncio.sleep(0.05)
        assert raw.info("commandstats")["cmdstat_evalsha"]["calls"] - n_calls < 3  # heartbeats
        go_on.set()
        with pytest.raises(ZeroDivisionError):
            await turn
        assert await asyncio.wait_for(blocks[0], 5) == 1


# what a proposal sees


@pytest.mark.parametrize("seed", [None, SEED])
async def test_a_proposal_reads_one_consistent_view_in_the_documented_order(rush_server: RushConfig, seed: int | None) -> None:
    async with Rush(config=rush_server, seed=seed) as rush, RushWorker(rush.network_id, rush_server) as worker:
        keys = await worker.push_running_tasks([{"x": float(x)} for x in range(20)], xss_extra=[{"e": x} for x in range(20)])
        for key in (keys[7], keys[3]):
            await worker.finish_tasks(key, [{"y": 0.5}])
        await worker.fail_tasks([keys[9], keys[1]])
        (queued, first) = await rush.push_tasks([{"x": -1.0}, {"x": -2.0}])
        await rush.cancel_tasks(queued)
        await rush.retry_tasks(queued)  # now behind the other
        frames: list[pl.DataFrame] = []

        def look(draw: Draw) -> dict[str, Any]:
            frames.append(draw.tasks)
            return {"x": 1.0}

        await anext(worker.proposals(look, read=("queued", "running", "finished", "failed"), queued=False))
        (frame,) = frames
        running = [at for at in range(20) if at not in (1, 3, 7, 9)]
        assert frame.columns == ["state", "index", "x", "y", "e"]
        assert frame["index"].to_list() == [21, 20, *running, 7, 3, 1, 9]
        assert list(Counter(frame["state"].to_list()).items()) == [
            ("queued", 2),
            ("running", 16),
            ("finished", 2),
            ("failed", 2),
        ]
        assert frame.filter(state="finished").rows() == [("finished", 7, 7.0, 0.5, 7), ("finished", 3, 3.0, 0.5, 3)]
        assert first
        await anext(worker.proposals(look, read="finished", queued=False))
        assert frames[1].rows() == frame.filter(state="finished").rows()
        await rush.reset()


async def test_a_proposal_that_reads_nothing_says_so(rush: Rush, rush_worker: RushWorker) -> None:
    with pytest.raises(ValueError, match="the proposal reads no tasks"):
        await anext(rush_worker.proposals(lambda draw: {"x": draw.tasks.height}))
    with pytest.raises(ValueError, match="no-state"):
        await anext(rush_worker.proposals(propose, read="no-state"))  # pyright: ignore[reportArgumentType]


async def test_columns_of_a_schema_are_there_from_the_first_proposal_on(rush: Rush, rush_worker: RushWorker) -> None:
    seen: list[dict[str, Any]] = []

    def look(draw: Draw) -> dict[str, Any]:
        seen.append(dict(draw.tasks.schema))
        return {"x": 1}

    await anext(rush_worker.proposals(look, read="finished", schema={"x": pl.Float64, "y": pl.Float64}))
    assert seen == [{"state": pl.String(), "index": pl.Int64(), "x": pl.Float64(), "y": pl.Float64()}]


async def test_rounds_count_the_proposals_of_a_worker(rush: Rush, rush_worker: RushWorker) -> None:
    draws: list[tuple[int | None, int, int]] = []

    def look(draw: Draw) -> dict[str, Any]:
        draws.append((draw.index, draw.worker, draw.round))
        return {"x": 1}

    for _ in range(2):
        await anext(rush_worker.proposals(look))
    assert draws == [(None, rush_worker.number, 0), (None, rush_worker.number, 1)]


# retries and catch


@pytest.mark.parametrize("seed", [None, SEED])
async def test_a_task_with_retries_is_queued_again_under_its_index_when_its_worker_is_killed(
    rush_server: RushConfig, seed: int | None
) -> None:
    async with Rush(config=rush_server, seed=seed) as rush:
        async with RushWorker(rush.network_id, rush_server) as worker:
            task = await anext(worker.proposals(propose, retries=1))
            await rush._net.workers.lose([worker.worker_id], "killed", KILLED)  # pyright: ignore[reportPrivateUsage]
        async with RushWorker(rush.network_id, rush_server) as worker:
            again = await anext(worker.proposals(propose))
            assert (again.key, again.index, again.xs, again.attempt) == (task.key, 0, task.xs, 2)
            with pytest.raises(ValueError, match="retries"):
                await anext(worker.proposals(propose, retries=128))
        await rush.reset()


async def test_caught_exceptions_fail_their_task_and_the_loop_continues(rush: Rush, rush_worker: RushWorker) -> None:
    await rush.push_tasks([{"x": 1.0}])

    async def run(tasks: Any) -> None:
        async for task in tasks:
            async with task:
                raise OSError("lost")

    await run(rush_worker.proposals(propose, budget=3, max_failed=2, catch=OSError))
    assert await rush.counts() == (0, 0, 0, 2)
    await rush.push_tasks([{"x": 1.0}] * 2)
    await run(rush_worker.tasks(timeout=0, catch=(OSError, KeyError)))
    assert await rush.counts() == (0, 0, 0, 4)
    with pytest.raises(OSError, match="lost"):
        await run(rush_worker.proposals(propose, catch=KeyError))
    await rush.push_tasks([{"x": 1.0}])
    with pytest.raises(OSError, match="lost"):
        await run(rush_worker.tasks(timeout=0, catch=KeyError))


# stops and resets between reservation and start


async def interrupted(
    rush: Rush, worker: RushWorker, between: Callable[[], Awaitable[Any]], after: Callable[[Draw], None] = lambda draw: None
) -> Any:
    """The turn of a proposal during which something happens."""
    n = 0

    async def wait(draw: Draw) -> dict[str, Any]:
        nonlocal n
        n += 1
        if n == 1:
            await between()
        else:
            after(draw)
        return {"x": draw.random().random(), "n": n}

    return await anext(worker.proposals(wait, queued=False), None)


async def test_a_stop_between_reservation_and_start_gives_the_index_back(rush_server: RushConfig, raw: Any) -> None:
    async with seeded(rush_server) as rush, RushWorker(rush.network_id, rush_server) as worker:
        assert await interrupted(rush, worker, lambda: rush.stop("enough")) is None
        assert (returned(rush, raw), meta(rush, raw, "reserved")) == ([b"0"], b"0")
        await rush.resume()
        assert (await anext(worker.proposals(propose))).index == 0


async def test_after_a_reset_between_reservation_and_start_the_proposal_is_made_anew(rush_server: RushConfig) -> None:
    async with seeded(rush_server) as rush, RushWorker(rush.network_id, rush_server) as worker:
        await worker.push_running_tasks([{"x": 1.0}])
        task = await interrupted(rush, worker, lambda: rush.reset(workers=False))
        assert (task.index, task.xs["n"]) == (0, 2)


async def test_a_proposal_from_before_a_reset_takes_no_reservation_made_after_it(rush_server: RushConfig) -> None:
    async with seeded(rush_server) as rush, RushWorker(rush.network_id, rush_server) as worker:
        second_begun, go_on = asyncio.Event(), asyncio.Event()

        async def late(draw: Draw) -> dict[str, Any]:
            second_begun.set()
            await go_on.wait()
            return {"x": "late"}

        turns: list[Any] = []

        async def between() -> None:
            await rush.reset(workers=False)
            turns.append(asyncio.ensure_future(anext(worker.proposals(late))))  # the same index, in the new epoch
            await second_begun.wait()

        task = await interrupted(rush, worker, between)
        go_on.set()
        other = await turns[0]
        assert (task.index, task.xs["n"]) == (1, 2)
        assert (other.index, other.xs) == (0, {"x": "late"})


async def test_a_reservation_that_is_gone_is_made_anew(rush_server: RushConfig, raw: Any) -> None:
    """As after a server was restored from older data."""
    async with seeded(rush_server) as rush, RushWorker(rush.network_id, rush_server) as worker:
        keys = NetworkKeys.of(rush.network_id)

        async def forget() -> None:
            raw.delete(keys.reserved)
            raw.hset(keys.meta, mapping={"reserved": 0, "next_index": 0})

        task = await interrupted(rush, worker, forget)
        assert (task.index, task.xs["n"]) == (0, 2)
        assert meta(rush, raw, "reserved") == b"0"


# seeds


@pytest.mark.parametrize("seed", [0, 2**63 - 1])
async def test_seeds_reach_from_zero_to_the_largest_signed_integer(rush_server: RushConfig, raw: Any, seed: int) -> None:
    async with seeded(rush_server, seed) as rush, RushWorker(rush.network_id, rush_server) as worker:
        task = await anext(worker.proposals(propose))
        assert task.xs == xs_of(Draw(seed, 0, 0, 0))
        assert meta(rush, raw, "seed") == str(seed).encode()


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_other_numbers_are_no_seeds(seed: int) -> None:
    with pytest.raises(ValueError, match="seed"):
        Rush("net", seed=seed)


@pytest.mark.parametrize("seed", [1.5, "1"])
def test_what_is_no_integer_is_no_seed(seed: Any) -> None:
    with pytest.raises(TypeError, match="seed"):
        Rush("net", seed=seed)


async def test_a_seed_creates_no_key_before_there_is_something(rush_server: RushConfig, raw: Any) -> None:
    async with seeded(rush_server) as rush:
        assert raw.keys("*") == []
        await rush.push_tasks([{"x": 1.0}])
        assert meta(rush, raw, "seed") == b"%d" % SEED


@pytest.mark.parametrize("workers", [True, False])
async def test_a_seed_outlives_both_resets(rush_server: RushConfig, raw: Any, workers: bool) -> None:
    async with seeded(rush_server) as rush:
        for _ in range(2):
            async with RushWorker(rush.network_id, rush_server) as worker:
                assert (await anext(worker.proposals(propose))).xs == xs_of(Draw(SEED, 0, 0, 0))
                await rush.reset(workers=workers)
        await rush.push_tasks([{"x": 1.0}])
        assert meta(rush, raw, "seed") == b"%d" % SEED


@pytest.mark.parametrize("exists_before", [False, True])
async def test_another_seed_in_this_process_is_an_error_that_names_both(rush_server: RushConfig, exists_before: bool) -> None:
    async with seeded(rush_server) as rush:
        if exists_before:
            await rush.push_tasks([{"x": 1.0}])
        with pytest.raises(NetworkStateError, match=f"has the seed {SEED} in this process, and 7 was given"):
            async with Rush(rush.network_id, rush_server, seed=7):
                pass
        async with Rush(rush.network_id, rush_server, seed=SEED), Rush(rush.network_id, rush_server):
            pass


async def test_another_seed_of_another_process_is_an_error_that_names_both(rush_server: RushConfig) -> None:
    far = replace(rush_server, response_timeout=10.5)
    async with seeded(rush_server) as rush:
        await rush.push_tasks([{"x": 1.0}])
        with pytest.raises(NetworkStateError, match=f"has the seed {SEED}, and 7 was given"):
            async with Rush(rush.network_id, far, seed=7):
                pass


async def test_two_processes_with_different_seeds_before_the_network_exists(rush_server: RushConfig) -> None:
    far = replace(rush_server, response_timeout=10.5)
    async with (
        seeded(rush_server) as rush,
        Rush(rush.network_id, far, seed=7),
        RushWorker(rush.network_id, rush_server) as first,
    ):
        await anext(first.proposals(propose))
        async with RushWorker(rush.network_id, far) as second:
            with pytest.raises(NetworkStateError, match=f"has the seed {SEED}, and 7 was given"):
                await anext(second.proposals(propose))
        assert await rush.counts() == (0, 1, 0, 0)


async def test_a_seed_for_a_network_with_tasks_and_without_a_seed_is_an_error(rush_server: RushConfig) -> None:
    far = replace(rush_server, response_timeout=10.5)
    async with Rush(config=rush_server) as rush:
        await rush.push_tasks([{"x": 1.0}])
        for config in (rush_server, far):
            with pytest.raises(NetworkStateError, match="holds tasks and has no seed, and 7 was given"):
                async with Rush(rush.network_id, config, seed=7):
                    pass
        async with RushWorker(rush.network_id, rush_server) as worker:
            assert (await anext(worker.proposals(propose, queued=False))).index == 1  # continues without one
        await rush.reset()


async def test_a_network_that_others_created_without_a_seed_gets_that_of_a_client(rush_server: RushConfig, raw: Any) -> None:
    far = replace(rush_server, response_timeout=10.5)
    async with seeded(rush_server) as rush, RushWorker(rush.network_id, far) as other:
        assert meta(rush, raw, "seed") is None  # the other process created it, without a seed
        async with RushWorker(rush.network_id, rush_server) as worker:
            assert (await anext(worker.proposals(propose))).xs == xs_of(Draw(SEED, 0, 0, 0))
        assert meta(rush, raw, "seed") == b"%d" % SEED
        assert (await anext(other.proposals(propose))).xs == xs_of(Draw(SEED, 1, 0, 0))


async def test_a_network_that_others_filled_without_a_seed_refuses_proposals_with_one(rush_server: RushConfig) -> None:
    far = replace(rush_server, response_timeout=10.5)
    async with seeded(rush_server) as rush:
        async with Rush(rush.network_id, far) as other:  # it never heard of a seed
            await other.push_tasks([{"x": 1.0}])
        async with RushWorker(rush.network_id, rush_server) as worker:
            with pytest.raises(NetworkStateError, match=f"holds tasks and has no seed, and {SEED} was given"):
                await anext(worker.proposals(propose))


async def test_a_running_worker_without_a_seed_hears_of_one(rush_server: RushConfig) -> None:
    far = replace(rush_server, response_timeout=10.5)
    async with Rush(config=rush_server) as rush, RushWorker(rush.network_id, rush_server) as worker:
        with pytest.raises(ZeroDivisionError):
            await anext(worker.proposals(lambda draw: 1 // 0))  # it has read that there is no seed
        async with Rush(rush.network_id, far, seed=SEED):
            network = worker._net  # pyright: ignore[reportPrivateUsage]
            await wait_until(lambda: network.position.seq == 2)  # the worker, and the seed
            assert (await anext(worker.proposals(propose))).xs == xs_of(Draw(SEED, 0, 0, 0))
        await rush.reset()


async def test_a_full_server_gives_the_reservation_back(rush_server: RushConfig, raw: Any) -> None:
    async with seeded(rush_server) as rush, RushWorker(rush.network_id, rush_server) as worker:

        async def fill() -> None:
            raw.config_set("maxmemory", 1)

        try:
            with pytest.raises(ServerFullError):
                await interrupted(rush, worker, fill)
            await worker._net.tasks.calls.quiet()  # pyright: ignore[reportPrivateUsage]
        finally:
            raw.config_set("maxmemory", 0)
        assert returned(rush, raw) == [b"0"]


async def test_reservations_survive_a_broken_connection(rush_server: RushConfig, proxy: Proxy, raw: Any) -> None:
    async with seeded(rush_server) as rush, RushWorker(rush.network_id, rush_server.at(proxy.url), seed=SEED) as worker:

        async def cut() -> None:
            proxy.cut_all()

        task = await interrupted(rush, worker, cut)
        assert (task.index, task.xs["n"]) == (0, 1)
        assert (returned(rush, raw), meta(rush, raw, "reserved")) == ([], b"0")


async def test_events_of_proposals_are_those_of_tasks(rush_server: RushConfig) -> None:
    async with AsyncExitStack() as stack:
        rush = await stack.enter_async_context(seeded(rush_server))
        worker = await stack.enter_async_context(RushWorker(rush.network_id, rush_server))
        events = await stack.enter_async_context(rush.events())
        with pytest.raises(ZeroDivisionError):
            await anext(worker.proposals(lambda draw: 1 // 0))
        task = await anext(worker.proposals(propose))
        await worker.fail_tasks(task.key)
        first, second = await anext(events), await anext(events)
        assert (first.seq + 1, type(second)) == (second.seq, TasksFailed)
