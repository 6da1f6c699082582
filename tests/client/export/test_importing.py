"""Imports: a network comes back as it was exported, into a new network or beside the tasks of another."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from polars.testing import assert_frame_equal

from rush_async import Archive, Counts, NetworkStateError, Rush, RushWorker, TasksFinished
from rush_async.store.keys import NetworkKeys
from tests.client.export.networks import dump, fill

pytestmark = pytest.mark.filterwarnings("ignore:column .* is text")


@asynccontextmanager
async def another(rush: Rush, **options: Any) -> AsyncGenerator[Rush]:
    """A manager of another network on the same server."""
    async with Rush(config=rush.config, exist_ok=True, **options) as other:
        try:
            yield other
        finally:
            await other.reset()


async def test_a_network_without_running_tasks_comes_back_byte_by_byte(rush: Rush, raw: Any, tmp_path: Path) -> None:
    async with another(rush, seed=2**63 - 1) as exported, RushWorker(exported.network_id, rush.config) as worker:
        names = await fill(exported, worker)
        await worker.fail_tasks([names["running"], names["lost"]])
        queue = await exported.retry_tasks([names["running"], names["cancelled"]])
        assert queue == [names["running"], names["cancelled"]]
        archive = Archive.open(await exported.export(tmp_path / "a.zip"))
        before = dump(raw, exported.network_id)
        # The number of a worker is given once, by the network.
        assert (before["meta"][b"seed"], before["meta"][b"next_number"]) == (b"%d" % (2**63 - 1), b"1")
        async with another(rush) as imported:
            keys = await imported.import_archive(archive)
            assert sorted(keys) == sorted((await exported.fetch_tasks())["keys"])
            assert dump(raw, imported.network_id) == before
            assert_frame_equal(await imported.fetch_tasks(times=True), await exported.fetch_tasks(times=True))
            assert_frame_equal(await imported.fetch_reports(), await exported.fetch_reports())
            assert_frame_equal(await imported.read_log(), await exported.read_log())
            assert await imported.get_tasks(names["failed"]) == await exported.get_tasks(names["failed"])
            again = Archive.open(await imported.export(tmp_path / "b.zip"))
            for table in ("tasks", "state", "reports", "logs"):
                assert list(again.items(table)) == list(archive.items(table))


async def test_a_second_import_changes_nothing_whatever_has_happened_since(
    rush: Rush, rush_worker: RushWorker, raw: Any, tmp_path: Path
) -> None:
    names = await fill(rush, rush_worker)
    path = await rush.export(tmp_path / "a.zip")
    async with another(rush) as imported, RushWorker(imported.network_id, rush.config) as worker:
        await imported.import_archive(path)
        before = dump(raw, imported.network_id)
        assert await imported.import_archive(path) == []
        assert dump(raw, imported.network_id) == before
        task = await worker.pop_task()
        assert task is not None
        assert task.key == names["running"]
        await worker.finish_tasks(task.key, [{"y": 1.0}])
        await imported.retry_tasks(names["failed"])
        await imported.set_attrs({"flag": False})
        await imported.ranking("rung 2", maximize=True).add(names["lost"], 0.9)
        before = dump(raw, imported.network_id)
        assert await imported.import_archive(path) == []
        assert dump(raw, imported.network_id) == before
    assert await rush.import_archive(path) == []  # it has all of these tasks


async def test_what_ran_is_queued_again_with_a_retry_less_or_has_failed(
    rush: Rush, rush_worker: RushWorker, tmp_path: Path
) -> None:
    names = await fill(rush, rush_worker)
    path = await rush.export(tmp_path / "a.zip")
    async with another(rush) as imported, RushWorker(imported.network_id, rush.config) as worker:
        await imported.import_archive(path)
        queued, lost = await imported.get_tasks([names["running"], names["lost"]])
        ran, _ = await rush.get_tasks([names["running"], names["lost"]])
        assert queued is not None
        assert lost is not None
        assert ran is not None
        assert (queued.state, queued.attempt, queued.worker_id, queued.created_at) == ("queued", 1, None, ran.created_at)
        assert queued.failure is not None
        assert queued.failure.kind == "lost"
        assert (lost.state, lost.attempt, lost.worker_id) == ("failed", 1, rush_worker.worker_id)
        assert lost.failure is not None
        assert "when its network was exported" in lost.failure.message
        task = await worker.pop_task()
        assert task is not None
        assert (task.key, task.attempt) == (queued.key, 2)
        await worker.fail_tasks(task.key)
        assert repr(await imported.task_attrs(queued.key)) == repr(await rush.task_attrs(queued.key))  # nan equals nothing


async def test_a_network_with_tasks_of_its_own_gets_the_tasks_under_new_indices(
    rush: Rush, rush_worker: RushWorker, tmp_path: Path
) -> None:
    names = await fill(rush, rush_worker)
    archive = Archive.open(await rush.export(tmp_path / "a.zip"))
    async with another(rush, seed=3) as imported:
        await imported.set_attrs({"flag": "mine"})
        async with RushWorker(imported.network_id, rush.config) as worker:
            async for task in worker.proposals(lambda draw: {"x": -draw.random().random()}, budget=1):
                async with task:
                    task.ys = {"y": 1.0}
        async with imported.events(TasksFinished) as events:
            await imported.import_archive(archive)
            event = await anext(aiter(events))
            assert isinstance(event, TasksFinished)
            assert list(event.keys) == archive.finished_tasks()["keys"].to_list()
        frame = await imported.fetch_tasks(times=True)
        assert sorted(frame["index"]) == list(range(frame.height))
        assert await imported.attrs() == {"flag": "mine"}
        assert (await imported.fetch_reports()).height == 0
        assert await imported.push_tasks([{"x": 1}, {"x": 99}], unique=["x"]) != [None, None]
        assert (await imported.push_tasks([{"x": 3}], unique=["x"])) == [None]  # its point came along
        first, second = await imported.get_tasks([names["queued"], names["failed"]])
        assert first is not None
        assert second is not None
        assert second.failure is not None
        assert (first.xs, second.failure.type) == ({"x": 1}, "ArithmeticError")


async def test_proposals_are_cut_off_from_what_they_saw_where_indices_change(rush: Rush, raw: Any, tmp_path: Path) -> None:
    async with another(rush, seed=1) as exported, RushWorker(exported.network_id, rush.config) as worker:
        read: Any = ("running", "finished")
        proposals = worker.proposals(lambda draw: {"x": draw.random().random()}, read=read, catch=ZeroDivisionError)
        for divisor in (1.0, 0.0, 2.0):
            task = await anext(proposals)
            async with task:
                task.ys = {"y": 1.0 / divisor}
        path = await exported.export(tmp_path / "a.zip")
        expected = await exported.fetch_tasks(times=True)
        async with another(rush) as other:
            await other.push_tasks([{"x": 0.0}])
            await other.import_archive(path)
            found = (await other.fetch_tasks_with_state("finished", "failed", times=True)).drop("index")
            assert_frame_equal(found, expected.drop("index"))
            assert all(len(record) < 200 for record in raw.lrange(NetworkKeys.of(other.network_id).finished, 0, -1))


async def test_the_seed_of_an_export_must_be_that_of_the_network(rush: Rush, tmp_path: Path) -> None:
    async with another(rush, seed=5) as exported:
        await exported.push_tasks([{"x": 1}])
        path = await exported.export(tmp_path / "a.zip")
    async with another(rush, seed=6) as other:
        with pytest.raises(NetworkStateError, match="has the seed 6 in this process, and 5 was given"):
            await other.import_archive(path)
        assert await other.counts() == Counts()


async def test_reserved_indices_return_in_the_network_that_takes_over(rush: Rush, raw: Any, tmp_path: Path) -> None:
    async with another(rush, seed=5) as exported, RushWorker(exported.network_id, rush.config) as worker:
        async for task in worker.proposals(lambda draw: {"x": draw.index}, budget=2):
            async with task:
                task.ys = {"y": 1.0}
        keys = NetworkKeys.of(exported.network_id)
        raw.hset(keys.reserved, worker.worker_id, "2")  # as while a worker proposes
        raw.hset(keys.meta, mapping={"reserved": 1, "next_index": 3})
        path = await exported.export(tmp_path / "a.zip")
        raw.hdel(keys.reserved, worker.worker_id)
        raw.hdel(keys.meta, "reserved")
    async with another(rush) as imported, RushWorker(imported.network_id, rush.config) as worker:
        await imported.import_archive(path)
        assert worker.number == 0  # it registered before
        seen: list[int | None] = []
        async for task in worker.proposals(lambda draw: {"x": draw.index}, budget=4):
            async with task:
                seen.append(task.index)
                task.ys = {"y": 1.0}
        assert seen == [2, 3]


# the stop rules


async def test_imported_tasks_count_in_no_stop_rule(rush: Rush, rush_worker: RushWorker, tmp_path: Path) -> None:
    await rush.push_finished_tasks([{"x": x} for x in range(5)], [{"y": float(x)} for x in range(5)])
    await rush.push_failed_tasks([{"x": x} for x in range(3)])
    path = await rush.export(tmp_path / "a.zip")
    async with another(rush) as other, RushWorker(other.network_id, rush.config) as worker:

        async def finish(y: float) -> None:
            async with worker.task({"x": 0}, budget=100) as task:
                assert task is not None
                task.ys = {"y": y}

        await other.import_archive(path)
        assert await other.stop_when(finished=2, failed=3, target={"y": 0.0}, patience=("y", 3)) is None
        assert await other.retry_tasks((await other.fetch_failed_tasks())["keys"][:1].to_list()) != []
        assert len(await other.empty_queue()) == 1  # it failed here: the first of three
        await finish(7.0)
        assert other.stop_reason is None
        await finish(6.0)
        assert other.stop_reason is not None
        assert (other.stop_reason.rule, other.stop_reason.detail) == ("finished", "2 tasks have finished")
        await other.resume(target={"y": 0.5}, patience=("y", 2), failed=2)
        await finish(6.5)
        assert other.stop_reason is None  # the best of its own is 6.0
        await finish(6.5)
        assert other.stop_reason is not None
        assert other.stop_reason.detail == "y has not improved in 2 finished tasks; its best is 6"
        await other.resume(failed=2)
        await other.push_failed_tasks([{"x": 1}])
        assert other.stop_reason is not None
        assert other.stop_reason.detail == "2 tasks have failed"


async def test_an_import_into_a_network_with_rules_leaves_its_places(rush: Rush, tmp_path: Path) -> None:
    await rush.push_finished_tasks([{"x": 1}] * 3, [{"y": -1.0}] * 3)
    path = await rush.export(tmp_path / "a.zip")
    async with another(rush) as other, RushWorker(other.network_id, rush.config) as worker:
        await other.push_finished_tasks([{"x": 1}], [{"y": 1.0}])
        await other.stop_when(finished=3, target={"y": 0.0})
        await other.import_archive(path)
        assert other.stop_reason is None
        keys = await worker.push_running_tasks([{"x": x} for x in range(4)])
        assert len(keys) == 2
        await worker.finish_tasks(keys, [{"y": 2.0}] * 2)
        assert other.stop_reason is not None
        assert other.stop_reason.rule == "finished"
        await other.reset(workers=False)
        await other.stop_when(finished=1)  # the reset took the marks of imported tasks along
        await other.push_finished_tasks([{"x": 1}], [{"y": 1.0}])
        assert other.stop_reason is not None


async def test_the_file_is_read_in_threads_and_the_event_loop_stays_free(
    rush: Rush, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rush.push_finished_tasks([{"x": 1}], [{"y": 1}])
    archive, threads = Archive.open(await rush.export(tmp_path / "a.zip")), set[int]()
    parts: Callable[..., Iterator[Any]] = Archive._parts  # pyright: ignore[reportPrivateUsage]

    def noted(*args: Any) -> Iterator[Any]:
        for part in parts(*args):
            threads.add(threading.get_ident())
            yield part

    monkeypatch.setattr(Archive, "_parts", noted)
    async with another(rush) as imported, another(rush) as warm:
        assert len(await imported.import_archive(archive)) == len(await warm.push_finished_tasks(archive)) == 1
    assert threads
    assert threading.get_ident() not in threads
