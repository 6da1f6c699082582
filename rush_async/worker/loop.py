"""Worker loops: coroutine functions whose first parameter is the worker, bound to their other arguments."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Concatenate, ParamSpec, cast, get_args

from rush_async.errors import did_you_mean
from rush_async.model import StopRule

__all__ = ["WorkerLoop", "bind_loop", "bound", "is_async", "with_worker_class"]

P = ParamSpec("P")

_STOP_RULES = frozenset(get_args(StopRule)) - {"manual"}


@dataclass(frozen=True, slots=True)
class WorkerLoop:
    """A loop and its arguments, as `bound` returns it; call it with a worker.

    Attributes:
        function: the coroutine function.
        arguments: its arguments by name, without the worker.
        worker_class: the class of its workers; None for `RushWorker`.
    """

    function: Callable[..., Awaitable[Any]]
    arguments: Mapping[str, Any]
    worker_class: type[Any] | None = None

    @property
    def name(self) -> str:
        """The loop's name, for messages."""
        return name_of(self.function)

    def __call__(self, worker: Any) -> Awaitable[Any]:
        return self.function(worker, **self.arguments)


def name_of(function: object) -> str:
    """Returns the name of a loop, for messages."""
    function = _unwrapped(function)
    return getattr(function, "__qualname__", None) or type(function).__qualname__


def with_worker_class(loop: WorkerLoop, worker_class: type | None, base: type) -> WorkerLoop:
    """Returns the loop with the class of the workers that run it; None for `base`.

    Raises:
        TypeError: this is no subclass of `base`.
    """
    if worker_class is None:
        return loop
    if not (isinstance(worker_class, type) and issubclass(worker_class, base)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"worker_class is a subclass of {base.__name__}, not {worker_class!r:.80}")
    return replace(loop, worker_class=worker_class)


def bound(loop: Callable[Concatenate[Any, P], Awaitable[Any]], /, *args: P.args, **kwargs: P.kwargs) -> WorkerLoop:
    """Binds a loop to its arguments, which type checkers compare with its parameters.

    What it returns is accepted wherever a loop is:

    ```python
    await rush.start_workers(bound(loop, evals=3), n_workers=4)
    ```

    Args:
        loop: `async def loop(rush: RushWorker, ...)`.
        args: its arguments after the worker.
        kwargs: its arguments by name; names that are options of `start_workers`, too.

    Returns:
        The loop with its arguments.

    Raises:
        TypeError: the loop is not `async def`, or does not take these arguments.
    """
    named: dict[str, Any] = {}
    if args:
        first, *parameters = inspect.signature(loop).parameters.values()
        names = [each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD]
        if len(args) > len(names):
            raise TypeError(f"the worker loop {name_of(loop)} takes {len(names)} arguments after {first.name}, not {len(args)}")
        named = dict(zip(names, args, strict=False))
    return bind_loop(loop, named, kwargs, of="bound")


def bind_loop(
    function: Callable[..., Awaitable[Any]],
    args: Mapping[str, Any] | None,
    further: Mapping[str, Any],
    options: Collection[str] = (),
    *,
    of: str = "start_workers",
) -> WorkerLoop:
    """Checks a loop and its arguments before a worker is started.

    Args:
        function: the loop, perhaps bound already.
        args: its arguments by name.
        further: more of its arguments, given as keywords of the call that starts workers.
        options: the names of that call's own parameters.
        of: the name of that call.

    Returns:
        The loop with its arguments.

    Raises:
        TypeError: the loop is not `async def`, an argument is missing or unknown, or a parameter has the name of an option.
    """
    if isinstance(function, WorkerLoop):
        args = {**function.arguments, **(args or {})}
        return replace(bind_loop(function.function, args, further, options, of=of), worker_class=function.worker_class)
    if not callable(function):
        raise TypeError(f"a worker loop is a coroutine function, not {type(function).__name__}: {function!r:.80}")
    if not is_async(function):
        if inspect.isasyncgenfunction(_unwrapped(function)):
            raise TypeError(f"the worker loop {name_of(function)} has a `yield`: it pushes its results, it does not yield them")
        own_name = name_of(function).rpartition(".")[2].replace("<lambda>", "loop")
        raise TypeError(
            f"the worker loop {name_of(function)} is not `async def`: a loop is `async def loop(rush, ...)`. If {own_name} is "
            "the function to optimise, write a loop that proposes points and calls it in tasks, `async with rush.task(xs, "
            f'budget=100) as task:` and in it `task.ys = {{"y": {own_name}(**xs)}}`. Where it computes, start the loop with '
            f"on=Processes(), or call it as `await asyncio.to_thread({own_name}, **xs)`"
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
            continue  # no argument has the name of `*args` or `**kwargs`
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
            f"beside the worker: {error}{_suggestion(signature, further, options, of)}"
        ) from None
    return WorkerLoop(function, arguments)


def _suggestion(signature: inspect.Signature, further: Mapping[str, Any], options: Collection[str], of: str) -> str:
    """Returns a hint if a keyword looks like a misspelled parameter or option, or like a stop rule, else the empty string."""
    for name in further:
        if name in signature.parameters:
            continue
        own = [parameter for parameter in list(signature.parameters)[1:] if parameter not in further]
        if hint := did_you_mean(name, own, f" in place of {name}"):
            return hint
        if options and name in _STOP_RULES:
            return f"; {name} is a stop rule: the loop, or a manager, calls `await rush.stop_when({name}=...)`"
        if hint := did_you_mean(name, options, f", an option of {of}"):
            return hint
    return ""


def _unwrapped(function: Any) -> Any:
    while isinstance(function, functools.partial):
        function = cast("Any", function).func
    return function


def _is_given(function: object, name: str) -> bool:
    """Whether a `functools.partial` sets this argument by its name."""
    return isinstance(function, functools.partial) and name in function.keywords


def is_async(function: object) -> bool:
    """Returns whether a function is `async def`, also within a `functools.partial` or as the `__call__` of an object."""
    function = _unwrapped(function)
    if isinstance(function, type):
        return False
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004
