"""Background work, and what becomes of it when its event loop ends."""

from __future__ import annotations

import asyncio

import pytest

from rush_async.supervisor import Supervisor
from rush_async.testing import wait_until


async def test_a_supervisor_that_is_cancelled_takes_no_more_work_while_its_last_ends() -> None:
    supervisor, let_go = Supervisor("background"), asyncio.Event()
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def take_time_to_end() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
            await let_go.wait()

    await supervisor.open()
    supervisor.start(take_time_to_end)
    await begun.wait()
    task = supervisor._task  # pyright: ignore[reportPrivateUsage]
    assert task is not None
    task.cancel()  # as `asyncio.run` does with all tasks at its end
    await cancelled.wait()
    assert not supervisor.is_open
    with pytest.raises(RuntimeError, match="background is not open"):
        supervisor.start(take_time_to_end)
    let_go.set()
    await wait_until(task.done)


async def test_an_error_of_one_piece_leaves_the_others_alone(caplog: pytest.LogCaptureFixture) -> None:
    supervisor, ended = Supervisor("background"), asyncio.Event()

    async def fail() -> None:
        raise ValueError("broken")

    async def end() -> None:
        ended.set()

    await supervisor.open()
    supervisor.start(fail)
    supervisor.start(end)
    await ended.wait()
    await wait_until(lambda: "background work of background failed" in caplog.text)
    assert supervisor.is_open
    await supervisor.aclose()
    assert not supervisor.is_open
