"""A part of an export."""

from __future__ import annotations

from rush_async.store.export_item import ExportItem
from rush_async.store.imports import IMPORT


def test_a_part_has_the_columns_of_the_script_that_takes_it_in() -> None:
    assert ExportItem._fields == IMPORT.item
