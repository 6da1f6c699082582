"""Words of the private language that the package once had, and the field's words to say instead."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import Literal

from benchmarks.house.sources import House, parse

__all__ = ["WORDS", "Word", "old_words"]


@dataclass(frozen=True)
class Word:
    """A word not to use.

    Attributes:
        word: the word or phrase in all its forms, as a regular expression. Names are split into words before: `give_back` and
            `GiveBack` are `give back`.
        say: what to say instead.
        where: everywhere (names, comments, docstrings, names of tests); only in names; only as the whole name of a function,
            class, constant or file, where the word is ordinary English or the field's own elsewhere.
    """

    word: str
    say: str
    where: Literal["everywhere", "names", "definitions"] = "everywhere"

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """What matches whole words of a text of lower-case words."""
        return re.compile(rf"\b(?:{self.word})\b")


WORDS = (
    Word("pulses?|hearts?", "heartbeat, heartbeat thread"),
    Word("crews?", "worker group"),
    Word("residents?", "local workers"),
    Word("(?:un)?settle[sd]?|(?:un)?settling", "register, unregister"),
    Word("parcels?", "payload"),
    Word("(?:un)?wrap", "pack, unpack", "names"),
    Word("orders", "job", "names"),
    Word("obey(?:s|ed|ing)?", "job, or what is done"),
    Word("enter|part", "register, deregister, release leases; in Lua: begin call", "definitions"),
    Word("(?:good ?)?bye", "deregister"),
    Word("leave", "deregister, close; in Lua: commit", "definitions"),
    Word("look", "position", "definitions"),
    Word("found", "create network", "definitions"),
    Word("told", "publish results, or who does what"),
    Word("journals?", "worker log"),
    Word("group", "batcher, request, batch", "definitions"),
    Word("g[ia]ves? back|giving back|given back", "compensate"),
    Word("must arrive|orphans?|is late", "detached"),
    Word("bur(?:y|ies|ied|ying|ials?)", "report as lost"),
    Word("history", "generation", "names"),
    Word("go back|setbacks?", "roll back", "names"),
    Word("ears?|desks?|speakers?", "handler, filter, registry, source"),
    Word("shield", "filter", "names"),
    Word("here", "loop", "names"),
    Word("clock", "loop (the event loop); for time, say which: server_time, monotonic", "names"),
    Word("see through", "run to completion"),
    Word("sooner or later", "retry until reachable"),
    Word("posts?", "message, or what it is", "names"),
    Word("whoever|nobody|somebody", "the subject: the client, the worker, no client ..."),
    Word("what stands|st(?:and|ands|anding|ood) by", "what there is; waits"),
    Word("is said", "the active voice: who says what"),
    Word("goes on", "continues"),
)

_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_LUA_NAMES = re.compile(r"\bfunction\s+([\w.]+)\s*\(|\blocal\s+((?!function\b)\w+(?:\s*,\s*\w+)*)")


@dataclass(frozen=True)
class _Text:
    """What is searched: a comment, a docstring, or a name that the source defines."""

    line: int
    text: str
    kind: Literal["prose", "name", "definition"]


def old_words(house: House, tests: House) -> list[str]:
    """Lists the places where the package, or the name of a test, says a word of `WORDS`.

    Args:
        house: the sources of the package, Python and Lua.
        tests: the sources of the tests.

    Returns:
        `file:line says "..."` and what to say instead, one for each time a word is said.
    """
    found: list[str] = []
    for file, source in house.items():
        own = [_Text(1, PurePosixPath(file).stem, "definition")]
        if file.endswith(".lua"):
            found += _hits(file, [*own, *_texts_in_lua(source)])
        else:
            found += _hits(file, [*own, *_names(source), *_prose(source)])
    for file, source in tests.items():
        names = [_Text(each.line, each.text, "prose") for each in _names(source) if each.text.startswith("test_")]
        found += _hits(f"tests/{file}", names)
    return found


def _hits(file: str, texts: Iterable[_Text]) -> Iterator[str]:
    for each in texts:
        plain = " ".join(re.findall(r"[a-z0-9]+", _CAMEL.sub(" ", each.text).lower()))
        for word in WORDS:
            match word.where, each.kind:
                case ("names" | "definitions", "prose") | ("definitions", "name"):
                    continue
                case "definitions", _:
                    hits = [hit for hit in [word.pattern.fullmatch(plain)] if hit]
                case _:
                    hits = word.pattern.finditer(plain)
            for hit in hits:
                around = plain[max(hit.start() - 30, 0) : hit.end() + 30]
                yield f'{file}:{each.line} says "{hit.group()}" in "{around}": say {word.say}'


def _names(source: str) -> Iterator[_Text]:
    """Yields what a source defines: names that it only uses, or that Python calls itself, are not its own."""
    for node in ast.walk(parse(source)):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                if not name.startswith("__"):
                    yield _Text(node.lineno, name, "definition")
            case ast.arg(arg=name) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield _Text(node.lineno, name, "name")
            case ast.Name(id=name, ctx=ast.Store()):
                yield _Text(node.lineno, name, "definition" if name.isupper() else "name")
            case _:
                pass


def _prose(source: str) -> Iterator[_Text]:
    """Yields comments and docstrings; a docstring has the line where it begins."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield _Text(token.start[0], token.string, "prose")
    for node in ast.walk(parse(source)):
        match node:
            case ast.Expr(value=ast.Constant(value=str(text)), lineno=line):
                yield _Text(line, text, "prose")
            case _:
                pass


def _texts_in_lua(source: str) -> Iterator[_Text]:
    for number, line in enumerate(source.splitlines(), 1):
        code, _, comment = line.partition("--")
        if comment:
            yield _Text(number, comment, "prose")
        for function, names in _LUA_NAMES.findall(code):
            if function:
                yield _Text(number, function.rpartition(".")[2], "definition")
            for name in re.findall(r"\w+", names):
                yield _Text(number, name, "name")
