"""The program of a child process. Its workers run until they end, are cancelled, or the manager's process is gone."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import select
import shutil
import signal
import sys
import threading
from io import FileIO, TextIOWrapper
from types import FrameType

from rush_async.heartbeat.heartbeat import own_this_process
from rush_async.launch.job import LENGTH, Job, Report, frame, pack_report
from rush_async.launch.output import wake_on_output
from rush_async.model import Failure, WorkerExit
from rush_async.worker.loop import WorkerLoop
from rush_async.worker.worker import Runner

__all__ = ["main"]

_CLEANUP = 3.0  # seconds for workers to leave the network once the manager is gone
_PARENT_CHECK = 1.0  # seconds between two checks of the parent: another process may hold the manager's end of the pipe open


def main(reports_fd: int, manager_pid: int, private_directory: str | None, wakeup_fd: int | None = None) -> None:
    """Reads a job from standard input, runs its workers, and reports their ends.

    Args:
        reports_fd: the file descriptor of the pipe for the reports.
        manager_pid: the process that reads the reports.
        private_directory: a temporary directory with the output of this process. The manager removes it, or this process if
            the manager is gone.
        wakeup_fd: the file descriptor by which the manager learns that this process has written something; None for no output.
    """
    requests = _take_stdin()
    own_this_process()
    os.set_inheritable(reports_fd, False)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(line_buffering=True)  # the files can be read while the process runs
    if wakeup_fd is not None:
        os.set_inheritable(wakeup_fd, False)
        wake_on_output(wakeup_fd)
    with os.fdopen(reports_fd, "wb", buffering=0) as reports:
        child = _Child(requests, reports, manager_pid, private_directory)
        atexit.register(child.end_started_processes)  # registered first, so it runs last
        child.run(Job.of_pickle(_read(requests, int.from_bytes(_read(requests, LENGTH), "big"))))


def _take_stdin() -> FileIO:
    """Returns the pipe from the manager. The loop and the processes that it starts get an empty standard input."""
    requests = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    # Unbuffered: a thread that waits in a buffered reader would keep the interpreter from ending.
    return open(requests, "rb", buffering=0)


def _read(file: FileIO, n: int) -> bytes:
    data = bytearray()
    while len(data) < n:
        piece = file.read(n - len(data))
        if not piece:
            sys.exit(1)  # the manager is gone already
        data += piece
    return bytes(data)


class _Child:
    """This process: its workers, and the two pipes to the manager."""

    def __init__(self, requests: FileIO, reports: FileIO, manager_pid: int, private_directory: str | None) -> None:
        self._requests = requests
        self._reports = reports
        self._manager_pid = manager_pid
        self._private_directory = private_directory
        self._is_abandoned = threading.Event()  # the manager has closed its pipe or is gone
        self._has_killed_worker = False
        self._event_loop: asyncio.AbstractEventLoop
        self._runner: Runner

    def run(self, job: Job) -> None:
        """Runs the workers to their ends."""
        try:
            loop = job.loop.load()
        except BaseException as error:
            # A package or a module cannot be imported here, or a file of large arguments is missing.
            for worker_id in job.worker_ids:
                self._report(WorkerExit(worker_id, "failed", Failure.of(error)))
            sys.exit(1)  # the manager shows the traceback
        asyncio.run(self._run(job, loop))

    async def _run(self, job: Job, loop: WorkerLoop) -> None:
        self._event_loop = asyncio.get_running_loop()
        self._runner = Runner(
            *(job.network_id, job.config, job.worker_ids, loop, job.log_levels),
            schema=job.frame_schema,
            waits_for_server=True,
        )
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self._drain)
            os.register_at_fork(after_in_child=_die_of_sigterm)  # of processes that the loop forks
        # A thread notices that the manager is gone even while the event loop is blocked.
        threading.Thread(target=self._take_requests, daemon=True).start()
        for ended in asyncio.as_completed(self._runner.ended.values()):
            end = await ended
            self._has_killed_worker |= end.state == "killed"
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(Exception):
                    stream.flush()
            self._report(end)
        if self._is_without_manager:
            self._remove_private_directory()

    def _report(self, report: Report) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._reports.write(frame(pack_report(report)))

    def _take_requests(self) -> None:
        """Takes ids of workers to cancel, until the manager closes the pipe or is gone. Then cancels all workers, and ends the
        process after a time limit. Runs in a thread."""
        while os.getppid() == self._manager_pid:
            if select.select([self._requests], [], [], _PARENT_CHECK)[0]:
                line = self._requests.readline().decode()
                if not line:
                    break
                self._cancel_soon(line.rstrip("\n"))
        self._is_abandoned.set()
        self._cancel_soon(None)
        threading.Event().wait(_CLEANUP)
        self._remove_private_directory()
        _end_group()

    def _drain(self, number: int, frame: FrameType | None) -> None:
        """Lets all workers finish their tasks, as where the machine is shut down. A second signal ends the process."""
        _die_of_sigterm()
        self._runner.note_stop()
        with contextlib.suppress(RuntimeError):  # the event loop has ended already
            self._event_loop.call_soon_threadsafe(self._runner.stop)

    def _cancel_soon(self, worker_id: str | None) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop has ended already
            self._event_loop.call_soon_threadsafe(self._cancel, worker_id)

    def _cancel(self, worker_id: str | None) -> None:
        """Cancels a worker, or all of them."""
        if worker_id is None:
            self._runner.cancel(self._runner.unfinished)
        else:
            self._runner.cancel([worker_id])
            self._report(worker_id)  # confirms that the event loop has taken the request

    @property
    def _is_without_manager(self) -> bool:
        # A process that dies closes its pipes before its children get another parent.
        return self._is_abandoned.is_set() or os.getppid() != self._manager_pid

    def end_started_processes(self) -> None:
        """Ends this process and those that its loops have started, if a worker was killed or the manager is gone."""
        if self._has_killed_worker or self._is_without_manager:
            _end_group()

    def _remove_private_directory(self) -> None:
        if self._private_directory is not None:
            shutil.rmtree(self._private_directory, ignore_errors=True)


def _die_of_sigterm() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _end_group() -> None:
    """Kills this process and its process group."""
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)
