"""The stream of reports: what is appended for whom, in which order with the ends of tasks, and how much is kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from rush_async import DecodeError, Rush, RushError, RushWorker
from rush_async.store.codec import decode
from rush_async.store.keys import NetworkKeys
from rush_async.store.numbering import WINDOW
from rush_async.store.report_entry import Report
from rush_async.store.reports import REPORT, Reporter, ReportStore
from rush_async.store.tasks import FINISH
from rush_async.testing import wait_until
from tests.proxy import Proxy, named

TIMEOUT = 10.0
VALUES = b"\x81\xa1x\x01"


class Heard(Reporter):
    """What a reporter heard."""

    def __init__(self) -> None:
        self.refusals: list[tuple[str, str]] = []

    def not_running(self, key: str) -> None:
        self.refusals.append(("not running", key))

    def not_alive(self, key: str) -> None:
        self.refusals.append(("not alive", key))

    def refused(self, key: str, error: Exception) -> None:
        self.refusals.append((type(error).__name__, key))


@pytest.fixture
async def far(rush: Rush, proxy: Proxy) -> AsyncIterator[RushWorker]:
    """A worker in the network of `rush` whose commands pass the proxy."""
    async with RushWorker(rush.network_id, rush.config.at(proxy.url)) as far:
        yield far


def store_of(client: Rush | RushWorker) -> ReportStore:
    return client._net.reports  # pyright: ignore[reportPrivateUsage]


async def quiet(client: Rush | RushWorker) -> None:
    await client._net.tasks.calls.quiet()  # pyright: ignore[reportPrivateUsage]


def stored(raw: Any, rush: Rush) -> list[Report]:
    """The reports that the server has."""
    return [Report.of(fields[b"r"]) for _, fields in raw.xrange(NetworkKeys.of(rush.network_id).reports)]


async def append(
    client: RushWorker, key: str, *, worker_id: str | None = None, values: bytes = VALUES, most: int = 1_000
) -> Heard:
    """Appends a report and waits for the answer; what the reporter heard."""
    heard = Heard()
    await store_of(client).append(heard, key, worker_id or client.worker_id, 1, values, most)
    await quiet(client)
    return heard


async def test_a_report_is_stored_with_its_task_worker_attempt_and_time(rush: Rush, rush_worker: RushWorker, raw: Any) -> None:
    (key,) = await rush_worker.push_running_tasks([{"x": 1}])
    heard = Heard()
    for step in (1, 2, 3):
        await store_of(rush_worker).append(heard, key, rush_worker.worker_id, step, VALUES, 1_000)
    await quiet(rush_worker)
    assert heard.refusals == []
    reports = stored(raw, rush)
    assert [(report.number, report.step) for report in reports] == [(1, 1), (2, 2), (3, 3)]
    now, _ = raw.time()
    for report in reports:
        assert (report.key, report.worker_id, report.attempt) == (key, rush_worker.worker_id, 1)
        assert abs(report.at - now) < TIMEOUT
        assert report.values == {"x": 1}
    assert raw.hget(NetworkKeys.of(rush.network_id).meta, "reports") == b"3"


async def test_the_attempt_of_a_task_that_was_queued_again_is_counted(rush: Rush, rush_worker: RushWorker, raw: Any) -> None:
    await rush.push_tasks([{"x": 1}])
    for _ in range(3):
        task = await rush_worker.pop_task(0)
        assert task is not None
        assert (await append(rush_worker, task.key)).refusals == []
        await rush_worker.fail_tasks(task.key)
        await rush.retry_tasks(task.key)
    assert [report.attempt for report in stored(raw, rush)] == [1, 2, 3]


async def test_a_report_of_a_task_that_the_worker_does_not_run_is_refused_and_changes_nothing(
    rush: Rush, rush_worker: RushWorker, raw: Any
) -> None:
    async with RushWorker(rush.network_id, rush.config) as other:
        (queued,) = await rush.push_tasks([{"x": 1}])
        (elsewhere,) = await other.push_running_tasks([{"x": 2}])
        (ended,) = await rush_worker.push_running_tasks([{"x": 3}])
        await rush_worker.finish_tasks(ended, [{"y": 1}])
        seq = raw.hget(NetworkKeys.of(rush.network_id).meta, "seq")
        for key in (queued, elsewhere, ended, "unknown"):
            assert (await append(rush_worker, key)).refusals == [("not running", key)]
        assert (await append(other, elsewhere, worker_id="unknown")).refusals == [("not alive", elsewhere)]
        assert stored(raw, rush) == []
        assert raw.hmget(NetworkKeys.of(rush.network_id).meta, "reports", "seq") == [None, seq]


async def test_a_worker_whose_name_begins_with_that_of_another_does_not_report_for_it(rush: Rush, raw: Any) -> None:
    async with (
        RushWorker(rush.network_id, rush.config, worker_id="owl") as owl,
        RushWorker(rush.network_id, rush.config, worker_id="owlet") as owlet,
    ):
        (key,) = await owlet.push_running_tasks([{"x": 1}])
        assert (await append(owl, key)).refusals == [("not running", key)]
        assert (await append(owlet, key)).refusals == []


async def test_reports_of_one_tick_go_in_one_call(far: RushWorker, proxy: Proxy, rush: Rush, raw: Any) -> None:
    keys = await far.push_running_tasks([{"x": x} for x in range(10)])
    proxy.commands.clear()
    heard = Heard()
    await asyncio.gather(*[store_of(far).append(heard, key, far.worker_id, 1, VALUES, 1_000) for key in keys])
    await quiet(far)
    assert proxy.count("EVALSHA", REPORT.digest) == 1
    assert [report.key for report in stored(raw, rush)] == keys


async def test_reports_leave_before_the_ends_that_were_issued_before_them(
    far: RushWorker, proxy: Proxy, rush: Rush, raw: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Requests of different scripts leave by script, and `finish` was used first."""
    (first,) = await far.push_running_tasks([{"x": 0}])
    await far.finish_tasks(first, [{"y": 0}])
    keys = await far.push_running_tasks([{"x": x} for x in range(5)])
    proxy.commands.clear()
    heard = Heard()
    end = asyncio.ensure_future(far.finish_tasks(keys, [{"y": 1}] * 5))
    await asyncio.gather(*[store_of(far).append(heard, key, far.worker_id, 1, VALUES, 1_000) for key in keys])
    assert await end == keys
    scripts = [each[1] for each in proxy.commands if named("EVALSHA")(each)]
    assert scripts == [REPORT.digest.encode(), FINISH.digest.encode()]
    assert heard.refusals == []
    assert [report.key for report in stored(raw, rush)] == keys
    assert caplog.messages == []


async def test_the_last_report_of_many_blocks_is_never_refused_for_their_own_end(
    rush: Rush, rush_worker: RushWorker, raw: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def evaluate(x: int) -> None:
        for _ in range(5):
            async with rush_worker.task({"x": x}) as task:
                await task.report({"x": x})
                task.ys = {"y": x}

    await asyncio.gather(*[evaluate(x) for x in range(64)])
    assert len(stored(raw, rush)) == 320
    assert caplog.messages == []


async def test_the_stream_keeps_the_last_reports(rush: Rush, rush_worker: RushWorker, raw: Any) -> None:
    (key,) = await rush_worker.push_running_tasks([{"x": 1}])
    heard = Heard()
    for step in range(1, 2_001):
        await store_of(rush_worker).append(heard, key, rush_worker.worker_id, step, VALUES, 300)
    await quiet(rush_worker)
    numbers = [report.number for report in stored(raw, rush)]
    assert 300 <= len(numbers) <= 500
    assert numbers == list(range(2_001 - len(numbers), 2_001))


async def test_a_report_takes_about_90_bytes(rush: Rush, rush_worker: RushWorker, raw: Any) -> None:
    (key,) = await rush_worker.push_running_tasks([{"x": 1}])
    for epoch in range(2_000):
        await rush_worker.report_tasks(key, [{"epoch": epoch, "loss": 1 / (epoch + 1)}])
    await quiet(rush_worker)
    assert raw.memory_usage(NetworkKeys.of(rush.network_id).reports, samples=0) / 2_000 < 100


async def test_a_late_report_does_not_bring_a_reset_network_back(rush: Rush, rush_worker: RushWorker, raw: Any) -> None:
    (key,) = await rush_worker.push_running_tasks([{"x": 1}])
    assert (await append(rush_worker, key)).refusals == []
    await rush.reset(workers=False)
    keys = NetworkKeys.of(rush.network_id)
    assert not raw.exists(keys.reports)
    assert not raw.hexists(keys.meta, "reports")
    assert (await append(rush_worker, key)).refusals == [("not running", key)]
    (key,) = await rush_worker.push_running_tasks([{"x": 1}])
    assert (await append(rush_worker, key)).refusals == []
    assert [report.number for report in stored(raw, rush)] == [1]


async def test_a_full_reset_deletes_the_reports(rush: Rush, raw: Any) -> None:
    async with RushWorker(rush.network_id, rush.config) as worker:
        (key,) = await worker.push_running_tasks([{"x": 1}])
        assert (await append(worker, key)).refusals == []
    await rush.reset()
    assert raw.keys("*") == []


async def test_a_full_server_refuses_reports_and_ends_tasks(rush: Rush, rush_worker: RushWorker, raw: Any) -> None:
    (key,) = await rush_worker.push_running_tasks([{"x": 1}])
    raw.config_set("maxmemory", 1)
    try:
        assert (await append(rush_worker, key)).refusals == [("ServerFullError", key)]
        assert await rush_worker.finish_tasks(key, [{"y": 1}]) == [key]
    finally:
        raw.config_set("maxmemory", 0)


async def test_an_entry_at_the_last_possible_place_refuses_reports_without_half_of_a_change(
    rush: Rush, rush_worker: RushWorker, raw: Any
) -> None:
    """Another program wrote it: no stream takes an entry behind it."""
    keys = NetworkKeys.of(rush.network_id)
    (key,) = await rush_worker.push_running_tasks([{"x": 1}])
    raw.xadd(keys.reports, {"r": "x"}, id="18446744073709551615-18446744073709551615")
    assert (await append(rush_worker, key)).refusals == [("RushError", key)]
    assert await rush_worker.finish_tasks(key, [{"y": 1}]) == [key]


async def test_an_entry_of_another_program_does_not_keep_reports_away(rush: Rush, rush_worker: RushWorker, raw: Any) -> None:
    keys = NetworkKeys.of(rush.network_id)
    (key,) = await rush_worker.push_running_tasks([{"x": 1}])
    raw.xadd(keys.reports, {"hello": "world"})
    assert (await append(rush_worker, key)).refusals == []
    chunk = await store_of(rush).read(b"-", 10)
    assert chunk.entries[0][1] == b""
    assert Report.of(chunk.entries[1][1]).number == chunk.last == 1


async def test_a_count_that_is_no_number_is_a_decode_error(rush: Rush, rush_worker: RushWorker, raw: Any) -> None:
    keys = NetworkKeys.of(rush.network_id)
    (key,) = await rush_worker.push_running_tasks([{"x": 1}])
    raw.hset(keys.meta, "reports", "many")
    assert (await append(rush_worker, key)).refusals == [("RushError", key)]
    assert not raw.exists(keys.reports)
    for read in (store_of(rush).read(b"-", 10), store_of(rush).read_last()):
        with pytest.raises(DecodeError, match="field reports"):
            await read


async def test_a_read_has_the_reports_that_were_handed_over_before(rush_worker: RushWorker) -> None:
    (key,) = await rush_worker.push_running_tasks([{"x": 1}])
    store = store_of(rush_worker)
    for step in range(1, 20):
        await store.append(Heard(), key, rush_worker.worker_id, step, VALUES, 1_000)
        chunk = await store.read(b"-", 100)
        assert len(chunk.entries) == chunk.last == step


async def test_a_report_and_the_end_behind_it_are_executed_in_order_after_the_server_lost_its_scripts(
    rush: Rush, rush_worker: RushWorker, raw: Any
) -> None:
    heard = Heard()
    for _ in range(2):
        (key,) = await rush_worker.push_running_tasks([{"x": 1}])
        raw.script_flush()
        await store_of(rush_worker).append(heard, key, rush_worker.worker_id, 1, VALUES, 1_000)
        assert await rush_worker.finish_tasks(key, [{"y": 1}]) == [key]
    assert heard.refusals == []
    assert len(stored(raw, rush)) == 2


async def test_reports_of_an_outage_arrive_once_and_in_order(far: RushWorker, proxy: Proxy, rush: Rush, raw: Any) -> None:
    (key,) = await far.push_running_tasks([{"x": 1}])

    async def report() -> None:
        for step in range(1, 501):
            await store_of(far).append(Heard(), key, far.worker_id, step, VALUES, 1_000)
            if step % 50 == 0:
                proxy.cut_all("commands")
            await asyncio.sleep(0)

    async with asyncio.timeout(TIMEOUT):
        await report()
        assert await far.finish_tasks(key, [{"y": 1}]) == [key]
    assert [report.step for report in stored(raw, rush)] == list(range(1, 501))


# messages


def subscribe(pubsub: Any, channel: str) -> None:
    """Returns once the server has confirmed the subscription: messages before it would be missed."""
    pubsub.ssubscribe(channel)
    while (message := pubsub.get_sharded_message(timeout=TIMEOUT)) is None or message["type"] != "ssubscribe":
        pass


async def test_a_message_has_what_was_reported_unless_it_is_large(rush: Rush, rush_worker: RushWorker, raw: Any) -> None:
    keys = NetworkKeys.of(rush.network_id)
    (key,) = await rush_worker.push_running_tasks([{"x": 1}])
    large = b"\x81\xa1x\xda" + (2_000).to_bytes(2, "big") + b"y" * 2_000
    with raw.pubsub() as pubsub:
        subscribe(pubsub, keys.report_events)
        for values in (VALUES, large):
            assert (await append(rush_worker, key, values=values)).refusals == []
        messages: list[Any] = []
        while len(messages) < 2:
            message = pubsub.get_sharded_message(timeout=TIMEOUT)
            if message is not None and message["type"] == "smessage":
                messages.append(decode(message["data"]))
    assert [message[0] for message in messages] == [raw.hget(keys.meta, "epoch").decode()] * 2
    assert [message[1][-1] for message in messages] == [{"x": 1}, None]
    assert [report.values for report in stored(raw, rush)] == [{"x": 1}, {"x": "y" * 2_000}]


async def test_many_reports_go_in_messages_of_about_a_kib(rush: Rush, rush_worker: RushWorker, raw: Any) -> None:
    keys = await rush_worker.push_running_tasks([{"x": x} for x in range(90)])
    with raw.pubsub() as pubsub:
        subscribe(pubsub, NetworkKeys.of(rush.network_id).report_events)
        heard = Heard()
        await asyncio.gather(
            *[store_of(rush_worker).append(heard, key, rush_worker.worker_id, 1, VALUES, 1_000) for key in keys]
        )
        await quiet(rush_worker)
        numbers: list[int] = []
        while len(numbers) < 90:
            message = pubsub.get_sharded_message(timeout=TIMEOUT)
            if message is not None and message["type"] == "smessage":
                assert len(message["data"]) < 1_100
                numbers += [entry[0] for entry in decode(message["data"])[1:]]
    assert numbers == list(range(1, 91))


# handing over


async def test_a_report_is_handed_over_without_waiting_for_the_server(
    far: RushWorker, proxy: Proxy, rush: Rush, raw: Any
) -> None:
    (key,) = await far.push_running_tasks([{"x": 1}])
    proxy.freeze(down=False)
    async with asyncio.timeout(TIMEOUT):
        for step in range(1, 51):
            await store_of(far).append(Heard(), key, far.worker_id, step, VALUES, 1_000)
    assert stored(raw, rush) == []
    proxy.thaw()
    await quiet(far)
    assert [report.step for report in stored(raw, rush)] == list(range(1, 51))


async def test_reports_wait_while_the_connection_takes_nothing(far: RushWorker, proxy: Proxy, rush: Rush, raw: Any) -> None:
    (key,) = await far.push_running_tasks([{"x": 1}])
    proxy.freeze(down=False)
    n_handed_over = 0

    async def report() -> None:
        nonlocal n_handed_over
        for step in range(1, 10_001):
            await store_of(far).append(Heard(), key, far.worker_id, step, VALUES, 100_000)
            await asyncio.sleep(0)  # so that each leaves as a call of its own
            n_handed_over += 1

    reporting = asyncio.ensure_future(report())
    await wait_until(lambda: far._net.tasks.calls.number >= 60)  # pyright: ignore[reportPrivateUsage]
    for _ in range(1_000):
        await asyncio.sleep(0)
    assert n_handed_over < 200
    proxy.thaw()
    async with asyncio.timeout(TIMEOUT * 3):
        await reporting
    await quiet(far)
    assert [report.step for report in stored(raw, rush)] == list(range(1, 10_001))


async def test_a_loop_that_only_reports_lets_others_run(rush_worker: RushWorker) -> None:
    (key,) = await rush_worker.push_running_tasks([{"x": 1}])
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.ensure_future(count())
    for step in range(1, 5_001):
        await store_of(rush_worker).append(Heard(), key, rush_worker.worker_id, step, VALUES, 1_000)
    counting.cancel()
    assert turns >= 10


async def test_a_report_raises_while_it_waits_for_a_server_that_is_gone(rush: Rush, proxy: Proxy, raw: Any) -> None:
    config = replace(rush.config.at(proxy.url), retry_deadline=0.3, connect_timeout=0.1, response_timeout=0.2)
    async with RushWorker(rush.network_id, config) as far:
        (key,) = await far.push_running_tasks([{"x": 1}])
        proxy.stop_listening()
        proxy.cut_all("commands")
        heard = Heard()
        with pytest.raises(RushError, match="gave up after"):
            async with asyncio.timeout(TIMEOUT):
                while True:
                    await store_of(far).append(heard, key, far.worker_id, 1, VALUES, 1_000)
        await proxy.listen()
        await wait_until(lambda: append_again(far, key))
    assert len(stored(raw, rush)) >= 1


async def append_again(far: RushWorker, key: str) -> bool:
    try:
        return (await append(far, key)).refusals == []
    except RushError:
        return False


@pytest.mark.parametrize("n_ticks", range(6))
async def test_a_cancelled_report_is_stored_once_or_never(
    far: RushWorker, rush: Rush, raw: Any, proxy: Proxy, n_ticks: int
) -> None:
    (key,) = await far.push_running_tasks([{"x": 1}])
    store, calls = store_of(far), far._net.tasks.calls  # pyright: ignore[reportPrivateUsage]
    proxy.freeze(down=False)
    try:
        for step in range(1, WINDOW + 1):  # until the connection takes no more
            await store.append(Heard(), key, far.worker_id, step, VALUES, 1_000)
            await asyncio.sleep(0)
        assert not calls._has_window()  # pyright: ignore[reportPrivateUsage]
        report = asyncio.ensure_future(store.append(Heard(), key, far.worker_id, WINDOW + 1, VALUES, 1_000))
        for _ in range(n_ticks):
            await asyncio.sleep(0)
        assert not report.done()
        report.cancel()
    finally:
        proxy.thaw()
    await asyncio.wait([report])
    assert report.cancelled()
    await quiet(far)
    assert [report.step for report in stored(raw, rush)] == list(range(1, WINDOW + 1))


@pytest.mark.parametrize("n_ticks", range(12))
async def test_a_report_that_is_cancelled_when_the_connection_takes_it_is_stored_once_or_never(
    far: RushWorker, rush: Rush, raw: Any, proxy: Proxy, n_ticks: int
) -> None:
    (key,) = await far.push_running_tasks([{"x": 1}])
    store = store_of(far)
    proxy.freeze(down=False)
    try:
        for step in range(1, WINDOW + 1):
            await store.append(Heard(), key, far.worker_id, step, VALUES, 1_000)
            await asyncio.sleep(0)
        report = asyncio.ensure_future(store.append(Heard(), key, far.worker_id, WINDOW + 1, VALUES, 1_000))
        await asyncio.sleep(0)
    finally:
        proxy.thaw()
    for _ in range(n_ticks):
        await asyncio.sleep(0)
    report.cancel()
    await asyncio.wait([report])
    await quiet(far)
    steps = [report.step for report in stored(raw, rush)]
    assert steps in (list(range(1, WINDOW + 1)), list(range(1, WINDOW + 2)))
    if not report.cancelled():
        assert WINDOW + 1 in steps


async def test_a_report_of_a_key_without_bytes_is_refused_alone(rush_worker: RushWorker, rush: Rush, raw: Any) -> None:
    (key,) = await rush_worker.push_running_tasks([{"x": 1}])
    heard, store = Heard(), store_of(rush_worker)
    await asyncio.gather(*[store.append(heard, name, rush_worker.worker_id, 1, VALUES, 1_000) for name in (key, "\ud800")])
    await quiet(rush_worker)
    assert heard.refusals == [("UnicodeEncodeError", "\ud800")]
    assert [report.key for report in stored(raw, rush)] == [key]
