"""The types that users rely on: pyright and mypy check this file, and no test runs it."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypedDict, assert_type, cast

import polars as pl

from rush_async import (
    Archive,
    Counts,
    Event,
    EventsMissed,
    Failure,
    FailureKind,
    Plan,
    Pool,
    Processes,
    Ranking,
    Rush,
    RushConfig,
    RushWorker,
    StopReason,
    StopRule,
    Task,
    TaskReported,
    TasksFinished,
    TaskState,
    WorkerExit,
    WorkerLoop,
    WorkerLost,
    bound,
    current_plan,
    rsh,
    run,
    run_worker,
    rush_plan,
)


@dataclass
class Point:
    x1: float
    x2: float


def evaluate(x1: float, x2: float) -> float:
    return x1 + x2


async def opening() -> None:
    async with Rush("branin") as rush:
        assert_type(rush, Rush)
        assert_type(rush.network_id, str)
        assert_type(rush.config, RushConfig)
    assert_type(await Rush(), Rush)
    assert_type(await Rush("branin", "redis://localhost"), Rush)
    assert_type(await Rush("branin", RushConfig(data_dir="data"), schema={"y": pl.Float64}), Rush)
    assert_type(await rsh("branin"), Rush)
    assert_type(await rsh("branin", seed=1, exist_ok=True, must_exist=False), Rush)
    async with RushWorker("branin", worker_id="bear") as worker:
        assert_type(worker, RushWorker)
        assert_type(worker.worker_id, str)
        assert_type(worker.terminated, bool)
        assert_type(worker.stop_reason, StopReason | None)
    async with RushWorker("branin", worker_id="study", shared=True) as worker:
        assert_type(worker, RushWorker)


async def tasks(rush: Rush) -> None:
    assert_type(await rush.push_tasks([{"x1": 1.0}], xss_extra=[{"seed": 1}], retries=2), list[str])
    assert_type(await rush.push_tasks([Point(1.0, 2.0)]), list[str])
    assert_type(await rush.push_finished_tasks([{"x1": 1}], [{"y": 1}], yss_extra=[None]), list[str])
    assert_type(await rush.push_tasks([{"x1": 1}], unique=False), list[str])
    assert_type(await rush.push_tasks([{"x1": 1}], unique=True), list[str | None])
    assert_type(await rush.push_tasks([{"x1": 1}], unique=("x1", "x2")), list[str | None])
    assert_type(await rush.push_finished_tasks([{"x1": 1}], [{"y": 1}], unique="x1"), list[str | None])
    archive = Archive.open("an export.zip")
    assert_type(await rush.push_finished_tasks(archive), list[str])
    assert_type(await rush.push_finished_tasks(pl.DataFrame({"x": [1], "y": [1]}), ["y"]), list[str])
    assert_type(await rush.export("an export.zip"), Path)
    assert_type(await rush.import_archive(archive), list[str])
    assert_type(archive.tasks("finished", times=True), pl.DataFrame)
    assert_type(await rush.push_failed_tasks([{"x1": 1}], ValueError("no")), list[str])
    assert_type(await rush.push_failed_tasks([{"x1": 1}], [Failure("timeout")]), list[str])
    assert_type(await rush.empty_queue(), list[str])
    assert_type(await rush.retry_tasks(), list[str])
    assert_type(await rush.retry_tasks("key"), list[str])
    assert_type(await rush.counts(), Counts)
    assert_type((await rush.counts()).queued, int)
    assert_type(rush.n_finished_tasks, int)
    assert_type(rush.n_tasks, int)
    assert_type(await rush.get_tasks(("a", "b")), list[Task | None])
    assert_type(await rush.keys_with_state("queued", "failed"), dict[TaskState, list[str]])
    assert_type(await rush.is_running_task("key"), list[bool])
    assert_type(await rush.is_failed_task(["key"]), list[bool])
    assert_type(await rush.wait_for_tasks(["key"], timeout=1.0, need_workers=False), list[Task])
    assert_type(await rush.wait_until(lambda counts: counts.finished >= 100, timeout=5), Counts)
    assert_type(await rush.set_attrs({"stage": "design"}), None)
    assert_type(await rush.attrs("stage"), dict[str, Any])
    assert_type(await rush.set_task_attrs("key", {"lr": 0.1}), None)
    assert_type(await rush.task_attrs(["key"]), list[dict[str, Any]])
    assert_type(rush.ranking("rung 1"), Ranking)
    assert_type(await rush.ranking("rung 1", maximize=True).add("key", 0.5), tuple[int, int])
    assert_type(await rush.ranking("rung 1").rank("key"), int | None)
    assert_type(await rush.ranking("rung 1").best(3), list[tuple[str, float]])
    assert_type(await rush.ranking("rung 1").size(), int)


async def working(worker: RushWorker) -> str:
    keys = await worker.push_running_tasks([{"x1": 1.0}], budget=100)
    assert_type(keys, list[str])
    assert_type(await worker.push_running_tasks([{"x1": 1.0}], unique=True, budget=100), list[str | None])
    assert_type(await worker.report_tasks(keys, [{"loss": 1.0}]), None)
    assert_type(await worker.finish_tasks(keys, [{"y": 1.0}]), list[str])
    assert_type(await worker.finish_tasks(keys[0], [Point(1.0, 2.0)], yss_extra=[{"note": "good"}]), list[str])
    assert_type(await worker.fail_tasks(keys, "no"), list[str])
    assert_type(await worker.pop_task(), Task | None)
    assert_type(await worker.pop_task(None), Task | None)
    assert_type(await worker.pop_task(key="key"), Task | None)
    async for task in worker.tasks(timeout=5):
        assert_type(task, Task)
        async with task:
            task.ys = {"y": evaluate(**task.xs)}
    async with worker.task({"x1": 1.0, "x2": 2.0}, xs_extra={"seed": 1}, timeout=60) as task:
        assert_type(task, Task)
        task.ys = Point(1.0, 2.0)
    assert_type(task.state, TaskState)
    async with worker.task(Point(1.0, 2.0), catch=(ValueError, ArithmeticError)) as task:
        assert_type(task, Task)
        task.ys = {"y": 1.0}
    async with worker.task({"x1": 1.0}, budget=100, max_failed=10, catch=ValueError) as perhaps:
        assert_type(perhaps, Task | None)
    while True:
        async with worker.task({"x1": 1.0}, budget=100) as found:
            assert_type(found, Task | None)
            if found is None:
                break
            found.ys = {"y": 1.0}
    # A block without `catch` lets every error propagate, so its return value is that of the function.
    async with worker.task({"x1": 1.0}) as last:
        last.ys = {"y": 1.0}
        return last.key


def nouns(task: Task) -> None:
    assert_type(task.key, str)
    assert_type(task.xs, dict[str, Any])
    assert_type(task.xs_extra, dict[str, Any] | None)
    assert_type(task.attempt, int)
    assert_type(task.worker_id, str | None)
    assert_type(task.created_at, datetime | None)
    assert_type(task.ended_at, datetime | None)
    if task.failure is not None:
        assert_type(task.failure.kind, FailureKind)
        assert_type(task.failure.message, str)
        assert_type(task.failure.traceback, str | None)


class Xs(TypedDict):
    x1: float
    x2: float


class Ys(TypedDict):
    y: float


def evaluate_typed(task: Task[Xs, Ys]) -> Ys:
    assert_type(task.xs, Xs)
    return {"y": evaluate(**task.xs)}


async def typed_tasks(worker: RushWorker) -> None:
    async for task in worker.tasks():
        async with task:
            task.ys = evaluate_typed(cast("Task[Xs, Ys]", task))


def typed_input(task: Task[Xs]) -> None:
    assert_type(task.xs["x1"], float)
    assert_type(task.ys, Any)


async def reading(rush: Rush) -> None:
    assert_type(await rush.fetch_finished_tasks(times=True), pl.DataFrame)
    assert_type(await rush.fetch_new_tasks(timeout=1.0), pl.DataFrame)
    assert_type(await rush.fetch_tasks_with_state("queued", "running"), pl.DataFrame)
    assert_type(await rush.fetch_tasks(schema={"y": pl.Float64}), pl.DataFrame)
    assert_type(await rush.fetch_reports("key"), pl.DataFrame)
    assert_type(await rush.worker_info(), pl.DataFrame)
    assert_type(rush.reset_cache(), None)


async def listening(rush: Rush) -> None:
    async with rush.events() as events:
        async for event in events:
            assert_type(event, Event)
            assert_type(event.seq, int)
    async with rush.events(TasksFinished, results=True) as one:
        async for finished in one:
            assert_type(finished, TasksFinished | EventsMissed)
    async with rush.events(TasksFinished, WorkerLost, results=True, buffer=10) as some:
        async for each in some:
            match each:
                case TasksFinished(keys=keys, tasks=found):
                    assert_type(keys, tuple[str, ...])
                    assert_type(found, tuple[Task, ...] | None)
                case WorkerLost(worker_id=worker_id):
                    assert_type(worker_id, str)
                case EventsMissed(seq=seq):
                    assert_type(seq, int)
                case _:  # pyright knows the union of several kinds, mypy only what they have in common
                    pass


async def listening_to_reports(rush: Rush, task: Task) -> None:
    assert_type(await task.report({"loss": 1.0}), None)
    async with rush.events(TaskReported) as events:
        async for event in events:
            assert_type(event, TaskReported | EventsMissed)
            if isinstance(event, TaskReported):
                assert_type(event.key, str)
                assert_type(event.step, int)
                assert_type(event.values, dict[str, Any] | None)


async def loop(rush: RushWorker, n: int = 10) -> None: ...


class Worker(RushWorker):
    """A worker with a method of its own."""

    def own(self) -> int:
        return 1


async def loop_of_own(rush: Worker, evals: int, rate: float = 0.5) -> None:
    assert_type(rush.own(), int)


async def bound_loops(rush: Rush, pool: ProcessPoolExecutor) -> None:
    assert_type(bound(loop), WorkerLoop)
    await rush.start_workers(bound(loop_of_own, 3), 2, worker_class=Worker)
    await rush.start_workers(bound(loop_of_own, evals=3, rate=0.1), on=pool, worker_class=Worker)
    assert_type(run(bound(loop, n=3), 4, finished=100), pl.DataFrame)
    assert_type(run(loop, n_workers=4, on=Processes(show_output=False), seed=1, data_dir="data", n=3), pl.DataFrame)
    assert_type(rush.worker_command(bound(loop, n=3)), str)


async def workers(rush: Rush) -> None:
    ids = await rush.start_workers(loop, n_workers=4, on=Processes(2, threads=1), args={"n": 5})
    assert_type(ids, list[str])
    assert_type(await rush.wait_for_workers(4, timeout=5), None)
    assert_type(await rush.stop_workers(ids, mode="kill"), None)
    assert_type(
        await rush.stop_when(finished=5, failed=5, seconds=60, target={"y": 0}, patience=("y", 5), maximize=True),
        StopReason | None,
    )
    assert_type(await rush.resume(seconds=60), None)
    reason = await rush.wait_until_stopped(timeout=5, need_workers=False)
    assert_type((reason.rule, reason.at, reason.seq, reason.detail), tuple[StopRule, datetime, int, str])
    assert_type(await rush.stop("why"), StopReason)
    assert_type(await rush.expire(3600), None)
    assert_type(rush.n_running_workers, int)
    assert_type(await rush.join_workers(check=False), list[WorkerExit])
    assert_type(await rush.reset(workers=False), None)


async def workers_anywhere(rush: Rush, pool: ProcessPoolExecutor) -> None:
    assert_type(await rush.start_workers(loop, on=pool, log_levels={"search": "DEBUG", "": 30}), list[str])
    await rush.start_workers(loop, 2, on=Pool(pool), heartbeat_period=1, heartbeat_expire=5.5)
    assert_type(rush.worker_command(loop, n_workers=2, args={"n": 1}, with_password=True), str)
    assert_type(run_worker(loop, "branin", n_workers=2, max_time=3600, max_tasks=100, idle_timeout=60.0, n=1), list[WorkerExit])
    assert_type(await rush.detect_lost_workers(), list[str])
    assert_type(await rush.cancel_tasks("key"), list[str])
    assert_type(await rush.read_log(["bear"], time_difference=True), pl.DataFrame)
    assert_type(await rush.print_log(), None)
    with rush_plan(n_workers=4, config="redis://localhost", on=Processes()) as plan:
        assert_type(plan, Plan)
    assert_type(current_plan(), Plan)
