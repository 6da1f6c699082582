"""What the commands that act say; the tests of the commands compare whole lines."""

from __future__ import annotations

from argparse import Namespace

import pytest

from rush_async.cli.outcomes import counted, report


def test_numbers_have_their_nouns() -> None:
    assert [counted(n, "task") for n in (0, 1, 2, 12_000)] == ["0 tasks", "1 task", "2 tasks", "12,000 tasks"]


def test_an_outcome_is_a_line_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    report(Namespace(network="net", json=False), "done", keys=["a"])
    assert capsys.readouterr().out == "done\n"
    report(Namespace(network="net", json=True), "done", keys=["a"])
    assert " ".join(capsys.readouterr().out.split()) == '{ "network": "net", "said": "done", "keys": [ "a" ] }'
