"""Other libraries that share state between processes, measured beside ours in one run on one server of this machine.

python -m benchmarks peers install [--only optuna,saq] [--dir D]
python -m benchmarks peers run [--quick] [--only optuna,saq] [--json FILE] [--dir D]

`install` makes an environment for each peer, with exact versions. `run` measures peers and ours in turn, repetition by
repetition. It prints medians (min - max), then ratios of ours to theirs by repetition. Absolute values hold for one machine
only.

The conditions are the same for all: the server (our embedded one: data in memory only, a unix socket, empty at each start),
fresh Python processes, no-op work. The settings of each library are chosen for speed: `scripts/` has them, with the reasons.
The peers run on uvloop. Ours runs on the event loop of asyncio, and as a queue also on uvloop where that is installed
(`pip install ".[fast]"`). ardiq needs Python 3.12 and takes the first one on the PATH. The others run on the Python of this
program.

The differences:

- Optuna writes four journal entries for a trial and reads each of them. Every process keeps all trials in memory, so that a
  call of `ask` takes longer the more trials there are. Hence only 1,000 trials. The random sampler draws two numbers. Optuna
  in memory shares nothing.
- A Manager dict lives in one process of one host. It is not durable, has neither states nor owners, and notices no dead
  process. Its calls block, so each process makes one call at a time.
- Ours runs 64 coroutines in each process and sends their calls together. `one coroutine` is a single sequential worker.
- The queues are set to store no results, which makes them faster; ours always stores them. All acknowledge a job when it is
  done. The jobs of a dead worker run again after 1 minute (streaq, ardiq), 5 minutes (arq, docket), 10 minutes (taskiq), or
  after the job's timeout if retries are on (saq). Ours fails or requeues them as soon as it detects that the process has
  ended.
- arq and docket poll. Their polls are set to a millisecond, which loads an idle server and worker. The others wait.
- ardiq, streaq and taskiq prefetch up to 1,024 jobs. saq and ours take one job for each free worker: an idle `pop_task` of
  ours waits for the event of a pushed task and then pops it.
- Cold reads: ours makes a polars frame, a Manager dict a dict, Optuna a list of trials. All times include the connection and
  exclude the imports.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.peers.comparison import FULL, NAMES, QUICK, compare
from benchmarks.peers.environments import DEFAULT_DIRECTORY, PEERS, install, python_of
from benchmarks.report import Table
from rush_async.embedded.server import acquire

__all__ = ["main", "measure"]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks peers", description="Other libraries beside ours.")
    commands = parser.add_subparsers(dest="command", required=True)
    installing = commands.add_parser("install", help="make an environment for each peer")
    running = commands.add_parser("run", help="measure")
    for command in (installing, running):
        command.add_argument("--only", type=_names, default=NAMES, help=f"some of {','.join(NAMES)}")
        command.add_argument(
            "--dir",
            type=Path,
            default=DEFAULT_DIRECTORY,
            help=f"for the environments ({DEFAULT_DIRECTORY})",
        )
    running.add_argument("--quick", action="store_true", help="fewer and shorter repetitions")
    running.add_argument("--json", type=Path, help="write the rows there")
    given = parser.parse_args(argv)
    directory = given.dir.expanduser().absolute()
    if given.command == "install":
        install([name for name in given.only if name in PEERS], directory)
        return
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, load {load}")
    table, begun = Table(), time.monotonic()
    try:
        measure(table, given.only, directory, quick=given.quick)
    finally:
        if given.json is not None:
            table.write(given.json)
    print(f"\n{time.monotonic() - begun:.0f} s, load {', '.join(f'{one:.1f}' for one in os.getloadavg())} at the end")


def measure(table: Table, names: Sequence[str] = NAMES, directory: Path = DEFAULT_DIRECTORY, *, quick: bool = False) -> None:
    """Adds the rows of those of these peers that are installed, and ours beside them."""
    for name in names:
        if name in PEERS and python_of(name, directory) is None:
            print(f"\n{name} is left out because it is not installed: run python -m benchmarks peers install --only {name}")
    # A shell ignores Ctrl-C for a program in the background. With these handlers no script and no server is left behind.
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, signal.default_int_handler)
    lease = acquire()
    try:
        compare(table, names, QUICK if quick else FULL, lease.url, directory)
    except KeyboardInterrupt:
        raise SystemExit("\ninterrupted: all scripts and the server have ended") from None
    finally:
        lease.release()


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in NAMES]:
        raise argparse.ArgumentTypeError(f"no peer is called {unknown[0]!r}: choose from {', '.join(NAMES)}")
    return names


if __name__ == "__main__":
    main()
