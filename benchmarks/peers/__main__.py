"""Peers that share state between processes, measured beside ours in one run, on one server, on this machine.

python -m benchmarks peers install [--only optuna,saq] [--dir D]
python -m benchmarks peers run [--quick] [--only optuna,saq] [--json FILE] [--dir D]

`install` makes an environment a peer, with exact versions. `run` takes peers and ours in turn, repetition by repetition, and
prints medians (min - max), then ratios of ours to theirs by repetition. Absolute values mean little on another machine.

What is the same for all: the server (ours, embedded: data in memory only, a unix socket, empty at each start), fresh Python
processes, no-op work. What each library may choose, it chooses for speed: `scripts/` has the settings, each with its reasons.
The peers' event loops are uvloop's, ours is the plain one of asyncio. ardiq needs Python 3.12 and takes the first such on the
PATH; the others run on the Python of this program.

What is not the same:

- Optuna writes four journal entries a trial and reads each back; every process keeps all trials in memory, so that asking costs
  more the more there are: hence 1,000. The random sampler draws two numbers. In memory it shares nothing.
- A Manager dict is one process of one host; it is not durable, knows no states and no owner, and notices no death. Its calls
  block, so that there is one at a time in a process.
- Ours runs 64 coroutines a process, whose calls travel together; `one coroutine` is the figure of a single sequential worker.
- The queues keep no results here (they can; it slows them), ours always does. All acknowledge a job when it is done. What a
  dead worker had in hand runs again after a minute (streaq, ardiq), 5 (arq, docket) or 10 (taskiq), and in saq after its
  timeout where retries were asked for; ours fails it, or queues it again as often as asked, once its process is seen to have
  ended.
- arq and docket poll; their polls are set to a millisecond, which loads server and worker while nothing happens. The others
  wait.
- ardiq, streaq and taskiq fetch jobs ahead, up to 1,024 here; ours and saq hand each job to who waits.
- Cold reads: ours makes a polars frame, a Manager dict a dict, Optuna a list of trials. All include connecting, and
  none its imports.
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
    """Does what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks peers", description="Libraries that share state, beside ours.")
    commands = parser.add_subparsers(dest="command", required=True)
    installing = commands.add_parser("install", help="make an environment for each peer")
    running = commands.add_parser("run", help="measure")
    for command in (installing, running):
        command.add_argument("--only", type=_names, default=NAMES, help=f"some of {','.join(NAMES)}")
        command.add_argument("--dir", type=Path, default=DEFAULT_DIRECTORY, help=f"of the environments ({DEFAULT_DIRECTORY})")
    running.add_argument("--quick", action="store_true", help="fewer and shorter repetitions")
    running.add_argument("--json", type=Path, help="a file for the rows")
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
    """Adds the rows of these peers, as far as they are installed, and ours beside them."""
    for name in names:
        if name in PEERS and python_of(name, directory) is None:
            print(f"\n{name} is left out, as it is not installed: python -m benchmarks peers install --only {name} tells why")
    # Also where a shell started this in the background, which ignores Ctrl-C there: no script and no server is left behind.
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, signal.default_int_handler)
    lease = acquire()
    try:
        compare(table, names, QUICK if quick else FULL, lease.url, directory)
    except KeyboardInterrupt:
        raise SystemExit("\nended early; all that was started is ended too") from None
    finally:
        lease.release()


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in NAMES]:
        raise argparse.ArgumentTypeError(f"no peer is called {unknown[0]!r}: there are {', '.join(NAMES)}")
    return names


if __name__ == "__main__":
    main()
