"""The worker log: entries are kept in order, deleted by a reset, and checked when they are read."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from rush_async import Rush, RushWorker
from rush_async.store.keys import NetworkKeys
from rush_async.store.log_entry import LogEntry
from rush_async.testing import wait_until
from rush_async.worker.worker import membership_of


def entry_with(msg: str) -> LogEntry:
    return LogEntry("a", "INFO", datetime(2026, 1, 2, 3, 4, 5, 678_901, UTC), "x", "a.b:1", msg)


async def messages(rush: Rush) -> list[str]:
    return (await rush.read_log())["msg"].to_list()


async def has_logged(rush: Rush, msg: str) -> bool:
    return await messages(rush) == [msg]


async def test_a_malformed_entry_in_the_log_is_left_out(rush: Rush, raw: Any) -> None:
    key = NetworkKeys.of(rush.network_id).log
    raw.xadd(key, {"r": b"\xc1"})
    raw.xadd(key, {"r": b"\x91\x01"})
    raw.xadd(key, {"r": LogEntry("w", "INFO", datetime.now(UTC), "l", "c", "good").packed()})
    assert (await rush.read_log())["msg"].to_list() == ["good"]
    raw.delete(key)


async def test_entries_of_many_calls_are_read_in_order(rush: Rush) -> None:
    async with RushWorker(rush.network_id, rush.config) as worker:
        for n in range(2_345):
            membership_of(worker).log(entry_with(str(n)).packed())
    assert await messages(rush) == [str(n) for n in range(2_345)]


async def test_reading_continues_after_the_last_entry_read(rush: Rush) -> None:
    log = rush._net.worker_log  # pyright: ignore[reportPrivateUsage]
    assert await log.read() == ("0", [])
    for n in range(2):
        async with RushWorker(rush.network_id, rush.config) as worker:
            membership_of(worker).log(entry_with(str(n)).packed())
    last, entries = await log.read()
    assert [entry.msg for entry in entries] == ["0", "1"]
    assert await log.read(last) == (last, [])
    async with RushWorker(rush.network_id, rush.config) as worker:
        membership_of(worker).log(entry_with("2").packed())
    _, entries = await log.read(last)
    assert [entry.msg for entry in entries] == ["2"]


async def test_a_reset_deletes_the_log_and_a_late_record_does_not_bring_it_back(rush: Rush, raw: Any) -> None:
    async with RushWorker(rush.network_id, rush.config) as worker:
        membership_of(worker).log(entry_with("before").packed())
        await worker._net.log_writer.flush()  # pyright: ignore[reportPrivateUsage]
        assert raw.xlen(NetworkKeys.of(rush.network_id).log) == 1
        await rush._net.tasks.reset(workers=True)  # pyright: ignore[reportPrivateUsage]
        membership_of(worker).log(entry_with("too late").packed())
        await worker._net.log_writer.flush()  # pyright: ignore[reportPrivateUsage]
        assert raw.keys("*") == []


async def test_records_are_written_after_a_reset_of_the_tasks(rush: Rush) -> None:
    async with RushWorker(rush.network_id, rush.config) as worker:
        await rush.reset(workers=False)
        membership_of(worker).log(entry_with("after the reset").packed())
        await worker._net.log_writer.flush()  # pyright: ignore[reportPrivateUsage]
        await wait_until(lambda: has_logged(rush, "after the reset"))
