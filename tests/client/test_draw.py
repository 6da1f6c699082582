"""What a proposal may see and draw: the same numbers from the same seed, index and redraw."""

from __future__ import annotations

import asyncio
import hashlib
import random
from typing import Any

import numpy as np
import polars as pl
import pytest

from rush_async.client.draw import Draw, proposed


def test_numpy_is_the_documented_stream() -> None:
    ours = Draw(42, 7, worker=1, round=3).numpy().random(5)
    assert ours.tolist() == np.random.default_rng(np.random.SeedSequence(42, spawn_key=(7,))).random(5).tolist()
    ours = Draw(42, 7, worker=1, round=3, redraw=2).numpy().random(5)
    assert ours.tolist() == np.random.default_rng(np.random.SeedSequence(42, spawn_key=(7, 2))).random(5).tolist()


def test_spawning_the_seed_gives_the_same_streams() -> None:
    child = np.random.SeedSequence(42).spawn(8)[7]
    assert Draw(42, 7, 0, 0).numpy().random() == np.random.default_rng(child).random()


def test_a_worker_has_a_stream_of_its_own_by_its_number() -> None:
    ours = Draw(42, 7, worker=3, round=0).worker_numpy().random(5)
    expected = np.random.default_rng(np.random.SeedSequence(42, spawn_key=(2**32 - 1, 3))).random(5)
    assert ours.tolist() == expected.tolist()
    assert Draw(42, 8, worker=3, round=1).worker_numpy().random(5).tolist() == expected.tolist()


@pytest.mark.parametrize("redraw", [0, 3])
def test_the_standard_librarys_generator_and_the_seed_come_from_a_documented_hash(redraw: int) -> None:
    draw = Draw(2**63 - 1, 7, 0, 0, redraw)
    for kind in ("random", "seed"):
        digest = hashlib.sha256(f"rush_async {kind} {2**63 - 1} 7 {redraw}".encode()).digest()
        if kind == "random":
            assert draw.random().random() == random.Random(int.from_bytes(digest)).random()
        else:
            assert draw.seed == int.from_bytes(digest[:4])


def test_these_numbers_never_change() -> None:
    """A run that was made with one version of the library has to come out again with the next one."""
    draw = Draw(42, 7, worker=3, round=1)
    assert draw.seed == 1036340736
    assert draw.random().random() == 0.513702190968713
    assert draw.numpy().random() == 0.0015791460415535141
    assert draw.worker_numpy().random() == 0.36388274578086455


@pytest.mark.parametrize("seed", [None, 42])
def test_each_generator_is_one_object_a_draw(seed: int | None) -> None:
    draw = Draw(seed, None if seed is None else 0, 0, 0, worker_seed=5)
    assert draw.random() is draw.random()
    assert draw.numpy() is draw.numpy()
    assert draw.worker_numpy() is draw.worker_numpy()
    assert draw.seed == draw.seed
    assert draw.numpy().random() != draw.numpy().random()


def test_without_a_seed_there_is_no_index_and_each_draw_differs() -> None:
    first, second = (Draw(None, None, 0, at, worker_seed=5) for at in range(2))
    assert first.index is None
    assert first.random().random() != second.random().random()
    assert first.numpy().random() != second.numpy().random()
    assert 0 <= first.seed < 2**32
    assert first.worker_numpy().random() == second.worker_numpy().random()  # what a worker draws for itself stays


def test_the_streams_of_draws_differ() -> None:
    draws = [Draw(seed, index, 0, 0, redraw) for seed in (0, 1) for index in (0, 1) for redraw in (0, 1)]
    for values in ([d.seed for d in draws], [d.random().random() for d in draws], [d.numpy().random() for d in draws]):
        assert len(set(values)) == len(draws)


def test_tasks_are_those_that_were_read() -> None:
    frame = pl.DataFrame({"state": ["running"], "index": [0]})
    assert Draw(42, 0, 0, 0, tasks=frame).tasks is frame
    with pytest.raises(ValueError, match=r'give proposals\(\.\.\., read=\("running", "finished"\)\)'):
        _ = Draw(42, 0, 0, 0).tasks


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ({"x": 1}, ({"x": 1}, None)),
        (({"x": 1}, {"e": 2}), ({"x": 1}, {"e": 2})),
        (({"x": 1}, None), ({"x": 1}, None)),
    ],
)
def test_a_proposal_is_an_input_or_an_input_and_extras(result: Any, expected: Any) -> None:
    async def later(_: Draw) -> Any:
        await asyncio.sleep(0)
        return result

    draw = Draw(42, 0, 0, 0)
    assert asyncio.run(proposed(lambda _: result, draw)) == expected
    assert asyncio.run(proposed(later, draw)) == expected


@pytest.mark.parametrize("result", [None, 5, [{"x": 1}], "text", ({"x": 1}, 5), ({"x": 1}, {}, {}), {1: 2}])
def test_what_is_no_record_is_refused(result: Any) -> None:
    with pytest.raises(TypeError, match="proposal"):
        asyncio.run(proposed(lambda _: result, Draw(42, 0, 0, 0)))


def test_a_name_of_a_column_of_every_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="the proposal has an input named 'keys'"):
        asyncio.run(proposed(lambda _: {"keys": 1}, Draw(42, 0, 0, 0)))
