"""The errors that this library raises.

A class is also the built-in exception that fits it, if there is one: `except TimeoutError` catches a `RushTimeoutError`.

```
RushError
├── RushConfigError         (ValueError)       a setting, URL, id or name that cannot be used
├── RushConnectionError     (ConnectionError)  the server cannot be reached, or refuses us
├── ServerStartError                           the embedded server did not start
├── ServerFullError                            the server's memory or disk is full; nothing was done
├── WireError
│   ├── EncodeError         (TypeError)        a value that cannot be serialised
│   └── DecodeError         (ValueError)       bytes in the database of another program or version
├── SchemaError             (ValueError)       a value that does not fit the schema of a frame
├── NetworkStateError       (RuntimeError)     a client or network that is not in the state for this call
├── NetworkStoppedError                        the network has stopped, and a task without a budget was to start
├── DuplicateError                             every point that unique proposals drew is taken
├── WorkerLostError                            this worker was declared lost or killed; its calls are refused
├── RushTimeoutError        (TimeoutError)
│   ├── WorkersNotReadyError                   workers did not start in time
│   └── TasksNotDoneError                      tasks did not end in time
└── WorkerLoopError                            worker loops failed, or workers died
```
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Collection, Sequence
from itertools import islice
from typing import Any
from urllib.parse import unquote_plus

__all__ = [
    "SECRET_OPTIONS",
    "DecodeError",
    "DuplicateError",
    "EncodeError",
    "NetworkStateError",
    "NetworkStoppedError",
    "RushConfigError",
    "RushConnectionError",
    "RushError",
    "RushTimeoutError",
    "SchemaError",
    "ServerFullError",
    "ServerStartError",
    "TasksNotDoneError",
    "WireError",
    "WorkerIdTakenError",
    "WorkerLoopError",
    "WorkerLostError",
    "WorkersNotReadyError",
    "did_you_mean",
    "explain_arguments",
    "listed",
    "redact",
    "redact_options",
]


class RushError(Exception):
    """The base class of the errors of this library."""


class RushConfigError(RushError, ValueError):
    """A setting, URL, id or name cannot be used."""


class WorkerIdTakenError(RushConfigError):
    """The network knows another worker of this id. Users see it as `RushConfigError`; `launch` tells it apart."""


class RushConnectionError(RushError, ConnectionError):
    """The server cannot be reached, or refuses this client.

    Attributes:
        problem: what happened.
        advice: what to do about it in Python code; the command has advice of its own. It may be empty.
        is_password_refused: whether the server demands a user or password, or refuses the one it got.
        is_final: whether the server cannot come back: an embedded one that has ended.
    """

    def __init__(
        self, problem: str = "", advice: str = "", *, is_password_refused: bool = False, is_final: bool = False
    ) -> None:
        super().__init__(f"{problem}{advice}")
        self.problem = problem
        self.advice = advice
        self.is_password_refused = is_password_refused
        self.is_final = is_final


class ServerStartError(RushError):
    """The embedded server did not start."""


class ServerFullError(RushError):
    """The server is at its `maxmemory`, or cannot write to its disk, and refused a write.

    Attributes:
        keys: the keys of the tasks that the same call had written before the server refused; empty unless the call
            was larger than one transaction (1,000 tasks or 1 MiB).
    """

    def __init__(self, message: str, keys: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.keys = list(keys)


class WireError(RushError):
    """A value cannot be written to the database, or a record cannot be read from it."""


class EncodeError(WireError, TypeError):
    """A value cannot be serialised; the message names its path and type."""


class DecodeError(WireError, ValueError):
    """Bytes in the database were not written by this library, or by another version of it."""


class SchemaError(RushError, ValueError):
    """A value does not fit the schema given for a frame."""


class NetworkStateError(RushError, RuntimeError):
    """A client was used before opening, after closing, or in another event loop or process; or its network refuses the call."""


class NetworkStoppedError(RushError):
    """The network has stopped, and `rush.task(xs)` without a budget has no task to open with. It ends a loop as terminated."""


class DuplicateError(RushError):
    """`proposals(unique=True)` drew only points that the network has, 100 times in a row: the space may be used up."""


class WorkerLostError(RushError):
    """This worker was declared lost or was killed, and the network refuses its calls. A new `RushWorker` may register."""


class RushTimeoutError(RushError, TimeoutError):
    """A condition did not hold in time."""


class WorkersNotReadyError(RushTimeoutError):
    """Workers did not start in time."""


class TasksNotDoneError(RushTimeoutError):
    """Tasks did not end in time.

    Attributes:
        pending: the keys of the tasks that had neither finished nor failed.
    """

    def __init__(self, message: str, pending: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.pending = list(pending)


class WorkerLoopError(RushError):
    """Worker loops failed or workers died; the message shows each distinct traceback or cause of death once. Raised by
    `join_workers`."""


def listed(names: Collection[str]) -> str:
    """Joins names for a sentence: the first five, and `...` if there are more."""
    return ", ".join(islice(names, 5)) + (", ..." if len(names) > 5 else "")


# misspelled arguments

_OTHER_NAMES = {  # under which other libraries know our options
    **dict.fromkeys(("budget", "max_tasks", "n_evals", "n_tasks"), ("finished",)),
    **dict.fromkeys(("executor", "pool", "processes"), ("on",)),
    **dict.fromkeys(("server", "url"), ("config",)),
    **dict.fromkeys(("id", "name"), ("worker_id", "network_id")),
    "timeout": ("seconds",),
}


def did_you_mean(name: str, options: Collection[str], of: str = "") -> str:
    """Returns a hint at the option that may be meant by a name, for the end of a message; the empty string where none may."""
    from difflib import get_close_matches  # takes milliseconds to import, for an error

    close = [other for other in _OTHER_NAMES.get(name, ()) if other in options] or get_close_matches(name, options, n=1)
    return f"; did you mean {close[0]}{of}?" if close else ""


def explain_arguments(owner: type, *names: str) -> None:
    """Makes methods of a class say, where they are called with a keyword that they do not have, which one was meant."""
    for name in names:
        setattr(owner, name, _explaining(owner, name))


def _explaining(owner: type, name: str) -> Any:
    method = vars(owner)[name]

    def explained(error: TypeError, given: Collection[str]) -> TypeError:
        options = list(inspect.signature(method).parameters)[1:]
        for wrong in given:
            if wrong not in options:
                called = owner.__name__ if name == "__init__" else name
                hint = did_you_mean(wrong, options) or f"; it takes {', '.join(options)}"
                return TypeError(f"{called}() got an unexpected keyword argument {wrong!r}{hint}")
        return error

    @functools.wraps(method)
    def checked(*args: Any, **given: Any) -> Any:
        try:
            return method(*args, **given)
        except TypeError as error:
            if (better := explained(error, given)) is error:
                raise
            raise better from None

    @functools.wraps(method)
    async def awaited(*args: Any, **given: Any) -> Any:
        return await checked(*args, **given)

    return awaited if inspect.iscoroutinefunction(method) else checked


# passwords in messages

# Not a port before a path. The limit keeps a long line without spaces from taking long.
_PASSWORD = re.compile(r"(?P<head>://[^/?#@\s:]*:)(?!\d{1,5}[/?#])\S{0,500}(?=@)")
_OPTION = re.compile(r"(?P<head>[?&](?P<name>[^=&#\s]*)=)[^&\s]*")
SECRET_OPTIONS = ("password", "ssl_password", "sentinel_password")


def redact(text: str) -> str:
    """Replaces the password of every URL in a text by `***`."""
    return redact_options(_PASSWORD.sub(r"\g<head>***", text))


def redact_options(text: str) -> str:
    """Replaces the passwords among the options of URLs by `***`."""
    return _OPTION.sub(
        lambda option: option["head"] + "***" if unquote_plus(option["name"]) in SECRET_OPTIONS else option[0], text
    )
