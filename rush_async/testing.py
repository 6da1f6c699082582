"""Fixtures for tests of your own loops on a real server, and a function that waits for a condition. In your `conftest.py`:

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

from rush_async.config import RushConfig, as_real
from rush_async.embedded.server import acquire
from rush_async.manager.manager import Rush
from rush_async.worker.worker import RushWorker

__all__ = ["rush", "rush_server", "rush_worker", "wait_until"]

T = TypeVar("T")


@pytest.fixture(scope="session")
def rush_server() -> Iterator[RushConfig]:
    """The configuration of a private server, which runs until this test process ends."""
    lease = acquire()
    try:
        yield RushConfig(url=lease.url)
    finally:
        lease.release()


@pytest_asyncio.fixture
async def rush(rush_server: RushConfig) -> AsyncIterator[Rush]:
    """A manager of a new network, which is deleted after the test. It follows the network already."""
    async with Rush(config=rush_server) as rush:
        await rush._net.feed.watch()  # pyright: ignore[reportPrivateUsage] - so that no call of its own is counted by a test
        yield rush
        await rush.reset()


@pytest_asyncio.fixture
async def rush_worker(rush: Rush) -> AsyncIterator[RushWorker]:
    """A worker in the network of `rush`. It ends with the test: `rush.stop_workers()` has to name other workers."""
    async with RushWorker(rush.network_id, rush.config) as worker:
        yield worker


async def wait_until(condition: Callable[[], T | Awaitable[T]], *, timeout: float = 5.0) -> T:
    """Calls `condition` again and again until it returns a true value.

    Use `Rush.wait_until` for a condition on counts: it waits for events and does not poll.

    Args:
        condition: a function, or a coroutine function, without parameters.
        timeout: seconds after which to give up.

    Returns:
        The first true value.

    Raises:
        AssertionError: the condition returned none within `timeout` seconds. The message shows the last value.
    """
    deadline, pause = time.monotonic() + as_real(timeout, "timeout"), 0.001
    while True:
        result = condition()
        value = cast("T", await result if inspect.isawaitable(result) else result)
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"the condition did not hold within {timeout:g} s: it returned {value!r}")
        await anyio.sleep(pause)
        pause = min(pause * 1.5, 0.05)
