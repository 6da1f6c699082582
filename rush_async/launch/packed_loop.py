"""A worker loop packed for another process: as a pickle, or by the name that imports it, with its arguments as msgpack."""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import pickle
import sys
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from types import MethodType
from typing import Any, cast

from rush_async.config import RushConfig
from rush_async.errors import EncodeError, NetworkStateError, RushConfigError
from rush_async.launch.payload import Payload
from rush_async.launch.pickled_code import pickle_with_code
from rush_async.store.codec import decode, encode
from rush_async.worker.loop import WorkerLoop, name_of

__all__ = ["PackedLoop", "check_may_start", "split_name"]


# Whether this thread imports the module of a worker loop, also in the event loops that the module runs.
_is_loading = ContextVar("_is_loading", default=False)


def check_may_start() -> None:
    """Checks that the module of a worker loop starts no workers while a worker imports it: these would start more, without end.

    Raises:
        NetworkStateError: it does.
    """
    if _is_loading.get():
        raise NetworkStateError(
            "workers are started here by the module of a worker loop. Each worker imports it to find the loop, so each would "
            "start more: put what starts the program under `if __name__ == '__main__':`, or the loop into a module of its own"
        )


@dataclass(frozen=True, slots=True)
class PackedLoop:
    """A loop with its arguments, packed.

    Attributes:
        payload: the `WorkerLoop` in the pickle of cloudpickle, or only its arguments in msgpack.
        name: `module:function`, for a loop that is imported by name; None for a pickle.
    """

    payload: Payload
    name: str | None = None

    @classmethod
    def pickled(cls, loop: WorkerLoop, network_id: str, config: RushConfig) -> PackedLoop:
        """Packs a loop as a pickle.

        Raises:
            EncodeError: it cannot be pickled, or is too large.
            RushConfigError: `large_objects_path` cannot be written.
        """
        return cls(Payload.pack(_pickle(loop), network_id, config, f"the worker loop {loop.name} with its arguments"))

    @classmethod
    async def pickled_in_thread(cls, loop: WorkerLoop, network_id: str, config: RushConfig) -> PackedLoop:
        """Like `pickled`, but writes the file in a thread. A cancelled call leaves no file."""
        what = f"the worker loop {loop.name} with its arguments"
        return cls(await Payload.pack_in_thread(_pickle(loop), network_id, config, what))

    @classmethod
    def named(cls, loop: WorkerLoop, network_id: str, config: RushConfig) -> PackedLoop:
        """Packs a loop by its name, with its arguments as values.

        Raises:
            TypeError: the loop has no name that imports it.
            EncodeError: an argument cannot be stored, or they are too large.
            RushConfigError: `large_objects_path` cannot be written.
        """
        name, arguments = _name_and_arguments(loop)
        what = f"the arguments of the worker loop {name}"
        return cls(Payload.pack(encode(arguments, "args"), network_id, config, what), name)

    @classmethod
    def without_arguments(cls, name: str) -> PackedLoop:
        """Packs the loop that `module:function` names, without arguments."""
        content = encode({}, "args")
        return cls(Payload(f"the arguments of the worker loop {name}", len(content), content), name)

    def load(self) -> WorkerLoop:
        """Unpickles or imports the loop. Call it outside of an event loop where possible, because it imports modules.

        Raises:
            DecodeError: the file that holds the payload is missing or was altered.
            RushConfigError: the loop cannot be unpickled or imported here.
        """
        token = _is_loading.set(True)
        try:
            return self._load()
        finally:
            _is_loading.reset(token)

    def _load(self) -> WorkerLoop:
        content = self.payload.unpack()
        if self.name is not None:
            return WorkerLoop(_import(self.name), decode(content))
        try:
            loop: object = pickle.loads(content)
        except Exception as error:
            raise RushConfigError(f"{self.payload.what} cannot be loaded here: {type(error).__name__}: {error}") from error
        if not isinstance(loop, WorkerLoop):
            raise RushConfigError(f"the pickle contains no worker loop but {loop!r:.80}")
        return loop


def split_name(name: str) -> tuple[str, str]:
    """Splits `module:function` into module and function.

    Raises:
        RushConfigError: the text has another form.
    """
    module, _, path = name.partition(":")
    if not module or not path:
        raise RushConfigError(f"{name!r} is not of the form module:function")
    if module.startswith(".") or "/" in module or (module.endswith(".py") and os.path.isfile(module)):
        directory, file = os.path.split(module)
        stem = file.removesuffix(".py").lstrip(".") or "module"
        where = f" in the directory {directory}" if directory not in ("", ".") else ""
        raise RushConfigError(
            f"{name!r} names a file or a relative module, and a loop is imported by the full name of its module: "
            f"write {stem}:{path}{where}"
        )
    return module, path


def _pickle(loop: WorkerLoop) -> bytes:
    try:
        return pickle_with_code(loop)
    except Exception as error:
        raise EncodeError(
            f"the worker loop {loop.name} or one of its arguments cannot be sent to another process: {error}. "
            "Open connections, locks and files in the loop itself, or run it with on=Coroutines()"
        ) from error


# from a loop to its name


def _name_and_arguments(loop: WorkerLoop) -> tuple[str, dict[str, Any]]:
    """Returns the name that imports the loop, and its arguments, with those of `functools.partial`."""
    function: Any = loop.function
    arguments: dict[str, Any] = dict(loop.arguments)
    while isinstance(function, functools.partial):
        partial = cast("functools.partial[Any]", function)
        if partial.args:
            raise TypeError(
                f"the worker loop {loop.name} has positional arguments by functools.partial, and a command takes them by name: "
                "write functools.partial(loop, name=value), or args={...}"
            )
        arguments = {**partial.keywords, **arguments}
        function = partial.func
    return _name_of(function), arguments


def _name_of(function: Any) -> str:
    """Returns the `module:qualname` that imports this very function."""
    module, path = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    remedy = (
        "write it as `async def` at the top of a module that the workers can import, or use worker_command(allow_pickle=True)"
    )
    if not isinstance(module, str) or not isinstance(path, str):
        raise TypeError(f"the worker loop {name_of(function)} has no name that a command could import it by: {remedy}")
    if "<" in path:
        what = "is a lambda" if path.endswith("<lambda>") else "is defined inside another function"
        raise TypeError(f"the worker loop {module}.{path} {what}, and a command imports its loop by name: {remedy}")
    name = _real_name_of_main() if module == "__main__" else module
    if name is None:
        raise TypeError(
            f"the worker loop {path} is defined in the running program (`__main__`: a script or a notebook), which the "
            f"workers cannot import: {remedy}"
        )
    # A second import of the running program would run it again.
    found = _resolve(sys.modules["__main__"] if module == "__main__" else _module_of(name, path), path)
    is_same = found is function or (isinstance(found, MethodType) and isinstance(function, MethodType) and found == function)
    if not is_same:
        other = "nothing" if found is None else f"another object, {found!r:.80}"
        raise TypeError(f"importing {name}:{path} gives {other} instead of the worker loop {function!r:.80}: {remedy}")
    return f"{name}:{path}"


def _real_name_of_main() -> str | None:
    """Returns the name that imports the running program; it has one under `python -m`."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is None or spec.name == "__main__":
        return None
    return spec.name


def _module_of(name: str, path: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise TypeError(
            f"the worker loop {name}:{path} cannot be imported here: {error}. The workers import it by that name"
        ) from error


def _resolve(module: Any, path: str) -> Any:
    found = module
    for step in path.split("."):
        found = getattr(found, step, None)
    return found


# from a name to its loop


def _import(name: str) -> Callable[..., Awaitable[Any]]:
    """Imports what `module:qualname` names."""
    module_name, path = split_name(name)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise _import_failed(module_name, error) from error
        raise RushConfigError(
            f"the worker loop {name} cannot be imported: there is no module {error.name!r} in {os.getcwd()}, from where this "
            f"was started, nor elsewhere in Python's path ({os.pathsep.join(filter(None, sys.path))})"
        ) from None
    except (Exception, SystemExit) as error:
        raise _import_failed(module_name, error) from error
    found = _resolve(module, path)
    if found is None:
        loops = [loop for loop, value in vars(module).items() if inspect.iscoroutinefunction(value)]
        available = f"its coroutine functions are {', '.join(loops[:10])}" if loops else "it has no coroutine function at all"
        where = getattr(module, "__file__", None) or "no file"
        raise RushConfigError(f"the module {module_name} ({where}) has no {path!r}: {available}")
    return found


def _import_failed(module: str, error: BaseException) -> RushConfigError:
    return RushConfigError(f"importing the module {module} failed: {type(error).__name__}: {error}")
