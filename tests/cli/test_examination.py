"""`rush-async doctor` on real servers: one in order, and each setting that hurts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast
from urllib.parse import urlsplit

import pytest
import redis

from rush_async import Rush, RushConfig, RushWorker
from rush_async.cli.checks import Check
from rush_async.cli.examination import Examination
from rush_async.embedded.server import acquire

NAMES = ["connection", "latency", "version", "persistence", "memory", "topology", "clock", "rights"]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RushConfig]:
    """A server in order."""
    lease = acquire(tmp_path_factory.mktemp("d"))
    yield RushConfig(url=lease.url)
    lease.release()


@pytest.fixture
def server(config: RushConfig) -> Iterator[Any]:
    """A plain client of it."""
    assert config.url is not None
    with cast("Any", redis.Redis.from_url(config.url)) as client:  # pyright: ignore[reportUnknownMemberType]
        yield client
        client.flushall()


def with_user(config: RushConfig, server: Any, *rules: str) -> RushConfig:
    server.execute_command("ACL", "SETUSER", "ann", "reset", "on", ">secret", *rules)
    return replace(config, url=f"unix://ann:secret@{urlsplit(config.url or '').path}")


async def examine(config: RushConfig, network_id: str | None = None) -> dict[str, Check]:
    from anyio.to_thread import run_sync  # it runs event loops of its own

    return {check.name: check for check in await run_sync(lambda: list(Examination(config, network_id).checks()))}


def remedies(checks: dict[str, Check]) -> dict[str, str]:
    return {name: check.verdict for name, check in checks.items() if check.verdict != "ok" and check.remedy}


async def test_a_server_in_order_has_nothing_to_remedy(config: RushConfig, server: Any) -> None:
    checks = await examine(config)
    assert list(checks) == NAMES
    assert {check.verdict for check in checks.values()} == {"ok"}, checks
    assert (await examine(config, "net"))["network"].finding == (
        "network 'net' does not exist yet: it has no heartbeats and no records"
    )
    assert server.keys() == []


async def test_settings_that_lose_tasks_are_bad(config: RushConfig, server: Any) -> None:
    server.config_set("maxmemory-policy", "allkeys-lru")
    server.config_set("maxmemory", 1 << 30)
    server.config_set("appendonly", "no")
    try:
        checks = await examine(config)
    finally:
        server.config_set("maxmemory", 0)
        server.config_set("maxmemory-policy", "noeviction")
        server.config_set("appendonly", "yes")
    assert remedies(checks) == {"persistence": "bad", "memory": "bad"}
    assert "maxmemory-policy noeviction" in checks["memory"].remedy
    assert "appendonly yes" in checks["persistence"].remedy


async def test_a_user_without_rights_learns_which(config: RushConfig, server: Any) -> None:
    few = with_user(config, server, "~rush:{net}:*", "&rush:{net}:*", "+@connection", "+@transaction", "+@read")
    checks = await examine(few, "net")
    assert checks["connection"].verdict == checks["rights"].verdict == "bad"
    assert "script|load" in checks["connection"].finding
    assert "may not run HSET," in checks["rights"].finding
    assert "HGET" not in checks["rights"].finding
    for name in ("version", "persistence", "memory", "topology", "clock"):
        assert checks[name].verdict == "warning"
        assert checks[name].finding.startswith("cannot tell: ")
        assert "+info" in checks[name].remedy
    assert (await examine(with_user(config, server), "net"))["rights"].finding == "this user may not run MULTI"


async def test_a_user_of_one_network_is_well_there_and_nowhere_else(config: RushConfig, server: Any) -> None:
    rights = "+@read +@write +@scripting +@pubsub +@connection +@transaction +info +time"
    ann = with_user(config, server, "~rush:{net}:*", "&rush:{net}:*", *rights.split())
    assert remedies(await examine(ann, "net")) == {}
    assert remedies(await examine(ann)) == {"rights": "warning"}
    elsewhere = await examine(ann, "other")
    assert elsewhere["rights"].verdict == "bad"
    assert "use the keys rush:{other}:*" in elsewhere["rights"].finding


async def test_a_server_that_is_not_there_or_refuses_the_password(config: RushConfig, server: Any) -> None:
    (away,) = (await examine(RushConfig("redis://localhost:1"))).values()
    assert (away.name, away.verdict) == ("connection", "bad")
    assert "cannot reach redis://localhost:1" in away.finding
    assert "Start a Redis or Valkey server there" in away.remedy
    ann = with_user(config, server)
    (refused,) = (await examine(replace(ann, url=(ann.url or "").replace("secret", "hunter2")))).values()
    assert "refuses this user or password" in refused.finding
    assert "RUSH_PASSWORD" in refused.remedy
    assert "hunter2" not in str(refused)


async def test_leases_and_records_of_a_network(config: RushConfig, server: Any, caplog: pytest.LogCaptureFixture) -> None:
    async with RushWorker("net", config, worker_id="alive") as worker:
        assert (await examine(config, "net"))["heartbeats"].finding == "1 worker alive; heartbeats every 5 s, lost after 20 s"
        await worker.push_tasks([{"x": 1}])
    # A worker whose process died while no client was connected, and a record of another program.
    server.hset("rush:{net}:alive", "dead", "its-lease")
    server.zadd("rush:{net}:leases", {"its-lease": time.time() - 600})
    server.hset("rush:{net}:processes", "its-lease", "20 5 0")
    server.hset("rush:{net}:queued", "strange", "no record")
    before = server.zrange("rush:{net}:leases", 0, -1, withscores=True)
    checks = await examine(config, "net")
    assert remedies(checks) == {"heartbeats": "warning", "records": "warning"}
    assert checks["heartbeats"].finding == "the leases of 1 of 1 worker expired, up to 10 m ago: dead"
    assert "1 of network 'net' cannot be decoded and are left out: 'strange' of queued" in checks["records"].finding
    assert server.zrange("rush:{net}:leases", 0, -1, withscores=True) == before
    assert caplog.messages == []
    async with Rush("net", config, exist_ok=True) as rush:
        await rush.reset()


async def test_a_network_of_a_newer_version_is_a_bad_connection(config: RushConfig, server: Any) -> None:
    async with Rush("net", config) as rush:
        await rush.push_tasks([{"x": 1}])
    server.hset("rush:{net}:meta", "wire", "99")
    checks = await examine(config, "net")
    assert checks["connection"].verdict == "bad"
    assert checks["records"].finding == "cannot tell: the network cannot be opened"
