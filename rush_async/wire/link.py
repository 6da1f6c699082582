"""One server as one event loop sees it: a command connection, a listening one, and the tasks that keep them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Self, TypeVar

import anyio
import anyio.to_thread

from rush_async.config import RushConfig
from rush_async.embedded.server import ServerLease, acquire
from rush_async.errors import RushConfigError, RushConnectionError, RushError
from rush_async.process import LoopValue
from rush_async.supervisor import Supervisor, run_to_completion
from rush_async.wire.connection import Connection
from rush_async.wire.opening import ServerOpener, url_db
from rush_async.wire.subscription import Subscription

__all__ = ["Link"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_PAUSE = 0.1  # seconds between two tries to find a server again that calls have given up on
_LONGEST_PAUSE = 2.0  # seconds, where it is there and refuses

_links = LoopValue[dict[RushConfig, "Link"]](dict)


class Link:
    """A server, shared by all clients of it in one event loop; the last one that lets go closes it.

    Attributes:
        config: as asked for, with the `url` of the embedded server where that was meant.
    """

    connection: Connection
    subscription: Subscription

    def __init__(self, config: RushConfig, scripts: Sequence[str]) -> None:
        self.config = config
        self._scripts = scripts
        self._users = 0
        self._opening = asyncio.Lock()
        self._is_open = False
        self._leases: list[ServerLease] = []
        self.supervisor = Supervisor("rush_async connection")

    @classmethod
    async def acquire(cls, config: RushConfig, scripts: Sequence[str] = ()) -> Self:
        """The link to the server that `config` names, opened if it was not; `scripts` are the sources that it is taught.

        Raises:
            RushConnectionError: the server cannot be reached.
            ServerStartError: the embedded server did not start.
        """
        leases: list[ServerLease] = []
        try:
            if config.url is None:
                await run_to_completion(_start(config, leases))
                config = config.at(leases[0].url)
            config = config.of_connection
            links = _links.get()
            link = links.get(config)
            if link is None:
                link = links[config] = cls(config, scripts)
            link._users += 1
        except BaseException:
            for lease in leases:
                lease.release()
            raise
        link._leases += leases
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
        opener = ServerOpener(self.config, self._scripts)
        self.connection = Connection(self.config, self.supervisor, opener)
        self.subscription = Subscription(self.config, self.supervisor, opener)
        await self.connection.open()

    @property
    def is_embedded(self) -> bool:
        """Whether the server is one that this process holds a lease of."""
        return bool(self._leases)

    @property
    def is_over(self) -> bool:
        """Whether its event loop has ended without having closed it."""
        return not self.supervisor.is_open

    async def retry_until_reachable(self, ask: Callable[[], Awaitable[T]]) -> T:
        """What a question answers that is asked again when the server is gone for longer than calls wait, or refuses it."""
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
        if links.get(self.config) is self:
            del links[self.config]
        with anyio.CancelScope(shield=True):
            if self._is_open:
                self._is_open = False
                await self.subscription.aclose()
                await self.connection.aclose()
            await self.supervisor.aclose()
            for lease in self._leases:
                await anyio.to_thread.run_sync(lease.release)


async def _start(config: RushConfig, leases: list[ServerLease]) -> None:
    if config.wait_replicas:
        raise RushConfigError("the embedded server has no replicas: leave wait_replicas out, or name a server with the url")
    data_dir = Path(config.data_dir) if config.data_dir is not None else None
    leases.append(await anyio.to_thread.run_sync(lambda: acquire(data_dir, appendfsync=config.appendfsync)))
