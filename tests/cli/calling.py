"""Calls of the program in the process of the test."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import pytest

from rush_async import Rush
from rush_async.cli.program import main

__all__ = ["Called", "Calling", "call", "calling"]


class Called(NamedTuple):
    """The end of a call of the program.

    Attributes:
        code: its exit code.
        out: what it printed.
        errors: what it wrote to stderr.
    """

    code: int | str | None
    out: str
    errors: str


async def call(capsys: pytest.CaptureFixture[str], *words: str) -> Called:
    """Calls `rush-async` with these words in a thread, as it runs event loops of its own."""
    capsys.readouterr()
    try:
        code: int | str | None = await asyncio.to_thread(main, words)
    except SystemExit as end:
        code = end.code
    out, errors = capsys.readouterr()
    return Called(code, out, errors)


Calling = Callable[..., Awaitable[Called]]


def calling(rush: Rush, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Calling:
    """Returns a function that calls a command with the network of `rush`, and with further words; `net=` names another."""
    assert rush.config.url is not None
    monkeypatch.setenv("RUSH_URL", rush.config.url)
    monkeypatch.delenv("RUSH_NETWORK", raising=False)

    async def call_in(command: str, *words: str, net: str = rush.network_id) -> Called:
        return await call(capsys, command, net, *words)

    return call_in
