"""The heartbeat thread, one for each server: it waits until a duty is due and attends to it, whatever event loops compute."""

from __future__ import annotations

import logging
import math
import threading
import time
from typing import Protocol

import anyio.to_thread

from rush_async.config import RushConfig
from rush_async.errors import RushConnectionError
from rush_async.wire.blocking import BlockingConnection
from rush_async.wire.topology import Topology

__all__ = ["RETRY_DELAY", "Duty", "HeartbeatThread", "NetworkView"]

logger = logging.getLogger(__name__)

RETRY_DELAY = 1.0  # seconds until a duty that failed is tried again, at the most
_JOIN_BLOCKING = 0.05  # seconds for which an event loop blocks until the thread has ended: mostly it ends at once
_JOIN_TIMEOUT = 2.0  # seconds for the thread to end where it is opening a connection, which cannot be interrupted


class NetworkView(Protocol):
    """The view of a network in one event loop, which the thread works for.

    Attributes:
        epoch: the epoch of the network as the event loop knows it.
        is_over: whether the event loop has ended without closing the view.
    """

    @property
    def epoch(self) -> int: ...

    @property
    def is_over(self) -> bool: ...


class Duty(Protocol):
    """What the thread does for one view of a network.

    Attributes:
        config: the server.
        slot: in a cluster, the slot of the network.
        due_at: when the duty is to be attended to, on the monotonic clock.
        retry_delay: seconds until it is tried again where the server could not be reached.
    """

    @property
    def config(self) -> RushConfig: ...

    @property
    def slot(self) -> int | None: ...

    @property
    def due_at(self) -> float: ...

    @property
    def retry_delay(self) -> float: ...

    def attend(self, connection: BlockingConnection) -> bool:
        """Does what is due, in the thread; returns whether the duty continues."""
        ...


class HeartbeatThread:
    """The thread of one server, or of one slot of a cluster. It starts with its first duty and ends with its last."""

    _all: dict[tuple[RushConfig, int | None], HeartbeatThread] = {}  # noqa: RUF012 - one table a process
    _lock = threading.Lock()

    def __init__(self, config: RushConfig, slot: int | None) -> None:
        self._config = config
        self._slot = slot
        self._condition = threading.Condition()
        self._duties: dict[Duty, float] = {}  # each with the time before which it is not tried again
        self._is_attending = False
        self._connection = BlockingConnection(config, Topology(config, slot))
        self._thread = threading.Thread(target=self._run, name="rush_async heartbeat", daemon=True)

    @classmethod
    def add(cls, duty: Duty) -> HeartbeatThread:
        """Adds a duty to the thread of its server, which is started where there is none, and returns the thread."""
        with cls._lock:
            thread = cls._all.get((duty.config, duty.slot))
            if is_new := thread is None:
                thread = cls._all[duty.config, duty.slot] = cls(duty.config, duty.slot)
            with thread._condition:
                thread._duties[duty] = -math.inf
                thread._condition.notify()
            if is_new:
                thread._thread.start()
        return thread

    @classmethod
    def forget_all(cls) -> None:
        """Forgets the threads of the parent, in a forked child."""
        cls._all, cls._lock = {}, threading.Lock()

    def _forget(self) -> None:
        if self._all.get((self._config, self._slot)) is self:
            del self._all[self._config, self._slot]

    def wake(self) -> None:
        """Makes the thread look again at what is due."""
        with self._condition:
            self._condition.notify()

    async def remove(self, duty: Duty) -> None:
        """Removes a duty. With the last one the thread ends: a call under way is interrupted."""
        with self._lock, self._condition:
            self._duties.pop(duty, None)
            is_last = not self._duties
            if is_last:
                self._forget()
            is_attending = self._is_attending
            self._condition.notify()
        if is_last:
            if is_attending:
                self._connection.interrupt()
            self._thread.join(_JOIN_BLOCKING)
            if self._thread.is_alive():
                await anyio.to_thread.run_sync(self._thread.join, _JOIN_TIMEOUT)

    def _run(self) -> None:
        while (duty := self._next()) is not None:
            try:
                not_before = -math.inf if duty.attend(self._connection) else None
            except RushConnectionError as error:
                logger.debug("%s", error)
                not_before = time.monotonic() + duty.retry_delay
            except Exception:
                logger.exception("the heartbeat thread of %s failed and tries again", self._config.where)
                not_before = time.monotonic() + RETRY_DELAY
            with self._condition:
                self._is_attending = False
                if not_before is None:
                    self._duties.pop(duty, None)
                elif duty in self._duties:  # it was not removed meanwhile
                    self._duties[duty] = not_before
        self._connection.close()

    def _next(self) -> Duty | None:
        """Waits until a duty is due; returns None when no duty is left."""
        with self._lock, self._condition:
            if not self._duties:
                self._forget()
        with self._condition:
            while self._duties:
                due_at, duty = min(((self._due_at(each), each) for each in self._duties), key=lambda pair: pair[0])
                wait = due_at - time.monotonic()
                if wait <= 0:
                    self._is_attending = True
                    return duty
                self._condition.wait(min(wait, threading.TIMEOUT_MAX))
        return None

    def _due_at(self, duty: Duty) -> float:
        return max(duty.due_at, self._duties[duty])
