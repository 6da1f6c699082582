"""The link of an event loop to a server: clients share it, and the last one that releases it closes its connections."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from rush_async import Rush, RushConfig, RushConnectionError, RushWorker
from rush_async.testing import wait_until
from rush_async.wire.link import Link
from tests.proxy import Proxy


async def test_clients_with_the_same_settings_of_the_connection_share_a_link(rush_server: RushConfig, proxy: Proxy) -> None:
    config = rush_server.at(proxy.url)
    first, second = await Link.acquire(config), await Link.acquire(replace(config, heartbeat_period=1, heartbeat_expire=2))
    assert first is second
    assert proxy.n_open == 1
    await first.release()
    assert await second.connection.ask("ECHO", "open") == b"open"
    await second.release()
    await wait_until(lambda: proxy.n_open == 0)
    assert first.is_over


async def test_other_settings_of_the_connection_make_a_link_of_their_own(rush_server: RushConfig, proxy: Proxy) -> None:
    config = rush_server.at(proxy.url)
    first, second = await Link.acquire(config), await Link.acquire(replace(config, response_timeout=3))
    assert first is not second
    assert proxy.n_open == 2
    for link in (first, second):
        await link.release()


async def test_clients_that_open_at_once_share_one_connection(rush_server: RushConfig, proxy: Proxy) -> None:
    links = await asyncio.gather(*[Link.acquire(rush_server.at(proxy.url)) for _ in range(5)])
    assert len(set(links)) == 1
    assert proxy.n_connections == 1
    for link in links:
        await link.release()
    again = await Link.acquire(rush_server.at(proxy.url))
    assert again is not links[0]
    await again.release()


async def test_a_link_that_cannot_be_opened_leaves_nothing_to_share(rush_server: RushConfig, proxy: Proxy) -> None:
    config = replace(rush_server.at(proxy.url), connect_timeout=0.5)
    proxy.refuse()
    with pytest.raises(RushConnectionError):
        await Link.acquire(config)
    proxy.refuse(False)
    link = await Link.acquire(config)
    assert await link.connection.ask("ECHO", "open") == b"open"
    await link.release()


async def test_a_link_to_a_named_server_is_not_embedded_and_knows_its_database(rush_server: RushConfig) -> None:
    link = await Link.acquire(replace(rush_server, url=f"{rush_server.url}?db=3"))
    assert (link.is_embedded, link.db) == (False, 3)
    await link.release()


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
