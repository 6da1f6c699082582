"""Temporary files for what need not fit into memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from rush_async.client.export.spool import SpooledRecords, SpooledRows
from rush_async.store.records import encode_created, header, stamped


def record(index: int) -> bytes:
    created = encode_created(f"key{index}", {"x": index}, None)
    return header(created) + stamped(created, 1.0, index)


def test_rows_come_as_they_were_added_and_leave_no_file(tmp_path: Path) -> None:
    rows = SpooledRows(tmp_path, 2)
    rows.add(b"a", b"")
    rows.add(b"", b"\0" * 100_000)
    assert [*rows] == [*rows] == [[b"a", b""], [b"", b"\0" * 100_000]]
    assert rows.n_rows == 2
    assert not any(tmp_path.iterdir())
    rows.close()


def test_records_are_a_mapping_that_knows_their_order() -> None:
    records = SpooledRecords()
    records.update({b"b": record(300), b"a": record(1)})
    records[b"c"] = record(2)
    records.update({b"b": record(3), b"d": b"of another program"})
    assert dict(records) == {b"a": record(1), b"b": record(3), b"c": record(2), b"d": b"of another program"}
    assert [key for key, _ in records.by_index()] == [b"d", b"a", b"c", b"b"]
    assert records.pop(b"a", None) == record(1)
    assert records.pop(b"a", None) is None
    assert [*records.in_order([b"c", b"stale", b"b", b"c"])] == [(b"c", record(2)), (b"b", record(3))]
    with pytest.raises(KeyError):
        del records[b"a"]
    with pytest.raises(KeyError):
        records[b"a"]
    records.clear()
    assert len(records) == 0
    records.close()
