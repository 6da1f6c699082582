"""The comparison with peers, as far as it goes without any of them: our own scripts, and what becomes of those that fail."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import psutil
import pytest

from benchmarks.peers.__main__ import main
from benchmarks.peers.comparison import Scale, compare
from benchmarks.peers.environments import PEERS, python_of
from benchmarks.peers.processes import Script, ScriptError, run
from benchmarks.report import Row, Table
from rush_async import RushConfig

TINY = Scale(repetitions=1, processes=(1,), tasks=640, our_jobs=200, starts=5, read=300, timeout=30)


def environment_of(name: str, directory: Path) -> None:
    """What looks like the environment of a peer, in which it is not installed."""
    (directory / name / "bin").mkdir(parents=True)
    (directory / name / "bin" / "python").symlink_to(sys.executable)
    (directory / name / "installed").write_text("\n".join(PEERS[name].pins))


def test_our_scripts_measure_and_the_table_is_printed(
    rush_server: RushConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rush_server.url is not None
    table = Table()
    compare(table, [], TINY, rush_server.url, tmp_path, ["consume", "read"])
    jobs, read = table.rows
    assert (jobs.name, jobs.unit, len(jobs.values)) == ("ours", "/s", 1)
    assert (read.name, read.unit, len(read.values)) == ("ours, of 300", "ms", 1)
    assert 100 < jobs.median < 1e6
    assert 0 < read.median < 60_000
    printed = capsys.readouterr().out
    assert all(str(row) in printed for row in table.rows)


def test_a_peer_that_fails_is_a_note_and_the_rest_goes_on(rush_server: RushConfig, tmp_path: Path) -> None:
    assert rush_server.url is not None
    environment_of("saq", tmp_path)
    table = Table()
    compare(table, ["saq", "arq"], TINY, rush_server.url, tmp_path, ["starts"])
    named = {row.name: row for row in table.rows}
    assert list(named) == ["ours, p50", "ours, p99", "saq"]  # arq is not installed
    assert named["ours, p50"].median > 0
    assert math.isnan(named["saq"].median)
    assert "failed: ModuleNotFoundError: No module named 'saq'" in str(named["saq"])


def test_a_script_that_hangs_is_ended(rush_server: RushConfig) -> None:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    # It is killed while it still starts.
    with pytest.raises(ScriptError, match=r"hung: it did not end within 0\.05 s") as told:
        run(Script("rush_tasks", None, ("read", "--n", "0")), 0.05)
    assert told.value.is_hang
    assert {child.pid for child in psutil.Process().children(recursive=True)} == before


def test_another_version_counts_as_not_installed(tmp_path: Path) -> None:
    assert python_of("arq", tmp_path) is None
    environment_of("arq", tmp_path)
    assert python_of("arq", tmp_path) == tmp_path / "arq" / "bin" / "python"
    (tmp_path / "arq" / "installed").write_text("arq==0.1")
    assert python_of("arq", tmp_path) is None


def test_an_unknown_peer_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--only", "arq,celery"])
    assert "no peer is called 'celery'" in capsys.readouterr().err


def test_a_row_without_a_number_prints() -> None:
    assert "nan" in str(Row("section", "name", [math.nan], ""))
