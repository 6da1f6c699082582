"""The verdicts of `rush-async doctor` on facts of servers; see `test_examination.py` for those on real servers."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from rush_async.cli.checks import (
    NEEDED,
    LeaseEntry,
    check_heartbeats,
    check_latency,
    check_memory,
    check_persistence,
    check_rights,
    check_time,
    check_topology,
    check_version,
)
from rush_async.wire.inspection import Refusal

CLUSTER = {"cluster_state": "ok", "cluster_known_nodes": "6"}


def test_the_rights_that_are_checked_are_those_that_the_scripts_need() -> None:
    lua = files("rush_async") / "store" / "lua"
    sources = [
        file.read_text("utf-8") for folder in (lua, lua / "lib") for file in folder.iterdir() if file.name.endswith(".lua")
    ]
    called = {name for source in sources for name in re.findall(r"p?call\('([A-Z]+)'", source)}
    assert "HSET" in called
    assert called <= {command[0] for command in NEEDED}


@pytest.mark.parametrize(
    ("facts", "verdict", "words"),
    [
        ({"redis_version": "7.2.4", "uptime_in_seconds": "7300"}, "ok", "Redis 7.2.4, standalone, up for 2 h 1 m"),
        (
            {"valkey_version": "9.1", "redis_version": "7.2.4", "uptime_in_seconds": "5"},
            "ok",
            "Valkey 9.1, standalone, up for 5 s",
        ),
        ({"redis_version": "7.0.0", "redis_mode": "sentinel"}, "bad", "a Sentinel"),
        ({"redis_version": "7.0.0", "loading": "1"}, "warning", "still loads its data"),
    ],
)
def test_version(facts: dict[str, str], verdict: str, words: str) -> None:
    check = check_version(facts)
    assert (check.verdict, words in check.finding, bool(check.remedy)) == (verdict, True, verdict != "ok")


def test_latency_is_the_median() -> None:
    assert check_latency([0.001, 0.002, 5.0]).verdict == "ok"
    slow = check_latency([0.02] * 3)
    assert (slow.verdict, slow.finding) == ("warning", "20 ms for a round trip (median of 3, at most 20 ms)")
    assert check_latency([2.0]).verdict == "bad"
    assert "nearer" in slow.remedy


@pytest.mark.parametrize(
    ("facts", "save", "verdict", "words"),
    [
        ({"aof_enabled": "1"}, "", "ok", "append-only"),
        ({"aof_enabled": "0"}, "3600 1", "warning", "snapshots alone (save 3600 1)"),
        ({"aof_enabled": "0"}, "", "bad", "nothing is kept"),
        ({"aof_enabled": "0"}, Refusal("the user may not", True), "warning", "cannot be told: the user may not"),
        ({"aof_enabled": "1", "aof_last_write_status": "err"}, "", "bad", "last save failed (aof_last_write_status)"),
        ({"aof_enabled": "0", "rdb_last_bgsave_status": "err"}, "60 1", "bad", "last save failed (rdb_last_bgsave_status)"),
    ],
)
def test_persistence(facts: dict[str, str], save: str | Refusal, verdict: str, words: str) -> None:
    check = check_persistence(facts, save)
    assert (check.verdict, words in check.finding, bool(check.remedy)) == (verdict, True, verdict != "ok")


@pytest.mark.parametrize(
    ("used", "most", "policy", "verdict", "words"),
    [
        (
            1_500_000,
            0,
            "noeviction",
            "ok",
            "1.43 MB used of 954 MB, all that the machine has; noeviction: a full server refuses",
        ),
        (1_500_000, 0, "allkeys-lru", "warning", "thrown away"),
        (1_500_000, 2_000_000, "allkeys-lru", "bad", "thrown away"),
        (1_500_000, 2_000_000, "volatile-lru", "ok", "volatile-lru"),
        (1_900_000, 2_000_000, "noeviction", "warning", "95% of it"),
        (2_000_000, 2_000_000, "noeviction", "bad", "100% of it"),
    ],
)
def test_memory(used: int, most: int, policy: str, verdict: str, words: str) -> None:
    facts = {"used_memory": str(used), "maxmemory": str(most), "maxmemory_policy": policy, "total_system_memory": "1000000000"}
    check = check_memory(facts)
    assert (check.verdict, words in check.finding, bool(check.remedy)) == (verdict, True, verdict != "ok"), check


@pytest.mark.parametrize(
    ("facts", "kind", "cluster", "verdict", "words"),
    [
        ({"role": "master", "connected_slaves": "0"}, "", None, "ok", "master with 0 replicas"),
        ({"role": "slave", "master_host": "a", "master_port": "1"}, "", None, "bad", "a replica of a:1"),
        ({"role": "master"}, "", CLUSTER, "bad", "named as a single server"),
        ({"role": "master"}, "cluster", CLUSTER | {"cluster_state": "fail"}, "bad", "'fail'"),
        (
            {"role": "master", "connected_slaves": "1"},
            "cluster",
            CLUSTER,
            "ok",
            "node of a cluster of 6, master with 1 replica",
        ),
        ({"role": "master"}, "cluster", Refusal("no rights", True), "ok", "whose state cannot be told (no rights), master"),
        ({"connected_slaves": "1", "slave0": "ip=a,state=wait_bgsave"}, "", None, "warning", "1 not in step"),
        ({"connected_slaves": "1", "slave0": "ip=a,state=online"}, "sentinel", None, "warning", "cut off from its Sentinels"),
        ({"connected_slaves": "1", "min_slaves_good_slaves": "1"}, "sentinel", None, "ok", "master with 1 replica"),
    ],
)
def test_topology(facts: dict[str, str], kind: str, cluster: dict[str, str] | Refusal | None, verdict: str, words: str) -> None:
    check = check_topology(facts, kind, cluster)
    assert (check.verdict, words in check.finding, bool(check.remedy)) == (verdict, True, verdict != "ok"), check


def test_time() -> None:
    assert check_time(-0.5).verdict == "ok"
    assert "2 m ahead of" in check_time(130).finding
    behind = check_time(-7300)
    assert (behind.verdict, behind.finding) == ("warning", "the server's clock is 2 h 1 m behind this machine's")


def test_rights_name_commands_keys_and_channels() -> None:
    assert check_rights({}, "net").verdict == "ok"
    refusals = {
        "HSET": Refusal("User ann has no permissions to run the 'hset' command", True),
        "HGET": Refusal("No permissions to access a key", True),
        "SPUBLISH": Refusal("this user has no permissions to access one of the channels used as arguments", True),
    }
    check = check_rights(refusals, "net")
    assert check.verdict == "bad"
    assert check.finding == (
        "this user may not run HSET, may not use the keys rush:{net}:*, may not use the channels rush:{net}:*"
    )
    assert "~rush:{net}:*" in check.remedy
    del refusals["HSET"]
    unnamed = check_rights(refusals, None)
    assert (unnamed.verdict, unnamed.remedy) == ("warning", "name the network: rush-async doctor NETWORK")


def test_heartbeats() -> None:
    assert check_heartbeats("net", []).finding == "network 'net' has no worker that is alive"
    alive = [LeaseEntry(["a", "b"], 12.0, (20.0, 5.0)), LeaseEntry(["shared"], 0.0, None)]
    well = check_heartbeats("net", alive)
    assert (well.verdict, well.finding) == ("ok", "3 workers alive; heartbeats every 5 s, lost after 20 s")
    dead = check_heartbeats("net", [*alive, LeaseEntry(["c"], -7300.0, (20.0, 5.0))])
    assert (dead.verdict, dead.finding) == ("warning", "the leases of 1 of 4 workers expired, up to 2 h 1 m ago: c")
    assert "rush-async kill net WORKER" in dead.remedy
