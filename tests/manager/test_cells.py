"""The warning below an interrupted cell. `tests/tutorial/test_6_notebook.py` interrupts cells of a real kernel."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from rush_async import Rush, RushConfig


class Shell:
    """Stands for IPython's, and is its `events` too."""

    def __init__(self) -> None:
        self.events = self
        self.callbacks: list[Callable[[Any], None]] = []

    def register(self, event: str, callback: Callable[[Any], None]) -> None:
        assert event == "post_run_cell"
        self.callbacks.append(callback)

    def end_cell(self, error: BaseException | None) -> None:
        for callback in self.callbacks:
            callback(SimpleNamespace(error_in_exec=error))


async def test_an_interrupted_cell_says_which_networks_continue(
    rush: Rush, rush_server: RushConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shell = Shell()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    async with Rush(rush.network_id, rush_server) as manager, Rush(rush.network_id, rush_server):
        await manager.push_tasks([{"x": 1}])
        for error in (None, ValueError("no"), SystemExit()):
            shell.end_cell(error)
        assert caplog.messages == []
        for error in (KeyboardInterrupt(), asyncio.CancelledError()):
            shell.end_cell(error)
            assert caplog.messages == [
                f"only the cell was interrupted, and network {rush.network_id!r} continues, with 0 running workers: there are "
                "1 queued, 0 running, 0 finished, 0 failed tasks. `stop_workers()` stops the workers"
            ]
            caplog.clear()
    shell.end_cell(KeyboardInterrupt())  # no manager is open that was opened in a cell
    assert caplog.messages == []
    assert len(shell.callbacks) == 1


async def test_without_ipython_nothing_is_watched(rush: Rush, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (SimpleNamespace(), SimpleNamespace(get_ipython=lambda: None)):  # it is being imported; it runs no cells
        monkeypatch.setitem(sys.modules, "IPython", module)
        async with Rush(rush.network_id, rush.config):
            pass
