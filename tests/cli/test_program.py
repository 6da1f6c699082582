"""The program `rush-async`: its table of commands, and how it ends."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from argparse import Namespace
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Generator
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pytest
import pytest_asyncio

from rush_async import Draw, Rush, RushConfigError, RushWorker, __version__
from rush_async.cli import program
from rush_async.cli.commands import worker
from rush_async.cli.exit_codes import CLOSED_PIPE, CommandError
from rush_async.cli.program import COMMANDS, Command, main
from tests.cli.calling import call
from tests.cli.programs import LOOPS, Run


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


# how every command ends without a terminal, and into a closed pipe


def propose(draw: Draw) -> dict[str, float]:
    return {"x": draw.random().random()}


async def evaluate(rush: RushWorker) -> None:
    async for task in rush.proposals(propose, budget=2):
        async with task:
            task.ys = {"y": task.xs["x"]}
    logging.getLogger(__name__).warning("the budget is used up")


@pytest_asyncio.fixture
async def seeded(rush: Rush, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rush]:
    """A manager whose network has two queued, two finished and one failed task, and a record in its log."""
    assert rush.config.url is not None
    for name in ("REDIS_URL", "RUSH_DATA_DIR", "RUSH_PASSWORD", "RUSH_NETWORK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RUSH_URL", rush.config.url)
    async with Rush(config=rush.config, seed=7) as seeded:
        await seeded.start_workers(evaluate, log_levels={"tests": "WARNING"})
        await seeded.join_workers()
        await seeded.push_tasks([{"x": 1.0}, {"x": 2.0}])
        await seeded.push_failed_tasks([{"x": 3.0}], [ValueError("no")])
        yield seeded
        await seeded.reset()


@contextmanager
def stdin_closed() -> Generator[None]:
    """Calls commands without stdin, as `<&-` does. It is no fixture: pytest sets the streams again before it calls a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", None)
        yield
        if (opened := getattr(sys, "stdin", None)) is not None:
            opened.close()


@contextmanager
def stdout_at(file: int | str) -> Generator[None]:
    """Lets commands write into a file, buffered, as a shell does."""
    with open(file, "w") as stdout, redirect_stdout(stdout):
        yield


class Ending(NamedTuple):
    """How a command is called, and how it ends.

    Attributes:
        words: what follows its name. NET is the network, and FILE an export of it.
        code: its exit code without a terminal, in a network that has stopped.
        more: options that are added where it writes into a closed pipe.
    """

    words: str
    code: int = 0
    more: str = ""


ENDINGS = {
    "networks": Ending(""),
    "status": Ending("NET"),
    "watch": Ending("NET"),
    "tasks": Ending("NET", more="--format parquet"),
    "best": Ending("NET --by y"),
    "workers": Ending("NET"),
    "failures": Ending("NET"),
    "log": Ending("NET", more="--follow"),
    "stop": Ending("NET"),
    "resume": Ending("NET"),
    "kill": Ending("NET --all"),
    "retry": Ending("NET"),
    "cancel": Ending("NET --all"),
    "reset": Ending("NET", 2, "--yes"),
    "expire": Ending("NET 7d"),
    "delete": Ending("NET", 2, "--yes"),
    "export": Ending("NET FILE"),
    "import": Ending("NET FILE"),
    "replay": Ending(f"FILE {__name__}:propose"),
    "doctor": Ending("NET", 1),  # a private server keeps nothing
}


async def words_of(command: str, seeded: Rush, directory: Path) -> list[str]:
    path = directory / "a.zip"
    if command in ("import", "replay"):
        await seeded.export(path)
    words = ENDINGS[command].words.split()
    return [command, *({"NET": seeded.network_id, "FILE": str(path)}.get(word, word) for word in words)]


def test_it_is_tested_how_every_command_ends() -> None:
    # Those that wait for signals are processes of their own.
    assert sorted([*ENDINGS, "worker", "server"]) == sorted(command.name for command in COMMANDS)


@pytest.mark.parametrize("command", ENDINGS)
async def test_a_command_without_a_terminal_prints_plain_text_and_ends_with_its_code(
    command: str, seeded: Rush, capsys: pytest.CaptureFixture[str], directory: Path
) -> None:
    words = await words_of(command, seeded, directory)
    await seeded.stop()  # else `watch` would not end
    with stdin_closed():
        called = await call(capsys, *words)
    assert called.code == ENDINGS[command].code
    assert "\x1b" not in called.out
    if called.code == 2:
        assert called.out == ""
        assert called.errors.endswith("as stdin is no terminal: add --yes\n")
    else:
        assert called.out.endswith("\n")
        assert called.errors == ""


@pytest.mark.parametrize("command", ENDINGS)
async def test_a_command_ends_quietly_with_141_once_the_reader_of_its_output_has_gone(
    command: str, seeded: Rush, capsys: pytest.CaptureFixture[str], directory: Path
) -> None:
    words = await words_of(command, seeded, directory)
    reader, writer = os.pipe()
    os.close(reader)
    with stdin_closed(), stdout_at(writer):
        called = await call(capsys, *words, *ENDINGS[command].more.split())
    assert (called.code, called.errors) == (CLOSED_PIPE, "")


async def test_a_process_ends_with_its_code_though_nothing_reads_what_it_writes(rush: Rush, directory: Path) -> None:
    assert rush.config.url is not None
    await rush.push_tasks([{"x": 1}])
    reader, writer = os.pipe()
    os.close(reader)

    async def start(*words: str, stderr: int) -> Process:
        # Python writes to stderr what it still buffers when it ends: it must not fail then, which is code 120.
        env = os.environ | {"PYTHONUNBUFFERED": ""}
        program = (sys.executable, "-m", "rush_async", *words)
        return await asyncio.create_subprocess_exec(*program, stdin=DEVNULL, stdout=writer, stderr=stderr, env=env)

    url = ("--url", rush.config.url)
    worker = await start("worker", rush.network_id, f"{LOOPS}:serve", *url, "--max-tasks", "1", stderr=writer)
    missing = await start("status", "no such network", *url, stderr=writer)
    server = await start("server", "--data-dir", str(directory / "data"), stderr=PIPE)
    os.close(writer)
    assert await server.communicate() == (None, b"")
    assert [await each.wait() for each in (worker, missing, server)] == [0, CLOSED_PIPE, CLOSED_PIPE]
    assert (await rush.counts()).finished == 1


async def test_without_its_server_network_or_options_a_command_ends_with_69_78_or_2(
    seeded: Rush, capsys: pytest.CaptureFixture[str], directory: Path
) -> None:
    for command in ENDINGS.keys() - {"doctor", "replay"}:  # its verdict is 1; it needs no server
        words = await words_of(command, seeded, directory)
        called = await call(capsys, *words, "--url", "redis://localhost:1")
        assert (called.code, called.out) == (69, ""), command
        assert called.errors.startswith(f"rush-async {command}: cannot reach redis://localhost:1"), command
        assert called.errors.count("\n") == 1, command
        if seeded.network_id in words and command != "import":
            called = await call(capsys, *["no such network" if word == seeded.network_id else word for word in words])
            assert (called.code, called.out) == (78, ""), command
            assert called.errors.startswith(f"rush-async {command}: network 'no such network' does not exist on "), command
            assert called.errors.endswith(": `rush-async networks` lists those that do\n"), command
    for command in COMMANDS:
        called = await call(capsys, command.name, "--no-such-option")
        assert (called.code, called.out) == (2, ""), command
        assert called.errors.startswith(f"rush-async {command.name}: error: "), command
        assert called.errors.endswith(f"\n`rush-async {command.name} --help` shows how it is used\n"), command


async def test_a_full_disk_is_one_line(seeded: Rush, capsys: pytest.CaptureFixture[str]) -> None:
    net = seeded.network_id
    for words in (["--help"], ["status", "--help"], ["status", net], ["tasks", net, "--format", "csv"]):
        with stdout_at("/dev/full"):
            called = await call(capsys, *words)
        assert (called.code, called.errors) == (1, f"rush-async {words[0]}: No space left on device\n")


async def test_a_closed_pipe_ends_the_program_quietly(run: Run) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    for words in (["--help"], ["worker", "--help"]):
        program = [sys.executable, "-m", "rush_async", *words]
        process = await asyncio.create_subprocess_exec(*program, stdout=writer, stderr=asyncio.subprocess.PIPE)
        assert await process.communicate() == (None, b"")
        assert process.returncode == CLOSED_PIPE
    os.close(writer)
    for words, code in (("--help", 0), ("worker net no_such_module:loop --processes 2 --url redis://localhost:1", 78)):
        line = f"{sys.executable} -m rush_async {words} <&- >&-; echo code $? >&2"
        _, errors = await (await run("sh", "-c", line)).ended()
        assert errors.endswith(f"code {code}\n")
        assert "AttributeError" not in errors


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
