"""`rush-async worker`: its options, and the program run as a process as a scheduler would."""

from __future__ import annotations

import json
import os
import shlex
import sys
from argparse import Namespace
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import pytest
import pytest_asyncio

from rush_async import Rush, RushConfig
from rush_async.cli.options import Parser
from rush_async.cli.program import COMMANDS, main, parse
from tests.cli.programs import LOOPS, Run
from tests.launch.loops_of_tests import note_arguments, raise_holding, serve, show_arguments

PASSWORD = 'it\'s $HOME `id` \\ "a" %41 & ; ü €@:/?#'


def options_of(*words: str) -> Namespace:
    (command,) = [command for command in COMMANDS if command.name == "worker"]
    return parse(command, Parser(), list(words))


def test_options_have_values_of_their_types() -> None:
    words = "net a:b -n 3 --drain 1.5 --max-time 3600 --max-tasks 10 --idle-timeout 2.5 "
    words += "--log-level my.logger=debug --log-level other=INFO --no-tls-check-hostname -vv"
    options = options_of(*words.split(), "--args", '{"x": [1, null]}')
    assert (options.network, options.loop, options.start, options.workers, options.drain) == ("net", "a:b", None, 3, 1.5)
    assert options.args == {"x": [1, None]}
    assert (options.max_time, options.max_tasks, options.idle_timeout) == (3600.0, 10, 2.5)
    assert options.log_level == [("my.logger", "DEBUG"), ("other", "INFO")]
    assert (options.tls_check_hostname, options.verbose) == (False, 2)


def test_options_that_are_not_given_are_none() -> None:
    options = options_of("--start", "1", "net")
    assert (options.loop, options.start) == (None, "1")
    assert (options.workers, options.args, options.log_level, options.heartbeat_period) == (None, None, None, None)
    assert (options.max_time, options.max_tasks, options.idle_timeout) == (None, None, None)
    assert (options.drain, options.tls_check_hostname, options.allow_pickle) == (30.0, None, False)
    assert (options.metrics_port, options.metrics_address, options.log_format) == (None, "127.0.0.1", "text")


def test_options_may_stand_between_network_and_loop() -> None:
    assert options_of("net", "-n", "2", "a:b").loop == "a:b"


def test_a_network_that_begins_with_a_dash_follows_two_dashes() -> None:
    assert options_of("--start", "1", "--", "-net").network == "-net"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("worker", "required: NETWORK"),
        ("worker net", "name the loop by MODULE:FUNCTION, or what was prepared by --start ID"),
        ("worker net a:b --start 1", "one of the two"),
        ("worker net nonsense", "not of the form module:function"),
        ("worker net ./good.py:loop", "write good:loop"),
        ("worker net --start 1 extra:loop", "one of the two"),
        ("worker net a:b --url redis://h --data-dir d", "argument --data-dir: not allowed with argument --url"),
        ("worker net a:b c:d", "unrecognized arguments: c:d"),
        ("worker net a:b --heartbeat-expire soon", "not a number of seconds"),
        ("worker {} a:b", "network_id '{}' contains '{'"),
        ("worker net a:b -n 0", "not a number, 1 or more"),
        ("worker net a:b --drain nan", "not a number of seconds"),
        ("worker net a:b --max-time 0", "'0' is not a number of seconds above 0"),
        ("worker net a:b --idle-timeout inf", "'inf' is not a number of seconds"),
        ("worker net a:b --max-tasks many", "'many' is not a number, 1 or more"),
        ("worker net a:b --metrics-port 65536", "'65536' is not the number of a port"),
        ("worker net a:b --args [1]", "a JSON object is needed"),
        ("worker net a:b --args {", "no JSON"),
        ("worker net a:b --log-level x=LOUD", "my.logger=DEBUG"),
        ("worker net -v a:b --ur redis://:hunter2@h", "redis://:***@h"),
    ],
)
def test_wrong_usage_exits_with_2_and_a_reason(words: str, complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words.split())
    assert ended.value.code == 2
    errors = capsys.readouterr().err
    assert complaint in " ".join(errors.split())
    assert "hunter2" not in errors


@pytest_asyncio.fixture
async def with_password(rush: Rush, raw: Any) -> AsyncIterator[RushConfig]:
    """The server of `rush` for a user with a difficult password."""
    assert rush.config.url is not None
    raw.execute_command("ACL", "SETUSER", "ann", "on", f">{PASSWORD}", "~*", "&*", "+@all")
    url = f"unix://ann:{quote(PASSWORD, safe='')}@{urlsplit(rush.config.url).path}"
    yield replace(rush.config, url=url)
    raw.execute_command("ACL", "DELUSER", "ann")


async def test_row_7_commands_run_in_a_shell_each_with_its_loop_and_arguments(
    rush: Rush, run: Run, with_password: RushConfig, directory: Path
) -> None:
    program = directory / "rush-async"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m rush_async "$@"\n')
    program.chmod(0o755)
    path = f"{directory}:{os.environ['PATH']}"
    args = {"when": datetime(2026, 1, 2, tzinfo=UTC), "data": b"\0\xff", "nested": {"a": [1, 2.5, None]}}
    async with Rush(rush.network_id, with_password) as manager:
        first = manager.worker_command(show_arguments, args=args, n_workers=2)
        second = manager.worker_command(note_arguments, second=2, with_password=True)
    assert "%24HOME" in second
    assert "%24HOME" not in first
    programs = [
        await run("sh", "-c", f"exec {first} --verbose", PATH=path, RUSH_PASSWORD=PASSWORD),
        await run("sh", "-c", second, PATH=path),
    ]
    ends = [await program.ended() for program in programs]
    assert [code for code, _ in ends] == [0, 0], ends
    assert not any("HOME" in errors for _, errors in ends)
    tasks = await rush.fetch_finished_tasks()
    assert tasks["second"].drop_nulls().to_list() == ["2"]
    assert (await rush.read_log()).select("level", "msg").rows() == [("WARNING", "noted")]  # without `log_levels`
    shown = tasks.drop_nulls("when")
    assert shown.height == 2
    assert {name: shown[name][0] for name in args} == {name: repr(value) for name, value in args.items()}
    # Without its password the first command fails at once, and says why.
    code, errors = await (await run("sh", "-c", first, PATH=path)).ended()
    assert code == 69
    assert "RUSH_PASSWORD is not set in the environment" in errors
    code, errors = await (await run("sh", "-c", first, PATH=path, RUSH_PASSWORD="another")).ended()
    assert code == 69
    assert "Check RUSH_PASSWORD" in errors


async def test_each_kind_of_failure_has_its_exit_code(rush: Rush, worker: Run) -> None:
    words = shlex.split(rush.worker_command(raise_holding, allow_pickle=True))
    start_id = words[words.index("--start") + 1]
    failed = await worker(f"{LOOPS}:raise_holding", "--args", '{"message": "out of money"}', "-n", "2")
    refused = await worker("--start", start_id)
    unknown = await worker("--start", "0123")
    code, errors = await failed.ended()
    assert code == 1
    assert errors.count("RuntimeError: out of money") == 1
    assert all(worker_id in errors for worker_id in (await rush.worker_info())["worker_id"])
    code, errors = await refused.ended()
    assert code == 78
    assert "--allow-pickle" in errors
    code, errors = await unknown.ended()
    assert code == 78
    assert "has no start '0123'" in errors


async def test_a_worker_that_is_killed_or_refused_its_loop_ends_the_program(rush: Rush, worker: Run) -> None:
    killed = await worker(f"{LOOPS}:hold")
    refused = await worker(f"{LOOPS}:no_such_loop")
    unreachable = await worker(f"{LOOPS}:hold", "--url", "redis://:hunter2@localhost:1")
    await rush.wait_until(lambda counts: counts.running == 1, timeout=30)
    await rush.stop_workers(mode="kill")
    code, errors = await killed.ended()
    assert code == 3
    assert "was killed" in errors
    code, errors = await refused.ended()
    assert code == 78
    assert "has no 'no_such_loop'" in errors
    code, errors = await unreachable.ended()
    assert code == 69
    assert "hunter2" not in errors
    assert "name another in RUSH_URL or by --url" in errors
    assert "leave the url out" not in errors  # the command has no embedded server
    assert "every user of this machine can see a password in --url" in errors


async def test_options_override_what_was_prepared(rush: Rush, worker: Run) -> None:
    words = shlex.split(rush.worker_command(show_arguments, n_workers=3, args={"a": 1, "b": 2}))
    start_id = words[words.index("--start") + 1]
    program = await worker("--start", start_id, "-n", "1", "--args", '{"b": 3}')
    assert (await program.ended())[0] == 0
    tasks = await rush.fetch_finished_tasks()
    assert (tasks["a"].to_list(), tasks["b"].to_list()) == (["1"], ["3"])


async def test_arguments_that_the_loop_does_not_take_are_refused(rush: Rush, worker: Run) -> None:
    code, errors = await (await worker(f"{LOOPS}:raise_holding", "--args", '{"massage": "x"}')).ended()
    assert code == 78
    assert "massage" in errors
    assert (await rush.worker_info()).is_empty()


async def test_each_limit_ends_the_program_as_a_stop_does(rush: Rush, worker: Run) -> None:
    await rush.push_tasks([{"x": x} for x in range(3)])
    for limit, words in [
        (("--max-tasks", "2"), "has ended 2 tasks (max_tasks)"),
        (("--idle-timeout", "0.1"), "has waited 0.1 s without a task (idle_timeout)"),
        (("--max-time", "0.1"), "has run for 0.1 s (max_time)"),
    ]:
        code, errors = await (await worker(f"{LOOPS}:serve", *limit, "-v")).ended()
        assert code == 0
        assert errors.count(f"{words}: it takes no new task") == 1
        assert (await rush.counts()).queued == (1 if "--max-tasks" in limit else 0)
    assert (await rush.counts()).finished == 3
    assert set((await rush.worker_info())["state"]) == {"terminated"}


async def test_a_stop_of_the_network_ends_the_program_and_a_line_says_why(rush: Rush, worker: Run) -> None:
    await rush.stop_when(finished=3)
    program = await worker(f"{LOOPS}:serve", "-n", "2", "-v")
    quiet = await worker(f"{LOOPS}:serve", "-q")
    await rush.wait_for_workers(3, timeout=30)
    await rush.push_tasks([{"x": x} for x in range(5)])
    code, errors = await program.ended()
    assert code == 0
    stopped = f"network {rush.network_id!r} has stopped (finished: 3 tasks have finished): "
    assert errors.count(f"{stopped}workers finish their tasks") == 1
    net = rush.network_id
    assert errors.count(f"2 workers join network '{net}' on {rush.config.url}\n") == 1
    assert f"2 workers of network '{net}' ended after " in errors.splitlines()[-1]
    how = "2 terminated, as the network has stopped (finished: 3 tasks have finished)"
    assert errors.endswith(f": {how}; 3 tasks finished meanwhile, 3 in all\n")
    assert await quiet.ended() == (0, "")
    # One that joins a network that has stopped warns, and ends likewise.
    code, errors = await (await worker(f"{LOOPS}:serve", "-n", "2", "-q")).ended()
    assert code == 0
    (line,) = errors.splitlines()
    assert "WARNING" in line
    assert f"{stopped}the workers started just now take no task. `rush-async resume {rush.network_id}` lifts the stop" in line
    assert set((await rush.worker_info())["state"]) == {"terminated"}
    assert (await rush.counts()).queued == 2


async def test_metrics_and_probes_are_served_and_the_log_is_json(rush: Rush, worker: Run) -> None:
    words = ("--metrics-port", "0", "--log-format", "json", "-v")
    program = await worker(f"{LOOPS}:serve", *words)
    port = json.loads(await program.says("serves /metrics"))["message"].rpartition(":")[2]
    await rush.wait_for_workers(1, timeout=30)
    await rush.push_tasks([{"x": 1}, {"x": 2}])
    await rush.wait_until(lambda counts: counts.finished == 2)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        assert f'rush_tasks_finished_total{{network="{rush.network_id}"}} 2.0' in (await client.get("/metrics")).text
        assert (await client.get("/healthz")).status_code == (await client.get("/readyz")).status_code == 200
        code, errors = await (await worker(f"{LOOPS}:serve", *words[2:], "--metrics-port", port)).ended()
    assert code == 78
    assert f"--metrics-port {port} cannot be served" in json.loads(errors)["message"]
    await rush.push_tasks([{"z": 1}])  # has no "x"
    code, errors = await program.ended()
    assert code == 1
    entries = [json.loads(line) for line in errors.splitlines()]
    assert {entry["network"] for entry in entries} == {rush.network_id}
    (failed,) = [entry for entry in entries if entry["level"] == "ERROR"]
    assert "KeyError" in failed["message"]


async def test_a_server_must_be_named(rush: Rush, run: Run) -> None:
    program = await run(sys.executable, "-m", "rush_async", "worker", f"{LOOPS}:serve", RUSH_NETWORK=rush.network_id)
    code, errors = await program.ended()
    assert code == 78
    assert "no server is named: set RUSH_URL in the environment or add --url; for an embedded server on this machine" in errors


async def test_a_data_dir_names_the_embedded_server_of_other_programs(run: Run, directory: Path) -> None:
    data_dir = str(directory / "results")
    async with Rush("net", data_dir=data_dir) as rush:
        await rush.push_tasks([{"x": 1}, {"x": 2}])
        words = shlex.split(rush.worker_command(serve))
    assert words[5:7] == ["--data-dir", data_dir]
    program = [sys.executable, "-m", "rush_async"]
    programs = [  # the server of the manager has ended
        await run(*program, *words[1:], "--max-tasks", "1", "-q"),
        await run(*program, "worker", "net", f"{LOOPS}:serve", "--max-tasks", "1", "-q", RUSH_DATA_DIR=data_dir),
    ]
    assert [await each.ended() for each in programs] == [(0, ""), (0, "")]
    async with Rush("net", data_dir=data_dir) as rush:
        assert (await rush.fetch_finished_tasks())["y"].sort().to_list() == [2, 4]
