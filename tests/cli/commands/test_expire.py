"""`rush-async expire`."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from rush_async import Rush
from rush_async.cli.program import main


async def test_it_sets_and_lifts_the_time_to_live(
    rush: Rush, raw: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert rush.config.url is not None
    monkeypatch.setenv("RUSH_URL", rush.config.url)
    meta = f"rush:{{{rush.network_id}}}:meta"

    async def expire(*words: str) -> tuple[int, str, str]:
        code = await asyncio.to_thread(main, ["expire", *words])
        out, errors = capsys.readouterr()
        return code, out, errors

    code, _, errors = await expire(rush.network_id, "7d")
    assert (code, raw.exists(meta)) == (78, 0)
    assert "does not exist" in errors
    await rush.push_finished_tasks([{"x": 1}], [{"y": 1}])
    assert await expire(rush.network_id, "1.5h") == (0, f"network '{rush.network_id}' goes 1 h 30 m after it has ended\n", "")
    assert 5390 < raw.ttl(meta) <= 5400
    assert (await expire(rush.network_id, "90"))[1] == f"network '{rush.network_id}' goes 90 s after it has ended\n"
    monkeypatch.setenv("RUSH_NETWORK", rush.network_id)
    code, out, _ = await expire("10", "--json")
    assert (code, raw.hget(meta, "ttl")) == (0, b"10000-")
    said = f"network '{rush.network_id}' goes 10 s after it has ended"
    assert json.loads(out) == {"network": rush.network_id, "said": said, "after": 10.0}
    assert await expire("never") == (0, f"network '{rush.network_id}' stays until it is deleted\n", "")
    assert raw.ttl(meta) == -1


@pytest.mark.parametrize("after", ["0", "7y", "-3d", "soon", "1e3", "99999d"])
def test_what_is_no_time_is_refused(after: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["expire", "net", "--", after])
    assert end.value.code == 2
    assert "is not a time, such as 90m, 12h or 7d" in capsys.readouterr().err
