"""Workers as coroutines of this process's event loop: many of them share one connection."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from rush_async.launch.handle import Launch, WorkerHandle
from rush_async.model import Failure, WorkerExit
from rush_async.runtime import live

__all__ = ["Coroutines"]

logger = logging.getLogger(__name__)

_PATIENCE = 2.0  # seconds that a cancelled coroutine has to end


class _Coroutine(WorkerHandle):
    task: asyncio.Task[WorkerExit]

    def cancel(self) -> None:
        self.task.cancel()

    async def kill(self) -> None:
        # It hears of its end on `control` and is cancelled by that; this is for one that does not listen.
        if not self.task.done():
            self.task.cancel()
            await asyncio.wait([self.task], timeout=_PATIENCE)
        if not self.task.done():
            logger.error(
                "worker %s swallows its cancellation: it is shut out of the network and left to itself; "
                "let its loop end on asyncio.CancelledError",
                self.worker_id,
            )
            self.end(WorkerExit(self.worker_id, "killed", Failure("killed", None, "Worker was killed")))

    def task_ended(self, task: asyncio.Task[WorkerExit]) -> None:
        if task.cancelled():
            self.end(WorkerExit(self.worker_id, "terminated"))
        elif (error := task.exception()) is not None:
            self.end(WorkerExit(self.worker_id, "failed", Failure.of(error)))
        else:
            self.end(task.result())


@dataclass(frozen=True, slots=True)
class Coroutines:
    """Start workers in this process's event loop: for objectives that await."""

    async def launch(self, launch: Launch) -> list[WorkerHandle]:
        """Starts the workers and returns at once."""
        handles: list[WorkerHandle] = []
        for worker_id in launch.worker_ids:
            handle = _Coroutine(worker_id)
            work = live(launch.loop, launch.network_id, launch.config, worker_id)
            handle.task = launch.supervisor.spawn(work, name=f"worker {worker_id}")
            handle.task.add_done_callback(handle.task_ended)
            handles.append(handle)
        return handles
