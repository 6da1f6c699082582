"""Runs the scripts of the peers as processes, reads their reports, and ends them with all their children."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

__all__ = ["Script", "ScriptError", "hold", "run"]

SCRIPTS = Path(__file__).with_name("scripts")
ROOT = Path(__file__).parents[2]


class ScriptError(Exception):
    """A script failed or hung. The message becomes the note of a row.

    Attributes:
        is_hang: whether the script did not end in time.
    """

    def __init__(self, message: str, *, is_hang: bool = False) -> None:
        super().__init__(message)
        self.is_hang = is_hang


@dataclass(frozen=True)
class Script:
    """A script in `scripts/` and its arguments.

    Attributes:
        name: the name of its file without the ending.
        python: its interpreter, or None for this one, with our library.
        arguments: its command line.
    """

    name: str
    python: Path | None
    arguments: tuple[str, ...]

    def start(self, errors: IO[bytes], directory: str, stdin: int) -> subprocess.Popen[str]:
        """Starts the script in a session of its own, so that it can be ended together with its children."""
        environment = {**os.environ, "TMPDIR": directory}
        environment.pop("PYTHONPATH", None)
        if self.python is None:
            environment["PYTHONPATH"] = str(ROOT)
        command = [str(self.python or sys.executable), str(SCRIPTS / f"{self.name}.py"), *self.arguments]
        return subprocess.Popen(
            command,
            cwd=directory,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
            stdin=stdin,
        )


def run(script: Script, timeout: float) -> dict[str, Any]:
    """Runs a script and returns its report.

    Raises:
        ScriptError: it failed, or did not end within `timeout` seconds. All its processes have ended then.
    """
    with (
        tempfile.TemporaryDirectory(prefix="peers-", ignore_cleanup_errors=True) as directory,
        tempfile.TemporaryFile() as errors,
    ):
        process = script.start(errors, directory, stdin=subprocess.DEVNULL)
        try:
            out, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            raise ScriptError(f"hung: it did not end within {timeout:g} s", is_hang=True) from None
        finally:
            if process.returncode != 0:
                _end(process)
        if process.returncode or not out.strip():
            raise ScriptError(f"failed: {_last_line(errors)}")
        return json.loads(out.splitlines()[-1])


@contextmanager
def hold(script: Script, timeout: float) -> Generator[dict[str, Any]]:
    """Runs a script until the block ends, and yields its report.

    Raises:
        ScriptError: it failed, or reported nothing within `timeout` seconds.
    """
    with (
        tempfile.TemporaryDirectory(prefix="peers-", ignore_cleanup_errors=True) as directory,
        tempfile.TemporaryFile() as errors,
    ):
        process = script.start(errors, directory, stdin=subprocess.PIPE)
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            if not select.select([process.stdout], [], [], timeout)[0]:
                raise ScriptError(f"hung: it reported nothing for {timeout:g} s", is_hang=True)
            if not (line := process.stdout.readline()):
                raise ScriptError(f"failed: {_last_line(errors)}")
            yield json.loads(line)
        finally:
            process.stdin.close()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                _end(process)
            process.stdout.close()


def _end(process: subprocess.Popen[str]) -> None:
    """Ends a script and its children."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _last_line(errors: IO[bytes]) -> str:
    errors.seek(0)
    lines = errors.read().decode("utf-8", "replace").split("\n")
    return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "it printed no error")
