"""Fixtures and a wait for tests of your own loops, on a real server. In your `conftest.py`:

```python
pytest_plugins = ["rush_async.testing"]
```
"""

from __future__ import annotations

import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TypeVar, cast

import anyio
import pytest
import pytest_asyncio

from rush_async.config import RushConfig
from rush_async.embedded.server import acquire
from rush_async.manager.manager import Rush
from rush_async.worker.worker import RushWorker

__all__ = ["rush", "rush_server", "rush_worker", "wait_until"]

T = TypeVar("T")


@pytest.fixture(scope="session")
def rush_server() -> Iterator[RushConfig]:
    """A private server for this test process; its address as a configuration."""
    lease = acquire()
    try:
        yield RushConfig(url=lease.url)
    finally:
        lease.release()


@pytest_asyncio.fixture
async def rush(rush_server: RushConfig) -> AsyncIterator[Rush]:
    """A manager of a network of its own, which is deleted after the test."""
    async with Rush(config=rush_server) as rush:
        yield rush
        await rush.reset()


@pytest_asyncio.fixture
async def rush_worker(rush: Rush) -> AsyncIterator[RushWorker]:
    """A worker in the network of `rush`."""
    async with RushWorker(rush.network_id, rush.config) as worker:
        yield worker


async def wait_until(condition: Callable[[], T | Awaitable[T]], *, timeout: float = 5.0) -> T:
    """Waits until `condition()`, which may be a coroutine function, gives something true, and returns it.

    It looks again and again, because any condition may be asked for. For counts, `Rush.wait_until` waits without looking.

    Raises:
        AssertionError: it did not within `timeout` seconds; the last value is shown.
    """
    deadline, pause = time.monotonic() + timeout, 0.001
    while True:
        given = condition()
        value = cast("T", await given if inspect.isawaitable(given) else given)
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"the condition did not hold within {timeout:g} s: it gave {value!r}")
        await anyio.sleep(pause)
        pause = min(pause * 1.5, 0.05)
