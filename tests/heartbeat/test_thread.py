"""The heartbeat thread: it attends to what is due, tries again what failed, and ends with its last duty."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from rush_async import RushConfig, RushConnectionError
from rush_async.heartbeat.thread import HeartbeatThread
from rush_async.testing import wait_until
from rush_async.wire.blocking import BlockingConnection


@dataclass(eq=False)
class Errand:
    """A duty that is due once, unless an error keeps it due.

    Attributes:
        replies: what the server said at each attendance.
        errors: raised by the next attendances, each once.
        stays: whether it stays with the thread afterwards.
    """

    config: RushConfig
    slot: int | None = None
    due_at: float = 0.0
    retry_delay: float = 0.01
    stays: bool = True
    words: tuple[str | int, ...] = ("PING",)
    replies: list[Any] = field(default_factory=list[Any])
    errors: list[Exception] = field(default_factory=list[Exception])
    n_attended: int = 0

    def attend(self, connection: BlockingConnection) -> bool:
        self.n_attended += 1
        if self.errors:
            raise self.errors.pop(0)
        self.replies.append(connection.ask(*self.words))
        self.due_at = math.inf
        return self.stays


@asynccontextmanager
async def attended(*errands: Errand) -> AsyncGenerator[list[HeartbeatThread]]:
    threads = [HeartbeatThread.add(errand) for errand in errands]
    yield threads
    for errand, thread in zip(errands, threads, strict=True):
        await thread.remove(errand)
    assert n_threads() == 0


def n_threads() -> int:
    return len([thread for thread in threading.enumerate() if thread.name == "rush_async heartbeat"])


async def test_duties_of_one_server_share_a_thread(rush_server: RushConfig) -> None:
    elsewhere = replace(rush_server, response_timeout=11.0)
    first, second, third = Errand(rush_server), Errand(rush_server), Errand(elsewhere)
    async with attended(first, second, third) as threads:
        assert threads[0] is threads[1]
        assert threads[0] is not threads[2]
        assert n_threads() == 2
        await wait_until(lambda: first.replies == second.replies == third.replies == [b"PONG"])


async def test_a_wake_attends_to_what_has_become_due(rush_server: RushConfig) -> None:
    errand = Errand(rush_server, due_at=time.monotonic() + 600)
    async with attended(errand) as (thread,):
        assert errand.n_attended == 0
        errand.due_at = time.monotonic()
        thread.wake()
        await wait_until(lambda: errand.n_attended == 1)


@pytest.mark.parametrize("due_at", [1e12, 1e300, math.inf])
async def test_a_duty_that_is_never_due_ends_no_thread(rush_server: RushConfig, due_at: float) -> None:
    never = Errand(rush_server, due_at=due_at)
    async with attended(never):
        errand = Errand(rush_server)
        async with attended_beside(errand):
            await wait_until(lambda: errand.n_attended == 1)
        assert never.n_attended == 0


@asynccontextmanager
async def attended_beside(errand: Errand) -> AsyncGenerator[None]:
    thread = HeartbeatThread.add(errand)
    yield
    await thread.remove(errand)


async def test_a_duty_that_is_done_ends_the_thread_with_it(rush_server: RushConfig) -> None:
    errand = Errand(rush_server, stays=False)
    thread = HeartbeatThread.add(errand)
    await wait_until(lambda: n_threads() == 0)
    assert errand.replies == [b"PONG"]
    await thread.remove(errand)
    async with attended(Errand(rush_server)) as (other,):
        assert other is not thread


async def test_a_duty_that_the_server_refused_is_tried_again_while_others_go_on(rush_server: RushConfig) -> None:
    failing = Errand(rush_server, retry_delay=600, errors=[RushConnectionError("gone")])
    other = Errand(rush_server, due_at=time.monotonic() + 0.02)
    async with attended(failing, other):
        await wait_until(lambda: other.n_attended == 1)
        assert failing.n_attended == 1
    quick = Errand(rush_server, errors=[RushConnectionError("gone")] * 3)
    async with attended(quick):
        await wait_until(lambda: quick.replies == [b"PONG"])
        assert quick.n_attended == 4


async def test_an_unexpected_error_is_logged_and_tried_again(
    rush_server: RushConfig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rush_async.heartbeat.thread.RETRY_DELAY", 0.01)
    errand = Errand(rush_server, errors=[ValueError("odd")])
    async with attended(errand):
        await wait_until(lambda: errand.replies == [b"PONG"])
    assert "failed and tries again" in caplog.text
    assert "ValueError: odd" in caplog.text


async def test_a_call_that_waits_is_interrupted_when_the_last_duty_is_removed(rush_server: RushConfig, raw: Any) -> None:
    errand = Errand(rush_server, words=("BLPOP", "nothing", 0))
    async with attended(errand):
        await wait_until(lambda: any(client["cmd"] == "blpop" for client in raw.client_list()))
        begun = time.monotonic()
    assert time.monotonic() - begun < 2
    assert errand.replies == []


def test_a_duty_outlives_the_event_loop_that_added_it(rush_server: RushConfig) -> None:
    """The thread asks no loop: it attends to the duty until that is done."""
    errand = Errand(rush_server, due_at=math.inf)

    async def add() -> HeartbeatThread:
        return HeartbeatThread.add(errand)

    thread = asyncio.run(add())
    errand.stays, errand.due_at = False, 0.0
    thread.wake()
    asyncio.run(wait_until(lambda: n_threads() == 0))
    assert errand.replies == [b"PONG"]
