"""Rows of figures in one table, which can be printed, written as JSON, and compared with an earlier run."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import rush_async

__all__ = ["Row", "Table", "compare", "ratio", "read"]


@dataclass(frozen=True)
class Row:
    """One measured quantity.

    Attributes:
        section: the heading of the row.
        name: what was measured.
        values: one for each repetition.
        unit: the unit of the values: `us`, `ms`, `s`, `/s`, `bytes`, `round trips`, `x` and the like.
        goal: a bound for the median, such as `<= 4.2`, or empty.
        note: how to read the row, or empty.
    """

    section: str
    name: str
    values: Sequence[float]
    unit: str
    goal: str = ""
    note: str = ""

    @property
    def median(self) -> float:
        """The middle value."""
        return statistics.median(self.values)

    @property
    def is_reached(self) -> bool | None:
        """Whether the median reaches the goal; None without one."""
        return self.distance <= 1 if self.goal else None

    @property
    def distance(self) -> float:
        """The factor by which the median misses the goal. 1 or less means reached."""
        sign, bound = self.goal.split()
        return self.median / float(bound) if sign == "<=" else float(bound) / self.median

    def __str__(self) -> str:
        text = f"  {self.name:<62} {_number(self.median):>9} {self.unit:<11}"
        if len(self.values) > 1:
            text += f" ({_number(min(self.values))} - {_number(max(self.values))})"
        if self.goal:
            text += f"  {'reached' if self.is_reached else 'MISSED'}: {self.goal}"
        return text + (f"  [{self.note}]" if self.note else "")


def ratio(section: str, name: str, above: Sequence[float], below: Sequence[float], unit: str = "x", **more: str) -> Row:
    """The ratio of two quantities that were measured in turn, for each repetition, so that a slow moment affects both."""
    return Row(section, name, [one / other for one, other in zip(above, below, strict=True)], unit, **more)


@dataclass
class Table:
    """Rows in the order of their measurement, printed as they are added."""

    rows: list[Row] = field(default_factory=list[Row])

    def add(self, *rows: Row) -> None:
        """Adds and prints rows, with a heading before the first row of a section."""
        for row in rows:
            if not self.rows or self.rows[-1].section != row.section:
                print(f"\n{row.section}")
            self.rows.append(row)
            print(row, flush=True)

    def missed(self, factor: float) -> list[Row]:
        """Returns the rows that miss their goal by more than this factor."""
        return [row for row in self.rows if row.goal and row.distance > factor]

    def write(self, path: Path) -> None:
        """Writes the table as JSON."""
        about = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "python": platform.python_version(),
            "cores": os.cpu_count(),
            "rush_async": rush_async.__version__,
        }
        path.write_text(json.dumps({"about": about, "rows": [asdict(row) for row in self.rows]}, indent=1), "utf-8")


def read(path: Path) -> list[Row]:
    """Reads the rows of an earlier run."""
    rows: list[dict[str, Any]] = json.loads(path.read_text("utf-8"))["rows"]
    return [Row(**row) for row in rows]


def compare(new: Iterable[Row], old: Iterable[Row]) -> None:
    """Prints each row that both runs have, with the ratio of their medians."""
    before = {(row.section, row.name): row for row in old}
    print("\nnow over then (absolute values depend on the load of the machine, ratios within a run do not)")
    for row in new:
        if (then := before.get((row.section, row.name))) is not None and then.median:
            change = row.median / then.median
            print(f"  {row.name:<62} {_number(row.median):>9} {_number(then.median):>9} {row.unit:<11} {change:8.2f} x")


def _number(value: float) -> str:
    size = abs(value)
    return f"{value:,.0f}" if size >= 1_000 else f"{value:.1f}" if size >= 100 else f"{value:.3g}"
