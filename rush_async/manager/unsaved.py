"""A warning for results that nothing keeps: those in a private server end with the program."""

from __future__ import annotations

import logging
from contextlib import suppress

import anyio

from rush_async.errors import RushError
from rush_async.network.network import Network

__all__ = ["warn_of_unsaved"]

logger = logging.getLogger(__name__)

_PATIENCE = 1.0  # seconds for the server to tell how many tasks have finished


async def warn_of_unsaved(network: Network, error: BaseException) -> None:
    """Logs how many finished tasks of a private server, one without a data directory, are lost with the program.

    Args:
        network: the network.
        error: what its manager's block was left by.
    """
    is_private = network.link.is_embedded and network.link.data_dir is None
    if not is_private or network.ended is not None:  # then errors and the log say so
        return
    with suppress(RushError), anyio.move_on_after(_PATIENCE, shield=True):
        await network.tasks.read_position()
    if n := network.position.counts.finished:
        name = network.network_id
        logger.warning(
            "network %r: its block was left by %s, and %d finished %s lost when this program ends, because only a private "
            "server has them. To keep results give a directory, Rush(%r, data_dir='results'), or set RUSH_DATA_DIR",
            name,
            type(error).__name__,
            n,
            "task is" if n == 1 else "tasks are",
            name,
        )
