"""The options that the commands of the program `rush-async` share: the network, the server, and checked types.

A command adds `add_network(parser)` and `add_server(parser)`, and opens what they name by the functions of `cli/opening.py`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import threading
from typing import TYPE_CHECKING, Any, NoReturn, cast

from rush_async.cli.exit_codes import USAGE
from rush_async.errors import RushConfigError, redact

if TYPE_CHECKING:
    from rush_async.config import RushConfig

__all__ = [
    "Parser",
    "add_json",
    "add_network",
    "add_server",
    "config_of",
    "count",
    "json_object",
    "limit",
    "network_id",
    "port",
    "seconds",
    "warn_of_password",
]


class Parser(argparse.ArgumentParser):
    """A parser of a command: no abbreviations, line breaks of the epilog stay, and errors show no password."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def print_help(self, file: Any = None) -> None:
        """Prints the help; that of argparse hides that the reader of the output has gone."""
        print(self.format_help(), end="", file=file)

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments: ") and (near := self._near(message.split()[2])):
            message += f": did you mean {near}?"
        # The message may quote a URL given in the wrong place.
        self.exit(USAGE, f"{self.prog}: error: {redact(message)}\n`{self.prog} --help` shows how it is used\n")

    def _near(self, word: str) -> str | None:
        from difflib import get_close_matches

        near = get_close_matches(word.partition("=")[0], re.findall(r"--[\w-]+", self.format_usage()), n=1, cutoff=0.7)
        return near[0] if word.startswith("-") and near else None


def add_network(parser: argparse.ArgumentParser) -> None:
    """Adds the argument NETWORK: `options.network`. It may be left out where RUSH_NETWORK is set in the environment."""
    known = os.environ.get("RUSH_NETWORK")
    parser.add_argument(
        "network",
        metavar="NETWORK",
        type=network_id,
        nargs="?" if known else None,
        default=known or None,
        help="the network; by default RUSH_NETWORK of the environment",
    )


def add_server(parser: argparse.ArgumentParser) -> None:
    """Adds the options that name the server: `config_of` reads them."""
    server = parser.add_argument_group("server", "By default RUSH_URL, else REDIS_URL, else RUSH_DATA_DIR of the environment.")
    address = server.add_mutually_exclusive_group()
    address.add_argument("--url", help="the server; leave out its password, which every user of this machine could see here")
    address.add_argument("--data-dir", metavar="DIR", help="the data directory of an embedded server, instead of a URL")
    server.add_argument("--tls-ca-file", metavar="FILE", help="certificates to trust besides the system's")
    server.add_argument("--tls-cert-file", metavar="FILE", help="this client's certificate")
    server.add_argument("--tls-key-file", metavar="FILE", help="this client's private key")
    server.add_argument(
        "--no-tls-check-hostname",
        dest="tls_check_hostname",
        action="store_false",
        default=None,
        help="take a certificate of another host",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Adds the option `--json`: `options.json`."""
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


# what they name


def config_of(options: argparse.Namespace) -> RushConfig:
    """Returns the settings that the options of `add_server` and the environment name.

    Raises:
        RushConfigError: no server is named, or a setting cannot be used.
    """
    from dataclasses import replace

    from rush_async.config import RushConfig, with_password_of_environment, without_password

    found = RushConfig.from_env()
    if options.data_dir is not None:
        found = replace(found, url=None, data_dir=options.data_dir)
    elif options.url is not None and (found.url is None or without_password(found.url) != options.url):
        RushConfig(options.url)  # checked before a password is written into it
        found = found.at(with_password_of_environment(options.url))
    if found.url is None and found.data_dir is None:
        raise RushConfigError(
            "no server is named: set RUSH_URL in the environment or add --url; for an embedded server on this machine, set "
            "RUSH_DATA_DIR or add --data-dir"
        )
    names = ("tls_ca_file", "tls_cert_file", "tls_key_file", "tls_check_hostname")
    return replace(found, **{name: value for name in names if (value := getattr(options, name)) is not None})


def warn_of_password(options: argparse.Namespace) -> str | None:
    """Returns a warning where the options show a password to every user of the machine."""
    from rush_async.config import without_password

    if not options.url or without_password(options.url) == options.url:
        return None
    return "every user of this machine can see a password in --url: set RUSH_URL or RUSH_PASSWORD instead"


# types of options, for `type=` of an argument


def network_id(text: str) -> str:
    """The id of a network."""
    from rush_async.store.keys import check_network_id

    try:
        return check_network_id(text)
    except RushConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def count(text: str) -> int:
    """A number, 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number, 1 or more")
    return int(text)


def seconds(text: str) -> float:
    """A number of seconds, 0 or more."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= threading.TIMEOUT_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return number


def limit(text: str) -> float:
    """A number of seconds above 0."""
    if not (number := seconds(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return number


def port(text: str) -> int:
    """The number of a port; 0 for a free one."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not the number of a port, 0 to 65535")
    return int(text)


def json_object(text: str) -> dict[str, Any]:
    """A JSON object, as a dict."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"no JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError('a JSON object is needed, as {"name": value}')
    return cast("dict[str, Any]", value)
