"""`rush-async log`."""

from __future__ import annotations

import logging
import signal
import sys

from rush_async import Rush, RushWorker
from tests.cli.programs import Command, Run

logger = logging.getLogger("tests.cli.log")


async def speak(rush: RushWorker, words: list[str]) -> None:
    for word in words:
        logger.warning("%s", word)
    logger.error("the last\nof them \x1b[2J")


async def test_records_are_printed_in_their_order(rush: Rush, command: Command) -> None:
    await rush.push_tasks([{"x": 1}])
    nothing = await command("log")
    assert (nothing.code, nothing.out) == (0, b"")
    assert nothing.err.startswith(f"the log of network '{rush.network_id}' is empty: ".encode())
    (worker_id,) = await rush.start_workers(speak, args={"words": ["one", "two"]}, log_levels={"tests.cli.log": "INFO"})
    await rush.join_workers()
    lines = (await command("log")).lines
    assert [line[24:] for line in lines[:2]] == [f"WARNING  {worker_id} tests.cli.log: {word}" for word in ("one", "two")]
    assert lines[2].endswith("the last")
    assert lines[3] == r"    of them \x1b[2J"
    assert len((await command("log", "-n", "2")).lines) == 3
    assert len((await command("log", "--level", "error")).lines) == 2
    nothing = await command("log", "--worker", "another")
    assert (nothing.out, nothing.err) == (b"", f"no record of network '{rush.network_id}' has this level and worker\n".encode())
    assert (await command("log", "--level", "loud")).code == 2


async def test_further_records_are_printed_as_they_come_until_ctrl_c(rush: Rush, run: Run) -> None:
    assert rush.config.url is not None
    await rush.start_workers(speak, args={"words": ["one"]}, log_levels={"tests.cli.log": "INFO"})
    await rush.join_workers()
    program = await run(sys.executable, "-m", "rush_async", "log", rush.network_id, "-f", RUSH_URL=rush.config.url)
    assert program.process.stdout is not None
    for words in (["one"], ["two"]):
        if words == ["two"]:
            await rush.start_workers(speak, args={"words": words}, log_levels={"tests.cli.log": "INFO"})
        seen = [(await program.process.stdout.readline()).decode().split(": ")[-1] for _ in range(3)]
        assert seen[:2] == [f"{words[0]}\n", "the last\n"]
    program.signal(signal.SIGINT)
    assert await program.ended() == (130, "")
