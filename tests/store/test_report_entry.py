"""Reports as bytes: what is one, and what another program wrote."""

from __future__ import annotations

from typing import Any

import pytest

from rush_async import DecodeError
from rush_async.store.codec import to_msgpack
from rush_async.store.decoding import decode_task
from rush_async.store.report_entry import Report

GOOD = [1, "key", "owl", 1, 1, 1.5, {"loss": 0.5, "name": "a", "is_best": True, "n": 3, "none": None}]


def test_an_entry_is_a_report() -> None:
    report = Report.of(to_msgpack(GOOD))
    assert list(report) == GOOD
    assert Report.of_values([*GOOD[:-1], None]).values is None


def changed(at: int, value: Any) -> list[Any]:
    return [*GOOD[:at], value, *GOOD[at + 1 :]]


@pytest.mark.parametrize(
    "entry",
    [
        None,
        7,
        "text",
        [],
        GOOD[:-1],
        [*GOOD, 1],
        changed(0, "1"),
        changed(0, 0),
        changed(0, 2**63),
        changed(0, True),
        changed(1, b"key"),
        changed(2, None),
        changed(3, 1.5),
        changed(4, -1),
        changed(5, 1),
        changed(5, float("nan")),
        changed(5, 1e300),
        changed(6, [1]),
        changed(6, {"x": [1]}),
        changed(6, {"x": {}}),
        changed(6, {"x": b"bytes"}),
        changed(6, None),
    ],
    ids=str,
)
def test_what_is_no_report_is_a_decode_error(entry: Any) -> None:
    with pytest.raises(DecodeError, match="a report of the network"):
        Report.of(to_msgpack(entry))


@pytest.mark.parametrize("packed", [b"", b"\xc1", b"hello", to_msgpack(GOOD) + b"\x00", to_msgpack(GOOD)[:-1]])
def test_bytes_that_are_no_value_are_a_decode_error(packed: bytes) -> None:
    with pytest.raises(DecodeError):
        Report.of(packed)


def test_a_report_becomes_the_record_of_a_task() -> None:
    task = decode_task("finished", Report.of(to_msgpack(GOOD)).as_record())
    assert (task.key, task.worker_id, task.attempt, task.xs, task.ys) == ("key", "owl", 1, {"step": 1}, GOOD[-1])
    assert task.created_at is not None
    assert task.created_at.timestamp() == 1.5
