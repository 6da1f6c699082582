"""What runs in a child process: its workers, until they end, are told to, or whoever started them is gone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import shutil
import sys
import threading
from io import FileIO
from typing import Any

from rush_async.loops import WorkerLoop
from rush_async.model import Failure, WorkerExit
from rush_async.runtime import live
from rush_async.supervisor import Supervisor

__all__ = ["main"]

_PATIENCE = 3.0  # seconds that the good-byes may take once the parent is gone


def main(report: int) -> None:
    """Reads the orders from standard input, runs the workers, and reports their ends."""
    # Unbuffered: a thread that waits in a buffered reader would keep the interpreter from ending.
    orders_from = open(0, "rb", buffering=0, closefd=False)  # noqa: SIM115
    orders: dict[str, Any] = pickle.loads(_read(orders_from, int.from_bytes(_read(orders_from, 8), "big")))
    worker_ids: list[str] = orders["worker_ids"]
    with os.fdopen(report, "wb", buffering=0) as report_to:
        try:
            loop: WorkerLoop = pickle.loads(orders["loop"])
        except BaseException as error:
            # A package that is missing here, or a module that cannot be imported.
            for worker_id in worker_ids:
                _report(report_to, WorkerExit(worker_id, "failed", Failure.of(error)))
            raise
        sys.exit(asyncio.run(_run(loop, orders, orders_from, report_to)))


def _read(file: FileIO, n: int) -> bytes:
    data = bytearray()
    while len(data) < n:
        piece = file.read(n - len(data))
        if not piece:
            sys.exit(1)  # whoever started us is gone already
        data += piece
    return bytes(data)


async def _run(loop: WorkerLoop, orders: dict[str, Any], orders_from: FileIO, report_to: FileIO) -> int:
    parent = os.getppid()
    supervisor = Supervisor("rush_async child")
    tasks = {
        worker_id: supervisor.spawn(_live_and_report(loop, orders, worker_id, report_to), name=f"worker {worker_id}")
        for worker_id in orders["worker_ids"]
    }
    # A thread: the end of the pipe has to be noticed even while the loop is blocked.
    threading.Thread(
        target=_listen, args=(orders_from, tasks, orders["private_directory"], asyncio.get_running_loop()), daemon=True
    ).start()
    await asyncio.wait(tasks.values())
    if os.getppid() != parent:
        _remove(orders["private_directory"])
    return 0


async def _live_and_report(loop: WorkerLoop, orders: dict[str, Any], worker_id: str, report_to: FileIO) -> WorkerExit:
    try:
        end = await live(loop, orders["network_id"], orders["config"], worker_id)
    except asyncio.CancelledError:
        end = WorkerExit(worker_id, "terminated")
    _report(report_to, end)
    return end


def _report(report_to: FileIO, end: WorkerExit) -> None:
    body = pickle.dumps(end)
    with contextlib.suppress(BrokenPipeError):
        report_to.write(len(body).to_bytes(8, "big") + body)


def _listen(
    orders_from: FileIO,
    tasks: dict[str, asyncio.Task[WorkerExit]],
    private_directory: str | None,
    loop: asyncio.AbstractEventLoop,
) -> None:
    """Takes orders until the parent closes the pipe; then everything here ends, in time or not."""
    for line in orders_from:
        word, _, worker_id = line.decode().strip().partition(" ")
        if word == "cancel" and worker_id in tasks:
            loop.call_soon_threadsafe(tasks[worker_id].cancel)

    def cancel_all() -> None:
        for task in tasks.values():
            task.cancel()

    with contextlib.suppress(RuntimeError):  # the loop has ended already
        loop.call_soon_threadsafe(cancel_all)
    threading.Event().wait(_PATIENCE)
    _remove(private_directory)
    os._exit(1)


def _remove(directory: str | None) -> None:
    if directory is not None:
        shutil.rmtree(directory, ignore_errors=True)
