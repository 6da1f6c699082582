"""The basis of a proposal as bytes."""

from __future__ import annotations

import pytest

from rush_async.errors import DecodeError
from rush_async.store.basis import Basis, Seen
from rush_async.store.codec import to_msgpack


@pytest.mark.parametrize(
    "basis",
    [
        Basis(0, 0),
        Basis(3, 200, 99),
        Basis(1, 2, 0, (Seen("running", 3, (5, 7, 300)), Seen("finished", 5_000))),
        Basis(1, 2, 0, (Seen("queued", 3, (9, 2, 4)), Seen("failed", 0))),
        Basis(2**32 - 1, 2**40, 0, (Seen("running", 1, (2**32 - 2,)),)),
    ],
)
def test_a_basis_is_the_same_after_encoding(basis: Basis) -> None:
    assert Basis.decode(basis.encode()) == basis


def test_it_takes_a_byte_for_each_running_task() -> None:
    def size(n: int) -> int:
        return len(Basis(3, 50, 0, (Seen("running", n, tuple(range(1000, 1000 + n))), Seen("finished", 990))).encode())

    assert size(10) == 24
    assert size(110) - size(20) == 90


@pytest.mark.parametrize(
    "packed",
    [
        b"",
        b"\xc0",
        to_msgpack([1, 2]),
        to_msgpack([1, 2, "0"]),
        to_msgpack([1, 2, 0, 5]),
        to_msgpack([1, 2, 0, [9, 1]]),
        to_msgpack([1, 2, 0, [0, 1, "x"]]),
        to_msgpack([1, 2, 0, [0, None]]),
        to_msgpack([1, 2, 0, [-1, 1]]),
    ],
)
def test_what_is_no_basis_is_an_error_that_shows_it(packed: bytes) -> None:
    with pytest.raises(DecodeError):
        Basis.decode(packed)
