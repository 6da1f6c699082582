"""What every bridge to another package has in common."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

# Each extra with the package that it needs.
EXTRAS = {"fastapi": "fastapi", "metrics": "prometheus_client", "opentelemetry": "opentelemetry", "progress": "tqdm.auto"}


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_whose_package_is_missing_says_what_to_install(extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, EXTRAS[extra], None)
    monkeypatch.delitem(sys.modules, f"rush_async.extras.{extra}", raising=False)
    with pytest.raises(ImportError, match=rf'pip install "rush-async\[{extra}\]"'):
        importlib.import_module(f"rush_async.extras.{extra}")


def test_the_core_imports_no_extra() -> None:
    # redis-py imports opentelemetry where it is installed.
    packages = {"rush_async.extras", "argcomplete", "fastapi", "prometheus_client", "rich", "tqdm"}
    program = f"import sys; from rush_async import *; import rush_async.testing; print(sorted({packages!r} & set(sys.modules)))"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout == "[]\n"
