"""The connection that asks a server about itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import pytest

from rush_async import RushConfig, RushConnectionError
from rush_async.wire.inspection import Inspection, Refusal
from rush_async.wire.topology import Topology


@pytest.fixture
def may_only_ping(rush_server: RushConfig, raw: Any) -> Iterator[Inspection]:
    assert rush_server.url is not None
    raw.execute_command("ACL", "SETUSER", "eve", "on", ">secret", "+ping")
    config = replace(rush_server, url=f"unix://eve:secret@{urlsplit(rush_server.url).path}")
    connection = Inspection(config, Topology(config))
    yield connection
    connection.close()
    raw.execute_command("ACL", "DELUSER", "eve")


def test_a_refusal_is_an_answer_and_says_whether_it_is_for_rights(may_only_ping: Inspection) -> None:
    assert may_only_ping.ask("PING") in (b"PONG", "PONG")
    refusal = may_only_ping.ask("INFO")
    assert isinstance(refusal, Refusal)
    assert refusal.is_for_rights
    assert "'info'" in refusal.text
    other = may_only_ping.ask("PING", "one", "too many")
    assert isinstance(other, Refusal)
    assert not other.is_for_rights


def test_a_server_that_is_not_there_is_an_error() -> None:
    config = RushConfig("redis://:hunter2@localhost:1")
    with pytest.raises(RushConnectionError, match="localhost:1 does not answer") as refused:
        Inspection(config, Topology(config)).ask("PING")
    assert "hunter2" not in str(refused.value)
