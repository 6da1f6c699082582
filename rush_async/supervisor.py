"""Background tasks, all started here.

A supervisor is one task with a task group inside it. So an object that is opened in one task may be closed in another, as in a
pytest fixture or in two cells of a notebook.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from anyio import CancelScope  # now, as a process without free file descriptors can import nothing

__all__ = ["Supervisor", "run_to_completion"]

logger = logging.getLogger(__name__)

T = TypeVar("T")


async def run_to_completion(work: Coroutine[Any, Any, T]) -> T:
    """Awaits a coroutine to its end, even when the caller is cancelled meanwhile, for clean-up that is bounded in time.

    The shield of a cancel scope alone does not hold off `Task.cancel`.

    Args:
        work: the coroutine.

    Returns:
        Its result.

    Raises:
        asyncio.CancelledError: the caller was cancelled; raised after the end of `work`. An error of `work` is logged then.
    """
    task = asyncio.create_task(work)
    cancellation: asyncio.CancelledError | None = None
    while not task.done():
        try:
            with CancelScope(shield=True):
                await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancellation = error
    if cancellation is None:
        return task.result()
    if not task.cancelled() and (failure := task.exception()) is not None:
        logger.warning("clean-up failed while its caller was cancelled", exc_info=failure)
    raise cancellation


class Supervisor:
    """Runs tasks in the background until it is closed. The error of one task is logged and does not end the others.

    Attributes:
        name: its name, for messages.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._task: asyncio.Task[None] | None = None
        self._group: asyncio.TaskGroup | None = None
        self._started: set[asyncio.Task[None]] = set()
        self._closing = asyncio.Event()

    async def open(self) -> None:
        """Starts the task that contains the others, and waits until `start` accepts work."""
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run(ready), name=self.name)
        await asyncio.shield(ready)

    async def _run(self, ready: asyncio.Future[None]) -> None:
        # Not anyio's task group: callbacks that run outside any task start work too.
        async with asyncio.TaskGroup() as group:
            self._group = group
            if not ready.done():
                ready.set_result(None)
            try:
                await self._closing.wait()
            finally:  # also when the ending event loop cancels all tasks: the group accepts no task then
                self._group = None
            for task in self._started:
                task.cancel()

    @property
    def is_open(self) -> bool:
        """Whether `start` accepts work."""
        return self._group is not None and not self._closing.is_set()

    def start(self, work: Callable[..., Awaitable[Any]], *args: object, name: str | None = None) -> None:
        """Runs `work(*args)` in the background, until it ends or the supervisor is closed.

        Args:
            work: a coroutine function.
            *args: its arguments.
            name: the name of the task.

        Raises:
            RuntimeError: the supervisor is not open.
        """
        if self._group is None or self._closing.is_set():
            raise RuntimeError(f"{self.name} is not open")
        task = self._group.create_task(self._run_and_log(work(*args)), name=name)
        self._started.add(task)
        task.add_done_callback(self._started.discard)

    async def _run_and_log(self, work: Awaitable[Any]) -> None:
        try:
            await work
        except Exception:
            logger.exception("background work of %s failed", self.name)

    @staticmethod
    def spawn(work: Coroutine[Any, Any, T], name: str | None = None) -> asyncio.Task[T]:
        """Runs a coroutine as a task outside any supervisor; the caller cancels and awaits it."""
        return asyncio.create_task(work, name=name)

    async def aclose(self) -> None:
        """Cancels all tasks and waits for their end."""
        self._closing.set()
        if self._task is not None:
            with CancelScope(shield=True):
                await asyncio.wait([self._task])
