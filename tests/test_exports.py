"""The public names of `rush_async`: which there are, and that they are documented."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Iterator
from typing import Any, ParamSpec, TypeVar

import pytest

import rush_async
from benchmarks.house.reference import public_classes, public_names
from benchmarks.house.sources import read_house

PROMISED = [
    "Rush",
    "RushWorker",
    "RushClient",
    "RushConfig",
    "rsh",
    "rush_plan",
    "current_plan",
    "Plan",
    "run_worker",
    "Coroutines",
    "Processes",
    "Counts",
    "Ranking",
    "Task",
    "TaskState",
    "Failure",
    "WorkerExit",
    "TasksQueued",
    "TasksStarted",
    "TasksFinished",
    "TasksFailed",
    "WorkerStarted",
    "WorkerStopped",
    "WorkerLost",
    "NetworkReset",
    "EventsMissed",
    "RushError",
    "RushConfigError",
    "RushConnectionError",
    "ServerStartError",
    "ServerFullError",
    "WireError",
    "EncodeError",
    "DecodeError",
    "SchemaError",
    "NetworkStateError",
    "WorkerLostError",
    "RushTimeoutError",
    "WorkersNotReadyError",
    "TasksNotDoneError",
    "WorkerLoopError",
]

OF_MODULES = {
    name
    for module in pkgutil.walk_packages(rush_async.__path__, "rush_async.")
    for name in getattr(sys.modules.get(module.name), "__all__", ())
}
# Their constructors are not for users.
MADE_BY_THE_LIBRARY = {"EventStream", "Ranking", "Task", "TaskBlock"}
# A launcher of one's own gets it from `start_workers`, and its parts are the library's.
NOT_FOR_USERS = {"Launch"}

ERRORS: dict[str, tuple[str, type[BaseException]]] = {
    "RushConfigError": ("RushError", ValueError),
    "RushConnectionError": ("RushError", ConnectionError),
    "ServerStartError": ("RushError", Exception),
    "ServerFullError": ("RushError", Exception),
    "WireError": ("RushError", Exception),
    "EncodeError": ("WireError", TypeError),
    "DecodeError": ("WireError", ValueError),
    "SchemaError": ("RushError", ValueError),
    "NetworkStateError": ("RushError", RuntimeError),
    "WorkerLostError": ("RushError", Exception),
    "RushTimeoutError": ("RushError", TimeoutError),
    "WorkersNotReadyError": ("RushTimeoutError", TimeoutError),
    "TasksNotDoneError": ("RushTimeoutError", TimeoutError),
    "WorkerLoopError": ("RushError", Exception),
}


@pytest.mark.parametrize("name", PROMISED)
def test_promised_names_can_be_imported(name: str) -> None:
    assert name in rush_async.__all__
    assert hasattr(rush_async, name)


def signatures(name: str) -> Iterator[tuple[str, Any]]:
    """Yields what annotates a public function, or the public methods, properties and fields of a public class."""
    value = getattr(rush_async, name)
    if inspect.isfunction(value):
        yield name, value
    elif inspect.isclass(value) and name not in NOT_FOR_USERS:
        for each in [each for each in value.__mro__ if each.__module__.startswith("rush_async.")]:
            yield name, each
            for member, found in vars(each).items():
                is_constructor = member == "__init__" and name not in MADE_BY_THE_LIBRARY
                if is_constructor or not member.startswith("_"):
                    function = found.fget if isinstance(found, property) else getattr(found, "__func__", found)
                    if inspect.isfunction(function):
                        yield f"{name}.{member}", function


@pytest.mark.parametrize("name", rush_async.__all__)
def test_every_type_of_a_public_signature_can_be_imported_from_the_package(name: str) -> None:
    missing: set[str] = set()
    for where, annotated in signatures(name):
        module = sys.modules[annotated.__module__]
        for field, annotation in inspect.get_annotations(annotated).items():
            names = {node.id for node in ast.walk(ast.parse(str(annotation), mode="eval")) if isinstance(node, ast.Name)}
            for used in names - set(rush_async.__all__):
                found = getattr(module, used, None)
                is_ours = used in OF_MODULES or (getattr(found, "__module__", None) or "").startswith("rush_async")
                if is_ours and not field.startswith("_") and not isinstance(found, TypeVar | ParamSpec):
                    missing.add(f"{where}: {used}")
    assert missing == set()


def test_all_is_sorted_and_complete() -> None:
    assert rush_async.__all__ == sorted(rush_async.__all__)
    assert len(set(rush_async.__all__)) == len(rush_async.__all__)


@pytest.mark.parametrize("module", sorted(each.name for each in pkgutil.walk_packages(rush_async.__path__, "rush_async.")))
def test_every_module_has_a_docstring_and_exports_only_what_it_defines(module: str) -> None:
    if module.endswith("__main__"):
        return
    loaded = importlib.import_module(module)
    assert loaded.__doc__
    names = getattr(loaded, "__all__", [])
    assert [name for name in names if not hasattr(loaded, name)] == []


@pytest.mark.parametrize("name", rush_async.__all__)
def test_every_public_class_function_and_method_has_a_docstring(name: str) -> None:
    value = getattr(rush_async, name)
    if not (inspect.isclass(value) or inspect.isfunction(value)):
        return  # an alias of a type has no docstring
    own = vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__
    assert own
    assert not own.startswith(f"{name}("), "this is the signature that a dataclass without a docstring shows"
    if inspect.isclass(value):
        methods = {key: each for key, each in inspect.getmembers(value, inspect.isfunction) if not key.startswith("_")}
        ours = {key: each for key, each in methods.items() if (each.__module__ or "").startswith("rush_async")}
        assert [key for key, each in ours.items() if not each.__doc__] == []


def test_the_sources_show_the_public_names_that_classes_have() -> None:
    """`benchmarks.house` reads the sources to compare public names with the reference pages, so it must not overlook one."""
    house = read_house()
    classes = public_classes(house)
    assert {name for name in rush_async.__all__ if inspect.isclass(getattr(rush_async, name))} <= set(classes)
    for name in classes:
        inherited = {each for base in (OSError, tuple) for each in dir(base)}
        shown = {each for each in dir(getattr(rush_async, name)) if not each.startswith("_")}
        assert shown - inherited - public_names(house, name) == set()


@pytest.mark.parametrize("name", ERRORS)
def test_every_error_descends_from_its_parent_and_a_built_in_error(name: str) -> None:
    parent, builtin = ERRORS[name]
    error = getattr(rush_async, name)
    assert issubclass(error, getattr(rush_async, parent))
    assert issubclass(error, builtin)
    assert issubclass(error, rush_async.RushError)


def test_the_version_has_numbers() -> None:
    assert [int(part) for part in rush_async.__version__.split(".")] >= [0, 1, 0]
