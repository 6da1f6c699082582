"""The example programs and the program of the README run without changes."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest

from rush_async import Rush

ROOT = Path(__file__).parents[1]


async def run(*words: str) -> str:
    """Runs a program and returns what it prints. The program must exit with 0 and write nothing to stderr."""
    environment = {name: value for name, value in os.environ.items() if name not in ("RUSH_URL", "REDIS_URL", "RUSH_DATA_DIR")}
    environment |= {"PYTHONWARNINGS": "error", "POLARS_TABLE_WIDTH": "200"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *words),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=ROOT,
        env=environment,
    )
    out, errors = await process.communicate()
    assert (process.returncode, errors.decode()) == (0, "")
    return out.decode()


@pytest.mark.parametrize("on", ["coroutines", "processes"])
async def test_random_search_finishes_exactly_the_budget(on: str) -> None:
    text = await run("examples/random_search.py", "--on", on, "--workers", "3", "--evals", "40")
    before, after = re.findall(r"Finished Tasks: (\d+)", text)
    assert (before, after) == ("0", "40")
    assert re.findall(r"(Running Workers|Queued Tasks|Running Tasks|Failed Tasks): 0", text)
    assert "x1" in text
    assert "worker_id" in text


async def test_the_tutorials_loop_exceeds_the_budget_by_at_most_the_number_of_workers_minus_one() -> None:
    text = await run("examples/random_search.py", "--form", "tutorial", "--workers", "4", "--on", "processes")
    assert 100 <= int(re.findall(r"Finished Tasks: (\d+)", text)[1]) <= 103


@pytest.mark.chaos
async def test_random_search_prints_the_same_points_with_any_number_of_workers() -> None:
    def points(text: str) -> list[str]:
        return re.findall(r"┆ (-?\d+\.\d+ +┆ \d+\.\d+ +┆ \d+\.\d+)", text)

    words = ("examples/random_search.py", "--evals", "30", "--seed")
    one, four, other = [points(await run(*words, seed, "--workers", n)) for seed, n in (("7", "1"), ("7", "4"), ("8", "4"))]
    assert len(one) == 5
    assert one == four != other


async def test_random_search_uses_a_given_database(rush: Rush) -> None:
    assert rush.config.url is not None
    text = await run("examples/random_search.py", "--url", rush.config.url, "--evals", "10")
    assert "Finished Tasks: 10" in text


@pytest.mark.parametrize("program", sorted((ROOT / "examples").glob("*.py")), ids=lambda program: program.stem)
def test_every_example_with_a_command_line_takes_a_seed(program: Path) -> None:
    source = program.read_text("utf-8")
    assert ("ArgumentParser(" in source) == ('"--seed"' in source)


async def test_the_program_of_the_readme_runs(tmp_path: Path) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), flags=re.DOTALL)
    assert len([line for line in program.splitlines() if line]) <= 25
    (tmp_path / "program.py").write_text(program, "utf-8")
    assert "worker_id" in await run(str(tmp_path / "program.py"))


@pytest.mark.chaos
async def test_the_benchmarks_run_and_compare(tmp_path: Path) -> None:
    words = ("-m", "benchmarks", "--quick", "--repetitions", "1", "--json", str(tmp_path / "figures.json"))
    text = await run(*words, "--only", "tasks,loop,counters,elsewhere,memory")
    assert re.search(r"the same in round trips +[\d,.]+ round trips +(reached|MISSED): <= 4.2", text)
    assert re.search(r"server memory a finished task +[\d.]+ bytes +reached: <= 130", text)
    assert re.search(r"memory a row, of 100,000 +[\d.]+ bytes", text)
    again = await run(*words, "--only", "counters", "--compare", str(tmp_path / "figures.json"))
    assert re.search(r"now over then.*\n +reading n_finished_tasks +[\d,.]+ +[\d,.]+ ns +[\d.]+ x", again)
