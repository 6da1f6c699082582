"""Guards of task blocks: they cancel the code in a block, and measure whether it blocked the event loop."""

from __future__ import annotations

import asyncio
import time

__all__ = ["Guard", "LoopTurns"]


class LoopTurns:
    """Counts the iterations of an event loop: all blocks that open in one iteration see the same number."""

    __slots__ = ("_is_due", "n")

    def __init__(self) -> None:
        self.n = 0
        self._is_due = False

    def current(self) -> int:
        """Returns the number of the current iteration."""
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._advance)
        return self.n

    def _advance(self) -> None:
        self._is_due = False
        self.n += 1


class Guard:
    """Cancels the code in a block, as `asyncio.timeout` does when its time is up."""

    __slots__ = ("_begun", "_cancelling", "_has_ended", "_is_cancelled", "_task", "_turn", "_turns")

    def __init__(self, turns: LoopTurns) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self._is_cancelled = False
        self._has_ended = False
        self._begun = time.monotonic()
        self._turns = turns
        self._turn = turns.current()

    def cancel(self) -> None:
        """Cancels the block, because the network has cancelled its task."""
        if not self._is_cancelled and not self._has_ended:
            self._is_cancelled = True
            self._task.cancel()

    @property
    def blocked_for(self) -> float:
        """Seconds for which the block kept the event loop from running anything else; 0 if it awaited."""
        return time.monotonic() - self._begun if self._turn == self._turns.n else 0.0

    def end(self) -> bool:
        """Ends the guard. Returns whether the network has cancelled the block."""
        self._has_ended = True
        return self._is_cancelled

    async def was_only_cause(self, error: BaseException | None) -> bool:
        """Ends the guard's cancellation. Returns whether it is the only cause of the `error` that leaves the block."""
        if error is None:
            # If nothing in the block awaited, the cancellation is delivered only at this await.
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                if self._task.uncancel() > self._cancelling:
                    raise
                return False
        is_only = self._task.uncancel() <= self._cancelling
        return is_only and isinstance(error, asyncio.CancelledError)
