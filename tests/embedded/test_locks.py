"""Locks on files, between processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rush_async.embedded.locks import is_locked, lock_exclusive, lock_shared, open_private, try_lock

HOLDER = """
import sys
import threading
from pathlib import Path
from rush_async.embedded.locks import lock_exclusive, lock_shared, open_private
file = lock_exclusive(Path(sys.argv[2])) if sys.argv[1] == "exclusive" else open_private(Path(sys.argv[2]))
if sys.argv[1] == "shared":
    lock_shared(file)
print("locked", flush=True)
sys.stdin.readline()
"""


class Holder:
    """Another process that has a lock on a file until it ends."""

    def __init__(self, kind: str, path: Path) -> None:
        command = [sys.executable, "-c", HOLDER, kind, str(path)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "locked\n"

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.mark.parametrize("kind", ["shared", "exclusive"])
def test_a_lock_of_another_process_is_seen_until_that_is_killed(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "lock"
    holder = Holder(kind, path)
    file = open_private(path)
    assert is_locked(path)
    assert not try_lock(file)
    holder.kill()
    assert not is_locked(path)
    assert try_lock(file)
    os.close(file)


def test_a_shared_lock_is_shared(tmp_path: Path) -> None:
    holder = Holder("shared", tmp_path / "lock")
    file = open_private(tmp_path / "lock")
    lock_shared(file)
    os.close(file)
    holder.kill()


def test_an_exclusive_lock_excludes_other_processes(tmp_path: Path) -> None:
    file = lock_exclusive(tmp_path / "lock")
    script = "import sys, pathlib; from rush_async.embedded.locks import is_locked; print(is_locked(pathlib.Path(sys.argv[1])))"
    command = [sys.executable, "-c", script, str(tmp_path / "lock")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "True\n"
    os.close(file)
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "False\n"


def test_a_wait_for_a_lock_ends_after_its_time_and_when_it_is_given_up(tmp_path: Path) -> None:
    holder = Holder("exclusive", tmp_path / "lock")
    with pytest.raises(TimeoutError, match="another process has lock locked"):
        lock_exclusive(tmp_path / "lock", 0.01)
    given_up = threading.Event()
    given_up.set()
    with pytest.raises(TimeoutError):
        lock_exclusive(tmp_path / "lock", given_up=given_up)
    threading.Timer(0.01, holder.process.kill).start()
    os.close(lock_exclusive(tmp_path / "lock", 10))
    holder.kill()


def test_a_file_that_does_not_exist_is_not_locked_and_not_made(tmp_path: Path) -> None:
    assert not is_locked(tmp_path / "lock")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_opened_is_not_taken_for_an_unlocked_one(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        is_locked(tmp_path)


def test_files_are_private_and_no_symbolic_link_is_followed(tmp_path: Path) -> None:
    file = open_private(tmp_path / "private")
    assert os.fstat(file).st_mode & 0o777 == 0o600
    os.fchmod(file, 0o644)  # as by an older program
    os.close(file)
    file = open_private(tmp_path / "private")
    assert os.fstat(file).st_mode & 0o777 == 0o600
    os.close(file)
    (tmp_path / "link").symlink_to(tmp_path / "private")
    with pytest.raises(OSError, match="symbolic link"):
        open_private(tmp_path / "link")
