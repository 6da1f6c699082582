"""Start arguments on their way to a worker: those that are too large to travel go to a file that the worker reads.

The files of a network lie in a directory of its own under `large_objects_path`, and stay until the network is reset, for a
worker may start at any time. Whoever can write there cannot make a worker run anything: what is read must have the digest that
travelled with the worker's orders.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import secrets
import socket
import stat
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio.to_thread

from rush_async.config import RushConfig
from rush_async.errors import DecodeError, EncodeError, RushConfigError
from rush_async.supervisor import see_through

__all__ = ["Parcel", "adiscard", "aremove_all", "aunwrap", "awrap", "discard", "remove_all", "unwrap", "wrap"]

logger = logging.getLogger(__name__)

_TRIES = 5  # a reset may remove the directory between two steps
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_OLD_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe in its place must not hold us up
_FOR_NAME = re.compile(r"[^0-9A-Za-z_-]+")


@dataclass(frozen=True, slots=True)
class Parcel:
    """Packed start arguments, or where they lie.

    Attributes:
        what: what is in it, for a message.
        size: of what is in it, in bytes.
        inline: the bytes themselves; None where they lie in a file.
        path: the file.
        sha256: the digest of what is in the file.
    """

    what: str
    size: int
    inline: bytes | None = field(default=None, repr=False)
    path: str | None = None
    sha256: str | None = None

    def as_record(self) -> dict[str, Any]:
        """The parcel as plain values, for a way that takes no pickles."""
        return {"what": self.what, "size": self.size, "inline": self.inline, "path": self.path, "sha256": self.sha256}

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Parcel:
        """The parcel that `as_record` made plain values of.

        Raises:
            DecodeError: they are no parcel's.
        """
        match dict(record):
            case {
                "what": str(what),
                "size": int(size),
                "inline": bytes() | None as inline,
                "path": str() | None as path,
                "sha256": str() | None as sha256,
            } if (inline is None) is (path is not None) is (sha256 is not None):
                return cls(what, size, inline, path, sha256)
            case _:
                raise DecodeError(f"no parcel of start arguments: {record!r:.200}")


# wrapping


def wrap(packed: bytes, network_id: str, config: RushConfig, what: str) -> Parcel:
    """Packed start arguments as a parcel. What is larger than `max_start_args_size` is written to `large_objects_path`.

    Args:
        packed: loop and arguments, in whatever form.
        network_id: the network whose worker is to read them.
        config: has the two settings.
        what: what this is, for a message: "the worker loop f with its arguments".

    Raises:
        EncodeError: they are too large, and no `large_objects_path` is set.
        RushConfigError: `large_objects_path` cannot be written.
    """
    if len(packed) <= config.max_start_args_size:
        return Parcel(what, len(packed), packed)
    if config.large_objects_path is None:
        raise EncodeError(
            f"{what}: {len(packed):,} bytes, more than max_start_args_size of {config.max_start_args_size:,} bytes. "
            "Load large data in the loop itself, set large_objects_path to a directory that all workers see, "
            "or raise RushConfig(max_start_args_size=...)"
        )
    root = os.path.abspath(config.large_objects_path)  # a worker may have another working directory
    try:
        path = _write(packed, root, _directory_of(network_id))
    except OSError as error:
        raise RushConfigError(
            f"{what}: {len(packed):,} bytes are too large to travel and cannot be written to the large_objects_path {root}: "
            f"{error.strerror}. It must be a directory that this user may write to"
        ) from error
    return Parcel(what, len(packed), None, path, hashlib.sha256(packed).hexdigest())


async def awrap(packed: bytes, network_id: str, config: RushConfig, what: str) -> Parcel:
    """`wrap`, with the disk in a thread. Cancelled, it leaves no file."""
    if len(packed) <= config.max_start_args_size or config.large_objects_path is None:
        return wrap(packed, network_id, config, what)
    done: list[Parcel] = []

    async def lay_down() -> None:
        done.append(await anyio.to_thread.run_sync(wrap, packed, network_id, config, what))

    try:
        await see_through(lay_down())  # a thread cannot be stopped, and a file that nobody knows of would stay
    except BaseException:
        for parcel in done:
            await adiscard(parcel)
        raise
    return done[0]


def discard(parcel: Parcel) -> None:
    """Removes the file of a parcel that nobody will read, if it has one."""
    if parcel.path is not None:
        with contextlib.suppress(OSError):
            os.unlink(parcel.path)


async def adiscard(parcel: Parcel) -> None:
    """`discard`, with the disk in a thread; for clean-up, so it is not cancelled."""
    if parcel.path is not None:
        await see_through(anyio.to_thread.run_sync(discard, parcel))


def _write(packed: bytes, root: str, name: str) -> str:
    with contextlib.suppress(FileExistsError):
        os.mkdir(root, 0o700)
    file = secrets.token_hex(16)
    for tries_left in reversed(range(_TRIES)):
        try:
            with _opened(root, name, make=True) as directory:
                _write_file(packed, file, directory)
            break
        except FileNotFoundError:
            if not tries_left:
                raise
    return os.path.join(root, name, file)


def _write_file(packed: bytes, file: str, directory: int) -> None:
    part = f".{file}"
    descriptor = os.open(part, _NEW_FILE, 0o600, dir_fd=directory)
    try:
        with open(descriptor, "wb", buffering=0) as out:
            rest = memoryview(packed)
            while rest:
                rest = rest[out.write(rest) :]
        os.rename(part, file, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(part, dir_fd=directory)
        raise


# unwrapping


def unwrap(parcel: Parcel) -> bytes:
    """What is in a parcel, read and verified if it lies in a file.

    Raises:
        DecodeError: the file is not there, cannot be read, or has been altered.
    """
    if parcel.inline is not None:
        return parcel.inline
    assert parcel.path is not None
    try:
        packed = _read(parcel.path, parcel.size)
    except FileNotFoundError as error:
        raise DecodeError(
            f"{parcel.what}: the file {parcel.path} is not there. Either a reset of the network has removed it, "
            f"or large_objects_path is not shared with this machine, {socket.gethostname()}"
        ) from error
    except OSError as error:
        raise DecodeError(
            f"{parcel.what}: the file {parcel.path} cannot be read on {socket.gethostname()}: {error.strerror}. "
            "large_objects_path must be a directory whose files this user may read"
        ) from error
    if packed is None or hashlib.sha256(packed).hexdigest() != parcel.sha256:
        raise DecodeError(
            f"{parcel.what}: the file {parcel.path} has been altered since it was written, so it is not used. "
            "Start the workers again, and let nobody else write to large_objects_path"
        )
    return packed


def _read(path: str, size: int) -> bytes | None:
    """What is in the file; None if it is no file of that size."""
    descriptor = os.open(path, _OLD_FILE)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size != size:
            return None
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(size)
    finally:
        os.close(descriptor)


async def aunwrap(parcel: Parcel) -> bytes:
    """`unwrap`, with the disk in a thread."""
    return unwrap(parcel) if parcel.inline is not None else await anyio.to_thread.run_sync(unwrap, parcel)


# removing


def remove_all(network_id: str, large_objects_path: str | os.PathLike[str]) -> None:
    """Removes every file of a network, and nothing else: no other network's, and nothing that a link leads to.

    What cannot be removed is logged as a warning: a reset is to go on.
    """
    name = _directory_of(network_id)
    root = os.path.abspath(large_objects_path)
    try:
        with _opened(root, name) as directory:
            for entry in os.listdir(directory):
                with contextlib.suppress(OSError):  # a directory, which is not ours, or somebody was faster
                    os.unlink(entry, dir_fd=directory)
        os.rmdir(os.path.join(root, name))
    except FileNotFoundError:
        return  # there never was any, or somebody was faster
    except OSError as error:
        logger.warning(
            "the directory %s for start arguments of network %r is not removed: %s",
            os.path.join(root, name),
            network_id,
            error.strerror,
        )


async def aremove_all(network_id: str, large_objects_path: str | os.PathLike[str]) -> None:
    """`remove_all`, with the disk in a thread."""
    await anyio.to_thread.run_sync(remove_all, network_id, large_objects_path)


# the directory of a network


def _directory_of(network_id: str) -> str:
    """The name of a network's directory: any id gives a name that is safe, its own, and tells a person whose it is."""
    digest = hashlib.sha256(network_id.encode()).hexdigest()[:32]
    return f"rush-{_FOR_NAME.sub('-', network_id)[:40].strip('-')}-{digest}"


@contextmanager
def _opened(root: str, name: str, *, make: bool = False) -> Generator[int]:
    """The directory of a network. A link in its place is not followed."""
    outer = os.open(root, _DIRECTORY)
    try:
        if make:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=outer)
        inner = os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=outer)
    finally:
        os.close(outer)
    try:
        yield inner
    finally:
        os.close(inner)
