"""`rush-async reset` and `delete`: a network is emptied, or nothing is left of it."""

from __future__ import annotations

import argparse
import asyncio
from typing import TYPE_CHECKING

from rush_async.cli.exit_codes import DONE
from rush_async.cli.opening import open_client
from rush_async.cli.options import add_json, add_network, add_server, config_of
from rush_async.cli.outcomes import report
from rush_async.cli.output import ask, counted
from rush_async.network.network import Network
from rush_async.store.keys import pattern_of

if TYPE_CHECKING:
    from rush_async.manager.manager import Rush

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    command = parser.get_default("command")
    add_network(parser)
    if command == "reset":
        parser.description = (
            "Empties a network for a new run: stops its workers, then deletes its tasks, results, attributes, rules\n"
            "and log. Clients that are open stay, and drop what they have cached. It asks first."
        )
        parser.add_argument(
            "--keep-workers", action="store_true", help="delete the tasks alone: workers continue, and their log stays"
        )
    else:
        parser.description = (
            "Deletes a network: stops its workers, then deletes all that the server keeps of it, also what other\n"
            "programs wrote under its name. It asks first."
        )
    parser.epilog = (
        "Examples:\n"
        f"  rush-async {command} branin\n"
        f"  rush-async {command} branin --yes\n"
        "\n"
        "Exit codes: 0 done, 1 the answer was no, 2 wrong usage, also no terminal to ask and no --yes, 69 no server,\n"
        "78 no such network."
    )
    parser.add_argument("--yes", action="store_true", help="do not ask")
    add_json(parser)
    add_server(parser)


def run(options: argparse.Namespace) -> int:
    """Asks, does it, and returns the exit code."""
    return asyncio.run(_run(options))


async def _run(options: argparse.Namespace) -> int:
    is_delete = options.command == "delete"
    keeps_workers = not is_delete and options.keep_workers
    async with open_client(options) as rush:
        counts, n_workers = await rush.counts(), rush.n_running_workers
        what = f"{counted(counts.total, 'task')} ({counts.finished:,} finished)"
        stops = f", and stop {counted(n_workers, 'running worker')}" if n_workers and not keeps_workers else ""
        ask(
            f"{options.command} network {options.network!r} on {config_of(options).where}: delete {what}{stops}",
            yes=options.yes,
        )
        await rush.reset(workers=not keeps_workers)
        n_others = await _delete_rest(rush) if is_delete else 0
    done = f"network {options.network!r} is {'gone' if is_delete else 'empty'}: {what} deleted"
    if not keeps_workers:
        done += f", {counted(n_workers, 'worker')} stopped"
    if n_others:
        done += f", {counted(n_others, 'key')} of other programs deleted"
    workers = 0 if keeps_workers else n_workers
    report(options, done, **counts._asdict(), workers_stopped=workers, other_keys=n_others)
    return DONE


async def _delete_rest(rush: Rush) -> int:
    """Deletes what is left under the name of a network that was reset: what other programs wrote. Returns how many keys."""
    network = await Network.acquire(rush.network_id, rush.config)
    try:
        ask_server, cursor, n_deleted = network.link.connection.ask, b"0", 0
        while True:
            cursor, keys = await ask_server("SCAN", cursor, "MATCH", pattern_of(rush.network_id, "}:*"), "COUNT", "1000")
            if keys:
                n_deleted += await ask_server("UNLINK", *keys)
            if cursor == b"0":
                return n_deleted
    finally:
        await network.release()
