"""The cache of reports: only new ones are read, trimmed ones are counted, and what another program wrote is left out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from rush_async import Rush, RushWorker
from rush_async.store.codec import to_msgpack
from rush_async.store.keys import NetworkKeys
from tests.proxy import Proxy


@pytest.fixture
async def far(rush: Rush, proxy: Proxy) -> AsyncIterator[Rush]:
    """A client of the network of `rush` whose commands pass the proxy."""
    async with Rush(rush.network_id, proxy.url) as far:
        yield far


async def report(worker: RushWorker, key: str, *values: Any) -> None:
    for value in values:
        await worker.report_tasks(key, [{"n": value}])
    await worker._net.tasks.calls.quiet()  # pyright: ignore[reportPrivateUsage]


async def numbers(client: Rush) -> list[Any]:
    frame = await client.fetch_reports()
    return frame["n"].to_list() if "n" in frame.columns else []


async def running(worker: RushWorker) -> str:
    (key,) = await worker.push_running_tasks([{"x": 1}])
    return key


async def test_only_new_reports_cross_the_network(rush_worker: RushWorker, far: Rush, proxy: Proxy) -> None:
    key = await running(rush_worker)
    await report(rush_worker, key, *range(3_000))
    assert await numbers(far) == list(range(3_000))
    assert proxy.count("XRANGE") > 1  # in chunks
    proxy.commands.clear()
    assert await numbers(far) == list(range(3_000))
    assert proxy.count("XRANGE") == 1
    await report(rush_worker, key, "new")
    last = far._net.report_cache._last  # pyright: ignore[reportPrivateUsage]
    assert last is not None
    chunk = await far._net.reports.read(last[0], 100)  # pyright: ignore[reportPrivateUsage]
    assert len(chunk.entries) == 2  # the last known one is read again
    with pytest.warns(UserWarning, match="column 'n' of the reports is text"):
        assert (await numbers(far))[-1] == "new"


async def test_clients_of_one_event_loop_share_reads(rush_worker: RushWorker, far: Rush, proxy: Proxy) -> None:
    await report(rush_worker, await running(rush_worker), 1, 2, 3)
    async with Rush(far.network_id, far.config) as other:
        proxy.commands.clear()
        found = await asyncio.gather(*[numbers(client) for client in (far, other) for _ in range(20)])
        assert found == [[1, 2, 3]] * 40
        assert proxy.count("XRANGE") == 2  # one that may have begun too early, and one for all who waited


async def test_a_reader_behind_the_trimming_gets_what_is_left_and_one_warning(
    rush_worker: RushWorker, rush: Rush, raw: Any, caplog: pytest.LogCaptureFixture
) -> None:
    key = await running(rush_worker)
    await report(rush_worker, key, 1, 2, 3)
    assert await numbers(rush) == [1, 2, 3]
    await report(rush_worker, key, 4, 5, 6, 7)
    raw.xtrim(NetworkKeys.of(rush.network_id).reports, maxlen=2, approximate=False)
    assert await numbers(rush) == [1, 2, 3, 6, 7]
    (message,) = caplog.messages
    assert message.startswith(f"2 reports of network '{rush.network_id}' were trimmed before they were read")
    await report(rush_worker, key, 8)
    assert await numbers(rush) == [1, 2, 3, 6, 7, 8]
    assert len(caplog.messages) == 1


async def test_a_stream_trimmed_up_to_what_was_read_has_no_gap(
    rush_worker: RushWorker, rush: Rush, raw: Any, caplog: pytest.LogCaptureFixture
) -> None:
    key = await running(rush_worker)
    await report(rush_worker, key, 1, 2, 3)
    assert await numbers(rush) == [1, 2, 3]
    await report(rush_worker, key, 4)
    raw.xtrim(NetworkKeys.of(rush.network_id).reports, maxlen=1, approximate=False)
    assert await numbers(rush) == [1, 2, 3, 4]
    assert caplog.messages == []


async def test_the_first_read_of_a_trimmed_stream_warns_too(
    rush_worker: RushWorker, rush: Rush, raw: Any, caplog: pytest.LogCaptureFixture
) -> None:
    await report(rush_worker, await running(rush_worker), *range(10))
    raw.xtrim(NetworkKeys.of(rush.network_id).reports, maxlen=4, approximate=False)
    assert await numbers(rush) == [6, 7, 8, 9]
    assert [message.split(" of ")[0] for message in caplog.messages] == ["6 reports"]
    rush.reset_cache()
    assert await numbers(rush) == [6, 7, 8, 9]
    assert len(caplog.messages) == 2


async def test_a_stream_that_was_deleted_leaves_what_was_read(rush_worker: RushWorker, rush: Rush, raw: Any) -> None:
    key = await running(rush_worker)
    await report(rush_worker, key, 1, 2)
    assert await numbers(rush) == [1, 2]
    raw.delete(NetworkKeys.of(rush.network_id).reports)
    assert await numbers(rush) == [1, 2]
    await report(rush_worker, key, 3)
    assert await numbers(rush) == [1, 2, 3]


@pytest.mark.parametrize("n_lost", [1, 2, 3])
async def test_reports_are_read_anew_after_the_server_lost_some(
    rush_worker: RushWorker, rush: Rush, raw: Any, n_lost: int, caplog: pytest.LogCaptureFixture
) -> None:
    keys = NetworkKeys.of(rush.network_id)
    key = await running(rush_worker)
    await report(rush_worker, key, 1, 2, 3)
    assert await numbers(rush) == [1, 2, 3]
    # As after a restore of older data: the last reports are gone, and others were appended.
    for name, _ in raw.xrevrange(keys.reports, count=n_lost):
        raw.xdel(keys.reports, name)
    raw.hset(keys.meta, "reports", 3 - n_lost)
    await report(rush_worker, key, 14, 15, 16, 17)
    assert await numbers(rush) == [*range(1, 4 - n_lost), 14, 15, 16, 17]
    assert "are not those read before: reading anew" in caplog.text


async def test_reports_that_the_server_lost_are_gone_though_none_was_appended(
    rush_worker: RushWorker, rush: Rush, raw: Any
) -> None:
    keys = NetworkKeys.of(rush.network_id)
    await report(rush_worker, await running(rush_worker), 1, 2)
    assert await numbers(rush) == [1, 2]
    raw.xdel(keys.reports, raw.xrevrange(keys.reports, count=1)[0][0])
    raw.hset(keys.meta, "reports", 1)
    assert await numbers(rush) == [1]


async def test_reports_are_gone_after_a_reset_also_for_a_client_that_heard_nothing(
    rush: Rush, far: Rush, rush_worker: RushWorker
) -> None:
    key = await running(rush_worker)
    await report(rush_worker, key, 1, 2)
    for client in (rush, far):
        assert await numbers(client) == [1, 2]
    await rush.reset(workers=False)
    await report(rush_worker, await running(rush_worker), 3, 4)
    for client in (rush, far):
        assert await numbers(client) == [3, 4]
    await rush.reset(workers=False)
    for client in (far, rush):
        assert (await client.fetch_reports()).shape == (0, 5)


HOSTILE = {
    "no value": {"r": b"\xc1"},
    "another field": {"hello": b"world"},
    "two fields": {"r": b"\x01", "s": b"\x02"},
    "empty": {"r": b""},
    "no report": {"r": to_msgpack("hello")},
    "number beyond the last": {"r": to_msgpack([10**15, "key", "owl", 1, 1, 1.5, {"n": 9}])},
    "nested values": {"r": to_msgpack([1, "key", "owl", 1, 1, 1.5, {"n": [9]}])},
    "not UTF-8": {"r": b"\x97\x01\xa1\xff" + to_msgpack("owl") + b"\x01\x01" + to_msgpack(1.5) + b"\x80"},
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_an_entry_of_another_program_is_left_out_with_one_warning(
    rush_worker: RushWorker, rush: Rush, raw: Any, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    stream = NetworkKeys.of(rush.network_id).reports
    key = await running(rush_worker)
    await report(rush_worker, key, 1)
    place = raw.xadd(stream, HOSTILE[name])
    raw.xadd(stream, HOSTILE[name])
    await report(rush_worker, key, 2)
    raw.xadd(stream, HOSTILE[name])
    for _ in range(2):
        assert await numbers(rush) == [1, 2]
        (message,) = caplog.messages
        assert f"network '{rush.network_id}': 3 entries of the stream {stream} are no reports" in message
        assert f"the first is {place.decode()}" in message
    await report(rush_worker, key, 3)
    assert await numbers(rush) == [1, 2, 3]
    assert len(caplog.messages) == 1


async def test_a_copy_of_a_report_does_not_make_readers_begin_again_for_ever(
    rush_worker: RushWorker, rush: Rush, raw: Any
) -> None:
    """Numbers of entries that another program wrote may fall; then the last one is trimmed."""
    stream = NetworkKeys.of(rush.network_id).reports
    key = await running(rush_worker)
    await report(rush_worker, key, 1, 2, 3)
    raw.xadd(stream, raw.xrange(stream)[2][1])
    raw.xadd(stream, raw.xrange(stream)[0][1])
    assert await numbers(rush) == [1, 2, 3, 3, 1]
    await report(rush_worker, key, 4)
    raw.xtrim(stream, maxlen=1, approximate=False)
    async with asyncio.timeout(5):
        assert await numbers(rush) == [1, 2, 3, 3, 1, 4]


async def test_large_reports_are_read_in_small_chunks(rush_worker: RushWorker, far: Rush, proxy: Proxy) -> None:
    key = await running(rush_worker)
    await report(rush_worker, key, *["x" * 100_000] * 30)
    frame = await far.fetch_reports()
    assert frame.height == 30
    await report(rush_worker, key, *["x" * 100_000] * 30)
    proxy.commands.clear()
    assert (await far.fetch_reports()).height == 60
    assert proxy.count("XRANGE") >= 3


async def test_a_read_whose_caller_is_cancelled_leaves_the_next_one_whole(
    rush_worker: RushWorker, far: Rush, proxy: Proxy
) -> None:
    key = await running(rush_worker)
    await report(rush_worker, key, *range(500))
    for n_ticks in range(12):
        reading = asyncio.ensure_future(far.fetch_reports())
        for _ in range(n_ticks):
            await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait([reading])
        await report(rush_worker, key, 500 + n_ticks)
    assert await numbers(far) == list(range(512))


async def test_a_cache_that_is_dropped_during_a_read_is_read_anew(rush_worker: RushWorker, far: Rush, proxy: Proxy) -> None:
    await report(rush_worker, await running(rush_worker), *range(500))
    reading = asyncio.ensure_future(numbers(far))
    for _ in range(3):
        await proxy.seen("XRANGE")
        far.reset_cache()
    assert await reading == list(range(500))


async def test_a_read_continues_after_a_reconnect(
    rush_worker: RushWorker, far: Rush, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    key = await running(rush_worker)
    await report(rush_worker, key, 1, 2)
    assert await numbers(far) == [1, 2]
    await report(rush_worker, key, 3)
    proxy.cut_all("commands")
    assert await numbers(far) == [1, 2, 3]
    assert "trimmed" not in caplog.text
