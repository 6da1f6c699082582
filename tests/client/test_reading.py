"""Tasks as frames: what travels, what is kept, and whose a frame is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import polars as pl
import pytest

from rush_async import Counts, Rush, RushClient, RushWorker, SchemaError
from rush_async.testing import wait_until
from rush_async.worker.worker import membership_of
from tests.proxy import Proxy

XS = {"x1": 1.0, "x2": 2.0}
SOON = 5.0
CONDITION = pl.Struct({"kind": pl.String, "type": pl.String, "message": pl.String, "traceback": pl.String})


async def finish(rush: Rush, n: int, first: int = 0) -> list[str]:
    """Finished tasks with x = first, first + 1, ... and y = 2 x."""
    numbers = range(first, first + n)
    return await rush.push_finished_tasks([{"x": x} for x in numbers], [{"y": 2 * x} for x in numbers])


# columns


async def test_finished_tasks_come_in_the_order_they_finished(rush: Rush, rush_worker: RushWorker) -> None:
    keys = await rush_worker.push_running_tasks([{"n": n} for n in range(5)])
    order = [keys[at] for at in (3, 0, 4, 1, 2)]
    for key in order:
        await rush_worker.finish_tasks(key, [{"y": 1.5}])
    frame = await rush.fetch_finished_tasks()
    assert frame["keys"].to_list() == order
    assert frame["n"].to_list() == [3, 0, 4, 1, 2]
    assert frame["worker_id"].unique().to_list() == [rush_worker.worker_id]


async def test_columns_come_in_the_promised_order(rush: Rush, rush_worker: RushWorker) -> None:
    (key,) = await rush_worker.push_running_tasks([{"x2": 1, "x1": 2.0}], xss_extra=[{"seed": 3}])
    await rush_worker.finish_tasks(key, [{"y": 4.0}], yss_extra=[{"note": "good"}])
    frame = await rush.fetch_finished_tasks()
    assert frame.columns == ["worker_id", "x2", "x1", "y", "seed", "note", "keys"]
    assert frame.rows() == [(rush_worker.worker_id, 1, 2.0, 4.0, 3, "good", key)]
    times = await rush.fetch_finished_tasks(times=True)
    assert times.columns == [*frame.columns[:-1], "created_at", "started_at", "ended_at", "attempt", "index", "keys"]
    assert [times.schema[name] for name in ("created_at", "started_at", "ended_at")] == [pl.Datetime("us", "UTC")] * 3
    (row,) = times.rows(named=True)
    assert row["created_at"] <= row["started_at"] <= row["ended_at"]
    assert row["attempt"] == 1


async def test_a_frame_of_each_state_has_its_columns(rush: Rush, rush_worker: RushWorker) -> None:
    (running,) = await rush_worker.push_running_tasks([{"x": 2}])
    queued = await rush.push_tasks([{"x": 0}, {"x": 1}], xss_extra=[{"seed": 5}, None])
    (failed,) = await rush.push_failed_tasks([{"x": 3}], "broken")
    (finished,) = await finish(rush, 1, first=4)

    frame = await rush.fetch_queued_tasks()
    assert frame.columns == ["worker_id", "x", "seed", "keys"]
    assert frame["keys"].to_list() == queued
    frame = await rush.fetch_running_tasks()
    assert frame.rows() == [(rush_worker.worker_id, 2, running)]
    frame = await rush.fetch_failed_tasks()
    assert frame.columns == ["worker_id", "x", "condition", "keys"]
    assert frame.schema["condition"] == CONDITION
    condition = {"kind": "error", "type": None, "message": "broken", "traceback": None}
    assert frame.rows() == [(None, 3, condition, failed)]

    frame = await rush.fetch_tasks()
    assert frame.columns == ["state", "worker_id", "x", "y", "seed", "condition", "keys"]
    assert frame["state"].to_list() == ["queued", "queued", "running", "finished", "failed"]
    assert frame["keys"].to_list() == [*queued, running, finished, failed]
    assert frame["condition"].to_list() == [None] * 4 + [condition]
    assert frame.equals(await rush.fetch_tasks_with_state())

    frame = await rush.fetch_tasks_with_state("finished", "queued")
    assert frame.columns == ["state", "worker_id", "x", "y", "seed", "keys"]
    assert frame["state"].to_list() == ["finished", "queued", "queued"]
    assert (await rush.fetch_tasks_with_state("running", "running")).height == 1


async def test_frames_without_rows_have_the_fixed_columns_and_those_of_the_schema(rush: Rush) -> None:
    assert (await rush.fetch_finished_tasks()).schema == {"worker_id": pl.String, "keys": pl.String}
    assert (await rush.fetch_new_tasks()).schema == {"worker_id": pl.String, "keys": pl.String}
    assert (await rush.fetch_queued_tasks()).columns == ["worker_id", "keys"]
    assert (await rush.fetch_failed_tasks()).schema == {"worker_id": pl.String, "condition": CONDITION, "keys": pl.String}
    assert (await rush.fetch_tasks()).columns == ["state", "worker_id", "condition", "keys"]
    frame = await rush.fetch_finished_tasks(times=True, schema={"y": pl.Float64})
    assert frame.columns == ["worker_id", "y", "created_at", "started_at", "ended_at", "attempt", "index", "keys"]
    assert frame.filter(pl.col("y") < 3).height == 0


async def test_the_schema_of_a_client_holds_for_all_its_frames(rush: Rush) -> None:
    async with Rush(rush.network_id, rush.config, schema={"y": pl.Float64}) as mine:
        fetches: list[Callable[[], Awaitable[pl.DataFrame]]] = [
            mine.fetch_finished_tasks,
            mine.fetch_new_tasks,
            mine.fetch_queued_tasks,
            mine.fetch_running_tasks,
            mine.fetch_failed_tasks,
            mine.fetch_tasks,
            lambda: mine.fetch_tasks_with_state("queued"),
        ]
        for fetch in fetches:
            assert (await fetch()).schema["y"] == pl.Float64
        await finish(rush, 3)
        assert (await mine.fetch_finished_tasks()).schema["y"] == pl.Float64
        assert (await mine.fetch_finished_tasks(schema={"y": pl.Int32})).schema["y"] == pl.Int32
        assert (await rush.fetch_finished_tasks()).schema["y"] == pl.Int64


async def test_a_value_that_does_not_fit_the_schema_is_named(rush: Rush) -> None:
    await finish(rush, 3)
    (key,) = await rush.push_finished_tasks([{"x": 1}], [{"y": "high"}])
    for fetch in (rush.fetch_finished_tasks, rush.fetch_new_tasks, rush.fetch_tasks):
        with pytest.raises(SchemaError) as caught:
            await fetch(schema={"y": pl.Float64})
        assert [word for word in (key, "'y'", "high") if word not in str(caught.value)] == []
    # What could not be shown was not taken: it is new still.
    assert (await rush.fetch_new_tasks(schema={"y": pl.String})).height == 4


async def test_names_that_collide_get_prefixes(rush: Rush) -> None:
    await rush.push_finished_tasks([{"a": 1}], [{"a": 2, "keys": 3}], xss_extra=[{"a": 4}], yss_extra=[{"a": 5}])
    frame = await rush.fetch_finished_tasks()
    assert frame.select("a", "ys.a", "ys.keys", "xs_extra.a", "ys_extra.a").rows() == [(1, 2, 3, 4, 5)]


# the cache


async def test_a_second_fetch_moves_no_record_but_the_last(rush: Rush, proxy: Proxy) -> None:
    await finish(rush, 5_000)
    async with RushClient(rush.network_id, proxy.url) as far:
        assert (await far.fetch_finished_tasks()).height == 5_000
        bytes_before, commands_before = proxy.bytes_down, len(proxy.commands)
        assert (await far.fetch_finished_tasks()).height == 5_000
        assert proxy.bytes_down - bytes_before < 500
        assert len(proxy.commands) - commands_before <= 5  # one transaction of three reads: one round trip
        await finish(rush, 3, first=5_000)
        bytes_before = proxy.bytes_down
        frame = await far.fetch_finished_tasks()
        assert frame["x"].to_list() == list(range(5_003))
        assert proxy.bytes_down - bytes_before < 1_500


async def test_concurrent_fetches_share_one_read(rush: Rush, proxy: Proxy) -> None:
    await finish(rush, 5_000)
    async with Rush(rush.network_id, proxy.url) as far, Rush(rush.network_id, proxy.url) as beside:
        bytes_before = proxy.bytes_down
        await far.fetch_finished_tasks()
        alone = proxy.bytes_down - bytes_before
        far.reset_cache()
        bytes_before, commands_before = proxy.bytes_down, len(proxy.commands)
        frames = await asyncio.gather(*[client.fetch_finished_tasks() for client in (far, beside) for _ in range(20)])
        assert {frame.height for frame in frames} == {5_000}
        # The first reads what there is; one more covers all who asked while it was under way.
        assert proxy.bytes_down - bytes_before < alone + 5_000
        assert len(proxy.commands) - commands_before < 60


async def test_a_fetch_sees_all_that_was_finished_before_it(rush: Rush, elsewhere: Rush) -> None:
    for n in range(1, 40):
        await finish(elsewhere, 1, first=n)
        frames = await asyncio.gather(*[rush.fetch_finished_tasks() for _ in range(3)])
        assert [frame.height for frame in frames] == [n] * 3


async def test_a_fetch_that_begins_during_a_read_sees_what_was_finished_before_it(rush: Rush, elsewhere: Rush) -> None:
    await finish(elsewhere, 3_000)
    reading = asyncio.create_task(rush.fetch_finished_tasks())
    for n in range(10):
        await finish(elsewhere, 1, first=3_000 + n)
        assert (await rush.fetch_finished_tasks()).height >= 3_001 + n
    assert (await reading).height >= 3_000


async def test_a_cancelled_fetch_disturbs_no_other(rush: Rush) -> None:
    await finish(rush, 5_000)
    for ticks in range(15):
        rush.reset_cache()
        first = asyncio.create_task(rush.fetch_finished_tasks())
        second = asyncio.create_task(rush.fetch_finished_tasks())
        for _ in range(ticks):
            await asyncio.sleep(0)
        first.cancel()
        frame = await asyncio.wait_for(second, SOON)
        assert frame["x"].to_list() == list(range(5_000))
        await asyncio.wait([first])


async def test_reset_cache_reads_anew_for_all_clients_of_the_process(rush: Rush) -> None:
    keys = await finish(rush, 100)
    async with Rush(rush.network_id, rush.config) as other:
        for client in (rush, other):
            assert (await client.fetch_finished_tasks())["keys"].to_list() == keys
        assert (await other.fetch_new_tasks()).height == 100
        rush.reset_cache()
        for client in (rush, other):
            assert (await client.fetch_finished_tasks())["keys"].to_list() == keys
        # What a client has seen it has seen.
        assert (await other.fetch_new_tasks()).height == 0
        rush.reset_cache()
        assert (await other.fetch_new_tasks()).height == 0
        keys += await finish(rush, 1, first=100)
        assert (await other.fetch_new_tasks())["keys"].to_list() == keys[-1:]


async def test_reset_cache_during_a_read_loses_and_repeats_nothing(rush: Rush) -> None:
    await finish(rush, 10_000)
    for ticks in range(0, 40, 2):
        reading = asyncio.create_task(rush.fetch_finished_tasks())
        for _ in range(ticks):
            await asyncio.sleep(0)
        rush.reset_cache()
        frame = await asyncio.wait_for(reading, SOON)
        assert frame["x"].to_list() == list(range(10_000))


async def test_a_frame_is_the_callers_own(rush: Rush) -> None:
    await finish(rush, 3_000)
    first = await rush.fetch_finished_tasks()
    first[0, "x"] = -1
    first.insert_column(0, pl.Series("mine", range(3_000)))
    first.drop_in_place("y")
    first.extend(first)
    first.columns = [f"renamed {name}" for name in first.columns]
    second = await rush.fetch_finished_tasks()
    assert second.columns == ["worker_id", "x", "y", "keys"]
    assert second["x"].to_list() == list(range(3_000))
    await finish(rush, 1, first=3_000)
    second[0, "x"] = -1
    assert (await rush.fetch_finished_tasks())["x"].to_list() == list(range(3_001))


async def test_a_frame_stays_what_it_was_when_more_is_finished(rush: Rush) -> None:
    frames: list[pl.DataFrame] = []
    for n in range(50):
        frames.append(await rush.fetch_finished_tasks())
        await finish(rush, 1, first=n)
    await rush.push_finished_tasks([{"x": "text"}], [{"z": [1]}])
    with pytest.warns(UserWarning, match="'x' is text"):
        await rush.fetch_finished_tasks()
    await rush.reset()
    assert [frame.height for frame in frames] == list(range(50))
    assert all(frame["x"].to_list() == list(range(frame.height)) for frame in frames[1:])


async def test_large_records_are_read_whole(rush: Rush) -> None:
    await finish(rush, 200)
    texts = [str(n) * 400_000 for n in range(10)]
    await rush.push_finished_tasks([{"x": 200 + n} for n in range(10)], [{"text": text} for text in texts])
    await finish(rush, 200, first=210)
    frame = await rush.fetch_finished_tasks()
    assert frame["x"].to_list() == list(range(410))
    assert frame["text"].drop_nulls().to_list() == texts


# new tasks


async def test_new_tasks_come_once_a_client_beginning_with_all(rush: Rush) -> None:
    keys = await finish(rush, 3)
    assert (await rush.fetch_new_tasks())["keys"].to_list() == keys
    frame = await rush.fetch_new_tasks()
    assert frame.height == 0
    assert frame.columns == ["worker_id", "x", "y", "keys"]
    more = await finish(rush, 2, first=3)
    await rush.fetch_finished_tasks()  # other fetches take nothing away
    assert (await rush.fetch_new_tasks())["keys"].to_list() == more
    async with Rush(rush.network_id, rush.config) as other:
        assert (await other.fetch_new_tasks())["keys"].to_list() == keys + more
        assert (await rush.fetch_new_tasks()).height == 0


async def test_new_tasks_of_concurrent_calls_come_once(rush: Rush, elsewhere: Rush) -> None:
    done = asyncio.Event()
    seen: list[str] = []

    async def read() -> None:
        while not done.is_set():
            seen.extend((await rush.fetch_new_tasks(timeout=0.05))["keys"])

    readers = [asyncio.create_task(read()) for _ in range(4)]
    keys: list[str] = []
    for n in range(100):
        keys += await finish(elsewhere, 1 + n % 3, first=n)
    await rush.wait_until(lambda counts: counts.finished == len(keys), timeout=SOON)
    done.set()
    await asyncio.gather(*readers)
    seen.extend((await rush.fetch_new_tasks())["keys"])
    assert len(seen) == len(set(seen)) == len(keys)
    assert set(seen) == set(keys)


async def test_waiting_for_new_tasks_ends_when_one_comes(rush: Rush, elsewhere: Rush) -> None:
    await finish(rush, 2)
    assert (await rush.fetch_new_tasks(timeout=60)).height == 2
    for n in range(10):
        waiting = asyncio.create_task(rush.fetch_new_tasks(timeout=60))
        for _ in range(n):
            await asyncio.sleep(0)
        (key,) = await finish(elsewhere, 1, first=2 + n)
        assert (await asyncio.wait_for(waiting, SOON))["keys"].to_list() == [key]


async def test_waiting_for_new_tasks_ends_empty_when_the_time_is_up(rush: Rush) -> None:
    await finish(rush, 1)
    await rush.fetch_new_tasks()
    for timeout in (0.05, 0.2):
        begin = time.monotonic()
        assert (await rush.fetch_new_tasks(timeout=timeout)).height == 0
        assert timeout <= time.monotonic() - begin + 0.01 < timeout + 2


async def test_waiting_for_new_tasks_asks_nothing(rush: Rush, proxy: Proxy) -> None:
    async with Rush(rush.network_id, proxy.url) as far:
        await far.fetch_new_tasks(timeout=0.01)
        waiting = asyncio.create_task(far.fetch_new_tasks(timeout=60))
        await wait_until(lambda: proxy.count("SSUBSCRIBE") == 1 and far._net.feed.is_watching)  # pyright: ignore[reportPrivateUsage]
        await far.counts()
        before = len(proxy.commands)
        done, _ = await asyncio.wait([waiting], timeout=0.3)
        assert not done
        assert len(proxy.commands) == before
        await finish(rush, 1)
        assert (await asyncio.wait_for(waiting, SOON)).height == 1


async def test_waiting_for_new_tasks_continues_through_a_reset(rush: Rush, elsewhere: Rush) -> None:
    for workers in (True, False):
        await finish(rush, 3)
        assert (await rush.fetch_new_tasks(timeout=SOON)).height == 3
        waiting = asyncio.create_task(rush.fetch_new_tasks(timeout=SOON))
        await rush.wait_until(lambda counts: counts.finished >= 3)
        await elsewhere.reset(workers=workers)
        await rush.wait_until(lambda counts: counts.finished == 0, timeout=SOON)
        for _ in range(5):
            await rush.counts()
        assert not waiting.done()
        (key,) = await finish(elsewhere, 1)
        assert (await asyncio.wait_for(waiting, SOON))["keys"].to_list() == [key]


async def test_a_cancelled_wait_for_new_tasks_takes_none(rush: Rush) -> None:
    keys: list[str] = []
    seen: list[str] = []
    for ticks in range(20):
        waiting = asyncio.create_task(rush.fetch_new_tasks(timeout=60))
        keys += await finish(rush, 1, first=ticks)
        for _ in range(ticks):
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        if not waiting.cancelled():
            seen.extend(waiting.result()["keys"])
    seen.extend((await rush.fetch_new_tasks())["keys"])
    assert seen == keys


async def test_frames_during_a_bulk_push_show_whole_calls(rush: Rush, elsewhere: Rush) -> None:
    pushing = asyncio.create_task(elsewhere.push_finished_tasks([{"x": x} for x in range(9_000)], [{"y": 1}] * 9_000))
    heights: list[int] = []
    while not pushing.done():
        frame = await rush.fetch_finished_tasks()
        heights.append(frame.height)
        if frame.height:
            assert frame["x"].to_list() == list(range(frame.height))
    assert heights == sorted(heights)
    assert {height % 1_000 for height in heights} == {0}
    assert (await rush.fetch_finished_tasks()).height == 9_000


# resets


@pytest.mark.parametrize("workers", [True, False])
async def test_a_reset_elsewhere_is_noticed_by_every_read(rush: Rush, elsewhere: Rush, workers: bool) -> None:
    for watching in (False, True):
        old = await finish(rush, 20)
        assert (await rush.fetch_tasks()).height == 20
        await rush.fetch_new_tasks()
        if watching:
            await rush.wait_until(lambda counts: counts.finished == 20)
        await elsewhere.reset(workers=workers)
        new = await finish(elsewhere, 30, first=100)
        assert (await rush.fetch_tasks())["keys"].to_list() == new
        assert (await rush.fetch_finished_tasks())["keys"].to_list() == new
        assert (await rush.fetch_new_tasks())["keys"].to_list() == new
        assert await rush.get_tasks(old[0]) == [None]
        (task,) = await rush.get_tasks(new[0])
        assert task is not None
        assert task.xs == {"x": 100}
        await rush.reset()
        assert (await rush.fetch_tasks()).height == 0


async def test_reads_while_others_reset_and_write_never_hang_or_mix(rush: Rush, elsewhere: Rush) -> None:
    done = asyncio.Event()

    async def write() -> None:
        try:
            for era in range(25):
                await elsewhere.push_finished_tasks([{"era": era}] * 50, [{"y": era}] * 50)
                await elsewhere.push_tasks([{"era": era}] * 5)
                await asyncio.sleep(0)
                await elsewhere.reset(workers=era % 2 == 0)
        finally:
            done.set()

    async def read(fetch: Callable[[], Awaitable[pl.DataFrame]]) -> None:
        while not done.is_set():
            frame = await fetch()
            if frame.height:
                assert frame["era"].n_unique() == 1
                assert frame["keys"].n_unique() == frame.height

    writing = asyncio.create_task(write())
    async with asyncio.timeout(60):
        await asyncio.gather(
            writing,
            read(rush.fetch_finished_tasks),
            read(rush.fetch_tasks),
            read(rush.fetch_queued_tasks),
            read(lambda: rush.fetch_new_tasks(timeout=0.01)),
        )
    assert (await rush.fetch_tasks()).height == 0
    assert await rush.counts() == Counts()


async def test_a_list_that_went_back_in_time_is_read_anew(rush: Rush, raw: Any, caplog: pytest.LogCaptureFixture) -> None:
    keys = await finish(rush, 10)
    assert (await rush.fetch_finished_tasks()).height == 10
    # As after a restart of a server that lost its last second, and went on: same epoch, other records.
    name = f"rush:{{{rush.network_id}}}:finished"
    raw.ltrim(name, 0, 5)
    more = await finish(rush, 5, first=10)
    assert (await rush.fetch_finished_tasks())["keys"].to_list() == keys[:6] + more
    assert any("reading anew" in text for text in caplog.messages)
    raw.ltrim(name, 0, 3)
    assert (await rush.fetch_finished_tasks())["keys"].to_list() == keys[:4]


async def test_fetch_new_tasks_may_wait_for_ever(rush: Rush) -> None:
    async with Rush(rush.network_id, replace(rush.config, response_timeout=10.5)) as elsewhere:
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(rush.fetch_new_tasks(timeout=None))
            await wait_until(lambda: rush._net.feed.is_watching)  # pyright: ignore[reportPrivateUsage]
            await elsewhere.push_finished_tasks([{"x": 1}], [{"y": 2}])
        assert waiting.result()["y"].to_list() == [2]


async def test_records_of_which_a_chunk_holds_but_one_are_read_on(rush: Rush) -> None:
    for height in (3, 6):
        await rush.push_finished_tasks([{"x": "x" * 900_000}] * 3, [{"y": 1}] * 3)
        assert (await asyncio.wait_for(rush.fetch_finished_tasks(), 10)).height == height


async def test_a_reset_of_the_cache_takes_nothing_from_others_who_read(rush: Rush) -> None:
    keys = await rush.push_finished_tasks([{"x": x} for x in range(10)], [{"y": 1}] * 10)

    async def resetting() -> int:
        n = (await rush.fetch_finished_tasks()).height
        rush.reset_cache()
        return n

    async def reading() -> int:
        return (await rush.fetch_finished_tasks()).height

    async def reading_new() -> int:
        return (await rush.fetch_new_tasks()).height

    assert await asyncio.gather(resetting(), reading(), reading(), reading_new()) == [10] * 4
    assert await asyncio.gather(resetting(), reading_new()) == [10, 0]
    assert await reading_new() == 0
    tasks = await asyncio.gather(resetting(), rush.get_tasks(keys))
    assert None not in tasks[1]


async def test_own_counters_are_right_after_a_reset_that_workers_survive(rush: Rush) -> None:
    await rush.push_finished_tasks([{"x": 1}], [{"y": 1}])
    assert rush.n_finished_tasks == 1
    await rush.reset(workers=False)
    assert rush.n_finished_tasks == 0


async def test_what_is_finished_by_a_caller_that_is_cancelled_is_not_held(rush: Rush, rush_worker: RushWorker) -> None:
    (key,) = await rush_worker.push_running_tasks([{"x": 1}])
    finishing = asyncio.ensure_future(rush_worker.finish_tasks(key, [{"y": 1}]))
    await asyncio.sleep(0)
    finishing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await finishing
    assert not membership_of(rush_worker).held_keys()
    await rush.wait_until(lambda counts: counts.finished == 1, timeout=5)
