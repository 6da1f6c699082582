"""The networks of a server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from rush_async import Rush, RushConfig, RushWorker
from rush_async.network.listing import list_networks


async def test_every_network_is_listed_with_its_counts_workers_and_age(rush: Rush, rush_worker: RushWorker, raw: Any) -> None:
    await rush.push_tasks([{"x": 1}])
    await rush.stop("enough")
    others = [f"{rush.network_id} é", f"{rush.network_id}*"]
    for name in others:
        async with Rush(name, rush.config) as other:
            await other.push_tasks([{"x": 1}])
    newer = f"rush:{{{others[1]}}}:meta"
    raw.hset(newer, "wire", 99)
    foreign = ["rush:{\udcff}:meta".encode("utf-8", "surrogateescape"), "rush:{a}b}:meta", f"rush:{{{rush.network_id}x}}:meta"]
    raw.hset(foreign[0], "a", 1)
    raw.hset(foreign[1], "a", 1)
    raw.set(foreign[2], "no hash")
    found = {each.network_id: each for each in await list_networks(rush.config)}
    assert [name for name in found if name.startswith(rush.network_id)] == [rush.network_id, *sorted(others)]
    assert "a}b" not in found
    own, newest = found[rush.network_id], found[others[1]]
    assert own.position is not None
    assert (own.position.counts.queued, own.position.n_workers, str(own.position.stop)) == (1, 1, "manual: enough")
    assert own.created_at is not None
    assert timedelta(0) <= datetime.now(UTC) - own.created_at < timedelta(minutes=2)
    assert newest.position is None
    assert "wire version 99" in newest.problem
    raw.hset(newer, "wire", 1)
    raw.delete(*foreign)
    for name in others:
        async with Rush(name, rush.config) as other:
            await other.reset()


async def test_networks_are_found_by_the_beginning_of_their_names(rush: Rush) -> None:
    names = [f"{rush.network_id}{rest}" for rest in ("[*].a", "[*].b é", "x.c")]
    for name in names:
        async with Rush(name, rush.config) as other:
            await other.push_tasks([{"x": 1}])
    found = await list_networks(rush.config, f"{rush.network_id}[*].")
    assert [each.network_id for each in found] == names[:2]
    assert await list_networks(rush.config, f"{rush.network_id}?") == []
    for name in names:
        async with Rush(name, rush.config) as other:
            await other.reset()


async def test_networks_of_a_data_directory_are_listed(directory: Path) -> None:
    assert await list_networks(RushConfig(data_dir=directory)) == []
    async with Rush("net", data_dir=directory) as rush:
        await rush.push_tasks([{"x": 1}])
        (found,) = await list_networks(RushConfig(data_dir=directory))
    assert found.network_id == "net"
