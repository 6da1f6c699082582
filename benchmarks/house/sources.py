"""The sources of the package: its files, what they import, and how many lines of code they have."""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

__all__ = [
    "PACKAGE",
    "REPOSITORY",
    "Function",
    "House",
    "Import",
    "code_lines",
    "doors",
    "has_fields",
    "imports_of",
    "lines",
    "longest_chain",
    "module_of",
    "own_imports",
    "parse",
    "read_house",
    "sizes",
    "without_test_file",
]

PACKAGE = "rush_async"
REPOSITORY = Path(__file__).parents[2]

# A file of the package, Python or Lua, by its path below the package -> its source.
House = Mapping[str, str]

Function = ast.FunctionDef | ast.AsyncFunctionDef

_NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


def read_house(root: Path = REPOSITORY / PACKAGE, *endings: str) -> dict[str, str]:
    """Reads the files with these endings below a folder; those of Python where no ending is given."""
    paths = sorted(path for path in root.rglob("*") if path.suffix in (endings or (".py",)))
    return {path.relative_to(root).as_posix(): path.read_text("utf-8") for path in paths}


@lru_cache(maxsize=1_000)
def parse(source: str) -> ast.Module:
    """Parses a source; several measurements share the tree, so none may change it."""
    return ast.parse(source)


def module_of(file: str) -> str:
    """`store/codec.py` is `rush_async.store.codec`, `store/__init__.py` is `rush_async.store`."""
    parts = PurePosixPath(file).with_suffix("").parts
    return ".".join((PACKAGE, *(parts[:-1] if parts[-1] == "__init__" else parts)))


def has_fields(each: ast.ClassDef) -> bool:
    """Tells whether a class is a dataclass or a named tuple, whose annotated names are its parameters."""
    marks = [*each.decorator_list, *each.bases]
    return any("dataclass" in ast.unparse(mark) or "NamedTuple" in ast.unparse(mark) for mark in marks)


# Imports


@dataclass(frozen=True)
class Import:
    """One import of a file.

    Attributes:
        line: its line.
        targets: what it may mean, the longest first: `from a import b` is `a.b` where that is a module, else `a`.
        eager: whether importing the file executes it (not in a function, not for the type checker alone).
    """

    line: int
    targets: tuple[str, ...]
    eager: bool

    @property
    def library(self) -> str:
        """The top-level package."""
        return self.targets[0].partition(".")[0]


class _Imports(ast.NodeVisitor):
    def __init__(self, file: str) -> None:
        module = module_of(file)
        self._package = module if file.endswith("__init__.py") else module.rpartition(".")[0]
        self._eager = True
        self.found: list[Import] = []

    def _lazily(self, nodes: list[ast.stmt]) -> None:
        before, self._eager = self._eager, False
        for node in nodes:
            self.visit(node)
        self._eager = before

    def visit_FunctionDef(self, node: Function) -> None:
        for outside in (*node.decorator_list, node.args):
            self.visit(outside)
        self._lazily(node.body)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test).rpartition(".")[2] != "TYPE_CHECKING":
            self.generic_visit(node)
            return
        self._lazily(node.body)
        for other in node.orelse:
            self.visit(other)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._add(node.lineno, alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = node.module or ""
        if node.level:
            parents = self._package.split(".")
            parents = parents[: len(parents) - node.level + 1]
            base = ".".join([*parents, base] if base else parents)
        for alias in node.names:
            self._add(node.lineno, f"{base}.{alias.name}", base)

    def visit_Call(self, node: ast.Call) -> None:
        name = ast.unparse(node.func).rpartition(".")[2]
        if name in {"import_module", "__import__"} and node.args:
            match node.args[0]:
                case ast.Constant(value=str(target)):
                    self._add(node.lineno, target)
                case _:
                    pass
        self.generic_visit(node)

    def _add(self, line: int, *targets: str) -> None:
        self.found.append(Import(line, targets, self._eager))


def imports_of(file: str, source: str) -> list[Import]:
    """Lists every import of a file, those in functions and for the type checker included."""
    visitor = _Imports(file)
    visitor.visit(parse(source))
    return visitor.found


def own_imports(house: House) -> Iterator[tuple[str, Import, str]]:
    """Yields (file, import, imported module) for each import of a module of the package."""
    modules = {module_of(file) for file in house}
    for file, source in house.items():
        for found in imports_of(file, source):
            if found.library == PACKAGE:
                yield file, found, next((target for target in found.targets if target in modules), found.targets[-1])


def longest_chain(house: House) -> list[str]:
    """Returns the modules of the longest chain of imports, the importing one first; a circle is cut where it closes."""
    graph: dict[str, set[str]] = {module_of(file): set() for file in house}
    for file, _, target in own_imports(house):
        if target in graph and target != module_of(file):
            graph[module_of(file)].add(target)
    chains: dict[str, list[str]] = {}

    def chain_from(module: str, above: frozenset[str]) -> list[str]:
        if module not in chains:
            below = [chain_from(target, above | {module}) for target in sorted(graph[module] - above)]
            chains[module] = [module, *max([[], *below], key=len)]
        return chains[module]

    return max([[], *[chain_from(module, frozenset()) for module in graph]], key=len)


# Files, lines and sizes


def doors(house: House) -> list[str]:
    """Lists the files and folders at the top of the package."""
    return sorted({PurePosixPath(file).parts[0] for file in house})


def lines(house: House) -> int:
    """Counts all lines, blank ones and comments included."""
    return sum(len(source.splitlines()) for source in house.values())


def code_lines(source: str) -> set[int]:
    """Returns the numbers of the lines that hold code: no blank lines, comments and docstrings."""
    found: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _NO_CODE:
            found.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(parse(source)):
        match node:
            case ast.Expr(value=ast.Constant(value=str()), lineno=start, end_lineno=int(end)):
                found.difference_update(range(start, end + 1))
            case _:
                pass
    return found


def sizes(house: House, *kinds: type[ast.AST]) -> list[tuple[int, str]]:
    """Returns (lines of code, name) of each module, class or function, the largest first.

    Args:
        house: the sources.
        kinds: `ast.Module`, `ast.ClassDef`, or the two kinds of functions.
    """
    found: list[tuple[int, str]] = []
    for file, source in house.items():
        code = code_lines(source)
        for node in ast.walk(parse(source)):
            if not isinstance(node, kinds):
                continue
            if isinstance(node, Function | ast.ClassDef):
                within = range(node.lineno, (node.end_lineno or node.lineno) + 1)
                found.append((len(code.intersection(within)), f"{file}:{node.lineno} {node.name}"))
            elif isinstance(node, ast.Module):
                found.append((len(code), file))
    return sorted(found, key=lambda size: (-size[0], size[1]))


def without_test_file(house: House, tests: House) -> list[str]:
    """Lists the modules without a test file of their own: `a/b.py` is tested by `a/test_b.py`.

    An `__init__.py` or `__main__.py` that defines something is tested by `a/test_a.py` or `test_a.py`; others need no test.

    Args:
        house: the sources of the package.
        tests: the sources of the tests, by their paths below `tests/`.
    """
    missing: list[str] = []
    for file, source in house.items():
        path = PurePosixPath(file)
        mirrors = [path.with_name(f"test_{path.name}")]
        if path.stem in {"__init__", "__main__"}:
            if not any(isinstance(node, Function | ast.ClassDef) for node in parse(source).body):
                continue
            name = f"test_{path.parent.name or path.stem.strip('_')}.py"
            mirrors = [path.with_name(name), path.parent.parent / name]
        if not any("def test_" in tests.get(mirror.as_posix(), "") for mirror in mirrors):
            missing.append(f"{file} has no tests/{mirrors[0]}")
    return missing
