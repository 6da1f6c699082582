"""`rush-async stop`, `resume` and `kill`: a network stops as one and continues, and workers are ended."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from typing import Any

from rush_async.cli.exit_codes import DONE, FAILED, CommandError
from rush_async.cli.opening import open_client, open_network
from rush_async.cli.options import add_json, add_network, add_server, count, limit
from rush_async.cli.outcomes import report
from rush_async.cli.output import as_text, counted
from rush_async.model import StopReason
from rush_async.store.workers import KILLED

__all__ = ["add_arguments", "run"]

_DESCRIPTIONS = {
    "stop": "Stops a network as one: no task starts any more, in no process, until it is resumed. Tasks that run may\n"
    "end, and workers whose loops look at `rush.terminated` end with them.",
    "resume": "Lifts the stop of a network. The rules that are given replace all those that it had; without any it has\n"
    "none. Workers that have left do not come back. A network that has not stopped is left as it is.",
    "kill": "Ends workers wherever they run: they are shut out of the network at once, and their tasks fail as\n"
    "`killed`, or are queued again if they were pushed with retries. To end workers between two tasks, stop the\n"
    "network.",
}
_EPILOGS = {
    "stop": "Examples:\n"
    "  rush-async stop branin\n"
    "  rush-async stop branin --reason 'the cluster is needed'\n"
    "\n"
    "Exit codes: 0 it has stopped, also before the call, 2 wrong usage, 69 no server, 78 no such network.",
    "resume": "Examples:\n"
    "  rush-async resume branin\n"
    "  rush-async resume branin --finished 500 --target y=0.4\n"
    "\n"
    "Exit codes: 0 it continues, 1 a rule is true already, 2 wrong usage, 69 no server, 78 no such network.",
    "kill": "Examples:\n"
    "  rush-async kill branin nimble_egret_bfaf0d\n"
    "  rush-async kill branin --all\n"
    "\n"
    "Where RUSH_NETWORK names the network, all words are workers. Exit codes: 0 they are ended, 1 a worker that was\n"
    "named is not alive, 2 wrong usage, 69 no server, 78 no such network.",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    command = parser.get_default("command")
    parser.description, parser.epilog = _DESCRIPTIONS[command], _EPILOGS[command]
    if command == "kill":
        parser.add_argument("words", metavar="NETWORK WORKER", nargs="*", help="the network, and the workers to end")
        parser.add_argument("--all", action="store_true", help="end all workers, but for shared ones")
    else:
        add_network(parser)
    if command == "stop":
        parser.add_argument("--reason", metavar="TEXT", default="stopped by hand", help="why, in at most 200 characters")
    if command == "resume":
        parser.add_argument("--finished", metavar="N", type=count, help="stop when so many tasks have finished")
        parser.add_argument("--failed", metavar="N", type=count, help="stop when so many tasks have failed")
        parser.add_argument("--seconds", metavar="S", type=limit, help="stop after so much time")
        parser.add_argument("--target", metavar="NAME=VALUE", type=_target, help="stop when an output is as good as a value")
        parser.add_argument(
            "--patience", metavar="NAME=N", type=_patience, help="stop after so many tasks without a better value of an output"
        )
        parser.add_argument("--maximize", action="store_true", help="larger values of that output are better")
    add_json(parser)
    add_server(parser)


def run(options: argparse.Namespace) -> int:
    """Does it, and returns the exit code."""
    return asyncio.run({"stop": _stop, "resume": _resume, "kill": _kill}[options.command](options))


async def _stop(options: argparse.Namespace) -> int:
    if not 1 <= len(options.reason) <= 200:
        options.parser.error("--reason takes 1 to 200 characters")
    async with open_client(options) as rush:
        before = rush.stop_reason
        reason = await rush.stop(options.reason)
        counts = await rush.counts()
    network = f"network {options.network!r}"
    if before is not None:
        line = f"{network} had stopped already ({as_text(str(reason))}): nothing to do"
    else:
        line = (
            f"{network} has stopped ({as_text(str(reason))}): {counted(counts.running, 'running task')} may end, "
            f"{counted(counts.queued, 'queued one')} wait for `rush-async resume {options.network}`"
        )
    report(options, line, changed=before is None, **_as_dict(reason), **counts._asdict())
    return DONE


async def _resume(options: argparse.Namespace) -> int:
    names = ("finished", "failed", "seconds", "target", "patience")
    rules = {name: value for name in names if (value := getattr(options, name)) is not None}
    if options.maximize and not {"target", "patience"} & rules.keys():
        options.parser.error("--maximize is for --target or --patience")
    network = f"network {options.network!r}"
    async with open_client(options) as rush:
        before = rush.stop_reason
        if before is None:
            report(options, f"{network} has not stopped: nothing was changed", changed=False)
            return DONE
        try:
            await rush.resume(**rules, maximize=options.maximize)
        except ValueError as error:
            raise CommandError(str(error), FAILED) from None
        n_workers, rules = rush.n_running_workers, await rush.stop_rules()
    then = ", ".join(f"{name}={value}" for name, value in rules.items()) or "no rule"
    who = f"{counted(n_workers, 'worker')} running" if n_workers else "no worker is running, so start some"
    line = f"{network} continues, with {as_text(then)}; {who} (it had stopped: {as_text(str(before))})"
    report(options, line, changed=True, rules=rules, workers=n_workers, **_as_dict(before))
    return DONE


async def _kill(options: argparse.Namespace) -> int:
    known, words = os.environ.get("RUSH_NETWORK"), list(options.words)
    options.network = words.pop(0) if words and (not known or words[0] == known) else known
    if not options.network:
        options.parser.error("the following arguments are required: NETWORK")
    if bool(words) is options.all:
        options.parser.error("name the workers to end, or add --all: one of the two")
    async with open_network(options) as network:
        entries = [entry for entry in await network.workers.read() if entry.state in ("starting", "running")]
        alive = [entry.worker_id for entry in entries if not (options.all and entry.is_shared)]
        wanted = alive if options.all else [worker_id for worker_id in words if worker_id in alive]
        ended = await network.workers.clear(wanted, "killed", KILLED, KILLED)
    of = f"of network {options.network!r}"
    if ended.shut_out:
        line = (
            f"{counted(len(ended.shut_out), 'worker')} {of} killed: {counted(ended.n_failed, 'task')} failed, "
            f"{ended.n_requeued} queued again"
        )
    else:
        line = f"no worker {of} is alive: nothing to do" if options.all else f"no worker {of} was killed"
    missing = [worker_id for worker_id in words if worker_id not in ended.shut_out]
    report(options, line, killed=ended.shut_out, failed=ended.n_failed, requeued=ended.n_requeued, missing=missing)
    if missing:
        print(f"not alive: {as_text(', '.join(missing))}; alive are: {as_text(', '.join(alive)) or 'none'}", file=sys.stderr)
    return FAILED if missing else DONE


def _as_dict(reason: StopReason) -> dict[str, Any]:
    return {"rule": reason.rule, "detail": reason.detail, "stopped_at": reason.at}


def _target(text: str) -> dict[str, float]:
    name, _, value = text.rpartition("=")
    try:
        if name:
            return {name: float(value)}
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not of the form y=0.4")


def _patience(text: str) -> tuple[str, int]:
    name, _, number = text.rpartition("=")
    if not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form y=100")
    return name, count(number)
