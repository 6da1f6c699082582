"""`rush-async status`."""

from __future__ import annotations

import json
import sys

from rush_async import Rush
from tests.cli.programs import Command, Run


async def test_the_status_has_tasks_rate_workers_rules_and_failures(searched: Rush, command: Command) -> None:
    await searched.stop_when(finished=10)
    lines = (await command("status")).lines
    shown = {line[:12].strip(): line[12:] for line in lines if line[:12].strip()}
    assert shown["network"] == f"{searched.network_id} on {searched.config.where}"
    assert shown["tasks"] == "2 queued, 1 running, 3 finished, 3 failed"
    assert shown["workers"] == "1 running"
    assert shown["stop rules"] == "finished=10"
    assert shown["rate"].endswith(" s")
    assert "removed: Removed from queue" in shown["failures"]
    assert lines[-1].endswith(r"ValueError: no \x1b[2J")
    assert "stopped" not in shown


async def test_the_status_as_json(searched: Rush, command: Command) -> None:
    await searched.stop("enough")
    found = json.loads("".join((await command("status", "--json")).lines))
    assert found["tasks"] == {"queued": 2, "running": 1, "finished": 3, "failed": 3}
    assert found["rate"]["finished_per_second"] > 0
    assert found["workers"] == {"running": 1}
    assert (found["stop"]["rule"], found["stop"]["detail"]) == ("manual", "enough")
    assert [each["type"] for each in found["last_failures"]] == [None, "ValueError", "ValueError"]
    assert "stopped     0 s ago (manual: enough)" in (await command("status")).lines


LOADED = """
import sys
from rush_async.cli.program import main
main(sys.argv[1:])
print([name for name in ("polars", "rich", "cloudpickle", "redis") if name in sys.modules], file=sys.stderr)
"""


async def test_light_commands_import_no_more_than_they_need(searched: Rush, run: Run) -> None:
    """Counted in place of times: `python -m benchmarks` measures those."""
    assert searched.config.url is not None
    for words, loaded in ((["--help"], []), (["status", searched.network_id], ["redis"])):
        program = await run(sys.executable, "-c", LOADED, *words, RUSH_URL=searched.config.url)
        _, errors = await program.process.communicate()
        assert errors.decode() == f"{loaded}\n"
