"""Names of workers: readable, short, and different from one another."""

from __future__ import annotations

import re

from rush_async.worker.names import worker_name


def test_a_name_is_an_adjective_an_animal_and_six_random_characters() -> None:
    names = [worker_name() for _ in range(1_000)]
    assert all(re.fullmatch(r"[a-z]+_[a-z]+_[0-9a-f]{6}", name) for name in names)
    assert max(map(len, names)) <= 24


def test_every_combination_of_words_fits_into_24_characters() -> None:
    from rush_async.worker.names import _ADJECTIVES, _ANIMALS  # pyright: ignore[reportPrivateUsage]

    assert max(map(len, _ADJECTIVES)) + max(map(len, _ANIMALS)) + len("__") + 6 <= 24
    assert len(set(_ADJECTIVES)) == len(_ADJECTIVES)
    assert len(set(_ANIMALS)) == len(_ANIMALS)


def test_names_differ() -> None:
    assert len({worker_name() for _ in range(1_000)}) > 990
