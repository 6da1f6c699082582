"""`rush-async doctor`: checks a server, what this user may do there, and one network."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from rush_async.cli.exit_codes import DONE, FAILED
from rush_async.cli.options import add_json, add_server, config_of, network_id, warn_of_password
from rush_async.cli.output import as_text, counted, print_json

if TYPE_CHECKING:
    from rush_async.cli.checks import Check

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.description = (
        "Checks a server, what this user may do there and, where a network is named, its heartbeats and records. Each\n"
        "check has a verdict: ok, warning, or bad; and a remedy where something is to be done. Nothing is changed."
    )
    parser.epilog = (
        "Examples:\n"
        "  rush-async doctor branin --url redis://db.example:6379\n"
        "  rush-async doctor\n"
        "  rush-async doctor branin --json\n"
        "\n"
        "Exit codes: 0 nothing is bad, 1 something is (also a server that cannot be reached), 2 wrong usage, 78 no server\n"
        "is named."
    )
    parser.add_argument(
        "network",
        metavar="NETWORK",
        nargs="?",
        type=network_id,
        default=os.environ.get("RUSH_NETWORK") or None,
        help="a network whose heartbeats and records to check too; by default RUSH_NETWORK of the environment",
    )
    add_json(parser)
    add_server(parser)


def run(options: argparse.Namespace) -> int:
    """Makes the checks, and returns the exit code."""
    from rush_async.cli.examination import Examination
    from rush_async.cli.opening import existing
    from rush_async.config import as_path
    from rush_async.embedded.server import acquire

    if warning := warn_of_password(options):
        print(f"rush-async doctor: {warning}", file=sys.stderr)
    config, lease = existing(config_of(options)), None
    if config.url is None:
        assert config.data_dir is not None
        lease = acquire(as_path(config.data_dir))
        config = config.at(lease.url)
    checks: list[Check] = []
    try:
        for check in Examination(config, options.network).checks():
            if not options.json:
                _print(check, checks)
            checks.append(check)
    finally:
        if lease is not None:
            lease.release()
    verdicts = [check.verdict for check in checks]
    worst = next(verdict for verdict in ("bad", "warning", "ok") if verdict in verdicts)
    if options.json:
        print_json(
            {
                "server": config.where,
                "network": options.network,
                "verdict": worst,
                "checks": [asdict(check) for check in checks],
            }
        )
    else:
        print(f"{counted(len(checks), 'check')}: {verdicts.count('bad')} bad, {verdicts.count('warning')} to be warned of")
    return FAILED if worst == "bad" else DONE


def _print(check: Check, before: list[Check]) -> None:
    """Prints a check as it comes, with its remedy unless that of the check before is the same."""
    print(f"{check.verdict:<7}  {check.name:<11}  {as_text(check.finding)}", flush=True)
    if check.remedy and not (before and before[-1].remedy == check.remedy):
        print(f"{'':<7}  {'':<11}  -> {as_text(check.remedy)}", flush=True)
