"""Payloads: packed start arguments. Arguments that are too large for a job are written to a file that the worker reads.

The files of a network are in a directory of its own under `large_objects_path`. They stay until the network is reset, because a
worker may start at any time. Write access to that directory does not allow choosing what a worker runs: the content of a file
must have the digest that is part of the worker's job.
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
from dataclasses import asdict, dataclass, field
from typing import Any

import anyio.to_thread

from rush_async.config import RushConfig
from rush_async.errors import DecodeError, EncodeError, RushConfigError
from rush_async.supervisor import run_to_completion

__all__ = ["Payload", "remove_payloads"]

logger = logging.getLogger(__name__)

_TRIES = 5  # a reset may remove the directory between two steps
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_OLD_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a named pipe in its place must not block the reader
_NOT_IN_NAME = re.compile(r"[^0-9A-Za-z_-]+")


@dataclass(frozen=True, slots=True)
class Payload:
    """Encoded start arguments, or the file that holds them.

    Attributes:
        what: what it contains, for error messages.
        size: the size of the content in bytes.
        inline: the content; None where a file holds it.
        path: the file.
        sha256: the digest of the file's content.
    """

    what: str
    size: int
    inline: bytes | None = field(default=None, repr=False)
    path: str | None = None
    sha256: str | None = None

    @classmethod
    def pack(cls, content: bytes, network_id: str, config: RushConfig, what: str) -> Payload:
        """Packs encoded start arguments. Writes those larger than `max_start_args_size` to `large_objects_path`.

        Args:
            content: loop and arguments, encoded.
            network_id: the network whose workers read them.
            config: the two settings.
            what: what the content is, for error messages: "the worker loop f with its arguments".

        Raises:
            EncodeError: the content is too large, and no `large_objects_path` is set.
            RushConfigError: `large_objects_path` cannot be written.
        """
        if len(content) <= config.max_start_args_size:
            return cls(what, len(content), content)
        if config.large_objects_path is None:
            raise EncodeError(
                f"{what}: {len(content):,} bytes, more than max_start_args_size of {config.max_start_args_size:,} bytes. "
                "Load large data in the loop itself, set large_objects_path to a directory that all workers see, "
                "or raise RushConfig(max_start_args_size=...)"
            )
        root = os.path.abspath(config.large_objects_path)  # a worker may have another working directory
        try:
            path = _write(content, root, _directory_of(network_id))
        except OSError as error:
            raise RushConfigError(
                f"{what}: {len(content):,} bytes are too large to travel and cannot be written to the large_objects_path "
                f"{root}: {error.strerror}. It must be a directory that this user may write to"
            ) from error
        return cls(what, len(content), None, path, hashlib.sha256(content).hexdigest())

    @classmethod
    async def pack_in_thread(cls, content: bytes, network_id: str, config: RushConfig, what: str) -> Payload:
        """Like `pack`, but writes the file in a thread. A cancelled call leaves no file."""
        if len(content) <= config.max_start_args_size:
            return cls.pack(content, network_id, config, what)
        packed: list[Payload] = []

        async def pack() -> None:
            packed.append(await anyio.to_thread.run_sync(cls.pack, content, network_id, config, what))

        try:
            await run_to_completion(pack())  # a thread cannot be cancelled, and its file would be left behind
        except BaseException:
            for payload in packed:
                await payload.discard()
            raise
        return packed[0]

    def unpack(self) -> bytes:
        """Returns the content, read from its file and verified where it is not inline.

        Raises:
            DecodeError: the file is missing, cannot be read, or was altered.
        """
        if self.inline is not None:
            return self.inline
        assert self.path is not None
        try:
            content = _read(self.path, self.size)
        except FileNotFoundError as error:
            raise DecodeError(
                f"{self.what}: the file {self.path} does not exist. Either a reset of the network has removed it, "
                f"or large_objects_path is not shared with this machine, {socket.gethostname()}"
            ) from error
        except OSError as error:
            raise DecodeError(
                f"{self.what}: the file {self.path} cannot be read on {socket.gethostname()}: {error.strerror}. "
                "large_objects_path must be a directory whose files this user may read"
            ) from error
        if content is None or hashlib.sha256(content).hexdigest() != self.sha256:
            raise DecodeError(
                f"{self.what}: the file {self.path} was altered after it had been written, so it is not used. "
                "Start the workers again, and allow no other user to write to large_objects_path"
            )
        return content

    async def discard(self) -> None:
        """Removes the file of a payload that no worker will read. Runs to completion even if it is cancelled."""
        if self.path is not None:
            await run_to_completion(anyio.to_thread.run_sync(_remove_file, self.path))

    def as_record(self) -> dict[str, Any]:
        """Returns the payload as plain values, for a transport without pickles."""
        return asdict(self)

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Payload:
        """Returns the payload from the plain values of `as_record`.

        Raises:
            DecodeError: the values are not those of a payload.
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
                raise DecodeError(f"no payload of start arguments: {record!r:.200}")


async def remove_payloads(network_id: str, large_objects_path: str | os.PathLike[str]) -> None:
    """Removes the files of one network. Does not follow symbolic links.

    Logs a warning about what it cannot remove, so that a reset continues.
    """
    await anyio.to_thread.run_sync(_remove_all, large_objects_path, network_id)


# files


def _write(content: bytes, root: str, name: str) -> str:
    with contextlib.suppress(FileExistsError):
        os.mkdir(root, 0o700)
    file = secrets.token_hex(16)
    for tries_left in reversed(range(_TRIES)):
        try:
            with _opened(root, name, make=True) as directory:
                _write_file(content, file, directory)
            break
        except FileNotFoundError:
            if not tries_left:
                raise
    return os.path.join(root, name, file)


def _write_file(content: bytes, file: str, directory: int) -> None:
    part = f".{file}"
    descriptor = os.open(part, _NEW_FILE, 0o600, dir_fd=directory)
    try:
        with open(descriptor, "wb", buffering=0) as out:
            rest = memoryview(content)
            while rest:
                rest = rest[out.write(rest) :]
        os.rename(part, file, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(part, dir_fd=directory)
        raise


def _read(path: str, size: int) -> bytes | None:
    """Returns the content of the file; None if it is no regular file of that size."""
    descriptor = os.open(path, _OLD_FILE)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size != size:
            return None
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(size)
    finally:
        os.close(descriptor)


def _remove_file(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)


def _remove_all(large_objects_path: str | os.PathLike[str], network_id: str) -> None:
    root = os.path.abspath(large_objects_path)
    name = _directory_of(network_id)
    try:
        with _opened(root, name) as directory:
            for entry in os.listdir(directory):
                with contextlib.suppress(OSError):  # a subdirectory, or another process has removed it
                    os.unlink(entry, dir_fd=directory)
        os.rmdir(os.path.join(root, name))
    except FileNotFoundError:
        return  # it never existed, or another process has removed it
    except OSError as error:
        logger.warning(
            "the directory %s for start arguments of network %r cannot be removed: %s. Remove it by hand",
            os.path.join(root, name),
            network_id,
            error.strerror,
        )


def _directory_of(network_id: str) -> str:
    """Returns the name of a network's directory: a valid file name, unique, and readable by people, for any network id."""
    digest = hashlib.sha256(network_id.encode()).hexdigest()[:32]
    return f"rush-{_NOT_IN_NAME.sub('-', network_id)[:40].strip('-')}-{digest}"


@contextmanager
def _opened(root: str, name: str, *, make: bool = False) -> Generator[int]:
    """Opens the directory of a network. Does not follow a symbolic link in its place."""
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
