"""Hostile data: whatever another program writes under our keys, everything else stays readable, and reads end in time.

`RUSH_CHAOS_EXAMPLES=3000 python -m pytest tests/chaos/test_hostile_data.py` tries more.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncGenerator, Awaitable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rush_async import Rush, RushWorker
from rush_async.store.codec import new_packer
from rush_async.store.keys import NetworkKeys
from rush_async.store.log_entry import LogEntry
from tests.chaos.servers import SmallServer, small_server

__all__ = ["small_server"]

pytestmark = pytest.mark.timeout(200, method="thread")
T = TypeVar("T")

IN_TIME = 5.0
N_EXAMPLES = int(os.environ.get("RUSH_CHAOS_EXAMPLES", "100"))
STATES = ("queued", "running", "failed")


async def in_time(work: Awaitable[T]) -> T:
    async with asyncio.timeout(IN_TIME):
        return await work


class Network:
    """A network with two good tasks in each state, and what another program may write there."""

    def __init__(self, server: SmallServer, rush: Rush, worker: RushWorker) -> None:
        self.raw = server.raw
        self.rush = rush
        self.worker = worker
        self.keys = NetworkKeys.of(rush.network_id)
        self.good: dict[str, list[str]] = {}

    async def fill(self) -> None:
        rush, worker = self.rush, self.worker
        self.good["finished"] = await rush.push_finished_tasks([{"x": 1.5}, {"x": 2.5}], [{"y": 1}, {"y": 2}])
        self.good["failed"] = await rush.push_failed_tasks([{"x": 3.5}, {"x": 4.5}], "no")
        self.good["running"] = await worker.push_running_tasks([{"x": 5.5}, {"x": 6.5}])
        self.good["queued"] = await rush.push_tasks([{"x": 7.5}, {"x": 8.5}])

    def records(self, place: str) -> list[bytes]:
        """What the good tasks or workers have stored."""
        if place == "finished":
            return self.raw.lrange(self.keys.finished, 0, 1)  # type: ignore[return-value]
        return list(self.raw.hgetall(getattr(self.keys, place)).values())  # type: ignore[union-attr]

    def put(self, place: str, name: bytes, data: bytes) -> None:
        if place == "finished":
            self.raw.rpush(self.keys.finished, data)
        elif place == "log":
            self.raw.xadd(self.keys.log, {"r": data})
        else:
            self.raw.hset(getattr(self.keys, place), name, data)  # type: ignore[arg-type]
            if place == "queued":
                self.raw.rpush(self.keys.queue, name)


@asynccontextmanager
async def network_on(server: SmallServer) -> AsyncGenerator[Network]:
    async with Rush(config=server.config) as rush, RushWorker(rush.network_id, server.config) as worker:
        network = Network(server, rush, worker)
        await network.fill()
        yield network
        await rush.reset()


# What a hostile writer may put in place of a record. A seed decides how a good one is changed.
def mutate(record: bytes, seed: int) -> bytes:
    draw = random.Random(seed)
    data = bytearray(record)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(data) + 1)
        match draw.randrange(7):
            case 0:
                del data[at:]
            case 1:
                data[at:at] = draw.randbytes(draw.randint(1, 20))
            case 2 if data:
                data[at % len(data)] = draw.randrange(256)
            case 3:
                data[at : at + draw.randint(1, 12)] = b""
            case 4:
                data[at:at] = b"\xd7\xff\0\0\0\x08\0\0\0\x01"  # a timestamp of msgpack
            case 5:
                data[at:at] = b"\xdf\xff\xff\xff\xff"
            case _:
                data += data[:at]
    return bytes(data)


PLACES = ("queued", "running", "finished", "failed", "workers", "log")
SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=5)
NAMES: st.SearchStrategy[str | int] = st.text(max_size=3) | st.integers(0, 3)
VALUES: st.SearchStrategy[Any] = st.recursive(
    SCALARS | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=14) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=20,
)


def packed(value: Any) -> bytes:
    pack = new_packer().pack
    return b"".join(map(pack, value)) if isinstance(value, list) else pack(value)  # pyright: ignore[reportUnknownArgumentType]


JUNK: st.SearchStrategy[int | bytes] = st.integers(0, 2**32) | st.binary(max_size=60) | VALUES.map(packed)


async def read_everything(network: Network) -> None:
    rush, good = network.rush, network.good
    for state in ("queued", "running", "finished", "failed"):
        frame = await in_time(rush.fetch_tasks_with_state(state))
        assert set(good[state]) <= set(frame["keys"])
    assert set(good["finished"]) <= set((await in_time(rush.fetch_finished_tasks(times=True)))["keys"])
    keys = await in_time(rush.keys_with_state())
    for state, found in keys.items():
        assert set(good[state]) <= set(found)
    for state in good:
        assert [task.key for task in await in_time(rush.get_tasks(good[state])) if task] == good[state]
    assert network.worker.worker_id in set((await in_time(rush.worker_info()))["worker_id"])
    await in_time(rush.read_log())
    await in_time(rush.counts())
    await in_time(rush.wait_for_tasks(good["finished"] + good["failed"], need_workers=False))


def test_whatever_stands_among_records_all_good_ones_stay_readable(small_server: SmallServer) -> None:
    with asyncio.Runner() as runner:
        stage: Any = network_on(small_server)
        network: Network = runner.run(stage.__aenter__())

        @settings(
            max_examples=N_EXAMPLES,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
        )
        @given(st.sampled_from(PLACES), JUNK, st.sampled_from([b"odd", b"a b", b"\xff\xfe", b""]))
        def check(place: str, junk: int | bytes, name: bytes) -> None:
            if isinstance(junk, int):
                entry = LogEntry.of if place == "log" else None
                records = [b"\x96\xa1w\xa4INFO\xcb\0\0\0\0\0\0\0\0\xa1l\xa1c\xa1m"] if entry else network.records(place)
                junk = mutate(records[junk % len(records)], junk)
            network.put(place, name, junk)
            runner.run(read_everything(network))

        try:
            check()
            removed = runner.run(in_time(network.rush.remove_malformed_records()))
            assert removed > 0
            assert runner.run(in_time(network.rush.malformed_records())) == []
        finally:
            runner.run(stage.__aexit__(None, None, None))
