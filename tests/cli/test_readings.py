"""What the commands that look read of a network."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from rush_async import Rush, RushWorker
from rush_async.cli import readings
from rush_async.network.network import Network


async def test_the_rate_is_that_of_the_last_minute_or_of_the_last_tasks(rush: Rush, monkeypatch: pytest.MonkeyPatch) -> None:
    network: Network = rush._net  # pyright: ignore[reportPrivateUsage]
    await rush.push_tasks([{"x": 1}])
    now = await readings.server_time(network)
    assert abs(now - datetime.now(UTC)) < timedelta(minutes=1)
    assert (await readings.rate(network, now)).per_second == 0
    await rush.push_finished_tasks([{"x": x} for x in range(10)], [{"y": 1}] * 10)
    begun = network.position.epoch / 1e6
    assert await readings.rate(network, datetime.fromtimestamp(begun + 20, UTC)) == pytest.approx((0.5, 20), abs=1e-3)
    per_second, seconds = await readings.rate(network, datetime.fromtimestamp(begun + 3600, UTC))
    assert (per_second, seconds) == (0, 60)
    monkeypatch.setattr(readings, "_MOST_FINISHED", 5)
    per_second, seconds = await readings.rate(network, datetime.fromtimestamp(begun + 20, UTC))
    assert per_second * seconds == pytest.approx(5)
    assert seconds < 20


async def test_imported_tasks_are_no_part_of_the_rate(rush: Rush, tmp_path: Path) -> None:
    await rush.push_finished_tasks([{"x": 1}], [{"y": 1}])
    async with Rush(config=rush.config) as other:
        await other.import_archive(await rush.export(tmp_path / "a.zip"))
        network: Network = other._net  # pyright: ignore[reportPrivateUsage]
        assert (await readings.rate(network, await readings.server_time(network))).per_second == 0
        await other.reset()


async def test_failed_tasks_come_the_last_first(rush: Rush, raw: Any) -> None:
    network: Network = rush._net  # pyright: ignore[reportPrivateUsage]
    keys = [(await rush.push_failed_tasks([{"x": x}], "why"))[0] for x in range(3)]
    raw.hset(network.keys.failed, "broken", b"nonsense")
    found = await readings.read_failed(network)
    assert [task.key for task in found.tasks] == keys[::-1]
    assert found.is_whole
    assert not (await readings.read_failed(network, 1)).is_whole
    raw.hdel(network.keys.failed, "broken")


async def test_workers_come_with_what_they_run(rush: Rush, rush_worker: RushWorker) -> None:
    network: Network = rush._net  # pyright: ignore[reportPrivateUsage]
    keys = await rush_worker.push_running_tasks([{"x": 1}, {"x": 2}])
    (found,) = await readings.read_workers(network)
    assert (found.worker_id, found.state, found.failure) == (rush_worker.worker_id, "running", None)
    assert [task.key for task in found.tasks] == keys
    assert found.last_seen >= found.started_at
