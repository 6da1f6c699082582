"""Redis servers of a test's own on loopback: alone, with TLS and users, behind Sentinels, and as a cluster.

Everything here blocks, so that a thread beside an event loop can disturb the servers while the loop works.
"""

from __future__ import annotations

import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import redis
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.retry import Retry

from rush_async import RushConfig

__all__ = [
    "Certificates",
    "Cluster",
    "MissingServer",
    "Replicated",
    "Sentinels",
    "ServerProcess",
    "TLSServer",
    "free_port",
    "wait_for",
]

_START_TIMEOUT = 20.0
# Below the ports that the system gives to outgoing connections, so that a server finds its port free when it starts again.
_PORTS = range(20_000, 32_000)
_USER = "+@read +@write +@scripting +@pubsub +@connection +@transaction +info +time"


class MissingServer(Exception):
    """A program is missing; the message tells what to install."""


def _program(name: str, package: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise MissingServer(f"there is no {name} on the PATH: apt install {package}")
    return found


def free_port() -> int:
    """Returns a port of 127.0.0.1 on which no program listens."""
    for port in random.sample(_PORTS, 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port was found")


def wait_for(condition: Callable[[], Any], what: str, timeout: float = _START_TIMEOUT) -> Any:
    """Waits until a condition holds; a server that cannot answer yet counts as no."""
    deadline, error = time.monotonic() + timeout, None
    while True:
        try:
            if value := condition():
                return value
        except redis.RedisError as reason:
            error = reason
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout:g} s: {what}") from error
        time.sleep(0.01)


class ServerProcess:
    """One `redis-server`, which keeps its data only as a replica or the master of others.

    Args:
        directory: where it works; a folder of its own is made.
        lines: lines of its configuration.
        sentinel: whether it is a Sentinel.
        binary: its program; by default the `redis-server` on the PATH.
        options: of the plain client.

    Attributes:
        port: where it listens on 127.0.0.1.
        directory: its folder.
        raw: a plain client.
    """

    def __init__(self, directory: Path, *lines: str, sentinel: bool = False, binary: str | None = None, **options: Any) -> None:
        self._binary = binary or _program("redis-server", "redis-server")
        self.port = free_port()
        self.directory = directory / str(self.port)
        self.directory.mkdir()
        own = [f"dir {self.directory}", "bind 127.0.0.1", "logfile log", *([] if sentinel else ['save ""', "appendonly no"])]
        own += [] if any(line.startswith("tls-port") for line in lines) else [f"port {self.port}"]
        self._config = self.directory / "server.conf"
        self._config.write_text("\n".join([*own, *lines, ""]).replace("{port}", str(self.port)))
        self._sentinel = ["--sentinel"] if sentinel else []
        options |= {"socket_timeout": 2, "retry": Retry(NoBackoff(), 0), "protocol": 2, "decode_responses": True}
        self.raw: Any = redis.Redis("127.0.0.1", self.port, **options)
        self._process: subprocess.Popen[Any] | None = None

    def start(self, *options: str) -> None:
        """Starts it and waits until it answers."""
        command = [self._binary, str(self._config), *self._sentinel, *options]
        # It holds no pipe of this process, so that a program that reads what we print ends with us.
        quiet: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        self._process = subprocess.Popen(command, start_new_session=True, cwd=self.directory, **quiet)
        try:
            wait_for(self.raw.ping, f"{' '.join(command)} answers")
        except BaseException:
            self.end()
            raise

    def stop_answering(self, *, freezes: bool) -> None:
        """Kills it, or freezes it as the end of its machine does: its connections stay open."""
        if freezes and self._process is not None:
            self._process.send_signal(signal.SIGSTOP)
        else:
            self.kill()

    def kill(self) -> None:
        """Kills it as a crash does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self.raw.connection_pool.disconnect()

    def end(self) -> None:
        """Kills it for good."""
        self.kill()
        self.raw.close()


class Replicated(Protocol):
    """Servers with replicas.

    Attributes:
        config: the configuration of clients.
    """

    config: RushConfig

    def fail_over(self, key: str, *, freezes: bool = False) -> float:
        """Kills or freezes the master that has the key, waits for the next one, and starts it again, as its replica.

        Returns the seconds until there was another master.
        """
        ...

    def end(self) -> None:
        """Ends all."""


class Certificates:
    """An authority, a server's certificate for 127.0.0.1, and that of a client.

    Attributes:
        lines: of the configuration of a server that wants certificates of its clients.
        client: options of a plain client.
        config: the configuration of clients, without a URL.
    """

    def __init__(self, directory: Path) -> None:
        openssl = _program("openssl", "openssl")

        def run(*words: str) -> None:
            subprocess.run([openssl, *words], cwd=directory, check=True, capture_output=True)

        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
        run("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.crt", "-days", "1", "-subj", "/CN=test")
        for name, extension in (("server", "subjectAltName=IP:127.0.0.1"), ("client", "extendedKeyUsage=clientAuth")):
            (directory / f"{name}.ext").write_text(extension)
            run("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
            signed = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "1", "-extfile", f"{name}.ext")
            run("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.crt", *signed)
        self.lines = (
            *("port 0", "tls-port {port}", "tls-auth-clients yes", f"tls-ca-cert-file {directory / 'ca.crt'}"),
            *(f"tls-cert-file {directory / 'server.crt'}", f"tls-key-file {directory / 'server.key'}"),
        )
        ca, certificate, key = (str(directory / name) for name in ("ca.crt", "client.crt", "client.key"))
        self.client: dict[str, Any] = {"ssl": True, "ssl_ca_certs": ca, "ssl_certfile": certificate, "ssl_keyfile": key}
        self.config = RushConfig(tls_ca_file=ca, tls_cert_file=certificate, tls_key_file=key)


class TLSServer:
    """A server that wants certificates of its clients, with a user who may do what rush_async does and nothing else.

    Attributes:
        config: the configuration of clients.
    """

    def __init__(self, directory: Path) -> None:
        certificates = Certificates(directory)
        users = "user default off", "user admin on >root ~* &* +@all", f"user ann on >se:cr@t ~rush:* &rush:* {_USER}"
        as_admin: dict[str, Any] = {**certificates.client, "username": "admin", "password": "root"}
        self._server = ServerProcess(directory, *certificates.lines, *users, **as_admin)
        self.config = certificates.config.at(f"rediss://ann:se%3Acr%40t@127.0.0.1:{self._server.port}")
        self._server.start()

    def end(self) -> None:
        """Ends the server."""
        self._server.end()


class Sentinels:
    """A master with one replica, and three Sentinels that replace the master two seconds after it is gone.

    Sentinels ping every second at the most, so after less than two seconds they would take a new master for gone as well.

    Attributes:
        config: the configuration of clients.
    """

    SERVICE = "main"

    def __init__(self, directory: Path) -> None:
        quick = ("repl-diskless-sync-delay 0", "repl-ping-replica-period 1", "requirepass secret", "masterauth secret")
        self.servers = [ServerProcess(directory, *quick, password="secret") for _ in range(2)]
        first, second = self.servers
        watched = (
            *(f"sentinel monitor {self.SERVICE} 127.0.0.1 {first.port} 2", f"sentinel auth-pass {self.SERVICE} secret"),
            *(f"sentinel down-after-milliseconds {self.SERVICE} 2000", f"sentinel failover-timeout {self.SERVICE} 1000"),
            "requirepass watch",
        )
        self.sentinels = [ServerProcess(directory, *watched, sentinel=True, password="watch") for _ in range(3)]
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        self.config = RushConfig(url=f"redis+sentinel://:secret@{hosts}/{self.SERVICE}?sentinel_password=watch&db=2")
        try:
            first.start()
            second.start("--replicaof", "127.0.0.1", str(first.port))
            wait_for(lambda: _is_synchronised(second), "the replica has the data of its master")
            for sentinel in self.sentinels:
                sentinel.start()
            wait_for(self._is_complete, "the Sentinels know each other and the replica")
        except BaseException:
            self.end()
            raise

    def _is_complete(self) -> bool:
        states = [sentinel.raw.sentinel_masters()[self.SERVICE] for sentinel in self.sentinels]
        return all(state["num-other-sentinels"] == 2 and state["num-slaves"] == 1 for state in states)

    def master(self) -> ServerProcess:
        """Returns the master that most Sentinels name."""
        ports = [sentinel.raw.sentinel_get_master_addr_by_name(self.SERVICE)[1] for sentinel in self.sentinels]
        return next(server for server in self.servers if ports.count(server.port) >= 2)

    def cut_replica(self) -> None:
        """Cuts the replica from its master: it stays at what it has."""
        master = self.master()
        replica = next(server for server in self.servers if server is not master)
        replica.raw.config_set("masterauth", "wrong")
        master.raw.client_kill_filter(_type="replica")
        wait_for(lambda: not _is_synchronised(replica), "the replica is cut off")

    def fail_over(self, key: str, *, freezes: bool = False) -> float:
        """Kills or freezes the master, waits for the next one, and starts it again, as its replica.

        Returns the seconds until there was another master.
        """
        old = self.master()
        old.stop_answering(freezes=freezes)
        killed_at = time.perf_counter()
        new = next(server for server in self.servers if server is not old)
        wait_for(lambda: new.raw.info("replication")["role"] == "master" and self.master() is new, "another master")
        took = time.perf_counter() - killed_at
        old.kill()
        old.start("--replicaof", "127.0.0.1", str(new.port))
        wait_for(lambda: _is_synchronised(old), "the replica has the data of its master")
        wait_for(self._is_steady, "the Sentinels see both servers again")
        return took

    def _is_steady(self) -> bool:
        for sentinel in self.sentinels:
            state = sentinel.raw.sentinel_masters()[self.SERVICE]
            replicas = sentinel.raw.sentinel_slaves(self.SERVICE)
            if state["flags"] != "master" or [replica["flags"] for replica in replicas] != ["slave"]:
                return False
        return True

    def end(self) -> None:
        """Ends all."""
        for server in (*self.sentinels, *self.servers):
            server.end()


def _is_synchronised(server: ServerProcess) -> bool:
    state = server.raw.info("replication")
    return state["role"] == "slave" and state["master_link_status"] == "up"


class Cluster:
    """Three masters with one replica each.

    Attributes:
        config: the configuration of clients.
    """

    def __init__(self, directory: Path) -> None:
        quick = (
            *("cluster-enabled yes", "cluster-config-file nodes.conf", "cluster-node-timeout 1000"),
            *("repl-diskless-sync-delay 0", "repl-ping-replica-period 1", "cluster-allow-replica-migration no"),
            f"user ann on >secret ~rush:* &rush:* {_USER} +cluster|slots",
        )
        self.servers = [ServerProcess(directory, *quick, f"cluster-port {free_port()}") for _ in range(6)]
        # One of them is no seed, and one seed is not there.
        hosts = ",".join(f"127.0.0.1:{server.port}" for server in self.servers[1:4])
        self.config = RushConfig(url=f"redis+cluster://ann:secret@127.0.0.1:{free_port()},{hosts}")
        try:
            self._make()
        except BaseException:
            self.end()
            raise

    def _make(self) -> None:
        for at, server in enumerate(self.servers):
            server.start()
            server.raw.execute_command("CLUSTER", "SET-CONFIG-EPOCH", at + 1)
        masters, replicas = self.servers[:3], self.servers[3:]
        for server, first, last in zip(masters, (0, 5461, 10923), (5460, 10922, 16383), strict=True):
            server.raw.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
        for server in self.servers[1:]:
            bus = self._bus_port(server)
            self.servers[0].raw.execute_command("CLUSTER", "MEET", "127.0.0.1", server.port, bus)
        wait_for(lambda: all(len(self._flags(server)) == 6 for server in self.servers), "the nodes know each other")
        for master, replica in zip(masters, replicas, strict=True):
            replica.raw.execute_command("CLUSTER", "REPLICATE", self._id_of(master))
        wait_for(lambda: all(map(_is_synchronised, replicas)), "the replicas have the data of their masters")
        wait_for(self._is_steady, "the cluster is complete")

    @staticmethod
    def _bus_port(server: ServerProcess) -> str:
        return server.raw.config_get("cluster-port")["cluster-port"]

    @staticmethod
    def _flags(server: ServerProcess) -> list[str]:
        """What a node thinks of each node."""
        lines: list[str] = server.raw.execute_command("CLUSTER", "NODES").splitlines()
        return [line.split()[2].removeprefix("myself,") for line in lines]

    @staticmethod
    def _id_of(server: ServerProcess) -> str:
        return server.raw.execute_command("CLUSTER", "MYID")

    def _is_steady(self) -> bool:
        agreed = ["master"] * 3 + ["slave"] * 3
        return all(
            "cluster_state:ok" in server.raw.execute_command("CLUSTER", "INFO") and sorted(self._flags(server)) == agreed
            for server in self.servers
        ) and agreed == sorted(server.raw.info("replication")["role"] for server in self.servers)

    def master(self, key: str, besides: ServerProcess | None = None) -> ServerProcess:
        """Returns the master that has the slot of a key, as the masters see it; `besides` is not asked."""
        for server in self.servers:
            if server is besides:
                continue
            try:
                if server.raw.info("replication")["role"] != "master":
                    continue
                server.raw.execute_command("EXISTS", key)
            except redis.RedisError:
                continue
            return server
        raise redis.ConnectionError("no master has the slot")

    def fail_over(self, key: str, *, freezes: bool = False) -> float:
        """Kills or freezes the master that has the key, waits for the next one, and starts it again, as its replica.

        Returns the seconds until there was another master.
        """
        old = self.master(key)
        old.stop_answering(freezes=freezes)
        killed_at = time.perf_counter()
        wait_for(lambda: self.master(key, old), "another master")
        took = time.perf_counter() - killed_at
        old.kill()
        old.start()
        wait_for(lambda: _is_synchronised(old), "the replica has the data of its master")
        wait_for(self._is_steady, "the cluster is complete")
        return took

    def migrate(self, key: str) -> None:
        """Moves the slot of a key to another master, key by key, as a resharding does."""
        slot, source = key_slot(key.encode()), self.master(key)
        others = [server for server in self.servers if server.raw.info("replication")["role"] == "master"]
        target = next(server for server in others if server is not source)
        ids = self._id_of(source), self._id_of(target)
        target.raw.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
        source.raw.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
        while keys := source.raw.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 1):
            source.raw.execute_command("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
            time.sleep(0.005)  # clients meet a slot whose keys are in two places
        for server in (target, source, *others):
            server.raw.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[1])

    def end(self) -> None:
        """Ends all."""
        for server in self.servers:
            server.end()
