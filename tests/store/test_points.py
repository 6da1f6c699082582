"""The point of a task: equal inputs have one, however they are written and whichever library made them."""

from __future__ import annotations

import enum
import math
import os
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rush_async.store.codec import encode
from rush_async.store.points import as_unique, canonical, point_of, points_of
from tests.store.values import PLAIN, Loud, Model, Point


class Kind(enum.Enum):
    LINEAR = "linear"
    SHAPE = (1.0, 2)


class Size(enum.IntEnum):
    TWO = 2


def rewritten(value: Any, draw: st.DataObject) -> Any:
    """An equal value in other clothes: another order, other numeric types, other containers."""
    match value:
        case bool() | None:
            return draw.draw(st.sampled_from([value, value if value is None else np.bool_(value)]))
        case int() if -(2**53) <= value <= 2**53:
            return draw.draw(st.sampled_from([value, float(value), np.int64(value), np.float64(value)]))
        case float():
            return draw.draw(st.sampled_from([value, np.float64(value), *([int(value)] if value.is_integer() else [])]))
        case list():
            items = [rewritten(item, draw) for item in cast("list[Any]", value)]
            return draw.draw(st.sampled_from([items, tuple(items)]))
        case dict():
            entries = cast("dict[str, Any]", value)
            return {name: rewritten(entries[name], draw) for name in draw.draw(st.permutations(list(entries)))}
        case _:
            return value


@given(xs=st.dictionaries(st.text(), PLAIN), data=st.data())
def test_equal_inputs_have_one_point_in_any_order_and_of_any_numeric_type(xs: dict[str, Any], data: st.DataObject) -> None:
    assert point_of(rewritten(xs, data)) == point_of(xs)


NUMBERS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3)
NESTED = st.recursive(
    NUMBERS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3)
)


def marked(value: Any) -> Any:
    """The value with its bools marked: Python takes True for 1."""
    match value:
        case bool():
            return ("bool", value)
        case list():
            return [marked(item) for item in cast("list[Any]", value)]
        case dict():
            return {name: marked(entry) for name, entry in cast("dict[str, Any]", value).items()}
        case _:
            return value


@given(first=st.dictionaries(st.text(max_size=2), NESTED), second=st.dictionaries(st.text(max_size=2), NESTED))
def test_different_inputs_have_different_points(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert (point_of(first) == point_of(second)) == (marked(first) == marked(second))


@given(value=st.floats() | st.integers())
def test_only_equal_numbers_have_one_point(value: float) -> None:
    other = math.nextafter(value, math.inf) if isinstance(value, float) else value + 1
    assume(not math.isnan(other) and other != value)
    assert point_of({"x": value}) != point_of({"x": other})


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (-0.0, 0),
        (-0.0, 0.0),
        (math.nan, -math.nan),
        (math.nan, np.float32("nan")),
        (1e300, int(1e300)),
        (2.0**64, 2**64),
        (np.float32(0.5), 0.5),
        (np.array([1.0, 2.5]), [1, 2.5]),
        (np.array([[1, 2], [3, 4]], "uint8"), ((1, 2), (3, 4))),
        (np.array(["2020-01-01"], "M8[D]"), [date(2020, 1, 1)]),
        (np.str_("a"), "a"),
        ({3, -1000, 300.0}, frozenset([300, 3.0, -1000])),
        (Kind.LINEAR, "linear"),
        (Kind.SHAPE, [1, 2.0]),
        (Size.TWO, 2.0),
        (Point(1.0, 2.0), {"y": 2, "x": 1}),
        (Model(x=1), {"x": 1.0}),
        (Loud("a"), "a"),
        (bytearray(b"a"), b"a"),
        (datetime(2020, 1, 1, 12, tzinfo=UTC), datetime(2020, 1, 1, 14, tzinfo=timezone(timedelta(hours=2)))),
    ],
)
def test_values_that_are_the_same_input_are_one_point(first: Any, second: Any) -> None:
    assert point_of({"x": first}) == point_of({"x": second})


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (True, 1),
        (False, 0),
        (None, 0),
        ("1", 1),
        ("a", b"a"),
        (math.inf, -math.inf),
        (math.inf, math.nan),
        (np.float32(0.1), 0.1),
        (Decimal("0.5"), 0.5),
        ([], {}),
        ([1, 2], [2, 1]),
        (datetime(2020, 1, 1), datetime(2020, 1, 1, tzinfo=UTC)),  # noqa: DTZ001
        (timedelta(1), timedelta(2)),
    ],
)
def test_values_that_are_stored_differently_are_different_points(first: Any, second: Any) -> None:
    assert point_of({"x": first}) != point_of({"x": second})


def test_a_point_of_some_inputs_ignores_the_others_and_knows_their_names() -> None:
    xs = {"x1": 1.0, "x2": 2, "seed": 7}
    assert point_of(xs, ("x1", "x2")) == point_of({"seed": 8, "x2": 2.0, "x1": 1}, ("x2", "x1"))
    assert point_of(xs, ("x1", "x2")) == point_of({"x1": 1, "x2": 2})
    assert point_of({"x1": 1, "x2": 2}, ("x1",)) != point_of({"x1": 2, "x2": 1}, ("x2",))
    with pytest.raises(ValueError, match=r"xss\[1\] has no input 'x1', which unique names: its inputs are x2"):
        points_of([xs, {"x2": 1}], ("x1",))


def test_a_point_is_the_blake2b_digest_of_canonical_msgpack() -> None:
    """What the page of the wire format tells others to write."""
    xs = {"b": [1.0, -0.0, 0.5, True], "a": {"z": math.nan, "y": None}}
    assert encode(canonical(xs), "xs").hex() == "82a16182a179c0a17acb7ff8000000000000a162940100cb3fe0000000000000c3"
    assert point_of(xs).hex() == "67a128c3cd0247491e854fbbd7609400"


def test_a_set_of_texts_has_one_point_in_every_process() -> None:
    program = "from rush_async.store.points import point_of; print(point_of({'x': {'ape', 'bee', 'owl', 'yak'}}).hex())"
    points: set[str] = set()
    for seed in ("1", "2", "3"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        points.add(subprocess.check_output([sys.executable, "-c", program], env=environment, text=True))
    assert len(points) == 1


def test_what_is_given_as_unique_is_checked() -> None:
    assert as_unique(True) is True
    assert as_unique(False) is False
    assert as_unique("x1") == ("x1",)
    assert as_unique(name for name in ("x1", "x2")) == ("x1", "x2")
    wrong: Any
    for wrong in (None, 1, b"x1", {"x1": 1}, ["x1", 2], Point):
        with pytest.raises(TypeError, match="unique"):
            as_unique(wrong)
    with pytest.raises(ValueError, match="name at least one, or pass True"):
        as_unique([])
