"""`rush-async tasks` and `rush-async best`: tasks as a table, CSV, JSON or Parquet."""

from __future__ import annotations

import argparse
import asyncio
import sys
from io import BytesIO
from typing import IO, TYPE_CHECKING, Any

from rush_async.cli.exit_codes import DONE, FAILED, USAGE, CommandError
from rush_async.cli.options import add_network, add_server, count

if TYPE_CHECKING:
    import polars as pl

__all__ = ["add_arguments", "run"]

_STATES = ("queued", "running", "finished", "failed")
_ROWS = 50  # rows of a table, where no limit is given
_WIDEST = 60  # characters of a value in a table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    add_network(parser)
    if parser.get_default("command") == "best":
        parser.description = (
            "Shows the finished tasks with the best values of an output; those without a number in it are left out."
        )
        parser.epilog = (
            "Examples:\n  rush-async best branin --by y\n  rush-async best branin -n 1 --by accuracy --maximize --format json"
        )
        parser.add_argument("-n", "--limit", metavar="N", type=count, default=10, help="how many tasks (default: 10)")
        parser.add_argument("--by", metavar="COLUMN", required=True, help="the output that is compared")
        parser.add_argument("--maximize", action="store_true", help="larger values are better (default: smaller ones)")
    else:
        parser.description = (
            "Shows tasks with their inputs, outputs and extras, in the order of their states, and finished ones in the\n"
            "order they finished. A table shows the first 50 tasks and the beginning of long values, the other formats have\n"
            "all. Values with members are JSON in a table and in CSV, and keep their members in JSON and Parquet."
        )
        parser.epilog = (
            "Examples:\n"
            "  rush-async tasks branin --state failed --columns keys,x,condition\n"
            "  rush-async tasks branin --state finished --sort y -n 20 --times\n"
            "  rush-async tasks branin --state finished --format csv > finished.csv\n"
            "  rush-async tasks branin --format parquet -o tasks.parquet"
        )
        parser.add_argument(
            "--state",
            metavar="STATE",
            type=_states,
            help=f"only tasks in these states, of {', '.join(_STATES)}; with commas between",
        )
        parser.add_argument("--sort", metavar="COLUMN", help="sort by this column, smallest first, empty last")
        parser.add_argument("--descending", action="store_true", help="largest first")
        parser.add_argument("-n", "--limit", metavar="N", type=count, help="only the first N tasks")
    parser.add_argument("--columns", metavar="A,B,...", type=_names, help="only these columns, in this order")
    parser.add_argument("--times", action="store_true", help="also when each was created, started and ended, attempt and index")
    parser.add_argument("--format", choices=("table", "csv", "json", "parquet"), default="table", help="how (default: table)")
    parser.add_argument("-o", "--output", metavar="FILE", help="write into this file instead of to stdout")
    add_server(parser)


def run(options: argparse.Namespace) -> int:
    """Prints tasks, and returns the exit code."""
    if options.format == "parquet" and not options.output and sys.stdout.isatty():
        options.parser.error("Parquet is not for terminals: name a file with -o, or redirect the output")
    if options.format == "table" and options.output:
        options.parser.error("a table is for terminals: choose --format csv, json or parquet for a file")
    _write(_selected(asyncio.run(_read(options)), options), options)
    return DONE


async def _read(options: argparse.Namespace) -> pl.DataFrame:
    from rush_async.cli.opening import open_client

    async with open_client(options) as rush:
        if options.command == "best":
            return await rush.fetch_finished_tasks(times=options.times)
        return await rush.fetch_tasks_with_state(*(options.state or ()), times=options.times)


def _selected(frame: pl.DataFrame, options: argparse.Namespace) -> pl.DataFrame:
    import polars as pl

    if options.command == "best":
        column = pl.col(_known(frame, options.by))
        if not (dtype := frame[options.by].dtype).is_numeric():
            if frame.is_empty() or dtype == pl.Null():
                raise CommandError(f"no finished task has a number in {options.by!r}", FAILED)
            raise CommandError(f"the values of {options.by!r} are {dtype}, not numbers: name another column by --by", USAGE)
        frame = frame.filter(column.is_not_null() & column.is_not_nan()).sort(column, descending=options.maximize)
    elif options.sort:
        frame = frame.sort(_known(frame, options.sort), descending=options.descending, nulls_last=True, maintain_order=True)
    if options.limit:
        frame = frame.head(options.limit)
    return frame.select([_known(frame, name) for name in options.columns]) if options.columns else frame


def _known(frame: pl.DataFrame, name: str) -> str:
    if name not in frame.columns:
        raise CommandError(f"these tasks have no column {name!r}: there are {', '.join(frame.columns)}", FAILED)
    return name


def _write(frame: pl.DataFrame, options: argparse.Namespace) -> None:
    from rush_async.cli.output import print_table

    if options.format == "table":
        shown = frame if options.limit else frame.head(_ROWS)
        print_table(shown.columns, [[_cell(value) for value in row] for row in shown.iter_rows()])
        if left := frame.height - shown.height:
            print(f"... and {left:,} more: -n {frame.height} shows all", file=sys.stderr)
    elif options.output:
        with open(options.output, "wb") as file:
            _write_bytes(frame, options.format, file)
    else:
        written = BytesIO()  # polars raises an error of its own for a closed pipe
        _write_bytes(frame, options.format, written)
        sys.stdout.buffer.write(written.getbuffer())


def _cell(value: Any) -> Any:
    """Returns a value as a table shows it: of a failure type and message, of what is long the beginning."""
    from rush_async.cli.output import as_text

    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, dict) and value.keys() == {"kind", "type", "message", "traceback"}:  # pyright: ignore[reportUnknownMemberType]
        value = f"{value['type'] or value['kind']}: {value['message']}"
    text = as_text(value)
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 3]}..."


def _write_bytes(frame: pl.DataFrame, form: str, file: IO[bytes]) -> None:
    from rush_async.cli.output import json_text

    if form == "parquet":
        frame.write_parquet(file)
    elif form == "csv":
        file.write(_flat(frame).write_csv().encode())
    else:  # a task a line
        file.write(b"[")
        for at, row in enumerate(frame.iter_rows(named=True)):
            file.write(f"{',' if at else ''}\n{json_text(row)}".encode())
        file.write(b"\n]\n")


def _flat(frame: pl.DataFrame) -> pl.DataFrame:
    """Returns a frame whose nested and binary columns are JSON texts."""
    import polars as pl

    from rush_async.cli.output import json_text

    return frame.with_columns(
        pl.Series(column.name, [None if value is None else json_text(value) for value in column.to_list()], pl.String())
        for column in frame
        if column.dtype.is_nested() or column.dtype in (pl.Binary(), pl.Null())
    )


def _states(text: str) -> list[str]:
    states = text.split(",")
    if wrong := [state for state in states if state not in _STATES]:
        raise argparse.ArgumentTypeError(f"{wrong[0]!r} is no state: there are {', '.join(_STATES)}")
    return states


def _names(text: str) -> list[str]:
    return text.split(",")
