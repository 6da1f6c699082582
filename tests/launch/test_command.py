"""The words of the command that starts workers; the program that it calls is tested in `tests/cli`."""

from __future__ import annotations

import logging
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from redis.asyncio.connection import parse_url

from rush_async import RushConfig, RushConfigError, RushWorker
from rush_async.config import with_password_of_environment, without_password
from rush_async.launch.command import Command, prepare_command
from rush_async.launch.job import Job
from rush_async.worker.loop import WorkerLoop, bind_loop
from tests.launch.loops_of_tests import serve

URL = "redis://server:6379/0"
PASSWORD = 'it\'s $HOME `id` \\ "a" %41 & ; ü €'


def prepare(loop: Any, config: RushConfig | None = None, **options: Any) -> Command:
    return prepare_command(bind_loop(loop, None, {}), "net", config or RushConfig(URL), **options)


def test_the_command_names_the_start_that_its_workers_read() -> None:
    command = prepare(serve, n_workers=3, log_levels={"a": "DEBUG"})
    job = Job.of_start(command.start, command.start_id, "net", RushConfig(URL), allow_pickle=False)
    assert f"--start {command.start_id} " in command.line
    assert (len(job.worker_ids), job.log_levels, job.loop.load()) == (3, {"a": "DEBUG"}, WorkerLoop(serve, {}))


def test_a_command_for_no_worker_is_refused() -> None:
    with pytest.raises(ValueError, match="n_workers must be at least 1, not 0"):
        prepare(serve, n_workers=0)


def test_a_command_with_a_pickle_says_so() -> None:
    async def inside(rush: RushWorker) -> None: ...

    with pytest.raises(TypeError, match="defined inside another function"):
        prepare(inside)
    assert prepare(inside, allow_pickle=True).line.endswith(" --allow-pickle")


def test_the_command_names_the_certificates() -> None:
    config = RushConfig("rediss://h", tls_ca_file="/ca", tls_check_hostname=False)
    assert "--tls-ca-file /ca --no-tls-check-hostname" in prepare(serve, config).line


# in a shell


@pytest.fixture
def shell(directory: Path) -> Any:
    """Runs a line in a real shell; what the program would get: its words and RUSH_URL."""
    program = directory / "rush-async"
    program.write_text('#!/bin/sh\nprintf \'%s\\0\' "$RUSH_URL" "$@"\n')
    program.chmod(0o755)

    def run(line: str) -> list[str]:
        done = subprocess.run(
            ["sh", "-c", line], capture_output=True, text=True, check=True, env={"PATH": f"{directory}:/usr/bin:/bin"}
        )
        return done.stdout.split("\0")[:-1]

    return run


@pytest.mark.parametrize("password", [PASSWORD, "'", '"', "$(id)", "`id`", "\\", "a b\nc", "!#~*?", "%", "ü€漢", "***"])
def test_row_7_the_command_survives_a_shell_with_any_password(shell: Any, password: str, caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    # Such passwords are quoted in a URL. Some people do not, and what works is then to be kept as it is.
    urls = [f"redis://ann:{quote(password, safe='')}@server:6379/0"]
    if not set(password) & set("#?/%\n"):
        urls.append(f"redis://ann:{password}@server:6379/0")
    for url in urls:
        command = prepare(serve, RushConfig(url), with_password=True)
        assert shell(command.line) == [url, "worker", "net", "--start", command.start_id, "-n", "1"]
        assert parse_url(url).get("password") == password
        without = prepare(serve, RushConfig(url))
        assert shell(without.line)[5:7] == ["--url", "redis://ann@server:6379/0"]
        assert "RUSH_URL" not in without.line
    assert quote(password, safe="") not in caplog.text
    assert len(caplog.records) == 3 * len(urls)


def test_row_7_what_is_logged_has_the_password_redacted(caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    prepare(serve, RushConfig("redis://ann:hunter2@server/0?password=hunter2"), with_password=True)
    assert "hunter2" not in caplog.text
    assert "RUSH_URL='redis://ann:***@server/0?password=***' rush-async worker net" in caplog.text


def test_row_7_it_warns_when_the_server_is_embedded(caplog: Any) -> None:
    prepare(serve, RushConfig("unix:///tmp/socket"))
    assert not caplog.records
    prepare(serve, RushConfig("unix:///tmp/socket"), is_embedded=True)
    assert "works on this machine only" in caplog.text


def test_a_network_with_an_odd_name_is_one_word(shell: Any) -> None:
    for name, end in (("my net; $(id)", 1), ("-x", -1)):
        command = prepare_command(WorkerLoop(serve, {}), name, RushConfig(URL), n_workers=2)
        words = shell(command.line)[1:]
        assert words[end] == name
        assert (words[-2] == "--") is (end == -1)


# the password of the environment


@pytest.mark.parametrize(
    ("url", "expected", "bare"),
    [
        ("redis://h:6379/2", "redis://:{}@h:6379/2", "redis://h:6379/2"),
        ("rediss://ann@h?db=1", "rediss://ann:{}@h?db=1", "rediss://ann@h?db=1"),
        ("unix:///a/b?db=3", "unix://:{}@/a/b?db=3", "unix:///a/b?db=3"),
        ("redis://ann:@h", "redis://ann:{}@h", "redis://ann@h"),
        ("redis://ann:own@h", "redis://ann:own@h", "redis://ann@h"),
        ("redis://h?password=own&db=1", "redis://h?password=own&db=1", "redis://h?db=1"),
        ("redis://h?p%61ssword=own", "redis://h?p%61ssword=own", "redis://h"),
    ],
)
def test_rush_password_is_put_where_none_is(monkeypatch: pytest.MonkeyPatch, url: str, expected: str, bare: str) -> None:
    monkeypatch.setenv("RUSH_PASSWORD", PASSWORD)
    monkeypatch.setenv("RUSH_URL", url)
    found = with_password_of_environment(url)
    assert found == expected.format(quote(PASSWORD, safe=""))
    assert parse_url(found).get("password") == ("own" if "{" not in expected else PASSWORD)
    assert RushConfig.from_env().url == found
    assert without_password(found) == without_password(url) == bare
    assert PASSWORD not in repr(RushConfig.from_env())


def test_rush_password_that_is_no_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUSH_PASSWORD", "\udcff")
    with pytest.raises(RushConfigError, match="RUSH_PASSWORD is not UTF-8"):
        with_password_of_environment("redis://h")
