"""The checker of the fault bench finds each of many defects of the scripts."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.faults.bench import Bench, Plan
from benchmarks.faults.mutants import MUTANTS, Mutant, mutated

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(120)]


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
async def test_the_checker_finds(mutant: Mutant, directory: Path) -> None:
    n_tasks, kinds = (1_200, dict(mutant.faults)) if mutant.faults else (600, {"scripts flushed": 1})
    n_processes = 2 if mutant.needs_processes else 0
    # A round that never ends is a violation, too, and one to be found soon.
    plan = Plan(mutant.kind, "7", n_tasks=n_tasks, rate=10.0 if mutant.faults else 1.0, kinds=kinds, patience=3.0)
    with mutated(mutant):
        async with Bench.opened(directory, n_processes=n_processes, mutant=mutant.name) as bench:
            result = await bench.round(plan)
    assert result.violations


async def test_the_same_rounds_without_a_defect_keep_all_promises(directory: Path) -> None:
    async with Bench.opened(directory, n_processes=0) as bench:
        for at, kind in enumerate(sorted({mutant.kind for mutant in MUTANTS})):
            kinds = {kind: weight for mutant in MUTANTS for kind, weight in mutant.faults if not mutant.needs_processes}
            result = await bench.round(Plan(kind, f"7-{at}", n_tasks=600, rate=10.0, kinds=kinds))
            assert not result.violations, result.violations
