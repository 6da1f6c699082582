"""Values as bytes: they are decoded as they were encoded, and errors name what cannot be encoded or decoded."""

from __future__ import annotations

import enum
import math
import struct
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rush_async import DecodeError, EncodeError
from rush_async.store.codec import decode, decode_all, encode
from tests.store.values import PLAIN, Loud, Model, Point


def round_trip(value: Any) -> Any:
    return decode(encode(value, "xs"))


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(0.5), 0.5),
        (np.int8(3), 3),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (np.arange(3), [0, 1, 2]),
        (np.array([[1.5]]), [[1.5]]),
        (np.datetime64("2024-01-02T03:04:05"), datetime(2024, 1, 2, 3, 4, 5)),  # noqa: DTZ001
        ((1, 2), [1, 2]),
        ({3}, [3]),
        (frozenset({"a"}), ["a"]),
        (Colour.RED, "red"),
        (Level.HIGH, 3),
        (bytearray(b"x"), b"x"),
        (Point(1, 2), {"x": 1, "y": 2}),
        (Model(x=1), {"x": 1}),
        ([Point(1, 2)], [{"x": 1, "y": 2}]),
        (2**64, 2**64),
        (-(2**63) - 1, -(2**63) - 1),
        (math.inf, math.inf),
        (Decimal("1.50"), Decimal("1.50")),
        (UUID(int=5), UUID(int=5)),
        (time(1, 2, 3, 4), time(1, 2, 3, 4)),
        (timedelta.max, timedelta.max),
        (datetime.min, datetime.min),  # noqa: DTZ901
        (datetime(2024, 1, 1, 12, tzinfo=timezone(timedelta(hours=2))), datetime(2024, 1, 1, 10, tzinfo=UTC)),
    ],
)
def test_row_17_values_are_decoded_as_documented(value: Any, expected: Any) -> None:
    found = round_trip(value)
    assert found == expected
    assert type(found) is type(expected)


def test_row_17_nan_stays_nan() -> None:
    assert math.isnan(round_trip(math.nan))


@given(value=PLAIN)
def test_row_17_plain_values_are_decoded_equal(value: Any) -> None:
    assert round_trip(value) == value


def test_a_list_that_contains_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(EncodeError, match="deep"):
        encode({"a": endless}, "xs")


def test_truncated_values_are_a_decode_error() -> None:
    with pytest.raises(DecodeError, match="cut off"):
        decode_all(encode([1, 2, 3], "")[:-1])


def test_unknown_extension_types_are_a_decode_error() -> None:
    with pytest.raises(DecodeError, match="extension type 99"):
        decode(b"\xd4\x63\x00")


class Nowhere(tzinfo):
    """A zone without an offset from UTC."""

    def utcoffset(self, dt: datetime | None) -> timedelta | None:
        return None

    dst = utcoffset

    def tzname(self, dt: datetime | None) -> str | None:
        return None


class Rows(pydantic.RootModel[list[int]]):
    pass


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (2**64 - 1, 2**64 - 1),
        (-(2**63), -(2**63)),
        (Loud("held"), "held"),
        ({Loud("name"): 1}, {"name": 1}),
        (np.longdouble(1.5), 1.5),
        (np.array([1.5], dtype=np.longdouble), [1.5]),
        (np.array(["a", None], dtype=object), ["a", None]),
        (np.datetime64("2024-01-02T03:04:05.000006000"), datetime(2024, 1, 2, 3, 4, 5, 6)),  # noqa: DTZ001
        (np.array(["NaT", "2024-01-02"], dtype="M8[ns]"), [None, datetime(2024, 1, 2)]),  # noqa: DTZ001
        (np.longdouble("-inf"), -math.inf),
        (np.array([(1, 2.5), (3, 4.5)], dtype=[("a", "i4"), ("b", "f8")]), [{"a": 1, "b": 2.5}, {"a": 3, "b": 4.5}]),
        (np.array([(1, [2, 3])], dtype=[("a", "i4"), ("b", "i4", 2)])[0], {"a": 1, "b": [2, 3]}),
        (np.array(["2024-01-02"], dtype="M8[ns]"), [datetime(2024, 1, 2)]),  # noqa: DTZ001
        (np.datetime64("2024-01-02"), date(2024, 1, 2)),
        (np.timedelta64(2_000, "ns"), timedelta(microseconds=2)),
        (np.timedelta64(90, "s"), timedelta(seconds=90)),
        (np.datetime64("NaT"), None),
        (datetime(2024, 1, 1, tzinfo=Nowhere()), datetime(2024, 1, 1)),  # noqa: DTZ001
        (datetime.max.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)),
        (timedelta.min, timedelta.min),
        (date.min, date.min),
        (memoryview(b"abc")[::2], b"ac"),
        (Rows([1, 2]), [1, 2]),
    ],
)
def test_row_17_extreme_values_are_decoded_as_documented(value: Any, expected: Any) -> None:
    found = round_trip(value)
    assert found == expected
    assert type(found) is type(expected)


def test_row_17_integers_of_4300_digits_are_decoded_equal() -> None:
    largest = 10**4300 - 1
    assert round_trip([largest, -largest]) == [largest, -largest]


@pytest.mark.parametrize("number", [10**4300, -(10**4300), 1 << 1_000_000], ids=["positive", "negative", "huge"])
def test_longer_integers_are_refused_with_their_path(number: int) -> None:
    with pytest.raises(EncodeError, match=r"xs\['n'\]: an integer of [\d,]+ bits cannot be stored: 4,300 digits"):
        encode({"n": number}, "xs")


def test_longer_integers_of_other_writers_are_refused_at_once() -> None:
    with pytest.raises(DecodeError, match="an integer of 1,000,000 digits: this library writes at most 4,300"):
        decode(b"\xc9" + struct.pack(">IB", 1_000_000, 1) + b"9" * 1_000_000)


ZONES = st.builds(timezone, st.timedeltas(timedelta(hours=-23, minutes=-59), timedelta(hours=23, minutes=59)))


@given(value=st.datetimes(timezones=ZONES | st.timezones(), allow_imaginary=False))
def test_row_17_aware_datetimes_are_decoded_equal_and_in_utc_or_refused(value: datetime) -> None:
    try:
        expected = value.astimezone(UTC)
    except OverflowError:
        with pytest.raises(EncodeError, match=r"xs: datetime.datetime .* cannot be stored"):
            encode(value, "xs")
    else:
        found = round_trip(value)
        assert (found, found.tzinfo) == (expected, UTC)


def encoded(code: int, payload: bytes) -> bytes:
    """Returns an extension type as it is encoded."""
    return struct.pack(">BBb", 0xC7, len(payload), code) + payload


@pytest.mark.parametrize(
    ("value", "code", "payload"),
    [
        (2**64, 1, b"18446744073709551616"),
        (Decimal("-1.50"), 2, b"-1.50"),
        (UUID(int=5), 3, bytes(15) + b"\5"),
        (datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC), 4, b"-1000000"),
        (datetime(1970, 1, 2), 5, b"86400000000"),  # noqa: DTZ001
        (date(1, 1, 1), 6, b"\0\0\0\1"),
        (time(1, 2, 3), 7, b"01:02:03"),
        (timedelta(seconds=-1), 8, b"-1000000"),
    ],
)
def test_extension_types_are_encoded_as_documented(value: Any, code: int, payload: bytes) -> None:
    assert decode(encoded(code, payload)) == value
    packed = encode(value, "xs")
    assert packed.endswith(bytes([code]) + payload)


@pytest.mark.parametrize(
    "data",
    [
        b"\xdd\x7f\xff\xff\xff",  # a list of two billion
        b"\xdf\x7f\xff\xff\xff",
        b"\xdb\x7f\xff\xff\xff",
        b"\xc9\x7f\xff\xff\xff\x01",
        b"\x91" * 100_000,
        b"\x81\x90\x01",  # a list as name
        b"\x81\xc7\x00\x01\x01",  # an integer extension as name
        b"\xc7\x01\xff\x00",  # a msgpack timestamp of an invalid length
        encoded(2, b"abc"),
        encoded(3, b"abc"),
        encoded(1, b"1E9"),
        encoded(1, b"1_0"),
        encoded(1, b""),
        encoded(1, "\u0661".encode()),
        encoded(4, b"9" * 30),  # a datetime out of range
        encoded(5, b"-9" + b"0" * 20),
        encoded(6, b"\0\0\0\0"),  # the day before the first
        encoded(6, b"\1"),
        encoded(7, b"25"),
        encoded(8, b"9" * 30),  # a timedelta out of range
        b"\xc1",
        b"\xa1\xff",
        b"",
    ],
)
def test_hostile_and_invalid_msgpack_is_a_decode_error(data: bytes) -> None:
    if data:
        with pytest.raises(DecodeError):
            decode_all(data)
    with pytest.raises(DecodeError):
        decode(data)


def test_numbers_that_look_like_a_timestamp_are_numbers() -> None:
    values = [0xD6FF_0000_0000, b"\xd7\xff", struct.unpack(">d", b"\x00\xc7\x0c\xff\0\0\0\0")[0]]
    assert round_trip({"a": values}) == {"a": values}


@settings(max_examples=500)
@given(code=st.integers(-128, 127), payload=st.binary(max_size=40))
def test_extension_payloads_are_a_value_or_a_decode_error(code: int, payload: bytes) -> None:
    with suppress(DecodeError):
        decode(encoded(code, payload))
