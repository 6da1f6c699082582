"""The faults: each kind is a method that breaks something and heals it again."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import signal
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

from benchmarks.faults.observer import NAME
from benchmarks.faults.server import BreakableServer
from benchmarks.faults.work import EXPIRE
from rush_async.errors import RushError
from tests.proxy import Command, Fault, LateCopy, Proxy

__all__ = ["FAULTS", "Injector", "Victims"]

# Each kind and how often it is chosen among them. What takes longer comes less often.
_OF_CONNECTIONS = {
    "connection cut before a request was forwarded": 10,
    "connection cut after a request was executed, its reply lost": 14,
    "connection cut within a reply": 8,
    "late copy of a request delivered": 10,
    "replies delayed": 4,
    "replies in pieces": 4,
    "all connections cut": 4,
    "connections for messages cut": 3,
    "new connections refused": 2,
    "requests and replies frozen": 2,
    "replies frozen": 2,
}
_OF_SERVERS = {
    "server killed and restarted on its append-only file": 2,
    "server paused": 3,
    "server stopped (SIGSTOP) and resumed": 2,
    "server filled": 4,
    "server filled while replies are lost": 4,
    "scripts flushed": 5,
    "clients killed by the server": 4,
}
_OF_WORKERS = {"worker declared lost while it works": 4, "worker declared lost while its requests are held back": 3}
_OF_PROCESSES = {
    "process killed (SIGKILL)": 3,
    "process stopped beyond its lease (SIGSTOP) and resumed": 2,
    "process without file descriptors": 3,
}
FAULTS = _OF_CONNECTIONS | _OF_SERVERS | _OF_WORKERS | _OF_PROCESSES

_SCRIPTS = (b"EVALSHA", b"EVAL")


def _is_script(command: Command) -> bool:
    return command[0].upper() in _SCRIPTS


class Victims(Protocol):
    """The processes and workers of a round."""

    def pids(self) -> Sequence[int]:
        """The processes that may be stopped or taken descriptors from."""
        ...

    def mortal_pids(self) -> Sequence[int]:
        """The processes that may be killed."""
        ...

    async def lose_a_worker(self, chance: random.Random) -> bool:
        """Declares a worker lost, as if its lease had expired. Returns whether there was one."""
        ...


class Injector:
    """Injects faults until it is cancelled, and heals what is broken then.

    Args:
        proxy: the proxy between clients and server.
        server: the server.
        victims: the processes and workers.
        chance: decides which fault comes when.
        rate: how many faults a second, about.
        kinds: the kinds to choose from, and how often each; a fault of another topology, such as a failover, is added by
            a subclass with a method of its own.

    Attributes:
        counts: how many faults of each kind have struck, once it has ended.
        log: when each was injected, in seconds since 1970, and its kind.
    """

    def __init__(
        self, proxy: Proxy, server: BreakableServer, victims: Victims, chance: random.Random, rate: float, kinds: dict[str, int]
    ) -> None:
        self._proxy = proxy
        self._server = server
        self._victims = victims
        self._chance = chance
        self._rate = rate
        self._kinds = kinds
        self._armed: list[tuple[str, Fault]] = []
        self._late: set[asyncio.Task[None]] = set()
        self.counts: Counter[str] = Counter()
        self.log: list[tuple[float, str]] = []

    async def run(self) -> None:
        """Injects one fault after the other."""
        names, weights = list(self._kinds), list(self._kinds.values())
        try:
            while True:
                await asyncio.sleep(self._chance.expovariate(self._rate))
                kind = self._chance.choices(names, weights)[0]
                self.log.append((time.time(), kind))
                if await self.inject(kind):
                    self.counts[kind] += 1
        finally:
            self._proxy.disarm()
            for kind, fault in self._armed:
                self.counts[kind] -= not fault.hit.is_set()
            for task in self._late:
                task.cancel()
            await asyncio.gather(*self._late, return_exceptions=True)

    async def inject(self, kind: str) -> bool:
        """Injects a fault of this kind, and heals what it broke for a while. Returns whether there was what it breaks."""
        proxy, chance = self._proxy, self._chance
        match kind:
            case "connection cut before a request was forwarded":
                self._armed.append((kind, proxy.cut_before(_is_script)))
            case "connection cut after a request was executed, its reply lost":
                self._armed.append((kind, proxy.drop_reply(_is_script)))
            case "connection cut within a reply":
                self._armed.append((kind, proxy.drop_reply(_is_script, keep=chance.randint(1, 40))))
            case "late copy of a request delivered":
                late = proxy.late_copy(_is_script)
                self._armed.append((kind, late))
                delivery = asyncio.create_task(self._deliver(late, chance.uniform(0, 2)))
                self._late.add(delivery)
                delivery.add_done_callback(self._late.discard)
            case "replies delayed":
                proxy.reply_delay = chance.uniform(0.001, 0.03)
                await self._heal(0.3)
            case "replies in pieces":
                proxy.reply_pieces = chance.randint(1, 50)
                await self._heal(0.3)
            case "all connections cut":
                return proxy.cut_all() > 0
            case "connections for messages cut":
                return proxy.cut_all("pubsub") > 0
            case "new connections refused":
                proxy.refuse()
                proxy.cut_all()
                await self._heal(chance.uniform(0.05, 0.5))
            case "requests and replies frozen":
                proxy.freeze()
                await self._heal(chance.uniform(0.05, 2.5))
            case "replies frozen":
                proxy.freeze(up=False)
                await self._heal(chance.uniform(0.05, 2.5))
            case _:
                return await self._inject_into_server(kind) if kind in _OF_SERVERS else await self._inject_into_process(kind)
        return True

    async def _inject_into_server(self, kind: str) -> bool:
        server, chance = self._server, self._chance
        match kind:
            case "server killed and restarted on its append-only file":
                server.kill()
                try:
                    await asyncio.sleep(chance.uniform(0, 0.5))
                finally:
                    await server.start()
            case "server paused":
                server.pause(chance.uniform(0.05, 0.5))
            case "server stopped (SIGSTOP) and resumed":
                server.stop()
                await self._heal(chance.uniform(0.05, 2.5))
            case "server filled":
                server.fill()
                await self._heal(chance.uniform(0.05, 0.5))
            case "server filled while replies are lost":
                for _ in range(3):
                    self._proxy.drop_reply(_is_script)
                await asyncio.sleep(chance.uniform(0, 0.02))
                server.fill()
                await self._heal(chance.uniform(0.05, 0.5))
            case "scripts flushed":
                server.flush_scripts()
            case "clients killed by the server":
                return server.kill_clients(spared=NAME) > 0
            case _:
                raise ValueError(f"there is no fault {kind!r}")
        return True

    async def _inject_into_process(self, kind: str) -> bool:
        chance, victims = self._chance, self._victims
        if kind in _OF_WORKERS:
            if "held back" in kind:
                self._proxy.freeze()
            try:
                if "held back" in kind:
                    await asyncio.sleep(chance.uniform(0, 0.05))  # in which its process sends more
                return await victims.lose_a_worker(chance)
            except RushError:
                return False
            finally:
                self._proxy.thaw()
        pids = victims.mortal_pids() if kind.startswith("process killed") else victims.pids()
        if not pids:
            return False
        with suppress(ProcessLookupError):  # it may end at any moment
            await self._break_process(kind, chance.choice(pids))
            return True
        return False

    async def _break_process(self, kind: str, pid: int) -> None:
        chance = self._chance
        match kind:
            case "process killed (SIGKILL)":
                os.kill(pid, signal.SIGKILL)
            case "process stopped beyond its lease (SIGSTOP) and resumed":
                os.kill(pid, signal.SIGSTOP)
                try:
                    await asyncio.sleep(EXPIRE * 1.3)
                finally:
                    os.kill(pid, signal.SIGCONT)
            case "process without file descriptors":
                soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
                resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, hard))
                try:
                    self._proxy.cut_all()
                    await asyncio.sleep(chance.uniform(0.2, 1.0))
                finally:
                    resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
            case _:
                raise ValueError(f"there is no fault {kind!r}")

    async def _heal(self, seconds: float) -> None:
        """Waits, and heals what is broken, also when it is cancelled."""
        try:
            await asyncio.sleep(seconds)
        finally:
            self._proxy.reply_delay, self._proxy.reply_pieces = 0.0, 0
            self._proxy.refuse(False)
            self._proxy.thaw()
            self._server.go_on()
            self._server.empty()

    async def _deliver(self, late: LateCopy, seconds: float) -> None:
        """Delivers a late copy a while after its connection was cut."""
        await late.hit.wait()
        try:
            await asyncio.sleep(seconds)
            with suppress(ConnectionResetError):
                await late.deliver()
        finally:
            late.discard()
