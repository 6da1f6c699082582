"""What the errors of a server become: full, not allowed, refused, given up, broken; each names the server and the remedy."""

from __future__ import annotations

import pytest

from rush_async import DecodeError, RushConnectionError, RushError, ServerFullError
from rush_async.wire.refusals import acl_remedy, broken, gave_up, refusal


def test_a_full_server_is_an_error_of_its_own() -> None:
    error = refusal(Exception("OOM command not allowed when used memory > 'maxmemory'."), "redis://host")
    assert isinstance(error, ServerFullError)
    assert str(error).startswith("redis://host is full and refused the call, nothing of it was done: raise its maxmemory")


@pytest.mark.parametrize(
    "reply",
    [
        "MISCONF Valkey is configured to save RDB snapshots, but it is unable to persist on disk.",
        "MISCONF Errors writing to the AOF file: No space left on device",
    ],
)
def test_the_error_of_a_full_disk_says_to_make_room_on_the_disk(reply: str) -> None:
    error = refusal(Exception(reply), "redis://host")
    assert isinstance(error, ServerFullError)
    assert str(error).startswith(
        "redis://host cannot write to its disk and refused the call, nothing of it was done: make room"
    )
    assert "maxmemory" not in str(error)


@pytest.mark.parametrize(
    "reply",
    [
        "NOPERM User app has no permissions to run the 'evalsha' command",
        "ERR The user executing the script can't run this command or subcommand script: abc",
        "ERR ACL failure in script: User app has no permissions to access the 'rush:{net}:meta' key",
    ],
)
def test_the_error_of_a_missing_right_names_the_rule(reply: str) -> None:
    error = refusal(Exception(reply), "redis://host")
    assert isinstance(error, RushConnectionError)
    assert "ACL SETUSER <user> ~rush:* &rush:*" in str(error)
    assert reply in str(error)


def test_any_other_error_reply_is_a_refused_call() -> None:
    error = refusal(Exception("WRONGTYPE Operation against a key."), "redis://host")
    assert type(error) is RushError
    assert str(error) == "redis://host refused a call: WRONGTYPE Operation against a key"


@pytest.mark.parametrize("key", ["rush:{net}:log", b"rush:{net}:log"])
def test_a_key_of_another_type_is_named(key: str | bytes) -> None:
    error = refusal(Exception("WRONGTYPE Operation against a key holding the wrong kind of value"), "redis://host", key)
    assert isinstance(error, DecodeError)
    assert "in the place of rush:{net}:log, on redis://host: remove or mend it (WRONGTYPE" in str(error)


def test_the_rule_may_name_one_network() -> None:
    assert "~rush:{net}:* &rush:{net}:*" in acl_remedy("net")


def test_the_error_of_a_call_that_was_given_up_says_whether_it_was_sent() -> None:
    reason = OSError("no route")
    sent, unsent = gave_up(1.23456, reason, was_sent=True), gave_up(30, reason, was_sent=False)
    assert str(sent) == "gave up after 1.23 s: no route (it was sent, so it may have been executed)"
    assert str(unsent) == "gave up after 30 s: no route (it was never sent)"
    assert sent.__cause__ is reason


def test_the_error_of_a_call_that_was_given_up_keeps_problem_and_advice_apart() -> None:
    reason = RushConnectionError("cannot reach redis://host", ". Start one", is_password_refused=True, is_final=True)
    error = gave_up(30, reason, was_sent=False)
    assert error.problem == "gave up after 30 s: cannot reach redis://host (it was never sent)"
    assert error.advice == ". Start one"  # in code; the command has advice of its own
    assert str(error) == f"{error.problem}{error.advice}"
    assert (error.is_password_refused, error.is_final) == (True, True)


def test_the_error_of_a_broken_connection_has_its_cause() -> None:
    reason = OSError("reset by peer")
    error = broken("redis://host", reason)
    assert str(error) == "the connection to redis://host broke: reset by peer"
    assert error.__cause__ is reason
