"""Log capture: which worker a record belongs to, what is captured, and how loggers are restored (row 18)."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from rush_async import Coroutines, Launcher, Processes, Rush, RushWorker
from rush_async.store.log_entry import LogEntry
from rush_async.worker.log_capture import WARNINGS, _registry, capture  # pyright: ignore[reportPrivateUsage]
from rush_async.worker.worker import membership_of
from tests.launch.loops_of_tests import log_some


class OtherHandler(logging.Handler):
    """A handler of the program itself."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    @property
    def messages(self) -> list[str]:
        return [record.getMessage() for record in self.records]


class Sink:
    """Keeps the entries that it takes."""

    def __init__(self) -> None:
        self.entries: list[LogEntry] = []

    def log(self, record: bytes) -> None:
        self.entries.append(LogEntry.of(record))

    @property
    def lines(self) -> list[tuple[str, str]]:
        return [(entry.worker_id, entry.msg) for entry in self.entries]

    @property
    def messages(self) -> list[str]:
        return [entry.msg for entry in self.entries]


@pytest.fixture
def other() -> Iterator[OtherHandler]:
    """A handler at the root logger."""
    handler = OtherHandler()
    logging.getLogger().addHandler(handler)
    yield handler
    logging.getLogger().removeHandler(handler)


@pytest.fixture
def sink() -> Sink:
    return Sink()


def in_thread(act: Callable[..., object], *args: object) -> None:
    """Calls in a thread that has no context of its own."""
    thread = threading.Thread(target=act, args=args)
    thread.start()
    thread.join()


# levels


@pytest.mark.parametrize("on", [Coroutines(), Processes()], ids=["coroutines", "processes"])
async def test_row_18_a_level_is_the_level_of_the_logger_in_the_process_of_the_worker(
    rush: Rush, on: Launcher, other: OtherHandler
) -> None:
    await rush.start_workers(log_some, 1, on=on, log_levels={"my.logger": "DEBUG"})
    await rush.join_workers()
    assert (await rush.read_log())["level"].to_list() == ["DEBUG", "WARNING", "ERROR"]
    own = [record.levelname for record in other.records if record.name.startswith("my.")]
    assert own == (["DEBUG", "WARNING", "ERROR"] if isinstance(on, Coroutines) else [])
    assert logging.getLogger("my.logger").level == logging.NOTSET


def test_other_handlers_get_the_same_records_unchanged(sink: Sink, other: OtherHandler) -> None:
    logger = logging.getLogger("captured.one")
    with capture("a", {"captured": "DEBUG"}, sink):
        logger.debug("below the default level: %d", 1)
    assert sink.messages == other.messages == ["below the default level: 1"]
    assert (other.records[0].msg, other.records[0].args) == ("below the default level: %d", (1,))


def test_a_level_may_be_higher_than_that_of_the_logger(sink: Sink, other: OtherHandler) -> None:
    logger = logging.getLogger("verbose")
    logger.setLevel("DEBUG")
    with capture("a", {"verbose": "ERROR"}, sink):
        logger.warning("below the level")
        logger.error("captured")
    assert sink.messages == other.messages == ["captured"]
    assert logger.level == logging.DEBUG
    logger.setLevel("NOTSET")


def test_the_nearest_logger_takes_a_record_once(sink: Sink) -> None:
    with capture("a", {"nested": 5, "nested.one": "INFO", "": "ERROR"}, sink):
        logging.getLogger("nested.one.deeper").info("by nested.one")
        logging.getLogger("nested.one").debug("below its level")
        logging.getLogger("nested.two").debug("by nested")
        logging.getLogger("third").error("by the root")
        logging.getLogger("third").warning("below the level of the root")
    assert sink.messages == ["by nested.one", "by nested", "by the root"]


def test_the_root_logger_is_named_root_too(sink: Sink) -> None:
    with capture("a", {"root": "ERROR"}, sink):
        logging.getLogger().error("by the root itself")
    assert [(entry.logger, entry.msg) for entry in sink.entries] == [("root", "by the root itself")]


def test_a_level_holds_for_children_whose_own_level_is_lower(sink: Sink) -> None:
    child = logging.getLogger("parent.child")
    child.setLevel("DEBUG")
    with capture("a", {"parent": "ERROR"}, sink):
        child.info("below the level of the parent")
        child.error("captured")
    assert sink.messages == ["captured"]
    child.setLevel("NOTSET")


def test_loggers_and_other_handlers_are_restored_after_the_last_worker(sink: Sink, other: OtherHandler) -> None:
    root, logger = logging.getLogger(), logging.getLogger("restored")
    before = (root.level, root.handlers[:], [handler.filters[:] for handler in root.handlers])
    with capture("a", {"restored": "DEBUG", "": "ERROR"}, sink):
        with capture("b", {"restored": "INFO", "": "DEBUG"}, sink):
            assert (root.level, logger.level) == (logging.DEBUG, logging.DEBUG)
            assert len(logger.handlers) == 1
            assert [handler.filters for handler in root.handlers if handler in before[1]] == before[2]
        assert (root.level, logger.level) == (logging.ERROR, logging.DEBUG)
    assert (root.level, root.handlers, [handler.filters for handler in root.handlers]) == before
    assert (logger.level, logger.handlers) == (logging.NOTSET, [])


def test_the_lowest_level_of_the_workers_that_remain_holds(sink: Sink) -> None:
    logger = logging.getLogger("lowest")
    first, second = capture("a", {"lowest": "DEBUG"}, sink), capture("b", {"lowest": "ERROR"}, sink)
    first.__enter__()
    second.__enter__()
    assert logger.level == logging.DEBUG
    first.__exit__(None, None, None)
    assert logger.level == logging.ERROR
    second.__exit__(None, None, None)
    assert logger.level == logging.NOTSET


def test_a_level_that_the_program_sets_meanwhile_stays(sink: Sink) -> None:
    logger = logging.getLogger("set.meanwhile")
    with capture("a", {"set.meanwhile": "DEBUG"}, sink):
        with capture("b", {"set.meanwhile": "DEBUG"}, sink):
            logger.setLevel("ERROR")
        assert logger.level == logging.ERROR
    assert logger.level == logging.ERROR
    logger.setLevel("NOTSET")


# attribution


async def test_each_worker_of_a_process_captures_only_its_own_records(sink: Sink, other: OtherHandler) -> None:
    logger = logging.getLogger("shared")
    both_run, may_end = asyncio.Barrier(3), asyncio.Event()

    async def live(worker_id: str, level: str) -> None:
        with capture(worker_id, {"shared": level}, sink):
            await both_run.wait()
            logger.debug("low")
            logger.error("high")
            await both_run.wait()
            await may_end.wait()

    async with asyncio.TaskGroup() as group:
        group.create_task(live("a", "DEBUG"))
        group.create_task(live("b", "ERROR"))
        await both_run.wait()
        await both_run.wait()
        logger.error("by the manager")
        await asyncio.to_thread(logger.error, "by a thread of the manager")
        may_end.set()
    assert sorted(sink.lines) == [("a", "high"), ("a", "low"), ("b", "high")]
    assert other.messages.count("high") == 2


async def test_records_of_a_task_that_outlives_its_worker_are_not_captured(sink: Sink) -> None:
    logger = logging.getLogger("outlives")
    has_ended = asyncio.Event()

    async def log_late() -> None:
        await has_ended.wait()
        logger.error("too late")

    with capture("a", {"outlives": "ERROR"}, sink):
        with capture("b", {"outlives": "ERROR"}, sink):
            late = asyncio.create_task(log_late())
        has_ended.set()
        await late
        logger.error("in time")
    assert sink.lines == [("a", "in time")]


async def test_records_of_a_thread_belong_to_the_worker_that_started_it(sink: Sink) -> None:
    logger = logging.getLogger("threads")

    async def live(worker_id: str) -> None:
        with capture(worker_id, {"threads": "INFO"}, sink):
            await asyncio.to_thread(logger.warning, "by %s", worker_id)

    await asyncio.gather(live("a"), live("b"))
    assert sorted(sink.lines) == [("a", "by a"), ("b", "by b")]


async def test_a_thread_without_context_belongs_to_the_only_worker_of_the_process(sink: Sink) -> None:
    logger = logging.getLogger("plain.threads")
    is_open, may_end = asyncio.Event(), asyncio.Event()

    async def live() -> None:
        with capture("a", {"plain.threads": "INFO"}, sink):
            is_open.set()
            await may_end.wait()

    living = asyncio.create_task(live())
    await is_open.wait()
    in_thread(logger.warning, "by the only one")
    logger.warning("by the manager")
    with capture("b", None, sink):
        in_thread(logger.warning, "by one of two")
    may_end.set()
    await living
    assert sink.lines == [("a", "by the only one")]


async def test_workers_with_one_id_in_two_networks_capture_only_their_own_records(sink: Sink) -> None:
    other_sink = Sink()
    logger = logging.getLogger("namesakes")

    async def live(own: Sink, message: str) -> None:
        with capture("a", {"namesakes": "INFO"}, own):
            await asyncio.sleep(0)
            logger.info(message)

    await asyncio.gather(live(sink, "one"), live(other_sink, "two"))
    assert (sink.messages, other_sink.messages) == (["one"], ["two"])


def test_the_default_of_pools_and_the_command_leaves_all_levels_alone(sink: Sink, other: OtherHandler) -> None:
    root, logger = logging.getLogger(), logging.getLogger("by.default")
    before = root.level
    root.setLevel("INFO")
    with capture("a", WARNINGS, sink), capture("b", {"by.default": "DEBUG"}, sink):
        assert (root.level, logger.level) == (logging.INFO, logging.DEBUG)
    with capture("a", WARNINGS, sink):
        logger.info("only for the program")
        logger.warning("captured")
    assert (root.level, logger.level) == (logging.INFO, logging.NOTSET)
    root.setLevel(before)
    assert sink.messages == ["captured"]
    assert other.messages == ["only for the program", "captured"]


def test_warnings_of_a_program_without_handlers_still_reach_standard_error(
    sink: Sink, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    logger = logging.getLogger("without.handlers")
    with capture("a", {"": "INFO", "without": "DEBUG"}, sink):
        logger.info("for the network")
        logger.warning("for both")
        logger.addHandler(handler := OtherHandler())
        logger.warning("for the handler")
        logger.removeHandler(handler)
    assert capsys.readouterr().err == "for both\n"
    assert sink.messages == ["for the network", "for both", "for the handler"]


def test_a_worker_without_levels_changes_no_logger(sink: Sink) -> None:
    root = logging.getLogger()
    before = (root.level, root.handlers[:])
    with capture("a", None, sink), capture("b", {}, sink):
        assert (root.level, root.handlers) == before
        root.error("not captured")
    assert sink.entries == []


def test_a_capture_that_ends_in_another_context_restores_the_logger(sink: Sink) -> None:
    async def live() -> None:
        with capture("a", {"left.behind": "DEBUG"}, sink):
            await asyncio.get_running_loop().create_future()

    living = live()

    async def start() -> None:
        living.send(None)

    asyncio.run(start())
    living.close()
    assert logging.getLogger("left.behind").level == logging.NOTSET


# records


def test_records_of_the_code_that_sends_records_are_not_captured(sink: Sink) -> None:
    names = ["rush_async.heartbeat", "rush_async.heartbeat.heartbeat", "rush_async.wire.connection"]
    with capture("a", {"": "DEBUG", "rush_async": "DEBUG", names[1]: "DEBUG"}, sink):
        for name in [*names, "rush_async.wired", "rush_async.worker.worker"]:
            logging.getLogger(name).error("it failed")
    assert [entry.logger for entry in sink.entries] == ["rush_async.wired", "rush_async.worker.worker"]


class LockedSink(Sink):
    """Waits for a lock, as a log writer does for that of the heartbeat thread."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def log(self, record: bytes) -> None:
        with self.lock:
            super().log(record)


def test_a_forked_child_belongs_to_no_worker_and_waits_for_no_lock_of_its_parent() -> None:
    sink, logger = LockedSink(), logging.getLogger("forked")
    with capture("a", {"forked": "DEBUG"}, sink):
        with sink.lock, _registry._lock:  # pyright: ignore[reportPrivateUsage] - as if other threads held them
            child = os.fork()
            if child == 0:
                signal.alarm(5)  # ends a child that waits
                logger.warning("from the child")
                own = Sink()
                with capture("b", {"forked": "INFO"}, own):
                    logger.info("from its worker")
                is_right = sink.entries == [] and own.lines == [("b", "from its worker")] and logger.level == logging.NOTSET
                os._exit(0 if is_right else 1)
        assert os.waitpid(child, 0)[1] == 0
        logger.debug("from the parent")
    assert sink.messages == ["from the parent"]


def test_a_record_that_cannot_be_formatted_is_reported_and_the_worker_continues(
    sink: Sink, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger("broken")
    logger.propagate = False
    with capture("a", {"broken": "DEBUG"}, sink):
        logger.info("%d", "no number")
        logger.info("the next one")
    assert "no number" in capsys.readouterr().err
    assert sink.messages == ["the next one"]
    logger.propagate = True


def test_surrogates_are_replaced_and_long_messages_are_cut(sink: Sink) -> None:
    logger = logging.getLogger("long")
    logger.propagate = False  # pytest cannot report a surrogate
    with capture("a", {"long": "DEBUG"}, sink):
        logger.info("\ud800 and %s", "x" * 100_000)
    logger.propagate = True
    (entry,) = sink.entries
    assert entry.msg.startswith("? and xxx")
    assert entry.msg.endswith("characters more)")
    assert len(entry.msg) < 70_000


def test_an_entry_has_the_caller_the_traceback_and_the_stack(sink: Sink) -> None:
    with capture("a", {"detailed": "DEBUG"}, sink):
        try:
            raise ValueError("wrong")
        except ValueError:
            logging.getLogger("detailed").exception("it failed", stack_info=True)
    (entry,) = sink.entries
    assert (entry.worker_id, entry.level, entry.logger) == ("a", "ERROR", "detailed")
    assert entry.caller.startswith("test_log_capture.test_an_entry_has_the_caller_the_traceback_and_the_stack:")
    assert entry.msg.startswith("it failed\nTraceback")
    assert "ValueError: wrong\nStack" in entry.msg


async def test_a_worker_takes_only_packed_records(rush: Rush) -> None:
    async with RushWorker(rush.network_id, rush.config) as worker:
        with pytest.raises(TypeError, match="takes a packed LogEntry as bytes, not str"):
            membership_of(worker).log("hello")  # pyright: ignore[reportArgumentType]
    assert (await rush.read_log()).is_empty()
