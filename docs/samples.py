"""Keeps the samples of the pages equal to the examples that they are taken from.

    python -m docs.samples

The title of a fence names the file of its functions, classes and constants, such as
`title="in examples/random_search.py"`. When an example has changed, the command writes
them into the pages again. A test fails until then.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_SAMPLE = re.compile(
    r'^(?P<indent> *)(?P<open>```python title="in (?P<path>[^"\s]+\.py)"\n)'
    r"(?P<text>.*?)^ *```$",
    flags=re.MULTILINE | re.DOTALL,
)


class SampleError(Exception):
    """A sample cannot be found in the file that its title names."""


def pages() -> list[Path]:
    """The README and the pages of the site."""
    return sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])


def with_samples(page: str, *, root: Path = ROOT) -> str:
    """The page with what the examples have now, under the names that its samples show.

    Raises:
        SampleError: a file or a name is not there.
    """

    def current(sample: re.Match[str]) -> str:
        file = root / sample["path"]
        if not file.is_file():
            raise SampleError(
                f"a sample is from {sample['path']}, which does not exist"
            )
        there = definitions(file.read_text("utf-8"))
        names = list(definitions(textwrap.dedent(sample["text"])))
        if missing := [name for name in names if name not in there]:
            raise SampleError(
                f"{sample['path']} does not define {', '.join(missing)}; "
                f"it defines {', '.join(there)}"
            )
        text = textwrap.indent(
            _joined(list(dict.fromkeys(there[name] for name in names))),
            sample["indent"],
        )
        return f"{sample['indent']}{sample['open']}{text}\n{sample['indent']}```"

    return _SAMPLE.sub(current, page)


def definitions(source: str) -> dict[str, str]:
    """What a module defines at its top level, in order: name -> source, with decorators
    and docstring.
    """
    lines = source.split("\n")
    found: dict[str, str] = {}
    for node in ast.parse(source).body:
        first = min(
            [
                node.lineno,
                *(each.lineno for each in getattr(node, "decorator_list", [])),
            ]
        )
        for name in _names(node):
            found[name] = "\n".join(lines[first - 1 : node.end_lineno])
    return found


def _names(node: ast.stmt) -> Iterable[str]:
    match node:
        case (
            ast.FunctionDef(name=name)
            | ast.AsyncFunctionDef(name=name)
            | ast.ClassDef(name=name)
        ):
            return [name]
        case ast.Assign(targets=targets):
            return [
                each.id
                for target in targets
                for each in ast.walk(target)
                if isinstance(each, ast.Name)
            ]
        case ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
        case _:
            return []


def _joined(pieces: list[str]) -> str:
    text = pieces[0]
    for before, piece in pairwise(pieces):
        # Constants may stand together; around a function or class there are two empty
        # lines.
        text += ("\n\n\n" if _is_block(before) or _is_block(piece) else "\n") + piece
    return text


def _is_block(source: str) -> bool:
    return source.startswith(("@", "def ", "async def ", "class "))


if __name__ == "__main__":
    for page in pages():
        text = page.read_text("utf-8")
        if (new := with_samples(text)) != text:
            page.write_text(new, "utf-8")
            print(f"wrote {page.relative_to(ROOT)}")
