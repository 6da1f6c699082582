"""A proxy between a client and a real server that breaks their connections at chosen commands.

    async with Proxy(server_url, directory) as proxy:
        lost = proxy.drop_reply(named("RPUSH"))
        ...  # a client of proxy.url sends RPUSH: the server executes it, the client loses its connection
        assert lost.hit.is_set() and proxy.count("RPUSH") == 1

The proxy cuts both streams into frames of the Redis protocol (RESP2 and RESP3) and matches replies to requests first in,
first out, so a fault strikes exactly one command, whatever is pipelined around it. On a connection whose replies do not
come in that order (after SUBSCRIBE, MONITOR, SYNC, CLIENT REPLY ...) the proxy forwards everything: it still records
commands and can cut the connection, but faults that need a reply do not strike there.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeVar
from urllib.parse import urlsplit

__all__ = ["Command", "Fault", "LateCopy", "Predicate", "Proxy", "named"]

Command = tuple[bytes, ...]
Predicate = Callable[[Command], bool]

_CHUNK = 65536
_BLOBS = b"$=!"
_AGGREGATES = b"*~>%|"
_PAIRS = b"%|"
_WITHOUT_ORDER = (
    b"SUBSCRIBE",
    b"PSUBSCRIBE",
    b"SSUBSCRIBE",
    b"UNSUBSCRIBE",
    b"PUNSUBSCRIBE",
    b"SUNSUBSCRIBE",
    b"MONITOR",
    b"SYNC",
    b"PSYNC",
)
_numbers = count(1)


def named(name: str, *args: str | bytes) -> Predicate:
    """A predicate for the command of this name whose first arguments are `args`.

    Args:
        name: the command in any case; several words for a subcommand, as in `"CLIENT SETINFO"`.
        args: the first arguments, byte for byte.
    """
    words = tuple(word.upper() for word in name.encode().split())
    rest = tuple(arg.encode() if isinstance(arg, str) else arg for arg in args)

    def matches(command: Command) -> bool:
        head = tuple(word.upper() for word in command[: len(words)])
        return head == words and command[len(words) : len(words) + len(rest)] == rest

    return matches


class Fault:
    """An armed fault: it strikes once, at the first command that its predicate accepts.

    Attributes:
        hit: set when the fault has struck.
        command: the command that it struck; None before.
        reply: the raw reply that the client did not receive; only of a dropped reply, after it has struck.
    """

    needs_reply = False

    def __init__(self, predicate: Predicate) -> None:
        self.predicate = predicate
        self.hit = asyncio.Event()
        self.command: Command | None = None
        self.reply: bytes | None = None


F = TypeVar("F", bound=Fault)


class CutBefore(Fault):
    """Cuts the client's connection before the request reaches the server."""


class DropReply(Fault):
    """Lets the server execute the request and cuts the client's connection instead of delivering the reply."""

    needs_reply = True

    def __init__(self, predicate: Predicate, keep: int) -> None:
        super().__init__(predicate)
        self.keep = keep


class LateCopy(Fault):
    """Cuts the client's connection and holds the request, to send it to the server later."""

    needs_reply = True

    def __init__(self, predicate: Predicate) -> None:
        super().__init__(predicate)
        self.delivered = False
        self._connection: _Connection | None = None
        self._request = b""

    def hold(self, connection: _Connection, request: bytes) -> None:
        """Keeps the connection and the request for `deliver`."""
        self._connection, self._request = connection, request

    async def deliver(self) -> bytes:
        """Sends the held request on the old connection to the server; a second call sends another copy.

        Returns:
            The server's raw reply, which no client receives.

        Raises:
            RuntimeError: no request is held yet.
            ConnectionResetError: the old connection to the server is closed, so the copy can never arrive.
        """
        if self._connection is None:
            raise RuntimeError("No request is held yet. Wait for it: await fault.hit.wait().")
        self.delivered = True
        return await self._connection.send_late(self._request)

    def discard(self) -> None:
        """Closes the old connection to the server: no copy can arrive any more."""
        self.delivered = True
        if self._connection is not None:
            self._connection.cut()


class Frames:
    """Cuts a stream of RESP into whole frames; with `inline` also the plain lines that servers accept as requests."""

    def __init__(self, *, inline: bool = False) -> None:
        self._inline = inline
        self._buffer = bytearray()
        self._pos: int = 0  # where scanning continues
        self._due = 1  # values still missing from the frame

    def feed(self, data: bytes) -> None:
        """Appends bytes of the stream."""
        self._buffer += data

    def rest(self) -> bytes:
        """Takes all bytes that are left, whole frames or not."""
        rest = bytes(self._buffer)
        self._cut(len(self._buffer))
        return rest

    def next(self) -> bytes | None:
        """Takes the next whole frame; None when it is not complete yet.

        Raises:
            ValueError: the stream is not RESP.
        """
        while self._due:
            end = self._buffer.find(b"\r\n", self._pos)
            if end < 0:
                return None
            kind = self._buffer[self._pos]
            stop = end + 2
            values = 0
            if self._inline and self._pos == 0 and kind != ord("*"):
                pass
            elif kind in _BLOBS:
                size = self._size(end)
                if size >= 0:
                    stop += size + 2
                if len(self._buffer) < stop:
                    return None
            elif kind in _AGGREGATES:
                values = max(self._size(end), 0) * (2 if kind in _PAIRS else 1)
            elif kind not in b"+-:_,#(":
                raise ValueError(f"The stream is not RESP: a value starts with {bytes(self._buffer[self._pos : end][:40])!r}.")
            # An attribute comes before the value that it describes, and is no value itself.
            self._due += values - (kind != ord("|"))
            self._pos = stop
        frame = bytes(self._buffer[: self._pos])
        self._cut(self._pos)
        return frame

    def _size(self, end: int) -> int:
        return int(self._buffer[self._pos + 1 : end])

    def _cut(self, stop: int) -> None:
        del self._buffer[:stop]
        self._pos = 0
        self._due = 1


def parse_request(frame: bytes) -> Command:
    """Returns the name and arguments of a whole request; empty for an empty request, which servers skip without a reply."""
    if frame[:1] != b"*":
        return tuple(frame.split())
    parts: list[bytes] = []
    pos = frame.index(b"\r\n") + 2
    while pos < len(frame):
        end = frame.index(b"\r\n", pos)
        start, size = end + 2, int(frame[pos + 1 : end])
        parts.append(frame[start : start + size])
        pos = start + size + 2
    return tuple(parts)


def _leaves_order(command: Command) -> bool:
    return command[0].upper() in _WITHOUT_ORDER or named("CLIENT REPLY")(command)


def _close(server: asyncio.Server | None, turns: int) -> None:
    """Closes a server after some turns of the event loop.

    asyncio of Python 3.11 never closes a connection that it accepted and had not handed over when the server was closed. No
    client connects meanwhile where the socket has no path any more.
    """
    if server is not None and turns:
        asyncio.get_running_loop().call_soon(_close, server, turns - 1)
    elif server is not None:
        server.close()


class _Expected:
    """A reply that the server owes: the fault that drops it, or the late copy that awaits it, or neither."""

    __slots__ = ("drop", "late")

    def __init__(self, *, drop: DropReply | None = None, late: asyncio.Future[bytes] | None = None) -> None:
        self.drop = drop
        self.late = late


class _Connection:
    """One client's connection and its own connection to the server."""

    def __init__(self, proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.proxy = proxy
        self.reader = reader
        self.writer = writer
        self.upstream: asyncio.StreamWriter | None = None
        self.expected: deque[_Expected] = deque()
        self.without_order = False
        self.held = False  # the client's side is cut, the server's side is kept for a late copy
        self.task = asyncio.create_task(self._run())

    @property
    def open(self) -> bool:
        return not self.writer.is_closing()

    def cut(self) -> None:
        """Closes both sides at once and drops what was not delivered yet."""
        self.writer.transport.abort()
        if self.upstream is not None:
            self.upstream.transport.abort()
        self.task.cancel()

    async def send_late(self, request: bytes) -> bytes:
        if self.upstream is None or self.upstream.is_closing():
            raise ConnectionResetError("The old connection to the server is closed: a late copy can no longer arrive on it.")
        late = asyncio.get_running_loop().create_future()
        self.expected.append(_Expected(late=late))
        self._write_up(request)
        return await late

    async def _run(self) -> None:
        try:
            try:
                reader, self.upstream = await self.proxy.connect_upstream()
            except OSError:
                return  # the server is down: the client's connection is closed
            async with asyncio.TaskGroup() as pumps:
                up = pumps.create_task(self._pump_up())
                down = pumps.create_task(self._pump_down(reader))
                await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
                if self.held:
                    await asyncio.wait({down})
                up.cancel()
                down.cancel()
        finally:
            await self._close()

    async def _close(self) -> None:
        for expected in self.expected:
            if expected.late is not None and not expected.late.done():
                expected.late.set_exception(
                    ConnectionResetError("The server closed the old connection before it answered the late copy.")
                )
        writers = [writer for writer in (self.writer, self.upstream) if writer is not None]
        for writer in writers:
            writer.close()
        for writer in writers:
            with suppress(OSError):
                await writer.wait_closed()

    async def _pump_up(self) -> None:
        requests = Frames(inline=True)
        with suppress(OSError):
            while data := await self.reader.read(_CHUNK):
                requests.feed(data)
                batch = list(self._recorded(requests))
                for request, command in batch:
                    await self.proxy.up_flows.wait()
                    if not self._pass_up(request, command):
                        return
                if self.upstream is not None:
                    await self.upstream.drain()

    def _recorded(self, requests: Frames) -> Iterator[tuple[bytes, Command]]:
        while (request := requests.next()) is not None:
            command = parse_request(request)
            if command:
                self.proxy.record(command)
            yield request, command

    def _pass_up(self, request: bytes, command: Command) -> bool:
        """Sends a request to the server, or lets a fault strike; returns False when the client's connection is cut."""
        if not command:
            self._write_up(request)
            return True
        if _leaves_order(command):
            self.without_order = True
        fault = self.proxy.take_fault(command, with_reply=not self.without_order)
        if isinstance(fault, CutBefore | LateCopy):
            if isinstance(fault, LateCopy):
                fault.hold(self, request)
                self.held = True
            self.writer.transport.abort()
            fault.hit.set()
            return False
        if not self.without_order:
            self.expected.append(_Expected(drop=fault if isinstance(fault, DropReply) else None))
        self._write_up(request)
        return True

    def _write_up(self, request: bytes) -> None:
        if self.upstream is not None and not self.upstream.is_closing():
            self.upstream.write(request)
            self.proxy.bytes_up += len(request)

    async def _pump_down(self, reader: asyncio.StreamReader) -> None:
        replies = Frames()
        with suppress(OSError):
            while data := await reader.read(_CHUNK):
                replies.feed(data)
                while self.expected or not self.without_order:
                    if (frame := replies.next()) is None:
                        break
                    await self._flow()
                    if not await self._pass_down(frame):
                        return
                if self.without_order and not self.expected:
                    await self._flow()
                    await self._write_down(replies.rest())
                if self.open:
                    await self.writer.drain()

    async def _flow(self) -> None:
        if not self.held:  # no client receives replies to late copies, so these are never frozen
            await self.proxy.down_flows.wait()
            if self.proxy.reply_delay:
                await asyncio.sleep(self.proxy.reply_delay)

    async def _pass_down(self, frame: bytes) -> bool:
        """Delivers a reply or a push, or drops it; returns False when the client's connection is cut."""
        if frame[:1] == b">" or not self.expected:
            await self._write_down(frame)
            return True
        expected = self.expected.popleft()
        if expected.late is not None:
            if not expected.late.done():
                expected.late.set_result(frame)
        elif expected.drop is not None:
            await self._write_down(frame[: expected.drop.keep])
            self.writer.close()  # not abort: the replies before this one are delivered
            expected.drop.reply = frame
            expected.drop.hit.set()
            return False
        else:
            await self._write_down(frame)
        return True

    async def _write_down(self, data: bytes) -> None:
        size = self.proxy.reply_pieces or max(1, len(data))
        for at in range(0, len(data), size):
            if at and self.open:  # the client reads what was written before the next piece is
                await self.writer.drain()
                await asyncio.sleep(0)
            if self.open:
                piece = data[at : at + size]
                self.writer.write(piece)
                self.proxy.bytes_down += len(piece)


class Proxy:
    """Listens for clients and gives each connection its own connection to the server.

    Args:
        upstream_url: the server, `unix:///path` or `redis://host:port`; clients log in themselves.
        directory: where the proxy makes its unix socket; None listens on a free port of 127.0.0.1.
        keeps_commands: whether to record the commands in `commands`, which takes memory for each.

    Attributes:
        commands: every command that clients sent, in the order in which the proxy read them, those struck by faults included.
        n_connections: connections accepted so far, without the refused ones.
        n_refused: connections accepted and closed at once.
        bytes_up: bytes sent to the server.
        bytes_down: bytes delivered to clients.
        reply_delay: seconds by which each reply and message is delayed.
        reply_pieces: how many bytes of a reply or message are delivered at once, the next ones a turn of the event loop later;
            0 delivers it whole.

    Raises:
        ValueError: the URL is of another kind.
        ExceptionGroup: at the end of the block, when the proxy itself failed, for example on a stream that is not RESP; an
            exception of the test gets a note instead.
    """

    def __init__(self, upstream_url: str, directory: Path | None = None, *, keeps_commands: bool = True) -> None:
        self._upstream = urlsplit(upstream_url)
        if self._upstream.scheme not in ("unix", "redis"):
            raise ValueError(f"{upstream_url!r} is no server the proxy can reach: give unix:///path or redis://host:port.")
        self._socket = None if directory is None else directory / f"proxy-{next(_numbers)}.sock"
        self._port = 0
        self._server: asyncio.Server | None = None
        self._refusing = False
        self._connections: set[_Connection] = set()
        self._faults: list[Fault] = []
        self._late: list[LateCopy] = []
        self._errors: list[BaseException] = []
        self._arrived = asyncio.Event()
        self.up_flows = asyncio.Event()
        self.down_flows = asyncio.Event()
        self.thaw()
        self.reply_delay = 0.0
        self.reply_pieces = 0
        self.commands: list[Command] = []
        self._keeps_commands = keeps_commands
        self.n_connections = 0
        self.n_refused = 0
        self.bytes_up = 0
        self.bytes_down = 0

    async def __aenter__(self) -> Self:
        await self.listen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop_listening()
        for _ in range(5):  # asyncio takes some turns until a connection that was made just now is handed over, and aborted
            await asyncio.sleep(0)
        connections = list(self._connections)
        for connection in connections:
            connection.cut()
        await asyncio.gather(*(connection.task for connection in connections), return_exceptions=True)
        if self._errors and error is None:
            raise BaseExceptionGroup("The proxy itself failed, not the code under test.", self._errors)
        for own in self._errors:
            if error is not None:
                error.add_note(f"The proxy itself failed: {own!r}")

    @property
    def url(self) -> str:
        """Where clients connect; it stays the same after `stop_listening` and `listen`."""
        return f"redis://127.0.0.1:{self._port}" if self._socket is None else f"unix://{self._socket}"

    @property
    def n_open(self) -> int:
        """How many connections of clients are open now."""
        return sum(connection.open for connection in self._connections)

    def count(self, name: str, *args: str | bytes) -> int:
        """Counts the recorded commands of this name with these first arguments; see `named`."""
        return sum(map(named(name, *args), self.commands))

    async def seen(self, name: str, *args: str | bytes, times: int = 1) -> None:
        """Waits until `times` commands of this name with these first arguments are recorded; the caller sets a timeout."""
        while self.count(name, *args) < times:
            self._arrived.clear()
            await self._arrived.wait()

    # Faults that strike at a command: in the order in which they were armed, each once, and at most one at a command.

    def cut_before(self, predicate: Predicate) -> Fault:
        """Cuts the client's connection before the next matching request reaches the server.

        The server may execute earlier requests, whose replies are lost with the connection.
        """
        return self._arm(CutBefore(predicate))

    def drop_reply(self, predicate: Predicate, *, keep: int = 0) -> Fault:
        """Cuts the client's connection instead of delivering the reply to the next matching request.

        `hit` is set when the server has replied, so it has executed the request by then. The client receives the replies to
        earlier requests and none to later ones, which the server may have executed too.

        Args:
            predicate: which command.
            keep: how many bytes of the reply to deliver before the cut, so that the stream ends within a reply.
        """
        return self._arm(DropReply(predicate, keep))

    def late_copy(self, predicate: Predicate) -> LateCopy:
        """Cuts the client's connection at the next matching request and holds the request for `deliver_late`.

        The connection to the server stays open, and the server executes earlier requests on it; the proxy drops what the
        client sent after the held request. Replies that were frozen before the cut must thaw before a late copy is answered.
        """
        return self._arm(LateCopy(predicate))

    async def deliver_late(self) -> list[bytes]:
        """Sends the held requests that were not sent yet, each on its old connection, in the order of the cuts.

        Returns:
            The server's raw replies, which no client receives.

        Raises:
            RuntimeError: no request is held.
            ConnectionResetError: an old connection to the server is closed.
        """
        waiting = [fault for fault in self._late if not fault.delivered]
        if not waiting:
            raise RuntimeError("No request is held that was not delivered. Arm late_copy and wait for its hit first.")
        return [await fault.deliver() for fault in waiting]

    def disarm(self) -> None:
        """Removes the faults that have not struck yet."""
        self._faults.clear()

    # Faults that affect all connections.

    def freeze(self, *, up: bool = True, down: bool = True) -> None:
        """Stops forwarding without closing anything.

        The proxy still records what each client sends first, but neither end receives anything, and neither notices when the
        other closes. With `up=False` the server executes requests, and only replies are held back. Faults strike after the
        thaw.
        """
        if up:
            self.up_flows.clear()
        if down:
            self.down_flows.clear()

    def thaw(self) -> None:
        """Forwards again, beginning with what was held back."""
        self.up_flows.set()
        self.down_flows.set()

    def cut_all(self, only: Literal["commands", "pubsub"] | None = None) -> int:
        """Cuts the connections that are open now, on both sides at once; connections to the server that are held for late
        copies stay.

        Args:
            only: "pubsub" cuts only connections whose replies come out of order, "commands" only the others; None cuts all.

        Returns:
            How many were cut.
        """
        cut = [each for each in self._connections if each.open and (only is None or each.without_order == (only == "pubsub"))]
        for connection in cut:
            connection.cut()
        return len(cut)

    def refuse(self, on: bool = True) -> None:
        """Accepts new connections and closes them at once; open ones stay."""
        self._refusing = on

    def stop_listening(self) -> None:
        """Makes new connections fail as if no server ran; open ones stay."""
        server, self._server = self._server, None
        if self._socket is not None:
            self._socket.unlink(missing_ok=True)
            _close(server, 3)
        else:
            _close(server, 0)

    async def listen(self) -> None:
        """Listens, again at the same address after `stop_listening`; entering the block calls it first."""
        if self._server is not None:
            return
        if self._socket is not None:
            self._server = await asyncio.start_unix_server(self._accept, self._socket)
        else:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)
            self._port = self._server.sockets[0].getsockname()[1]

    # Called by connections.

    def record(self, command: Command) -> None:
        """Appends a command to `commands`."""
        if self._keeps_commands:
            self.commands.append(command)
            self._arrived.set()

    def take_fault(self, command: Command, *, with_reply: bool) -> Fault | None:
        """Disarms and returns the first fault for this command; one that needs a reply only when `with_reply`."""
        for fault in self._faults:
            if (with_reply or not fault.needs_reply) and fault.predicate(command):
                self._faults.remove(fault)
                fault.command = command
                if isinstance(fault, LateCopy):
                    self._late = [*(late for late in self._late if not late.delivered), fault]
                return fault
        return None

    async def connect_upstream(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Opens a connection to the server."""
        if self._upstream.scheme == "unix":
            return await asyncio.open_unix_connection(self._upstream.path)
        return await asyncio.open_connection(self._upstream.hostname or "127.0.0.1", self._upstream.port or 6379)

    def _arm(self, fault: F) -> F:
        self._faults.append(fault)
        return fault

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing or self._server is None:
            self.n_refused += 1
            writer.transport.abort()
            return
        self.n_connections += 1
        connection = _Connection(self, reader, writer)
        self._connections.add(connection)
        connection.task.add_done_callback(lambda task: self._forget(connection, task))

    def _forget(self, connection: _Connection, task: asyncio.Task[None]) -> None:
        self._connections.discard(connection)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._errors.append(error)
