"""The connection that blocks its thread: calls by digest and by source, refusals, an interruption from another thread."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rush_async import RushConfig, RushConnectionError
from rush_async.testing import wait_until
from rush_async.wire.blocking import BlockingConnection
from rush_async.wire.topology import Topology
from rush_async.wire.transport import pack

SOURCE = "return {ARGV[1], {1, 2}}"
DIGEST = hashlib.sha1(SOURCE.encode(), usedforsecurity=False).hexdigest()
CALL = pack(("EVALSHA", DIGEST, 0, "a")), pack(("EVAL", SOURCE, 0, "a"))


@pytest.fixture
def connection(rush_server: RushConfig) -> Iterator[BlockingConnection]:
    connection = BlockingConnection(rush_server, Topology(rush_server))
    yield connection
    connection.close()


def test_a_script_that_the_server_does_not_know_is_sent_with_its_source(connection: BlockingConnection, raw: Any) -> None:
    raw.script_flush()
    assert connection.call(*CALL) == [b"a", [1, 2]]
    assert raw.script_exists(DIGEST) == [True]
    assert connection.call(CALL[0], b"never sent") == [b"a", [1, 2]]


def test_a_refusal_names_the_server_and_the_next_call_succeeds(connection: BlockingConnection, rush_server: RushConfig) -> None:
    with pytest.raises(RushConnectionError, match="wrong number of arguments") as caught:
        connection.ask("GET")
    assert rush_server.where in str(caught.value)
    assert connection.ask("PING") == b"PONG"


def test_a_closed_connection_opens_again(connection: BlockingConnection) -> None:
    assert connection.ask("PING") == b"PONG"
    connection.close()
    assert connection.ask("PING") == b"PONG"


def test_a_server_that_is_not_there_is_a_connection_error(directory: Path) -> None:
    config = RushConfig(url=f"unix://{directory}/no.socket")
    with pytest.raises(RushConnectionError, match="did not answer the heartbeat thread"):
        BlockingConnection(config, Topology(config)).ask("PING")


def test_a_reply_is_waited_for_until_the_response_timeout(rush_server: RushConfig) -> None:
    config = replace(rush_server, response_timeout=0.1)
    connection = BlockingConnection(config, Topology(config))
    with pytest.raises(RushConnectionError):
        connection.ask("BLPOP", "nothing", 0)
    assert connection.ask("PING") == b"PONG"
    connection.close()


async def test_an_interruption_ends_a_call_that_waits_and_every_later_one(connection: BlockingConnection, raw: Any) -> None:
    waiting = asyncio.ensure_future(asyncio.to_thread(connection.ask, "BLPOP", "nothing", 0))
    await wait_until(lambda: any(client["cmd"] == "blpop" for client in raw.client_list()))
    connection.interrupt()
    with pytest.raises(RushConnectionError):
        await asyncio.wait_for(waiting, 5)
    with pytest.raises(RushConnectionError, match="interrupted"):
        connection.ask("PING")


def test_an_interruption_while_it_connects_lets_it_send_nothing(
    connection: BlockingConnection, raw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner: Any = connection._connection  # pyright: ignore[reportPrivateUsage]
    connect = inner.connect

    def connect_slowly() -> None:
        connection.interrupt()  # as another thread does at this moment
        connect()

    monkeypatch.setattr(inner, "connect", connect_slowly)
    raw.config_resetstat()
    with pytest.raises(RushConnectionError, match="interrupted"):
        connection.ask("DBSIZE")
    assert "cmdstat_dbsize" not in raw.info("commandstats")
