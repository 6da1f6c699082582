"""Records of finished tasks: kept in chunks, found by key, and returned as they arrived."""

from __future__ import annotations

import math

import pytest

from rush_async.store.finished import CHUNK, Best, Records, is_number
from tests.frames.records import finished


def records(first: int, last: int) -> list[bytes]:
    return [finished(f"key-{n}", {"x": n}, {"y": 2 * n}) for n in range(first, last)]


@pytest.mark.parametrize("n", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 7])
def test_records_are_returned_as_they_arrived(n: int) -> None:
    kept, given = Records(), records(0, n)
    kept.extend(given)
    assert len(kept) == n
    assert kept.raw(0, n) == given
    assert kept.raw(n // 2, n // 2 + 5) == given[n // 2 : n // 2 + 5]
    assert kept.keys(0, n) == [f"key-{row}" for row in range(n)]


def test_it_does_not_matter_in_which_pieces_records_arrive() -> None:
    kept = Records()
    for first in range(0, 2_600, 130):
        kept.extend(records(first, first + 130))
    assert kept.raw(0, 2_600) == records(0, 2_600)
    assert list(kept.windows(990, 2_600)) == [(990, 1_000), (1_000, 2_000), (2_000, 2_600)]


def test_numbers_of_an_output_begin_at_a_row() -> None:
    kept = Records()
    kept.extend([*records(0, 1_200), *[finished("other", {"x": 0}, {"y": y}) for y in ("a", None, True, float("nan"), 0.5)]])
    assert list(kept.numbers("y")) == [*range(0, 2_400, 2), 0.5]
    assert list(kept.numbers("y", [(0, 1_199)])) == [2_398, 0.5]
    assert list(kept.numbers("y", [(0, 1_205)])) == list(kept.numbers("z")) == []


def test_tasks_are_found_by_their_keys_also_when_more_arrived() -> None:
    kept = Records()
    kept.extend(records(0, 3))
    assert {key: task.ys for key, task in kept.find(["key-2", "key-5"]).items()} == {"key-2": {"y": 4}}
    kept.extend(records(3, 1_200))
    assert {key: task.xs for key, task in kept.find(["key-5", "key-1100"]).items()} == {
        "key-5": {"x": 5},
        "key-1100": {"x": 1100},
    }


def test_cleared_records_are_gone() -> None:
    kept = Records()
    kept.extend(records(0, 1_005))
    kept.find(["key-1"])
    kept.clear()
    assert len(kept) == 0
    assert kept.find(["key-1"]) == {}
    kept.extend(records(7, 9))
    assert list(kept.find(["key-1", "key-8"])) == ["key-8"]


def test_a_number_is_what_can_be_compared() -> None:
    assert [is_number(value) for value in (0, -1.5, 10**400, math.inf)] == [True] * 4
    assert [is_number(value) for value in (math.nan, True, "1", None, [1])] == [False] * 5


@pytest.mark.parametrize(("maximize", "best"), [(False, -1), (True, 10**400)])
def test_the_best_value_is_that_of_all_tasks_so_far(maximize: bool, best: float) -> None:
    found = Best("y", maximize=maximize)
    found.take([None, "1", math.nan])
    assert found.value is None
    found.take([2.5, -1, 10**400])
    found.take([0.5])
    assert found.value == best
