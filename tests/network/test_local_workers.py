"""Requests reach the workers of an event loop by a message, or by what the database keeps when the message was missed."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest

from rush_async import Rush, RushWorker
from rush_async.network.local_workers import LocalWorkers
from rush_async.store.leases import KILLED, AliveWorker
from rush_async.store.messages import CancelMessage, ResetMessage, ShutOutMessage, StopMessage
from rush_async.store.position import NetworkPosition
from rush_async.testing import wait_until

AT = datetime(2024, 5, 1, tzinfo=UTC)


@dataclass
class Worker:
    """Notes what is asked of it."""

    worker_id: str
    lease_id: str = "lease"
    is_registered: bool = True
    is_shut_out: bool = False
    asked: list[str] = field(default_factory=list[str])
    held: list[str] = field(default_factory=list[str])

    def held_keys(self) -> list[str]:
        return self.held

    def cancel_task(self, key: str) -> None:
        self.asked.append(f"cancel {key}")

    def note_stop(self) -> None: ...

    def end_waits(self, error: Exception | None = None) -> None:
        self.asked.append("end waits")

    def request_stop(self) -> None:
        self.asked.append("stop")

    def shut_out(self, why: str) -> None:
        self.asked.append(why)


@pytest.fixture
def workers() -> tuple[LocalWorkers, Worker, Worker]:
    """Two workers, in a network in epoch 3."""
    position = NetworkPosition("net")
    position.learn_epoch(3)
    local, first, second = LocalWorkers("net", position), Worker("first"), Worker("second")
    local.by_id.update(first=first, second=second)
    return local, first, second


Workers = tuple[LocalWorkers, Worker, Worker]


def test_a_message_reaches_the_workers_that_it_names(workers: Workers) -> None:
    local, first, second = workers
    local.take_message(StopMessage(3, ("first", "elsewhere")).encode())
    local.take_message(CancelMessage(3, "second", ("a", "b")).encode())
    local.take_message(CancelMessage(3, "elsewhere", ("c",)).encode())
    local.take_message(ShutOutMessage(3, "killed", ("first",)).encode())
    assert first.asked == ["stop", "killed"]
    assert second.asked == ["cancel a", "cancel b"]


def test_a_reset_of_the_workers_shuts_all_out(workers: Workers) -> None:
    local, first, second = workers
    local.take_message(ResetMessage(4, AT, True).encode())
    assert first.asked == []
    local.take_message(ResetMessage(5, AT, False).encode())
    assert first.asked == second.asked == ["the network was reset"]


def test_a_malformed_message_is_logged_and_skipped(workers: Workers, caplog: pytest.LogCaptureFixture) -> None:
    local, first, _ = workers
    local.take_message(b"nonsense")
    assert first.asked == []
    assert "a request of network 'net' is malformed" in caplog.text


def test_requests_that_were_missed_are_taken_from_the_database(workers: Workers) -> None:
    local, first, second = workers
    local.take_alive({"first": AliveWorker("lease", True), "second": AliveWorker("lease", False)}, {})
    assert (first.asked, second.asked) == (["stop"], [])
    local.take_alive({"first": None, "second": None}, {"first": "killed"})
    assert (first.asked, second.asked) == (["stop", "killed"], ["the network was reset"])
    local.take_alive({"second": None, "elsewhere": None}, {"second": "failed"})
    assert second.asked[1:] == ["lost"]


def test_a_worker_that_is_not_registered_any_more_is_not_asked(workers: Workers) -> None:
    local, first, _ = workers
    first.is_registered = False
    local.take_alive({"first": None}, {})
    assert first.asked == []
    assert local.registered == ["second"]


def test_tasks_that_do_not_run_any_more_are_cancelled(workers: Workers) -> None:
    local, first, second = workers
    first.held, second.held = ["a", "b"], ["c"]
    assert local.held_keys == ["a", "b", "c"]
    second.held.append("d")  # taken while the database was read
    local.drop_ended(["a", "b", "c"], {"b"})
    assert (first.asked, second.asked) == (["cancel a"], ["cancel c"])


def test_leases_of_workers_that_are_shut_out_are_not_in_use(workers: Workers) -> None:
    local, first, second = workers
    second.lease_id = "other"
    assert local.leases_in_use == {"lease", "other"}
    first.is_shut_out = True
    assert local.leases_in_use == {"other"}
    assert len(local) == 2


async def test_a_kill_reaches_a_worker_whose_channel_was_silent(rush: Rush) -> None:
    async with RushWorker(rush.network_id, rush.config) as worker:
        network = worker._net  # pyright: ignore[reportPrivateUsage]
        network.link.subscription.unsubscribe(network.keys.control)
        await network.workers.lose([worker.worker_id], "killed", KILLED, KILLED)
        await network.reconciler.take_requests()
        await wait_until(lambda: worker.terminated)
