"""A probe of an event loop from another thread: whether it answers, or is blocked by what it computes."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time

__all__ = ["LoopProbe"]

_ANSWER_TIMEOUT = 0.02  # seconds in which an event loop that is not blocked answers


class LoopProbe:
    """Asks an event loop for a sign of life, one question at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._answered_at = self._asked_at = time.monotonic()
        self._answer = threading.Event()
        self._answer.set()

    def silence(self) -> float:
        """Asks the loop, unless a question is open, and returns the seconds since it last answered; 0 where it answers now."""
        if self._answer.is_set():
            self._answer, self._asked_at = threading.Event(), time.monotonic()
            with contextlib.suppress(RuntimeError):  # the loop has been closed
                self._loop.call_soon_threadsafe(self._take, self._answer)
        return 0.0 if self._answer.wait(_ANSWER_TIMEOUT) else time.monotonic() - self._answered_at

    def _take(self, answer: threading.Event) -> None:
        self._answered_at = time.monotonic()
        answer.set()

    @property
    def is_blocked(self) -> bool:
        """Whether the loop has not answered the last question."""
        return not self._answer.is_set()

    def is_blocked_for(self, seconds: float) -> bool:
        """Whether the loop has not answered a question that is older than `seconds`."""
        return self.is_blocked and time.monotonic() - self._asked_at > seconds
