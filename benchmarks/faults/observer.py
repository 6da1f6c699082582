"""All events of a network as the server publishes them, with the counts that come with each message."""

from __future__ import annotations

import asyncio
from collections.abc import Set
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import hiredis

from rush_async.store.codec import decode
from rush_async.store.keys import NetworkKeys
from rush_async.wire.transport import pack

__all__ = ["NAME", "Message", "Observer"]

NAME = "observer"  # the name of its connection, which faults spare


@dataclass(frozen=True, slots=True)
class Message:
    """One message of the channel `events`.

    Attributes:
        first: the number of its first event.
        at: when it happened, by the server's clock.
        counts: queued, running, finished, failed and running workers after the call.
        groups: its events: the letter of the kind, the worker or '', keys or words.
        after_gap: whether the connection was lost since the message before.
    """

    first: int
    at: float
    counts: tuple[int, ...]
    groups: list[list[str]]
    after_gap: bool

    @property
    def last(self) -> int:
        """The number of its last event."""
        return self.first + len(self.groups) - 1

    def about(self, words: Set[str]) -> str:
        """Returns the message as a line, with the events that name one of these words."""
        groups = [[*group[:2], *(word for word in group[2:] if word in words)] for group in self.groups if words & set(group)]
        return f"{self.at:.4f} events {self.first}-{self.last}: {groups}, then {self.counts}"


class Observer:
    """Receives the events of one network over a connection of its own, past the proxy.

    Attributes:
        messages: what it has received.
    """

    def __init__(self, url: str, network_id: str) -> None:
        self._url = url
        self._channel = NetworkKeys.of(network_id).events
        self.messages: list[Message] = []
        self._is_ready = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Observer:
        self._task = asyncio.create_task(self._run())
        await self._is_ready.wait()
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    @property
    def seq(self) -> int:
        """The number of the last event that it knows."""
        return self.messages[-1].last if self.messages else 0

    async def _run(self) -> None:
        is_first = True
        while True:
            with suppress(OSError):
                await self._listen(is_first)
            is_first = False
            await asyncio.sleep(0.02)

    async def _listen(self, is_first: bool) -> None:
        reader, writer = await asyncio.open_unix_connection(self._url.removeprefix("unix://"))
        try:
            writer.write(pack(("CLIENT", "SETNAME", NAME)) + pack(("SSUBSCRIBE", self._channel)))
            replies, after_gap = hiredis.Reader(), not is_first
            while data := await reader.read(65536):
                replies.feed(data)
                while (reply := replies.gets()) is not False:
                    match reply:
                        case [b"ssubscribe", *_]:
                            self._is_ready.set()
                        case [b"smessage", _, packed] if packed:
                            after_gap &= not self._take(decode(packed), after_gap)
                        case _:
                            pass
        finally:
            writer.close()

    def _take(self, message: list[Any], after_gap: bool) -> bool:
        if message[0] == "reset":
            return False
        _, first, at, counts, _, groups = message
        self.messages.append(Message(first, at, tuple(counts), groups, after_gap))
        return True
