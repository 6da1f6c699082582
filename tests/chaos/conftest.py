"""What the chaos tests break: a proxy before the server of the session."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from rush_async import RushConfig
from tests.proxy import Proxy


@pytest_asyncio.fixture
async def proxy(rush_server: RushConfig, directory: Path) -> AsyncIterator[Proxy]:
    """A proxy before the test server; a client of `proxy.url` passes it."""
    assert rush_server.url is not None
    async with Proxy(rush_server.url, directory) as proxy:
        yield proxy
