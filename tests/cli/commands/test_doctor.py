"""`rush-async doctor`: its output and its exit codes. What it finds is in `test_examination.py`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rush_async import RushConfig
from tests.cli.calling import call


async def test_a_bad_check_ends_with_1_and_a_remedy(
    rush_server: RushConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert rush_server.url is not None
    monkeypatch.setenv("RUSH_URL", rush_server.url)
    called = await call(capsys, "doctor", "net")  # on a server without a data directory
    assert (called.code, called.errors) == (1, "")
    lines = called.out.splitlines()
    assert lines[0].startswith(f"ok       connection   {rush_server.url}, opened in ")
    bad = next(line for line in lines if line.startswith("bad"))
    assert bad == "bad      persistence  nothing is kept: a restart of the server loses all tasks"
    assert lines[lines.index(bad) + 1].split()[0] == "->"
    assert lines[-1] == "9 checks: 1 bad, 0 to be warned of"
    found = json.loads((await call(capsys, "doctor", "--json")).out)
    assert (found["network"], found["verdict"], found["server"]) == (None, "bad", rush_server.url)
    (persistence,) = [check for check in found["checks"] if check["verdict"] == "bad"]
    assert persistence.keys() == {"name", "verdict", "finding", "remedy"}


async def test_a_data_directory_in_order_ends_with_0(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    called = await call(capsys, "doctor", "--data-dir", str(directory))
    assert called.code == 0
    assert called.out.splitlines()[-1] == "8 checks: 0 bad, 0 to be warned of"


async def test_a_wrong_port_ends_with_1_and_no_server_with_78(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RUSH_URL", "REDIS_URL", "RUSH_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    called = await call(capsys, "doctor", "--url", "redis://localhost:1")
    assert called.code == 1
    assert called.out.startswith("bad      connection   cannot reach redis://localhost:1")
    called = await call(capsys, "doctor")
    assert called.code == 78
    assert "no server is named" in called.errors


async def test_a_mistyped_directory_is_not_created(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    called = await call(capsys, "doctor", "--data-dir", str(directory / "resluts"))
    assert (called.code, called.out) == (78, "")
    assert "there is no data directory" in called.errors
    assert not (directory / "resluts").exists()
