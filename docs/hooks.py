"""What our pages can do beyond MkDocs: show a piece of a program as it stands in the repository, so that no page has a copy.

A line of its own inside a fence names a file, and the functions, classes or constants wanted, in the order wanted:

    {{ examples/random_search.py branin propose }}

With the path alone it takes the whole file. What is not there fails the build, with the page and the name.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

__all__ = ["MissingPieceError", "definitions", "expanded", "is_piece", "on_page_markdown", "with_pieces"]

ROOT = Path(__file__).resolve().parents[1]
_PIECE = re.compile(r"(?P<indent>[ ]*)\{\{ *(?P<path>\S+?)(?P<names>(?: +\w+)*) *\}\}")
_FENCE = re.compile(r" *(?P<fence>`{3,}|~{3,})(?P<words>.*)")


class MissingPieceError(Exception):
    """A page asks for a file, or for a name in it, that is not there."""


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Called by MkDocs for each page."""
    from mkdocs.exceptions import PluginError  # the tests read pages without MkDocs

    try:
        return with_pieces(markdown, page=page.file.src_uri)
    except MissingPieceError as error:
        raise PluginError(str(error)) from None


def with_pieces(markdown: str, *, page: str, root: Path = ROOT) -> str:
    """The page with every `{{ path names }}` inside a fence replaced by the source it names.

    Raises:
        MissingPieceError: a file or a name is not there.
    """
    lines: list[str] = []
    fence = ""
    for line in markdown.split("\n"):
        if fence and is_piece(line):
            lines.append(expanded(line, page=page, root=root))
            continue
        if (mark := _FENCE.fullmatch(line)) is not None:
            if not fence:
                fence = mark["fence"]
            elif mark["fence"].startswith(fence) and not mark["words"].strip():
                fence = ""
        lines.append(line)
    return "\n".join(lines)


def is_piece(line: str) -> bool:
    """Whether a line stands for a piece of a program."""
    return _PIECE.fullmatch(line) is not None


def expanded(text: str, *, page: str, root: Path = ROOT) -> str:
    """What is in a fence, with every line that stands for a piece replaced by it.

    Raises:
        MissingPieceError: a file or a name is not there.
    """
    lines: list[str] = []
    for line in text.split("\n"):
        if (piece := _PIECE.fullmatch(line)) is None:
            lines.append(line)
            continue
        source = _source(root, piece["path"], piece["names"].split(), page)
        lines += [piece["indent"] + each if each else "" for each in source.split("\n")]
    return "\n".join(lines)


def _source(root: Path, path: str, names: list[str], page: str) -> str:
    file = (root / path).resolve()
    if not file.is_relative_to(root.resolve()) or not file.is_file():
        raise MissingPieceError(f"{page} shows {path}, and there is no such file in the repository")
    text = file.read_text("utf-8")
    if not names:
        return text.rstrip("\n")
    found = definitions(text)
    for name in names:
        if name not in found:
            known = ", ".join(found) or "nothing"
            raise MissingPieceError(f"{page} shows {name} of {path}, which defines no such name; it defines {known}")
    pieces = [found[name] for name in names]
    text = pieces[0]
    for before, piece in pairwise(pieces):
        # Constants may stand together; around a function or class there are two empty lines.
        text += ("\n\n\n" if _is_block(before) or _is_block(piece) else "\n") + piece
    return text


def definitions(source: str) -> dict[str, str]:
    """What a module defines at its top level, in order: name -> source, with decorators and docstring."""
    lines = source.split("\n")
    found: dict[str, str] = {}
    for node in ast.parse(source).body:
        first = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", []))])
        for name in _names(node):
            found[name] = "\n".join(lines[first - 1 : node.end_lineno])
    return found


def _names(node: ast.stmt) -> Iterable[str]:
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return [name]
        case ast.Assign(targets=targets):
            return [each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)]
        case ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
        case _:
            return []


def _is_block(source: str) -> bool:
    return source.startswith(("@", "def ", "async def ", "class "))
