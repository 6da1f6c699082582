"""`rush-async networks`."""

from __future__ import annotations

import json

from rush_async import Rush
from tests.cli.programs import Command


async def test_the_networks_of_the_server_are_listed(searched: Rush, command: Command) -> None:
    head, *rows = (await command("networks")).lines
    assert head.split() == ["network", "queued", "running", "finished", "failed", "workers", "age", "state"]
    (row,) = [row for row in rows if row.startswith(f"{searched.network_id} ")]
    assert row.split()[1:6] == ["2", "1", "3", "3", "1"]
    await searched.stop("enough")
    found = json.loads((await command("networks", "--json")).out)
    (facts,) = [each for each in found if each["network"] == searched.network_id]
    assert (facts["finished"], facts["workers"], facts["stop"]["detail"]) == (3, 1, "enough")
    assert "stopped (manual)" in (await command("networks")).out.decode()


async def test_a_server_that_cannot_be_reached_is_69(command: Command) -> None:
    refused = await command("networks", "--url", "redis://localhost:1")
    assert (refused.code, refused.out) == (69, b"")
    assert b"name another in RUSH_URL or by --url" in refused.err
