"""The directories of an embedded server: a runtime directory for its socket, and a data directory if it keeps its data."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
import sys
import tempfile
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rush_async.embedded.locks import is_locked, lock_exclusive, make_private, open_private
from rush_async.errors import ServerStartError

__all__ = ["DataDirectory", "RuntimeDirectory", "check_peer", "has_ended", "network_file_system"]

_LONGEST_SOCKET_PATH = 103 if sys.platform == "darwin" else 107
_PREFIX = "rush-"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# `data` is removed last: it marks the directory as one of ours.
_FILES = ("socket", "pids", "log", "lease", "conf", "password", "data")
_DATA_FILES = ("rush.lock", "rush.runtime", "rush.log", "appendonlydir")
_LOCK_TIMEOUT = 20.0  # seconds for other processes to join or start the server of a data directory

# File systems that several machines share. A lock there may not reach the others, and two servers would write the same files.
_NETWORK_FILE_SYSTEMS = (
    *("afs", "beegfs", "ceph", "cifs", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "pvfs2", "smb3"),
    *("smbfs", "fuse.glusterfs", "fuse.rclone", "fuse.s3fs", "fuse.sshfs"),
)


class RuntimeDirectory:
    """The private directory of one server, made for it and removed with it.

    Attributes:
        path: the directory.
        socket: where the server listens.
        lease: the file on which each process that uses the server has a shared lock.
        data: names the data directory by device and inode, which a copy of that directory does not have; empty without one.
        pids: the process ids of the watchdog and the server.
        log: the log of a server without a data directory.
        conf: the settings of a server with a port, which are no words of its command.
        password: its password, quoted for a URL.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket, self.pids, self.log, self.lease, self.conf, self.password, self.data = (path / name for name in _FILES)

    @classmethod
    def create(cls, data: DataDirectory | None = None) -> RuntimeDirectory:
        """Makes a directory whose path is short enough for a socket.

        Args:
            data: the data directory of its server.

        Raises:
            ServerStartError: no such directory can be made.
        """
        try:
            directory = cls(Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_base())))
            try:
                directory.data.write_text("" if data is None else data.identity, "ascii")
            except BaseException:
                directory.remove()
                raise
            return directory
        except OSError as error:
            raise ServerStartError(
                f"no directory for the server's socket can be made: {error}. Set TMPDIR to a directory you may write to"
            ) from None

    def belongs_to(self, data: DataDirectory) -> bool:
        """Whether this user made it for the server of a data directory: a file that names it may name any other directory, also
        that of the server of another one, of which this one is a copy."""
        try:
            found = os.lstat(self.path)
            is_private = stat.S_ISDIR(found.st_mode) and found.st_mode & 0o777 == 0o700 and found.st_uid == os.geteuid()
            return (
                is_private
                and set(os.listdir(self.path)) <= set(_FILES)
                and stat.S_ISREG(os.lstat(self.data).st_mode)
                and self.data.read_text("ascii") == data.identity
            )
        except (FileNotFoundError, NotADirectoryError, PermissionError, UnicodeDecodeError):
            return False

    @property
    def url(self) -> str:
        """Where the server listens, with its password if it has one."""
        has_password = self.password.exists()  # opens nothing, as no file descriptor may be free
        return f"unix://:{self.password.read_text('ascii')}@{self.socket}" if has_password else f"unix://{self.socket}"

    def server_pid(self) -> int:
        """The process id of the server."""
        return int(self.pids.read_text("ascii").split()[1])

    def remove(self) -> None:
        """Removes the directory with the files that a server has there; with any other file in it, the directory stays.

        Opens nothing, so that it also works without a free file descriptor. Where others may write to TMPDIR, a link may have
        taken its place, and what that leads to stays.
        """
        with contextlib.suppress(OSError):
            found = os.lstat(self.path)
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
                return
        for name in _FILES:
            with contextlib.suppress(OSError):
                os.unlink(self.path / name)
        with contextlib.suppress(OSError):
            os.rmdir(self.path)


def has_ended(url: str) -> bool:
    """Whether a URL names the socket of an embedded server that has ended for good: its runtime directory is gone."""
    directory = _directory_of(url)
    return directory is not None and not directory.exists()


def check_peer(url: str, connected: Any) -> None:
    """Refuses an embedded server of another user, who has put it in the place of ours: others may write to TMPDIR.

    Args:
        url: where the connection leads.
        connected: its socket.

    Raises:
        PermissionError: the process of another user listens there.
    """
    option = getattr(socket, "SO_PEERCRED", None)
    if _directory_of(url) is not None and option is not None and connected.family == socket.AF_UNIX:
        _, owner, _ = struct.unpack("3i", connected.getsockopt(socket.SOL_SOCKET, option, struct.calcsize("3i")))
        if owner != os.geteuid():
            raise PermissionError(f"user {owner} listens there, not the embedded server of this user")


def _directory_of(url: str) -> Path | None:
    """The runtime directory of the embedded server that a URL names; None for another server."""
    path = Path(url[url.find("/", len("unix://")) :])  # behind a password
    is_ours = url.startswith("unix://") and path.name == _FILES[0] and path.parent.name.startswith(_PREFIX)
    return path.parent if is_ours else None


def _base() -> str:
    """Where runtime directories are made."""
    # Not $XDG_RUNTIME_DIR first: it is removed when the user logs out, even while programs of the user still run.
    bases = [tempfile.gettempdir()]
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(runtime) and os.access(runtime, os.W_OK):
        bases.append(runtime)
    # The random part of the name always has eight characters.
    lengths = {base: len(os.fsencode(os.path.join(base, f"{_PREFIX}12345678", "socket"))) for base in bases}
    base = next((base for base in bases if lengths[base] <= _LONGEST_SOCKET_PATH), None)
    if base is None:
        raise ServerStartError(
            f"the path of the server's socket in {bases[0]} would have {lengths[bases[0]]} bytes, "
            f"at most {_LONGEST_SOCKET_PATH} are possible: set TMPDIR or XDG_RUNTIME_DIR to a shorter path"
        )
    return base


class DataDirectory:
    """The directory where a server keeps its data; the processes that name the same one share a server.

    Attributes:
        path: the directory.
        identity: device and inode of the directory.
        runtime_file: names the runtime directory. The watchdog has a lock on it as long as the server lives.
        log: the server's log.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        found = path.stat()
        self.identity = f"{found.st_dev} {found.st_ino}"
        self.runtime_file = path / "rush.runtime"
        self.log = path / "rush.log"

    @classmethod
    def prepare(cls, path: Path) -> DataDirectory:
        """Makes the directory if there is none.

        Raises:
            ServerStartError: the directory cannot be made, or other machines can write it.
        """
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            resolved = path.resolve(strict=True)
            for place in {path, resolved}:
                _check_not_planted(place)
            device = resolved.stat().st_dev
        except OSError as error:
            raise ServerStartError(
                f"data_dir {str(path)!r} cannot be used: {error}. Name a directory you may write to"
            ) from None
        if kind := network_file_system(device):
            raise ServerStartError(
                f"data_dir {str(resolved)!r} is on a network file system ({kind}), where two machines could write the same "
                "files: name a local directory, or run a server of your own for all machines and name its url"
            )
        return cls(resolved)

    @contextmanager
    def usable(self) -> Generator[None]:
        """Turns an `OSError` about a file of the directory into a `ServerStartError` with a remedy."""
        try:
            yield
        except TimeoutError:
            raise
        except OSError as error:
            raise ServerStartError(
                f"data_dir {str(self.path)!r} cannot be used: {error}. It must be writable and on a local file system"
            ) from None

    @contextmanager
    def locked(self, given_up: threading.Event | None = None) -> Generator[None]:
        """Keeps other processes from joining or starting a server at the same time.

        Args:
            given_up: ends the wait for another process that does, when it is set.

        Raises:
            ServerStartError: another process has the lock for too long, or the wait was ended.
        """
        try:
            with self.usable():
                file = lock_exclusive(self.path / "rush.lock", _LOCK_TIMEOUT, given_up)
        except TimeoutError:
            raise ServerStartError(
                f"data_dir {str(self.path)!r}: another process has kept rush.lock locked for {_LOCK_TIMEOUT:g} s, so no server "
                "can be joined or started. Is that process frozen? End it, or use another data_dir"
            ) from None
        try:
            yield
        finally:
            os.close(file)

    def is_in_use(self) -> bool:
        """Whether the watchdog of a server that writes here is alive."""
        with self.usable():
            return is_locked(self.runtime_file)

    def runtime_directory(self) -> RuntimeDirectory | None:
        """The runtime directory of the server that used this directory last. It may be gone, or not be ours."""
        with self.usable(), open(open_private(self.runtime_file), "rb") as file:
            name = file.read()
        path = Path(os.fsdecode(name))
        is_usable = b"\0" not in name and path.is_absolute() and path.name.startswith(_PREFIX)
        return RuntimeDirectory(path) if is_usable else None

    def make_private(self) -> None:
        """Removes the rights of other users on data that an older program wrote.

        Raises:
            ServerStartError: a file is a symbolic link, or cannot be opened.
        """
        with self.usable():
            try:
                folder = os.open(self.path / "appendonlydir", _FOLDER)
            except FileNotFoundError:
                return
            try:
                make_private(folder)
                for name in os.listdir(folder):
                    file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
                    make_private(file)
                    os.close(file)
            finally:
                os.close(folder)

    def record(self, directory: RuntimeDirectory) -> None:
        """Writes down the runtime directory of the server that is to use this directory."""
        with self.usable(), open(open_private(self.runtime_file, os.O_CREAT | os.O_TRUNC), "wb") as file:
            file.write(os.fsencode(directory.path))


def _check_not_planted(data: Path) -> None:
    """Refuses a data directory that another user may exchange, since that user made it, or a part of it or of the way to it, in
    a place where everyone may, such as /tmp.

    Raises:
        PermissionError: there is such a part.
    """
    for path in (*(data / name for name in _DATA_FILES), data, *data.parents):
        with contextlib.suppress(FileNotFoundError):
            owner = os.lstat(path).st_uid
            if owner not in (0, os.geteuid()) and os.stat(path.parent).st_mode & stat.S_IWOTH:
                raise PermissionError(f"user {owner} made {str(path)!r}, where everyone may, and could exchange the data")


def network_file_system(device: int, mounts: Path = Path("/proc/self/mountinfo")) -> str | None:
    """The kind of the network file system on a device, as Linux lists it; None for a local or unknown one."""
    try:
        lines = mounts.read_text("utf-8", "replace").splitlines()
    except OSError:
        return None
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in lines:
        mount, _, source = line.partition(" - ")
        if mount.split()[2] == wanted and (kind := source.split()[0]) in _NETWORK_FILE_SYSTEMS:
            return kind
    return None
