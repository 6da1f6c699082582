"""Where an export comes from."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rush_async.client.export.provenance import environment, ro_crate


def test_the_environment_has_versions_and_the_commit_of_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(tmp_path / "search.py"), raising=False)
    found = environment()
    assert found["python"] == sys.version
    assert found["packages"]["polars"]
    assert found["git"] is None

    def git(*words: str) -> str:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@example.com", *words]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    (tmp_path / "search.py").write_text("1")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    assert environment()["git"] == {"commit": git("rev-parse", "HEAD"), "changed": False}
    (tmp_path / "search.py").write_text("2")
    assert environment()["git"]["changed"]
    monkeypatch.setenv("PATH", "")
    assert environment()["git"] is None


def test_an_ro_crate_has_what_its_specification_demands() -> None:
    network = {"network_id": "valley", "exported_at": "2026-01-02T00:00:00+00:00", "rush_async": "0.1.0"}
    crate = json.loads(ro_crate(network, {"tasks/0000.parquet": ("Tasks", "application/vnd.apache.parquet", 7)}))
    assert crate["@context"] == "https://w3id.org/ro/crate/1.1/context"
    by_id = {entity["@id"]: entity for entity in crate["@graph"]}
    descriptor, root = by_id["ro-crate-metadata.json"], by_id["./"]
    assert descriptor["about"] == {"@id": "./"}
    assert descriptor["conformsTo"] == {"@id": "https://w3id.org/ro/crate/1.1"}
    assert root["@type"] == "Dataset"
    assert root["datePublished"] == "2026-01-02T00:00:00+00:00"
    assert {"name", "description"} <= root.keys()
    assert [by_id[part["@id"]]["contentSize"] for part in root["hasPart"]] == ["7"]
