"""What the commands that act say they did: one line, or JSON."""

from __future__ import annotations

import argparse

from rush_async.cli.output import print_json

__all__ = ["report"]


def report(options: argparse.Namespace, line: str, **values: object) -> None:
    """Prints what a command did.

    Args:
        options: with `network`, and `json`: whether to print JSON.
        line: what it did, in one line; `said` in JSON.
        values: what JSON has besides the network and the line.
    """
    if options.json:
        print_json({"network": options.network, "said": line, **values})
    else:
        print(line)
