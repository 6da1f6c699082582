"""`rush-async export` and `rush-async import`: a network in one file, and back."""

from __future__ import annotations

import argparse
import asyncio

from rush_async.cli.exit_codes import DONE, CommandError
from rush_async.cli.options import add_network, add_server
from rush_async.cli.output import counted

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    if parser.get_default("command") == "export":
        parser.description = (
            "Writes a network into one zip file: tasks of all states, reports, log, shared state and environment. An\n"
            "export that is there is replaced once the new one is complete."
        )
        parser.epilog = "Examples:\n  rush-async export branin branin.zip\n  rush-async export branin b.zip --data-dir results"
    else:
        parser.description = (
            "Takes an export into a network, a new one or one that exists. What is there stays, so the same import again\n"
            "changes nothing. Imported tasks count in no stop rule."
        )
        parser.epilog = "Examples:\n  rush-async import again branin.zip\n  rush-async import again b.zip --data-dir results"
    add_network(parser)
    parser.add_argument("file", metavar="FILE", help="the file of the export")
    add_server(parser)


def run(options: argparse.Namespace) -> int:
    """Exports or imports, says what was done, and returns the exit code."""
    try:
        print(asyncio.run(_export(options) if options.command == "export" else _import(options)))
    except OSError as error:
        if not error.filename:
            raise  # of a connection
        raise CommandError(f"{options.file}: {error.strerror}") from error  # it may name a temporary file
    return DONE


async def _export(options: argparse.Namespace) -> str:
    from rush_async.cli.opening import open_client
    from rush_async.client.export.reading import Archive

    async with open_client(options) as rush:
        counts = Archive.open(await rush.export(options.file)).counts
    parts = ", ".join(f"{n:,} {state}" for state, n in counts._asdict().items())
    return f"exported {counted(counts.total, 'task')} of network {options.network!r} to {options.file}: {parts}"


async def _import(options: argparse.Namespace) -> str:
    from rush_async.cli.opening import open_client
    from rush_async.client.export.reading import Archive

    archive = Archive.open(options.file)
    async with open_client(options, must_exist=False) as rush:
        n = len(await rush.import_archive(archive))
    rest = "; it had the others" if n < archive.counts.total else ""
    return f"imported {n:,} of {counted(archive.counts.total, 'task')} into network {options.network!r}{rest}"
