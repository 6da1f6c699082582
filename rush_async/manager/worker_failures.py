"""Failed loops and dead workers: each traceback is shown once, by the `join_workers` that waits, else in the log."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager

from rush_async.errors import WorkerLoopError, listed
from rush_async.model import Failure, WorkerExit

__all__ = ["WorkerFailures"]

logger = logging.getLogger(__name__)


class WorkerFailures:
    """The workers of one manager that failed or died, and where the tracebacks were shown.

    Attributes:
        requeued: the workers that died and whose tasks are all queued again: others run them.
    """

    def __init__(self) -> None:
        self.requeued: set[str] = set()
        self._joined: Counter[str] = Counter()
        self._raised: set[str] = set()
        self._unshown: dict[str, WorkerExit] = {}
        self._logged: dict[str, str] = {}  # tracebacks in the log, with the first worker that had them

    def add(self, end: WorkerExit) -> None:
        """Logs the failure of a loop: with its traceback, unless a `join_workers` waits for the worker and will raise it."""
        if self._joined[end.worker_id]:
            self._unshown[end.worker_id] = end
            logger.error("the loop of worker %s failed: %s", end.worker_id, _summary(end))
        else:
            self._log(end)

    @contextmanager
    def joined(self, worker_ids: Sequence[str]) -> Generator[None]:
        """In this block the failures of these workers are raised, by `check`. Those that are not are logged at its end."""
        self._joined.update(worker_ids)
        try:
            yield
        finally:
            self._joined.subtract(worker_ids)
            for worker_id in worker_ids:
                if not self._joined[worker_id] and (end := self._unshown.pop(worker_id, None)) is not None:
                    self._log(end)

    def check(self, exits: Sequence[WorkerExit], *, again: bool = True) -> None:
        """Raises an error if loops failed or workers died.

        Args:
            exits: how the workers ended.
            again: whether also for those for which an error was raised before.

        Raises:
            WorkerLoopError: loops failed or workers died. The message shows each distinct traceback or cause, or says that the
                traceback was logged.
        """
        new = [end for end in exits if again or end.worker_id not in self._raised]
        failed = [end for end in new if end.state == "failed"]
        lost = [end for end in new if end.state == "lost" and end.worker_id not in self.requeued]
        self._raised.update([end.worker_id for end in (*failed, *lost)])
        parts: list[str] = []
        for ends, what in ((failed, "the loops of {} of {} workers failed"), (lost, "{} of {} workers died")):
            by_text: dict[str, list[str]] = {}
            for end in ends:
                by_text.setdefault(self._shown(end), []).append(end.worker_id)
            if ends:
                shown = "\n".join(f"{listed(workers)}:\n{text}" for text, workers in by_text.items())
                parts.append(f"{what.format(len(ends), len(exits))}:\n{shown}")
        if parts:
            raise WorkerLoopError("\n".join(parts))

    def _shown(self, end: WorkerExit) -> str:
        """The text of an end that is raised, and not logged any more."""
        if end.state == "lost":
            return end.failure.message if end.failure else "no cause is known: its process died, or its lease expired"
        self._unshown.pop(end.worker_id, None)
        text = _text(end)
        return f"{_summary(end)} (the log has its traceback)" if text in self._logged else text

    def _log(self, end: WorkerExit) -> None:
        text = _text(end)
        first = self._logged.setdefault(text, end.worker_id)
        if first != end.worker_id:
            text = f"{_summary(end)}, as that of worker {first}"
        logger.error("the loop of worker %s failed: %s", end.worker_id, text)


def _text(end: WorkerExit) -> str:
    failure = end.failure or Failure()
    return failure.traceback or failure.message


def _summary(end: WorkerExit) -> str:
    failure = end.failure or Failure()
    return f"{failure.type}: {failure.message}" if failure.type else failure.message
