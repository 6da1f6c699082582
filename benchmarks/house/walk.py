"""The files that a call passes on its way to the socket."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.house.sources import PACKAGE, REPOSITORY

__all__ = ["files_to_socket", "files_until_write"]


async def files_until_write(call: Callable[[], Awaitable[Any]], folder: Path) -> list[str]:
    """Lists the files of a folder whose functions run from a call until one of them writes to a socket.

    Args:
        call: what is called; it is awaited to its end.
        folder: whose files count; the write of another file, such as asyncio's own, does not end the list.

    Returns:
        Their paths below the folder, in the order in which they run.

    Raises:
        RuntimeError: the call ended without a write.
    """
    prefix = f"{folder}/"
    files: dict[str, None] = {}
    has_written = False

    def profile(frame: FrameType, event: str, arg: Any) -> None:
        nonlocal has_written
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(prefix):
            files[file.removeprefix(prefix)] = None
        elif event == "c_call" and arg.__name__ in {"send", "sendmsg"} and frame.f_code.co_name in {"write", "writelines"}:
            # asyncio's transport writes at once when a file of the folder asks it to.
            caller = frame.f_back
            if caller is not None and caller.f_code.co_filename.startswith(prefix):
                has_written = True
                sys.setprofile(None)

    sys.setprofile(profile)
    try:
        await call()
    finally:
        sys.setprofile(None)
    if not has_written:
        raise RuntimeError("The call ended without a write to a socket. Give a call that asks the server.")
    return list(files)


async def files_to_socket(worker: Any) -> list[str]:
    """Lists the files of the package that run while a warm worker's `push_running_tasks` goes to the socket.

    Args:
        worker: a `RushWorker`. Heartbeats and events may run files of their own in between, so what counts is what ran in
            each of three calls.
    """
    walks: list[list[str]] = []
    for at in range(6):

        async def push(x: float = at) -> None:
            await worker.push_running_tasks([{"x1": x, "x2": 0.5}])

        walk = await files_until_write(push, REPOSITORY / PACKAGE)
        if at >= 3:  # the first ones warm it
            walks.append(walk)
        await asyncio.sleep(0)
    return [file for file in walks[0] if all(file in walk for walk in walks)]
