"""Waits for the ends of workers, which say after a while what they wait for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Literal

import anyio

from rush_async.errors import RushError, listed
from rush_async.manager.worker_group import WorkerGroup
from rush_async.model import WorkerExit
from rush_async.network.network import Network
from rush_async.supervisor import Supervisor

__all__ = ["WorkerEnds"]

logger = logging.getLogger(__name__)

_REMIND_AFTER = 10.0  # seconds for which a wait for workers is silent


class WorkerEnds:
    """One wait for the ends of workers.

    Args:
        network: the network.
        group: the workers of the manager. Their ends are seen in this process, those of others are read from the network.
        worker_ids: the workers.
    """

    def __init__(self, network: Network, group: WorkerGroup, worker_ids: Sequence[str]) -> None:
        self._network = network
        self._group = group
        self._worker_ids = worker_ids
        self._read: dict[str, WorkerExit] = {}

    @property
    def known(self) -> dict[str, WorkerExit]:
        """How those workers ended that did."""
        own = self._group.ends_of(self._worker_ids)
        return self._read | {worker_id: end.result() for worker_id, end in own.items() if end.done()}

    async def wait(self, timeout: float | None, why: Literal["join", "stop"] | None = None) -> dict[str, WorkerExit]:
        """Waits until all have ended, or for `timeout` seconds.

        Args:
            timeout: seconds; None waits without a limit.
            why: whether they were asked to stop or are waited for only: a wait that is long is logged once. None logs nothing.

        Returns:
            How those workers ended that did.

        Raises:
            KeyError: the network has no such worker.
        """
        reminder = None if why is None else Supervisor.spawn(self._remind(why))
        own = self._group.ends_of(self._worker_ids)
        others = [worker_id for worker_id in self._worker_ids if worker_id not in own]
        try:
            if others:
                await self._read_ends(others)
            with anyio.move_on_after(timeout):
                if len(self._read) < len(set(others)):
                    await self._wait_for_others(others)
                while waits := [end for end in self._group.ends_of(self._worker_ids).values() if not end.done()]:
                    await asyncio.wait(waits)  # a worker that died or failed may have been started again meanwhile
        finally:
            if reminder is not None:
                reminder.cancel()
        if why == "join":
            self._warn_of_spent_budget(self.known)
        return self.known

    def _warn_of_spent_budget(self, ends: Mapping[str, WorkerExit]) -> None:
        """Logs that workers have begun no task where tasks had finished before, as those of a cell that is run once more."""
        at_start = self._group.counts_at_start
        new = [worker_id for worker_id in ends if worker_id in at_start]
        before = {at_start.pop(worker_id) for worker_id in new}
        counts, network_id = self._network.position.counts, self._network.network_id
        if any(ends[worker_id].state != "terminated" or worker_id in self._group.stopped for worker_id in new):
            return
        if before == {counts} and counts.finished and self._network.position.stop is None:
            logger.warning(
                "the workers of network %r have begun no task. It had %s finished tasks already when they were started, and "
                "these count for their budget. Name a larger one, or another network; `await rush.reset()` deletes the tasks",
                network_id,
                f"{counts.finished:,}",
            )

    async def _wait_for_others(self, worker_ids: Sequence[str]) -> None:
        network = self._network
        with network.feed, network.feed.end_wait(()) as wait:
            await network.feed.watch()
            while True:
                await self._read_ends(worker_ids)
                if len(self._read) >= len(set(worker_ids)):
                    return
                await wait.changed()

    async def _read_ends(self, worker_ids: Sequence[str]) -> None:
        entries = await self._network.workers.read_some(worker_ids)
        for worker_id in worker_ids:
            entry = entries.get(worker_id)
            if entry is None and worker_id not in self._read:
                raise KeyError(f"network {self._network.network_id!r} has no worker {worker_id!r}")
            if entry is not None and entry.ended_at is not None:
                self._read[worker_id] = WorkerExit(worker_id, entry.state, entry.failure)

    # what it waits for

    async def _remind(self, why: Literal["join", "stop"]) -> None:
        """Logs what is waited for, once it has lasted."""
        with suppress(RushError):
            await (asyncio.sleep(_REMIND_AFTER) if why == "stop" else self._until_idle())
            known = self.known
            left = [worker_id for worker_id in self._worker_ids if worker_id not in known]
            if why == "stop":
                text = (
                    "stop_workers() waits for workers of network %r that have been asked to stop: %s. A loop ends once it "
                    "asks for a task or looks at `rush.terminated`, a worker opened by `RushWorker(...)` once it is closed; "
                    "`timeout=` and mode='kill' end them"
                )
            else:
                text = (
                    "join_workers() waits for workers of network %r, which has no queued and no running task: %s. Loops "
                    "that wait for tasks end when they are asked to: `await rush.stop_workers()`"
                )
            logger.warning(text, self._network.network_id, listed(left))

    async def _until_idle(self) -> None:
        """Waits until nothing has been done for a while."""
        position = self._network.position
        while True:
            await self._network.wait_for_counts(lambda counts: not counts.queued and not counts.running, None)
            before = position.generation, position.seq
            await asyncio.sleep(_REMIND_AFTER)
            self._network.follow()  # brings the position up to date
            if (position.generation, position.seq) == before:
                return
