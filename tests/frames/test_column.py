"""One column: the text of its values, its series, and which other series it can be made of."""

from __future__ import annotations

from datetime import time
from typing import Any
from uuid import UUID

import polars as pl
import pytest

from rush_async.errors import DecodeError
from rush_async.frames.column import Column, text


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (None, None),
        ("ä", "ä"),
        (1.5, "1.5"),
        (b"\x00", "b'\\x00'"),
        (time(1, 2), "01:02:00"),
        ([UUID(int=1), {"a": None}], '["00000000-0000-0000-0000-000000000001", {"a": null}]'),
    ],
)
def test_the_text_of_a_value_shows_all_of_it(value: Any, written: str | None) -> None:
    assert text(value) == written


def test_a_series_is_recast_where_no_value_can_change() -> None:
    ints, none = pl.Series("a", [1, None]), pl.Series("a", [None, None])
    exact = Column((1, "b"), "b", pl.Float64())
    recast = exact.recast(ints)
    assert recast is not None
    assert (recast.name, recast.dtype, recast.to_list()) == ("b", pl.Float64, [1.0, None])
    assert Column((1, "b"), "b", pl.Float64(), has_exact_floats=False).recast(ints) is None
    assert Column((1, "b"), "b", pl.String()).recast(ints) is None
    nulls = Column((1, "b"), "b", pl.List(pl.Int64())).recast(none)
    assert nulls is not None
    assert (nulls.dtype, nulls.to_list()) == (pl.List(pl.Int64), [None, None])
    assert exact.nulls(0).to_list() == []


def test_a_value_of_the_wrong_type_is_a_decode_error_that_names_the_column() -> None:
    with pytest.raises(DecodeError, match="column 'b' has values that this library never writes"):
        Column((1, "b"), "b", pl.Float64()).series(["s"], ["k"])
