"""The public names of the classes in `__all__` that the reference pages do not list."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping

from benchmarks.house.sources import PACKAGE, Function, House, has_fields, parse

__all__ = ["public_classes", "public_names", "unlisted_names"]

_DIRECTIVE = re.compile(rf"^::: {PACKAGE}\.(\w+)\n((?:[ ]+.*\n|\n(?= ))*)", flags=re.MULTILINE)


def unlisted_names(house: House, pages: Mapping[str, str]) -> list[str]:
    """Lists the public names of public classes, attributes of instances included, that no reference page lists.

    A page lists the `members` of a class (all that have a docstring, where it names none), what the docstring of the class
    names as an attribute or argument, and the fields in its signature, those of bases included. A class has what its bases
    list.

    Args:
        house: the sources of the package.
        pages: the reference pages, name -> text.

    Returns:
        `Class.name` of each.
    """
    classes = _classes(house)
    directives = {name: options for page in pages.values() for name, options in _DIRECTIVE.findall(page + "\n")}
    found: list[str] = []
    for public in public_classes(house):
        family = _with_bases(public, classes)
        listed = {name for each in family for name in _listed(each, directives.get(each.name))}
        if public in directives:
            listed |= {name for each in family if has_fields(each) for name in _fields(each)}
        found += [f"{public}.{name}" for name in sorted(public_names(house, public) - listed)]
    return found


def public_classes(house: House) -> list[str]:
    """Lists the classes among the names in `__all__` of the package."""
    classes = _classes(house)
    for node in parse(house["__init__.py"]).body:
        match node:
            case ast.Assign(targets=[ast.Name(id="__all__")], value=value):
                return [name for name in ast.literal_eval(value) if name in classes]
            case _:
                pass
    return []


def public_names(house: House, name: str) -> set[str]:
    """Returns the public names of a class, those of its instances and bases included."""
    family = _with_bases(name, _classes(house))
    return {member for each in family for member, _ in _members(each) if not member.startswith("_")}


def _classes(house: House) -> dict[str, ast.ClassDef]:
    return {node.name: node for source in house.values() for node in parse(source).body if isinstance(node, ast.ClassDef)}


def _with_bases(name: str, classes: Mapping[str, ast.ClassDef]) -> list[ast.ClassDef]:
    if name not in classes:
        return []
    bases = [ast.unparse(base).partition("[")[0].rpartition(".")[2] for base in classes[name].bases]
    return [classes[name], *(each for base in bases for each in _with_bases(base, classes))]


def _members(each: ast.ClassDef) -> Iterator[tuple[str, bool]]:
    """Yields (name, whether it has a docstring) of what a class and its instances have."""
    following = [*each.body[1:], None]
    for node, after in zip(each.body, following, strict=True):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                yield node.name, ast.get_docstring(node) is not None
                for inner in ast.walk(node):
                    match inner:
                        case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                            yield name, False
                        case _:
                            pass
            case ast.ClassDef(name=name):
                yield name, ast.get_docstring(node) is not None
            case ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]):
                yield name, isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            case _:
                pass


def _listed(each: ast.ClassDef, options: str | None) -> set[str]:
    if options is None:
        return set()
    makers = [node for node in each.body if isinstance(node, Function) and node.name == "__init__"]
    docstrings = [ast.get_docstring(node) or "" for node in (each, *makers)]
    listed = set(re.findall(r"^    (\w+)(?: \([^)]*\))?: ", "\n".join(docstrings), flags=re.MULTILINE))
    if "members:" in options:
        return listed | set(re.findall(r"^ +- (\w+)$", options, flags=re.MULTILINE))
    return listed | {name for name, has_docstring in _members(each) if has_docstring}


def _fields(each: ast.ClassDef) -> Iterator[str]:
    for node in each.body:
        match node:
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name
            case _:
                pass
