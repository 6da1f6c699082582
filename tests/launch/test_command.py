"""The command that starts workers; the program that it runs is tested in `tests/cli`."""

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


def test_a_command_for_a_pickle_has_the_option_allow_pickle() -> None:
    async def inside(rush: RushWorker) -> None: ...

    with pytest.raises(TypeError, match="defined inside another function"):
        prepare(inside)
    assert prepare(inside, allow_pickle=True).line.endswith(" --allow-pickle")


def test_the_command_names_the_tls_files() -> None:
    config = RushConfig("rediss://h", tls_ca_file="/ca", tls_check_hostname=False)
    assert "--tls-ca-file /ca --no-tls-check-hostname" in prepare(serve, config).line


# in a shell


@pytest.fixture
def shell(directory: Path) -> Any:
    """Runs a line in a real shell. Returns what the program gets: its words and RUSH_URL."""
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
def test_row_7_a_shell_parses_the_command_whatever_the_password(shell: Any, password: str, caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    # Such passwords should be quoted in a URL. An unquoted one that works must be kept as it is.
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


def test_row_7_the_log_shows_the_command_without_the_password(caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    prepare(serve, RushConfig("redis://ann:hunter2@server/0?password=hunter2"), with_password=True)
    assert "hunter2" not in caplog.text
    assert "RUSH_URL='redis://ann:***@server/0?password=***' rush-async worker net" in caplog.text


def test_row_7_a_command_for_an_embedded_server_logs_a_warning(caplog: Any) -> None:
    prepare(serve, RushConfig("unix:///tmp/socket"))
    assert not caplog.records
    prepare(serve, RushConfig("unix:///tmp/socket"), is_private=True)
    assert "works on this machine only, and only while this process or another client of the server lives" in caplog.text
    caplog.clear()
    prepare(serve, RushConfig("unix:///tmp/socket"), data_dir=Path("/my results"))
    assert "works on this machine only, because the server is an embedded one" in caplog.text


def test_row_7_a_command_names_the_data_dir_of_an_embedded_server(shell: Any) -> None:
    for with_password in (False, True):
        config = RushConfig("unix:///tmp/socket")
        command = prepare(serve, config, data_dir=Path("/my results"), with_password=with_password)
        assert shell(command.line)[5:7] == ["--data-dir", "/my results"]
        assert "socket" not in command.line


def test_an_odd_network_id_is_one_word_of_the_command(shell: Any) -> None:
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
def test_rush_password_is_added_to_a_url_without_a_password(
    monkeypatch: pytest.MonkeyPatch, url: str, expected: str, bare: str
) -> None:
    monkeypatch.setenv("RUSH_PASSWORD", PASSWORD)
    monkeypatch.setenv("RUSH_URL", url)
    found = with_password_of_environment(url)
    assert found == expected.format(quote(PASSWORD, safe=""))
    assert parse_url(found).get("password") == ("own" if "{" not in expected else PASSWORD)
    assert RushConfig.from_env().url == found
    assert without_password(found) == without_password(url) == bare
    assert PASSWORD not in repr(RushConfig.from_env())


def test_a_rush_password_that_is_not_utf_8_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUSH_PASSWORD", "\udcff")
    with pytest.raises(RushConfigError, match="RUSH_PASSWORD is not UTF-8"):
        with_password_of_environment("redis://h")
