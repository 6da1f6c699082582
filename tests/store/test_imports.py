"""Imports in the database: a part of an export is one step, and what is there stays."""

from __future__ import annotations

from typing import Any

import pytest

from rush_async import DecodeError, NetworkStateError, Rush
from rush_async.store.codec import encode
from rush_async.store.export_item import ExportItem
from rush_async.store.imports import Import, ImportStore
from rush_async.store.keys import NetworkKeys
from rush_async.store.records import encode_created, encode_ended, encode_time, header, stamped


def store_of(rush: Rush) -> ImportStore:
    return rush._net.imports  # pyright: ignore[reportPrivateUsage]


async def begin(rush: Rush, archive: str = "an export") -> Import:
    return await store_of(rush).begin(archive, 7, 3, [2, 5])


def finished(key: str, index: int) -> bytes:
    return (
        stamped(encode_created(key, {"x": 1}, None), 1.0, index) + b"\xc0" * 3 + encode_ended({"y": 1}, None) + encode_time(2.0)
    )


def queued(key: str, index: int) -> bytes:
    created = encode_created(key, {"x": 1}, None)
    return header(created) + stamped(created, 1.0, index)


async def test_a_new_network_takes_the_numbers_of_the_export_over(rush: Rush, raw: Any) -> None:
    keys, begun = NetworkKeys.of(rush.network_id), await begin(rush)
    assert begun.keeps_indices
    meta = raw.hgetall(keys.meta)
    assert (meta[b"archive"], meta[b"next_index"], meta[b"next_number"]) == (b"an export", b"7", b"3")
    assert raw.zrange(keys.returned, 0, -1) == [b"2", b"5"]
    raw.zrem(keys.returned, "2")  # as where a worker has reserved it
    assert (await begin(rush)).keeps_indices
    assert raw.zrange(keys.returned, 0, -1) == [b"5"]
    assert not (await begin(rush, "another export")).keeps_indices


async def test_each_place_takes_what_it_does_not_have(rush: Rush, raw: Any) -> None:
    keys, begun = NetworkKeys.of(rush.network_id), await begin(rush)
    items = [
        ExportItem("finished", b"a", finished("a", 0)),
        ExportItem("queued", b"b", queued("b", 1)),
        ExportItem("failed", b"c", queued("c", 3) + b"the rest"),
        ExportItem("finished", b"a", finished("a", 0)),
        *[ExportItem(place, b"name", encode(1, "")) for place in ("attributes", "claims", "task_attributes", "points")],
        ExportItem("ranking", b"max a name: 1", b"key", b"-inf"),
        ExportItem("ranking", b"min a name: 1", b"other", b"1"),
        ExportItem("reports", b"5-1", b"report", b"9"),
        ExportItem("reports", b"5-1", b"report", b"9"),
        ExportItem("log", b"5-1", b"entry"),
    ]
    added = await begun.add(items)
    assert added == [True, True, True, False, True, True, True, True, True, False, True, False, True]
    assert await begun.add(items) == [False] * len(items)
    assert raw.lrange(keys.finished, 0, -1) == [finished("a", 0)]
    assert raw.lrange(keys.queue, 0, -1) == [b"b"]
    assert raw.hgetall(keys.queued) == {b"b": queued("b", 1)}
    assert raw.zrange(f"{keys.rankings}:a name: 1", 0, -1, withscores=True) == [(b"key", float("-inf"))]
    assert raw.xrange(keys.reports) == [(b"5-1", {b"r": b"report"})]
    assert raw.smembers(keys.imported_failed) == {b"c"}
    meta = raw.hgetall(keys.meta)
    assert (meta[b"imported"], meta[b"imported_at"], meta[b"imported_failed"], meta[b"reports"]) == (b"1", b"0 1", b"1", b"9")


async def test_runs_of_imported_tasks_are_joined_and_own_ones_between_left_out(rush: Rush, raw: Any) -> None:
    begun = await begin(rush)
    await begun.add([ExportItem("finished", b"a", finished("a", 0))])
    await begun.add([ExportItem("finished", b"b", finished("b", 1)), ExportItem("finished", b"c", finished("c", 2))])
    await rush.push_finished_tasks([{"x": 1}] * 2, [{"y": 1}] * 2)
    assert await begun.add([ExportItem("finished", b"d", finished("d", 3))]) == [True]
    assert await begun.add([ExportItem("finished", b"d", finished("d", 3))]) == [False]
    rules = rush._net.stop_rules  # pyright: ignore[reportPrivateUsage]
    assert await rules.imported_places() == [(0, 3), (5, 6)]
    assert await rush._net.best_output("y", maximize=True) == (1, 6)  # pyright: ignore[reportPrivateUsage]


async def test_finished_tasks_that_came_meanwhile_are_looked_at(rush: Rush) -> None:
    begun = await begin(rush)
    other = await begin(rush)
    items = [ExportItem("finished", b"%d" % at, finished(str(at), at)) for at in range(999)]
    long = ExportItem("finished", b"k" * 300, finished("k" * 300, 999))
    assert all(await other.add([*items, long]))
    assert await begun.add([items[0], long]) == [False, False]  # the script looks at a thousand
    await rush.push_finished_tasks([{"x": 1}] * 1_000, [{"y": 1}] * 1_000)
    assert await begun.add([items[1]]) == [False]  # and has the caller look at more
    assert len(begun.finished) >= 2_000


async def test_a_reset_in_the_middle_is_an_error(rush: Rush) -> None:
    begun = await begin(rush)
    await rush.reset()
    await rush.push_tasks([{"x": 1}])
    with pytest.raises(NetworkStateError, match="was reset while an export was imported there"):
        await begun.add([ExportItem("queued", b"b", queued("b", 1))])
    assert (await rush.counts()).total == 1


@pytest.mark.parametrize("name", ["queue", "attributes", "claims", "points", "reports", "log", "returned", "imported_failed"])
async def test_a_key_that_another_program_replaced_fails_a_part_before_anything_is_written(
    name: str, rush: Rush, raw: Any
) -> None:
    keys = NetworkKeys.of(rush.network_id)
    key = getattr(keys, name)
    raw.set(key, "junk")
    with pytest.raises(DecodeError, match="another program has put something else"):
        await begin(rush)
    assert raw.hgetall(keys.meta).keys() <= {b"token"}
    raw.delete(key)
    begun = await begin(rush)
    raw.set(key, "junk")
    with pytest.raises(DecodeError, match="another program has put something else"):
        await begun.add([ExportItem("finished", b"a", finished("a", 0)), ExportItem("queued", b"b", queued("b", 1))])
    assert (raw.llen(keys.finished), raw.hlen(keys.queued), raw.hexists(keys.meta, "imported")) == (0, 0, False)
    raw.delete(key)


async def test_tasks_get_the_next_indices_where_they_do_not_keep_theirs(rush: Rush) -> None:
    await rush.push_tasks([{"x": 0}])
    begun = await begin(rush)
    assert not begun.keeps_indices
    record, other = queued("b", 3), finished("c", 9)
    behind = other.index(b"\xce\0\0\0\x09") + 5
    items = [ExportItem("queued", b"b", record, b"%d" % len(record)), ExportItem("finished", b"c", other, b"%d" % behind)]
    assert await begun.add(items) == [True, True]
    assert [task and task.index for task in await rush.get_tasks(["b", "c"])] == [1, 2]
    (key,) = await rush.push_tasks([{"x": 0}])
    assert [task and task.index for task in await rush.get_tasks(key)] == [3]
