"""Fixtures that run the program `rush-async`."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from rush_async import Rush
from tests.cli.programs import ROOT, Program, Run, running


@pytest_asyncio.fixture
async def run() -> AsyncIterator[Run]:
    """Starts a program."""
    async with running() as run:
        yield run


@pytest_asyncio.fixture
async def worker(rush: Rush) -> AsyncIterator[Run]:
    """Starts `rush-async worker` in the network of `rush`."""
    assert rush.config.url is not None
    url = rush.config.url
    async with running() as run:

        async def run_worker(*words: str, cwd: Path = ROOT) -> Program:
            return await run(sys.executable, "-m", "rush_async", "worker", rush.network_id, *words, cwd=cwd, RUSH_URL=url)

        yield run_worker
