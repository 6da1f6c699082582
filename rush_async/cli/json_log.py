"""Log records as JSON, one object a line, for what gathers the output of programs."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any

from rush_async.errors import redact
from rush_async.worker.log_capture import worker_of

__all__ = ["JsonFormatter"]


class JsonFormatter(logging.Formatter):
    """Formats a record as a JSON object: time (ISO 8601, UTC), level, logger, message and network; worker and exception where
    there are any. Passwords in URLs become `***`.

    Args:
        network_id: the network of the program.
    """

    def __init__(self, network_id: str) -> None:
        super().__init__()
        self._network_id = network_id

    def format(self, record: logging.LogRecord) -> str:
        """Returns the object in one line."""
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": redact(record.getMessage()),
            "network": self._network_id,
        }
        if (worker_id := worker_of(record)) is not None:
            entry["worker"] = worker_id
        if record.exc_info:
            entry["exception"] = redact(record.exc_text or self.formatException(record.exc_info))
        return json.dumps(entry)
