"""The group of workers that one manager started, until each has ended and the network knows how."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import anyio

from rush_async.config import RushConfig
from rush_async.errors import RushConnectionError, RushError, listed
from rush_async.launch.handle import Launch, Launcher, WorkerHandle
from rush_async.model import Failure, WorkerExit
from rush_async.network.network import Network
from rush_async.store.workers import KILLED, LOST_WORKER
from rush_async.supervisor import run_to_completion
from rush_async.worker.loop import WorkerLoop
from rush_async.worker.names import worker_name

__all__ = ["WorkerGroup"]

logger = logging.getLogger(__name__)

_REPORT = 2.0  # seconds that a manager which closes waits until the network knows how its workers ended


class WorkerGroup:
    """The workers that a manager started in one network.

    Attributes:
        ends: for each worker, how it ended, once the network knows it too.
        unseen: the workers started since the last wait for workers.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self._handles: dict[str, WorkerHandle] = {}
        self._local: dict[str, WorkerHandle] = {}  # the workers that end with their manager
        self.ends: dict[str, asyncio.Future[WorkerExit]] = {}
        self.unseen: dict[str, None] = {}
        self._killed: set[str] = set()
        self._unreported: list[WorkerExit] = []
        self._is_cut_off = False  # the server is gone for good, and no end is reported

    @property
    def living(self) -> list[str]:
        """The workers whose ends the network does not know yet; some have not registered, others have just left."""
        return [worker_id for worker_id, end in self.ends.items() if not end.done()]

    @property
    def worker_ids(self) -> list[str]:
        """All workers, in the order they were started."""
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
        """Registers and starts workers. An error or a cancellation leaves none behind."""
        worker_ids: list[str] = []
        try:
            await run_to_completion(self._register(n_workers, config, worker_ids, is_local=launcher.is_local))
            handles = await launcher.launch(Launch(self._network, config, loop, worker_ids, log_levels, log_dir))
        except BaseException as error:
            await run_to_completion(self._withdraw(worker_ids, error))
            raise
        for handle in handles:
            self._handles[handle.worker_id] = handle
            if launcher.is_local:
                self._local[handle.worker_id] = handle
            self.ends[handle.worker_id] = asyncio.get_running_loop().create_future()
            handle.ended.add_done_callback(self._note_end)
        self.unseen.update(dict.fromkeys(worker_ids))
        return worker_ids

    async def _register(self, n_workers: int, config: RushConfig, worker_ids: list[str], *, is_local: bool) -> None:
        """Registers new workers as starting, and adds their ids one batch after the other. Local ones die with this process."""
        lease = self._network.heartbeat.lease(config.heartbeat_period, config.heartbeat_expire) if is_local else None
        info = {"pid": None, "hostname": None, "heartbeat": False}
        while len(worker_ids) < n_workers:
            names = [worker_name() for _ in range(n_workers - len(worker_ids))]
            worker_ids += await self._network.workers.announce(names, info, lease)

    async def _withdraw(self, worker_ids: Sequence[str], error: BaseException) -> None:
        """Reports registered workers whose start failed or was cancelled."""
        is_own = isinstance(error, Exception)
        state, failure = ("failed", Failure.of(error)) if is_own else ("terminated", None)
        with contextlib.suppress(RushConnectionError):
            for worker_id in worker_ids:
                await self._network.workers.report(worker_id, state, failure)

    # their ends

    def _note_end(self, ended: asyncio.Future[WorkerExit]) -> None:
        end = ended.result()
        if end.worker_id in self._killed:
            end = WorkerExit(end.worker_id, "killed", KILLED)  # however its launcher saw it
        if end.state == "failed" and end.failure is not None:
            logger.error("the loop of worker %s failed: %s", end.worker_id, end.failure.traceback or end.failure.message)
        supervisor = self._network.link.supervisor
        if self._is_cut_off or not supervisor.is_open:
            self.ends[end.worker_id].set_result(end)
            return
        self._unreported.append(end)
        if len(self._unreported) == 1:
            supervisor.start(self._report)

    async def _report(self) -> None:
        """Reports ends to the network: those of workers that left without one, and of workers that were lost."""
        ends, self._unreported = self._unreported, []
        lost: dict[Failure | None, list[str]] = {}
        for end in ends:
            if end.state == "lost":
                lost.setdefault(end.failure, []).append(end.worker_id)
        others = [end for end in ends if end.state != "lost"]
        try:
            for failure, worker_ids in lost.items():
                await self._report_lost(worker_ids, failure)
            await asyncio.gather(*[self._network.workers.report(end.worker_id, end.state, end.failure) for end in others])
        except RushError as error:
            workers = listed([end.worker_id for end in ends])
            logger.warning("how workers ended cannot be reported to the network: %s: %s", workers, error)
        finally:
            for end in ends:
                self.ends[end.worker_id].set_result(end)

    async def _report_lost(self, worker_ids: Sequence[str], failure: Failure | None) -> None:
        if lost := await self._network.workers.lose(worker_ids, "lost", LOST_WORKER, failure):
            subject = f"worker {lost[0]} is" if len(lost) == 1 else f"{len(lost)} workers ({listed(lost)}) are"
            why = failure.message if failure is not None else "no reason is known"
            logger.error("%s lost, the tasks that ran there have failed or are queued again: %s", subject, why)

    # stopping

    def stop(self, worker_ids: Sequence[str], asked: Collection[str]) -> None:
        """Withdraws starts of workers that have been asked to stop. Cancels those that could not be asked: the network has lost
        them and cannot reach them, though their loops may continue."""
        for worker_id in worker_ids:
            if (handle := self._handles.get(worker_id)) is not None:
                handle.stop() if worker_id in asked else handle.cancel()

    async def kill(self, worker_ids: Sequence[str]) -> None:
        """Shuts workers out of the network, wherever they run, and ends those of this group in any case."""
        # The network first: from here on none of their calls has an effect, whether they can be reached or not.
        self._killed.update(await self._network.workers.lose(worker_ids, "killed", KILLED, KILLED))
        own = [self._handles[worker_id] for worker_id in worker_ids if worker_id in self._handles]
        await asyncio.gather(*[handle.kill() for handle in own])
        if own:
            await asyncio.wait([self.ends[handle.worker_id] for handle in own])

    def ends_of(self, worker_ids: Sequence[str]) -> dict[str, asyncio.Future[WorkerExit]]:
        """The ends that this process sees by itself. The ends of workers that outlive their manager come from the network."""
        return {worker_id: self.ends[worker_id] for worker_id in worker_ids if worker_id in self._local}

    @property
    def to_dismiss(self) -> list[str]:
        """The workers that have not ended and do not outlive their manager."""
        return [worker_id for worker_id, handle in self._local.items() if handle.is_alive]

    def cut_off(self) -> None:
        """The server is gone: from here on no end is reported."""
        self._is_cut_off = True

    async def dismiss(self) -> None:
        """Ends the workers that do not outlive their manager in any case."""
        with anyio.CancelScope(shield=True):
            await asyncio.gather(*[handle.kill() for handle in self._local.values() if handle.is_alive])
            await asyncio.gather(*[handle.clear() for handle in self._local.values()])
            if self._local and not self._is_cut_off:
                await asyncio.wait([self.ends[worker_id] for worker_id in self._local], timeout=_REPORT)

    async def clear(self) -> None:
        """Waits until nothing is left of the workers that have ended."""
        await asyncio.gather(*[handle.clear() for handle in self._handles.values()])
