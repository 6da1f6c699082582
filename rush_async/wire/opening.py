"""How a connection is opened: the server is found, checked, and taught our scripts.

redis-py opens it (it knows URLs, AUTH, credential providers and TLS) and hands it over to our transport.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from typing import Any, cast

import anyio
import hiredis
from redis.asyncio.connection import (
    Connection as TCPConnection,
)
from redis.asyncio.connection import (
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, BusyLoadingError, RedisError

from rush_async.config import RushConfig, without_password
from rush_async.embedded.directories import check_peer, has_ended
from rush_async.errors import RushConfigError, RushConnectionError
from rush_async.wire.refusals import acl_remedy
from rush_async.wire.transport import FutureCommand, ServerFinder, Transport, TransportOwner, pack

__all__ = ["ServerOpener"]

logger = logging.getLogger(__name__)

_PAUSE = 0.05  # seconds between two looks at a server that loads its data
_MOST_CLIENTS = "max number of clients reached"
_TLS_ADVICE = (
    ". rediss:// speaks TLS: check that the server does on this port (redis:// does not), tls_ca_file (certificates to trust), "
    "tls_cert_file and tls_key_file (this client's) and tls_check_hostname"
)
_OLDEST = {"redis": (7, 0), "valkey": (7, 2)}


class _HandsOver:
    """What our subclasses of redis-py's connections add: giving the open connection away."""

    _reader: asyncio.StreamReader | None
    _writer: asyncio.StreamWriter | None

    def hand_over(self, transport: Transport, url: str) -> None:
        # The stream's writer closes its connection when it is collected, so the transport keeps the stream until then.
        assert self._writer is not None
        stream = self._reader, self._writer
        self._reader = self._writer = None
        transport.adopt(cast("asyncio.Transport", stream[1].transport), stream)
        check_peer(url, stream[1].get_extra_info("socket"))


class _TCP(_HandsOver, TCPConnection):
    pass


class _TLS(_HandsOver, SSLConnection):
    pass


class _Unix(_HandsOver, UnixDomainSocketConnection):
    pass


def _connection(config: RushConfig, finder: ServerFinder) -> _TCP | _TLS | _Unix:
    kinds: dict[str, type[_TCP | _TLS | _Unix]] = {"redis": _TCP, "rediss": _TLS, "unix": _Unix}
    kind = kinds[finder.scheme]
    options: dict[str, Any] = finder.options | {"socket_timeout": None, "retry": Retry(NoBackoff(), 0)}
    try:
        return kind(**options)
    except TypeError as error:
        raise RushConfigError(f"the URL {config.where!r} has an option that the connection does not know: {error}") from None


class ServerOpener:
    """Opens connections to one server.

    Args:
        config: where the server is and how long to wait for it.
        scripts: the sources of the scripts that the server is taught on a connection that takes commands.
        finder: finds the server, for each connection anew.
    """

    def __init__(self, config: RushConfig, scripts: Sequence[str], finder: ServerFinder) -> None:
        self._config = config
        self._scripts = scripts
        self._finder = finder
        self.moves = finder.moves
        self._opened: dict[bool, tuple[Any, Transport]] = {}  # where to, and the connection; by whether it listens

    async def open(self, owner: TransportOwner, *, listens: bool = False) -> Transport:
        """Opens a connection, checks who answers, and teaches the server the scripts.

        Raises:
            RushConnectionError: the server cannot be reached within `connect_timeout`, refuses us, or is too old.
            RushConfigError: the URL cannot be used.
        """
        config = self._config
        loading: RushConnectionError | None = None
        try:
            with anyio.fail_after(config.connect_timeout):
                while True:
                    try:
                        return await self._open(owner, listens)
                    except RushConnectionError as error:
                        if not _is_loading(error):
                            raise
                        loading = error
                    await asyncio.sleep(_PAUSE)  # nothing tells when a server has loaded its data
        except TimeoutError as error:
            if loading is not None:
                raise RushConnectionError(
                    f"{config.where} was still loading its data after {config.connect_timeout:g} s: "
                    "connect_timeout sets how long to wait"
                ) from loading
            raise RushConnectionError(
                f"no answer from {config.where} within {config.connect_timeout:g} s: is a Redis or Valkey server there? "
                f"connect_timeout sets how long to wait{_tls_advice(config)}"
            ) from error

    async def _open(self, owner: TransportOwner, listens: bool) -> Transport:
        config = self._config
        connection = _connection(config, self._finder)
        transport = Transport(owner, listens=listens)
        try:
            address = await self._finder.find()
            if address is not None and not isinstance(connection, _Unix):
                connection.host, connection.port = address
            await connection.connect()
            connection.hand_over(transport, config.url or "")
            await _greet(transport, config, () if listens else self._scripts, is_master_wanted=self._finder.moves)
        except (RedisError, OSError) as error:
            transport.drop()
            if isinstance(error, RushConnectionError):
                raise  # a server answered
            if any(isinstance(each, AuthenticationError) for each in (error, error.__cause__, error.__context__)):
                raise RushConnectionError(
                    f"{config.where} refuses this user or password ({error})",
                    _password_advice(config),
                    is_password_refused=True,
                ) from error
            if _MOST_CLIENTS in str(error):
                raise _too_many_clients(config, error) from error
            if has_ended(config.url or ""):
                raise RushConnectionError(
                    f"the embedded server on {config.where} has ended, and what it had in memory is lost",
                    ". Open new clients. To keep results name a directory, as in Rush('valley', data_dir='results'); such a "
                    "server is started again when it dies",
                    is_final=True,
                ) from None
            raise RushConnectionError(
                f"cannot reach {config.where}: {str(error).rstrip('.')}",
                ". Start a Redis or Valkey server there, name another with the url, or leave the url out to use the embedded "
                f"server{_tls_advice(config)}",
            ) from error
        except BaseException:
            transport.drop()
            raise
        self._opened[listens] = address, transport
        self._leave_others(address)
        return transport

    async def check(self) -> None:
        """Ends connections to a server that is not the one that is meant any more: they are opened anew."""
        with anyio.fail_after(self._config.connect_timeout):
            self._leave_others(await self._finder.find())

    def _leave_others(self, address: tuple[str, int] | None) -> None:
        for at, transport in self._opened.values():
            if at != address and transport.is_open:
                transport.drop(RushConnectionError(f"the data are at {address} now"))


def _too_many_clients(config: RushConfig, error: Exception) -> RushConnectionError:
    return RushConnectionError(f"{config.where} takes no further client ({error})", ": close others, or raise its maxclients")


def _is_tls(config: RushConfig) -> bool:
    return (config.url or "").startswith("rediss")


def _tls_advice(config: RushConfig) -> str:
    return _TLS_ADVICE if _is_tls(config) else ""


def _password_advice(config: RushConfig) -> str:
    url = config.url or ""
    if os.environ.get("RUSH_PASSWORD") and without_password(url) == url:
        return (
            ": RUSH_PASSWORD counts only for a URL in RUSH_URL or REDIS_URL, not for one in the code. Leave the URL in the "
            "code out, or write the password into it, redis://user:password@host"
        )
    return ": write them as redis://user:password@host"


def _is_loading(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, BusyLoadingError) or (isinstance(error, hiredis.ReplyError) and str(error).startswith("LOADING")):
            return True
        error = error.__cause__
    return False


async def _greet(transport: Transport, config: RushConfig, scripts: Sequence[str], *, is_master_wanted: bool) -> None:
    commands = [
        FutureCommand(pack(("HELLO",))),
        FutureCommand(pack(("INFO", "memory"))),
    ]
    commands += [FutureCommand(pack(("SCRIPT", "LOAD", script))) for script in scripts]
    for command in commands:
        command.future.add_done_callback(_retrieve)
    # An old server stops understanding at the second command, so the first one is answered before the others leave.
    transport.write(commands[:1])
    try:
        hello = await commands[0].future
    except RushConnectionError as error:
        if not _is_tls(config):
            raise
        # A TLS server that refuses a certificate closes the connection before it answers.
        raise RushConnectionError(error.problem, _TLS_ADVICE) from error
    _check_version(hello, config)
    if is_master_wanted and b"master" not in hello:
        raise RushConnectionError(f"{config.where} is about to have another master")
    transport.write(commands[1:])
    for command in commands[2:]:
        reply = await command.future
        if isinstance(reply, hiredis.ReplyError):
            raise RushConnectionError(f"{config.where} does not take our scripts: {reply}. {acl_remedy()}")
    _warn_of_eviction(await commands[1].future, config)


def _retrieve(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()


def _check_version(hello: Any, config: RushConfig) -> None:
    if isinstance(hello, hiredis.ReplyError):
        code = str(hello).partition(" ")[0]
        if code in ("NOAUTH", "WRONGPASS"):
            raise RushConnectionError(
                f"{config.where} wants a user or password ({hello})", _password_advice(config), is_password_refused=True
            )
        if _MOST_CLIENTS in str(hello):
            raise _too_many_clients(config, hello)
        if "unknown command" not in str(hello):
            raise RushConnectionError(f"{config.where} answers {hello}")
        raise RushConnectionError(f"{config.where} is older than Redis 7.0, the oldest server supported: {hello}")
    try:
        pairs = {key.decode(): value for key, value in zip(hello[::2], hello[1::2], strict=True)}
        name, version = pairs["server"].decode(), pairs["version"].decode()
        numbers = tuple(int(part) for part in version.split(".")[:2])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RushConnectionError(f"what answers at {config.where} is neither Redis nor Valkey: {hello!r:.100}") from error
    oldest = _OLDEST.get(name, (7, 0))
    if numbers < oldest:
        wanted = ".".join(map(str, oldest))
        raise RushConnectionError(f"{config.where} is {name} {version}: {wanted} or newer is needed, please upgrade it")


def _warn_of_eviction(info: Any, config: RushConfig) -> None:
    if not isinstance(info, bytes):
        return  # this user may not ask
    facts = dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)
    policy = facts.get("maxmemory_policy", "noeviction")
    if facts.get("maxmemory", "0") != "0" and policy.startswith("allkeys"):
        logger.warning(
            "%s evicts keys when its memory is full (maxmemory-policy %s), which loses tasks: "
            "set maxmemory-policy to noeviction",
            config.where,
            policy,
        )
