"""Metrics for Prometheus: what a scrape shows, what it costs, and what it does without the server or the package."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from rush_async import NetworkStateError, Rush, RushWorker
from rush_async.extras import metrics as module
from rush_async.extras.fastapi import rush_lifespan, rush_router
from rush_async.extras.metrics import BUCKETS, NetworkMetrics
from rush_async.testing import wait_until
from tests.proxy import Proxy


def values(text: bytes, network_id: str) -> dict[str, float]:
    """The samples of a network: name and state, or bound, -> value."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            labels = dict(sample.labels)
            if labels.pop("network") == network_id:
                found[" ".join([sample.name, *labels.values()])] = sample.value
    return found


async def search(rush: RushWorker) -> None:
    for x in range(4):
        async with rush.task({"x": x}, catch=ArithmeticError) as task:
            task.ys = {"y": 1 / x}
    (key,) = await rush.push_running_tasks([{"x": 4}])
    await rush.finish_tasks(key, [{"y": 4}])
    raise LookupError("the loop fails after five tasks")


async def wait(rush: RushWorker) -> None:
    async for task in rush.tasks():
        async with task:
            await rush.wait_until_stopped(need_workers=False)
            task.ys = {"y": 0}


@pytest_asyncio.fixture
async def watched(rush: Rush) -> AsyncIterator[NetworkMetrics]:
    yield NetworkMetrics(rush)


async def test_a_scrape_shows_the_network_and_what_the_workers_of_this_process_do(
    rush: Rush, elsewhere: Rush, watched: NetworkMetrics
) -> None:
    await rush.start_workers(search)
    await rush.join_workers(check=False)
    await rush.start_workers(wait)
    await elsewhere.push_finished_tasks([{"x": 5}], [{"y": 5}])
    (key,) = await elsewhere.push_tasks([{"x": 6}])
    await rush.wait_until(lambda counts: counts.running == 1)
    text, content_type = await watched.scrape()
    assert content_type.startswith("text/plain")
    found = values(text, rush.network_id)
    of_states = {"rush_tasks queued": 0, "rush_tasks running": 1, "rush_tasks finished": 5, "rush_tasks failed": 1}
    of_workers = {"rush_workers running": 1, "rush_workers failed": 1, "rush_workers lost": 0, "rush_workers terminated": 0}
    own = {"rush_tasks_finished_total": 4, "rush_tasks_failed_total": 1, "rush_tasks_held": 1, "rush_up": 1}
    durations = {"rush_task_duration_seconds_count": 5, "rush_task_duration_seconds_bucket +Inf": 5}
    rest = {"rush_network_stopped": 0, "rush_reconnects_total": 0}
    expected = {**of_states, **of_workers, **own, **durations, **rest}
    assert expected.items() <= found.items()
    assert found["rush_oldest_task_seconds"] > 0 < found["rush_task_duration_seconds_sum"]
    assert f"rush_task_duration_seconds_bucket {BUCKETS[0]}" in found

    assert await elsewhere.cancel_tasks(key) == [key]
    await elsewhere.stop()
    await rush.join_workers(check=False)
    registry = CollectorRegistry(auto_describe=True)
    registry.register(watched)  # beside the metrics of the program
    found = values(generate_latest(registry), rush.network_id)
    expected = {"rush_network_stopped": 1, "rush_tasks_failed_total": 2, "rush_tasks_held": 0, "rush_oldest_task_seconds": 0}
    assert expected.items() <= found.items()
    watched.forget(rush)
    watched.forget(rush)
    assert not values(watched.render()[0], rush.network_id)


async def test_a_task_that_a_reset_deleted_is_held_until_its_end(
    rush: Rush, rush_worker: RushWorker, watched: NetworkMetrics
) -> None:
    first, second = await rush_worker.push_running_tasks([{"x": 1}, {"x": 2}])
    await rush.reset(workers=False)
    held = "rush_tasks_held"
    assert values(watched.render()[0], rush.network_id)[held] == 2
    assert not await rush_worker.finish_tasks(first, [{"y": 1}])
    async with RushWorker(rush.network_id, rush.config) as other:
        assert not await other.finish_tasks(second, [{"y": 1}])  # which another worker holds
    found = values(watched.render()[0], rush.network_id)
    assert (found[held], found["rush_tasks_finished_total"]) == (1, 0)


async def test_a_scrape_is_one_read_of_position_and_workers_for_each_network(rush: Rush, proxy: Proxy) -> None:
    config = replace(rush.config, url=proxy.url)
    async with Rush(rush.network_id, config) as first, Rush(f"{rush.network_id}-2", config) as second:
        metrics = NetworkMetrics(first, second)
        metrics.watch(first)
        await first._net.feed.watch()  # pyright: ignore[reportPrivateUsage]
        await second._net.feed.watch()  # pyright: ignore[reportPrivateUsage]
        before = len(proxy.commands)
        text, _ = await metrics.scrape()
        assert sorted(command[0] for command in proxy.commands[before:]) == [b"EVALSHA"] * 2 + [b"HVALS"] * 2
        assert values(text, second.network_id)["rush_up"] == 1


async def test_without_an_answer_a_scrape_shows_what_is_known(
    rush: Rush, watched: NetworkMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rush.push_tasks([{"x": 1}])
    await watched.scrape()
    monkeypatch.setattr(module, "_ANSWER", 0.0)
    found = values((await watched.scrape())[0], rush.network_id)
    assert (found["rush_up"], found["rush_tasks queued"], found["rush_workers running"]) == (0, 1, 0)


async def test_heartbeats_are_counted(rush: Rush) -> None:
    config = replace(rush.config, heartbeat_period=0.05, response_timeout=9)
    async with RushWorker(rush.network_id, config) as worker:
        metrics = NetworkMetrics(worker)
        await wait_until(lambda: values(metrics.render()[0], rush.network_id)["rush_heartbeats_total"] > 1)


async def test_only_an_open_client_is_watched(rush: Rush) -> None:
    with pytest.raises(NetworkStateError, match="not open yet"):
        NetworkMetrics(Rush("net", rush.config))


async def test_a_service_shows_its_metrics(rush: Rush) -> None:
    async def objective(xs: dict[str, Any]) -> dict[str, Any]:
        return {"y": xs["x"]}

    app = FastAPI(lifespan=rush_lifespan(rush.network_id, rush.config, objective=objective, metrics=NetworkMetrics()))
    app.include_router(rush_router({"search": loop_with_evals}))
    async with app.router.lifespan_context(app) as state:

        async def with_state(scope: Any, receive: Any, send: Any) -> None:
            await app({**scope, "state": dict(state or {})}, receive, send)

        async with httpx.AsyncClient(transport=httpx.ASGITransport(with_state), base_url="http://service") as client:
            assert (await client.post("/evaluate", json={"xs": {"x": 1}})).status_code == 200
            run = (await client.post("/runs", json={"loop": "search", "evals": 1})).json()["id"]
            answer = await client.get("/metrics")
            assert answer.headers["content-type"].startswith("text/plain")
            own, of_run = values(answer.content, rush.network_id), values(answer.content, f"{rush.network_id}.{run}")
            assert (own["rush_tasks_finished_total"], own["rush_workers running"]) == (1, 4)
            assert of_run["rush_up"] == 1
            assert (await client.delete(f"/runs/{run}", params={"forget": True})).status_code == 200

            async def is_forgotten() -> bool:
                return not values((await client.get("/metrics")).content, f"{rush.network_id}.{run}")

            await wait_until(is_forgotten)
            dict(state or {})["rush_service"].metrics = None
            assert (await client.get("/metrics")).status_code == 404


async def loop_with_evals(rush: RushWorker, evals: int) -> None:
    await rush.wait_until_stopped(need_workers=False)
