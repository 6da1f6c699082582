"""Progress bars: what they show, how often they draw, and what ends them."""

from __future__ import annotations

import asyncio
import io
from datetime import UTC, datetime
from typing import Any

import pytest

from rush_async import EventsMissed, NetworkStateError, Processes, Rush, RushConfig, RushWorker
from rush_async.extras.progress import ProgressBar, progress
from rush_async.testing import wait_until


class Terminal(io.StringIO):
    """Keeps what is drawn."""

    def isatty(self) -> bool:
        return True

    @property
    def drawn(self) -> list[str]:
        """What was drawn, in order."""
        return [each.strip() for each in self.getvalue().split("\r") if each.strip()]


class Pipe(Terminal):
    """A pipe whose reader may end."""

    is_broken = False

    def write(self, text: str, /) -> int:
        if self.is_broken:
            raise BrokenPipeError("its reader has ended")
        return super().write(text)


def numbers(bar: ProgressBar) -> tuple[float, float | None, str]:
    assert bar.tqdm is not None
    return bar.tqdm.n, bar.tqdm.total, str(bar.tqdm.postfix or "")


async def test_a_bar_shows_what_workers_of_all_processes_do(rush: Rush, rush_worker: RushWorker) -> None:
    await rush.push_finished_tasks([{"x": 9}], [{"y": 9}])
    terminal = Terminal()
    async with progress(rush, by="y", file=terminal, ncols=120, desc="search", mininterval=0.001) as bar:
        assert numbers(bar) == (1, None, "best y=9")
        await rush.stop_when(finished=5)  # the end is known now
        keys = await rush_worker.push_running_tasks([{"x": 0}, {"x": 1}])
        await rush_worker.finish_tasks(keys[:1], [{"y": 0.25}])
        await rush_worker.fail_tasks(keys[1:], ["no"])
        await wait_until(lambda: numbers(bar) == (2, 5, "best y=0.25, failed=1"))
        await rush.push_tasks([{"x": x} for x in (3, 0.125, 2)])

        async def search(rush: RushWorker) -> None:
            async for task in rush.tasks():
                async with task:
                    task.ys = {"y": task.xs["x"], "name": "a"}

        await rush.start_workers(search, on=Processes(1))
        await rush.join_workers()
    assert numbers(bar) == (5, 5, "best y=0.125, failed=1")
    assert terminal.drawn[0].startswith("search: 1task [00:00, ?task/s, best y=9")
    assert terminal.drawn[-1].startswith("search: 100%|##########")
    assert "5/5 [" in terminal.drawn[-1]
    assert terminal.drawn[-1].endswith("task/s, best y=0.125, failed=1]")
    assert terminal.getvalue().endswith("\n")


async def test_a_bar_draws_no_more_often_than_its_interval_and_reads_tasks_only_for_the_best_value(
    rush: Rush, rush_worker: RushWorker
) -> None:
    terminal = Terminal()
    async with progress(rush, 40, file=terminal, mininterval=1000) as bar:
        for x in range(40):
            await rush_worker.push_finished_tasks([{"x": x}], [{"y": x}])
        assert rush.n_finished_tasks == 40
    assert len(terminal.drawn) <= 3  # at the beginning, after the first change, at the end
    assert numbers(bar) == (40, 40, "")
    assert len(rush._net.results.records) == 0  # pyright: ignore[reportPrivateUsage]


async def test_the_best_value_may_be_an_integer_beyond_a_float(rush: Rush) -> None:
    await rush.push_finished_tasks([{"x": 1}], [{"y": 10**400}])
    async with progress(rush, by="y", file=Terminal()) as bar:
        assert numbers(bar) == (1, None, f"best y={10**400}")


async def test_a_log_gets_lines(rush: Rush) -> None:
    log = io.StringIO()
    async with progress(rush, 4, by="y", maximize=True, file=log):
        await rush.push_finished_tasks([{"x": 0}] * 4, [{"y": 1}, {"y": 3.5}, {"y": float("nan")}, {"y": True}])
    first, *_, last = log.getvalue().split("\n")[:-2]
    assert "\r" not in log.getvalue()
    assert "0/4" in first
    assert "4/4" in last
    assert "best y=3.5]" in last


async def test_a_bar_of_keys_shows_how_many_of_these_tasks_have_ended(rush: Rush) -> None:
    old = await rush.push_finished_tasks([{"x": 0}], [{"y": 5}])
    await rush.push_finished_tasks([{"x": 0}], [{"y": -1}])  # another one
    bad, good, late = await rush.push_tasks([{"x": -1}, {"x": 1}, {"x": 2}])
    async with progress(rush, keys=[*old, bad, good, late, good], by="y", file=Terminal(), mininterval=0.001) as bar:
        assert numbers(bar) == (1, 4, "best y=5")
        async with RushWorker(rush.network_id, rush.config) as worker:
            tasks = [task for task in [await worker.pop_task(timeout=1) for _ in range(3)] if task is not None]
            await worker.fail_tasks([bad], ["below 0"])
            await wait_until(lambda: numbers(bar) == (2, 4, "best y=5, failed=1"))
            await worker.finish_tasks([good], [{"y": 3}])
            await wait_until(lambda: numbers(bar) == (3, 4, "best y=3, failed=1"))
            await rush.retry_tasks([bad])
            await wait_until(lambda: numbers(bar) == (2, 4, "best y=3"))
            # Events were missed: the tasks are read again.
            (listener,) = rush._net.feed._listeners  # pyright: ignore[reportPrivateUsage]
            kinds, listener._kinds = listener._kinds, (EventsMissed,)  # pyright: ignore[reportPrivateUsage]
            await worker.finish_tasks([late], [{"y": 2}])
            listener._offer(EventsMissed(network_id=rush.network_id, seq=9, at=datetime.now(UTC)))  # pyright: ignore[reportPrivateUsage]
            listener._kinds = kinds  # pyright: ignore[reportPrivateUsage]
            await wait_until(lambda: numbers(bar)[0] == 3)
            assert len(tasks) == 3
            again = await worker.pop_task(timeout=1)
            assert again is not None
            await worker.finish_tasks([bad], [{"y": 1}])
        assert len(await rush.wait_for_tasks([bad, good, late])) == 3
    assert numbers(bar) == (4, 4, "best y=1")


async def test_a_reset_begins_the_bar_anew_and_the_end_of_the_client_ends_it(
    rush_server: RushConfig, caplog: pytest.LogCaptureFixture
) -> None:
    async with Rush("reset", rush_server) as rush, Rush("reset", rush_server) as other:
        keys = await rush.push_finished_tasks([{"x": 0}] * 3, [{"y": 1}] * 3)
        options: dict[str, Any] = {"by": "y", "mininterval": 0.001}
        async with (
            progress(rush, 4, file=Terminal(), **options) as bar,
            progress(other, keys=keys, file=Terminal(), **options) as of_keys,
        ):
            assert numbers(bar) == (3, 4, "best y=1")
            assert numbers(of_keys) == (3, 3, "best y=1")
            await other.reset()
            await wait_until(lambda: numbers(bar) == (0, 4, "") and numbers(of_keys) == (0, 3, ""))
            await rush.push_finished_tasks([{"x": 0}] * 3, [{"y": 2}] * 3)
            await wait_until(lambda: numbers(bar) == (3, 4, "best y=2"))
            await rush.reset()
            await rush.aclose()
            await other.aclose()
        assert numbers(bar)[1] == 4
    assert caplog.records == []


async def test_an_error_in_the_block_leaves_it_and_a_bar_that_cannot_be_drawn_does_not_end_the_search(
    rush: Rush, caplog: pytest.LogCaptureFixture
) -> None:
    terminal = Terminal()
    with pytest.raises(ZeroDivisionError):
        async with progress(rush, 2, file=terminal):
            await rush.push_finished_tasks([{"x": 0}], [{"y": 1}])
            raise ZeroDivisionError
    assert "1/2" in terminal.drawn[-1]

    pipe = Pipe()
    async with progress(rush, 2, file=pipe, mininterval=0.001):
        pipe.is_broken = True
        await rush.push_finished_tasks([{"x": 0}], [{"y": 1}])
        await wait_until(lambda: "shows no more progress: its reader has ended" in caplog.text)
    assert "could not be drawn: its reader has ended" in caplog.text


async def test_an_output_that_no_task_has_is_named_at_the_end(rush: Rush, caplog: pytest.LogCaptureFixture) -> None:
    options: dict[str, Any] = {"by": "z", "file": Terminal()}
    async with progress(rush, **options):
        pass
    assert caplog.messages == []  # no task has finished
    keys = await rush.push_finished_tasks([{"x": 0}], [{"y": 1, "text": "z"}])
    others: list[dict[str, Any]] = [{}, {"keys": keys}, {"by": "text"}]
    for other in others:
        async with progress(rush, **(options | other)):
            pass
    assert [text.partition(" has a number as output ")[2][:6] for text in caplog.messages] == ["'z', s", "'z', s", "'text'"]


async def test_a_cancelled_block_closes_its_bar(rush: Rush) -> None:
    terminal, is_open = Terminal(), asyncio.Event()

    async def wait() -> None:
        async with progress(rush, 2, file=terminal):
            is_open.set()
            await rush.wait_until(lambda counts: counts.finished == 2)

    waiting = asyncio.create_task(wait())
    await is_open.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert terminal.getvalue().endswith("\n")


async def test_what_a_bar_refuses(rush: Rush) -> None:
    with pytest.raises(ValueError, match="leave n out"):
        progress(rush, 3, keys=["a"])
    with pytest.raises(NetworkStateError, match="not open yet"):
        async with progress(Rush("closed", rush.config)):
            pass
    async with progress(rush, disable=True) as bar:
        with pytest.raises(NetworkStateError, match="opened before"):
            await bar.__aenter__()
    with pytest.raises(NetworkStateError, match="opened before"):
        await bar.__aenter__()
