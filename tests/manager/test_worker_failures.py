"""The failure of a loop: its traceback is shown once."""

from __future__ import annotations

import logging

import pytest

from rush_async import Failure, Rush, RushTimeoutError, WorkerExit, WorkerLoopError
from rush_async.manager.worker_failures import WorkerFailures
from rush_async.testing import wait_until
from tests.launch.loops_of_tests import hold, raise_holding

TRACEBACK = "raise RuntimeError(message)"


def failed(worker_id: str, text: str = "Traceback: the loop broke") -> WorkerExit:
    return WorkerExit(worker_id, "failed", Failure("error", "ValueError", "the loop broke", text))


async def test_a_traceback_that_join_workers_raises_is_not_logged_too(rush: Rush, caplog: pytest.LogCaptureFixture) -> None:
    await rush.start_workers(raise_holding, 2)
    with pytest.raises(WorkerLoopError) as raised:
        await rush.join_workers()
    assert str(raised.value).count(TRACEBACK) == 1
    assert TRACEBACK not in caplog.text
    assert caplog.text.count("failed: RuntimeError: the loop broke\n") == 2  # at once, though other workers may run for hours


async def test_a_traceback_of_a_worker_that_is_not_joined_is_logged_at_once(
    rush: Rush, caplog: pytest.LogCaptureFixture
) -> None:
    await rush.start_workers(raise_holding, 2)
    await wait_until(lambda: caplog.text.count("the loop of worker") == 2)
    assert caplog.text.count(TRACEBACK) == 1
    with pytest.raises(WorkerLoopError, match=r"RuntimeError: the loop broke \(the log has its traceback\)$") as raised:
        await rush.join_workers()
    assert TRACEBACK not in str(raised.value)


async def test_a_join_that_raises_another_error_leaves_the_traceback_in_the_log(
    rush: Rush, caplog: pytest.LogCaptureFixture
) -> None:
    await rush.start_workers(hold, 1)
    await rush.start_workers(raise_holding, 1)
    with pytest.raises(RushTimeoutError):
        await rush.join_workers(timeout=1)
    assert caplog.text.count(TRACEBACK) == 1


async def test_a_join_of_all_workers_raises_a_failure_once(rush: Rush) -> None:
    (worker_id,) = await rush.start_workers(raise_holding, 1)
    with pytest.raises(WorkerLoopError):
        await rush.join_workers()
    assert [end.state for end in await rush.join_workers()] == ["failed"]
    with pytest.raises(WorkerLoopError):
        await rush.join_workers(worker_id)


def test_a_failure_is_logged_when_the_last_join_of_its_worker_has_ended(caplog: pytest.LogCaptureFixture) -> None:
    failures = WorkerFailures()
    with failures.joined(["a"]):
        with failures.joined(["a", "b"]):
            failures.add(failed("a"))
        assert "Traceback" not in caplog.text
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR] == [
        "the loop of worker a failed: ValueError: the loop broke",
        "the loop of worker a failed: Traceback: the loop broke",
    ]
