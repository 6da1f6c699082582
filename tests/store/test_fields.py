"""The values of a complete record are where their names say."""

from __future__ import annotations

from rush_async.store import fields
from rush_async.store.decoding import complete, decode_flat
from rush_async.store.records import NewTask, encode_created, header, stamped


def test_each_value_has_a_place_of_its_own() -> None:
    no_places = ("FIELDS", "HEADER", "NIL", "TIME_SIZE", "END_OF_TIME")
    places = [getattr(fields, name) for name in fields.__all__ if name not in no_places]
    assert sorted(places) == list(range(fields.FIELDS))


def test_a_record_has_its_values_there() -> None:
    created = encode_created("k", {"x": 1}, {"e": 2}, basis=b"basis")
    task = NewTask("k", header(created) + stamped(created, 3.5, 17))
    flat = decode_flat(complete("queued", task.created), 1)
    assert flat[fields.KEY] == "k"
    assert (flat[fields.XS], flat[fields.XS_EXTRA], flat[fields.BASIS]) == ({"x": 1}, {"e": 2}, b"basis")
    assert (flat[fields.CREATED_AT], flat[fields.INDEX]) == (3.5, 17)
    assert flat[fields.WORKER :] == [None] * 6
