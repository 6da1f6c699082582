"""`rush-async failures`: why tasks failed, each reason once."""

from __future__ import annotations

import argparse
import asyncio
from typing import TYPE_CHECKING, Any

from rush_async.cli.exit_codes import DONE
from rush_async.cli.options import add_json, add_network, add_server, count

if TYPE_CHECKING:
    from rush_async.model import Task

__all__ = ["add_arguments", "run"]

_N_KEYS = 5  # keys of tasks that a reason shows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.description = (
        "Shows why tasks failed: each type and message once, the most frequent first, with how many tasks failed so, when,\n"
        "on which tasks, and one traceback, the last. Workers whose loops failed come after them."
    )
    parser.epilog = (
        "Examples:\n"
        "  rush-async failures branin\n"
        "  rush-async failures branin -n 3 --no-traceback\n"
        "  rush-async failures branin --json | jq -r '.tasks[] | [.count, .type, .message] | @tsv'"
    )
    add_network(parser)
    parser.add_argument("-n", "--limit", metavar="N", type=count, help="how many reasons (default: all)")
    parser.add_argument("--no-traceback", dest="traceback", action="store_false", help="without tracebacks")
    add_json(parser)
    add_server(parser)


def run(options: argparse.Namespace) -> int:
    """Prints the failures, and returns the exit code."""
    from rush_async.cli.output import print_json

    found = asyncio.run(_read(options))
    if options.json:
        print_json(found)
        return DONE
    if not found["tasks"]:
        print("no task has failed")
    for at, group in enumerate(found["tasks"]):
        _print(group, is_first=not at, traceback=options.traceback)
    for worker in found["workers"]:
        print(f"\nthe loop of worker {worker['worker_id']} failed")
        _print_indented((options.traceback and worker["traceback"]) or worker["message"])
    return DONE


async def _read(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    from rush_async.cli.opening import open_network
    from rush_async.cli.readings import read_failed, server_time

    async with open_network(options) as network:
        now = await server_time(network)
        failed = await read_failed(network)
        workers = await network.workers.read()
    groups: dict[tuple[Any, ...], list[Task]] = {}
    for task in failed.tasks:
        if (why := task.failure) is not None:
            groups.setdefault((why.kind, why.type, why.message), []).append(task)
    largest = sorted(groups.values(), key=len, reverse=True)[: options.limit]
    return {
        "tasks": [_facts(tasks, now.timestamp()) for tasks in largest],
        "workers": [
            {"worker_id": entry.worker_id, "message": entry.failure.message, "traceback": entry.failure.traceback}
            for entry in workers
            if entry.state == "failed" and entry.failure is not None
        ],
    }


def _facts(tasks: list[Task], now: float) -> dict[str, Any]:
    why = tasks[0].failure
    assert why is not None
    ends = [task.ended_at for task in tasks if task.ended_at is not None]
    return {
        "count": len(tasks),
        "kind": why.kind,
        "type": why.type,
        "message": why.message,
        "first_at": min(ends, default=None),
        "last_at": max(ends, default=None),
        "since": [now - end.timestamp() for end in (min(ends), max(ends))] if ends else [],
        "keys": [task.key for task in tasks],
        "workers": sorted({task.worker_id for task in tasks if task.worker_id is not None}),
        "traceback": next((task.failure.traceback for task in tasks if task.failure and task.failure.traceback), None),
    }


def _print(group: dict[str, Any], *, is_first: bool, traceback: bool) -> None:
    from rush_async.cli.output import age, as_text, counted

    if not is_first:
        print()
    n, since = group["count"], group["since"]
    what = group["type"] or group["kind"]
    print(as_text(f"{counted(n, 'task')}: {what}: {group['message']}"))
    if since:
        when = f"{age(since[1])} ago" if n == 1 else f"first {age(since[0])} ago, last {age(since[1])} ago"
        print(f"    {when}; {_some('worker', group['workers'])}")
    print(as_text(f"    {_some('task', group['keys'])}"))
    if traceback and group["traceback"]:
        _print_indented(group["traceback"])


def _some(what: str, names: list[str]) -> str:
    if not names:
        return f"no {what}"
    more = len(names) - _N_KEYS
    return f"{what}{'' if len(names) == 1 else 's'} {', '.join(names[:_N_KEYS])}" + (f" and {more:,} more" if more > 0 else "")


def _print_indented(text: str) -> None:
    from rush_async.cli.output import as_text

    for line in text.rstrip().split("\n"):
        print(f"    {as_text(line)}")
