"""The figures of the documentation: their content, their size, and that drawing is reproducible."""

from __future__ import annotations

import importlib.util
import math
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import polars as pl
import pytest

from rush_async import Rush

FIGURES = Path(__file__).parents[1] / "docs" / "figures"
LARGEST = 60_000  # bytes of a picture in a page


@pytest.fixture(scope="module")
def draw(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """`docs/figures/draw.py`, a program outside any package. Drawing once opens the fonts, which matplotlib keeps open."""
    spec = importlib.util.spec_from_file_location("draw", FIGURES / "draw.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["draw"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.draw(tmp_path_factory.mktemp("figures"), a_run(("a_b_1", 0, 1, 2.0)))
    return module


def a_run(*tasks: tuple[str, float | None, float | None, float | None]) -> pl.DataFrame:
    """A frame like that of `fetch_tasks(times=True)`, from (worker, start, end, y) with times in seconds."""
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)

    def at(seconds: float | None) -> datetime | None:
        return None if seconds is None else noon + timedelta(seconds=seconds)

    rows = [(worker, at(start), at(end), y) for worker, start, end, y in tasks]
    times = {"started_at": pl.Datetime("us", "UTC"), "ended_at": pl.Datetime("us", "UTC")}
    return pl.DataFrame(rows, schema={"worker_id": pl.String, **times, "y": pl.Float64}, orient="row")


def words_of(path: Path) -> set[str]:
    """The texts of a picture. The SVG has them as comments beside the shapes of their letters."""
    comments = re.findall(r"<!--(.*?)-->", path.read_text("utf-8"), re.DOTALL)
    return {line.strip() for comment in comments for line in comment.splitlines()}


def test_a_task_is_a_bar_of_its_worker_and_the_best_so_far_is_a_record(draw: Any) -> None:
    tasks = a_run(
        ("b", 1, 4, 30.0),
        ("a", 1, 2, 20.0),  # the first to end
        ("a", 2, 3, 10.0),
        ("a", 3, 5, None),  # failed
        ("b", 4, 6, 10.0),  # as good is not better
        ("b", 6, None, None),  # still running
        ("b", None, None, None),  # queued
    )
    bars = draw.bars_by_worker(tasks)
    assert {worker: [(bar.start, bar.end, bar.is_record) for bar in lane] for worker, lane in bars.items()} == {
        "a": [(0, 1, True), (1, 2, True), (2, 4, False)],
        "b": [(0, 3, False), (3, 5, False)],
    }
    assert math.isnan(bars["a"][2].y)
    assert [bar.y for bar in draw.records(bars)] == [20, 10]


async def test_a_run_of_four_workers_is_drawn(draw: Any, rush: Rush, tmp_path: Path) -> None:
    tasks = await draw.run_search(rush, evals=24, pace=0.01)
    assert tasks["state"].to_list() == ["finished"] * 24
    workers = tasks["worker_id"].unique().to_list()
    assert len(workers) == 4
    paths = draw.draw(tmp_path, tasks)
    assert [path.name for path in paths] == ["run.svg", "task.svg", "processes.svg"]
    assert {worker.rpartition("_")[0].replace("_", " ") for worker in workers} < words_of(paths[0])
    assert max(path.stat().st_size for path in paths) < LARGEST


def test_diagrams_are_reproducible_and_name_every_call_that_changes_a_task(draw: Any, tmp_path: Path) -> None:
    tasks = a_run(("a_b_1", 0, 1, 2.0), ("a_c_2", 0, 2, 1.0))
    first, second = tmp_path / "first", tmp_path / "second"
    for directory in (first, second):
        directory.mkdir()
        draw.draw(directory, tasks)
    for path in sorted(first.iterdir()):
        assert path.read_bytes() == (second / path.name).read_bytes()
    assert words_of(first / "task.svg") >= {
        *("queued", "running", "finished", "failed", "push_tasks", "push_running_tasks", "pop_task", "finish_tasks"),
        *("fail_tasks", "retry_tasks", "cancel_tasks", "empty_queue", "retries left"),
    }


@pytest.mark.parametrize("name", ["run", "task", "processes"])
def test_the_pictures_in_the_pages_are_small_and_have_no_background(name: str) -> None:
    path = FIGURES / f"{name}.svg"
    assert path.stat().st_size < LARGEST
    root = ElementTree.fromstring(path.read_text("utf-8"))
    background = next(shape for shape in root.iter() if shape.get("id") == "patch_1")
    assert [shape.get("style") for shape in background] == ["fill: none"]
