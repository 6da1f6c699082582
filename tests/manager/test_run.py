"""A search as one plain call."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rush_async import NetworkStateError, Rush, RushConfig, RushConfigError, RushWorker, WorkerLoopError, run
from tests.launch.loops_of_tests import raise_holding


@pytest.fixture
def network(rush_server: RushConfig) -> Iterator[str]:
    """The id of a network, which is deleted after the test."""
    yield "one-call"

    async def reset() -> None:
        async with Rush("one-call", rush_server) as rush:
            await rush.reset()

    asyncio.run(reset())


async def search(rush: RushWorker, offset: float = 0.0) -> None:
    async for task in rush.proposals(lambda draw: {"x": draw.random().random()}):
        async with task:
            task.ys = {"y": task.xs["x"] + offset}


async def interrupt(rush: RushWorker, times: int = 1) -> None:
    """Interrupts the program, and finishes a task that runs then."""
    async with rush.task({"x": 1}) as task:
        for _ in range(times):
            signal.raise_signal(signal.SIGINT)
            await asyncio.sleep(0)
        assert await rush.pop_task(timeout=None) is None  # until it is asked to stop
        task.ys = {"y": 2}


def test_a_search_with_proposals_ends_by_the_number_of_finished_tasks(
    network: str, rush_server: RushConfig, caplog: pytest.LogCaptureFixture
) -> None:
    frame = run(search, n_workers=2, network_id=network, config=rush_server, seed=3, finished=5, args={"offset": 10.0})
    first = frame["x"].to_list()
    assert frame["y"].to_list() == [x + 10.0 for x in first]
    assert len(set(first)) == 5
    # Another run continues from there, and lifts the stop of the first.
    frame = run(search, network_id=network, config=rush_server, finished=7, offset=10.0)
    assert frame.height == 7
    assert frame["x"].to_list()[:5] == first
    assert caplog.records == []
    assert run(search, network_id=network, config=rush_server, finished=7).height == 7
    assert f"network {network!r} has 7 finished tasks already, so no worker is started" in caplog.text


def test_an_interrupt_lets_the_workers_finish_and_returns_what_is_there(
    network: str, rush_server: RushConfig, caplog: pytest.LogCaptureFixture
) -> None:
    frame = run(interrupt, network_id=network, config=rush_server)
    assert frame["y"].to_list() == [2]
    assert "interrupted: the workers have 10 s to finish their tasks" in caplog.text
    with pytest.raises(KeyboardInterrupt):
        run(interrupt, network_id=network, config=rush_server, times=2)


def test_the_error_of_a_loop_is_raised(network: str, rush_server: RushConfig) -> None:
    with pytest.raises(WorkerLoopError, match="the loop broke"):
        run(raise_holding, network_id=network, config=rush_server)


async def test_inside_an_event_loop_it_says_what_to_await() -> None:
    with pytest.raises(
        NetworkStateError, match=r"notebook.*await Rush\('search'\).*await rush.start_workers\(search, n_workers=4\)"
    ):
        run(search)


def test_misspelled_and_impossible_arguments_are_refused_before_a_server_starts(directory: Path) -> None:
    for name, meant in {"n_worker": "n_workers", "budget": "finished", "url": "config", "processes": "on"}.items():
        with pytest.raises(TypeError, match=rf"'{name}'; did you mean {meant}, an option of run\?"):
            wrong: dict[str, Any] = {name: 4}
            run(search, **wrong)
    with pytest.raises(
        TypeError, match=r"; seconds is a stop rule: the loop, or a manager, calls `await rush.stop_when\(seconds="
    ):
        run(search, seconds=2)
    with pytest.raises(TypeError, match=r"has a parameter 'seed', which is an option of run"):
        run(with_seed, seed=3)
    with pytest.raises(ValueError, match="finished must be at least 1"):
        run(search, finished=0)
    with pytest.raises(RushConfigError, match="leave one of the two out"):
        run(search, network_id="net", config="redis://host", data_dir=directory)
    with pytest.raises(ValueError, match="give run a network_id"):
        run(search, data_dir=directory)


async def with_seed(rush: RushWorker, seed: int) -> None: ...


def test_a_data_dir_keeps_the_results_for_the_next_run(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    for finished in (2, 3):
        assert run(search, network_id="kept", data_dir=directory, finished=finished).height == finished
    assert run(look, network_id="kept", data_dir=directory, exist_ok=True).height == 3
    assert "held tasks" not in caplog.text
    assert run(look, network_id="kept", data_dir=directory).height == 3
    assert "exist_ok=True says that this is meant" in caplog.text


async def look(rush: RushWorker) -> None: ...
