"""What workers log: who sees what, and how it is read (row 18 of the behaviour table)."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest

from rush_async import Coroutines, DecodeError, Launcher, Processes, Rush, RushWorker
from rush_async.store.keys import NetworkKeys
from rush_async.store.worker_log import LogEntry
from rush_async.testing import wait_until
from rush_async.worker.log_capture import capture, speak_as
from rush_async.worker.worker import membership_of
from tests.launch.loops_of_tests import log_some

COLUMNS = ["worker_id", "level", "timestamp", "logger", "caller", "msg"]


class Memory(logging.Handler):
    """Another handler, such as a user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def others() -> Iterator[Memory]:
    """A handler at the root that was there before."""
    memory = Memory()
    logging.getLogger().addHandler(memory)
    yield memory
    logging.getLogger().removeHandler(memory)


@pytest.fixture
def said() -> list[LogEntry]:
    return []


def heard_by(said: list[LogEntry]) -> Callable[[bytes], None]:
    def hear(packed: bytes) -> None:
        said.append(LogEntry.of(packed))

    return hear


async def in_task(worker_id: str, act: Any) -> None:
    """Runs `act` as a worker's loop is run: in a task of its own, which speaks as the worker."""

    async def run() -> None:
        speak_as(worker_id)
        act()

    await asyncio.create_task(run())


# through the network


@pytest.mark.parametrize("on", [Coroutines(), Processes()], ids=["coroutines", "processes"])
async def test_row_18_what_workers_log_is_read_as_a_frame(rush: Rush, on: Launcher, others: Memory) -> None:
    before = datetime.now(UTC)
    ids = await rush.start_workers(log_some, 2, on=on, log_levels={"my.logger": "DEBUG"})
    await rush.join_workers()
    log = await rush.read_log()
    assert log.columns == COLUMNS
    assert log.schema["timestamp"] == pl.Datetime("us", "UTC")
    assert sorted(log["worker_id"].unique()) == sorted(ids)
    mine = log.filter(log["worker_id"] == ids[0])
    assert mine["level"].to_list() == ["DEBUG", "WARNING", "ERROR"]
    assert mine["logger"].to_list() == ["my.logger", "my.logger.child", "my.logger"]
    assert mine["caller"][0].startswith("loops_of_tests.log_some:")
    assert mine["msg"][0] == "1 of 2 began"
    assert mine["msg"][1] == "beware"
    assert mine["msg"][2].startswith("it broke\nTraceback")
    assert mine["msg"][2].endswith("ZeroDivisionError: division by zero")
    assert before - timedelta(seconds=1) < mine["timestamp"][0] < datetime.now(UTC) + timedelta(seconds=1)
    assert (await rush.read_log(ids[1]))["worker_id"].to_list() == [ids[1]] * 3
    assert (await rush.read_log([])).is_empty()
    # What was heard here, of coroutines, is what would have been heard without.
    assert [record.levelname for record in others.records if record.name.startswith("my.")] == (
        ["WARNING", "ERROR"] * 2 if isinstance(on, Coroutines) else []
    )


async def test_a_log_of_nobody_has_its_columns(rush: Rush, raw: Any) -> None:
    assert (await rush.read_log()).schema == (await rush.read_log(time_difference=True)).drop("time_difference").schema
    assert (await rush.read_log()).columns == COLUMNS
    await rush.print_log()
    assert raw.keys("*") == []


async def test_time_differences_are_those_of_each_worker(rush: Rush) -> None:
    ids = await rush.start_workers(log_some, 2, log_levels={"my.logger": "WARNING"})
    await rush.join_workers()
    log = await rush.read_log(time_difference=True)
    assert log.columns == [*COLUMNS, "time_difference"]
    for worker_id in ids:
        mine = log.filter(log["worker_id"] == worker_id)
        assert mine["time_difference"].to_list() == [None, mine["timestamp"][1] - mine["timestamp"][0]]


async def test_print_log_passes_on_what_is_new_through_the_logger_it_came_from(rush: Rush, others: Memory) -> None:
    logging.getLogger("my.logger").setLevel("DEBUG")
    try:
        (first,) = await rush.start_workers(log_some, 1, on=Processes(), log_levels={"my.logger": "DEBUG"})
        await rush.join_workers()
        await rush.print_log()
        heard = [(record.name, record.levelname, record.getMessage()) for record in others.records if record.name != "root"]
        assert heard[0] == ("my.logger", "DEBUG", f"{first}: 1 of 2 began")
        assert [name for name, _, _ in heard] == ["my.logger", "my.logger.child", "my.logger"]
        created = (await rush.read_log())["timestamp"][0].timestamp()
        assert next(record for record in others.records if record.name == "my.logger").created == pytest.approx(created)
        others.records.clear()
        await rush.print_log()
        assert others.records == []
        async with RushWorker(rush.network_id, rush.config) as worker:
            membership_of(worker).log(
                LogEntry("someone", "NOTICE", datetime.now(UTC), "root", "a.b:none", "100 % new").packed()
            )
        await rush.print_log()
        assert [record.getMessage() for record in others.records] == ["someone: 100 % new"]
    finally:
        logging.getLogger("my.logger").setLevel("NOTSET")


async def test_a_reset_deletes_the_log_and_a_late_record_does_not_bring_it_back(rush: Rush, raw: Any) -> None:
    async with RushWorker(rush.network_id, rush.config) as worker:
        membership_of(worker).log(LogEntry("a", "INFO", datetime.now(UTC), "x", "a.b:1", "before").packed())
        await worker._net.pulse.flush()  # pyright: ignore[reportPrivateUsage]
        assert raw.xlen(NetworkKeys.of(rush.network_id).log) == 1
        await rush._net.tasks.reset(workers=True)  # pyright: ignore[reportPrivateUsage]
        membership_of(worker).log(LogEntry("a", "INFO", datetime.now(UTC), "x", "a.b:1", "too late").packed())
        await worker._net.pulse.flush()  # pyright: ignore[reportPrivateUsage]
        assert raw.keys("*") == []


async def test_records_go_on_after_the_tasks_were_reset(rush: Rush) -> None:
    async with RushWorker(rush.network_id, rush.config) as worker:
        await rush.reset(workers=False)
        membership_of(worker).log(LogEntry("a", "INFO", datetime.now(UTC), "x", "a.b:1", "goes on").packed())
        await worker._net.pulse.flush()  # pyright: ignore[reportPrivateUsage]
        await wait_until(lambda: has_logged(rush))


async def has_logged(rush: Rush) -> bool:
    return (await rush.read_log())["msg"].to_list() == ["goes on"]


async def test_more_records_than_one_call_takes_come_in_order(rush: Rush) -> None:
    async with RushWorker(rush.network_id, rush.config) as worker:
        for n in range(2_345):
            membership_of(worker).log(LogEntry("a", "INFO", datetime.now(UTC), "x", "a.b:1", str(n)).packed())
    assert (await rush.read_log())["msg"].to_list() == [str(n) for n in range(2_345)]


async def test_a_record_that_is_none_of_ours_is_a_decode_error(rush: Rush, raw: Any) -> None:
    key = NetworkKeys.of(rush.network_id).log
    raw.xadd(key, {"r": b"\xc1"})
    with pytest.raises(DecodeError):
        await rush.read_log()
    raw.delete(key)
    raw.xadd(key, {"r": b"\x91\x01"})
    with pytest.raises(DecodeError, match="log record"):
        await rush.read_log()
    raw.delete(key)


@pytest.mark.parametrize("levels", [{"x": "LOUD"}, {"x": True}, {1: "INFO"}, "DEBUG"])
async def test_levels_that_are_none_are_refused_before_anything_starts(rush: Rush, raw: Any, levels: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="log_levels"):
        await rush.start_workers(log_some, 1, log_levels=levels)
    assert raw.keys("*") == []


# where it is captured


async def test_other_handlers_see_their_own_records_unchanged(said: list[LogEntry], others: Memory) -> None:
    quiet, loud = logging.getLogger("quiet.one"), logging.getLogger("loud.one")
    loud.setLevel("INFO")
    before = [handler.filters[:] for handler in logging.getLogger().handlers]
    with capture("a", {"quiet.one": "DEBUG", "loud": 5, "": "ERROR"}, heard_by(said)):

        def speak() -> None:
            quiet.debug("only for the worker's log")
            quiet.getChild("deeper").info("nor is this %d", 1)
            loud.info("for both")
            loud.debug("for nobody: the logger's own level says so")
            logging.getLogger("third").error("by the root")
            logging.getLogger("third").warning("not by the root")

        await in_task("a", speak)
    assert [entry.msg for entry in said] == ["only for the worker's log", "nor is this 1", "for both", "by the root"]
    assert [record.getMessage() for record in others.records] == ["for both", "by the root", "not by the root"]
    assert (others.records[0].msg, others.records[0].args) == ("for both", ())
    # Everything is as it was.
    assert [handler.filters for handler in logging.getLogger().handlers] == before
    assert (quiet.level, quiet.handlers, logging.getLogger("loud").level) == (logging.NOTSET, [], logging.NOTSET)
    quiet.debug("heard by nobody")
    assert len(others.records) == 3
    loud.setLevel("NOTSET")


async def test_workers_of_one_process_are_told_apart_each_with_its_levels(said: list[LogEntry], others: Memory) -> None:
    logger = logging.getLogger("shared")
    with capture("a", {"shared": "DEBUG"}, heard_by(said)):
        with capture("b", {"shared": "ERROR"}, heard_by(said)):
            for worker_id in ("a", "b"):
                await in_task(worker_id, lambda: (logger.debug("low"), logger.error("high")))
            logger.error("by the manager")
            await asyncio.to_thread(logger.error, "by the manager's thread")
        assert logger.isEnabledFor(logging.DEBUG)
        await in_task("b", lambda: logger.error("it has ended"))
    assert [(entry.worker_id, entry.msg) for entry in said] == [("a", "low"), ("a", "high"), ("b", "high")]
    assert not logger.isEnabledFor(logging.DEBUG)
    assert [record.getMessage() for record in others.records if record.name == "shared"].count("high") == 2


async def test_threads_speak_for_the_worker_that_started_them(said: list[LogEntry]) -> None:
    logger = logging.getLogger("threads")

    async def loop(worker_id: str) -> None:
        speak_as(worker_id)
        await asyncio.to_thread(logger.warning, "by %s", worker_id)

    with capture("a", {"threads": "INFO"}, heard_by(said)), capture("b", {"threads": "INFO"}, heard_by(said)):
        await asyncio.gather(asyncio.create_task(loop("a")), asyncio.create_task(loop("b")))
        plain = threading.Thread(target=logger.warning, args=("whose is it?",))
        plain.start()
        plain.join()
    assert sorted((entry.worker_id, entry.msg) for entry in said) == [("a", "by a"), ("b", "by b")]
    said.clear()
    with capture("a", {"threads": "INFO"}, heard_by(said)):
        plain = threading.Thread(target=logger.warning, args=("of the only one",))
        plain.start()
        plain.join()
        logger.warning("by the manager")
    assert [(entry.worker_id, entry.msg) for entry in said] == [("a", "of the only one")]


async def test_a_level_that_somebody_sets_meanwhile_stays(said: list[LogEntry]) -> None:
    logger = logging.getLogger("set.meanwhile")
    with capture("a", {"set.meanwhile": "DEBUG"}, heard_by(said)):
        logger.setLevel("ERROR")
    assert logger.level == logging.ERROR
    logger.setLevel("NOTSET")


async def test_what_cannot_be_formatted_is_reported_and_the_loop_goes_on(
    said: list[LogEntry], capsys: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger("broken")
    logger.propagate = False
    with capture("a", {"broken": "DEBUG"}, heard_by(said)):
        await in_task("a", lambda: (logger.info("%d", "no number"), logger.info("\ud800 and %s", "x" * 100_000)))
    assert "no number" in capsys.readouterr().err
    (entry,) = said
    assert entry.msg.startswith("? and xxx")
    assert entry.msg.endswith("characters more)")
    assert len(entry.msg) < 70_000
    logger.propagate = True
