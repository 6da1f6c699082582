"""Workers as coroutines of this process's event loop: many of them share one connection."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import ClassVar

from rush_async.launch.handle import Launch, WorkerHandle
from rush_async.model import Failure, WorkerExit
from rush_async.supervisor import Supervisor
from rush_async.worker.run import live
from rush_async.worker.worker import RushWorker

__all__ = ["Coroutines"]


class _Coroutine(WorkerHandle):
    def __init__(self, launch: Launch, worker_id: str) -> None:
        super().__init__(worker_id)
        self._worker = RushWorker(launch.network_id, launch.config, worker_id=worker_id)
        self._task = Supervisor.spawn(live(self._worker, launch.loop, launch.log_levels), name=f"worker {worker_id}")
        self._task.add_done_callback(self._note_end)

    def cancel(self) -> None:
        self._task.cancel()

    async def kill(self) -> None:
        # It hears of its end on `control` and is cancelled by that; this is for one that cannot hear. It is bounded, because a
        # life leaves a loop behind that swallows its cancellation.
        self._task.cancel()
        await asyncio.wait([self._task])

    def _note_end(self, task: asyncio.Task[WorkerExit]) -> None:
        if task.cancelled():
            self.end(WorkerExit(self.worker_id, "terminated"))
        elif (error := task.exception()) is not None:
            self.end(WorkerExit(self.worker_id, "failed", Failure.of(error)))
        else:
            self.end(task.result())


@dataclass(frozen=True, slots=True)
class Coroutines:
    """Start workers in this process's event loop: for objectives that await."""

    is_local: ClassVar[bool] = True

    async def launch(self, launch: Launch) -> list[WorkerHandle]:
        """Starts the workers and returns at once."""
        return [_Coroutine(launch, worker_id) for worker_id in launch.worker_ids]
