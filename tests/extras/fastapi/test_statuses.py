"""The HTTP status of each error of this library and of each kind of failure."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import get_args

import httpx
import pytest
import pytest_asyncio
from fastapi import APIRouter, FastAPI, HTTPException

from rush_async import (
    DecodeError,
    EncodeError,
    NetworkStateError,
    RushConnectionError,
    RushError,
    RushTimeoutError,
    ServerFullError,
    TasksNotDoneError,
)
from rush_async.extras.fastapi.statuses import (
    HIDDEN,
    STATUS_OF_FAILURE,
    ErrorRoute,
    ShuttingDownError,
    TooManyStreamsError,
    input_errors,
)
from rush_async.model import FailureKind

ERRORS = {
    EncodeError: 422,
    NetworkStateError: 409,
    ShuttingDownError: 503,
    TooManyStreamsError: 503,
    RushConnectionError: 503,
    ServerFullError: 503,
    TasksNotDoneError: 503,
    RushTimeoutError: 504,
    RushError: 500,
    DecodeError: 500,
}

HIDING: dict[type[RushError], str] = {  # their messages may have the address of the database, or bytes of records
    RushConnectionError: "the database does not answer: try again",
    ServerFullError: "the database is full: try again later",
    TasksNotDoneError: "no worker will run the task: start workers, or resume the run",
    RushError: HIDDEN,
    DecodeError: HIDDEN,
}


@pytest_asyncio.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application with an endpoint for each error."""
    router = APIRouter(route_class=ErrorRoute)
    errors = {kind.__name__: kind("the reason") for kind in ERRORS}

    @router.get("/{name}")
    async def fail(name: str) -> None:
        raise errors[name]

    app = FastAPI()
    app.include_router(router)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client:
        yield client


@pytest.mark.parametrize("error", ERRORS)
async def test_each_error_has_its_status(client: httpx.AsyncClient, error: type[RushError]) -> None:
    answer = await client.get(f"/{error.__name__}")
    assert answer.status_code == ERRORS[error]
    assert answer.json() == {"detail": HIDING.get(error, "the reason")}


def test_every_kind_of_failure_has_a_status() -> None:
    assert set(STATUS_OF_FAILURE) == set(get_args(FailureKind))


@pytest.mark.parametrize(("error", "status"), [(ValueError("bad"), 422), (KeyError("k"), 404)])
def test_an_error_in_the_input_is_the_clients(error: Exception, status: int) -> None:
    with pytest.raises(HTTPException) as raised, input_errors():
        raise error
    assert raised.value.status_code == status


def test_a_record_that_cannot_be_decoded_is_not_the_clients_error() -> None:
    with pytest.raises(DecodeError), input_errors():
        raise DecodeError(r"record b'\xff' has no header")
