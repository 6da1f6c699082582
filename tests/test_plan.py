"""`rush_plan`: the defaults that it sets, how long and where they hold, and which address a client uses."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import subprocess
import sys
import threading
import weakref
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
def no_plan(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("RUSH_URL", raising=False)
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.delenv("RUSH_DATA_DIR", raising=False)
    yield
    rush_plan()


def in_a_thread(call: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(call).result()


# how long a plan holds


def test_the_first_plan_sets_nothing() -> None:
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


def test_a_call_holds_for_the_process_and_replaces_the_call_before() -> None:
    rush_plan(n_workers=2, config=URL)
    assert in_a_thread(current_plan) == Plan(n_workers=2, config=RushConfig(url=URL))
    rush_plan(n_workers=3)
    assert in_a_thread(current_plan) == current_plan() == Plan(n_workers=3)


def test_a_call_with_nothing_clears_the_plan_of_the_process() -> None:
    rush_plan(n_workers=2, config=URL)
    rush_plan()
    assert current_plan() == Plan()


@pytest.mark.parametrize("error", [None, ValueError])
def test_a_block_restores_the_plan_when_it_ends_or_raises(error: type[Exception] | None) -> None:
    with contextlib.suppress(ValueError), rush_plan(n_workers=2) as plan:
        assert plan == current_plan() == Plan(n_workers=2)
        if error is not None:
            raise error
    assert current_plan() == Plan()


def test_a_block_leaves_the_plan_of_the_process_unchanged() -> None:
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


def test_a_call_in_a_block_does_not_override_the_block_and_holds_after_it() -> None:
    with rush_plan(n_workers=2):
        rush_plan(n_workers=4, start_worker_timeout=9)
        assert current_plan() == Plan(n_workers=2, start_worker_timeout=9)
    assert current_plan() == Plan(n_workers=4, start_worker_timeout=9)


def test_a_plan_can_be_entered_only_once() -> None:
    block = rush_plan(n_workers=2)
    with block:
        with pytest.raises(NetworkStateError, match=r"entered once: call rush_plan\(\.\.\.\) again"), block:
            pass
        assert current_plan().n_workers == 2
    with pytest.raises(NetworkStateError, match="entered once"), block:
        pass
    assert current_plan() == Plan()


def test_entering_a_plan_later_restores_the_plan_of_the_process_that_it_replaced() -> None:
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


def test_plans_replaced_by_many_calls_are_forgotten() -> None:
    on = ThreadPoolExecutor(1)
    forgotten = weakref.ref(on)
    oldest = rush_plan(n_workers=1, on=on)
    del on
    for _ in range(2_000):
        rush_plan(n_workers=7)
    with oldest as plan:
        assert plan.n_workers == 1
    assert current_plan().n_workers == 7
    del oldest, plan
    gc.collect()
    assert forgotten() is None


def test_when_every_plan_has_been_entered_the_process_has_none() -> None:
    blocks = [rush_plan(n_workers=n) for n in range(1, 2_001)]
    for block in blocks:
        with block:
            pass
    assert current_plan() == Plan()


async def test_each_asyncio_task_may_have_its_own_plan() -> None:
    both_entered = asyncio.Barrier(2)

    async def plan_with(n: int) -> tuple[int | None, int | None]:
        with rush_plan(n_workers=n):
            await both_entered.wait()
            return current_plan().n_workers, (await asyncio.to_thread(current_plan)).n_workers

    assert await asyncio.gather(plan_with(2), plan_with(3)) == [(2, 2), (3, 3)]
    assert current_plan() == Plan()


async def test_an_asyncio_task_started_in_a_block_keeps_the_plan_of_the_block() -> None:
    block_ended = asyncio.Event()

    async def look() -> Plan:
        await block_ended.wait()
        return current_plan()

    with rush_plan(n_workers=2):
        looking = asyncio.ensure_future(look())
    block_ended.set()
    assert (await looking).n_workers == 2


async def test_a_block_may_be_exited_in_another_asyncio_task() -> None:
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


def test_a_child_process_does_not_inherit_the_plan() -> None:
    rush_plan(n_workers=2)
    code = "from rush_async import current_plan; print(current_plan())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "Plan()"


# checks of the values


@pytest.mark.parametrize(
    ("values", "error", "words"),
    [
        ({"config": "http://host"}, RushConfigError, "must start with one of redis://"),
        ({"config": "redis://:hidden@host:x"}, RushConfigError, "port"),
        ({"config": ""}, RushConfigError, "redis://"),
        ({"config": 7}, RushConfigError, "a URL, a RushConfig or None, not int"),
        ({"config": RushConfig}, RushConfigError, "a URL, a RushConfig or None, not type"),
        ({"config": 7, "data_dir": "results"}, RushConfigError, "a URL, a RushConfig or None, not int"),
        ({"config": URL, "data_dir": "results"}, RushConfigError, "leave one of the two out"),
        ({"data_dir": ""}, RushConfigError, "names no directory"),
        ({"n_workers": 0}, RushConfigError, "at least 1, not 0"),
        ({"n_workers": -1}, RushConfigError, "n_workers must be 0 to .*, not -1"),
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
        ({"start_worker_timeout": float("nan")}, RushConfigError, "a number of seconds, not nan"),
        ({"start_worker_timeout": "5"}, TypeError, "must be a number, not str"),
    ],
    ids=str,
)
def test_a_call_with_an_invalid_value_raises_and_changes_nothing(values: Any, error: type[Exception], words: str) -> None:
    rush_plan(n_workers=2)
    with pytest.raises(error, match=words) as caught:
        rush_plan(**values)
    assert "hidden" not in str(caught.value)
    assert current_plan() == Plan(n_workers=2)


def test_on_accepts_objects_with_launch_or_submit() -> None:
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
    assert locate(None, "results") == (RushConfig(data_dir="results"), None)
    with pytest.raises(RushConfigError, match="leave one of the two out"):
        locate(OTHER, "results")


def test_row_2_a_data_dir_of_the_plan_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUSH_DATA_DIR", "of-environment")
    assert locate(None) == (RushConfig(data_dir="of-environment"), "the environment variable RUSH_DATA_DIR")
    monkeypatch.setenv("RUSH_URL", "redis://rush-url")
    assert locate(None) == (RushConfig(url="redis://rush-url"), "the environment variable RUSH_URL")
    rush_plan(data_dir="of-plan", config=RushConfig(connect_timeout=3))
    assert locate(None) == (RushConfig(data_dir="of-plan", connect_timeout=3), "rush_plan")


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


def test_row_2_a_plan_without_an_address_uses_the_embedded_server() -> None:
    rush_plan(config=RushConfig(connect_timeout=4), n_workers=2)
    assert locate(None) == (RushConfig(connect_timeout=4), None)


def test_settings_of_the_environment_hold_where_no_configuration_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUSH_CONNECT_TIMEOUT", "3")
    assert resolve_config(None) == RushConfig(connect_timeout=3)
    assert resolve_config(URL) == RushConfig(url=URL, connect_timeout=3)
    assert resolve_config(None, "results") == RushConfig(data_dir="results", connect_timeout=3)
    assert resolve_config(RushConfig(url=URL)) == RushConfig(url=URL)
    rush_plan(config=URL)
    assert resolve_config(None) == RushConfig(url=URL, connect_timeout=3)
    rush_plan(config=RushConfig(url=URL))
    assert resolve_config(None) == RushConfig(url=URL)


def test_row_2_an_invalid_variable_raises_only_where_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
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


async def test_row_2_a_client_takes_the_address_of_the_plan_when_it_is_created(rush: Rush) -> None:
    with rush_plan(config=rush.config.url):
        other = Rush(rush.network_id)
    async with other:
        assert other.config.url == rush.config.url


async def test_row_2_run_worker_uses_the_address_of_the_plan(rush: Rush) -> None:
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


async def test_a_connection_error_names_the_source_of_the_address(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"unix://:hidden@{directory}/nothing.sock"
    monkeypatch.setenv("REDIS_URL", url)
    assert (await refusal_of(None, directory)).endswith(". The address came from the environment variable REDIS_URL")
    monkeypatch.setenv("RUSH_URL", url)
    assert (await refusal_of(None, directory)).endswith(". The address came from the environment variable RUSH_URL")
    with rush_plan(config=url):
        assert (await refusal_of(None, directory)).endswith(". The address came from rush_plan")
        assert (await refusal_of(RushConfig(connect_timeout=3), directory)).endswith(". The address came from rush_plan")
        assert "came from" not in await refusal_of(url, directory)
