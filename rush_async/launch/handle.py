"""What a manager holds of the workers it started, whatever way it started them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rush_async.config import RushConfig
from rush_async.loops import WorkerLoop
from rush_async.model import Failure, WorkerExit
from rush_async.supervisor import Supervisor

__all__ = ["Launch", "Launcher", "WorkerHandle"]


@dataclass(frozen=True, slots=True)
class Launch:
    """What is to be started.

    Attributes:
        network_id: the network to work in.
        config: the server, as the manager reached it.
        loop: the loop with its arguments.
        worker_ids: the workers, registered as starting.
        log_dir: where processes write their output; None for a place of their own.
        supervisor: where tasks that watch over them live.
        on_lost: called with a worker and a failure when it died without a good-bye.
    """

    network_id: str
    config: RushConfig
    loop: WorkerLoop
    worker_ids: Sequence[str]
    log_dir: Path | None
    supervisor: Supervisor
    on_lost: Callable[[str, Failure], Awaitable[None]]


class WorkerHandle:
    """One started worker. A way of starting workers says how it is stopped, cancelled and killed.

    Attributes:
        worker_id: which worker.
        ended: how it ended, once it did.
    """

    def __init__(self, worker_id: str) -> None:
        self.worker_id = worker_id
        self.ended: asyncio.Future[WorkerExit] = asyncio.get_running_loop().create_future()

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended yet."""
        return not self.ended.done()

    def end(self, how: WorkerExit) -> None:
        """Takes note of its end."""
        if not self.ended.done():
            self.ended.set_result(how)

    def stop(self) -> None:
        """Asks it to stop; unlike a request through the network, this reaches one that has not entered it yet."""
        raise NotImplementedError

    def cancel(self) -> None:
        """Cancels its loop, once; what it runs fails as `cancelled`."""
        raise NotImplementedError

    async def kill(self) -> None:
        """Ends it for certain; it has been shut out of the network already."""
        raise NotImplementedError

    async def clear(self) -> None:
        """Waits until nothing is left of it, a while after it has ended."""


class Launcher(Protocol):
    """A way of starting workers: a value for `start_workers(on=...)`."""

    async def launch(self, launch: Launch) -> list[WorkerHandle]:
        """Starts the workers and returns at once."""
        ...
