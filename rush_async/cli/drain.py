"""Signals of the program `rush-async`: the first lets workers finish their tasks, the second cancels them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import signal
import threading
import time
from types import FrameType
from typing import NoReturn

from rush_async.cli.streams import flush
from rush_async.worker.worker import Runner

__all__ = ["Drain"]

logger = logging.getLogger(__name__)

_ANSWER = 5.0  # seconds for the event loop to take the request to cancel the workers
_WORKER_END = 15.0  # seconds for cancelled workers to end; each of their steps is bounded
_THREAD_END = 5.0  # seconds for threads of the loops to end, after all workers, once the program is asked to end


class Drain:
    """Ends the program on a signal. A thread enforces the time limits, because a loop may block the event loop.

    Attributes:
        signal: the last signal, or None.
        has_cancelled: whether workers were cancelled.
        code: the exit code, once all workers have ended.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        # A signal may interrupt the handler of another one in the same thread: `put` of this queue is reentrant.
        self._steps: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._runner: Runner | None = None
        self._has_asked = False
        self._is_out_of_time = False
        self.signal: int | None = None
        self.has_cancelled = False
        self.code = 0

    def install(self) -> None:
        """Handles SIGTERM and SIGINT from here on."""
        before = {number: signal.signal(number, self._take_signal) for number in (signal.SIGTERM, signal.SIGINT)}

        def restore() -> None:  # a process that a loop forks has no such thread: signals end it by default
            for number, handler in before.items():
                signal.signal(number, handler)

        os.register_at_fork(after_in_child=restore)
        threading.Thread(target=self._watch, name="rush-async drain", daemon=True).start()

    def attend(self, runner: Runner) -> None:
        """Drains these workers on a signal; at once if a signal came before."""
        self._runner = runner
        self._loop = asyncio.get_running_loop()
        self._act()

    def end(self, code: int) -> None:
        """Sets the exit code once all workers have ended."""
        self.code = code
        with contextlib.suppress(OSError):  # its reader has gone, which must not change the exit code
            flush()
        self._steps.put("ended")

    def _take_signal(self, number: int, frame: FrameType | None) -> None:
        # A signal handler runs between any two instructions of the main thread, so it must not wait for a lock.
        self.signal = number
        if self._runner is not None:
            self._runner.note_stop()
        self._steps.put("signal")

    # in the event loop

    def _act(self) -> None:
        """Stops or cancels the workers, as signals and the deadline demand."""
        if self._runner is None:
            return
        if self.signal is not None and not self._has_asked:
            self._has_asked = True
            logger.info("asked to end by %s: workers finish their tasks", signal.Signals(self.signal).name)
            self._runner.stop()
        if self._is_out_of_time:
            self._steps.put("cancelling")
            if (unfinished := self._runner.unfinished) and not self.has_cancelled:
                self.has_cancelled = True
                logger.warning("%d workers have not ended yet and are cancelled: their tasks fail", len(unfinished))
                self._runner.cancel(unfinished)

    # in the thread

    def _watch(self) -> None:
        if self._next(None, "signal", "ended") == "signal":
            self._act_soon()
            if self._next(self._seconds, "signal", "ended") != "ended":
                self._is_out_of_time = True
                self._act_soon()
                step = self._next(_ANSWER, "cancelling", "ended")
                if step == "cancelling":
                    step = self._next(_WORKER_END, "ended")
                if step is None:
                    self._end_now(128 + (self.signal or 0), "the workers cannot be cancelled, as their event loop is blocked")
        else:
            self._next(None, "signal")
        self._next(_THREAD_END)
        self._end_now(self.code, "all workers have ended, but threads of their loops have not")

    def _next(self, seconds: float | None, *steps: str) -> str | None:
        """Waits for one of these steps and returns it; None if none came in time."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while True:
            try:
                step = self._steps.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return None
            if step in steps:
                return step

    def _act_soon(self) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the event loop has ended already
                self._loop.call_soon_threadsafe(self._act)

    def _end_now(self, code: int, why: str) -> NoReturn:
        # Code that blocks the event loop may hold the lock of a log handler.
        message = threading.Thread(target=logger.error, args=("%s: the process ends now", why), daemon=True)
        message.start()
        message.join(0.5)
        os._exit(code)
