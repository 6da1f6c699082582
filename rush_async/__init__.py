"""Asynchronous, decentralised optimisation: many workers, one Redis or Valkey database, no central controller."""

from rush_async.client.arguments import Schema
from rush_async.client.client import RushClient
from rush_async.client.draw import Draw
from rush_async.client.event_stream import EventStream
from rush_async.client.replay import Divergence, Replay, fetch_tasks_as_of, replay
from rush_async.client.shared_state import Ranking
from rush_async.config import RushConfig
from rush_async.errors import (
    DecodeError,
    DuplicateError,
    EncodeError,
    NetworkStateError,
    NetworkStoppedError,
    RushConfigError,
    RushConnectionError,
    RushError,
    RushTimeoutError,
    SchemaError,
    ServerFullError,
    ServerStartError,
    TasksNotDoneError,
    WireError,
    WorkerLoopError,
    WorkerLostError,
    WorkersNotReadyError,
)
from rush_async.events import (
    Event,
    EventsMissed,
    NetworkReset,
    NetworkResumed,
    NetworkStopped,
    TaskReported,
    TasksFailed,
    TasksFinished,
    TasksQueued,
    TasksStarted,
    WorkerLost,
    WorkerStarted,
    WorkerStopped,
)
from rush_async.launch.coroutines import Coroutines
from rush_async.launch.handle import Launch, Launcher, WorkerHandle
from rush_async.launch.pools import Pool, Submitter
from rush_async.launch.processes import Processes
from rush_async.launch.standalone import run_worker
from rush_async.manager.manager import Rush, rsh
from rush_async.manager.run import run
from rush_async.model import (
    Catch,
    Counts,
    Failure,
    FailureKind,
    StopReason,
    StopRule,
    Task,
    TaskState,
    WorkerExit,
    WorkerState,
)
from rush_async.plan import Plan, PlanBlock, current_plan, rush_plan
from rush_async.store.malformed import MalformedRecord
from rush_async.store.points import Unique
from rush_async.worker.loop import WorkerLoop, bound
from rush_async.worker.task_block import TaskBlock
from rush_async.worker.worker import RushWorker

__version__ = "0.1.0"

__all__ = [
    "Catch",
    "Coroutines",
    "Counts",
    "DecodeError",
    "Divergence",
    "Draw",
    "DuplicateError",
    "EncodeError",
    "Event",
    "EventStream",
    "EventsMissed",
    "Failure",
    "FailureKind",
    "Launch",
    "Launcher",
    "MalformedRecord",
    "NetworkReset",
    "NetworkResumed",
    "NetworkStateError",
    "NetworkStopped",
    "NetworkStoppedError",
    "Plan",
    "PlanBlock",
    "Pool",
    "Processes",
    "Ranking",
    "Replay",
    "Rush",
    "RushClient",
    "RushConfig",
    "RushConfigError",
    "RushConnectionError",
    "RushError",
    "RushTimeoutError",
    "RushWorker",
    "Schema",
    "SchemaError",
    "ServerFullError",
    "ServerStartError",
    "StopReason",
    "StopRule",
    "Submitter",
    "Task",
    "TaskBlock",
    "TaskReported",
    "TaskState",
    "TasksFailed",
    "TasksFinished",
    "TasksNotDoneError",
    "TasksQueued",
    "TasksStarted",
    "Unique",
    "WireError",
    "WorkerExit",
    "WorkerHandle",
    "WorkerLoop",
    "WorkerLoopError",
    "WorkerLost",
    "WorkerLostError",
    "WorkerStarted",
    "WorkerState",
    "WorkerStopped",
    "WorkersNotReadyError",
    "bound",
    "current_plan",
    "fetch_tasks_as_of",
    "replay",
    "rsh",
    "run",
    "run_worker",
    "rush_plan",
]
