"""Small servers of a test module's own, Valkey and Redis, that refuse writes when a test says so."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeAlias

import pytest
import redis

from rush_async import RushConfig
from rush_async.embedded.server import find_server

__all__ = ["Refusal", "ServerName", "SmallServer", "small_server"]

ServerName: TypeAlias = Literal["valkey", "redis"]
Refusal: TypeAlias = Literal["OOM", "MISCONF"]

_START_TIMEOUT = 10.0


class SmallServer:
    """A server that listens on a unix socket and keeps nothing.

    Attributes:
        config: the configuration of its clients.
        raw: a plain client.
    """

    def __init__(self, binary: str, directory: Path) -> None:
        socket, self._data = directory / "s", directory / "data"
        self._data.mkdir()
        self.config = RushConfig(url=f"unix://{socket}")
        self.raw: Any = redis.Redis.from_url(f"unix://{socket}")  # pyright: ignore[reportUnknownMemberType]
        command = [binary, "--port", "0", "--unixsocket", str(socket), "--dir", str(self._data)]
        # Only with a rule for snapshots does a failed one stop writes; this rule never applies.
        command += ["--save", "86400 1000000000", "--appendonly", "no", "--maxmemory-policy", "noeviction"]
        command += ["--stop-writes-on-bgsave-error", "no"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)

    def wait_until_ready(self) -> None:
        """Waits until the server answers."""
        deadline = time.monotonic() + _START_TIMEOUT
        while True:
            try:
                self.raw.ping()
                return
            except redis.RedisError:
                assert self._process.poll() is None, "the server ended"
                assert time.monotonic() < deadline, "the server did not start"
                time.sleep(0.005)

    def break_snapshots(self) -> None:
        """Removes the data directory and lets a snapshot fail: from then on a setting decides whether writes are refused."""
        self._data.rmdir()
        self.raw.bgsave()
        deadline = time.monotonic() + _START_TIMEOUT
        while self.raw.info("persistence")["rdb_last_bgsave_status"] != "err":
            assert time.monotonic() < deadline, "the snapshot did not fail"
            time.sleep(0.005)

    def refuse(self, refusal: Refusal) -> None:
        """Refuses from now on what grows the data (OOM), or every write (MISCONF)."""
        if refusal == "OOM":
            self.raw.config_set("maxmemory", 1)
        else:
            self.raw.config_set("stop-writes-on-bgsave-error", "yes")

    def accept(self) -> None:
        """Accepts every write again."""
        self.raw.config_set("maxmemory", 0)
        self.raw.config_set("stop-writes-on-bgsave-error", "no")

    def end(self) -> None:
        """Ends the server's process."""
        self.raw.close()
        self._process.kill()
        self._process.wait()


def _binary_of(name: ServerName) -> str:
    if name == "valkey":
        return str(find_server())
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("there is no redis-server on the PATH: apt install redis-server")
    return binary


@contextmanager
def _serving(name: ServerName) -> Generator[SmallServer]:
    binary = _binary_of(name)
    with tempfile.TemporaryDirectory(prefix="t-", ignore_cleanup_errors=True) as directory:
        server = SmallServer(binary, Path(directory))
        try:
            server.wait_until_ready()
            server.break_snapshots()
            yield server
        finally:
            server.end()


@pytest.fixture(scope="module", params=["valkey", pytest.param("redis", marks=pytest.mark.chaos)])
def small_server(request: pytest.FixtureRequest) -> Iterator[SmallServer]:
    """The embedded Valkey; with the marker `chaos` Redis too, where it is installed."""
    with _serving(request.param) as server:
        yield server
