"""The wire itself: commands leave together, one write a tick of the event loop, and replies are matched first in, first out."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, cast

import hiredis

from rush_async.errors import RushConnectionError

__all__ = ["Command", "FutureCommand", "Transport", "Word", "pack"]

# `Reader.gets()` answers False for "nothing yet", which a reply could be as well.
_NOTHING = object()

# With these the server says that it did not execute the command and that another time, or another server, may.
_NOT_EXECUTED = ("LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "MOVED", "ASK", "BUSY")


Word: TypeAlias = str | bytes | int

# The C packer; its stub knows commands of one word only.
pack = cast("Callable[[tuple[Word, ...]], bytes]", hiredis.pack_command)  # pyright: ignore[reportUnknownMemberType]


class Command:
    """Bytes to send, and what to do with the reply: the last of `n_replies`, so that a transaction is one command."""

    __slots__ = ("n_replies", "n_seen", "payload", "since", "was_sent")

    def __init__(self, payload: bytes, n_replies: int = 1) -> None:
        self.payload = payload
        self.n_replies = n_replies
        self.n_seen = 0
        self.since = 0.0
        self.was_sent = False

    def answered(self, reply: Any) -> None:
        """Takes the server's reply, which may be a `hiredis.ReplyError`."""
        raise NotImplementedError

    def passed(self, reply: Any) -> None:
        """Sees a reply before the last."""

    def failed(self, error: Exception) -> None:
        """Learns that there will be no reply."""
        raise NotImplementedError

    def given_up(self, error: Exception) -> bool:
        """Learns that nobody waits for the reply any longer; whether it is to be sent all the same, to learn what became
        of it."""
        self.failed(error)
        return False


class FutureCommand(Command):
    """A command whose reply somebody awaits."""

    __slots__ = ("_refusal", "future")

    def __init__(self, payload: bytes, n_replies: int = 1) -> None:
        super().__init__(payload, n_replies)
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._refusal: hiredis.ReplyError | None = None

    def answered(self, reply: Any) -> None:
        if self._refusal is not None and isinstance(reply, hiredis.ReplyError):
            reply = self._refusal  # a transaction that is discarded does not say why
        if not self.future.done():
            self.future.set_result(reply)

    def passed(self, reply: Any) -> None:
        if isinstance(reply, hiredis.ReplyError):
            self._refusal = reply

    def failed(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)
            self.future.exception()  # whoever waits sees it; nobody may be waiting any more


class Transport(asyncio.Protocol):
    """One open connection.

    Args:
        on_lost: called once when the connection is gone.
        on_push: called with published messages; without it a reply that nobody asked for ends the connection.
        on_writable: called when the peer takes bytes again after it did not.
    """

    def __init__(
        self,
        on_lost: Callable[[Transport, Exception | None], None],
        on_push: Callable[[list[Any]], None] | None = None,
        on_writable: Callable[[], None] | None = None,
    ) -> None:
        self.unanswered: deque[Command] = deque()
        self.last_received = 0.0
        self.is_writable = True
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        self._on_lost = on_lost
        self._on_push = on_push
        self._on_writable = on_writable
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._previous: asyncio.BaseProtocol | None = None
        self._release: Callable[[], None] | None = None
        self._error: Exception | None = None

    def adopt(self, transport: asyncio.Transport, release: Callable[[], None]) -> None:
        """Takes over an open connection from the protocol that made it; `release` is called at its end."""
        self._previous = transport.get_protocol()
        self._release = release
        self._transport = transport
        self.last_received = self._loop.time()
        transport.set_protocol(self)

    @property
    def is_open(self) -> bool:
        """Whether commands may be written."""
        return self._transport is not None and not self._transport.is_closing()

    def write(self, commands: Sequence[Command]) -> None:
        """Sends commands in one write."""
        assert self._transport is not None
        if not self.unanswered:
            self.last_received = self._loop.time()  # the patience with a silent server begins here
        self.unanswered.extend(commands)
        for command in commands:
            command.was_sent = True
        self._transport.write(b"".join([command.payload for command in commands]))

    def drop(self, reason: Exception | None = None) -> None:
        """Ends the connection at once; `on_lost` is called with the reason."""
        self._error = self._error or reason
        if self._transport is not None:
            self._transport.abort()

    def fail_unanswered(self, where: str, error: Exception | None) -> None:
        """What was asked fails: the connection broke while it was being opened, so nobody will ask again."""
        reason = RushConnectionError(f"the connection to {where} broke: {error}")
        reason.__cause__ = error
        while self.unanswered:
            self.unanswered.popleft().failed(reason)

    # what asyncio calls

    def data_received(self, data: bytes) -> None:
        self.last_received = self._loop.time()
        try:
            self._reader.feed(data)
            while self.is_open and (reply := self._reader.gets()) is not _NOTHING:
                self._take(reply)
        except hiredis.ProtocolError as error:
            self.drop(error)

    def _take(self, reply: object) -> None:
        if self._on_push is not None and (not self.unanswered or _is_message(reply)):
            if isinstance(reply, list):
                self._on_push(cast("list[Any]", reply))
            return
        if not self.unanswered:
            self.drop(hiredis.ProtocolError("the server sent a reply that nobody asked for"))
            return
        command = self.unanswered[0]
        if isinstance(reply, hiredis.ReplyError) and str(reply).partition(" ")[0] in _NOT_EXECUTED:
            command.n_seen = 0
            self.drop(reply)  # with this command and all behind it still unanswered: they are sent again, in order
            return
        command.n_seen += 1
        if command.n_seen == command.n_replies:
            command.n_seen = 0  # it may be sent again
            self.unanswered.popleft()
            command.answered(reply)
        else:
            command.passed(reply)

    def pause_writing(self) -> None:
        self.is_writable = False

    def resume_writing(self) -> None:
        self.is_writable = True
        if self._on_writable is not None:
            self._on_writable()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        # The protocol that opened the connection waits for this call when it is asked to disconnect.
        if self._previous is not None:
            self._previous.connection_lost(exc)
        if self._release is not None:
            self._release()
        self._on_lost(self, self._error or exc)


def _is_message(reply: object) -> bool:
    return isinstance(reply, list) and cast("list[object]", reply)[:1] == [b"smessage"]
