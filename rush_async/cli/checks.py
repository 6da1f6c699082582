"""What `rush-async doctor` looks at: each check has a finding, a verdict, and a remedy where something is to be done."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Literal, NamedTuple, TypeAlias

from rush_async.cli.output import age, counted
from rush_async.wire.inspection import Refusal
from rush_async.wire.refusals import acl_remedy

__all__ = [
    "NEEDED",
    "Check",
    "LeaseEntry",
    "Verdict",
    "cannot_tell",
    "check_heartbeats",
    "check_latency",
    "check_memory",
    "check_persistence",
    "check_rights",
    "check_time",
    "check_topology",
    "check_version",
]

Verdict: TypeAlias = Literal["ok", "warning", "bad"]
Facts: TypeAlias = Mapping[str, str]
"""The lines of INFO, by name."""

_SLOW, _TOO_SLOW = 0.01, 1.0  # seconds of a round trip
_LARGE_DIFFERENCE = 2.0  # between two clocks, in s
_NEARLY_FULL = 0.85  # of the memory

# Of each command a harmless form; `k` stands for a key of the network, `c` for a channel.
_READS = """HGET k f|HMGET k f|HGETALL k|HEXISTS k f|HLEN k|HKEYS k|HVALS k|HSCAN k 0|LINDEX k 0|LLEN k|LRANGE k 0 0|ZCARD k|
SCARD k|ZRANGE k 0 0|ZRANGEBYSCORE k 0 0|ZRANK k m|ZSCORE k m|XRANGE k - +|XLEN k|PTTL k"""
_WRITES = """HSET k f v|HDEL k f|HINCRBY k f 1|HSETNX k f v|LPUSH k v|RPUSH k v|LPOP k|LREM k 0 v|LSET k 0 v|XADD k * f v|
XDEL k 0-1|SADD k m|SREM k m|ZADD k 0 m|ZREM k m|ZPOPMIN k|UNLINK k|EXPIRE k 1|PEXPIRE k 1|PEXPIREAT k 1|PERSIST k"""
_OTHERS = "EVALSHA 0 0|EVAL 0 0|SCRIPT LOAD 0|SPUBLISH c 0|SSUBSCRIBE c|SUNSUBSCRIBE c|PING|TIME|INFO"
NEEDED = tuple(tuple(command.split()) for command in f"{_READS}|{_WRITES}|{_OTHERS}".split("|"))
"""The commands that a network needs; `k` stands for its keys, `c` for its channels."""


@dataclass(frozen=True, slots=True)
class Check:
    """What one check found.

    Attributes:
        name: what was checked, in a word.
        verdict: `ok`, `warning` (it works, and may hurt later), or `bad` (a network does not work, or loses tasks).
        finding: what was found.
        remedy: what to do; empty where nothing is to be done.
    """

    name: str
    verdict: Verdict
    finding: str
    remedy: str = ""


class LeaseEntry(NamedTuple):
    """The lease of workers of one event loop, as the network keeps it; times are in seconds.

    Attributes:
        workers: the workers that it keeps alive.
        left: until it expires; negative once it has expired.
        times: how long it lasts after a heartbeat, and the time between two of them; None where there is no lease, or another
            program wrote what cannot be read.
    """

    workers: Sequence[str]
    left: float
    times: tuple[float, float] | None


def cannot_tell(name: str, refusal: Refusal, network_id: str | None) -> Check:
    """Returns the check that the server does not let this user make."""
    remedy = acl_remedy(network_id or "") if refusal.is_for_rights else ""
    return Check(name, "warning", f"cannot tell: {refusal.text}", remedy)


def check_version(facts: Facts) -> Check:
    """Names the kind of the server and its version. One that is too old is refused by the connection already."""
    kind = "Valkey" if "valkey_version" in facts else "Redis"
    version = facts.get("valkey_version") or facts.get("redis_version", "of an unknown version")
    up = int(facts.get("uptime_in_seconds", 0))
    mode = facts.get("server_mode") or facts.get("redis_mode", "standalone")
    if mode == "sentinel":
        return Check(
            *("version", "bad", f"{kind} {version}, a Sentinel"),
            "a Sentinel keeps no data: name the service it watches, redis+sentinel://host:26379/service",
        )
    if facts.get("loading", "0") != "0":
        return Check("version", "warning", f"{kind} {version}, which still loads its data", "wait until it has loaded them")
    return Check("version", "ok", f"{kind} {version}, {mode}, up for {age(up)}")


def check_latency(seconds: Sequence[float]) -> Check:
    """Judges round trips."""
    median = statistics.median(seconds)
    finding = f"{median * 1e3:.3g} ms for a round trip (median of {len(seconds)}, at most {max(seconds) * 1e3:.3g} ms)"
    if median < _SLOW:
        return Check("latency", "ok", finding)
    verdict: Verdict = "bad" if median >= _TOO_SLOW else "warning"
    return Check(
        *("latency", verdict, finding),
        "each task takes some round trips: run the server nearer to the workers, push many tasks in one call, and let each "
        "worker evaluate longer tasks",
    )


def check_persistence(facts: Facts, save: str | Refusal | None) -> Check:
    """Judges whether tasks survive a restart of the server.

    Args:
        facts: what INFO says.
        save: the setting `save`; a refusal where this user may not read it, None where the server has no such setting.
    """
    name = "persistence"
    broken = [
        field
        for field in ("aof_last_write_status", "aof_last_bgrewrite_status", "rdb_last_bgsave_status")
        if facts.get(field, "ok") != "ok"
    ]
    if broken:
        return Check(
            *(name, "bad", f"the server's last save failed ({', '.join(broken)}), and it may refuse all writes"),
            "make room on the server's disk, and see its log for another reason",
        )
    if facts.get("aof_enabled", "0") != "0":
        return Check(name, "ok", "an append-only file: tasks survive a restart of the server")
    switch_on = "switch the append-only file on: CONFIG SET appendonly yes, and `appendonly yes` in the server's configuration"
    if isinstance(save, Refusal):
        return Check(
            name,
            "warning",
            f"no append-only file, and whether the server takes snapshots cannot be told: {save.text}",
            switch_on,
        )
    if save:
        finding = f"snapshots alone (save {save}): a restart loses what came after the last one"
        return Check(name, "warning", finding, switch_on)
    return Check(
        *(name, "bad", "nothing is kept: a restart of the server loses all tasks"),
        f"{switch_on}; for an embedded server name a data directory (--data-dir)",
    )


def check_memory(facts: Facts) -> Check:
    """Judges the memory, and what happens when it is full."""
    used, most = int(facts.get("used_memory", 0)), int(facts.get("maxmemory", 0))
    policy = facts.get("maxmemory_policy", "noeviction")
    keep = "CONFIG SET maxmemory-policy noeviction, and the same line in the server's configuration"
    limit = most or int(facts.get("total_system_memory", 0))
    of = f" of {_size(limit)}{'' if most else ', all that the machine has'}" if limit else ""
    finding = f"{_size(used)} used{of}; {policy}"
    if policy.startswith("allkeys"):
        verdict: Verdict = "bad" if most else "warning"
        return Check("memory", verdict, f"{finding}: tasks are thrown away when the memory is full", keep)
    if limit and used >= _NEARLY_FULL * limit:
        room = "reset or delete networks that are not needed (`rush-async networks` lists them), or raise maxmemory"
        return Check("memory", "bad" if used >= limit else "warning", f"{finding}: {used / limit:.0%} of it", room)
    return Check("memory", "ok", f"{finding}: a full server refuses, and loses nothing" if policy == "noeviction" else finding)


def check_topology(facts: Facts, kind: str, cluster: Facts | Refusal | None) -> Check:
    """Judges what the server is to others: a master, a replica, a node of a cluster.

    Args:
        facts: what INFO says.
        kind: what the URL names besides a server: `sentinel`, `cluster` or nothing.
        cluster: what CLUSTER INFO says, or a refusal; None for a server that is no node of a cluster.
    """
    name = "topology"
    if facts.get("role", "master") != "master":
        master = f"{facts.get('master_host', '?')}:{facts.get('master_port', '?')}"
        return Check(
            *(name, "bad", f"a replica of {master}, which takes no writes"),
            "name the master, or its Sentinels: redis+sentinel://host:26379/service",
        )
    if cluster is not None and kind != "cluster":
        return Check(
            name,
            "bad",
            "a node of a cluster, named as a single server",
            "name the cluster: redis+cluster://host:6379,host:6379",
        )
    if isinstance(cluster, Mapping) and cluster.get("cluster_state", "ok") != "ok":
        return Check(
            name,
            "bad",
            f"the cluster is in the state {cluster['cluster_state']!r}",
            "see CLUSTER NODES: a master of some slots is away",
        )
    n_replicas = int(facts.get("connected_slaves", 0))
    late = [number for number in range(n_replicas) if "state=online" not in facts.get(f"slave{number}", "state=online")]
    what = "master"
    if isinstance(cluster, Mapping):
        what = f"node of a cluster of {cluster.get('cluster_known_nodes', '?')}, master"
    elif cluster is not None:
        what = f"node of a cluster whose state cannot be told ({cluster.text}), master"
    finding = f"{what} with {counted(n_replicas, 'replica')}"
    if late:
        return Check(
            name, "warning", f"{finding}, of which {len(late)} not in step", "see INFO replication, and the log of the replica"
        )
    if kind == "sentinel" and "min_slaves_good_slaves" not in facts:
        return Check(
            *(name, "warning", f"{finding}: cut off from its Sentinels it takes tasks that are lost when it comes back"),
            "CONFIG SET min-replicas-to-write 1, and the same line in the configuration of each server",
        )
    return Check(name, "ok", finding)


def check_time(difference: float) -> Check:
    """Judges by how many seconds the server's clock is ahead of this machine's."""
    if abs(difference) < _LARGE_DIFFERENCE:
        return Check("clock", "ok", f"{abs(difference):.3f} s between the server's clock and this machine's")
    return Check(
        *(
            "clock",
            "warning",
            f"the server's clock is {age(abs(difference))} {'ahead of' if difference > 0 else 'behind'} this machine's",
        ),
        "leases and times of tasks are the server's and stay right; times in logs are the worker's: set both clocks by NTP",
    )


def check_rights(refusals: Mapping[str, Refusal], network_id: str | None) -> Check:
    """Judges which of the commands of `NEEDED` the server refuses this user.

    Args:
        refusals: the refusals for rights, by the name of the command.
        network_id: the network whose keys and channels were tried; None for a name that no network has.
    """
    keys = [command for command, refusal in refusals.items() if "to access" in refusal.text and "key" in refusal.text]
    channels = [command for command, refusal in refusals.items() if "to access" in refusal.text and "channel" in refusal.text]
    commands = [command for command in refusals if command not in (*keys, *channels)]
    if not refusals:
        return Check("rights", "ok", "this user may run all commands that a network needs")
    pattern = f"rush:{{{network_id}}}:*" if network_id else "rush:*"
    lacks = [
        *([f"run {', '.join(commands)}"] if commands else []),
        *([f"use the keys {pattern}"] if keys else []),
        *([f"use the channels {pattern}"] if channels else []),
    ]
    finding = f"this user may not {', may not '.join(lacks)}"
    if network_id is None and not commands:
        return Check(
            "rights",
            "warning",
            f"cannot tell: {finding}, and may have the right to some networks",
            "name the network: rush-async doctor NETWORK",
        )
    return Check("rights", "bad", finding, acl_remedy(network_id or ""))


def check_heartbeats(network_id: str, leases: Sequence[LeaseEntry]) -> Check:
    """Judges the leases of the workers that count as alive."""
    name = "heartbeats"
    expired = sorted((lease for lease in leases if lease.left < 0), key=lambda lease: lease.left)
    n_workers = sum(len(lease.workers) for lease in leases)
    if not n_workers:
        return Check(name, "ok", f"network {network_id!r} has no worker that is alive")
    if dead := [worker for lease in expired for worker in lease.workers]:
        shown, n = ", ".join(dead[:3]) + (", ..." if len(dead) > 3 else ""), counted(n_workers, "worker")
        return Check(
            *(name, "warning", f"the leases of {len(dead):,} of {n} expired, up to {age(-expired[0].left)} ago: {shown}"),
            "any client that stays connected finds them lost within its heartbeat_expire and heartbeat_period; "
            f"`rush-async kill {network_id} WORKER` ends one at once, and its tasks fail",
        )
    settings = sorted({lease.times for lease in leases if lease.times is not None}, key=itemgetter(1, 0))
    beats = ", ".join(f"every {period:g} s, lost after {expire:g} s" for expire, period in settings)
    return Check(name, "ok", f"{counted(n_workers, 'worker')} alive; heartbeats {beats or 'none (shared workers)'}")


def _size(n_bytes: int) -> str:
    size, unit = float(n_bytes), "B"
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if size < 1024 or unit == "TB":
            break
        size /= 1024
    return f"{size:.3g} {unit}" if size < 1000 else f"{size:.0f} {unit}"
