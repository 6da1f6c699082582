"""Starting, waiting for, joining and stopping workers; behaviour that depends on the launcher is tested in `tests/launch`."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from rush_async import (
    Coroutines,
    NetworkStateError,
    Processes,
    Rush,
    RushTimeoutError,
    RushWorker,
    SchemaError,
    WorkerExit,
    WorkerLoopError,
    WorkersNotReadyError,
    rsh,
    run_worker,
)
from rush_async.testing import wait_until
from tests.launch.loops_of_tests import CannotBeUnpickled, do_some, hold, name_dtype, note_arguments, raise_holding, serve
from tests.proxy import Proxy


async def states(rush: Rush) -> dict[str, str]:
    info = await rush.worker_info()
    return dict(zip(info["worker_id"], info["state"], strict=True))


# waiting


async def test_row_3_wait_for_workers_raises_the_death_of_a_worker_once(rush: Rush) -> None:
    await rush.start_workers(note_arguments, 1, on=Processes(), thing=CannotBeUnpickled())
    with pytest.raises(WorkersNotReadyError, match="missing_package"):
        await rush.wait_for_workers(1, timeout=60)
    await rush.start_workers(serve, 2)
    await rush.wait_for_workers(2, timeout=10)


async def test_row_3_a_worker_stopped_before_it_ran_ends_the_wait_with_an_error(rush: Rush) -> None:
    network = rush._net  # pyright: ignore[reportPrivateUsage]
    await network.workers.announce(["a"], {"pid": None}, None)
    waiting = asyncio.create_task(rush.wait_for_workers(worker_ids=["a"]))
    await asyncio.sleep(0)
    await network.workers.deregister("a", "terminated")
    with pytest.raises(WorkersNotReadyError, match="a died before it was running: it was terminated"):
        await waiting


async def test_row_3_a_worker_id_given_twice_counts_once(rush: Rush) -> None:
    ids = await rush.start_workers(serve, 1)
    await rush.wait_for_workers(worker_ids=ids * 2, timeout=10)
    with pytest.raises(ValueError, match="n is 2 and only 1"):
        await rush.wait_for_workers(2, worker_ids=ids * 2)


async def test_row_3_an_event_wakes_the_wait_for_a_worker_of_another_client(rush: Rush, raw: Any) -> None:
    waiting = asyncio.create_task(rush.wait_for_workers(1, worker_ids=["late"]))
    await wait_until(lambda: raw.pubsub_shardnumsub(f"rush:{{{rush.network_id}}}:events")[0][1] == 1)
    async with RushWorker(rush.network_id, rush.config, worker_id="late"):
        await asyncio.wait_for(waiting, 10)


@pytest.mark.parametrize(("n", "error"), [(-1, ValueError), ("2", TypeError), (1.5, TypeError)])
async def test_row_3_an_invalid_number_of_workers_is_refused(rush: Rush, n: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        await rush.wait_for_workers(n)
    with pytest.raises(error):
        await rush.start_workers(serve, n)


async def test_closing_the_manager_ends_its_waits_for_workers_with_an_error(rush: Rush, rush_worker: RushWorker) -> None:
    other = await rsh(rush.network_id, rush.config)
    waits = [
        asyncio.create_task(other.wait_for_workers(5)),
        asyncio.create_task(other.join_workers(rush_worker.worker_id)),
    ]
    await other.wait_for_workers(1)
    await other.aclose()
    for wait in waits:
        with pytest.raises(NetworkStateError, match="is closed"):
            await wait


# joining


async def test_row_19_join_workers_with_timeout_0_checks_once(rush: Rush) -> None:
    async with RushWorker(rush.network_id, rush.config, worker_id="elsewhere"):
        with pytest.raises(RushTimeoutError):
            await rush.join_workers("elsewhere", timeout=0)
    assert await rush.join_workers("elsewhere", timeout=0) == [WorkerExit("elsewhere", "terminated")]


async def test_row_19_each_distinct_traceback_is_shown_once(rush: Rush) -> None:
    same = await rush.start_workers(raise_holding, 3, message="the same")
    (other,) = await rush.start_workers(raise_holding, 1, message="another")
    fine = await rush.start_workers(do_some, 1, n=1)
    with pytest.raises(WorkerLoopError, match="the loops of 4 of 5 workers failed") as caught:
        await rush.join_workers()
    text = str(caught.value)
    assert text.count("RuntimeError: the same") == text.count("RuntimeError: another") == 1
    assert all(worker_id in text for worker_id in [*same, other])
    assert fine[0] not in text
    assert await rush.join_workers(fine) == [WorkerExit(fine[0], "terminated")]


async def test_join_workers_without_workers_returns_nothing(rush: Rush) -> None:
    assert await rush.join_workers() == []


# stopping


async def test_row_9_a_worker_that_another_manager_starts_is_stopped_once_it_has_registered(rush: Rush) -> None:
    network = rush._net  # pyright: ignore[reportPrivateUsage]
    await network.workers.announce(["late"], {"pid": None}, None)
    stopping = asyncio.create_task(rush.stop_workers())
    await wait_until(lambda: network.feed.is_watching)
    async with RushWorker(rush.network_id, rush.config, worker_id="late") as worker:
        assert await asyncio.wait_for(worker.pop_task(timeout=None), 10) is None
        assert worker.terminated
    await asyncio.wait_for(stopping, 10)
    assert await states(rush) == {"late": "terminated"}


async def test_row_9_stop_workers_without_workers_does_nothing(rush: Rush, caplog: pytest.LogCaptureFixture) -> None:
    await rush.stop_workers()
    await rush.stop_workers([])
    await rush.stop_workers(mode="kill")
    assert caplog.records == []
    wrong: Any = "halt"
    with pytest.raises(ValueError, match="'terminate' or 'kill', not 'halt'"):
        await rush.stop_workers(mode=wrong)


async def test_row_9_a_worker_that_has_ended_is_skipped_with_a_warning(rush: Rush, caplog: pytest.LogCaptureFixture) -> None:
    (worker_id,) = await rush.start_workers(do_some, 1)
    await rush.join_workers()
    for mode in ("terminate", "kill"):
        caplog.clear()
        await rush.stop_workers(worker_id, mode=mode)
        assert f"{worker_id} is not running" in caplog.text
    assert await states(rush) == {worker_id: "terminated"}


async def test_a_start_that_is_cancelled_leaves_no_worker_starting(rush: Rush) -> None:
    for n_steps in range(6):
        starting = asyncio.create_task(rush.start_workers(serve, 2))
        for _ in range(n_steps):
            await asyncio.sleep(0)
        starting.cancel()
        await asyncio.wait([starting])
    await rush.stop_workers()
    assert set((await states(rush)).values()) <= {"terminated"}


async def test_row_10_reset_kills_workers_of_other_managers(rush: Rush) -> None:
    async with Rush(rush.network_id, rush.config) as other:
        await other.start_workers(hold, 2)
        await other.wait_until(lambda counts: counts.running == 2)
        await rush.reset()
        assert [how.state for how in await asyncio.wait_for(other.join_workers(), 10)] == ["killed", "killed"]
        assert await states(rush) == {}
        assert await other.counts() == (0, 0, 0, 0)


async def test_a_killed_worker_is_reported_as_killed_though_a_reset_follows(rush: Rush) -> None:
    is_reset = asyncio.Event()

    async def hold_until_the_reset(worker: RushWorker) -> None:
        try:
            await hold(worker)
        finally:
            await is_reset.wait()

    async with Rush(rush.network_id, rush.config) as other:
        await other.start_workers(hold_until_the_reset, 1)
        await other.wait_until(lambda counts: counts.running == 1)
        await rush.stop_workers(mode="kill")
        await rush.reset()
        is_reset.set()
        (how,) = await asyncio.wait_for(other.join_workers(), 10)
        assert how.state == "killed"


# worker_info


async def test_worker_info_has_its_columns_even_without_workers(rush: Rush) -> None:
    schema = {
        "worker_id": pl.String(),
        "pid": pl.Int64(),
        "hostname": pl.String(),
        "heartbeat": pl.Boolean(),
        "state": pl.String(),
        "started_at": pl.Datetime("us", "UTC"),
        "last_seen": pl.Datetime("us", "UTC"),
        "number": pl.Int64(),
    }
    info = await rush.worker_info()
    assert (info.height, dict(info.schema)) == (0, schema)
    await rush.start_workers(do_some, 1)
    await rush.join_workers()
    info = await rush.worker_info()
    assert (info.height, dict(info.schema)) == (1, schema)
    assert info["started_at"][0] <= info["last_seen"][0]


# closing


async def test_row_21_a_manager_closes_and_kills_its_workers_though_the_server_is_away(
    rush: Rush, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert rush.config.url is not None
    async with Proxy(rush.config.url, directory) as proxy:
        far = await Rush(rush.network_id, replace(rush.config.at(proxy.url), retry_deadline=0.2))
        await far.start_workers(serve, 2)
        await far.start_workers(serve, 1, on=Processes())
        await far.wait_for_workers(3)
        proxy.refuse()
        proxy.cut_all()
        begun = time.monotonic()
        await far.aclose()
        assert time.monotonic() - begun < 10
    assert "workers are killed" in caplog.text


async def test_row_21_a_manager_opened_in_one_task_is_closed_in_another(rush: Rush) -> None:
    other = await asyncio.create_task(rsh_and_start(rush))
    await asyncio.create_task(other.aclose())
    assert set((await states(rush)).values()) == {"terminated"}


async def rsh_and_start(rush: Rush) -> Rush:
    other = await rsh(rush.network_id, rush.config)
    await other.start_workers(serve, 1)
    await other.start_workers(serve, 1, on=Processes())
    await other.wait_for_workers(2)
    return other


async def test_workers_of_every_kind_inherit_the_schema_unless_they_have_one(rush: Rush) -> None:
    config = rush.config
    with ThreadPoolExecutor(1) as threads:
        async with Rush(rush.network_id, config, schema={"loss": pl.Float32}) as manager:
            for on in (Coroutines(), threads, Processes()):
                await manager.start_workers(name_dtype, on=on)
            own = await manager.start_workers(name_dtype, schema={"loss": pl.Int8})
            await manager.join_workers()
            command = manager.worker_command(name_dtype)
            assert command != manager.worker_command(name_dtype, schema={"loss": pl.Int8})
            with pytest.raises(SchemaError, match="reserved column"):
                await manager.start_workers(name_dtype, on=Processes(), schema={"keys": pl.String})
    await asyncio.to_thread(run_worker, name_dtype, rush.network_id, config, schema={"loss": pl.Int64})
    found = (await rush.fetch_finished_tasks()).sort("dtype")
    assert found["dtype"].to_list() == ["Float32", "Float32", "Float32", "Int64", "Int8"]
    assert found["worker_id"].to_list()[-1:] == own


# misuse


async def test_a_call_of_workers_on_a_manager_says_who_runs_tasks(rush: Rush) -> None:
    manager: Any = rush
    for name in ("task", "tasks", "proposals", "pop_task", "terminated"):
        with pytest.raises(AttributeError, match=r"this is a manager.*start_workers\(loop\).*async with RushWorker\('"):
            getattr(manager, name)
    with pytest.raises(AttributeError, match=r"^'Rush' object has no attribute 'nonsense'$"):
        _ = manager.nonsense
