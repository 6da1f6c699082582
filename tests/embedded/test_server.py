"""The embedded server lives as long as a process uses it, is shared by all of them, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

from rush_async import ServerStartError
from rush_async.embedded import server
from rush_async.embedded.server import ServerLease, acquire, acquire_in_thread
from rush_async.testing import wait_until
from tests.embedded.test_locks import Holder
from tests.embedded.users import User, ask, directory_of, is_gone, refuses, wait_for, wait_until_loaded, watchdog_of


def test_leases_of_one_process_share_a_server(lease: ServerLease, tmp_path: Path) -> None:
    other = acquire(tmp_path / "data")
    assert (other.url, other.pid) == (lease.url, lease.pid)
    other.release()
    other.release()
    assert ask(lease.url, "PING") == b"+PONG\r\n"


def test_the_last_release_ends_the_server_and_removes_its_directory(tmp_path: Path) -> None:
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


def test_the_server_survives_the_process_that_started_it(tmp_path: Path) -> None:
    first = User(tmp_path)
    second = User(tmp_path)
    assert second.pid == first.pid
    first.kill()
    assert ask(second.url, "PING") == b"+PONG\r\n"
    second.release()
    assert is_gone(second.pid)
    assert not directory_of(second.url).exists()
    second.close()


def test_processes_that_start_at_once_share_one_server(tmp_path: Path) -> None:
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


def test_joining_while_the_last_user_releases_gives_a_running_server(tmp_path: Path) -> None:
    for _ in range(5):
        first = User(tmp_path)
        leaving = threading.Thread(target=first.release)
        leaving.start()
        second = acquire(tmp_path)
        leaving.join()
        wait_until_loaded(second.url)
        second.release()
        first.close()


def test_joining_while_the_last_user_is_killed_gives_a_running_server(tmp_path: Path) -> None:
    for _ in range(5):
        first = User(tmp_path)
        first.process.kill()
        second = acquire(tmp_path)
        first.close()
        wait_until_loaded(second.url)
        second.release()


def test_the_starting_process_reaps_a_watchdog_that_outlives_its_lease(tmp_path: Path) -> None:
    starter = acquire(tmp_path)
    watchdog = watchdog_of(starter.url)
    joined = User(tmp_path)
    starter.release()
    assert ask(joined.url, "PING") == b"+PONG\r\n"
    joined.release()
    assert not directory_of(joined.url).exists()
    joined.close()
    acquire(tmp_path).release()
    assert not psutil.pid_exists(watchdog), "the watchdog was not reaped"


def test_a_process_that_ends_without_release_leaves_nothing_behind() -> None:
    script = "from rush_async.embedded.server import acquire; print(acquire().url)"
    url = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()
    assert url.startswith("unix://")
    assert not directory_of(url).exists()


def test_the_next_acquire_replaces_a_dead_server(tmp_path: Path) -> None:
    old = acquire(tmp_path)
    os.kill(watchdog_of(old.url), signal.SIGTERM)  # which would start it again
    wait_for(lambda: refuses(old.url))  # its threads may keep the socket a little longer than its process seems to live
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


def test_a_server_that_starts_again_is_waited_for(tmp_path: Path) -> None:
    old = acquire(tmp_path)
    os.kill(old.pid, signal.SIGKILL)
    wait_for(lambda: refuses(old.url))
    new, other = acquire(tmp_path), User(tmp_path)
    assert old.url == new.url == other.url
    assert other.pid == new.pid != old.pid
    other.close()
    new.release()
    old.release()
    assert not directory_of(old.url).exists()


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


def test_a_server_whose_socket_is_elsewhere_keeps_its_data_directory(tmp_path: Path) -> None:
    # As in two containers that share the data directory, but not the one for temporary files.
    user = User(tmp_path)
    (tmp_path / "rush.runtime").write_text("/tmp/rush-elsewhere")
    with pytest.raises(ServerStartError, match="is in use by a server that gives no answer on /tmp/rush-elsewhere/socket"):
        acquire(tmp_path, ready_timeout=0.1)
    assert ask(user.url, "PING") == b"+PONG\r\n"
    user.close()


@pytest.mark.parametrize("content", [b"", b"\xff\x00", b"/tmp/rush-\x00", b"/tmp/rush-of-before-the-power-cut"])
def test_a_server_starts_in_a_data_dir_left_by_a_power_cut(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "rush.runtime").write_bytes(content)
    lease = acquire(tmp_path)
    wait_until_loaded(lease.url)
    lease.release()


def test_a_running_server_is_not_stolen_by_a_process_without_free_descriptors(tmp_path: Path) -> None:
    user = User(tmp_path)
    script = """
import os, resource, sys
from pathlib import Path
from rush_async import ServerStartError
from rush_async.embedded.server import acquire
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
for free in range(4):
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + free, hard))
    try:
        print("joined", acquire(Path(sys.argv[1]), ready_timeout=0.1).pid)
    except ServerStartError as error:
        print(error)
"""
    joining = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert joining.stderr == ""
    replies = joining.stdout.splitlines()
    assert "Too many open files" in replies[0]
    assert [reply for reply in replies if reply.startswith("joined") and reply != f"joined {user.pid}"] == []
    assert ask(user.url, "PING") == b"+PONG\r\n"
    user.release()
    assert not directory_of(user.url).exists()
    user.close()


def test_a_forked_child_owns_nothing(lease: ServerLease, tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        lease.release()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert ask(lease.url, "PING") == b"+PONG\r\n"
    # That the child closed its copies of our files has not released our lock.
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


def test_starting_a_server_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "rush_async"):
        lease = acquire(tmp_path)
    assert caplog.messages == [f"started a private server on {lease.url} with its data in {tmp_path}"]
    lease.release()


def test_joining_a_server_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    user = User(tmp_path)
    with caplog.at_level("INFO", "rush_async"):
        lease = acquire(tmp_path)
    assert caplog.messages == [f"joined the server of {tmp_path} on {user.url}"]
    lease.release()
    user.close()


def test_a_server_that_did_not_start_is_forgotten(tmp_path: Path, base: Path) -> None:
    (tmp_path / "appendonlydir").write_text("in the way")
    with pytest.raises(ServerStartError):
        acquire(tmp_path)
    assert list(base.iterdir()) == []
    (tmp_path / "appendonlydir").unlink()
    acquire(tmp_path).release()


async def test_opening_is_cancelled_while_another_process_has_the_lock(directory: Path) -> None:
    holder = Holder("exclusive", directory / "rush.lock")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(acquire_in_thread(directory, "everysec"), 0.05)
    with pytest.raises(TimeoutError), anyio.fail_after(0.05):
        await acquire_in_thread(directory, "everysec")
    holder.kill()
    lease = await acquire_in_thread(directory, "everysec")
    lease.release()


async def test_a_lease_taken_for_a_cancelled_caller_is_released(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, may_end, urls = threading.Event(), threading.Event(), list[str]()

    def slow(*args: Any, **settings: Any) -> ServerLease:
        begun.set()
        may_end.wait(5)
        lease = acquire(*args, **settings)
        urls.append(lease.url)
        return lease

    monkeypatch.setattr(server, "acquire", slow)
    opening = asyncio.ensure_future(acquire_in_thread(directory, "everysec"))
    await asyncio.to_thread(begun.wait)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    may_end.set()
    await wait_until(lambda: urls and not directory_of(urls[0]).exists())
