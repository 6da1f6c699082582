"""Clients in several processes work while connections, servers and processes fail: a checker reads what they saw."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from benchmarks.faults.bench import Bench, plan_of
from benchmarks.faults.injection import FAULTS, Injector
from benchmarks.faults.soak import report
from benchmarks.faults.work import KINDS

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(240)]

MOST_ROUNDS = 15


def words(n_tasks: int, rate: float) -> str:
    """What `report` prints to run a round again."""
    return f" --processes 2 --workers 6 --tasks {n_tasks} --rate {rate:g}"


async def survive(directory: Path, seed: int) -> None:
    """A round of each kind, all of them on one server and with the same processes."""
    async with Bench.opened(directory, n_processes=2) as bench:
        for at in range(len(KINDS)):
            result = await bench.round(plan_of(seed, at, n_tasks=1_500, rate=5.0))
            assert not result.violations, "\n" + report(at, seed, result, words(1_500, 5.0))


async def test_nothing_is_lost_with_a_fixed_seed(directory: Path) -> None:
    await survive(directory, 14)


async def test_nothing_is_lost_with_a_random_seed(directory: Path) -> None:
    await survive(directory, random.randrange(2**31))


async def test_every_kind_of_fault_is_survived(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind at least once, in an order of its own, before they come by chance."""
    left = list(FAULTS)
    random.Random(14).shuffle(left)
    inject = Injector.inject

    async def one_of_each(injector: Injector, kind: str) -> bool:
        kind = left.pop(0) if left else kind
        if not (is_done := await inject(injector, kind)):
            left.append(kind)
        return is_done

    monkeypatch.setattr(Injector, "inject", one_of_each)
    async with Bench.opened(directory, n_processes=2) as bench:
        for at in range(MOST_ROUNDS):
            result = await bench.round(plan_of(14, at, n_tasks=2_000, rate=20.0))
            assert not result.violations, "\n" + report(at, 14, result, words(2_000, 20.0))
            if not left:
                return
    pytest.fail(f"these kinds never came: {left}")
