"""The standard streams of the program, which it may be started without, and whose readers may go."""

from __future__ import annotations

import os
import sys

__all__ = ["flush", "open_missing"]


def open_missing() -> None:
    """Opens the streams that the program was started without, as by `>&-`. Else a file or a socket would take their place."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - until the process ends


def flush() -> None:
    """Writes what is buffered. What cannot be written is dropped: the interpreter tries once more, and would end with 120.

    Raises:
        OSError: stdout cannot be written, such as to a closed pipe or a full disk.
    """
    for stream in (sys.stderr, sys.stdout):
        try:
            stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
            if stream is sys.stdout:
                raise
        except ValueError:  # a loop has closed it
            pass
