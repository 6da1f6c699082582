"""`rush-async retry` and `cancel`: failed tasks are queued again, queued ones leave the queue."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Collection
from typing import TYPE_CHECKING

from rush_async.cli.exit_codes import DONE, FAILED
from rush_async.cli.opening import open_client
from rush_async.cli.options import add_json, add_network, add_server
from rush_async.cli.outcomes import report
from rush_async.cli.output import as_text, counted
from rush_async.errors import listed

if TYPE_CHECKING:
    from rush_async.manager.manager import Rush

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    add_network(parser)
    if parser.get_default("command") == "retry":
        parser.description = (
            "Queues failed tasks again, at the end of the queue: all, those of some keys, or those that failed alike."
        )
        parser.epilog = (
            "Examples:\n"
            "  rush-async retry branin\n"
            "  rush-async retry branin --type MemoryError --type lost\n"
            "  rush-async retry branin --key 4f1a... --key 9c02...\n"
            "\n"
            "Exit codes: 0 done, 1 a key that was named is of no failed task, 2 wrong usage, 69 no server, 78 no such\n"
            "network."
        )
        which = parser.add_mutually_exclusive_group()
        which.add_argument(
            "--type",
            metavar="TYPE",
            action="append",
            dest="types",
            help="those that failed with this class of exception, or of this kind: killed, lost, removed, cancelled, timeout",
        )
    else:
        parser.description = (
            "Takes tasks out of the queue: they fail, so that `rush-async retry` can queue them again. A task that is\n"
            "named by its key and runs already is cancelled where it runs."
        )
        parser.epilog = (
            "Examples:\n"
            "  rush-async cancel branin --all\n"
            "  rush-async cancel branin --key 4f1a...\n"
            "\n"
            "Exit codes: 0 done, 1 a key that was named is of no task that is queued or runs, 2 wrong usage, 69 no\n"
            "server, 78 no such network."
        )
        which = parser.add_mutually_exclusive_group(required=True)
        which.add_argument("--all", action="store_true", help="all tasks that are queued")
    which.add_argument(
        "--key", metavar="KEY", action="append", dest="keys", help="the task of this key; may be given several times"
    )
    add_json(parser)
    add_server(parser)


def run(options: argparse.Namespace) -> int:
    """Does it, and returns the exit code."""
    return asyncio.run((_retry if options.command == "retry" else _cancel)(options))


async def _retry(options: argparse.Namespace) -> int:
    async with open_client(options) as rush:
        keys = options.keys if options.types is None else await _failed_with(rush, options.types)
        moved = await rush.retry_tasks(keys) if keys is None or keys else []
        stop, n_workers = rush.stop_reason, rush.n_running_workers
    network = f"network {options.network!r}"
    what = f" with {' or '.join(map(as_text, options.types))}" if options.types else ""
    line = f"{network} has no failed task{what}: nothing to do"
    if moved:
        line = f"{counted(len(moved), 'failed task')}{what} of {network} {'is' if len(moved) == 1 else 'are'} queued again"
        if stop is not None:
            line += f"; it has stopped ({as_text(str(stop))}), so they wait for `rush-async resume {options.network}`"
        elif not n_workers:
            line += "; no worker is running"
    return _end(options, line, moved, "no failed task")


async def _failed_with(rush: Rush, types: Collection[str]) -> list[str]:
    """Returns the keys of the tasks whose failures are of these classes or kinds."""
    import polars as pl

    failed = await rush.fetch_failed_tasks()
    if failed.is_empty():
        return []
    failure = pl.col("condition").struct
    return failed.filter(failure.field("type").is_in(types) | failure.field("kind").is_in(types))["keys"].to_list()


async def _cancel(options: argparse.Namespace) -> int:
    async with open_client(options) as rush:
        moved = await (rush.empty_queue() if options.all else rush.cancel_tasks(options.keys))
    network = f"network {options.network!r}"
    line = f"{network} has no queued task: nothing to do"
    if moved:
        line = f"{counted(len(moved), 'task')} of {network} {'has' if len(moved) == 1 else 'have'} failed as cancelled"
        if options.all:
            line = f"{counted(len(moved), 'task')} of {network} removed from the queue"
    return _end(options, line, moved, "neither queued nor running")


def _end(options: argparse.Namespace, line: str, moved: Collection[str], why_not: str) -> int:
    """Says what happened, and returns the exit code."""
    missing = [key for key in dict.fromkeys(options.keys or ()) if key not in set(moved)]
    if missing and not moved:
        line = f"no task of network {options.network!r} has changed"
    report(options, line, keys=list(moved), missing=missing)
    if missing:
        print(f"{why_not}: {as_text(listed(missing))}", file=sys.stderr)
    return FAILED if missing else DONE
