"""The watchdog ends the server with its last user, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rush_async.embedded import watchdog
from rush_async.embedded.directories import RuntimeDirectory
from rush_async.embedded.locks import lock_shared
from rush_async.embedded.server import ServerLease, acquire
from tests.embedded.users import User, ask, directory_of, is_gone, refuses, wait_for, wait_until_loaded, watchdog_of


@pytest.mark.parametrize("with_data", [False, True])
def test_a_killed_user_leaves_nothing_behind(tmp_path: Path, with_data: bool) -> None:
    user = User(tmp_path if with_data else None)
    watchdog = watchdog_of(user.url)
    user.kill()
    wait_for(lambda: is_gone(user.pid) and is_gone(watchdog) and not directory_of(user.url).exists())


def test_a_dead_server_leaves_nothing_behind_when_its_users_are_killed_later() -> None:
    user = User(None)
    watchdog = watchdog_of(user.url)
    os.kill(user.pid, signal.SIGKILL)
    wait_for(lambda: is_gone(watchdog) and not directory_of(user.url).exists())
    user.kill()


def test_a_server_with_data_that_is_killed_starts_again_on_its_socket_with_its_data(tmp_path: Path) -> None:
    user = User(tmp_path)
    watchdog = watchdog_of(user.url)

    def next_server(last: int) -> int:
        wait_for(lambda: is_gone(last) and not refuses(user.url))
        wait_until_loaded(user.url)
        return RuntimeDirectory(directory_of(user.url)).server_pid()

    server = user.pid
    for n in range(2):
        ask(user.url, "SET", f"k{n}", "kept")
        os.kill(server, signal.SIGKILL)
        server = next_server(server)
        assert b"kept" in ask(user.url, "GET", f"k{n}")
    ask(user.url, "SHUTDOWN")  # by another program
    server = next_server(server)
    assert (tmp_path / "rush.log").read_text().count("while it was in use: starting it again") == 3
    user.kill()
    wait_for(lambda: is_gone(server) and is_gone(watchdog) and not directory_of(user.url).exists())


def test_a_server_that_ends_with_an_error_is_not_started_again(directory: Path) -> None:
    runtime = directory / "rush-refusing"
    runtime.mkdir()
    (directory / "rush.runtime").touch()
    command = [sys.executable, "-c", "import sys; print('started', flush=True); sys.exit(1)"]
    with open(runtime / "lease", "wb+") as lease:
        lock_shared(lease.fileno())
        arguments = [str(runtime / "lease"), str(directory / "rush.runtime"), *command]
        ended = subprocess.run(
            [sys.executable, watchdog.__file__, *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    assert ended.stdout == "started\n"
    assert not runtime.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_server_ends_with_its_watchdog(tmp_path: Path, number: signal.Signals) -> None:
    lease = acquire(tmp_path)
    os.kill(watchdog_of(lease.url), number)
    if sys.platform == "linux" or number == signal.SIGTERM:
        wait_for(lambda: is_gone(lease.pid))
    lease.release()
    assert is_gone(lease.pid)
    assert not directory_of(lease.url).exists()


def test_an_interrupt_of_the_terminal_does_not_reach_the_server(lease: ServerLease) -> None:
    assert os.getsid(lease.pid) != os.getsid(0)


def test_the_data_is_private_even_in_a_directory_that_is_not(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o755)
    acquire(data).release()
    files = [path for path in data.rglob("*") if path.is_file()]
    assert any(path.suffix == ".aof" for path in files)
    assert [path for path in files if path.stat().st_mode & 0o077] == []


def test_a_server_that_ignores_the_signal_is_killed(directory: Path) -> None:
    runtime = directory / "rush-stubborn"
    runtime.mkdir()
    (runtime / "lease").touch()
    stubborn = "import os, signal as s; s.signal(s.SIGTERM, s.SIG_IGN); print(os.getpid(), flush=True); s.pause()"
    script = f"""
import runpy, sys
main = runpy.run_path({watchdog.__file__!r})["main"]
main.__globals__["KILL_AFTER"] = 0.1
main({str(runtime / "lease")!r}, "", [sys.executable, "-c", {stubborn!r}])
"""
    # Without a user, the watchdog stops the server at once; it may then not have ignored the signal yet.
    with open(runtime / "lease", "rb+") as lease:
        lock_shared(lease.fileno())
        watcher = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        assert watcher.stdout is not None
        server = int(watcher.stdout.readline())
    watcher.communicate()
    assert is_gone(server)
    assert not runtime.exists()
