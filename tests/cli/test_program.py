"""The program `rush-async`, run as a process as a scheduler would."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest_asyncio

from rush_async import Failure, Rush, RushConfig
from rush_async.testing import wait_until
from tests.launch.loops_of_tests import note_arguments, raise_holding, show_arguments

ROOT = Path(__file__).parents[1]
LOOPS = "tests.launch.loops_of_tests"
PASSWORD = 'it\'s $HOME `id` \\ "a" %41 & ; ü €@:/?#'


@dataclass
class Program:
    """A program that runs."""

    process: Process

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    async def says(self, words: str) -> None:
        """Waits until it has written this to stderr."""
        assert self.process.stderr is not None
        async with asyncio.timeout(30):
            while words not in (line := (await self.process.stderr.readline()).decode()):
                assert line, f"it ended without having said {words!r}"

    async def ended(self) -> tuple[int, str]:
        """Its exit code and what it wrote to stderr; it writes nothing to stdout."""
        async with asyncio.timeout(30):
            out, errors = await self.process.communicate()
        assert out == b""
        assert self.process.returncode is not None
        return self.process.returncode, errors.decode()


Run = Callable[..., Awaitable[Program]]


@asynccontextmanager
async def running() -> AsyncGenerator[Run]:
    environment = {name: value for name, value in os.environ.items() if name not in ("RUSH_URL", "REDIS_URL", "RUSH_PASSWORD")}
    programs: list[Program] = []

    async def run(*words: str, cwd: Path = ROOT, **more: str) -> Program:
        process = await asyncio.create_subprocess_exec(*words, stdout=PIPE, stderr=PIPE, cwd=cwd, env=environment | more)
        programs.append(Program(process))
        return programs[-1]

    try:
        yield run
    finally:
        for program in programs:
            if program.process.returncode is None:
                program.process.kill()
                await program.process.communicate()


@pytest_asyncio.fixture
async def run() -> AsyncIterator[Run]:
    """Starts a program."""
    async with running() as run:
        yield run


@pytest_asyncio.fixture
async def worker(rush: Rush) -> AsyncIterator[Run]:
    """Starts `rush-async worker` in the network of `rush`."""
    assert rush.config.url is not None
    url = rush.config.url
    async with running() as run:

        async def run_worker(*words: str, cwd: Path = ROOT) -> Program:
            return await run(sys.executable, "-m", "rush_async", "worker", rush.network_id, *words, cwd=cwd, RUSH_URL=url)

        yield run_worker


async def failure_of(rush: Rush) -> Failure:
    (condition,) = (await rush.fetch_failed_tasks())["condition"]
    return Failure(**condition)


async def state(rush: Rush) -> str:
    (state,) = (await rush.worker_info())["state"]
    return state


@pytest_asyncio.fixture
async def with_password(rush: Rush, raw: Any) -> AsyncIterator[RushConfig]:
    """The server of `rush` for a user with a difficult password."""
    assert rush.config.url is not None
    raw.execute_command("ACL", "SETUSER", "ann", "on", f">{PASSWORD}", "~*", "&*", "+@all")
    url = f"unix://ann:{quote(PASSWORD, safe='')}@{urlsplit(rush.config.url).path}"
    yield replace(rush.config, url=url)
    raw.execute_command("ACL", "DELUSER", "ann")


async def test_row_7_commands_run_in_a_shell_each_with_its_loop_and_arguments(
    rush: Rush, run: Run, with_password: RushConfig, directory: Path
) -> None:
    program = directory / "rush-async"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m rush_async "$@"\n')
    program.chmod(0o755)
    path = f"{directory}:{os.environ['PATH']}"
    args = {"when": datetime(2026, 1, 2, tzinfo=UTC), "data": b"\0\xff", "nested": {"a": [1, 2.5, None]}}
    async with Rush(rush.network_id, with_password) as manager:
        first = manager.worker_command(show_arguments, args=args, n_workers=2)
        second = manager.worker_command(note_arguments, second=2, with_password=True)
    assert "%24HOME" in second
    assert "%24HOME" not in first
    programs = [
        await run("sh", "-c", f"exec {first} --verbose", PATH=path, RUSH_PASSWORD=PASSWORD),
        await run("sh", "-c", second, PATH=path),
    ]
    ends = [await program.ended() for program in programs]
    assert [code for code, _ in ends] == [0, 0], ends
    assert not any("HOME" in errors for _, errors in ends)
    tasks = await rush.fetch_finished_tasks()
    assert tasks["second"].drop_nulls().to_list() == ["2"]
    shown = tasks.drop_nulls("when")
    assert shown.height == 2
    assert {name: shown[name][0] for name in args} == {name: repr(value) for name, value in args.items()}
    # Without its password the first command cannot work; it says so, and waits for nothing.
    code, errors = await (await run("sh", "-c", first, PATH=path)).ended()
    assert code == 69
    assert "RUSH_PASSWORD" in errors


async def test_a_signal_lets_workers_finish_what_they_run_and_take_nothing_new(rush: Rush, worker: Run) -> None:
    await rush.push_tasks([{"x": 1}, {"x": 2}])
    program = await worker(f"{LOOPS}:serve_until_terminated")
    await rush.wait_until(lambda counts: counts.running == 1, timeout=30)
    program.signal(signal.SIGTERM)  # while it computes
    assert (await program.ended())[0] == 0
    assert (await rush.counts()).finished == 1
    assert (await rush.counts()).queued == 1
    assert await state(rush) == "terminated"


async def test_a_second_signal_or_the_deadline_cancels_what_they_run(rush: Rush, worker: Run) -> None:
    late = await worker(f"{LOOPS}:hold", "--drain", "0.1")
    twice = await worker(f"{LOOPS}:hold", "-v")
    await rush.wait_until(lambda counts: counts.running == 2, timeout=30)
    late.signal(signal.SIGTERM)
    code, errors = await late.ended()
    assert code == 143
    assert "1 workers have not ended yet and are cancelled" in errors
    assert (await failure_of(rush)).kind == "cancelled"
    assert (await rush.counts()).running == 1
    twice.signal(signal.SIGINT)
    await twice.says("asked to end by SIGINT")
    twice.signal(signal.SIGINT)
    assert (await twice.ended())[0] == 130
    assert (await rush.counts()).failed == 2
    assert set((await rush.worker_info())["state"]) == {"terminated"}


IMPATIENT = """
import sys
from rush_async.cli import drain, program
drain._ANSWER, drain._THREAD_END = 1, 0.1
sys.exit(program.main(sys.argv[1:]))
"""


async def test_a_loop_that_never_gives_way_ends_with_its_process(rush: Rush, run: Run) -> None:
    assert rush.config.url is not None
    words = ("-c", IMPATIENT, "worker", rush.network_id)
    blocked = await run(sys.executable, *words, f"{LOOPS}:block_loudly", "--drain", "0", RUSH_URL=rush.config.url)
    lingering = await run(sys.executable, *words, f"{LOOPS}:leave_a_thread_behind", RUSH_URL=rush.config.url)
    await blocked.says("blocked")
    blocked.signal(signal.SIGTERM)
    code, errors = await blocked.ended()
    assert code == 143
    assert "their event loop is blocked: the process ends now" in errors
    await rush.stop_workers(mode="kill")  # sooner than its lease expires
    # All workers of the other have ended by themselves; only their thread is in the way.
    await wait_until(lambda: ended(rush), timeout=30)
    assert lingering.process.returncode is None
    lingering.signal(signal.SIGTERM)
    assert (await lingering.ended())[0] == 0


async def ended(rush: Rush) -> bool:
    return set((await rush.worker_info())["state"]) == {"killed", "terminated"}


async def test_a_signal_that_comes_before_the_loop_runs_is_not_lost(rush: Rush, worker: Run, directory: Path) -> None:
    (directory / "early.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\nasync def loop(rush): ...")
    early = await worker("early:loop", "-v", cwd=directory)
    forks = await worker(f"{LOOPS}:end_a_fork")
    code, errors = await early.ended()
    assert code == 0
    assert "asked to end before a worker was started" in errors
    # What a loop forks ends by signals as any other process.
    assert (await forks.ended())[0] == 0
    assert (await rush.fetch_finished_tasks())["signal"].to_list() == [signal.SIGTERM]
    assert len(await rush.worker_info()) == 1


async def test_exit_codes_tell_what_went_wrong(rush: Rush, worker: Run) -> None:
    words = shlex.split(rush.worker_command(raise_holding, allow_pickle=True))
    start_id = words[words.index("--start") + 1]
    failed = await worker(f"{LOOPS}:raise_holding", "--args", '{"message": "out of money"}', "-n", "2")
    refused = await worker("--start", start_id)
    unknown = await worker("--start", "0123")
    code, errors = await failed.ended()
    assert code == 1
    assert errors.count("RuntimeError: out of money") == 1
    assert all(worker_id in errors for worker_id in (await rush.worker_info())["worker_id"])
    code, errors = await refused.ended()
    assert code == 78
    assert "--allow-pickle" in errors
    code, errors = await unknown.ended()
    assert code == 78
    assert "has no start '0123'" in errors


async def test_a_worker_that_is_killed_or_refused_its_loop_ends_the_program(rush: Rush, worker: Run) -> None:
    killed = await worker(f"{LOOPS}:hold")
    refused = await worker(f"{LOOPS}:no_such_loop")
    unreachable = await worker(f"{LOOPS}:hold", "--url", "redis://:hunter2@localhost:1")
    await rush.wait_until(lambda counts: counts.running == 1, timeout=30)
    await rush.stop_workers(mode="kill")
    code, errors = await killed.ended()
    assert code == 3
    assert "was killed" in errors
    code, errors = await refused.ended()
    assert code == 78
    assert "has no 'no_such_loop'" in errors
    code, errors = await unreachable.ended()
    assert code == 69
    assert "hunter2" not in errors
    assert "every user of this machine can see a password in --url" in errors
