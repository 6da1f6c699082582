"""The standard streams of the program: those that are missing are opened, and what nothing reads is dropped."""

from __future__ import annotations

import os
import sys

import pytest

from rush_async.cli.streams import flush, open_missing


def test_streams_that_the_program_was_started_without_are_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = sys.stderr
    monkeypatch.setattr(sys, "stdin", None)
    monkeypatch.setattr(sys, "stdout", None)
    open_missing()
    with sys.stdin as stdin, sys.stdout as stdout:
        assert stdin.read() == ""
        stdout.write("nothing reads this")
        assert (stdin.name, stdout.name) == (os.devnull, os.devnull)
    assert sys.stderr is kept


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_what_nothing_reads_is_an_error_of_stdout_alone_and_is_dropped(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stream:
        monkeypatch.setattr(sys, name, stream)
        stream.write("nothing reads this")
        if name == "stdout":
            with pytest.raises(BrokenPipeError):
                flush()
        flush()
        stream.write("nor this")
        flush()


def test_a_stream_that_a_loop_has_closed_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with open(os.devnull, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
    flush()
