"""Malformed records are noted once, and the others are returned."""

from __future__ import annotations

import logging

import pytest

from rush_async.store.malformed import MalformedRecords
from rush_async.store.records import NewTask, encode_created, header, stamped


def queued(key: str, index: int) -> bytes:
    created = encode_created(key, {"x": index}, None)
    return NewTask(key, header(created) + stamped(created, 1.0, index)).created


def test_good_records_are_sifted_from_malformed_ones(caplog: pytest.LogCaptureFixture) -> None:
    notes = MalformedRecords("net")
    stored = {f"k{n}".encode(): queued(f"k{n}", 3_000 - n) for n in range(2_500)}
    stored |= {b"\xff": b"junk", b"other": queued("k1", 1)}
    with caplog.at_level(logging.WARNING):
        notes.sift("queued", stored)
        sifted = notes.sift("queued", stored)
    assert len(sifted.keys) == len(sifted.records) == 2_500
    ordered = sifted.in_order()
    assert (ordered.keys[0], ordered.indices[0]) == ("k2499", 501)
    assert [(record.place, record.name, record.data) for record in notes.found.values()] == [
        ("queued", "\udcff", b"junk"),
        ("queued", "other", stored[b"other"]),
    ]
    assert [record.message.count("'net'") for record in caplog.records] == [1, 1]
