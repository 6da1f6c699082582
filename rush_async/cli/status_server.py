"""The HTTP server of `rush-async worker`: `/metrics` for Prometheus, `/healthz` and `/readyz` for Kubernetes.

It runs in a thread, because a loop that computes blocks the event loop for as long as an evaluation takes, and a program that
does not answer meanwhile would be killed.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any

from rush_async.cli.drain import Drain
from rush_async.cli.exit_codes import REFUSED, CommandError
from rush_async.heartbeat.loop_probe import LoopProbe
from rush_async.network.network import Network

if TYPE_CHECKING:
    from rush_async.extras.metrics import NetworkMetrics

__all__ = ["WorkerStatus", "serving"]

logger = logging.getLogger(__name__)

_READ = 10.0  # seconds for a client to send its request
_ANSWER = 3.0  # seconds for the event loop to ask the server; then a scrape shows what is known


class WorkerStatus:
    """What a program of workers tells of itself. It may be asked in any thread.

    Args:
        drain: knows whether the program was asked to end.

    Attributes:
        metrics: the metrics of its network; None where nothing serves them.
    """

    def __init__(self, drain: Drain) -> None:
        self.metrics: NetworkMetrics | None = None
        self._drain = drain
        self._is_closed = False
        self._joined: tuple[Network, asyncio.AbstractEventLoop, LoopProbe, float] | None = None
        self._lock = threading.Lock()  # a probe takes one question at a time

    def join(self, network: Network) -> None:
        """The workers of this event loop join the network."""
        loop = asyncio.get_running_loop()
        self._joined = network, loop, LoopProbe(loop), time.monotonic()
        if self.metrics is not None:
            self.metrics.watch_network(network)

    def close(self) -> None:
        """The workers have ended, and the event loop is about to."""
        self._joined, self._is_closed = None, True

    @property
    def _is_ending(self) -> bool:
        return self._is_closed or self._drain.signal is not None

    def health(self) -> dict[str, Any]:
        """Returns what a check of health shows; it has a `problem` where the program should be started anew.

        There is one where heartbeats have not been written for longer than the network waits for them and calls wait for the
        server together, or where the event loop has not answered for longer than `max_loop_stall`.
        """
        if (joined := self._joined) is None:
            return {"state": "ending" if self._is_ending else "starting"}
        network, _, _, since = joined
        silence, config, heartbeat = self._silence(), network.link.config, network.heartbeat
        age = time.monotonic() - max(since, heartbeat.beaten_at or since)
        found: dict[str, Any] = {
            "state": "ending" if self._is_ending else "running",
            "network": network.network_id,
            "workers": _n_workers(network),
            "seconds_since_heartbeat": round(age, 3),
            "seconds_without_answer_of_event_loop": round(silence, 3),
        }
        limit = max([lease.expire for lease in heartbeat.leases], default=float("inf")) + config.retry_deadline
        if age > limit:
            found["problem"] = f"no heartbeat was written for {age:.0f} s"
        elif network.heartbeat.max_stall < silence:
            found["problem"] = f"the event loop has not answered for {silence:.0f} s"
        return found

    def readiness(self) -> dict[str, Any]:
        """Returns what a check of readiness shows; it has a `problem` where the program takes no task."""
        found, joined = self.health(), self._joined
        if joined is None or not _n_workers(joined[0]):
            found.setdefault("problem", "it is ending" if self._is_ending else "no worker has joined the network")
        elif self._is_ending:
            found.setdefault("problem", "it was asked to end: its workers finish their tasks")
        elif (stop := joined[0].position.stop) is not None:
            found.setdefault("problem", f"the network has stopped ({stop})")
        return found

    def scrape(self, accept: str) -> tuple[bytes, str]:
        """Returns the metrics and their content type; the event loop asks the server for news, unless it is blocked."""
        assert self.metrics is not None
        if (joined := self._joined) is not None and not self._silence():
            asking = self.metrics.ask()
            try:
                asyncio.run_coroutine_threadsafe(asking, joined[1]).result(_ANSWER)
            except RuntimeError:  # the loop has been closed
                asking.close()
            except Exception as error:
                logger.debug("a scrape shows what is known: %s", error or "the event loop does not answer")
        return self.metrics.render(accept)

    def _silence(self) -> float:
        """For how many seconds the event loop has not answered; 0 where it answers."""
        joined = self._joined
        with self._lock:
            return 0.0 if joined is None else joined[2].silence()


def _n_workers(network: Network) -> int:
    """Returns how many workers here have joined; the event loop may change the table meanwhile."""
    return sum([worker.is_registered for worker in list(network.local_workers.by_id.values())])


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, address: str, port: int, status: WorkerStatus) -> None:
        self.status = status
        self._is_ending = False
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        super().__init__((address, port), _Handler)

    def serve(self) -> None:
        """Answers requests until `end`; `serve_forever` would wake twice a second."""
        while not self._is_ending:
            self.handle_request()
        self.server_close()

    def end(self) -> None:
        """Ends `serve`, which waits for a connection."""
        self._is_ending = True
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)  # wakes it on Linux, where a connection could fail
        address, port = self.server_address[:2]
        if address in ("0.0.0.0", "::"):
            address = "localhost"
        with suppress(OSError):
            socket.create_connection((str(address), int(port)), timeout=1).close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        logger.debug("a request of %s failed: %r", client_address, sys.exception())


class _Handler(BaseHTTPRequestHandler):
    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride]
    timeout = _READ
    server_version, sys_version = "rush-async", ""

    def do_GET(self) -> None:
        status = self.server.status
        match self.path.partition("?")[0]:
            case "/metrics":
                text, content_type = status.scrape(self.headers.get("Accept", ""))
                self._answer(200, text, content_type)
            case "/healthz":
                self._answer_check(status.health())
            case "/readyz":
                self._answer_check(status.readiness())
            case _:
                self._answer(404, b"there are /metrics, /healthz and /readyz\n", "text/plain")

    def _answer_check(self, found: dict[str, Any]) -> None:
        self._answer(503 if "problem" in found else 200, json.dumps(found).encode() + b"\n", "application/json")

    def _answer(self, code: int, body: bytes, content_type: str) -> None:
        self.send_response(code)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug(format, *args)


@contextmanager
def serving(status: WorkerStatus, address: str, port: int | None) -> Generator[int | None]:
    """Serves the status in this block; without a port nothing.

    Args:
        status: the status.
        address: the address of this machine to listen at.
        port: the port; 0 for a free one, which the log names.

    Yields:
        The port in use.

    Raises:
        CommandError: the port is taken, or prometheus-client is not installed.
    """
    if port is None:
        yield None
        return
    try:
        from rush_async.extras.metrics import NetworkMetrics
    except ImportError as error:
        raise CommandError(f"--metrics-port: {error}", REFUSED) from None
    status.metrics = NetworkMetrics()
    try:
        server = _Server(address, port, status)
    except OSError as error:
        raise CommandError(
            f"--metrics-port {port} cannot be served at {address}: {error.strerror}. Choose another port or --metrics-address",
            REFUSED,
        ) from None
    thread = threading.Thread(target=server.serve, name="rush-async status server", daemon=True)
    thread.start()
    logger.info("serves /metrics, /healthz and /readyz at http://%s:%d", *server.server_address[:2])
    try:
        yield int(server.server_address[1])
    finally:
        server.end()
        thread.join()
