"""The events of reports. They have a channel and numbers of their own, so that only those who listen to them pay for them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Protocol

from rush_async.errors import DecodeError
from rush_async.store.keys import NetworkKeys
from rush_async.store.messages import ReportMessage, ResetMessage, decode_reports
from rush_async.store.position import NetworkPosition
from rush_async.wire.link import Link

__all__ = ["ReportFeed"]

logger = logging.getLogger(__name__)


class ReportReads(Protocol):
    """Reads reports."""

    @property
    def keys(self) -> NetworkKeys: ...

    async def read_last(self) -> tuple[int, int]:
        """Reads the epoch of the network and the number of its last report."""
        ...


class ReportListener(Protocol):
    """Gathers events of reports."""

    @property
    def known(self) -> tuple[int, int] | None:
        """The epoch and the number of the last report that it knows of."""
        ...

    def begin(self, epoch: int, seq: int) -> None: ...

    def take(self, message: ReportMessage | ResetMessage) -> None: ...

    def miss(self, epoch: int, seq: int, at: datetime) -> None: ...

    def roll_back(self, epoch: int, seq: int, at: datetime) -> None: ...


class ReportFeed:
    """The reports of one network as events, in one event loop. It is subscribed while it has listeners.

    Args:
        network_id: the network.
        link: the connections to its server.
        reports: reads the number of the last report after each confirmation of the subscription, because earlier messages are
            gone.
        position: a reset that is heard updates it.
    """

    def __init__(self, network_id: str, link: Link, reports: ReportReads, position: NetworkPosition) -> None:
        self._network_id = network_id
        self._link = link
        self._reports = reports
        self._position = position
        self._channel = reports.keys.report_events
        self._listeners: set[ReportListener] = set()
        self._following: asyncio.Event | None = None
        position.generation_watchers.add(self)

    @contextmanager
    def listening(self, listener: ReportListener) -> Generator[None]:
        """Gives a listener what is published from now on. `begin` tells it from which report on it wants events."""
        self._listeners.add(listener)
        if self._following is None:
            self._following = asyncio.Event()
            self._link.subscription.subscribe(self._channel, self)
        try:
            yield
        finally:
            self._listeners.discard(listener)
            if not self._listeners:
                self._following = None
                self._link.subscription.unsubscribe(self._channel)

    async def begin(self, listener: ReportListener) -> None:
        """Waits until reports are heard, and tells the listener the number of the last one: none is missed or comes twice.

        Raises:
            RushConnectionError: the server does not let this user listen, or cannot be reached.
            DecodeError: the number of the last report is malformed.
        """
        if (following := self._following) is None or following.is_set():
            listener.begin(*await self._reports.read_last())
            return
        await self._link.subscription.confirmed(self._channel)
        last = await self._reports.read_last()  # raises what keeps `_resynchronise` from its end
        await following.wait()
        listener.begin(*last)

    def confirmed(self, channel: str) -> None:
        """The server confirmed the subscription: what it published before is gone."""
        self._link.supervisor.start(self._resynchronise)

    async def _resynchronise(self) -> None:
        epoch, last = await self._link.retry_until_reachable(self._reports.read_last)
        for listener in tuple(self._listeners):
            listener.miss(epoch, last, datetime.now(UTC))
        if self._following is not None:
            self._following.set()

    def generation_changed(self) -> None:
        """Tells listeners when the network is at an earlier position than they know."""
        if self._listeners:
            self._link.supervisor.start(self._roll_back)

    async def _roll_back(self) -> None:
        known = {listener: listener.known for listener in self._listeners}
        epoch, last = await self._link.retry_until_reachable(self._reports.read_last)
        for listener, before in known.items():
            # Reports may be heard before the answer comes that does not have them yet.
            if listener in self._listeners and before is not None and (epoch, last) < before:
                listener.roll_back(epoch, last, datetime.now(UTC))

    def heard(self, channel: str, message: bytes) -> None:
        """Takes a message of the channel."""
        try:
            found = decode_reports(self._network_id, message)
        except DecodeError as error:
            logger.error("%s", error)
            return
        if isinstance(found, ResetMessage):
            self._position.take_reset(found.epoch, keeps_workers=found.keeps_workers)
        for listener in tuple(self._listeners):
            listener.take(found)
