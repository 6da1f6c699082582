"""The exit codes of the program `rush-async`, and the errors that lead to them.

| code | means |
|---|---|
| 0 | done |
| 1 | a loop failed, what was looked for is not there or is bad, or a file or the output cannot be written |
| 2 | wrong usage |
| 3 | a worker was killed or declared lost |
| 69 | the server cannot be reached |
| 78 | the configuration is refused, or the network does not exist |
| 130, 143 | ended by SIGINT, SIGTERM |
| 141 | the reader of the output has gone |
"""

from __future__ import annotations

import os

from rush_async.errors import RushConnectionError, RushError, ServerStartError, redact

__all__ = [
    "CLOSED_PIPE",
    "DONE",
    "FAILED",
    "INTERRUPTED",
    "REFUSED",
    "SHUT_OUT",
    "UNREACHABLE",
    "USAGE",
    "CommandError",
    "advice_of",
    "explain",
]

DONE, FAILED, USAGE, SHUT_OUT = 0, 1, 2, 3
UNREACHABLE, REFUSED = 69, 78  # EX_UNAVAILABLE and EX_CONFIG of sysexits.h
INTERRUPTED, CLOSED_PIPE = 130, 141  # as a shell shows SIGINT and SIGPIPE


class CommandError(RushError):
    """A command cannot be carried out. The program prints the message, without a traceback, and ends with the code.

    Args:
        message: what happened and what to do, in one sentence or two.
        code: the exit code.
    """

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(message)
        self.code = code


def explain(error: RushError) -> tuple[int, str]:
    """Returns the exit code that an error leads to, and its message for users of the program."""
    if isinstance(error, CommandError):
        return error.code, redact(str(error))
    if isinstance(error, RushConnectionError):
        return UNREACHABLE, redact(advice_of(error))
    return UNREACHABLE if isinstance(error, ServerStartError) else REFUSED, redact(str(error))


def advice_of(error: RushConnectionError) -> str:
    """Returns what happened to a connection, and what a user of the program can do about it."""
    if not error.advice:
        return str(error)
    if not error.is_password_refused:
        advice = "Start a Redis or Valkey server there, or name another in RUSH_URL or by --url"
    elif os.environ.get("RUSH_PASSWORD") is None:
        advice = "RUSH_PASSWORD is not set in the environment: set it, or write the password into RUSH_URL"
    else:
        advice = "Check RUSH_PASSWORD, or the password in RUSH_URL, which counts first"
    return f"{error.problem}. {advice}"
