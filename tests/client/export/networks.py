"""A network with all that an export holds, and what the server keeps of one."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np

from rush_async import Rush, RushWorker
from rush_async.store.keys import NetworkKeys
from rush_async.store.log_entry import LogEntry

VALUES: dict[str, Any] = {
    "nothing": None,
    "flag": True,
    "big": 2**70,
    "float": -math.inf,
    "nan": math.nan,
    "text": "Füße\0\n",
    "bytes": b"\xff\0",
    "list": [1, [2.5, None], {"a": {}}],
    "decimal": Decimal("1.10"),
    "uuid": UUID(int=7),
    "moment": datetime(2026, 2, 1, 12, tzinfo=UTC),
    "naive": datetime(2026, 2, 1, 12),  # noqa: DTZ001 - naive datetimes stay naive
    "date": date(2026, 2, 1),
    "time": time(3, 4, 5),
    "delta": timedelta(days=-1, microseconds=1),
    "numpy": np.float64(0.25),
    "array": np.arange(3),
    "record": "the name of a column of the file",
}


async def fill(rush: Rush, worker: RushWorker) -> dict[str, str]:
    """Fills a network with tasks in all states, reports, a log, and shared state. Returns some keys by name."""
    await rush.push_finished_tasks([VALUES, {"x": 1.0}], [VALUES, {"y": 0.5}], yss_extra=[{"note": "a"}, None])
    plain, again, cancelled, unique = await rush.push_tasks(
        [{"x": x} for x in range(4)], xss_extra=[VALUES, None, None, None], retries=2, unique=["x"]
    )
    assert plain
    assert again
    assert cancelled
    assert unique
    task = await worker.pop_task()
    assert task is not None
    assert task.key == plain
    await task.report({"loss": 0.5, "at": "a name that is taken"})
    await task.report({"loss": 1})
    await rush.set_task_attrs(plain, VALUES)
    (lost,) = await worker.push_running_tasks([{"x": 10}])
    try:
        raise ArithmeticError("as it was raised")
    except ArithmeticError as error:
        failed = await rush.push_failed_tasks([{"x": 11}], error)
    await rush.cancel_tasks(cancelled)
    await rush.set_attrs(VALUES)
    await rush.claim("design", VALUES)
    await rush.ranking("rung 1: a").add(plain, 1.5)
    await rush.ranking("rung 2", maximize=True).add(lost, 0.1)
    entry = LogEntry("quiet_owl", "INFO", datetime(2026, 1, 1, tzinfo=UTC), "x", "a.b:1", "message")
    await rush._net.link.connection.ask("XADD", rush._net.keys.log, "*", "r", entry.packed())  # pyright: ignore[reportPrivateUsage]
    return {"running": plain, "queued": again, "cancelled": cancelled, "lost": lost, "failed": failed[0]}


def dump(raw: Any, network_id: str) -> dict[str, Any]:
    """All that the server keeps of a network, but what belongs to its clients and its number of events."""
    keys = NetworkKeys.of(network_id)
    meta = raw.hgetall(keys.meta)
    names = raw.hkeys(keys.rankings)
    return {
        "queue": raw.lrange(keys.queue, 0, -1),
        "queued": raw.hgetall(keys.queued),
        "running": raw.hgetall(keys.running),
        "finished": raw.lrange(keys.finished, 0, -1),
        "failed": raw.hgetall(keys.failed),
        "attributes": raw.hgetall(keys.attributes),
        "task_attributes": raw.hgetall(keys.task_attributes),
        "claims": raw.hgetall(keys.claims),
        "points": raw.hgetall(keys.points),
        "directions": raw.hgetall(keys.rankings),
        "rankings": {name: raw.zrange(keys.rankings.encode() + b":" + name, 0, -1, withscores=True) for name in names},
        "reports": raw.xrange(keys.reports),
        "log": raw.xrange(keys.log),
        "returned": raw.zrange(keys.returned, 0, -1),
        "meta": {name: meta.get(name) for name in (b"seed", b"next_index", b"next_number", b"reports", b"largest")},
    }
