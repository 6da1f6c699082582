"""What the commands that act say; the tests of the commands compare whole lines."""

from __future__ import annotations

from argparse import Namespace

import pytest

from rush_async.cli.outcomes import report


def test_an_outcome_is_a_line_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    report(Namespace(network="net", json=False), "done", keys=["a"])
    assert capsys.readouterr().out == "done\n"
    report(Namespace(network="net", json=True), "done", keys=["a"])
    assert " ".join(capsys.readouterr().out.split()) == '{ "network": "net", "said": "done", "keys": [ "a" ] }'
