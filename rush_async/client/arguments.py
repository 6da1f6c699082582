"""Checks of arguments: the error of a wrong one says what to pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Sized
from typing import Any, TypeAlias, TypeVar, cast

from rush_async.config import as_number, as_real, as_seconds
from rush_async.errors import SchemaError
from rush_async.events import EVENT_KINDS
from rush_async.model import TASK_STATES, Failure, Task, TaskState

__all__ = [
    "Schema",
    "as_failures",
    "as_keys",
    "as_number",
    "as_predicate",
    "as_real",
    "as_schema",
    "as_seconds",
    "as_states",
    "as_text",
    "check_kinds",
    "check_lengths",
]

P = TypeVar("P")

Schema: TypeAlias = Mapping[str, Any]
"""Columns that frames always have, with their polars dtypes."""


def as_schema(value: Schema | None) -> dict[str, Any] | None:
    """Returns a copy of a schema, whose dtypes are checked by the first frame; None for an empty one."""
    if value is not None and not isinstance(cast("Any", value), Mapping):
        raise SchemaError(f"the schema {value!r:.80} does not map column names to polars dtypes: give a dict")
    return dict(value) if value else None


def as_text(value: Any, what: str) -> str:
    """Returns a text of at least one character that can be written as UTF-8."""
    if not isinstance(value, str):
        raise TypeError(f"{what} must be a string, not {type(value).__name__}: {value!r:.80}")
    try:
        is_empty = not value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{what} cannot be written as UTF-8: {value!r:.80}: {error.reason}") from None
    if is_empty:
        raise ValueError(f"{what} must have at least one character")
    return value


def as_keys(keys: str | Iterable[str]) -> list[str]:
    """Returns one key or several as a list."""
    if isinstance(keys, str):
        return [keys]
    if isinstance(keys, Task):  # pyright: ignore[reportUnnecessaryIsInstance] - callers need not be typed
        raise TypeError("a task's key is wanted, not the task: write task.key")
    found = list(keys)
    for key in found:
        if not isinstance(key, str):  # pyright: ignore[reportUnnecessaryIsInstance] - callers need not be typed
            raise TypeError(f"a key is a string, not {type(key).__name__}: {key!r:.80}")
    return found


def as_predicate(predicate: P) -> P:
    """Returns a condition on counts, which is a function."""
    if not callable(predicate):
        raise TypeError(
            "the condition is a function of the counts, as in `wait_until(lambda counts: counts.finished >= 100)`, not "
            f"{type(predicate).__name__}: {predicate!r:.80}"
        )
    return predicate


def as_states(states: Sequence[Any]) -> tuple[TaskState, ...]:
    """Returns states of tasks, each once, given one by one or as a list; all states for none."""
    if len(states) == 1 and isinstance(states[0], list | tuple):
        states = cast("Sequence[Any]", states[0])
    for state in states:
        if state not in TASK_STATES:
            raise ValueError(f"{state!r} is no state of a task: choose from {', '.join(TASK_STATES)}")
    return tuple(dict.fromkeys(states)) or TASK_STATES


def as_failures(failures: Any, n: int, what: str) -> list[Failure]:
    """Returns `n` failures from one for all or one for each."""
    if isinstance(failures, Sequence) and not isinstance(failures, str):
        given = cast("Sequence[Any]", failures)
        if n != len(given):
            raise ValueError(f"{n:,} {what} and {len(given):,} failures: give one for each, or a single one for all")
        return [Failure.of(failure) for failure in given]
    return [Failure.of(failures)] * n


def check_kinds(kinds: Iterable[Any]) -> None:
    """Checks that these are kinds of events."""
    for kind in kinds:
        if kind not in EVENT_KINDS:
            known = ", ".join(known.__name__ for known in EVENT_KINDS)
            raise ValueError(f"{kind!r} is no kind of event: choose from {known}")


def check_lengths(what: str, items: Sized, other: str, others: Sized) -> None:
    """Checks that two sequences have the same length."""
    if len(items) != len(others):
        raise ValueError(f"{what} has {len(items):,} entries and {other} has {len(others):,}: give one for each")
