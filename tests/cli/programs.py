"""Programs that tests run as processes, as a scheduler would."""

from __future__ import annotations

import asyncio
import os
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LOOPS = "tests.launch.loops_of_tests"


@dataclass
class Program:
    """A running program."""

    process: Process

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    async def says(self, words: str) -> str:
        """Waits until the program has written these words to stderr, and returns the line."""
        assert self.process.stderr is not None
        async with asyncio.timeout(30):
            while words not in (line := (await self.process.stderr.readline()).decode()):
                assert line, f"it ended without having said {words!r}"
            return line

    async def ended(self) -> tuple[int, str]:
        """Returns the exit code and what was written to stderr; nothing is written to stdout."""
        async with asyncio.timeout(30):
            out, errors = await self.process.communicate()
        assert out == b""
        assert self.process.returncode is not None
        return self.process.returncode, errors.decode()


Run = Callable[..., Awaitable[Program]]


@dataclass
class Output:
    """What a command printed, and how it ended."""

    code: int
    out: bytes
    err: bytes

    @property
    def lines(self) -> list[str]:
        """The lines of stdout; the command has succeeded, and has written nothing to stderr."""
        assert (self.code, self.err) == (0, b"")
        return self.out.decode().splitlines()


Command = Callable[..., Coroutine[Any, Any, Output]]


@asynccontextmanager
async def running() -> AsyncGenerator[Run]:
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("RUSH_URL", "REDIS_URL", "RUSH_DATA_DIR", "RUSH_PASSWORD")
    }
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
