"""The examination of `rush-async doctor`: opens a server as every program does, and asks it about itself."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from rush_async.cli.checks import (
    NEEDED,
    Check,
    LeaseEntry,
    cannot_tell,
    check_heartbeats,
    check_latency,
    check_memory,
    check_persistence,
    check_rights,
    check_time,
    check_topology,
    check_version,
)
from rush_async.cli.exit_codes import advice_of
from rush_async.config import RushConfig, with_heartbeat
from rush_async.errors import RushConnectionError, RushError
from rush_async.manager.manager import Rush
from rush_async.network.network import SOURCES, Network
from rush_async.store.keys import NetworkKeys, random_network_id
from rush_async.store.leases import AliveWorker, lease_times
from rush_async.store.malformed import MalformedRecord
from rush_async.wire.inspection import Inspection, Refusal
from rush_async.wire.link import Link
from rush_async.wire.refusals import acl_remedy
from rush_async.wire.topology import Topology, slot_of, url_db

__all__ = ["Examination"]

_PINGS = 20
_NO_BEAT = 1e8  # seconds between two heartbeats of a client that is to send none


class _Opened(NamedTuple):
    """Whether a client could be opened, as every program opens one.

    Attributes:
        seconds: how long it took.
        error: why it could not.
    """

    seconds: float
    error: RushError | None


class Examination:
    """Examines a server, and one network on it. It changes nothing.

    Args:
        config: the server, with its URL.
        network_id: the network; None for none.
    """

    def __init__(self, config: RushConfig, network_id: str | None) -> None:
        assert config.url is not None
        self._config = config
        self._network_id = network_id
        self._keys = NetworkKeys.of(network_id or random_network_id(), url_db(config))
        self._server = Inspection(config, Topology(config, slot_of(config, self._keys.meta)))

    def checks(self) -> Iterator[Check]:
        """Makes the checks one after another, those that follow only where a connection can be opened."""
        opened = self._open()
        try:
            pings = [self._seconds_of_ping() for _ in range(_PINGS + 1)]
        except RushConnectionError as error:
            yield _connection_check(self._config, opened, error, self._network_id)
            return
        try:
            yield _connection_check(self._config, opened, None, self._network_id)
            yield check_latency(pings[1:])  # the first one has opened the connection
            yield from self._server_checks()
            yield check_rights(self._refusals(), self._network_id)
            if self._network_id is not None:
                yield from self._network_checks(self._network_id, opened)
        except RushConnectionError as error:
            yield Check("connection", "bad", f"it broke during the examination: {error}", "run the command again")
        finally:
            self._server.close()

    def _open(self) -> _Opened:
        begin = time.perf_counter()
        try:
            with _silent():
                asyncio.run(_open_and_close(self._config, self._network_id))
        except RushError as error:
            return _Opened(time.perf_counter() - begin, error)
        return _Opened(time.perf_counter() - begin, None)

    def _seconds_of_ping(self) -> float:
        begin = time.perf_counter()
        self._server.ask("PING")
        return time.perf_counter() - begin

    # the server

    def _server_checks(self) -> Iterator[Check]:
        facts = self._facts("INFO")
        if isinstance(facts, Refusal):
            for name in ("version", "persistence", "memory", "topology"):
                yield cannot_tell(name, facts, self._network_id)
        else:
            yield check_version(facts)
            yield check_persistence(facts, self._setting("save"))
            yield check_memory(facts)
            cluster = self._facts("CLUSTER", "INFO") if facts.get("cluster_enabled", "0") != "0" else None
            kind = urlsplit(self._config.url or "").scheme.partition("+")[2]
            yield check_topology(facts, kind, cluster)
        before = time.time()
        answer = self._server.ask("TIME")
        if isinstance(answer, Refusal):
            yield cannot_tell("clock", answer, self._network_id)
        else:
            yield check_time(int(answer[0]) + int(answer[1]) / 1e6 - (before + time.time()) / 2)

    def _facts(self, *words: str) -> Mapping[str, str] | Refusal:
        """Returns the fields of the reply to INFO, or to a command with a reply of the same format."""
        reply = self._server.ask(*words)
        if isinstance(reply, Refusal):
            return reply
        lines = (line.partition(":") for line in reply.decode("utf-8", "replace").splitlines())
        return {name: value for name, colon, value in lines if colon}

    def _setting(self, name: str) -> str | Refusal | None:
        reply = self._server.ask("CONFIG", "GET", name)
        if isinstance(reply, Refusal):
            return reply
        return reply[1].decode() if reply else None

    # the user

    def _refusals(self) -> dict[str, Refusal]:
        """Returns what the server refuses this user: it judges rights when it queues a command of a transaction, and the
        transaction is dropped, so that nothing is executed."""
        places = {"k": self._keys.attributes, "c": self._keys.events}
        refused: dict[str, Refusal] = {}
        for command in (("MULTI",), *NEEDED, ("DISCARD",), ("MULTI",), ("EXEC",)):
            name, *words = command
            answer = self._server.ask(name, *(places.get(word, word) for word in words))
            if isinstance(answer, Refusal) and answer.is_for_rights:
                refused[name] = answer
                if name == "MULTI":
                    break  # what follows would be executed
        self._server.close()  # without the right to DISCARD the transaction is still open
        return refused

    # the network

    def _network_checks(self, network_id: str, opened: _Opened) -> Iterator[Check]:
        epoch = self._server.ask("HGET", self._keys.meta, "epoch")
        if epoch is None:
            yield Check("network", "ok", f"network {network_id!r} does not exist yet: it has no heartbeats and no records")
            return
        yield self._check_heartbeats(network_id)
        yield self._check_records(network_id, opened)

    def _check_heartbeats(self, network_id: str) -> Check:
        reads = [
            ("HGETALL", self._keys.alive),
            ("ZRANGE", self._keys.leases, "0", "-1", "WITHSCORES"),
            ("HGETALL", self._keys.processes),
            ("TIME",),
        ]
        replies: list[Any] = []
        for read in reads:
            replies.append(self._server.ask(*read))
            if isinstance(replies[-1], Refusal):
                return cannot_tell("heartbeats", replies[-1], network_id)
        alive, expiries, processes, now = replies
        return check_heartbeats(network_id, _leases(alive, expiries, processes, int(now[0]) + int(now[1]) / 1e6))

    def _check_records(self, network_id: str, opened: _Opened) -> Check:
        if opened.error is not None:
            return Check("records", "warning", "cannot tell: the network cannot be opened")
        try:
            with _silent():
                malformed = asyncio.run(_read_malformed(network_id, self._config))
        except RushError as error:
            return Check("records", "bad", f"the records of network {network_id!r} cannot be read: {error}")
        if not malformed:
            return Check("records", "ok", f"all records of network {network_id!r} can be decoded")
        named = ", ".join(f"{record.name!r} of {record.place}" for record in malformed[:3])
        return Check(
            *("records", "warning", f"{len(malformed)} of network {network_id!r} cannot be decoded and are left out: {named}"),
            "another program wrote them: `rush.malformed_records()` lists them, `rush.remove_malformed_records()` removes them",
        )


@contextmanager
def _silent() -> Generator[None]:
    """Keeps the library from warning of what a check tells."""
    loggers = [logging.getLogger(f"rush_async.{name}") for name in ("wire.opening", "store.malformed")]
    before = [logger.disabled for logger in loggers]
    try:
        for logger in loggers:
            logger.disabled = True
        yield
    finally:
        for logger, was_disabled in zip(loggers, before, strict=True):
            logger.disabled = was_disabled


def _connection_check(config: RushConfig, opened: _Opened, error: RushConnectionError | None, network_id: str | None) -> Check:
    name, found = "connection", opened.error or error
    if found is None:
        return Check(name, "ok", f"{config.where}, opened in {opened.seconds * 1e3:.3g} ms")
    if isinstance(found, RushConnectionError) and found.advice:
        problem = found.problem.rstrip(".")
        return Check(name, "bad", problem, advice_of(found).removeprefix(f"{problem}. "))
    finding, for_rights, _ = str(found).partition(acl_remedy())
    return Check(name, "bad", finding.rstrip(". "), acl_remedy(network_id or "") if for_rights else "")


async def _open_and_close(config: RushConfig, network_id: str | None) -> None:
    if network_id is None:
        link = await Link.acquire(config, SOURCES, key=NetworkKeys.of("any").meta)
        await link.release()
    else:
        network = await Network.acquire(network_id, config)
        await network.release()


async def _read_malformed(network_id: str, config: RushConfig) -> list[MalformedRecord]:
    config = with_heartbeat(config, _NO_BEAT, 2 * _NO_BEAT)  # a beat may renew expired leases, or find workers lost
    async with Rush(network_id, config, exist_ok=True) as rush:
        return await rush.malformed_records()


def _leases(alive: list[bytes], expiries: list[bytes], processes: list[bytes], now: float) -> list[LeaseEntry]:
    """Returns the leases that keep workers alive, from the replies of the server."""
    workers: dict[str, list[str]] = {}
    for worker_id, value in zip(alive[::2], alive[1::2], strict=True):
        workers.setdefault(AliveWorker.of(value).lease_id, []).append(worker_id.decode("utf-8", "backslashreplace"))
    left = {
        lease.decode("utf-8", "replace"): float(expiry) - now
        for lease, expiry in zip(expiries[::2], expiries[1::2], strict=True)
    }
    times = {
        lease.decode("utf-8", "replace"): lease_times(value)
        for lease, value in zip(processes[::2], processes[1::2], strict=True)
    }
    # A shared worker has no lease, and never expires.
    return [LeaseEntry(names, left.get(lease, 0.0), times.get(lease)) for lease, names in workers.items()]
