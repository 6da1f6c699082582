"""The representations of an open client: as text, and as HTML in a notebook."""

from __future__ import annotations

from html import escape

from rush_async.model import StopReason
from rush_async.store.position import Position

__all__ = ["status_html", "status_text"]


def status_text(kind: str, network_id: str, position: Position, old: str = "") -> str:
    """Returns the representation of a client as lines of text; `old` says how many tasks there were before it was opened."""
    lines = [f"• {name}: {value}" for name, value in _rows(position, old).items()]
    return "\n".join([f"── <{kind}> {network_id} ".ljust(60, "─"), *lines])


def status_html(kind: str, network_id: str, position: Position, old: str = "") -> str:
    """Returns the representation of a client as a table in HTML; `old` as in `status_text`."""
    values = _rows(position, old).items()
    rows = "".join(f"<tr><td>{name}</td><td>{escape(str(value))}</td></tr>" for name, value in values)
    return f"<b>{kind}</b> {escape(network_id)}<table>{rows}</table>"


def _rows(position: Position, old: str) -> dict[str, int | str | StopReason]:
    counts = position.counts
    rows: dict[str, int | str | StopReason] = {
        "Running Workers": position.n_workers,
        "Queued Tasks": counts.queued,
        "Running Tasks": counts.running,
        "Finished Tasks": counts.finished,
        "Failed Tasks": counts.failed,
    }
    if old:
        rows["Old Tasks"] = old
    if position.stop is not None:
        rows["Stopped"] = position.stop
    return rows
