"""What child processes print, log and warn, shown by the manager's process with a name in front of each line.

A child writes into files and never waits for its manager. After each write it wakes the manager up by a byte in a pipe, unless
that is full. What a C library or another program writes beside Python is shown with the next write of Python, or at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Output", "wake_on_output"]

_PIECE = 2**16  # bytes that are shown before the event loop has another turn; also the longest line


# in the manager


class Output:
    """The output of one child process.

    Args:
        files: where the child writes; the suffixes are `.stdout` and `.stderr`.

    Attributes:
        wakeup_fd: the descriptor by which the child wakes the manager up.
    """

    def __init__(self, files: Path) -> None:
        with contextlib.ExitStack() as on_error:
            self._streams = [_Stream(files.with_suffix(f".{name}"), name, on_error) for name in ("stdout", "stderr")]
            self._wakeups, self.wakeup_fd = os.pipe()
            on_error.pop_all()
        for end in (self._wakeups, self.wakeup_fd):
            os.set_blocking(end, False)
        self._loop = asyncio.get_running_loop()
        self._name = ""
        self._is_closed = False

    def start(self, name: str) -> None:
        """Shows from now on what the child writes."""
        self._name = name
        self._loop.add_reader(self._wakeups, self._heard)

    def show_all(self, *, is_end: bool = False) -> None:
        """Shows what the child has written so far; at the end also a line without a line end."""
        for stream in self._streams:
            for _ in range(-(-stream.n_unread // _PIECE)):  # a process that never stops writing cannot hold this one
                stream.show_piece(self._name)
            if is_end:
                stream.show_rest(self._name)

    def close(self) -> None:
        """Shows the rest and closes pipe and files. Closing it again does nothing."""
        if not self._is_closed:
            self._is_closed = True
            self._loop.remove_reader(self._wakeups)
            os.close(self._wakeups)
            self.show_all(is_end=True)
            for stream in self._streams:
                stream.close()

    def _heard(self) -> None:
        if not os.read(self._wakeups, _PIECE):  # the child is gone
            self._loop.remove_reader(self._wakeups)
        self._show()

    def _show(self) -> None:
        if not self._is_closed:
            for stream in self._streams:
                stream.show_piece(self._name)
            if any(stream.n_unread for stream in self._streams):
                self._loop.call_soon(self._show)


class _Stream:
    """One of the two files of a child, and what was shown of it."""

    def __init__(self, path: Path, name: str, on_error: contextlib.ExitStack) -> None:
        path.touch()
        self._file = on_error.enter_context(path.open("rb", buffering=0))
        self._target = name
        self._rest = b""  # a line that has not ended

    @property
    def n_unread(self) -> int:
        """How many bytes have not been read."""
        return max(0, os.fstat(self._file.fileno()).st_size - self._file.tell())

    def show_piece(self, name: str) -> None:
        """Shows the lines that end in the next piece."""
        *lines, self._rest = (self._rest + self._file.read(_PIECE)).split(b"\n")
        if len(self._rest) > _PIECE:
            lines.append(self._rest)
            self._rest = b""
        self._write(name, lines)

    def show_rest(self, name: str) -> None:
        """Shows a line that has not ended."""
        if self._rest:
            self._write(name, [self._rest])
            self._rest = b""

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _write(self, name: str, lines: list[bytes]) -> None:
        # A progress bar returns to the beginning of its line: the last state of it is shown.
        shown = [line.rstrip(b"\r").rpartition(b"\r")[2].decode("utf-8", "replace") for line in lines]
        with contextlib.suppress(OSError, ValueError, AttributeError):  # this process may have closed its output, or have none
            getattr(sys, self._target).write("".join(f"[{name}] {line}\n" for line in shown))


# in the child


class _WakingFile(io.FileIO):
    """Standard output or standard error, each of whose writes wakes the manager up."""

    def __init__(self, descriptor: int, wakeup_fd: int) -> None:
        super().__init__(descriptor, "wb", closefd=False)
        self._wakeup_fd = wakeup_fd

    def write(self, data: Buffer, /) -> int:
        n = super().write(data)
        with contextlib.suppress(OSError):  # the pipe is full, so the manager wakes up anyway, or it is gone
            os.write(self._wakeup_fd, b"\0")
        return n


def wake_on_output(wakeup_fd: int) -> None:
    """Makes this process wake its manager up after each write to standard output and standard error."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        file = io.BufferedWriter(_WakingFile(stream.fileno(), wakeup_fd))
        setattr(sys, name, io.TextIOWrapper(file, stream.encoding, stream.errors, line_buffering=True))
    if logging.lastResort is not None:  # shows warnings and errors where a program configures no logging
        logging.lastResort.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
