"""Workers in processes of this machine: for objectives that compute. A process dies with the one that started it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import anyio
import cloudpickle  # pyright: ignore[reportMissingTypeStubs]

from rush_async.errors import EncodeError
from rush_async.launch.handle import Launch, WorkerHandle
from rush_async.model import Failure, WorkerExit

__all__ = ["Processes"]

_PATIENCE = 2.0  # seconds that a process with several workers has to cancel one of them
_SHOWN = 2_000  # characters of its last output that are reported of a process that died


class _Worker(WorkerHandle):
    """A worker of a child process."""

    def __init__(self, worker_id: str, child: _Child) -> None:
        super().__init__(worker_id)
        self._child = child

    def cancel(self) -> None:
        self._child.tell("cancel", self.worker_id)

    async def kill(self) -> None:
        # Its loop hears of it on `control`. The process goes only if nobody else lives in it, or if it does not answer.
        if len(self._child.handles) > 1:
            self.cancel()
            done, _ = await asyncio.wait([self.ended], timeout=_PATIENCE)
            if done:
                return
        self._child.kill()
        await asyncio.wait([self.ended])


class _Child:
    """A child process and its workers. It gets its orders over its standard input, whose end tells it that we are gone, and
    reports over a pipe of its own."""

    def __init__(self, launch: Launch, worker_ids: Sequence[str], directory: Path, is_private: bool) -> None:
        self._launch = launch
        self._directory = directory
        self._is_private = is_private
        self.handles = {worker_id: _Worker(worker_id, self) for worker_id in worker_ids}
        name = worker_ids[0]
        self._stderr = directory / f"{name}.stderr"
        self._stdout = directory / f"{name}.stdout"
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, orders: bytes) -> None:
        report_from, report_to = os.pipe()
        try:
            with self._stdout.open("ab") as stdout, self._stderr.open("ab") as stderr:
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-c",
                    _START.format(path=sys.path, report=report_to),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=stdout,
                    stderr=stderr,
                    pass_fds=[report_to],
                    start_new_session=True,  # Ctrl-C reaches the manager, which stops its workers
                )
        except BaseException:
            os.close(report_from)
            raise
        finally:
            os.close(report_to)
        assert self._process.stdin is not None
        self._process.stdin.write(len(orders).to_bytes(8, "big") + orders)
        self._launch.supervisor.start(self._watch, self._process, report_from)

    def tell(self, *words: str) -> None:
        """Sends an order, if the process is there to take it."""
        process = self._process
        if process is not None and process.stdin is not None and not process.stdin.is_closing():
            process.stdin.write((" ".join(words) + "\n").encode())

    def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def _watch(self, process: asyncio.subprocess.Process, report_from: int) -> None:
        try:
            await self._read_reports(report_from)
            code = await process.wait()
            await self._lose_silent(code)
        finally:
            with anyio.CancelScope(shield=True):
                await self._end(process)

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        process.stdin.close()
        self.kill()  # whatever is left of it now has had its time
        await process.wait()
        for handle in self.handles.values():
            handle.end(WorkerExit(handle.worker_id, "terminated"))
        if self._is_private:
            shutil.rmtree(self._directory, ignore_errors=True)

    async def _read_reports(self, report_from: int) -> None:
        """Takes the ends that the process reports, until it closes the pipe or dies."""
        reader = asyncio.StreamReader(limit=2**24)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(report_from, "rb", buffering=0)
        )
        try:
            while head := await reader.read(8):
                head += await reader.readexactly(8 - len(head)) if len(head) < 8 else b""
                body = await reader.readexactly(int.from_bytes(head, "big"))
                # The pipe is written by our own child alone, so it may carry pickles.
                how: WorkerExit = pickle.loads(body)
                self.handles[how.worker_id].end(how)
        except asyncio.IncompleteReadError:
            pass
        finally:
            transport.close()

    async def _lose_silent(self, code: int) -> None:
        for worker_id, handle in self.handles.items():
            if handle.is_alive:
                failure = Failure("lost", None, f"{_death(code)}{self._last_words()}")
                await self._launch.on_lost(worker_id, failure)
                handle.end(WorkerExit(worker_id, "lost", failure))

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            words = self._stderr.read_text("utf-8", "replace").strip()
            if words:
                return f". It last wrote: {words[-_SHOWN:]}"
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

    def __post_init__(self) -> None:
        if self.n is not None and self.n < 1:
            raise ValueError(f"Processes(n) needs at least one process, not {self.n}")

    async def launch(self, launch: Launch) -> list[WorkerHandle]:
        """Starts the workers and returns at once."""
        n = min(self.n or len(launch.worker_ids), len(launch.worker_ids))
        loop = _pickled(launch)
        handles: list[WorkerHandle] = []
        for at in range(n):
            worker_ids = launch.worker_ids[at::n]
            if launch.log_dir is not None:
                launch.log_dir.mkdir(parents=True, exist_ok=True)
            directory = launch.log_dir or Path(tempfile.mkdtemp(prefix="rush-out-"))
            child = _Child(launch, worker_ids, directory, launch.log_dir is None)
            orders: dict[str, Any] = {
                "network_id": launch.network_id,
                "config": launch.config,
                "worker_ids": list(worker_ids),
                "loop": loop,
                # What the manager removes at the end; the child does where the manager was killed.
                "private_directory": None if launch.log_dir else str(directory),
            }
            await child.start(pickle.dumps(orders))
            handles += child.handles.values()
        return handles


def _pickled(launch: Launch) -> bytes:
    try:
        return cast("Any", cloudpickle).dumps(launch.loop)
    except Exception as error:
        raise EncodeError(
            f"the worker loop {launch.loop.name} or one of its arguments cannot be sent to another process: {error}. "
            "Open connections, locks and files in the loop itself, or run it with on=Coroutines()"
        ) from error
