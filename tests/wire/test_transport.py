"""The transport: the order of replies, how a connection ends, and the internals of redis-py that it relies on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import hiredis
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from rush_async import RushConfig
from rush_async.wire.opening import ServerOpener, _HandsOver  # pyright: ignore[reportPrivateUsage]
from rush_async.wire.topology import Topology
from rush_async.wire.transport import FutureCommand, Transport, Word, pack

TIMEOUT = 10.0


class Owner:
    """Takes the error that ends a transport."""

    def __init__(self, ended: asyncio.Future[Exception | None]) -> None:
        self._ended = ended

    def lost(self, transport: Transport, error: Exception | None) -> None:
        self._ended.set_result(error)

    def writable(self) -> None:
        pass

    def pushed(self, message: list[Any]) -> None:
        pass


@asynccontextmanager
async def opened(config: RushConfig) -> AsyncGenerator[tuple[Transport, asyncio.Future[Exception | None]]]:
    """Opens a transport. Yields it with a future of the error that ends it."""
    lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
    transport = await ServerOpener(config, (), Topology(config)).open(Owner(lost))
    try:
        yield transport, lost
    finally:
        transport.drop()
        await lost


def command(*words: Word) -> FutureCommand:
    return FutureCommand(pack(words))


async def test_replies_are_matched_first_in_first_out(rush_server: RushConfig) -> None:
    async with opened(rush_server) as (transport, _):
        commands = [command("ECHO", x) for x in range(1000)]
        transport.write(commands[:500])
        transport.write(commands[500:])
        replies = [await each.future for each in commands]
        assert replies == [str(x).encode() for x in range(1000)]
        assert not transport.unanswered


async def test_a_reply_of_any_size_and_kind_is_read_whole(rush_server: RushConfig) -> None:
    async with opened(rush_server) as (transport, _):
        big = command("ECHO", b"b" * 5_000_000)
        nothing, wrong, several = command("GET", "no such key"), command("NO SUCH COMMAND"), command("TIME")
        transport.write([big, nothing, wrong, several])
        assert len(await big.future) == 5_000_000
        assert await nothing.future is None
        assert isinstance(await wrong.future, hiredis.ReplyError)
        assert len(await several.future) == 2


async def test_a_dropped_connection_reports_its_reason_once_and_keeps_the_unanswered_commands(
    rush_server: RushConfig,
) -> None:
    async with opened(rush_server) as (transport, lost):
        pending = command("ECHO", 1)
        transport.write([pending])
        transport.drop(ValueError("the reason"))
        transport.drop(ValueError("another"))
        assert str(await lost) == "the reason"
        assert list(transport.unanswered) == [pending]
        assert not transport.is_open


async def test_a_reply_without_a_command_ends_the_connection(rush_server: RushConfig) -> None:
    async with opened(rush_server) as (transport, lost):
        ping = command("PING")
        ping.n_replies = 1
        ping.payload *= 2  # two commands, counted as one
        transport.write([ping])
        async with asyncio.timeout(TIMEOUT):
            assert isinstance(await lost, hiredis.ProtocolError)


# Redis-py does not promise the members of its connections that `_HandsOver` uses.


async def test_connections_of_redis_py_have_the_members_that_are_used(rush_server: RushConfig) -> None:
    # Connections are made with these options; one that redis-py has removed raises a TypeError here.
    options: dict[str, Any] = {"protocol": 2, "socket_timeout": None, "socket_connect_timeout": 1.0, "driver_info": None}
    options |= {"retry": Retry(NoBackoff(), 0), "db": 0, "username": None, "password": None}
    tls: dict[str, Any] = {"ssl_ca_certs": None, "ssl_certfile": None, "ssl_keyfile": None, "ssl_check_hostname": True}
    plain: dict[str, Any] = {}
    for kind, more in ((Connection, plain), (SSLConnection, tls), (UnixDomainSocketConnection, plain)):
        assert isinstance(kind(**options, **more), AbstractConnection)

    class Plain(_HandsOver, UnixDomainSocketConnection):
        pass

    address: Any = Connection(**options)
    assert (address.host, address.port) == ("localhost", 6379)  # these are set to the server that a topology tells
    assert rush_server.url is not None
    connection: Any = Plain(path=rush_server.url.removeprefix("unix://"), protocol=2)
    assert connection._reader is None
    assert connection._writer is None
    await connection.connect()
    assert isinstance(connection._reader, asyncio.StreamReader)
    assert isinstance(connection._writer, asyncio.StreamWriter)
    stream = connection._writer.transport
    lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
    transport = Transport(Owner(lost))
    connection.hand_over(transport, "")
    assert stream.get_protocol() is transport
    ping = command("PING")
    transport.write([ping])
    assert await ping.future == b"PONG"
    transport.drop()
    assert await lost is None
    assert stream.is_closing()
    assert connection._writer is None
