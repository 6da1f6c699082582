"""The program `rush-async`: its table of commands, and how it ends."""

from __future__ import annotations

import asyncio
import os
import sys
from argparse import Namespace
from importlib import import_module

import pytest

from rush_async import RushConfigError, __version__
from rush_async.cli import program
from rush_async.cli.commands import worker
from rush_async.cli.exit_codes import CLOSED_PIPE, CommandError
from rush_async.cli.program import COMMANDS, Command, main
from tests.cli.programs import Run


def test_the_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert [line.split()[0] for line in shown.splitlines() if line.startswith("  ") and line[2].islower()] == [
        command.name for command in sorted(COMMANDS, key=lambda each: [one.group for one in COMMANDS].index(each.group))
    ]
    assert main([]) == 2
    assert capsys.readouterr() == ("", shown)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"rush-async {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_the_help_of_every_command_has_examples(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command.name, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert f"Examples:\n  rush-async {command.name} " in shown
    assert max(map(len, shown.splitlines())) <= 120


def test_a_mistyped_command_gets_the_one_that_was_meant(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["wroker", "net"]) == 2
    assert "there is no command 'wroker': did you mean 'worker'?" in capsys.readouterr().err
    assert main(["redis://:hunter2@h"]) == 2
    errors = capsys.readouterr().err
    assert "the commands are worker" in errors
    assert "hunter2" not in errors


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (RushConfigError("no such thing"), 78, "rush-async worker: no such thing\n"),
        (CommandError("nothing found"), 1, "rush-async worker: nothing found\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_an_error_of_a_user_is_one_line(
    error: BaseException, code: int, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(options: Namespace) -> int:
        assert options.command == "worker"
        raise error

    monkeypatch.setattr(worker, "run", run)
    assert main(["worker", "net", "a:b"]) == code
    assert capsys.readouterr().err == message


def test_ctrl_c_ends_an_import_quietly(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def import_module(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(program, "import_module", import_module)
    assert main(["status", "net"]) == 130
    assert capsys.readouterr() == ("", "")


async def test_a_closed_pipe_ends_the_program_quietly(run: Run) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    for words in (["--help"], ["worker", "--help"]):
        program = [sys.executable, "-m", "rush_async", *words]
        process = await asyncio.create_subprocess_exec(*program, stdout=writer, stderr=asyncio.subprocess.PIPE)
        assert await process.communicate() == (None, b"")
        assert process.returncode == CLOSED_PIPE
    os.close(writer)
    line = f"{sys.executable} -m rush_async --help >&-; echo code $? >&2"
    assert (await (await run("sh", "-c", line)).ended())[1] == "code 0\n"


def test_every_module_of_a_command_is_in_the_table() -> None:
    for command in COMMANDS:
        module = import_module(f"rush_async.cli.commands.{command.module}")
        assert {"add_arguments", "run"} <= set(module.__all__)


async def test_a_shell_completes_commands_and_options(run: Run) -> None:
    pytest.importorskip("argcomplete")
    for line, word in (("rush-async netw", "networks "), ("rush-async worker --max-ta", "--max-tasks ")):
        completed = f"{sys.executable} -m rush_async 8>&1 9>&2 >/dev/null 2>&1"
        variables = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9", "IFS": "\013"}
        program = await run("sh", "-c", f"({completed}) >&2", **variables)
        assert await program.ended() == (0, word)
