"""`rush-async networks`: what is on the server."""

from __future__ import annotations

import argparse
import asyncio
from datetime import UTC, datetime

from rush_async.cli.exit_codes import DONE
from rush_async.cli.options import add_json, add_server, config_of

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.description = (
        "Lists the networks of the server, or of all nodes of a cluster: their tasks, their running workers, and the\n"
        "time since they were created or reset. The server looks at every key of the database, a thousand at a time."
    )
    parser.epilog = (
        "Examples:\n"
        "  rush-async networks --url redis://db.example\n"
        "  rush-async networks --data-dir results\n"
        "  rush-async networks --json | jq -r '.[] | select(.workers == 0) | .network'"
    )
    add_json(parser)
    add_server(parser)


def run(options: argparse.Namespace) -> int:
    """Prints the networks, and returns the exit code."""
    from rush_async.cli.opening import existing
    from rush_async.cli.output import age, print_json, print_table
    from rush_async.cli.readings import stop_fields
    from rush_async.network.listing import list_networks

    networks = asyncio.run(list_networks(existing(config_of(options))))
    rows: list[list[object]] = []
    facts: list[dict[str, object]] = []
    for each in networks:
        if each.position is None or each.created_at is None:
            rows.append([each.network_id, *[None] * 6, each.problem])
            facts.append({"network": each.network_id, "problem": each.problem})
            continue
        _, _, counts, n_workers, stop = each.position
        since = age((datetime.now(UTC) - each.created_at).total_seconds())
        rows.append([each.network_id, *counts, n_workers, since, "" if stop is None else f"stopped ({stop.rule})"])
        facts.append(
            {
                "network": each.network_id,
                "created_at": each.created_at,
                **counts._asdict(),
                "workers": n_workers,
                "stop": stop_fields(stop),
            }
        )
    if options.json:
        print_json(facts)
    else:
        print_table(["network", "queued", "running", "finished", "failed", "workers", "age", "state"], rows)
    return DONE
