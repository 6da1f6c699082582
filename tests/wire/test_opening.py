"""Opening a connection: the checks of the server, the wait while it loads its data, and servers that do not answer."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rush_async import Rush, RushConfig, RushConnectionError
from rush_async.embedded import server
from rush_async.embedded.server import acquire
from rush_async.testing import wait_until
from rush_async.wire import opening
from tests.proxy import Proxy, named


async def test_opening_warns_of_a_server_that_evicts_keys(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
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


def load_slowly(monkeypatch: pytest.MonkeyPatch, microseconds: int) -> None:
    """Makes the servers that are started next load each command of their log slowly."""
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


async def test_opening_waits_for_a_server_that_loads_its_data(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await fill(directory, 8_000)  # a loading server answers its clients once every 1,024 commands
    load_slowly(monkeypatch, 100)
    attempts: list[None] = []
    opened = opening.ServerOpener._open  # pyright: ignore[reportPrivateUsage]

    async def counting(*args: Any) -> Any:
        attempts.append(None)
        return await opened(*args)

    monkeypatch.setattr(opening.ServerOpener, "_open", counting)
    async with Rush("net", RushConfig(data_dir=directory)) as rush:
        assert (await rush.counts()).queued == 1
        await rush.reset()
    assert len(attempts) > 1  # the first attempt found the server loading


async def test_the_error_says_that_the_server_is_still_loading_its_data(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(directory, 12_000)
    load_slowly(monkeypatch, 100)
    with pytest.raises(RushConnectionError, match="still loading its data after 1 s: connect_timeout"):
        async with Rush("net", RushConfig(data_dir=directory, connect_timeout=1)):
            pass


@pytest.mark.parametrize("name", ["HELLO", "INFO", "SCRIPT LOAD"])
async def test_a_connection_cut_while_it_opens_is_an_error_at_once(name: str, proxy: Proxy, rush_server: RushConfig) -> None:
    for fault in (proxy.cut_before, proxy.drop_reply):
        struck = fault(named(name))
        with pytest.raises(RushConnectionError):
            async with asyncio.timeout(2):
                await Rush(config=rush_server.at(proxy.url))
        assert struck.hit.is_set()
    async with Rush(config=rush_server.at(proxy.url)) as rush:
        assert (await rush.counts()).total == 0


async def test_a_server_that_accepts_the_connection_and_never_replies_is_an_error_in_time(
    proxy: Proxy, rush_server: RushConfig
) -> None:
    proxy.freeze()
    with pytest.raises(RushConnectionError, match=r"within 0\.2 s"):
        async with asyncio.timeout(2):
            await Rush(config=replace(rush_server.at(proxy.url), connect_timeout=0.2))
    await wait_until(lambda: proxy.n_connections == 1)
