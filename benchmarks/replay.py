"""The server's ceiling: the recorded bytes of a run, sent again over a raw socket as fast as the server reads them."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any
from unittest import mock

import hiredis

from rush_async import RushClient
from rush_async.store.keys import NetworkKeys
from rush_async.wire.link import Link
from rush_async.wire.transport import Command, Transport

__all__ = ["record_and_replay"]


async def record_and_replay(rush: RushClient, program: Callable[[], Awaitable[Any]]) -> tuple[float, float]:
    """Runs a program, restores the database to the state before it, and sends the same bytes again.

    Returns:
        The seconds of the program, and the seconds of its bytes alone.
    """
    link = await Link.acquire(rush.config)
    keys = list(NetworkKeys.of(rush.network_id))
    before = {key: dump for key in keys if (dump := await link.connection.ask("DUMP", key)) is not None}
    sent: list[bytes] = []
    write = Transport.write

    def record(transport: Transport, commands: list[Command]) -> None:
        sent.append(b"".join([command.payload for command in commands]))
        write(transport, commands)

    begun = time.perf_counter()
    with mock.patch.object(Transport, "write", record):
        await program()
    seconds = time.perf_counter() - begun
    after = {key: dump for key in keys if (dump := await link.connection.ask("DUMP", key)) is not None}

    async def restore(dumps: dict[str, bytes]) -> None:
        await link.connection.ask("DEL", *keys)
        for key, dump in dumps.items():
            await link.connection.ask("RESTORE", key, 0, dump)

    await restore(before)
    alone = _replay(str(rush.config.url).removeprefix("unix://"), sent)
    # The client's view of the network has to be true again.
    await restore(after)
    await link.release()
    return seconds, alone


def _replay(path: str, sent: list[bytes]) -> float:
    """Seconds to send all bytes and read all replies, in two threads so that neither waits for the other."""
    n = sum(payload.count(b"EVALSHA\r\n") for payload in sent)
    payloads = [b"".join(sent[first : first + 16]) for first in range(0, len(sent), 16)]
    with socket.socket(socket.AF_UNIX) as raw:
        raw.connect(path)
        reader = hiredis.Reader(notEnoughData=Ellipsis)
        begun = time.perf_counter()
        sender = threading.Thread(target=lambda: [raw.sendall(payload) for payload in payloads])
        sender.start()
        while n:
            reader.feed(raw.recv(1 << 18))
            while (reply := reader.gets()) is not Ellipsis:
                if isinstance(reply, hiredis.ReplyError):
                    raise reply
                assert reply[0] not in (b"EPOCH", b"OLD"), reply
                n -= 1
        seconds = time.perf_counter() - begun
        sender.join()
    return seconds
