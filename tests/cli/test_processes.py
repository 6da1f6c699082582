"""`rush-async worker --processes`: signals are passed on, and the worst exit code counts."""

from __future__ import annotations

import signal

import psutil

from rush_async import Rush
from rush_async.cli.processes import worst
from rush_async.testing import wait_until
from tests.cli.programs import LOOPS, Run


def test_the_worst_exit_code() -> None:
    assert worst([0, 0]) == 0
    assert worst([0, 143, 3]) == 3
    assert worst([3, 1, 0]) == 1
    assert worst([1, 69, 78]) == 78
    assert worst([137, 78]) == 137


async def test_each_process_has_workers_and_is_drained(rush: Rush, worker: Run) -> None:
    program = await worker(f"{LOOPS}:serve", "-n", "2", "--processes", "2")
    await rush.wait_for_workers(4, timeout=30)
    workers = await rush.worker_info()
    assert len(set(workers["pid"])) == 2
    assert program.process.pid not in workers["pid"]
    program.signal(signal.SIGTERM)
    code, errors = await program.ended()
    assert code == 0
    net = rush.network_id
    assert errors.count(f"2 workers join network '{net}' on {rush.config.url}") == 2
    assert errors.count(f"2 workers of network '{net}' ended after ") == 2
    assert errors.count(": 2 terminated, asked by SIGTERM; 0 tasks finished meanwhile, 0 in all\n") == 2
    assert len(errors.splitlines()) == 4
    assert set((await rush.worker_info())["state"]) == {"terminated"}


async def test_a_process_that_fails_or_is_killed_does_not_end_the_others(rush: Rush, worker: Run) -> None:
    await rush.push_tasks([{"x": 1}])
    program = await worker(f"{LOOPS}:serve", "--processes", "2")
    await rush.wait_for_workers(2, timeout=30)
    first, second = (psutil.Process(pid) for pid in (await rush.worker_info())["pid"])
    first.kill()
    await program.says(f"process {first.pid} has ended with code 137, 1 continue")
    assert second.is_running()
    second.terminate()  # it alone
    assert (await program.ended())[0] == 137
    failing = await worker(f"{LOOPS}:raise_holding", "--processes", "2", "-q")
    code, errors = await failing.ended()
    assert code == 1
    assert "join network" not in errors
    await rush.stop_workers(mode="kill")  # so that the test need not wait for the lease of the first to expire


async def test_the_processes_end_with_the_one_that_forked_them(rush: Rush, worker: Run) -> None:
    program = await worker(f"{LOOPS}:serve", "--processes", "2")
    await rush.wait_for_workers(2, timeout=30)
    program.process.kill()
    await wait_until(lambda: ended(rush), timeout=30)


async def ended(rush: Rush) -> bool:
    return (await rush.worker_info())["state"].to_list() == ["terminated"] * 2
