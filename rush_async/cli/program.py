"""The program `rush-async`: workers on any machine, under whatever starts and ends programs there.

`rush-async worker NETWORK --start ID` runs what `Rush.worker_command` prepared, and `rush-async worker NETWORK module:function`
a loop by its name. All workers of a program live in one process and one event loop.

SIGTERM and SIGINT *drain* it: the workers finish what they run and take nothing new. After `--drain` seconds, or at a second
signal, they are cancelled, and what they run fails as `cancelled`. A loop that never gives way is ended with its process.

Exit codes:

| code | means |
|---|---|
| 0 | all workers ended by themselves or on request, drained ones too |
| 1 | a worker's loop failed; its traceback is on stderr |
| 2 | wrong usage |
| 3 | a worker was killed or declared lost |
| 69 | the server cannot be reached |
| 78 | the loop cannot be imported, the start is unknown, or the configuration is refused |
| 130, 143 | ended by SIGINT, SIGTERM before it was drained |
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import math
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import FrameType
from typing import Any, NoReturn, cast

from rush_async.config import RushConfig, redact, url_of_environment, with_password_of_environment, without_password
from rush_async.errors import RushConfigError, RushConnectionError, RushError
from rush_async.heartbeat.heartbeat import own_this_process
from rush_async.launch.command import Start, bind, import_loop, read_start
from rush_async.model import Failure, WorkerExit
from rush_async.network.network import Network
from rush_async.store.keys import check_network_id
from rush_async.supervisor import Supervisor
from rush_async.worker.names import worker_name
from rush_async.worker.run import live
from rush_async.worker.worker import RushWorker, membership_of

__all__ = ["main"]

logger = logging.getLogger(__name__)

_FAILED, _SHUT_OUT, _UNREACHABLE, _REFUSED = 1, 3, 69, 78  # the last two are EX_UNAVAILABLE and EX_CONFIG of sysexits.h

_ANSWER = 5.0  # seconds in which the event loop is to take the order to cancel the workers
_GOODBYE = 15.0  # seconds that cancelled workers may take to end; each of their steps is bounded
_LINGER = 5.0  # seconds that threads of the loops may keep a program that was asked to end


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; its exit code."""
    options = _parse(sys.argv[1:] if argv is None else argv)
    level = {0: logging.WARNING, 1: logging.INFO}.get(options.verbose, logging.DEBUG)
    logging.basicConfig(stream=sys.stderr, level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if options.url and without_password(options.url) != options.url:
        logger.warning("a password in --url is seen by everybody on this machine: set RUSH_URL or RUSH_PASSWORD instead")
    drain = _Drain(options.drain)
    drain.install()
    drain.end(_run(options, drain))
    return drain.code


def _run(options: argparse.Namespace, drain: _Drain) -> int:
    own_this_process()
    if not sys.flags.safe_path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        config = _config(options)
        start = _start(options, config)
        if drain.signal is not None:
            logger.info("asked to end before a worker was started")
            return 0
        config = replace(config, **start.settings).beating(options.heartbeat_period, options.heartbeat_expire)
        return asyncio.run(_work(options.network, config, start, drain))
    except RushConnectionError as error:
        has_none = "password" in str(error) and os.environ.get("RUSH_PASSWORD") is None
        logger.error("%s%s", error, ". RUSH_PASSWORD is not set in the environment" if has_none else "")
        return _UNREACHABLE
    except RushError as error:
        # What a module raised that cannot be imported is shown with it.
        logger.error("%s", error, exc_info=error.__cause__)
        return _REFUSED


# the words of the command


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(redact(message))  # which may quote a URL that stands where it should not


def _parsers() -> tuple[argparse.ArgumentParser, argparse.ArgumentParser]:
    """The program's, and that of `worker`."""
    parser = _Parser(prog="rush-async", description="Workers of a network, on any machine.", allow_abbrev=False)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=_Parser)
    worker = commands.add_parser(
        "worker",
        help="run workers of a network until they end or are asked to",
        description="Runs workers in this process until they end or are asked to. SIGTERM and SIGINT ask: the workers finish "
        "what they run and take nothing new. The loop may be in a module of the current directory.",
        epilog="The server is named by RUSH_URL, else REDIS_URL, in the environment, and its password by RUSH_PASSWORD where "
        "the URL has none. Exit codes: 0 all workers ended, 1 a loop failed, 2 wrong usage, 3 a worker was killed or lost, "
        "69 the server cannot be reached, 78 the loop, start or configuration is refused, 130 or 143 ended before it was "
        "drained.",
        allow_abbrev=False,
    )
    worker.add_argument("network", metavar="NETWORK", type=_network_id, help="the network to work in")
    worker.add_argument("loop", metavar="MODULE:FUNCTION", nargs="?", type=_loop_name, help="the worker loop, by its name")
    worker.add_argument("--start", metavar="ID", help="what Rush.worker_command() prepared, instead of MODULE:FUNCTION")
    worker.add_argument("-n", "--workers", metavar="N", type=_count, help="how many workers (default: as prepared, else 1)")
    worker.add_argument("--url", help="the server; leave out its password, which everybody on this machine would see here")
    worker.add_argument("--args", metavar="JSON", type=_arguments, help="arguments of the loop, as a JSON object")
    worker.add_argument(
        "--log-level",
        metavar="LOGGER=LEVEL",
        type=_level,
        action="append",
        help="a logger whose records Rush.read_log() is to show; may be given several times",
    )
    worker.add_argument("--heartbeat-period", metavar="S", type=_seconds, help="seconds between two heartbeats")
    worker.add_argument("--heartbeat-expire", metavar="S", type=_seconds, help="seconds after which silent workers are lost")
    worker.add_argument(
        "--drain", metavar="S", type=_seconds, default=30.0, help="seconds that workers may go on after a signal (default: 30)"
    )
    worker.add_argument("--allow-pickle", action="store_true", help="take a start that holds a pickle")
    worker.add_argument("--tls-ca-file", metavar="FILE", help="certificates to trust besides the system's")
    worker.add_argument("--tls-cert-file", metavar="FILE", help="this client's certificate")
    worker.add_argument("--tls-key-file", metavar="FILE", help="this client's private key")
    worker.add_argument(
        "--no-tls-check-hostname", dest="tls_check_hostname", action="store_false", help="take a certificate of another host"
    )
    worker.add_argument("-v", "--verbose", action="count", default=0, help="log at INFO; twice: at DEBUG")
    return parser, worker


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser, worker = _parsers()
    options, rest = parser.parse_known_args(argv)
    if len(rest) == 1 and options.loop is None and not rest[0].startswith("-"):
        # Where options stand between network and loop, argparse of Python 3.11 leaves the loop over.
        try:
            options.loop = _loop_name(rest[0])
        except argparse.ArgumentTypeError as error:
            worker.error(str(error))
    elif rest:
        worker.error(f"unrecognized arguments: {' '.join(rest)}")
    if (options.loop is None) is (options.start is None):
        worker.error("name the loop by MODULE:FUNCTION or what was prepared by --start ID, one of them")
    return options


def _network_id(text: str) -> str:
    try:
        return check_network_id(text)
    except RushConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _loop_name(text: str) -> str:
    module, _, path = text.partition(":")
    if not module or not path:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form module:function")
    return text


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of workers, 1 or more")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= threading.TIMEOUT_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return seconds


def _arguments(text: str) -> dict[str, Any]:
    try:
        arguments = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"no JSON: {error}") from None
    if not isinstance(arguments, dict):
        raise argparse.ArgumentTypeError('a JSON object is needed, as {"name": value}')
    return cast("dict[str, Any]", arguments)


def _level(text: str) -> tuple[str, str]:
    name, _, level = text.rpartition("=")
    if level.upper() not in logging.getLevelNamesMapping():
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form my.logger=DEBUG")
    return name, level.upper()


# what is to be started


def _config(options: argparse.Namespace) -> RushConfig:
    url: str | None = options.url
    environment = url_of_environment()[0]
    if url is None or (environment is not None and without_password(environment) == url):
        url = environment
    else:
        RushConfig(url)  # before anything is put into it
        url = with_password_of_environment(url)
    if url is None:
        raise RushConfigError("no server is named: set RUSH_URL in the environment, or say --url")
    return RushConfig(
        url,
        tls_ca_file=options.tls_ca_file,
        tls_cert_file=options.tls_cert_file,
        tls_key_file=options.tls_key_file,
        tls_check_hostname=options.tls_check_hostname,
    )


def _start(options: argparse.Namespace, config: RushConfig) -> Start:
    """What the options name, loaded outside of any event loop, as modules expect it."""
    arguments: dict[str, Any] = options.args or {}
    log_levels: dict[str, str | int] = dict(options.log_level or ())
    if options.loop is not None:
        return Start(bind(import_loop(options.loop), arguments), options.workers or 1, log_levels, {})
    found = asyncio.run(_find_start(options, config))()
    loop = bind(found.loop.function, {**found.loop.arguments, **arguments})
    return Start(loop, options.workers or found.n_workers, log_levels or found.log_levels, found.settings)


async def _find_start(options: argparse.Namespace, config: RushConfig) -> Callable[[], Start]:
    network = await Network.acquire(options.network, config)
    try:
        packed = await network.workers.read_start(options.start)
    finally:
        await network.release()
    if packed is None:
        raise RushConfigError(
            f"network {options.network!r} on {config.where} has no start {options.start!r}. It went with a reset, or the "
            "command is for another server: make a new one with worker_command(). Or the manager's event loop has been blocked "
            "since it made the command, and could not send it: await something there first"
        )
    return await read_start(packed, options.start, allow_pickle=options.allow_pickle)


# running


async def _work(network_id: str, config: RushConfig, start: Start, drain: _Drain) -> int:
    # Opened once for all workers: a server that is not there is told once.
    network = await Network.acquire(network_id, config)
    try:
        workers = [RushWorker(network_id, config, worker_id=worker_name()) for _ in range(start.n_workers)]
        lives = [
            Supervisor.spawn(live(worker, start.loop, start.log_levels), name=f"worker {worker.worker_id}")
            for worker in workers
        ]
        drain.attend(workers, lives)
        ends = await asyncio.gather(*lives, return_exceptions=True)
    finally:
        await network.release()
    code = _code([_end_of(worker, end) for worker, end in zip(workers, ends, strict=True)], drain)
    drain.end(code)  # from here on threads of the loops may hold the program up, but not for ever
    return code


def _end_of(worker: RushWorker, end: WorkerExit | BaseException) -> WorkerExit:
    if isinstance(end, WorkerExit):
        return end
    if isinstance(end, asyncio.CancelledError):  # before it had entered
        return WorkerExit(worker.worker_id, "terminated")
    return WorkerExit(worker.worker_id, "failed", Failure.of(end))


def _code(ends: Sequence[WorkerExit], drain: _Drain) -> int:
    """The exit code that tells how the workers ended; how they failed is logged, each distinct traceback once."""
    failed: dict[str, list[WorkerExit]] = {}
    for end in ends:
        if end.state == "failed":
            failure = end.failure or Failure()
            failed.setdefault(failure.traceback or failure.message, []).append(end)
        elif end.state in ("killed", "lost"):
            logger.error("worker %s was %s", end.worker_id, "killed" if end.state == "killed" else "declared lost")
    for text, failures in failed.items():
        logger.error("the loop of worker %s failed:\n%s", ", ".join(end.worker_id for end in failures), text)
    if drain.is_cut_short:
        return 128 + (drain.signal or 0)
    kinds = {end.failure.type if end.failure else None for end in ends if end.state == "failed"}
    if kinds:
        return _UNREACHABLE if kinds == {"RushConnectionError"} else _FAILED
    return _SHUT_OUT if any(end.state in ("killed", "lost") for end in ends) else 0


class _Drain:
    """Ends the program when it is asked to: a thread sees to it, for the event loop may be computing.

    Attributes:
        signal: the last signal that asked for it, or None.
        is_cut_short: whether workers were cancelled.
        code: the exit code, once it is known.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        # Unlike an Event's, its `put` may interrupt itself in the same thread, as signals do.
        self._news: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._workers: list[RushWorker] = []
        self._lives: list[asyncio.Task[WorkerExit]] = []
        self._is_asked_to_cancel = False
        self.signal: int | None = None
        self.is_cut_short = False
        self.code = 0

    def install(self) -> None:
        """From here on signals drain the program."""
        before = {number: signal.signal(number, self._take_signal) for number in (signal.SIGTERM, signal.SIGINT)}

        def restore() -> None:  # a process that a loop forks has no such thread, and must be ended by signals as any other
            for number, handler in before.items():
                signal.signal(number, handler)

        os.register_at_fork(after_in_child=restore)
        threading.Thread(target=self._watch, name="rush-async drain", daemon=True).start()

    def attend(self, workers: list[RushWorker], lives: list[asyncio.Task[WorkerExit]]) -> None:
        """Ends these workers, in this event loop; if a signal has come already, they are told now."""
        self._workers, self._lives = workers, lives
        self._loop = asyncio.get_running_loop()
        if self.signal is not None:
            self._stop()
        if self._is_asked_to_cancel:
            self._cancel()

    def end(self, code: int) -> None:
        """All workers have ended."""
        self.code = code
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        self._news.put("over")

    def _take_signal(self, number: int, frame: FrameType | None) -> None:
        # Between any two instructions of the main thread: nothing here may wait for a lock.
        self.signal = number
        for worker in self._workers:
            membership_of(worker).note_stop()
        self._news.put("signal")

    # in the event loop

    def _stop(self) -> None:
        logger.info("asked to end by %s: workers finish what they run", signal.Signals(self.signal or 0).name)
        for worker in self._workers:
            membership_of(worker).request_stop()

    def _cancel(self) -> None:
        self._news.put("taken")
        unfinished = [life for life in self._lives if not life.done()]
        if unfinished:
            self.is_cut_short = True
            logger.warning("%d workers have not ended yet and are cancelled: what they run fails", len(unfinished))
            for life in unfinished:
                life.cancel()

    # in the thread

    def _watch(self) -> None:
        if self._next(None, "signal", "over") == "signal":
            self._tell(self._stop)
            if self._next(self._seconds, "signal", "over") != "over":
                self._is_asked_to_cancel = True
                self._tell(self._cancel)
                said = self._next(_ANSWER, "taken", "over")
                if said == "taken":
                    said = self._next(_GOODBYE, "over")
                if said is None:
                    self._end_now(128 + (self.signal or 0), "the workers cannot be cancelled, as their event loop is blocked")
        else:
            self._next(None, "signal")
        self._next(_LINGER)
        self._end_now(self.code, "all workers have ended, and threads of their loops go on")

    def _next(self, seconds: float | None, *words: str) -> str | None:
        """The next of these words; None if none came in time."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while True:
            try:
                word = self._news.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return None
            if word in words:
                return word

    def _tell(self, what: Callable[[], None]) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended already
                self._loop.call_soon_threadsafe(what)

    def _end_now(self, code: int, why: str) -> NoReturn:
        # Whoever blocks the event loop may hold the lock of a log handler.
        last_words = threading.Thread(target=logger.error, args=("%s: the process ends now", why), daemon=True)
        last_words.start()
        last_words.join(0.5)
        os._exit(code)
