"""`rush-async expire`: sets the time to live of a network."""

from __future__ import annotations

import argparse
import asyncio
import re

from rush_async.cli.exit_codes import DONE
from rush_async.cli.opening import open_network
from rush_async.cli.options import add_json, add_network, add_server
from rush_async.cli.outcomes import report
from rush_async.cli.output import age

__all__ = ["add_arguments", "run"]

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_LONGEST = 10_000 * 86_400


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.description = (
        "Sets the time to live of a network: so long after it has ended, it goes by itself, with all its results.\n"
        "A network has ended while no worker is starting or running, and no task is queued or running. What is changed\n"
        "in it later begins the time anew; what is read does not."
    )
    parser.epilog = (
        "Examples:\n"
        "  rush-async expire branin 7d\n"
        "  rush-async expire branin 90m\n"
        "  rush-async expire branin never\n"
        "\n"
        "Exit codes: 0 done, 2 wrong usage, 69 the server cannot be reached, 78 the network does not exist."
    )
    add_network(parser)
    parser.add_argument(
        "after", metavar="TIME", type=_duration, help="a number with s, m, h, d or w behind it, seconds by default; or never"
    )
    add_json(parser)
    add_server(parser)


def run(options: argparse.Namespace) -> int:
    """Sets the time to live, and returns the exit code."""
    asyncio.run(_expire(options))
    when = "stays until it is deleted" if options.after is None else f"goes {_in_words(options.after)} after it has ended"
    report(options, f"network {options.network!r} {when}", after=options.after)
    return DONE


async def _expire(options: argparse.Namespace) -> None:
    async with open_network(options) as network:
        await network.stop_rules.expire(None if options.after is None else round(options.after * 1000))


def _in_words(after: float) -> str:
    return age(after) if after >= 86_400 or after % 60 == 0 else f"{after:g} s"


def _duration(text: str) -> float | None:
    """The seconds of a text such as `7d`; None for `never`."""
    if text == "never":
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw]?)", text)
    seconds = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if not 0.001 <= seconds <= _LONGEST:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time, such as 90m, 12h or 7d, or never; at most 10000d")
    return seconds
