"""Records are checked for all that reading them depends on."""

from __future__ import annotations

import pytest

from rush_async import DecodeError, Failure, TaskState
from rush_async.store.codec import encode
from rush_async.store.decoding import complete, decode_records, decode_task
from rush_async.store.records import encode_created, encode_ended, encode_failure, header, stamped

CREATED = stamped(encode_created("k", {"x": 1}, None), 10.0, 7)
WORKER, AT, NIL = encode("w", "") + b"\1" + encode(11.0, ""), encode(12.0, ""), b"\xc0"
ENDS = {"finished": encode_ended({"y": 2}, None), "failed": encode_failure(Failure("error", None, "no", None))}


@pytest.mark.parametrize("state", ["queued", "running", "finished", "failed"])
def test_records_of_each_state_are_decoded(state: TaskState) -> None:
    end = ENDS[state] + AT if state in ENDS else b""
    raw = CREATED + (b"" if state == "queued" else WORKER) + end
    stored = raw if state == "finished" else header(CREATED[:-14]) + raw
    assert decode_task(state, stored).index == 7
    assert len(decode_records(state, complete(state, stored) * 3, 3)) == 36


@pytest.mark.parametrize(
    ("state", "record"),
    [
        ("running", CREATED + NIL * 6),
        ("finished", CREATED + WORKER + NIL * 2 + AT),
        ("finished", CREATED + WORKER + ENDS["finished"] + NIL),
        ("finished", CREATED + WORKER + ENDS["finished"] + encode(-1.0, "")),
        ("finished", CREATED + WORKER + ENDS["finished"] + encode(1e300, "")),
        ("failed", CREATED + WORKER + ENDS["finished"] + AT),
        ("failed", CREATED + WORKER + encode({"kind": "error"}, "") + NIL + AT),
        ("queued", CREATED.replace(b"\xce\0\0\0\7", b"\xd2\xff\xff\xff\xff") + NIL * 6),
    ],
)
def test_a_record_that_ends_too_early_or_holds_nonsense_is_refused(state: TaskState, record: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_records(state, record, 1)
