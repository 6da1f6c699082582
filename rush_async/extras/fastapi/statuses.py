"""What this library raises, as statuses of HTTP."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute

from rush_async.errors import (
    EncodeError,
    NetworkStateError,
    RushConnectionError,
    RushError,
    RushTimeoutError,
    ServerFullError,
    TasksNotDoneError,
)
from rush_async.model import FailureKind

__all__ = ["STATUS_OF_FAILURE", "TellingRoute", "checked_task"]

logger = logging.getLogger(__name__)

# The nearest class of an error counts; whatever else this library raises is a 500.
_STATUSES: dict[type[BaseException], int] = {
    EncodeError: 422,
    NetworkStateError: 503,
    RushConnectionError: 503,
    ServerFullError: 503,
    TasksNotDoneError: 503,  # no worker is there
    RushTimeoutError: 504,
}
STATUS_OF_FAILURE: dict[FailureKind, int] = {
    "error": 500,
    "lost": 503,
    "killed": 503,
    "timeout": 504,
    "cancelled": 409,
    "removed": 409,
}


class TellingRoute(APIRoute):
    """A route that answers this library's errors."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except RushError as error:
                status = next((_STATUSES[kind] for kind in type(error).__mro__ if kind in _STATUSES), 500)
                logger.warning("%s %s: %s", request.method, request.url.path, error)
                is_away = isinstance(error, RushConnectionError)  # its message has the address
                raise HTTPException(status, "the database does not answer, try again" if is_away else str(error)) from error

        return answer


@contextmanager
def checked_task() -> Generator[None]:
    """What is wrong with an input is the caller's mistake: 422."""
    try:
        yield
    except ValueError as error:
        raise HTTPException(422, str(error)) from error
    except KeyError as error:
        raise HTTPException(404, f"deleted by a reset meanwhile: {error.args[0]}") from error
