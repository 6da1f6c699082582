"""What workers log: captured where it is said, whoever else listens there, and shown to whoever asks the network for it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rush_async.store.worker_log import LogEntry

if TYPE_CHECKING:
    import polars as pl

__all__ = ["capture", "frame_of_log", "say_again", "speak_as"]

_LONGEST = 64 * 1024  # characters of one message
_OWN = ("rush_async.heartbeat.heartbeat", "rush_async.store.blocking")  # what sends the records cannot be among them

_speaker: ContextVar[str | None] = ContextVar("rush_async worker", default=None)


def speak_as(worker_id: str) -> None:
    """What this task logs from here on, and what it starts, is said by this worker."""
    _speaker.set(worker_id)


@contextmanager
def capture(worker_id: str, levels: Mapping[str, str | int] | None, sink: Callable[[bytes], None]) -> Generator[None]:
    """Hands what a worker logs in this block to `sink`, packed.

    Lowering the level of a logger lets records come into being that others have not seen so far: the handlers that are there
    when the block begins are kept from seeing them. At the end of the last block everything is as it was.

    Args:
        worker_id: who speaks, in the tasks that called `speak_as`; or in a thread, if it is the only worker here.
        levels: the loggers and from which level on; "" and "root" are the root logger.
        sink: takes a packed record, in any thread, and never waits.
    """
    if not levels:
        yield
        return
    wanted = {"" if name == "root" else name: _number(level) for name, level in levels.items()}
    speaker = _Speaker(wanted, sink, threading.get_ident())
    _desk.open(worker_id, speaker)
    try:
        yield
    finally:
        _desk.close(worker_id)


def _number(level: str | int) -> int:
    return logging.getLevelNamesMapping()[level] if isinstance(level, str) else level


@dataclass(frozen=True)
class _Speaker:
    """A worker whose records are captured: from which levels on, where they go, and the thread of its event loop."""

    levels: Mapping[str, int]
    sink: Callable[[bytes], None]
    thread: int

    def logger_for(self, name: str) -> str | None:
        """The captured logger that is nearest to a record's logger."""
        fitting = [each for each in self.levels if not each or name == each or name.startswith(f"{each}.")]
        return max(fitting, key=len, default=None)


class _Ear(logging.Handler):
    """Listens to one logger for all workers of this process."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._of = name

    def createLock(self) -> None:
        self.lock = None  # it shares nothing that would need one

    def emit(self, record: logging.LogRecord) -> None:
        speakers = _desk.speakers
        worker_id = _speaker.get()
        if worker_id is None and len(speakers) == 1:
            # A thread that somebody started without a context of its own.
            ((worker_id, only),) = speakers.items()
            if record.thread == only.thread:
                return  # the event loop's, outside of the worker
        speaker = None if worker_id is None else speakers.get(worker_id)
        # A record passes several loggers on its way up: the nearest that was asked for takes it.
        if worker_id is None or speaker is None or speaker.logger_for(record.name) != self._of:
            return
        if record.levelno >= speaker.levels[self._of] and record.name not in _OWN:
            try:
                speaker.sink(_entry(worker_id, record).packed())
            except Exception:
                self.handleError(record)


def _entry(worker_id: str, record: logging.LogRecord) -> LogEntry:
    """The entry of a record, which stays as it is: others may not have seen it yet."""
    msg = record.getMessage()
    if record.exc_info:
        msg = f"{msg}\n{record.exc_text or logging.Formatter().formatException(record.exc_info)}"
    if record.stack_info:
        msg = f"{msg}\n{record.stack_info}"
    if len(msg) > _LONGEST:
        msg = f"{msg[:_LONGEST]} ... ({len(msg) - _LONGEST:,} characters more)"
    when = datetime.fromtimestamp(record.created, UTC)
    caller = f"{record.module}.{record.funcName}:{record.lineno}"
    return LogEntry(worker_id, record.levelname, when, record.name, caller, _plain(msg))


def _plain(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


class _Shield(logging.Filter):
    """Keeps a handler from records that exist only because a logger's level was lowered."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= _desk.former_level(record.name)


class _Tap:
    """A logger that is listened to: its former level, and the one that it was given."""

    def __init__(self, name: str) -> None:
        self.logger = logging.getLogger(name or None)
        self.former: int = self.logger.level
        self.given: int = self.former
        self.ear = _Ear(name)
        self.logger.addHandler(self.ear)

    def lower(self, level: int) -> None:
        """Lets records from `level` on come into being, and those that did before."""
        self.reset()
        if level < self.logger.getEffectiveLevel():
            self.given = max(level, 1)  # 0 would mean the level of the parent
            self.logger.setLevel(self.given)

    def reset(self) -> None:
        """Gives the logger its level back, unless somebody else has set it meanwhile."""
        if self.logger.level == self.given:
            self.logger.setLevel(self.former)
        else:
            self.former: int = self.logger.level
        self.given: int = self.former

    def end(self) -> None:
        """Listens no more."""
        self.logger.removeHandler(self.ear)
        self.reset()


class _Desk:
    """All that is captured in this process."""

    def __init__(self) -> None:
        self.speakers: dict[str, _Speaker] = {}  # replaced as a whole, for handlers read it in any thread
        self._lock = threading.Lock()
        self._taps: dict[str, _Tap] = {}
        self._shield = _Shield()
        self._shielded: list[logging.Handler] = []

    def open(self, worker_id: str, speaker: _Speaker) -> None:
        with self._lock:
            self._shield_others()
            self.speakers = {**self.speakers, worker_id: speaker}
            self._adjust(speaker.levels)

    def close(self, worker_id: str) -> None:
        with self._lock:
            speaker = self.speakers[worker_id]
            self.speakers = {name: other for name, other in self.speakers.items() if name != worker_id}
            self._adjust(speaker.levels)
            if not self.speakers:
                for handler in self._shielded:
                    handler.removeFilter(self._shield)
                self._shielded.clear()

    def _adjust(self, names: Iterable[str]) -> None:
        for name in names:
            levels = [speaker.levels[name] for speaker in self.speakers.values() if name in speaker.levels]
            if not levels:
                self._taps.pop(name).end()
            else:
                self._taps.setdefault(name, self._taps.get(name) or _Tap(name)).lower(min(levels))

    def _shield_others(self) -> None:
        """Shields the handlers of all loggers that there are now."""
        loggers = [logging.getLogger(), *logging.getLogger().manager.loggerDict.values()]
        handlers = [handler for logger in loggers if isinstance(logger, logging.Logger) for handler in logger.handlers]
        for handler in (*handlers, logging.lastResort):
            if handler is not None and not isinstance(handler, _Ear) and self._shield not in handler.filters:
                handler.addFilter(self._shield)
                self._shielded.append(handler)

    def former_level(self, name: str) -> int:
        """From which level on a logger would have logged, had nobody listened."""
        logger: logging.Logger | None = logging.getLogger(name)
        while logger is not None:
            tap = self._taps.get("" if logger is logging.getLogger() else logger.name)
            level = tap.former if tap is not None and logger.level == tap.given else logger.level
            if level:
                return level
            logger = logger.parent
        return 0


_desk = _Desk()


# reading


def frame_of_log(entries: Sequence[LogEntry], *, time_difference: bool) -> pl.DataFrame:
    """Log entries as a frame: `worker_id`, `level` (String), `timestamp` (Datetime in UTC), `logger`, `caller`, `msg` (String),
    and `time_difference` (Duration, to the worker's record before)."""
    import polars as pl  # takes its time: it is imported for the first frame

    text = pl.String()
    schema: dict[str, Any] = {
        "worker_id": text,
        "level": text,
        "timestamp": pl.Datetime("us", "UTC"),
        "logger": text,
        "caller": text,
        "msg": text,
    }
    frame = pl.DataFrame(entries, schema=schema, orient="row")
    if time_difference:
        return frame.with_columns(time_difference=pl.col("timestamp").diff().over("worker_id"))
    return frame


def say_again(entry: LogEntry) -> None:
    """Passes an entry on through the logger it came from, with its worker in front."""
    logger = logging.getLogger("" if entry.logger == "root" else entry.logger)
    level = logging.getLevelNamesMapping().get(entry.level, logging.INFO)
    where, _, line = entry.caller.rpartition(":")
    number = int(line) if line.isdecimal() else 0
    record = logger.makeRecord(entry.logger, level, where, number, "%s: %s", (entry.worker_id, entry.msg), None, where)
    record.created = entry.timestamp.timestamp()
    record.msecs = entry.timestamp.microsecond / 1000
    logger.handle(record)
