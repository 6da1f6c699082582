"""The probe of an event loop: an idle loop answers, one that computes does not."""

from __future__ import annotations

import asyncio
import threading

from rush_async.heartbeat.loop_probe import LoopProbe
from rush_async.testing import wait_until


async def test_a_loop_that_is_idle_answers_at_once() -> None:
    probe = LoopProbe(asyncio.get_running_loop())
    assert await asyncio.to_thread(probe.silence) == 0.0
    assert not probe.is_blocked
    assert not probe.is_blocked_for(0.0)


async def test_a_blocked_loop_is_silent_until_it_answers() -> None:
    probe = LoopProbe(asyncio.get_running_loop())
    silences: list[float] = []

    def ask() -> None:
        silences.append(probe.silence())
        silences.append(probe.silence())
        silences.append(float(probe.is_blocked and probe.is_blocked_for(0.01) and not probe.is_blocked_for(60)))

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()  # this blocks the loop
    first, second, is_blocked = silences
    assert 0 < first < second
    assert is_blocked
    await wait_until(lambda: not probe.is_blocked)
    assert await asyncio.to_thread(probe.silence) == 0.0


def test_a_loop_that_was_closed_is_silent() -> None:
    loop = asyncio.new_event_loop()
    probe = LoopProbe(loop)
    loop.close()
    assert probe.silence() > 0
    assert probe.is_blocked
