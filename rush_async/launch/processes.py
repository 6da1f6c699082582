"""Workers in processes of this machine: for objectives that compute. A process dies with the one that started it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import anyio

from rush_async.client.arguments import as_number
from rush_async.launch.handle import Launch, WorkerHandle
from rush_async.launch.job import Job, frame, take_frames, unpack_report
from rush_async.launch.output import Output
from rush_async.launch.threads import thread_variables
from rush_async.model import LAST_OUTPUT, Failure, WorkerExit
from rush_async.process import LoopValue

__all__ = ["Processes"]

_ANSWER = 2.0  # seconds for the event loop of a process to confirm a request
_WORKER_END = 8.0  # seconds for a cancelled worker to end, once its event loop has taken the request
_PROCESS_END = 2.0  # seconds for a process to end, once its workers have
_STDERR_SHOWN = 2_000  # bytes of the last output that the failure of a process shows
_PROGRAM = (
    "import sys; sys.path[:] = {path!r}; "
    "from rush_async.launch.child import main; main({reports}, {manager}, {private_directory!r}, {wakeup_fd})"
)


class _Worker(WorkerHandle):
    """A worker of a child process."""

    def __init__(self, worker_id: str, child: _Child) -> None:
        super().__init__(worker_id)
        self._child = child
        self.answered = asyncio.Event()

    def end(self, end: WorkerExit) -> None:
        super().end(end)
        self.answered.set()  # no confirmation will follow

    def cancel(self) -> None:
        self._child.request_cancel(self.worker_id)

    async def kill(self) -> None:
        # The network's message on `control` cancels the loop. The process is killed only if no other worker runs in it, or if
        # its event loop does not confirm the request.
        if self._child.has_others_than(self):
            self.cancel()
            with anyio.move_on_after(_ANSWER):
                await self.answered.wait()
            if self.answered.is_set():
                await asyncio.wait([self.ended], timeout=_WORKER_END)
        if self.is_alive:
            self._child.kill()
            await asyncio.wait([self.ended])

    async def clear(self) -> None:
        await self._child.clear()


class _Child:
    """A child process and its workers. Its standard input carries its job and then requests to cancel workers; the end of that
    pipe means that the manager is gone. A second pipe carries its reports.

    The pipes are not those of asyncio: a process that a loop starts may inherit their ends and outlive the child, and asyncio
    does not report the death of a process before its pipes are closed.
    """

    def __init__(self, launch: Launch, job: Job, *, shows_output: bool) -> None:
        self._network = launch.network
        self._job = job
        self._shows_output = shows_output
        self.handles = {worker_id: _Worker(worker_id, self) for worker_id in job.worker_ids}
        self._log_dir = launch.log_dir
        self._private_directory: str | None = None
        self._stderr: Path  # this, the process and the pipes are set by `start`
        self._process: asyncio.subprocess.Process
        self._requests: asyncio.WriteTransport
        self._reports: int
        self._reported = bytearray()
        self._output: Output | None = None
        self._is_gone = asyncio.Event()

    def has_others_than(self, worker: _Worker) -> bool:
        """Whether other workers of this process are alive."""
        return any(other.is_alive for other in self.handles.values() if other is not worker)

    async def start(self, variables: Mapping[str, str]) -> None:
        """Starts the process, with these variables in its environment. An error or a cancellation leaves nothing behind."""
        loop = asyncio.get_running_loop()
        if self._log_dir is None:
            # The manager removes the temporary directory at the end, or the child if the manager was killed.
            self._private_directory = tempfile.mkdtemp(prefix="rush-out-")
        self._stderr = (self._log_dir or Path(self._private_directory or "")) / f"{self._job.worker_ids[0]}.stderr"
        with contextlib.ExitStack() as on_error:
            on_error.callback(self._remove_private_directory)
            with contextlib.ExitStack() as ends_of_child:
                if self._shows_output:
                    self._output = Output(self._stderr)
                    on_error.callback(self._output.close)
                    ends_of_child.callback(os.close, self._output.wakeup_fd)
                requests_end, requests = os.pipe()
                ends_of_child.callback(os.close, requests_end)
                pipe = on_error.enter_context(os.fdopen(requests, "wb", buffering=0))
                reports, reports_end = os.pipe()
                ends_of_child.callback(os.close, reports_end)
                on_error.callback(os.close, reports)
                os.set_blocking(reports, False)
                self._requests, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, pipe)
                on_error.callback(self._requests.abort)
                self._process = await self._execute(requests_end, reports_end, variables)
            on_error.pop_all()
        if self._output is not None:
            self._output.start(self._name)
        # No await follows: a cancelled caller has started no process, or one that is watched.
        # Not on macOS, which cannot tell whether a process is stopped; nor where a worker whose loop hangs is to be lost.
        if sys.platform != "darwin" and self._job.config.max_loop_stall is None:
            for worker_id in self.handles:
                self._network.heartbeat.vouch(worker_id, self)
        self._requests.write(frame(self._job.to_pickle()))
        self._reports = reports
        loop.add_reader(reports, self._take_reports)
        self._network.link.supervisor.start(self._watch)

    async def _execute(self, requests_end: int, reports_end: int, variables: Mapping[str, str]) -> asyncio.subprocess.Process:
        wakeup_fds = [] if self._output is None else [self._output.wakeup_fd]
        program = _PROGRAM.format(
            path=sys.path,
            reports=reports_end,
            manager=os.getpid(),
            private_directory=self._private_directory,
            wakeup_fd=wakeup_fds[0] if wakeup_fds else None,
        )
        with self._stderr.with_suffix(".stdout").open("ab") as stdout, self._stderr.open("ab") as stderr:
            return await asyncio.create_subprocess_exec(
                sys.executable,
                "-c",
                program,
                stdin=requests_end,
                stdout=stdout,
                stderr=stderr,
                env={**os.environ, **variables},
                pass_fds=[reports_end, *wakeup_fds],
                start_new_session=True,  # Ctrl-C reaches the manager, which stops its workers
            )

    @property
    def _name(self) -> str:
        """What its output is shown under: its worker, if that is alone here."""
        return self._job.worker_ids[0] if len(self.handles) == 1 else f"process {self._process.pid}"

    @property
    def is_in_use(self) -> bool:
        """Whether a worker of this process is alive, also before the process has started."""
        return any(worker.is_alive for worker in self.handles.values())

    @property
    def has_ended(self) -> bool:
        """Whether the process has ended. The heartbeat thread asks."""
        return self._process.returncode is not None

    @property
    def is_running(self) -> bool:
        """Whether the process runs, and was not stopped by a signal. The heartbeat thread asks."""
        try:
            return os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is None
        except ChildProcessError:  # it has ended
            return False

    def request_cancel(self, worker_id: str) -> None:
        """Asks the process to cancel a worker."""
        if not self._requests.is_closing():
            self._requests.write(f"{worker_id}\n".encode())

    def kill(self) -> None:
        """Ends the process and those that it started."""
        if self._process.returncode is None:
            self._kill_group()

    async def clear(self) -> None:
        """Waits for the end of a process whose workers have ended. Kills it if its exit takes long."""
        with anyio.move_on_after(_PROCESS_END):
            await self._is_gone.wait()
        self.kill()
        await self._is_gone.wait()

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    async def _watch(self) -> None:
        try:
            code = await self._process.wait()
            self._take_reports()
            self._end_silent(code)
        finally:
            with anyio.CancelScope(shield=True):
                await self._clean_up()

    async def _clean_up(self) -> None:
        if not self._requests.is_closing():
            self._requests.abort()
        with anyio.move_on_after(_PROCESS_END):
            await self._process.wait()
        self.kill()
        await self._process.wait()
        self._take_reports()
        asyncio.get_running_loop().remove_reader(self._reports)
        os.close(self._reports)
        if self._output is not None:
            self._output.close()
        for handle in self.handles.values():
            handle.end(WorkerExit(handle.worker_id, "terminated"))
        self._remove_private_directory()
        _running.get().discard(self)
        self._is_gone.set()

    def _remove_private_directory(self) -> None:
        if self._private_directory is not None:
            # By name first: a process that is out of descriptors can list no directory.
            for suffix in (".stdout", ".stderr"):
                self._stderr.with_suffix(suffix).unlink(missing_ok=True)
            try:
                os.rmdir(self._private_directory)
            except OSError:
                shutil.rmtree(self._private_directory, ignore_errors=True)

    def _take_reports(self) -> None:
        """Takes the reports of the process: ends of workers, and confirmed requests."""
        while True:
            try:
                piece = os.read(self._reports, 2**16)
            except BlockingIOError:
                break
            if not piece:
                asyncio.get_running_loop().remove_reader(self._reports)
                break
            self._reported += piece
        for body in take_frames(self._reported):
            report = unpack_report(body)
            if isinstance(report, WorkerExit):
                handle = self.handles[report.worker_id]
                if self._output is not None:
                    self._output.show_all(is_end=not self.has_others_than(handle))
                handle.end(report)
            else:
                self.handles[report].answered.set()

    def _end_silent(self, code: int) -> None:
        """Ends the workers that have not reported their ends as lost: they died with the process."""
        silent = [handle for handle in self.handles.values() if handle.is_alive]
        if silent:
            self._kill_group()  # no worker is left that could use the processes it started
            failure = Failure.of(f"{_death(code)}{self._last_output()}", "lost")
            for handle in silent:
                handle.end(WorkerExit(handle.worker_id, "lost", failure))

    def _last_output(self) -> str:
        with contextlib.suppress(OSError), self._stderr.open("rb") as stderr:
            stderr.seek(max(0, stderr.seek(0, os.SEEK_END) - _STDERR_SHOWN))
            if output := stderr.read().decode("utf-8", "replace").strip():
                return f"{LAST_OUTPUT}{output}"
        return ""


_running = LoopValue(set[_Child])  # the processes that managers of this event loop run or are about to start


def _death(code: int) -> str:
    if code >= 0:
        return f"the process ended with exit code {code}"
    with contextlib.suppress(ValueError):
        return f"the process was ended by {signal.Signals(-code).name}"
    return f"the process was ended by signal {-code}"


@dataclass(frozen=True, slots=True)
class Processes:
    """Start workers in processes of this machine: for objectives that compute.

    On SIGTERM, which a service manager may send to all processes, the workers of a process finish what they run. A second one
    ends the process.

    Attributes:
        n: the number of processes, each with one event loop and one connection, over which the workers are spread; None
            starts a process for each worker.
        threads: how many threads numpy's BLAS, OpenMP, numexpr and polars start in each process. None gives each process its
            share: the usable cores (CPU affinity and cgroup quota) divided by the processes that this manager runs and starts,
            at least 1; variables that the environment has already, such as `OMP_NUM_THREADS`, then keep their values.
        show_output: whether this process shows what the workers print, warn, and log at WARNING and above, line by line. In
            front of a line is the worker's id, or where several share a process, `process` and its pid.
        restart: how often each worker is started again that died or whose loop raised an exception, as a new worker with a new
            id. One that was asked to stop or was killed by the manager is not, and none after the network has stopped.
    """

    n: int | None = None
    threads: int | None = None
    show_output: bool = True
    restart: int = 0
    is_local: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.n is not None and as_number(self.n, "n of Processes(n)") < 1:
            raise ValueError(f"Processes(n) needs at least one process, not {self.n}")
        if self.threads is not None and as_number(self.threads, "threads of Processes(threads=...)") < 1:
            raise ValueError(f"Processes(threads=...) needs at least one thread, not {self.threads}")

        as_number(self.restart, "restart of Processes(restart=...)")

    async def launch(self, launch: Launch) -> list[WorkerHandle]:
        """Starts the workers and returns at once."""
        n = min(self.n or len(launch.worker_ids), len(launch.worker_ids))
        job = await launch.pack()
        jobs = [replace(job, worker_ids=launch.worker_ids[first::n]) for first in range(n)]
        children = [_Child(launch, each, shows_output=self.show_output) for each in jobs]
        started: list[_Child] = []
        running = _running.get()
        running.update(children)
        try:
            if launch.log_dir is not None:
                launch.log_dir.mkdir(parents=True, exist_ok=True)
            variables = thread_variables(self.threads, sum(child.is_in_use for child in running))
            for child in children:
                await child.start(variables)
                started.append(child)
        except BaseException:
            for child in started:
                child.kill()
            running.difference_update(children)
            await job.loop.payload.discard()
            raise
        handles: dict[str, WorkerHandle] = {}
        for child in children:
            handles |= child.handles
        return [handles[worker_id] for worker_id in launch.worker_ids]
