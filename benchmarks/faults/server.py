"""A small server on a unix socket that keeps its data in an append-only file, and can be broken in many ways."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from pathlib import Path
from typing import Any

import redis

from rush_async.embedded.server import find_server

__all__ = ["BreakableServer"]

_READY_TIMEOUT = 20.0  # seconds


class BreakableServer:
    """A server with `appendfsync always`: what it has acknowledged is in its file.

    Args:
        directory: where its socket and its data are; a short path.
        binary: the program; by default the embedded server.

    Attributes:
        url: where it listens.
        raw: a plain client.
    """

    def __init__(self, directory: Path, binary: str = "") -> None:
        self._binary = binary or str(find_server())
        self._data = directory / "data"
        self._data.mkdir()
        self._socket = directory / "server.sock"
        self.url = f"unix://{self._socket}"
        self.raw: Any = redis.Redis.from_url(self.url)  # pyright: ignore[reportUnknownMemberType]
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Starts the server on its data, and waits until it answers."""
        self._socket.unlink(missing_ok=True)
        command = [self._binary, "--port", "0", "--unixsocket", str(self._socket), "--dir", str(self._data)]
        command += ["--appendonly", "yes", "--appendfsync", "always", "--save", "", "--maxmemory-policy", "noeviction"]
        # Another session, so that an interrupt of the bench ends the server last.
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)  # noqa: ASYNC220 - it takes a ms
        async with asyncio.timeout(_READY_TIMEOUT):
            while not self.answers():
                if self._process.poll() is not None:
                    raise RuntimeError(f"the server ended with {self._process.returncode}")
                await asyncio.sleep(0.01)

    def answers(self) -> bool:
        """Whether the server has loaded its data and answers."""
        try:
            return bool(self.raw.ping())
        except redis.RedisError:
            return False

    async def compact(self) -> None:
        """Writes the append-only file anew: a server that is killed often does not, for it goes by the size at its start."""
        self.raw.bgrewriteaof()
        async with asyncio.timeout(_READY_TIMEOUT):
            while self.raw.info("persistence")["aof_rewrite_in_progress"]:  # noqa: ASYNC110 - there is no event for it
                await asyncio.sleep(0.01)

    def kill(self) -> None:
        """Kills the process at once."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Stops the process until `go_on`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Lets a stopped process continue."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def fill(self) -> None:
        """Refuses what grows the data, until `empty`."""
        self.raw.config_set("maxmemory", 1)

    def empty(self) -> None:
        """Has room again."""
        self.raw.config_set("maxmemory", 0)

    def pause(self, seconds: float) -> None:
        """Answers no client for some time."""
        self.raw.execute_command("CLIENT", "PAUSE", int(seconds * 1000), "ALL")

    def flush_scripts(self) -> None:
        """Forgets all scripts."""
        self.raw.script_flush()

    def kill_clients(self, *, spared: str) -> int:
        """Closes the connections of all clients but this one and those of a name."""
        killed = 0
        for client in self.raw.client_list():
            if client["name"] != spared and client["id"] != str(self.raw.client_id()):
                killed += int(self.raw.client_kill_filter(_id=client["id"]))
        return killed

    def memory(self) -> int:
        """How many bytes the server has allocated."""
        return int(self.raw.info("memory")["used_memory"])

    def end(self) -> None:
        """Ends the process, also a stopped one."""
        self.raw.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._socket.unlink(missing_ok=True)
