"""What signals do to the program `rush-async`."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from rush_async import Failure, Rush
from rush_async.testing import wait_until
from tests.cli.programs import LOOPS, Run


async def failure_of(rush: Rush) -> Failure:
    (condition,) = (await rush.fetch_failed_tasks())["condition"]
    return Failure(**condition)


async def state(rush: Rush) -> str:
    (state,) = (await rush.worker_info())["state"]
    return state


async def test_a_signal_lets_workers_finish_what_they_run_and_take_nothing_new(rush: Rush, worker: Run) -> None:
    await rush.push_tasks([{"x": 1}, {"x": 2}])
    program = await worker(f"{LOOPS}:serve_until_terminated")
    await rush.wait_until(lambda counts: counts.running == 1, timeout=30)
    program.signal(signal.SIGTERM)  # while it computes
    assert (await program.ended())[0] == 0
    assert (await rush.counts()).finished == 1
    assert (await rush.counts()).queued == 1
    assert await state(rush) == "terminated"


async def test_a_second_signal_or_the_deadline_cancels_what_they_run(rush: Rush, worker: Run) -> None:
    late = await worker(f"{LOOPS}:hold", "--drain", "0.1")
    twice = await worker(f"{LOOPS}:hold", "-v")
    await rush.wait_until(lambda counts: counts.running == 2, timeout=30)
    late.signal(signal.SIGTERM)
    code, errors = await late.ended()
    assert code == 143
    assert "1 workers have not ended yet and are cancelled" in errors
    assert (await failure_of(rush)).kind == "cancelled"
    assert (await rush.counts()).running == 1
    twice.signal(signal.SIGINT)
    await twice.says("asked to end by SIGINT")
    twice.signal(signal.SIGINT)
    assert (await twice.ended())[0] == 130
    assert (await rush.counts()).failed == 2
    assert set((await rush.worker_info())["state"]) == {"terminated"}


IMPATIENT = """
import sys
from rush_async.cli import drain, program
drain._ANSWER, drain._THREAD_END = 1, 0.1
sys.exit(program.main(sys.argv[1:]))
"""


async def test_a_loop_that_never_awaits_ends_with_its_process(rush: Rush, run: Run) -> None:
    assert rush.config.url is not None
    words = ("-c", IMPATIENT, "worker", rush.network_id)
    blocked = await run(sys.executable, *words, f"{LOOPS}:block_loudly", "--drain", "0", RUSH_URL=rush.config.url)
    finished = await run(sys.executable, *words, f"{LOOPS}:leave_a_thread_behind", RUSH_URL=rush.config.url)
    await blocked.says("blocked")
    blocked.signal(signal.SIGTERM)
    code, errors = await blocked.ended()
    assert code == 143
    assert "their event loop is blocked: the process ends now" in errors
    await rush.stop_workers(mode="kill")  # so that the test need not wait for its lease to expire
    # All workers of the second program have ended by themselves; only a thread still runs.
    await wait_until(lambda: ended(rush), timeout=30)
    assert finished.process.returncode is None
    finished.signal(signal.SIGTERM)
    assert (await finished.ended())[0] == 0


async def ended(rush: Rush) -> bool:
    return set((await rush.worker_info())["state"]) == {"killed", "terminated"}


async def test_a_closed_stdout_does_not_change_the_exit_code(rush: Rush, run: Run) -> None:
    assert rush.config.url is not None
    program = f"{sys.executable} -m rush_async worker {rush.network_id} {LOOPS}"
    is_closed = f"{program}:do_some -q >&-; echo code $? >&2"
    has_no_reader = f"({program}:print_and_end -q; echo code $? >&2) | exec true"
    for line in (is_closed, has_no_reader):
        _, errors = await (await run("sh", "-c", line, RUSH_URL=rush.config.url, PYTHONUNBUFFERED="")).ended()
        assert errors == "code 0\n"


async def test_a_signal_that_comes_before_the_loop_runs_is_not_lost(rush: Rush, worker: Run, directory: Path) -> None:
    (directory / "early.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\nasync def loop(rush): ...")
    early = await worker("early:loop", "-v", cwd=directory)
    forks = await worker(f"{LOOPS}:end_a_fork")
    code, errors = await early.ended()
    assert code == 0
    assert "asked to end before a worker was started" in errors
    # A signal ends a process that a loop forks.
    assert (await forks.ended())[0] == 0
    assert (await rush.fetch_finished_tasks())["signal"].to_list() == [signal.SIGTERM]
    assert len(await rush.worker_info()) == 1
