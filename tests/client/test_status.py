"""How an open client shows itself."""

from __future__ import annotations

from rush_async import Counts
from rush_async.client.status import status_html, status_text

COUNTS = Counts(1, 2, 3, 4)


def test_a_client_is_shown_with_its_counts() -> None:
    assert status_text("Rush", "net", COUNTS, 5).splitlines() == [
        "── <Rush> net ".ljust(60, "─"),
        "• Running Workers: 5",
        "• Queued Tasks: 1",
        "• Running Tasks: 2",
        "• Finished Tasks: 3",
        "• Failed Tasks: 4",
    ]


def test_a_notebook_shows_a_table_with_the_name_escaped() -> None:
    html = status_html("Rush", "<net>", COUNTS, 5)
    assert html.startswith("<b>Rush</b> &lt;net&gt;<table>")
    assert html.count("<tr>") == 5
    assert "<tr><td>Running Workers</td><td>5</td></tr>" in html
