"""The one listening connection of an event loop to a server, open only while a channel has a listener."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Any, Protocol

import hiredis
from redis.backoff import ExponentialWithJitterBackoff

from rush_async.config import RushConfig
from rush_async.errors import RushConnectionError
from rush_async.supervisor import Supervisor
from rush_async.wire.refusals import acl_remedy, broken
from rush_async.wire.transport import FutureCommand, Opener, Transport, pack

__all__ = ["ChannelListener", "Subscription"]

logger = logging.getLogger(__name__)


class ChannelListener(Protocol):
    """Listens on a channel."""

    def heard(self, channel: str, message: bytes) -> None:
        """Is called with each message of the channel."""

    def confirmed(self, channel: str) -> None:
        """Is called after each confirmation by the server: messages that were published before it are lost."""


@dataclass(eq=False)
class _Channel:
    name: str
    listener: ChannelListener
    confirmed: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Subscription:
    """Listens on shard channels, and reconnects when the connection is lost.

    What was published while it was not connected is gone, so the listener of a channel hears of each confirmation: the first,
    and those after a reconnect.
    """

    def __init__(self, config: RushConfig, supervisor: Supervisor, opener: Opener) -> None:
        self._config = config
        self._opener = opener
        self._supervisor = supervisor
        self._channels: dict[str, _Channel] = {}
        self._transport: Transport | None = None
        self._gone = asyncio.Event()
        self._gone.set()
        self._loop = asyncio.get_running_loop()
        self._silence_timer: asyncio.TimerHandle | None = None
        self._failures = 0  # in a row
        self._is_running = False
        self._is_closed = False

    def subscribe(self, name: str, listener: ChannelListener) -> None:
        """Listens on a channel. Messages come after the next confirmation."""
        self._channels[name] = _Channel(name, listener)
        if not self._is_running:
            self._is_running = True
            self._supervisor.start(self._run)
        elif self._transport is not None and self._transport.is_open:
            self._ask(self._transport, [self._channels[name]])

    def unsubscribe(self, name: str) -> None:
        """Stops listening on a channel. The connection is closed with the last channel."""
        channel = self._channels.pop(name, None)
        if channel is not None and not channel.confirmed.done():
            channel.confirmed.cancel()
        if self._transport is not None and self._transport.is_open:
            if self._channels:
                self._transport.write([FutureCommand(pack(("SUNSUBSCRIBE", name)))])
            else:
                self._transport.drop()

    def renew(self) -> None:
        """Drops the connection. It is opened again, and the server confirms every subscription again."""
        if self._transport is not None:
            self._transport.drop()

    async def confirmed(self, name: str) -> None:
        """Waits until the server has confirmed a subscription for the first time.

        Raises:
            RushConnectionError: the server cannot be reached within the deadline, or refuses.
        """
        channel = self._channels[name]
        try:
            async with asyncio.timeout(self._config.retry_deadline + self._config.connect_timeout):
                await asyncio.shield(channel.confirmed)
        except TimeoutError:
            raise RushConnectionError(f"{self._config.where} did not confirm a subscription in time") from None

    def _ask(self, transport: Transport, channels: list[_Channel]) -> None:
        # One command a channel: the channels of different networks may lie in different slots.
        commands: list[FutureCommand] = []
        for channel in channels:
            command = FutureCommand(pack(("SSUBSCRIBE", channel.name)))
            command.future.add_done_callback(lambda future, channel=channel: self._confirm(channel, future))
            commands.append(command)
        transport.write(commands)

    def _confirm(self, channel: _Channel, future: asyncio.Future[Any]) -> None:
        if future.cancelled() or future.exception() is not None or self._channels.get(channel.name) is not channel:
            return
        reply = future.result()
        if isinstance(reply, hiredis.ReplyError):
            error = RushConnectionError(
                f"{self._config.where} does not let this user listen on {channel.name}: {reply}. {acl_remedy()}"
            )
            logger.error("%s", error)
            if not channel.confirmed.done():
                channel.confirmed.set_exception(error)
                channel.confirmed.exception()
            return
        self._failures = 0
        if not channel.confirmed.done():
            channel.confirmed.set_result(None)
        if self._supervisor.is_open:  # else the event loop is ending
            channel.listener.confirmed(channel.name)

    def pushed(self, message: list[Any]) -> None:
        """Passes a message to the listener of its channel."""
        if (channel := self._channels.get(message[1].decode())) is None:
            return
        if message[0] == b"smessage":
            channel.listener.heard(channel.name, message[2])
        elif message[0] == b"sunsubscribe":  # the slot has moved to another node
            self.renew()

    def _check_silence(self) -> None:
        """Asks a silent server whether it is there: the end of a machine ends no connection."""
        self._silence_timer = None
        transport, patience = self._transport, self._config.response_timeout
        if transport is None or not transport.is_open:
            return
        if self._loop.time() - transport.last_received >= patience:
            if transport.unanswered:
                transport.drop(TimeoutError(f"no byte for {patience:g} s"))
                return
            transport.write([FutureCommand(pack(("PING",)))])
        self._silence_timer = self._loop.call_later(patience, self._check_silence)

    def writable(self) -> None:
        """Does nothing: no command waits for this connection to become writable."""

    def lost(self, transport: Transport, error: Exception | None) -> None:
        """Is called when the connection is lost: `_run` opens the next one."""
        transport.fail_unanswered(broken(self._config.where, error))
        if transport is self._transport:  # else it broke while it was being opened
            self._gone.set()

    async def _run(self) -> None:
        backoff, self._failures = ExponentialWithJitterBackoff(base=0.01, cap=1.0), 0
        try:
            while self._channels and not self._is_closed:
                if self._failures:
                    await asyncio.sleep(backoff.compute(self._failures))
                self._failures += 1  # until a subscription is confirmed
                try:
                    transport = await self._opener.open(self, listens=True)
                except RushConnectionError as error:
                    if error.is_final:
                        self._fail(error)
                        break
                    logger.debug("cannot listen yet: %s", error)
                    continue
                self._transport = transport
                if not transport.is_open:
                    continue
                self._gone.clear()
                if self._silence_timer is None:
                    self._silence_timer = self._loop.call_later(self._config.response_timeout, self._check_silence)
                if self._channels and not self._is_closed:
                    self._ask(transport, list(self._channels.values()))
                else:
                    transport.drop()
                await self._gone.wait()
        finally:
            self._is_running = False
            if self._silence_timer is not None:
                self._silence_timer.cancel()
                self._silence_timer = None
            if self._transport is not None:
                self._transport.drop()

    def _fail(self, error: RushConnectionError) -> None:
        """The server has ended: no channel is ever confirmed."""
        for channel in self._channels.values():
            if not channel.confirmed.done():
                channel.confirmed.set_exception(error)
                channel.confirmed.exception()  # nothing may wait for it

    async def aclose(self) -> None:
        """Stops listening on all channels and closes the connection."""
        self._is_closed = True
        for name in list(self._channels):
            self.unsubscribe(name)
        if self._transport is not None:
            self._transport.drop()
            await self._gone.wait()
