"""A frame of records that is made at once."""

from __future__ import annotations

import polars as pl
from polars.testing import assert_frame_equal

from rush_async.frames.finished import FinishedTable
from rush_async.frames.frame import frame_of, proposal_frame
from tests.frames.records import rows_of_y


def test_a_frame_of_finished_records_is_that_of_a_table() -> None:
    records, table = rows_of_y(range(2_500)), FinishedTable()
    table.extend(records)
    schema = {"z": pl.Float64}
    found = frame_of([("finished", records)], with_state=False, times=True, schema=schema)
    assert_frame_equal(found, table.frame(times=True, schema=schema))
    assert_frame_equal(proposal_frame([("finished", records)]), table.proposal_frame(2_500, {}, ("finished",)))
