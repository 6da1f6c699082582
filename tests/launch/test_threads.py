"""How many compute threads processes of workers get; with numpy's BLAS and polars, and with control groups of all kinds."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from rush_async import Processes, Rush
from rush_async.launch import processes
from rush_async.launch.threads import thread_variables, usable_cores
from tests.cli.programs import running
from tests.launch.loops_of_tests import count_threads, hold

NAMES = (
    *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"),
    *("VECLIB_MAXIMUM_THREADS", "POLARS_MAX_THREADS"),
)

# A module of a user, which imports libraries that compute at its top.
COUNTING = """
import os
import numpy
import polars
import threadpoolctl

async def loop(rush):
    (blas,) = [pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]
    await rush.push_finished_tasks([{"pid": os.getpid()}], [{"blas": blas, "polars": polars.thread_pool_size()}])
"""


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment in which the user has set none of the variables."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.fixture
def counting(directory: Path, environment: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    (directory / "counting.py").write_text(COUNTING)
    environment.setattr(sys, "path", [str(directory), *sys.path])
    yield import_module("counting")
    del sys.modules["counting"]


def eight_cores() -> int:
    return 8


# in real processes


async def threads_of(rush: Rush) -> list[tuple[int, int]]:
    tasks = await rush.fetch_finished_tasks()
    assert tasks["pid"].n_unique() == tasks.height
    return list(zip(tasks["blas"], tasks["polars"], strict=True))


async def test_eight_processes_share_the_cores(rush: Rush, counting: ModuleType) -> None:
    await rush.start_workers(counting.loop, 8, on=Processes(8))
    await rush.join_workers(timeout=100)
    share = max(1, usable_cores() // 8)  # 1 where a machine has fewer than 16 cores
    assert await threads_of(rush) == [(share, share)] * 8


async def test_one_process_computes_with_all_usable_cores(rush: Rush, counting: ModuleType) -> None:
    await rush.start_workers(counting.loop, 1, on=Processes(1))
    await rush.join_workers(timeout=60)
    assert await threads_of(rush) == [(usable_cores(), usable_cores())]


async def test_the_users_own_variable_wins_over_the_share_and_the_argument_over_both(
    rush: Rush, counting: ModuleType, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv("OMP_NUM_THREADS", "1")
    environment.setattr("rush_async.launch.threads.usable_cores", eight_cores)
    await rush.start_workers(counting.loop, 1, on=Processes())
    await rush.join_workers(timeout=60)
    await rush.start_workers(counting.loop, 1, on=Processes(threads=2))
    await rush.join_workers(timeout=60)
    assert await threads_of(rush) == [(1, 8), (min(2, usable_cores()), 2)]
    assert os.environ["OMP_NUM_THREADS"] == "1"  # the manager's own environment is as it was
    assert "POLARS_MAX_THREADS" not in os.environ


async def test_processes_that_run_already_or_start_meanwhile_have_their_share(
    rush: Rush, environment: pytest.MonkeyPatch
) -> None:
    environment.setattr("rush_async.launch.threads.usable_cores", eight_cores)
    held = await rush.start_workers(hold, 2, on=Processes())
    both = await asyncio.gather(*[rush.start_workers(count_threads, 1, on=Processes()) for _ in range(2)])
    await rush.join_workers([worker_id for ids in both for worker_id in ids], timeout=60)
    assert sorted((await rush.fetch_finished_tasks())["polars"]) == [2, 2]
    await rush.stop_workers(held, mode="kill")
    # Those that have ended have none, although their processes may still be on their way out.
    await rush.join_workers(await rush.start_workers(count_threads, 4, on=Processes(2)), timeout=60)
    assert (await rush.fetch_finished_tasks())["polars"].to_list()[2:] == [4] * 4


async def test_a_start_that_fails_takes_no_share(rush: Rush, environment: pytest.MonkeyPatch) -> None:
    environment.setattr("rush_async.launch.threads.usable_cores", eight_cores)
    with environment.context() as broken, pytest.raises(KeyError, match="no_such_piece"):
        broken.setattr(processes, "_PROGRAM", "{no_such_piece}")
        await rush.start_workers(count_threads, 4, on=Processes())
    await rush.join_workers(await rush.start_workers(count_threads, 1, on=Processes()), timeout=60)
    assert (await rush.fetch_finished_tasks())["polars"].to_list() == [8]


async def test_the_command_computes_with_all_usable_cores_unless_the_user_has_set_a_variable(
    rush: Rush, directory: Path
) -> None:
    (directory / "counting.py").write_text(COUNTING)
    assert rush.config.url is not None
    words = (sys.executable, "-m", "rush_async", "worker", rush.network_id, "counting:loop")
    async with running() as run:
        for variables in ({}, {"OMP_NUM_THREADS": "1"}):
            code, errors = await (await run(*words, cwd=directory, RUSH_URL=rush.config.url, **variables)).ended()
            assert code == 0, errors
    cores = usable_cores()
    assert await threads_of(rush) == [(cores, cores), (1, cores)]


def test_a_number_of_threads_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="needs at least one thread, not 0"):
        Processes(threads=0)
    with pytest.raises(ValueError, match=r"threads of Processes.*, not -1"):
        Processes(threads=-1)
    with pytest.raises(TypeError, match=r"threads of Processes.*must be a whole number"):
        Processes(threads="2")  # pyright: ignore[reportArgumentType]


# the variables


def test_each_process_has_its_share_and_at_least_one(environment: pytest.MonkeyPatch) -> None:
    environment.setattr("rush_async.launch.threads.usable_cores", eight_cores)
    assert thread_variables() == dict.fromkeys(NAMES, "8")
    assert thread_variables(None, 3) == dict.fromkeys(NAMES, "2")
    assert thread_variables(None, 9) == dict.fromkeys(NAMES, "1")
    assert thread_variables(5, 3) == dict.fromkeys(NAMES, "5")


def test_each_variable_of_the_user_stays_and_what_follows_omp_keeps_following(environment: pytest.MonkeyPatch) -> None:
    environment.setattr("rush_async.launch.threads.usable_cores", eight_cores)
    environment.setenv("MKL_NUM_THREADS", "7")
    environment.setenv("NUMEXPR_NUM_THREADS", "")  # counts as not set
    assert thread_variables() == {name: "8" for name in NAMES if name != "MKL_NUM_THREADS"}
    environment.setenv("OMP_NUM_THREADS", "3")
    # OpenBLAS, MKL and numexpr would not look at OMP_NUM_THREADS beside a variable of their own.
    assert thread_variables() == {"VECLIB_MAXIMUM_THREADS": "8", "POLARS_MAX_THREADS": "8"}
    assert thread_variables(2) == dict.fromkeys(NAMES, "2")


# the cores


def system(root: Path, membership: str, groups: dict[str, str]) -> Path:
    """Writes the files of a system: what `/proc/self/cgroup` has, and those in `/sys/fs/cgroup` by their paths there."""
    contents = {"proc/self/cgroup": membership} | {f"sys/fs/cgroup/{name}": content for name, content in groups.items()}
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content + "\n")
    return root


@pytest.fixture
def sixteen_allowed(environment: pytest.MonkeyPatch) -> None:
    def affinity(pid: int) -> set[int]:
        return set(range(16))

    environment.setattr(os, "sched_getaffinity", affinity)


@pytest.mark.usefixtures("sixteen_allowed")
def test_without_a_quota_the_cores_are_those_of_the_affinity(tmp_path: Path) -> None:
    assert usable_cores(tmp_path) == 16
    assert usable_cores(system(tmp_path, "0::/", {"cpu.max": "max 100000"})) == 16
    none = {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}
    assert usable_cores(system(tmp_path, "2:cpu:/", none)) == 16


@pytest.mark.usefixtures("sixteen_allowed")
@pytest.mark.parametrize(("quota", "cores"), [("400000", 4), ("250000", 2), ("50000", 1), ("9900000", 16)])
def test_a_quota_of_either_version_limits_the_cores(tmp_path: Path, quota: str, cores: int) -> None:
    assert usable_cores(system(tmp_path / "2", "0::/a/b", {"a/b/cpu.max": f"{quota} 100000"})) == cores
    of_a = {"cpu/a/cpu.cfs_quota_us": quota, "cpu/a/cpu.cfs_period_us": "100000"}
    assert usable_cores(system(tmp_path / "1", "9:name=systemd:/\n7:cpuset:/b\n4:cpuacct,cpu:/a\n0::/", of_a)) == cores


@pytest.mark.usefixtures("sixteen_allowed")
def test_the_quota_of_a_group_above_holds_and_that_of_a_container_is_at_the_mount(tmp_path: Path) -> None:
    nested = {"a/cpu.max": "200000 100000", "a/b/cpu.max": "max 100000"}
    assert usable_cores(system(tmp_path / "nested", "0::/a/b", nested)) == 2
    mounted = {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}
    assert usable_cores(system(tmp_path / "container", "4:cpu,cpuacct:/docker/0123", mounted)) == 3


def test_this_process_may_use_the_cores_of_its_affinity_at_the_most() -> None:
    assert 1 <= usable_cores() <= len(os.sched_getaffinity(0))
