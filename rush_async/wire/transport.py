"""The wire itself: commands leave together, one write a tick of the event loop, and replies are matched first in, first out."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias, cast

import hiredis

__all__ = ["Command", "FutureCommand", "Opener", "ServerFinder", "Transport", "TransportOwner", "Word", "pack"]

logger = logging.getLogger(__name__)

# `Reader.gets()` answers False for "nothing yet", which a reply could be as well.
_NOTHING = object()

# With these the server says that it did not execute the command and that another time, or another server, may.
# UNBLOCKED ends the wait for replicas on a server that has become one itself: the call is repeated, and recognised.
_NOT_EXECUTED = frozenset(
    {"LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "MOVED", "ASK", "BUSY", "NOREPLICAS", "UNBLOCKED"}
)


Word: TypeAlias = str | bytes | int

# The C packer; its stub knows commands of one word only.
pack = cast("Callable[[tuple[Word, ...]], bytes]", hiredis.pack_command)  # pyright: ignore[reportUnknownMemberType]


class Command:
    """Bytes to send, and what to do with the reply: the last of `n_replies`, so that a transaction is one command.

    Attributes:
        since: when it was first wanted, in the event loop's time.
        n_sent: how often it was written and may have been executed.
    """

    __slots__ = ("n_replies", "n_seen", "n_sent", "payload", "since")

    def __init__(self, payload: bytes, n_replies: int = 1) -> None:
        self.payload = payload
        self.n_replies = n_replies
        self.n_seen = 0
        self.since = 0.0
        self.n_sent = 0

    def answered(self, reply: Any) -> None:
        """Takes the server's reply, which may be a `hiredis.ReplyError`."""
        raise NotImplementedError

    def passed(self, reply: Any) -> None:
        """Sees a reply before the last."""

    def failed(self, error: Exception) -> None:
        """There will be no reply."""
        raise NotImplementedError

    def given_up(self, error: Exception) -> bool:
        """The time to wait for the reply is up; True if the command is to be sent all the same, to learn what became of it."""
        self.failed(error)
        return False


class FutureCommand(Command):
    """A command whose reply is awaited.

    Args:
        payload: its bytes.
        n_replies: how many replies it gets.
        parts: the commands of a transaction.
    """

    __slots__ = ("_refusal", "future", "parts")

    def __init__(self, payload: bytes, n_replies: int = 1, parts: Sequence[tuple[Word, ...]] = ()) -> None:
        super().__init__(payload, n_replies)
        self.parts = parts
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._refusal: hiredis.ReplyError | None = None

    def answered(self, reply: Any) -> None:
        if self._refusal is not None and isinstance(reply, hiredis.ReplyError):
            reply = self._refusal  # a transaction that is discarded does not say why
        if not self.future.done():
            self.future.set_result(reply)

    def passed(self, reply: Any) -> None:
        if isinstance(reply, hiredis.ReplyError):
            self._refusal = self._refusal or reply  # the first is the reason, whatever the others are refused for

    def failed(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)
            self.future.exception()  # its caller may be gone


class TransportOwner(Protocol):
    """What a transport belongs to."""

    def lost(self, transport: Transport, error: Exception | None) -> None:
        """The connection is gone. Called once."""

    def writable(self) -> None:
        """The peer takes bytes again after it did not."""

    def pushed(self, message: list[Any]) -> None:
        """A published message arrived."""


class ServerFinder(Protocol):
    """Finds the server that a URL means, each time anew.

    Attributes:
        scheme: of a connection to it: `redis`, `rediss` or `unix`.
        options: what a connection of redis-py to it is made with.
        moves: whether `find` tells host and port, and others after a failover.
    """

    scheme: str
    options: dict[str, Any]
    moves: bool

    async def find(self) -> tuple[str, int] | None:
        """Returns host and port of the server; None where the options have them.

        Raises:
            RushConnectionError: it cannot be found.
        """
        ...


class Opener(Protocol):
    """Opens connections to one server.

    Attributes:
        moves: whether it may be another one after a failover.
    """

    moves: bool

    async def open(self, owner: TransportOwner, *, listens: bool = False) -> Transport:
        """Opens a connection that takes commands, or one that `listens` to published messages.

        Raises:
            RushConnectionError: the server cannot be reached, or refuses this client.
        """
        ...

    async def check(self) -> None:
        """Ends connections to a server that is not the one that is meant any more: they are opened anew."""
        ...


class Transport(asyncio.Protocol):
    """One open connection.

    Args:
        owner: learns of published messages and of the end of the connection.
        listens: whether messages are published on it; without, a reply that no command asked for ends the connection.
    """

    def __init__(self, owner: TransportOwner, *, listens: bool = False) -> None:
        self.unanswered: deque[Command] = deque()
        self.last_received = 0.0
        self.is_writable = True
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        self._owner = owner
        self._listens = listens
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._previous: asyncio.BaseProtocol | None = None
        self._stream: object = None
        self._error: Exception | None = None

    def adopt(self, transport: asyncio.Transport, stream: object) -> None:
        """Takes over an open connection from the protocol that made it, and keeps its stream alive until its end."""
        self._previous = transport.get_protocol()
        self._stream = stream
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
            self.last_received = self._loop.time()  # from here on the server's silence counts
        self.unanswered.extend(commands)
        for command in commands:
            command.n_sent += 1
        self._transport.write(b"".join([command.payload for command in commands]))

    def drop(self, reason: Exception | None = None) -> None:
        """Ends the connection at once; the owner learns the reason."""
        self._error = self._error or reason
        if self._transport is not None:
            self._transport.abort()

    def fail_unanswered(self, error: Exception) -> None:
        """Fails what was asked: the connection broke while it was being opened, so it is not asked again."""
        while self.unanswered:
            self.unanswered.popleft().failed(error)

    # what asyncio calls

    def data_received(self, data: bytes) -> None:
        self.last_received = self._loop.time()
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not _NOTHING and self.is_open:
                self._take(reply)
        except hiredis.ProtocolError as error:
            self.drop(error)

    def _take(self, reply: object) -> None:
        if self._listens and (not self.unanswered or _is_message(reply, self.unanswered[0])):
            if isinstance(reply, list):
                self._owner.pushed(cast("list[Any]", reply))
            return
        if not self.unanswered:
            self.drop(hiredis.ProtocolError("the server sent a reply that no command asked for"))
            return
        command = self.unanswered[0]
        if isinstance(reply, hiredis.ReplyError) and str(reply).partition(" ")[0] in _NOT_EXECUTED:
            command.n_seen = 0
            self.drop(reply)  # with this command and all behind it still unanswered: they are sent again, in order
            return
        command.n_seen += 1
        if command.n_seen < command.n_replies:
            command.passed(reply)
            return
        command.n_seen = 0  # it may be sent again
        self.unanswered.popleft()
        try:
            command.answered(reply)
        except Exception as error:  # whatever the reply was, its caller gets an answer and the next replies are read
            logger.exception("a reply could not be taken: %r", str(reply)[:200])
            command.failed(error)

    def pause_writing(self) -> None:
        self.is_writable = False

    def resume_writing(self) -> None:
        self.is_writable = True
        self._owner.writable()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        # The protocol that opened the connection waits for this call when it is asked to disconnect.
        try:
            if self._previous is not None:
                self._previous.connection_lost(exc)
        finally:
            self._stream = None
            self._owner.lost(self, self._error or exc)


def _is_message(reply: object, asked: Command) -> bool:
    """Whether a reply is a message, or the end of a subscription that was not asked for: the node has lost the slot."""
    words = cast("list[Any]", reply) if isinstance(reply, list) else []
    return words[:1] == [b"smessage"] or (words[:1] == [b"sunsubscribe"] and asked.payload != pack(("SUNSUBSCRIBE", words[1])))
