"""What lives in an event loop ends with it, and what lives in a process is not used in its forked children."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import weakref
from typing import Any

import pytest

from rush_async import RushConfig
from rush_async.process import LoopValue, forget_in_child, process_generation

OPEN_WITHOUT_CLOSING = """
import asyncio, gc, logging, sys, time
import psutil
from rush_async import {kind}, RushConfig

logging.disable()
config = RushConfig(url=sys.argv[1], heartbeat_period=0.1, heartbeat_expire=5.0)

async def main():
    client = await {kind}("forgotten", config)
    await client.counts()
    client.n_tasks  # follows the network
    await asyncio.sleep(0)

def n_fds():
    gc.collect()
    return psutil.Process().num_fds()

asyncio.run(main())
deadline, before = time.monotonic() + 10, None
while before is None or n_fds() > before:  # until a first heartbeat thread has ended, as after each
    before, _ = n_fds(), time.sleep(0.3)
for _ in range(4):
    asyncio.run(main())
while n_fds() > before and time.monotonic() < deadline:
    time.sleep(0.05)
print(n_fds() - before)
"""


class Numbers:
    """A value that refers to its event loop."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()


class Owner:
    def __init__(self, *, fails: bool = False) -> None:
        self.n_forgotten = 0
        self.fails = fails

    def forget(self) -> None:
        self.n_forgotten += 1
        if self.fails:
            raise OSError("not ours")


def in_child(succeeds: bool) -> None:
    os._exit(0 if succeeds else 1)


def exit_code(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_each_event_loop_has_its_own_value_for_as_long_as_it_lives() -> None:
    value, other = LoopValue(Numbers), LoopValue(Numbers)

    async def use() -> weakref.ref[asyncio.AbstractEventLoop]:
        assert value.get() is value.get()
        assert value.get() is not other.get()
        assert value.get().loop is asyncio.get_running_loop()
        return weakref.ref(asyncio.get_running_loop())

    first, second = asyncio.run(use()), asyncio.run(use())
    gc.collect()
    assert first() is None
    assert second() is None


def test_a_value_is_asked_for_in_an_event_loop() -> None:
    with pytest.raises(RuntimeError):
        LoopValue(Numbers).get()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_is_another_generation_and_its_owners_forget() -> None:
    first, failing, last, gone = Owner(), Owner(fails=True), Owner(), Owner()
    for owner in (first, failing, last, gone):
        forget_in_child(owner)
    reference = weakref.ref(gone)
    del gone, owner
    gc.collect()
    assert reference() is None  # the registry keeps nothing alive
    before = process_generation()
    if (pid := os.fork()) == 0:
        have_forgotten = [owner.n_forgotten for owner in (first, failing, last)] == [1, 1, 1]
        in_child(have_forgotten and process_generation() != before)
    assert exit_code(pid) == 0
    assert process_generation() == before
    assert first.n_forgotten == 0


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_grandchild_is_another_generation_than_its_parent() -> None:
    if (pid := os.fork()) == 0:
        own = process_generation()
        if (grandchild := os.fork()) == 0:
            in_child(process_generation() != own)
        in_child(exit_code(grandchild) == 0)
    assert exit_code(pid) == 0


@pytest.mark.parametrize("kind", ["Rush", "RushWorker"])
def test_an_event_loop_that_ends_with_an_open_client_leaves_no_descriptor(rush_server: RushConfig, kind: str, raw: Any) -> None:
    assert rush_server.url is not None
    code = OPEN_WITHOUT_CLOSING.format(kind=kind)
    command = [sys.executable, "-W", "ignore", "-c", code, rush_server.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= 0, done.stderr
    raw.flushall()
