"""The peers' scripts as processes: what they print, how long they may take, and that none outlives the benchmark."""

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
    """A script failed or hung; the message is fit for a note.

    Attributes:
        is_hang: whether it did not end.
    """

    def __init__(self, message: str, *, is_hang: bool = False) -> None:
        super().__init__(message)
        self.is_hang = is_hang


@dataclass(frozen=True)
class Script:
    """A script in `scripts/` and what it is asked.

    Attributes:
        python: its interpreter; None is this one, with our library.
    """

    name: str
    python: Path | None
    arguments: tuple[str, ...]

    def start(self, errors: IO[bytes], directory: str, stdin: int) -> subprocess.Popen[str]:
        """Starts it in a session of its own, so that it can be ended with all its processes."""
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
    """What a script reports.

    Raises:
        ScriptError: it failed, or did not end within `timeout` seconds; then all its processes are ended.
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
            raise ScriptError(f"failed: {_last_words(errors)}")
        return json.loads(out.splitlines()[-1])


@contextmanager
def hold(script: Script, timeout: float) -> Generator[dict[str, Any]]:
    """What a script reports that stays there until the block ends.

    Raises:
        ScriptError: it failed, or reported nothing for `timeout` seconds.
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
                raise ScriptError(f"hung: it said nothing for {timeout:g} s", is_hang=True)
            if not (line := process.stdout.readline()):
                raise ScriptError(f"failed: {_last_words(errors)}")
            yield json.loads(line)
        finally:
            process.stdin.close()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                _end(process)
            process.stdout.close()


def _end(process: subprocess.Popen[str]) -> None:
    """Ends a script with all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _last_words(errors: IO[bytes]) -> str:
    errors.seek(0)
    lines = errors.read().decode("utf-8", "replace").split("\n")
    return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "without a word")
