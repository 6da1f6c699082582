"""How a server is reached: the only room that knows URLs, TLS, users and passwords, and what to do when the line breaks.

redis-py opens a connection (it knows URLs, AUTH, credential providers and TLS) and hands it over to our transport.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

import anyio
import hiredis
from redis.asyncio.connection import (
    Connection as TCPConnection,
)
from redis.asyncio.connection import (
    SSLConnection,
    UnixDomainSocketConnection,
    parse_url,
)
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.exceptions import AuthenticationError, BusyLoadingError, RedisError

from rush_async.config import RushConfig
from rush_async.errors import RushConfigError, RushConnectionError, RushError, ServerFullError
from rush_async.store.scripts import SCRIPTS
from rush_async.store.transport import Command, FutureCommand, Transport, Word, pack
from rush_async.supervisor import Supervisor

__all__ = ["Connection", "connection_options", "open_transport", "url_db"]

logger = logging.getLogger(__name__)

_IN_A_ROW = 10.0  # seconds after which a server that refuses calls is not known for that any more
_PAUSE = 0.05  # seconds between two looks at a server that loads its data
_OLDEST = {"redis": (7, 0), "valkey": (7, 2)}


class _HandsOver:
    """What our subclasses of redis-py's connections add: giving the open connection away."""

    _reader: asyncio.StreamReader | None
    _writer: asyncio.StreamWriter | None

    def hand_over(self, transport: Transport) -> None:
        assert self._writer is not None
        transport.adopt(cast("asyncio.Transport", self._writer.transport), self._forget)

    def _forget(self) -> None:
        # The stream's writer closes its connection when it is collected, so it is kept until the connection is gone.
        self._reader = self._writer = None


class _TCP(_HandsOver, TCPConnection):
    pass


class _TLS(_HandsOver, SSLConnection):
    pass


class _Unix(_HandsOver, UnixDomainSocketConnection):
    pass


def _options(config: RushConfig) -> dict[str, Any]:
    assert config.url is not None
    try:
        options = dict(parse_url(config.url))
    except (ValueError, TypeError) as error:
        raise RushConfigError(f"the URL {config.where!r} cannot be used: {error}") from None
    options.pop("connection_class", None)
    return options


def url_db(config: RushConfig) -> int:
    """The number of the database that the URL selects."""
    return int(_options(config).get("db") or 0)


def connection_options(config: RushConfig) -> dict[str, Any]:
    """What any connection of redis-py to this server is made with."""
    options = _options(config)
    assert config.url is not None
    options |= {
        "protocol": 2,  # no push frame may ever stand between two answers
        "socket_connect_timeout": config.connect_timeout,
        "driver_info": None,
    }
    if config.url.startswith("rediss:"):
        options |= {
            "ssl_ca_certs": config.tls_ca_file,
            "ssl_certfile": config.tls_cert_file,
            "ssl_keyfile": config.tls_key_file,
            "ssl_check_hostname": config.tls_check_hostname,
        }
    return options


def _connection(config: RushConfig) -> _TCP | _TLS | _Unix:
    assert config.url is not None
    scheme = config.url.partition("://")[0]
    kind: type[_TCP | _TLS | _Unix] = {"redis": _TCP, "rediss": _TLS, "unix": _Unix}[scheme]
    options = connection_options(config)
    options |= {"socket_timeout": None, "retry": Retry(NoBackoff(), 0)}
    try:
        return kind(**options)
    except TypeError as error:
        raise RushConfigError(f"the URL {config.where!r} has an option that the connection does not know: {error}") from None


async def open_transport(
    config: RushConfig,
    on_lost: Callable[[Transport, Exception | None], None],
    on_push: Callable[[list[Any]], None] | None = None,
    on_writable: Callable[[], None] | None = None,
) -> Transport:
    """Opens a connection, checks who answers, and teaches the server our scripts.

    Raises:
        RushConnectionError: the server cannot be reached within `connect_timeout`, refuses us, or is too old.
        RushConfigError: the URL cannot be used.
    """
    loading: RushConnectionError | None = None
    try:
        with anyio.fail_after(config.connect_timeout):
            while True:
                try:
                    return await _open_transport(config, on_lost, on_push, on_writable)
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
            "connect_timeout sets how long to wait"
        ) from error


def _is_loading(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, BusyLoadingError) or (isinstance(error, hiredis.ReplyError) and str(error).startswith("LOADING")):
            return True
        error = error.__cause__
    return False


async def _open_transport(
    config: RushConfig,
    on_lost: Callable[[Transport, Exception | None], None],
    on_push: Callable[[list[Any]], None] | None,
    on_writable: Callable[[], None] | None,
) -> Transport:
    connection = _connection(config)
    transport = Transport(on_lost, on_push, on_writable)
    try:
        await connection.connect()
        connection.hand_over(transport)
        await _greet(transport, config)
    except (RedisError, OSError) as error:
        transport.drop()
        if isinstance(error, RushConnectionError):
            raise  # whoever answers there was reached
        if any(isinstance(each, AuthenticationError) for each in (error, error.__cause__, error.__context__)):
            raise RushConnectionError(
                f"{config.where} refuses this user or password ({error}): write them as redis://user:password@host"
            ) from error
        raise RushConnectionError(
            f"cannot reach {config.where}: {str(error).rstrip('.')}. Start a Redis or Valkey server there, "
            "name another with the url, or leave the url out to use the embedded server"
        ) from error
    except BaseException:
        transport.drop()
        raise
    return transport


async def _greet(transport: Transport, config: RushConfig) -> None:
    commands = [
        FutureCommand(pack(("HELLO",))),
        FutureCommand(pack(("INFO", "memory"))),
    ]
    commands += [FutureCommand(pack(("SCRIPT", "LOAD", script.source))) for script in SCRIPTS]
    for command in commands:
        command.future.add_done_callback(_retrieve)
    # An old server stops understanding at the second command, so the first one is answered before the others leave.
    transport.write(commands[:1])
    _check_version(await commands[0].future, config)
    transport.write(commands[1:])
    for command in commands[2:]:
        reply = await command.future
        if isinstance(reply, hiredis.ReplyError):
            raise RushConnectionError(f"{config.where} does not take our scripts: {reply}. {acl_remedy()}")
    _warn_of_eviction(await commands[1].future, config)


def _retrieve(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()


def acl_remedy(network_id: str = "") -> str:
    """What a user with restricted rights must be allowed."""
    pattern = f"rush:{{{network_id}}}:*" if network_id else "rush:*"
    return (
        f"If the user's rights are restricted, allow it: ACL SETUSER <user> ~{pattern} &{pattern} "
        "+@read +@write +@scripting +@pubsub +@connection +@transaction +info +time"
    )


def _check_version(hello: Any, config: RushConfig) -> None:
    if isinstance(hello, hiredis.ReplyError):
        code = str(hello).partition(" ")[0]
        if code in ("NOAUTH", "WRONGPASS"):
            raise RushConnectionError(
                f"{config.where} wants a user or password ({hello}): write them as redis://user:password@host"
            )
        if code != "ERR":
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


class Connection:
    """The one command connection of an event loop to a server: it mends itself, and sends again what was not answered.

    Everything sent here may be executed again: reads by nature, everything else because the scripts know their calls.
    """

    def __init__(self, config: RushConfig, supervisor: Supervisor) -> None:
        self.config = config
        self._supervisor = supervisor
        self._loop = asyncio.get_running_loop()
        self._transport: Transport | None = None
        self._waiting: deque[Command] = deque()
        self._fillers: list[Callable[[], None]] = []
        self._postponed: dict[Callable[[], None], Callable[[Exception], None]] = {}
        self._is_flush_due = False
        self._watch: asyncio.TimerHandle | None = None
        self._is_closed = False
        self._gone = asyncio.Event()
        self._n_refusals = 0  # in a row
        self._refused_at = -math.inf
        self.n_reconnects = 0

    def _closed(self) -> RushConnectionError:
        return RushConnectionError(f"the connection to {self.config.where} is closed")

    async def open(self) -> None:
        """Opens the connection; raises `RushConnectionError` when that fails."""
        self._transport = await open_transport(self.config, self._lost, on_writable=self._go_on)

    @property
    def is_ready(self) -> bool:
        """Whether what is sent now leaves at the end of this tick; while it does not, merging goes on."""
        return self._transport is not None and self._transport.is_open and self._transport.is_writable

    def send(self, command: Command, since: float | None = None) -> None:
        """Sends a command at the end of this tick, or as soon as the server is back. `since`: when it was first wanted."""
        if self._is_closed:
            command.failed(self._closed())
            return
        command.since = self._loop.time() if since is None else since
        self._waiting.append(command)
        self._flush_soon()

    async def ask(self, *words: Word) -> Any:
        """Sends one plain command and returns its reply; for reads."""
        return self._checked(await self._send(pack(words), 1))

    async def ask_together(self, *commands: tuple[Word, ...]) -> list[Any]:
        """Sends commands as one transaction and returns their replies; for reads."""
        return self._checked(await self._send(*_transaction(commands)))

    def begin_together(
        self, *commands: tuple[Word, ...], on_leaving: Callable[[], None] | None = None
    ) -> Callable[[], Awaitable[list[Any]]]:
        """The same for a caller that waits for the replies later, which it does by what this returns.

        Args:
            commands: the transaction.
            on_leaving: called when it leaves, at the end of this tick; without it, it leaves at once, since what the caller
                does next keeps the loop from sending.
        """
        future = self._send(*_transaction(commands))
        if on_leaving is None:
            self.flush()
        else:
            self.fill_at_tick_end(on_leaving)

        async def replies() -> list[Any]:
            return self._checked(await future)

        return replies

    async def ask_script(self, payload: bytes, by_source: Callable[[], bytes]) -> Any:
        """Sends the call of a script that only reads; `by_source` writes it for a server that forgot its scripts."""
        reply = await self._send(payload, 1)
        if isinstance(reply, hiredis.ReplyError) and str(reply).startswith("NOSCRIPT"):
            reply = await self._send(by_source(), 1)
        return self._checked(reply)

    def _send(self, payload: bytes, n_replies: int) -> asyncio.Future[Any]:
        command = FutureCommand(payload, n_replies)
        self.send(command)
        return command.future

    def _checked(self, reply: Any) -> Any:
        if isinstance(reply, hiredis.ReplyError):
            raise refusal(reply, self.config)
        return reply

    def fill_at_tick_end(self, filler: Callable[[], None]) -> None:
        """Calls `filler` once before the next write, so that what was issued in this tick can leave as one command."""
        self._fillers.append(filler)
        self._flush_soon()

    def fill_when_ready(self, filler: Callable[[], None], on_trouble: Callable[[Exception], None]) -> None:
        """Calls `filler` when the server takes bytes again; `on_trouble` whenever that was tried in vain."""
        self._postponed[filler] = on_trouble

    def _go_on(self) -> None:
        self._fillers += self._postponed
        self._postponed.clear()
        self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._is_flush_due:
            self._is_flush_due = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Sends what there is before the tick ends."""
        fillers, self._fillers = self._fillers, []
        for filler in fillers:
            filler()
        self._is_flush_due = False
        transport = self._transport
        if self._waiting and transport is not None and transport.is_open and transport.is_writable:
            commands = list(self._waiting)
            self._waiting.clear()
            transport.write(commands)
            if self._watch is None:
                self._watch = self._loop.call_later(self.config.response_timeout, self._check_silence)

    def _check_silence(self) -> None:
        self._watch = None
        transport = self._transport
        if transport is None or not transport.unanswered:
            return
        patience = transport.last_received + self.config.response_timeout - self._loop.time()
        if patience <= 0:
            transport.drop(TimeoutError(f"no byte for {self.config.response_timeout:g} s with calls pending"))
        else:
            self._watch = self._loop.call_later(patience, self._check_silence)

    def _lost(self, transport: Transport, error: Exception | None) -> None:
        if transport is not self._transport:
            transport.fail_unanswered(self.config.where, error)  # it broke while it was being opened
            return
        self._transport = None
        for command in transport.unanswered:
            command.n_seen = 0
        self._waiting.extendleft(reversed(transport.unanswered))
        if self._is_closed or not self._supervisor.is_open:
            self._fail_waiting(self._closed(), 0)
            self._gone.set()
            return
        if isinstance(error, hiredis.ReplyError):
            # It is there, and takes no calls, such as a replica: they are not to wait longer than for one that is away.
            now = self._loop.time()
            self._n_refusals = self._n_refusals + 1 if now - self._refused_at < _IN_A_ROW else 1
            self._refused_at = now
            self._fail_waiting(
                RushConnectionError(f"{self.config.where} does not take calls: {error}"), self.config.retry_deadline
            )
        logger.warning("lost the connection to %s (%s): reconnecting", self.config.where, error or "closed by the server")
        self._supervisor.start(self._reconnect, error)

    async def _reconnect(self, error: Exception | None) -> None:
        # Full jitter keeps a thousand processes from coming back in step; the first try is at once.
        backoff = ExponentialWithJitterBackoff(base=0.01, cap=1.0)
        failures = self._n_refusals if isinstance(error, hiredis.ReplyError) else 0
        try:
            if failures > 1:
                await asyncio.sleep(backoff.compute(failures))
            while not self._is_closed:
                try:
                    transport = await open_transport(self.config, self._lost, on_writable=self._go_on)
                    if not transport.is_open:
                        raise RushConnectionError(f"{self.config.where} closed the connection at once")
                    self._transport = transport
                except RushConnectionError as reason:
                    failures += 1
                    self._fail_waiting(reason, self.config.retry_deadline)
                    await asyncio.sleep(backoff.compute(failures))
                else:
                    self.n_reconnects += 1
                    logger.info("connected to %s again", self.config.where)
                    self._go_on()
                    break
        finally:
            if self._transport is None:  # it was cancelled with all tasks of an event loop that ends
                self._is_closed = True
                self._fail_waiting(self._closed(), 0)
            elif self._is_closed:
                self._transport.drop()

    def _fail_waiting(self, reason: Exception, patience: float) -> None:
        now = self._loop.time()
        commands, self._waiting = self._waiting, deque()
        for command in commands:
            if now - command.since < patience and not self._is_closed:
                self._waiting.append(command)
                continue
            error = gave_up(now - command.since, reason, was_sent=command.was_sent)
            if self._is_closed:
                command.failed(error)
            elif command.given_up(error):
                command.since = math.inf
                self._waiting.append(command)
        for tell in list(self._postponed.values()):
            tell(reason)

    async def aclose(self) -> None:
        """Closes the connection; what was not answered fails."""
        self._is_closed = True
        if self._watch is not None:
            self._watch.cancel()
        if self._transport is not None:
            self._transport.drop()
            await self._gone.wait()
        else:
            self._fail_waiting(self._closed(), 0)


def gave_up(after: float, reason: Exception, *, was_sent: bool) -> RushConnectionError:
    """The error for a person whose call waited in vain."""
    error = RushConnectionError(
        f"gave up after {after:.3g} s: {reason}"
        + (" (it was sent, so it may have been executed)" if was_sent else " (it was never sent)")
    )
    error.__cause__ = reason
    return error


def _transaction(commands: Sequence[tuple[Word, ...]]) -> tuple[bytes, int]:
    """Its bytes, and how many replies they have; the last one is a list."""
    packed = [pack(command) for command in commands]
    return b"".join([pack(("MULTI",)), *packed, pack(("EXEC",))]), len(packed) + 2


def refusal(reply: hiredis.ReplyError, config: RushConfig) -> Exception:
    """The error for a person that a server's error reply means."""
    text = str(reply).rstrip(".")
    if text.startswith(("OOM", "MISCONF")):
        return ServerFullError(
            f"{config.where} is full and refused the call, nothing of it was done: "
            f"raise its maxmemory, or reset networks that are not needed ({text})"
        )
    # In scripts, Redis 7.0 says it in its own way.
    if text.startswith("NOPERM") or "ACL failure" in text or "can't run this command" in text:
        return RushConnectionError(f"{config.where} does not allow this user the call: {text}. {acl_remedy()}")
    return RushError(f"{config.where} refused a call: {text}")
