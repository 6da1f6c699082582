"""What other programs wrote, or a restore of older data, neither hangs a client nor makes it spin nor stops others' work."""

from __future__ import annotations

import asyncio
import itertools
import struct
import time
from collections.abc import AsyncGenerator, Awaitable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from rush_async import (
    DecodeError,
    EventsMissed,
    Rush,
    RushConfig,
    RushError,
    RushWorker,
    Task,
    TaskReported,
    TasksQueued,
    WorkerLostError,
)
from rush_async.store.codec import to_msgpack
from rush_async.store.keys import NetworkKeys
from rush_async.store.points import point_of
from rush_async.store.records import encode_created, header
from rush_async.testing import wait_until
from tests.chaos.servers import SmallServer, small_server
from tests.proxy import Proxy

__all__ = ["small_server"]

# A client whose calls are never answered does not close, nor does its event loop: such a test ends with its process.
pytestmark = pytest.mark.timeout(30, method="thread")

T = TypeVar("T")

IN_TIME = 3.0  # seconds within which a call ends, whatever is in the database
FEW = 60  # commands that a few calls may take; what spins sends tens of thousands

KEYS = {
    "space": b"a b",
    "tab": b"a\tb",
    "newline": b"a\nb",
    "bar": b"a|b",
    "L": b"L",
    "empty": b"",
    "not_utf8": b"a\xff\xfeb",
    "long": b"k" * 300,
}


class Stage:
    """A network on a server of the test's own; its clients pass the proxy and share one connection.

    Attributes:
        raw: a plain client of the server.
        rush: the network's manager.
        worker: a worker in it.
        keys: where the network is in the database.
    """

    rush: Rush
    worker: RushWorker
    keys: NetworkKeys

    def __init__(self, server: SmallServer, proxy: Proxy, config: RushConfig) -> None:
        self.raw = server.raw
        self._proxy = proxy
        self._config = config.at(proxy.url)
        self._clients: list[Rush | RushWorker] = []

    @property
    def n_commands(self) -> int:
        """How many commands the clients have sent so far."""
        return len(self._proxy.commands)

    async def open_network(self) -> tuple[Rush, RushWorker]:
        """A manager of a new network and a worker in it."""
        rush = Rush(config=self._config)
        self._clients.append(rush)
        await in_time(rush.__aenter__())
        return rush, await self.open_worker(rush.network_id)

    async def open_worker(self, network_id: str | None = None) -> RushWorker:
        """A worker of a network, by default the test's."""
        worker = RushWorker(network_id or self.rush.network_id, self._config)
        self._clients.append(worker)
        await in_time(worker.__aenter__())
        return worker

    async def close(self) -> None:
        """Closes the clients, and fails where that takes too long: closing ends in its own time, even when it is cancelled."""

        async def close_all() -> None:
            for client in reversed(self._clients):
                await client.aclose()

        closing = asyncio.create_task(close_all())
        await asyncio.wait({closing}, timeout=2 * IN_TIME)
        assert closing.done(), "the clients do not close"
        await closing

    def write_queued(self, key: bytes, record: bytes) -> None:
        """Queues a task as another program does."""
        self.raw.hset(self.keys.queued, key, record)
        self.raw.rpush(self.keys.queue, key)


def record_of(key: bytes, xs: dict[str, Any]) -> bytes:
    """The record of a queued task, whatever bytes its key has."""
    stand_in = "?" * len(key)
    created = encode_created(stand_in, xs, None).replace(stand_in.encode(), key, 1)
    return header(created) + created + b"\xcb" + struct.pack(">d", time.time()) + b"\xce" + bytes(4)


async def in_time(call: Awaitable[T]) -> T:
    async with asyncio.timeout(IN_TIME):
        return await call


@asynccontextmanager
async def staged(server: SmallServer, directory: Path, **settings: Any) -> AsyncGenerator[Stage]:
    async with Proxy(str(server.config.url), directory) as proxy:
        stage = Stage(server, proxy, replace(server.config, **settings))
        try:
            stage.rush, stage.worker = await stage.open_network()
            stage.keys = NetworkKeys.of(stage.rush.network_id)
            yield stage
        finally:
            try:
                await stage.close()
            finally:
                server.raw.flushall()


async def pop(worker: RushWorker, timeout: float = 0.2) -> Task | DecodeError | None:
    """A task, None, or the error for bytes that cannot be read; any other error fails the test."""
    try:
        return await in_time(worker.pop_task(timeout))
    except DecodeError as error:
        return error


async def check_that_all_works(stage: Stage) -> None:
    """Calls of the same client and of another network of the same server are answered, and the worker is alive."""
    other, worker = await stage.open_network()
    await in_time(other.push_tasks([{"x": 1}]))
    assert isinstance(await pop(worker), Task)
    await in_time(stage.rush.counts())
    (key,) = await in_time(stage.worker.push_running_tasks([{"x": 1}]))
    assert await in_time(stage.worker.finish_tasks(key, [{"y": 1}])) == [key]
    assert stage.worker.worker_id.encode() in stage.raw.hkeys(stage.keys.alive)


# Keys of other programs.


@pytest.mark.parametrize("timeout", [0, 0.2])
@pytest.mark.parametrize("name", KEYS)
async def test_a_task_with_an_odd_key_is_popped_or_named_in_an_error_and_the_next_one_is_popped(
    name: str, timeout: float, small_server: SmallServer, directory: Path
) -> None:
    async with staged(small_server, directory) as stage:
        stage.write_queued(KEYS[name], record_of(KEYS[name], {"x": "odd"}))
        (good,) = await in_time(stage.rush.push_tasks([{"x": "good"}]))
        popped = [await pop(stage.worker, timeout)]
        popped.append(await pop(stage.worker, timeout))
        assert good in [task.key for task in popped if isinstance(task, Task)]
        for task in popped:
            assert not isinstance(task, Task) or task.xs == {"x": "good" if task.key == good else "odd"}
        if None in popped:  # the odd one is not lost without a word
            assert stage.raw.hexists(stage.keys.queued, KEYS[name]) or stage.raw.hexists(stage.keys.failed, KEYS[name])
        await check_that_all_works(stage)


@pytest.mark.parametrize("name", KEYS)
async def test_merged_pops_are_all_answered_when_one_takes_a_task_with_an_odd_key(
    name: str, small_server: SmallServer, directory: Path
) -> None:
    async with staged(small_server, directory) as stage:
        second, third = await stage.open_worker(), await stage.open_worker()
        stage.write_queued(KEYS[name], record_of(KEYS[name], {"x": "odd"}))
        good = await in_time(stage.rush.push_tasks([{"x": 1}, {"x": 2}]))
        popped: list[Task | DecodeError | None] = []
        for _ in range(2):
            popped += await asyncio.gather(*[pop(worker, 0) for worker in (stage.worker, second, third)])
        keys = [task.key for task in popped if isinstance(task, Task)]
        assert set(good) <= set(keys)
        assert len(set(keys)) == len(keys)
        await check_that_all_works(stage)


@pytest.mark.parametrize("name", KEYS)
async def test_other_calls_on_a_queue_with_an_odd_key_end_in_time(
    name: str, small_server: SmallServer, directory: Path
) -> None:
    async with staged(small_server, directory) as stage:
        good = await in_time(stage.rush.push_tasks([{"x": 1}, {"x": 2}]))
        stage.write_queued(KEYS[name], record_of(KEYS[name], {"x": "odd"}))
        assert await in_time(stage.rush.cancel_tasks(good[0])) == [good[0]]
        for call in (stage.rush.get_tasks(good), stage.rush.keys_with_state(), stage.rush.empty_queue()):
            with suppress(DecodeError):
                await in_time(call)
        (next_one,) = await in_time(stage.rush.push_tasks([{"x": 3}]))
        popped = [await pop(stage.worker), await pop(stage.worker)]
        assert next_one in [task.key for task in popped if isinstance(task, Task)]
        await check_that_all_works(stage)


@pytest.mark.parametrize("epoch", ["abc", "", "1.5", "-"])
async def test_an_epoch_that_is_no_number_is_an_error_for_every_caller(
    epoch: str, small_server: SmallServer, directory: Path
) -> None:
    async with staged(small_server, directory) as stage:
        await in_time(stage.rush.push_tasks([{"x": 1}]))
        was = stage.raw.hget(stage.keys.meta, "epoch")
        stage.raw.hset(stage.keys.meta, "epoch", epoch)
        try:
            calls = [stage.rush.push_tasks([{"x": 2}]), stage.rush.push_tasks([{"x": 3}]), stage.worker.pop_task(0)]
            errors = await in_time(asyncio.gather(*calls, return_exceptions=True))
            assert all(isinstance(error, RushError) and not isinstance(error, WorkerLostError) for error in errors), errors
        finally:
            stage.raw.hset(stage.keys.meta, "epoch", was)
        await check_that_all_works(stage)
        assert isinstance(await pop(stage.worker), Task)


# Records of other programs.

MALFORMED = {
    "empty": b"",
    "too_short": b"\0\0\0",
    "header_alone": b"\0\0\0\0\0\0",
    "created_beyond_its_end": b"\0\0" + struct.pack(">I", 10_000) + record_of(b"bad", {"x": 1})[6:],
    "created_of_4_gib": b"\0\0\xff\xff\xff\xff" + record_of(b"bad", {"x": 1})[6:],
    "no_msgpack": b"\0\0" + struct.pack(">I", 20) + b"\xc1" * 20,
}


CREATED = b"\0\0\0\0\0\3abc"  # the record of a task that has not started
CUT_SHORT = (CREATED, CREATED + b"\xc0", CREATED + b"\xa5", CREATED + b"\xd9", CREATED + b"\xc0\xc0\xc0", b"\0")


@pytest.mark.parametrize("name", MALFORMED)
async def test_a_malformed_record_keeps_no_worker_from_the_good_tasks(
    name: str, small_server: SmallServer, directory: Path
) -> None:
    async with staged(small_server, directory) as stage:
        second, third = await stage.open_worker(), await stage.open_worker()
        stage.write_queued(b"bad", MALFORMED[name])
        good = await in_time(stage.rush.push_tasks([{"x": x} for x in range(20)]))
        n_before = stage.n_commands
        popped, errors = list[str](), list[RushError]()

        async def work(worker: RushWorker) -> None:
            while len(errors) < 20:
                try:
                    task = await worker.pop_task(0.3)
                except WorkerLostError:
                    raise
                except RushError as error:
                    errors.append(error)
                else:
                    if task is None:
                        return
                    popped.append(task.key)
                    await worker.fail_tasks(task.key)

        async with asyncio.timeout(2 * IN_TIME):
            await asyncio.gather(*[work(worker) for worker in (stage.worker, second, third)])
        assert sorted(popped) == sorted(good)
        assert len(errors) <= 3, errors
        assert stage.n_commands - n_before < 20 * 5 + FEW
        raw, keys = stage.raw, stage.keys
        assert errors or any(raw.hexists(name, "bad") for name in (keys.queued, keys.running, keys.failed))
        await check_that_all_works(stage)


async def test_a_malformed_record_in_the_queue_does_not_keep_it_from_being_emptied(
    small_server: SmallServer, directory: Path
) -> None:
    async with staged(small_server, directory) as stage:
        stage.write_queued(b"bad", b"\0")
        good = await in_time(stage.rush.push_tasks([{"x": x} for x in range(3)]))
        n_before = stage.n_commands
        with suppress(DecodeError):
            await in_time(stage.rush.empty_queue())
        assert stage.n_commands - n_before < FEW
        left = {key.decode() for key in stage.raw.hkeys(stage.keys.queued)}
        assert not left & set(good)
        await check_that_all_works(stage)


@pytest.mark.parametrize("timeout", [0, 0.3])
async def test_a_queued_record_that_the_queue_does_not_list_makes_no_pop_spin(
    timeout: float, small_server: SmallServer, directory: Path
) -> None:
    async with staged(small_server, directory) as stage:
        await in_time(stage.rush.push_failed_tasks([{"x": 1}]))
        stage.raw.hset(stage.keys.queued, "lonely", record_of(b"lonely", {"x": "lonely"}))
        await in_time(stage.rush.counts())
        n_before = stage.n_commands
        for _ in range(2):
            task = await pop(stage.worker, timeout)
            assert task is None or (isinstance(task, Task) and task.key == "lonely")
        assert stage.n_commands - n_before < FEW
        (key,) = await in_time(stage.rush.push_tasks([{"x": 2}]))
        popped = [await pop(stage.worker, 0.3), await pop(stage.worker, timeout)]
        assert key in [task.key for task in popped if isinstance(task, Task)]
        await check_that_all_works(stage)


async def test_a_worker_that_waits_beside_an_unlisted_record_spends_no_commands(
    small_server: SmallServer, directory: Path
) -> None:
    """The record appears while two workers wait; the next push wakes one of them."""
    async with staged(small_server, directory) as stage:
        second = await stage.open_worker()
        waiting = [asyncio.create_task(worker.pop_task(1.0)) for worker in (stage.worker, second)]
        await in_time(stage.rush.push_failed_tasks([{"x": 1}]))
        stage.raw.hset(stage.keys.queued, "lonely", record_of(b"lonely", {"x": "lonely"}))
        n_before = stage.n_commands
        (key,) = await in_time(stage.rush.push_tasks([{"x": 2}]))
        tasks = await in_time(asyncio.gather(*waiting))
        assert key in [task.key for task in tasks if task is not None]
        assert stage.n_commands - n_before < FEW


async def test_malformed_records_hinder_neither_clearing_workers_nor_retrying_tasks_nor_resetting(
    small_server: SmallServer, directory: Path
) -> None:
    """In the hashes of running and failed tasks, of workers and of leases."""
    async with staged(small_server, directory) as stage:
        raw, keys = stage.raw, stage.keys
        running = await in_time(stage.worker.push_running_tasks([{"x": 1}]))
        failed = await in_time(stage.rush.push_failed_tasks([{"x": 1}, {"x": 2}], "bad"))
        for place, record in itertools.product((keys.running, keys.failed), CUT_SHORT):
            raw.hset(place, record, record)
        for worker, entry in ((b"none", b""), (b"word", b"running"), (b"\xff", b"clearing-lost \xc1")):
            raw.hset(keys.workers, worker, entry)
            raw.hset(keys.alive, worker, b"lease")
            raw.hset(keys.passing, worker, b"out")
        raw.hset(keys.processes, mapping={"lease": "1e999 nan nan", "other": b"\xff"})
        raw.zadd(keys.leases, {"lease": 1, "other": 2})
        await in_time(stage.rush.detect_lost_workers())
        with suppress(DecodeError):
            await in_time(stage.rush.cancel_tasks([str(record, "latin-1") for record in CUT_SHORT]))
        with suppress(DecodeError):
            await in_time(stage.rush.retry_tasks())
        assert set(failed) <= {key.decode("utf-8", "replace") for key in raw.hkeys(keys.queued)}
        await in_time(stage.rush.stop_workers(stage.worker.worker_id, mode="kill"))
        assert raw.hexists(keys.failed, running[0])
        await in_time(stage.rush.reset(workers=False))
        await in_time(stage.rush.reset())
        assert raw.keys("*") == []


META = ("epoch", "seq", "wire", "largest", "next_index", "next_number", "asks", "pace", "rules", "stop", "seed", "reports")


@pytest.mark.parametrize("name", META)
async def test_what_another_program_writes_into_meta_is_an_error_that_every_caller_gets(
    name: str, small_server: SmallServer, directory: Path
) -> None:
    """Nothing waits for ever, and nothing is half done: once the field is mended, all is as before."""
    async with staged(small_server, directory) as stage:
        raw, keys = stage.raw, stage.keys
        rush, worker = stage.rush, stage.worker
        await in_time(rush.push_tasks([{"x": x} for x in range(9)]))
        await in_time(worker.push_running_tasks([{"x": 1}]))
        was = raw.hget(keys.meta, name)

        async def listen() -> None:
            async with stage.worker.events(TasksQueued, TaskReported):
                pass

        for junk in (b"abc", b"\xff", b"1.5", b"9" * 40):
            raw.hset(keys.meta, name, junk)
            calls: list[Awaitable[Any]] = [rush.counts(), rush.push_tasks([{"x": 2}]), worker.pop_task(0), listen()]
            calls += [rush.fetch_finished_tasks(), rush.fetch_tasks_with_state("queued"), rush.detect_lost_workers()]
            calls += [rush.cancel_tasks("unknown"), rush.fetch_reports(), rush.stop_rules(), worker.set_attrs({"a": 1})]
            for result in await in_time(asyncio.gather(*calls, return_exceptions=True)):
                assert not isinstance(result, Exception) or isinstance(result, RushError), (junk, result)
            with suppress(RushError):
                await in_time(rush.cancel_tasks([key.decode() for key in raw.hkeys(keys.running)][:1]))
            assert (raw.hlen(keys.queued) + raw.hlen(keys.running) + raw.hlen(keys.failed)) >= 10
            raw.hdel(keys.meta, name) if was is None else raw.hset(keys.meta, name, was)
            stage.rush._net.position.stored_seed = None  # pyright: ignore[reportPrivateUsage]
        await check_that_all_works(stage)


@pytest.mark.parametrize("name", ["queue", "queued", "running", "finished", "failed", "calls", "alive"])
async def test_a_key_that_another_program_replaced_is_named_and_loses_no_task(
    name: str, small_server: SmallServer, directory: Path
) -> None:
    async with staged(small_server, directory) as stage:
        raw, keys, rush, worker = stage.raw, stage.keys, stage.rush, stage.worker
        queued = await in_time(rush.push_tasks([{"x": x} for x in range(6)]))
        running = await in_time(worker.push_running_tasks([{"x": 1}] * 3))
        await in_time(rush.push_failed_tasks([{"x": 2}]))
        await in_time(rush.push_finished_tasks([{"x": 3}], [{"y": 3}]))
        key = getattr(keys, name)
        raw.rename(key, "aside")
        raw.set(key, "junk")
        calls: list[Awaitable[Any]] = [worker.pop_task(0), worker.pop_task(key=queued[2]), rush.push_tasks([{"x": 4}])]
        calls += [worker.finish_tasks(running[0], [{"y": 1}]), worker.fail_tasks(running[1]), rush.retry_tasks()]
        calls += [
            rush.cancel_tasks([queued[1], running[2]]),
            rush.empty_queue(),
            rush.fetch_tasks(),
            rush.detect_lost_workers(),
        ]
        for call in calls:
            (result,) = await asyncio.gather(in_time(call), return_exceptions=True)
            assert not isinstance(result, Exception) or (isinstance(result, DecodeError) and key in str(result)), result
        raw.rename("aside", key)
        counts = await in_time(rush.counts())
        assert sum(counts) in (11, 12), counts
        known = {*raw.hkeys(keys.queued), *raw.hkeys(keys.running), *raw.hkeys(keys.failed)}
        assert sum(counts) - len(known) == raw.llen(keys.finished)
        assert {task.encode() for task in queued} <= known
        listed = set(raw.lrange(keys.queue, 0, -1))
        assert set(raw.hkeys(keys.queued)) <= listed


# Older data.


def snapshot(stage: Stage) -> dict[bytes, bytes]:
    return {key: stage.raw.dump(key) for key in stage.raw.keys("*")}


def restore(stage: Stage, kept: dict[bytes, bytes]) -> None:
    """Puts the server back to where it was, in one step, as its restart from an older snapshot does."""
    with stage.raw.pipeline() as pipeline:
        for key in stage.raw.keys("*"):
            pipeline.delete(key)
        for key, value in kept.items():
            pipeline.restore(key, 0, value)
        pipeline.execute()


@pytest.mark.parametrize("timeout", [0, 0.3])
async def test_pops_after_the_list_of_the_queue_was_deleted_end_in_time(
    timeout: float, small_server: SmallServer, directory: Path
) -> None:
    async with staged(small_server, directory) as stage:
        await in_time(stage.rush.push_tasks([{"x": x} for x in range(5)]))
        stage.raw.delete(stage.keys.queue)
        n_before = stage.n_commands
        for _ in range(2):
            assert not isinstance(await pop(stage.worker, timeout), DecodeError)
        assert stage.n_commands - n_before < FEW
        (key,) = await in_time(stage.rush.push_tasks([{"x": 2}]))
        assert (await stage.rush.get_tasks(key))[0] is not None
        popped = [await pop(stage.worker, 0.3) for _ in range(7)]
        assert key in [task.key for task in popped if isinstance(task, Task)]
        await check_that_all_works(stage)


@pytest.mark.parametrize("timeout", [0, 0.3])
async def test_pops_end_in_time_when_the_server_went_back_to_an_empty_queue(
    timeout: float, small_server: SmallServer, directory: Path
) -> None:
    """The client counts five queued tasks that the server never saw after its restore."""
    async with staged(small_server, directory) as stage:
        await in_time(stage.rush.push_failed_tasks([{"x": 1}]))
        await pop(stage.worker, 0.05)  # from here on the worker counts what is queued
        kept = snapshot(stage)
        for x in range(5):
            await in_time(stage.rush.push_tasks([{"x": x}]))
        await in_time(stage.rush.wait_until(lambda counts: counts.queued == 5))
        restore(stage, kept)
        n_before = stage.n_commands
        for _ in range(2):
            assert await pop(stage.worker, timeout) is None
        assert stage.n_commands - n_before < FEW
        (key,) = await in_time(stage.rush.push_tasks([{"x": 2}]))
        popped = [await pop(stage.worker, 0.3), await pop(stage.worker, 0.3)]
        assert key in [task.key for task in popped if isinstance(task, Task)]
        assert (await in_time(stage.rush.counts())).queued == 0
        await check_that_all_works(stage)


async def test_a_client_counts_and_pops_what_the_server_has_after_it_went_back(
    small_server: SmallServer, directory: Path
) -> None:
    async with staged(small_server, directory) as stage:
        keys = await in_time(stage.rush.push_tasks([{"x": x} for x in range(3)]))
        kept = snapshot(stage)
        for _ in keys:
            task = await pop(stage.worker, 0.3)
            assert isinstance(task, Task)
            assert await in_time(stage.worker.finish_tasks(task.key, [{"y": 1}])) == [task.key]
        restore(stage, kept)
        assert (await in_time(stage.rush.counts())).queued == 3
        n_before = stage.n_commands
        popped = [await pop(stage.worker, 0.3) for _ in range(4)]
        assert [task.key for task in popped if isinstance(task, Task)] == keys
        assert popped[-1] is None
        assert stage.n_commands - n_before < FEW
        await check_that_all_works(stage)


async def test_a_number_of_events_that_went_back_freezes_no_counter(small_server: SmallServer, directory: Path) -> None:
    async with staged(small_server, directory) as stage:
        await in_time(stage.rush.push_tasks([{"x": x} for x in range(3)]))
        for x in range(20):
            await in_time(stage.rush.push_failed_tasks([{"x": x}]))
        stage.raw.hset(stage.keys.meta, "seq", 1)
        await in_time(stage.rush.push_tasks([{"x": 3}]))
        await in_time(stage.rush.wait_until(lambda counts: counts.queued == 4, timeout=IN_TIME))
        n_before = stage.n_commands
        popped = [await pop(stage.worker, 0.3) for _ in range(5)]
        assert sum(isinstance(task, Task) for task in popped) == 4
        assert popped[-1] is None
        assert stage.n_commands - n_before < FEW
        await check_that_all_works(stage)


OFTEN = {"heartbeat_period": 0.1, "heartbeat_expire": 5.0}


async def test_an_idle_client_notices_by_its_heartbeat_that_the_server_was_emptied(
    small_server: SmallServer, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with staged(small_server, directory, **OFTEN) as stage:
        keys = await in_time(stage.rush.push_tasks([{"x": x} for x in range(3)]))
        waiting = asyncio.create_task(stage.rush.wait_for_tasks(keys, need_workers=False))
        emptied = asyncio.create_task(stage.rush.wait_until(lambda counts: counts.total == 0))
        popping = [asyncio.create_task(stage.worker.pop_task(None)) for _ in range(4)]
        async with stage.rush.events(EventsMissed) as events:
            await in_time(asyncio.gather(*popping[:3]))
            await wait_until(lambda: stage.rush.n_running_tasks == 3)
            stage.raw.flushall()
            assert isinstance(await in_time(anext(events)), EventsMissed)
            with pytest.raises(KeyError):
                await in_time(waiting)
            await in_time(emptied)
            assert stage.rush.n_running_workers == 0
            (ended,) = await in_time(asyncio.gather(*popping[3:], return_exceptions=True))
            assert ended is None or isinstance(ended, WorkerLostError)
        assert "its server was emptied" in caplog.text
        await in_time(stage.rush.push_tasks([{"x": 1}]))


async def test_a_counter_recovers_from_an_event_with_a_forged_number(small_server: SmallServer, directory: Path) -> None:
    near = replace(small_server.config, retry_deadline=31.0)  # with a connection of its own
    async with staged(small_server, directory, **OFTEN) as stage, Rush(stage.rush.network_id, near) as other:
        await in_time(other.push_tasks([{"x": 1}]))
        waiting = asyncio.create_task(stage.rush.wait_until(lambda counts: counts.queued == 2))
        await wait_until(lambda: stage.rush.n_queued_tasks == 1)
        epoch = stage.raw.hget(stage.keys.meta, "epoch").decode()
        forged = [epoch, 10**9, time.time(), [7, 0, 0, 0, 1], None, [["Q", "", "k"]]]
        stage.raw.execute_command("SPUBLISH", stage.keys.events, to_msgpack(forged))
        await in_time(other.push_tasks([{"x": 2}]))
        await in_time(waiting)


async def test_nothing_runs_for_ever_on_a_server_that_went_back_in_time(
    small_server: SmallServer, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One task ended after the snapshot, one is still held, and one is of a worker that has left since."""
    async with staged(small_server, directory, **OFTEN) as stage:
        left = await stage.open_worker()
        ended, held = await in_time(stage.worker.push_running_tasks([{"x": 1}, {"x": 2}]))
        (theirs,) = await in_time(left.push_running_tasks([{"x": 3}]))
        kept = snapshot(stage)
        await in_time(stage.worker.finish_tasks(ended, [{"y": 1}]))
        await in_time(left.fail_tasks(theirs))
        await in_time(left.aclose())
        restore(stage, kept)
        await wait_until(lambda: {key.decode() for key in stage.raw.hkeys(stage.keys.running)} == {held}, timeout=IN_TIME)
        assert {key.decode() for key in stage.raw.hkeys(stage.keys.failed)} == {ended, theirs}
        assert stage.raw.hkeys(stage.keys.alive) == [stage.worker.worker_id.encode()]
        assert "went back" in caplog.text
        assert await in_time(stage.worker.finish_tasks(held, [{"y": 2}])) == [held]
        await check_that_all_works(stage)


async def test_points_that_another_program_wrote_refuse_pushes_with_unique_alone(
    small_server: SmallServer, directory: Path
) -> None:
    """What is no hash is an error that leaves nothing behind; a point of an unknown task is taken."""
    async with staged(small_server, directory) as stage:
        stage.raw.set(stage.keys.points, b"no hash")
        calls = [stage.rush.push_tasks([{"x": 1}], unique=True), stage.rush.push_tasks([{"x": 2}])]  # merged, then alone
        refused, pushed = await in_time(asyncio.gather(*calls, return_exceptions=True))
        assert isinstance(refused, RushError)
        assert isinstance(pushed, list)
        assert (await in_time(stage.rush.counts())).total == 1
        (task,) = await in_time(stage.rush.get_tasks([str(pushed[0])]))
        assert task is not None
        assert task.index == 0
        stage.raw.delete(stage.keys.points)
        stage.raw.hset(stage.keys.points, mapping={point_of({"x": 1}): b"\xff", b"short": b""})
        entries = await in_time(stage.rush.push_tasks([{"x": 1}, {"x": 3}], unique=True))
        assert [key is None for key in entries] == [True, False]
        await in_time(stage.rush.empty_queue())
        await check_that_all_works(stage)
