"""An entry of the worker log, as its stream holds it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, NamedTuple

from rush_async.errors import DecodeError
from rush_async.store.codec import decode, encode

__all__ = ["LogEntry"]


class LogEntry(NamedTuple):
    """One record that a worker logged.

    Attributes:
        worker_id: the worker.
        level: the name of the level.
        timestamp: when it was logged (UTC), by the clock of the worker's machine.
        logger: the name of the logger.
        caller: `module.function:line`.
        msg: the message, with the traceback if there was one.
    """

    worker_id: str
    level: str
    timestamp: datetime
    logger: str
    caller: str
    msg: str

    def packed(self) -> bytes:
        """Returns the entry as the stream holds it."""
        return encode([self.worker_id, self.level, self.timestamp.timestamp(), self.logger, self.caller, self.msg], "log")

    @classmethod
    def of(cls, packed: bytes) -> LogEntry:
        """Returns the entry that the stream holds as `packed`.

        Raises:
            DecodeError: `packed` is no log entry.
        """
        values: Any = decode(packed)
        try:
            worker_id, level, created, logger, caller, msg = values
            if {type(text) for text in (worker_id, level, logger, caller, msg)} == {str}:
                return cls(worker_id, level, datetime.fromtimestamp(created, UTC), logger, caller, msg)
        except (TypeError, ValueError, OverflowError, OSError):
            pass
        raise DecodeError(f"a log record of the network is malformed: {packed!r:.200}")
