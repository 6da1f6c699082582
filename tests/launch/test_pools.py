"""Workers through anything with `submit()`, on real pools: `concurrent.futures`, loky and Dask."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from importlib import import_module
from multiprocessing import resource_tracker
from typing import Any

import pytest

from rush_async import EncodeError, Pool, Rush, RushWorker, WorkerExit, WorkerLoopError, WorkersNotReadyError
from rush_async.launch import pools
from rush_async.testing import wait_until
from tests.launch.loops_of_tests import CannotBeUnpickled, do_some, hold, note_arguments, raise_holding, serve

# Neither has type stubs that pyright could read.
dask: Any = import_module("distributed")
dask_utils: Any = import_module("distributed.utils")
loky: Any = import_module("loky")
loky_tracker: Any = import_module("loky.backend.resource_tracker")


@pytest.fixture(scope="module", autouse=True)
def helpers_of_the_engines() -> None:
    """Starts the helpers that the engines start once a process and keep, before the first test counts processes and threads."""
    resource_tracker.ensure_running()
    loky_tracker.ensure_running()
    asyncio.run(dask_utils.offload(int))


def spawning(n: int) -> Executor:
    return ProcessPoolExecutor(n, multiprocessing.get_context("spawn"))


def forking(n: int) -> Executor:
    return ProcessPoolExecutor(n, multiprocessing.get_context("fork"))


def of_loky(n: int) -> Any:
    return loky.get_reusable_executor(max_workers=n)


POOLS: dict[str, Callable[[int], Any]] = {
    "threads": ThreadPoolExecutor,
    "spawned": spawning,
    "forked": forking,
    "loky": of_loky,
}


@pytest.fixture(scope="module", params=POOLS)
def pool(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A pool with two places, shared by the tests of one kind of pool."""
    make: Callable[[int], Any] = POOLS[request.param]
    with make(2) as pool:
        # Fills both places, so that their threads or processes exist before the first test counts them.
        for started in [pool.submit(time.sleep, 0.1) for _ in range(2)]:
            started.result(timeout=30)
        yield pool


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as threads:
        yield threads


async def states(rush: Rush) -> dict[str, str]:
    info = await rush.worker_info()
    return dict(zip(info["worker_id"], info["state"], strict=True))


async def failures(rush: Rush) -> set[tuple[str, str]]:
    """Returns kind and message of every failed task."""
    return {(row["kind"], row["message"]) for row in (await rush.fetch_failed_tasks())["condition"]}


# on every pool


async def test_row_4_each_call_has_its_own_loop_and_arguments(rush: Rush, pool: Any) -> None:
    first = await rush.start_workers(note_arguments, 2, on=pool, args={"who": "the first"})
    await rush.wait_for_workers(2, timeout=30)
    assert [how.state for how in await rush.join_workers(first, timeout=30)] == ["terminated"] * 2
    log = await rush.read_log()  # without `log_levels`
    assert sorted(zip(log["worker_id"], log["level"], log["msg"], strict=True)) == [
        (worker_id, "WARNING", "noted") for worker_id in sorted(first)
    ]

    def twice(x: int) -> int:
        return x * 2

    async def notebook_cell(rush: RushWorker, x: int) -> None:
        await rush.push_finished_tasks([{"who": "the second"}], [{"y": twice(x)}])

    await rush.start_workers(notebook_cell, 1, on=pool, x=21)
    await rush.join_workers(timeout=30)
    tasks = await rush.fetch_finished_tasks()
    assert list(zip(tasks["who"], tasks["y"], strict=True)) == [("the first", 0), ("the first", 0), ("the second", 42)]


async def test_row_9_terminating_and_killing_one_worker_leaves_the_other_running(rush: Rush, pool: Any) -> None:
    (served,) = await rush.start_workers(serve, 1, on=pool)
    (held,) = await rush.start_workers(hold, 1, on=pool)
    await rush.wait_until(lambda counts: counts.running == 1, timeout=30)
    await rush.wait_for_workers(2, timeout=30)
    await rush.stop_workers(served)
    assert await states(rush) == {served: "terminated", held: "running"}
    (again,) = await rush.start_workers(serve, 1, on=pool)
    await rush.stop_workers(held, mode="kill")
    assert await failures(rush) == {("killed", "Worker was killed")}
    (key,) = await rush.push_tasks([{"x": 3}])
    assert (await rush.wait_for_tasks(key, timeout=30))[0].ys == {"y": 6}
    assert await states(rush) == {served: "terminated", held: "killed", again: "running"}


async def test_row_19_a_loop_that_raises_is_reported_with_its_traceback(rush: Rush, pool: Any) -> None:
    (worker_id,) = await rush.start_workers(raise_holding, 1, on=pool, message="no such model")
    with pytest.raises(WorkerLoopError, match=r"(?s)raise RuntimeError\(message\).*no such model"):
        await rush.join_workers(timeout=30)
    assert [how.state for how in await rush.join_workers(check=False)] == ["failed"]
    assert await states(rush) == {worker_id: "failed"}
    assert await failures(rush) == {("error", "no such model")}


# deaths


@pytest.mark.parametrize("make", [spawning, of_loky], ids=["spawned", "loky"])
async def test_row_14_the_tasks_of_a_killed_process_fail_at_once(
    rush: Rush, make: Callable[[int], Any], caplog: pytest.LogCaptureFixture
) -> None:
    # The death of one process breaks such a pool: it ends the others, and all its futures fail.
    with make(2) as pool:
        ids = await rush.start_workers(hold, 2, on=pool)
        (other,) = await rush.start_workers(hold, 1)
        await rush.wait_until(lambda counts: counts.running == 3, timeout=30)
        info = await rush.worker_info()
        os.kill(max(info.filter(info["worker_id"].is_in(ids))["pid"]), signal.SIGKILL)  # the one that was started last
        ends = await rush.join_workers(ids, timeout=10, check=False)  # a heartbeat would be missed after 20 s
        if make is of_loky:
            pool.shutdown(kill_workers=True)
    assert [how.state for how in ends] == ["lost", "lost"]
    assert ends[0].failure is not None
    assert ends[0].failure.type in ("BrokenProcessPool", "TerminatedWorkerError")
    assert ids[0] in caplog.text
    assert await rush.counts() == (0, 1, 0, 2)
    ((kind, message),) = await failures(rush)
    assert kind == "lost"
    assert message.startswith("Worker has crashed or was killed: A ")
    assert (await states(rush))[other] == "running"
    await rush.stop_workers(mode="kill")


@pytest.mark.chaos
async def test_workers_run_stop_and_are_lost_on_dask(rush: Rush) -> None:
    with (
        dask.LocalCluster(n_workers=2, threads_per_worker=2, dashboard_address=":0", silence_logs="CRITICAL") as cluster,
        dask.Client(cluster) as client,
    ):
        # Two loops, one after the other.
        await rush.start_workers(note_arguments, 1, on=client.get_executor(), args={"who": "the first"})
        await rush.join_workers(timeout=30)
        await rush.start_workers(raise_holding, 1, on=Pool(client, retries=0), message="no such model")
        with pytest.raises(WorkerLoopError, match="no such model"):
            await rush.join_workers(timeout=30)
        assert (await rush.fetch_finished_tasks())["who"].to_list() == ["the first"]

        # Five workers for four places. Dask cancels running and waiting jobs alike.
        ids = await rush.start_workers(hold, 5, on=client.get_executor(pure=False))
        await rush.wait_until(lambda counts: counts.running == 4, timeout=30)
        info = await rush.worker_info()
        (waiting,) = [worker_id for worker_id in ids if (await states(rush))[worker_id] == "starting"]
        await rush.stop_workers(waiting)
        assert (await states(rush))[waiting] == "terminated"
        assert (await rush.counts()).running == 4

        # A process dies: its two workers are lost as soon as Dask runs their jobs again, and the others continue.
        info = await rush.worker_info()
        running = info.filter(info["state"] == "running")
        pid = running["pid"][0]
        lost = running.filter(running["pid"] == pid)["worker_id"].to_list()
        assert len(lost) == 2
        os.kill(pid, signal.SIGKILL)
        ends = await rush.join_workers(lost, timeout=15, check=False)
        assert [how.state for how in ends] == ["lost", "lost"]
        assert ends[0].failure is not None
        assert "a second time" in ends[0].failure.message
        assert await rush.counts() == (0, 2, 1, 3)

        (killed, left) = [worker_id for worker_id in ids if worker_id not in (*lost, waiting)]
        await rush.stop_workers(killed, mode="kill")
        assert await rush.counts() == (0, 1, 1, 4)
        assert (await states(rush))[left] == "running"
        await rush.stop_workers(timeout=0.1)
        assert "running" not in (await states(rush)).values()
    callbacks = dask.Future._cb_executor  # Dask keeps it for the next client of this process
    callbacks.shutdown()
    dask.Future._cb_executor = None


# cancelling, stopping and leaving alone


async def test_a_worker_that_waits_for_a_place_can_be_stopped_and_killed(rush: Rush) -> None:
    with ThreadPoolExecutor(1) as pool:
        (runs,) = await rush.start_workers(hold, 1, on=pool)
        await rush.wait_until(lambda counts: counts.running == 1)
        stopped, killed = await rush.start_workers(hold, 2, on=pool)
        await rush.stop_workers(stopped)
        await rush.stop_workers(killed, mode="kill")
        assert await states(rush) == {runs: "running", stopped: "terminated", killed: "killed"}
        await rush.stop_workers(runs, mode="kill")
    assert (await rush.counts()).total == 1


async def test_a_job_that_the_owner_of_the_pool_cancels_ends_its_worker(rush: Rush) -> None:
    kept = Keeping(ThreadPoolExecutor(1))
    with kept.pool:
        await rush.start_workers(hold, 2, on=kept)
        await rush.wait_until(lambda counts: counts.running == 1)
        assert kept.futures[1].cancel()
        await wait_until(lambda: states_are(rush, {"running", "terminated"}))
        await rush.stop_workers(mode="kill")


async def states_are(rush: Rush, wanted: set[str]) -> bool:
    return set((await states(rush)).values()) == wanted


async def test_row_21_workers_of_a_pool_outlive_their_manager(rush: Rush, threads: ThreadPoolExecutor) -> None:
    async with Rush(rush.network_id, rush.config) as manager:
        (worker_id,) = await manager.start_workers(serve, 1, on=threads)
        await manager.wait_for_workers(1)
    (key,) = await rush.push_tasks([{"x": 3}])
    assert (await rush.wait_for_tasks(key, timeout=10))[0].ys == {"y": 6}
    await rush.stop_workers(worker_id)
    assert await states(rush) == {worker_id: "terminated"}


async def test_killing_one_of_four_workers_leaves_three_running(rush: Rush, threads: ThreadPoolExecutor) -> None:
    ids = await rush.start_workers(hold, 4, on=threads)
    await rush.wait_until(lambda counts: counts.running == 4)
    await rush.stop_workers(ids[1], mode="kill")
    assert await rush.counts() == (0, 3, 0, 1)
    assert [how.state for how in await rush.join_workers(ids[1])] == ["killed"]
    await rush.stop_workers(mode="kill")


BLOCKS, MAY_END = threading.Event(), threading.Event()


async def block(rush: RushWorker) -> None:
    await rush.push_running_tasks([{"x": 1}])
    BLOCKS.set()
    MAY_END.wait(60)


async def test_a_blocked_worker_counts_as_killed_and_its_process_is_left_alone(
    rush: Rush, threads: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "_WORKER_END", 0.2)
    (worker_id,) = await rush.start_workers(block, 1, on=threads)
    try:
        await wait_until(BLOCKS.is_set)
        await rush.stop_workers(mode="kill")
        assert await states(rush) == {worker_id: "killed"}
        assert await failures(rush) == {("killed", "Worker was killed")}
        assert f"worker {worker_id} was killed" in caplog.text
        assert "belongs to the pool" in caplog.text
    finally:
        MAY_END.set()


class Silent:
    """A pool whose futures never end."""

    def submit(self, work: Callable[[bytes], bytes], payload: bytes) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        return future


async def test_join_workers_does_not_wait_for_the_pool_of_a_worker_that_another_manager_killed(
    rush: Rush, elsewhere: Rush, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "_WORKER_END", 0.2)
    (worker_id,) = await rush.start_workers(hold, 1, on=Silent())
    await elsewhere.stop_workers(worker_id, mode="kill")
    await rush.stop_workers(worker_id)
    assert [how.state for how in await rush.join_workers()] == ["killed"]
    assert await states(rush) == {worker_id: "killed"}


# failed starts


def fail_to_import(payload: bytes) -> bytes:
    raise ModuleNotFoundError("No module named 'rush_async'")


class Keeping:
    """A pool that keeps its futures, and refuses jobs after `most` of them."""

    def __init__(self, pool: Executor, most: int = 100) -> None:
        self.pool = pool
        self.most = most
        self.futures: list[Future[Any]] = []

    def submit(self, *args: Any) -> Future[Any]:
        if len(self.futures) == self.most:
            raise ValueError("the quota of this account is used up")
        self.futures.append(self.pool.submit(*args))
        return self.futures[-1]


class Elsewhere:
    """A pool that runs another function: as if its processes lacked the package or sent malformed reports."""

    def __init__(self, pool: Executor, job: Callable[[bytes], Any]) -> None:
        self.pool = pool
        self.job = job

    def submit(self, work: Callable[[bytes], bytes], payload: bytes) -> Future[Any]:
        return self.pool.submit(self.job, payload)


async def test_row_3_a_job_that_a_pool_cannot_run_ends_the_wait_with_its_error(rush: Rush, threads: ThreadPoolExecutor) -> None:
    await rush.start_workers(hold, 1, on=Pool(Elsewhere(threads, fail_to_import)))
    with pytest.raises(WorkersNotReadyError, match=r"died before it was running: No module named 'rush_async'"):
        await rush.wait_for_workers(1, timeout=30)
    await rush.start_workers(note_arguments, 1, on=threads, args={"thing": CannotBeUnpickled()})
    with pytest.raises(WorkersNotReadyError, match=r"died before it was running: .*missing_package"):
        await rush.wait_for_workers(1, timeout=30)
    await rush.start_workers(hold, 1, on=Pool(Elsewhere(threads, len)))
    with pytest.raises(WorkersNotReadyError, match=r"died before it was running: .*bytes"):
        await rush.wait_for_workers(1, timeout=30)
    assert sorted((await states(rush)).values()) == ["failed", "lost", "lost"]


async def test_start_workers_on_a_pool_that_was_shut_down_fails(rush: Rush, threads: ThreadPoolExecutor) -> None:
    threads.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        await rush.start_workers(hold, 2, on=threads)
    assert set((await states(rush)).values()) == {"failed"}


async def test_jobs_submitted_before_a_refused_one_are_cancelled(rush: Rush) -> None:
    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(ValueError, match="quota"):
            await rush.start_workers(serve, 3, on=Pool(Keeping(pool, most=2)))
        assert sorted((await states(rush)).values()) == ["failed", "lost", "lost"]
    # The pool was shut down, so nothing runs there any more.
    assert (await rush.counts()).total == 0


async def test_an_argument_that_cannot_be_pickled_is_refused_before_any_submit(rush: Rush, threads: ThreadPoolExecutor) -> None:
    kept = Keeping(threads)
    with pytest.raises(EncodeError, match="cannot be sent to another process"):
        await rush.start_workers(note_arguments, 1, on=kept, thing=asyncio.get_running_loop())
    assert kept.futures == []


# other pools


class Job:
    """A future like those of submitit."""

    def __init__(self, future: Future[bytes]) -> None:
        self._future = future

    def done(self) -> bool:
        return self._future.done()

    def result(self) -> bytes:
        return self._future.result()


class Slurm:
    """A pool of such jobs."""

    def __init__(self, pool: Executor) -> None:
        self.pool = pool
        self.options: list[dict[str, Any]] = []

    def submit(self, work: Callable[[bytes], bytes], payload: bytes, **options: Any) -> Job:
        self.options.append(options)
        return Job(self.pool.submit(work, payload))


async def test_a_thread_waits_for_a_future_without_callbacks(rush: Rush, threads: ThreadPoolExecutor) -> None:
    await rush.start_workers(do_some, 2, on=Pool(Slurm(threads)), n=1)
    assert [how.state for how in await rush.join_workers(timeout=30)] == ["terminated"] * 2
    await rush.start_workers(raise_holding, 1, on=Pool(Slurm(threads)))
    with pytest.raises(WorkerLoopError, match="the loop broke"):
        await rush.join_workers(timeout=30)
    assert await rush.counts() == (0, 0, 2, 1)


async def test_options_are_passed_to_submit(rush: Rush, threads: ThreadPoolExecutor) -> None:
    slurm = Slurm(threads)
    await rush.start_workers(do_some, 2, on=Pool(slurm, resources={"GPU": 1}, priority=5), n=1)
    await rush.join_workers(timeout=30)
    assert slurm.options == [{"resources": {"GPU": 1}, "priority": 5}] * 2


def test_an_object_without_submit_is_refused() -> None:
    nothing: Any = "threads"
    with pytest.raises(TypeError, match=r"submit\(function, argument\).*not str: 'threads'"):
        Pool(nothing)


async def test_a_job_that_a_pool_runs_twice_starts_its_worker_once(rush: Rush, threads: ThreadPoolExecutor) -> None:
    ends: list[WorkerExit] = []

    def run_twice(payload: bytes) -> bytes:
        reports = [pools.run_job(payload), pools.run_job(payload)]
        ends.extend([pickle.loads(report) for report in reports])
        return reports[1]

    (worker_id,) = await rush.start_workers(do_some, 1, on=Pool(Elsewhere(threads, run_twice)), n=2)
    assert [how.state for how in await rush.join_workers(timeout=30)] == ["terminated"]
    assert await states(rush) == {worker_id: "terminated"}
    assert await rush.counts() == (0, 0, 2, 0)
    await wait_until(lambda: len(ends) == 2)  # the network knows the first end before the second run
    assert [end.state for end in ends] == ["terminated", "lost"]
    assert ends[1].failure is not None
    assert "the pool ran its job a second time" in ends[1].failure.message
