"""Workers as coroutines of the manager's event loop: many of them share one connection."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import ClassVar

from rush_async.launch.handle import Launch, WorkerHandle
from rush_async.worker.worker import Runner

__all__ = ["Coroutines"]


class _Coroutine(WorkerHandle):
    def __init__(self, worker_id: str, runner: Runner) -> None:
        super().__init__(worker_id)
        self.ended = runner.ended[worker_id]
        self._runner = runner

    def cancel(self) -> None:
        self._runner.cancel([self.worker_id])

    async def kill(self) -> None:
        # The network's message on `control` cancels the worker too, but cannot reach one that has not registered. The wait is
        # bounded, because a runner abandons a loop that swallows its cancellation.
        self.cancel()
        await asyncio.wait([self.ended])


@dataclass(frozen=True, slots=True)
class Coroutines:
    """Start workers in the event loop of this process: for objectives that await."""

    is_local: ClassVar[bool] = True

    async def launch(self, launch: Launch) -> list[WorkerHandle]:
        """Starts the workers and returns at once."""
        runner = Runner(
            *(launch.network.network_id, launch.config, launch.worker_ids, launch.loop, launch.log_levels), schema=launch.schema
        )
        return [_Coroutine(worker_id, runner) for worker_id in launch.worker_ids]
