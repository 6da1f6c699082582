"""`rush-async status`: a network at a glance."""

from __future__ import annotations

import argparse
import asyncio
from collections import Counter
from typing import Any

from rush_async.cli.exit_codes import DONE
from rush_async.cli.options import add_json, add_network, add_server

__all__ = ["add_arguments", "run"]

_MOST_FAILED = 2_000  # failed tasks that are read; of more, the failures shown are the last of so many, not of all
_N_FAILURES = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.description = (
        "Shows a network: how many tasks are in each state, how many finish in a second, its workers, its stop rules, and\n"
        "the last failures."
    )
    parser.epilog = (
        "Examples:\n"
        "  rush-async status branin\n"
        "  rush-async status branin --url redis://db.example\n"
        "  rush-async status branin --json | jq .tasks.finished"
    )
    add_network(parser)
    add_json(parser)
    add_server(parser)


def run(options: argparse.Namespace) -> int:
    """Prints the status, and returns the exit code."""
    from rush_async.cli.output import print_json

    status = asyncio.run(_read(options))
    if options.json:
        print_json(status)
    else:
        _print(status)
    return DONE


async def _read(options: argparse.Namespace) -> dict[str, Any]:
    from rush_async.cli.opening import open_network
    from rush_async.cli.readings import rate, read_failed, server_time, stop_fields

    async with open_network(options) as network:
        now = await server_time(network)
        per_second, seconds = await rate(network, now)
        failed = await read_failed(network, _MOST_FAILED)
        workers = Counter(str(entry.state) for entry in await network.workers.read())
        rules = (await network.stop_rules.read()).arguments()
        position = network.position.latest
        return {
            "network": network.network_id,
            "server": network.link.config.where if (path := network.link.data_dir) is None else str(path),
            "at": now,
            "age": now.timestamp() - position.epoch / 1e6,
            "tasks": position.counts._asdict(),
            "rate": {"finished_per_second": per_second, "seconds": seconds},
            "workers": dict(workers),
            "stop": stop_fields(position.stop),
            "stop_rules": rules,
            "last_failures": [
                {
                    "key": task.key,
                    "worker_id": task.worker_id,
                    "at": task.ended_at,
                    "kind": task.failure.kind,
                    "type": task.failure.type,
                    "message": task.failure.message,
                }
                for task in failed.tasks[:_N_FAILURES]
                if task.failure is not None
            ],
        }


def _print(status: dict[str, Any]) -> None:
    from rush_async.cli.output import age, as_text

    rate, stop, rules = status["rate"], status["stop"], status["stop_rules"]
    lines = {
        "network": f"{status['network']} on {status['server']}",
        "age": age(status["age"]),
        "tasks": ", ".join(f"{n:,} {state}" for state, n in status["tasks"].items()),
        "rate": f"{rate['finished_per_second']:.3g} finished a second, over the last {age(rate['seconds'])}",
        "workers": ", ".join(f"{n:,} {state}" for state, n in status["workers"].items()) or "none",
        "stop rules": ", ".join(f"{name}={as_text(value)}" for name, value in rules.items()) or "none",
    }
    if stop is not None:
        lines["stopped"] = f"{age((status['at'] - stop['at']).total_seconds())} ago ({stop['rule']}: {stop['detail']})"
    for name, text in lines.items():
        print(f"{name:<12}{as_text(text)}")
    for at, failure in enumerate(status["last_failures"]):
        since = "" if failure["at"] is None else f"{age((status['at'] - failure['at']).total_seconds())} ago, "
        text = f"{since}task {failure['key']}: {failure['type'] or failure['kind']}: {failure['message']}"
        print(f"{'' if at else 'failures':<12}{as_text(text)}")
