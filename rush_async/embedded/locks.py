"""Locks on files, between processes.

The kernel releases such a lock when its process ends, however it ends. The lock belongs to the process and the file, not to a
descriptor (POSIX record locks): a process that closes any descriptor of a file loses its lock on that file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import os
import threading
import time
from pathlib import Path

__all__ = ["is_locked", "lock_exclusive", "lock_shared", "make_private", "open_private", "try_lock"]

_LONGEST_PAUSE = 0.02  # seconds between two looks at a lock


def open_private(path: Path, flags: int = os.O_CREAT) -> int:
    """Opens a file that only this user may read, and never through a symbolic link; returns its descriptor.

    Raises:
        OSError: the file cannot be opened.
    """
    file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o600)
    make_private(file)
    return file


def make_private(file: int) -> None:
    """Takes the rights of others from an open file or directory of this user, which an older program may have made."""
    found = os.fstat(file)
    if found.st_uid == os.geteuid() and found.st_mode & 0o077:
        with contextlib.suppress(PermissionError):  # a file system without modes, such as that of a memory card
            os.fchmod(file, found.st_mode & 0o700)


def lock_exclusive(path: Path, timeout: float = math.inf, given_up: threading.Event | None = None) -> int:
    """Waits for the exclusive lock on a file.

    Args:
        path: the file.
        timeout: seconds to wait.
        given_up: ends the wait when it is set. A wait in the kernel could not be ended by another thread, so this one looks at
            the lock again and again.

    Returns:
        The descriptor that releases the lock when it is closed.

    Raises:
        TimeoutError: another process has kept its lock, or the wait was ended.
        OSError: the file cannot be opened.
    """
    given_up = given_up or threading.Event()
    deadline, pause = time.monotonic() + timeout, 0.001
    file = open_private(path)
    try:
        while not try_lock(file):
            if given_up.wait(pause) or time.monotonic() > deadline:
                raise TimeoutError(f"another process has {path.name} locked")
            pause = min(2 * pause, _LONGEST_PAUSE)
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
