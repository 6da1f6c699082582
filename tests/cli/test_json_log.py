"""Log records as JSON: one object a line, with the worker that logged it."""

from __future__ import annotations

import json
import logging

import pytest

from rush_async.cli.json_log import JsonFormatter
from rush_async.worker.log_capture import capture


class Sink:
    def log(self, record: bytes) -> None:
        """The network's log is not looked at here."""


def test_a_record_is_one_line_with_worker_and_exception_where_there_are_any(caplog: pytest.LogCaptureFixture) -> None:
    formatter, logger = JsonFormatter("net"), logging.getLogger("my.logger")
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(formatter.format(record))
    logger.addHandler(handler)
    try:
        logger.warning("two\nlines of %s", "redis://:secret@host")
        with capture("owl", None, Sink()):
            try:
                raise ArithmeticError("no\nresult")
            except ArithmeticError:
                logger.exception("it failed")
    finally:
        logger.removeHandler(handler)
    plain, failed = (json.loads(line) for line in lines)
    assert "\n" not in "".join(lines)
    time = plain.pop("time")
    assert (time[10], time[-6:]) == ("T", "+00:00")
    message = "two\nlines of redis://:***@host"
    assert plain == {"level": "WARNING", "logger": "my.logger", "message": message, "network": "net"}
    assert (failed["level"], failed["worker"], failed["message"]) == ("ERROR", "owl", "it failed")
    assert failed["exception"].endswith("ArithmeticError: no\nresult")
