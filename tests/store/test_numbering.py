"""The names of clients: each is for a limited time, and the numbers of the calls continue under the next one."""

from __future__ import annotations

import time

from rush_async import Rush
from rush_async.store.numbering import RENAMED_AFTER, WINDOW, CallerName


async def test_a_name_shows_its_age() -> None:
    name = CallerName()
    assert abs(int(name.text[:8], 16) - time.time()) < 5
    name.renew(1_000_000_000)
    assert name.text.startswith("3b9aca00")


async def test_the_slots_are_those_of_the_last_calls() -> None:
    name = CallerName()
    assert name.slots(0) == []
    assert name.slots(3) == [f"{name.text}:{slot}" for slot in (1, 2, 3)]
    assert len(set(name.slots(1_000))) == WINDOW


async def test_a_client_takes_another_name_in_time_and_its_numbers_continue(rush: Rush) -> None:
    calls, names = rush._net.tasks.calls, list[str]()  # pyright: ignore[reportPrivateUsage]
    for x in range(4):
        if x == 2:
            calls.name.old_at -= RENAMED_AFTER + 1
        await rush.push_tasks([{"x": x}])
        names.append(calls.name.text)
    assert names[0] == names[1] != names[2] == names[3]
    assert calls.number == 5  # the first call was refused, as it had no token
    assert (await rush.fetch_queued_tasks())["x"].to_list() == [0, 1, 2, 3]
