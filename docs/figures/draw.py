"""Draws the figures of the documentation, beside this file:

    python docs/figures/draw.py

- `run.svg`: what four workers did in a search that is run for it, and the best value meanwhile
- `task.svg`: the life of a task, and the calls that move it
- `processes.svg`: how processes, event loops, connections and the database hang together

The two diagrams come out the same, byte for byte, as often as they are drawn. Backgrounds are transparent and colours of middle
lightness, so that all of them can be read on white and on black.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from rush_async import Rush, RushWorker

INK = "#78838f"  # of letters and axes
FAINT = "#78838f2a"  # of what holds other things
DOTS: dict[str, Any] = {"linewidth": 0.7, "linestyle": (0, (1.5, 2.5)), "zorder": 0}
LOWEST, HIGHEST = 0.3, 300  # of the Branin function, about
BLUE, ORANGE, GREEN, RED = "#4a8fd0", "#e08a2c", "#3d9c6c", "#d0605a"

STYLE: Any = {  # of matplotlib
    "svg.hashsalt": "rush_async",  # names of shapes in the file, which would be random
    "font.family": "DejaVu Sans",  # matplotlib brings it along
    "font.size": 9,
    "text.color": INK,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "path.simplify": True,
}


# the picture of a run


def branin(x1: float, x2: float) -> float:
    """The Branin function; its minimum is 0.3979."""
    a = x2 - 5.1 / (4 * math.pi**2) * x1**2 + 5 / math.pi * x1 - 6
    return a**2 + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x1) + 10


async def search(rush: RushWorker, evals: int, pace: float) -> None:
    """Half of the proposals are random, the others near the best that anybody has found: workers learn from each other."""
    while True:
        tasks = await rush.fetch_finished_tasks()
        xs = {"x1": random.uniform(-5, 10), "x2": random.uniform(0, 15)}
        if tasks.height and random.random() < 0.5:
            best = tasks.sort("y").row(0, named=True)
            xs = {name: best[name] + random.gauss(0, 0.7) for name in xs}
        async with rush.task(xs, budget=evals) as task:
            if task is None:
                return
            await asyncio.sleep(pace * random.lognormvariate(0, 0.5))  # some take longer than others
            task.ys = {"y": branin(**task.xs)}


async def run_search(rush: Rush, evals: int = 60, pace: float = 0.15) -> pl.DataFrame:
    """All tasks of a search by four workers, with their times."""
    random.seed(7)
    await rush.start_workers(search, n_workers=4, evals=evals, pace=pace)
    await rush.join_workers()
    return await rush.fetch_tasks(times=True)


@dataclass(frozen=True)
class Bar:
    """A task in the picture.

    Attributes:
        start: seconds from the beginning of the run.
        end: likewise.
        y: the result; nan of a task that has none.
        is_record: whether no task that ended before was better.
    """

    start: float
    end: float
    y: float
    is_record: bool


def bars_by_worker(tasks: pl.DataFrame) -> dict[str, list[Bar]]:
    """The tasks that ran and ended, by worker; workers in the order of their names, tasks in the order they ended.

    Args:
        tasks: what `fetch_tasks(times=True)` gave: `worker_id`, `y`, `started_at`, `ended_at`.
    """
    ended = tasks.filter(pl.col("started_at").is_not_null() & pl.col("ended_at").is_not_null()).sort("ended_at")
    first = ended["started_at"].min()
    seconds = {name: ((ended[name] - first).dt.total_microseconds() / 1e6).to_list() for name in ("started_at", "ended_at")}
    found: dict[str, list[Bar]] = {worker_id: [] for worker_id in sorted(set(ended["worker_id"]))}
    best = math.inf
    spans = zip(seconds["started_at"], seconds["ended_at"], strict=True)
    for worker_id, (start, end), y in zip(ended["worker_id"], spans, ended["y"], strict=True):
        is_record = y is not None and y < best
        best = y if is_record else best
        found[worker_id].append(Bar(start, end, math.nan if y is None else y, is_record))
    return found


def records(bars: dict[str, list[Bar]]) -> list[Bar]:
    """The tasks that were the best when they ended, in that order."""
    return sorted((bar for lane in bars.values() for bar in lane if bar.is_record), key=lambda bar: bar.end)


def draw_run(tasks: pl.DataFrame) -> Figure:
    """Who ran what when, above the best value meanwhile."""
    bars = bars_by_worker(tasks)
    best = records(bars)
    end = max(bar.end for lane in bars.values() for bar in lane)
    figure = Figure(figsize=(8, 3.9), layout="constrained")
    lanes, values = figure.subplots(2, 1, sharex=True, height_ratios=[5, 4])

    for at, lane in enumerate(bars.values()):
        for colour, edge, opacity, chosen in (
            (BLUE, BLUE, 0.5, [bar for bar in lane if not bar.is_record]),
            (ORANGE, "#a85f14", 1, [bar for bar in lane if bar.is_record]),
        ):
            spans = [(bar.start, bar.end - bar.start) for bar in chosen]
            lanes.broken_barh(spans, (at - 0.32, 0.64), facecolor=colour, edgecolor="none", alpha=opacity)
            strokes(lanes, [bar.end for bar in chosen], at - 0.32, at + 0.32, color=edge, linewidth=1.2)
        # Down to the value that each found.
        strokes(lanes, [bar.end for bar in lane if bar.is_record], at, len(bars), color=ORANGE, **DOTS)
    lanes.set_yticks(range(len(bars)), [worker_id.rpartition("_")[0].replace("_", " ") for worker_id in bars])
    lanes.set_ylim(len(bars) - 0.4, -0.5)
    lanes.tick_params(left=False, bottom=False)
    lanes.spines[["left", "bottom"]].set_visible(False)
    lanes.set_xlim(0, end)

    others = [bar for lane in bars.values() for bar in lane if not bar.is_record and not math.isnan(bar.y)]
    values.scatter([bar.end for bar in others], [bar.y for bar in others], s=9, color=BLUE, alpha=0.5, linewidth=0)
    times, ys = [bar.end for bar in best], [bar.y for bar in best]
    values.step([*times, end], [*ys, ys[-1]], where="post", color=ORANGE, linewidth=1.6)
    values.scatter(times, ys, s=20, color=ORANGE, linewidth=0, zorder=3, clip_on=False)
    for bar in best:
        strokes(values, [bar.end], bar.y, HIGHEST, color=ORANGE, **DOTS)
    values.set(yscale="log", ylim=(LOWEST, HIGHEST), ylabel="y", xlabel="seconds")
    values.set_yticks([1, 10, 100], ["1", "10", "100"])
    values.minorticks_off()
    return figure


def strokes(axes: Axes, xs: Sequence[float], bottom: float, top: float, **options: Any) -> None:
    """Vertical lines as one shape."""
    points = [point for x in xs for point in ((x, bottom), (x, top), (x, math.nan))]
    look: dict[str, Any] = {"solid_capstyle": "butt", **options}
    axes.plot([x for x, _ in points], [y for _, y in points], **look)


# diagrams


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure whose units are inches."""
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    return figure, axes


def box(axes: Axes, x: float, y: float, width: float, height: float, text: str, colour: str, **options: Any) -> None:
    """A filled box with a word in it; `x` and `y` are its middle."""
    shape = FancyBboxPatch((x - width / 2, y - height / 2), width, height, "round,pad=0,rounding_size=0.1")
    shape.set(facecolor=colour, edgecolor="none")
    axes.add_patch(shape)
    look: dict[str, Any] = {"color": "white", "weight": "bold", **options}
    axes.text(x, y, text, ha="center", va="center", **look)


def room(axes: Axes, x: float, y: float, width: float, height: float, title: str) -> None:
    """A framed area with a title at its top; `x` and `y` are its lower left corner."""
    shape = FancyBboxPatch((x, y), width, height, "round,pad=0,rounding_size=0.1")
    shape.set(facecolor="#78838f12", edgecolor=FAINT, linewidth=1)
    axes.add_patch(shape)
    axes.text(x + 0.12, y + height - 0.1, title, ha="left", va="top", size=8.5)


def arrow(
    axes: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    *,
    bend: float = 0.0,
    colour: str = INK,
    style: str = "-|>",
    **options: Any,
) -> None:
    """An arrow, bent to its right by a share of its length."""
    axes.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle=style, mutation_scale=11, color=colour, connectionstyle=f"arc3,rad={bend}", **options
        )
    )


def label(axes: Axes, x: float, y: float, *lines: str, calls: bool = True, **options: Any) -> None:
    """Names of calls, or what happens, beside an arrow."""
    look: dict[str, Any] = {"ha": "center", "va": "center", "linespacing": 1.3, "size": 8.5}
    look |= {"family": "DejaVu Sans Mono"} if calls else {"style": "italic"}
    axes.text(x, y, "\n".join(lines), **look | options)


def draw_task() -> Figure:
    """The four states of a task and what moves it between them."""
    figure, axes = canvas(8.2, 3.9)
    queued, running, finished, failed = (1.9, 2.35), (4.5, 2.35), (7.3, 2.35), (4.5, 0.45)
    for (x, y), name, colour in (
        (queued, "queued", BLUE),
        (running, "running", ORANGE),
        (finished, "finished", GREEN),
        (failed, "failed", RED),
    ):
        box(axes, x, y, 1.15, 0.5, name, colour, size=10)

    arrow(axes, (0.05, 2.35), (1.3, 2.35))
    label(axes, 0.62, 2.5, "push_tasks")
    arrow(axes, (4.5, 3.75), (4.5, 2.62))
    label(axes, 4.6, 3.35, "push_running_tasks", ha="left")
    arrow(axes, (2.49, 2.35), (3.91, 2.35))
    label(axes, 3.2, 2.5, "pop_task")
    arrow(axes, (5.09, 2.35), (6.71, 2.35))
    label(axes, 5.9, 2.5, "finish_tasks")
    arrow(axes, (4.2, 2.62), (2.2, 2.62), bend=0.38)
    label(axes, 3.2, 3.2, "worker lost or killed,", "retries left", calls=False)

    arrow(axes, (4.5, 2.08), (4.5, 0.72))
    label(axes, 4.6, 1.64, "fail_tasks", "cancel_tasks", ha="left")
    label(axes, 4.6, 1.14, "an exception in its block;", "worker lost or killed, no retries left", calls=False, ha="left")
    arrow(axes, (2.3, 2.08), (3.95, 0.72), bend=0.0)
    label(axes, 3.25, 1.64, "empty_queue", "cancel_tasks", ha="left")
    arrow(axes, (3.9, 0.45), (1.7, 2.08), bend=-0.35)
    label(axes, 1.95, 0.72, "retry_tasks")
    return figure


def draw_processes() -> Figure:
    """Three processes, each with one event loop and the same three connections."""
    figure, axes = canvas(8.2, 5.0)
    rows = (
        (3.42, "your application", ("Rush", "worker", "worker"), (ORANGE, BLUE, BLUE)),
        (1.84, "a process of on=Processes()", ("worker",), (BLUE,)),
        (0.26, "a process on another machine", ("worker", "worker"), (BLUE, BLUE)),
    )
    room(axes, 6.35, 0.26, 1.7, 4.48, "Redis or Valkey")
    for at, (name, colour) in enumerate((("queued", BLUE), ("running", ORANGE), ("finished", GREEN), ("failed", RED))):
        box(axes, 7.2, 4.15 - at * 0.5, 1.2, 0.36, name, colour, size=9)
    for at, name in enumerate(("events", "leases", "logs")):
        box(axes, 7.2, 1.75 - at * 0.5, 1.2, 0.36, name, FAINT, color=INK, weight="normal", size=9)

    for y, title, clients, colours in rows:
        room(axes, 0.15, y, 4.75, 1.32, title)
        room(axes, 0.3, y + 0.12, 3.3, 0.88, "event loop")
        for at, (client, colour) in enumerate(zip(clients, colours, strict=True)):
            box(axes, 0.78 + at * 0.76, y + 0.4, 0.68, 0.32, client, colour, size=8.5)
        box(axes, 3.13, y + 0.56, 0.72, 0.66, "archive\ncounters\nevents", FAINT, color=INK, weight="normal", size=7.5)
        box(axes, 4.24, y + 0.28, 1.08, 0.32, "heartbeat thread", FAINT, color=INK, weight="normal", size=7.5)
        arrow(axes, (3.58, y + 0.86), (6.37, y + 0.86), colour=ORANGE, style="<|-|>", linewidth=2.4)
        arrow(axes, (6.37, y + 0.58), (3.58, y + 0.58), colour=GREEN, linewidth=1.2)
        arrow(axes, (4.76, y + 0.28), (6.37, y + 0.28), colour=RED, linewidth=1.2, linestyle=(0, (4, 3)))
    for height, what, colour in ((0.94, "all calls", ORANGE), (0.62, "events", GREEN), (0.32, "heartbeats", RED)):
        axes.text(5.63, rows[0][0] + height, what, ha="center", va="bottom", size=8.5, color=colour)
    return figure


# files


def save(figure: Figure, path: Path, title: str) -> None:
    """Writes a figure without what changes from one time to the next, and no finer than a hundredth of a point."""
    file = StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Title": title, "Date": None, "Creator": None})
    text = re.sub(r' (?:d|x|y|transform="translate)=?[("][^")]*', lambda found: shorter(found[0]), file.getvalue())
    path.write_text("\n".join(line.strip() for line in text.splitlines()) + "\n", "utf-8")


def shorter(numbers: str) -> str:
    """Numbers with at most two decimals."""
    return re.sub(r"\.(\d{2})\d+", r".\1", numbers)


def draw(directory: Path, tasks: pl.DataFrame) -> list[Path]:
    """Writes all figures; their paths."""
    with mpl.rc_context(STYLE):
        figures = (
            (directory / "run.svg", "Tasks of four workers over time, and the best value", draw_run(tasks)),
            (directory / "task.svg", "The life of a task", draw_task()),
            (directory / "processes.svg", "Processes, event loops, connections and the database", draw_processes()),
        )
        for path, title, figure in figures:
            save(figure, path, title)
    return [path for path, _, _ in figures]


async def main(words: Sequence[str] | None = None) -> None:
    """Runs a search and draws."""
    parser = argparse.ArgumentParser(description="Draws the figures of the documentation.")
    parser.add_argument("--to", type=Path, default=Path(__file__).parent, help="the directory (default: beside this file)")
    options = parser.parse_args(words)
    async with Rush() as rush:
        draw(options.to, await run_search(rush))


if __name__ == "__main__":
    asyncio.run(main())
