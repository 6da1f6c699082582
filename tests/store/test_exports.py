"""The reads of an export."""

from __future__ import annotations

from typing import Any

from rush_async import Rush
from rush_async.store.exports import ExportReads
from rush_async.store.keys import NetworkKeys


def reads_of(rush: Rush) -> ExportReads:
    network = rush._net  # pyright: ignore[reportPrivateUsage]
    return ExportReads(network.link.connection, network.keys)


async def test_what_the_clients_share_is_read_as_it_is_stored(rush: Rush, raw: Any) -> None:
    keys, reads = NetworkKeys.of(rush.network_id), reads_of(rush)
    await rush.set_attrs({"a": 1})
    await rush.claim("b", 2)
    await rush.ranking("low").add("key", 1.5)
    raw.hset(keys.reserved, mapping={"worker": "7 3", "foreign": "text"})
    raw.zadd(keys.returned, {"5": 5})
    raw.hset(keys.starts, "digest", "start")
    shared = await reads.shared()
    assert (shared.attributes, shared.claims, shared.directions) == ({b"a": b"\x01"}, {b"b": b"\x02"}, {b"low": b"min"})
    assert (shared.returned, shared.starts) == ([3, 5, 7], ["digest"])
    assert shared.meta[b"wire"] == b"1"
    assert await reads.ranking(b"low") == {b"key": b"1.5"}


async def test_a_hash_and_a_stream_are_read_in_steps_to_their_ends(rush: Rush, raw: Any) -> None:
    keys, reads = NetworkKeys.of(rush.network_id), reads_of(rush)
    raw.hset(keys.points, mapping={f"digest {at}": f"key {at}" for at in range(3_000)})
    found: dict[bytes, bytes] = {}
    n_steps = 0
    async for pairs in reads.pairs(keys.points):
        found |= pairs
        n_steps += 1
    assert found == raw.hgetall(keys.points)
    assert n_steps > 1
    with raw.pipeline() as pipeline:
        for at in range(6_000):
            pipeline.xadd(keys.log, {"r": f"entry {at}"})
        pipeline.xadd(keys.log, {"foreign": "entry"})
        pipeline.execute()
    chunks = [chunk async for chunk in reads.entries(keys.log)]
    assert [packed for chunk in chunks for _, packed in chunk] == [b"entry %d" % at for at in range(6_000)]
    assert len(chunks) > 1
    assert [chunk async for chunk in reads.entries(keys.reports)] == [[]]
