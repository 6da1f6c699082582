"""Locks on files, between processes.

The kernel releases such a lock when its process ends, however it ends. The lock belongs to the process and the file, not to a
descriptor (POSIX record locks): a process that closes any descriptor of a file loses its lock on that file.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

__all__ = ["is_locked", "lock_exclusive", "lock_shared", "open_private", "try_lock"]


def open_private(path: Path, flags: int = os.O_CREAT) -> int:
    """Opens a file that only this user may read, and never through a symbolic link; returns its descriptor.

    Raises:
        OSError: the file cannot be opened.
    """
    return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o600)


def lock_exclusive(path: Path) -> int:
    """Waits for the exclusive lock on a file; returns the descriptor that releases it when it is closed."""
    file = open_private(path)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX)
    except BaseException:
        os.close(file)
        raise
    return file


def lock_shared(file: int) -> None:
    """Waits for a shared lock on an open file."""
    fcntl.lockf(file, fcntl.LOCK_SH)


def try_lock(file: int) -> bool:
    """Takes the exclusive lock on an open file, unless another process has a lock on it; returns whether it did."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        raise
    return True


def is_locked(path: Path) -> bool:
    """Whether another process has a lock on a file. This process must have none: the check would release it.

    Raises:
        OSError: the file exists and cannot be opened.
    """
    try:
        file = open_private(path, flags=0)
    except FileNotFoundError:
        return False
    try:
        return not try_lock(file)
    finally:
        os.close(file)
