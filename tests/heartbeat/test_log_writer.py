"""The writer of logs: records arrive in order, in the epoch they belong to, and outlast a server that refuses them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from rush_async import Rush, RushConfig
from rush_async.heartbeat.log_writer import LogWriter
from rush_async.store.keys import NetworkKeys
from rush_async.store.leases import BlockingWorkerStore
from rush_async.testing import wait_until


@dataclass
class View:
    """What a writer asks of the view of its network."""

    epoch: int
    is_over: bool = False


@asynccontextmanager
async def writer_of(rush: Rush, view: View | None = None) -> AsyncGenerator[LogWriter]:
    await rush.push_tasks([{"x": 1}])
    writer = LogWriter(rush.config, keys_of(rush), view or View(epoch_of(rush)))
    writer.start()
    yield writer
    await writer.aclose()


def epoch_of(rush: Rush) -> int:
    return rush._net.epoch  # pyright: ignore[reportPrivateUsage]


def keys_of(rush: Rush) -> NetworkKeys:
    return NetworkKeys.of(rush.network_id)


def written(raw: Any, rush: Rush) -> list[bytes]:
    return [fields[b"r"] for _, fields in raw.xrange(keys_of(rush).log)]


async def test_records_are_written_soon_and_in_order(rush: Rush, raw: Any) -> None:
    records = [b"%d" % number for number in range(1200)]  # more than a call takes
    async with writer_of(rush) as writer:
        for record in records:
            writer.log(record)
        await wait_until(lambda: written(raw, rush) == records)


async def test_a_flush_that_is_cancelled_when_all_has_been_written_is_cancelled(rush: Rush) -> None:
    async with writer_of(rush) as writer:
        writer.log(b"record")
        flushing = asyncio.create_task(writer.flush())
        await asyncio.sleep(0)
        (done,) = writer._flushes  # pyright: ignore[reportPrivateUsage]
        done.set_result(None)
        flushing.cancel()
        await asyncio.wait([flushing])
        assert flushing.cancelled()


async def test_a_flush_returns_when_all_has_been_written(rush: Rush, raw: Any) -> None:
    async with writer_of(rush) as writer:
        await writer.flush()
        writer.log(b"a")
        await writer.flush()
        assert written(raw, rush) == [b"a"]
        await asyncio.to_thread(writer.log, b"b")
        await writer.flush()
        assert written(raw, rush) == [b"a", b"b"]


async def test_records_wait_until_a_full_server_takes_them(rush: Rush, raw: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rush_async.heartbeat.log_writer.RETRY_DELAY", 0.02)
    monkeypatch.setattr("rush_async.heartbeat.log_writer._FLUSH_TIMEOUT", 0.1)
    async with writer_of(rush) as writer:
        raw.config_set("maxmemory", 1)
        try:
            writer.log(b"a")
            await writer.flush()
            assert written(raw, rush) == []
        finally:
            raw.config_set("maxmemory", 0)
        await wait_until(lambda: written(raw, rush) == [b"a"])


async def test_records_of_a_network_that_was_deleted_are_dropped(rush: Rush, raw: Any) -> None:
    async with writer_of(rush) as writer:
        await rush.reset()
        writer.log(b"a")
        await writer.flush()
        await rush.push_tasks([{"x": 1}])
        assert written(raw, rush) == []


async def test_records_wait_until_the_event_loop_has_learnt_of_a_reset(
    rush: Rush, raw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rush_async.heartbeat.log_writer._FLUSH_TIMEOUT", 0.2)
    await rush.push_tasks([{"x": 1}])
    view = View(epoch_of(rush) - 1)
    async with writer_of(rush, view) as writer:
        writer.log(b"a")
        await writer.flush()
        assert written(raw, rush) == []
        view.epoch = epoch_of(rush)
        await wait_until(lambda: written(raw, rush) == [b"a"])


async def test_a_writer_whose_event_loop_has_ended_leaves_the_thread(rush: Rush) -> None:
    await rush.push_tasks([{"x": 1}])
    view = View(epoch_of(rush))
    async with writer_of(rush, view) as writer:
        view.is_over = True
        writer.log(b"a")
        await wait_until(lambda: not any(each.name == "rush_async heartbeat" for each in threading.enumerate()))


async def test_a_closed_writer_starts_no_thread(rush: Rush, rush_server: RushConfig) -> None:
    writer = LogWriter(rush_server, keys_of(rush), View(0))
    await writer.aclose()
    writer.start()
    writer.log(b"a")
    assert not any(each.name == "rush_async heartbeat" for each in threading.enumerate())


async def test_records_that_take_the_room_of_those_being_written_are_written_too(
    rush: Rush, raw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rush_async.heartbeat.log_writer._MAX_WAITING", 4)
    write = BlockingWorkerStore.log
    late = [b"4", b"5", b"6"]

    def log_late(store: BlockingWorkerStore, records: Sequence[bytes], epoch: int) -> int:
        found = write(store, records, epoch)
        while late:
            writer.log(late.pop(0))
        return found

    monkeypatch.setattr(BlockingWorkerStore, "log", log_late)
    async with writer_of(rush) as writer:
        for record in (b"0", b"1", b"2", b"3"):
            writer.log(record)
        await wait_until(lambda: len(written(raw, rush)) == 7)
        assert written(raw, rush) == [b"%d" % number for number in range(7)]
