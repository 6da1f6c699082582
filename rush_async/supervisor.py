"""Where long-lived tasks live: one task that encloses its own task group, so that whoever opens something may close it
in another task (a pytest fixture, two notebook cells)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import anyio

__all__ = ["Supervisor", "see_through"]

logger = logging.getLogger(__name__)

T = TypeVar("T")


async def see_through(work: Coroutine[Any, Any, T]) -> T:
    """Awaits `work` to its end, however often the caller is cancelled meanwhile; only then the cancellation goes on.

    For good-byes that are bounded in time. A cancel scope's shield alone does not stop `Task.cancel`.
    """
    task = asyncio.create_task(work)
    cancellation: asyncio.CancelledError | None = None
    while not task.done():
        try:
            with anyio.CancelScope(shield=True):
                await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancellation = error
    if cancellation is None:
        return task.result()
    if not task.cancelled() and (failure := task.exception()) is not None:
        logger.warning("clean-up failed while its caller was cancelled", exc_info=failure)
    raise cancellation


class Supervisor:
    """Runs background work until it is closed. An error in one piece is logged and leaves the others alone."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._task: asyncio.Task[None] | None = None
        self._group: asyncio.TaskGroup | None = None
        self._under_way: set[asyncio.Task[None]] = set()
        self._closing = asyncio.Event()

    async def open(self) -> None:
        """Starts the supervising task."""
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run(ready), name=self.name)
        await asyncio.shield(ready)

    async def _run(self, ready: asyncio.Future[None]) -> None:
        # Not anyio's, which wants to know from which task work is started: ours is often started by a mere callback.
        async with asyncio.TaskGroup() as group:
            self._group = group
            if not ready.done():
                ready.set_result(None)
            try:
                await self._closing.wait()
            finally:  # it may also be cancelled, with all tasks of an event loop that ends: its group takes nothing more then
                self._group = None
            for task in self._under_way:
                task.cancel()

    @property
    def is_open(self) -> bool:
        """Whether work may still be started."""
        return self._group is not None and not self._closing.is_set()

    def start(self, work: Callable[..., Awaitable[Any]], *args: object, name: str | None = None) -> None:
        """Runs `work(*args)` in the background, until it ends or the supervisor is closed."""
        if self._group is None or self._closing.is_set():
            raise RuntimeError(f"{self.name} is not open")
        task = self._group.create_task(self._guarded(work, args), name=name)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _guarded(self, work: Callable[..., Awaitable[Any]], args: tuple[object, ...]) -> None:
        try:
            await work(*args)
        except Exception:
            logger.exception("background work of %s failed", self.name)

    @staticmethod
    def spawn(work: Coroutine[Any, Any, T], name: str | None = None) -> asyncio.Task[T]:
        """Runs a coroutine as a task of its own, for work whose owner cancels and awaits it."""
        return asyncio.create_task(work, name=name)

    async def aclose(self) -> None:
        """Cancels everything and waits until it has ended."""
        self._closing.set()
        if self._task is not None:
            with anyio.CancelScope(shield=True):
                await asyncio.wait([self._task])
