"""Which exit codes errors lead to, and what users of the program read."""

from __future__ import annotations

import pytest

from rush_async import NetworkStateError, RushConfigError, RushConnectionError, RushError, ServerStartError
from rush_async.cli.exit_codes import CommandError, explain


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CommandError("nothing found"), 1),
        (CommandError("no such network", 78), 78),
        (RushConnectionError("refused"), 69),
        (ServerStartError("no such program"), 69),
        (RushConfigError("no such setting"), 78),
        (NetworkStateError("closed"), 78),
    ],
)
def test_an_error_has_an_exit_code(error: RushError, code: int) -> None:
    assert explain(error) == (code, str(error))


def test_advice_is_for_users_of_the_program_and_shows_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    unreachable = RushConnectionError("redis://:hunter2@h:1 cannot be reached", ": leave the url out")
    assert explain(unreachable)[1] == (
        "redis://:***@h:1 cannot be reached. Start a Redis or Valkey server there, or name another in RUSH_URL or by --url"
    )
    refused = RushConnectionError("the password is refused", ": check it", is_password_refused=True)
    monkeypatch.delenv("RUSH_PASSWORD", raising=False)
    assert "RUSH_PASSWORD is not set" in explain(refused)[1]
    monkeypatch.setenv("RUSH_PASSWORD", "x")
    assert "Check RUSH_PASSWORD" in explain(refused)[1]
