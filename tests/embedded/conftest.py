"""Fixtures of the embedded server's tests."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from rush_async.embedded.server import ServerLease, acquire


@pytest.fixture
def lease(tmp_path: Path) -> Iterator[ServerLease]:
    """A lease on a server with a data directory; the one without is the session's."""
    lease = acquire(tmp_path / "data")
    yield lease
    lease.release()


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory in which this process makes runtime directories during the test."""
    base = tmp_path / "run"
    base.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(base))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    return base
