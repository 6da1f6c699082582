"""The connection that listens: it is open while a channel has a listener, and every confirmation is reported."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio

from rush_async import RushConfig, RushConnectionError
from rush_async.supervisor import Supervisor
from rush_async.testing import wait_until
from rush_async.wire.opening import ServerOpener
from rush_async.wire.subscription import Subscription
from rush_async.wire.topology import Topology
from tests.proxy import Proxy


class Recorder:
    """Keeps what a channel's listener is called with."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, bytes]] = []
        self.n_confirmations = 0

    def heard(self, channel: str, message: bytes) -> None:
        self.messages.append((channel, message))

    def confirmed(self, channel: str) -> None:
        self.n_confirmations += 1


@pytest_asyncio.fixture
async def subscription(rush_server: RushConfig, proxy: Proxy) -> AsyncIterator[Subscription]:
    supervisor = Supervisor("test")
    await supervisor.open()
    config = replace(rush_server, url=proxy.url, retry_deadline=0.2, connect_timeout=1.0)
    subscription = Subscription(config, supervisor, ServerOpener(config, (), Topology(config)))
    yield subscription
    await subscription.aclose()
    await supervisor.aclose()


async def test_messages_reach_the_listener_of_their_channel(subscription: Subscription, raw: Any) -> None:
    first, second = Recorder(), Recorder()
    subscription.subscribe("{a}first", first)
    subscription.subscribe("{b}second", second)
    await subscription.confirmed("{a}first")
    await subscription.confirmed("{b}second")
    assert raw.execute_command("SPUBLISH", "{a}first", b"one") == 1
    assert raw.execute_command("SPUBLISH", "{b}second", b"two") == 1
    await wait_until(lambda: first.messages and second.messages)
    assert (first.messages, second.messages) == ([("{a}first", b"one")], [("{b}second", b"two")])
    assert (first.n_confirmations, second.n_confirmations) == (1, 1)


async def test_the_connection_is_open_while_a_channel_has_a_listener(subscription: Subscription, proxy: Proxy) -> None:
    assert proxy.n_open == 0
    for name in ("one", "two"):
        subscription.subscribe(name, Recorder())
        await subscription.confirmed(name)
    assert proxy.n_open == 1
    subscription.unsubscribe("one")
    subscription.unsubscribe("one")
    assert proxy.n_open == 1
    subscription.unsubscribe("two")
    await wait_until(lambda: proxy.n_open == 0)
    subscription.subscribe("one", Recorder())
    await subscription.confirmed("one")
    assert proxy.n_open == 1


async def test_an_unsubscribed_channel_hears_nothing_more(subscription: Subscription, raw: Any) -> None:
    ended, kept = Recorder(), Recorder()
    subscription.subscribe("ended", ended)
    subscription.subscribe("kept", kept)
    await subscription.confirmed("kept")
    subscription.unsubscribe("ended")
    await wait_until(lambda: raw.execute_command("PUBSUB", "SHARDNUMSUB", "ended")[1] == 0)
    raw.execute_command("SPUBLISH", "ended", b"lost")
    raw.execute_command("SPUBLISH", "kept", b"heard")
    await wait_until(lambda: kept.messages)
    assert ended.messages == []


async def test_each_reconnect_is_confirmed_again(subscription: Subscription, proxy: Proxy, raw: Any) -> None:
    recorder = Recorder()
    subscription.subscribe("channel", recorder)
    await subscription.confirmed("channel")
    subscription.renew()
    await wait_until(lambda: recorder.n_confirmations == 2)
    proxy.cut_all()
    await wait_until(lambda: recorder.n_confirmations == 3)
    raw.execute_command("SPUBLISH", "channel", b"after")
    await wait_until(lambda: recorder.messages == [("channel", b"after")])


async def test_a_server_that_does_not_answer_is_left(subscription: Subscription, proxy: Proxy) -> None:
    subscription._config = replace(subscription._config, response_timeout=0.05)  # pyright: ignore[reportPrivateUsage]
    recorder = Recorder()
    subscription.subscribe("channel", recorder)
    await subscription.confirmed("channel")
    await proxy.seen("PING", times=2)  # it was silent, and answered
    assert recorder.n_confirmations == 1
    proxy.freeze()
    await wait_until(lambda: proxy.n_connections > 1)
    proxy.thaw()
    await wait_until(lambda: recorder.n_confirmations > 1)


async def test_a_server_that_cannot_be_reached_is_an_error_after_the_deadline(subscription: Subscription, proxy: Proxy) -> None:
    proxy.refuse()
    subscription.subscribe("channel", Recorder())
    with pytest.raises(RushConnectionError, match="did not confirm a subscription in time"):
        await subscription.confirmed("channel")
    proxy.refuse(False)
    await subscription.confirmed("channel")  # it was tried again meanwhile


async def test_a_user_without_the_right_to_listen_gets_an_error_that_names_the_rule(rush_server: RushConfig, raw: Any) -> None:
    raw.execute_command("ACL", "SETUSER", "deaf", "on", "nopass", "~*", "+@all", "resetchannels")
    supervisor = Supervisor("test")
    await supervisor.open()
    config = replace(rush_server, url=f"{rush_server.url}?username=deaf&password=any")
    subscription = Subscription(config, supervisor, ServerOpener(config, (), Topology(config)))
    try:
        subscription.subscribe("channel", Recorder())
        async with asyncio.timeout(5):
            with pytest.raises(RushConnectionError, match=r"does not let this user listen on channel.*ACL SETUSER"):
                await subscription.confirmed("channel")
    finally:
        await subscription.aclose()
        await supervisor.aclose()
        raw.execute_command("ACL", "DELUSER", "deaf")
