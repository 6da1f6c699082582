"""The writer of logs: the heartbeat thread writes what workers log, so that no event loop waits for it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import deque

from rush_async.config import RushConfig
from rush_async.errors import RushConnectionError
from rush_async.heartbeat.thread import RETRY_DELAY, HeartbeatThread, NetworkView
from rush_async.store.keys import NetworkKeys
from rush_async.store.leases import BlockingWorkerStore
from rush_async.wire.blocking import BlockingConnection
from rush_async.wire.topology import slot_of

__all__ = ["LogWriter"]

logger = logging.getLogger(__name__)

_GATHERING = 0.1  # seconds for which records are gathered before they are written
_FLUSH_TIMEOUT = 2.0  # seconds that `flush` waits at the most
_MAX_WAITING = 10_000  # records kept while the server is away; older ones are dropped
_RECORDS_A_CALL = 500


class LogWriter:
    """Writes what the workers of one event loop log in one network: a duty of the heartbeat thread.

    Args:
        config: the server.
        keys: the keys of the network.
        view: the event loop's view of the network.
    """

    def __init__(self, config: RushConfig, keys: NetworkKeys, view: NetworkView) -> None:
        self.config = config
        self.slot = slot_of(config, keys.meta)
        self.retry_delay = RETRY_DELAY
        self._keys = keys
        self._view = view
        self._loop = asyncio.get_running_loop()
        self._thread: HeartbeatThread | None = None
        self._store: BlockingWorkerStore | None = None
        self._records: deque[bytes] = deque(maxlen=_MAX_WAITING)
        self._flushes: list[asyncio.Future[None]] = []
        self._write_at = math.inf
        self._is_closed = False

    # in the event loop

    def start(self) -> None:
        """Joins the heartbeat thread of the server, before the first record is logged."""
        if self._thread is None and not self._is_closed:
            self._thread = HeartbeatThread.add(self)

    def log(self, record: bytes) -> None:
        """Takes a packed log record, from any thread. It is written soon."""
        self._records.append(record)
        if self._write_at == math.inf:
            self._write_by(time.monotonic() + _GATHERING)

    async def flush(self) -> None:
        """Waits until what was logged has been written, for two seconds at the most."""
        if self._records:
            written: asyncio.Future[None] = self._loop.create_future()
            self._flushes.append(written)
            self._write_by(time.monotonic())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_FLUSH_TIMEOUT):  # `wait_for` of Python 3.11 may swallow a cancellation
                    await written

    async def aclose(self) -> None:
        """Leaves the thread. Records that have not been written are dropped."""
        self._is_closed = True
        if self._thread is not None:
            await self._thread.remove(self)

    def _write_by(self, at: float) -> None:
        self._write_at = at
        if self._thread is not None:
            self._thread.wake()

    # in the heartbeat thread

    @property
    def _is_over(self) -> bool:
        return self._is_closed or self._loop.is_closed() or self._view.is_over

    @property
    def due_at(self) -> float:
        """When records are to be written, on the monotonic clock."""
        return -math.inf if self._is_over else self._write_at

    def attend(self, connection: BlockingConnection) -> bool:
        """Writes the records; the duty ends with the event loop."""
        if self._is_over:
            return False
        if self._store is None:
            self._store = BlockingWorkerStore(connection, self._keys)
        self._write_at = math.inf  # before the records are read: one that is logged meanwhile is due again
        try:
            self._write(self._store)
        except RushConnectionError:
            self._write_at = time.monotonic()
            raise
        return True

    def _write(self, store: BlockingWorkerStore) -> None:
        records = self._records
        while records:
            batch = [records[at] for at in range(min(len(records), _RECORDS_A_CALL))]
            epoch = self._view.epoch
            found = store.log(batch, epoch)
            if found == 0:  # the network was deleted, with all that was logged in it
                records.clear()
            elif found == epoch:
                for record in batch:
                    if records and records[0] is record:  # a later one may have taken its room meanwhile
                        records.popleft()
            elif found != self._view.epoch:  # a reset that the event loop has not learnt of yet
                self._write_at = time.monotonic() + _GATHERING
                return
        flushes, self._flushes = self._flushes, []
        for written in flushes:
            with contextlib.suppress(RuntimeError):  # the loop has been closed
                self._loop.call_soon_threadsafe(_resolve, written)


def _resolve(written: asyncio.Future[None]) -> None:
    if not written.done():
        written.set_result(None)
