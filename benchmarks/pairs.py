"""This checkout and another, measured in turn: is a row worse than before, or does the machine only have a slow moment?

python -m benchmarks pairs --with PATH [--pairs 9] [--only tasks,loop] [--repetitions 3] [--quick] [--json FILE]

A pair is one run of the benchmarks of each checkout, each in a fresh process with the checkout as its working directory and
PYTHONPATH. Every second pair begins with the other checkout, which needs no more than `python -m benchmarks --json FILE`.

The cost of a row is its median, or the inverse of it where more is better. The table shows the cost here over the cost there:
the median of all pairs and the quartiles. A row is `worse` if even the lower quartile is above 1.05, and `better` if even the
upper quartile is below 0.95. Verdicts from fewer than 9 pairs are not reliable.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import Row, Table, read

__all__ = ["PairedRow", "RunError", "Runs", "main", "paired", "run"]

ROOT = Path(__file__).parents[1]
TOLERANCE = 0.05
LEAST_PAIRS = 9  # fewer do not tell a slower program from a busy machine

Key = tuple[str, str]
Runs = tuple[Sequence[Row], Sequence[Row]]  # the rows of one pair: of this checkout, and of the other


class RunError(Exception):
    """The benchmarks of a checkout failed. The message has the end of what they printed."""


@dataclass(frozen=True)
class PairedRow:
    """A row that both checkouts measured.

    Attributes:
        section: the heading of the row.
        name: what was measured.
        ratios: the cost here over the cost there, one a pair.
        is_ranked: whether it is known that less is better, or that more is.
    """

    section: str
    name: str
    ratios: Sequence[float]
    is_ranked: bool = True

    @property
    def median(self) -> float:
        """The middle ratio."""
        return statistics.median(self.ratios)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The lower and the upper quartile of the ratios."""
        if len(self.ratios) < 2:
            return self.median, self.median
        lower, _, upper = statistics.quantiles(self.ratios, n=4, method="inclusive")
        return lower, upper

    @property
    def verdict(self) -> str:
        """`worse`, `better`, or empty if the quartiles do not exclude the tolerance."""
        lower, upper = self.quartiles
        if not self.is_ranked:
            return "not ranked"
        return "worse" if lower > 1 + TOLERANCE else "better" if upper < 1 - TOLERANCE else ""

    def __str__(self) -> str:
        lower, upper = self.quartiles
        text = f"  {self.name:<72} {self.median:>7.3f} x  ({lower:.3f} - {upper:.3f})  {len(self.ratios):>2}  {self.verdict}"
        return text.rstrip()


def paired(pairs: Iterable[Runs]) -> tuple[list[PairedRow], list[str]]:
    """Compares the runs of all pairs, row by row.

    Args:
        pairs: the rows of each pair.

    Returns:
        The rows that both checkouts measured, and the names of those that only one of them did. Rows without a number or with a
        cost of 0 are left out.
    """
    ratios: dict[Key, list[float]] = {}
    ranks: dict[Key, int] = {}
    single: dict[Key, None] = {}
    for pair in pairs:
        here, there = ({_key(row): row for row in rows} for rows in pair)
        single |= dict.fromkeys([key for key in {**here, **there} if key not in here or key not in there])
        for key in here.keys() & there.keys():
            mine, its = here[key].median, there[key].median
            if not (math.isfinite(mine) and math.isfinite(its) and mine and its):
                continue
            ranks[key] = _rank(here[key])
            ratios.setdefault(key, []).append(its / mine if ranks[key] > 0 else mine / its)
    order = [key for pair in pairs for key in map(_key, pair[0])]
    found = [PairedRow(*key, ratios[key], bool(ranks[key])) for key in dict.fromkeys(order) if key in ratios]
    return found, [": ".join(key) for key in single]


def _key(row: Row) -> Key:
    # Older checkouts write the seconds of a call into the name of its row.
    return row.section, re.sub(r" \([\d.,]+ s in all\)$", "", row.name)


def _rank(row: Row) -> int:
    """1 if more is better, -1 if less is, 0 for the ratio of two quantities without a goal."""
    if row.goal:
        return 1 if row.goal.startswith(">=") else -1
    return {"/s": 1, "x": 0}.get(row.unit, -1)


def run(checkout: Path, words: Sequence[str]) -> list[Row]:
    """Runs the benchmarks of a checkout in a fresh process and returns their rows.

    Args:
        checkout: the directory that has `benchmarks` and `rush_async`.
        words: the command line after `python -m benchmarks`, without `--json`.

    Raises:
        RunError: the process failed.
    """
    environment = {name: value for name, value in os.environ.items() if name not in ("RUSH_URL", "REDIS_URL", "RUSH_DATA_DIR")}
    environment["PYTHONPATH"] = str(checkout)
    with tempfile.TemporaryDirectory(prefix="pairs-") as directory:
        figures = Path(directory, "figures.json")
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks", *words, "--json", str(figures)],
            cwd=checkout,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode or not figures.exists():
            last = "\n".join(done.stdout.splitlines()[-5:])
            raise RunError(f"the benchmarks of {checkout} ended with {done.returncode}:\n{last}")
        return read(figures)


def measure(other: Path, n_pairs: int, words: Sequence[str]) -> list[Runs]:
    """Runs n pairs. A pair with a run that fails is printed and left out."""
    pairs: list[Runs] = []
    for at in range(n_pairs):
        try:
            if at % 2:
                there = run(other, words)
                here = run(ROOT, words)
            else:
                here = run(ROOT, words)
                there = run(other, words)
        except RunError as error:
            print(f"pair {at + 1} is left out: {error}", flush=True)
        else:
            pairs.append((here, there))
            print(f"pair {at + 1} of {n_pairs} is measured", flush=True)
    return pairs


def show(rows: Sequence[PairedRow], single: Sequence[str]) -> None:
    """Prints the table, the rows of one checkout only, and a line that sums it up."""
    section = ""
    print("\ncost here over cost there: median (quartiles), number of pairs; above 1 it is worse here")
    for row in rows:
        if row.section != section:
            print(f"\n{row.section}")
        section = row.section
        print(row)
    if single:
        print("\nmeasured by one checkout only:", *single, sep="\n  ")
    worse = [row for row in rows if row.verdict == "worse"]
    print(f"\nworse: {len(worse)} of {len(rows)} rows")
    for row in worse:
        print(f"  {row.section}: {row.name} {row.median:.3f} x")
    if any(len(row.ratios) < LEAST_PAIRS for row in rows):
        print(f"some rows have fewer than {LEAST_PAIRS} pairs: their verdicts are not reliable")


def main(argv: Sequence[str], parts: Sequence[str]) -> None:
    """Measures and prints what the command line says.

    Args:
        argv: the words after `python -m benchmarks pairs`.
        parts: what `--only` may name.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks pairs", description="This checkout and another, in turn.")
    parser.add_argument("--with", type=Path, required=True, dest="other", metavar="PATH", help="the other checkout")
    parser.add_argument("--pairs", type=int, default=LEAST_PAIRS, help="how many (default: 9)")
    parser.add_argument("--only", default=",".join(parts), help=f"some of {','.join(parts)}")
    parser.add_argument("--repetitions", type=int, default=3, help="in each run (default: 3)")
    parser.add_argument("--quick", action="store_true", help="shorter repetitions")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the ratios there")
    options = parser.parse_args(argv)
    other = options.other.expanduser().absolute()
    if not (other / "benchmarks").is_dir():
        parser.error(f"{other} has no folder benchmarks: name the root of a checkout")
    if unknown := set(options.only.split(",")).difference(parts):
        parser.error(f"there is no part {', '.join(sorted(unknown))}: choose from {', '.join(parts)}")
    words = ["--only", options.only, "--repetitions", str(options.repetitions), *(["--quick"] if options.quick else [])]
    pairs = measure(other, options.pairs, words)
    if not pairs:
        sys.exit("no pair was measured")
    rows, single = paired(pairs)
    show(rows, single)
    if options.json:
        Table([Row(row.section, row.name, row.ratios, "x", note=row.verdict) for row in rows]).write(options.json)
