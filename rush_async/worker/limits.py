"""The limits of a worker's life: a time, a number of tasks, a time without a task. The first one it reaches asks it to stop."""

from __future__ import annotations

import asyncio
import logging
import threading
from dataclasses import dataclass
from typing import Any, Protocol

from rush_async.client.arguments import as_number, as_real

__all__ = ["Limiter", "Limits"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """When a worker stops by itself.

    Attributes:
        max_time: seconds after it has registered.
        max_tasks: how many tasks it has finished or failed.
        idle_timeout: seconds for which it waits, since its last task, without running one.
    """

    max_time: float | None = None
    max_tasks: int | None = None
    idle_timeout: float | None = None

    def __post_init__(self) -> None:
        for name in ("max_time", "idle_timeout"):
            object.__setattr__(self, name, _as_limit(getattr(self, name), name))
        if self.max_tasks is not None and as_number(self.max_tasks, "max_tasks") < 1:
            raise ValueError(f"max_tasks must be at least 1, not {self.max_tasks}: leave it out for no limit")


def _as_limit(seconds: Any, what: str) -> float | None:
    if seconds is not None and not 0 < as_real(seconds, what) <= threading.TIMEOUT_MAX:
        raise ValueError(f"{what} must be more than 0 seconds and finite, not {seconds}: leave it out for no limit")
    return None if seconds is None else as_real(seconds, what)


class LimitedWorker(Protocol):
    """A worker with limits."""

    @property
    def worker_id(self) -> str: ...

    @property
    def holds_tasks(self) -> bool: ...

    def request_stop(self) -> None: ...


class _Waits(set[asyncio.Future[bool]]):
    """The waits of a worker for a task or a place; the limiter hears when they begin and end."""

    def __init__(self, limiter: Limiter) -> None:
        super().__init__()
        self._limiter = limiter

    def add(self, element: asyncio.Future[bool], /) -> None:
        super().add(element)
        self._limiter.note_change()

    def discard(self, element: object, /) -> None:
        super().discard(element)
        self._limiter.note_change()


class Limiter:
    """Watches over the limits of one worker, by timers of its event loop.

    Args:
        limits: the limits.
        worker: is asked to stop.

    Attributes:
        waits: the worker's waits for a task or a place.
    """

    def __init__(self, limits: Limits, worker: LimitedWorker) -> None:
        self.waits = _Waits(self)
        self._limits = limits
        self._worker = worker
        self._n_ended = 0
        self._idle_left = limits.idle_timeout
        self._idle_timer: asyncio.TimerHandle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_over = False
        self._loop: asyncio.AbstractEventLoop

    def start(self) -> None:
        """Starts the time of the worker, which has registered."""
        self._loop = asyncio.get_running_loop()
        if (seconds := self._limits.max_time) is not None:
            self._timer = self._loop.call_later(seconds, self._time_is_up)

    @property
    def is_out_of_time(self) -> bool:
        """Whether `max_time` has passed, also while a loop computes and no timer runs. May be read in any thread."""
        return self._timer is not None and self._loop.time() >= self._timer.when()

    def note_ended(self, n: int) -> None:
        """Counts tasks that the worker has finished or failed."""
        self._n_ended += n
        if self._limits.max_tasks is not None and self._n_ended >= self._limits.max_tasks:
            self._end("max_tasks", f"has ended {self._n_ended:,} tasks")

    def note_change(self) -> None:
        """Is called when the worker began or ended a wait, or took or ended a task."""
        if self._limits.idle_timeout is None or self._is_over:
            return
        if self._idle_timer is not None:
            self._idle_left = self._idle_timer.when() - self._loop.time()
            self._idle_timer.cancel()
            self._idle_timer = None
        if self._worker.holds_tasks:
            self._idle_left = self._limits.idle_timeout
        elif self.waits:
            self._idle_timer = self._loop.call_later(max(self._idle_left or 0, 0), self._has_been_idle)

    def close(self) -> None:
        """Ends the timers: the worker takes no new task any more."""
        self._is_over = True
        for timer in (self._timer, self._idle_timer):
            if timer is not None:
                timer.cancel()

    def _time_is_up(self) -> None:
        self._end("max_time", f"has run for {self._limits.max_time:g} s")

    def _has_been_idle(self) -> None:
        self._end("idle_timeout", f"has waited {self._limits.idle_timeout:g} s without a task")

    def _end(self, limit: str, why: str) -> None:
        if not self._is_over:
            self._is_over = True
            logger.info("worker %s %s (%s): it takes no new task", self._worker.worker_id, why, limit)
            self._worker.request_stop()
