"""A connection that waits: for the heartbeat's thread, which goes on while an event loop computes."""

from __future__ import annotations

import contextlib
import socket
from typing import Any, cast

from redis.backoff import NoBackoff
from redis.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.exceptions import NoScriptError, RedisError
from redis.retry import Retry

from rush_async.config import RushConfig
from rush_async.errors import RushConnectionError
from rush_async.store.scripts import Script, ScriptCaller
from rush_async.wire.opening import connection_options
from rush_async.wire.transport import Word, pack

__all__ = ["BlockingConnection"]

_KINDS = {"redis": Connection, "rediss": SSLConnection, "unix": UnixDomainSocketConnection}


class BlockingConnection:
    """One connection of one thread, opened when it is needed. What it sends may be executed again.

    Args:
        config: the server.
        patience: seconds to wait for a reply.
    """

    def __init__(self, config: RushConfig, patience: float) -> None:
        assert config.url is not None
        options = connection_options(config) | {"socket_timeout": patience, "retry": Retry(NoBackoff(), 0)}
        self._config = config
        self._connection: Any = cast("Any", _KINDS[config.url.partition("://")[0]])(**options)
        self._is_interrupted = False

    def call(self, caller: ScriptCaller, script: Script, args: list[Word]) -> list[Any]:
        """Calls a script on a network's keys.

        Raises:
            RushConnectionError: the server is not there, or refuses.
        """
        try:
            try:
                return self._ask(caller.call(script, args))
            except NoScriptError:
                return self._ask(caller.call_by_source(script, args))
        except (RedisError, OSError) as error:
            raise self._failed(error) from error

    def ask(self, *words: Word) -> Any:
        """Sends one plain command; for reads.

        Raises:
            RushConnectionError: the server is not there, or refuses.
        """
        try:
            return self._ask(pack(words))
        except (RedisError, OSError) as error:
            raise self._failed(error) from error

    def _ask(self, payload: bytes) -> Any:
        if self._is_interrupted:
            raise ConnectionError("interrupted")
        self._connection.connect()
        self._connection.send_packed_command([payload], check_health=False)
        return self._connection.read_response()

    def _failed(self, error: Exception) -> RushConnectionError:
        self.close()
        return RushConnectionError(f"{self._config.where} did not take a heartbeat: {error}")

    def interrupt(self) -> None:
        """From another thread: ends a call that waits, and lets no other begin."""
        self._is_interrupted = True
        sock: socket.socket | None = getattr(self._connection, "_sock", None)
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Closes the connection; the next call opens it again."""
        self._connection.disconnect()
