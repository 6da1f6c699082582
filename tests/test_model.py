"""The nouns of the model: counts, failures, tasks and the ends of workers."""

from __future__ import annotations

import re
from dataclasses import FrozenInstanceError
from datetime import UTC, datetime
from typing import Any, get_args

import pytest

from rush_async import Counts, Failure, NetworkStateError, Task, WorkerExit
from rush_async.model import CANCELLED, FAILURE_KINDS, TASK_STATES, FailureKind, TaskState


def test_the_total_counts_the_tasks_in_all_states() -> None:
    counts = Counts(queued=1, running=20, finished=300, failed=4000)
    assert counts.total == 4321
    assert Counts() == (0, 0, 0, 0)
    assert Counts._fields == TASK_STATES


def test_a_notebook_shows_small_tables_that_any_theme_can_colour_and_no_value_can_break() -> None:
    failure = Failure.of(ValueError("<b>"), "timeout")
    task = Task(
        *("<i>", "failed", {"<x>": "<script>", "n": list(range(1_000))}),
        failure=failure,
        attempt=2,
        ended_at=datetime(2026, 1, 2, 3, 4, 5, 6, UTC),
    )
    shown = {
        Counts: Counts(1, 2, 3, 4)._repr_html_(),  # pyright: ignore[reportPrivateUsage]
        Task: task._repr_html_(),  # pyright: ignore[reportPrivateUsage]
        WorkerExit: WorkerExit("a_b", "failed", failure)._repr_html_(),  # pyright: ignore[reportPrivateUsage]
    }
    assert shown[Counts] == (
        "<b>Counts</b> of 10 tasks<table><tr><td>queued</td><td>1</td></tr><tr><td>running</td><td>2</td></tr>"
        "<tr><td>finished</td><td>3</td></tr><tr><td>failed</td><td>4</td></tr></table>"
    )
    assert "<td>xs</td><td>&lt;x&gt; = &#x27;&lt;script&gt;&#x27;, n = [0, 1, 2" in shown[Task]
    assert "<td>ended_at</td><td>2026-01-02 03:04:05 UTC</td>" in shown[Task]
    assert "<td>ys" not in shown[Task]
    assert "<summary>ValueError: &lt;b&gt;</summary><pre>ValueError: &lt;b&gt;\n</pre>" in shown[WorkerExit]
    for html in shown.values():
        tags = set(re.findall(r"<[^>]*>", html))
        assert {tag.strip("</>") for tag in tags} <= {"b", "table", "tr", "td", "details", "summary", "pre"}
        assert len(html) < 1_500


def test_the_lists_of_states_and_kinds_are_complete() -> None:
    assert get_args(TaskState) == TASK_STATES
    assert get_args(FailureKind) == FAILURE_KINDS


def test_a_failure_is_made_of_an_exception() -> None:
    try:
        raise ValueError("x must be positive")
    except ValueError as error:
        failure = Failure.of(error, "timeout")
    assert (failure.kind, failure.type, failure.message) == ("timeout", "ValueError", "x must be positive")
    assert failure.traceback is not None
    assert failure.traceback.startswith("Traceback (most recent call last):")
    assert failure.traceback.endswith("ValueError: x must be positive\n")


def test_an_exception_without_a_message_is_named_by_its_class() -> None:
    assert Failure.of(KeyboardInterrupt()).message == "KeyboardInterrupt"


def test_a_failure_is_made_of_a_message_or_of_nothing() -> None:
    assert Failure.of("diverged") == Failure("error", None, "diverged", None)
    assert Failure.of(None, "killed") == Failure("killed", None, "failed", None)


def test_a_given_failure_keeps_its_kind() -> None:
    assert Failure.of(CANCELLED, "error") is CANCELLED
    assert Failure("cancelled", None, "Task was cancelled") == CANCELLED


@pytest.mark.parametrize("reason", [7, b"diverged", ["diverged"], ValueError])
def test_any_other_reason_is_refused(reason: Any) -> None:
    with pytest.raises(TypeError, match=f"a failure is an exception, a string or a Failure, not {type(reason).__name__}"):
        Failure.of(reason)


def test_the_error_of_a_failure_given_as_a_dict_says_what_to_write() -> None:
    reason: Any = {"kind": "error", "message": "diverged"}
    with pytest.raises(TypeError, match=r"not dict: write Failure\(kind='error', message='diverged'\)"):
        Failure.of(reason)
    with pytest.raises(TypeError, match=r"not dict: \{'reason': 'diverged'\}"):
        Failure.of({"reason": "diverged"})  # pyright: ignore[reportArgumentType]


def test_a_failure_and_the_end_of_a_worker_cannot_be_changed() -> None:
    failure: Any = Failure()
    with pytest.raises(FrozenInstanceError):
        failure.kind = "lost"
    end: Any = WorkerExit("w", "terminated")
    with pytest.raises(FrozenInstanceError):
        end.state = "lost"


class Holder:
    """A holder of tasks that records the ends of blocks."""

    def __init__(self, *, suppresses: bool = False) -> None:
        self.entered: list[str] = []
        self.left: list[BaseException | None] = []
        self.reported: list[tuple[str, Any]] = []
        self._suppresses = suppresses

    def enter_block(self, task: Task) -> None:
        self.entered.append(task.key)

    async def leave_block(self, task: Task, error: BaseException | None) -> bool:
        self.left.append(error)
        return self._suppresses

    async def report(self, task: Task, values: Any) -> None:
        self.reported.append((task.key, values))


async def test_the_block_of_a_task_reports_its_end_to_the_holder() -> None:
    holder = Holder()
    task = Task("key", "running", {"x": 1}, _holder=holder)
    async with task as entered:
        assert entered is task
        assert (holder.entered, holder.left) == (["key"], [])
    assert holder.left == [None]
    error = ValueError("diverged")
    with pytest.raises(ValueError, match="diverged"):
        async with task:
            raise error
    assert holder.left == [None, error]


async def test_a_holder_may_suppress_the_error_of_a_block() -> None:
    holder = Holder(suppresses=True)
    async with Task("key", "running", {"x": 1}, _holder=holder):
        raise ValueError("diverged")
    assert len(holder.left) == 1


async def test_a_report_goes_to_the_holder_of_the_task() -> None:
    holder = Holder()
    await Task("key", "running", {"x": 1}, _holder=holder).report({"loss": 0.5})
    assert holder.reported == [("key", {"loss": 0.5})]


async def test_a_task_without_a_holder_takes_no_report() -> None:
    with pytest.raises(NetworkStateError, match="task 'key' is not held by a worker in this process: only the worker"):
        await Task("key", "queued", {"x": 1}).report({"loss": 0.5})


async def test_a_task_without_a_holder_cannot_be_used_as_a_block() -> None:
    with pytest.raises(NetworkStateError, match="task 'key' is not held by a worker in this process: only a task from"):
        async with Task("key", "queued", {"x": 1}):
            pytest.fail("the block was entered")


def test_the_holder_is_not_part_of_the_repr_and_the_equality_of_a_task() -> None:
    task = Task("key", "running", {"x": 1}, _holder=Holder())
    assert task == Task("key", "running", {"x": 1})
    assert "_holder" not in repr(task)
