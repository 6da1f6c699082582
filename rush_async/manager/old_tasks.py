"""The tasks that a network held before its manager was opened: results of an earlier run, or of another program."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from contextlib import suppress
from datetime import UTC, datetime

from rush_async.config import RushConfig
from rush_async.errors import RushError, listed
from rush_async.network.network import Network
from rush_async.network.waiting import describe
from rush_async.store.workers import WorkerEntry

__all__ = ["OldTasks"]

logger = logging.getLogger(__name__)

_LOOKS = 3  # how often it looks for workers of a killed program, each 1.5 heartbeat periods


class OldTasks:
    """The tasks of a network at the moment at which its manager is opened.

    Args:
        network: the network.
        config: the settings of its manager.
        are_expected: whether the program continues with them on purpose.
    """

    def __init__(self, network: Network, config: RushConfig, *, are_expected: bool) -> None:
        self._network = network
        self._config = config
        self._epoch = network.position.epoch
        self._counts = network.position.counts
        self._was_warned = are_expected or not self._counts.total
        self._was_looked = False

    def __str__(self) -> str:
        if not self._counts.total or self._network.position.epoch != self._epoch:  # none, or deleted by a reset
            return ""
        return f"{self._counts.total:,} since {self._since}"

    @property
    def _since(self) -> str:
        try:  # the epoch is the server's time in microseconds when the network was created
            return f"{datetime.fromtimestamp(self._epoch / 1e6, UTC):%Y-%m-%d %H:%M} UTC"
        except (OverflowError, OSError, ValueError):  # another program wrote it
            return "an unknown time"

    def warn(self) -> None:
        """Logs once that new tasks join old ones, and which workers of a killed program still hold tasks."""
        if not self._was_looked and self._counts.running and self._network.link.supervisor.is_open:
            self._was_looked = True
            self._network.link.supervisor.start(self._look_for_dead)
        if self._was_warned or not (old := str(self)):
            return
        self._was_warned = True
        logger.warning(
            "network %r held tasks before this manager was opened: %s (%s). They count for budgets and stop rules, and are "
            "among the results. `await rush.reset()` deletes them, another network id begins anew, and exist_ok=True says that "
            "this is meant",
            self._network.network_id,
            old,
            describe(self._counts),
        )

    async def _look_for_dead(self) -> None:
        """Logs once which workers seem to be dead: their tasks hold places until they are lost, and others wait for these."""
        config, network = self._config, self._network
        with suppress(RushError):
            for look in range(_LOOKS):
                await asyncio.sleep(1.5 * config.heartbeat_period if look else 0)
                if not network.position.counts.running or network.position.epoch != self._epoch:
                    return
                dead = set(await network.workers.silent())
                dead.update(entry.worker_id for entry in await network.workers.read() if _is_gone(entry))
                if dead:
                    logger.warning(
                        "network %r has running tasks, and workers that seem to be dead, as after their program was killed: "
                        "%s. Until they are declared lost, within %.0f s, their tasks hold places in budgets and stop rules, "
                        "and others may wait for these",
                        network.network_id,
                        listed(sorted(dead)),
                        config.heartbeat_expire + config.heartbeat_period,
                    )
                    return


def _is_gone(worker: WorkerEntry) -> bool:
    """Whether a worker counts as running, and its process was one of this machine and is not there any more."""
    if worker.state != "running" or worker.info.get("hostname") != socket.gethostname() or os.name != "posix":
        return False
    try:
        os.kill(worker.info["pid"], 0)
    except ProcessLookupError:
        return True
    except (OSError, TypeError, OverflowError, KeyError):  # it is another user's, or another program wrote it
        pass
    return False
