"""Workers in processes of this machine: for objectives that compute. A process dies with the one that started it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pickle
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import anyio
import cloudpickle  # pyright: ignore[reportMissingTypeStubs]

from rush_async.client.arguments import as_number
from rush_async.errors import EncodeError
from rush_async.launch.child import Orders
from rush_async.launch.handle import Launch, WorkerHandle
from rush_async.launch.payload import Parcel, adiscard, awrap
from rush_async.model import Failure, WorkerExit

__all__ = ["Processes", "pack"]

logger = logging.getLogger(__name__)

_PATIENCE = 2.0  # seconds in which the loop of a process is to answer
_GOODBYE = 8.0  # seconds that a worker may take to end, once its loop has answered
_LINGER = 2.0  # seconds that a process may take to end, once its workers have
_SHOWN = 2_000  # bytes of its last output that are reported of a process that died


class _Worker(WorkerHandle):
    """A worker of a child process."""

    def __init__(self, worker_id: str, child: _Child) -> None:
        super().__init__(worker_id)
        self._child = child
        self.answered = asyncio.Event()

    def end(self, how: WorkerExit) -> None:
        super().end(how)
        self.answered.set()  # nobody needs to wait for an answer any more

    def cancel(self) -> None:
        self._child.tell("cancel", self.worker_id)

    async def kill(self) -> None:
        # Its loop hears of it on `control`. The process goes only if nobody else lives in it, or if its loop does not answer.
        if self._child.has_others_than(self):
            self.cancel()
            with anyio.move_on_after(_PATIENCE):
                await self.answered.wait()
            if self.answered.is_set():
                await asyncio.wait([self.ended], timeout=_GOODBYE)
        if self.is_alive:
            self._child.kill()
            await asyncio.wait([self.ended])

    async def clear(self) -> None:
        await self._child.clear()


class _Child:
    """A child process and its workers. It gets its orders over its standard input, whose end tells it that we are gone, and
    reports over a pipe of its own.

    asyncio knows nothing of these pipes: what a loop starts may inherit their ends and outlive the child, and asyncio does not
    report the death of a process before its pipes are closed.
    """

    def __init__(self, launch: Launch, worker_ids: Sequence[str], directory: Path, is_private: bool) -> None:
        self._launch = launch
        self._directory = directory
        self._is_private = is_private
        self.handles = {worker_id: _Worker(worker_id, self) for worker_id in worker_ids}
        name = worker_ids[0]
        self._stderr = directory / f"{name}.stderr"
        self._stdout = directory / f"{name}.stdout"
        self._process: asyncio.subprocess.Process | None = None
        self._orders_to: asyncio.WriteTransport | None = None
        self._report_from = -1
        self._reported = bytearray()
        self._is_gone = asyncio.Event()

    def has_others_than(self, worker: _Worker) -> bool:
        """Whether neighbours of this worker are alive."""
        return any(other.is_alive for other in self.handles.values() if other is not worker)

    async def start(self, orders: bytes) -> None:
        """Starts the process. What goes wrong leaves nothing behind."""
        loop = asyncio.get_running_loop()
        orders_from, orders_to = os.pipe()
        report_from, report_to = os.pipe()
        pipe = os.fdopen(orders_to, "wb", buffering=0)
        try:
            self._orders_to, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, pipe)
            with self._stdout.open("ab") as stdout, self._stderr.open("ab") as stderr:
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-c",
                    _START.format(path=sys.path, report=report_to),
                    stdin=orders_from,
                    stdout=stdout,
                    stderr=stderr,
                    pass_fds=[report_to],
                    start_new_session=True,  # Ctrl-C reaches the manager, which stops its workers
                )
        except BaseException:
            if self._orders_to is None:
                pipe.close()
            else:
                self._orders_to.abort()
            os.close(report_from)
            self._remove_output()
            raise
        finally:
            os.close(orders_from)
            os.close(report_to)
        for worker_id in self.handles:
            self._launch.vouch(worker_id, self._is_well)
        # Nothing is awaited from here on: whoever is cancelled has started no process, or one that is watched.
        self._orders_to.write(len(orders).to_bytes(8, "big") + orders)
        os.set_blocking(report_from, False)
        self._report_from = report_from
        loop.add_reader(report_from, self._take_reports)
        self._launch.supervisor.start(self._watch, self._process)

    def _is_well(self) -> bool | None:
        """Whether the process is not stopped; None when it has ended. Called in the heartbeat's thread."""
        process = self._process
        if process is None or process.returncode is not None:
            return None
        if sys.platform == "darwin":  # which cannot tell; its own heartbeat says enough
            return None
        try:
            return os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is None
        except ChildProcessError:
            return None

    def tell(self, word: str, worker_id: str) -> None:
        """Sends an order, if the process is there to take it."""
        if self._orders_to is not None and not self._orders_to.is_closing():
            self._orders_to.write(f"{word} {worker_id}\n".encode())

    def kill(self) -> None:
        """Ends the process and those that it started."""
        if self._process is not None and self._process.returncode is None:
            self._kill_group(self._process)

    async def clear(self) -> None:
        """Waits for the end of a process whose workers have ended; it has some time for what it does at its exit."""
        with anyio.move_on_after(_LINGER):
            await self._is_gone.wait()
        self.kill()
        await self._is_gone.wait()

    def _kill_group(self, process: asyncio.subprocess.Process) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        try:
            code = await process.wait()
            self._take_reports()
            await self._lose_silent(process, code)
        finally:
            with anyio.CancelScope(shield=True):
                await self._end(process)

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        assert self._orders_to is not None
        if not self._orders_to.is_closing():
            self._orders_to.abort()
        with anyio.move_on_after(_LINGER):
            await process.wait()
        self.kill()
        await process.wait()
        self._take_reports()
        asyncio.get_running_loop().remove_reader(self._report_from)
        os.close(self._report_from)
        for handle in self.handles.values():
            handle.end(WorkerExit(handle.worker_id, "terminated"))
        self._remove_output()
        self._is_gone.set()

    def _remove_output(self) -> None:
        if self._is_private:
            shutil.rmtree(self._directory, ignore_errors=True)

    def _take_reports(self) -> None:
        """Takes what the process has reported: ends of workers, and orders it has taken."""
        while True:
            try:
                piece = os.read(self._report_from, 2**16)
            except BlockingIOError:
                break
            if not piece:
                asyncio.get_running_loop().remove_reader(self._report_from)
                break
            self._reported += piece
        while len(self._reported) >= 8:
            end = 8 + int.from_bytes(self._reported[:8], "big")
            if len(self._reported) < end:
                break
            # The pipe is written by our own child alone, so it may carry pickles.
            what: WorkerExit | str = pickle.loads(self._reported[8:end])
            del self._reported[:end]
            if isinstance(what, str):
                self.handles[what].answered.set()
            else:
                self.handles[what.worker_id].end(what)

    async def _lose_silent(self, process: asyncio.subprocess.Process, code: int) -> None:
        """Reports the workers that have not reported themselves: they died with the process."""
        silent = [handle for handle in self.handles.values() if handle.is_alive]
        if not silent:
            return
        self._kill_group(process)  # what they started is of no use to anybody now
        failure = Failure("lost", None, f"{_death(code)}{self._last_words()}")
        try:
            await self._launch.on_lost([handle.worker_id for handle in silent], failure)
        except Exception as error:
            logger.error("the network could not be told that workers are lost: %s", error)
        finally:
            for handle in silent:
                handle.end(WorkerExit(handle.worker_id, "lost", failure))

    def _last_words(self) -> str:
        with contextlib.suppress(OSError), self._stderr.open("rb") as stderr:
            stderr.seek(max(0, stderr.seek(0, os.SEEK_END) - _SHOWN))
            if words := stderr.read().decode("utf-8", "replace").strip():
                return f". It last wrote: {words}"
        return ""


_START = "import sys; sys.path[:] = {path!r}; from rush_async.launch.child import main; main({report})"


def _death(code: int) -> str:
    if code >= 0:
        return f"the process ended with exit code {code}"
    with contextlib.suppress(ValueError):
        return f"the process was ended by {signal.Signals(-code).name}"
    return f"the process was ended by signal {-code}"


@dataclass(frozen=True, slots=True)
class Processes:
    """Start workers in processes of this machine: for objectives that compute.

    Attributes:
        n: how many processes the workers are spread over, each with one event loop and one connection; None is a process for
            each worker.
    """

    n: int | None = None
    is_local: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.n is not None and as_number(self.n, "n of Processes(n)") < 1:
            raise ValueError(f"Processes(n) needs at least one process, not {self.n}")

    async def launch(self, launch: Launch) -> list[WorkerHandle]:
        """Starts the workers and returns at once."""
        n = min(self.n or len(launch.worker_ids), len(launch.worker_ids))
        loop = await pack(launch)
        children: list[_Child] = []
        try:
            if launch.log_dir is not None:
                launch.log_dir.mkdir(parents=True, exist_ok=True)
            for at in range(n):
                worker_ids = launch.worker_ids[at::n]
                # What is removed at the end by the manager, or by the child where the manager was killed.
                private = tempfile.mkdtemp(prefix="rush-out-") if launch.log_dir is None else None
                orders = Orders(
                    launch.network_id, launch.config, list(worker_ids), loop, launch.log_levels, os.getpid(), private
                )
                child = _Child(launch, worker_ids, launch.log_dir or Path(private or ""), private is not None)
                await child.start(pickle.dumps(orders))
                children.append(child)
        except BaseException:
            for child in children:
                child.kill()
            await adiscard(loop)
            raise
        handles = {worker_id: handle for child in children for worker_id, handle in child.handles.items()}
        return [handles[worker_id] for worker_id in launch.worker_ids]


async def pack(launch: Launch) -> Parcel:
    """The loop with its arguments, to be sent to another process by a way that nobody else can write to.

    Raises:
        EncodeError: it cannot be pickled, or is too large.
    """
    try:
        packed: bytes = cast("Any", cloudpickle).dumps(launch.loop)
    except Exception as error:
        raise EncodeError(
            f"the worker loop {launch.loop.name} or one of its arguments cannot be sent to another process: {error}. "
            "Open connections, locks and files in the loop itself, or run it with on=Coroutines()"
        ) from error
    return await awrap(packed, launch.network_id, launch.config, f"the worker loop {launch.loop.name} with its arguments")
