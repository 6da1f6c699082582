"""Opening and closing: a client from the moment it enters a network until it leaves, and what it knows without asking."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from html import escape
from types import TracebackType
from typing import Any, Self
from weakref import WeakSet

import anyio

from rush_async.config import RushConfig
from rush_async.errors import NetworkStateError, RushConnectionError
from rush_async.model import Counts
from rush_async.network.network import Network
from rush_async.plan import locate
from rush_async.store.keys import check_network_id, random_network_id
from rush_async.store.records import RecordEncoder
from rush_async.supervisor import run_to_completion
from rush_async.wire.link import process_generation

__all__ = ["Schema", "Session", "describe"]

logger = logging.getLogger(__name__)

Schema = Mapping[str, Any]


class _NotOpen:
    """Stands for the network of a client that is not open: whatever is asked of it says what to do."""

    def __init__(self, sentence: str) -> None:
        self.sentence = sentence

    @property
    def counts(self) -> Counts:
        raise NetworkStateError(self.sentence)


class _Unread:
    """Stands for the counters until the first of them is read: from then on the network is watched."""

    def __init__(self, client: Session, network: Network) -> None:
        self._client = client
        self._network = network

    @property
    def counts(self) -> Counts:
        self._network.watch_soon(self.begin_again)
        self._client._counters = self._network  # pyright: ignore[reportPrivateUsage]
        return self._network.counts

    def begin_again(self) -> None:
        """The network is not watched any more: the next one who reads begins to watch it."""
        if self._client._counters is self._network:  # pyright: ignore[reportPrivateUsage]
            self._client._counters = self  # pyright: ignore[reportPrivateUsage]


_open: WeakSet[Session] = WeakSet()


def _forget_all() -> None:
    for client in list(_open):
        client._counters = _NotOpen(client._of_parent)  # pyright: ignore[reportPrivateUsage]


os.register_at_fork(after_in_child=_forget_all)


class Session:
    """A client's stay in a network, opened by `async with` or by `await`; it may be closed in another task than that."""

    def __init__(
        self, network_id: str | None = None, config: RushConfig | str | None = None, *, schema: Schema | None = None
    ) -> None:
        self._network_id = random_network_id() if network_id is None else check_network_id(network_id)
        self._config, self._origin = locate(config)
        self._schema = dict(schema) if schema else None
        self._encoder = RecordEncoder(self._config.max_record_size)
        self._network: Network | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._generation = 0
        self._door = asyncio.Lock()  # held while it is opened or closed
        self._waiting: set[anyio.CancelScope] = set()
        self._n_seen = 0
        self._seen_generation = (0, 0)
        name = f"{type(self).__name__}({self._network_id!r})"
        self._not_open = _NotOpen(
            f"{name} is not open yet: write `async with {name} as rush: ...`, "
            f"or `rush = await {name}` and later `await rush.aclose()`"
        )
        self._counters: Network | _Unread | _NotOpen = self._not_open
        self._unread: _Unread | None = None

    # opening and closing

    def __await__(self) -> Generator[Any, None, Self]:
        return self.__aenter__().__await__()

    async def __aenter__(self) -> Self:
        if self._loop is not None:
            raise NetworkStateError(f"{self!r} was opened before: a client is opened once, make a new one")
        self._loop = asyncio.get_running_loop()
        self._generation = process_generation()
        async with self._door:
            return await self._open()

    async def _open(self) -> Self:
        try:
            network = self._network = await Network.acquire(self._network_id, self._config)
        except BaseException as error:
            self._loop = None
            if self._origin is None or not isinstance(error, RushConnectionError):
                raise
            raise RushConnectionError(f"{str(error).rstrip('.')}. The address came from {self._origin}") from error.__cause__
        assert network.link.config.url is not None
        self._config = self._config.at(network.link.config.url)
        try:
            network.heartbeat.watch(self._config.heartbeat_period, self._config.max_loop_stall)
            await self._enter(network)
        except BaseException:
            await run_to_completion(self._let_go())
            raise
        self._counters = self._unread = _Unread(self, network)
        _open.add(self)
        if network.counts.total:
            logger.info("network %r holds tasks already: %s", self._network_id, describe(network.counts))
        return self

    async def _enter(self, network: Network) -> None:
        """What a kind of client does to enter the network."""

    async def _leave(self, error: BaseException | None) -> None:
        """What a kind of client does before it lets go of the network."""

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close(error)

    async def aclose(self) -> None:
        """Closes the client, as leaving its block does. Closing it again does nothing."""
        await self._close(None)

    async def _close(self, error: BaseException | None) -> None:
        if self._loop is None or self._generation != process_generation():
            return
        self._check_loop()
        await run_to_completion(self._end_stay(error))

    async def _end_stay(self, error: BaseException | None) -> None:
        async with self._door:  # whoever closes it a second time waits for the first
            if self._network is None:
                return
            try:
                await self._leave(error)
            finally:
                await self._let_go()

    async def _let_go(self) -> None:
        _open.discard(self)
        network, self._network = self._network, None
        name = f"{type(self).__name__}({self._network_id!r})"
        self._counters = self._not_open = _NotOpen(f"{name} is closed: open a new one")
        for scope in self._waiting:
            scope.cancel()
        if network is not None:
            if self._unread is not None:
                network.forget_reader(self._unread.begin_again)
            await network.release()

    @contextmanager
    def _until_closed(self) -> Generator[None]:
        """What waits in this block ends with `NetworkStateError` when the client is closed, or was before: nobody would wake it
        any more."""
        if self._network is None:
            raise NetworkStateError(self._not_open.sentence)
        with anyio.CancelScope() as scope:
            self._waiting.add(scope)
            try:
                yield
            finally:
                self._waiting.discard(scope)
        if scope.cancelled_caught:
            raise NetworkStateError(self._not_open.sentence)

    def _check_loop(self) -> None:
        if asyncio.get_running_loop() is not self._loop:
            raise NetworkStateError(
                f"{type(self).__name__}({self._network_id!r}) was opened in another event loop: "
                "open one client in each loop, they share the network"
            )

    @property
    def _net(self) -> Network:
        network = self._network
        if network is None:
            raise NetworkStateError(self._not_open.sentence)
        if self._generation != process_generation():
            raise NetworkStateError(self._of_parent)
        if asyncio.get_running_loop() is not self._loop:
            self._check_loop()
        return network

    @property
    def _of_parent(self) -> str:
        return (
            f"{type(self).__name__}({self._network_id!r}) was opened before this process was forked: "
            "open a new client in the child"
        )

    # what is known without asking

    @property
    def network_id(self) -> str:
        """The network's name."""
        return self._network_id

    @property
    def config(self) -> RushConfig:
        """The settings in use; once open, with the `url` of the server."""
        return self._config

    @property
    def n_queued_tasks(self) -> int:
        """Number of queued tasks, as known here. Free to read; the first read begins to follow the network."""
        return self._counters.counts[0]

    @property
    def n_running_tasks(self) -> int:
        """Number of running tasks, as known here."""
        return self._counters.counts[1]

    @property
    def n_finished_tasks(self) -> int:
        """Number of finished tasks, as known here."""
        return self._counters.counts[2]

    @property
    def n_failed_tasks(self) -> int:
        """Number of failed tasks, as known here."""
        return self._counters.counts[3]

    @property
    def n_tasks(self) -> int:
        """Number of tasks in all states, as known here."""
        return self._counters.counts.total

    def __repr__(self) -> str:
        if self._network is None:
            return f"<{type(self).__name__} {self._network_id!r}, not open>"
        return "\n".join([f"── <{type(self).__name__}> {self._network_id} ".ljust(60, "─"), *self._status()])

    def _repr_html_(self) -> str:
        if self._network is None:
            return f"<p>{escape(repr(self))}</p>"
        rows = "".join(
            f"<tr><td>{escape(name)}</td><td>{value}</td></tr>"
            for name, value in (line.removeprefix("• ").split(": ") for line in self._status())
        )
        return f"<b>{type(self).__name__}</b> {escape(self._network_id)}<table>{rows}</table>"

    def _status(self) -> list[str]:
        assert self._network is not None
        self._network.watch_soon()
        counts = self._network.counts
        return [
            f"• Running Workers: {self._network.n_workers}",
            f"• Queued Tasks: {counts.queued}",
            f"• Running Tasks: {counts.running}",
            f"• Finished Tasks: {counts.finished}",
            f"• Failed Tasks: {counts.failed}",
        ]


def describe(counts: Counts) -> str:
    """The counts as words."""
    return f"{counts.queued:,} queued, {counts.running:,} running, {counts.finished:,} finished, {counts.failed:,} failed tasks"
