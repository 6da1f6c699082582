"""Pickled functions keep the file and the lines of their code."""

from __future__ import annotations

import linecache
import pickle
import subprocess
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rush_async.launch.pickled_code import pickle_with_code

PASSWORD = "line_without_function = 'my password'\n"
SCRIPT = f"""{PASSWORD}
def fail():
    return [int(text) for text in (
        "1", "no number")]
"""
UNPICKLE = """
import pickle, sys, traceback
fail = pickle.load(sys.stdin.buffer)
try:
    fail()
except ValueError:
    traceback.print_exc()
"""


def defined(source: str, file: str) -> Any:
    module = ModuleType("__main__")
    exec(compile(source, file, "exec"), module.__dict__)
    return vars(module)["fail"]


def traceback_of_process(packed: bytes) -> str:
    ended = subprocess.run([sys.executable, "-c", UNPICKLE], input=packed, capture_output=True, check=True, timeout=60)
    return ended.stderr.decode()


@pytest.mark.parametrize("is_cell", [True, False], ids=["cell", "script"])
def test_a_traceback_in_another_process_has_file_and_lines(
    is_cell: bool, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = str(directory / "cell_1.py")
    if is_cell:  # as IPython does
        lines = SCRIPT.splitlines(keepends=True)
        monkeypatch.setitem(linecache.cache, file, (len(SCRIPT), None, lines, file))
    else:
        Path(file).write_text(SCRIPT)
    packed = pickle_with_code(defined(SCRIPT, file))
    assert b"my password" not in packed
    Path(file).write_text("# edited since\n" * 10)
    shown = traceback_of_process(packed)
    assert f'File "{file}", line 4, in fail\n    return [int(text) for text in (' in shown
    assert "edited" not in shown


def test_code_without_lines_keeps_the_name_of_its_file() -> None:
    packed = pickle_with_code(defined("def fail(): int('x')", "<generated>"))
    assert 'File "<generated>", line 1, in fail' in traceback_of_process(packed)


def test_unpickling_in_the_same_process_leaves_what_linecache_knows(directory: Path) -> None:
    file = directory / "script.py"
    file.write_text(SCRIPT)
    fail = pickle.loads(pickle_with_code(defined(SCRIPT, str(file))))
    with pytest.raises(ValueError, match="no number") as raised:
        fail()
    assert "return [int(text)" in "".join(traceback.format_exception(raised.value))
    file.write_text(SCRIPT.replace("return", "return  # edited\n"))
    linecache.checkcache(str(file))
    assert "# edited" in linecache.getline(str(file), 4)
