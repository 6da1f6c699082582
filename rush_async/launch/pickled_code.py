"""Pickles whose functions keep the file and the source lines of their code, so that tracebacks elsewhere show both."""

from __future__ import annotations

import io
import linecache
from collections import ChainMap
from types import CodeType
from typing import Any, ClassVar, cast

import cloudpickle  # pyright: ignore[reportMissingTypeStubs]

__all__ = ["pickle_with_code"]

_CloudPickler = cast("Any", cloudpickle).CloudPickler


def pickle_with_code(value: object) -> bytes:
    """Pickles a value as cloudpickle does. What it pickles by value, from a script or a notebook, keeps its file and lines.

    Only the lines of the functions themselves travel: the rest of a script may contain a password.
    """
    with io.BytesIO() as file:
        _Pickler(file).dump(value)
        return file.getvalue()


def _reduce_code(code: CodeType) -> tuple[object, ...]:
    _, arguments = _CloudPickler.dispatch_table[CodeType](code)
    ends = [end for _, end, _, _ in code.co_positions() if end is not None]
    lines = linecache.getlines(code.co_filename)[code.co_firstlineno - 1 : max(ends, default=0)]
    return _restore_code, (arguments, code.co_filename, code.co_firstlineno, lines)


class _Pickler(_CloudPickler):
    dispatch_table: ClassVar[Any] = ChainMap({CodeType: _reduce_code}, _CloudPickler.dispatch_table)


def _restore_code(arguments: tuple[Any, ...], file: str, first: int, lines: list[str]) -> CodeType:
    """Makes the code in another process, and lets tracebacks find its lines there."""
    known = list(linecache.getlines(file))
    start, end = first - 1, first - 1 + len(lines)
    if known[start:end] != lines:
        known += ["\n"] * (end - len(known))
        known[start:end] = lines
        # Without a time of modification, `linecache` does not compare it with a file of this machine.
        linecache.cache[file] = (sum(map(len, known)), None, known, file)
    return CodeType(*arguments).replace(co_filename=file)
