"""The options that the commands of the program `rush-async` share."""

from __future__ import annotations

from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable
from typing import Any

import pytest

from rush_async import RushConfig, RushConfigError
from rush_async.cli.options import (
    Parser,
    add_network,
    add_server,
    config_of,
    count,
    json_object,
    limit,
    seconds,
    warn_of_password,
)


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RUSH_URL", "REDIS_URL", "RUSH_DATA_DIR", "RUSH_PASSWORD", "RUSH_NETWORK"):
        monkeypatch.delenv(name, raising=False)


def parsed(*words: str) -> Namespace:
    parser = Parser()
    add_network(parser)
    add_server(parser)
    return parser.parse_args(words)


def test_the_network_is_the_argument_or_that_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parsed()
    assert "required: NETWORK" in capsys.readouterr().err
    monkeypatch.setenv("RUSH_NETWORK", "known")
    assert parsed().network == "known"
    assert parsed("another").network == "another"
    monkeypatch.setenv("RUSH_NETWORK", "{}")
    with pytest.raises(SystemExit):
        parsed()
    assert "network_id '{}' contains '{'" in capsys.readouterr().err


def test_the_server_is_the_option_or_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RushConfigError, match="no server is named"):
        config_of(parsed("net"))
    monkeypatch.setenv("RUSH_URL", "redis://:secret@there")
    assert config_of(parsed("net")).url == "redis://:secret@there"
    assert config_of(parsed("net", "--url", "redis://@there")).url == "redis://@there"
    assert config_of(parsed("net", "--data-dir", "here")) == RushConfig(data_dir="here")
    monkeypatch.setenv("RUSH_PASSWORD", "word")
    assert config_of(parsed("net", "--url", "redis://elsewhere")).url == "redis://:word@elsewhere"
    found = config_of(parsed("net", "--tls-ca-file", "ca.pem", "--no-tls-check-hostname"))
    assert (found.tls_ca_file, found.tls_check_hostname) == ("ca.pem", False)


def test_a_password_in_an_option_is_warned_of() -> None:
    assert warn_of_password(parsed("net", "--url", "redis://h")) is None
    assert "can see a password in --url" in (warn_of_password(parsed("net", "--url", "redis://:x@h")) or "")


@pytest.mark.parametrize(
    ("of", "text", "value"),
    [
        (count, "3", 3),
        (count, "0", "1 or more"),
        (count, "many", "1 or more"),
        (seconds, "0", 0.0),
        (seconds, "nan", "not a number of seconds"),
        (limit, "0", "above 0"),
        (limit, "2.5", 2.5),
        (json_object, '{"a": 1}', {"a": 1}),
        (json_object, "[1]", "a JSON object is needed"),
        (json_object, "{", "no JSON"),
    ],
)
def test_types_of_options(of: Callable[[str], Any], text: str, value: Any) -> None:
    if isinstance(value, str):
        with pytest.raises(ArgumentTypeError, match=value):
            of(text)
    else:
        assert of(text) == value


def test_wrong_options_are_one_line_with_the_one_that_was_meant(capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (["net", "--data-dri=x"], "unrecognized arguments: --data-dri=x: did you mean --data-dir?"),
        (["net", "--colour"], "unrecognized arguments: --colour"),
        (["net", "more"], "unrecognized arguments: more"),
    ):
        with pytest.raises(SystemExit) as ended:
            parsed(*words)
        assert ended.value.code == 2
        first, second = capsys.readouterr().err.splitlines()
        assert first.endswith(f": error: {message}")
        assert second.endswith("--help` shows how it is used")
