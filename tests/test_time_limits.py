"""The time limits: the table of the page on the architecture has all of them, and they fit into one another as it says."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "rush_async"
SETTINGS = ("heartbeat_period", "heartbeat_expire", "connect_timeout", "response_timeout", "retry_deadline")

_CONSTANT = re.compile(r"^(_?[A-Z][A-Z_]*) = [\d.]+  # .*\bseconds\b", flags=re.MULTILINE)
_ROW = re.compile(r"^\| `([\w/]+\.py:\w+)` \| ([\d.]+) \|", flags=re.MULTILINE)


@cache
def numbers_of(file: str) -> dict[str, float]:
    """Names and values of the numbers that a module assigns, in the module or in a class."""
    numbers: dict[str, float] = {}
    for node in ast.walk(ast.parse((PACKAGE / file).read_text("utf-8"))):
        match node:
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=int() | float() as value))
                | ast.AnnAssign(target=ast.Name(id=name), value=ast.Constant(value=int() | float() as value))
            ):
                numbers[name] = value
            case _:
                pass
    return numbers


def seconds(limit: str) -> float:
    """The value of a limit that is written as `path.py:NAME`."""
    file, _, name = limit.partition(":")
    return numbers_of(file)[name]


def limits_in_code() -> set[str]:
    constants = {
        f"{file.relative_to(PACKAGE).as_posix()}:{name}"
        for file in PACKAGE.rglob("*.py")
        for name in _CONSTANT.findall(file.read_text("utf-8"))
    }
    return constants | {f"config.py:{name}" for name in SETTINGS}


def limits_on_page() -> dict[str, float]:
    return {limit: float(value) for limit, value in _ROW.findall((ROOT / "docs/architecture.md").read_text("utf-8"))}


def test_a_scrape_of_a_program_waits_for_the_server_as_long_as_its_event_loop_does() -> None:
    assert seconds("extras/metrics.py:_ANSWER") < seconds("cli/status_server.py:_ANSWER")


def test_the_page_has_every_limit_with_its_value() -> None:
    assert limits_on_page() == {limit: seconds(limit) for limit in limits_in_code()}


PERIOD, EXPIRE, CONNECT, RESPONSE, DEADLINE = (f"config.py:{name}" for name in SETTINGS)
LOOP_END = "worker/run.py:_PATIENCE"
DEREGISTERING = "worker/registration.py:_PATIENCE"
FLUSH = "heartbeat/log_writer.py:_FLUSH_TIMEOUT"
CHILD_ANSWER = "launch/processes.py:_ANSWER"
CHILD_WORKER_END = "launch/processes.py:_WORKER_END"


@pytest.mark.parametrize(
    ("parts", "whole"),
    [
        # One silent connection loses no worker.
        pytest.param([PERIOD, RESPONSE, "heartbeat/thread.py:RETRY_DELAY"], [EXPIRE], id="a beat that is tried again"),
        pytest.param([PERIOD, PERIOD], [EXPIRE], id="two periods"),
        # A cancelled worker reports its end before it is given up.
        pytest.param([LOOP_END, DEREGISTERING], [CHILD_WORKER_END], id="a cancelled worker in a shared process"),
        pytest.param(
            [
                *(LOOP_END, DEREGISTERING, "network/network.py:_PATIENCE"),
                *("heartbeat/thread.py:_JOIN_BLOCKING", "heartbeat/thread.py:_JOIN_TIMEOUT"),
            ],
            ["cli/drain.py:_WORKER_END"],
            id="the cancelled workers of a command",
        ),
        # A killed worker ends within its manager's patience.
        pytest.param([LOOP_END, FLUSH], ["manager/manager.py:_PATIENCE"], id="a killed worker"),
        pytest.param([CHILD_ANSWER], ["manager/manager.py:_PATIENCE"], id="a blocked process"),
        pytest.param([LOOP_END], ["launch/pools.py:_WORKER_END"], id="a killed worker in a pool"),
        # Deregistering.
        pytest.param([FLUSH], [DEREGISTERING], id="the last log records"),
        pytest.param(["worker/task_block.py:_PATIENCE"], [DEREGISTERING], id="the task of a cancelled block"),
        # A manager closes in less time than one call may wait.
        pytest.param(
            [
                *("manager/manager.py:_GRACE", "manager/manager.py:_PATIENCE", CHILD_ANSWER, CHILD_WORKER_END),
                *("launch/processes.py:_PROCESS_END", "manager/worker_group.py:_REPORT"),
            ],
            [DEADLINE],
            id="the close of a manager",
        ),
        # A child whose manager is gone.
        pytest.param([LOOP_END], ["launch/child.py:_CLEANUP"], id="loops whose manager is gone"),
        # Missing events are noticed before the next beat, and while events still come.
        pytest.param(["network/event_feed.py:_LATEST"], [PERIOD], id="events that do not arrive"),
        pytest.param(["network/event_feed.py:_LATEST"], ["network/event_feed.py:_LINGER"], id="events while they come"),
        # The embedded server, the settings, and the pauses between tries.
        pytest.param(["embedded/start.py:END_TIMEOUT"], ["embedded/watchdog.py:KILL_AFTER"], id="the embedded server"),
        pytest.param([CONNECT], [DEADLINE], id="opening a connection"),
        pytest.param([RESPONSE], [DEADLINE], id="the silence of a server"),
        pytest.param(["wire/opening.py:_PAUSE"], [CONNECT], id="a server that loads its data"),
        pytest.param(["wire/link.py:_PAUSE"], ["wire/link.py:_LONGEST_PAUSE"], id="pauses that grow"),
        pytest.param(["store/calls.py:_PAUSE"], [DEADLINE], id="a detached request that is refused"),
    ],
)
def test_limits_fit_into_the_limit_of_what_waits_for_them(parts: list[str], whole: list[str]) -> None:
    assert sum(map(seconds, parts)) <= sum(map(seconds, whole))


def test_manager_and_child_wait_equally_long_for_an_event_loop_that_may_be_blocked() -> None:
    assert seconds(CHILD_ANSWER) == seconds("heartbeat/heartbeat.py:_SHUT_OUT_GRACE")
