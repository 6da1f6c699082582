"""What a worker loop is: a coroutine function whose first parameter is the worker, with its further arguments."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, cast

__all__ = ["WorkerLoop", "bind_loop"]


@dataclass(frozen=True, slots=True)
class WorkerLoop:
    """A loop with its arguments, ready to be called with a worker.

    Attributes:
        function: the coroutine function.
        arguments: what it is called with beside the worker.
    """

    function: Callable[..., Awaitable[Any]]
    arguments: Mapping[str, Any]

    @property
    def name(self) -> str:
        """What to call it in a message."""
        return name_of(self.function)

    def __call__(self, worker: Any) -> Awaitable[Any]:
        return self.function(worker, **self.arguments)


def name_of(function: object) -> str:
    """The loop's name for a person."""
    function = _core_of(function)
    return getattr(function, "__qualname__", None) or type(function).__qualname__


def bind_loop(
    function: Callable[..., Awaitable[Any]],
    args: Mapping[str, Any] | None,
    further: Mapping[str, Any],
    options: Collection[str] = (),
    *,
    of: str = "start_workers",
) -> WorkerLoop:
    """Checks a loop and its arguments before anything is started.

    Args:
        function: the loop.
        args: its arguments by name.
        further: more of them, given as keywords of the call that starts workers.
        options: the names of that call's own parameters.
        of: the name of that call.

    Raises:
        TypeError: it is not `async def`, an argument is missing or unknown, or a parameter bears the name of an option.
    """
    if not callable(function):
        raise TypeError(f"a worker loop is a coroutine function, not {type(function).__name__}: {function!r:.80}")
    if not _is_async(function):
        if inspect.isasyncgenfunction(_core_of(function)):
            raise TypeError(f"the worker loop {name_of(function)} has a `yield`: it pushes its results, it does not yield them")
        own_name = name_of(function).rpartition(".")[2].replace("<lambda>", "loop")
        raise TypeError(
            f"the worker loop {name_of(function)} is not `async def`: write `async def {own_name}(rush, ...)`, "
            "and in it `await asyncio.to_thread(f, **task.xs)` for an objective that releases the GIL, "
            "`await anyio.to_process.run_sync(...)` for one pure-Python call, or call it directly under on=Processes()"
        )
    arguments = {**(args or {}), **further}
    if twice := sorted(set(args or {}) & set(further)):
        raise TypeError(f"the worker loop's argument {twice[0]!r} is given twice, in args and as a keyword: give it once")
    try:
        signature = inspect.signature(function)
    except ValueError:
        return WorkerLoop(function, arguments)
    for name, parameter in list(signature.parameters.items())[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue  # `*args` takes no argument by that name
        if name in options and name not in (args or {}) and not _is_given(function, name):
            raise TypeError(
                f"the worker loop {name_of(function)} has a parameter {name!r}, which is an option of {of}: "
                f"pass it as args={{{name!r}: ...}} or with functools.partial"
            )
    try:
        signature.bind(object(), **arguments)
    except TypeError as error:
        raise TypeError(
            f"the worker loop {name_of(function)}{signature} cannot be called with {sorted(arguments) or 'no arguments'} "
            f"beside the worker: {error}"
        ) from None
    return WorkerLoop(function, arguments)


def _core_of(function: Any) -> Any:
    while isinstance(function, functools.partial):
        function = cast("Any", function).func
    return function


def _is_given(function: object, name: str) -> bool:
    return isinstance(function, functools.partial) and name in function.keywords


def _is_async(function: object) -> bool:
    function = _core_of(function)
    if isinstance(function, type):
        return False
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004
