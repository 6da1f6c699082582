"""The checker of the fault bench finds each of many defects of the scripts."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.faults.bench import Bench, Plan
from benchmarks.faults.mutants import MUTANTS, Mutant, mutated
from benchmarks.faults.work import KINDS

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(120)]


ROUNDS = 5  # in which a defect is to be found; most are found in the first


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
async def test_the_checker_finds(mutant: Mutant, directory: Path) -> None:
    kinds, rate = (dict(mutant.faults), 6.0) if mutant.faults else ({"scripts flushed": 1}, 1.0)
    n_processes, rate = (2, 3.0) if mutant.needs_processes else (0, rate)
    found: list[str] = []
    with mutated(mutant):
        async with Bench.opened(directory, n_processes=n_processes, mutant=mutant.name) as bench:
            for at in range(ROUNDS):
                patience = 3.0 if mutant.hangs else 12.0
                plan = Plan(mutant.kind, f"7-{at}", n_tasks=800, rate=rate, kinds=kinds, patience=patience)
                result = await bench.round(plan)
                if found := [text for violation, _ in result.violations if "did not end" not in (text := str(violation))]:
                    break
    assert found


async def test_the_same_rounds_without_a_defect_keep_all_promises(directory: Path) -> None:
    async with Bench.opened(directory, n_processes=0) as bench:
        for at, kind in enumerate(KINDS):
            kinds = {kind: weight for mutant in MUTANTS for kind, weight in mutant.faults if not mutant.needs_processes}
            result = await bench.round(Plan(kind, f"7-{at}", n_tasks=600, rate=10.0, kinds=kinds))
            assert not result.violations, result.violations
