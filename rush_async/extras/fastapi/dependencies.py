"""What endpoints ask for: the service of this process, a client of a run, a stream of its events."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, Header, HTTPException, Path, Query, Request

from rush_async.client.event_stream import EventStream
from rush_async.events import Event
from rush_async.extras.fastapi.bodies import RunId
from rush_async.extras.fastapi.service import Service
from rush_async.manager.manager import Rush

__all__ = ["RunDep", "RushDep", "ServiceDep", "StreamDep", "network_of"]


def _find(request: Request) -> Service:
    service: Service | None = getattr(request.state, "rush_service", None)
    if service is None:
        raise RuntimeError("no Rush is open: write FastAPI(lifespan=rush_lifespan(...)), or yield what it yields in your own")
    return service


ServiceDep = Annotated[Service, Depends(_find)]


def _own(service: ServiceDep) -> Rush:
    return service.rush


RushDep = Annotated[Rush, Depends(_own)]
"""The `Rush` that the lifespan opened, for endpoints of your own: `async def endpoint(rush: RushDep)`."""


@asynccontextmanager
async def network_of(service: Service, run_id: str | None) -> AsyncGenerator[Rush]:
    """A client of a run, or the service's own."""
    if run_id is None:
        yield service.rush
        return
    async with service.client(run_id) as run:
        if (await run.worker_info()).is_empty():
            raise HTTPException(404, f"there is no run {run_id}")
        yield run


async def _run(run_id: Annotated[RunId, Path()], service: ServiceDep) -> AsyncIterator[Rush]:
    async with network_of(service, run_id) as run:
        yield run


RunDep = Annotated[Rush, Depends(_run)]


async def _events(
    run: RunDep,
    service: ServiceDep,
    results: Annotated[bool, Query(description="whether finished and failed events carry their tasks")] = False,
    last_event_id: Annotated[str | None, Header()] = None,
) -> AsyncIterator[EventStream[Event]]:
    if last_event_id == "end":
        raise HTTPException(204)  # an EventSource that comes again stays away
    with service.streaming(run):
        async with run.events(results=results) as events:
            yield events


StreamDep = Annotated[EventStream[Event], Depends(_events)]
