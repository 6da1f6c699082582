"""The representations of an open client: as text, and as HTML in a notebook."""

from __future__ import annotations

from collections.abc import Mapping

from rush_async.model import html_table
from rush_async.store.position import Position

__all__ = ["status_html", "status_text"]


def status_text(kind: str, network_id: str, position: Position, notes: Mapping[str, str]) -> str:
    """Returns the representation of a client as lines of text; `notes` are what its kind shows beside the network's counts."""
    lines = [f"• {name}: {value}" for name, value in _rows(position, notes).items()]
    return "\n".join([f"── <{kind}> {network_id} ".ljust(60, "─"), *lines])


def status_html(kind: str, network_id: str, position: Position, notes: Mapping[str, str]) -> str:
    """Returns the representation of a client as a table in HTML; `notes` as in `status_text`."""
    return html_table(kind, network_id, _rows(position, notes))


def _rows(position: Position, notes: Mapping[str, str]) -> dict[str, object]:
    counts = position.counts
    rows: dict[str, object] = {
        "Running Workers": position.n_workers,
        "Queued Tasks": counts.queued,
        "Running Tasks": counts.running,
        "Finished Tasks": counts.finished,
        "Failed Tasks": counts.failed,
        **notes,
    }
    return rows if position.stop is None else {**rows, "Stopped": position.stop}
