"""One short suite over every kind of server that a URL can name, and a load that a failover and a slot migration disturb."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import pytest

from rush_async import (
    Counts,
    EventsMissed,
    NetworkStopped,
    Processes,
    Rush,
    RushConfig,
    RushConnectionError,
    RushWorker,
    TaskReported,
    TasksFailed,
    TasksFinished,
    WorkerLost,
)
from rush_async.cli.examination import Examination
from rush_async.embedded.server import acquire
from rush_async.network.listing import list_networks
from rush_async.testing import wait_until
from tests.launch.loops_of_tests import hold_three
from tests.topology.load import working
from tests.topology.servers import (
    Certificates,
    Cluster,
    MissingServer,
    Replicated,
    Sentinels,
    ServerProcess,
    TLSServer,
    free_port,
    wait_for,
)

pytestmark = pytest.mark.topology


class Reachable(Protocol):
    """One server or several, as clients see them."""

    @property
    def config(self) -> RushConfig: ...

    def end(self) -> None:
        """Ends them."""


class Embedded:
    """The embedded server."""

    def __init__(self, _: Path) -> None:
        self._lease = acquire()
        self.config = RushConfig(url=self._lease.url)

    def end(self) -> None:
        """Ends it."""
        self._lease.release()


class Alone:
    """A Redis that is reached by `socket` or by a port."""

    def __init__(self, directory: Path, *, socket: bool = False) -> None:
        lines = [f"unixsocket {directory}/s", "requirepass secret"] if socket else []
        options: dict[str, Any] = {"password": "secret"} if socket else {}
        self._server = ServerProcess(directory, *lines, **options)
        self._server.start()
        self.config = RushConfig(
            url=f"unix://:secret@{directory}/s?db=1" if socket else f"redis://127.0.0.1:{self._server.port}"
        )

    def end(self) -> None:
        """Ends it."""
        self._server.end()


class OnSocket(Alone):
    """A Redis that is reached by a socket, with a password."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, socket=True)


KINDS: dict[str, type[Any]] = {
    "valkey": Embedded,
    "redis": Alone,
    "tls": TLSServer,
    "unix": OnSocket,
    "sentinel": Sentinels,
    "cluster": Cluster,
}


@contextmanager
def needing_servers() -> Generator[None]:
    """Skips the test where a program is missing, except in CI, which installs them."""
    try:
        yield
    except MissingServer as error:
        if "CI" in os.environ:
            raise
        pytest.skip(str(error))


def started(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with needing_servers():
        servers = KINDS[kind](tmp_path_factory.mktemp("t"))
    yield servers
    servers.end()


@pytest.fixture(scope="module", params=KINDS)
def servers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reachable]:
    yield from started(request.param, tmp_path_factory)


async def test_a_network_works_the_same_on_every_kind_of_server(servers: Reachable) -> None:
    config = replace(servers.config, heartbeat_period=0.2, heartbeat_expire=1.0)
    async with (
        Rush("suite", config) as rush,
        RushWorker("suite", config) as worker,
        Rush("suite", replace(config, response_timeout=11)) as elsewhere,
        elsewhere.events() as events,
        elsewhere.events(TaskReported) as reports,
    ):
        # push, pop, report, finish; wait and fetch elsewhere
        keys = await rush.push_tasks([{"x": x} for x in range(3)])
        waiting = asyncio.ensure_future(elsewhere.wait_for_tasks(keys, need_workers=False))
        for key in keys:
            task = await worker.pop_task()
            assert task is not None
            assert task.key == key
            await worker.report_tasks(key, [{"epoch": 1}])
            await worker.finish_tasks(key, [{"y": 2 * task.xs["x"]}])
        assert [task.ys for task in await waiting] == [{"y": 0}, {"y": 2}, {"y": 4}]
        assert (await elsewhere.fetch_new_tasks(timeout=5))["keys"].to_list() == keys
        for key in keys:
            report = await anext(reports)
            assert isinstance(report, TaskReported)
            assert report.key == key
        assert (await elsewhere.fetch_reports())["epoch"].to_list() == [1, 1, 1]
        # a process that dies while it works
        await rush.start_workers(hold_three, 1, on=Processes())
        await rush.wait_until(lambda counts: counts.running == 3, timeout=30)
        info = await rush.worker_info()
        (pid,) = info.filter((info["state"] == "running") & (info["worker_id"] != worker.worker_id))["pid"]
        os.kill(pid, signal.SIGKILL)
        await elsewhere.wait_until(lambda counts: counts.failed == 3, timeout=30)
        # a rule stops the network
        await rush.stop_when(finished=4)
        async with worker.task({"x": 3}) as block:
            assert block is not None
            block.ys = {"y": 6}
        assert (await elsewhere.wait_until_stopped(timeout=10)).rule == "finished"
        assert await worker.pop_task() is None
        kinds: list[type[Any]] = []
        while NetworkStopped not in kinds:
            kinds.append(type(await anext(events)))
        assert {TasksFinished, TasksFailed, WorkerLost, NetworkStopped} <= set(kinds)
        await rush.reset()


async def test_a_network_that_has_ended_goes_as_a_whole_on_every_kind_of_server(servers: Reachable) -> None:
    async with Rush("ending", servers.config) as rush:
        await rush.push_finished_tasks([{"x": 1}], [{"y": 1}])
        await rush.ranking("rung").add("key", 1)
        await rush.expire(0.001)
        network = rush._net  # pyright: ignore[reportPrivateUsage]
        keys = [network.keys.meta, network.keys.finished, network.keys.rankings, f"{network.keys.rankings}:rung"]

        async def is_gone() -> bool:
            return await network.link.connection.ask("EXISTS", *keys) == 0

        await wait_until(is_gone)


async def test_a_network_that_nothing_disturbs_loses_no_message(servers: Reachable) -> None:
    async with working("quiet", servers.config) as load:
        await load.continues()
        await load.end()
        await load.check()
        assert load.n_missed == 0


@pytest.fixture(params=["sentinel", "cluster"])
def replicated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicated]:
    yield from started(request.param, tmp_path_factory)


async def test_a_failover_loses_nothing_that_one_replica_has_acknowledged(replicated: Replicated) -> None:
    config = replace(replicated.config, wait_replicas=1, response_timeout=2)
    async with working("load", config) as load:
        if isinstance(replicated, Cluster):
            await asyncio.to_thread(replicated.migrate, "{load}")
            await load.continues()
        for freezes in (False, True):
            failing_over = asyncio.create_task(asyncio.to_thread(replicated.fail_over, "{load}", freezes=freezes))
            await wait_until(lambda: not load.is_connected, timeout=30)
            async with Rush("load", replace(config, connect_timeout=20)):  # opening waits for the next master too
                await failing_over
            await load.continues()
        await load.end()
        await load.check()


@pytest.fixture
def sentinels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sentinels]:
    yield from started("sentinel", tmp_path_factory)


async def test_what_a_failover_loses_that_no_replica_has_is_noticed(sentinels: Sentinels) -> None:
    config = sentinels.config
    async with (
        Rush("net", config) as rush,
        RushWorker("net", config) as worker,
        Rush("net", replace(config, response_timeout=11)) as elsewhere,
        elsewhere.events() as events,
    ):
        kept = await rush.push_tasks([{"x": x} for x in range(4)])
        first = await worker.pop_task()
        assert first is not None
        await worker.finish_tasks(first.key, [{"y": 0}])
        await rush._net.link.connection.ask("WAIT", 1, 5000)  # pyright: ignore[reportPrivateUsage]
        await asyncio.to_thread(sentinels.cut_replica)
        # acknowledged by the master alone
        second, third = await worker.pop_task(), await worker.pop_task()
        assert second is not None
        assert third is not None
        assert await worker.finish_tasks(second.key, [{"y": 1}]) == [second.key]
        await elsewhere.wait_until(lambda counts: counts.finished == 2, timeout=5)
        assert len(await elsewhere.fetch_new_tasks()) == 2
        await asyncio.to_thread(sentinels.fail_over, "")
        # The task that is held here was never started, as the network has it now.
        assert await worker.finish_tasks(third.key, [{"y": 2}]) == []
        for client in (rush, elsewhere):
            assert await client.counts() == Counts(queued=3, finished=1)
            frame = await client.fetch_tasks()
            assert sorted(frame["keys"]) == sorted(kept)
            assert frame.filter(frame["state"] == "finished")["keys"].to_list() == [first.key]
        assert (await elsewhere.fetch_new_tasks())["keys"].to_list() == [first.key]  # what it gave before may be gone
        while not isinstance(await anext(events), EventsMissed):
            pass
        # it continues
        for key in kept[1:]:
            task = await worker.pop_task()
            assert task is not None
            assert await worker.finish_tasks(task.key, [{"y": 3}]) == [key]
        assert await elsewhere.wait_until(lambda counts: counts.finished == 4, timeout=5) == Counts(finished=4)
        await rush.reset()


async def test_many_networks_share_a_server_or_are_spread_over_a_cluster(servers: Reachable) -> None:
    networks = [await Rush(f"net-{n}", servers.config) for n in range(12)]
    try:
        for rush in networks:
            await rush.push_tasks([{"x": 1}])
        if isinstance(servers, Cluster):
            assert len({servers.master(f"{{{rush.network_id}}}").port for rush in networks}) == 3
        assert [(await rush.counts()).queued for rush in networks] == [1] * 12
        found = {each.network_id: each.position for each in await list_networks(servers.config)}
        assert [position.counts.queued for rush in networks if (position := found[rush.network_id])] == [1] * 12
        assert [each.network_id for each in await list_networks(servers.config, "net-1")] == ["net-1", "net-10", "net-11"]
    finally:
        for rush in networks:
            await rush.reset()
            await rush.aclose()


async def test_doctor_examines_every_kind_of_server(servers: Reachable) -> None:
    checks = {check.name: check for check in await asyncio.to_thread(lambda: list(Examination(servers.config, "net").checks()))}
    well = ("connection", "version", "memory", "clock", "rights", "network")
    assert [checks[name].verdict for name in well] == ["ok"] * len(well), checks
    match servers:
        case Sentinels():
            assert "cut off from its Sentinels" in checks["topology"].finding
        case Cluster():
            assert checks["topology"].finding.startswith("node of a cluster whose state cannot be told")
            named_alone = servers.config.at(f"redis://127.0.0.1:{servers.master('{net}').port}")
            found = {each.name: each for each in await asyncio.to_thread(lambda: list(Examination(named_alone, None).checks()))}
            assert found["topology"].finding == "a node of a cluster, named as a single server"
        case _:
            assert checks["topology"].finding == "master with 0 replicas"


async def test_sentinels_and_clusters_are_reached_by_tls(tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("t")
    with needing_servers():
        certificates = Certificates(directory)
        lines = (*certificates.lines, "cluster-enabled yes", f"cluster-port {free_port()}", "tls-cluster yes")
        node = ServerProcess(directory, *lines, **certificates.client)
        watched = (*certificates.lines, "tls-replication yes", f"sentinel monitor main 127.0.0.1 {node.port} 1")
        sentinel = ServerProcess(directory, *watched, sentinel=True, **certificates.client)
    try:
        node.start()
        sentinel.start()
        config = replace(certificates.config.at(f"rediss+cluster://127.0.0.1:{node.port}"), connect_timeout=0.5)
        with pytest.raises(RushConnectionError, match=r"no node of .* tells its slots"):
            async with Rush("net", config):
                pass
        node.raw.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        wait_for(lambda: node.raw.set("any", "x"), "the node takes writes")
        for url in (f"rediss+sentinel://127.0.0.1:{sentinel.port}/main", f"rediss+cluster://127.0.0.1:{node.port}"):
            async with Rush("net", certificates.config.at(url)) as rush:
                assert len(await rush.push_tasks([{"x": 1}])) == 1
                await rush.reset()
    finally:
        sentinel.end()
        node.end()
