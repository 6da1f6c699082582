"""The plan: defaults for code that opens clients or starts workers without naming a server or a number of workers."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from contextvars import ContextVar, Token
from dataclasses import dataclass, fields, replace
from types import TracebackType
from typing import Any, cast

from rush_async.config import (
    RushConfig,
    as_number,
    as_seconds,
    with_address_of_environment,
    with_data_dir,
    with_settings_of_environment,
)
from rush_async.errors import NetworkStateError, RushConfigError

__all__ = ["Plan", "PlanBlock", "check_levels", "current_plan", "locate", "resolve_config", "rush_plan"]


@dataclass(frozen=True, slots=True, repr=False)
class Plan:
    """The defaults of arguments that are left out; None where the plan sets none.

    Attributes:
        n_workers: how many workers `start_workers` starts.
        config: the server of clients that are opened without one.
        on: where `start_workers` starts workers.
        log_levels: the loggers of workers whose records are kept, with their levels.
        large_objects_path: directory that all workers see, for start arguments over `max_start_args_size`.
        start_worker_timeout: seconds that `wait_for_workers` waits.
    """

    n_workers: int | None = None
    config: RushConfig | None = None
    on: Any = None
    log_levels: Mapping[str, str | int] | None = None
    large_objects_path: str | os.PathLike[str] | None = None
    start_worker_timeout: float | None = None

    def __repr__(self) -> str:
        return f"Plan({_arguments(self)})"


def _values(plan: Plan) -> dict[str, Any]:
    """Returns the values that a plan sets, by name."""
    values = {field.name: getattr(plan, field.name) for field in fields(plan)}
    return {name: value for name, value in values.items() if value is not None}


def _arguments(plan: Plan) -> str:
    """Writes the values that a plan sets as arguments of a call, with passwords hidden."""
    return ", ".join(f"{name}={value!r}" for name, value in _values(plan).items())


def _complete(plan: Plan, other: Plan) -> Plan:
    """Completes a plan by the values of another, where it sets none itself."""
    return replace(other, **_values(plan))


_NO_PLAN = Plan()
_MOST_CALLS = 1_000  # calls that may still be entered; older ones are forgotten

_context_plan: ContextVar[Plan] = ContextVar("rush_plan", default=_NO_PLAN)


class PlanBlock:
    """The result of `rush_plan`: as a context manager it limits the plan to its block.

    Attributes:
        plan: the plan that the call set.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._token: Token[Plan] | None = None

    def __repr__(self) -> str:
        return f"rush_plan({_arguments(self.plan)})"

    def __enter__(self) -> Plan:
        if self._token is not None:
            raise NetworkStateError("a plan is entered once: call rush_plan(...) again for another block")
        with suppress(ValueError):  # forgotten after _MOST_CALLS later calls
            _process_calls.remove(self)
        self._token = _context_plan.set(_complete(self.plan, _context_plan.get()))
        return current_plan()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # A fixture may exit in another asyncio task than it entered in; the plan never held in that task.
        with suppress(ValueError):
            _context_plan.reset(cast("Token[Plan]", self._token))


# A call appends its plan and entering the block removes it again; the last one is the plan of the process. Each step is atomic,
# so blocks that several threads enter at once leave nothing behind.
_process_calls: deque[PlanBlock] = deque(maxlen=_MOST_CALLS)


def rush_plan(
    *,
    n_workers: int | None = None,
    config: RushConfig | str | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    on: Any = None,
    log_levels: Mapping[str, str | int] | None = None,
    large_objects_path: str | os.PathLike[str] | None = None,
    start_worker_timeout: float | None = None,
) -> PlanBlock:
    """Sets defaults for code that opens clients or starts workers without them. An argument of such a call wins over the plan.

    A call sets the plan of the process and replaces the one before; a call without arguments clears it. It does no I/O: the
    first client finds out whether the server answers.

    ```python
    rush_plan(config="redis://host:6379", n_workers=4)
    ```

    In a `with` statement the plan holds for the block in the current context: in this asyncio task, in the tasks that it
    starts in the block, and in the threads of `asyncio.to_thread`. Entering the block restores the plan of the process that the
    call replaced. A block changes only the values that it names; the others come from the blocks around it, then from the plan
    of the process.

    ```python
    with rush_plan(n_workers=2) as plan: ...
    ```

    Args:
        n_workers: how many workers `start_workers` starts.
        config: a URL or a `RushConfig`, for clients that are opened without one; the variables `RUSH_URL`, `REDIS_URL` and
            `RUSH_DATA_DIR` are then not read.
        data_dir: a directory where the embedded server keeps its data, instead of a `config`.
        on: where `start_workers` starts workers: `Coroutines()`, `Processes(n)`, or a pool with `submit()`.
        log_levels: the loggers of workers whose records are kept, with their levels: `{"my.logger": "DEBUG"}`.
        large_objects_path: directory that all workers see, for start arguments over `max_start_args_size`.
        start_worker_timeout: seconds that `wait_for_workers` waits.

    Returns:
        A context manager, to be entered at most once; it yields the plan that holds in the block.

    Raises:
        RushConfigError: a value cannot be used.
        TypeError: a value is of the wrong type.
    """
    try:
        number = None if n_workers is None else as_number(n_workers, "n_workers")
        seconds = as_seconds(start_worker_timeout, "start_worker_timeout")
    except ValueError as error:
        raise RushConfigError(str(error)) from None
    if number == 0:
        raise RushConfigError("n_workers must be at least 1, not 0")
    block = PlanBlock(
        Plan(
            n_workers=number,
            config=_checked_config(config, data_dir),
            on=_checked_place(on),
            log_levels=check_levels(log_levels),
            large_objects_path=None if large_objects_path is None else _checked_path(large_objects_path),
            start_worker_timeout=seconds,
        )
    )
    _process_calls.append(block)
    return block


def current_plan() -> Plan:
    """Returns the plan that holds for the calling code: that of the blocks around it, completed by the plan of the process."""
    return _complete(_context_plan.get(), _process_plan())


def _process_plan() -> Plan:
    try:
        return _process_calls[-1].plan
    except IndexError:
        return _NO_PLAN


# checks of the values


def _checked_config(value: Any, data_dir: str | os.PathLike[str] | None = None) -> RushConfig | None:
    if value is not None and not isinstance(value, RushConfig | str):
        raise _no_config(value)
    if data_dir is not None:
        return with_data_dir(value, data_dir)
    return with_settings_of_environment(RushConfig(url=value)) if isinstance(value, str) else value


def _checked_place(value: Any) -> Any:
    if isinstance(value, type):
        raise TypeError(f"on is a value, not the class {value.__name__}: write on={value.__name__}()")
    if value is not None and not callable(getattr(value, "launch", None)) and not callable(getattr(value, "submit", None)):
        raise TypeError(f"on is Coroutines(), Processes(n) or a pool with submit(), not {type(value).__name__}: {value!r:.80}")
    return value


def check_levels(value: Any) -> dict[str, str | int] | None:
    """Checks loggers and their levels.

    Returns:
        A copy of the mapping; None for None.

    Raises:
        RushConfigError: `logging` does not know a level.
        TypeError: the value is no mapping of names to levels.
    """
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise TypeError(f"log_levels maps loggers to levels, {{'my.logger': 'DEBUG'}}; it is not {type(value).__name__}")
    levels = dict(cast("Mapping[Any, Any]", value))
    known = logging.getLevelNamesMapping()
    for name, level in levels.items():
        if not isinstance(name, str):
            raise TypeError(f"log_levels: the name of a logger is a string, not {type(name).__name__}: {name!r:.80}")
        if isinstance(level, bool) or not isinstance(level, str | int):
            raise TypeError(f"log_levels: the level of {name!r} is a name or a number, not {type(level).__name__}")
        if isinstance(level, str) and level not in known:
            raise RushConfigError(f"log_levels: {level!r} of {name!r} is no level: it is one of {', '.join(known)}")
    return levels


def _checked_path(value: Any) -> str | os.PathLike[str]:
    given = cast("object", value)
    path = os.fspath(cast("os.PathLike[str]", given)) if isinstance(given, os.PathLike) else given
    if not isinstance(path, str):
        raise TypeError(f"large_objects_path is a str or a Path, not {type(value).__name__}: {value!r:.80}")
    if not path or "\0" in path:
        raise RushConfigError(f"large_objects_path names no directory: {path!r}")
    return value


# the address of the server


def resolve_config(config: RushConfig | str | None, data_dir: str | os.PathLike[str] | None = None) -> RushConfig:
    """Returns the configuration of a client: see `locate`."""
    return locate(config, data_dir)[0]


def locate(config: RushConfig | str | None, data_dir: str | os.PathLike[str] | None = None) -> tuple[RushConfig, str | None]:
    """Finds the configuration of a client that is opened with `config`, or with a `data_dir` instead.

    The argument wins over the plan, the plan over `RUSH_URL`, that over `REDIS_URL`, that over `RUSH_DATA_DIR`, and that over
    the private embedded server. A `RushConfig` without `url` and `data_dir` keeps its settings and takes only the address from
    the plan or the environment; without one the other settings are those of the environment.

    Returns:
        The configuration, and where its address came from: None for the argument and for the embedded server.

    Raises:
        RushConfigError: `config` or an environment variable cannot be used.
    """
    config = _checked_config(config, data_dir)
    if config is not None and _has_address(config):
        return config, None
    planned = current_plan().config
    if planned is not None and _has_address(planned):
        found = planned if config is None else replace(config, url=planned.url, data_dir=planned.data_dir)
        return found, "rush_plan"
    settings = config or planned or with_settings_of_environment(RushConfig())
    found, variable = with_address_of_environment(settings)
    return found, None if variable is None else f"the environment variable {variable}"


def _has_address(config: RushConfig) -> bool:
    return config.url is not None or config.data_dir is not None


def _no_config(value: object) -> RushConfigError:
    return RushConfigError(f"config is a URL, a RushConfig or None, not {type(value).__name__}")
