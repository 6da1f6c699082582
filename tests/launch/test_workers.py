"""Workers as coroutines and as processes: behaviour that both share is tested on both."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from rush_async import (
    Coroutines,
    EncodeError,
    Failure,
    Launcher,
    Processes,
    Rush,
    RushConfig,
    RushTimeoutError,
    RushWorker,
    TasksFinished,
    WorkerLoopError,
    WorkersNotReadyError,
    bound,
    run_worker,
)
from rush_async.testing import wait_until
from tests.launch.loops_of_tests import (
    CannotBeUnpickled,
    OwnWorker,
    block_as_the_third,
    do_some,
    hold,
    note_arguments,
    push_own,
    raise_holding,
    serve,
    shout,
    swallow,
)

BOTH = pytest.mark.parametrize("on", [Coroutines(), Processes()], ids=["coroutines", "processes"])


async def states(rush: Rush) -> dict[str, str]:
    info = await rush.worker_info()
    return dict(zip(info["worker_id"], info["state"], strict=True))


async def test_workers_of_a_subclass_run_a_bound_loop_anywhere(rush: Rush) -> None:
    for on in (Coroutines(), Processes()):
        await rush.start_workers(bound(push_own, 2), on=on, worker_class=OwnWorker)
        await rush.join_workers()
    assert (await rush.fetch_finished_tasks())["y"].to_list() == ["OwnWorker"] * 4
    wrong: Any
    for wrong in (Rush, OwnWorker("net"), "OwnWorker"):
        with pytest.raises(TypeError, match="worker_class is a subclass of RushWorker, not"):
            await rush.start_workers(bound(push_own, 2), worker_class=wrong)


@BOTH
async def test_row_3_start_workers_returns_and_wait_for_workers_waits(rush: Rush, on: Launcher) -> None:
    ids = await rush.start_workers(hold, 3, on=on)
    assert len(set(ids)) == 3
    assert set((await states(rush)).values()) <= {"starting", "running"}
    await rush.wait_for_workers(3)
    await rush.wait_for_workers(worker_ids=ids)
    await rush.wait_for_workers(2, worker_ids=ids)
    assert set((await states(rush)).values()) == {"running"}


async def test_row_3_invalid_numbers_of_workers_are_refused(rush: Rush) -> None:
    with pytest.raises(ValueError, match="how many workers"):
        await rush.wait_for_workers()
    with pytest.raises(ValueError, match="n is 3 and only 2"):
        await rush.wait_for_workers(3, worker_ids=["a", "b"])
    with pytest.raises(ValueError, match="at least 1"):
        await rush.start_workers(hold, 0)


async def test_row_3_timeout_0_looks_once_and_a_timeout_names_the_numbers(rush: Rush) -> None:
    with pytest.raises(WorkersNotReadyError, match="0 of 2 workers"):
        await rush.wait_for_workers(2, timeout=0)
    with pytest.raises(WorkersNotReadyError, match="0 of 2 workers"):
        await rush.wait_for_workers(2, timeout=0.01)


async def test_row_3_a_worker_that_died_before_it_ran_ends_the_wait_with_its_error(rush: Rush) -> None:
    await rush.start_workers(note_arguments, 1, on=Processes(), args={"thing": CannotBeUnpickled()})
    with pytest.raises(WorkersNotReadyError, match=r"died before it was running: .*missing_package"):
        await rush.wait_for_workers(1, timeout=60)


async def test_row_3_workers_that_ran_and_ended_count_as_ready(rush: Rush) -> None:
    await rush.start_workers(do_some, 2, n=1)
    await rush.join_workers()
    await rush.wait_for_workers(2, timeout=5)


@BOTH
async def test_row_4_each_call_has_its_own_loop_and_arguments(rush: Rush, on: Launcher) -> None:
    await rush.start_workers(note_arguments, 1, on=on, args={"first": 1, "n_workers": 5})
    await rush.start_workers(functools.partial(note_arguments, second=2), 1, on=on, third=3)
    await rush.start_workers(do_some, 1, on=on, n=2)
    await rush.join_workers()
    tasks = await rush.fetch_finished_tasks()
    assert tasks.height == 4
    assert tasks["first"].drop_nulls().to_list() == ["1"]
    assert tasks["n_workers"].drop_nulls().to_list() == ["5"]
    assert tasks["second"].drop_nulls().to_list() == ["2"]
    assert tasks["third"].drop_nulls().to_list() == ["3"]


async def test_row_4_functions_of_a_notebook_are_sent_with_what_they_refer_to(rush: Rush) -> None:
    factor = 21

    async def loop(rush: RushWorker) -> None:
        await rush.push_finished_tasks([{"x": factor * 2}], [{"y": os.getpid()}])

    await rush.start_workers(loop, 1, on=Processes())
    await rush.join_workers()
    tasks = await rush.fetch_finished_tasks()
    assert tasks["x"].to_list() == [42]
    assert tasks["y"].to_list() != [os.getpid()]


async def test_row_4_coroutines_get_the_objects_themselves(rush: Rush) -> None:
    seen: list[object] = []

    async def loop(rush: RushWorker, target: list[object]) -> None:
        target.append(rush.worker_id)

    ids = await rush.start_workers(loop, 2, target=seen)
    await rush.join_workers()
    assert sorted(map(str, seen)) == sorted(ids)


async def test_a_loop_that_cannot_be_called_is_refused_before_a_worker_starts(rush: Rush) -> None:
    def not_async(rush: RushWorker) -> None: ...

    async def with_option(rush: RushWorker, on: int) -> None: ...

    refused: list[tuple[Any, dict[str, Any], str]] = [
        (not_async, {}, "not `async def`.*to_thread"),
        (do_some, {"unknown": 1}, "unknown"),
        (swallow, {}, "may_end"),
        (with_option, {}, "option of start_workers"),
        (5, {}, "coroutine function"),
    ]
    for loop, arguments, words in refused:
        with pytest.raises(TypeError, match=words):
            await rush.start_workers(loop, 1, args=arguments)
    with pytest.raises(EncodeError, match="cannot be sent to another process"):
        await rush.start_workers(note_arguments, 1, on=Processes(), thing=asyncio.get_running_loop())
    wrong: Any = "processes"
    with pytest.raises(TypeError, match=r"Coroutines\(\), Processes\(n\) or a pool"):
        await rush.start_workers(do_some, 1, on=wrong)
    assert set((await states(rush)).values()) <= {"failed"}


@BOTH
async def test_row_9_terminating_one_worker_leaves_the_others_running(rush: Rush, on: Launcher) -> None:
    ids = await rush.start_workers(serve, 3, on=on)
    await rush.wait_for_workers(worker_ids=ids)
    await rush.stop_workers(ids[0])
    found = await states(rush)
    assert [found[worker_id] for worker_id in ids] == ["terminated", "running", "running"]
    keys = await rush.push_tasks([{"x": 4}])
    assert (await rush.wait_for_tasks(keys))[0].ys == {"y": 8}


@BOTH
async def test_row_9_kill_fails_only_the_tasks_of_the_killed_worker(rush: Rush, on: Launcher) -> None:
    ids = await rush.start_workers(hold, 4, on=on)
    await rush.wait_until(lambda counts: counts.running == 4)
    await rush.stop_workers(ids[1], mode="kill")
    assert await rush.counts() == (0, 3, 0, 1)
    failed = await rush.fetch_failed_tasks()
    assert failed["worker_id"].to_list() == [ids[1]]
    assert failed["condition"][0] == {"kind": "killed", "type": None, "message": "Worker was killed", "traceback": None}
    found = await states(rush)
    assert [found[worker_id] for worker_id in ids] == ["running", "killed", "running", "running"]


async def test_row_9_a_process_continues_when_one_of_its_workers_is_killed(rush: Rush) -> None:
    ids = await rush.start_workers(hold, 4, on=Processes(2))
    await rush.wait_until(lambda counts: counts.running == 4)
    info = await rush.worker_info()
    assert info["pid"].n_unique() == 2
    await rush.stop_workers(ids[0], mode="kill")
    found = await states(rush)
    assert [found[worker_id] for worker_id in ids] == ["killed", "running", "running", "running"]
    assert await rush.counts() == (0, 3, 0, 1)


async def test_row_9_killing_a_worker_that_blocks_its_process_ends_the_process(rush: Rush, directory: Path) -> None:
    ids = await rush.start_workers(hold, 1, on=Processes())
    await rush.wait_until(lambda counts: counts.running == 1)
    both = await rush.start_workers(block_as_the_third, 2, on=Processes(1), mark=directory / "blocked")
    await wait_until((directory / "blocked").exists, timeout=20)
    await rush.stop_workers(both[0], mode="kill")
    await rush.wait_until(lambda counts: counts.failed == 2)
    found = await states(rush)
    assert [found[worker_id] for worker_id in (*both, *ids)] == ["killed", "lost", "running"]


async def test_row_9_a_coroutine_that_swallows_its_cancellation_is_abandoned(
    rush: Rush, caplog: pytest.LogCaptureFixture
) -> None:
    may_end = asyncio.Event()
    ids = await rush.start_workers(swallow, 1, may_end=may_end)
    await rush.wait_until(lambda counts: counts.running == 1)
    await rush.stop_workers(ids, mode="kill")
    assert (await states(rush))[ids[0]] == "killed"
    assert "swallows its cancellation" in caplog.text
    assert await rush.counts() == (0, 0, 0, 1)
    may_end.set()


async def test_row_9_an_unknown_worker_is_skipped_with_a_warning(rush: Rush, caplog: pytest.LogCaptureFixture) -> None:
    ids = await rush.start_workers(serve, 1)
    await rush.wait_for_workers(1)
    await rush.stop_workers(["unknown", *ids])
    assert "unknown is not running" in caplog.text
    assert (await states(rush))[ids[0]] == "terminated"


@BOTH
async def test_row_9_workers_that_do_not_stop_in_time_are_killed(rush: Rush, on: Launcher) -> None:
    ids = await rush.start_workers(hold, 2, on=on)
    await rush.wait_until(lambda counts: counts.running == 2)
    await rush.stop_workers(timeout=0)
    assert set((await states(rush)).values()) == {"running"}
    await rush.stop_workers(timeout=0.05)
    assert set((await states(rush)).values()) == {"killed"}
    assert [how.state for how in await rush.join_workers(ids)] == ["killed", "killed"]


async def test_a_worker_of_another_manager_is_stopped_through_the_network(rush: Rush) -> None:
    async with Rush(rush.network_id, rush.config) as other:
        ids = await rush.start_workers(serve, 2, on=Processes())
        await other.wait_for_workers(2)
        await other.stop_workers(ids[0])
        await other.stop_workers(ids[1], mode="kill")
        assert [how.state for how in await other.join_workers(ids, timeout=20)] == ["terminated", "killed"]
        with pytest.raises(KeyError, match="no worker 'unknown'"):
            await other.join_workers("unknown", timeout=20)


@BOTH
async def test_row_10_reset_stops_workers_and_leaves_no_key(rush: Rush, on: Launcher, raw: Any) -> None:
    await rush.start_workers(serve, 2, on=on)
    await rush.wait_for_workers(2)
    await rush.push_tasks([{"x": 1}] * 5)
    await rush.reset()
    assert raw.keys("*") == []
    assert (await rush.worker_info()).height == 0
    assert await rush.counts() == (0, 0, 0, 0)


async def test_row_10_after_a_reset_of_only_the_tasks_the_workers_continue(rush: Rush) -> None:
    await rush.start_workers(serve, 2)
    await rush.wait_for_workers(2)
    await rush.push_tasks([{"x": 1}] * 5)
    await rush.reset(workers=False)
    keys = await rush.push_tasks([{"x": 2}, {"x": 3}])
    assert [task.ys for task in await rush.wait_for_tasks(keys)] == [{"y": 4}, {"y": 6}]
    assert (await rush.fetch_finished_tasks()).height == 2
    assert rush.n_tasks == 2


async def test_row_10_a_worker_of_another_process_learns_of_a_reset(rush: Rush) -> None:
    async with RushWorker(rush.network_id, rush.config) as worker:
        popping = asyncio.ensure_future(worker.pop_task(timeout=None))
        await asyncio.sleep(0)
        async with Rush(rush.network_id, RushConfig(url=rush.config.url, retry_deadline=29)) as other:
            await other._net.tasks.reset(workers=True)  # pyright: ignore[reportPrivateUsage]
        await wait_until(lambda: worker.terminated)
        await asyncio.wait([popping])
        popping.exception()


@BOTH
async def test_row_19_an_error_of_a_loop_is_in_join_workers_worker_info_the_failed_tasks_and_the_log(
    rush: Rush, on: Launcher, caplog: pytest.LogCaptureFixture
) -> None:
    ids = await rush.start_workers(raise_holding, 2, on=on)
    with pytest.raises(WorkerLoopError) as caught:
        await rush.join_workers()
    assert str(caught.value).count("RuntimeError: the loop broke") == 1
    assert all(worker_id in str(caught.value) for worker_id in ids)
    assert [how.state for how in await rush.join_workers(check=False)] == ["failed", "failed"]
    assert set((await states(rush)).values()) == {"failed"}
    failed = await rush.fetch_failed_tasks()
    assert failed.height == 2
    condition = failed["condition"][0]
    assert (condition["kind"], condition["type"], condition["message"]) == ("error", "RuntimeError", "the loop broke")
    assert "raise RuntimeError(message)" in condition["traceback"]
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert sum("the loop broke" in record.getMessage() for record in errors) == 2
    assert await rush.push_tasks([{"x": 1}])  # the manager still works


async def test_row_19_a_process_that_dies_is_lost_and_only_its_tasks_fail(rush: Rush) -> None:
    ids = await rush.start_workers(hold, 4, on=Processes())
    await rush.wait_until(lambda counts: counts.running == 4)
    info = await rush.worker_info()
    victim = info.row(1, named=True)
    os.kill(victim["pid"], signal.SIGKILL)
    with pytest.raises(WorkerLoopError, match=f"(?s)1 of 1 workers died:.{victim['worker_id']}:.*SIGKILL"):
        await rush.join_workers(victim["worker_id"])
    (how,) = await rush.join_workers(victim["worker_id"], check=False)
    assert how.state == "lost"
    assert how.failure is not None
    assert "SIGKILL" in how.failure.message
    assert await rush.counts() == (0, 3, 0, 1)
    failed = await rush.fetch_failed_tasks()
    assert failed["worker_id"].to_list() == [victim["worker_id"]]
    assert failed["condition"][0]["kind"] == "lost"
    assert failed["condition"][0]["message"] == f"Worker has crashed or was killed: {how.failure.message}"
    assert sorted((await states(rush)).values()) == ["lost", "running", "running", "running"]
    assert set(ids) == set(info["worker_id"])


async def test_row_6_a_megabyte_on_stderr_does_not_block_and_goes_to_files(rush: Rush, directory: Path) -> None:
    (worker_id,) = await rush.start_workers(shout, 1, on=Processes(), log_dir=directory)
    await rush.join_workers(timeout=60)
    assert (directory / f"{worker_id}.stderr").stat().st_size >= 1_000_000
    assert (directory / f"{worker_id}.stdout").read_text() == "said on stdout\n"


async def test_join_workers_has_a_timeout(rush: Rush) -> None:
    await rush.start_workers(hold, 1)
    with pytest.raises(RushTimeoutError, match=r"1 workers have not ended within 0\.01 s"):
        await rush.join_workers(timeout=0.01)


async def test_row_20_a_loop_runs_unchanged_in_the_caller(rush: Rush) -> None:
    async with RushWorker(rush.network_id, rush.config) as worker:
        await do_some(worker, 4)
    assert (await rush.counts()).finished == 4
    assert list((await states(rush)).values()) == ["terminated"]


async def test_row_20_an_error_of_a_loop_in_the_caller_fails_the_worker(rush: Rush) -> None:
    with pytest.raises(RuntimeError, match="the loop broke"):
        async with RushWorker(rush.network_id, rush.config) as worker:
            await raise_holding(worker)
    assert list((await states(rush)).values()) == ["failed"]
    assert (await rush.fetch_failed_tasks())["condition"][0]["message"] == "the loop broke"


@BOTH
async def test_row_21_closing_a_manager_stops_its_workers_and_leaves_the_tasks(rush: Rush, on: Launcher) -> None:
    async with Rush(rush.network_id, rush.config) as other:
        await other.start_workers(serve, 2, on=on)
        await other.wait_for_workers(2)
        keys = await other.push_tasks([{"x": 1}])
        await other.wait_for_tasks(keys)
        children = psutil.Process().children()
    assert set((await states(rush)).values()) == {"terminated"}
    assert (await rush.counts()).finished == 1
    if isinstance(on, Processes):
        _, alive = psutil.wait_procs([child for child in children if "launch.child" in _command(child)], timeout=10)
        assert not alive


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


@BOTH
async def test_row_21_workers_that_do_not_stop_are_killed_when_their_manager_closes(rush: Rush, on: Launcher) -> None:
    async with Rush(rush.network_id, rush.config) as other:
        await other.start_workers(hold, 2, on=on)
        await other.wait_until(lambda counts: counts.running == 2)
    assert set((await states(rush)).values()) == {"killed"}
    assert await rush.counts() == (0, 0, 0, 2)


async def test_row_21_an_error_in_the_managers_block_stops_the_workers_too(rush: Rush) -> None:
    with pytest.raises(ZeroDivisionError):
        async with Rush(rush.network_id, rush.config) as other:
            await other.start_workers(serve, 2)
            raise ZeroDivisionError
    assert set((await states(rush)).values()) == {"terminated"}


async def test_a_thousand_coroutine_workers_share_at_most_three_connections(rush: Rush, raw: Any) -> None:
    before = len(raw.client_list())
    ids = await rush.start_workers(serve, 1000)
    await rush.wait_for_workers(1000)
    assert len(raw.client_list()) - before <= 2  # the manager's own connection was there before
    keys = await rush.push_tasks([{"x": at} for at in range(3000)])
    tasks = await rush.wait_for_tasks(keys)
    assert [task.ys for task in tasks] == [{"y": at * 2} for at in range(3000)]
    assert len(raw.client_list()) - before <= 2
    await rush.stop_workers()
    assert len(ids) == 1000


async def test_run_worker_runs_its_own_event_loop(rush: Rush) -> None:
    exits = await asyncio.to_thread(
        functools.partial(run_worker, do_some, rush.network_id, rush.config, n_workers=2, worker_ids=["a", "b"], n=2)
    )
    assert [(how.worker_id, how.state) for how in exits] == [("a", "terminated"), ("b", "terminated")]
    assert (await rush.counts()).finished == 4
    (how,) = await asyncio.to_thread(functools.partial(run_worker, raise_holding, rush.network_id, rush.config))
    assert how.state == "failed"
    assert isinstance(how.failure, Failure)


async def test_a_worker_may_start_processes_of_its_own(rush: Rush) -> None:
    async def loop(rush: RushWorker) -> None:
        from concurrent.futures import ProcessPoolExecutor

        with ProcessPoolExecutor(1) as pool:
            async with rush.task({"x": 3}) as task:
                task.ys = {"y": await asyncio.get_running_loop().run_in_executor(pool, abs, -3)}

    await rush.start_workers(loop, 1, on=Processes())
    await rush.join_workers(timeout=60)
    assert (await rush.fetch_finished_tasks())["y"].to_list() == [3]


async def test_a_manager_of_another_process_sees_what_workers_finish(rush: Rush) -> None:
    async with rush.events(TasksFinished, results=True) as events:
        await rush.start_workers(do_some, 1, on=Processes(), n=2)
        found = [await asyncio.wait_for(anext(events), 30) for _ in range(2)]
    assert [task.ys for event in found if isinstance(event, TasksFinished) for task in event.tasks or ()] == [
        {"y": 0},
        {"y": 2},
    ]
