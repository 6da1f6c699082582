"""The network that the options name: `open_client` for all calls of `Rush`, `open_network` for its stores alone."""

from __future__ import annotations

import argparse
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from rush_async.cli.exit_codes import REFUSED, CommandError
from rush_async.cli.options import config_of
from rush_async.config import RushConfig, as_path, lacks_directory
from rush_async.errors import NetworkStateError, RushError
from rush_async.network.network import Network

if TYPE_CHECKING:
    from rush_async.manager.manager import Rush

__all__ = ["existing", "open_client", "open_network"]


@asynccontextmanager
async def open_client(options: argparse.Namespace, *, must_exist: bool = True) -> AsyncGenerator[Rush]:
    """Opens a manager of the network that the options name: it has all calls of `Rush`.

    Args:
        options: those of `add_network` and `add_server`.
        must_exist: whether a network that does not exist is refused.

    Raises:
        CommandError: the network does not exist.
        RushConnectionError: the server cannot be reached.
    """
    from rush_async.manager.manager import Rush  # what starts workers takes its time to import

    config = existing(config_of(options)) if must_exist else config_of(options)
    rush = Rush(options.network, config, exist_ok=True, must_exist=must_exist)
    try:
        await rush
    except NetworkStateError:
        raise await _missing(options.network, config) from None
    try:
        yield rush
    finally:
        await rush.aclose()


@asynccontextmanager
async def open_network(options: argparse.Namespace, *, must_exist: bool = True) -> AsyncGenerator[Network]:
    """Opens the view of the network that the options name: its stores, its position and its events. Arguments and errors are
    those of `open_client`."""
    config = existing(config_of(options)) if must_exist else config_of(options)
    network = await Network.acquire(options.network, config)
    try:
        if must_exist and not network.position.epoch:
            raise await _missing(options.network, config)
        yield network
    finally:
        await network.release()


def existing(config: RushConfig) -> RushConfig:
    """Returns the settings.

    Raises:
        CommandError: their data directory does not exist, and a command that looks must not create it.
    """
    if config.data_dir is not None and lacks_directory(config):
        raise CommandError(
            f"there is no data directory {as_path(config.data_dir)}: check --data-dir and RUSH_DATA_DIR", REFUSED
        )
    return config


async def _missing(network_id: str, config: RushConfig) -> CommandError:
    from difflib import get_close_matches

    from rush_async.network.listing import list_networks

    try:
        names = [summary.network_id for summary in await list_networks(config)]
    except RushError:  # this user may not look for them
        names = []
    near = get_close_matches(network_id, names)
    advice = f"did you mean {' or '.join(map(repr, near))}?" if near else "`rush-async networks` lists those that do"
    return CommandError(f"network {network_id!r} does not exist on {config.where}: {advice}", REFUSED)
