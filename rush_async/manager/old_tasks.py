"""The tasks that a network held before its manager was opened: results of an earlier run, or of another program."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from rush_async.network.network import Network
from rush_async.network.waiting import describe

__all__ = ["OldTasks"]

logger = logging.getLogger(__name__)


class OldTasks:
    """The tasks of a network at the moment at which its manager is opened.

    Args:
        network: the network.
        are_expected: whether the program continues with them on purpose.
    """

    def __init__(self, network: Network, *, are_expected: bool) -> None:
        self._network = network
        self._epoch = network.position.epoch
        self._counts = network.position.counts
        self._was_warned = are_expected

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
        """Logs once that new tasks join old ones."""
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
