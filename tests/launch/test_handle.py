"""Launches and handles: what launchers get and return."""

from __future__ import annotations

from pathlib import Path

import pytest

from rush_async import Coroutines, EncodeError, Launcher, Pool, Processes, Rush, RushConfig, WorkerExit
from rush_async.launch.handle import Launch, WorkerHandle
from rush_async.worker.loop import WorkerLoop
from tests.launch.loops_of_tests import note_arguments, serve


def launch_of(rush: Rush, loop: WorkerLoop, config: RushConfig) -> Launch:
    return Launch(rush._net, config, loop, ["a", "b"], {"my.logger": "DEBUG"}, None)  # pyright: ignore[reportPrivateUsage]


async def test_a_launch_packs_its_job_for_other_processes(rush: Rush) -> None:
    job = await launch_of(rush, WorkerLoop(serve, {}), rush.config).pack()
    assert (job.network_id, job.config, job.worker_ids) == (rush.network_id, rush.config, ["a", "b"])
    assert (job.loop.load(), job.log_levels) == (WorkerLoop(serve, {}), {"my.logger": "DEBUG"})


async def test_a_launch_that_is_too_large_is_refused_or_written_to_a_file(rush: Rush, directory: Path) -> None:
    loop = WorkerLoop(note_arguments, {"data": bytes(1_000)})
    with pytest.raises(EncodeError, match="more than max_start_args_size of 500 bytes"):
        await launch_of(rush, loop, RushConfig(max_start_args_size=500)).pack()
    job = await launch_of(rush, loop, RushConfig(max_start_args_size=500, large_objects_path=directory)).pack()
    assert job.loop.load() == loop
    await job.loop.payload.discard()


async def test_a_handle_keeps_the_first_end_of_its_worker() -> None:
    handle = WorkerHandle("a")
    assert handle.is_alive
    handle.end(WorkerExit("a", "failed"))
    handle.end(WorkerExit("a", "terminated"))
    assert not handle.is_alive
    assert handle.ended.result() == WorkerExit("a", "failed")


async def test_a_handle_without_a_launcher_cannot_cancel_or_kill() -> None:
    handle = WorkerHandle("a")
    handle.stop()
    await handle.clear()
    with pytest.raises(NotImplementedError):
        handle.cancel()
    with pytest.raises(NotImplementedError):
        await handle.kill()


def test_only_workers_of_a_pool_outlive_their_manager() -> None:
    launchers: list[type[Launcher]] = [Coroutines, Processes, Pool]
    assert [launcher.is_local for launcher in launchers] == [True, True, False]
