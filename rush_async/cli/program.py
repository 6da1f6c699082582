"""The program `rush-async`: a table of commands, each in a module of its own, which is imported when the command is called.

A module of `cli/commands/` has two functions. `add_arguments(parser)` adds its options; `parser.get_default("command")` is the
name in the table, for a module that has several commands. `run(options)` does the work and returns the exit code; it imports
what takes time, such as polars. `options.parser.error(...)` refuses options that do not go together, with exit code 2.

`cli/options.py` has the options that commands share, `cli/opening.py` opens what they name, `cli/output.py` prints, and
`cli/exit_codes.py` has the exit codes and the errors that lead to them.
"""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import NamedTuple

from rush_async.cli.exit_codes import CLOSED_PIPE, DONE, FAILED, INTERRUPTED, USAGE, explain
from rush_async.cli.options import Parser
from rush_async.cli.streams import flush, open_missing
from rush_async.errors import RushError, redact

__all__ = ["COMMANDS", "Command", "fill", "main", "parse"]


class Command(NamedTuple):
    """A command of the program.

    Attributes:
        name: the word that calls it.
        summary: what it does, in one line.
        group: the heading under which `--help` lists it.
        module: its module in `cli/commands/`.
    """

    name: str
    summary: str
    group: str
    module: str


COMMANDS = (
    Command("worker", "run workers of a network until they end or are asked to stop", "Work", "worker"),
    Command("networks", "list the networks of the server", "Look", "networks"),
    Command("status", "show a network: tasks, rate, workers, stop rules, last failures", "Look", "status"),
    Command("watch", "show a network live, until it ends", "Look", "watch"),
    Command("tasks", "show tasks as a table, CSV, JSON or Parquet", "Look", "tasks"),
    Command("best", "show the finished tasks with the best values of an output", "Look", "tasks"),
    Command("workers", "list workers, each with the time since it took its task", "Look", "workers"),
    Command("failures", "show why tasks failed, each reason once, with a traceback", "Look", "failures"),
    Command("log", "print what workers logged", "Look", "log"),
    Command("stop", "stop a network: no task starts any more, in any process", "Steer", "stop"),
    Command("resume", "let a network that has stopped continue", "Steer", "stop"),
    Command("kill", "end workers at once, wherever they run", "Steer", "stop"),
    Command("retry", "queue failed tasks again", "Steer", "retry"),
    Command("cancel", "take tasks out of the queue", "Steer", "retry"),
    Command("reset", "empty a network for a new run", "Steer", "reset"),
    Command("expire", "let a network go by itself, some time after it has ended", "Steer", "expire"),
    Command("delete", "delete a network: nothing is left on the server", "Steer", "reset"),
    Command("export", "write a network into one file", "Keep", "export"),
    Command("import", "take an export into a network", "Keep", "export"),
    Command("replay", "make the proposals of an export once more, and compare", "Keep", "replay"),
    Command("server", "run the embedded server in the foreground, with a port for other machines", "Servers", "server"),
    Command("doctor", "check a server, your rights and a network: a verdict and a remedy each", "Servers", "doctor"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit code. Wrong usage raises `SystemExit`, as argparse does."""
    words = sys.argv[1:] if argv is None else list(argv)
    open_missing()
    if reconfigure := getattr(sys.stdout, "reconfigure", None):
        reconfigure(errors="backslashreplace")  # a value may have characters that the terminal has not
    try:
        try:
            return _run(words)
        finally:
            flush()
    except KeyboardInterrupt:  # also while a command is imported
        return INTERRUPTED
    except BrokenPipeError:  # the reader of the output has gone, as `head` does
        return CLOSED_PIPE
    except OSError as error:  # such as a file that is missing, or a full disk
        where = f"{error.filename}: " if error.filename else ""
        with suppress(OSError):  # stderr may be on the same disk
            print(" ".join(["rush-async", *words[:1]]) + f": {where}{error.strerror or error}", file=sys.stderr)
        flush()
        return FAILED


def _run(words: list[str]) -> int:
    if "_ARGCOMPLETE" in os.environ:
        _complete()
    if not words or words[0] in ("-h", "--help"):
        print(_help(), file=sys.stdout if words else sys.stderr)
        return DONE if words else USAGE
    if words[0] in ("-V", "--version"):
        print(f"rush-async {sys.modules['rush_async'].__version__}")
        return DONE
    command = next((each for each in COMMANDS if each.name == words[0]), None)
    if command is None:
        print(_unknown(words[0]), file=sys.stderr)
        return USAGE
    parser = Parser(prog=f"rush-async {command.name}")
    options = parse(command, parser, words[1:])
    try:
        return import_module(_module_of(command)).run(options)
    except RushError as error:
        code, message = explain(error)
        print(f"rush-async {command.name}: {message}", file=sys.stderr)
        return code


def parse(command: Command, parser: Parser, words: list[str]) -> Namespace:
    """Returns the options of a command, with `command`, its name, and `parser`, for errors. Wrong usage raises `SystemExit`."""
    fill(command, parser)
    # Options may stand between arguments; what follows `--` must not be mistaken for them.
    return parser.parse_args(words) if "--" in words else parser.parse_intermixed_args(words)


def fill(command: Command, parser: ArgumentParser) -> None:
    """Adds the options of a command to a parser."""
    parser.set_defaults(command=command.name, parser=parser)
    import_module(_module_of(command)).add_arguments(parser)


def _module_of(command: Command) -> str:
    return f"rush_async.cli.commands.{command.module}"


_MORE_HELP = """

options:
  -h, --help     show this help; `rush-async COMMAND --help` shows that of a command
  -V, --version  show the version

The server is named by --url or --data-dir, else by RUSH_URL, REDIS_URL or RUSH_DATA_DIR in the environment, its
password by RUSH_PASSWORD, and the network by the first argument of a command, else by RUSH_NETWORK."""


def _help() -> str:
    lines = ["usage: rush-async COMMAND ...", "", "Works in networks of rush_async, and shows, steers and keeps them."]
    for group in dict.fromkeys(command.group for command in COMMANDS):
        lines += ["", f"{group}:"]
        lines += [f"  {command.name:<10} {command.summary}" for command in COMMANDS if command.group == group]
    return "\n".join(lines) + _MORE_HELP


def _unknown(word: str) -> str:
    from difflib import get_close_matches

    names = [command.name for command in COMMANDS]
    near = get_close_matches(word, names, n=1)
    advice = f"did you mean {near[0]!r}?" if near else f"the commands are {', '.join(names)}"
    return f"rush-async: error: there is no command {redact(word)!r}: {advice}"


def _complete() -> None:
    """Answers a shell that completes a line, where argcomplete is installed, and ends the process."""
    try:
        import argcomplete
    except ImportError:
        return
    parser = ArgumentParser(prog="rush-async")
    commands = parser.add_subparsers()
    for command in COMMANDS:
        fill(command, commands.add_parser(command.name, help=command.summary))
    argcomplete.autocomplete(parser)
