"""Lets the network cancel what runs in a task's block, and tells whether a block let anything else run."""

from __future__ import annotations

import asyncio
import time

__all__ = ["Guard", "LoopTurns"]


class LoopTurns:
    """Counts the turns of an event loop: all blocks that open in one turn share one number."""

    __slots__ = ("_is_due", "n")

    def __init__(self) -> None:
        self.n = 0
        self._is_due = False

    def current(self) -> int:
        """The number of the present turn."""
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._advance)
        return self.n

    def _advance(self) -> None:
        self._is_due = False
        self.n += 1


class Guard:
    """Cancels what runs in a block, as `asyncio.timeout` does when its time is up."""

    __slots__ = ("_begun", "_cancelling", "_is_cancelled", "_is_left", "_task", "_turn", "_turns")

    def __init__(self, turns: LoopTurns) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self._is_cancelled = False
        self._is_left = False
        self._begun = time.monotonic()
        self._turns = turns
        self._turn = turns.current()

    def cancel(self) -> None:
        """Cancels the block, because the network has cancelled its task."""
        if not self._is_cancelled and not self._is_left:
            self._is_cancelled = True
            self._task.cancel()

    @property
    def blocked_for(self) -> float:
        """Seconds for which the block let nothing else run; 0 if it did."""
        return time.monotonic() - self._begun if self._turn == self._turns.n else 0.0

    def leave(self) -> bool:
        """Ends the guard; True if the network had cancelled the block."""
        self._is_left = True
        return self._is_cancelled

    async def was_only_cause(self, error: BaseException | None) -> bool:
        """Whether `error`, with which a cancelled block was left, is nothing but this guard's cancellation, which ends here."""
        if error is None:
            # The cancellation may still be on its way, when nothing in the block awaited.
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                if self._task.uncancel() > self._cancelling:
                    raise
                return False
        is_only = self._task.uncancel() <= self._cancelling
        return is_only and isinstance(error, asyncio.CancelledError)
