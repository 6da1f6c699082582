"""The bodies of requests and responses as pydantic models, from which FastAPI makes the OpenAPI schema."""

from __future__ import annotations

import re
from base64 import b64encode
from dataclasses import fields
from datetime import datetime
from typing import Annotated, Any, Generic, Literal, Self, TypeAlias, TypeVar

from fastapi.encoders import jsonable_encoder
from fastapi.sse import ServerSentEvent
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, PlainSerializer, field_validator, model_validator

from rush_async import errors
from rush_async.events import Event, TaskReported
from rush_async.extras.fastapi.statuses import HIDDEN, MESSAGES_OF_FAILURES
from rush_async.model import LAST_OUTPUT, FailureKind, StopRule, TaskState

__all__ = [
    "RUN_ID",
    "EndReason",
    "EndView",
    "EvaluateRequest",
    "FailureView",
    "OwnOrRun",
    "Problem",
    "ReportView",
    "ResumeRequest",
    "RunId",
    "RunRequest",
    "RunStatus",
    "RunSummary",
    "StopReasonView",
    "StopRequest",
    "StopRules",
    "TaskView",
    "TasksRequest",
    "Value",
    "WorkersRequest",
    "event_view",
]

X = TypeVar("X")
RUN_ID = re.compile("[0-9a-f]{16}")
RunId = Annotated[str, Field(pattern=f"^{RUN_ID.pattern}$")]
OwnOrRun = Annotated[RunId | None, Field(description="the id of a run; without it, the service's own queue")]
Retries = Annotated[int, Field(ge=0, le=127, description="how often a task is queued again when its worker is lost")]


Output = Annotated[str, Field(min_length=1, max_length=100)]
Limit = Annotated[int, Field(gt=0, le=2**53)]


class _Request(BaseModel):
    """The body of a request: a misspelled field is refused."""

    model_config = ConfigDict(extra="forbid")


class StopRules(_Request):
    """Rules that stop a run as a whole, whichever is true first: the arguments of `stop_when`."""

    finished: Limit | None = Field(None, description="how many tasks finish")
    failed: Limit | None = Field(None, description="how many tasks fail")
    seconds: Annotated[FiniteFloat, Field(gt=0)] | None = Field(None, description="how much time passes, from now on")
    target: Annotated[dict[Output, FiniteFloat], Field(min_length=1, max_length=1)] | None = Field(
        None, description='an output and a value of it that is good enough, as in `{"y": 0.4}`'
    )
    patience: tuple[Output, Limit] | None = Field(
        None, description='an output and how many tasks finish without a better value of it, as in `["y", 100]`'
    )
    maximize: bool = Field(False, description="whether larger values of that output are better")

    @model_validator(mode="after")
    def _judge_one_output(self) -> Self:
        if self.target is not None and self.patience is not None and self.patience[0] not in self.target:
            raise ValueError("target and patience judge one output, the same in both")
        return self

    def arguments(self) -> dict[str, Any]:
        """The arguments of `stop_when` and `resume`."""
        return self.model_dump(exclude_none=True)


class WorkersRequest(_Request):
    """Workers to start."""

    loop: str = Field(description="the name under which the router has the loop")
    evals: Limit = Field(description="the budget: how many tasks the workers finish together")
    n_workers: int = Field(1, gt=0, le=256)


class RunRequest(WorkersRequest):
    """A run to start."""

    stop_when: StopRules | None = Field(None, description="rules that hold from before the first task on")

    @field_validator("stop_when")
    @classmethod
    def _has_a_rule(cls, rules: StopRules | None) -> StopRules | None:
        if rules is not None and not rules.model_dump(exclude={"maximize"}, exclude_none=True):
            raise ValueError("give a rule: finished, failed, seconds, target or patience")
        return rules


class StopRequest(_Request):
    """Why a run is stopped."""

    why: Annotated[str, Field(min_length=1, max_length=200)] = "stopped by hand"


class ResumeRequest(_Request):
    """How a run continues."""

    stop_when: Annotated[StopRules | None, Field(description="the rules in place of all others; none by default")] = None
    workers: Annotated[WorkersRequest | None, Field(description="workers to start: those that left do not come back")] = None


def _plain(value: Any) -> Any:
    return jsonable_encoder(value, custom_encoder={bytes: lambda data: b64encode(data).decode()})


Value = Annotated[Any, PlainSerializer(_plain, when_used="json")]  # bytes become base64, nan becomes null


class FailureView(BaseModel):
    """Why a task or a worker failed. The traceback stays in the database, and so do the message of an error of rush_async and
    what a process wrote before it died."""

    model_config = ConfigDict(from_attributes=True)
    kind: FailureKind
    type: str | None
    message: str

    @model_validator(mode="after")
    def _hide_database(self) -> Self:
        if self.type in errors.__all__:
            self.message = MESSAGES_OF_FAILURES.get(self.type, HIDDEN)
        if self.kind == "lost":
            self.message = self.message.partition(LAST_OUTPUT)[0]
        return self


class TaskView(BaseModel):
    """A task and its state."""

    model_config = ConfigDict(from_attributes=True)
    key: str
    state: TaskState
    xs: dict[str, Value]
    ys: dict[str, Value] | None
    failure: FailureView | None


class ReportView(BaseModel):
    """A report on a running task, in the form of the event `TaskReported`."""

    key: str
    worker_id: str
    at: datetime
    attempt: int
    step: int
    values: dict[str, Value]


class StopReasonView(BaseModel):
    """Why a run has stopped."""

    model_config = ConfigDict(from_attributes=True)
    rule: StopRule
    at: datetime
    seq: int = Field(description="the id of its event `NetworkStopped`")
    detail: str


EndReason: TypeAlias = Literal["budget", "rule", "stopped", "failed", "left", "deleted"]


class EndView(BaseModel):
    """Why a run has ended."""

    why: EndReason = Field(
        description="`budget`: it is spent; `rule`: a stop rule became true; `stopped`: by a request; `failed`: a loop raised, "
        "or a worker was lost; `left`: the workers ended earlier, as when their process ends; `deleted`: the run is gone"
    )
    detail: str = Field(description="the reason in words")
    at: datetime | None = Field(description="when the last worker ended")


class RunSummary(BaseModel):
    """A run in a list of runs."""

    id: RunId
    state: Literal["running", "ended"] = Field(description="`running` while a worker starts or runs")
    ended: EndView | None = Field(description="why it has ended; null while it runs")
    loop: str | None = Field(description="the name of its loop")
    evals: int | None = Field(description="its budget")
    started_at: datetime | None
    workers: dict[str, int] = Field(description="how many workers are in each state")
    counts: dict[TaskState, int]


class RunStatus(RunSummary):
    """The state of a run."""

    failures: list[str] = Field(description="why workers failed, each message once")
    best: TaskView | None = Field(description="the finished task with the best output")
    stopped: StopReasonView | None = Field(description="why no task starts any more; null while tasks may start")
    stop_when: StopRules | None = Field(description="the stop rules that hold")


class TasksRequest(_Request, Generic[X]):
    """Tasks to queue."""

    xss: list[X] = Field(min_length=1, max_length=10_000)
    run: OwnOrRun = None
    retries: Retries = 0


class EvaluateRequest(_Request, Generic[X]):
    """A task to evaluate."""

    xs: X
    run: OwnOrRun = None
    retries: Retries = 1
    timeout: float = Field(30, gt=0, le=3600, description="seconds")


class Problem(BaseModel):
    """Why a request failed."""

    detail: str


def event_view(event: Event) -> ServerSentEvent:
    """An event as a stream sends it: the name of its class, `seq` as id, and its fields as data. A report has no id, because
    reports have numbers of their own."""
    data = {entry.name: getattr(event, entry.name) for entry in fields(event)}
    if isinstance(event, TaskReported):
        return ServerSentEvent(event="TaskReported", data=_plain(data))
    if data.get("tasks") is not None:
        data["tasks"] = [TaskView.model_validate(task) for task in data["tasks"]]
    return ServerSentEvent(event=type(event).__name__, id=str(event.seq), data=data)
