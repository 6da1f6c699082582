"""The job of workers: what they run in one process, and how that process reports their ends.

Child processes, pools and the worker command get a job. The first two get it as a pickle, on a channel that no other program
can write to. For a command the database keeps it as msgpack: a *start*. The command names the start by its digest, so write
access to the database does not allow choosing what the workers run.
"""

from __future__ import annotations

import hashlib
import pickle
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeAlias, cast

from rush_async.client.arguments import Schema
from rush_async.config import RushConfig
from rush_async.errors import DecodeError, RushConfigError
from rush_async.launch.packed_loop import PackedLoop
from rush_async.launch.payload import Payload
from rush_async.model import WorkerExit
from rush_async.store.codec import decode, encode
from rush_async.worker.names import worker_name

__all__ = ["LENGTH", "Job", "Report", "digest_of", "frame", "pack_report", "packed_schema", "take_frames", "unpack_report"]

LENGTH = 8  # bytes of a frame that say how long the rest is

# The settings that the workers of a command get from the manager; its options name the server and the certificates.
_SETTINGS = (
    *("heartbeat_period", "heartbeat_expire", "max_loop_stall", "max_record_size", "max_reports"),
    *("connect_timeout", "response_timeout", "retry_deadline", "wait_replicas"),
)

Report: TypeAlias = WorkerExit | str
"""A report about a worker: how it ended, or its id, which confirms that its event loop has taken a request to cancel it."""


@dataclass(frozen=True, slots=True)
class Job:
    """What workers of one process run.

    Attributes:
        network_id: the network to work in.
        config: the server and the settings.
        worker_ids: the workers.
        loop: their loop with its arguments.
        log_levels: the loggers whose records the network keeps, with their levels; None for the default.
        schema: columns that frames of the workers always have, packed; None for none.
    """

    network_id: str
    config: RushConfig
    worker_ids: Sequence[str]
    loop: PackedLoop
    log_levels: Mapping[str, str | int] | None
    schema: bytes | None = None

    @property
    def frame_schema(self) -> Schema | None:
        """The schema, unpacked."""
        if self.schema is None:
            return None
        from rush_async.frames.schema import unpack_schema

        return unpack_schema(self.schema)

    def to_pickle(self) -> bytes:
        """Returns the form for a pipe or a pool."""
        return pickle.dumps(self)

    @classmethod
    def of_pickle(cls, packed: bytes) -> Job:
        """Returns the job that `to_pickle` packed."""
        return cast("Job", pickle.loads(packed))

    def to_start(self) -> bytes:
        """Returns the form for the database, without network, server and worker ids: each run of a command draws new ids."""
        payload = self.loop.payload.as_record()
        if self.loop.name is None:
            start: dict[str, Any] = {"pickle": payload, "python": list(sys.version_info[:2])}
        else:
            start = {"loop": self.loop.name, "args": payload}
        settings = {field.name: getattr(self.config, field.name) for field in fields(self.config) if field.name in _SETTINGS}
        log_levels = None if self.log_levels is None else dict(self.log_levels)
        start |= {"n_workers": len(self.worker_ids), "log_levels": log_levels, "settings": settings, "schema": self.schema}
        return encode(start, "start")

    @classmethod
    def of_start(cls, packed: bytes, start_id: str, network_id: str, config: RushConfig, *, allow_pickle: bool) -> Job:
        """Checks a start from the database and returns its job, with new ids for the workers.

        Args:
            packed: what the database holds.
            start_id: the digest that the command names.
            network_id: the network to work in.
            config: the server.
            allow_pickle: whether the loop may be a pickle.

        Raises:
            DecodeError: the start is not the one that the command names, or is malformed.
            RushConfigError: it has a pickle that is not allowed or was made by another version of Python, or an unknown
                setting.
        """
        if digest_of(packed) != start_id:
            raise DecodeError(
                f"start {start_id} was altered in the database, so it is not used: "
                "make a new command with worker_command(), and check which programs write to this database"
            )
        start: Any = decode(packed)  # a manager wrote it, as the digest proves; another form comes from another version
        try:
            names = [worker_name() for _ in range(start["n_workers"])]
            log_levels, settings, schema = start["log_levels"], dict(start["settings"]), start.get("schema")
            is_pickle = "pickle" in start
            payload = Payload.of_record(start["pickle" if is_pickle else "args"])
            loop = PackedLoop(payload, None if is_pickle else start["loop"])
            python = start.get("python")
        except (TypeError, KeyError, ValueError, AttributeError):
            raise DecodeError(f"start {start_id} is malformed: install the manager's version of rush_async here") from None
        if is_pickle:
            _check_pickle(start_id, python, allow_pickle=allow_pickle)
        if unknown := sorted(set(settings) - set(_SETTINGS)):
            raise RushConfigError(
                f"start {start_id} has the unknown setting {unknown[0]!r}: install the manager's version of rush_async here"
            )
        return cls(network_id, replace(config, **settings), names, loop, log_levels, schema)


def packed_schema(schema: Schema | None) -> bytes | None:
    """Returns a schema as a job has it.

    Raises:
        SchemaError: it is not a schema, or has a dtype that no value of a task fits.
    """
    if not schema:
        return None
    from rush_async.frames.schema import pack_schema

    return pack_schema(schema)


def digest_of(start: bytes) -> str:
    """Returns the id of a start."""
    return hashlib.sha256(start).hexdigest()[:32]


def _check_pickle(start_id: str, version: list[int], *, allow_pickle: bool) -> None:
    if not allow_pickle:
        raise RushConfigError(
            f"start {start_id} contains a pickle, which can run any code when it is loaded: "
            "add --allow-pickle if you trust its sender"
        )
    if version != list(sys.version_info[:2]):
        raise RushConfigError(
            f"start {start_id} contains a pickle of Python {'.'.join(map(str, version))}, and this is Python "
            f"{sys.version_info[0]}.{sys.version_info[1]}: run the same version here, or name the loop instead of pickling it"
        )


# reports


def pack_report(report: Report) -> bytes:
    """Returns the form of a report for a pipe or a pool."""
    return pickle.dumps(report)


def unpack_report(packed: bytes) -> Report:
    """Returns the report that `pack_report` packed. Only processes that run the job write to the pipe or the pool."""
    return cast("Report", pickle.loads(packed))


# frames of a pipe


def frame(body: bytes) -> bytes:
    """Returns the body with its length before it."""
    return len(body).to_bytes(LENGTH, "big") + body


def take_frames(buffer: bytearray) -> list[bytes]:
    """Removes the complete frames from a buffer, and returns their bodies."""
    bodies: list[bytes] = []
    while len(buffer) >= LENGTH:
        end = LENGTH + int.from_bytes(buffer[:LENGTH], "big")
        if len(buffer) < end:
            break
        bodies.append(bytes(buffer[LENGTH:end]))
        del buffer[:end]
    return bodies
