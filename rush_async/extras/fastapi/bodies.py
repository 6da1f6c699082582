"""The bodies of requests and responses as pydantic models, from which FastAPI makes the OpenAPI schema."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import fields
from typing import Annotated, Any, Generic, Literal, TypeVar

from fastapi.encoders import jsonable_encoder
from fastapi.sse import ServerSentEvent
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer

from rush_async.events import Event
from rush_async.model import FailureKind, TaskState

__all__ = [
    "EvaluateRequest",
    "FailureView",
    "OwnOrRun",
    "Problem",
    "RunId",
    "RunRequest",
    "RunStatus",
    "TaskView",
    "TasksRequest",
    "event_view",
]

X = TypeVar("X")
RunId = Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
OwnOrRun = Annotated[RunId | None, Field(description="the id of a run; without it, the service's own queue")]
Retries = Annotated[int, Field(ge=0, le=127, description="how often a task is queued again when its worker is lost")]


class RunRequest(BaseModel):
    """A run to start."""

    loop: str = Field(description="the name under which the router has the loop")
    evals: int = Field(gt=0, description="the budget: how many tasks the workers finish together")
    n_workers: int = Field(1, gt=0, le=256)


def _plain(value: Any) -> Any:
    return jsonable_encoder(value, custom_encoder={bytes: lambda data: b64encode(data).decode()})


Value = Annotated[Any, PlainSerializer(_plain, when_used="json")]  # bytes become base64, nan becomes null


class FailureView(BaseModel):
    """Why a task failed. The traceback stays in the database."""

    model_config = ConfigDict(from_attributes=True)
    kind: FailureKind
    type: str | None
    message: str


class TaskView(BaseModel):
    """A task and its state."""

    model_config = ConfigDict(from_attributes=True)
    key: str
    state: TaskState
    xs: dict[str, Value]
    ys: dict[str, Value] | None
    failure: FailureView | None


class RunStatus(BaseModel):
    """The state of a run."""

    id: RunId
    state: Literal["running", "ended"] = Field(description="`running` while a worker starts or runs")
    workers: dict[str, int] = Field(description="how many workers are in each state")
    failures: list[str] = Field(description="why workers failed, each message once")
    counts: dict[TaskState, int]
    best: TaskView | None = Field(description="the finished task with the best output")


class TasksRequest(BaseModel, Generic[X]):
    """Tasks to queue."""

    xss: list[X] = Field(min_length=1, max_length=10_000)
    run: OwnOrRun = None
    retries: Retries = 0


class EvaluateRequest(BaseModel, Generic[X]):
    """A task to evaluate."""

    xs: X
    run: OwnOrRun = None
    retries: Retries = 1
    timeout: float = Field(30, gt=0, le=3600, description="seconds")


class Problem(BaseModel):
    """Why a request failed."""

    detail: str


def event_view(event: Event) -> ServerSentEvent:
    """An event as a stream sends it: the name of its class, `seq` as id, and its fields as data."""
    data = {entry.name: getattr(event, entry.name) for entry in fields(event)}
    if data.get("tasks") is not None:
        data["tasks"] = [TaskView.model_validate(task) for task in data["tasks"]]
    return ServerSentEvent(event=type(event).__name__, id=str(event.seq), data=data)
