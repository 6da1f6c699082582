"""The program of a child process, driven through its pipes as by a manager."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from rush_async import Rush, RushWorker, WorkerExit
from rush_async.launch.job import Job, Report, frame, take_frames, unpack_report
from rush_async.launch.packed_loop import PackedLoop
from rush_async.testing import wait_until
from rush_async.worker.loop import WorkerLoop
from tests.launch.loops_of_tests import CannotBeUnpickled, block, hold, note_arguments

PROGRAM = "from rush_async.launch.child import main; main({reports}, {manager}, {private!r})"


@dataclass
class Child:
    """A child process, and the manager's ends of its pipes."""

    process: subprocess.Popen[bytes]
    reports_fd: int
    _buffer: bytearray = field(default_factory=bytearray)
    _reports: list[Report] = field(default_factory=list[Report])

    def send(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def close_pipe(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    @property
    def reports(self) -> list[Report]:
        """All reports so far."""
        with contextlib.suppress(BlockingIOError):
            self._buffer += os.read(self.reports_fd, 2**16)
        self._reports += [unpack_report(body) for body in take_frames(self._buffer)]
        return self._reports

    @property
    def has_ended(self) -> bool:
        return self.process.poll() is not None


Start = Callable[..., Child]


@pytest.fixture
def start(directory: Path) -> Iterator[Start]:
    """Starts child processes whose manager is this process."""
    children: list[Child] = []

    def start(manager: int = os.getpid(), private: str | None = None) -> Child:
        reports_fd, reports = os.pipe()
        os.set_blocking(reports_fd, False)
        program = PROGRAM.format(reports=reports, manager=manager, private=private)
        with (directory / "stderr").open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-c", program],
                stdin=subprocess.PIPE,
                stderr=stderr,
                pass_fds=[reports],
                start_new_session=True,
            )
        os.close(reports)
        children.append(Child(process, reports_fd))
        return children[-1]

    yield start
    for child in children:
        child.process.kill()
        child.process.communicate()
        os.close(child.reports_fd)


def job_of(rush: Rush, loop: Any, *worker_ids: str, **arguments: Any) -> bytes:
    packed = PackedLoop.pickled(WorkerLoop(loop, arguments), rush.network_id, rush.config)
    return frame(Job(rush.network_id, rush.config, worker_ids, packed, None).to_pickle())


async def test_a_child_reports_each_end_and_exits_after_the_last(rush: Rush, start: Start) -> None:
    async def loop(rush: RushWorker) -> None:
        if rush.worker_id == "b":
            raise RuntimeError("the loop broke")

    child = start()
    child.send(job_of(rush, loop, "a", "b"))
    await wait_until(lambda: child.has_ended, timeout=30)
    ends = {report.worker_id: report for report in child.reports if isinstance(report, WorkerExit)}
    assert {worker_id: end.state for worker_id, end in ends.items()} == {"a": "terminated", "b": "failed"}
    assert ends["b"].failure is not None
    assert ends["b"].failure.message == "the loop broke"
    assert child.process.returncode == 0


async def test_a_child_confirms_a_cancel_request_before_it_reports_the_end(rush: Rush, start: Start) -> None:
    child = start()
    child.send(job_of(rush, hold, "a", "b"))
    await rush.wait_until(lambda counts: counts.running == 2, timeout=30)
    child.send(b"b\n")
    await wait_until(lambda: len(child.reports) == 2)
    assert child.reports == ["b", WorkerExit("b", "terminated")]
    assert await rush.counts() == (0, 1, 0, 1)
    child.send(b"a\n")
    await wait_until(lambda: child.has_ended)


async def test_a_loop_that_cannot_be_loaded_fails_every_worker_of_the_child(rush: Rush, start: Start, directory: Path) -> None:
    child = start()
    child.send(job_of(rush, note_arguments, "a", "b", thing=CannotBeUnpickled()))
    await wait_until(lambda: child.has_ended, timeout=30)
    ends = [report for report in child.reports if isinstance(report, WorkerExit)]
    assert [(end.worker_id, end.state) for end in ends] == [("a", "failed"), ("b", "failed")]
    assert all(end.failure is not None and "missing_package" in end.failure.message for end in ends)
    assert (directory / "stderr").read_text() == ""  # the manager shows the traceback


async def test_workers_deregister_when_the_manager_closes_the_pipe(rush: Rush, start: Start) -> None:
    private = tempfile.mkdtemp(prefix="rush-out-")
    child = start(private=private)
    child.send(job_of(rush, hold, "a"))
    await rush.wait_until(lambda counts: counts.running == 1, timeout=30)
    child.close_pipe()
    await wait_until(lambda: child.has_ended, timeout=10)
    assert (await rush.worker_info())["state"].to_list() == ["terminated"]
    assert not os.path.exists(private)  # noqa: ASYNC240


async def test_a_process_with_a_blocked_loop_ends_when_the_manager_closes_the_pipe(rush: Rush, start: Start) -> None:
    child = start()
    child.send(job_of(rush, block, "a"))
    await rush.wait_until(lambda counts: counts.running == 1, timeout=30)
    child.close_pipe()
    await wait_until(lambda: child.has_ended, timeout=10)
    await rush.stop_workers("a", mode="kill")  # so that the test need not wait for its lease to expire


async def test_a_child_exits_if_its_manager_is_gone_before_the_job_has_arrived(rush: Rush, start: Start) -> None:
    child = start()
    child.send(job_of(rush, hold, "a")[:20])
    child.close_pipe()
    await wait_until(lambda: child.has_ended, timeout=30)
    assert (await rush.worker_info()).is_empty()


async def test_a_child_whose_parent_is_not_its_manager_ends_its_workers(rush: Rush, start: Start) -> None:
    child = start(manager=1)  # as if the manager had died and another process were now the parent
    child.send(job_of(rush, hold, "a"))
    await wait_until(lambda: child.has_ended, timeout=30)
    assert (await rush.counts()).running == 0
