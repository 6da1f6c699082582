"""The state of runs: which workers they have, and why they ended."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest_asyncio

from rush_async import Rush, RushWorker
from rush_async.extras.fastapi.bodies import EndView, WorkersRequest
from rush_async.extras.fastapi.runs import START, read_status, read_summary
from rush_async.extras.fastapi.service import RunLoop, Service
from rush_async.testing import wait_until

RUN = "0123456789abcdef"


async def search(rush: RushWorker, evals: int) -> None:
    while not rush.terminated:
        async with rush.task({"x": 1}, budget=evals) as task:
            if task is None:
                return
            task.ys = {"y": 1.0}


async def unlucky(rush: RushWorker, evals: int) -> None:
    raise LookupError("there is no lake")


async def leaves(rush: RushWorker, evals: int) -> None:
    """Ends before its budget is spent."""


async def until_stopped(rush: RushWorker, evals: int) -> None:
    await rush.pop_task(None)


@pytest_asyncio.fixture
async def service(rush: Rush) -> AsyncIterator[Service]:
    """A service without HTTP; its runs are deleted after the test."""
    service = Service(rush, 0.5)
    await service.open()
    yield service
    await service.aclose()
    for run in await service.runs():
        async with service.client(run.id) as client:
            await client.reset()


async def ended(service: Service, run_id: str) -> EndView:
    async def end() -> EndView | None:
        async with service.client(run_id) as run:
            return (await read_summary(run)).ended

    return await wait_until(end)  # pyright: ignore[reportReturnType]


async def test_an_ended_run_says_why(service: Service) -> None:
    cases: list[tuple[str, RunLoop, Mapping[str, Any] | None, str, str]] = [
        ("budget", search, None, "budget", "3 tasks are finished, and the budget is 3"),
        ("rule", search, {"finished": 2}, "rule", "finished: 2 tasks have finished"),
        ("failed", unlucky, None, "failed", "LookupError: there is no lake"),
        ("left", leaves, None, "left", "its workers ended before the budget was spent"),
    ]
    for n, (name, loop, rules, why, detail) in enumerate(cases):
        run_id = f"{n:016}"
        await service.start_workers(run_id, loop, WorkersRequest(loop=name, evals=3, n_workers=1), stop_when=rules)
        end = await ended(service, run_id)
        assert (end.why, end.detail) == (why, detail)
        assert end.at is not None
    async with service.client(f"{0:016}") as run:
        await run.stop("too late")
    assert (await ended(service, f"{0:016}")).why == "budget"
    listed = await service.runs()
    assert [(run.loop, run.evals, run.state, run.counts["finished"]) for run in listed] == [
        ("left", 3, "ended", 0),
        ("failed", 3, "ended", 0),
        ("rule", 3, "ended", 2),
        ("budget", 3, "ended", 3),
    ]


async def test_a_run_that_a_person_stops_says_so(service: Service) -> None:
    await service.start_workers(RUN, until_stopped, WorkersRequest(loop="until_stopped", evals=3, n_workers=2))
    async with service.client(RUN) as run:
        assert (await read_summary(run)).ended is None
        assert (await run.attrs()) == {START: {"loop": "until_stopped", "evals": 3}}
        await run.stop("seen enough")
        await run.stop_workers()
        end = (await read_status(run, "y")).ended
    assert end is not None
    assert (end.why, end.detail) == ("stopped", "seen enough")


async def test_a_run_that_does_not_exist_has_ended(service: Service) -> None:
    async with service.client(RUN) as run:
        status = await read_status(run, "y")
    assert (status.id, status.state, status.workers, status.best) == (RUN, "ended", {}, None)
    assert status.ended == EndView(why="deleted", detail="the run was deleted", at=None)
