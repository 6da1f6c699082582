"""The command connection: the order of replies, back-pressure, time limits, and the internals of redis-py that it relies on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import hiredis
import pytest
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from rush_async import Rush, RushConfig, RushConnectionError, RushWorker
from rush_async.testing import wait_until
from rush_async.wire.opening import ServerOpener, _HandsOver  # pyright: ignore[reportPrivateUsage]
from rush_async.wire.transport import FutureCommand, Transport, Word, pack
from tests.proxy import Proxy, named

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
    transport = await ServerOpener(config, ()).open(Owner(lost))
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


# Commands of one push and one finish.


async def test_a_push_and_a_finish_are_two_commands_and_two_round_trips(proxy: Proxy, rush: Rush) -> None:
    async with RushWorker(rush.network_id, rush.config.at(proxy.url)) as worker:
        (key,) = await worker.push_running_tasks([{"x": 0}])
        await worker.finish_tasks(key, [{"y": 0}])
        before = len(proxy.commands)
        (key,) = await worker.push_running_tasks([{"x1": 1.0, "x2": 2.0}])
        assert len(proxy.commands) == before + 1
        await worker.finish_tasks(key, [{"y": 3.0}])
        assert [name for name, *_ in proxy.commands[before:]] == [b"EVALSHA", b"EVALSHA"]


async def test_a_task_block_sends_two_commands(proxy: Proxy, rush: Rush) -> None:
    async with RushWorker(rush.network_id, rush.config.at(proxy.url)) as worker:
        before = len(proxy.commands)
        async with worker.task({"x": 1}) as task:
            task.ys = {"y": 1}
        async with worker.task({"x": 1}, budget=100) as task:
            assert task is not None
            task.ys = {"y": 1}
        assert len(proxy.commands) == before + 4


async def test_a_thousand_workers_of_one_process_use_at_most_three_connections(proxy: Proxy, rush: Rush) -> None:
    config = rush.config.at(proxy.url)
    workers = await asyncio.gather(*[RushWorker(rush.network_id, config).__aenter__() for _ in range(1000)])

    async def evaluate(worker: RushWorker) -> None:
        async with worker.task({"x": 1}, budget=500) as task:
            if task is not None:
                task.ys = {"y": 1}

    async with asyncio.timeout(60):
        await asyncio.gather(*[evaluate(worker) for worker in workers])
        assert (await rush.counts()).finished == 500
        assert proxy.n_open <= 3
        assert proxy.n_connections <= 3
        await asyncio.gather(*[worker.aclose() for worker in workers])
    await wait_until(lambda: proxy.n_open == 0)


# Back-pressure and servers that do not answer.


async def test_calls_that_wait_for_a_frozen_server_are_merged_when_it_reads_again(proxy: Proxy, rush: Rush) -> None:
    async with Rush(rush.network_id, rush.config.at(proxy.url)) as far:
        await far.push_tasks([{"x": 0}])
        proxy.freeze(down=False)
        text = "t" * 10_000
        calls: list[asyncio.Task[list[str]]] = []
        for x in range(300):
            calls.append(asyncio.create_task(far.push_tasks([{"x": x, "text": text}])))
            await asyncio.sleep(0)
        cancelled = calls.pop(299)
        cancelled.cancel()
        await asyncio.wait([cancelled])
        proxy.thaw()
        async with asyncio.timeout(TIMEOUT):
            keys = [key for call in calls for key in await call]
        assert sorted((await rush.keys_with_state("queued"))["queued"][1:]) == sorted(keys)
        # The first calls were sent alone; those that waited were merged.
        assert proxy.count("EVALSHA") < 100


async def test_large_and_small_calls_share_the_connection_without_loss(rush: Rush) -> None:
    large = [rush.push_tasks([{"x": x, "text": "t" * 500_000}]) for x in range(8)]
    small = [rush.push_tasks([{"x": x}]) for x in range(50)]
    async with asyncio.timeout(TIMEOUT):
        keyss = await asyncio.gather(*large, *small)
    tasks = await rush.get_tasks([key for keys in keyss for key in keys])
    assert [task and task.xs["x"] for task in tasks] == [*range(8), *range(50)]


async def test_a_call_that_cannot_be_written_fails_alone(rush: Rush) -> None:
    """A lone surrogate cannot be encoded; other calls of the same tick succeed."""
    async with RushWorker(rush.network_id, rush.config) as worker:
        (key,) = await worker.push_running_tasks([{"x": 1}])
        async with asyncio.timeout(TIMEOUT):
            wrong, right, beside = await asyncio.gather(
                worker.finish_tasks("\ud800", [{"y": 1}]),
                worker.finish_tasks(key, [{"y": 2}]),
                rush.push_tasks([{"x": 2}]),
                return_exceptions=True,
            )
            assert isinstance(wrong, ValueError)
            assert right == [key]
            assert not isinstance(beside, BaseException)
            assert await rush.counts() == (1, 0, 1, 0)


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
    connection.hand_over(transport)
    assert stream.get_protocol() is transport
    ping = command("PING")
    transport.write([ping])
    assert await ping.future == b"PONG"
    transport.drop()
    assert await lost is None
    assert stream.is_closing()
    assert connection._writer is None
