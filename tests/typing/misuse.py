"""Wrong calls that pyright and mypy must refuse: an ignore that is not needed is an error itself. No test runs this file."""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from typing import TypedDict

from rush_async import Processes, Rush, RushWorker, Task, bound, run


class Xs(TypedDict):
    x1: float


async def loop(rush: RushWorker, evals: int, rate: float = 0.5) -> None: ...


def objective(x1: float) -> float:
    return x1


async def clients(rush: Rush) -> None:
    await rush.keys_with_state("done")  # type: ignore[arg-type]
    await rush.stop_workers(mode="gently")  # type: ignore[arg-type]
    await rush.push_tasks(7)  # type: ignore[call-overload]
    rush.n_tasks = 7  # type: ignore[misc]
    rush.ranking("rung 1", True)  # type: ignore[call-arg]
    await rush.get_tasks(7)  # type: ignore[arg-type]
    rush.counts()  # type: ignore[unused-coroutine]
    with rush:  # type: ignore[attr-defined]
        pass


async def workers(rush: RushWorker) -> None:
    rush.task({"x1": 1.0}, max_failed=3)  # type: ignore[call-overload]
    async with rush.task({"x1": 1.0}, budget=9) as task:
        task.ys = {"y": 1.0}  # type: ignore[union-attr]
    async for popped in rush.tasks():
        popped.xs.update(popped.xs.x1)  # type: ignore[attr-defined]
        popped.key = 7  # type: ignore[assignment]


def typed(task: Task[Xs, float]) -> None:
    task.xs["x2"]  # type: ignore[typeddict-item]
    task.ys = "good"  # type: ignore[assignment]


async def loops(rush: Rush) -> None:
    bound(loop)  # type: ignore[call-arg]
    bound(loop, "three")  # type: ignore[arg-type]
    bound(loop, evals="three")  # type: ignore[arg-type]
    bound(loop, evals=3, steps=1)  # type: ignore[call-arg]
    bound(objective)  # type: ignore[arg-type]
    await rush.start_workers(objective)  # type: ignore[arg-type]
    await rush.start_workers(bound(loop, 3), "four")  # type: ignore[arg-type]
    await rush.start_workers(bound(loop, 3), on=Processes)  # type: ignore[arg-type]
    await rush.start_workers(bound(loop, 3), worker_class=Rush)  # type: ignore[arg-type]
    run(bound(loop, 3), finished="all")  # type: ignore[arg-type]
    Processes(show_output="no")  # type: ignore[arg-type]
