"""`rush-async worker`: runs workers on any machine, started by hand or by a scheduler.

`rush-async worker NETWORK --start ID` runs what `Rush.worker_command` prepared, and `rush-async worker NETWORK module:function`
a loop by its name. All workers of a program run in one process and one event loop.

SIGTERM and SIGINT *drain* the program: the workers finish their tasks and take no new ones. After `--drain` seconds, or at a
second signal, they are cancelled, and their tasks fail as `cancelled`. A loop that never awaits ends with the process.

Where the whole network stops, by a rule or by hand, the workers end likewise, with exit code 0, and a line says why. A program
that joins a stopped network warns and ends.

`--max-time`, `--max-tasks` and `--idle-timeout` stop each worker as a request does: between two tasks, with exit code 0.

numpy, polars and others compute with a thread for each core that the program may use, unless the environment says otherwise.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rush_async.cli.drain import Drain
from rush_async.cli.exit_codes import DONE, FAILED, REFUSED, SHUT_OUT, UNREACHABLE, advice_of
from rush_async.cli.json_log import JsonFormatter
from rush_async.cli.options import (
    add_network,
    add_server,
    config_of,
    count,
    json_object,
    limit,
    port,
    seconds,
    warn_of_password,
)
from rush_async.cli.output import age, counted
from rush_async.cli.processes import run_in_processes
from rush_async.cli.status_server import WorkerStatus, serving
from rush_async.config import RushConfig, with_heartbeat
from rush_async.errors import RushConfigError, RushConnectionError, RushError
from rush_async.heartbeat.heartbeat import own_this_process
from rush_async.launch.job import Job
from rush_async.launch.packed_loop import PackedLoop, split_name
from rush_async.launch.threads import thread_variables
from rush_async.model import Failure, StopReason, WorkerExit
from rush_async.network.network import Network
from rush_async.worker.limits import Limits
from rush_async.worker.log_capture import WARNINGS
from rush_async.worker.loop import WorkerLoop, bind_loop
from rush_async.worker.names import worker_name
from rush_async.worker.worker import Runner

__all__ = ["add_arguments", "run"]

logger = logging.getLogger(__name__)
_life = logger.getChild("life")  # what the program says without `-v`: that its workers join, and how they ended


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.description = (
        "Runs workers until they end or are asked to stop. On SIGTERM and SIGINT the workers finish their tasks and\n"
        "take no new ones. The loop may be in a module of the current directory."
    )
    parser.epilog = (
        "Examples:\n"
        "  rush-async worker branin search:random_search -n 4\n"
        "  rush-async worker branin search:random_search --args '{\"budget\": 200}' --max-time 3000\n"
        "  rush-async worker branin search:random_search --processes 8\n"
        "  rush-async worker branin --start 5f0c7a    what Rush.worker_command() prepared\n"
        "\n"
        "Exit codes: 0 all workers ended, 1 a loop failed, 2 wrong usage, 3 a worker was killed or lost,\n"
        "69 the server cannot be reached, 78 the loop, start or configuration is refused, 130 or 143 ended before it\n"
        "was drained."
    )
    add_network(parser)
    parser.add_argument("loop", metavar="MODULE:FUNCTION", nargs="?", help="the worker loop, by its name")
    parser.add_argument("--start", metavar="ID", help="what Rush.worker_command() prepared, instead of MODULE:FUNCTION")
    parser.add_argument("-n", "--workers", metavar="N", type=count, help="how many workers (default: as prepared, else 1)")
    parser.add_argument(
        "--processes", metavar="N", type=count, default=1, help="in how many processes, each with so many workers (default: 1)"
    )
    parser.add_argument("--args", metavar="JSON", type=json_object, help="arguments of the loop, as a JSON object")
    parser.add_argument(
        "--log-level",
        metavar="LOGGER=LEVEL",
        type=_level,
        action="append",
        help="a logger whose records Rush.read_log() shows; may be given several times (default: all from WARNING on)",
    )
    _add_limits(parser)
    parser.add_argument("--allow-pickle", action="store_true", help="take a start that holds a pickle")
    parser.add_argument("--metrics-port", metavar="PORT", type=port, help="serve /metrics, /healthz and /readyz at this port")
    parser.add_argument(
        "--metrics-address", metavar="ADDRESS", default="127.0.0.1", help="where to serve them (default: on this machine alone)"
    )
    parser.add_argument(
        "--log-format", choices=("text", "json"), default="text", help="json: one object a line (default: text)"
    )
    parser.add_argument("-v", "--verbose", action="count", default=0, help="log at INFO; twice: at DEBUG")
    parser.add_argument("-q", "--quiet", action="store_true", help="do not say that workers join and how they ended")
    add_server(parser)


def _add_limits(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--heartbeat-period", metavar="S", type=seconds, help="seconds between two heartbeats")
    parser.add_argument("--heartbeat-expire", metavar="S", type=seconds, help="seconds after which silent workers are lost")
    parser.add_argument(
        "--drain", metavar="S", type=seconds, default=30.0, help="seconds that workers may run after a signal (default: 30)"
    )
    parser.add_argument("--max-time", metavar="S", type=limit, help="seconds after which each worker takes no new task")
    parser.add_argument("--max-tasks", metavar="N", type=count, help="tasks after which each worker takes no new one")
    parser.add_argument(
        "--idle-timeout", metavar="S", type=limit, help="seconds that each worker waits for a task or a place; then it ends"
    )


def run(options: argparse.Namespace) -> int:
    """Runs workers, and returns the exit code."""
    _check(options)
    level = {0: logging.WARNING, 1: logging.INFO}.get(options.verbose, logging.DEBUG)
    handler = logging.StreamHandler()
    if options.log_format == "json":
        handler.setFormatter(JsonFormatter(options.network))
        logging.captureWarnings(True)
    logging.basicConfig(handlers=[handler], level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if warning := warn_of_password(options):
        logger.warning("%s", warning)
    _life.setLevel(logging.WARNING if options.quiet else logging.INFO)
    if options.processes > 1 and (code := run_in_processes(options.processes)) is not None:
        return code
    drain = Drain(options.drain)
    drain.install()
    drain.end(_run(options, drain, WorkerStatus(drain)))
    return drain.code


def _check(options: argparse.Namespace) -> None:
    known = os.environ.get("RUSH_NETWORK")
    if known and options.loop is None and options.start is None and options.network != known:
        options.loop, options.network = options.network, known  # one word is the loop where the environment names the network
    if (options.loop is None) is (options.start is None):
        options.parser.error("name the loop by MODULE:FUNCTION, or what was prepared by --start ID: one of the two")
    if options.processes > 1 and options.metrics_port is not None:
        options.parser.error("--metrics-port is for one process: leave --processes out, and start the command more than once")
    if options.loop is not None:
        try:
            split_name(options.loop)
        except RushConfigError as error:
            options.parser.error(str(error))


def _run(options: argparse.Namespace, drain: Drain, status: WorkerStatus) -> int:
    own_this_process()
    os.environ.update(thread_variables(n_processes=options.processes))  # before the loop's module imports numpy or polars
    if not sys.flags.safe_path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        with serving(status, options.metrics_address, options.metrics_port):
            job = _job(options, config_of(options))
            loop = _load(job, options.args or {})  # outside of any event loop, as modules expect to be imported
            if drain.signal is not None:
                logger.info("asked to end before a worker was started")
                return 0
            limits = Limits(options.max_time, options.max_tasks, options.idle_timeout)
            return asyncio.run(_work(job, loop, limits, drain, status))
    except RushConnectionError as error:
        logger.error("%s", advice_of(error))
        return UNREACHABLE
    except RushError as error:
        # The cause is the error that importing the module raised.
        logger.error("%s", error, exc_info=error.__cause__)
        return REFUSED


# the job


def _job(options: argparse.Namespace, config: RushConfig) -> Job:
    """Returns the job that the options name; options override what a manager prepared."""
    if options.loop is not None:
        job = Job(options.network, config, [worker_name()], PackedLoop.without_arguments(options.loop), None)
    else:
        start = asyncio.run(_read_start(options, config))
        job = Job.of_start(start, options.start, options.network, config, allow_pickle=options.allow_pickle)
    if options.workers is not None:
        job = replace(job, worker_ids=[worker_name() for _ in range(options.workers)])
    if options.log_level is not None:
        job = replace(job, log_levels=dict(options.log_level))
    return replace(job, config=with_heartbeat(job.config, options.heartbeat_period, options.heartbeat_expire))


async def _read_start(options: argparse.Namespace, config: RushConfig) -> bytes:
    network = await Network.acquire(options.network, config)
    try:
        start = await network.workers.read_start(options.start)
    finally:
        await network.release()
    if start is None:
        raise RushConfigError(
            f"network {options.network!r} on {config.where} has no start {options.start!r}. A reset has removed it, or the "
            "command is for another server: make a new one with worker_command(). Or the manager's event loop has been blocked "
            "since it made the command, and could not send it: await something there first"
        )
    return start


def _load(job: Job, arguments: dict[str, Any]) -> WorkerLoop:
    """Imports or unpickles the loop, and checks it with its arguments."""
    loop = job.loop.load()
    try:
        return bind_loop(loop.function, {**loop.arguments, **arguments}, {}, of="the command")
    except TypeError as error:
        raise RushConfigError(str(error)) from None


# the workers


async def _work(job: Job, loop: WorkerLoop, limits: Limits, drain: Drain, status: WorkerStatus) -> int:
    # Shared by the workers: one error if the server cannot be reached.
    network = await Network.acquire(job.network_id, job.config)
    try:
        teller = _StopTeller(network)
        log_levels = WARNINGS if job.log_levels is None else job.log_levels
        runner = Runner(*(job.network_id, job.config, job.worker_ids, loop, log_levels, limits), schema=job.frame_schema)
        drain.attend(runner)
        status.join(network)
        workers, begin = counted(n := len(job.worker_ids), "worker"), time.monotonic()
        n_before = network.position.counts.finished
        _life.info("%s join%s network %r on %s", workers, "s" if n == 1 else "", job.network_id, job.config.where)
        ends = await runner.run()
        teller.position_changed()  # a loop that never awaited kept the event loop from hearing of it
        lasted = age(time.monotonic() - begin)
        _life.info("%s of network %r ended after %s: %s", workers, job.network_id, lasted, _how(ends, network, drain, n_before))
    finally:
        status.close()
        await network.release()
    code = _code(ends, drain)
    drain.end(code)  # from here on threads of the loops may delay the end of the program only for a limited time
    return code


class _StopTeller:
    """Logs once that the network has stopped, and why.

    Args:
        network: the network, open.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        network.position.watchers.add(self)
        if (stop := network.position.stop) is not None:
            advice = f"`rush-async resume {network.network_id}` lifts the stop"
            self._tell(logging.WARNING, stop, f"the workers started just now take no task. {advice}")

    def position_changed(self) -> None:
        if self in self._network.position.watchers and (stop := self._network.position.stop) is not None:
            self._tell(logging.INFO, stop, "workers finish their tasks")

    def _tell(self, level: int, stop: StopReason, what: str) -> None:
        self._network.position.watchers.discard(self)
        logger.log(level, "network %r has stopped (%s): %s", self._network.network_id, stop, what)


def _how(ends: Sequence[WorkerExit], network: Network, drain: Drain, n_before: int) -> str:
    """Returns in which states workers ended, what asked them to, and what the network finished since `n_before` tasks."""
    states = [end.state for end in ends]
    how = ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states)))
    n_finished = network.position.counts.finished
    finished = f"; {counted(max(0, n_finished - n_before), 'task')} finished meanwhile, {n_finished:,} in all"
    if drain.signal is not None:
        return f"{how}, asked by {signal.Signals(drain.signal).name}{finished}"
    stop = network.position.stop
    return f"{how if stop is None else f'{how}, as the network has stopped ({stop})'}{finished}"


def _code(ends: Sequence[WorkerExit], drain: Drain) -> int:
    """Logs how workers failed, each distinct traceback once, and returns the exit code."""
    failed: dict[str, list[WorkerExit]] = {}
    for end in ends:
        if end.state == "failed":
            failure = end.failure or Failure()
            failed.setdefault(failure.traceback or failure.message, []).append(end)
        elif end.state in ("killed", "lost"):
            logger.error("worker %s was %s", end.worker_id, "killed" if end.state == "killed" else "declared lost")
    for text, failures in failed.items():
        logger.error("the loop of worker %s failed:\n%s", ", ".join(end.worker_id for end in failures), text)
    if drain.has_cancelled:
        return 128 + (drain.signal or 0)
    types = {end.failure.type if end.failure else None for end in ends if end.state == "failed"}
    if types:
        return UNREACHABLE if types == {RushConnectionError.__name__} else FAILED
    return SHUT_OUT if any(end.state in ("killed", "lost") for end in ends) else DONE


def _level(text: str) -> tuple[str, str]:
    name, _, level = text.rpartition("=")
    if level.upper() not in logging.getLevelNamesMapping():
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form my.logger=DEBUG")
    return name, level.upper()
