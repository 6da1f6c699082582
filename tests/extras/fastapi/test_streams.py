"""The limits of a stream: its life, and the time that its reader may take."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from fastapi.responses import StreamingResponse

from rush_async.extras.fastapi import streams
from rush_async.extras.fastapi.streams import LimitedStream

pytestmark = pytest.mark.parametrize("version", ["2.3", "2.4"])
LAST = {"type": "http.response.body", "body": b"", "more_body": False}


class Reader:
    """An HTTP server that sends a stream to a reader, who takes the first `n` pieces."""

    def __init__(self, version: str, n: float = float("inf")) -> None:
        self.scope = {"type": "http", "path": "/runs/1/events", "asgi": {"spec_version": version}}
        self.messages: list[Any] = []
        self.has_closed_source = False
        self._n = n

    async def source(self, n: int) -> AsyncGenerator[bytes]:
        """Yields `n` pieces, then none for ever."""
        try:
            for _ in range(n):
                yield b"data"
            await asyncio.Future()
        finally:
            self.has_closed_source = True

    async def send(self, message: Any) -> None:
        if len(self.messages) > self._n:
            await asyncio.Future()
        self.messages.append(message)

    async def receive(self) -> Any:
        await asyncio.Future()

    async def read(self, pieces: AsyncGenerator[bytes]) -> None:
        await LimitedStream(StreamingResponse(pieces))(self.scope, self.receive, self.send)
        await pieces.aclose()


async def test_a_stream_ends_after_its_time(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_LIFE", 0.02)
    reader = Reader(version)
    await reader.read(reader.source(3))
    assert [message.get("body") for message in reader.messages] == [None, b"data", b"data", b"data", b""]
    assert reader.messages[-1] == LAST


async def test_a_stream_whose_reader_takes_nothing_ends(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_READ", 0.02)
    reader = Reader(version, n=2)
    await reader.read(reader.source(100))
    assert reader.has_closed_source
    assert len(reader.messages) == 3


async def test_a_stream_that_ends_by_itself_is_sent_whole(version: str) -> None:
    async def pieces() -> AsyncGenerator[bytes]:
        yield b"one"
        yield b"two"

    reader = Reader(version)
    await reader.read(pieces())
    assert [message.get("body") for message in reader.messages] == [None, b"one", b"two", b""]
