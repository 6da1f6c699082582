"""The one command connection of an event loop to a server: it mends itself, and sends again what was not answered."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import hiredis
from redis.backoff import ExponentialWithJitterBackoff

from rush_async.config import RushConfig
from rush_async.errors import RushConnectionError
from rush_async.supervisor import Supervisor
from rush_async.wire.opening import open_transport
from rush_async.wire.refusals import refusal
from rush_async.wire.transport import Command, FutureCommand, Transport, Word, pack

__all__ = ["Connection", "gave_up"]

logger = logging.getLogger(__name__)

_IN_A_ROW = 10.0  # seconds after which a server that refuses calls is not known for that any more


class Connection:
    """The one command connection of an event loop to a server: it mends itself, and sends again what was not answered.

    Everything sent here may be executed again: reads by nature, everything else because the scripts know their calls.
    """

    def __init__(self, config: RushConfig, supervisor: Supervisor, scripts: Sequence[str] = ()) -> None:
        self.config = config
        self._scripts = scripts
        self._supervisor = supervisor
        self._loop = asyncio.get_running_loop()
        self._transport: Transport | None = None
        self._waiting: deque[Command] = deque()
        self._fillers: list[Callable[[], None]] = []
        self._postponed: dict[Callable[[], None], Callable[[Exception], None]] = {}
        self._is_flush_due = False
        self._watch: asyncio.TimerHandle | None = None
        self._is_closed = False
        self._gone = asyncio.Event()
        self._n_refusals = 0  # in a row
        self._refused_at = -math.inf
        self.n_reconnects = 0

    def _closed(self) -> RushConnectionError:
        return RushConnectionError(f"the connection to {self.config.where} is closed")

    async def open(self) -> None:
        """Opens the connection; raises `RushConnectionError` when that fails."""
        self._transport = await open_transport(self.config, self._scripts, self._lost, on_writable=self._go_on)

    @property
    def is_ready(self) -> bool:
        """Whether what is sent now leaves at the end of this tick; while it does not, merging goes on."""
        return self._transport is not None and self._transport.is_open and self._transport.is_writable

    def send(self, command: Command, since: float | None = None) -> None:
        """Sends a command at the end of this tick, or as soon as the server is back. `since`: when it was first wanted."""
        if self._is_closed:
            command.failed(self._closed())
            return
        command.since = self._loop.time() if since is None else since
        self._waiting.append(command)
        self._flush_soon()

    async def ask(self, *words: Word) -> Any:
        """Sends one plain command and returns its reply; for reads."""
        return self._checked(await self._send(pack(words), 1))

    async def ask_together(self, *commands: tuple[Word, ...]) -> list[Any]:
        """Sends commands as one transaction and returns their replies; for reads."""
        return self._checked(await self._send(*_transaction(commands)))

    def begin_together(
        self, *commands: tuple[Word, ...], on_leaving: Callable[[], None] | None = None
    ) -> Callable[[], Awaitable[list[Any]]]:
        """The same for a caller that waits for the replies later, which it does by what this returns.

        Args:
            commands: the transaction.
            on_leaving: called when it leaves, at the end of this tick; without it, it leaves at once, since what the caller
                does next keeps the loop from sending.
        """
        future = self._send(*_transaction(commands))
        if on_leaving is None:
            self.flush()
        else:
            self.fill_at_tick_end(on_leaving)

        async def replies() -> list[Any]:
            return self._checked(await future)

        return replies

    async def ask_script(self, payload: bytes, by_source: Callable[[], bytes]) -> Any:
        """Sends the call of a script that only reads; `by_source` writes it for a server that forgot its scripts."""
        reply = await self._send(payload, 1)
        if isinstance(reply, hiredis.ReplyError) and str(reply).startswith("NOSCRIPT"):
            reply = await self._send(by_source(), 1)
        return self._checked(reply)

    def _send(self, payload: bytes, n_replies: int) -> asyncio.Future[Any]:
        command = FutureCommand(payload, n_replies)
        self.send(command)
        return command.future

    def _checked(self, reply: Any) -> Any:
        if isinstance(reply, hiredis.ReplyError):
            raise refusal(reply, self.config)
        return reply

    def fill_at_tick_end(self, filler: Callable[[], None]) -> None:
        """Calls `filler` once before the next write, so that what was issued in this tick can leave as one command."""
        self._fillers.append(filler)
        self._flush_soon()

    def fill_when_ready(self, filler: Callable[[], None], on_trouble: Callable[[Exception], None]) -> None:
        """Calls `filler` when the server takes bytes again; `on_trouble` whenever that was tried in vain."""
        self._postponed[filler] = on_trouble

    def _go_on(self) -> None:
        self._fillers += self._postponed
        self._postponed.clear()
        self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._is_flush_due:
            self._is_flush_due = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Sends what there is before the tick ends."""
        fillers, self._fillers = self._fillers, []
        for filler in fillers:
            filler()
        self._is_flush_due = False
        transport = self._transport
        if self._waiting and transport is not None and transport.is_open and transport.is_writable:
            commands = list(self._waiting)
            self._waiting.clear()
            transport.write(commands)
            if self._watch is None:
                self._watch = self._loop.call_later(self.config.response_timeout, self._check_silence)

    def _check_silence(self) -> None:
        self._watch = None
        transport = self._transport
        if transport is None or not transport.unanswered:
            return
        patience = transport.last_received + self.config.response_timeout - self._loop.time()
        if patience <= 0:
            transport.drop(TimeoutError(f"no byte for {self.config.response_timeout:g} s with calls pending"))
        else:
            self._watch = self._loop.call_later(patience, self._check_silence)

    def _lost(self, transport: Transport, error: Exception | None) -> None:
        if transport is not self._transport:
            transport.fail_unanswered(self.config.where, error)  # it broke while it was being opened
            return
        self._transport = None
        for command in transport.unanswered:
            command.n_seen = 0
        self._waiting.extendleft(reversed(transport.unanswered))
        if self._is_closed or not self._supervisor.is_open:
            self._fail_waiting(self._closed(), 0)
            self._gone.set()
            return
        if isinstance(error, hiredis.ReplyError):
            # It is there, and takes no calls, such as a replica: they are not to wait longer than for one that is away.
            now = self._loop.time()
            self._n_refusals = self._n_refusals + 1 if now - self._refused_at < _IN_A_ROW else 1
            self._refused_at = now
            self._fail_waiting(
                RushConnectionError(f"{self.config.where} does not take calls: {error}"), self.config.retry_deadline
            )
        logger.warning("lost the connection to %s (%s): reconnecting", self.config.where, error or "closed by the server")
        self._supervisor.start(self._reconnect, error)

    async def _reconnect(self, error: Exception | None) -> None:
        # Full jitter keeps a thousand processes from coming back in step; the first try is at once.
        backoff = ExponentialWithJitterBackoff(base=0.01, cap=1.0)
        failures = self._n_refusals if isinstance(error, hiredis.ReplyError) else 0
        try:
            if failures > 1:
                await asyncio.sleep(backoff.compute(failures))
            while not self._is_closed:
                try:
                    transport = await open_transport(self.config, self._scripts, self._lost, on_writable=self._go_on)
                    if not transport.is_open:
                        raise RushConnectionError(f"{self.config.where} closed the connection at once")
                    self._transport = transport
                except RushConnectionError as reason:
                    failures += 1
                    self._fail_waiting(reason, self.config.retry_deadline)
                    await asyncio.sleep(backoff.compute(failures))
                else:
                    self.n_reconnects += 1
                    logger.info("connected to %s again", self.config.where)
                    self._go_on()
                    break
        finally:
            if self._transport is None:  # it was cancelled with all tasks of an event loop that ends
                self._is_closed = True
                self._fail_waiting(self._closed(), 0)
            elif self._is_closed:
                self._transport.drop()

    def _fail_waiting(self, reason: Exception, patience: float) -> None:
        now = self._loop.time()
        commands, self._waiting = self._waiting, deque()
        for command in commands:
            if now - command.since < patience and not self._is_closed:
                self._waiting.append(command)
                continue
            error = gave_up(now - command.since, reason, was_sent=command.was_sent)
            if self._is_closed:
                command.failed(error)
            elif command.given_up(error):
                command.since = math.inf
                self._waiting.append(command)
        for tell in list(self._postponed.values()):
            tell(reason)

    async def aclose(self) -> None:
        """Closes the connection; what was not answered fails."""
        self._is_closed = True
        if self._watch is not None:
            self._watch.cancel()
        if self._transport is not None:
            self._transport.drop()
            await self._gone.wait()
        else:
            self._fail_waiting(self._closed(), 0)


def gave_up(after: float, reason: Exception, *, was_sent: bool) -> RushConnectionError:
    """The error for a person whose call waited in vain."""
    error = RushConnectionError(
        f"gave up after {after:.3g} s: {reason}"
        + (" (it was sent, so it may have been executed)" if was_sent else " (it was never sent)")
    )
    error.__cause__ = reason
    return error


def _transaction(commands: Sequence[tuple[Word, ...]]) -> tuple[bytes, int]:
    """Its bytes, and how many replies they have; the last one is a list."""
    packed = [pack(command) for command in commands]
    return b"".join([pack(("MULTI",)), *packed, pack(("EXEC",))]), len(packed) + 2
