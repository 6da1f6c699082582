"""Other processes that use the embedded server, and what a test sees of a server from outside."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

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
        assert time.monotonic() < deadline, "the condition did not hold in time"
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
    return Path(url[url.index("/", len("unix://")) :]).parent


def watchdog_of(url: str) -> int:
    return int((directory_of(url) / "pids").read_text().split()[0])


def wait_until_loaded(url: str) -> None:
    wait_for(lambda: ask(url, "PING") == b"+PONG\r\n")


OTHER = 65534  # the user without rights


def give_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a file or directory that of another user, which only root can; others become another user themselves."""
    if os.geteuid() == 0:
        os.chown(path, OTHER, -1, follow_symlinks=False)
    else:
        own = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: own + 1)


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
