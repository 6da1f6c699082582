"""The options of the program `rush-async`, checked."""

from __future__ import annotations

import argparse
import json
import logging
import math
import threading
from collections.abc import Sequence
from typing import Any, NoReturn, cast

from rush_async.errors import RushConfigError, redact
from rush_async.launch.packed_loop import split_name
from rush_async.store.keys import check_network_id

__all__ = ["parse"]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(redact(message))  # the message may quote a URL given in the wrong place


def _parsers() -> tuple[argparse.ArgumentParser, argparse.ArgumentParser]:
    """Returns the parser of the program, and that of `worker`."""
    parser = _Parser(prog="rush-async", description="Workers of a network, on any machine.", allow_abbrev=False)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=_Parser)
    worker = commands.add_parser(
        "worker",
        help="run workers of a network until they end or are asked to stop",
        description="Runs workers in this process until they end or are asked to stop. On SIGTERM and SIGINT the workers "
        "finish their tasks and take no new ones. The loop may be in a module of the current directory.",
        epilog="The server is named by RUSH_URL, else REDIS_URL, else RUSH_DATA_DIR, in the environment, and its password by "
        "RUSH_PASSWORD where the URL has none. Exit codes: 0 all workers ended, 1 a loop failed, 2 wrong usage, 3 a worker was "
        "killed or lost, "
        "69 the server cannot be reached, 78 the loop, start or configuration is refused, 130 or 143 ended before it was "
        "drained.",
        allow_abbrev=False,
    )
    _add_arguments(worker)
    return parser, worker


def _add_arguments(worker: argparse.ArgumentParser) -> None:
    worker.add_argument("network", metavar="NETWORK", type=_network_id, help="the network to work in")
    worker.add_argument("loop", metavar="MODULE:FUNCTION", nargs="?", type=_loop_name, help="the worker loop, by its name")
    worker.add_argument("--start", metavar="ID", help="what Rush.worker_command() prepared, instead of MODULE:FUNCTION")
    worker.add_argument("-n", "--workers", metavar="N", type=_count, help="how many workers (default: as prepared, else 1)")
    worker.add_argument("--url", help="the server; leave out its password, which every user of this machine could see here")
    worker.add_argument("--data-dir", metavar="DIR", help="the data directory of an embedded server, instead of a URL")
    worker.add_argument("--args", metavar="JSON", type=_arguments, help="arguments of the loop, as a JSON object")
    worker.add_argument(
        "--log-level",
        metavar="LOGGER=LEVEL",
        type=_level,
        action="append",
        help="a logger whose records Rush.read_log() shows; may be given several times (default: all from WARNING on)",
    )
    worker.add_argument("--heartbeat-period", metavar="S", type=_seconds, help="seconds between two heartbeats")
    worker.add_argument("--heartbeat-expire", metavar="S", type=_seconds, help="seconds after which silent workers are lost")
    worker.add_argument(
        "--drain", metavar="S", type=_seconds, default=30.0, help="seconds that workers may run after a signal (default: 30)"
    )
    worker.add_argument("--max-time", metavar="S", type=_limit, help="seconds after which each worker takes no new task")
    worker.add_argument("--max-tasks", metavar="N", type=_count, help="tasks after which each worker takes no new one")
    worker.add_argument(
        "--idle-timeout", metavar="S", type=_limit, help="seconds that each worker waits for a task or a place; then it ends"
    )
    worker.add_argument("--allow-pickle", action="store_true", help="take a start that holds a pickle")
    worker.add_argument("--tls-ca-file", metavar="FILE", help="certificates to trust besides the system's")
    worker.add_argument("--tls-cert-file", metavar="FILE", help="this client's certificate")
    worker.add_argument("--tls-key-file", metavar="FILE", help="this client's private key")
    worker.add_argument(
        "--no-tls-check-hostname", dest="tls_check_hostname", action="store_false", help="take a certificate of another host"
    )
    worker.add_argument("-v", "--verbose", action="count", default=0, help="log at INFO; twice: at DEBUG")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Returns the options. Wrong usage exits with code 2."""
    parser, worker = _parsers()
    options, rest = parser.parse_known_args(argv)
    if len(rest) == 1 and options.loop is None and not rest[0].startswith("-"):
        # argparse of Python 3.11 does not parse the loop if options come between network and loop.
        try:
            options.loop = _loop_name(rest[0])
        except argparse.ArgumentTypeError as error:
            worker.error(str(error))
    elif rest:
        worker.error(f"unrecognized arguments: {' '.join(rest)}")
    if (options.loop is None) is (options.start is None):
        worker.error("name the loop by MODULE:FUNCTION, or what was prepared by --start ID: one of the two")
    if options.url and options.data_dir:
        worker.error("name the server by --url, or an embedded one by --data-dir: one of the two")
    return options


def _network_id(text: str) -> str:
    try:
        return check_network_id(text)
    except RushConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _loop_name(text: str) -> str:
    try:
        split_name(text)
    except RushConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number, 1 or more")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= threading.TIMEOUT_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return seconds


def _limit(text: str) -> float:
    if not (seconds := _seconds(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return seconds


def _arguments(text: str) -> dict[str, Any]:
    try:
        arguments = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"no JSON: {error}") from None
    if not isinstance(arguments, dict):
        raise argparse.ArgumentTypeError('a JSON object is needed, as {"name": value}')
    return cast("dict[str, Any]", arguments)


def _level(text: str) -> tuple[str, str]:
    name, _, level = text.rpartition("=")
    if level.upper() not in logging.getLevelNamesMapping():
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form my.logger=DEBUG")
    return name, level.upper()
