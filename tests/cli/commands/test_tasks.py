"""`rush-async tasks` and `rush-async best`."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import polars as pl

from rush_async import Rush
from tests.cli.programs import Command


async def test_tasks_are_shown_as_a_table(searched: Rush, command: Command) -> None:
    head, *rows = (await command("tasks")).lines
    assert head.split() == ["state", "worker_id", "x", "tags", "y", "note", "condition", "keys"]
    assert [row.split()[0] for row in rows] == ["queued"] * 2 + ["running"] + ["finished"] * 3 + ["failed"] * 3
    assert '["a", null]' in rows[0]
    assert r"  ValueError: no \x1b[2J  " in rows[-2]
    lines = (await command("tasks", "--state", "finished,failed", "--sort", "x", "--descending", "--columns", "x,state")).lines
    assert lines[1:3] == ["3  failed", "2  finished"]
    assert len((await command("tasks", "-n", "2", "--times")).lines) == 3


async def test_a_long_table_is_cut_with_a_word_on_it(searched: Rush, command: Command) -> None:
    await searched.push_tasks([{"x": 1.0, "tags": ["a" * 60]}] * 60)
    shown = await command("tasks")
    assert f'  ["{"a" * 55}...  ' in shown.out.decode()
    assert shown.out.count(b"\n") == 51
    assert shown.err == b"... and 19 more: -n 69 shows all\n"


async def test_every_format_has_all_values(searched: Rush, command: Command, directory: Path) -> None:
    frame = await searched.fetch_tasks()
    written = await command("tasks", "--format", "parquet")
    assert (written.code, written.err) == (0, b"")
    assert pl.read_parquet(io.BytesIO(written.out)).equals(frame)
    path = directory / "tasks"
    assert (await command("tasks", "--format", "parquet", "-o", str(path))).lines == []
    assert pl.read_parquet(path).equals(frame)
    rows = json.loads((await command("tasks", "--format", "json")).out)
    assert [row["keys"] for row in rows] == frame["keys"].to_list()
    assert rows[0]["tags"] == ["a", None]
    assert rows[5]["note"] == {"by": "hand", "raw": "AA=="}
    assert rows[4]["y"] is None  # nan
    table = list(csv.DictReader((await command("tasks", "--format", "csv")).out.decode().splitlines(keepends=True)))
    assert [row["keys"] for row in table] == frame["keys"].to_list()
    assert json.loads(table[0]["tags"]) == ["a", None]
    assert json.loads(table[-2]["condition"])["type"] == "ValueError"


async def test_the_best_tasks_of_an_output(searched: Rush, command: Command) -> None:
    assert (await command("best", "--by", "y", "--columns", "y,x")).lines == ["y  x", "1  2", "4  0"]
    assert (await command("best", "--by", "y", "--maximize", "-n", "1", "--columns", "y")).lines == ["y", "4"]


async def test_wrong_columns_states_and_files_are_refused(searched: Rush, command: Command, directory: Path) -> None:
    for words, code, message in (
        (("tasks", "--sort", "z"), 1, "no column 'z': there are state, worker_id, x"),
        (("tasks", "--columns", "x,z"), 1, "no column 'z'"),
        (("tasks", "--state", "done"), 2, "'done' is no state: there are queued"),
        (("tasks", "-o", str(directory / "t")), 2, "choose --format csv, json or parquet"),
        (("tasks", "--format", "csv", "-o", str(directory / "no" / "t")), 1, "t: No such file or directory"),
        (("best", "--by", "z"), 1, "no column 'z'"),
        (("best", "--by", "note"), 2, "not numbers"),
        (("best",), 2, "required: --by"),
    ):
        refused = await command(*words)
        assert (refused.code, refused.out) == (code, b""), words
        assert message in refused.err.decode()
