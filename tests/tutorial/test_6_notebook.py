"""Chapter 6: a notebook. Its cells `await`, workers and listeners run between cells, and outputs update while other cells run.

The notebook of the examples and the cells of the guide run in a real kernel of the interpreter that runs the tests.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager, suppress
from itertools import accumulate
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from rush_async.testing import wait_until

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "notebook.ipynb"
GUIDE = ROOT / "docs" / "guides" / "notebooks.md"


class Spectator:
    """Records every message of the kernel, as a front end receives them, also those from cells that have ended.

    Attributes:
        messages: (the source of the cell that runs, the source of the cell that the message belongs to, its type and content).
    """

    def __init__(self, client: AsyncKernelClient) -> None:
        self._client = client
        self._sources: dict[str, str] = {}
        self._running = ""
        self.messages: list[tuple[str, str, str, dict[str, Any]]] = []

    async def listen(self) -> None:
        while True:
            message = await self._client.get_iopub_msg()
            parent = message["parent_header"].get("msg_id", "")
            if message["msg_type"] == "execute_input":
                self._running = self._sources[parent] = message["content"]["code"]
            owner = self._sources.get(parent, "")
            self.messages.append((self._running, owner, message["msg_type"], message["content"]))

    def shown_by(self, cell: str) -> list[list[tuple[str, str]]]:
        """The versions of each output that this cell displayed: (the cell that ran then, the text)."""
        found: dict[str, list[tuple[str, str]]] = {}
        for running, owner, kind, content in self.messages:
            if kind in ("display_data", "update_display_data") and owner == cell:
                data = content["data"]
                text = data.get("text/markdown") or data["text/plain"]
                found.setdefault(content["transient"]["display_id"], []).append((running, text))
        return list(found.values())


class Kernel:
    """A kernel that runs a notebook cell by cell, and a spectator of its messages."""

    def __init__(self, notebook: Any, manager: AsyncKernelManager, directory: Path) -> None:
        self.notebook = notebook
        self.seen: set[psutil.Process] = set()
        self._manager = manager
        self._directory = directory
        self._runner = NotebookClient(notebook, km=manager, timeout=30)
        self.spectator: Spectator

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Kernel]:
        environment = {
            name: value for name, value in os.environ.items() if name not in ("RUSH_URL", "REDIS_URL", "RUSH_DATA_DIR")
        }
        environment |= {"IPYTHONDIR": str(self._directory / "ipython")}
        async with self._runner.async_setup_kernel(cleanup_kc=True, env=environment, cwd=str(self._directory)):
            client = self._manager.client()
            # This client only listens: a second client of the session would receive the replies to the first one.
            client.start_channels(shell=False, stdin=False, hb=False, control=False)
            self.spectator = Spectator(client)
            listening = asyncio.create_task(self.spectator.listen())
            try:
                while not self.spectator.messages:  # after the first message it receives all
                    await self.value("None")
                yield self
            finally:
                listening.cancel()
                with suppress(asyncio.CancelledError):
                    await listening
                client.stop_channels()

    async def run(self) -> None:
        """Runs every cell. A cell that raises or writes to stderr fails the test."""
        for index, cell in enumerate(self.notebook.cells):
            await self._runner.async_execute_cell(cell, index)
            self.seen.update(self.children())
            errors = [output for output in cell.get("outputs", ()) if output.get("name") == "stderr"]
            assert errors == [], cell.source

    async def value(self, expression: str, first: str = "") -> Any:
        """Evaluates an expression in the kernel and returns its value, encoded as JSON on the way; `first` is run before."""
        code = f"{first}\nimport json; print(json.dumps({expression}))"
        self.notebook.cells.append(cell := code_cell(code))
        await self._runner.async_execute_cell(cell, len(self.notebook.cells) - 1)
        self.notebook.cells.pop()
        return json.loads(cell.outputs[0].text)

    async def interrupt(self, code: str) -> tuple[str, str, str]:
        """Runs a cell, interrupts it when it has printed "waits", and returns its error, with its text, and its stderr."""
        cell = code_cell(code)
        self.notebook.cells.append(cell)
        n_seen = len(self.spectator.messages)
        running = asyncio.create_task(self._runner.async_execute_cell(cell, len(self.notebook.cells) - 1))
        await wait_until(
            lambda: any("waits" in content.get("text", "") for *_, content in self.spectator.messages[n_seen:]), timeout=20
        )
        manager: Any = self._manager
        await manager.interrupt_kernel()
        with suppress(CellExecutionError):
            await running
        self.notebook.cells.pop()
        (error,) = [output for output in cell.outputs if output.output_type == "error"]
        return error.ename, error.evalue, "".join(output.text for output in cell.outputs if output.get("name") == "stderr")

    def cell(self, words: str) -> Any:
        """The first code cell that contains these words."""
        return next(cell for cell in self.notebook.cells if cell.cell_type == "code" and words in cell.source)

    def children(self) -> list[psutil.Process]:
        """The living processes that the kernel started, with that of the database."""
        provisioner: Any = self._manager.provisioner
        with suppress(psutil.NoSuchProcess):
            return alive(psutil.Process(provisioner.pid).children(recursive=True))
        return []


def alive(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    return [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


async def check_interrupts(kernel: Kernel) -> None:
    """Interrupts cells while workers run: only the cell ends, and a line says so."""
    says = "only the cell was interrupted, and network 'parabola' continues, with {} running workers"
    start = "ids = await rush.start_workers(search, n_workers=2); await rush.wait_for_workers(2)"
    wait = "await rush.wait_until(lambda counts: counts.finished > 1_000_000)"
    name, text, below = await kernel.interrupt(f"{start}; print('waits'); {wait}")
    assert (name, text) == ("CancelledError", "interrupted while it waited in network 'parabola'")
    assert says.format(2) in below

    name, _, below = await kernel.interrupt("import time; print('waits'); time.sleep(60)")
    assert name == "KeyboardInterrupt"
    assert says.format(2) in below

    # A push is whole, or its tasks fail.
    push = "while True: pushed += await rush.push_tasks([{'x': 2}] * 3)"
    name, _, below = await kernel.interrupt(f"pushed = []; print('waits')\n{push}")
    assert name == "CancelledError"
    assert says.format(2) in below
    assert await kernel.value("(await rush.counts()).queued - len(pushed)") == 0

    # A block of the cell ends its task; its worker stays open.
    block = "async with worker.task({'x': 3}): print('waits'); await asyncio.sleep(60)"
    name, _, below = await kernel.interrupt(f"worker = await RushWorker('parabola', rush.config)\n{block}")
    assert name == "CancelledError"
    assert says.format(3) in below
    failed = "[task for task in (await rush.fetch_failed_tasks()).to_dicts() if task['x'] == 3]"
    assert await kernel.value(f"[(task['condition']['kind'], task['worker_id'] == worker.worker_id) for task in {failed}]") == [
        ["cancelled", True]
    ]

    # The workers continue.
    more = "n = rush.n_finished_tasks; await rush.wait_until(lambda counts: counts.finished > n + 5, timeout=10); "
    assert await kernel.value("rush.n_running_workers", first=more) == 3
    assert await kernel.value(
        "[exit.state for exit in await rush.join_workers(ids)]", first="await rush.stop_workers(ids)"
    ) == [
        "terminated",
        "terminated",
    ]
    assert await kernel.value("rush.n_running_tasks") == 0


def code_cell(source: str) -> Any:
    return nbformat.v4.new_code_cell(source)  # pyright: ignore[reportUnknownMemberType]


def example() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def guide() -> Any:
    """The guide's cells as a notebook."""
    sources = re.findall(r"```python\n(.*?)```", GUIDE.read_text("utf-8"), flags=re.DOTALL)
    cells = [code_cell(source) for source in sources]
    return nbformat.v4.new_notebook(cells=cells)  # pyright: ignore[reportUnknownMemberType]


def kernel_for(notebook: Any, directory: Path) -> Kernel:
    # This interpreter, not the kernels that are installed on the machine; its sockets are in a directory of the test.
    specification = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "The tests' own",
        "language": "python",
    }
    (directory / "kernels" / "own").mkdir(parents=True)
    (directory / "kernels" / "own" / "kernel.json").write_text(json.dumps(specification), "utf-8")
    manager = AsyncKernelManager(
        kernel_name="own",
        kernel_spec_manager=KernelSpecManager(kernel_dirs=[str(directory / "kernels")], ensure_native_kernel=False),
        connection_file=str(directory / "connection.json"),
        transport="ipc",
        ip=str(directory / "ipc"),
    )
    return Kernel(notebook, manager, directory)


def test_the_notebook_is_stored_without_outputs() -> None:
    code = [cell for cell in example().cells if cell.cell_type == "code"]
    assert len(code) > 5
    assert [cell.id for cell in code if cell.outputs or cell.execution_count is not None] == []


@pytest.mark.chaos
async def test_the_notebook_shows_a_search_while_it_runs(directory: Path) -> None:
    async with kernel_for(example(), directory).running() as kernel:
        await kernel.run()
        shown = kernel.spectator.shown_by

        # The table and the counts above it were updated while their cell ran.
        watch = kernel.cell("table.update").source
        await wait_until(lambda: len(shown(watch)) == 2)
        counts, tables = shown(watch)
        finished = [int(text.partition("Finished Tasks: ")[2].split()[0]) for _, text in counts]
        assert finished[0] < 150 <= finished[-1]
        assert finished == sorted(finished)
        texts = [text for running, text in tables if running == watch]
        assert len(set(texts)) >= 3
        assert texts[0] == "no result yet"
        assert "shape: (5, 5)" in texts[-1]

        # The listener of an earlier cell received every result meanwhile, and updated its own output.
        listen = kernel.cell("create_task(watch_for_records").source
        (changes,) = shown(listen)
        assert [text for running, text in changes if running == listen] == ["no record yet"]
        assert [text for running, text in changes if running != listen and "worker_id" in text]
        records = [record["y"] for record in await kernel.value("records")]
        results = await kernel.value("tasks['y'].to_list()")
        best = list(dict.fromkeys(accumulate(results, min)))
        assert len(results) >= 150
        assert records[: len(best)] == best  # later records may come after the results were read

        # The plot shows these results.
        (picture,) = kernel.cell("plt.show").outputs
        assert len(picture.data["image/png"]) > 10_000
        assert await kernel.value("axes.lines[0].get_ydata().tolist()") == list(accumulate(results, min))

        # Four workers ran and stopped. The listener and the database have ended too.
        (info,) = kernel.cell("worker_info").outputs
        assert info.data["text/plain"].count("running") == 4
        (info,) = kernel.cell("stop_workers").outputs
        assert info.data["text/plain"].count("terminated") == 4
        assert await kernel.value("listener.done()")
        assert kernel.seen  # the database had a process
        await wait_until(lambda: not kernel.children())
    assert alive(kernel.seen) == []


async def test_the_cells_of_the_guide_run_and_a_kernel_that_ends_leaves_no_process(directory: Path) -> None:
    async with kernel_for(guide(), directory).running() as kernel:
        await kernel.run()
        # The outputs are those that the guide describes.
        *_, (_, last) = kernel.spectator.shown_by(kernel.cell("stopped = []").source)[0]
        assert last.count(",") == 5  # four coroutines and two processes
        assert len(kernel.spectator.shown_by(kernel.cell("table.update").source)[0]) == 1 + 5
        assert len(kernel.spectator.shown_by(kernel.cell("picture.update").source)[0]) == 1 + 5
        (bar,) = kernel.cell("progress(rush, n").outputs
        assert "application/vnd.jupyter.widget-view+json" in bar.data
        assert "0.25" in kernel.notebook.cells[-1].outputs[0].data["text/plain"]
        await check_interrupts(kernel)
        assert kernel.children()  # the last client is still open
    await wait_until(lambda: not alive(kernel.seen))
