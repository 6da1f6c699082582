"""The entries of workers as they stand in the database."""

from __future__ import annotations

import math
from typing import Any

import pytest

from rush_async import DecodeError, Rush
from rush_async.store.codec import encode


@pytest.mark.parametrize(
    "entry",
    [
        b"running " + encode({}, "") + encode(math.inf, ""),
        b"running " + encode({}, "") + encode(1e300, ""),
        b"running " + encode(1, "") + encode(1.0, ""),
        b"failed " + encode({}, "") + encode(1.0, "") + encode("no failure", "") + encode(1.0, ""),
        b"running",
        b"",
    ],
)
async def test_an_entry_that_is_none_of_ours_is_a_decode_error(rush: Rush, raw: Any, entry: bytes) -> None:
    raw.hset(f"rush:{{{rush.network_id}}}:workers", "someone", entry)
    try:
        with pytest.raises(DecodeError):
            await rush.worker_info()
    finally:
        raw.delete(f"rush:{{{rush.network_id}}}:workers")
