"""`rush-async log`: what the workers of a network logged."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from typing import TYPE_CHECKING

from rush_async.cli.exit_codes import DONE
from rush_async.cli.options import add_network, add_server, count

if TYPE_CHECKING:
    from rush_async.store.log_entry import LogEntry

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.description = (
        "Prints what workers logged, as the network keeps it: all records at WARNING and above of `rush-async worker` and of\n"
        "pools, and what `log_levels` of start_workers or --log-level of the worker name."
    )
    parser.epilog = (
        "Examples:\n"
        "  rush-async log branin\n"
        "  rush-async log branin -n 20 --follow        until Ctrl-C\n"
        "  rush-async log branin --level ERROR --worker breezy_lemming_080abf"
    )
    add_network(parser)
    parser.add_argument("-n", "--limit", metavar="N", type=count, help="only the last N records")
    parser.add_argument("-f", "--follow", action="store_true", help="print further records as they come, until Ctrl-C")
    parser.add_argument("--worker", metavar="ID", action="append", help="only this worker; may be given several times")
    parser.add_argument("--level", metavar="LEVEL", type=_level, default=0, help="only records of this level and above")
    add_server(parser)


def run(options: argparse.Namespace) -> int:
    """Prints the log, and returns the exit code."""
    asyncio.run(_print_log(options))
    return DONE


async def _print_log(options: argparse.Namespace) -> None:
    from rush_async.cli.opening import open_network

    async with open_network(options) as network:
        place, entries = await network.worker_log.read()
        shown = [entry for entry in entries if _is_wanted(entry, options)]
        for entry in shown[-options.limit :] if options.limit else shown:
            _print(entry)
        if not shown and not options.follow:
            print(_why_empty(options, bool(entries)), file=sys.stderr)
        while options.follow:
            place, entries = await network.worker_log.wait(place)
            for entry in entries:
                if _is_wanted(entry, options):
                    _print(entry)


def _why_empty(options: argparse.Namespace, has_records: bool) -> str:
    if has_records:
        return f"no record of network {options.network!r} has this level and worker"
    kept = "WARNING and above of `rush-async worker` and of pools, and what `log_levels` or --log-level name"
    return f"the log of network {options.network!r} is empty: it keeps {kept}"


def _is_wanted(entry: LogEntry, options: argparse.Namespace) -> bool:
    number = logging.getLevelNamesMapping().get(entry.level, logging.CRITICAL)  # a level of its own is shown
    return number >= options.level and (not options.worker or entry.worker_id in options.worker)


def _print(entry: LogEntry) -> None:
    from rush_async.cli.output import as_text

    first, *rest = entry.msg.rstrip().split("\n")
    at = entry.timestamp.isoformat(sep=" ", timespec="milliseconds")[: len("2026-01-02 03:04:05.678")]
    print(as_text(f"{at} {entry.level:<8} {entry.worker_id} {entry.logger}: {first}"))
    for line in rest:  # a message cannot look like another record
        print(as_text(f"    {line}"))
    print(end="", flush=True)


def _level(text: str) -> int:
    if (number := logging.getLevelNamesMapping().get(text.upper())) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no level, such as INFO or WARNING")
    return number
