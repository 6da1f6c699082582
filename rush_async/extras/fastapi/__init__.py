"""An optimiser inside a FastAPI service: the lifespan opens one `Rush`, the router starts, shows and stops runs, and evaluates.

```python
app = FastAPI(lifespan=rush_lifespan("branin", config, objective=objective))
app.include_router(rush_router({"random-search": random_search}))
```

The `Rush` of the lifespan manages the service's own network, whose queue the evaluators of all processes serve. A run is a
network of its own, `<service>.<run id>`: budget, counts, events and requests to stop are those of a network, so every process
that shares the database answers for every run, and nothing of it stands in the memory of one. A request opens a `Rush` of its
run, which costs one round trip: all clients share the connection that the lifespan holds.

Events are not kept, so none is repeated after a `Last-Event-ID`: a stream begins with `status`, the run as it stands, and the
ids (`seq`) show gaps. It ends with `end`; one that ends without was broken off, and may be opened again at any process.

On SIGTERM the lifespan drains the workers and ends the streams, which uvicorn waits for; see `Service.told_by_signals`.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, HTTPException, Query, Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent

from rush_async.config import RushConfig
from rush_async.errors import NetworkStateError, RushConnectionError
from rush_async.extras.fastapi.bodies import (
    EvaluateRequest,
    OwnOrRun,
    Problem,
    RunRequest,
    RunStatus,
    TasksRequest,
    TaskView,
    event_view,
)
from rush_async.extras.fastapi.dependencies import RunDep, RushDep, ServiceDep, StreamDep, network_of
from rush_async.extras.fastapi.service import Objective, RunLoop, Service, follow, state_of
from rush_async.extras.fastapi.statuses import STATUS_OF_FAILURE, TellingRoute, checked_task
from rush_async.launch.handle import Launcher
from rush_async.launch.pools import Submitter
from rush_async.manager.manager import Rush

__all__ = ["RushDep", "rush_lifespan", "rush_router"]

logger = logging.getLogger(__name__)


async def _until_left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def rush_router(
    loops: Mapping[str, RunLoop],
    *,
    xs: Any = dict[str, Any],
    best: str = "y",
    maximize: bool = False,
    on: Launcher | Submitter | None = None,
) -> APIRouter:
    """The endpoints of runs, tasks and evaluations.

    Args:
        loops: the loops that `POST /runs` may start, by name: `async def loop(rush: RushWorker, evals: int)`.
        xs: the type of inputs, best a pydantic model: others are refused with 422, and the OpenAPI schema shows it.
        best: the output by which the best task is found.
        maximize: whether more of it is better.
        on: where workers of runs live, as in `start_workers`.
    """
    problems: dict[int | str, dict[str, Any]] = {status: {"model": Problem} for status in (404, 503)}
    router = APIRouter(tags=["rush"], route_class=TellingRoute, responses=problems)

    async def status_of(run: Rush) -> RunStatus:
        return RunStatus.model_validate(await state_of(run, best, maximize=maximize))

    @router.post("/runs", status_code=201)
    async def start_run(body: RunRequest, service: ServiceDep, request: Request, response: Response) -> RunStatus:
        """Starts workers in this process; they share the budget."""
        if body.loop not in loops:
            raise HTTPException(422, f"there is no loop {body.loop!r}: choose from {', '.join(sorted(loops))}")
        run_id = await service.start_run(loops[body.loop], body.evals, body.n_workers, on)
        response.headers["Location"] = f"{request.url.path}/{run_id}"
        async with service.client(run_id) as run:
            return await status_of(run)

    @router.get("/runs/{run_id}")
    async def get_run(run: RunDep) -> RunStatus:
        """Counts, workers, and the best task so far."""
        return await status_of(run)

    @router.delete("/runs/{run_id}")
    async def stop_run(run: RunDep, timeout: Annotated[float, Query(ge=0, le=60)] = 10, forget: bool = False) -> RunStatus:
        """Stops the workers wherever they live; those that run after `timeout` seconds are killed. `forget` deletes it all."""
        await run.stop_workers(timeout=timeout)
        status = await status_of(run)
        if forget:
            await run.reset()
        return status

    @router.get("/runs/{run_id}/events", response_class=EventSourceResponse)
    async def run_events(run: RunDep, events: StreamDep) -> AsyncIterator[ServerSentEvent]:
        """`status` first, then events by the names of their classes with `seq` as id, and `end` when no worker is left."""
        try:
            yield ServerSentEvent(event="status", data=await status_of(run))
            async for event in follow(run, events):
                yield event_view(event)
            yield ServerSentEvent(event="end", id="end", data=await status_of(run))
        except (NetworkStateError, RushConnectionError) as error:
            logger.info("a stream of events was broken off: %s", error)

    async def push_tasks(body: Any, service: ServiceDep) -> list[str]:
        """Queues tasks for the workers of a run, or for the evaluators; their keys."""
        async with network_of(service, body.run) as rush:
            with checked_task():
                return await rush.push_tasks(body.xss, retries=body.retries)

    async def evaluate(body: Any, service: ServiceDep, request: Request) -> TaskView:
        """Queues one task and answers when it is finished; whoever goes away before or is timed out withdraws it."""
        async with network_of(service, body.run) as rush:
            with checked_task():
                left = partial(_until_left, request)
                task = await service.evaluate(rush, body.xs, timeout=body.timeout, retries=body.retries, left=left)
        if (failure := task.failure) is not None:
            why = f"{failure.type}: {failure.message}" if failure.type else failure.message
            raise HTTPException(STATUS_OF_FAILURE[failure.kind], f"task {task.key} failed ({failure.kind}): {why}")
        return TaskView.model_validate(task)

    # What a body holds depends on the type of inputs, which no annotation can say.
    push_tasks.__annotations__["body"] = TasksRequest.__class_getitem__(xs)
    evaluate.__annotations__["body"] = EvaluateRequest.__class_getitem__(xs)
    router.post("/tasks", status_code=202)(push_tasks)
    failures: dict[int | str, dict[str, Any]] = {status: {"model": Problem} for status in (409, 500, 504)}
    router.post("/evaluate", responses=failures)(evaluate)

    @router.get("/tasks")
    async def get_tasks(
        key: Annotated[list[str], Query(max_length=1_000)], service: ServiceDep, run: Annotated[OwnOrRun, Query()] = None
    ) -> list[TaskView | None]:
        """Tasks by their keys, null for one that is not known."""
        async with network_of(service, run) as rush:
            return [task and TaskView.model_validate(task) for task in await rush.get_tasks(key)]

    return router


def rush_lifespan(
    network_id: str,
    config: RushConfig | str | None = None,
    *,
    objective: Objective | None = None,
    n_evaluators: int = 4,
    drain: float = 10.0,
) -> Callable[[FastAPI], AbstractAsyncContextManager[Mapping[str, Any]]]:
    """The lifespan of an application: opens one `Rush`, and drains the workers at the end.

    Args:
        network_id: the service's own network; its runs are networks beside it.
        config: as for `Rush`. Processes of one service name the same URL, or the same `data_dir`.
        objective: `async def objective(xs) -> ys` evaluates the service's own queue; what it raises fails the task alone.
        n_evaluators: how many tasks of that queue this process evaluates at once.
        drain: seconds that workers have to finish what they run when the process is asked to end; then they are killed.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[Mapping[str, Any]]:
        async with Rush(network_id, config) as rush:
            service = Service(rush, drain)
            try:
                await service.open(objective, n_evaluators)
                with service.told_by_signals():
                    yield {"rush_service": service}
            finally:
                await service.aclose()

    return lifespan
