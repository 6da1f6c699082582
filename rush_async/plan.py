"""What holds where code opens clients or starts workers without saying where and how many."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, fields, replace
from operator import index
from types import TracebackType
from typing import Any, cast

from rush_async.config import RushConfig, url_of_environment
from rush_async.errors import NetworkStateError, RushConfigError

__all__ = ["Plan", "PlanBlock", "check_levels", "current_plan", "locate", "resolve_config", "rush_plan"]


@dataclass(frozen=True, slots=True, repr=False)
class Plan:
    """What holds where an argument is left out; None where nothing is set.

    Attributes:
        n_workers: how many workers `start_workers` starts.
        config: the server of clients that are opened without one.
        on: where `start_workers` starts workers.
        log_levels: which loggers of workers are recorded, and from which level on.
        large_objects_path: directory that all workers see, for start arguments that are too large to travel.
        start_worker_timeout: seconds that `wait_for_workers` waits.
    """

    n_workers: int | None = None
    config: RushConfig | None = None
    on: Any = None
    log_levels: Mapping[str, str | int] | None = None
    large_objects_path: str | os.PathLike[str] | None = None
    start_worker_timeout: float | None = None

    def __repr__(self) -> str:
        return f"Plan({self.shown()})"

    def named(self) -> dict[str, Any]:
        """What is set, by name."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def shown(self) -> str:
        """What is set, for a person; passwords are hidden."""
        return ", ".join(f"{name}={value!r}" for name, value in self.named().items())

    def over(self, other: Plan) -> Plan:
        """This plan, and where it sets nothing the other."""
        return replace(other, **self.named())


class _Standing:
    """The plan of the process. A call of `rush_plan` sets it before anybody knows whether a `with` block will follow; entering
    the block takes it back, whatever other threads have called meanwhile."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: list[tuple[Plan, weakref.ref[PlanBlock]]] = []

    @property
    def plan(self) -> Plan:
        calls = self._calls  # replaced as a whole, never changed
        return calls[-1][0] if calls else _NOTHING

    def set(self, plan: Plan, by: PlanBlock) -> None:
        with self._lock:
            # A call whose result nobody holds can never be entered: it stands for good, and what it covers is forgotten.
            settled = max((at for at, (_, block) in enumerate(self._calls) if block() is None), default=0)
            self._calls = [*self._calls[settled:], (plan, weakref.ref(by))]

    def take_back(self, by: PlanBlock) -> None:
        with self._lock:
            self._calls = [call for call in self._calls if call[1]() is not by]

    def unlock(self) -> None:
        """For a forked child: a thread that held the lock is not there."""
        self._lock = threading.Lock()


_NOTHING = Plan()
_of_process = _Standing()
_of_context: ContextVar[Plan] = ContextVar("rush_plan", default=_NOTHING)
os.register_at_fork(after_in_child=_of_process.unlock)


class PlanBlock:
    """What `rush_plan` returns: as a context manager it confines the plan to the block."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._before: Plan | None = None
        self._held: Plan | None = None

    def __repr__(self) -> str:
        return f"rush_plan({self._plan.shown()})"

    def __enter__(self) -> Plan:
        if self._held is not None:
            raise NetworkStateError("a plan is entered once: call rush_plan(...) again for another block")
        _of_process.take_back(self)
        self._before = _of_context.get()
        self._held = self._plan.over(self._before)
        _of_context.set(self._held)
        return current_plan()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # A fixture may be left in another task than it was entered in, where the plan need not hold.
        if self._before is not None and _of_context.get() is self._held:
            _of_context.set(self._before)


def rush_plan(
    *,
    n_workers: int | None = None,
    config: RushConfig | str | None = None,
    on: Any = None,
    log_levels: Mapping[str, str | int] | None = None,
    large_objects_path: str | os.PathLike[str] | None = None,
    start_worker_timeout: float | None = None,
) -> PlanBlock:
    """Sets defaults for code that opens clients or starts workers without them. An argument of such a call wins over the plan.

    Called, the plan holds for the process, in the place of the one before; called with nothing it clears that one. It does no
    I/O: whether the server is there is found out by the first client.

    ```python
    rush_plan(config="redis://host:6379", n_workers=4)
    ```

    In a `with` statement it holds for the block and the current context alone: for this asyncio task, those it starts in the
    block and the threads of `asyncio.to_thread`. The plan of the process stays what it was before. A block changes only what it
    names; the rest comes from the blocks around it and from the plan of the process, which does not win over a block.

    ```python
    with rush_plan(n_workers=2) as plan: ...
    ```

    Args:
        n_workers: how many workers `start_workers` starts.
        config: a URL or a `RushConfig`, for clients that are opened without one; `RUSH_URL` and `REDIS_URL` are then not read.
        on: where `start_workers` starts workers: `Coroutines()`, `Processes(n)`, or a pool with `submit()`.
        log_levels: which loggers of workers are recorded, and from which level on: `{"my.logger": "DEBUG"}`.
        large_objects_path: directory that all workers see, for start arguments over `max_start_args_size`.
        start_worker_timeout: seconds that `wait_for_workers` waits.

    Raises:
        RushConfigError: a value cannot be used.
        TypeError: a value is of the wrong type.
    """
    block = PlanBlock(
        Plan(
            n_workers=None if n_workers is None else _checked_number(n_workers),
            config=_checked_config(config),
            on=_checked_place(on),
            log_levels=check_levels(log_levels),
            large_objects_path=None if large_objects_path is None else _checked_path(large_objects_path),
            start_worker_timeout=None if start_worker_timeout is None else _checked_timeout(start_worker_timeout),
        )
    )
    _of_process.set(block._plan, block)  # pyright: ignore[reportPrivateUsage]
    return block


def current_plan() -> Plan:
    """What holds here and now: the `with rush_plan(...)` blocks around this code over the plan of the process."""
    return _of_context.get().over(_of_process.plan)


# what the values must be


def _checked_number(value: Any) -> int:
    try:
        number = index(value)
    except TypeError:
        raise TypeError(f"n_workers must be a whole number, not {type(value).__name__}: {value!r:.80}") from None
    if number < 1:
        raise RushConfigError(f"n_workers must be at least 1, not {number}")
    return number


def _checked_config(value: Any) -> RushConfig | None:
    if isinstance(value, str):
        return RushConfig(url=value)
    if value is not None and not isinstance(value, RushConfig):
        raise _no_config(value)
    return value


def _checked_place(value: Any) -> Any:
    if isinstance(value, type):
        raise TypeError(f"on is a value, not the class {value.__name__}: write on={value.__name__}()")
    if value is not None and not callable(getattr(value, "launch", None)) and not callable(getattr(value, "submit", None)):
        raise TypeError(f"on is Coroutines(), Processes(n) or a pool with submit(), not {type(value).__name__}: {value!r:.80}")
    return value


def check_levels(value: Any) -> dict[str, str | int] | None:
    """Loggers with their levels, checked.

    Raises:
        RushConfigError: a level is none.
        TypeError: it is no mapping of names to levels.
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


def _checked_timeout(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"start_worker_timeout is a number of seconds, not {type(value).__name__}: {value!r:.80}")
    if not value >= 0:  # nan is not either
        raise RushConfigError(f"start_worker_timeout must be 0 or more seconds, not {value}")
    return value


# where the server is


def resolve_config(config: RushConfig | str | None) -> RushConfig:
    """The configuration meant: an argument wins over the plan, that over `RUSH_URL` and `REDIS_URL`, and these over the
    embedded server. A `RushConfig` without `url` and `data_dir` keeps its settings and takes only an address."""
    return locate(config)[0]


def locate(config: RushConfig | str | None) -> tuple[RushConfig, str | None]:
    """The configuration meant, and where its address came from; None for one from the argument, and for the embedded server."""
    if isinstance(config, str):
        return RushConfig(url=config), None
    if config is not None and not isinstance(config, RushConfig):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise _no_config(config)
    if config is not None and _has_address(config):
        return config, None
    planned = current_plan().config
    if planned is not None and _has_address(planned):
        found = planned if config is None else replace(config, url=planned.url, data_dir=planned.data_dir)
        return found, "rush_plan"
    settings = config or planned or RushConfig()
    url, variable = url_of_environment()
    if url is None:
        return settings, None
    return settings.at(url), f"the environment variable {variable}"


def _has_address(config: RushConfig) -> bool:
    return config.url is not None or config.data_dir is not None


def _no_config(value: object) -> RushConfigError:
    return RushConfigError(f"config is a URL, a RushConfig or None, not {type(value).__name__}")
