"""Optimisation inside a FastAPI service: the lifespan opens a `Rush`, the router serves runs, tasks and evaluations.

```python
app = FastAPI(lifespan=rush_lifespan("branin", config, objective=objective))
app.include_router(rush_router({"random-search": random_search}))
```

The `Rush` of the lifespan manages the service's own network. The evaluators of all processes serve its queue. A run is a
network of its own, `<service>.<run id>`: its budget, counts, events and stop requests are those of a network, so every process
that shares the database can answer for every run. A request opens a `Rush` for its run, which costs one round trip, because
all clients of a process share the connection that the lifespan holds.

The database does not keep events, so a stream cannot repeat them after a `Last-Event-ID`. A stream begins with `status`, the
state of the run, and the ids (`seq`) of its events show gaps. It ends with `end`. A client whose stream ended without `end`
opens it again, at any process.

On SIGTERM the lifespan drains the workers and ends the streams, because uvicorn waits for them: see `Service.stop_on_signals`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Annotated, Any

import anyio

try:
    from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Path, Query, Request, Response
    from fastapi.sse import EventSourceResponse, ServerSentEvent
    from pydantic import AwareDatetime
except ImportError as error:
    raise ImportError(f'these routes need FastAPI: pip install "rush-async[fastapi]" ({error})') from error

from rush_async.client.event_stream import EventStream
from rush_async.config import RushConfig, as_number, as_real
from rush_async.errors import NetworkStateError, RushConnectionError
from rush_async.events import EVENT_KINDS, Event
from rush_async.extras.fastapi.bodies import (
    EvaluateRequest,
    OwnOrRun,
    Problem,
    ReportView,
    ResumeRequest,
    RunId,
    RunRequest,
    RunStatus,
    RunSummary,
    StopRequest,
    TasksRequest,
    TaskView,
    Value,
    event_view,
)
from rush_async.extras.fastapi.runs import START, events_until_end, living_workers, read_reports, read_status
from rush_async.extras.fastapi.service import Metrics, Objective, RunLoop, Service
from rush_async.extras.fastapi.statuses import STATUS_OF_FAILURE, ErrorRoute, input_errors
from rush_async.launch.handle import Launcher
from rush_async.launch.pools import Submitter
from rush_async.manager.manager import Rush
from rush_async.supervisor import Supervisor
from rush_async.worker.loop import bind_loop

__all__ = ["Metrics", "Objective", "RunLoop", "RushDep", "rush_config", "rush_lifespan", "rush_router"]

logger = logging.getLogger(__name__)

_BUFFER = 1_000  # events that wait for a slow reader; later ones are missed, which the stream says

# the dependencies of endpoints


def _get_service(request: Request) -> Service:
    service: Service | None = getattr(request.state, "rush_service", None)
    if service is None:
        raise RuntimeError("no Rush is open: write FastAPI(lifespan=rush_lifespan(...)), or yield what it yields in your own")
    return service


_ServiceDep = Annotated[Service, Depends(_get_service)]


def _get_rush(service: _ServiceDep) -> Rush:
    return service.rush


RushDep = Annotated[Rush, Depends(_get_rush)]
"""The `Rush` that the lifespan opened, for endpoints of your own: `async def endpoint(rush: RushDep)`."""


def rush_config(service: _ServiceDep) -> RushConfig | str | None:
    """The configuration of the service, as a dependency. An override of it holds for the lifespan too:

    ```python
    app.dependency_overrides[rush_config] = lambda: RushConfig(data_dir=tmp_path)
    with TestClient(app) as client: ...
    ```
    """
    return service.rush.config


@asynccontextmanager
async def _open_network(service: Service, run_id: str | None) -> AsyncGenerator[Rush]:
    """Opens a client of a run; without an id, yields the `Rush` of the service."""
    if run_id is None:
        yield service.rush
        return
    async with service.client(run_id) as run:
        if (await run.worker_info()).is_empty():
            raise HTTPException(404, f"there is no run {run_id}")
        yield run


async def _open_run(run_id: Annotated[RunId, Path()], service: _ServiceDep) -> AsyncIterator[Rush]:
    """Opens a client of the run that the path names, for one request."""
    async with _open_network(service, run_id) as run:
        yield run


_RunDep = Annotated[Rush, Depends(_open_run)]


async def _open_events(
    run: _RunDep,
    service: _ServiceDep,
    results: Annotated[bool, Query(description="whether finished and failed events carry their tasks")] = False,
    reports: Annotated[bool, Query(description="whether reports of running tasks are sent, as `TaskReported`")] = False,
    last_event_id: Annotated[str | None, Header()] = None,
) -> AsyncIterator[EventStream[Event]]:
    if last_event_id == "end":
        raise HTTPException(204)  # stops an EventSource from connecting again
    with service.streaming(run):
        try:
            kinds = EVENT_KINDS if reports else ()
            async with run.events(*kinds, results=results, buffer=_BUFFER) as events:
                yield events
        except* anyio.BrokenResourceError:
            pass  # FastAPI closes the stream of a client that left while it still writes to it


_EventsDep = Annotated[EventStream[Event], Depends(_open_events)]


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


# the public functions


def rush_router(
    loops: Mapping[str, RunLoop],
    *,
    xs: Any = dict[str, Any],
    best: str = "y",
    maximize: bool = False,
    on: Launcher | Submitter | None = None,
    max_body: int = 8 * 1024 * 1024,
) -> APIRouter:
    """The endpoints of runs, tasks and evaluations.

    Args:
        loops: the loops that `POST /runs` may start, by name: `async def loop(rush: RushWorker, evals: int)`.
        xs: the type of inputs, best a pydantic model. The OpenAPI schema shows it, and other inputs are refused with 422.
        best: the output that ranks the tasks.
        maximize: whether the best task has the largest output, not the smallest.
        on: where the workers of runs live, as in `start_workers`.
        max_body: the largest body of a request in bytes; a larger one is refused with 413 before it is read.

    Returns:
        A router for an application whose lifespan is that of `rush_lifespan`.

    Raises:
        TypeError: a loop is not `async def`, or takes no `evals`.
    """
    max_body = as_number(max_body, "max_body")
    for loop in loops.values():
        bind_loop(loop, {"evals": 1}, {}, of="rush_router")
    problems: dict[int | str, dict[str, Any]] = {status: {"model": Problem} for status in (404, 409, 503)}
    router = APIRouter(tags=["rush"], route_class=ErrorRoute, responses=problems, max_body_size=max_body)
    _add_run_routes(router, _Loops(loops), best, maximize, on)
    _add_state_routes(router)
    _add_task_routes(router, xs)
    _add_metrics_route(router)
    return router


def rush_lifespan(
    network_id: str,
    config: RushConfig | str | None = None,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    objective: Objective | None = None,
    n_evaluators: int = 4,
    drain: float = 10.0,
    run_ttl: float | None = None,
    max_streams: int = 100,
    metrics: Metrics | None = None,
) -> Callable[[FastAPI], AbstractAsyncContextManager[Mapping[str, Any]]]:
    """The lifespan of an application: opens one `Rush`, and drains the workers at the end.

    Args:
        network_id: the service's own network. Its runs are networks beside it.
        config: as for `Rush`. All processes of one service need the same URL, or the same `data_dir`.
        data_dir: as for `Rush`.
        objective: `async def objective(xs) -> ys` evaluates the service's own queue; one with `def` runs in a thread, which a
            cancelled task does not end. An exception fails only its task.
        n_evaluators: how many tasks of that queue this process evaluates at once.
        drain: seconds that workers have to finish their tasks when the process ends. Then they are killed.
        run_ttl: seconds after which an ended run is deleted with its results; None keeps all.
        max_streams: how many streams of events this process sends at once; a further one is refused with 503.
        metrics: a `NetworkMetrics()` of `rush_async.extras.metrics`, for `GET /metrics`: it shows the service's own network,
            and the runs whose workers live in this process as long as they do.

    Returns:
        What FastAPI takes as `lifespan`.

    Raises:
        TypeError: `objective` is no function, or a number is none.
        ValueError: a number is out of its range.
    """

    if objective is not None and not callable(objective):
        raise TypeError(f"objective is a function of one input, not {type(objective).__name__}: {objective!r:.80}")
    n_evaluators, drain = as_number(n_evaluators, "n_evaluators"), as_real(drain, "drain")
    max_streams = as_number(max_streams, "max_streams")
    if run_ttl is not None and as_real(run_ttl, "run_ttl") <= 0:
        raise ValueError(f"run_ttl must be more than 0 seconds, not {run_ttl}: None keeps all runs")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[Mapping[str, Any]]:
        override = app.dependency_overrides.get(rush_config)
        given = (config, data_dir) if override is None else (override(), None)
        async with Rush(network_id, given[0], data_dir=given[1], exist_ok=True) as rush:
            service = Service(
                *(rush, drain, objective, n_evaluators), run_ttl=run_ttl, max_streams=max_streams, metrics=metrics
            )
            try:
                await service.open()
                with service.stop_on_signals():
                    yield {"rush_service": service}
            finally:
                await service.aclose()

    return lifespan


# the routes


class _Loops(dict[str, RunLoop]):
    def __missing__(self, name: str) -> RunLoop:
        raise HTTPException(422, f"there is no loop {name!r}: choose from {', '.join(sorted(self))}")


def _add_run_routes(
    router: APIRouter, loops: Mapping[str, RunLoop], best: str, maximize: bool, on: Launcher | Submitter | None
) -> None:
    async def status_of(run: Rush) -> RunStatus:
        return await read_status(run, best, maximize=maximize)

    @router.post("/runs", status_code=201)
    async def start_run(body: RunRequest, service: _ServiceDep, request: Request, response: Response) -> RunStatus:
        """Starts the workers of a run in this process. They share the budget."""
        rules = None if body.stop_when is None else body.stop_when.arguments()
        run_id = secrets.token_hex(8)
        await service.start_workers(run_id, loops[body.loop], body, on, rules)
        response.headers["Location"] = f"{request.url.path}/{run_id}"
        async with service.client(run_id) as run:
            return await status_of(run)

    @router.get("/runs/{run_id}")
    async def get_run(run: _RunDep, service: _ServiceDep) -> RunStatus:
        """Returns counts, workers, and the best task so far."""
        status = await status_of(run)
        service.watch(status)
        return status

    @router.post("/runs/{run_id}/stop")
    async def stop_network(run: _RunDep, body: StopRequest | None = None) -> RunStatus:
        """Stops the run as a whole: no task starts any more, in any process, until it is resumed. What runs may end."""
        await run.stop((body or StopRequest()).why)
        return await status_of(run)

    @router.post("/runs/{run_id}/resume")
    async def resume_network(run_id: RunId, run: _RunDep, service: _ServiceDep, body: ResumeRequest | None = None) -> RunStatus:
        """Lifts the stop of the run, replaces its rules, and may start workers in this process."""
        asked = body or ResumeRequest()
        loop = None if asked.workers is None else loops[asked.workers.loop]
        with input_errors():
            await run.resume(**({} if asked.stop_when is None else asked.stop_when.arguments()))
        if asked.workers is not None and loop is not None:
            await service.start_workers(run_id, loop, asked.workers, on)
        return await status_of(run)

    @router.delete("/runs/{run_id}")
    async def stop_run(run: _RunDep, timeout: Annotated[float, Query(ge=0, le=60)] = 10, forget: bool = False) -> RunStatus:
        """Stops the run, and kills workers that still run after `timeout` seconds. With `forget` it deletes the run."""
        if await living_workers(run):
            await run.stop()
        await run.stop_workers(timeout=timeout)
        status = await status_of(run)
        if forget:
            await run.reset()
        return status

    @router.get("/runs/{run_id}/events", response_class=EventSourceResponse)
    async def run_events(run: _RunDep, events: _EventsDep) -> AsyncIterator[ServerSentEvent]:
        """Sends `status`, then each event under the name of its class with `seq` as id, and `end` after the last worker."""
        try:
            living = await living_workers(run)
            yield ServerSentEvent(event="status", data=await status_of(run))
            async for event in events_until_end(run, events, living):
                yield event_view(event)
            yield ServerSentEvent(event="end", id="end", data=await status_of(run))
        except (NetworkStateError, RushConnectionError) as error:
            logger.info("the stream of events of network %s ended early: %s", run.network_id, error)


def _add_state_routes(router: APIRouter) -> None:
    @router.get("/runs")
    async def list_runs(service: _ServiceDep, limit: Annotated[int, Query(ge=1, le=10_000)] = 100) -> list[RunSummary]:
        """Returns the runs of all processes, the last started first."""
        return (await service.runs())[:limit]

    @router.get("/runs/{run_id}/attrs")
    async def get_attrs(run: _RunDep, name: Annotated[list[str] | None, Query(max_length=1_000)] = None) -> dict[str, Value]:
        """Returns the attributes of the run, all or those named; one that was never set is left out."""
        found = await run.attrs(*(name or ()))
        return {name: value for name, value in found.items() if name != START}

    @router.put("/runs/{run_id}/attrs", status_code=204)
    async def set_attrs(run: _RunDep, body: dict[str, Any]) -> None:
        """Sets attributes of the run, all in one step. Others stay as they are."""
        if START in body:
            raise HTTPException(422, f"the attribute {START!r} is the service's own: choose another name")
        with input_errors():
            await run.set_attrs(body)

    @router.get("/runs/{run_id}/reports")
    async def get_reports(
        run: _RunDep,
        key: Annotated[list[str] | None, Query(max_length=1_000)] = None,
        since: Annotated[AwareDatetime | None, Query(description="only reports later than this")] = None,
        limit: Annotated[int, Query(ge=1, le=100_000, description="how many; one instant is never cut apart")] = 10_000,
    ) -> list[ReportView]:
        """Returns what running tasks reported, oldest first. For more, ask again `since` the `at` of the last one."""
        return await read_reports(run, key, since, limit)


def _add_metrics_route(router: APIRouter) -> None:
    @router.get("/metrics", responses={200: {"content": {"text/plain": {}}}})
    async def get_metrics(service: _ServiceDep, accept: Annotated[str, Header()] = "") -> Response:
        """Returns the metrics of this process for Prometheus, where the service has any."""
        if service.metrics is None:
            raise HTTPException(404, "this service has no metrics: give rush_lifespan(metrics=NetworkMetrics())")
        text, content_type = await service.metrics.scrape(accept)
        return Response(text, headers={"Content-Type": content_type})


def _add_task_routes(router: APIRouter, xs: Any) -> None:
    async def push_tasks(body: Any, service: _ServiceDep) -> list[str]:
        """Queues tasks for the workers of a run, or for the evaluators. Returns their keys."""
        async with _open_network(service, body.run) as rush:
            with input_errors():
                return await rush.push_tasks(body.xss, retries=body.retries)

    async def evaluate(body: Any, service: _ServiceDep, request: Request) -> TaskView:
        """Queues one task and returns it when it is finished. After a timeout or a disconnect it cancels the task."""
        disconnected = Supervisor.spawn(_wait_for_disconnect(request))
        try:
            async with _open_network(service, body.run) as rush:
                with input_errors():
                    task = await service.evaluate(
                        rush, body.xs, timeout=body.timeout, retries=body.retries, disconnected=disconnected
                    )
        finally:
            disconnected.cancel()
            await asyncio.wait([disconnected])
        shown = TaskView.model_validate(task)
        if (failure := shown.failure) is None:
            return shown
        logger.info("task %s failed: %s", task.key, task.failure)
        why = f"{failure.type}: {failure.message}" if failure.type else failure.message
        raise HTTPException(STATUS_OF_FAILURE[failure.kind], f"task {task.key} failed ({failure.kind}): {why}")

    # The type of a body depends on the type of the inputs, which a static annotation cannot express.
    push_tasks.__annotations__["body"] = TasksRequest.__class_getitem__(xs)
    evaluate.__annotations__["body"] = EvaluateRequest.__class_getitem__(xs)
    router.post("/tasks", status_code=202)(push_tasks)
    failures: dict[int | str, dict[str, Any]] = {status: {"model": Problem} for status in (409, 500, 504)}
    router.post("/evaluate", responses=failures)(evaluate)

    @router.get("/tasks")
    async def get_tasks(
        key: Annotated[list[str], Query(max_length=1_000)], service: _ServiceDep, run: Annotated[OwnOrRun, Query()] = None
    ) -> list[TaskView | None]:
        """Returns tasks by their keys, null for an unknown key."""
        async with _open_network(service, run) as rush:
            return [task and TaskView.model_validate(task) for task in await rush.get_tasks(key)]
