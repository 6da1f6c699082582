"""Workers that a command starts, on any machine: how their loop gets there, and the words of the command.

The loop travels by name and its arguments as msgpack, in a *start* that the network keeps. The command names the start by its
digest, so that whoever can write to the database cannot choose what the workers run.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import logging
import os
import pickle
import shlex
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, fields
from types import MethodType
from typing import Any, cast

import cloudpickle  # pyright: ignore[reportMissingTypeStubs]

from rush_async.config import RushConfig, redact_url, without_password
from rush_async.errors import DecodeError, EncodeError, RushConfigError
from rush_async.launch.payload import Parcel, aunwrap, wrap
from rush_async.store.codec import decode, encode
from rush_async.worker.loop import WorkerLoop, bind_loop, name_of

__all__ = ["Command", "Start", "bind", "import_loop", "prepare_command", "read_start"]

logger = logging.getLogger(__name__)

# What of the manager's settings its workers take over; where the server is and its certificates are words of the command.
_SETTINGS = (
    *("heartbeat_period", "heartbeat_expire", "max_loop_stall", "max_record_size"),
    *("connect_timeout", "response_timeout", "retry_deadline", "wait_replicas"),
)
_TLS = {"tls_ca_file": "--tls-ca-file", "tls_cert_file": "--tls-cert-file", "tls_key_file": "--tls-key-file"}


@dataclass(frozen=True, slots=True)
class Command:
    """A command that starts workers.

    Attributes:
        start_id: the name under which the network is to keep `start`.
        start: what the program reads there.
        line: the command, for a POSIX shell.
        parcel: loop and arguments, or the file that they were written to.
    """

    start_id: str
    start: bytes
    line: str
    parcel: Parcel


@dataclass(frozen=True, slots=True)
class Start:
    """What a command is to start.

    Attributes:
        loop: the loop, imported, with its arguments.
        n_workers: how many workers.
        log_levels: the loggers whose records are kept in the network, with their levels.
        settings: fields of `RushConfig`.
    """

    loop: WorkerLoop
    n_workers: int
    log_levels: Mapping[str, str | int] | None
    settings: Mapping[str, Any]


# on the manager's side


def prepare_command(
    loop: WorkerLoop,
    network_id: str,
    config: RushConfig,
    *,
    n_workers: int = 1,
    log_levels: Mapping[str, str | int] | None = None,
    with_password: bool = False,
    allow_pickle: bool = False,
    is_embedded: bool = False,
) -> Command:
    """The command that starts workers elsewhere, and what the network has to keep for it. It is logged without its password.

    Args:
        loop: the loop with its arguments.
        network_id: the network to work in.
        config: the server, and the settings that the workers take over.
        n_workers: how many workers the command starts, in one process.
        log_levels: the loggers whose records are kept in the network, with their levels.
        with_password: whether the command sets `RUSH_URL` with the password; otherwise the environment has to.
        allow_pickle: whether loop and arguments travel as a pickle; the command then says `--allow-pickle`.
        is_embedded: whether the server is an embedded one.

    Raises:
        TypeError: the loop has no name to import it by.
        EncodeError: an argument cannot be stored, or they are too large.
    """
    if n_workers < 1:
        raise ValueError(f"n_workers must be at least 1, not {n_workers}")
    start: dict[str, Any]
    if allow_pickle:
        parcel = wrap(_pickled(loop), network_id, config, f"the worker loop {loop.name} with its arguments")
        start = {"pickle": parcel.as_record(), "python": list(sys.version_info[:2])}
    else:
        name, arguments = _name_and_arguments(loop)
        parcel = wrap(encode(arguments, "args"), network_id, config, f"the arguments of the worker loop {name}")
        start = {"loop": name, "args": parcel.as_record()}
    settings = {field.name: getattr(config, field.name) for field in fields(config) if field.name in _SETTINGS}
    start |= {"n_workers": n_workers, "log_levels": dict(log_levels) if log_levels else None, "settings": settings}
    packed = encode(start, "start")
    start_id = _digest(packed)

    def line(show: Callable[[str], str]) -> str:
        return _command_line(network_id, start_id, config, n_workers, with_password, allow_pickle, show)

    logger.info("workers of network %r are started by: %s", network_id, line(redact_url))
    assert config.url is not None
    if not with_password and without_password(config.url) != config.url:
        logger.info("the command has no password in it: set RUSH_PASSWORD or RUSH_URL where it is run")
    if is_embedded:
        logger.warning(
            "the command works on this machine only, and only while this process or another client of the server lives: "
            "the server is an embedded one. For workers elsewhere, give Rush the URL of a server that they reach"
        )
    return Command(start_id, packed, line(str), parcel)


def _command_line(
    network_id: str,
    start_id: str,
    config: RushConfig,
    n_workers: int,
    with_password: bool,
    allow_pickle: bool,
    show: Callable[[str], str],
) -> str:
    assert config.url is not None
    words = ["--start", start_id]
    if not with_password:
        words += ["--url", without_password(config.url)]
    for field, option in _TLS.items():
        if (value := getattr(config, field)) is not None:
            words += [option, os.fspath(value)]
    if not config.tls_check_hostname:
        words.append("--no-tls-check-hostname")
    words += ["-n", str(n_workers)]
    if allow_pickle:
        words.append("--allow-pickle")
    # One that begins with a dash would be taken for an option.
    words = [*words, "--", network_id] if network_id.startswith("-") else [network_id, *words]
    environment = f"RUSH_URL={shlex.quote(show(config.url))} " if with_password else ""
    return environment + " ".join(shlex.quote(word) for word in ("rush-async", "worker", *words))


def _digest(start: bytes) -> str:
    return hashlib.sha256(start).hexdigest()[:32]


def _pickled(loop: WorkerLoop) -> bytes:
    try:
        return cast("Any", cloudpickle).dumps(loop)
    except Exception as error:
        raise EncodeError(
            f"the worker loop {loop.name} or one of its arguments cannot be pickled: {error}. "
            "Open connections, locks and files in the loop itself"
        ) from error


def _name_and_arguments(loop: WorkerLoop) -> tuple[str, dict[str, Any]]:
    """The name that a loop is imported by, and its arguments, those of `functools.partial` among them."""
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
    """`module:qualname`, which gives this very function when it is imported."""
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
            f"the worker loop {path} is defined in the program that runs (`__main__`: a script or a notebook), which the "
            f"workers cannot import: {remedy}"
        )
    # The program that runs is not imported a second time to see whether it is the same.
    found = _resolve(sys.modules["__main__"] if module == "__main__" else _module_of(name, path), path)
    is_same = found is function or (isinstance(found, MethodType) and isinstance(function, MethodType) and found == function)
    if not is_same:
        other = "nothing" if found is None else f"another object, {found!r:.80}"
        raise TypeError(f"importing {name}:{path} gives {other} instead of the worker loop {function!r:.80}: {remedy}")
    return f"{name}:{path}"


def _real_name_of_main() -> str | None:
    """The name by which the program that runs can be imported; it has one under `python -m`."""
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


# on the workers' side


async def read_start(packed: bytes, start_id: str, *, allow_pickle: bool) -> Callable[[], Start]:
    """Checks a start that the network kept. What it returns imports the loop when it is called.

    Raises:
        DecodeError: it is not the start that the command names, or it is malformed.
        RushConfigError: it holds a pickle and pickles are not allowed, or it is for another version of Python.
    """
    if _digest(packed) != start_id:
        raise DecodeError(
            f"start {start_id} has been altered in the database, so it is not used: "
            "make a new command with worker_command(), and look who writes to this database"
        )
    start: Any = decode(packed)  # written by a manager, as its digest says; if not as expected, then by another version of it
    try:
        n_workers, log_levels, settings = start["n_workers"], start["log_levels"], start["settings"]
        parcel = Parcel.of_record(start["pickle"] if "pickle" in start else start["args"])
        python, name = start.get("python"), start.get("loop")
    except (TypeError, KeyError, ValueError, AttributeError):
        raise DecodeError(f"start {start_id} is malformed: install the manager's rush_async here") from None
    if unknown := sorted(set(settings) - set(_SETTINGS)):
        raise RushConfigError(f"start {start_id} has the unknown setting {unknown[0]!r}: install the manager's rush_async here")
    if "pickle" in start:
        _check_pickle(start_id, python, allow_pickle=allow_pickle)
        body = await aunwrap(parcel)

        def load() -> WorkerLoop:
            return _unpickle(body)

    else:
        arguments = decode(await aunwrap(parcel))

        def load() -> WorkerLoop:
            return bind(import_loop(name), arguments)

    return lambda: Start(load(), n_workers, log_levels, settings)


def _check_pickle(start_id: str, version: list[int], *, allow_pickle: bool) -> None:
    if not allow_pickle:
        raise RushConfigError(
            f"start {start_id} holds a pickle, which runs anything when it is read: say --allow-pickle if you trust its sender"
        )
    if version != list(sys.version_info[:2]):
        raise RushConfigError(
            f"start {start_id} holds a pickle of Python {'.'.join(map(str, version))}, and this is Python "
            f"{sys.version_info[0]}.{sys.version_info[1]}: run the same here, or name the loop instead of pickling it"
        )


def _unpickle(body: bytes) -> WorkerLoop:
    try:
        loop: object = pickle.loads(body)
    except Exception as error:
        raise RushConfigError(f"the pickled worker loop cannot be loaded here: {type(error).__name__}: {error}") from error
    if not isinstance(loop, WorkerLoop):
        raise RushConfigError(f"the pickle holds no worker loop but {loop!r:.80}")
    return loop


def bind(function: Callable[..., Awaitable[Any]], arguments: Mapping[str, Any]) -> WorkerLoop:
    """A loop with its arguments.

    Raises:
        RushConfigError: it is not `async def`, or does not take these arguments.
    """
    try:
        return bind_loop(function, arguments, {}, of="the command")
    except TypeError as error:
        raise RushConfigError(str(error)) from None


def import_loop(name: str) -> Callable[..., Awaitable[Any]]:
    """The object that `module:qualname` names.

    Raises:
        RushConfigError: there is none; the message says what was tried.
    """
    module_name, _, path = name.partition(":")
    if not module_name or not path:
        raise RushConfigError(f"{name!r} names no worker loop: write module:function")
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
        there = f"its coroutine functions are {', '.join(loops[:10])}" if loops else "it has no coroutine function at all"
        where = getattr(module, "__file__", None) or "no file"
        raise RushConfigError(f"the module {module_name} ({where}) has no {path!r}: {there}")
    return found


def _import_failed(module: str, error: BaseException) -> RushConfigError:
    return RushConfigError(f"importing the module {module} failed: {type(error).__name__}: {error}")
