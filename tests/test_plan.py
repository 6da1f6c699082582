"""`rush_plan`: what holds for code that does not say where the server is, and for how long it does."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest

from rush_async import (
    Coroutines,
    NetworkStateError,
    Plan,
    Processes,
    Rush,
    RushConfig,
    RushConfigError,
    RushConnectionError,
    RushWorker,
    current_plan,
    run_worker,
    rush_plan,
)
from rush_async.plan import locate, resolve_config

URL = "redis://planned:6379"
OTHER = "redis://other:6379"


@pytest.fixture(autouse=True)
def nothing_is_planned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("RUSH_URL", raising=False)
    monkeypatch.delenv("REDIS_URL", raising=False)
    yield
    rush_plan()


def in_a_thread(call: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(call).result()


# what holds


def test_nothing_is_set_at_first() -> None:
    assert current_plan() == Plan(None, None, None, None, None, None)
    assert repr(current_plan()) == "Plan()"


def test_a_plan_sets_every_default() -> None:
    on = Processes(2)
    rush_plan(
        n_workers=3,
        config=URL,
        on=on,
        log_levels={"my.logger": "DEBUG", "other": 30},
        large_objects_path=Path("shared"),
        start_worker_timeout=2.5,
    )
    plan = current_plan()
    assert (plan.n_workers, plan.config, plan.on) == (3, RushConfig(url=URL), on)
    assert plan.log_levels == {"my.logger": "DEBUG", "other": 30}
    assert (plan.large_objects_path, plan.start_worker_timeout) == (Path("shared"), 2.5)


def test_a_plan_cannot_be_changed() -> None:
    levels = {"my.logger": "DEBUG"}
    rush_plan(log_levels=levels)
    levels["my.logger"] = "ERROR"
    assert current_plan().log_levels == {"my.logger": "DEBUG"}
    with pytest.raises(FrozenInstanceError):
        current_plan().n_workers = 3  # pyright: ignore[reportAttributeAccessIssue]


def test_the_repr_of_a_plan_shows_what_is_set_and_no_password() -> None:
    block = rush_plan(n_workers=2, config="redis://user:hidden@host:6379")
    shown = "n_workers=2, config=RushConfig(url='redis://user:***@host:6379')"
    assert repr(current_plan()) == f"Plan({shown})"
    assert repr(block) == f"rush_plan({shown})"


def test_a_call_holds_for_the_process_and_takes_the_place_of_the_one_before() -> None:
    rush_plan(n_workers=2, config=URL)
    assert in_a_thread(current_plan) == Plan(n_workers=2, config=RushConfig(url=URL))
    rush_plan(n_workers=3)
    assert in_a_thread(current_plan) == current_plan() == Plan(n_workers=3)


def test_a_call_with_nothing_clears_the_plan_of_the_process() -> None:
    rush_plan(n_workers=2, config=URL)
    rush_plan()
    assert current_plan() == Plan()


@pytest.mark.parametrize("error", [None, ValueError])
def test_a_block_holds_until_its_end_however_it_ends(error: type[Exception] | None) -> None:
    with contextlib.suppress(ValueError), rush_plan(n_workers=2) as plan:
        assert plan == current_plan() == Plan(n_workers=2)
        if error is not None:
            raise error
    assert current_plan() == Plan()


def test_a_block_leaves_the_plan_of_the_process_as_it_was() -> None:
    rush_plan(n_workers=1, config=URL)
    with rush_plan(n_workers=2):
        assert in_a_thread(current_plan).n_workers == 1
        assert current_plan().n_workers == 2
    assert current_plan() == Plan(n_workers=1, config=RushConfig(url=URL))


def test_a_block_changes_only_what_it_names() -> None:
    rush_plan(start_worker_timeout=9)
    with rush_plan(n_workers=2, config=URL), rush_plan(config=OTHER), rush_plan():
        assert current_plan() == Plan(n_workers=2, config=RushConfig(url=OTHER), start_worker_timeout=9)
    with rush_plan(n_workers=2):
        with rush_plan(n_workers=3):
            assert current_plan().n_workers == 3
        assert current_plan().n_workers == 2


def test_a_plan_of_the_process_made_in_a_block_does_not_win_over_it_and_outlasts_it() -> None:
    with rush_plan(n_workers=2):
        rush_plan(n_workers=4, start_worker_timeout=9)
        assert current_plan() == Plan(n_workers=2, start_worker_timeout=9)
    assert current_plan() == Plan(n_workers=4, start_worker_timeout=9)


def test_a_plan_is_entered_once() -> None:
    block = rush_plan(n_workers=2)
    with block:
        with pytest.raises(NetworkStateError, match=r"entered once: call rush_plan\(\.\.\.\) again"), block:
            pass
        assert current_plan().n_workers == 2
    with pytest.raises(NetworkStateError, match="entered once"), block:
        pass
    assert current_plan() == Plan()


def test_a_plan_that_is_entered_later_is_no_longer_the_plan_of_the_process() -> None:
    rush_plan(n_workers=1)
    first, second = rush_plan(n_workers=2), rush_plan(n_workers=3)
    with first:
        assert in_a_thread(current_plan).n_workers == 3
    with second:
        assert in_a_thread(current_plan).n_workers == 1
    assert current_plan().n_workers == 1


def test_threads_that_enter_blocks_at_once_leave_nothing_behind() -> None:
    rush_plan(n_workers=1)
    barrier = threading.Barrier(4)

    def enter(n: int) -> set[int | None]:
        seen: set[int | None] = set()
        barrier.wait(10)
        for _ in range(200):
            with rush_plan(n_workers=n):
                seen.add(current_plan().n_workers)
        return seen

    with ThreadPoolExecutor(4) as executor:
        assert list(executor.map(enter, [2, 3, 4, 5])) == [{2}, {3}, {4}, {5}]
    assert current_plan() == Plan(n_workers=1)


def test_plans_that_nobody_can_enter_any_more_are_forgotten() -> None:
    from rush_async.plan import _of_process  # pyright: ignore[reportPrivateUsage]

    for n in range(1, 100):
        rush_plan(n_workers=n)
    gc.collect()
    rush_plan(n_workers=7)
    assert len(_of_process._calls) <= 2  # pyright: ignore[reportPrivateUsage]
    assert current_plan().n_workers == 7


async def test_tasks_may_have_a_plan_each() -> None:
    both_are_in = asyncio.Barrier(2)

    async def plan_with(n: int) -> tuple[int | None, int | None]:
        with rush_plan(n_workers=n):
            await both_are_in.wait()
            return current_plan().n_workers, (await asyncio.to_thread(current_plan)).n_workers

    assert await asyncio.gather(plan_with(2), plan_with(3)) == [(2, 2), (3, 3)]
    assert current_plan() == Plan()


async def test_a_task_begun_in_a_block_keeps_its_plan() -> None:
    may_look = asyncio.Event()

    async def look() -> Plan:
        await may_look.wait()
        return current_plan()

    with rush_plan(n_workers=2):
        looking = asyncio.ensure_future(look())
    may_look.set()
    assert (await looking).n_workers == 2


async def test_a_block_may_end_in_another_task_than_it_began_in() -> None:
    @contextlib.contextmanager
    def planned() -> Generator[None]:
        with rush_plan(n_workers=2):
            yield

    block = planned()

    async def enter() -> None:
        block.__enter__()
        assert current_plan().n_workers == 2

    async def leave() -> None:
        block.__exit__(None, None, None)
        assert current_plan() == Plan()

    await asyncio.ensure_future(enter())
    await asyncio.ensure_future(leave())
    assert current_plan() == Plan()


def test_a_program_that_this_one_starts_has_no_plan_of_it() -> None:
    rush_plan(n_workers=2)
    code = "from rush_async import current_plan; print(current_plan())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "Plan()"


# what a value must be


@pytest.mark.parametrize(
    ("values", "error", "words"),
    [
        ({"config": "http://host"}, RushConfigError, "must start with one of redis://"),
        ({"config": "redis://:hidden@host:x"}, RushConfigError, "port"),
        ({"config": ""}, RushConfigError, "redis://"),
        ({"config": 7}, RushConfigError, "a URL, a RushConfig or None, not int"),
        ({"config": RushConfig}, RushConfigError, "a URL, a RushConfig or None, not type"),
        ({"n_workers": 0}, RushConfigError, "at least 1, not 0"),
        ({"n_workers": -1}, RushConfigError, "at least 1, not -1"),
        ({"n_workers": "4"}, TypeError, "whole number, not str: '4'"),
        ({"n_workers": 1.5}, TypeError, "whole number, not float"),
        ({"on": "processes"}, TypeError, "a pool with submit"),
        ({"on": Processes}, TypeError, r"write on=Processes\(\)"),
        ({"log_levels": "DEBUG"}, TypeError, "maps loggers to levels"),
        ({"log_levels": {"my.logger": "LOUD"}}, RushConfigError, "'LOUD' of 'my.logger' is no level: .*WARNING"),
        ({"log_levels": {"my.logger": 1.5}}, TypeError, "'my.logger' is a name or a number, not float"),
        ({"log_levels": {3: "DEBUG"}}, TypeError, "name of a logger is a string, not int: 3"),
        ({"large_objects_path": ""}, RushConfigError, "names no directory"),
        ({"large_objects_path": 7}, TypeError, "a str or a Path, not int: 7"),
        ({"large_objects_path": b"bytes"}, TypeError, "a str or a Path, not bytes"),
        ({"start_worker_timeout": -1}, RushConfigError, "0 or more seconds, not -1"),
        ({"start_worker_timeout": float("nan")}, RushConfigError, "0 or more seconds, not nan"),
        ({"start_worker_timeout": "5"}, TypeError, "number of seconds, not str"),
    ],
    ids=str,
)
def test_a_value_that_cannot_be_used_is_refused_by_the_call_and_changes_nothing(
    values: Any, error: type[Exception], words: str
) -> None:
    rush_plan(n_workers=2)
    with pytest.raises(error, match=words) as caught:
        rush_plan(**values)
    assert "hidden" not in str(caught.value)
    assert current_plan() == Plan(n_workers=2)


def test_ways_to_start_workers_are_what_has_launch_or_submit() -> None:
    with ThreadPoolExecutor(1) as pool:
        for on in (Coroutines(), Processes(2), pool):
            with rush_plan(on=on) as plan:
                assert plan.on is on


def test_a_plan_does_no_io(directory: Path) -> None:
    rush_plan(config="redis://no-such-host.invalid:6379", large_objects_path=directory / "large")
    rush_plan(config=RushConfig(data_dir=directory / "data"))
    assert list(directory.iterdir()) == []


# row 2: which address wins


def test_row_2_an_argument_wins_over_the_plan_and_that_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert locate(None) == (RushConfig(), None)
    monkeypatch.setenv("REDIS_URL", "redis://redis-url")
    assert locate(None) == (RushConfig(url="redis://redis-url"), "the environment variable REDIS_URL")
    monkeypatch.setenv("RUSH_URL", "redis://rush-url")
    assert locate(None) == (RushConfig(url="redis://rush-url"), "the environment variable RUSH_URL")
    rush_plan(config=URL)
    assert locate(None) == (RushConfig(url=URL), "rush_plan")
    assert locate(OTHER) == locate(RushConfig(url=OTHER)) == (RushConfig(url=OTHER), None)
    assert resolve_config(None) == RushConfig(url=URL)


def test_row_2_settings_without_an_address_take_only_the_address(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = RushConfig(connect_timeout=3)
    assert resolve_config(settings) == settings
    monkeypatch.setenv("RUSH_URL", "redis://rush-url")
    rush_plan(config=RushConfig(connect_timeout=4))
    assert locate(None) == (RushConfig(url="redis://rush-url", connect_timeout=4), "the environment variable RUSH_URL")
    assert resolve_config(settings) == RushConfig(url="redis://rush-url", connect_timeout=3)
    rush_plan(config=RushConfig(url=URL, connect_timeout=4, retry_deadline=5))
    assert locate(settings) == (RushConfig(url=URL, connect_timeout=3), "rush_plan")
    rush_plan(config=RushConfig(data_dir=directory))
    assert locate(settings) == (RushConfig(data_dir=directory, connect_timeout=3), "rush_plan")


def test_row_2_a_plan_without_an_address_leaves_the_embedded_server() -> None:
    rush_plan(config=RushConfig(connect_timeout=4), n_workers=2)
    assert locate(None) == (RushConfig(connect_timeout=4), None)


def test_row_2_a_bad_variable_matters_only_where_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUSH_URL", "http://host")
    rush_plan(config=URL)
    assert Rush("net").config.url == URL
    rush_plan()
    with pytest.raises(RushConfigError, match="RUSH_URL"):
        Rush("net")


async def test_row_2_clients_open_on_the_server_of_the_plan(rush: Rush, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUSH_URL", "unix:///there/is/nothing.sock")
    with rush_plan(config=rush.config.url):
        async with Rush(rush.network_id) as other, RushWorker(rush.network_id) as worker:
            (key,) = await other.push_tasks([{"x": 1}])
            task = await worker.pop_task(0)
            assert task is not None
            assert task.key == key


async def test_row_2_a_client_looks_for_its_server_when_it_is_made(rush: Rush) -> None:
    with rush_plan(config=rush.config.url):
        other = Rush(rush.network_id)
    async with other:
        assert other.config.url == rush.config.url


async def test_row_2_run_worker_goes_by_the_plan(rush: Rush) -> None:
    async def loop(worker: RushWorker) -> None:
        await worker.push_finished_tasks([{"x": 1}], [{"y": 2}])

    with rush_plan(config=rush.config.url):
        (end,) = await asyncio.to_thread(run_worker, loop, rush.network_id)
    assert end.state == "terminated"
    assert (await rush.counts()).finished == 1


# where the address came from


async def refusal_of(config: RushConfig | str | None, directory: Path) -> str:
    with pytest.raises(RushConnectionError) as caught:
        await Rush("net", config)
    assert caught.value.__cause__ is not None
    assert f"unix://:***@{directory}/nothing.sock" in str(caught.value)
    assert "hidden" not in f"{caught.value} {caught.value.__cause__}"
    return str(caught.value)


async def test_an_error_in_opening_says_where_the_address_came_from(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"unix://:hidden@{directory}/nothing.sock"
    monkeypatch.setenv("REDIS_URL", url)
    assert (await refusal_of(None, directory)).endswith(". The address came from the environment variable REDIS_URL")
    monkeypatch.setenv("RUSH_URL", url)
    assert (await refusal_of(None, directory)).endswith(". The address came from the environment variable RUSH_URL")
    with rush_plan(config=url):
        assert (await refusal_of(None, directory)).endswith(". The address came from rush_plan")
        assert (await refusal_of(RushConfig(connect_timeout=3), directory)).endswith(". The address came from rush_plan")
        assert "came from" not in await refusal_of(url, directory)
