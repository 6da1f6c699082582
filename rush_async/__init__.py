"""Asynchronous, decentralised optimisation: many workers, one Redis or Valkey database, no central controller."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rush_async.client.arguments import Schema
    from rush_async.client.client import RushClient
    from rush_async.client.draw import Draw
    from rush_async.client.event_stream import EventStream
    from rush_async.client.export.reading import Archive
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
    from rush_async.store.export_item import ExportItem
    from rush_async.store.malformed import MalformedRecord
    from rush_async.store.points import Unique
    from rush_async.worker.loop import WorkerLoop, bound
    from rush_async.worker.task_block import TaskBlock
    from rush_async.worker.worker import RushWorker

__version__ = "0.1.0"

__all__ = [
    "Archive",
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
    "ExportItem",
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

# Each module with its public names: the first use of a name imports its module, so that importing the package costs little.
_NAMES = {
    "client.arguments": "Schema",
    "client.client": "RushClient",
    "client.draw": "Draw",
    "client.event_stream": "EventStream",
    "client.export.reading": "Archive",
    "client.replay": "Divergence Replay fetch_tasks_as_of replay",
    "client.shared_state": "Ranking",
    "config": "RushConfig",
    "errors": "DecodeError DuplicateError EncodeError NetworkStateError NetworkStoppedError RushConfigError "
    "RushConnectionError RushError RushTimeoutError SchemaError ServerFullError ServerStartError "
    "TasksNotDoneError WireError WorkerLoopError WorkerLostError WorkersNotReadyError",
    "events": "Event EventsMissed NetworkReset NetworkResumed NetworkStopped TaskReported TasksFailed TasksFinished "
    "TasksQueued TasksStarted WorkerLost WorkerStarted WorkerStopped",
    "launch.coroutines": "Coroutines",
    "launch.handle": "Launch Launcher WorkerHandle",
    "launch.pools": "Pool Submitter",
    "launch.processes": "Processes",
    "launch.standalone": "run_worker",
    "manager.manager": "Rush rsh",
    "manager.run": "run",
    "model": "Catch Counts Failure FailureKind StopReason StopRule Task TaskState WorkerExit WorkerState",
    "plan": "Plan PlanBlock current_plan rush_plan",
    "store.export_item": "ExportItem",
    "store.malformed": "MalformedRecord",
    "store.points": "Unique",
    "worker.loop": "WorkerLoop bound",
    "worker.task_block": "TaskBlock",
    "worker.worker": "RushWorker",
}

_HOMES = {name: module for module, names in _NAMES.items() for name in names.split()}


def __dir__() -> list[str]:
    return ["__version__", *__all__]


if not TYPE_CHECKING:  # a checker would accept every name

    def __getattr__(name: str) -> object:
        if name in _HOMES:
            value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
            return value
        if not name.startswith("__"):
            for module in _NAMES:  # `rush_async.store` is known once they are imported
                import_module(f"{__name__}.{module}")
            if name in globals():
                return globals()[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name, obj=sys.modules[__name__])
