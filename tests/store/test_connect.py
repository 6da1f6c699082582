"""What a new connection looks at before it is used."""

from __future__ import annotations

from pathlib import Path

import pytest

from rush_async import Rush
from rush_async.store.server import acquire


async def test_a_server_that_evicts_keys_is_warned_of(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    lease = acquire(directory, maxmemory=100_000_000)
    try:
        async with Rush("net", lease.url) as rush:
            connection = rush._net.link.connection  # pyright: ignore[reportPrivateUsage]
            await connection.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        assert "evicts" not in caplog.text
        async with Rush("net", lease.url):
            pass
        assert "set maxmemory-policy to noeviction" in caplog.text
    finally:
        lease.release()
