"""Reports of running tasks as users make and read them: `task.report`, `report_tasks`, `fetch_reports`."""

from __future__ import annotations

import asyncio
import enum
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
import pytest

from rush_async import (
    EncodeError,
    NetworkStateError,
    Rush,
    RushConfig,
    RushConfigError,
    RushWorker,
    ServerFullError,
    WorkerLostError,
)
from rush_async.store.tasks import FINISH
from rush_async.testing import wait_until
from rush_async.worker.worker import membership_of

TIMEOUT = 10.0


async def losses(client: Rush | RushWorker, keys: str | list[str] | None = None) -> list[Any]:
    frame = await client.fetch_reports(keys)
    return frame["loss"].to_list() if "loss" in frame.columns else []


async def quiet(worker: RushWorker) -> None:
    await worker._net.tasks.calls.quiet()  # pyright: ignore[reportPrivateUsage]


# reporting


async def test_a_popped_task_reports_in_its_block_and_without(rush: Rush, rush_worker: RushWorker) -> None:
    keys = await rush.push_tasks([{"x": 1}, {"x": 2}])
    task = await rush_worker.pop_task(0)
    assert task is not None
    await task.report({"loss": 0.5})
    async with task:
        await task.report({"loss": 0.25})
        task.ys = {"y": 1}
    task = await rush_worker.pop_task(0)
    assert task is not None
    await task.report({"loss": 0.125})
    frame = await rush_worker.fetch_reports()
    assert frame.columns == ["keys", "worker_id", "at", "attempt", "step", "loss"]
    assert frame["keys"].to_list() == [keys[0], keys[0], keys[1]]
    assert frame["worker_id"].to_list() == [rush_worker.worker_id] * 3
    assert frame["attempt"].to_list() == [1, 1, 1]
    assert frame["step"].to_list() == [1, 2, 1]
    assert frame["loss"].to_list() == [0.5, 0.25, 0.125]
    assert frame.schema["at"] == pl.Datetime("us", "UTC")
    assert frame["at"].is_sorted()


async def test_the_block_of_a_new_task_reports(rush_worker: RushWorker) -> None:
    async with rush_worker.task({"x": 1}) as task:
        for epoch in range(3):
            await task.report({"epoch": epoch, "loss": 1 / (epoch + 1)})
        task.ys = {"y": 1}
    assert await losses(rush_worker, task.key) == [1, 1 / 2, 1 / 3]


async def test_tasks_are_reported_by_their_keys(rush_worker: RushWorker) -> None:
    first, second = await rush_worker.push_running_tasks([{"x": 1}, {"x": 2}])
    await rush_worker.report_tasks(first, [{"loss": 1}])
    await rush_worker.report_tasks([second, first], [{"loss": 2}, {"loss": 3}])
    frame = await rush_worker.fetch_reports()
    assert frame.select("keys", "step", "loss").rows() == [(first, 1, 1), (second, 1, 2), (first, 2, 3)]
    assert await losses(rush_worker, [first]) == [1, 3]
    await rush_worker.report_tasks([], [])
    with pytest.raises(ValueError, match="keys has 1 entries and reports has 2"):
        await rush_worker.report_tasks(first, [{"loss": 1}, {"loss": 2}])
    with pytest.raises(TypeError, match=r"a single record goes in a list, \[record\]"):
        await rush_worker.report_tasks(first, {"loss": 1})


async def test_steps_begin_again_with_each_attempt(rush: Rush, rush_worker: RushWorker) -> None:
    await rush.push_tasks([{"x": 1}])
    for _ in range(2):
        task = await rush_worker.pop_task(0)
        assert task is not None
        await task.report({"loss": 1})
        await task.report({"loss": 2})
        await rush_worker.fail_tasks(task.key)
        await rush.retry_tasks(task.key)
    assert (await rush.fetch_reports()).select("attempt", "step").rows() == [(1, 1), (1, 2), (2, 1), (2, 2)]


async def test_reports_outlive_their_task_and_its_worker(rush: Rush) -> None:
    async with RushWorker(rush.network_id, rush.config) as worker, worker.task({"x": 1}) as task:
        await task.report({"loss": 1})
        task.ys = {"y": 1}
    assert await losses(rush) == [1]


async def test_a_report_right_before_a_worker_closes_arrives(rush: Rush) -> None:
    async with RushWorker(rush.network_id, rush.config) as worker:
        (key,) = await worker.push_running_tasks([{"x": 1}])
        await worker.report_tasks(key, [{"loss": 1}])
    assert await losses(rush) == [1]


async def test_many_coroutines_report(rush: Rush, rush_worker: RushWorker, elsewhere: Rush) -> None:
    async def evaluate(x: int) -> str:
        async with rush_worker.task({"x": x}) as task:
            for epoch in range(20):
                await task.report({"loss": x + epoch})
                await asyncio.sleep(0)
            task.ys = {"y": x}
        return task.key

    keys = await asyncio.gather(*[evaluate(x) for x in range(64)])
    for client in (rush, elsewhere):
        frame = await client.fetch_reports()
        assert frame.height == 64 * 20
        for x, key in enumerate(keys):
            rows = frame.filter(pl.col("keys") == key)
            assert rows["loss"].to_list() == [x + epoch for epoch in range(20)]
            assert rows["step"].to_list() == list(range(1, 21))


# what can be reported


class Colour(enum.Enum):
    RED = "red"


@dataclass
class Metrics:
    loss: float
    epoch: int


@pytest.mark.parametrize(
    ("values", "stored"),
    [
        ({"a": 1, "b": 0.5, "c": "text", "d": True, "e": None}, {"a": 1, "b": 0.5, "c": "text", "d": True, "e": None}),
        (
            {"a": np.float32(0.5), "b": np.float64(0.25), "c": np.int64(3), "d": np.bool_(True)},
            {"a": 0.5, "b": 0.25, "c": 3, "d": True},
        ),
        ({"a": np.array(0.5), "b": Colour.RED}, {"a": 0.5, "b": "red"}),
        ({"a": -(2**63)}, {"a": -(2**63)}),
        (Metrics(0.5, 3), {"loss": 0.5, "epoch": 3}),
    ],
)
async def test_numbers_strings_bools_and_none_are_reported(rush_worker: RushWorker, values: Any, stored: Any) -> None:
    async with rush_worker.task({"x": 1}) as task:
        await task.report(values)
        task.ys = {"y": 1}
    row = (await rush_worker.fetch_reports()).row(0, named=True)
    assert {name: row[name] for name in stored} == stored


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"a": [1]}, r"values\['a'\] is \[1\]: a report has numbers of at most 64 bits, strings, bools and None"),
        ({"a": {"b": 1}}, r"values\['a'\] is \{'b': 1\}"),
        ({"a": b"bytes"}, r"values\['a'\] is b'bytes'"),
        ({"a": 2**64}, r"values\['a'\] is 18446744073709551616"),
        ({"a": object()}, r"values\['a'\]: builtins.object cannot be stored"),
        ({"a": "\ud800"}, "cannot be written as UTF-8"),
        ({"a": np.array([1, 2])}, r"values\['a'\] is array"),
    ],
)
async def test_what_cannot_be_reported_is_named_and_the_task_continues(
    rush_worker: RushWorker, values: Any, words: str
) -> None:
    async with rush_worker.task({"x": 1}) as task:
        with pytest.raises(EncodeError, match=words):
            await task.report(values)
        await task.report({"loss": 1})
        task.ys = {"y": 1}
    frame = await rush_worker.fetch_reports()
    assert frame.select("step", "loss").rows() == [(1, 1)]
    assert await rush_worker.is_failed_task(task.key) == [False]


@pytest.mark.parametrize("values", [1, "text", [1], None, {1: 2}])
async def test_what_is_no_record_is_a_type_error(rush_worker: RushWorker, values: Any) -> None:
    (key,) = await rush_worker.push_running_tasks([{"x": 1}])
    with pytest.raises(TypeError, match="reports"):
        await rush_worker.report_tasks(key, [values])


async def test_a_report_has_the_size_limit_of_a_record(rush: Rush) -> None:
    async with RushWorker(rush.network_id, replace(rush.config, max_record_size=1_000)) as worker:
        (key,) = await worker.push_running_tasks([{"x": 1}])
        with pytest.raises(EncodeError, match=r"reports\[0\] takes 2,00\d bytes, max_record_size allows 1,000"):
            await worker.report_tasks(key, [{"text": "x" * 2_000}])
        await worker.report_tasks(key, [{"text": "x" * 900}])
    assert (await rush.fetch_reports()).height == 1


async def test_the_network_keeps_as_many_reports_as_the_reporting_worker_says(
    rush: Rush, caplog: pytest.LogCaptureFixture
) -> None:
    async with RushWorker(rush.network_id, replace(rush.config, max_reports=50)) as worker, worker.task({"x": 1}) as task:
        for n in range(1_000):
            await task.report({"n": n})
        task.ys = {"y": 1}
    found = (await rush.fetch_reports())["n"].to_list()
    assert found == list(range(1_000 - len(found), 1_000))
    assert 50 <= len(found) < 250
    assert f"{1_000 - len(found)} reports of network '{rush.network_id}' were trimmed before they were read" in caplog.text


@pytest.mark.parametrize("most", [0, -1, 1e6, "many", None])
def test_max_reports_is_a_whole_number(most: Any) -> None:
    with pytest.raises(RushConfigError, match="max_reports must be "):
        RushConfig(max_reports=most)


# what is refused


async def test_only_the_worker_that_runs_a_task_reports_on_it(rush: Rush, rush_worker: RushWorker) -> None:
    (key,) = await rush.push_tasks([{"x": 1}])
    (task,) = await rush.get_tasks(key)
    assert task is not None
    with pytest.raises(NetworkStateError, match="is not held by a worker in this process"):
        await task.report({"loss": 1})
    with pytest.raises(NetworkStateError, match=f"task '{key}' is not running on worker {rush_worker.worker_id}"):
        await rush_worker.report_tasks(key, [{"loss": 1}])
    async with rush_worker.task({"x": 1}) as own:
        own.ys = {"y": 1}
    with pytest.raises(NetworkStateError, match="it ended"):
        await own.report({"loss": 1})
    assert (await rush.fetch_reports()).height == 0


async def test_a_key_that_the_worker_does_not_run_keeps_the_others_from_being_reported(rush_worker: RushWorker) -> None:
    (key,) = await rush_worker.push_running_tasks([{"x": 1}])
    with pytest.raises(NetworkStateError, match="task 'unknown'"):
        await rush_worker.report_tasks([key, "unknown"], [{"loss": 1}, {"loss": 2}])
    await rush_worker.report_tasks(key, [{"loss": 3}])
    assert await losses(rush_worker) == [3]


async def cancel_unheard(rush: Rush, worker: RushWorker, key: str) -> None:
    """Cancels a task whose worker does not hear of it."""
    network = worker._net  # pyright: ignore[reportPrivateUsage]
    network.link.subscription.unsubscribe(network.keys.control)
    assert await rush.cancel_tasks(key) == [key]


async def test_a_refused_report_is_one_warning_and_an_error_of_the_next(
    rush: Rush, rush_worker: RushWorker, caplog: pytest.LogCaptureFixture
) -> None:
    keys = await rush_worker.push_running_tasks([{"x": 1}, {"x": 2}])
    await cancel_unheard(rush, rush_worker, keys[0])
    for _ in range(3):
        await rush_worker.report_tasks(keys, [{"loss": 1}, {"loss": 2}])
    await quiet(rush_worker)
    (message,) = caplog.messages
    assert message.startswith(
        f"a report on task {keys[0]} was refused: worker {rush_worker.worker_id} does not run it any more"
    )
    with pytest.raises(NetworkStateError, match=f"task '{keys[0]}' is not running on worker"):
        await rush_worker.report_tasks(keys[0], [{"loss": 1}])
    await rush_worker.report_tasks(keys[1], [{"loss": 3}])
    assert await losses(rush_worker) == [2, 2, 2, 3]
    assert len(caplog.messages) == 1


async def test_a_report_that_comes_after_the_end_of_its_task_is_a_warning(
    rush: Rush, rush_worker: RushWorker, raw: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The server has forgotten its scripts, and another client has loaded that of the end again, but not that of the report."""
    (key,) = await rush_worker.push_running_tasks([{"x": 1}])
    raw.script_flush()
    raw.script_load(FINISH.source)
    await rush_worker.report_tasks(key, [{"loss": 1}])
    assert await rush_worker.finish_tasks(key, [{"y": 1}]) == [key]
    await quiet(rush_worker)
    (message,) = caplog.messages
    assert message.startswith(f"a report on task {key} of worker {rush_worker.worker_id} is lost: it came after the end")
    assert await losses(rush_worker) == []


async def test_a_block_whose_task_was_cancelled_ends_quietly_at_a_report(rush: Rush, rush_worker: RushWorker) -> None:
    """Also where the message of the cancellation does not arrive: the refusal of a report tells the worker."""
    await rush.push_tasks([{"x": 1}, {"x": 2}])
    ended: list[int] = []
    async for task in rush_worker.tasks(timeout=0):
        async with task:
            await task.report({"loss": 1})
            if task.xs["x"] == 1:
                await cancel_unheard(rush, rush_worker, task.key)
                while True:
                    await task.report({"loss": 2})
                    await asyncio.sleep(0)
            task.ys = {"y": 1}
        ended.append(task.xs["x"])
    assert ended == [1, 2]
    assert (await rush.counts())[2:] == (1, 1)


async def test_a_block_that_computes_while_its_task_is_cancelled_ends_quietly_at_its_next_report(
    rush: Rush, rush_worker: RushWorker
) -> None:
    """The worker knows of the cancellation, and its block has not awaited anything since."""
    async with rush_worker.task({"x": 1}) as task:
        membership_of(rush_worker).cancel_task(task.key)
        await task.report({"loss": 1})
        pytest.fail("the block went on")
    assert task.state == "failed"
    assert await losses(rush) == []


async def test_a_block_whose_task_was_deleted_by_a_reset_ends_quietly_at_a_report(
    rush: Rush, rush_worker: RushWorker, caplog: pytest.LogCaptureFixture
) -> None:
    async with rush_worker.task({"x": 1}) as task:
        await task.report({"loss": 1})
        await rush.reset(workers=False)
        async with asyncio.timeout(TIMEOUT):
            while True:
                await task.report({"loss": 2})
                await asyncio.sleep(0)
    assert [message.split(":")[0] for message in caplog.messages] == [f"a report on task {task.key} was refused"]
    assert not rush_worker.terminated
    async with rush_worker.task({"x": 2}) as task:
        await task.report({"loss": 3})
        task.ys = {"y": 1}
    assert await losses(rush) == [3]


async def test_a_worker_that_is_not_alive_cannot_report(rush: Rush, caplog: pytest.LogCaptureFixture, raw: Any) -> None:
    async with RushWorker(rush.network_id, rush.config) as worker:
        keys = await worker.push_running_tasks([{"x": 1}, {"x": 2}])
        raw.hdel(worker._net.keys.alive, worker.worker_id)  # pyright: ignore[reportPrivateUsage]
        await worker.report_tasks(keys, [{"loss": 1}, {"loss": 2}])
        await quiet(worker)
        (message,) = caplog.messages
        assert message.startswith(f"a report on task {keys[0]} was refused: worker {worker.worker_id} is not alive")
        for key in keys:
            with pytest.raises(WorkerLostError, match="is not alive"):
                await worker.report_tasks(key, [{"loss": 1}])
        assert len(caplog.messages) == 1
    assert (await rush.fetch_reports()).height == 0


async def test_a_full_server_is_an_error_of_the_next_report_and_later_ones_are_stored(
    rush: Rush, rush_worker: RushWorker, raw: Any, caplog: pytest.LogCaptureFixture
) -> None:
    (key,) = await rush_worker.push_running_tasks([{"x": 1}])
    await rush_worker.report_tasks(key, [{"loss": 1}])
    await quiet(rush_worker)
    raw.config_set("maxmemory", 1)
    try:
        for _ in range(2):
            await rush_worker.report_tasks(key, [{"loss": 2}])
            await quiet(rush_worker)
            with pytest.raises(ServerFullError, match="is full and refused the call"):
                await rush_worker.report_tasks(key, [{"loss": 3}])
    finally:
        raw.config_set("maxmemory", 0)
    assert [message.split(":")[0] for message in caplog.messages] == [
        f"a report on task {key} of worker {rush_worker.worker_id} is lost"
    ]
    await rush_worker.report_tasks(key, [{"loss": 4}])
    assert (await rush.fetch_reports()).select("step", "loss").rows() == [(1, 1), (4, 4)]


async def test_a_worker_that_is_closed_cannot_report(rush: Rush) -> None:
    async with RushWorker(rush.network_id, rush.config) as worker:
        (key,) = await worker.push_running_tasks([{"x": 1}])
        await rush.push_tasks([{"x": 2}])
        task = await worker.pop_task(0)
        assert task is not None
    with pytest.raises(NetworkStateError, match="is closed"):
        await worker.report_tasks(key, [{"loss": 1}])
    with pytest.raises(NetworkStateError, match="is not running on worker"):
        await task.report({"loss": 1})


async def test_reports_are_read_by_a_client_elsewhere_while_the_task_runs(rush_worker: RushWorker, elsewhere: Rush) -> None:
    async with rush_worker.task({"x": 1}) as task:
        await task.report({"loss": 1})
        await wait_until(lambda: has_losses(elsewhere, [1]))
        await task.report({"loss": 2})
        await wait_until(lambda: has_losses(elsewhere, [1, 2]))
        task.ys = {"y": 1}


async def has_losses(client: Rush, expected: list[Any]) -> bool:
    return await losses(client) == expected
