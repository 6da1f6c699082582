"""Every test runs on a real server and leaves nothing behind: no key, task, thread, process or file."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import pytest
import pytest_asyncio
import redis
from hypothesis import settings

from rush_async import Rush, RushConfig
from tests.proxy import Proxy

pytest_plugins = ["rush_async.testing"]

settings.register_profile("no deadline", deadline=None)  # no test depends on how fast the machine is
settings.load_profile("no deadline")


@pytest.fixture(scope="session")
def raw(rush_server: RushConfig) -> Iterator[redis.Redis]:
    """A plain client of the test server, which reads and writes keys without the library."""
    assert rush_server.url is not None
    with redis.Redis.from_url(rush_server.url) as client:  # pyright: ignore[reportUnknownMemberType]
        # This client and polars' engine open files once a process and keep them: before the tests count files.
        client.keys()  # pyright: ignore[reportUnknownMemberType]
        pl.concat([pl.LazyFrame({"a": [1]})] * 2).collect()
        yield client


@pytest.fixture(autouse=True)
def leaves_no_key(raw: Any) -> Iterator[None]:
    yield
    left = raw.keys("*")
    raw.flushall()
    assert not left, f"the test left keys behind: {left}"


@pytest.fixture(autouse=True)
def leaves_no_thread_or_process(raw: redis.Redis) -> Iterator[None]:
    # The server of the test session and its watchdog run before the test, and after it.
    processes = {process.pid for process in psutil.Process().children(recursive=True)}
    threads = set(threading.enumerate())
    files = psutil.Process().num_fds()
    yield
    gc.collect()
    gc.freeze()  # later collections skip what is left; without this they take a quarter of the time of all tests
    # A pool's worker deregisters before its thread has closed the files of its event loop.
    deadline = time.monotonic() + 5

    def left() -> list[threading.Thread]:
        return [t for t in threading.enumerate() if t not in threads and not t.name.startswith(("AnyIO", "asyncio"))]

    while left() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left(), f"the test left threads behind: {left()}"
    children = [child for child in psutil.Process().children(recursive=True) if child.pid not in processes]
    psutil.wait_procs(children, timeout=5)
    children = [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert not children, f"the test left processes behind: {children}"
    while psutil.Process().num_fds() > files + 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert psutil.Process().num_fds() <= files + 2, f"the test left files or sockets open: {os.listdir('/proc/self/fd')}"


@pytest_asyncio.fixture(autouse=True)
async def leaves_no_task() -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield

    from rush_async.testing import wait_until  # pytest_plugins has to load it first

    def left() -> set[asyncio.Task[Any]]:
        return asyncio.all_tasks() - before - {asyncio.current_task()}  # pyright: ignore[reportOperatorIssue]

    await wait_until(lambda: not left(), timeout=2)


@pytest_asyncio.fixture
async def elsewhere(rush: Rush) -> AsyncIterator[Rush]:
    """A client of the network of `rush` with a connection and a view of its own, as in another process."""
    # Clients with different settings share no connection, even in one event loop.
    async with Rush(rush.network_id, replace(rush.config, response_timeout=10.5)) as elsewhere:
        yield elsewhere


@pytest_asyncio.fixture
async def proxy(rush_server: RushConfig, directory: Path) -> AsyncIterator[Proxy]:
    """A proxy in front of the test server; it counts and breaks what clients of `proxy.url` send."""
    assert rush_server.url is not None
    async with Proxy(rush_server.url, directory) as proxy:
        yield proxy


@pytest.fixture
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a path that is short enough for sockets."""
    return tmp_path_factory.mktemp("d", numbered=True)
