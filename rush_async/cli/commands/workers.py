"""`rush-async workers`: the workers of a network, and what they run."""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

from rush_async.cli.exit_codes import DONE
from rush_async.cli.options import add_json, add_network, add_server

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.description = (
        "Lists the workers that run or start, each with the time since it registered, since its event loop last answered,\n"
        "and since it took its oldest running task; with --all also those that have ended."
    )
    parser.epilog = (
        "Examples:\n"
        "  rush-async workers branin\n"
        "  rush-async workers branin --all\n"
        "  rush-async workers branin --json | jq -r '.[].hostname' | sort | uniq -c"
    )
    add_network(parser)
    parser.add_argument("-a", "--all", action="store_true", help="also workers that have ended")
    add_json(parser)
    add_server(parser)


def run(options: argparse.Namespace) -> int:
    """Prints the workers, and returns the exit code."""
    from rush_async.cli.output import print_json, print_table

    facts = asyncio.run(_read(options))
    if options.json:
        print_json(facts)
    else:
        columns = ["worker", "state", "host", "pid", "age", "seen", "tasks", "oldest task"]
        print_table([*columns, "failure"] if options.all else columns, [_row(each, options) for each in facts])
    return DONE


async def _read(options: argparse.Namespace) -> list[dict[str, Any]]:
    from rush_async.cli.opening import open_network
    from rush_async.cli.readings import read_workers, server_time

    async with open_network(options) as network:
        now = (await server_time(network)).timestamp()
        return [
            {
                "worker_id": each.worker_id,
                "state": each.state,
                "hostname": each.hostname,
                "pid": each.pid,
                "started_at": each.started_at,
                "last_seen": each.last_seen,
                "age": now - each.started_at.timestamp(),
                "seen": now - each.last_seen.timestamp(),
                "tasks": [
                    {"key": task.key, "seconds": now - (task.started_at or each.started_at).timestamp()} for task in each.tasks
                ],
                "failure": each.failure,
            }
            for each in await read_workers(network)
            if options.all or each.state in ("starting", "running")
        ]


def _row(facts: dict[str, Any], options: argparse.Namespace) -> list[Any]:
    from rush_async.cli.output import age

    tasks = facts["tasks"]
    row = [facts["worker_id"], facts["state"], facts["hostname"], facts["pid"], age(facts["age"]), f"{age(facts['seen'])} ago"]
    row += [len(tasks), f"{tasks[0]['key']}, {age(tasks[0]['seconds'])}" if tasks else ""]
    return [*row, facts["failure"]] if options.all else row
