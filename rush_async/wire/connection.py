"""The one command connection of an event loop to a server: it reconnects, and sends again what was not answered."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

import hiredis
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import RedisError

from rush_async.config import RushConfig
from rush_async.errors import RushConnectionError
from rush_async.supervisor import Supervisor
from rush_async.wire.refusals import broken, gave_up, refusal
from rush_async.wire.transport import Command, FutureCommand, Opener, Transport, Word, pack

__all__ = ["Connection", "Filler", "ServerWatcher"]

logger = logging.getLogger(__name__)

# Calls commands, each with the number of its words before it, and returns their replies.
_TOGETHER = """#!lua flags=no-writes
local replies, at = {}, 1
while at <= #ARGV do
  local n = tonumber(ARGV[at])
  replies[#replies + 1] = redis.call(unpack(ARGV, at + 1, at + n))
  at = at + n + 1
end
return replies"""
_IN_A_ROW = 10.0  # seconds after which another refusal of calls counts as the first


class Filler(Protocol):
    """Gathers what is issued in one tick of the event loop, so that it leaves as one command."""

    def fill(self) -> None:
        """Sends what was gathered. Is called before the next write."""

    def server_lost(self, reason: Exception) -> None:
        """Is called after each failed attempt to reconnect, while this filler waits for the server."""


class ServerWatcher(Protocol):
    """Waits for what the server tells."""

    def server_ended(self, error: RushConnectionError) -> None:
        """Is called when the server has ended and cannot come back."""


class Connection:
    """The one command connection of an event loop to a server: it reconnects, and sends again what was not answered.

    Every command may be sent twice: reads change nothing, and scripts recognise a repeated call by its number.

    Args:
        config: the server.
        supervisor: runs the reconnecting.
        opener: opens connections to the server.

    Attributes:
        ended: why the server cannot come back; None while it can.
        watchers: are called when it cannot.
    """

    def __init__(self, config: RushConfig, supervisor: Supervisor, opener: Opener) -> None:
        self.ended: RushConnectionError | None = None
        self.watchers: set[ServerWatcher] = set()
        self.config = config
        self.supervisor = supervisor
        self._opener = opener
        self._loop = asyncio.get_running_loop()
        self._transport: Transport | None = None
        self._waiting: deque[Command] = deque()  # to be written at the end of this tick, or after a reconnect
        self._due: list[Filler] = []  # called before the next write
        self._postponed: dict[Filler, None] = {}  # called when the server takes bytes again
        self._is_flush_due = False
        self._silence_timer: asyncio.TimerHandle | None = None
        self._lost_at = 0.0  # when the last connection that was lost had last received something
        self._is_closed = False
        self._is_checking = False
        self._gone = asyncio.Event()  # set when the transport of a closed connection has ended
        self._n_refusals = 0  # in a row
        self._refused_at = -math.inf
        self.n_reconnects = 0

    def _closed_error(self) -> RushConnectionError:
        if self.ended is not None:
            return RushConnectionError(self.ended.problem, self.ended.advice, is_final=True)
        return RushConnectionError(f"the connection to {self.config.where} is closed")

    async def open(self) -> None:
        """Opens the connection. Where a failover may be under way, it is tried again within `connect_timeout`.

        Raises:
            RushConnectionError: that fails.
        """
        backoff, failures = ExponentialWithJitterBackoff(base=0.01, cap=1.0), 0
        deadline = self._loop.time() + self.config.connect_timeout
        while True:
            try:
                self._transport = await self._opener.open(self)
                return
            except RushConnectionError as error:
                failures += 1
                pause = backoff.compute(failures)
                if not self._opener.moves or error.is_password_refused or self._loop.time() + pause > deadline:
                    raise
            await asyncio.sleep(pause)

    @property
    def is_ready(self) -> bool:
        """Whether a command that is sent now is written, or fails, at the end of this tick. While it is not, further calls are
        merged."""
        return self._is_closed or (self._transport is not None and self._transport.is_open and self._transport.is_writable)

    def patience(self, limit: float) -> float:
        """Returns what is left of `limit` seconds, less those for which the server has answered nothing while calls wait. So
        workers that close one by one wait for a frozen server together no longer than one of them."""
        transport, since = self._transport, self._loop.time()
        if transport is None:
            since = self._lost_at
        elif transport.unanswered:
            since = transport.last_received
        return max(limit - (self._loop.time() - since), 0.0)

    @property
    def is_away(self) -> bool:
        """Whether the connection is lost and was not opened again yet."""
        return self._transport is None

    def send(self, command: Command, since: float | None = None) -> None:
        """Sends a command at the end of this tick, or once the server is reached again.

        Args:
            command: the command.
            since: from when on its `retry_deadline` counts, in the time of the event loop; None counts from now.
        """
        if self._is_closed:
            command.failed(self._closed_error())
            return
        command.since = self._loop.time() if since is None else since
        self._waiting.append(command)
        self._flush_soon()

    async def ask(self, *words: Word) -> Any:
        """Sends one plain command and returns its reply; for reads."""
        return await self.result(self._send(pack(words), 1, (words,)))

    async def ask_together(self, *commands: tuple[Word, ...]) -> list[Any]:
        """Sends commands as one transaction and returns their replies; for reads."""
        return await self.result(self.begin_together(*commands))

    def begin_together(self, *commands: tuple[Word, ...]) -> FutureCommand:
        """Sends commands as one transaction at the end of this tick; `result` waits for their replies."""
        packed = [pack(command) for command in commands]
        return self._send(b"".join([pack(("MULTI",)), *packed, pack(("EXEC",))]), len(packed) + 2, commands)

    async def ask_script(self, by_digest: bytes, by_source: bytes) -> Any:
        """Calls a script that only reads: by its digest, or by its source where the server has forgotten it."""
        command = self._send(by_digest)
        reply = await command.future
        if isinstance(reply, hiredis.ReplyError) and str(reply).startswith("NOSCRIPT"):
            command = self._send(by_source)
        return await self.result(command)

    async def result(self, command: FutureCommand) -> Any:
        """Waits for the reply to a command.

        Raises:
            RushError: the server refused it.
        """
        reply: Any = await command.future
        if command.n_replies > 1 and isinstance(reply, hiredis.ReplyError) and str(reply).startswith("OOM"):
            # A full Redis refuses every command of a transaction, and no script that only reads.
            keys = {part[1]: None for part in command.parts}
            words: list[Word] = [word for part in command.parts for word in (len(part), *part)]
            return await self.result(self._send(pack(("EVAL", _TOGETHER, len(keys), *keys, *words))))
        # A transaction answers with a list, in which a command that fails while it is executed has an error of its own.
        replies: list[Any] = [reply] if command.n_replies == 1 or isinstance(reply, hiredis.ReplyError) else reply
        for at, each in enumerate(replies):
            if isinstance(each, hiredis.ReplyError):
                failed = command.parts[at] if command.parts else ()
                raise refusal(each, self.config.where, *failed[1:2])
        return reply

    def _send(self, payload: bytes, n_replies: int = 1, parts: Sequence[tuple[Word, ...]] = ()) -> FutureCommand:
        command = FutureCommand(payload, n_replies, parts)
        self.send(command)
        return command

    def fill_soon(self, filler: Filler) -> None:
        """Calls `filler.fill` once before the next write."""
        self._due.append(filler)
        self._flush_soon()

    def fill_when_ready(self, filler: Filler) -> None:
        """Calls `filler.fill` when the server takes bytes again, `filler.server_lost` after a failed attempt to reconnect."""
        self._postponed[filler] = None

    def writable(self) -> None:
        """The server takes bytes again."""
        self._due += self._postponed
        self._postponed.clear()
        self._flush_soon()

    def pushed(self, message: list[Any]) -> None:
        """No message is published on this connection."""

    def _flush_soon(self) -> None:
        if not self._is_flush_due:
            self._is_flush_due = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Writes what waits, after the fillers have added what they gathered."""
        due, self._due = self._due, []
        for filler in due:
            filler.fill()
        self._is_flush_due = False
        if self._due:  # a command failed at once, and its filler has more to send
            self._flush_soon()
        transport = self._transport
        if self._waiting and transport is not None and transport.is_open and transport.is_writable:
            commands = list(self._waiting)
            self._waiting.clear()
            transport.write(commands)
            if self._silence_timer is None:
                self._silence_timer = self._loop.call_later(self.config.response_timeout, self._check_silence)

    def _check_silence(self) -> None:
        self._silence_timer = None
        transport = self._transport
        if transport is None or not transport.unanswered:
            return
        patience = transport.last_received + self.config.response_timeout - self._loop.time()
        if patience <= 0:
            transport.drop(TimeoutError(f"no byte for {self.config.response_timeout:g} s with calls pending"))
        else:
            self._silence_timer = self._loop.call_later(patience, self._check_silence)

    def lost(self, transport: Transport, error: Exception | None) -> None:
        """Is called when the connection is lost: what was not answered is sent again on the next one."""
        if transport is not self._transport:  # it broke while it was being opened
            transport.fail_unanswered(broken(self.config.where, error))
            return
        self._transport, self._lost_at = None, transport.last_received
        for command in transport.unanswered:
            command.n_seen = 0
        self._waiting.extendleft(reversed(transport.unanswered))
        if self._is_closed or not self.supervisor.is_open:
            self._fail_waiting(self._closed_error(), 0)
            self._gone.set()
            return
        if isinstance(error, hiredis.ReplyError):
            # A server that refuses calls, such as a replica, is waited for no longer than one that cannot be reached.
            now = self._loop.time()
            self._n_refusals = self._n_refusals + 1 if now - self._refused_at < _IN_A_ROW else 1
            self._refused_at = now
            self._fail_waiting(
                RushConnectionError(f"{self.config.where} does not take calls: {error}"), self.config.retry_deadline
            )
        logger.warning("lost the connection to %s (%s): reconnecting", self.config.where, error or "closed by the server")
        self.supervisor.start(self._reconnect, error)

    async def _reconnect(self, error: Exception | None) -> None:
        # Full jitter keeps a thousand processes from coming back in step; the first try is at once.
        backoff = ExponentialWithJitterBackoff(base=0.01, cap=1.0)
        failures = self._n_refusals if isinstance(error, hiredis.ReplyError) else 0
        try:
            if failures > 1:
                await asyncio.sleep(backoff.compute(failures))
            while not self._is_closed:
                try:
                    transport = await self._opener.open(self)
                    if not transport.is_open:
                        raise RushConnectionError(f"{self.config.where} closed the connection at once")
                    self._transport = transport
                except RushConnectionError as reason:
                    if reason.is_final:
                        self._end(reason)
                        break
                    failures += 1
                    self._fail_waiting(reason, self.config.retry_deadline)
                    await asyncio.sleep(backoff.compute(failures))
                else:
                    self.n_reconnects += 1
                    logger.info("connected to %s again", self.config.where)
                    self.writable()
                    break
        finally:
            if self._transport is None:  # it was cancelled with all tasks of an event loop that ends
                self._is_closed = True
                self._fail_waiting(self._closed_error(), 0)
            elif self._is_closed:
                self._transport.drop()

    def _end(self, reason: RushConnectionError) -> None:
        """The server has ended and cannot come back."""
        logger.error("%s", reason)
        self.ended, self._is_closed = reason, True
        self._fail_waiting(reason, 0)
        self.writable()
        for watcher in tuple(self.watchers):
            watcher.server_ended(self._closed_error())

    def check_soon(self) -> None:
        """Looks whether the server is still the one that is meant. One that replicas do not follow may have been replaced."""
        if not self._is_checking and self.supervisor.is_open:
            self._is_checking = True
            self.supervisor.start(self._check)

    async def _check(self) -> None:
        try:
            await self._opener.check()
        except (RushConnectionError, RedisError, OSError) as error:
            logger.debug("cannot look for another server: %s", error)
        finally:
            self._is_checking = False

    def _fail_waiting(self, reason: Exception, patience: float) -> None:
        now = self._loop.time()
        commands, self._waiting = self._waiting, deque()
        for command in commands:
            if now - command.since < patience and not self._is_closed:
                self._waiting.append(command)
                continue
            error = gave_up(now - command.since, reason, was_sent=command.n_sent > 0)
            if self._is_closed:
                command.failed(error)
            elif command.given_up(error):
                command.since = math.inf
                self._waiting.append(command)
        for filler in list(self._postponed):
            filler.server_lost(reason)

    async def aclose(self) -> None:
        """Closes the connection. Commands that were not answered fail."""
        self._is_closed = True
        if self._silence_timer is not None:
            self._silence_timer.cancel()
        if self._transport is not None:
            self._transport.drop()
            await self._gone.wait()
        else:
            self._fail_waiting(self._closed_error(), 0)
