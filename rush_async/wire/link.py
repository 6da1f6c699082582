"""One server as one event loop sees it: a command connection, a listening one, and the tasks that keep them.

In a cluster the networks of one slot have a link of their own: the slot may move to another node at any time, and then its link
goes there, while those of other slots stay.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Protocol, Self, TypeVar

import anyio
import anyio.to_thread

from rush_async.config import RushConfig, connection_part
from rush_async.errors import RushConnectionError, RushError
from rush_async.process import LoopValue
from rush_async.supervisor import Supervisor, run_to_completion
from rush_async.wire.connection import Connection
from rush_async.wire.opening import ServerOpener
from rush_async.wire.subscription import Subscription
from rush_async.wire.topology import Topology, slot_of, url_db

__all__ = ["Link"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_PAUSE = 0.1  # seconds between two tries to find a server again that calls have given up on
_LONGEST_PAUSE = 2.0  # seconds, where it is there and refuses

_links = LoopValue[dict[tuple[RushConfig, int | None], "Link"]](dict)


class ServerHold(Protocol):
    """Keeps a server running until it is released."""

    @property
    def data_dir(self) -> Path | None:
        """Where the server keeps its data; None if it keeps nothing."""
        ...

    def release(self) -> None:
        """Releases the server. Blocks."""


class Link:
    """A server, shared by all clients of it in one event loop; the last one that lets go closes it.

    Attributes:
        config: the server.
        slot: in a cluster, the slot whose master it goes to.
    """

    connection: Connection
    subscription: Subscription

    def __init__(self, config: RushConfig, scripts: Sequence[str], slot: int | None) -> None:
        self.config = config
        self.slot = slot
        self._scripts = scripts
        self._users = 0
        self._opening = asyncio.Lock()
        self._is_open = False
        self._holds: list[ServerHold] = []
        self.supervisor = Supervisor("rush_async connection")

    @classmethod
    async def acquire(
        cls, config: RushConfig, scripts: Sequence[str] = (), holds: Sequence[ServerHold] = (), key: str = ""
    ) -> Self:
        """The link to the server that `config` names, opened if it was not.

        Args:
            config: the server, with its URL.
            scripts: the sources of the scripts that the server is taught.
            holds: keep the server running until the link is closed.
            key: one of the keys that are used, which tells the slot in a cluster.

        Raises:
            RushConnectionError: the server cannot be reached.
        """
        config = connection_part(config)
        links = _links.get()
        slot = slot_of(config, key)
        link = links.get((config, slot))
        if link is None:
            link = links[config, slot] = cls(config, scripts, slot)
        link._users += 1
        link._holds += holds
        try:
            async with link._opening:
                if not link._is_open:
                    await link._open()
                    link._is_open = True
        except BaseException:
            await run_to_completion(link.release())
            raise
        assert isinstance(link, cls)
        return link

    async def _open(self) -> None:
        await self.supervisor.open()
        opener = ServerOpener(self.config, self._scripts, Topology(self.config, self.slot))
        self.connection = Connection(self.config, self.supervisor, opener)
        self.subscription = Subscription(self.config, self.supervisor, opener)
        await self.connection.open()

    @property
    def is_embedded(self) -> bool:
        """Whether the server is one that this process keeps running."""
        return bool(self._holds)

    @property
    def data_dir(self) -> Path | None:
        """Where such a server keeps its data; None if it keeps nothing, or for any other server."""
        return self._holds[0].data_dir if self._holds else None

    @property
    def is_over(self) -> bool:
        """Whether its event loop has ended without having closed it."""
        return not self.supervisor.is_open

    async def retry_until_reachable(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Returns the answer of `ask`, which is called again while the server cannot be reached or refuses it."""
        pause = _PAUSE
        while True:
            try:
                return await ask()
            except RushError as error:
                logger.debug("%s does not answer yet: %s", self.config.where, error)
                await asyncio.sleep(pause)
                if not isinstance(error, RushConnectionError):
                    pause = min(2 * pause, _LONGEST_PAUSE)

    @property
    def db(self) -> int:
        """The number of the database in use."""
        return url_db(self.config)

    async def release(self) -> None:
        """Lets go; the last user closes everything."""
        self._users -= 1
        if self._users > 0:
            return
        links = _links.get()
        if links.get((self.config, self.slot)) is self:
            del links[self.config, self.slot]
        with anyio.CancelScope(shield=True):
            if self._is_open:
                self._is_open = False
                await self.subscription.aclose()
                await self.connection.aclose()
            await self.supervisor.aclose()
            for hold in self._holds:
                await anyio.to_thread.run_sync(hold.release)
