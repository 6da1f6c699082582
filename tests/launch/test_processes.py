"""Workers in processes of this machine; behaviour that coroutines share is tested in `test_workers`."""

from __future__ import annotations

import asyncio
import os
import re
import resource
import signal
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from rush_async import Processes, Rush, RushConfig, RushWorker, WorkerLoopError
from rush_async.testing import wait_until
from tests.launch import loops_of_tests
from tests.launch.loops_of_tests import (
    block,
    break_once,
    die_talking,
    do_some,
    fork_and_hold,
    hold,
    print_and_end,
    serve,
    serve_until_terminated,
    talk,
)
from tests.proxy import Proxy


async def pids_of_tasks(rush: Rush, name: str) -> list[int]:
    return (await rush.fetch_running_tasks())[name].to_list()


def found(directory: Path, pattern: str) -> list[Path]:
    return list(directory.glob(pattern))


async def gone(*pids: int) -> bool:
    processes = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    _, alive = await asyncio.to_thread(psutil.wait_procs, processes, timeout=10)
    return all(process.status() == psutil.STATUS_ZOMBIE for process in alive if process.is_running())


async def test_the_death_of_a_process_is_noticed_at_once_though_its_fork_still_runs(rush: Rush) -> None:
    await rush.start_workers(fork_and_hold, 1, on=Processes())
    await rush.wait_until(lambda counts: counts.running == 1, timeout=30)
    (pid,), (grandchild,) = await pids_of_tasks(rush, "pid"), await pids_of_tasks(rush, "grandchild")
    begun = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    await rush.wait_until(lambda counts: counts.failed == 1, timeout=30)
    assert time.monotonic() - begun < 2
    assert [how.state for how in await rush.join_workers(check=False)] == ["lost"]
    assert await gone(grandchild)


async def test_the_processes_that_a_killed_worker_started_end_with_it(rush: Rush) -> None:
    await rush.start_workers(fork_and_hold, 1, on=Processes())
    await rush.wait_until(lambda counts: counts.running == 1, timeout=30)
    (grandchild,) = await pids_of_tasks(rush, "grandchild")
    await rush.stop_workers(mode="kill")
    assert await gone(grandchild)


MANAGER = """
import asyncio, sys
from rush_async import Processes, Rush
from tests.launch.loops_of_tests import block, fork_and_hold

async def main():
    async with Rush(sys.argv[1], sys.argv[2]) as rush:
        await rush.start_workers(fork_and_hold, 1, on=Processes())
        await rush.start_workers(block, 1, on=Processes())
        await rush.wait_until(lambda counts: counts.running == 2, timeout=30)
        print("ready", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_a_killed_manager_leaves_no_process_and_no_file(rush: Rush, directory: Path) -> None:
    assert rush.config.url is not None
    manager = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", MANAGER, rush.network_id, rush.config.url),
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TMPDIR": str(directory)},
    )
    assert manager.stdout is not None
    assert await manager.stdout.readline() == b"ready\n"
    tasks = await rush.fetch_running_tasks()
    pids = [*tasks["pid"].to_list(), *tasks["grandchild"].drop_nulls().to_list()]
    assert len(pids) == 3
    assert len(found(directory, "rush-out-*")) == 2
    manager.kill()
    await manager.wait()
    assert await gone(*pids)
    assert found(directory, "*") == []


async def test_a_loop_finds_an_empty_standard_input(rush: Rush) -> None:
    async def loop(rush: RushWorker) -> None:
        import subprocess

        read = subprocess.run(["cat"], stdout=subprocess.PIPE, check=True, timeout=20).stdout  # noqa: ASYNC221
        await rush.push_finished_tasks([{"x": sys.stdin.read()}], [{"y": read}])

    await rush.start_workers(loop, 1, on=Processes())
    await rush.join_workers(timeout=60)
    tasks = await rush.fetch_finished_tasks()
    assert (tasks["x"][0], tasks["y"][0]) == ("", b"")


async def test_a_stop_reaches_processes_that_are_still_starting(rush: Rush) -> None:
    ids = await rush.start_workers(serve, 2, on=Processes(1))
    await rush.stop_workers()
    assert [how.state for how in await rush.join_workers(ids)] == ["terminated", "terminated"]


async def test_sigterm_lets_the_workers_of_a_process_finish_and_a_second_one_ends_it(rush: Rush) -> None:
    orderly = await rush.start_workers(serve_until_terminated, 1, on=Processes())
    deaf = await rush.start_workers(hold, 1, on=Processes())
    await rush.push_tasks([{"x": 1}])
    await rush.wait_until(lambda counts: counts.running == 2, timeout=30)
    pids = dict((await rush.worker_info())["worker_id", "pid"].rows())
    for worker_id in (*orderly, *deaf):
        os.kill(pids[worker_id], signal.SIGTERM)
    assert [end.state for end in await rush.join_workers(orderly, timeout=10)] == ["terminated"]
    assert await rush.counts() == (0, 1, 1, 0)
    os.kill(pids[deaf[0]], signal.SIGTERM)
    assert [end.state for end in await rush.join_workers(deaf, timeout=10, check=False)] == ["lost"]
    assert await rush.counts() == (0, 0, 1, 1)


async def test_killing_a_worker_that_swallows_its_cancellation_leaves_its_neighbours_running(rush: Rush) -> None:
    async def loop(rush: RushWorker) -> None:
        await rush.push_running_tasks([{"x": 1}])
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                continue

    ids = await rush.start_workers(loop, 2, on=Processes(1))
    await rush.wait_until(lambda counts: counts.running == 2, timeout=30)
    await rush.stop_workers(ids[0], mode="kill")
    assert await rush.counts() == (0, 1, 0, 1)
    info = await rush.worker_info()
    assert dict(zip(info["worker_id"], info["state"], strict=True)) == {ids[0]: "killed", ids[1]: "running"}


async def test_the_output_of_a_worker_is_complete_after_join_workers(rush: Rush, directory: Path) -> None:
    logs = directory / "new" / "logs"
    ids = await rush.start_workers(print_and_end, 2, on=Processes(), log_dir=str(logs))
    await rush.join_workers(timeout=60)
    assert sorted(path.name for path in logs.iterdir()) == sorted(
        f"{worker_id}.{stream}" for worker_id in ids for stream in ("stdout", "stderr")
    )
    for worker_id in ids:
        assert (logs / f"{worker_id}.stdout").read_text() == f"worker {worker_id} was here"


async def test_the_output_of_a_process_is_shown_under_its_name(
    rush: Rush, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hidden = await rush.start_workers(print_and_end, 1, on=Processes(show_output=False))
    (alone,) = await rush.start_workers(talk, 1, on=Processes(), log_dir=directory, log_levels={"my.logger": "WARNING"})
    await rush.start_workers(print_and_end, 2, on=Processes(1))
    await rush.join_workers(timeout=60)
    out, errors = capsys.readouterr()
    begin = f"[{alone}] "
    assert [line for line in errors.splitlines() if not line.startswith(f"{begin}  ")] == [
        f"{begin}{loops_of_tests.__file__}:{talk.__code__.co_firstlineno + 2}: UserWarning: an old way",
        f"{begin}WARNING my.logger: careful",
        f"{begin}20 %",
    ]
    pieces = [line.removeprefix(begin) for line in out.splitlines() if line.startswith(begin)]
    assert (pieces[0], "".join(pieces[1:])) == ("printed", "x" * 3_000_000)
    assert hidden[0] not in out
    assert len(re.findall(r"\[process \d+\] .*was here", out)) == 1  # the two wrote one line together
    assert (directory / f"{alone}.stdout").read_text() == "printed\n" + "x" * 3_000_000


async def test_output_without_log_dir_is_deleted_with_the_process(
    rush: Rush, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    async with Rush(rush.network_id, rush.config) as other:
        await other.start_workers(hold, 2, on=Processes())
        await other.wait_for_workers(2)
        assert len(found(directory, "rush-out-*/*.stderr")) == 2
    assert found(directory, "*") == []


async def test_the_failure_of_a_worker_shows_the_last_output_of_its_process(
    rush: Rush, caplog: pytest.LogCaptureFixture
) -> None:
    (worker_id,) = await rush.start_workers(die_talking, 1, on=Processes())
    with pytest.raises(WorkerLoopError, match=f"1 of 1 workers died:\n{worker_id}:\nthe process ended with exit code 3"):
        await rush.join_workers()
    (how,) = await rush.join_workers(check=False)
    assert how.failure is not None
    assert (how.state, how.failure.kind) == ("lost", "lost")
    assert how.failure.message.startswith("the process ended with exit code 3. It last wrote: ")
    assert how.failure.message.endswith("the device is gone")
    assert len(how.failure.message) < 3_000
    assert f"worker {worker_id} is lost" in caplog.text


async def test_a_process_that_does_not_start_is_an_error_and_leaves_no_file(
    rush: Rush, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    monkeypatch.setattr(sys, "executable", str(directory / "no-such-python"))
    with pytest.raises(FileNotFoundError, match="no-such-python"):
        await rush.start_workers(hold, 2, on=Processes())
    assert (await rush.worker_info())["state"].to_list() == ["failed", "failed"]
    assert found(directory, "*") == []


async def test_a_start_without_free_descriptors_leaves_no_pipe(
    rush: Rush, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, pipes = os.pipe, list[tuple[int, int]]()

    def one_pipe() -> tuple[int, int]:
        if pipes:
            raise OSError(24, "Too many open files")
        pipes.append(pipe())
        return pipes[0]

    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    monkeypatch.setattr(os, "pipe", one_pipe)
    with pytest.raises(OSError, match="Too many open files"):
        await rush.start_workers(hold, 1, on=Processes())
    monkeypatch.undo()
    for descriptor in pipes[0]:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)
    assert found(directory, "*") == []


@pytest.mark.parametrize(("n", "words"), [(0, "at least one process"), (-1, "0 to"), (1.5, "whole number"), ("2", "whole")])
def test_an_invalid_number_of_processes_is_refused(n: Any, words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        Processes(n)


@pytest.mark.parametrize("restart", [-1, 1.5, "2"])
def test_an_invalid_number_of_restarts_is_refused(restart: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="restart of Processes"):
        Processes(restart=restart)


async def test_workers_are_spread_evenly_over_the_processes(rush: Rush) -> None:
    ids = await rush.start_workers(hold, 5, on=Processes(2))
    await rush.wait_for_workers(worker_ids=ids)
    info = await rush.worker_info()
    assert sorted(info["worker_id"]) == sorted(ids)
    assert sorted(info.group_by("pid").len()["len"]) == [2, 3]
    assert os.getpid() not in info["pid"]


async def test_workers_that_start_while_the_server_restarts_wait_for_it(proxy: Proxy) -> None:
    with ThreadPoolExecutor(1) as threads:
        async with Rush("restarting", RushConfig(proxy.url)) as rush:
            proxy.refuse()  # the manager's connection stays open
            for on in (Processes(), threads):
                await rush.start_workers(do_some, 1, on=on)
                n = proxy.n_refused
                await wait_until(lambda n=n: proxy.n_refused >= n + 2, timeout=20)
            proxy.refuse(False)
            assert [how.state for how in await rush.join_workers()] == ["terminated", "terminated"]
            assert (await rush.counts()).finished == 6
            await rush.reset()


async def test_a_worker_is_started_again_in_a_new_process(rush: Rush, directory: Path) -> None:
    mark = directory / "mark"
    mark.write_text("0")
    (worker_id,) = await rush.start_workers(break_once, 1, on=Processes(restart=2), args={"mark": mark})
    await rush.wait_for_workers(1)
    (end,) = await rush.join_workers(worker_id)
    assert end.state == "terminated"
    assert end.worker_id != worker_id
    assert [exit.worker_id for exit in await rush.join_workers()] == [end.worker_id]
    assert rush.n_finished_tasks == 1
    assert (await rush.worker_info())["state"].to_list() == ["lost", "failed", "terminated"]


async def test_a_process_whose_loop_hangs_is_given_up_where_that_is_limited(rush_server: RushConfig) -> None:
    config = replace(rush_server, heartbeat_period=0.1, heartbeat_expire=0.4, max_loop_stall=0.5)
    async with Rush(config=config) as rush:
        (worker_id,) = await rush.start_workers(block, 1, on=Processes())
        await rush.wait_for_workers(1)
        await wait_until(lambda: is_lost(rush, worker_id), timeout=20)
        await rush.stop_workers(mode="kill")
        await rush.reset()


async def is_lost(rush: Rush, worker_id: str) -> bool:
    info = await rush.worker_info()
    return info.filter(info["worker_id"] == worker_id)["state"].item() == "lost"


async def test_a_start_without_free_descriptors_leaves_no_directory(
    rush: Rush, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for free in range(3):
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + free, hard))
        try:
            with pytest.raises(OSError, match="Too many open files"):
                await rush.start_workers(hold, 1, on=Processes())
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert os.listdir(directory) == []
