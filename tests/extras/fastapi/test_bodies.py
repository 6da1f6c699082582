"""The bodies of requests and responses: how tasks and events become JSON."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from rush_async import Failure, Task
from rush_async.events import TasksFinished, WorkerLost
from rush_async.extras.fastapi.bodies import (
    EvaluateRequest,
    FailureView,
    ResumeRequest,
    RunRequest,
    StopRequest,
    TasksRequest,
    TaskView,
    WorkersRequest,
    event_view,
)
from rush_async.model import LAST_OUTPUT

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def a_task(**outputs: object) -> Task:
    return Task(key="k", state="finished", xs={"x": 1}, ys=outputs)


def test_bytes_become_base64_and_nan_becomes_null() -> None:
    text = TaskView.model_validate(a_task(y=float("nan"), data=b"\xff")).model_dump_json()
    assert '"ys":{"y":null,"data":"/w=="}' in text


def test_the_last_output_of_a_process_that_died_is_not_sent() -> None:
    failure = Failure("lost", None, f"the process was ended by SIGKILL{LAST_OUTPUT}Traceback (most recent call last)")
    assert FailureView.model_validate(failure).message == "the process was ended by SIGKILL"


def test_the_traceback_of_a_failure_is_not_sent() -> None:
    task = Task(key="k", state="failed", xs={"x": 1}, failure=Failure("error", "ValueError", "broken", "line 1"))
    assert TaskView.model_validate(task).model_dump()["failure"] == {"kind": "error", "type": "ValueError", "message": "broken"}


@pytest.mark.parametrize(
    ("type_", "message"),
    [
        ("RushConnectionError", "the database was away for longer than retry_deadline. Resume the run with new workers"),
        ("ServerFullError", "the database was full. Make room there, and resume the run with new workers"),
        ("DecodeError", "the service failed: its log says why"),
        ("LookupError", "redis://db.example"),
    ],
)
def test_the_failure_of_a_run_says_what_happened_to_the_database_and_not_where_it_is(type_: str, message: str) -> None:
    failure = FailureView.model_validate(Failure("error", type_, "redis://db.example", "line 1"))
    assert failure.message == message


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (RunRequest, {"loop": "search", "evals": 1}),
        (WorkersRequest, {"loop": "search", "evals": 1}),
        (StopRequest, {}),
        (ResumeRequest, {}),
        (TasksRequest[int], {"xss": [1]}),
        (EvaluateRequest[int], {"xs": 1}),
    ],
)
def test_a_misspelled_field_of_a_request_is_refused(body: type[BaseModel], fields: dict[str, Any]) -> None:
    body.model_validate(fields)
    with pytest.raises(ValidationError, match=r"n_wokers\n.*Extra inputs are not permitted"):
        body.model_validate(fields | {"n_wokers": 3})


def test_an_event_is_sent_under_the_name_of_its_class_with_seq_as_id() -> None:
    sent = event_view(WorkerLost(network_id="n", seq=7, at=NOW, worker_id="w"))
    assert (sent.event, sent.id) == ("WorkerLost", "7")
    assert sent.data["worker_id"] == "w"


def test_the_tasks_of_an_event_are_sent_as_task_bodies() -> None:
    fact: dict[str, Any] = {"network_id": "n", "seq": 1, "at": NOW, "keys": ("k",), "worker_id": "w"}
    sent = event_view(TasksFinished(**fact, tasks=(a_task(y=2),)))
    assert sent.data["tasks"] == [TaskView.model_validate(a_task(y=2))]
    assert event_view(TasksFinished(**fact)).data["tasks"] is None


def test_requests_have_defaults_and_bounds() -> None:
    assert RunRequest.model_validate({"loop": "search", "evals": 1}).n_workers == 1
    assert TasksRequest[int].model_validate({"xss": [1]}).retries == 0
    request = EvaluateRequest[int].model_validate({"xs": 1})
    assert (request.run, request.retries, request.timeout) == (None, 1, 30)
    with pytest.raises(ValidationError, match="at least 1 item"):
        TasksRequest[int].model_validate({"xss": []})
    with pytest.raises(ValidationError, match="should match pattern"):
        EvaluateRequest[int].model_validate({"xs": 1, "run": "../keys"})
