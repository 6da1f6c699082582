"""Tasks, the names reserved for columns, failures, counts, and the ends of workers."""

from __future__ import annotations

import traceback as tracebacks
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from html import escape
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, NoReturn, Protocol, Self, TypeAlias, cast

from typing_extensions import TypeVar  # `typing` has defaults from Python 3.13 on

from rush_async.errors import NetworkStateError, redact

__all__ = [
    "CANCELLED",
    "FAILURE_KINDS",
    "LAST_OUTPUT",
    "RESERVED_NAMES",
    "TASK_STATES",
    "Catch",
    "Counts",
    "Failure",
    "FailureKind",
    "StopReason",
    "StopRule",
    "Task",
    "TaskHolder",
    "TaskState",
    "WorkerExit",
    "WorkerState",
    "html_table",
]

X = TypeVar("X", default=dict[str, Any])
Y = TypeVar("Y", default=Any)
_NO_OUTPUT: Any = None  # a plain None would be the type of the output

TaskState: TypeAlias = Literal["queued", "running", "finished", "failed"]
TASK_STATES: tuple[TaskState, ...] = ("queued", "running", "finished", "failed")

FailureKind: TypeAlias = Literal["error", "killed", "lost", "removed", "cancelled", "timeout"]
FAILURE_KINDS: tuple[FailureKind, ...] = ("error", "killed", "lost", "removed", "cancelled", "timeout")

Catch: TypeAlias = type[BaseException] | tuple[type[BaseException], ...]
"""Exceptions that fail a task in its block and are suppressed."""

WorkerState: TypeAlias = Literal["starting", "running", "terminated", "failed", "killed", "lost"]

StopRule: TypeAlias = Literal["finished", "failed", "seconds", "target", "patience", "manual"]

# The fixed columns of a frame: an input with such a name is refused, an output or extra gets a prefix.
RESERVED_NAMES = frozenset(
    {"state", "worker_id", "condition", "created_at", "started_at", "ended_at", "attempt", "index", "keys"}
)


_LONGEST_SHOWN = 300  # characters of a value in a table for notebooks


def html_table(kind: str, name: str, rows: Mapping[str, object]) -> str:
    """Returns what a notebook shows of an object: its kind, its name, and a table of the rows that are not None. It has no
    colours of its own, so it fits a light and a dark theme."""
    cells = {escape(key): _html_of(value) for key, value in rows.items() if value is not None}
    shown = "".join(f"<tr><td>{key}</td><td>{value}</td></tr>" for key, value in cells.items())
    return f"<b>{escape(kind)}</b> {escape(name)}<table>{shown}</table>"


def _html_of(value: object) -> str:
    match value:
        case Failure(kind, error_type, message, trace):
            summary = escape(_cut(f"{error_type or kind}: {message}"))
            return summary if trace is None else f"<details><summary>{summary}</summary><pre>{escape(trace)}</pre></details>"
        case datetime():
            return f"{value:%Y-%m-%d %H:%M:%S} UTC"
        case dict():
            items = cast("dict[Any, Any]", value).items()
            return escape(_cut(", ".join(f"{key} = {each!r:.{_LONGEST_SHOWN}}" for key, each in items)))
        case _:
            return escape(_cut(str(value)))


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


class Counts(NamedTuple):
    """How many tasks of a network are in each state."""

    queued: int = 0
    running: int = 0
    finished: int = 0
    failed: int = 0

    @property
    def total(self) -> int:
        """All tasks of the network."""
        return self.queued + self.running + self.finished + self.failed

    def _repr_html_(self) -> str:
        return html_table("Counts", f"of {self.total:,} tasks", self._asdict())


@dataclass(frozen=True, slots=True)
class StopReason:
    """Why a network has stopped.

    Attributes:
        rule: the rule of `stop_when` that became true first, or `manual` for `stop`.
        at: when, by the server's clock (UTC).
        seq: the number of its event `NetworkStopped`: from it to that of `NetworkResumed` no task starts.
        detail: the reason in words.
    """

    rule: StopRule
    at: datetime
    seq: int
    detail: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.detail}"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a task or a worker failed.

    Attributes:
        kind: `error` (the evaluation raised), `killed`, `lost` (the worker died), `removed` (from the queue),
            `cancelled` or `timeout`.
        type: the class name of the exception, or None.
        message: the reason in one line.
        traceback: the formatted traceback, or None.
    """

    kind: FailureKind = "error"
    type: str | None = None
    message: str = "failed"
    traceback: str | None = None

    @classmethod
    def of(cls, reason: BaseException | str | Failure | None, kind: FailureKind = "error") -> Failure:
        """Makes a failure of an exception, a message or another failure. Passwords in URLs become `***`.

        Args:
            reason: the exception, message or failure; None has no message of its own.
            kind: the kind of the failure; a given failure keeps its own.

        Returns:
            The failure.

        Raises:
            TypeError: the reason is something else.
        """
        match reason:
            case Failure():
                return reason
            case BaseException():
                # A URL with its password may be in the message, or in a line of the code.
                text = redact("".join(tracebacks.format_exception(reason)))
                return cls(kind, type(reason).__name__, redact(str(reason)) or type(reason).__name__, text)
            case str():
                return cls(kind, None, redact(reason), None)
            case None:
                return cls(kind)
            case _:
                given, shown = cast("object", reason), f"{reason!r:.80}"
                if isinstance(given, dict) and given.keys() <= set(cls.__slots__):
                    values = cast("dict[str, object]", given)
                    shown = f"write Failure({', '.join(f'{name}={value!r:.80}' for name, value in values.items())})"
                raise TypeError(f"a failure is an exception, a string or a Failure, not {type(reason).__name__}: {shown}")


LAST_OUTPUT = ". It last wrote: "
"""What separates, in the failure of a worker that died, how it died from the end of its output."""

CANCELLED = Failure("cancelled", None, "Task was cancelled")


class TaskHolder(Protocol):
    """The worker that holds a task, and ends it with its block."""

    def enter_block(self, task: Task[Any, Any]) -> None: ...

    async def leave_block(self, task: Task[Any, Any], error: BaseException | None) -> bool: ...

    async def report(self, task: Task[Any, Any], values: Any) -> None: ...


@dataclass(slots=True)
class Task(Generic[X, Y]):
    """One evaluation: a unique key, a state, an input `xs` and an output `ys`.

    For type checkers `Task[X, Y]` has an input of type `X`, such as a `TypedDict`, and an output of type `Y`. By default, and
    where a call returns a task, the input is a `dict[str, Any]` and the output anything; `cast("Task[X, Y]", task)` says more.

    A task that a worker popped is also an async context manager, `async with task: task.ys = ...`: the end of the block
    finishes the task, or fails it with the exception that left the block. That exception ends the worker too, unless the loop
    handles it, or `catch` named it where the task was taken.

    Attributes:
        key: unique in the network.
        state: `queued`, `running`, `finished` or `failed`, as it was when this object was read.
        xs: the input.
        xs_extra: extra values stored with the input, or None.
        ys: the output; None until finished.
        ys_extra: extra values stored with the output, or None.
        failure: why it failed; until a retried task ends, why its last attempt failed; else None.
        attempt: how often a worker has taken it; 0 before the first time.
        worker_id: the worker that runs or ran it, or None.
        created_at: when it was pushed, by the server's clock (UTC).
        started_at: when a worker took it, or None.
        ended_at: when it finished or failed, or None.
        index: its number in the order of creation, from 0 on. Without a seed there are no gaps.
    """

    key: str
    state: TaskState
    xs: X
    xs_extra: dict[str, Any] | None = None
    ys: Y = _NO_OUTPUT
    ys_extra: Any = None
    failure: Failure | None = None
    attempt: int = 0
    worker_id: str | None = None
    created_at: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    index: int | None = None
    _holder: TaskHolder | None = field(default=None, repr=False, compare=False)
    _catch: Catch = field(default=(), repr=False, compare=False)

    if not TYPE_CHECKING:  # a checker would accept `with`, too

        def __enter__(self) -> NoReturn:
            raise TypeError("a task's block is `async with task:`, in an `async def`, and not `with`")

        def __exit__(self, *_: object) -> None: ...

    async def __aenter__(self) -> Self:
        if self._holder is None:
            raise NetworkStateError(
                f"task {self.key!r} is not held by a worker in this process: "
                "only a task from `pop_task()` or `tasks()` can be used with `async with`"
            )
        self._holder.enter_block(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Only a cancellation by `cancel_tasks` is suppressed: type checkers may assume that no exception is.
        assert self._holder is not None
        return cast("None", await self._holder.leave_block(self, error))

    async def report(self, values: Any) -> None:
        """Reports on the task while it runs, such as the loss of an epoch; `fetch_reports` and `TaskReported` have the reports.

        It returns when the report is handed over, without waiting for the server. A report that is refused is a warning in the
        log, and an error of the next report of the task; a block whose task was cancelled or deleted is cancelled then.

        Args:
            values: a record of numbers, strings, bools and None.

        Raises:
            EncodeError: a value cannot be stored; nothing was reported.
            NetworkStateError: no worker in this process runs the task, or not any more.
            WorkerLostError: the worker was declared lost or was killed.
            RushConnectionError: the server cannot be reached.
            ServerFullError: the server is at its `maxmemory` and refused the report before.
        """
        if self._holder is None:
            raise NetworkStateError(
                f"task {self.key!r} is not held by a worker in this process: only the worker that runs it reports on it"
            )
        await self._holder.report(self, values)

    def _repr_html_(self) -> str:
        rows = {name: getattr(self, name) for name in self.__slots__ if not name.startswith("_") and name != "key"}
        return html_table("Task", self.key, rows)


@dataclass(frozen=True, slots=True)
class WorkerExit:
    """How a worker ended.

    Attributes:
        worker_id: the worker.
        state: `terminated` (by itself or on request), `failed`, `killed` or `lost`.
        failure: the error of the loop, or how the worker died; None if it ended by itself or on request.
    """

    worker_id: str
    state: WorkerState
    failure: Failure | None = None

    def _repr_html_(self) -> str:
        return html_table("WorkerExit", self.worker_id, {"state": self.state, "failure": self.failure})
