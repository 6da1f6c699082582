"""What the commands print."""

from __future__ import annotations

import asyncio
import io
import json
import signal
import sys
from datetime import UTC, datetime
from typing import Any

import pytest

from rush_async.cli.exit_codes import CommandError
from rush_async.cli.output import age, as_text, ask, counted, print_json, print_table


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_table_has_aligned_columns_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["name", "n", "y"], [["a", 1, None], ["longer", 10, 0.123456789]])
    assert capsys.readouterr().out == "name     n         y\na        1\nlonger  10  0.123457\n"
    print_table(["name"], [])
    assert capsys.readouterr().out == "name\n"


def test_a_table_on_a_terminal_is_that_of_rich_or_plain_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    print_table(["name", "n"], [["[a]", 1]])
    assert "───" in terminal.getvalue()
    assert "[a]" in terminal.getvalue()
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    print_table(["name", "n"], [["[a]", 1]])
    assert terminal.getvalue() == "name  n\n[a]   1\n"


def test_a_name_stays_in_one_line_of_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    columns, row = ["worker", "host", "oldest task"], ["clear_panda_43eee8", "n" * 20, "RgGUMqH6Z00G, since 2 h 5 m"]
    for width, is_drawn in ((60, True), (40, False)):
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setattr(sys, "stdout", terminal := Terminal())
        print_table(columns, [row])
        assert ("───" in terminal.getvalue()) == is_drawn
        assert all(text in terminal.getvalue() for text in (*row[:2], "RgGUMqH6Z00G"))


def test_a_text_cannot_command_the_terminal() -> None:
    assert as_text("a\x1b[2J\nb\u202e") == r"a\x1b[2J\nb\u202e"
    assert as_text({"a": [1, "é\x1b"]}) == r'{"a": [1, "é\u001b"]}'
    assert as_text(datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)) == "2026-01-02 03:04:05+00:00"


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ({"a": [1, None, True, "é"]}, {"a": [1, None, True, "é"]}),
        ([float("nan"), {"y": float("inf")}, (1.5,)], [None, {"y": None}, [1.5]]),
        ([b"\0\xff", datetime(2026, 1, 2, tzinfo=UTC)], ["AP8=", "2026-01-02T00:00:00+00:00"]),
    ],
)
def test_json_can_be_read_by_others(value: Any, read: Any, capsys: pytest.CaptureFixture[str]) -> None:
    print_json(value)
    assert json.loads(capsys.readouterr().out) == read


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0 s"), (59.9, "59 s"), (60, "1 m"), (3600, "1 h"), (7500, "2 h 5 m"), (90_000, "1 d 1 h"), (86_460, "1 d")],
)
def test_an_age_has_two_units(seconds: float, text: str) -> None:
    assert age(seconds) == text


def test_a_question_needs_a_terminal_or_yes(monkeypatch: pytest.MonkeyPatch) -> None:
    ask("delete all", yes=True)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    with pytest.raises(CommandError, match=r"delete all.* add --yes") as refused:
        ask("delete all", yes=False)
    assert refused.value.code == 2
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    ask("delete all", yes=False)
    for answer in ("\n", "no\n", ""):
        monkeypatch.setattr(sys, "stdin", Terminal(answer))
        with pytest.raises(CommandError, match="nothing was done") as refused:
            ask("delete all", yes=False)
        assert refused.value.code == 1


def test_ctrl_c_at_a_question_ends_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(Terminal):
        def readline(self, *_: object) -> str:
            signal.raise_signal(signal.SIGINT)
            return "y\n"

    async def run() -> None:  # asyncio.run has a handler of its own, which does not end the reading of a line
        ask("delete all", yes=False)
        done.append("deleted")

    done: list[str] = []
    monkeypatch.setattr(sys, "stdin", Interrupted())
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(run())
    assert done == []
    assert signal.getsignal(signal.SIGINT) is before


def test_numbers_have_their_nouns() -> None:
    assert [counted(n, "task") for n in (0, 1, 2, 12_000)] == ["0 tasks", "1 task", "2 tasks", "12,000 tasks"]
