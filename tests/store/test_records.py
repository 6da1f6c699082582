"""Records of tasks: they are decoded as they were encoded, and errors name what cannot be stored or read."""

from __future__ import annotations

import asyncio
import math
import struct
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rush_async import DecodeError, EncodeError, Failure
from rush_async.model import RESERVED_NAMES, TaskState
from rush_async.store.codec import decode, decode_all, encode
from rush_async.store.decoding import complete, decode_flat, decode_task
from rush_async.store.points import all_points_of, points_of
from rush_async.store.records import (
    RecordEncoder,
    as_record,
    as_records,
    check_names,
    encode_created,
    encode_ended,
    encode_failure,
    header,
)
from tests.store.values import PLAIN, Loud, Model, Point

STAMP = b"\xcb" + struct.pack(">d", 1.7e9)
INDEX = b"\xce" + struct.pack(">I", 7)


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
    return header(created, retries=3) + created + STAMP + INDEX, started, encode_ended({"y": 2}, None) + STAMP


def test_a_record_of_each_state_is_decoded_to_a_task() -> None:
    created, started, ended = record_parts()
    queued = decode_task("queued", b"\x01" + created[1:])
    assert (queued.key, queued.xs, queued.xs_extra, queued.attempt, queued.index) == ("key", {"x": 1.5}, {"seed": 1}, 1, 7)
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
    assert header(created, retries=7) == struct.pack(">BBI", 0, 7, len(created) + len(STAMP + INDEX))


def test_a_traceback_with_lone_surrogates_is_stored() -> None:
    assert "\\ud800" in decode_all(encode_failure(Failure(message="bad \ud800")))[0]["message"]


def test_joined_records_are_decoded_to_one_flat_list() -> None:
    created, started, ended = record_parts()
    one = created[6:] + started + ended
    assert len(decode_flat(one * 3, 3)) == 36


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


RECORDS = st.dictionaries(st.text(), PLAIN, max_size=3)


@given(key=st.text(), xs=RECORDS, xs_extra=st.none() | RECORDS, ys=RECORDS, ys_extra=st.none() | RECORDS)
def test_row_17_records_are_decoded_equal(key: str, xs: Any, xs_extra: Any, ys: Any, ys_extra: Any) -> None:
    record = encode_created(key, xs, xs_extra) + STAMP + INDEX + b"\xc0" * 3 + encode_ended(ys, ys_extra) + STAMP
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
        (np.longdouble(1) / 3, r"ys\['a'\]", "more digits than a float"),
        (np.array([1.5, np.longdouble("1e4000")]), r"ys\['a'\]\[1\]", "more digits than a float"),
        (np.datetime64("2024-01-02T03:04:05.000006007"), r"ys\['a'\]", "finer than the microseconds"),
        (np.array([2_000, 1_500], dtype="m8[ns]"), r"ys\['a'\]", "finer than the microseconds"),
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


def finished(
    *, xs: Any = None, ys: Any = None, ys_extra: Any = None, key: Any = "k", attempt: Any = 1, index: Any = 0
) -> bytes:
    values = [key, xs or {"x": 1.0}, None, None, 1.7e9, index, "owl", attempt, 1.7e9, ys or {"y": 1.0}, ys_extra, 1.7e9]
    return b"".join(encode(value, "") for value in values)


def test_records_of_different_layouts_are_decoded_to_one_flat_list() -> None:
    records = [finished(), finished(ys_extra={"a": 1}), finished(attempt=None), finished(xs={"z": "text"})]
    flat = decode_flat(b"".join(records), 4)
    assert [flat[10], flat[22], flat[31], flat[37]] == [None, {"a": 1}, None, {"z": "text"}]
    assert decode_flat(b"", 0) == []


@pytest.mark.parametrize(
    "bad",
    [
        finished(key=5),
        finished(attempt=True),
        finished(index=1.5),
        finished(xs=[1]),
        finished(ys="text"),
        finished(ys_extra=1.5),
    ],
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
        decode_task("finished", created[6:-14] + b"\xcb" + struct.pack(">d", stamp) + INDEX + started + ended)


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


@pytest.mark.parametrize("stamp", [b"\xd6\xff" + bytes(4), b"\xd7\xff" + bytes(8), b"\xc7\x0c\xff" + bytes(12)])
def test_timestamps_of_other_writers_are_a_decode_error(stamp: bytes) -> None:
    raw = finished(xs={"x": [{"a": 7}]}).replace(b"\x07", stamp)
    for attempt in (lambda: decode(b"\x91" + stamp), lambda: decode_all(stamp), lambda: decode_task("finished", raw)):
        with pytest.raises(DecodeError, match="timestamp of msgpack's own"):
            attempt()


WIRE = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.lists(st.text(), max_size=2)
) | st.dictionaries(st.text(), st.none(), max_size=2)


@settings(max_examples=300)
@given(values=st.lists(WIRE, min_size=11, max_size=13), prefix=st.binary(min_size=6, max_size=6))
def test_values_in_the_wrong_places_are_a_decode_error_or_a_record(values: list[Any], prefix: bytes) -> None:
    raw = b"".join(encode(value, "") for value in values)
    for state, record in (("finished", raw), ("failed", prefix + raw), ("running", prefix + raw), ("queued", prefix + raw)):
        with suppress(DecodeError):
            decode_task(cast("TaskState", state), record)


class Ticks:
    """Counts the steps of the event loop, and notes at which of them inputs are encoded."""

    def __init__(self) -> None:
        self.n = 0
        self.seen: list[int] = []

    def model_dump(self) -> dict[str, int]:
        self.seen.append(self.n)
        return {"x": len(self.seen)}

    async def run(self) -> None:
        while True:
            self.n += 1
            await asyncio.sleep(0)


async def test_many_records_are_encoded_in_slices_between_which_the_event_loop_runs() -> None:
    ticks, encoder = Ticks(), RecordEncoder(1_000)
    counting = asyncio.create_task(ticks.run())
    for encoding, n_at_once in (
        (encoder.all_tasks([ticks] * 3_500), 1_000),
        (encoder.all_tasks([ticks] * 3_500, [ticks] * 3_500), 2_000),
        (encoder.finished_tasks([ticks] * 3_500, [ticks] * 3_500, None, None), 1_000),
    ):
        ticks.seen.clear()
        assert len(await encoding) == 3_500
        assert max(Counter(ticks.seen).values()) == n_at_once
    points: list[bytes] = await all_points_of([{"x": x} for x in range(2_500)], True)
    assert points == points_of([{"x": x} for x in range(2_500)], True)
    counting.cancel()


async def test_the_errors_of_many_records_name_the_one() -> None:
    encoder, good = RecordEncoder(1_000), [{"x": 1}] * 2_500
    for encoding, error, words in (
        (encoder.all_tasks([*good, {"x": object()}]), EncodeError, r"xss\[2500\]\['x'\]"),
        (encoder.all_tasks([*good, 5]), TypeError, r"xss\[2500\] must be a record"),
        (encoder.all_tasks([*good, *good], [*good, *good[1:], 5]), TypeError, r"xss_extra\[4999\] must be a record"),
        (encoder.all_tasks(good, good[1:]), ValueError, "xss has 2,500 entries and xss_extra has 2,499"),
        (encoder.finished_tasks(good, good[1:], None, None), ValueError, "xss has 2,500 entries and yss has 2,499"),
        (encoder.finished_tasks(good, [*good[1:], {"y": object()}], None, None), EncodeError, r"yss\[2499\]\['y'\]"),
        (all_points_of([*good, {"z": 1}], ("x",)), ValueError, r"xss\[2500\] has no input 'x'"),
    ):
        with pytest.raises(error, match=words):
            await encoding
