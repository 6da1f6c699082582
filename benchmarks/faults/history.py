"""What clients called and what they were answered, as lines of JSON that a kill of the process cannot tear.

A call is two lines, the call and its end. A call whose end is missing, or says `unknown`, may have been executed or not.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

__all__ = ["Call", "History", "Outcome", "read_history"]

_MOST_WHOLE = 6  # entries of a list that is shown whole

# ok: answered. refused: certainly not executed. unknown: perhaps executed.
Outcome: TypeAlias = Literal["ok", "refused", "unknown"]


@dataclass(slots=True)
class Call:
    """A call of a client.

    Attributes:
        process: the process it was made in.
        n: its number in the history of that process.
        name: what was called.
        given: with what.
        at: when it was called, in seconds since 1970.
        outcome: what became of it.
        got: its answer.
        until: when it ended; None for a call without an end.
        why: what was raised.
    """

    process: str
    n: int
    name: str
    given: dict[str, Any]
    at: float
    outcome: Outcome = "unknown"
    got: Any = None
    until: float | None = None
    why: str = ""

    def about(self, words: Collection[str]) -> str:
        """Returns the call as a line; of long lists, only these words."""
        took = "no end" if self.until is None else f"{(self.until - self.at) * 1000:.1f} ms"
        given = ", ".join(f"{name}={_about(value, words)}" for name, value in self.given.items())
        answer = f"{self.outcome} {_about(self.got, words)} {self.why}".rstrip()
        return f"{self.at:.4f} {self.process}#{self.n} {self.name}({given}) -> {answer} [{took}]"


def _about(value: Any, words: Collection[str]) -> str:
    values: list[Any] = cast("list[Any]", value) if isinstance(value, list) else []
    if len(values) <= _MOST_WHOLE:
        return f"{value!r}"
    named = ", ".join(f"{at}: {each!r}" for at, each in enumerate(values) if each in words)
    return f"[{named} of {len(values)}]"


@dataclass
class History:
    """Writes the history of one process. Each line is one write, so that a kill loses at most an end.

    Args:
        path: the file.
        process: the name of the process; unique.
    """

    path: Path
    process: str
    _n: int = 0
    _file: int = field(default=-1, repr=False)

    def __post_init__(self) -> None:
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def next_number(self) -> int:
        """Returns the number of the next call."""
        self._n += 1
        return self._n

    def begin(self, n: int, name: str, given: dict[str, Any]) -> None:
        """Writes that a call is made."""
        self._write({"n": n, "at": time.time(), "call": name, "given": given})

    def end(self, n: int, outcome: Outcome, got: Any = None, why: str = "") -> None:
        """Writes how a call ended."""
        self._write({"n": n, "at": time.time(), "end": outcome, "got": got, "why": why})

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)

    def _write(self, line: dict[str, Any]) -> None:
        os.write(self._file, json.dumps(line).encode() + b"\n")


def read_history(process: str, lines: Iterable[str]) -> list[Call]:
    """Returns the calls of one process, in their order."""
    calls: dict[int, Call] = {}
    for line in lines:
        entry = json.loads(line)
        if "call" in entry:
            calls[entry["n"]] = Call(process, entry["n"], entry["call"], entry["given"], entry["at"])
        else:
            call = calls[entry["n"]]
            call.outcome, call.got, call.until, call.why = entry["end"], entry["got"], entry["at"], entry["why"]
    return list(calls.values())
