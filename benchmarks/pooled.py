"""The same scripts, keys, records and reads through redis-py's asyncio client and pool: one command a call, one call a task.

The reference for the library's own transport: the server does the same work, only the transport differs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import polars as pl
from redis.asyncio import BlockingConnectionPool, Redis

from rush_async import RushWorker
from rush_async.frames.finished import FinishedTable
from rush_async.store.keys import NetworkKeys, client_name
from rush_async.store.records import encode_created, encode_ended, header, task_key
from rush_async.store.scripts import Script
from rush_async.store.tasks import FINISH, PUSH

__all__ = ["Pooled", "PooledWorker"]


class Pooled:
    """A network through redis-py, shared by all workers of one process.

    Args:
        worker: a registered worker of ours, which owns the tasks.
        n: how many connections the pool may open.
    """

    def __init__(self, worker: RushWorker, n: int) -> None:
        url = worker.config.url
        assert url is not None
        self.keys = NetworkKeys.of(worker.network_id)
        self.worker_id = worker.worker_id
        self.client: Any = Redis(connection_pool=BlockingConnectionPool.from_url(url, max_connections=n, timeout=None))
        self.archive = FinishedTable()
        self.epoch = b"0"

    async def open(self) -> None:
        """Reads the epoch."""
        self.epoch = await self.client.hget(self.keys.meta, "epoch")

    async def aclose(self) -> None:
        """Closes the pool."""
        await self.client.aclose()
        await self.client.connection_pool.disconnect()

    async def fetch_finished_tasks(self) -> pl.DataFrame:
        """Reads only new records and decodes them once for all workers, as the library does."""
        start = len(self.archive)
        records = await self.client.lrange(self.keys.finished, start, -1)
        # Another coroutine may have read more records meanwhile.
        self.archive.extend(records[len(self.archive) - start :])
        return self.archive.frame()


@dataclass
class PooledWorker:
    """The calls of one coroutine, with call numbers of its own."""

    pooled: Pooled
    name: str = field(default_factory=client_name)
    number: int = 0

    async def _call(self, script: Script, *args: Any) -> Any:
        self.number += 1
        keys = [getattr(self.pooled.keys, name) for name in script.keys]
        head = (self.pooled.epoch, self.name, self.number)
        reply = await self.pooled.client.evalsha(script.digest, len(keys), *keys, *head, *args)
        return reply[8]

    async def push_running_task(self, xs: dict[str, Any]) -> str:
        """Pushes a running task and returns its key."""
        key = task_key()
        created = encode_created(key, xs, None)
        record = header(created) + created
        group = ("running", self.pooled.worker_id, "", "", "", 1)
        taken = await self._call(PUSH, "", *group, key, record, "")
        assert taken[0] == 1, taken
        return key

    async def finish_task(self, key: str, ys: dict[str, Any]) -> None:
        """Finishes a task."""
        mark = await self._call(FINISH, "finished", key, self.pooled.worker_id, encode_ended(ys, None))
        assert mark == [1], mark
