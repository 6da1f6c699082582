"""The input of a launcher, and the handle that it returns for each worker."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from rush_async.client.arguments import Schema
from rush_async.config import RushConfig
from rush_async.launch.job import Job, packed_schema
from rush_async.launch.packed_loop import PackedLoop
from rush_async.model import WorkerExit
from rush_async.network.network import Network
from rush_async.worker.loop import WorkerLoop

__all__ = ["Launch", "Launcher", "WorkerHandle"]


@dataclass(frozen=True, slots=True)
class Launch:
    """The workers that a launcher is to start.

    Attributes:
        network: the network to work in, through the manager's connection.
        config: the server at the address that the manager used, and the settings.
        loop: the loop with its arguments.
        worker_ids: the workers, registered as starting.
        log_levels: the loggers whose records the network keeps, with their levels.
        log_dir: where processes write their output; None for a temporary directory.
        schema: columns that frames of the workers always have, with their dtypes.
    """

    network: Network
    config: RushConfig
    loop: WorkerLoop
    worker_ids: Sequence[str]
    log_levels: Mapping[str, str | int] | None
    log_dir: Path | None
    schema: Schema | None = None

    async def pack(self) -> Job:
        """Packs the job for other processes.

        Raises:
            EncodeError: the loop or one of its arguments cannot be pickled, or is too large.
            RushConfigError: `large_objects_path` cannot be written.
            SchemaError: the schema has a dtype that no value of a task fits.
        """
        schema = packed_schema(self.schema)
        network_id = self.network.network_id
        loop = await PackedLoop.pickled_in_thread(self.loop, network_id, self.config)
        return Job(network_id, self.config, self.worker_ids, loop, self.log_levels, schema)


class WorkerHandle:
    """One started worker. Each launcher has a subclass that cancels and kills its workers.

    Attributes:
        worker_id: the worker.
        ended: how it ended; set before the end is reported to the network.
    """

    def __init__(self, worker_id: str) -> None:
        self.worker_id = worker_id
        self.ended: asyncio.Future[WorkerExit] = asyncio.get_running_loop().create_future()

    @property
    def is_alive(self) -> bool:
        """Whether the worker has not ended yet."""
        return not self.ended.done()

    def end(self, end: WorkerExit) -> None:
        """Sets how the worker ended. Only the first call counts."""
        if not self.ended.done():
            self.ended.set_result(end)

    def stop(self) -> None:
        """Cancels a start that has not begun. The worker has been asked to stop through the network."""

    def cancel(self) -> None:
        """Cancels the worker's loop; its running tasks fail as `cancelled`."""
        raise NotImplementedError

    async def kill(self) -> None:
        """Ends the worker. The network has shut it out already."""
        raise NotImplementedError

    async def clear(self) -> None:
        """Waits until nothing is left of a worker that has ended, such as its process."""


class Launcher(Protocol):
    """A way to start workers: a value for `start_workers(on=...)`.

    Attributes:
        is_local: whether its workers die with the process of the manager that starts them.
    """

    is_local: ClassVar[bool]

    async def launch(self, launch: Launch) -> list[WorkerHandle]:
        """Starts the workers and returns at once."""
        ...
