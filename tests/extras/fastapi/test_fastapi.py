"""The router and the lifespan over HTTP: uvicorn runs the application in processes of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import anyio
import httpx
import psutil
import pytest
import pytest_asyncio
import redis
from fastapi import FastAPI

from rush_async import DecodeError, Rush, RushConfig, TasksFinished
from rush_async.extras.fastapi import RushDep, rush_lifespan, rush_router
from rush_async.testing import wait_until
from tests.extras.fastapi.service_of_tests import LOOPS, create_app, objective, orderly
from tests.proxy import Proxy

ROOT = Path(__file__).parents[3]
UNKNOWN = "0123456789abcdef"


class Server:
    """uvicorn in a process of its own, on a unix socket."""

    def __init__(
        self, directory: Path, name: str, app: str = "tests.extras.fastapi.service_of_tests:create_app", *words: str, **env: str
    ):
        self.socket = directory / f"{name}.sock"
        self.log = directory / f"{name}.log"
        left_out = ("RUSH_URL", "REDIS_URL", "RUSH_DATA_DIR", "RUSH_PASSWORD")
        environment = {key: value for key, value in os.environ.items() if key not in left_out} | env
        factory = ["--factory"] if app.endswith(":create_app") else []
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "error", "-m", "uvicorn", app, "--uds", str(self.socket), *factory, *words],
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + 30
        while b"Application startup complete" not in self.log.read_bytes() or not self._answers():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(str(self.socket)) == 0

    def client(self) -> httpx.AsyncClient:
        transport = httpx.AsyncHTTPTransport(uds=str(self.socket))
        return httpx.AsyncClient(transport=transport, base_url="http://service", timeout=20)

    def end(self, number: int = signal.SIGTERM, timeout: float = 15) -> float:
        """Signals the process, waits for its end, and returns how many seconds that took."""
        start = time.monotonic()
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        return time.monotonic() - start

    def errors(self) -> list[str]:
        """The errors in the log, without those that say how the loop of a worker failed."""
        lines = [line for line in self.log.read_text().splitlines() if not line.startswith("the loop of worker")]
        return [line for line in lines if "Traceback" in line or line.startswith("ERROR")]


class Message(NamedTuple):
    """A message of a stream. A comment has no event."""

    event: str | None
    id: str | None
    data: Any


async def messages(answer: httpx.Response) -> AsyncIterator[Message]:
    """Yields the messages of a stream, also its comments."""
    fields: dict[str, str] = {}
    async for line in answer.aiter_lines():
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        else:
            yield Message(fields.get("event"), fields.get("id"), json.loads(fields.get("data", "null")))
            fields = {}


@asynccontextmanager
async def stream(client: httpx.AsyncClient, run: str, **params: Any) -> AsyncGenerator[AsyncIterator[Message]]:
    async with client.stream("GET", f"/runs/{run}/events", params=params) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield messages(answer)


async def start(client: httpx.AsyncClient, loop: str, evals: int = 1000, n_workers: int = 1) -> str:
    answer = await client.post("/runs", json={"loop": loop, "evals": evals, "n_workers": n_workers})
    assert answer.status_code == 201, answer.text
    assert answer.headers["location"] == f"/runs/{answer.json()['id']}"
    return answer.json()["id"]


async def status_of(client: httpx.AsyncClient, run: str) -> dict[str, Any]:
    answer = await client.get(f"/runs/{run}")
    assert answer.status_code == 200, answer.text
    return answer.json()


async def stop(client: httpx.AsyncClient, run: str, **params: Any) -> dict[str, Any]:
    answer = await client.delete(f"/runs/{run}", params=params)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server]]:
    """Two processes of one service that share a data directory."""
    directory = tmp_path_factory.mktemp("s", numbered=True)
    both = [Server(directory, name, RUSH_DATA_DIR=str(directory / "data")) for name in "ab"]
    try:
        for server in both:
            server.wait_until_ready()
        yield both[0], both[1]
        for server in both:
            assert server.end() < 5
            assert server.errors() == []
    finally:
        for server in both:
            server.end(signal.SIGKILL)


@pytest_asyncio.fixture
async def client_a(servers: tuple[Server, Server]) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the first process."""
    async with servers[0].client() as client:
        yield client


@pytest_asyncio.fixture
async def client_b(servers: tuple[Server, Server]) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the second process."""
    async with servers[1].client() as client:
        yield client


@pytest_asyncio.fixture
async def manager(servers: tuple[Server, Server]) -> AsyncIterator[Rush]:
    """A manager of the service's own network, in this process."""
    async with Rush("service", RushConfig(data_dir=servers[0].log.parent / "data")) as rush:
        yield rush


# runs


async def test_a_run_spends_its_budget_and_its_stream_sends_every_event(client_a: httpx.AsyncClient) -> None:
    run = await start(client_a, "search", evals=30, n_workers=3)
    async with stream(client_a, run, results=True) as events:
        received = [message async for message in events if message.event is not None]
    (first, *middle, last) = received
    assert first.event == "status"
    assert (last.event, last.id) == ("end", "end")
    assert last.data["state"] == "ended"
    assert last.data["counts"] == {"queued": 0, "running": 0, "finished": 30, "failed": 0}
    assert last.data["workers"] == {"terminated": 3}
    assert last.data["best"]["ys"]["y"] == -10
    assert last.data["best"]["xs"] == {"x": 10}
    seqs = [int(message.id or 0) for message in middle]
    assert seqs == sorted(set(seqs))
    finished = [message.data for message in middle if message.event == "TasksFinished"]
    assert first.data["counts"]["finished"] + sum(len(data["keys"]) for data in finished) >= 30
    assert all(task["state"] == "finished" and "y" in task["ys"] for data in finished for task in data["tasks"])
    assert await status_of(client_a, run) == last.data


async def test_any_process_shows_and_stops_the_run_of_another(
    client_a: httpx.AsyncClient, client_b: httpx.AsyncClient, manager: Rush
) -> None:
    run = await start(client_a, "orderly", n_workers=2)
    async with stream(client_b, run) as events:
        assert (await anext(events)).data["state"] == "running"
        names = set[str | None]()
        async for message in events:
            names.add(message.event)
            if {"TasksStarted", "TasksFinished"} <= names:
                break
        shown = await status_of(client_b, run)
        assert (shown["state"], shown["workers"]) == ("running", {"running": 2})
        ended = await stop(client_b, run)
        rest = [message.event async for message in events]
    assert rest[-1] == "end"
    assert rest.count("WorkerStopped") == 2
    assert (ended["state"], ended["workers"]) == ("ended", {"terminated": 2})
    assert (ended["ended"]["why"], ended["ended"]["detail"]) == ("stopped", "stopped by hand")
    for client in (client_a, client_b):
        (listed,) = [found for found in (await client.get("/runs")).json() if found["id"] == run]
        assert listed == {name: ended[name] for name in listed}
    assert (ended["counts"]["running"], ended["counts"]["failed"]) == (0, 0)
    assert (await stop(client_a, run, forget=True))["counts"] == ended["counts"]
    for client in (client_a, client_b):
        assert (await client.get(f"/runs/{run}")).status_code == 404
    assert manager.config.url is not None
    with redis.Redis.from_url(manager.config.url) as raw:  # pyright: ignore[reportUnknownMemberType]
        assert not raw.keys(f"*{run}*")  # pyright: ignore[reportUnknownMemberType]


async def test_any_process_kills_workers_that_do_not_stop_in_time(
    client_a: httpx.AsyncClient, client_b: httpx.AsyncClient
) -> None:
    run = await start(client_a, "stuck", n_workers=2)
    await wait_until(lambda: running(client_b, run, 2))
    ended = await stop(client_b, run, timeout=0.1)
    assert ended["workers"] == {"killed": 2}
    assert (ended["counts"]["running"], ended["counts"]["failed"]) == (0, 2)


async def running(client: httpx.AsyncClient, run: str, n: int) -> bool:
    return (await status_of(client, run))["counts"]["running"] == n


async def test_the_state_of_a_run_names_why_its_loop_failed(client_a: httpx.AsyncClient) -> None:
    run = await start(client_a, "broken", n_workers=2)
    async with stream(client_a, run) as events:
        last = [message async for message in events][-1]
    assert last.data["workers"] == {"failed": 2}
    assert last.data["failures"] == ["LookupError: the loop is broken"]


async def test_the_stream_of_an_ended_run_ends_at_once_and_tells_the_client_not_to_reconnect(
    client_a: httpx.AsyncClient,
) -> None:
    run = await start(client_a, "search", evals=1)
    async with stream(client_a, run) as events:
        assert [message.event async for message in events][-1] == "end"
    async with stream(client_a, run) as events:
        assert [message.event async for message in events] == ["status", "end"]
    again = await client_a.get(f"/runs/{run}/events", headers={"Last-Event-ID": "end"})
    assert (again.status_code, again.content) == (204, b"")


async def test_comments_keep_an_idle_stream_alive(client_a: httpx.AsyncClient) -> None:
    run = await start(client_a, "queue")
    async with stream(client_a, run) as events:
        kinds = [(await anext(events)).event for _ in range(4)]
    assert kinds.count(None) >= 2
    await stop(client_a, run)


async def test_a_client_that_closes_its_stream_leaves_no_subscription_and_no_task(
    client_a: httpx.AsyncClient, client_b: httpx.AsyncClient, manager: Rush
) -> None:
    run = await start(client_a, "orderly")
    assert manager.config.url is not None
    with redis.Redis.from_url(manager.config.url) as raw:  # pyright: ignore[reportUnknownMemberType]

        def listeners() -> int:
            channel = f"rush:{{service.{run}}}:events"
            return cast("Any", raw).execute_command("PUBSUB", "SHARDNUMSUB", channel)[1]

        async def n_tasks() -> int:
            return (await client_b.get("/n-tasks")).json()

        await wait_until(lambda: listeners() == 1)  # the manager of the run
        before = await n_tasks()
        async with stream(client_b, run) as one, stream(client_b, run) as other:
            for events in (one, other):
                while (await anext(events)).event != "TasksFinished":
                    pass
            assert listeners() == 2  # one subscription for all streams of a process
            assert await n_tasks() > before
        await wait_until(lambda: listeners() == 1)
        await wait_until(lambda: is_at_most(n_tasks, before))
    assert (await status_of(client_a, run))["state"] == "running"
    await stop(client_a, run)


async def is_at_most(ask: Any, most: int) -> bool:
    return await ask() <= most


# stopping as one


async def test_a_run_stops_by_its_rules_and_its_status_says_why(
    client_a: httpx.AsyncClient, client_b: httpx.AsyncClient
) -> None:
    rules = {"finished": 1_000, "target": {"y": -3.0}}
    body = {"loop": "queue", "evals": 1, "n_workers": 2, "stop_when": rules}
    answer = await client_a.post("/runs", json=body)
    assert answer.status_code == 201, answer.text
    run = answer.json()["id"]
    held = {"finished": 1_000, "failed": None, "seconds": None, "target": {"y": -3.0}, "patience": None, "maximize": False}
    assert answer.json()["stop_when"] == held
    async with stream(client_b, run) as events:
        assert (await anext(events)).data["stopped"] is None
        assert (await client_a.post("/tasks", json={"xss": [{"x": 1}, {"x": 5}, {"x": 2}], "run": run})).status_code == 202
        received = [message async for message in events if message.event is not None]
    (stopped,) = [message for message in received if message.event == "NetworkStopped"]
    assert (stopped.data["rule"], stopped.data["detail"]) == ("target", "y = -5 has reached -3")
    assert "TasksStarted" not in [message.event for message in received[received.index(stopped) :]]
    last = received[-1].data
    assert last["stopped"] == {
        "rule": "target",
        "at": last["stopped"]["at"],
        "seq": int(stopped.id or 0),
        "detail": "y = -5 has reached -3",
    }
    assert (last["state"], last["stop_when"], last["workers"]) == ("ended", held, {"terminated": 2})
    assert await status_of(client_a, run) == await status_of(client_b, run) == last


async def test_a_run_is_stopped_by_hand_and_continues_with_new_rules_and_workers(
    client_a: httpx.AsyncClient, client_b: httpx.AsyncClient
) -> None:
    run = await start(client_a, "orderly")
    assert (await status_of(client_b, run))["stopped"] is None
    async with stream(client_a, run) as events:
        stopped = await client_b.post(f"/runs/{run}/stop", json={"why": "good enough"})
        assert (stopped.status_code, stopped.json()["stopped"]["rule"]) == (200, "manual")
        again = await client_b.post(f"/runs/{run}/stop")
        assert again.json()["stopped"] == stopped.json()["stopped"]
        assert again.json()["stopped"]["detail"] == "good enough"
        assert [message.event async for message in events][-1] == "end"
    n_finished = (await status_of(client_b, run))["counts"]["finished"]
    keys = (await client_b.post("/tasks", json={"xss": [{"x": 1}], "run": run})).json()
    unheard = await client_b.post(f"/runs/{run}/resume", json={"workers": {"loop": "unheard", "evals": 1}})
    assert unheard.status_code == 422
    assert (await status_of(client_a, run))["stopped"] is not None
    rules, workers = {"finished": n_finished + 4}, {"loop": "queue", "evals": 1, "n_workers": 2}
    answer = await client_b.post(f"/runs/{run}/resume", json={"stop_when": rules, "workers": workers})
    assert (answer.status_code, answer.json()["stop_when"]["finished"]) == (200, n_finished + 4)
    async with stream(client_a, run) as events:
        assert (await anext(events)).event == "status"
        assert (await client_b.post("/tasks", json={"xss": [{"x": 2}] * 5, "run": run})).status_code == 202
        assert "NetworkStopped" in [message.event async for message in events]
    ended = await status_of(client_a, run)
    assert (ended["stopped"]["rule"], ended["counts"]["finished"]) == ("finished", n_finished + 4)
    assert ended["workers"] == {"terminated": 3}
    (task,) = (await client_b.get("/tasks", params={"key": keys, "run": run})).json()
    assert task["state"] == "finished"
    # A rule that is true already is refused, and the run stays stopped.
    refused = await client_b.post(f"/runs/{run}/resume", json={"stop_when": {"finished": 4}})
    assert (refused.status_code, refused.json()["detail"].partition(",")[0]) == (422, "the rule 'finished' is true already")
    async with stream(client_a, run) as events:
        assert (await anext(events)).data["stopped"] == ended["stopped"]


# attributes and reports


async def test_any_process_reads_and_sets_attributes_of_a_run(client_a: httpx.AsyncClient, client_b: httpx.AsyncClient) -> None:
    run = await start(client_a, "queue")
    path = f"/runs/{run}/attrs"
    assert (await client_a.get(path)).json() == {}
    answer = await client_a.put(path, json={"rate": 0.1, "phase": {"name": "warm up", "n": None}})
    assert (answer.status_code, answer.content) == (204, b"")
    assert (await client_b.put(path, json={"rate": 0.2})).status_code == 204
    assert (await client_b.get(path)).json() == {"phase": {"name": "warm up", "n": None}, "rate": 0.2}
    assert (await client_b.get(path, params={"name": ["rate", "unknown"]})).json() == {"rate": 0.2}
    too_many = await client_b.put(path, json={str(n): 0 for n in range(10_000)})
    assert (too_many.status_code, "10,000 attributes" in too_many.json()["detail"]) == (409, True)
    too_large = await client_b.put(path, json={"text": "x" * 2**20})
    assert (too_large.status_code, "and a call takes at most" in too_large.json()["detail"]) == (422, True)
    assert (await client_b.put(path, json=[1])).status_code == 422
    await stop(client_a, run)


async def test_reports_come_as_rows_and_as_events_for_those_who_ask(
    client_a: httpx.AsyncClient, client_b: httpx.AsyncClient
) -> None:
    run = await start(client_a, "queue")
    assert (await client_b.get(f"/runs/{run}/reports")).json() == []
    async with stream(client_b, run, reports=True) as events, stream(client_a, run) as others:
        assert [(await anext(each)).event for each in (events, others)] == ["status", "status"]
        body = {"workers": {"loop": "reporting", "evals": 3}}
        assert (await client_a.post(f"/runs/{run}/resume", json=body)).status_code == 200
        heard: list[Message] = []
        while len(heard) < 6:
            message = await anext(events)
            heard += [message] if message.event == "TaskReported" else []
        await stop(client_b, run)
        assert "TaskReported" not in [message.event async for message in others]
    assert {message.id for message in heard} == {None}
    assert [message.data["values"] for message in heard] == [{"loss": 1.0}, {"loss": None, "epoch": 2}] * 3

    async def reports(**params: Any) -> list[dict[str, Any]]:
        answer = await client_b.get(f"/runs/{run}/reports", params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()

    rows = await reports()
    assert [(row["key"], row["step"], row["values"]) for row in rows] == [
        (message.data["key"], message.data["step"], message.data["values"]) for message in heard
    ]
    assert await reports(key=rows[2]["key"]) == rows[2:4]
    assert await reports(since=rows[-1]["at"]) == []
    later = [row for row in rows if row["at"] > rows[0]["at"]]
    assert await reports(since=rows[0]["at"]) == later
    first = await reports(limit=1)
    assert first == [row for row in rows if row["at"] == rows[0]["at"]]
    assert (await client_b.get(f"/runs/{run}/reports", params={"since": "2026-01-01T00:00:00"})).status_code == 422


# tasks and evaluations


async def test_any_process_queues_tasks_for_a_run(client_a: httpx.AsyncClient, client_b: httpx.AsyncClient) -> None:
    run = await start(client_a, "queue")
    answer = await client_b.post("/tasks", json={"xss": [{"x": 1}, {"x": 2}], "run": run})
    assert answer.status_code == 202
    keys = answer.json()

    async def tasks() -> list[dict[str, Any]]:
        return (await client_b.get("/tasks", params={"key": [*keys, "unknown"], "run": run})).json()

    await wait_until(lambda: all_finished(tasks))
    *both, unknown = await tasks()
    assert [(task["xs"], task["ys"]["y"]) for task in both] == [({"x": 1}, -1), ({"x": 2}, -2)]
    assert unknown is None
    assert (await status_of(client_b, run))["best"]["key"] == keys[1]
    await stop(client_a, run)


async def all_finished(ask: Any) -> bool:
    return all(task is None or task["state"] == "finished" for task in await ask())


async def test_an_evaluation_is_answered_with_its_result(client_a: httpx.AsyncClient) -> None:
    answers = await asyncio.gather(*[client_a.post("/evaluate", json={"xs": {"x": x}}) for x in range(8)])
    assert [(answer.status_code, answer.json()["ys"]["y"]) for answer in answers] == [(200, -x) for x in range(8)]
    (task,) = (await client_a.get("/tasks", params={"key": answers[3].json()["key"]})).json()
    assert task == answers[3].json()
    assert task["xs"] == {"x": 3}


async def test_an_evaluation_may_use_the_workers_of_a_run(client_a: httpx.AsyncClient, client_b: httpx.AsyncClient) -> None:
    run = await start(client_a, "queue")
    answer = await client_b.post("/evaluate", json={"xs": {"x": 5}, "run": run})
    assert (answer.status_code, answer.json()["ys"]["y"]) == (200, -5)
    await stop(client_a, run)
    late = await client_b.post("/evaluate", json={"xs": {"x": 5}, "run": run})
    assert late.status_code == 503
    assert late.json()["detail"] == "no worker will run the task: start workers, or resume the run"
    assert (await status_of(client_a, run))["counts"]["queued"] == 0  # it was cancelled


async def test_a_failed_evaluation_names_the_reason_and_the_evaluators_continue(client_a: httpx.AsyncClient) -> None:
    for _ in range(5):  # there are four evaluators in all
        answer = await client_a.post("/evaluate", json={"xs": {"fail": "too deep"}})
        assert answer.status_code == 500
        assert "(error): ArithmeticError: too deep" in answer.json()["detail"]
    assert (await client_a.post("/evaluate", json={"xs": {"x": 1}})).status_code == 200


async def test_an_evaluation_that_takes_too_long_is_cancelled(client_a: httpx.AsyncClient) -> None:
    answer = await client_a.post("/evaluate", json={"xs": {"sleep": 3600}, "timeout": 0.1})
    assert answer.status_code == 504
    key = answer.json()["detail"].split()[1]
    (task,) = (await client_a.get("/tasks", params={"key": key})).json()
    assert (task["state"], task["failure"]["kind"]) == ("failed", "cancelled")


async def test_an_evaluation_whose_client_disconnects_is_cancelled(client_a: httpx.AsyncClient, manager: Rush) -> None:
    request = asyncio.create_task(client_a.post("/evaluate", json={"xs": {"sleep": 3600, "mark": "left"}}))
    await manager.wait_until(lambda counts: counts.running == 1, timeout=5)
    request.cancel()
    await asyncio.wait([request])
    await manager.wait_until(lambda counts: counts.running == 0, timeout=5)
    tasks = await manager.fetch_failed_tasks()
    assert tasks.filter(tasks["mark"] == "left")["condition"].struct.field("kind").to_list() == ["cancelled"]


async def test_an_evaluation_whose_network_is_reset_is_not_found(client_a: httpx.AsyncClient, manager: Rush) -> None:
    run = await start(client_a, "queue")
    request = asyncio.create_task(client_a.post("/evaluate", json={"xs": {"sleep": 3600}, "run": run}))
    await wait_until(lambda: running(client_a, run, 1))
    async with Rush(f"service.{run}", manager.config) as of_run:
        await of_run.reset(workers=False)
    answer = await request
    assert answer.status_code == 404
    assert "a reset deleted the task" in answer.json()["detail"]
    await stop(client_a, run, timeout=0.1)


async def test_the_service_replaces_lost_evaluators(client_a: httpx.AsyncClient, manager: Rush) -> None:
    evaluators = (await manager.worker_info()).filter(state="running")["worker_id"].to_list()
    assert len(evaluators) == 4
    await manager.stop_workers(evaluators, mode="kill")
    await manager.wait_for_workers(4, timeout=10)
    assert (await client_a.post("/evaluate", json={"xs": {"x": 1}})).status_code == 200


# refused requests


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", f"/runs/{UNKNOWN}", None),
        ("DELETE", f"/runs/{UNKNOWN}", None),
        ("GET", f"/runs/{UNKNOWN}/events", None),
        ("GET", f"/tasks?key=k&run={UNKNOWN}", None),
        ("POST", "/tasks", {"xss": [{"x": 1}], "run": UNKNOWN}),
        ("POST", "/evaluate", {"xs": {"x": 1}, "run": UNKNOWN}),
    ],
)
async def test_an_unknown_run_is_not_found(client_a: httpx.AsyncClient, method: str, path: str, body: Any) -> None:
    answer = await client_a.request(method, path, json=body)
    assert (answer.status_code, answer.json()) == (404, {"detail": f"there is no run {UNKNOWN}"})


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/runs", {"loop": "unheard", "evals": 1}, "choose from broken, orderly, queue, reporting, search, stuck"),
        ("/runs", {"loop": "search", "evals": 0}, "greater than 0"),
        ("/runs", {"loop": "search", "evals": 2**53 + 1}, "less than or equal to"),
        ("/runs", {"loop": "search", "evals": 1, "n_workers": 1_000}, "less than or equal to 256"),
        (
            "/runs",
            {"loop": "search", "evals": 1, "stop_when": {}},
            "give a rule: finished, failed, seconds, target or patience",
        ),
        ("/runs", {"loop": "search", "evals": 1, "stop_when": {"finished": 0}}, "greater than 0"),
        ("/runs", {"loop": "search", "evals": 1, "stop_when": {"minutes": 1}}, "Extra inputs are not permitted"),
        ("/runs", {"loop": "search", "evals": 1, "stop_when": {"target": {"y": 1, "z": 2}}}, "at most 1 item"),
        (
            "/runs",
            {"loop": "search", "evals": 1, "stop_when": {"target": {"y": 1}, "patience": ["z", 2]}},
            "target and patience judge one output, the same in both",
        ),
        ("/tasks", {"xss": []}, "at least 1 item"),
        ("/tasks", {"xss": [{"keys": 1}]}, "which is the name of a column of every frame"),
        ("/evaluate", {"xs": {"keys": 1}}, "which is the name of a column of every frame"),
        ("/evaluate", {"xs": [1]}, "valid dictionary"),
        ("/evaluate", {"xs": {}, "run": "../keys"}, "should match pattern"),
        ("/evaluate", {"xs": {}, "timeout": 0}, "greater than 0"),
    ],
)
async def test_bad_input_is_refused(client_a: httpx.AsyncClient, path: str, body: Any, words: str) -> None:
    answer = await client_a.post(path, json=body)
    assert answer.status_code == 422
    assert words in answer.text


# the end of a process


async def left_behind(config: RushConfig, *networks: str) -> dict[str, tuple[int, list[str]]]:
    """The number of running tasks and the states of the workers of each network. Deletes the networks."""
    found: dict[str, tuple[int, list[str]]] = {}
    for network in networks:
        async with Rush(network, config) as rush:
            found[network] = (await rush.counts()).running, sorted((await rush.worker_info())["state"].unique())
            await rush.reset()
    return found


async def test_sigterm_drains_the_workers_then_ends_the_streams_and_the_process(
    rush_server: RushConfig, directory: Path
) -> None:
    assert rush_server.url is not None
    server = Server(directory, "a", RUSH_URL=rush_server.url, DRAIN="1")
    try:
        server.wait_until_ready()
        async with server.client() as client, Rush("service", rush_server) as manager:
            run, late = await start(client, "orderly", n_workers=2), await start(client, "stuck")
            await wait_until(lambda: running(client, late, 1))
            request = asyncio.create_task(client.post("/evaluate", json={"xs": {"x": 3, "sleep": 0.5}}))
            long_request = asyncio.create_task(client.post("/evaluate", json={"xs": {"sleep": 3600}, "retries": 0}))
            await manager.wait_until(lambda counts: counts.running == 2, timeout=5)
            async with (
                Rush(f"service.{UNKNOWN}", rush_server) as other_run,
                stream(client, run) as events,
                stream(client, late) as events_of_late,
            ):
                await other_run.start_workers(orderly, evals=1)
                async with stream(client, UNKNOWN) as events_of_other:
                    for each in (events, events_of_other):
                        while (await anext(each)).event != "TasksFinished":
                            pass
                    assert (await anext(events_of_late)).event == "status"
                    end = asyncio.create_task(asyncio.to_thread(server.end))
                    rest = [message async for message in events]
                    rest_of_late = [message async for message in events_of_late if message.event is not None]
                    # The workers of this run live in another process and continue, so its stream has no `end`.
                    assert "end" not in [message.event async for message in events_of_other]
                assert (await other_run.worker_info())["state"].to_list() == ["running"]
            assert (rest[-1].event, rest[-1].data["workers"]) == ("end", {"terminated": 2})
            assert rest[-1].data["counts"]["failed"] == 0
            assert (rest_of_late[-1].event, rest_of_late[-1].data["workers"]) == ("end", {"killed": 1})
            assert (await request).json()["ys"]["y"] == -3  # the evaluators finish their tasks, and the service answers
            assert (await long_request).status_code == 503
            assert 1 <= await end < 6
        assert server.process.returncode == -signal.SIGTERM
        assert server.errors() == []
    finally:
        server.end(signal.SIGKILL)
    networks = ("service", f"service.{run}", f"service.{late}", f"service.{UNKNOWN}")
    assert await left_behind(rush_server, *networks) == {
        networks[0]: (0, ["killed", "terminated"]),
        networks[1]: (0, ["terminated"]),
        networks[2]: (0, ["killed"]),
        networks[3]: (0, ["terminated"]),
    }


@pytest.mark.chaos
async def test_when_one_of_two_processes_is_killed_the_other_reports_it_and_continues(
    rush_server: RushConfig, directory: Path
) -> None:
    assert rush_server.url is not None
    one, other = servers = [Server(directory, name, RUSH_URL=rush_server.url) for name in "ab"]
    try:
        for server in servers:
            server.wait_until_ready()
        async with one.client() as client_a, other.client() as client_b, Rush("service", rush_server) as manager:
            run = await start(client_a, "orderly", n_workers=2)
            kept = await start(client_b, "orderly")
            await manager.wait_for_workers(4)
            # Two evaluators live in each process, so two of four evaluations run in the process that is killed.
            requests = [asyncio.create_task(client_b.post("/evaluate", json={"xs": {"x": x, "sleep": 1}})) for x in range(4)]
            await manager.wait_until(lambda counts: counts.running == 4, timeout=5)
            async with stream(client_b, run) as events, stream(client_b, kept) as events_of_kept:
                assert (await anext(events)).data["state"] == "running"
                one.end(signal.SIGKILL)
                rest = [message async for message in events]
                assert (rest[-1].event, rest[-1].data["workers"]) == ("end", {"lost": 2})
                assert [message.event for message in rest].count("WorkerLost") == 2
                assert rest[-1].data["counts"]["running"] == 0
                answers = [await answer for answer in requests]
                assert [(answer.status_code, answer.json()["ys"]["y"]) for answer in answers] == [(200, -x) for x in range(4)]
                assert {answer.json()["ys"]["pid"] for answer in answers} == {other.process.pid}
                assert (await status_of(client_b, kept))["state"] == "running"
                assert (await anext(events_of_kept)).event == "status"
                await stop(client_b, kept)
        assert other.end() < 5
        assert other.errors() == []
    finally:
        for server in servers:
            server.end(signal.SIGKILL)
    await left_behind(rush_server, "service", f"service.{run}", f"service.{kept}")


@pytest.mark.chaos
async def test_the_example_runs_in_two_workers_of_uvicorn(directory: Path) -> None:
    server = Server(directory, "e", "examples.fastapi_service.app:app", "--workers", "2", RUSH_DATA_DIR=str(directory / "data"))
    try:
        server.wait_until_ready()
        await wait_until(lambda: server.log.read_text().count("Application startup complete") == 2, timeout=20)
        children = psutil.Process(server.process.pid).children(recursive=True)
        async with server.client() as client:
            run = await start(client, "random-search", evals=40, n_workers=4)
        for _ in range(12):  # new connections, so that either process may answer
            async with server.client() as client:
                assert (await status_of(client, run))["id"] == run
        async with server.client() as client:
            async with stream(client, run) as events:
                last = [message async for message in events][-1]
            assert last.data["counts"]["finished"] == 40
            assert 0.39 < last.data["best"]["ys"]["y"] < 30
            answer = await client.post("/evaluate", json={"xs": {"x1": 3.14, "x2": 2.27}})
            assert answer.json()["ys"]["y"] == pytest.approx(0.398, abs=0.001)
            assert (await client.get("/health")).json() == {"evaluated": 1}
            refused = await client.post("/tasks", json={"xss": [{"x1": 11, "x2": 2}]})
            assert refused.status_code == 422
            assert refused.json()["detail"][0]["loc"] == ["body", "xss", 0, "x1"]
            schemas = (await client.get("/openapi.json")).json()["components"]["schemas"]
            assert schemas["Point"]["properties"]["x1"]["maximum"] == 10
        server.end()
        assert server.errors() == []
        assert psutil.wait_procs(children, timeout=5)[1] == []
    finally:
        server.end(signal.SIGKILL)


# in this process


@asynccontextmanager
async def client_of(app: FastAPI) -> AsyncGenerator[httpx.AsyncClient]:
    """A client of an application in this process, within its lifespan."""
    async with app.router.lifespan_context(app) as state:

        async def with_state(scope: Any, receive: Any, send: Any) -> None:
            await app({**scope, "state": dict(state or {})}, receive, send)

        async with httpx.AsyncClient(transport=httpx.ASGITransport(with_state), base_url="http://service") as client:
            yield client


async def test_endpoints_of_the_application_get_the_rush_of_the_lifespan(rush: Rush) -> None:
    app = FastAPI(lifespan=rush_lifespan(rush.network_id, rush.config))

    @app.get("/counts")
    async def counts(rush: RushDep) -> tuple[str, int]:
        return rush.network_id, (await rush.counts()).queued

    await rush.push_tasks([{"x": 1}])
    async with client_of(app) as client:
        assert (await client.get("/counts")).json() == [rush.network_id, 1]


async def test_an_evaluation_without_evaluators_is_a_503(rush: Rush) -> None:
    app = FastAPI(lifespan=rush_lifespan(rush.network_id, rush.config))
    app.include_router(rush_router(LOOPS), prefix="/v1")
    async with client_of(app) as client:
        answer = await client.post("/v1/evaluate", json={"xs": {"x": 1}})
        detail = "no worker will run the task: start workers, or resume the run"
        assert (answer.status_code, answer.json()) == (503, {"detail": detail})
    assert (await rush.counts()).failed == 1


async def test_an_unreachable_database_is_a_503_without_its_address(rush: Rush, proxy: Proxy) -> None:
    app = FastAPI(lifespan=rush_lifespan(rush.network_id, RushConfig(proxy.url, retry_deadline=0.1, connect_timeout=0.5)))
    app.include_router(rush_router(LOOPS))
    async with client_of(app) as client:
        proxy.refuse()
        proxy.cut_all()
        answer = await client.get(f"/runs/{UNKNOWN}")
        proxy.refuse(False)
        assert (answer.status_code, answer.json()) == (503, {"detail": "the database does not answer: try again"})


async def test_an_error_of_the_library_in_an_objective_shows_no_address(rush: Rush) -> None:
    async def reads_elsewhere(xs: dict[str, Any]) -> dict[str, Any]:
        raise DecodeError("redis://host:6379 has \xff\xfe")

    app = FastAPI(lifespan=rush_lifespan(rush.network_id, rush.config, objective=reads_elsewhere))
    app.include_router(rush_router(LOOPS))
    async with client_of(app) as client:
        answer = await client.post("/evaluate", json={"xs": {"x": 1}})
        assert answer.status_code == 500
        assert answer.json()["detail"].partition("(")[2] == "error): DecodeError: the service failed: its log says why"


class SlowReader:
    """A client of a stream that reads nothing until the test lets it, and then all until it may leave."""

    def __init__(self) -> None:
        self.first_sent, self.may_read, self.may_leave = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.text = ""

    async def _send(self, message: Any) -> None:
        if body := message.get("body"):
            self.first_sent.set()
            await self.may_read.wait()
            self.text += body.decode()

    async def _receive(self) -> Any:
        await self.may_leave.wait()
        return {"type": "http.disconnect"}

    async def read(self, app: FastAPI, state: Any, run: str) -> None:
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"spec_version": "2.3"},
            "http_version": "1.1",
            "method": "GET",
            "headers": [],
        }
        scope |= {"path": f"/runs/{run}/events", "raw_path": b"", "query_string": b"", "root_path": "", "scheme": "http"}
        await app({**scope, "state": dict(state)}, self._receive, self._send)


@asynccontextmanager
async def slow_stream(rush: Rush, **options: Any) -> AsyncGenerator[tuple[SlowReader, httpx.AsyncClient, Rush]]:
    """A service with a run, and a slow reader of its events that has something to read."""
    app = FastAPI(lifespan=rush_lifespan(rush.network_id, rush.config, **options))
    app.include_router(rush_router(LOOPS))
    reader = SlowReader()
    async with app.router.lifespan_context(app) as state:

        async def with_state(scope: Any, receive: Any, send: Any) -> None:
            await app({**scope, "state": dict(state or {})}, receive, send)

        async with httpx.AsyncClient(transport=httpx.ASGITransport(with_state), base_url="http://service") as client:
            run = await start(client, "queue")
            streaming = asyncio.create_task(reader.read(app, state, run))
            await reader.first_sent.wait()
            async with Rush(f"{rush.network_id}.{run}", rush.config) as of_run:
                yield reader, client, of_run
            reader.may_leave.set()
            await streaming
            await stop(client, run, forget=True)


async def finish_some(run: Rush, n: int) -> None:
    async with run.events(TasksFinished) as events:
        for x in range(n):
            await run.push_finished_tasks([{"x": x}], [{"y": x}])
            await anext(events)
    await anyio.wait_all_tasks_blocked()


async def test_a_client_that_leaves_a_stream_with_unsent_events_raises_nothing(rush: Rush) -> None:
    async with slow_stream(rush) as (_, _, run):
        await finish_some(run, 4)


async def test_events_that_a_slow_reader_does_not_take_are_dropped_and_reported_as_missed(
    rush: Rush, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rush_async.extras.fastapi._BUFFER", 10)
    async with slow_stream(rush) as (reader, _, run):
        await finish_some(run, 40)
        reader.may_read.set()
        await wait_until(lambda: "event: EventsMissed" in reader.text)
        assert 10 <= reader.text.count("event: TasksFinished") < 20


async def test_a_process_refuses_more_streams_than_it_may_send(rush: Rush) -> None:
    async with slow_stream(rush, max_streams=1) as (reader, client, run):
        path = f"/runs/{run.network_id.rpartition('.')[2]}/events"
        answer = await client.get(path)
        assert answer.status_code == 503
        assert answer.json() == {"detail": "this process sends 1 streams already: close one, or try again later"}
        reader.may_leave.set()  # the place is free again
        await run.stop_workers()
        await wait_until(lambda: has_status(client, path, 200))


async def has_status(client: httpx.AsyncClient, path: str, status: int) -> bool:
    return (await client.get(path)).status_code == status


async def in_pieces() -> AsyncIterator[bytes]:
    for _ in range(20):
        yield b" " * 1_000


@pytest.mark.parametrize("path", ["/tasks", "/evaluate", "/runs", f"/runs/{UNKNOWN}/stop", f"/runs/{UNKNOWN}/resume"])
async def test_a_body_over_the_limit_is_refused_whether_it_says_its_length_or_not(rush: Rush, path: str) -> None:
    app = FastAPI(lifespan=rush_lifespan(rush.network_id, rush.config))
    app.include_router(rush_router(LOOPS, max_body=10_000))
    async with client_of(app) as client:
        for body in (b" " * 20_000, in_pieces()):
            answer = await client.post(path, headers={"content-type": "application/json"}, content=body)
            assert answer.status_code == 413
    assert (await rush.counts()).queued == 0


async def test_the_best_task_is_the_largest_of_the_output_that_the_router_names(rush: Rush) -> None:
    app = FastAPI(lifespan=rush_lifespan(rush.network_id, rush.config, objective=objective))
    app.include_router(rush_router(LOOPS, best="score", maximize=True))
    async with client_of(app) as client:
        run = await start(client, "queue")
        async with Rush(f"{rush.network_id}.{run}", rush.config) as of_run:
            assert (await status_of(client, run))["best"] is None
            yss: list[dict[str, Any]] = [{"score": 1}, {"score": float("nan")}, {"score": 2.5, "data": b"\xff"}, {"y": 9}]
            keys = await of_run.push_finished_tasks([{"x": x} for x in range(4)], yss)
            best = (await status_of(client, run))["best"]
            assert (best["key"], best["ys"]) == (keys[2], {"score": 2.5, "data": "/w=="})
            found = (await client.get("/tasks", params={"key": keys[1], "run": run})).json()
            assert found[0]["ys"] == {"score": None}
        await stop(client, run, forget=True)


async def test_the_error_of_a_router_without_the_lifespan_names_the_remedy() -> None:
    app = FastAPI()
    app.include_router(rush_router(LOOPS))
    async with client_of(app) as client:
        with pytest.raises(RuntimeError, match="lifespan=rush_lifespan"):
            await client.get(f"/runs/{UNKNOWN}")


def test_the_schema_describes_every_endpoint() -> None:
    schema = create_app().openapi()
    assert {path: sorted(methods) for path, methods in schema["paths"].items() if path != "/n-tasks"} == {
        "/runs": ["get", "post"],
        "/runs/{run_id}": ["delete", "get"],
        "/runs/{run_id}/stop": ["post"],
        "/runs/{run_id}/resume": ["post"],
        "/runs/{run_id}/events": ["get"],
        "/runs/{run_id}/attrs": ["get", "put"],
        "/runs/{run_id}/reports": ["get"],
        "/tasks": ["get", "post"],
        "/evaluate": ["post"],
        "/metrics": ["get"],
    }
    answers = schema["paths"]["/evaluate"]["post"]["responses"]
    assert sorted(answers) == ["200", "404", "409", "422", "500", "503", "504"]
    assert answers["200"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/TaskView"}
    assert "text/event-stream" in schema["paths"]["/runs/{run_id}/events"]["get"]["responses"]["200"]["content"]


async def test_a_service_keeps_its_data_in_a_directory(directory: Path) -> None:
    app = FastAPI(lifespan=rush_lifespan("service", data_dir=directory / "data"))
    async with app.router.lifespan_context(app):
        assert (directory / "data" / "rush.runtime").exists()
