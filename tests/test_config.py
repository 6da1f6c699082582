"""The settings of a client: which are refused, where they come from, and that no message shows a password."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import numpy
import pytest

from rush_async import RushConfig, RushConfigError
from rush_async.config import (
    as_number,
    as_path,
    as_real,
    as_seconds,
    connection_part,
    hosts_of,
    redact_url,
    with_address_of_environment,
    with_data_dir,
    with_heartbeat,
    with_password_of_environment,
    without_password,
)

URL = "redis://user:hidden@host:6379/2"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RUSH_URL", "REDIS_URL", "RUSH_DATA_DIR", "RUSH_PASSWORD"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"url": "http://host"}, ["http://host", "redis://", "unix://"]),
        ({"url": ""}, ["redis://"]),
        ({"url": "localhost:6379"}, ["redis://"]),
        ({"url": "redis://"}, ["host"]),
        ({"url": "redis://host:notaport"}, ["host:notaport"]),
        ({"url": "redis://host:99999"}, ["host:99999"]),
        ({"url": "redis://host:0"}, ["port 0"]),
        ({"url": "unix://"}, ["socket"]),
        ({"url": "redis://a,b"}, ["several hosts", "redis+sentinel://", "redis+cluster://"]),
        ({"url": "redis+sentinel://a:1,b:2"}, ["no service", "redis+sentinel://host:26379,host:26379/service"]),
        ({"url": "redis+sentinel://a,,b/main"}, ["no host"]),
        ({"url": "redis+cluster://a,b:0"}, ["port 0"]),
        ({"url": "rediss+cluster://a,b/1"}, ["database", "0"]),
        ({"url": "redis://host", "data_dir": "somewhere"}, ["url", "data_dir"]),
        ({"heartbeat_period": 0}, ["heartbeat_period", "0"]),
        ({"heartbeat_period": -1}, ["heartbeat_period", "-1"]),
        ({"heartbeat_period": float("nan")}, ["heartbeat_period", "nan"]),
        ({"heartbeat_period": 5, "heartbeat_expire": 9.9}, ["heartbeat_expire", "9.9", "twice"]),
        ({"heartbeat_expire": float("nan")}, ["heartbeat_expire", "nan"]),
        ({"connect_timeout": 0}, ["connect_timeout", "0"]),
        ({"connect_timeout": float("nan")}, ["connect_timeout", "nan"]),
        ({"response_timeout": -1}, ["response_timeout", "-1"]),
        ({"max_record_size": 0}, ["max_record_size", "0"]),
        ({"retry_deadline": -1}, ["retry_deadline", "-1"]),
        ({"retry_deadline": float("nan")}, ["retry_deadline", "nan"]),
        ({"max_loop_stall": 0}, ["max_loop_stall", "0"]),
        ({"max_start_args_size": 0}, ["max_start_args_size", "0"]),
        ({"wait_replicas": -1}, ["wait_replicas", "-1"]),
        ({"heartbeat_period": True}, ["heartbeat_period", "bool"]),
        ({"heartbeat_period": "5"}, ["heartbeat_period", "str"]),
        ({"heartbeat_expire": float("inf")}, ["heartbeat_expire", "inf"]),
        ({"heartbeat_expire": 1e12}, ["heartbeat_expire", "at most 1,000,000,000 seconds"]),
        ({"retry_deadline": None}, ["retry_deadline", "NoneType"]),
        ({"max_loop_stall": True}, ["max_loop_stall", "bool"]),
        ({"max_record_size": 1e6}, ["max_record_size", "whole number", "float"]),
        ({"max_reports": True}, ["max_reports", "bool"]),
        ({"wait_replicas": 1.5}, ["wait_replicas", "float"]),
        ({"url": 6379}, ["url", "int"]),
        ({"tls_ca_file": 1}, ["tls_ca_file", "int"]),
        ({"large_objects_path": 1}, ["large_objects_path", "int"]),
        ({"tls_check_hostname": "no"}, ["tls_check_hostname", "True or False", "no"]),
        ({"appendfsync": "sometimes"}, ["appendfsync", "everysec", "sometimes"]),
    ],
    ids=str,
)
def test_settings_that_cannot_be_used_are_refused(settings: Any, words: list[str]) -> None:
    with pytest.raises(RushConfigError) as caught:
        RushConfig(**settings)
    assert [word for word in words if word not in str(caught.value)] == []
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    "url",
    [
        *("redis://host", "rediss://host:6380/1", "redis://[::1]:6379", "unix:///run/redis.sock?db=1", URL),
        *("redis+sentinel://a:26379,b/main?db=1", "rediss+sentinel://:pass@a/main", "redis+cluster://a,[::1]:7000/0"),
    ],
)
def test_usable_urls_are_accepted(url: str) -> None:
    assert RushConfig(url).url == url


def test_the_hosts_of_a_url_have_the_port_of_their_kind() -> None:
    assert hosts_of("redis+sentinel://:p,w@a:1,b,[::1]:2/main") == [("a", 1), ("b", 26379), ("::1", 2)]
    assert hosts_of("rediss+cluster://a,b:2?ssl_cert_reqs=none") == [("a", 6379), ("b", 2)]


def test_limits_themselves_are_accepted() -> None:
    RushConfig(heartbeat_period=5, heartbeat_expire=10, retry_deadline=0, wait_replicas=0, max_loop_stall=None)


@pytest.mark.parametrize(
    "url",
    [
        *("redis://:p@ss/w0rd@host", "redis://:1/2@host", "redis://user:1?2@host", "redis://:1#2@host"),
        *("unix://:1/2@/socket", "unix://user:a/b@/socket"),
    ],
)
def test_the_error_of_a_password_that_is_not_quoted_says_how_to_quote_it(url: str) -> None:
    with pytest.raises(RushConfigError, match=r"must be quoted with urllib\.parse\.quote\(password, safe=''\)"):
        RushConfig(url)


@pytest.mark.parametrize(
    "url",
    [
        "redis://user:hid/den@host:6379",
        "redis://user:hid?den@host",
        "redis://user:hid#den@host",
        "redis://:hid@den@host:x",
        "redis://user:hid den@host:x",
        "rediss://user:hidden@host:notaport",
        "http://user:hidden@host",
        "unix:///socket?password=hidden&x=y",
        "redis://host:x?password=hidden",
        "redis+sentinel://:hidden@a,b/main?sentinel_password=hidden",
        "redis+cluster://:hidden@a,b/1",
        "user:hidden@host:6379",
        "hidden",
        "hidden@host",
        "hidden:6379",
        "redis://:hid@den/x@host",
        "redis://user:1?hidden@host",
        "redis://:1#hidden@host",
        "unix://user:hid/den@/socket",
        "unix://:1/hidden@/socket",
        "redis://host?p%61ssword=hidden",
        "rediss://host?ssl%5Fpassword=hid#den&db=1",
        "redis//user:hidden@host:6379",
    ],
)
def test_a_password_is_shown_in_no_error_and_no_repr(url: str) -> None:
    try:
        shown = repr(RushConfig(url=url)) + RushConfig(url=url).where
    except RushConfigError as error:
        shown = f"{error} {error.__cause__}"
    assert "hid" not in shown
    assert "den" not in shown.replace("hidden", "")


def test_the_repr_of_settings_shows_what_was_set() -> None:
    config = RushConfig(url="redis://user:hidden@host:6379/2", connect_timeout=2.5)
    assert repr(config) == "RushConfig(url='redis://user:***@host:6379/2', connect_timeout=2.5)"
    assert repr(RushConfig()) == "RushConfig()"
    assert str(config) == repr(config)


# the environment


def test_rush_url_is_preferred_to_redis_url_and_that_to_rush_data_dir(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = RushConfig(connect_timeout=3)

    def found() -> tuple[RushConfig, str | None]:
        return with_address_of_environment(settings)

    assert found() == (settings, None)
    assert RushConfig.from_env() == RushConfig()
    monkeypatch.setenv("RUSH_DATA_DIR", "results")
    assert found() == (replace(settings, data_dir="results"), "RUSH_DATA_DIR")
    assert RushConfig.from_env() == RushConfig(data_dir="results")
    monkeypatch.setenv("REDIS_URL", "redis://redis-url")
    assert found() == (settings.at("redis://redis-url"), "REDIS_URL")
    monkeypatch.setenv("RUSH_URL", "")
    assert found() == (settings.at("redis://redis-url"), "REDIS_URL")
    monkeypatch.setenv("RUSH_URL", "redis://rush-url")
    assert found() == (settings.at("redis://rush-url"), "RUSH_URL")
    assert RushConfig.from_env() == RushConfig("redis://rush-url")


IN_ENVIRONMENT: dict[str, tuple[str, object]] = {
    "heartbeat_period": ("1.5", 1.5),
    "heartbeat_expire": ("6", 6.0),
    "max_loop_stall": ("60", 60.0),
    "max_record_size": ("1000", 1000),
    "max_reports": ("5", 5),
    "max_start_args_size": ("2000", 2000),
    "large_objects_path": ("large", "large"),
    "tls_ca_file": ("ca.pem", "ca.pem"),
    "tls_cert_file": ("cert.pem", "cert.pem"),
    "tls_key_file": ("key.pem", "key.pem"),
    "tls_check_hostname": ("False", False),
    "connect_timeout": ("2", 2.0),
    "response_timeout": ("3", 3.0),
    "retry_deadline": ("0", 0.0),
    "wait_replicas": ("1", 1),
    "appendfsync": ("always", "always"),
}


def test_every_setting_can_be_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = [field.name for field in fields(RushConfig) if field.name not in ("url", "data_dir")]
    assert list(IN_ENVIRONMENT) == settings
    for name, (text, _) in IN_ENVIRONMENT.items():
        monkeypatch.setenv(f"RUSH_{name.upper()}", text)
    values: dict[str, Any] = {name: value for name, (_, value) in IN_ENVIRONMENT.items()}
    assert RushConfig.from_env() == RushConfig(**values)
    monkeypatch.setenv("RUSH_URL", "redis://host")
    assert RushConfig.from_env() == RushConfig("redis://host", **values)
    monkeypatch.setenv("RUSH_CONNECT_TIMEOUT", "")
    assert RushConfig.from_env().connect_timeout == RushConfig().connect_timeout


@pytest.mark.parametrize(
    ("variable", "text", "words"),
    [
        ("RUSH_CONNECT_TIMEOUT", "soon", "connect_timeout must be a number, not 'soon'"),
        ("RUSH_WAIT_REPLICAS", "1.5", "wait_replicas must be a whole number, not '1.5'"),
        ("RUSH_TLS_CHECK_HOSTNAME", "no", "tls_check_hostname must be true or false, not 'no'"),
        ("RUSH_HEARTBEAT_EXPIRE", "1", "heartbeat_expire must be at least twice the heartbeat_period"),
    ],
)
def test_an_unusable_setting_names_its_variable(variable: str, text: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, text)
    with pytest.raises(RushConfigError, match=f"in the environment, {variable}: {words}"):
        RushConfig.from_env()


@pytest.mark.parametrize(
    ("data_dir", "words"),
    [
        ("", "data_dir names no directory: ''"),
        ("a\0b", "data_dir names no directory"),
        ("redis://host", r"data_dir is a directory, not a URL: give the URL as the config"),
        (7, "data_dir is a str or a Path, not int"),
    ],
)
def test_what_is_no_data_dir_is_refused(data_dir: Any, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RushConfigError, match=words):
        RushConfig(data_dir=data_dir)
    monkeypatch.setenv("RUSH_DATA_DIR", "unix:///socket")
    with pytest.raises(RushConfigError, match="the environment variable RUSH_DATA_DIR: data_dir is a directory, not a URL"):
        RushConfig.from_env()


def test_a_data_dir_beside_another_address_is_refused() -> None:
    assert with_data_dir(None, "a") == RushConfig(data_dir="a")
    assert with_data_dir(RushConfig(connect_timeout=3), "a") == RushConfig(data_dir="a", connect_timeout=3)
    for config in ("redis://host", RushConfig("redis://host")):
        with pytest.raises(RushConfigError, match="a URL names a server that keeps its data itself: leave one of the two out"):
            with_data_dir(config, "a")
    with pytest.raises(RushConfigError, match="the config has a data_dir already"):
        with_data_dir(RushConfig(data_dir="a"), "a")


def test_a_data_dir_may_be_in_the_home_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert as_path("~/results") == tmp_path / "results"
    assert as_path("results") == Path.cwd() / "results"


def test_an_unusable_url_names_its_variable_and_hides_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "http://:hidden@host")
    with pytest.raises(RushConfigError, match=r"the environment variable REDIS_URL: .* must start with one of") as caught:
        RushConfig.from_env()
    assert "hidden" not in str(caught.value)


def test_a_directory_in_place_of_a_url_is_refused_with_the_word_for_it() -> None:
    with pytest.raises(RushConfigError, match=r"A directory is given as data_dir="):
        RushConfig(url="results")


def test_rush_password_is_added_to_a_url_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUSH_PASSWORD", "a/b@c")
    monkeypatch.setenv("RUSH_URL", "redis://ann@host/1")
    assert RushConfig.from_env() == RushConfig("redis://ann:a%2Fb%40c@host/1")
    assert with_password_of_environment("redis://ann:own@host/1") == "redis://ann:own@host/1"
    assert with_password_of_environment("redis://host?password=own") == "redis://host?password=own"


@pytest.mark.parametrize(
    ("url", "bare"),
    [
        (URL, "redis://user@host:6379/2"),
        ("redis://:hidden@host", "redis://host"),
        ("unix:///socket?password=hidden&db=1", "unix:///socket?db=1"),
        ("rediss://host?ssl_password=hidden&p%61ssword=hidden", "rediss://host"),
        ("redis://host/3?db=1", "redis://host/3?db=1"),
        ("redis+sentinel://u:hidden@a:1,b/main?sentinel_password=hidden&db=1", "redis+sentinel://u@a:1,b/main?db=1"),
    ],
)
def test_passwords_are_removed_from_a_url(url: str, bare: str) -> None:
    assert without_password(url) == bare


# messages


def test_the_password_of_a_url_is_hidden() -> None:
    assert redact_url("redis://user:with@sign@host") == "redis://user:***@host"


@pytest.mark.parametrize(
    ("config", "where"),
    [
        (RushConfig(URL), "redis://user:***@host:6379/2"),
        (RushConfig(), "a private server, which is empty at first (neither a URL nor a data_dir is given)"),
        (RushConfig(data_dir=Path("data")), f"the embedded server in {Path.cwd() / 'data'}"),
    ],
    ids=str,
)
def test_the_address_for_messages(config: RushConfig, where: str) -> None:
    assert config.where == where


# copies


def test_the_settings_for_another_address_keep_the_rest() -> None:
    config = RushConfig(data_dir="data", connect_timeout=3)
    assert config.at("redis://host") == RushConfig("redis://host", connect_timeout=3)


def test_other_heartbeats_keep_the_rest() -> None:
    config = RushConfig(URL, connect_timeout=3)
    assert with_heartbeat(config, None, None) is config
    assert with_heartbeat(config, 1, None) == RushConfig(URL, connect_timeout=3, heartbeat_period=1)
    assert with_heartbeat(config, None, 30) == RushConfig(URL, connect_timeout=3, heartbeat_expire=30)
    with pytest.raises(RushConfigError, match="at least twice the heartbeat_period of 15 s, not 20"):
        with_heartbeat(config, 15, None)


def test_only_settings_of_the_connection_keep_clients_from_sharing_one() -> None:
    config = RushConfig(URL)
    other = RushConfig(URL, heartbeat_period=1, heartbeat_expire=2, max_loop_stall=3, max_record_size=4, max_start_args_size=5)
    assert connection_part(other) == connection_part(config)
    assert connection_part(RushConfig(URL, response_timeout=1)) != connection_part(config)


# numbers that callers pass


@pytest.mark.parametrize(("value", "number"), [(0, 0), (7, 7), (numpy.int8(7), 7), (2**53, 2**53)])
def test_whole_numbers_are_taken(value: Any, number: int) -> None:
    assert as_number(value, "budget") == number


@pytest.mark.parametrize("value", [1.0, "7", None, True, numpy.True_])
def test_what_is_no_whole_number_is_a_type_error(value: Any) -> None:
    with pytest.raises(TypeError, match="budget must be a whole number"):
        as_number(value, "budget")


@pytest.mark.parametrize("value", [-1, 128])
def test_a_number_out_of_range_is_a_value_error(value: int) -> None:
    with pytest.raises(ValueError, match="retries must be 0 to 127"):
        as_number(value, "retries", 127)


@pytest.mark.parametrize(
    ("value", "number"), [(7, 7.0), (0.5, 0.5), (Fraction(1, 4), 0.25), (Decimal("0.5"), 0.5), (numpy.float32(0.5), 0.5)]
)
def test_real_numbers_become_floats(value: Any, number: float) -> None:
    assert as_real(value, "target") == number
    assert as_seconds(value) == number
    assert type(as_real(value, "target")) is float


@pytest.mark.parametrize("value", ["1", b"1", True, numpy.True_, None, 1j, timedelta(seconds=1)])
def test_what_is_no_real_number_is_a_type_error(value: Any) -> None:
    with pytest.raises(TypeError, match=f"target must be a number, not {type(value).__name__}"):
        as_real(value, "target")


def test_a_time_to_wait_is_not_nan_and_infinity_is_no_limit() -> None:
    assert [as_seconds(value) for value in (None, math.inf, 0, -1)] == [None, None, 0, 0]
    for value, words in ((math.nan, "timeout must be a number of seconds, not nan"), (10**400, "beyond the largest float")):
        with pytest.raises(ValueError, match=words):
            as_seconds(value)
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="target must be finite"):
            as_real(value, "target")


def test_numbers_of_other_packages_become_those_of_python() -> None:
    periods: dict[str, Any] = {"heartbeat_period": numpy.float64(2), "heartbeat_expire": Fraction(9, 2)}
    config = RushConfig(**periods, max_reports=cast("int", numpy.int64(7)), retry_deadline=0)
    numbers = (config.heartbeat_period, config.heartbeat_expire, config.max_reports, config.retry_deadline)
    assert numbers == (2.0, 4.5, 7, 0)
    assert [type(number) for number in numbers] == [float, float, int, int]
