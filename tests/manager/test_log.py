"""The workers' log in the manager: `read_log` as a frame, `print_log` through the loggers (row 18)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest

from rush_async import Coroutines, Launcher, Processes, Rush, RushWorker
from rush_async.manager.log import log_again
from rush_async.store.log_entry import LogEntry
from rush_async.worker.worker import membership_of
from tests.launch.loops_of_tests import log_some

COLUMNS = ["worker_id", "level", "timestamp", "logger", "caller", "msg"]


class Records(logging.Handler):
    """Keeps the records that reach the root logger."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def root() -> Iterator[Records]:
    handler = Records()
    logging.getLogger().addHandler(handler)
    yield handler
    logging.getLogger().removeHandler(handler)


# read_log


@pytest.mark.parametrize("on", [Coroutines(), Processes()], ids=["coroutines", "processes"])
async def test_row_18_read_log_returns_what_workers_logged_as_a_frame(rush: Rush, on: Launcher) -> None:
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


async def test_row_18_an_empty_log_has_its_columns(rush: Rush, raw: Any) -> None:
    assert (await rush.read_log()).schema == (await rush.read_log(time_difference=True)).drop("time_difference").schema
    assert (await rush.read_log()).columns == COLUMNS
    await rush.print_log()
    assert raw.keys("*") == []


async def test_row_18_time_differences_are_those_of_each_worker(rush: Rush) -> None:
    ids = await rush.start_workers(log_some, 2, log_levels={"my.logger": "WARNING"})
    await rush.join_workers()
    log = await rush.read_log(time_difference=True)
    assert log.columns == [*COLUMNS, "time_difference"]
    for worker_id in ids:
        mine = log.filter(log["worker_id"] == worker_id)
        assert mine["time_difference"].to_list() == [None, mine["timestamp"][1] - mine["timestamp"][0]]


@pytest.mark.parametrize("levels", [{"x": "LOUD"}, {"x": True}, {1: "INFO"}, "DEBUG"])
async def test_invalid_levels_are_refused_before_a_worker_is_started(rush: Rush, raw: Any, levels: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="log_levels"):
        await rush.start_workers(log_some, 1, log_levels=levels)
    assert raw.keys("*") == []


# print_log


async def test_print_log_logs_only_new_records_and_through_their_own_loggers(rush: Rush, root: Records) -> None:
    (first,) = await rush.start_workers(log_some, 1, on=Processes(), log_levels={"my.logger": "DEBUG"})
    await rush.join_workers()
    await rush.print_log()
    printed = [(record.name, record.levelname, record.getMessage()) for record in root.records if record.name != "root"]
    assert printed[0] == ("my.logger", "DEBUG", f"{first}: 1 of 2 began")
    assert [name for name, _, _ in printed] == ["my.logger", "my.logger.child", "my.logger"]
    created = (await rush.read_log())["timestamp"][0].timestamp()
    assert next(record for record in root.records if record.name == "my.logger").created == pytest.approx(created)
    root.records.clear()
    await rush.print_log()
    assert root.records == []
    async with RushWorker(rush.network_id, rush.config) as worker:
        membership_of(worker).log(LogEntry("someone", "NOTICE", datetime.now(UTC), "root", "a.b:none", "100 % new").packed())
    await rush.print_log()
    assert [record.getMessage() for record in root.records] == ["someone: 100 % new"]


def test_an_entry_that_is_logged_again_keeps_time_caller_and_level(root: Records) -> None:
    when = datetime(2026, 1, 2, 3, 4, 5, 250_000, UTC)
    log_again(LogEntry("a", "WARNING", when, "some.logger", "module.function:17", "beware"))
    log_again(LogEntry("a", "NOTICE", when, "root", "module.function:none", "an unknown level"))
    first, second = root.records
    assert (first.created, first.msecs) == (when.timestamp(), 250)
    assert (first.name, first.levelname, first.funcName, first.lineno) == ("some.logger", "WARNING", "module.function", 17)
    assert (second.name, second.levelname, second.lineno) == ("root", "INFO", 0)


def test_control_characters_of_an_entry_that_is_logged_again_are_harmless(root: Records) -> None:
    message = "done\x1b[2J\x07\r\u202e\tüß\nCRITICAL root: forged\n"
    log_again(LogEntry("a\x1b]0;b", "INFO", datetime.now(UTC), "x", "a.b:1", message))
    assert root.records[0].getMessage() == ("a\\x1b]0;b: done\\x1b[2J\\x07\\r\\u202e\tüß\n| CRITICAL root: forged\n| ")
