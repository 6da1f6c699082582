"""The limits of a stream of events: how long it lasts, and how long its reader may take for a piece of it."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncGenerator

import anyio
from fastapi.responses import StreamingResponse
from starlette.types import Send

__all__ = ["LimitedStream"]

logger = logging.getLogger(__name__)

_LIFE = 3600.0  # seconds after which a stream ends without `end`; its client opens another
_READ = 30.0  # seconds that a reader may take for a piece; a reader that takes none would keep the stream for ever


class LimitedStream(StreamingResponse):
    """A stream that ends after its time, and is cut off when its reader takes nothing.

    Args:
        stream: what is sent.
    """

    def __init__(self, stream: StreamingResponse) -> None:
        super().__init__(self._pieces(stream), stream.status_code, background=stream.background)
        self.raw_headers = stream.raw_headers
        self._reading = anyio.CancelScope()

    async def stream_response(self, send: Send) -> None:
        with self._reading:
            await super().stream_response(send)
        if self._reading.cancelled_caught:
            logger.info("a stream is cut off: its reader took nothing for %g s", _READ)

    async def _pieces(self, stream: StreamingResponse) -> AsyncGenerator[str | bytes | memoryview]:
        source, end = aiter(stream.body_iterator), anyio.current_time() + _LIFE
        while True:
            piece = None
            with anyio.move_on_after(end - anyio.current_time()):
                piece = await anext(source, None)
            if piece is None:
                return
            self._reading.deadline = anyio.current_time() + _READ
            yield piece
            self._reading.deadline = math.inf
