"""The membership of a worker: the tasks that it holds, requests of the network to it, and how the network ends it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
import pytest_asyncio

from rush_async import Failure, NetworkStateError, Rush, RushWorker, WorkerLostError
from rush_async.store.keys import NetworkKeys
from rush_async.store.records import encode_ended
from rush_async.store.tasks import Ended
from rush_async.testing import wait_until
from rush_async.worker.limits import Limits
from rush_async.worker.membership import Membership
from rush_async.worker.worker import membership_of

ENDED = encode_ended({"y": 1}, None)


@pytest_asyncio.fixture
async def membership(rush_worker: RushWorker) -> Membership:
    return membership_of(rush_worker)


def finished(membership: Membership, *keys: str) -> list[Ended]:
    return [Ended("finished", key, membership.worker_id, ENDED) for key in keys]


async def test_a_worker_may_take_tasks_only_while_it_is_registered(rush: Rush) -> None:
    membership = Membership("net", "owl")
    with pytest.raises(NetworkStateError, match="worker owl is leaving network 'net': open a new one"):
        membership.check()
    async with RushWorker(rush.network_id, rush.config) as worker:
        membership_of(worker).check()
    with pytest.raises(NetworkStateError):
        membership_of(worker).check()


async def test_a_stop_request_sets_terminated_and_ends_the_waits(membership: Membership) -> None:
    waiting: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    membership.waits.add(waiting)
    membership.note_stop()
    assert membership.terminated
    assert not waiting.done()  # another thread may have noted it
    membership.request_stop()
    membership.request_stop()
    assert await waiting is False
    membership.waits.clear()
    membership.check()  # it may still end what it runs


async def test_terminated_is_true_while_the_network_is_stopped_and_the_worker_registered(
    rush: Rush, membership: Membership
) -> None:
    waiting: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    membership.waits.add(waiting)
    other = Membership(rush.network_id, "owl")
    await rush.stop("enough")
    assert membership.terminated
    assert not other.terminated
    assert await waiting is False
    membership.waits.clear()
    assert "has stopped (manual: enough)" in str(membership.stopped_error())
    await rush.resume()
    assert not membership.terminated
    assert "had stopped, and was resumed since" in str(membership.stopped_error())
    membership.request_stop()
    assert "was asked to stop" in str(membership.stopped_error())


async def test_terminated_is_true_once_the_time_of_the_worker_is_up(rush: Rush) -> None:
    worker = RushWorker(rush.network_id, rush.config)
    membership_of(worker).limit(Limits(max_time=0.05))
    async with worker:
        assert not worker.terminated
        assert await worker.pop_task(timeout=None) is None
        assert worker.terminated


async def test_the_worker_holds_the_tasks_that_it_was_given_until_they_end(
    rush_worker: RushWorker, membership: Membership
) -> None:
    first, second = await rush_worker.push_running_tasks([{"x": 1}, {"x": 2}])
    assert membership.held_keys() == [first, second]
    assert await membership.end_tasks(finished(membership, first)) == [first]
    assert membership.held_keys() == [second]
    assert await membership.end_tasks([]) == []


async def test_ends_of_tasks_that_it_does_not_run_are_named_in_a_warning(
    rush_worker: RushWorker, membership: Membership, caplog: pytest.LogCaptureFixture
) -> None:
    (key,) = await rush_worker.push_running_tasks([{"x": 1}])
    assert await membership.end_tasks(finished(membership, key, "unknown")) == [key]
    assert "does not run unknown: not finished" in caplog.text
    caplog.clear()
    assert await membership.end_tasks(finished(membership, key), quietly=True) == []
    assert caplog.text == ""


async def test_a_cancelled_end_takes_effect_nevertheless(rush: Rush, rush_worker: RushWorker, membership: Membership) -> None:
    (key,) = await rush_worker.push_running_tasks([{"x": 1}])
    ending = asyncio.ensure_future(membership.end_tasks(finished(membership, key)))
    await asyncio.sleep(0)
    ending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ending
    assert membership.held_keys() == []
    await rush.wait_until(lambda counts: counts.finished == 1, timeout=5)


async def test_failing_the_held_tasks_fails_each(rush: Rush, rush_worker: RushWorker, membership: Membership) -> None:
    keys = await rush_worker.push_running_tasks([{"x": 1}] * 3)
    await membership.fail_held(Failure("error", None, "the loop ended"))
    assert membership.held_keys() == []
    tasks = await rush.get_tasks(keys)
    assert [task and task.failure and task.failure.message for task in tasks] == ["the loop ended"] * 3


async def test_a_worker_that_gets_no_task_because_it_is_not_alive_is_lost(membership: Membership) -> None:
    assert membership.hold(["key"]) == ["key"]
    with pytest.raises(WorkerLostError, match=r"is not alive in network .* any more \(lost\)"):
        raise membership.lost_error()
    assert membership.is_shut_out
    assert not membership.was_killed
    assert membership.terminated
    assert membership.held_keys() == []


async def test_a_worker_is_shut_out_for_the_first_reason_only(membership: Membership) -> None:
    membership.shut_out("killed")
    membership.shut_out("lost")
    assert membership.was_killed
    assert str(membership.lost_error()).startswith(f"worker {membership.worker_id} is not alive")
    assert "(killed)" in str(membership.lost_error())
    end = await membership.end_seen_by_network()
    assert (end.worker_id, end.state) == (membership.worker_id, "killed")


@pytest.mark.parametrize("is_set_before", [True, False])
async def test_a_kill_cancels_the_loop_of_the_worker(membership: Membership, is_set_before: bool) -> None:
    loop = asyncio.ensure_future(asyncio.Event().wait())
    expelled = asyncio.ensure_future(membership.expelled())
    if is_set_before:
        membership.run(loop)
        membership.shut_out("killed")
    else:
        membership.shut_out("killed")
        membership.run(loop)
    with pytest.raises(asyncio.CancelledError):
        await loop
    await asyncio.wait_for(expelled, 5)


async def test_the_loop_of_a_lost_worker_continues(membership: Membership) -> None:
    loop = asyncio.ensure_future(asyncio.Event().wait())
    membership.run(loop)
    membership.shut_out("lost")
    await asyncio.sleep(0)
    assert not loop.cancelling()
    loop.cancel()
    await asyncio.wait([loop])


async def test_how_a_lost_worker_ended_is_read_from_the_network(rush: Rush, membership: Membership) -> None:
    assert (await membership.end_seen_by_network()).state == "terminated"  # as after a reset: the network knows of no other end
    failure = Failure("lost", None, "Worker has crashed or was killed")
    await rush._net.workers.lose([membership.worker_id], "lost", failure)  # pyright: ignore[reportPrivateUsage]
    await wait_until(lambda: membership.is_shut_out)
    assert (await membership.end_seen_by_network()).state == "lost"


async def test_cancelling_a_task_cancels_its_open_block(rush_worker: RushWorker, membership: Membership) -> None:
    (key,) = await rush_worker.push_running_tasks([{"x": 1}])
    membership.enter_block(key)
    membership.cancel_task(key)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.Event().wait()
    guard = membership.leave_block(key)
    assert guard is not None
    assert guard.end()
    assert await guard.was_only_cause(asyncio.CancelledError())
    assert membership.leave_block(key) is None


async def test_a_log_record_is_bytes(membership: Membership) -> None:
    wrong: Any = "text"
    with pytest.raises(TypeError, match="takes a packed LogEntry as bytes, not str"):
        membership.log(wrong)
    assert not membership.has_logged


async def test_a_worker_that_has_deregistered_ends_no_task(rush: Rush, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    async with RushWorker(rush.network_id, rush.config) as worker:
        pass
    membership = membership_of(worker)
    with pytest.raises(NetworkStateError, match="is closed"):
        await membership.end_tasks(finished(membership, "key"))
    membership.log(b"dropped")
    assert not membership.has_logged


TAKES: dict[str, Callable[[RushWorker], Awaitable[Any]]] = {
    "budget": lambda worker: worker.task({"x": 1}, budget=9).__aenter__(),
    "pop": lambda worker: worker.pop_task(0),
    "proposals": lambda worker: anext(worker.proposals(lambda draw: {"x": 1}), None),
}


@pytest.mark.parametrize("take", TAKES.values(), ids=TAKES)
async def test_a_worker_that_only_the_heartbeat_thread_knows_to_be_lost_gets_an_error_and_no_end_of_work(
    rush_worker: RushWorker, raw: Any, take: Callable[[RushWorker], Awaitable[Any]]
) -> None:
    membership = membership_of(rush_worker)
    membership.note_stop()  # as for a worker that was asked to stop
    assert await take(rush_worker) is None
    raw.hdel(NetworkKeys.of(rush_worker.network_id).alive, rush_worker.worker_id)
    membership.note_stop()
    with pytest.raises(WorkerLostError):
        await take(rush_worker)


class Observed:
    """Notes the calls that an observer gets."""

    def __init__(self) -> None:
        self.running: set[str] = set()
        self.ended: list[tuple[str, str | None]] = []

    def tasks_held(self, keys: Sequence[str]) -> None:
        self.running.update(keys)

    def tasks_ended(self, keys: Sequence[str], state: str | None) -> None:
        self.running.difference_update(keys)
        self.ended += [(key, state) for key in keys]


async def test_an_observer_learns_each_task_and_how_it_ended_here(rush: Rush) -> None:
    observed = Observed()
    async with RushWorker(rush.network_id, rush.config) as worker:
        worker._net.local_workers.observer = observed  # pyright: ignore[reportPrivateUsage]
        keys = await worker.push_running_tasks([{"x": n} for n in range(5)])
        assert observed.running == set(keys)
        await worker.finish_tasks(keys[:2], [{"y": 1}, {"y": 2}])
        await worker.fail_tasks(keys[2])
        await rush.cancel_tasks(keys[3])
        await wait_until(lambda: len(observed.ended) == 4)
        await worker.fail_tasks(keys[3])  # ended already
    assert observed.ended == list(zip(keys, ["finished", "finished", "failed", "failed", "failed"], strict=True))
    observed.ended.clear()
    async with RushWorker(rush.network_id, rush.config) as worker:
        (key,) = await worker.push_running_tasks([{"x": 1}])
        await rush.stop_workers(worker.worker_id, mode="kill")
        await wait_until(lambda: observed.ended)
        assert (observed.ended, observed.running) == ([(key, None)], set())
