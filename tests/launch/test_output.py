"""The output of child processes, as the manager shows it; `test_processes` has the whole way."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from rush_async.launch.output import Output, wake_on_output
from rush_async.testing import wait_until


@pytest_asyncio.fixture
async def output(directory: Path) -> AsyncIterator[Output]:
    output = Output(directory / "bear.stderr")
    output.start("bear")
    yield output
    output.close()
    os.close(output.wakeup_fd)


def write(directory: Path, text: bytes) -> None:
    with (directory / "bear.stdout").open("ab") as file:
        file.write(text)


async def test_a_ring_shows_whole_lines_and_the_end_the_rest(
    output: Output, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = ""

    def has_shown(text: str) -> bool:
        nonlocal shown
        shown += capsys.readouterr().out
        return shown == text

    write(directory, b"one\ntw")
    os.write(output.wakeup_fd, b"\0")
    await wait_until(lambda: has_shown("[bear] one\n"))
    write(directory, b"o\nno text: \xff\r\nno end")
    output.show_all()
    assert has_shown("[bear] one\n[bear] two\n[bear] no text: \N{REPLACEMENT CHARACTER}\n")
    output.close()
    assert shown + capsys.readouterr().out == f"{shown}[bear] no end\n"


async def test_much_output_leaves_the_event_loop_turns(
    output: Output, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(directory, b"0123456\n" * 2**17)
    os.write(output.wakeup_fd, b"\0")
    sizes = list[int]()
    await wait_until(lambda: not sizes.append(len(capsys.readouterr().out)) and sum(sizes) == 15 * 2**17)
    assert len([size for size in sizes if size]) > 1


async def test_an_output_that_is_closed_here_loses_lines_without_an_error(
    output: Output, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(directory, b"one\n")
    for closed in (None, closed_file(directory)):
        monkeypatch.setattr(sys, "stdout", closed)
        write(directory, b"one\n")
        output.show_all()


def closed_file(directory: Path) -> object:
    with (directory / "closed").open("w") as file:
        return file


def test_a_full_bell_does_not_block_the_child(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wakeups, wakeup_fd = os.pipe()
    os.set_blocking(wakeup_fd, False)
    with (directory / "stdout").open("w") as file:
        monkeypatch.setattr(sys, "stdout", file)
        monkeypatch.setattr(sys, "stderr", file)
        wake_on_output(wakeup_fd)
        n = 2**17  # a pipe takes 2**16
        for _ in range(n):
            sys.stdout.write("\n")
        assert len(os.read(wakeups, n)) < n
        os.close(wakeups)
        sys.stdout.write("the manager is gone\n")
        os.close(wakeup_fd)
        sys.stdout.close()
    monkeypatch.undo()
    assert (directory / "stdout").stat().st_size == n + len("the manager is gone\n")
