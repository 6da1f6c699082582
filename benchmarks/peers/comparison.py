"""Measures peers and ours in turn, repetition by repetition, on one server. `__main__` explains the figures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import redis

from benchmarks.peers.environments import PEERS, python_of
from benchmarks.peers.processes import Script, ScriptError, hold, run
from benchmarks.report import Row, Table, ratio

__all__ = ["FULL", "NAMES", "QUICK", "SECTIONS", "Scale", "compare", "percentiles"]

QUEUES = ("arq", "saq", "streaq", "taskiq", "docket", "ardiq")
NAMES = ("optuna", "manager", *QUEUES)
CONCURRENCY = 64


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    Attributes:
        repetitions: how often each script runs.
        processes: the numbers of processes that propose and report.
        trials: Optuna's trials over all processes. Their cost grows with their number.
        tasks: the tasks of ours and of the Manager dict, in each process.
        jobs: the jobs in the queue of a peer.
        our_jobs: the jobs in our queue: more, because ours would finish `jobs` too soon for a reliable time.
        starts: the jobs that are enqueued one at a time.
        read: the finished tasks that a fresh process reads.
        read_trials: the trials that a fresh process reads: fewer, because Optuna takes long to create them.
        timeout: seconds after which a script is ended.
    """

    repetitions: int
    processes: tuple[int, ...] = (1, 2, 4)
    trials: int = 1_000
    tasks: int = 12_800
    jobs: int = 2_000
    our_jobs: int = 20_000
    starts: int = 500
    read: int = 100_000
    read_trials: int = 2_000
    timeout: float = 60.0


QUICK = Scale(repetitions=3, jobs=1_000, starts=200, tasks=6_400, our_jobs=10_000, read_trials=1_000)
FULL = Scale(repetitions=5)


@dataclass
class Cell:
    """One measurement of one library.

    Attributes:
        name: how the names of its rows begin.
        script: the script that measures it.
        values: turns a report of the script into one value or more, by the row's name and unit.
        note: a note for its rows.
        failure: why a repetition failed, or empty.
        is_given_up: whether no further repetition is tried.
    """

    name: str
    script: Script
    values: Callable[[dict[str, Any]], dict[tuple[str, str], float]]
    note: str = ""
    measured: list[dict[tuple[str, str], float] | None] = field(default_factory=list[dict[tuple[str, str], float] | None])
    failure: str = ""
    is_given_up: bool = False

    def measure(self, timeout: float) -> None:
        """Runs one repetition. A script that hung once is not tried again."""
        value = None
        if not self.is_given_up:
            try:
                value = self.values(run(self.script, timeout))
            except ScriptError as error:
                self.give_up(str(error), for_ever=error.is_hang)
        self.measured.append(value)

    def give_up(self, why: str, *, for_ever: bool) -> None:
        """Records why a repetition failed."""
        self.failure = why
        self.is_given_up = for_ever

    def rows(self, section: str) -> list[Row]:
        """Returns its rows without failed repetitions. If all failed, one row without a number has the reason as its note."""
        good = [one for one in self.measured if one is not None]
        note = "; ".join(filter(None, [self.note, self.failure]))
        if not good:
            return [Row(section, self.name, [math.nan], "", note=note)]
        return [
            Row(section, f"{self.name}{what}", [one[what, unit] for one in good], unit, note=note) for what, unit in good[0]
        ]


def rate(report: dict[str, Any]) -> dict[tuple[str, str], float]:
    """Tasks or jobs a second."""
    return {("", "/s"): report["n"] / report["seconds"]}


def percentiles(report: dict[str, Any]) -> dict[tuple[str, str], float]:
    """The median and the 99th percentile of the times to start."""
    cuts = statistics.quantiles(report["milliseconds"], n=100, method="inclusive")
    return {(", p50", "ms"): cuts[49], (", p99", "ms"): cuts[98]}


def milliseconds_a_thousand(report: dict[str, Any]) -> dict[tuple[str, str], float]:
    """The milliseconds to read 1,000 tasks."""
    return {("", "ms"): report["seconds"] / report["n"] * 1e6}


class Comparison:
    """One run of the comparison.

    Args:
        table: the table for the rows.
        names: the peers to measure. Those without an environment are left out.
        scale: how much is measured.
        url: the address of the server. Its data are deleted before each script.
        directory: the directory of the environments.
    """

    def __init__(self, table: Table, names: Collection[str], scale: Scale, url: str, directory: Path) -> None:
        self.table = table
        self.scale = scale
        self.url = url
        self.pythons = {name: python_of(name, directory) for name in PEERS}
        self.names = [name for name in NAMES if name in names and (name == "manager" or self.pythons[name])]
        self.server = redis.Redis.from_url(url)

    def script(self, name: str, action: str, n: int, peer: str | None = None, **options: str | int) -> Script:
        """A script for the Python of a peer, or for ours."""
        given = {"url": self.url, "n": n, **options}
        words = [word for option, value in given.items() for word in (f"--{option}", str(value))]
        return Script(name, None if peer is None else self.pythons[peer], (action, *words))

    def measure(self, section: str, cells: list[Cell], ours: list[tuple[str, str, str]], *, flush: bool = True) -> None:
        """Measures cells in turn, and adds their rows and the ratios of ours to theirs.

        Args:
            section: the heading of the rows.
            cells: our cells and those of the peers.
            ours: the cells to compare: the name of ours, the name of another, and the goal for the first value of both, or "".
            flush: whether each script begins on an empty server.
        """
        for _ in range(self.scale.repetitions):
            for cell in cells:
                if flush:
                    self.server.flushall()
                cell.measure(self.scale.timeout)
        self.table.add(*[row for cell in cells for row in cell.rows(section)])
        by_name = {cell.name: cell for cell in cells}
        for mine, other, goal in ours:
            if mine in by_name and other in by_name:
                self.table.add(*ratios(section, by_name[mine], by_name[other], goal))

    def propose(self) -> None:
        """Tasks with two inputs and one output: proposed, recorded and reported, so that another process can read them."""
        scale = self.scale
        cells = [
            Cell("ours, one coroutine", self.script("rush_tasks", "propose", scale.tasks // 8, coroutines=1), rate),
        ]
        pairs: list[tuple[str, str, str]] = []
        for n in scale.processes:
            name = f"{n} process{'es' * (n > 1)}"
            ours = f"ours, {name}"
            script = self.script("rush_tasks", "propose", scale.tasks * n, processes=n, coroutines=CONCURRENCY)
            cells.append(Cell(ours, script, rate, f"{CONCURRENCY} coroutines in each"))
            if "optuna" in self.names:
                script = self.script("optuna_trials", "propose", scale.trials, "optuna", processes=n)
                cells.append(Cell(f"Optuna's Redis journal, {name}", script, rate, f"{scale.trials:,} trials from none"))
                pairs.append((ours, f"Optuna's Redis journal, {name}", ">= 100" if n == 1 else ""))
            if "manager" in self.names:
                script = self.script("manager_dict", "propose", scale.tasks * n // 2, processes=n)
                cells.append(Cell(f"Manager dict, {name}", script, rate, "one host, gone with its manager"))
                pairs.append((ours, f"Manager dict, {name}", ""))
        if "optuna" in self.names:
            script = self.script("optuna_trials", "memory", scale.trials, "optuna")
            cells.append(Cell("Optuna in memory, 1 process", script, rate, "no other process can read it"))
            pairs.append(("ours, 1 process", "Optuna in memory, 1 process", ""))
            pairs.append(("ours, one coroutine", "Optuna's Redis journal, 1 process", ">= 15"))
        self.measure("A task proposed, recorded and reported", cells, pairs)

    def jobs(
        self,
        section: str,
        action: str,
        n: int,
        n_ours: int,
        values: Callable[..., dict[tuple[str, str], float]],
        goals: Mapping[str, str] | None = None,
    ) -> None:
        """Measures one of the two figures of job queues."""
        queues = [name for name in QUEUES if name in self.names]
        cells = [Cell("ours", self.script("rush_jobs", action, n_ours, coroutines=CONCURRENCY), values)]
        if find_spec("uvloop") is not None:
            script = self.script("rush_jobs", action, n_ours, coroutines=CONCURRENCY, loop="uvloop")
            cells.append(Cell("ours, on uvloop", script, values))
        ours = [cell.name for cell in cells]
        for name in queues:
            note = {"arq": "polls every ms instead of every 500", "docket": "polls every ms instead of every 250"}.get(name, "")
            cells.append(Cell(name, self.script(f"{name}_jobs", action, n, name, coroutines=CONCURRENCY), values, note))
        self.measure(section, cells, [(mine, name, (goals or {}).get(name, "")) for name in queues for mine in ours])

    def consume(self) -> None:
        """No-op jobs that one worker process runs."""
        section = f"No-op jobs, one worker process, {CONCURRENCY} in hand"
        self.jobs(section, "consume", self.scale.jobs, self.scale.our_jobs, rate)

    def starts(self) -> None:
        """The time from enqueuing to start in another, idle process."""
        section = "From enqueuing to start in another process, at quiet (a ratio below 1: ours is sooner)"
        self.jobs(section, "latency", self.scale.starts, self.scale.starts, percentiles, {"taskiq": "<= 1"})

    def read(self) -> None:
        """The time in which a fresh process reads all finished tasks."""
        scale = self.scale
        cells: list[Cell] = []
        self.server.flushall()
        with ExitStack() as stack:

            def add(name: str, fill: Script, script: Script, n: int, note: str = "") -> None:
                cell = Cell(f"{name}, of {n:,}", script, milliseconds_a_thousand, note)
                cells.append(cell)
                try:
                    if fill.arguments[0] == "hold":
                        url = stack.enter_context(hold(fill, scale.timeout))["url"]
                        cell.script = Script(script.name, script.python, (*script.arguments, "--url", url))
                    else:
                        run(fill, scale.timeout)
                except ScriptError as error:
                    cell.give_up(f"its data could not be written: the script {error}", for_ever=True)

            add(
                "ours",
                self.script("rush_tasks", "fill", scale.read),
                self.script("rush_tasks", "read", 0),
                scale.read,
                "a frame",
            )
            if "manager" in self.names:
                fill, script = self.script("manager_dict", "hold", scale.read), self.script("manager_dict", "read", 0)
                add("Manager dict", fill, script, scale.read, "a dict")
            if "optuna" in self.names:
                fill = self.script("optuna_trials", "propose", scale.read_trials, "optuna")
                script = self.script("optuna_trials", "read", 0, "optuna")
                add("Optuna's Redis journal", fill, script, scale.read_trials, "a list of trials; takes longer in proportion")
            section = (
                "Opening and reading all finished in a fresh process, each 1,000 of them (a ratio below 1: ours is sooner)"
            )
            self.measure(section, cells, [(cells[0].name, cell.name, "") for cell in cells[1:]], flush=False)


SECTIONS: dict[str, Callable[[Comparison], None]] = {
    "propose": Comparison.propose,
    "consume": Comparison.consume,
    "starts": Comparison.starts,
    "read": Comparison.read,
}


def name_of_ratio(ours: str, other: str) -> str:
    """The name of a ratio, such as `ours over arq`. What both names end with stands only once."""
    what = ours.partition(", ")[2]
    if not what or other.endswith(what):
        return f"ours over {other}"
    return f"{ours} over {other}"


def ratios(section: str, ours: Cell, other: Cell, goal: str) -> list[Row]:
    """The ratios of ours to another, for the repetitions in which neither failed. The goal is that of the first value."""
    pairs = [
        (mine, its) for mine, its in zip(ours.measured, other.measured, strict=True) if mine is not None and its is not None
    ]
    if not pairs:
        return []
    return [
        ratio(
            section,
            name_of_ratio(ours.name, other.name) + what,
            [mine[what, unit] for mine, _ in pairs],
            [its[what, unit] for _, its in pairs],
            goal=goal if at == 0 else "",
        )
        for at, (what, unit) in enumerate(pairs[0][0])
    ]


def compare(
    table: Table, names: Collection[str], scale: Scale, url: str, directory: Path, sections: Collection[str] = tuple(SECTIONS)
) -> None:
    """Measures peers and ours, and adds their rows. Deletes all data of the server."""
    comparison = Comparison(table, names, scale, url, directory)
    try:
        for name in sections:
            SECTIONS[name](comparison)
    finally:
        comparison.server.flushall()
        comparison.server.close()
