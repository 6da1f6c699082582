"""A web service that optimises the Branin function.

    pip install ".[fastapi]" uvicorn
    uvicorn examples.fastapi_service.app:app

It keeps its data in the directory `rush-data`, or in `RUSH_DATA_DIR`. With `RUSH_URL`
it uses that database. In both cases several processes form one service: add
`--workers 2`, or start it again on another port. With `API_TOKEN` every request needs
that token. `docs/guides/fastapi.md` has requests to try, and `test_app.py` shows how to
test it.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import secrets
import time
from dataclasses import replace
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.security import APIKeyCookie, HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, Field

from rush_async import RushConfig, RushWorker
from rush_async.extras.fastapi import RushDep, rush_lifespan, rush_router


class Point(BaseModel):
    """An input of the Branin function, within its domain."""

    x1: Annotated[float, Field(ge=-5, le=10)]
    x2: Annotated[float, Field(ge=0, le=15)]


def branin(x1: float, x2: float) -> float:
    """The Branin function; its minimum is 0.3979."""
    a = x2 - 5.1 / (4 * math.pi**2) * x1**2 + 5 / math.pi * x1 - 6
    return a**2 + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x1) + 10


def experiment(x1: float, x2: float) -> float:
    """The Branin function as a slow blocking call, like a simulation or a training."""
    time.sleep(0.05)
    return branin(x1, x2)


async def objective(xs: dict[str, Any]) -> dict[str, float]:
    """Evaluates a point in a thread, so that the event loop keeps serving requests."""
    return {"y": await asyncio.to_thread(experiment, **xs)}


async def random_search(rush: RushWorker, evals: int) -> None:
    """Finishes exactly `evals` tasks, however many workers share the work."""
    while not rush.terminated:
        xs = {"x1": random.uniform(-5, 10), "x2": random.uniform(0, 15)}
        async with rush.task(xs, budget=evals) as task:
            if task is None:
                break
            task.ys = await objective(task.xs)


def settings() -> RushConfig:
    """The database that all processes of the service share."""
    config = RushConfig.from_env()
    if config.url is None:
        config = replace(config, data_dir=os.environ.get("RUSH_DATA_DIR", "rush-data"))
    # A request fails if the database is unreachable for longer.
    return replace(config, retry_deadline=5.0)


bearer = HTTPBearer(auto_error=False)
session = APIKeyCookie(name="session", auto_error=False)


def signed_in(
    header: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
    cookie: Annotated[str | None, Depends(session)],
) -> None:
    """Lets requests with the token pass, in a header or a cookie."""
    token = os.environ.get("API_TOKEN")
    given = header.credentials if header is not None else cookie or ""
    if token and not secrets.compare_digest(given.encode(), token.encode()):
        raise HTTPException(
            401,
            "send the token in the header `Authorization: Bearer ...`",
            {"WWW-Authenticate": "Bearer"},
        )


def create_app() -> FastAPI:
    """The service with the endpoints of the router and two of its own."""
    lifespan = rush_lifespan(
        "branin", settings(), objective=objective, drain=5.0, run_ttl=7 * 24 * 3600
    )
    app = FastAPI(title="Branin", lifespan=lifespan)
    app.include_router(
        rush_router({"random-search": random_search}, xs=Point),
        dependencies=[Depends(signed_in)],
    )

    @app.post("/session", status_code=204, dependencies=[Depends(signed_in)])
    async def sign_in(request: Request, response: Response) -> None:
        """Sets a cookie for a browser: its EventSource sends no header."""
        secure = request.url.scheme == "https"
        token = os.environ.get("API_TOKEN", "")
        response.set_cookie(
            "session",
            token,
            max_age=12 * 3600,
            httponly=True,
            samesite="strict",
            secure=secure,
        )

    @app.get("/health")
    async def health(rush: RushDep) -> dict[str, int]:
        """How many points were evaluated for clients."""
        return {"evaluated": (await rush.counts()).finished}

    return app


app = create_app()
