"""Paired runs of two checkouts: the ratios, the verdicts, and the processes, on made-up rows."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks import pairs
from benchmarks.pairs import PairedRow, RunError, Runs, paired, run
from benchmarks.report import Row, read

# A checkout whose benchmarks print where they run, and write the rows of `rows.json`.
PROGRAM = """
import json, os, pathlib, sys
assert os.environ["PYTHONPATH"] == os.getcwd() == str(pathlib.Path(__file__).parents[1])
assert "RUSH_URL" not in os.environ
with open("calls", "a") as calls:
    print(*sys.argv[1:-2], file=calls)
assert sys.argv[-2] == "--json"
pathlib.Path(sys.argv[-1]).write_text(pathlib.Path("rows.json").read_text())
"""


def checkout(directory: Path, *rows: Row, program: str = PROGRAM) -> Path:
    """A directory that looks like a checkout and always measures these rows."""
    (directory / "benchmarks").mkdir(parents=True)
    (directory / "benchmarks" / "__init__.py").touch()
    (directory / "benchmarks" / "__main__.py").write_text(program, "utf-8")
    (directory / "rows.json").write_text(json.dumps({"rows": [asdict(row) for row in rows]}), "utf-8")
    return directory


def runs(row: Row, *values: tuple[float, float]) -> list[Runs]:
    """Pairs in which this checkout and the other measured these values of one row."""
    return [tuple([Row(row.section, row.name, [value], row.unit, row.goal)] for value in pair) for pair in values]  # pyright: ignore[reportReturnType]


TIME = Row("Tasks", "a task", [1.0], "us")


@pytest.mark.parametrize(
    ("unit", "goal", "ratio"),
    [("us", "", 2), ("bytes", "", 2), ("/s", "", 0.5), ("x", ">= 5", 0.5), ("x", "<= 4", 2), ("round trips", "<= 7", 2)],
)
def test_a_ratio_above_one_is_worse_whether_less_or_more_is_better(unit: str, goal: str, ratio: float) -> None:
    ((row,), _) = paired(runs(Row("Tasks", "a task", [1.0], unit, goal), (4.0, 2.0)))
    assert row.ratios == [ratio]
    assert row.verdict == ("worse" if ratio > 1 else "better")


def test_a_ratio_of_two_quantities_without_a_goal_has_no_verdict() -> None:
    ((row,), _) = paired(runs(Row("Tasks", "ours over theirs", [1.0], "x"), (4.0, 2.0)))
    assert (row.median, row.verdict) == (2, "not ranked")


def test_a_row_is_worse_only_if_the_lower_quartile_exceeds_the_tolerance() -> None:
    def verdict(*ratios: float) -> str:
        return PairedRow("Tasks", "a task", ratios).verdict

    assert verdict(*[1.06] * 9) == "worse"
    assert verdict(*[1.04] * 9) == ""
    assert verdict(1.0, 1.0, 1.0, *[1.3] * 6) == ""  # the lower quartile is 1.0
    assert verdict(1.0, 1.0, *[1.3] * 7) == "worse"  # two slow runs of the other checkout do not hide it
    assert verdict(*[0.94] * 9) == "better"
    assert verdict(1.2) == "worse"


def test_the_median_and_the_quartiles_are_those_of_all_pairs() -> None:
    ((row,), _) = paired(runs(TIME, (1, 1), (1, 2), (3, 1), (4, 1), (5, 1)))
    assert (row.median, row.quartiles) == (3, (1, 4))
    assert str(row).split() == ["a", "task", "3.000", "x", "(1.000", "-", "4.000)", "5"]


def test_rows_of_one_checkout_alone_are_listed_and_rows_without_a_number_are_left_out() -> None:
    new, old = Row("Tasks", "new", [1.0], "us"), Row("Tasks", "old", [1.0], "us")
    zero, absent = Row("Tasks", "zero", [0.0], "us"), Row("Peers", "not installed", [float("nan")], "us")
    rows, single = paired([([TIME, new, zero, absent], [TIME, old, zero, absent])])
    assert [row.name for row in rows] == ["a task"]
    assert single == ["Tasks: new", "Tasks: old"]


def test_seconds_in_a_name_do_not_tell_rows_apart() -> None:
    old, new = Row("Stalls", "pop_task (0.13 s in all)", [1.0], "ms"), Row("Stalls", "pop_task", [1.0], "ms")
    rows, single = paired([([new], [old])])
    assert ([row.name for row in rows], single) == (["pop_task"], [])


def test_a_run_has_its_checkout_as_directory_and_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUSH_URL", "redis://elsewhere")
    assert run(checkout(tmp_path / "a", TIME), ["--quick"]) == [TIME]


def test_pairs_alternate_which_checkout_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Both write into one file of calls.
    this = checkout(tmp_path / "this", Row("Tasks", "a task", [3.0], "us"))
    other = checkout(tmp_path / "other", Row("Tasks", "a task", [2.0], "us"))
    for directory in (this, other):
        (directory / "benchmarks" / "__main__.py").write_text(
            PROGRAM.replace('"calls"', '"../calls"').replace("*sys.argv[1:-2]", "pathlib.Path.cwd().name, *sys.argv[1:-2]")
        )
    monkeypatch.setattr(pairs, "ROOT", this)
    words = ["--with", str(other), "--pairs", "3", "--only", "tasks,loop", "--quick", "--json", str(tmp_path / "ratios")]
    pairs.main(words, ["tasks", "loop", "reads"])
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [call.split()[0] for call in calls] == ["this", "other", "other", "this", "this", "other"]
    assert {call.partition(" ")[2] for call in calls} == {"--only tasks,loop --repetitions 3 --quick"}
    printed = capsys.readouterr().out
    assert "worse: 1 of 1 rows\n  Tasks: a task 1.500 x\n" in printed
    assert "fewer than 9 pairs: their verdicts are not reliable" in printed
    (row,) = read(tmp_path / "ratios")
    assert (row.values, row.unit, row.note) == ([1.5] * 3, "x", "worse")


def test_a_pair_with_a_failed_run_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    this, other = checkout(tmp_path / "this", TIME), checkout(tmp_path / "other", program="raise SystemExit('no server')")
    with pytest.raises(RunError, match=r"(?s)other ended with 1:.*no server"):
        run(other, [])
    monkeypatch.setattr(pairs, "ROOT", this)
    with pytest.raises(SystemExit, match="no pair was measured"):
        pairs.main(["--with", str(other), "--pairs", "1"], ["tasks"])
    assert "pair 1 is left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--with", os.devnull], "has no folder benchmarks"), (["--with", str(pairs.ROOT), "--only", "poems"], "no part poems")],
)
def test_a_wrong_command_line_is_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        pairs.main(words, ["tasks"])
    assert message in capsys.readouterr().err
