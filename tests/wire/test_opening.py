"""What a new connection looks at before it is used."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from rush_async import Rush, RushConfig, RushConnectionError
from rush_async.embedded import server
from rush_async.embedded.server import acquire
from rush_async.wire import opening


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


def loading_slowly(monkeypatch: pytest.MonkeyPatch, microseconds: int) -> None:
    """Servers started from here on take their time for every command of their log."""
    options = server.server_options

    def slow(*given: Any) -> list[str]:
        return [*options(*given), "--key-load-delay", str(microseconds)]

    monkeypatch.setattr(server, "server_options", slow)


async def fill(directory: Path, n: int) -> None:
    lease = acquire(directory)
    try:
        async with Rush("net", lease.url) as rush:
            connection = rush._net.link.connection  # pyright: ignore[reportPrivateUsage]
            await asyncio.gather(*[connection.ask("SET", f"elsewhere:{at}", "x") for at in range(n)])
            await rush.push_tasks([{"x": 1}])
    finally:
        lease.release()


async def test_a_server_that_loads_its_data_is_waited_for(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await fill(directory, 8_000)  # it looks around every 1,024 commands
    loading_slowly(monkeypatch, 100)
    looks: list[None] = []
    opened = opening._open_transport  # pyright: ignore[reportPrivateUsage]

    async def counting(*args: Any) -> Any:
        looks.append(None)
        return await opened(*args)

    monkeypatch.setattr(opening, "_open_transport", counting)
    async with Rush("net", RushConfig(data_dir=directory)) as rush:
        assert (await rush.counts()).queued == 1
        await rush.reset()
    assert len(looks) > 1  # the first one met it loading


async def test_a_server_that_loads_for_too_long_is_told(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await fill(directory, 12_000)
    loading_slowly(monkeypatch, 100)
    with pytest.raises(RushConnectionError, match="still loading its data after 1 s: connect_timeout"):
        async with Rush("net", RushConfig(data_dir=directory, connect_timeout=1)):
            pass
