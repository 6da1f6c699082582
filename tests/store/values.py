"""Values and classes of values that tests of the store encode."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC

import pydantic
from hypothesis import strategies as st


@dataclass
class Point:
    x: float
    y: float


class Model(pydantic.BaseModel):
    x: int


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.decimals(allow_nan=False)
    | st.uuids()
    | st.dates()
    | st.times()
    | st.timedeltas()
    | st.datetimes()
    | st.datetimes(timezones=st.just(UTC)),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


class Loud(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "not what it holds"
