"""The goals of the house: a function a row, which reads the sources and names what is in the way."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from benchmarks.house.callables import callable_parameters
from benchmarks.house.reference import unlisted_names
from benchmarks.house.sources import (
    PACKAGE,
    REPOSITORY,
    House,
    doors,
    longest_chain,
    read_house,
    sizes,
    without_test_file,
)
from benchmarks.house.words import old_words

__all__ = ["GOALS", "TO_SOCKET", "Goal", "Measured", "Repository"]


@dataclass(frozen=True)
class Repository:
    """The sources that are measured.

    Attributes:
        root: the checkout.
    """

    root: Path = REPOSITORY

    @cached_property
    def house(self) -> House:
        """The Python of the package."""
        return read_house(self.root / PACKAGE)

    @cached_property
    def lua(self) -> House:
        """The Lua of the package."""
        return read_house(self.root / PACKAGE, ".lua")

    @cached_property
    def tests(self) -> House:
        """The tests, and what helps them."""
        return read_house(self.root / "tests")

    @cached_property
    def reference(self) -> Mapping[str, str]:
        """The reference pages."""
        return read_house(self.root / "docs" / "reference", ".md")


@dataclass(frozen=True)
class Measured:
    """What is true now.

    Attributes:
        value: the figure.
        names: what it counts, or what is in the way of the goal.
    """

    value: int
    names: list[str] = field(default_factory=list[str])

    @classmethod
    def counted(cls, names: list[str]) -> Measured:
        """A figure that is the number of these names."""
        return cls(len(names), names)


@dataclass(frozen=True)
class Goal:
    """One row.

    Attributes:
        name: what is measured.
        most: the goal: the largest value that reaches it.
        limit: the largest value that the tests accept, above the goal while it is not reached. Every step tightens it, none
            raises it.
        measure: measures it from the sources; None where the package has to run.
    """

    name: str
    most: int
    limit: int
    measure: Callable[[Repository], Measured] | None = None


def _largest(at: Repository, most: int, *kinds: type[ast.AST]) -> Measured:
    found = sizes(at.house, *kinds)
    return Measured(found[0][0], [f"{size} {name}" for size, name in found if size > most] or [f"{found[0][0]} {found[0][1]}"])


TO_SOCKET = Goal("files that `push_running_tasks` passes on its way to the socket", 8, 8)

GOALS = (
    Goal("doors at the top of the package (files + folders)", 22, 22, lambda at: Measured.counted(doors(at.house))),
    Goal("longest chain of imports, in modules", 12, 12, lambda at: Measured.counted(longest_chain(at.house))),
    TO_SOCKET,
    Goal("parameters that take something to be called", 25, 25, lambda at: Measured.counted(callable_parameters(at.house))),
    Goal(
        "public names of public classes that the reference does not list",
        0,
        0,
        lambda at: Measured.counted(unlisted_names(at.house, at.reference)),
    ),
    Goal("largest module, in lines of code", 350, 350, lambda at: _largest(at, 350, ast.Module)),
    Goal("largest class, in lines of code", 300, 300, lambda at: _largest(at, 300, ast.ClassDef)),
    Goal("largest function, in lines of code", 50, 50, lambda at: _largest(at, 50, ast.FunctionDef, ast.AsyncFunctionDef)),
    Goal(
        "modules without a test file of their own",
        0,
        0,
        lambda at: Measured.counted(without_test_file(at.house, at.tests)),
    ),
    Goal("old words", 0, 0, lambda at: Measured.counted(old_words({**at.house, **at.lua}, at.tests))),
    # The package began with 9,485, and its rebuild was not to add to them. What users gained since then takes code: stop rules,
    # shared state, reports, workers that fit their machine. Only a commit that adds such a thing may raise the limit.
    Goal(
        "lines of code in the package",
        9_485,
        19_860,
        lambda at: Measured(sum(size for size, _ in sizes(at.house, ast.Module))),
    ),
)
