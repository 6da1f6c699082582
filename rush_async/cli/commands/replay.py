"""`rush-async replay`: the proposals of an exported network once more."""

from __future__ import annotations

import argparse
import asyncio
import os
import pkgutil
import sys

from rush_async.cli.exit_codes import DONE, FAILED, REFUSED, CommandError
from rush_async.cli.output import counted

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.description = (
        "Calls a proposal function once more for each task of an exported network with a seed, and compares the inputs. Ends\n"
        "with code 0 where all are identical, with code 1 where one is not."
    )
    parser.epilog = "Examples:\n  rush-async replay branin.zip search:propose"
    parser.add_argument("file", metavar="FILE", help="the file of the export")
    parser.add_argument("propose", metavar="MODULE:FUNCTION", help="the function given to proposals()")


def run(options: argparse.Namespace) -> int:
    """Replays, says what was found, and returns the exit code."""
    from rush_async.client.export.reading import Archive
    from rush_async.client.replay import replay

    if ":" not in options.propose:
        options.parser.error(f"name the function as MODULE:FUNCTION, not {options.propose!r}")
    if (folder := os.getcwd()) not in sys.path:
        sys.path.insert(0, folder)
    archive = Archive.open(options.file)
    try:
        propose = pkgutil.resolve_name(options.propose)
    except (ImportError, AttributeError, ValueError) as error:
        raise CommandError(f"{error}", REFUSED) from error
    found = asyncio.run(replay(archive, propose))
    if found.divergence is None:
        n = found.n_compared
        print(f"{counted(n, 'proposal')} of network {archive.network_id!r} {'is' if n == 1 else 'are'} identical")
        return DONE
    index, key, expected, other = (getattr(found.divergence, name) for name in ("index", "key", "expected", "found"))
    print(f"the proposal of task {key} (index {index}) was {expected} and is {other} now")
    return FAILED
