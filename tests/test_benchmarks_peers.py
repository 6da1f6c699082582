"""The comparison with other libraries, without any of them installed: our own scripts, and scripts that fail or hang."""

from __future__ import annotations

import contextlib
import io
import math
import sys
from pathlib import Path

import psutil
import pytest

from benchmarks.peers.__main__ import main
from benchmarks.peers.comparison import Cell, Scale, compare, percentiles, ratios
from benchmarks.peers.environments import PEERS, python_of
from benchmarks.peers.processes import Script, ScriptError, run
from benchmarks.report import Table
from rush_async import RushConfig

TINY = Scale(repetitions=1, processes=(1,), tasks=640, our_jobs=200, read=300, timeout=30)


def environment_of(name: str, directory: Path) -> None:
    """Makes a directory that looks like the environment of a peer. The peer is not installed in it."""
    (directory / name / "bin").mkdir(parents=True)
    (directory / name / "bin" / "python").symlink_to(sys.executable)
    (directory / name / "installed").write_text("\n".join(PEERS[name].pins))


@pytest.fixture(scope="module")
def comparison(rush_server: RushConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[Table, str]:
    """The table of a run with a peer that fails and one that is not installed, and what the run printed."""
    assert rush_server.url is not None
    directory = tmp_path_factory.mktemp("environments")
    environment_of("saq", directory)
    table, printed = Table(), io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "uvloop", None)  # as where it is not installed
        compare(table, ["saq", "arq"], TINY, rush_server.url, directory, ["consume", "read"])
    return table, printed.getvalue()


def test_our_scripts_measure_and_the_table_is_printed(comparison: tuple[Table, str]) -> None:
    table, printed = comparison
    jobs, _, read = table.rows
    assert (jobs.name, jobs.unit, len(jobs.values)) == ("ours", "/s", 1)
    assert (read.name, read.unit, len(read.values)) == ("ours, of 300", "ms", 1)
    assert 100 < jobs.median < 1e6
    assert 0 < read.median < 60_000
    assert all(str(row) in printed for row in table.rows)


def test_a_peer_that_fails_becomes_a_note_and_the_others_are_measured(comparison: tuple[Table, str]) -> None:
    table, _ = comparison
    assert [row.name for row in table.rows] == ["ours", "saq", "ours, of 300"]  # arq is not installed
    failed = table.rows[1]
    assert math.isnan(failed.median)
    assert "failed: ModuleNotFoundError: No module named 'saq'" in str(failed)


def test_starts_are_reported_as_median_and_99th_percentile() -> None:
    found = percentiles({"milliseconds": [float(ms) for ms in range(101)]})
    assert found == {(", p50", "ms"): pytest.approx(50), (", p99", "ms"): pytest.approx(99)}


def test_the_goal_of_a_ratio_is_that_of_its_first_value() -> None:
    ours, other = (Cell(name, Script("", None, ()), percentiles) for name in ("ours", "taskiq"))
    ours.measured = other.measured = [percentiles({"milliseconds": [1.0, 2.0]})]
    rows = ratios("Starts", ours, other, "<= 1")
    assert [(row.name, row.median, row.goal) for row in rows] == [
        ("ours over taskiq, p50", 1, "<= 1"),
        ("ours over taskiq, p99", 1, ""),
    ]


def test_a_script_that_hangs_is_ended(rush_server: RushConfig) -> None:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    # The timeout is so short that the script is killed while it starts.
    with pytest.raises(ScriptError, match=r"hung: it did not end within 0\.05 s") as raised:
        run(Script("rush_tasks", None, ("read", "--n", "0")), 0.05)
    assert raised.value.is_hang
    assert {child.pid for child in psutil.Process().children(recursive=True)} == before


def test_an_environment_with_another_version_counts_as_not_installed(tmp_path: Path) -> None:
    assert python_of("arq", tmp_path) is None
    environment_of("arq", tmp_path)
    assert python_of("arq", tmp_path) == tmp_path / "arq" / "bin" / "python"
    (tmp_path / "arq" / "installed").write_text("arq==0.1")
    assert python_of("arq", tmp_path) is None


def test_an_unknown_peer_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--only", "arq,celery"])
    assert "no peer is called 'celery'" in capsys.readouterr().err
