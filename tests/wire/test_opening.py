"""Opening a connection: the checks of the server, the wait while it loads its data, and servers that do not answer."""

from __future__ import annotations

import asyncio
import socket
import ssl
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rush_async import Rush, RushClient, RushConfig, RushConnectionError
from rush_async.embedded import server
from rush_async.embedded.server import acquire
from rush_async.testing import wait_until
from rush_async.wire import opening
from tests.proxy import Proxy, named


async def test_opening_warns_of_a_server_that_evicts_keys(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    lease = acquire(directory, maxmemory=100_000_000)
    try:
        async with RushClient("net", lease.url) as client:
            connection = client._net.link.connection  # pyright: ignore[reportPrivateUsage]
            await connection.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        assert "evicts keys when" not in caplog.text
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


@pytest.mark.parametrize("password", ["", ":secret@"])  # redis-py sends a password before our first command
async def test_the_error_of_a_server_with_too_many_clients_says_so(raw: Any, password: str) -> None:
    before = {name: raw.config_get(name)[name] for name in ("maxclients", "port")}
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    raw.config_set("port", port)
    raw.config_set("maxclients", 1)
    try:
        with pytest.raises(RushConnectionError, match=r"takes no further client \(.*\): close others, or raise its maxclients"):
            await Rush(config=f"redis://{password}127.0.0.1:{port}")
    finally:
        for name, value in before.items():
            raw.config_set(name, value)


# A self-signed certificate of `localhost` until 2126, and its key.
CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBlTCCATugAwIBAgIUGYHlRZETZxFEqONLxQluvFOA3bswCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyODA1MjcyN1oYDzIxMjYxMTA0
MDUyNzI3WjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAAQC8D4xvdbEFPPHNEe0Jvqd3yLmZ4p5Alv+mPlU54uNq0d1vODqm1lN
C9BKF1qgx6Z9NI11E6ibSrYVlNt7Rx48o2kwZzAdBgNVHQ4EFgQUdfYF7AzZS+G3
zNq3nGw+28PGdLgwHwYDVR0jBBgwFoAUdfYF7AzZS+G3zNq3nGw+28PGdLgwDwYD
VR0TAQH/BAUwAwEB/zAUBgNVHREEDTALgglsb2NhbGhvc3QwCgYIKoZIzj0EAwID
SAAwRQIhAM7qVe7oh1vIPj0Ta29wisrTRhrmNEHERDNp7VnlNmhuAiAYtuoqgXBE
wdNz951MqTV17zamuJxIOeuLg4MJsQJDQw==
-----END CERTIFICATE-----
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgAMv9WZHsNGY1Jw/x
dedpJUPKbHdmqHGioOQWqcB6h26hRANCAAQC8D4xvdbEFPPHNEe0Jvqd3yLmZ4p5
Alv+mPlU54uNq0d1vODqm1lNC9BKF1qgx6Z9NI11E6ibSrYVlNt7Rx48
-----END PRIVATE KEY-----
"""


async def test_errors_of_tls_name_its_settings(directory: Path) -> None:
    own = directory / "own.pem"
    own.write_text(CERTIFICATE)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=own)
    context.load_cert_chain(own)
    context.verify_mode = ssl.CERT_REQUIRED

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(serve, "localhost", 0, ssl=context)
    async with server:
        url = f"rediss://localhost:{server.sockets[0].getsockname()[1]}"
        settings: list[dict[str, Any]] = [
            {},  # the certificate of the server is not trusted
            {"tls_ca_file": str(directory / "missing.pem")},
            {"tls_ca_file": str(own)},  # the server wants a certificate of the client
        ]
        for setting in settings:
            with pytest.raises(
                RushConnectionError, match=r"tls_ca_file .* tls_cert_file and tls_key_file .* tls_check_hostname"
            ):
                await Rush(config=RushConfig(url, **setting))
