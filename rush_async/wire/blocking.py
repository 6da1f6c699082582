"""A connection that blocks its thread: the heartbeat thread uses it while event loops compute."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any, cast

from redis.backoff import NoBackoff
from redis.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.exceptions import NoScriptError, RedisError
from redis.retry import Retry

from rush_async.config import RushConfig
from rush_async.embedded.directories import check_peer
from rush_async.errors import RushConnectionError
from rush_async.wire.transport import ServerFinder, Word, pack

__all__ = ["BlockingConnection"]


_KINDS = {"redis": Connection, "rediss": SSLConnection, "unix": UnixDomainSocketConnection}


class BlockingConnection:
    """The connection of one thread. It opens with the first call; the server may execute what it sends more than once.

    Args:
        config: the server; a reply is waited for as long as its `response_timeout`.
        finder: finds the server, each time anew.
    """

    def __init__(self, config: RushConfig, finder: ServerFinder) -> None:
        options = finder.options | {"socket_timeout": config.response_timeout, "retry": Retry(NoBackoff(), 0)}
        self._config = config
        self._finder = finder
        self._connection: Any = cast("Any", _KINDS[finder.scheme])(**options)
        self._is_interrupted = False

    def call(self, by_digest: bytes, by_source: bytes) -> Any:
        """Calls a script by its digest, or with its source where the server does not know the digest; both calls are packed.

        Raises:
            RushConnectionError: the server cannot be reached, or refuses the call.
        """
        try:
            try:
                return self._exchange(by_digest)
            except NoScriptError:
                return self._exchange(by_source)
        except (RedisError, OSError) as error:
            raise self._failure(error) from error

    def ask(self, *words: Word) -> Any:
        """Sends one plain command, which must be a read.

        Raises:
            RushConnectionError: the server cannot be reached, or refuses the command.
        """
        try:
            return self._exchange(pack(words))
        except (RedisError, OSError) as error:
            raise self._failure(error) from error

    def _exchange(self, payload: bytes) -> Any:
        self._raise_if_interrupted()
        if not self._connection.is_connected:
            if self._finder.moves:
                address = asyncio.run(self._finder.find())
                assert address is not None
                self._connection.host, self._connection.port = address
            self._connection.connect()
            check_peer(self._config.url or "", self._connection._sock)
            self._raise_if_interrupted()  # there was no socket to shut down while it connected
        self._connection.send_packed_command([payload], check_health=False)
        return self._connection.read_response()

    def _raise_if_interrupted(self) -> None:
        if self._is_interrupted:
            raise ConnectionError("the connection was interrupted")

    def _failure(self, error: Exception) -> RushConnectionError:
        self.close()
        return RushConnectionError(f"{self._config.where} did not answer the heartbeat thread: {error}")

    def interrupt(self) -> None:
        """Ends a call that waits, and makes every later one fail; from another thread."""
        self._is_interrupted = True
        sock: socket.socket | None = getattr(self._connection, "_sock", None)
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Closes the connection; the next call opens it again."""
        self._connection.disconnect()
