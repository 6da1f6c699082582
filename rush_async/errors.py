"""Everything this library raises on its own account.

Each class is also the built-in that fits it, so `except TimeoutError` works as well as `except RushTimeoutError`:

```
RushError
├── RushConfigError         (ValueError)       a setting, URL, id or name that cannot be used
├── RushConnectionError     (ConnectionError)  the server cannot be reached, or refuses us
├── ServerStartError                           the embedded server did not start
├── ServerFullError                            the server is at its `maxmemory`; nothing was done
├── WireError
│   ├── EncodeError         (TypeError)        a value that cannot travel
│   └── DecodeError         (ValueError)       bytes in the database that are not ours
├── SchemaError             (ValueError)       a value that does not fit the schema asked for
├── NetworkStateError       (RuntimeError)     a client used before opening, after closing or from another event loop
├── WorkerLostError                            this worker was declared lost or killed and is shut out
├── RushTimeoutError        (TimeoutError)
│   ├── WorkersNotReadyError                   the workers waited for did not come up
│   └── TasksNotDoneError                      the tasks waited for did not end
└── WorkerLoopError                            loops of joined workers failed
```
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import islice

__all__ = [
    "DecodeError",
    "EncodeError",
    "NetworkStateError",
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
    "listed",
]


class RushError(Exception):
    """The root of every error of this library."""


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
    """

    def __init__(self, problem: str = "", advice: str = "", *, is_password_refused: bool = False) -> None:
        super().__init__(f"{problem}{advice}")
        self.problem = problem
        self.advice = advice
        self.is_password_refused = is_password_refused


class ServerStartError(RushError):
    """The embedded server did not start."""


class ServerFullError(RushError):
    """The server is at its `maxmemory` and refused to grow.

    Attributes:
        keys: keys of the tasks of the same call that had been written before the server refused; empty unless the call
            was larger than one transaction (1,000 tasks or 1 MiB).
    """

    def __init__(self, message: str, keys: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.keys = list(keys)


class WireError(RushError):
    """A value or record that cannot cross the wire."""


class EncodeError(WireError, TypeError):
    """A value cannot be serialised; the message names its path and type."""


class DecodeError(WireError, ValueError):
    """Bytes in the database that this library did not write, or wrote in another version."""


class SchemaError(RushError, ValueError):
    """A value does not fit the schema a frame was asked for."""


class NetworkStateError(RushError, RuntimeError):
    """A client was used before opening, after closing, or from another event loop or process."""


class WorkerLostError(RushError):
    """This worker was declared lost or was killed: the network shut it out. It may enter again under a new identity."""


class RushTimeoutError(RushError, TimeoutError):
    """Something waited for did not happen in time."""


class WorkersNotReadyError(RushTimeoutError):
    """The workers waited for did not come up."""


class TasksNotDoneError(RushTimeoutError):
    """The tasks waited for did not end.

    Attributes:
        pending: keys of the tasks that had neither finished nor failed.
    """

    def __init__(self, message: str, pending: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.pending = list(pending)


class WorkerLoopError(RushError):
    """Loops of joined workers failed; the message shows each distinct traceback once."""


def listed(names: Collection[str]) -> str:
    """Names in a sentence, the first five of many."""
    return ", ".join(islice(names, 5)) + (", ..." if len(names) > 5 else "")
