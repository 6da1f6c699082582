"""Which server a URL means: Sentinels and the nodes of a cluster are asked each time, and no error shows a password."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest
from redis.crc import key_slot

from rush_async import Rush, RushConfig, RushConfigError, RushConnectionError, RushWorker, TasksFinished
from rush_async.embedded.server import find_server
from rush_async.testing import wait_until
from rush_async.wire.link import Link
from rush_async.wire.topology import Topology, slot_of, url_db
from tests.topology.servers import ServerProcess, free_port, wait_for

pytestmark = pytest.mark.topology  # a cluster takes two seconds until it takes writes


@pytest.fixture(scope="module")
def servers() -> Iterator[ExitStack]:
    with ExitStack() as servers:
        yield servers


@pytest.fixture(scope="module")
def node(servers: ExitStack, tmp_path_factory: pytest.TempPathFactory) -> ServerProcess:
    """A cluster of one node with all slots."""
    directory = tmp_path_factory.mktemp("c")
    lines = "cluster-enabled yes", f"cluster-port {free_port()}", "requirepass hidden"
    node = ServerProcess(directory, *lines, binary=str(find_server()), password="hidden")
    servers.callback(node.end)
    node.start()
    node.raw.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
    wait_for(lambda: node.raw.set("any", "x") and node.raw.delete("any"), "the node takes writes")
    return node


@pytest.fixture(scope="module")
def sentinel(servers: ExitStack, node: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> ServerProcess:
    """A Sentinel of the service `main`, whose master is up, and of `gone`, whose master is not."""
    directory = tmp_path_factory.mktemp("s")
    lines = (
        *(f"sentinel monitor main 127.0.0.1 {node.port} 1", "sentinel auth-pass main hidden"),
        *(f"sentinel monitor gone 127.0.0.1 {free_port()} 1", "sentinel down-after-milliseconds gone 1", "requirepass secret"),
    )
    sentinel = ServerProcess(directory, *lines, sentinel=True, binary=str(find_server()), password="secret")
    servers.callback(sentinel.end)
    sentinel.start()
    return sentinel


def sentinel_config(sentinel: ServerProcess, service: str = "main") -> RushConfig:
    # The first of the two Sentinels is not there.
    url = f"redis+sentinel://:hidden@127.0.0.1:{free_port()},127.0.0.1:{sentinel.port}/{service}?sentinel_password=secret"
    return RushConfig(url=url, connect_timeout=2)


def cluster_config(node: ServerProcess) -> RushConfig:
    return RushConfig(url=f"redis+cluster://:hidden@127.0.0.1:{free_port()},127.0.0.1:{node.port}", connect_timeout=2)


async def test_a_url_of_one_server_names_it_itself(rush_server: RushConfig) -> None:
    topology = Topology(rush_server)
    assert await topology.find() is None
    assert not topology.moves
    assert slot_of(rush_server, "rush:{a}:meta") is None
    assert [Topology(RushConfig(url)).scheme for url in ("unix:///s", "rediss+cluster://h")] == ["unix", "rediss"]
    urls = "redis://h/2", "redis+sentinel://h/main?db=3", "redis+cluster://h"
    assert [url_db(RushConfig(url)) for url in urls] == [2, 3, 0]


async def test_sentinels_tell_the_master_of_a_service(sentinel: ServerProcess, node: ServerProcess) -> None:
    topology = Topology(sentinel_config(sentinel))
    assert await topology.find() == ("127.0.0.1", node.port)
    assert topology.options["password"] == "hidden"
    assert "sentinel_password" not in topology.options


@pytest.mark.parametrize("service", ["gone", "misspelled"])
async def test_a_service_without_a_master_is_named_and_no_password_is(sentinel: ServerProcess, service: str) -> None:
    async def refused() -> bool:
        # A Sentinel needs a moment to notice that a master is not there.
        try:
            await Topology(sentinel_config(sentinel, service)).find()
        except RushConnectionError as error:
            message = f"{error!r} {error.__cause__!r} {error.__suppress_context__}"
            assert f"knows a master '{service}' that is up" in message
            assert "hidden" not in message
            assert "secret" not in message
            return message.endswith("True")
        return False

    await wait_until(refused)


async def test_the_nodes_of_a_cluster_tell_which_one_has_a_slot(node: ServerProcess) -> None:
    config = cluster_config(node)
    slot = slot_of(config, "rush:{a}:meta")
    assert slot == key_slot(b"a")
    assert await Topology(config, slot).find() == ("127.0.0.1", node.port)


async def test_a_server_that_is_no_cluster_and_a_database_of_a_cluster_are_refused(sentinel: ServerProcess) -> None:
    url = f"redis+cluster://:secret@127.0.0.1:{sentinel.port}"
    with pytest.raises(RushConnectionError, match=r"no node of .* tells its slots") as caught:
        await Topology(RushConfig(url=url), 1).find()
    assert "secret" not in f"{caught.value} {caught.value.__cause__}"
    with pytest.raises(RushConfigError, match="a cluster has no other than 0"):
        Topology(RushConfig(url=f"{url}?db=1"), 1)


async def test_in_a_cluster_the_networks_of_a_slot_share_a_link(node: ServerProcess) -> None:
    config = cluster_config(node)
    links = [await Link.acquire(config, key=key) for key in ("rush:{a}:meta", "rush:{a}:queue", "rush:{b}:meta")]
    assert links[0] is links[1]
    assert links[0] is not links[2]
    for link in links:
        await link.release()


async def test_a_network_lives_in_a_cluster_and_follows_its_slot(node: ServerProcess) -> None:
    config = replace(cluster_config(node), heartbeat_period=0.05, heartbeat_expire=1)
    async with Rush("a", config) as rush, RushWorker("a", rush.config) as worker, rush.events() as events:
        async with worker.task({"x": 1}) as task:
            task.ys = {"y": 2}
        assert [type(await anext(events)).__name__ for _ in range(2)] == ["TasksStarted", "TasksFinished"]
        slot, connection = key_slot(b"a"), rush._net.link.connection  # pyright: ignore[reportPrivateUsage]
        # The node gives the slot away, which ends its subscriptions, and gets it back.
        node.raw.execute_command("CLUSTER", "DELSLOTS", slot)
        pushed = asyncio.ensure_future(rush.push_tasks([{"x": 2}]))
        await wait_until(lambda: not connection.is_ready)
        assert not pushed.done()
        node.raw.execute_command("CLUSTER", "ADDSLOTS", slot)
        (key,) = await pushed
        assert (await rush.counts()).queued == 1
        popped = await worker.pop_task()
        assert popped is not None
        assert popped.key == key
        assert await worker.finish_tasks(key, [{"y": 3}]) == [key]
        async for event in events:
            if isinstance(event, TasksFinished):
                break
        await rush.reset()
