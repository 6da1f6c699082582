"""Proposals of many processes in a discrete space: no point is taken twice, and a space that is used up is reported."""

from __future__ import annotations

import pytest

from rush_async import Processes, Rush
from tests.launch.loops_of_tests import propose_points

COROUTINES = 8  # that propose in each worker


async def everything_proposed(rush: Rush, n_workers: int, n_points: int, timeout: float) -> dict[str, int]:
    """Runs the workers until they propose no more. Returns how many proposals they made, and how they ended."""
    args = {"n_points": n_points, "n_coroutines": COROUTINES}
    await rush.start_workers(propose_points, n_workers, on=Processes(), args=args)
    ends = await rush.join_workers(timeout=timeout)
    assert [end.state for end in ends] == ["terminated"] * n_workers
    told = (await rush.attrs()).values()
    return {name: sum(each[name] for each in told) for name in ("drawn", "used_up", "stopped")}


async def points(rush: Rush) -> list[int]:
    return (await rush.fetch_finished_tasks())["x"].to_list()


@pytest.mark.parametrize(
    ("n_workers", "n_points"), [(2, 300), pytest.param(4, 60_000, marks=pytest.mark.chaos)], ids=["few", "many"]
)
async def test_no_point_is_taken_twice_until_the_space_is_used_up(rush: Rush, n_workers: int, n_points: int) -> None:
    told = await everything_proposed(rush, n_workers, n_points, timeout=60 if n_points < 1_000 else 840)
    assert told["used_up"] == n_workers * COROUTINES
    finished = await points(rush)
    assert len(finished) == len(set(finished)), "a point was taken twice"
    assert len(finished) >= 0.9 * n_points
    assert told["drawn"] >= 5 / 3 * n_points
    counts = await rush.counts()
    assert (counts.queued, counts.running) == (0, 0)
    # Tasks of a tenth of the points fail at their first attempt, and the points are taken again.
    failed = (await rush.fetch_failed_tasks())["x"].to_list()
    assert len(failed) == len(set(failed))
    assert {x for x in finished if x % 10 == 0} <= set(failed)


async def test_a_stop_ends_proposals_in_a_space_that_is_not_used_up(rush: Rush) -> None:
    await rush.stop_when(finished=200)
    told = await everything_proposed(rush, 2, 300, timeout=60)
    assert (told["used_up"], told["stopped"]) == (0, 2 * COROUTINES)
    finished = await points(rush)
    assert len(finished) == len(set(finished)) == 200
