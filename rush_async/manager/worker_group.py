"""The workers that one manager started: from their announcement until each has ended and the network knows how."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import anyio

from rush_async.config import RushConfig
from rush_async.errors import RushConnectionError, listed
from rush_async.launch.handle import Launch, Launcher, WorkerHandle
from rush_async.model import Failure, WorkerExit
from rush_async.network.network import Network
from rush_async.store.workers import KILLED, LOST_WORKER
from rush_async.supervisor import see_through
from rush_async.worker.loop import WorkerLoop
from rush_async.worker.names import worker_name

__all__ = ["Crew"]

logger = logging.getLogger(__name__)


class Crew:
    """The workers that a manager started in one network.

    Attributes:
        ends: how each ended, once the network knows it too.
        unseen: those started since somebody last waited for workers.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self._handles: dict[str, WorkerHandle] = {}
        self.ends: dict[str, asyncio.Future[WorkerExit]] = {}
        self.unseen: dict[str, None] = {}
        self._killed: set[str] = set()
        self._is_cut_off = False  # the server is gone for good, and ends of workers are told to nobody

    @property
    def living(self) -> list[str]:
        """Those that have not ended, as far as this process knows: some have not entered yet, others have just left."""
        return [worker_id for worker_id, handle in self._handles.items() if handle.is_alive]

    @property
    def worker_ids(self) -> list[str]:
        """All of them, in the order they were started."""
        return list(self._handles)

    # starting

    async def start(
        self,
        launcher: Launcher,
        loop: WorkerLoop,
        n_workers: int,
        config: RushConfig,
        log_levels: Mapping[str, str | int] | None,
        log_dir: Path | None,
    ) -> list[str]:
        """Announces and starts workers. What goes wrong leaves none behind."""
        network, worker_ids = self._network, list[str]()
        try:
            await see_through(self._announce(n_workers, config, worker_ids, is_local=launcher.is_local))
            handles = await launcher.launch(
                Launch(
                    *(network.network_id, config, loop, worker_ids, log_dir, log_levels),
                    *(network.link.supervisor, self._lose, network.pulse.vouch, self._has_entered),
                )
            )
        except BaseException as error:
            await see_through(self._take_back(worker_ids, error))
            raise
        for handle in handles:
            self._handles[handle.worker_id] = handle
            self.ends[handle.worker_id] = asyncio.get_running_loop().create_future()
            handle.ended.add_done_callback(self._note_end)
        self.unseen.update(dict.fromkeys(worker_ids))
        return worker_ids

    async def _announce(self, n_workers: int, config: RushConfig, worker_ids: list[str], *, is_local: bool) -> None:
        """Registers new workers as starting, and notes their ids as it goes on. Local ones are lost with this process."""
        lease = self._network.pulse.lease(config.heartbeat_period, config.heartbeat_expire) if is_local else None
        info = {"pid": None, "hostname": None, "heartbeat": False}
        while len(worker_ids) < n_workers:
            names = [worker_name() for _ in range(n_workers - len(worker_ids))]
            worker_ids += await self._network.workers.announce(names, info, lease)

    async def _take_back(self, worker_ids: Sequence[str], error: BaseException) -> None:
        """Reports announced workers that did not start after all."""
        is_own = isinstance(error, Exception)
        state, failure = ("failed", Failure.of(error)) if is_own else ("terminated", None)
        with contextlib.suppress(RushConnectionError):
            for worker_id in worker_ids:
                await self._network.workers.report(worker_id, state, failure)

    async def _has_entered(self, worker_id: str) -> bool:
        entry = (await self._network.workers.read_some([worker_id])).get(worker_id)
        return entry is not None and entry.has_entered

    # their ends

    def _note_end(self, ended: asyncio.Future[WorkerExit]) -> None:
        how = ended.result()
        if how.worker_id in self._killed:
            how = WorkerExit(how.worker_id, "killed", KILLED)  # however it took that
        if how.state == "failed" and how.failure is not None:
            logger.error("the loop of worker %s failed: %s", how.worker_id, how.failure.traceback or how.failure.message)
        supervisor = self._network.link.supervisor
        if self._is_cut_off or not supervisor.is_open:
            self.ends[how.worker_id].set_result(how)
        else:
            supervisor.start(self._report_end, how)

    async def _report_end(self, how: WorkerExit) -> None:
        try:
            await self._network.workers.report(how.worker_id, how.state, how.failure)
        except RushConnectionError as gone:
            logger.warning("the end of worker %s could not be reported: %s", how.worker_id, gone)
        finally:
            self.ends[how.worker_id].set_result(how)

    async def _lose(self, worker_ids: Sequence[str], failure: Failure) -> None:
        if self._is_cut_off:
            return
        if lost := await self._network.workers.lose(worker_ids, "lost", LOST_WORKER, failure):
            who = f"worker {lost[0]} is" if len(lost) == 1 else f"{len(lost)} workers ({listed(lost)}) are"
            logger.error("%s lost, what ran there has been failed or queued again: %s", who, failure.message)

    # stopping

    def stop(self, worker_ids: Sequence[str], asked: Collection[str]) -> None:
        """Takes back starts of workers that have been asked to stop. One that could not be asked was lost: the network does not
        reach it any more, though its loop may go on."""
        for worker_id in worker_ids:
            if (handle := self._handles.get(worker_id)) is not None:
                handle.stop() if worker_id in asked else handle.cancel()

    async def kill(self, worker_ids: Sequence[str]) -> None:
        """Shuts workers out of the network, whoever started them, and ends those of this crew for certain."""
        # The network first: from here on nothing they do counts, whether they can be reached or not.
        self._killed.update(await self._network.workers.lose(worker_ids, "killed", KILLED, KILLED))
        own = [self._handles[worker_id] for worker_id in worker_ids if worker_id in self._handles]
        await asyncio.gather(*[handle.kill() for handle in own])
        if own:
            await asyncio.wait([self.ends[handle.worker_id] for handle in own])

    def ends_of(self, worker_ids: Sequence[str]) -> dict[str, asyncio.Future[WorkerExit]]:
        """The ends that this process hears of by itself. Of those that outlive their manager the network tells."""
        own = [worker_id for worker_id in worker_ids if worker_id in self._handles]
        return {worker_id: self.ends[worker_id] for worker_id in own if not self._handles[worker_id].outlives_manager}

    @property
    def to_dismiss(self) -> list[str]:
        """Those alive that do not outlive their manager."""
        return [worker_id for worker_id in self.living if not self._handles[worker_id].outlives_manager]

    def cut_off(self) -> None:
        """The server is gone: nobody is told how workers end."""
        self._is_cut_off = True

    async def dismiss(self) -> None:
        """Ends for certain what is left of those that do not outlive their manager."""
        own = [handle for handle in self._handles.values() if not handle.outlives_manager]
        with anyio.CancelScope(shield=True):
            await asyncio.gather(*[handle.kill() for handle in own if handle.is_alive])
            await asyncio.gather(*[handle.clear() for handle in own])

    async def clear(self) -> None:
        """Waits until nothing is left of workers that have ended."""
        await asyncio.gather(*[handle.clear() for handle in self._handles.values()])
