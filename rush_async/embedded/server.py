"""The embedded server, shared by all its users in this process and, with a data directory, in others.

Each process that uses a server has a shared lock on its lease file. A watchdog (see `watchdog.py`) waits for the exclusive
lock, and then stops the server. So the server survives the process that started it while another one uses it, and ends with
the last one, however that ends. A server with a data directory that dies earlier is started again by the watchdog, on the same
socket: clients need no new address. `directories.py` lists the files of a server.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import threading
import time
from pathlib import Path

import anyio.to_thread

from rush_async.embedded.directories import DataDirectory, RuntimeDirectory
from rush_async.embedded.start import END_TIMEOUT, Child, Listener, Server, ServerOptions, find_server, server_options
from rush_async.errors import ServerStartError, redact
from rush_async.process import forget_in_child
from rush_async.supervisor import run_to_completion

__all__ = ["ServerLease", "acquire", "acquire_in_thread", "find_server"]

logger = logging.getLogger(__name__)


class ServerLease:
    """A lease on the embedded server: it runs at least until the lease is released.

    Attributes:
        url: where the server listens.
        pid: the server's process, which is another one after it died and was started again.
        data_dir: where the server keeps its data; None if it keeps nothing.
    """

    def __init__(self, server: Server, data_dir: Path | None) -> None:
        self.data_dir = data_dir
        self.url = server.url
        self.pid = server.pid
        self._server: Server | None = server

    def release(self) -> None:
        """Releases the lease. The last lease of a process waits until the server has ended, unless other processes use it."""
        with _servers.lock:
            server, self._server = self._server, None
            if server is not None:
                _servers.release(server)


def acquire(
    data_dir: Path | None = None,
    *,
    appendfsync: str = "everysec",
    maxmemory: int | None = None,
    ready_timeout: float = 5.0,
    given_up: threading.Event | None = None,
    listener: Listener | None = None,
    joins: bool = True,
) -> ServerLease:
    """Takes a lease on this process's embedded server, or on that of a data directory; starts one if none runs. Blocks.

    Args:
        data_dir: where the server keeps its data; processes with the same directory share one server. None keeps nothing.
        appendfsync: how a server with a `data_dir` writes: `always`, `everysec` or `no`; a server that runs keeps its own.
        maxmemory: the most bytes of data; a server that runs keeps its own.
        ready_timeout: seconds the server may take to answer; with data to load, to begin loading.
        given_up: ends the wait for another process that starts the same server, when it is set.
        listener: a TCP port of the server; it needs a password.
        joins: whether a server that has the `data_dir` already will do.

    Returns:
        The lease. `release` it to let the server end.

    Raises:
        ServerStartError: the server did not start; the message quotes the end of its log.
    """
    data = None if data_dir is None else DataDirectory.prepare(data_dir)
    options = ServerOptions(server_options(data, appendfsync, maxmemory), listener, joins)
    server = _servers.acquire(data, options, ready_timeout, given_up)
    return ServerLease(server, None if data is None else data.path)


async def acquire_in_thread(data_dir: Path | None, appendfsync: str) -> ServerLease:
    """Takes a lease as `acquire` does, without blocking the event loop. Cancelled, it keeps none."""
    attempt = _Attempt()
    try:
        return await anyio.to_thread.run_sync(attempt.take, data_dir, appendfsync, abandon_on_cancel=True)
    except asyncio.CancelledError:
        await run_to_completion(anyio.to_thread.run_sync(attempt.give_up))
        raise


class _Attempt:
    """A thread takes a lease, for a caller that may give up meanwhile."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._given_up = threading.Event()
        self._lease: ServerLease | None = None

    def take(self, data_dir: Path | None, appendfsync: str) -> ServerLease:
        """Takes the lease, unless the caller has given up."""
        lease = acquire(data_dir, appendfsync=appendfsync, given_up=self._given_up)
        with self._lock:
            if not self._given_up.is_set():
                self._lease = lease
                return lease
        lease.release()
        raise ServerStartError("the client that wanted the server was cancelled")

    def give_up(self) -> None:
        """Releases the lease, now or when it is taken."""
        with self._lock:
            self._given_up.set()
        if self._lease is not None:
            self._lease.release()


class _Servers:
    """The embedded servers that this process uses: one for each data directory, and one without."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._servers: dict[Path | None, Server] = {}
        self._watchdogs: list[Child] = []  # children of this process whose server has not ended yet

    def acquire(
        self, data: DataDirectory | None, options: ServerOptions, ready_timeout: float, given_up: threading.Event | None
    ) -> Server:
        key = None if data is None else data.path
        with self.lock:
            self._reap()
            server = self._servers.get(key)
            # The watchdog of a server with a data directory may just be starting it again.
            deadline = time.monotonic() + ready_timeout
            if server is not None and not server.is_listening() and not server.wait_until_ready(deadline):
                logger.warning("the embedded server (process %d) has died; starting another", server.pid)
                # Its lease file must be gone: `_join_or_start` would open and close it, which releases our lock.
                server.discard()
                del self._servers[key]
                server = None
            if server is None:
                server = self._servers[key] = _join_or_start(data, options, ready_timeout, given_up)
            server.n_users += 1
            return server

    def release(self, server: Server) -> None:
        if server.owner != os.getpid():
            return
        server.n_users -= 1
        if server.n_users <= 0:
            self._close(server)

    def close(self) -> None:
        """Closes all servers as the process exits."""
        # A thread that is still starting a server does not delay the exit: its watchdog stops that server.
        if self.lock.acquire(timeout=END_TIMEOUT):
            for server in list(self._servers.values()):
                self._close(server)
            self.lock.release()

    def forget(self) -> None:
        """Forgets all servers in a forked child: the locks, and so the servers, are the parent's."""
        self.lock = threading.RLock()
        for server in self._servers.values():
            os.close(server.lease)
        self._servers.clear()
        self._watchdogs.clear()

    def _close(self, server: Server) -> None:
        for key in [key for key, known in self._servers.items() if known is server]:
            del self._servers[key]
        server.close()
        if server.watchdog is not None:
            self._watchdogs.append(server.watchdog)
        self._reap()

    def _reap(self) -> None:
        self._watchdogs = [watchdog for watchdog in self._watchdogs if not watchdog.has_ended()]


def _join_or_start(
    data: DataDirectory | None, options: ServerOptions, ready_timeout: float, given_up: threading.Event | None
) -> Server:
    """Joins the server of a data directory, or starts one. Other processes wait meanwhile."""
    if data is None:
        server = Server.start(None, RuntimeDirectory.create(), options, ready_timeout)
        logger.info("started a private server on %s", server.url)
        return server
    with data.locked(given_up):
        deadline = time.monotonic() + ready_timeout
        while True:
            directory, server = data.runtime_directory(), None
            with data.usable():
                is_ours = directory is not None and directory.belongs_to(data)
                if directory is not None and is_ours:
                    server = Server.join(data, directory, deadline)
            if server is not None and not options.joins:
                os.close(server.lease)
                raise ServerStartError(
                    f"data_dir {str(data.path)!r} has a server already (process {server.pid}): end the programs that use it, "
                    "or name another directory"
                )
            if server is not None:
                logger.info("joined the server of %s on %s", data.path, redact(server.url))
                return server
            # A watchdog that ends keeps its lock for an instant. One that keeps it longer has a server that writes here.
            if not data.is_in_use():
                break
            if time.monotonic() > deadline:
                where = "its socket" if directory is None else directory.socket
                raise ServerStartError(
                    f"data_dir {str(data.path)!r} is in use by a server that gives no answer on {where}: is it that of "
                    "another container or user, or frozen? End it, name its url instead, or use another data_dir"
                )
            time.sleep(0.005)
        if directory is not None and is_ours:
            directory.remove()  # of a server that ended with its machine
        data.make_private()
        directory = RuntimeDirectory.create(data)
        try:
            data.record(directory)
        except ServerStartError:
            directory.remove()
            raise
        server = Server.start(data, directory, options, ready_timeout)
        logger.info("started a private server on %s with its data in %s", redact(server.url), data.path)
        return server


_servers = _Servers()
forget_in_child(_servers)
atexit.register(_servers.close)
