"""What runs in a child process: its workers, until they end, are told to, or whoever started them is gone."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import pickle
import select
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import FileIO, TextIOWrapper

from rush_async.config import RushConfig
from rush_async.heartbeat.heartbeat import own_this_process
from rush_async.launch.payload import Parcel, unwrap
from rush_async.model import Failure, WorkerExit
from rush_async.supervisor import Supervisor
from rush_async.worker.loop import WorkerLoop
from rush_async.worker.run import live
from rush_async.worker.worker import RushWorker

__all__ = ["Orders", "main"]

_PATIENCE = 3.0  # seconds that the good-byes may take once the parent is gone
_GLANCE = 1.0  # seconds between two looks at whether it is gone, where somebody else holds its end of the pipe

_is_abandoned = threading.Event()  # nobody waits for us any more
_is_killed = threading.Event()  # a worker was killed


@dataclass(frozen=True, slots=True)
class Orders:
    """What a child process is to do.

    Attributes:
        network_id: the network to work in.
        config: the server, as the manager reached it.
        worker_ids: the workers that live here.
        loop: a `WorkerLoop` in the pickle of cloudpickle, or where that lies.
        log_levels: the loggers whose records are kept in the network, with their levels.
        parent: the process that waits for the reports.
        private_directory: where output goes that goes with the process: the manager removes it, or else the child.
    """

    network_id: str
    config: RushConfig
    worker_ids: list[str]
    loop: Parcel
    log_levels: Mapping[str, str | int] | None
    parent: int
    private_directory: str | None


def main(report: int) -> None:
    """Reads the orders from standard input, runs the workers, and reports their ends to the file descriptor `report`."""
    orders_from = _take_stdin()
    own_this_process()
    os.set_inheritable(report, False)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(line_buffering=True)  # whoever reads the files is not to wait for the end
    parent = os.getppid()

    def take_along() -> None:
        if _is_killed.is_set() or _is_without(parent):
            _end_group()  # with what the loops have started

    atexit.register(take_along)  # as the first, to be the last
    orders: Orders = pickle.loads(_read(orders_from, int.from_bytes(_read(orders_from, 8), "big")))
    with os.fdopen(report, "wb", buffering=0) as report_to:
        try:
            loop: WorkerLoop = pickle.loads(unwrap(orders.loop))
        except BaseException as error:
            # A package that is missing here, a module that cannot be imported, or a file of large arguments that is gone.
            for worker_id in orders.worker_ids:
                _report(report_to, WorkerExit(worker_id, "failed", Failure.of(error)))
            raise
        asyncio.run(_run(loop, orders, orders_from, report_to))


def _take_stdin() -> FileIO:
    """Where the orders come from. The loop and the processes it starts find an empty standard input, and not our orders."""
    orders_from = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    # Unbuffered: a thread that waits in a buffered reader would keep the interpreter from ending.
    return open(orders_from, "rb", buffering=0)


def _read(file: FileIO, n: int) -> bytes:
    data = bytearray()
    while len(data) < n:
        piece = file.read(n - len(data))
        if not piece:
            sys.exit(1)  # whoever started us is gone already
        data += piece
    return bytes(data)


async def _run(loop: WorkerLoop, orders: Orders, orders_from: FileIO, report_to: FileIO) -> None:
    tasks: dict[str, asyncio.Task[None]] = {}
    for worker_id in orders.worker_ids:
        worker = RushWorker(orders.network_id, orders.config, worker_id=worker_id)
        tasks[worker_id] = Supervisor.spawn(
            _live_and_report(worker, loop, orders.log_levels, report_to), name=f"worker {worker_id}"
        )

    def obey(word: str, worker_id: str) -> None:
        if word == "cancel":
            tasks[worker_id].cancel()
            _report(report_to, worker_id)  # this loop answers

    def cancel_all() -> None:
        for task in tasks.values():
            task.cancel()

    here = asyncio.get_running_loop()

    def in_loop(do: Callable[..., None], *args: str) -> None:
        with contextlib.suppress(RuntimeError):  # it has ended already
            here.call_soon_threadsafe(do, *args)

    # A thread: that nobody waits for us any more has to be noticed even while the loop is blocked.
    listen = threading.Thread(target=_listen, args=(orders_from, orders, in_loop, obey, cancel_all), daemon=True)
    listen.start()
    await asyncio.wait(tasks.values())
    if _is_without(orders.parent):
        _remove(orders.private_directory)


async def _live_and_report(
    worker: RushWorker, loop: WorkerLoop, log_levels: Mapping[str, str | int] | None, report_to: FileIO
) -> None:
    try:
        end = await live(worker, loop, log_levels)
    except asyncio.CancelledError:
        end = WorkerExit(worker.worker_id, "terminated")
    if end.state == "killed":
        _is_killed.set()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    _report(report_to, end)


def _report(report_to: FileIO, what: WorkerExit | str) -> None:
    """Tells the parent of a worker's end, or that the loop has taken an order to cancel a worker."""
    body = pickle.dumps(what)
    with contextlib.suppress(BrokenPipeError):
        report_to.write(len(body).to_bytes(8, "big") + body)


def _listen(
    orders_from: FileIO,
    orders: Orders,
    in_loop: Callable[..., None],
    obey: Callable[[str, str], None],
    cancel_all: Callable[[], None],
) -> None:
    """Takes further orders until the parent closes the pipe or is gone; then everything here ends, in time or not."""
    while os.getppid() == orders.parent:
        if select.select([orders_from], [], [], _GLANCE)[0]:
            line = orders_from.readline().decode()
            if not line:
                break
            in_loop(obey, *line.split())
    _is_abandoned.set()
    in_loop(cancel_all)
    threading.Event().wait(_PATIENCE)
    _remove(orders.private_directory)
    _end_group()


def _is_without(parent: int) -> bool:
    # One that dies closes its pipes a moment before it is gone.
    return _is_abandoned.is_set() or os.getppid() != parent


def _end_group() -> None:
    """Ends this process at once, and those with it that the loops have started."""
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


def _remove(directory: str | None) -> None:
    if directory is not None:
        shutil.rmtree(directory, ignore_errors=True)
