"""Log capture: hands the records that workers log to the worker log of their network."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Protocol

from rush_async.errors import redact
from rush_async.process import forget_in_child
from rush_async.store.log_entry import LogEntry

__all__ = ["WARNINGS", "LogSink", "capture", "worker_of"]

WARNINGS: Mapping[str, str | int] = MappingProxyType({"root": "WARNING"})
"""What pools and the command capture where no levels are given. No logger is given this level."""

_MAX_MESSAGE = 64 * 1024  # characters
_SENDERS = ("rush_async.heartbeat.", "rush_async.wire.")  # packages that send the records


class LogSink(Protocol):
    """Takes the records of a worker."""

    def log(self, record: bytes) -> None:
        """Takes a packed `LogEntry`, from any thread, without waiting."""


@dataclass(frozen=True, eq=False)
class _Source:
    """A worker whose records are captured."""

    worker_id: str
    levels: Mapping[str, int]
    sets_levels: bool
    sink: LogSink
    loop_thread: int

    def nearest_logger(self, name: str) -> str | None:
        """Returns the logger, among those that the worker named, that is the nearest to the logger `name`."""
        fitting = [each for each in self.levels if not each or name == each or name.startswith(f"{each}.")]
        return max(fitting, key=len, default=None)


_current_source: ContextVar[_Source | None] = ContextVar("rush_async log source", default=None)


@contextmanager
def capture(worker_id: str, levels: Mapping[str, str | int] | None, sink: LogSink) -> Generator[None]:
    """Hands what a worker logs in this block to a sink.

    A record belongs to the worker in whose block it was logged, or in an asyncio task or a thread of `asyncio.to_thread` that
    was started there. A record of a thread without that context belongs to the worker if it is the only one of the process.

    Each logger in `levels`, unless they are `WARNINGS`, is given its level, as everywhere in `logging`, so other handlers see
    the same records. Where several workers of a process name a logger, the lowest of their levels holds. When the last of them
    ends, the logger has its former level again, unless the program has set another one meanwhile. A program without handlers
    of its own still writes warnings and errors to standard error.

    Args:
        worker_id: the worker.
        levels: the loggers with their levels; "" and "root" are the root logger.
        sink: where the records go.
    """
    wanted = {"" if name == "root" else name: _as_number(level) for name, level in (levels or {}).items()}
    source = _Source(worker_id, wanted, levels is not WARNINGS, sink, threading.get_ident())
    token = _current_source.set(source)
    _registry.add(source)
    try:
        yield
    finally:
        _registry.remove(source)
        with suppress(ValueError):  # a coroutine of an ended event loop may be closed in another context
            _current_source.reset(token)


def _as_number(level: str | int) -> int:
    return logging.getLevelNamesMapping()[level] if isinstance(level, str) else level


class _SenderFilter(logging.Filter):
    """Rejects records of the code that sends the records, each of which would cause another one."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not f"{record.name}.".startswith(_SENDERS)


class _CaptureHandler(logging.Handler):
    """Captures the records of one logger for all workers of the process that named it."""

    def __init__(self, logger_name: str) -> None:
        super().__init__()
        self.addFilter(_SenderFilter())
        self._logger_name = logger_name
        self._logger = logging.getLogger(logger_name)
        self._former_level = self._given_level = self._logger.level
        self._n_workers = 0
        self._levels: Counter[int] = Counter()
        self._logger.addHandler(self)

    def add_worker(self, level: int | None) -> None:
        """Gives the logger the level of one more worker, if it has one and no other worker asks for a lower one."""
        self._n_workers += 1
        if level is not None:
            self._levels[level] += 1
            self._set_level(min(self._levels))

    def remove_worker(self, level: int | None) -> bool:
        """Removes a worker with its level. Returns whether it was the last worker; the handler is then removed too."""
        self._n_workers -= 1
        if level is not None:
            self._levels -= Counter((level,))
            if self._logger.level == self._given_level:  # otherwise the program has set another level meanwhile
                self._set_level(min(self._levels, default=self._former_level))
        if self._n_workers:
            return False
        self._logger.removeHandler(self)
        self.close()
        return True

    def forget(self) -> None:
        """Leaves the logger in a forked child, with its former level."""
        if self._logger.level == self._given_level:
            self._set_level(self._former_level)
        self._logger.removeHandler(self)

    def _set_level(self, level: int) -> None:
        self._logger.setLevel(level)
        self._given_level = level

    def emit(self, record: logging.LogRecord) -> None:
        last_resort = logging.lastResort
        if last_resort is not None and record.levelno >= last_resort.level and self._hides_last_resort(record):
            last_resort.handle(record)
        source = _registry.source_of(record)
        # A record reaches the handlers of all loggers above its own: only the nearest one takes it.
        if source is None or source.nearest_logger(record.name) != self._logger_name:
            return
        if record.levelno >= source.levels[self._logger_name]:
            try:
                source.sink.log(_entry_of(record, source.worker_id).packed())
            except Exception:
                self.handleError(record)

    def _hides_last_resort(self, record: logging.LogRecord) -> bool:
        """Whether no handler but those of this module gets the record, and this one is the first of them."""
        each: logging.Logger | None = logging.getLogger(record.name)
        handlers: list[logging.Handler] = []
        while each is not None:
            handlers += each.handlers
            each = each.parent if each.propagate else None
        return handlers[:1] == [self] and all(isinstance(handler, _CaptureHandler) for handler in handlers)


def _entry_of(record: logging.LogRecord, worker_id: str) -> LogEntry:
    """Returns a record as a log entry. Does not change the record, because other handlers get it too."""
    msg = record.getMessage()
    if record.exc_info:
        msg = f"{msg}\n{record.exc_text or logging.Formatter().formatException(record.exc_info)}"
    if record.stack_info:
        msg = f"{msg}\n{record.stack_info}"
    if len(msg) > _MAX_MESSAGE:
        msg = f"{msg[:_MAX_MESSAGE]} ... ({len(msg) - _MAX_MESSAGE:,} characters more)"
    msg = redact(msg).encode("utf-8", "replace").decode()  # surrogates cannot be encoded
    timestamp = datetime.fromtimestamp(record.created, UTC)
    caller = f"{record.module}.{record.funcName}:{record.lineno}"
    return LogEntry(worker_id, record.levelname, timestamp, record.name, caller, msg)


class _Registry:
    """The sources of this process, and the handlers of the loggers that they named."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sources: set[_Source] = set()
        self._handlers: dict[str, _CaptureHandler] = {}

    def add(self, source: _Source) -> None:
        """Captures what a worker logs from now on."""
        with self._lock:
            self._sources.add(source)
            for name, level in source.levels.items():
                if name not in self._handlers:
                    self._handlers[name] = _CaptureHandler(name)
                self._handlers[name].add_worker(level if source.sets_levels else None)

    def remove(self, source: _Source) -> None:
        """Stops capturing what a worker logs."""
        with self._lock:
            if source not in self._sources:  # it is that of a worker whose process has forked this one
                return
            self._sources.remove(source)
            for name, level in source.levels.items():
                if self._handlers[name].remove_worker(level if source.sets_levels else None):
                    del self._handlers[name]

    def forget(self) -> None:
        """Forgets all workers in a forked child: their event loops are the parent's, as are locks that threads of it held."""
        self._lock = threading.Lock()
        self._sources.clear()
        for handler in self._handlers.values():
            handler.forget()
        self._handlers.clear()

    def source_of(self, record: logging.LogRecord) -> _Source | None:
        """Returns the worker that logged a record. Takes no lock, because any thread may log at any moment."""
        source = _current_source.get()
        if source is not None:
            return source if source in self._sources else None
        sources = tuple(self._sources)
        # In the thread of the event loop, code outside of the worker logs too.
        return sources[0] if len(sources) == 1 and sources[0].loop_thread != record.thread else None


_registry = _Registry()
forget_in_child(_registry)


def worker_of(record: logging.LogRecord) -> str | None:
    """Returns the worker that logged a record, for a handler that is called with it; None where no worker did."""
    source = _registry.source_of(record)
    return None if source is None else source.worker_id
