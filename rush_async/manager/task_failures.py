"""Failures of tasks in the log of the manager: the first one, and then each time that there are ten times as many."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress

from rush_async.errors import RushError
from rush_async.model import FailureKind
from rush_async.network.network import Network

__all__ = ["FailureLog"]

logger = logging.getLogger(__name__)

_ASKED_FOR: tuple[FailureKind, ...] = ("killed", "removed", "cancelled")
_MOST_READ = 100  # tasks of a message of which the failure is read


class FailureLog:
    """Logs failures of tasks that workers ran. Without it, a bug in an objective is unseen where a loop catches its exception.

    Args:
        network: the network, which the manager follows.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self._n_seen = 0
        self._limit = 1
        self._is_reading = False

    def tasks_failed(self, keys: Sequence[str]) -> None:
        """Is called with tasks that have failed while a worker ran them."""
        self._n_seen += len(keys)
        if self._n_seen >= self._limit and not self._is_reading and self._network.link.supervisor.is_open:
            self._is_reading = True
            self._network.link.supervisor.start(self._log_one, keys)

    async def _log_one(self, keys: Sequence[str]) -> None:
        n_seen = self._n_seen
        try:
            with suppress(RushError):  # the tasks cannot be read now: the next failure is logged
                tasks = await self._network.find(keys[:_MOST_READ])
                failures = [(task, task.failure) for task in tasks.values() if task.state == "failed" and task.failure]
                task, failure = next(pair for pair in failures if pair[1].kind not in _ASKED_FOR)
                n = self._network.position.counts.failed
                logger.warning(
                    "network %r has %s: %s failed on worker %s with %s: %s. `fetch_failed_tasks()` shows the tracebacks",
                    self._network.network_id,
                    "a failed task" if n == 1 else f"{n:,} failed tasks",
                    task.key,
                    task.worker_id,
                    failure.type or failure.kind,
                    failure.message,
                )
                while self._limit <= n_seen:
                    self._limit *= 10
        except StopIteration:  # they were cancelled, or are queued again
            self._n_seen -= len(keys)
        finally:
            self._is_reading = False
