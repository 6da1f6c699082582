"""Peers and ours in turn, repetition by repetition, on one server: what the figures say is in `__main__`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import dataclass, field
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
        repetitions: of everything.
        processes: how many propose and report.
        trials: Optuna's, over all processes: what it costs grows with their number.
        tasks: ours and the Manager dict's, a process.
        jobs: a peer's queue holds.
        our_jobs: our queue holds; more, because as many would be gone too soon to be timed.
        starts: jobs that are enqueued one at a time.
        read: finished tasks that a fresh process reads.
        read_trials: the same of Optuna, which takes long to make them.
        timeout: seconds after which a script is given up.
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
    """One thing to measure with one library.

    Attributes:
        name: as its rows begin.
        script: what measures it.
        values: what a report says, by the row's name and unit: one value or more a repetition.
        note: for the reader of its rows.
        failure: of a repetition, if one failed.
        is_given_up: whether it is not tried again.
    """

    name: str
    script: Script
    values: Callable[[dict[str, Any]], dict[tuple[str, str], float]]
    note: str = ""
    measured: list[dict[tuple[str, str], float] | None] = field(default_factory=list[dict[tuple[str, str], float] | None])
    failure: str = ""
    is_given_up: bool = False

    def measure(self, timeout: float) -> None:
        """One repetition. What hung once is not tried again."""
        value = None
        if not self.is_given_up:
            try:
                value = self.values(run(self.script, timeout))
            except ScriptError as error:
                self.give_up(str(error), for_ever=error.is_hang)
        self.measured.append(value)

    def give_up(self, why: str, *, for_ever: bool) -> None:
        """Notes a failure."""
        self.failure = why
        self.is_given_up = for_ever

    def rows(self, section: str) -> list[Row]:
        """Its rows; a repetition that failed is left out, and where all did, one row without a number says so."""
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
    """The middle one, and the one that 1 of 100 exceed."""
    cuts = statistics.quantiles(report["milliseconds"], n=100, method="inclusive")
    return {(", p50", "ms"): cuts[49], (", p99", "ms"): cuts[98]}


def milliseconds_a_thousand(report: dict[str, Any]) -> dict[tuple[str, str], float]:
    """How long 1,000 tasks take to read."""
    return {("", "ms"): report["seconds"] / report["n"] * 1e6}


class Comparison:
    """One run: which peers, how much, where.

    Args:
        names: the peers to measure; those without an environment are left out.
        url: the server's; its data are thrown away again and again.
        directory: of the environments.
    """

    def __init__(self, table: Table, names: Collection[str], scale: Scale, url: str, directory: Path) -> None:
        self.table = table
        self.scale = scale
        self.url = url
        self.pythons = {name: python_of(name, directory) for name in PEERS}
        self.names = [name for name in NAMES if name in names and (name == "manager" or self.pythons[name])]
        self.server = redis.Redis.from_url(url)

    def script(self, name: str, action: str, n: int, peer: str | None = None, **options: str | int) -> Script:
        """A script that is run with a peer's Python, or with ours."""
        given = {"url": self.url, "n": n, **options}
        words = [word for option, value in given.items() for word in (f"--{option}", str(value))]
        return Script(name, None if peer is None else self.pythons[peer], (action, *words))

    def measure(self, section: str, cells: list[Cell], ours: list[tuple[str, str, str]], *, flush: bool = True) -> None:
        """Measures cells in turn and adds their rows, then the ratios of ours to theirs.

        Args:
            section: the heading.
            cells: ours and those of the peers.
            ours: cells to compare, ours and another, and the goal of the first value of both, if any.
            flush: whether each begins on an empty server.
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
        """Two floats in, one float out: proposed, recorded and reported, with another process able to read it."""
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
            cells.append(Cell("Optuna in memory, 1 process", script, rate, "nobody else can read it"))
            pairs.append(("ours, 1 process", "Optuna in memory, 1 process", ""))
            pairs.append(("ours, one coroutine", "Optuna's Redis journal, 1 process", ">= 15"))
        self.measure("A task proposed, recorded and reported", cells, pairs)

    def jobs(self, section: str, action: str, n: int, n_ours: int, values: Callable[..., dict[tuple[str, str], float]]) -> None:
        """One of the two figures of job queues."""
        queues = [name for name in QUEUES if name in self.names]
        cells = [Cell("ours", self.script("rush_jobs", action, n_ours, coroutines=CONCURRENCY), values)]
        for name in queues:
            note = {"arq": "polls every ms instead of every 500", "docket": "polls every ms instead of every 250"}.get(name, "")
            cells.append(Cell(name, self.script(f"{name}_jobs", action, n, name, coroutines=CONCURRENCY), values, note))
        self.measure(section, cells, [("ours", name, "") for name in queues])

    def consume(self) -> None:
        """No-op jobs by one worker process."""
        section = f"No-op jobs, one worker process, {CONCURRENCY} in hand"
        self.jobs(section, "consume", self.scale.jobs, self.scale.our_jobs, rate)

    def starts(self) -> None:
        """From enqueuing to start, in another process, at quiet."""
        section = "From enqueuing to start in another process, at quiet (a ratio below 1: ours is sooner)"
        self.jobs(section, "latency", self.scale.starts, self.scale.starts, percentiles)

    def read(self) -> None:
        """What a fresh process needs to read all that is finished."""
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
                    cell.give_up(f"filling it {error}", for_ever=True)

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
    """Such as `ours over arq`; what both begin or end with is said once."""
    what = ours.partition(", ")[2]
    if not what or other.endswith(what):
        return f"ours over {other}"
    return f"{ours} over {other}"


def ratios(section: str, ours: Cell, other: Cell, goal: str) -> list[Row]:
    """Ours over another, of the repetitions in which neither failed."""
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
            goal=goal,
        )
        for what, unit in pairs[0][0]
    ]


def compare(
    table: Table, names: Collection[str], scale: Scale, url: str, directory: Path, sections: Collection[str] = tuple(SECTIONS)
) -> None:
    """Measures peers and ours and adds the rows; the server's data are thrown away."""
    comparison = Comparison(table, names, scale, url, directory)
    try:
        for name in sections:
            SECTIONS[name](comparison)
    finally:
        comparison.server.flushall()
        comparison.server.close()
