"""Values and records as bytes: what goes in comes out, and what cannot is named."""

from __future__ import annotations

import enum
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rush_async import DecodeError, EncodeError, Failure
from rush_async.store.codec import (
    RESERVED_NAMES,
    as_record,
    as_records,
    check_names,
    complete,
    decode,
    decode_all,
    decode_flat,
    decode_task,
    encode,
    encode_created,
    encode_ended,
    encode_failure,
    header,
)

STAMP = b"\xcb" + struct.pack(">d", 1.7e9)


def there_and_back(value: Any) -> Any:
    return decode(encode(value, "xs"))


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


@dataclass
class Point:
    x: float
    y: float


class Model(pydantic.BaseModel):
    x: int


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
        (datetime.min, datetime.min),
        (datetime(2024, 1, 1, 12, tzinfo=timezone(timedelta(hours=2))), datetime(2024, 1, 1, 10, tzinfo=UTC)),
    ],
)
def test_row_17_values_travel(value: Any, expected: Any) -> None:
    found = there_and_back(value)
    assert found == expected
    assert type(found) is type(expected)


def test_row_17_nan_stays_nan() -> None:
    assert math.isnan(there_and_back(math.nan))


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


@given(value=PLAIN)
def test_row_17_whatever_is_plain_comes_back_equal(value: Any) -> None:
    assert there_and_back(value) == value


@pytest.mark.parametrize(
    ("value", "path", "word"),
    [
        ({"model": object()}, r"ys\['model'\]", "object"),
        ({"a": [1, {"b": lambda: 0}]}, r"ys\['a'\]\[1\]\['b'\]", "function"),
        ({"a": {1: 2}}, r"ys\['a'\]", "str"),
        ({"a": 1j}, r"ys\['a'\]", "complex"),
        ({"a": "\ud800"}, r"ys\['a'\]", "UTF-8"),
        ({"a": time(1, tzinfo=UTC)}, r"ys\['a'\]", "time"),
    ],
)
def test_row_17_what_cannot_travel_is_named_by_path_and_type(value: dict[str, Any], path: str, word: str) -> None:
    with pytest.raises(EncodeError, match=path) as caught:
        encode_ended(value, None)
    assert word in str(caught.value)


def test_a_list_that_contains_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(EncodeError, match="deep"):
        encode({"a": endless}, "xs")


def test_records_are_mappings_dataclasses_and_models() -> None:
    class Own(Mapping[str, int]):
        def __getitem__(self, key: str) -> int:
            return 1

        def __iter__(self) -> Any:
            return iter(["a"])

        def __len__(self) -> int:
            return 1

    assert as_records([{"a": 1}, Own(), Point(1, 2), Model(x=3)], "xss") == [{"a": 1}, {"a": 1}, {"x": 1, "y": 2}, {"x": 3}]
    assert as_records((record for record in [{"a": 1}]), "xss") == [{"a": 1}]


@pytest.mark.parametrize("value", ["text", b"bytes", {"x": 1}, Point(1, 2), 5, None])
def test_what_is_no_sequence_of_records_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match=r"xss must be a sequence of records.*\[record\]"):
        as_records(value, "xss")


@pytest.mark.parametrize("value", [5, "text", None, [1], Point])
def test_what_is_no_record_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match=r"xss\[0\] must be a record"):
        as_records([value], "xss")


def test_names_are_strings_and_not_those_of_fixed_columns() -> None:
    with pytest.raises(TypeError, match="name 1 of type int"):
        as_record({1: 2}, "xs")
    for name in RESERVED_NAMES:
        with pytest.raises(ValueError, match=f"'{name}'.*rename"):
            check_names({"x": 1, name: 2}, "xs")
    check_names({"x": 1}, "xs")


def record_parts() -> tuple[bytes, bytes, bytes]:
    created = encode_created("key", {"x": 1.5}, {"seed": 1})
    started = encode("owl", "") + b"\x02" + STAMP
    return header(created, retries=3) + created + STAMP, started, encode_ended({"y": 2}, None) + STAMP


def test_a_record_of_each_state_is_a_task() -> None:
    created, started, ended = record_parts()
    queued = decode_task("queued", b"\x01" + created[1:])
    assert (queued.key, queued.xs, queued.xs_extra, queued.attempt) == ("key", {"x": 1.5}, {"seed": 1}, 1)
    running = decode_task("running", created + started)
    assert (running.worker_id, running.attempt, running.ys) == ("owl", 2, None)
    finished = decode_task("finished", created[6:] + started + ended)
    assert (finished.ys, finished.failure) == ({"y": 2}, None)
    assert finished.created_at == datetime.fromtimestamp(1.7e9, UTC)
    failure = Failure("lost", "T", "gone", None)
    failed = decode_task("failed", created + started + encode_failure(failure) + STAMP)
    assert (failed.ys, failed.failure) == (None, failure)


def test_the_header_tells_where_the_first_part_ends() -> None:
    created = encode_created("key", {"x": 1}, None)
    assert header(created, retries=7) == struct.pack(">BBI", 0, 7, len(created) + len(STAMP))


def test_a_traceback_with_lone_surrogates_is_stored() -> None:
    assert "\\ud800" in decode_all(encode_failure(Failure(message="bad \ud800")))[0]["message"]


def test_joined_records_are_one_flat_list() -> None:
    created, started, ended = record_parts()
    one = created[6:] + started + ended
    assert len(decode_flat(one * 3, 3)) == 30


@settings(max_examples=500)
@given(data=st.binary(max_size=60))
def test_malformed_bytes_are_a_decode_error_and_nothing_else(data: bytes) -> None:
    for attempt in (
        lambda: decode(data),
        lambda: decode_all(data),
        lambda: decode_flat(data, 1),
        lambda: decode_task("finished", data),
        lambda: decode_task("failed", data),
        lambda: decode_task("queued", data),
    ):
        try:
            attempt()
        except DecodeError:
            pass


@given(data=st.data())
def test_a_damaged_record_is_a_decode_error_or_another_record(data: st.DataObject) -> None:
    created, started, ended = record_parts()
    raw = bytearray(complete("finished", created[6:] + started + ended))
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode_task("finished", bytes(raw[: data.draw(st.integers(0, len(raw)))]))
    except DecodeError:
        pass


def test_cut_values_are_a_decode_error() -> None:
    with pytest.raises(DecodeError, match="cut off"):
        decode_all(encode([1, 2, 3], "")[:-1])


def test_unknown_extension_types_are_a_decode_error() -> None:
    with pytest.raises(DecodeError, match="extension type 99"):
        decode(b"\xd4\x63\x00")
