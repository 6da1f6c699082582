"""The networks of a server, or of all nodes of a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from itertools import count
from typing import NamedTuple

from rush_async.config import RushConfig
from rush_async.errors import RushConfigError, RushConnectionError, RushError
from rush_async.network.network import SOURCES, start_server
from rush_async.store.keys import NetworkKeys, check_network_id, pattern_of
from rush_async.store.position import NetworkPosition, Position
from rush_async.store.task_reads import TaskReads
from rush_async.wire.link import Link
from rush_async.wire.topology import slot_of

__all__ = ["NetworkSummary", "list_networks"]

_STEP = 1_000  # keys that the server looks at in one call
_AT_ONCE = 500  # networks that are read in one go


class NetworkSummary(NamedTuple):
    """A network of a server.

    Attributes:
        network_id: its name.
        created_at: when it was created, or reset last.
        position: its counts, its running workers and its stop; None where it cannot be read.
        problem: why it cannot be read, or nothing.
    """

    network_id: str
    created_at: datetime | None
    position: Position | None
    problem: str = ""


async def list_networks(config: RushConfig, prefix: str = "") -> list[NetworkSummary]:
    """Lists the networks of a server, or of all nodes of a cluster, in the order of their names.

    The servers look at each key of the database, some at a time.

    Args:
        config: the server.
        prefix: how the names begin.

    Raises:
        RushConnectionError: a server cannot be reached.
    """
    found: dict[str, NetworkSummary] = {}
    match = ("MATCH", pattern_of(prefix, "*}:meta"), "COUNT", _STEP, "TYPE", "hash")
    async with _links(config) as links:
        for link in links:
            cursor = b"0"
            while True:
                cursor, keys = await link.connection.ask("SCAN", cursor, *match)
                names = [name for key in keys if (name := _name_of(key)) is not None and name not in found]
                for first in range(0, len(names), _AT_ONCE):
                    read = await asyncio.gather(*[_read(link, name) for name in names[first : first + _AT_ONCE]])
                    found |= {summary.network_id: summary for summary in read if summary is not None}
                if cursor == b"0":
                    break
    return [found[name] for name in sorted(found)]


def _name_of(key: bytes) -> str | None:
    try:
        return check_network_id(key.decode()[len("rush:{") : -len("}:meta")])
    except (UnicodeDecodeError, RushConfigError):
        return None  # another program's


async def _read(link: Link, network_id: str) -> NetworkSummary | None:
    reads = TaskReads(link.connection, NetworkKeys.of(network_id, link.db), NetworkPosition(network_id))
    try:
        position = await reads.read_position()
    except RushConnectionError:
        raise
    except RushError as error:  # of a newer wire version, or of another program
        return NetworkSummary(network_id, None, None, str(error))
    if not position.epoch:
        return None  # it is being created
    return NetworkSummary(network_id, datetime.fromtimestamp(position.epoch / 1e6, UTC), position)


@asynccontextmanager
async def _links(config: RushConfig) -> AsyncGenerator[list[Link]]:
    """Opens a link to the server, or to each master of a cluster."""
    async with AsyncExitStack() as stack:
        leases = []
        if config.url is None:
            leases = [await start_server(config)]
            config = config.at(leases[0].url)
        links = [await Link.acquire(config, SOURCES, leases)]
        stack.push_async_callback(links[0].release)
        if links[0].slot is not None:
            ranges = await links[0].connection.ask("CLUSTER", "SLOTS")
            masters = {master[2]: (first, last) for first, last, master, *_ in ranges}  # any of its ranges leads to a master
            for first, last in masters.values():
                key = next(key for key in map(str, count()) if first <= (slot_of(config, key) or 0) <= last)
                link = await Link.acquire(config, SOURCES, (), key)
                stack.push_async_callback(link.release)
                links.append(link)
        yield links
