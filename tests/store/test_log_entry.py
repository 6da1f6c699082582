"""One entry of the worker log: packed, and checked when it is unpacked."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from rush_async import DecodeError
from rush_async.store.codec import encode
from rush_async.store.log_entry import LogEntry


def test_an_entry_is_unpacked_as_it_was_packed() -> None:
    entry = LogEntry("a", "INFO", datetime(2026, 1, 2, 3, 4, 5, 678_901, UTC), "x", "a.b:1", "ä\nmessage")
    assert LogEntry.of(entry.packed()) == entry


@pytest.mark.parametrize(
    "value",
    [
        "hello",
        ["a", "INFO", 1.0, "x", "a.b:1"],
        ["a", "INFO", 1.0, "x", "a.b:1", "msg", "more"],
        ["a", "INFO", 1.0, "x", "a.b:1", 7],
        ["a", "INFO", "noon", "x", "a.b:1", "msg"],
        ["a", "INFO", 1e300, "x", "a.b:1", "msg"],
        ["a", "INFO", float("nan"), "x", "a.b:1", "msg"],
        None,
        7,
    ],
    ids=str,
)
def test_a_value_that_is_not_an_entry_is_a_decode_error(value: Any) -> None:
    with pytest.raises(DecodeError, match="log record of the network is malformed"):
        LogEntry.of(encode(value, "value"))
