"""The parameters through which a caller passes something to be called: each is an arrow that no import shows."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from benchmarks.house.sources import PACKAGE, Function, House, has_fields, imports_of, module_of, parse

__all__ = ["callable_parameters"]


def callable_parameters(house: House) -> list[str]:
    """Lists the parameters, and the fields of dataclasses and named tuples, that take something to be called.

    These count: an annotation that mentions `Callable`, an alias of it, or a Protocol with `__call__`, also in a union or a
    container; and whatever its annotation, a parameter that the function calls, or keeps in an attribute that its class
    calls. A class to make instances of (`type[T]`, `cls`) does not count. The sources do not show where an owner is passed for
    one of its methods.

    Returns:
        `file:line owner.name` of each.
    """
    types = _callable_types(house)
    found: list[str] = []
    for file, source in house.items():
        names = types[module_of(file)]
        for owner, function, called in _functions(parse(source)):
            found += [
                f"{file}:{arg.lineno} {owner}.{arg.arg}"
                for arg in _arguments(function)
                if _mentions(arg.annotation, names) or (arg.arg in called and not _is_class(arg.annotation))
            ]
        for each in ast.walk(parse(source)):
            if isinstance(each, ast.ClassDef) and has_fields(each):
                called = _called_attributes(each)
                for field in each.body:
                    match field:
                        case ast.AnnAssign(target=ast.Name(id=name), annotation=kind) if "ClassVar" not in ast.unparse(kind):
                            if _mentions(kind, names) or (name in called and not _is_class(kind)):
                                found.append(f"{file}:{field.lineno} {each.name}.{name}")
                        case _:
                            pass
    return found


def _callable_types(house: House) -> dict[str, set[str]]:
    """Returns, for each module, its names for types of something to be called."""
    names: dict[str, set[str]] = {module_of(file): {"Callable"} for file in house}
    before = -1
    while before < (before := sum(map(len, names.values()))):  # until an alias of an alias brings nothing new
        for file, source in house.items():
            own = names[module_of(file)]
            own |= {name for name, node in _aliases(parse(source)) if _mentions(node, own)}
            own |= {each.name for each in ast.walk(parse(source)) if isinstance(each, ast.ClassDef) and _is_callable(each, own)}
            for found in imports_of(file, source):
                if found.library == PACKAGE and len(found.targets) == 2:
                    name = found.targets[0].rpartition(".")[2]
                    if name in names.get(found.targets[1], ()):
                        own |= set(_given_names(parse(source), name))
    return names


def _given_names(tree: ast.Module, name: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.alias) and node.name == name:
            yield node.asname or name


def _aliases(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    for node in ast.walk(tree):
        match node:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=kind, value=ast.expr() as value):
                if "TypeAlias" in ast.unparse(kind):
                    yield name, value
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Subscript() | ast.BinOp() | ast.Name() as value):
                yield name, value
            case ast.ImportFrom(names=aliases):
                for alias in aliases:
                    if alias.asname and alias.name == "Callable":
                        yield alias.asname, ast.Name(alias.name)
            case _:
                pass


def _is_callable(each: ast.ClassDef, names: set[str]) -> bool:
    bases = {ast.unparse(base).partition("[")[0].rpartition(".")[2] for base in each.bases}
    has_call = any(isinstance(node, Function) and node.name == "__call__" for node in each.body)
    return "Protocol" in bases and (has_call or bool(bases & (names - {"Callable"})))


def _mentions(annotation: ast.expr | None, names: set[str]) -> bool:
    if annotation is None:
        return False
    for node in ast.walk(annotation):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) if name in names:
                return True
            case ast.Constant(value=str(text)) if text.isprintable() and _mentions(_parsed(text), names):
                return True
            case _:
                pass
    return False


def _parsed(text: str) -> ast.expr | None:
    try:
        return ast.parse(text, mode="eval").body
    except SyntaxError:
        return None  # a word of a `Literal`


def _is_class(annotation: ast.expr | None) -> bool:
    return annotation is not None and ast.unparse(annotation).partition("[")[0] in {"type", "type | None"}


def _arguments(function: Function) -> list[ast.arg]:
    args = function.args
    more = [arg for arg in (args.vararg, args.kwarg) if arg is not None]
    return [arg for arg in (*args.posonlyargs, *args.args, *args.kwonlyargs, *more) if arg.arg not in {"self", "cls"}]


def _functions(tree: ast.Module) -> Iterator[tuple[str, Function, set[str]]]:
    """Yields (name with its class, function, the parameters that are called) of each function."""
    owners = {
        function: each
        for each in ast.walk(tree)
        if isinstance(each, ast.ClassDef)
        for function in each.body
        if isinstance(function, Function)
    }
    for function in ast.walk(tree):
        if not isinstance(function, Function):
            continue
        called = {node.func.id for node in ast.walk(function) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
        owner = owners.get(function)
        if owner is None:
            yield function.name, function, called
        else:
            kept = _called_attributes(owner)
            called |= {name for attribute, name in _kept(function) if attribute in kept}
            yield f"{owner.name}.{function.name}", function, called


def _called_attributes(each: ast.ClassDef) -> set[str]:
    """Returns the attributes of itself that a class calls and does not define as methods."""
    methods = {node.name for node in each.body if isinstance(node, Function)}
    found: set[str] = set()
    for node in ast.walk(each):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="self"), attr=name)):
                found.add(name)
            case _:
                pass
    return found - methods


def _kept(function: Function) -> Iterator[tuple[str, str]]:
    for node in ast.walk(function):
        match node:
            case ast.Assign(targets=[ast.Attribute(value=ast.Name(id="self"), attr=attribute)], value=ast.Name(id=name)):
                yield attribute, name
            case _:
                pass
