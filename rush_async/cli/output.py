"""What the commands print: tables, JSON, ages, numbers with their nouns, and questions.

Tables are rich's where rich is installed and stdout is a terminal that is wide enough, and aligned columns else. Texts from
the database have their control characters escaped, so that they cannot command a terminal.
"""

from __future__ import annotations

import json
import math
import re
import signal
import sys
import threading
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

from rush_async.cli.exit_codes import FAILED, USAGE, CommandError

__all__ = ["age", "as_text", "ask", "counted", "json_text", "print_json", "print_table"]

# with separators of lines, and with what turns the direction of writing
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_GAP = "  "
_ANY_WIDTH = 1_000_000  # more than any table has


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Prints rows under the names of their columns.

    Args:
        columns: the names.
        rows: the values, as many as there are columns. Numbers are aligned to the right; None is an empty cell.
    """
    columns, rows = [as_text(name) for name in columns], [list(row) for row in rows]
    numeric = [
        bool(rows) and all(isinstance(row[at], int | float | None) and not isinstance(row[at], bool) for row in rows)
        for at in range(len(columns))
    ]
    texts = [[as_text(value) for value in row] for row in rows]
    if sys.stdout.isatty() and _print_with_rich(columns, texts, numeric):
        return
    widths = [max(map(len, column)) for column in zip(columns, *texts, strict=True)]
    for row in (columns, *texts):
        cells = [
            text.rjust(width) if right else text.ljust(width) for text, width, right in zip(row, widths, numeric, strict=True)
        ]
        print(_GAP.join(cells).rstrip())


def _print_with_rich(columns: Sequence[str], texts: Sequence[Sequence[str]], numeric: Sequence[bool]) -> bool:
    try:
        from rich import box
        from rich.console import Console
        from rich.measure import Measurement
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return False
    table, console = Table(box=box.SIMPLE_HEAD, pad_edge=False), Console()
    for name, right, *column in zip(columns, numeric, *texts, strict=True):
        is_whole = not any(" " in text for text in column)  # such as the name of a worker, which is copied
        table.add_column(Text(name), justify="right" if right else "left", overflow="fold", no_wrap=is_whole)
    for row in texts:
        table.add_row(*map(Text, row))
    if Measurement.get(console, console.options.update(max_width=_ANY_WIDTH), table).minimum > console.width:
        return False
    console.print(table)
    return True


def as_text(value: Any) -> str:
    """Returns a value as one line for a terminal: floats with six digits, nested values as JSON."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, datetime):
        return value.isoformat(sep=" ", timespec="seconds")
    text = value if isinstance(value, str) else json_text(value) if isinstance(value, list | tuple | dict) else str(value)
    return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)


def print_json(value: Any) -> None:
    """Prints a value as indented JSON. What JSON has not is written as text: times in ISO 8601, bytes in base64; numbers that
    are not finite are null."""
    print(json_text(value, indent=2))


def json_text(value: Any, indent: int | None = None) -> str:
    """Returns a value as JSON, as `print_json` prints it."""
    try:
        return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False, default=_plain)
    except ValueError:
        return json.dumps(_finite(value), indent=indent, ensure_ascii=False, default=_plain)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(each) for key, each in value.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]  # pyright: ignore[reportUnknownVariableType]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        from base64 import b64encode

        return b64encode(value).decode()
    if isinstance(value, timedelta):
        return value.total_seconds()
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def age(seconds: float) -> str:
    """Returns a length of time in its two largest units: `45 s`, `3 m`, `2 h 5 m`, `4 d 1 h`."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole} s"
    units = [(whole // 86_400, "d"), (whole // 3_600 % 24, "h"), (whole // 60 % 60, "m")]
    first = next(at for at, (number, _) in enumerate(units) if number)
    return " ".join(f"{number} {unit}" for number, unit in units[first : first + 2] if number)


def counted(n: int, noun: str) -> str:
    """Returns a number with its noun, in the plural unless it is one."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def ask(question: str, *, yes: bool) -> None:
    """Asks a question whose default is no, and returns if the answer is yes.

    Args:
        question: the question, without its mark.
        yes: whether `--yes` was given, so that nothing is asked.

    Raises:
        CommandError: the answer is another, or stdin is no terminal and `--yes` was not given.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise CommandError(f"{question}? It is not asked, as stdin is no terminal: add --yes", USAGE)
    print(f"{question}? [y/N] ", end="", file=sys.stderr, flush=True)
    if _answer().strip().lower() not in ("y", "yes"):
        raise CommandError("nothing was done", FAILED)


def _answer() -> str:
    """Reads a line, which Ctrl-C ends: the handler of a running event loop would wait for the line first."""
    if threading.current_thread() is not threading.main_thread():
        return sys.stdin.readline()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return sys.stdin.readline()
    finally:
        signal.signal(signal.SIGINT, before)
