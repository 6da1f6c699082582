"""The command connection: what is sent in one tick leaves together, and what was not answered is sent again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from rush_async import Rush, RushConfig, RushConnectionError, RushError, RushWorker
from rush_async.supervisor import Supervisor
from rush_async.testing import wait_until
from rush_async.wire.connection import Connection
from rush_async.wire.opening import ServerOpener
from rush_async.wire.subscription import Subscription
from rush_async.wire.topology import Topology
from rush_async.wire.transport import ServerFinder, pack
from tests.proxy import Proxy, named

TIMEOUT = 10.0


@pytest_asyncio.fixture
async def connection(rush_server: RushConfig, proxy: Proxy) -> AsyncIterator[Connection]:
    supervisor = Supervisor("test")
    await supervisor.open()
    config = replace(rush_server, url=proxy.url, retry_deadline=0.3, connect_timeout=1.0)
    connection = Connection(config, supervisor, ServerOpener(config, (), Topology(config)))
    await connection.open()
    yield connection
    await connection.aclose()
    await supervisor.aclose()


class Filling:
    """Sends one command when it is asked to fill, and counts the failed searches for the server."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.replies: list[asyncio.Future[Any]] = []
        self.n_lost = 0

    def fill(self) -> None:
        self.replies.append(asyncio.ensure_future(self._connection.ask("ECHO", "filled")))

    def server_lost(self, reason: Exception) -> None:
        self.n_lost += 1


async def test_commands_are_answered_alone_and_as_one_transaction(connection: Connection) -> None:
    assert await connection.ask("ECHO", "alone") == b"alone"
    assert await connection.ask_together(("ECHO", 1), ("ECHO", b"2")) == [b"1", b"2"]
    command = connection.begin_together(("ECHO", "begun"))
    assert command.n_sent == 0
    assert await connection.result(command) == [b"begun"]
    assert command.n_sent == 1


async def test_a_refused_command_is_an_error_that_names_the_server(connection: Connection) -> None:
    with pytest.raises(RushError, match="refused a call: ERR wrong number of arguments") as caught:
        await connection.ask("GET")
    assert connection.config.where in str(caught.value)
    assert await connection.ask("ECHO", "next") == b"next"


async def test_a_command_that_fails_in_a_transaction_is_an_error_too(connection: Connection) -> None:
    with pytest.raises(RushError, match="refused a call: ERR value is not an integer"):
        await connection.ask_together(("ECHO", "before"), ("LRANGE", "list", "zero", "one"))
    assert await connection.ask_together(("ECHO", "next")) == [b"next"]


async def test_the_error_of_a_discarded_transaction_is_that_of_its_first_command(connection: Connection) -> None:
    with pytest.raises(RushError, match="refused a call: ERR unknown command 'NONSENSE'"):
        await connection.ask_together(("NONSENSE", "x"), ("LLEN", "list", "and", "more"))


async def test_a_script_that_the_server_does_not_know_is_sent_with_its_source(connection: Connection, raw: Any) -> None:
    raw.script_flush()
    source = "return ARGV[1] .. ' of this test'"
    by_digest, by_source = pack(("EVALSHA", "0" * 40, 0, "a")), pack(("EVAL", source, 0, "a"))
    assert await connection.ask_script(by_digest, by_source) == b"a of this test"


async def test_a_filler_is_called_once_before_the_next_write(connection: Connection) -> None:
    filling = Filling(connection)
    connection.fill_soon(filling)
    assert filling.replies == []
    await asyncio.sleep(0)
    assert await asyncio.gather(*filling.replies) == [b"filled"]


async def test_a_postponed_filler_is_called_after_the_reconnect(connection: Connection, proxy: Proxy) -> None:
    filling = Filling(connection)
    proxy.refuse()
    proxy.cut_all()
    await wait_until(lambda: not connection.is_ready)
    connection.fill_when_ready(filling)
    await wait_until(lambda: filling.n_lost > 0)
    proxy.refuse(False)
    await wait_until(lambda: filling.replies)
    assert await asyncio.gather(*filling.replies) == [b"filled"]
    assert connection.is_ready
    assert connection.n_reconnects == 1


async def test_what_was_not_answered_is_sent_again_on_the_next_connection(connection: Connection, proxy: Proxy) -> None:
    dropped = proxy.drop_reply(named("ECHO", "twice"))
    async with asyncio.timeout(TIMEOUT):
        assert await connection.ask("ECHO", "twice") == b"twice"
    assert dropped.hit.is_set()
    assert proxy.count("ECHO", "twice") == 2
    assert connection.n_reconnects == 1


async def test_calls_fail_after_the_deadline_and_say_whether_they_were_sent(connection: Connection, proxy: Proxy) -> None:
    proxy.freeze()
    command = connection.begin_together(("ECHO", "sent"))
    sent = asyncio.ensure_future(connection.result(command))
    await wait_until(lambda: command.n_sent == 1)
    proxy.refuse()
    proxy.cut_all()
    await wait_until(lambda: not connection.is_ready)
    unsent = asyncio.ensure_future(connection.ask("ECHO", "unsent"))
    async with asyncio.timeout(TIMEOUT):
        with pytest.raises(RushConnectionError, match="it was sent, so it may have been executed"):
            await sent
        with pytest.raises(RushConnectionError, match="it was never sent"):
            await unsent
    proxy.thaw()
    proxy.refuse(False)
    await wait_until(lambda: connection.is_ready)
    assert await connection.ask("ECHO", "again") == b"again"


async def test_a_silent_server_is_replaced_by_a_new_connection(rush_server: RushConfig, proxy: Proxy) -> None:
    supervisor = Supervisor("test")
    await supervisor.open()
    config = replace(rush_server, url=proxy.url, response_timeout=0.1)
    connection = Connection(config, supervisor, ServerOpener(config, (), Topology(config)))
    await connection.open()
    try:
        proxy.freeze(up=False)
        waiting = asyncio.ensure_future(connection.ask("ECHO", "late"))
        await wait_until(lambda: not connection.is_ready)
        proxy.thaw()
        assert await asyncio.wait_for(waiting, TIMEOUT) == b"late"
        assert proxy.n_connections >= 2
    finally:
        await connection.aclose()
        await supervisor.aclose()


async def test_a_closed_connection_fails_what_waits_and_what_is_sent_later(connection: Connection, proxy: Proxy) -> None:
    proxy.freeze()
    waiting = asyncio.ensure_future(connection.ask("ECHO", "waits"))
    await asyncio.sleep(0)
    await connection.aclose()
    with pytest.raises(RushConnectionError, match="is closed"):
        await waiting
    with pytest.raises(RushConnectionError, match="is closed"):
        await connection.ask("ECHO", "later")
    proxy.thaw()


# what a client sends


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


class Moving(ServerFinder):
    """Finds the server behind one of two proxies."""

    scheme = "redis"
    moves = True

    def __init__(self, proxy: Proxy) -> None:
        self.options = {"protocol": 2}
        self.proxy = proxy

    async def find(self) -> tuple[str, int]:
        return "127.0.0.1", urlsplit(self.proxy.url).port or 0


class Deaf:
    """Listens to no channel."""

    n_confirmations = 0

    def heard(self, channel: str, message: bytes) -> None: ...

    def confirmed(self, channel: str) -> None:
        self.n_confirmations += 1


async def test_when_another_server_is_meant_both_connections_go_there_and_no_call_is_lost(rush_server: RushConfig) -> None:
    supervisor, listener = Supervisor("test"), Deaf()
    await supervisor.open()
    assert rush_server.url is not None
    async with Proxy(rush_server.url) as first, Proxy(rush_server.url) as second:
        finder = Moving(first)
        opener = ServerOpener(rush_server, (), finder)
        connection = Connection(rush_server, supervisor, opener)
        subscription = Subscription(rush_server, supervisor, opener)
        await connection.open()
        subscription.subscribe("channel", listener)
        await subscription.confirmed("channel")
        connection.check_soon()
        assert await connection.ask("ECHO", "same") == b"same"
        await wait_until(lambda: not connection._is_checking)  # pyright: ignore[reportPrivateUsage]
        assert (first.n_open, second.n_open) == (2, 0)
        finder.proxy = second
        first.freeze()
        asked = asyncio.ensure_future(connection.ask("ECHO", "held"))
        await first.seen("ECHO", "held")
        connection.check_soon()
        assert await asked == b"held"
        await wait_until(lambda: listener.n_confirmations == 2)
        assert second.n_open == 2
        await subscription.aclose()
        await connection.aclose()
        await supervisor.aclose()
        first.thaw()
