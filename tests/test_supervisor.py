"""Background tasks: their errors, their end, and the end of their event loop."""

from __future__ import annotations

import asyncio

import pytest

from rush_async.supervisor import Supervisor, run_to_completion
from rush_async.testing import wait_until


async def test_a_cancelled_supervisor_refuses_work_while_its_tasks_end() -> None:
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


async def test_the_error_of_one_task_is_logged_and_does_not_end_the_others(caplog: pytest.LogCaptureFixture) -> None:
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


async def test_closing_cancels_the_tasks_and_waits_for_their_end() -> None:
    supervisor, begun, cleaned_up = Supervisor("background"), asyncio.Event(), asyncio.Event()

    async def clean_up() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned_up.set()

    await supervisor.open()
    supervisor.start(clean_up)
    await begun.wait()
    await supervisor.aclose()
    assert cleaned_up.is_set()


async def test_a_supervisor_may_be_closed_in_another_task() -> None:
    supervisor = Supervisor("background")
    await Supervisor.spawn(supervisor.open())
    assert supervisor.is_open
    await Supervisor.spawn(supervisor.aclose())
    assert not supervisor.is_open


async def test_before_opening_and_after_closing_work_is_refused() -> None:
    async def work() -> None:
        pytest.fail("it ran")

    supervisor = Supervisor("background")
    with pytest.raises(RuntimeError, match="background is not open"):
        supervisor.start(work)
    await supervisor.open()
    await supervisor.aclose()
    with pytest.raises(RuntimeError, match="background is not open"):
        supervisor.start(work)


async def test_run_to_completion_returns_the_result_or_raises_the_error() -> None:
    async def work(error: Exception | None) -> int:
        await asyncio.sleep(0)
        if error is not None:
            raise error
        return 7

    assert await run_to_completion(work(None)) == 7
    with pytest.raises(ValueError, match="broken"):
        await run_to_completion(work(ValueError("broken")))


@pytest.mark.parametrize("fails", [False, True])
async def test_run_to_completion_ends_the_work_though_its_caller_is_cancelled_twice(
    fails: bool, caplog: pytest.LogCaptureFixture
) -> None:
    begun, may_end, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        await may_end.wait()
        ended.set()
        if fails:
            raise ValueError("broken")

    caller = asyncio.create_task(run_to_completion(work()))
    await begun.wait()
    for _ in range(2):
        caller.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert not caller.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert ended.is_set()
    assert ("clean-up failed while its caller was cancelled" in caplog.text) == fails
