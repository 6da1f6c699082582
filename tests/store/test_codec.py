"""Values and records as bytes: they are decoded as they were encoded, and errors name what cannot be encoded or decoded."""

from __future__ import annotations

import enum
import math
import struct
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any, cast
from uuid import UUID

import numpy as np
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rush_async import DecodeError, EncodeError, Failure
from rush_async.model import RESERVED_NAMES, TaskState
from rush_async.store.codec import decode, decode_all, encode
from rush_async.store.records import (
    as_record,
    as_records,
    check_names,
    complete,
    decode_flat,
    decode_task,
    encode_created,
    encode_ended,
    encode_failure,
    header,
)

STAMP = b"\xcb" + struct.pack(">d", 1.7e9)


def round_trip(value: Any) -> Any:
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
def test_row_17_plain_values_are_decoded_equal(value: Any) -> None:
    assert round_trip(value) == value


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
def test_row_17_the_error_names_the_path_and_type_of_a_value_that_cannot_be_stored(
    value: dict[str, Any], path: str, word: str
) -> None:
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
def test_anything_but_a_sequence_of_records_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match=r"xss must be a sequence of records.*\[record\]"):
        as_records(value, "xss")


@pytest.mark.parametrize("value", [5, "text", None, [1], Point])
def test_anything_but_a_record_is_refused(value: Any) -> None:
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


def test_a_record_of_each_state_is_decoded_to_a_task() -> None:
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


def test_the_header_has_the_length_of_the_first_part() -> None:
    created = encode_created("key", {"x": 1}, None)
    assert header(created, retries=7) == struct.pack(">BBI", 0, 7, len(created) + len(STAMP))


def test_a_traceback_with_lone_surrogates_is_stored() -> None:
    assert "\\ud800" in decode_all(encode_failure(Failure(message="bad \ud800")))[0]["message"]


def test_joined_records_are_decoded_to_one_flat_list() -> None:
    created, started, ended = record_parts()
    one = created[6:] + started + ended
    assert len(decode_flat(one * 3, 3)) == 30


@settings(max_examples=500)
@given(data=st.binary(max_size=60))
def test_malformed_bytes_raise_no_other_error_than_a_decode_error(data: bytes) -> None:
    for attempt in (
        lambda: decode(data),
        lambda: decode_all(data),
        lambda: decode_flat(data, 1),
        lambda: decode_task("finished", data),
        lambda: decode_task("failed", data),
        lambda: decode_task("queued", data),
    ):
        with suppress(DecodeError):
            attempt()


@given(data=st.data())
def test_a_damaged_record_is_a_decode_error_or_another_record(data: st.DataObject) -> None:
    created, started, ended = record_parts()
    raw = bytearray(complete("finished", created[6:] + started + ended))
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with suppress(DecodeError):
        decode_task("finished", bytes(raw[: data.draw(st.integers(0, len(raw)))]))


def test_truncated_values_are_a_decode_error() -> None:
    with pytest.raises(DecodeError, match="cut off"):
        decode_all(encode([1, 2, 3], "")[:-1])


def test_unknown_extension_types_are_a_decode_error() -> None:
    with pytest.raises(DecodeError, match="extension type 99"):
        decode(b"\xd4\x63\x00")


class Loud(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "not what it holds"


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
        (np.datetime64("2024-01-02T03:04:05.000006007"), datetime(2024, 1, 2, 3, 4, 5, 6)),  # noqa: DTZ001
        (np.array(["2024-01-02"], dtype="M8[ns]"), [datetime(2024, 1, 2)]),  # noqa: DTZ001
        (np.datetime64("2024-01-02"), date(2024, 1, 2)),
        (np.timedelta64(1_500, "ns"), timedelta(microseconds=1)),
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


RECORDS = st.dictionaries(st.text(), PLAIN, max_size=3)


@given(key=st.text(), xs=RECORDS, xs_extra=st.none() | RECORDS, ys=RECORDS, ys_extra=st.none() | RECORDS)
def test_row_17_records_are_decoded_equal(key: str, xs: Any, xs_extra: Any, ys: Any, ys_extra: Any) -> None:
    record = encode_created(key, xs, xs_extra) + STAMP + b"\xc0" * 3 + encode_ended(ys, ys_extra) + STAMP
    task = decode_task("finished", record)
    assert (task.key, task.xs, task.xs_extra, task.ys, task.ys_extra) == (key, xs, xs_extra, ys, ys_extra)


@given(value=PLAIN)
def test_a_record_is_the_same_bytes_whether_packed_at_once_or_value_by_value(value: Any) -> None:
    # A name of a subclass of str makes the encoder pack the record value by value.
    assert encode_ended({"a": value}, None) == encode_ended({Loud("a"): value}, None)


@pytest.mark.parametrize(
    ("value", "path", "word"),
    [
        (np.timedelta64(3, "Y"), r"ys\['a'\]", r"timedelta64\[Y\]"),
        (np.datetime64("12024-01-01T00:00:00"), r"ys\['a'\]", "datetime64"),
        (np.array([[1j]]), r"ys\['a'\]\[0\]\[0\]", "complex"),
        (np.clongdouble(1j), r"ys\['a'\]", "imaginary"),
        (datetime.min.replace(tzinfo=timezone(timedelta(hours=5))), r"ys\['a'\]", "datetime"),
        ({"b": {2.5: 1}}, r"ys\['a'\]\['b'\]", "key 2.5 of type float"),
        ({"\udfff": 1}, r"ys\['a'\]", "UTF-8"),
        ([1.0, "\ud800"], r"ys\['a'\]\[1\]", "UTF-8"),
        (Point, r"ys\['a'\]", r"builtins\.type"),
        ({1j}, r"ys\['a'\]\[0\]", "complex"),
    ],
)
def test_row_17_the_error_of_an_odd_value_names_its_path(value: Any, path: str, word: str) -> None:
    with pytest.raises(EncodeError, match=f"{path}.*{word}"):
        encode_ended({"a": value}, None)


def test_row_17_errors_name_the_path_in_extra_values() -> None:
    with pytest.raises(EncodeError, match=r"xss_extra\[3\]\['a'\]: builtins.object"):
        encode_created("key", {"x": 1}, {"a": object()}, "xss[3]")
    with pytest.raises(EncodeError, match=r"ys_extra\['a'\]: builtins.object"):
        encode_ended({"y": 1}, {"a": object()})


def test_a_name_that_is_not_a_string_is_refused() -> None:
    with pytest.raises(EncodeError, match="key 1 of type int"):
        encode_ended({1: 2}, None)  # pyright: ignore[reportArgumentType]


def wrapped(value: Any, kind: str) -> Any:
    return {"list": [value], "tuple": (value,), "dict": {"a": value}}[kind]


@pytest.mark.parametrize("kind", ["list", "tuple", "dict"])
def test_values_are_nested_at_most_a_hundred_deep(kind: str) -> None:
    value: Any = 1
    for _ in range(99):
        value = wrapped(value, kind)
    decode_all(encode_ended({"y": value}, None))
    for beside in (1, Decimal(1)):
        with pytest.raises(EncodeError, match="more than 100 deep"):
            encode_ended({"y": wrapped(value, kind), "beside": beside}, None)


def test_threads_that_encode_at_once_do_not_mix_up_their_bytes() -> None:
    expected = [encode_ended({"y": [float(n)] * 50, "s": str(n)}, None) for n in range(8)]

    def work(n: int) -> bool:
        return all(encode_ended({"y": [float(n)] * 50, "s": str(n)}, None) == expected[n] for _ in range(500))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def finished(*, xs: Any = None, ys: Any = None, ys_extra: Any = None, key: Any = "k", attempt: Any = 1) -> bytes:
    values = [key, xs or {"x": 1.0}, None, 1.7e9, "owl", attempt, 1.7e9, ys or {"y": 1.0}, ys_extra, 1.7e9]
    return b"".join(encode(value, "") for value in values)


def test_records_of_different_layouts_are_decoded_to_one_flat_list() -> None:
    records = [finished(), finished(ys_extra={"a": 1}), finished(attempt=None), finished(xs={"z": "text"})]
    flat = decode_flat(b"".join(records), 4)
    assert [flat[8], flat[18], flat[25], flat[31]] == [None, {"a": 1}, None, {"z": "text"}]
    assert decode_flat(b"", 0) == []


@pytest.mark.parametrize(
    "bad", [finished(key=5), finished(attempt=True), finished(xs=[1]), finished(ys="text"), finished(ys_extra=1.5)]
)
def test_a_value_of_the_wrong_type_is_a_decode_error_in_any_position(bad: bytes) -> None:
    good = finished()
    for records in ([bad], [bad, good, good], [good, bad, good], [good, good, bad]):
        with pytest.raises(DecodeError, match="wrong type"):
            decode_flat(b"".join(records), len(records))


def test_a_wrong_number_of_records_is_a_decode_error() -> None:
    for n in (0, 1, 3):
        with pytest.raises(DecodeError):
            decode_flat(finished() * 2, n)


def test_names_that_are_bytes_are_a_decode_error() -> None:
    raw = finished(xs={"x": 1.0}).replace(b"\xa1x", b"\xc4\x01x")
    for chunk, n in ((raw, 1), (finished() + raw, 2)):
        with pytest.raises(DecodeError, match="names that are no strings"):
            decode_flat(chunk, n)


@pytest.mark.parametrize("state", ["running", "finished", "failed"])
def test_a_record_that_lacks_a_part_of_its_state_is_a_decode_error(state: TaskState) -> None:
    created, started, _ = record_parts()
    raw = (created if state == "running" else created + started)[0 if state != "finished" else 6 :]
    with pytest.raises(DecodeError):
        decode_task(state, raw + b"\xc0" * 3)


@pytest.mark.parametrize("stamp", [math.nan, math.inf, -1e300])
def test_invalid_times_are_a_decode_error(stamp: float) -> None:
    created, started, ended = record_parts()
    with pytest.raises(DecodeError, match="time"):
        decode_task("finished", created[6:-9] + b"\xcb" + struct.pack(">d", stamp) + started + ended)


@pytest.mark.parametrize(
    "failure",
    [
        {"kind": "error", "type": None, "message": "m"},
        {"kind": "melted", "type": None, "message": "m", "traceback": None},
        {"kind": ["error"], "type": None, "message": "m", "traceback": None},
        {"kind": "error", "type": None, "message": 5, "traceback": None},
        {"kind": "error", "type": None, "message": "m", "traceback": None, "__class__": "x"},
    ],
)
def test_a_malformed_failure_is_a_decode_error(failure: dict[str, Any]) -> None:
    created, started, _ = record_parts()
    with pytest.raises(DecodeError, match="no failure of this version"):
        decode_task("failed", created + started + encode_ended(failure, None) + STAMP)


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


@pytest.mark.parametrize("stamp", [b"\xd6\xff" + bytes(4), b"\xd7\xff" + bytes(8), b"\xc7\x0c\xff" + bytes(12)])
def test_timestamps_of_other_writers_are_a_decode_error(stamp: bytes) -> None:
    raw = finished(xs={"x": [{"a": 7}]}).replace(b"\x07", stamp)
    for attempt in (lambda: decode(b"\x91" + stamp), lambda: decode_all(stamp), lambda: decode_task("finished", raw)):
        with pytest.raises(DecodeError, match="timestamp of msgpack's own"):
            attempt()


def test_numbers_that_look_like_a_timestamp_are_numbers() -> None:
    values = [0xD6FF_0000_0000, b"\xd7\xff", struct.unpack(">d", b"\x00\xc7\x0c\xff\0\0\0\0")[0]]
    assert round_trip({"a": values}) == {"a": values}


@settings(max_examples=500)
@given(code=st.integers(-128, 127), payload=st.binary(max_size=40))
def test_extension_payloads_are_a_value_or_a_decode_error(code: int, payload: bytes) -> None:
    with suppress(DecodeError):
        decode(encoded(code, payload))


WIRE = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.lists(st.text(), max_size=2)
) | st.dictionaries(st.text(), st.none(), max_size=2)


@settings(max_examples=300)
@given(values=st.lists(WIRE, min_size=9, max_size=11), prefix=st.binary(min_size=6, max_size=6))
def test_values_in_the_wrong_places_are_a_decode_error_or_a_record(values: list[Any], prefix: bytes) -> None:
    raw = b"".join(encode(value, "") for value in values)
    for state, record in (("finished", raw), ("failed", prefix + raw), ("running", prefix + raw), ("queued", prefix + raw)):
        with suppress(DecodeError):
            decode_task(cast("TaskState", state), record)
