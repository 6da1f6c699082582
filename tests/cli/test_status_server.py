"""The HTTP server of `rush-async worker`: what it answers while workers start, run, compute and end."""

from __future__ import annotations

import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from rush_async import Rush, RushWorker
from rush_async.cli.drain import Drain
from rush_async.cli.exit_codes import REFUSED, CommandError
from rush_async.cli.status_server import WorkerStatus, serving


@pytest.fixture
def drain() -> Drain:
    return Drain(1)


@pytest.fixture
def status(drain: Drain) -> WorkerStatus:
    return WorkerStatus(drain)


@pytest.fixture
def port(status: WorkerStatus) -> Iterator[int]:
    with serving(status, "127.0.0.1", 0) as port:
        assert port
        yield port


@pytest_asyncio.fixture
async def client(port: int) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        yield client


async def asked(client: httpx.AsyncClient, path: str) -> tuple[int, dict[str, Any]]:
    answer = await client.get(path)
    assert answer.headers["content-type"] == "application/json"
    return answer.status_code, answer.json()


async def test_a_program_is_healthy_from_its_start_and_ready_while_its_workers_take_tasks(
    rush: Rush, status: WorkerStatus, drain: Drain, client: httpx.AsyncClient
) -> None:
    assert await asked(client, "/healthz") == (200, {"state": "starting"})
    assert await asked(client, "/readyz") == (503, {"state": "starting", "problem": "no worker has joined the network"})
    assert "network=" not in (await client.get("/metrics")).text
    assert (await client.get("/elsewhere")).status_code == 404
    async with RushWorker(rush.network_id, rush.config) as worker:
        status.join(worker._net)  # pyright: ignore[reportPrivateUsage]
        code, found = await asked(client, "/readyz?verbose")
        assert (code, found["state"], found["workers"], found["network"]) == (200, "running", 1, rush.network_id)
        await rush.push_tasks([{"x": 1}])
        text = (await client.get("/metrics")).text
        assert f'rush_tasks{{network="{rush.network_id}",state="queued"}} 1.0' in text
        assert f'rush_up{{network="{rush.network_id}"}} 1.0' in text

        await rush.stop("enough")
        code, found = await asked(client, "/readyz")
        assert (code, found["problem"]) == (503, "the network has stopped (manual: enough)")
        drain.signal = signal.SIGTERM
        code, found = await asked(client, "/readyz")
        assert (code, found["problem"]) == (503, "it was asked to end: its workers finish their tasks")
        code, found = await asked(client, "/healthz")
        assert (code, found["state"]) == (200, "ending")
        status.close()
    assert await asked(client, "/readyz") == (503, {"state": "ending", "problem": "it is ending"})


async def test_it_answers_while_a_loop_computes_and_tells_when_that_or_the_heartbeat_is_too_late(
    rush_worker: RushWorker, status: WorkerStatus, port: int
) -> None:
    network = rush_worker._net  # pyright: ignore[reportPrivateUsage]
    status.join(network)

    def ask_and_block(path: str) -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{port}{path}")  # the event loop does not answer meanwhile

    answer = ask_and_block("/healthz")
    assert answer.status_code == 200
    assert answer.json()["seconds_without_answer_of_event_loop"] > 0
    assert f'rush_workers{{network="{rush_worker.network_id}",state="running"}}' in ask_and_block("/metrics").text

    network.heartbeat.max_stall = 0.001
    answer = ask_and_block("/healthz")
    assert (answer.status_code, answer.json()["problem"]) == (503, "the event loop has not answered for 0 s")

    network.heartbeat.max_stall = float("inf")
    joined = status._joined  # pyright: ignore[reportPrivateUsage]
    assert joined is not None
    status._joined = (*joined[:3], joined[3] - 1_000)  # pyright: ignore[reportPrivateUsage]
    answer = ask_and_block("/readyz")
    assert (answer.status_code, answer.json()["problem"][:30]) == (503, "no heartbeat was written for 1")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a connection wakes the server")
def test_it_ends_where_no_connection_can_be_made(status: WorkerStatus, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(24, "Too many open files")

    with serving(status, "127.0.0.1", 0):
        monkeypatch.setattr(socket, "create_connection", refuse)
    assert "rush-async status server" not in [thread.name for thread in threading.enumerate()]


def test_a_port_that_is_taken_is_refused(port: int, drain: Drain) -> None:
    with pytest.raises(CommandError, match=f"--metrics-port {port} .*Choose another") as refused:
        with serving(WorkerStatus(drain), "127.0.0.1", port):
            pass
    assert refused.value.code == REFUSED


def test_without_a_port_nothing_is_served_and_without_the_package_the_error_names_the_extra(
    drain: Drain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delitem(sys.modules, "rush_async.extras.metrics", raising=False)
    with serving(WorkerStatus(drain), "127.0.0.1", None) as port:
        assert port is None
    with pytest.raises(CommandError, match=r'pip install "rush-async\[metrics\]"'):
        with serving(WorkerStatus(drain), "127.0.0.1", 0):
            pass
