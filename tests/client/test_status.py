"""How an open client shows itself."""

from __future__ import annotations

from datetime import UTC, datetime

from rush_async import Counts, Rush, StopReason
from rush_async.client.status import status_html, status_text
from rush_async.store.position import Position

POSITION = Position(1, 2, Counts(1, 2, 3, 4), 5)
STOP = StopReason("manual", datetime(2026, 1, 1, tzinfo=UTC), 7, "y < 0.5")


def test_a_client_is_shown_with_its_counts() -> None:
    assert status_text("Rush", "net", POSITION, {}).splitlines() == [
        "── <Rush> net ".ljust(60, "─"),
        "• Running Workers: 5",
        "• Queued Tasks: 1",
        "• Running Tasks: 2",
        "• Finished Tasks: 3",
        "• Failed Tasks: 4",
    ]


def test_a_notebook_shows_a_table_with_the_name_escaped() -> None:
    html = status_html("Rush", "<net>", POSITION, {})
    assert html.startswith("<b>Rush</b> &lt;net&gt;<table>")
    assert html.count("<tr>") == 5
    assert "<tr><td>Running Workers</td><td>5</td></tr>" in html


def test_a_stopped_network_is_shown_in_one_line_more() -> None:
    stopped = POSITION._replace(stop=STOP)
    assert status_text("Rush", "net", stopped, {}).splitlines()[5:] == ["• Failed Tasks: 4", "• Stopped: manual: y < 0.5"]
    html = status_html("Rush", "net", stopped, {})
    assert html.count("<tr>") == 6
    assert "<tr><td>Stopped</td><td>manual: y &lt; 0.5</td></tr>" in html


async def test_an_open_client_shows_the_stop_until_the_network_is_resumed(rush: Rush) -> None:
    await rush.stop("enough")
    assert repr(rush).splitlines()[-1] == "• Stopped: manual: enough"
    assert "<td>manual: enough</td>" in rush._repr_html_()  # pyright: ignore[reportPrivateUsage]
    await rush.resume()
    assert "Stopped" not in repr(rush)
