"""Calls of the program in the process of the test."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

import pytest

from rush_async.cli.program import main

__all__ = ["Called", "call"]


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
