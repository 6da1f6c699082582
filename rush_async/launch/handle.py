"""What a manager holds of the workers it started, whatever way it started them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from rush_async.config import RushConfig
from rush_async.model import Failure, WorkerExit
from rush_async.supervisor import Supervisor
from rush_async.worker.loop import WorkerLoop

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
        log_levels: the loggers whose records are kept in the network, with their levels.
        supervisor: where tasks that watch over them live.
        on_lost: called with workers and a failure when they died without a good-bye.
        vouch: called with a worker and a function that tells, in any thread, whether its process is alive and not stopped, or
            None once it has ended. Its lease is then renewed for it too: code that holds the GIL keeps it from doing so itself.
        has_entered: tells whether the network has seen a worker run, whatever became of it.
    """

    network_id: str
    config: RushConfig
    loop: WorkerLoop
    worker_ids: Sequence[str]
    log_dir: Path | None
    log_levels: Mapping[str, str | int] | None
    supervisor: Supervisor
    on_lost: Callable[[Sequence[str], Failure], Awaitable[None]]
    vouch: Callable[[str, Callable[[], bool | None]], None]
    has_entered: Callable[[str], Awaitable[bool]]


class WorkerHandle:
    """One started worker. A way of starting workers says how it is stopped, cancelled and killed.

    Attributes:
        worker_id: which worker.
        ended: how it ended, once it did.
        outlives_manager: whether a manager that closes leaves it alone.
    """

    outlives_manager = False

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
        """Takes its start back, where that is still possible. It has been asked to stop through the network."""

    def cancel(self) -> None:
        """Cancels its loop, once; what it runs fails as `cancelled`."""
        raise NotImplementedError

    async def kill(self) -> None:
        """Ends it for certain; it has been shut out of the network already."""
        raise NotImplementedError

    async def clear(self) -> None:
        """Waits until nothing is left of it, a while after it has ended."""


class Launcher(Protocol):
    """A way of starting workers: a value for `start_workers(on=...)`.

    Attributes:
        is_local: whether its workers die with the process of the manager that starts them.
    """

    is_local: ClassVar[bool]

    async def launch(self, launch: Launch) -> list[WorkerHandle]:
        """Starts the workers and returns at once."""
        ...
