"""Says what continues when a cell of a notebook is interrupted. Its traceback shows only where the cell was."""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import Any, Protocol
from weakref import WeakSet

from rush_async.network.network import Network
from rush_async.network.waiting import describe

__all__ = ["cells"]

logger = logging.getLogger(__name__)


class Manager(Protocol):
    """A manager; it has no network while it is not open."""

    @property
    def _network(self) -> Network | None: ...


class _Cells:
    """The cells of this notebook, or of this session of IPython."""

    def __init__(self) -> None:
        self._managers: WeakSet[Manager] = WeakSet()
        self._shell: object = None

    def watch(self, manager: Manager) -> None:
        """Notes a manager that is opened, where cells are run."""
        shell: Any = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
        if shell is None:
            return
        self._managers.add(manager)
        if shell is not self._shell:
            self._shell = shell
            shell.events.register("post_run_cell", self._cell_ended)

    def _cell_ended(self, result: Any) -> None:
        # A kernel cancels the task of a cell that awaits.
        if not isinstance(getattr(result, "error_in_exec", None), KeyboardInterrupt | asyncio.CancelledError):
            return
        networks = {manager._network for manager in self._managers}  # pyright: ignore[reportPrivateUsage]
        for network in networks - {None}:
            assert network is not None
            latest = network.position.latest
            logger.warning(
                "only the cell was interrupted, and network %r continues, with %s running workers: there are %s. "
                "`stop_workers()` stops the workers",
                network.network_id,
                f"{latest.n_workers:,}",
                describe(latest.counts),
            )


cells = _Cells()
