"""The HTTP status of each error of this library and of each kind of failure."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.routing import APIRoute

from rush_async.errors import (
    DecodeError,
    EncodeError,
    NetworkStateError,
    RushConnectionError,
    RushError,
    RushTimeoutError,
    ServerFullError,
    TasksNotDoneError,
)
from rush_async.extras.fastapi.streams import LimitedStream
from rush_async.model import FailureKind

__all__ = [
    "HIDDEN",
    "MESSAGES_OF_FAILURES",
    "STATUS_OF_FAILURE",
    "ErrorRoute",
    "ShuttingDownError",
    "TooManyStreamsError",
    "input_errors",
]

logger = logging.getLogger(__name__)


class ShuttingDownError(NetworkStateError):
    """This process starts nothing any more. Another one may."""


class TooManyStreamsError(NetworkStateError):
    """This process sends as many streams as it may. Another one may send more."""


# The first class in an error's MRO that is listed counts. Every other error of this library is a 500.
_STATUSES: dict[type[BaseException], int] = {
    EncodeError: 422,
    NetworkStateError: 409,
    RushConnectionError: 503,
    ServerFullError: 503,
    ShuttingDownError: 503,
    TasksNotDoneError: 503,  # there is no worker
    RushTimeoutError: 504,
    TooManyStreamsError: 503,
}
_PUBLIC = (EncodeError, NetworkStateError, RushTimeoutError)  # their messages are for clients
HIDDEN = "the service failed: its log says why"  # in place of a message that may have the database's address, or its records
_DETAILS: dict[type[BaseException], str] = {
    RushConnectionError: "the database does not answer: try again",
    ServerFullError: "the database is full: try again later",
    TasksNotDoneError: "no worker will run the task: start workers, or resume the run",
}
MESSAGES_OF_FAILURES: dict[str, str] = {  # of workers and tasks, by the name of the error
    RushConnectionError.__name__: "the database was away for longer than retry_deadline. Resume the run with new workers",
    ServerFullError.__name__: "the database was full. Make room there, and resume the run with new workers",
}
STATUS_OF_FAILURE: dict[FailureKind, int] = {
    "error": 500,
    "lost": 503,
    "killed": 503,
    "timeout": 504,
    "cancelled": 409,
    "removed": 409,
}


class ErrorRoute(APIRoute):
    """A route that turns the errors of this library into responses, and limits its streams."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_errors(request: Request) -> Response:
            try:
                response = await handle(request)
            except RushError as error:
                status = next((_STATUSES[kind] for kind in type(error).__mro__ if kind in _STATUSES), 500)
                logger.warning("%s %s: %s", request.method, request.url.path, error)
                detail = _DETAILS.get(type(error)) or (str(error) if isinstance(error, _PUBLIC) else HIDDEN)
                raise HTTPException(status, detail) from error
            return LimitedStream(response) if isinstance(response, StreamingResponse) else response

        return handle_errors


@contextmanager
def input_errors() -> Generator[None]:
    """A block that answers errors in the input of a request: 422, or 404 for a task that was deleted meanwhile."""
    try:
        yield
    except DecodeError:
        raise  # a ValueError that shows a record, and not the client's fault
    except ValueError as error:
        raise HTTPException(422, str(error)) from error
    except KeyError as error:
        raise HTTPException(404, f"a reset deleted the task meanwhile: {error.args[0]}") from error
