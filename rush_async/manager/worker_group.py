"""The group of workers that one manager started. It reports to the network how each worker ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio

from rush_async.client.arguments import Schema
from rush_async.config import RushConfig
from rush_async.errors import RushConnectionError, RushError, listed
from rush_async.launch.handle import Launch, Launcher, WorkerHandle
from rush_async.launch.packed_loop import check_may_start
from rush_async.manager.worker_failures import WorkerFailures
from rush_async.model import Counts, Failure, WorkerExit
from rush_async.network.network import Network
from rush_async.store.leases import lost_because
from rush_async.store.workers import KILLED
from rush_async.supervisor import run_to_completion
from rush_async.worker.loop import WorkerLoop
from rush_async.worker.names import worker_name

__all__ = ["WorkerGroup"]

logger = logging.getLogger(__name__)

_REPORT = 2.0  # seconds that a manager which closes waits for the reports of its workers' ends


@dataclass(frozen=True, slots=True, eq=False)
class _Start:
    """How workers are started, for those that are started again."""

    launcher: Launcher
    loop: WorkerLoop
    config: RushConfig
    log_levels: Mapping[str, str | int] | None
    log_dir: Path | None
    schema: Schema | None
    restarts: int


class WorkerGroup:
    """The workers that a manager started in one network.

    Attributes:
        ends: how each worker ended; set once the end has been reported to the network.
        unseen: the workers started since the last successful `wait_for_workers`.
        failures: the failures of their loops, and their deaths.
        stopped: the workers that were asked to stop, or killed.
        counts_at_start: the counts of the network when workers were started that were not joined yet.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self._handles: dict[str, WorkerHandle] = {}
        self._local: dict[str, WorkerHandle] = {}  # the workers that end with their manager
        self.ends: dict[str, asyncio.Future[WorkerExit]] = {}
        self.unseen: dict[str, None] = {}
        self.failures = WorkerFailures()
        self.counts_at_start: dict[str, Counts] = {}
        self._killed: set[str] = set()
        self._restarts: dict[str, tuple[_Start, int]] = {}  # of a worker, and how often it was started again
        self._replacements: dict[str, str] = {}  # the worker that was started instead of one that died or failed
        self.stopped: set[str] = set()
        self._is_dismissed = False
        self._unreported: list[WorkerExit] = []
        self._is_cut_off = False  # the server is away, and no end is reported

    @property
    def living(self) -> list[str]:
        """The workers whose ends are not reported yet, including those that have not registered yet."""
        return [worker_id for worker_id, end in self.ends.items() if not end.done()]

    @property
    def worker_ids(self) -> list[str]:
        """All workers, in the order they were started; of those that were started again the last."""
        return [worker_id for worker_id in self._handles if worker_id not in self._replacements]

    def latest(self, worker_id: str) -> str:
        """Returns the worker that was started instead of this one, where it died or failed and was started again."""
        while (replacement := self._replacements.get(worker_id)) is not None:
            worker_id = replacement
        return worker_id

    def is_replaced(self, worker_id: str) -> bool:
        """Whether a worker that has died or failed was started again, or is going to be."""
        return worker_id in self._replacements or self._restarts_left(worker_id) > 0

    # starting

    async def start(
        self,
        launcher: Launcher,
        loop: WorkerLoop,
        n_workers: int,
        config: RushConfig,
        log_levels: Mapping[str, str | int] | None,
        log_dir: Path | None,
        schema: Schema | None = None,
    ) -> list[str]:
        """Registers and starts workers. An error or a cancellation leaves no worker registered."""
        check_may_start()
        restarts, counts = getattr(launcher, "restart", 0), self._network.position.counts
        worker_ids = await self._launch(_Start(launcher, loop, config, log_levels, log_dir, schema, restarts), n_workers)
        self.unseen.update(dict.fromkeys(worker_ids))
        self.counts_at_start.update(dict.fromkeys(worker_ids, counts))
        if (stop := self._network.position.stop) is not None:
            logger.warning(
                "network %r has stopped (%s): the workers started just now take no task. `resume(...)` lifts the stop",
                self._network.network_id,
                stop,
            )
        return worker_ids

    async def _launch(self, start: _Start, n_workers: int, n_before: int = 0) -> list[str]:
        """Registers and starts workers, which were started `n_before` times before."""
        worker_ids: list[str] = []
        launcher = start.launcher
        try:
            await run_to_completion(self._register(n_workers, start.config, worker_ids, is_local=launcher.is_local))
            launch = Launch(self._network, start.config, start.loop, worker_ids, start.log_levels, start.log_dir, start.schema)
            handles = await launcher.launch(launch)
        except BaseException as error:
            await run_to_completion(self._report_failed_start(worker_ids, error))
            raise
        for handle in handles:
            self._handles[handle.worker_id] = handle
            self._restarts[handle.worker_id] = (start, n_before)
            if launcher.is_local:
                self._local[handle.worker_id] = handle
            self.ends[handle.worker_id] = asyncio.get_running_loop().create_future()
            handle.ended.add_done_callback(self._note_end)
        return worker_ids

    async def _register(self, n_workers: int, config: RushConfig, worker_ids: list[str], *, is_local: bool) -> None:
        """Registers new workers as starting, and adds their ids to `worker_ids`. Local workers hold a lease of this process."""
        lease = self._network.heartbeat.lease(config.heartbeat_period, config.heartbeat_expire) if is_local else None
        info = {"pid": None, "hostname": None, "heartbeat": False}
        while len(worker_ids) < n_workers:
            names = [worker_name() for _ in range(n_workers - len(worker_ids))]
            worker_ids += await self._network.workers.announce(names, info, lease)

    async def _report_failed_start(self, worker_ids: Sequence[str], error: BaseException) -> None:
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
            end = WorkerExit(end.worker_id, "killed", KILLED)  # its launcher may report another end
        if end.state == "failed":
            self.failures.add(end)
        supervisor = self._network.link.supervisor
        if self._is_cut_off or not supervisor.is_open:
            self.ends[end.worker_id].set_result(end)
            return
        self._unreported.append(end)
        if len(self._unreported) == 1:
            supervisor.start(self._report)

    async def _report(self) -> None:
        """Reports ends to the network, which takes only those of workers that have not deregistered."""
        ends, self._unreported = self._unreported, []
        if self._network.link.connection.is_away:
            self._tell(ends)  # workers have waited for the server before they ended: who joins them does not wait again
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
            logger.warning("the ends of workers cannot be reported to the network: %s: %s", workers, error)
        try:
            await self._restart([end.worker_id for end in ends if end.state in ("failed", "lost")])
        finally:
            self._tell(ends)

    def _tell(self, ends: Sequence[WorkerExit]) -> None:
        for end in ends:
            if not self.ends[end.worker_id].done():
                self.ends[end.worker_id].set_result(end)

    async def _report_lost(self, worker_ids: Sequence[str], failure: Failure | None) -> None:
        cleared = await self._network.workers.clear(worker_ids, "lost", lost_because(failure), failure)
        if cleared.n_requeued and not cleared.n_failed:
            self.failures.requeued.update(cleared.shut_out)
        if lost := cleared.shut_out:
            subject = f"worker {lost[0]} is" if len(lost) == 1 else f"{len(lost)} workers ({listed(lost)}) are"
            why = failure.message if failure is not None else "no reason is known"
            logger.error("%s lost, the tasks that ran there have failed or are queued again: %s", subject, why)

    # starting again

    def _restarts_left(self, worker_id: str) -> int:
        """Returns how often a worker may be started again, as things are."""
        if worker_id in self.stopped or self._is_dismissed or self._is_cut_off or self._network.position.stop is not None:
            return 0
        start, n_before = self._restarts.get(worker_id, (None, 0))
        return 0 if start is None else start.restarts - n_before

    async def _restart(self, worker_ids: Iterable[str]) -> None:
        """Starts workers again that died or failed, those that have restarts left."""
        together: dict[tuple[_Start, int], list[str]] = {}
        for worker_id in worker_ids:
            if self._restarts_left(worker_id) > 0:
                together.setdefault(self._restarts[worker_id], []).append(worker_id)
        for (start, n_before), ended in together.items():
            try:
                started = await self._launch(start, len(ended), n_before + 1)
            except Exception as error:
                logger.error("workers cannot be started again: %s: %s", listed(ended), error)
                continue
            self._replacements.update(zip(ended, started, strict=True))
            for old, new in zip(ended, started, strict=True):
                if self.unseen.pop(old, old) is None:
                    self.unseen[new] = None
                logger.warning("worker %s is started again as %s (restart %d of %d)", old, new, n_before + 1, start.restarts)
            await self._end_unwanted(ended)

    async def _end_unwanted(self, worker_ids: Iterable[str]) -> None:
        """Ends workers that were started again while the ones before them were stopped."""
        if self._is_dismissed:
            await asyncio.gather(*[self._handles[self._replacements[worker_id]].kill() for worker_id in worker_ids])
        elif unwanted := [self._replacements[worker_id] for worker_id in worker_ids if worker_id in self.stopped]:
            self.stop(unwanted, set(await self._network.workers.ask_to_stop(unwanted)))

    # stopping

    def stop(self, worker_ids: Sequence[str], asked: Collection[str]) -> None:
        """Stops workers of this group.

        Args:
            worker_ids: the workers, also those of other managers, which are skipped.
            asked: the workers that were asked to stop; starts of theirs that have not begun are cancelled. The others are lost
                to the network, which cannot reach them, so their loops are cancelled.
        """
        self.stopped.update(worker_ids)
        for worker_id in worker_ids:
            if (handle := self._handles.get(worker_id)) is not None:
                handle.stop() if worker_id in asked else handle.cancel()

    async def kill(self, worker_ids: Sequence[str]) -> None:
        """Shuts workers out of the network, wherever they run, and ends those of this group."""
        self.stopped.update(worker_ids)
        # The network first: from here on their calls have no effect, even if they cannot be reached.
        self._killed.update(await self._network.workers.lose(worker_ids, "killed", KILLED, KILLED))
        own = [self._handles[worker_id] for worker_id in worker_ids if worker_id in self._handles]
        await asyncio.gather(*[handle.kill() for handle in own])
        if own:
            await asyncio.wait([self.ends[handle.worker_id] for handle in own])
        if again := [self.latest(worker_id) for worker_id in worker_ids if worker_id in self._replacements]:
            await self.kill(again)  # they were being started again

    def ends_of(self, worker_ids: Sequence[str]) -> dict[str, asyncio.Future[WorkerExit]]:
        """Returns the ends that this process sees itself, of workers that were started again the last. Those of workers that
        outlive their manager are in the network."""
        return {worker_id: self.ends[self.latest(worker_id)] for worker_id in worker_ids if worker_id in self._local}

    @property
    def to_dismiss(self) -> list[str]:
        """The workers that have not ended and do not outlive their manager."""
        return [worker_id for worker_id, handle in self._local.items() if handle.is_alive]

    def cut_off(self) -> None:
        """Stops reporting ends, because the server is away."""
        self._is_cut_off = True

    async def dismiss(self) -> None:
        """Kills the workers that do not outlive their manager, and waits until nothing is left of them."""
        self._is_dismissed = True
        with anyio.CancelScope(shield=True):
            await asyncio.gather(*[handle.kill() for handle in self._local.values() if handle.is_alive])
            await asyncio.gather(*[handle.clear() for handle in self._local.values()])
            if self._local and not self._is_cut_off:
                await asyncio.wait([self.ends[worker_id] for worker_id in self._local], timeout=_REPORT)

    async def clear(self) -> None:
        """Waits until nothing is left of the workers that have ended, such as their processes."""
        await asyncio.gather(*[handle.clear() for handle in self._handles.values()])
