"""`rush-async watch`: a network live, by its events."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from rush_async.cli.exit_codes import DONE
from rush_async.cli.options import add_network, add_server, seconds

if TYPE_CHECKING:
    from rush_async.events import Event
    from rush_async.model import Failure
    from rush_async.network.network import Network
    from rush_async.store.finished import Best

__all__ = ["add_arguments", "run"]

_N_WORKERS = 20  # workers that are shown
_QUIET = 1.0  # seconds without a queued or running task after which --until-done ends


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.description = (
        "Shows a network live: its tasks, how many finish in a second, what each worker runs and since when, the best value\n"
        "of an output, and the last failure. It follows the events of the network, and asks nothing in between. On a terminal\n"
        "with rich (the extra `cli`) it shows a picture, elsewhere a line when something has changed. It ends when the\n"
        "network has stopped and no task runs any more."
    )
    parser.epilog = (
        "Examples:\n"
        "  rush-async watch branin --by y\n"
        "  rush-async watch branin --by accuracy --maximize --until-done\n"
        "  rush-async watch branin --every 60 >> progress.log"
    )
    add_network(parser)
    parser.add_argument("--by", metavar="COLUMN", help="show the best value of this output")
    parser.add_argument("--maximize", action="store_true", help="larger values are better (default: smaller ones)")
    parser.add_argument("--until-done", action="store_true", help="end also when no task is queued or running")
    parser.add_argument(
        "--every", metavar="S", type=seconds, help="seconds between two pictures (default: 1) or lines (default: at least 10)"
    )
    add_server(parser)


def run(options: argparse.Namespace) -> int:
    """Shows the network until it ends, and returns the exit code."""
    asyncio.run(_watch(options))
    return DONE


async def _watch(options: argparse.Namespace) -> None:
    from rush_async.cli.opening import open_network
    from rush_async.client.client import RushClient
    from rush_async.store.finished import Best

    async with (
        open_network(options) as network,
        RushClient(network.network_id, network.link.config) as client,
        client.events(results=options.by is not None) as events,
    ):
        watch = Watch(network, Best(options.by, maximize=options.maximize))
        await watch.read()
        view = LiveView() if sys.stdout.isatty() and _has_rich() else LineView()
        with view.opened():
            while True:
                await watch.read_failure()
                view.show(watch)
                if watch.has_ended:
                    return
                every = view.every if options.every is None else options.every
                await _take_events(events, watch, every, is_live=view.is_live, until_done=options.until_done)


async def _take_events(events: AsyncIterator[Event], watch: Watch, every: float, *, is_live: bool, until_done: bool) -> None:
    """Takes events for `every` seconds, or until the network has ended; what is not live waits for at least one."""
    loop = asyncio.get_running_loop()
    due, n_taken = loop.time() + every, 0
    while (left := due - loop.time()) > 0 or not (n_taken or is_live):
        is_idle = until_done and watch.is_idle
        wait = max(left, 0) if n_taken or is_live else None
        if is_idle:
            wait = _QUIET
        try:
            async with asyncio.timeout(wait):
                event = await anext(events)
        except TimeoutError:
            watch.has_ended |= is_idle
            return
        n_taken += 1
        await watch.take(event)
        if watch.has_ended:
            return


class Watch:
    """What is known of a network, from its events.

    Args:
        network: the network, which is followed.
        best: keeps the best value of an output.

    Attributes:
        running: the tasks that run, each with its worker and when it started.
        workers: the workers that run.
        failure: why the task that failed last did.
        has_ended: whether the network has stopped and no task runs.
    """

    def __init__(self, network: Network, best: Best) -> None:
        self.network = network
        self.running: dict[str, tuple[str, datetime]] = {}
        self.workers: list[str] = []
        self.failure: Failure | None = None
        self.has_ended = False
        self._best = best
        self._ahead = timedelta()  # by how much the clock of the server is ahead
        self._finished: deque[tuple[datetime, float]] = deque()
        self._failed_key: str | None = None

    @property
    def now(self) -> datetime:
        """The time of the server."""
        return datetime.now(UTC) + self._ahead

    @property
    def is_idle(self) -> bool:
        """Whether no task is queued or running."""
        counts = self.network.position.counts
        return counts.queued == counts.running == 0

    async def read(self) -> None:
        """Reads everything: at first, and where events were missed."""
        from rush_async.cli.readings import rate, read_failed, read_workers, server_time

        self._ahead = await server_time(self.network) - datetime.now(UTC)
        workers = [worker for worker in await read_workers(self.network) if worker.state == "running"]
        self.workers = [worker.worker_id for worker in workers]
        self.running = {
            task.key: (worker.worker_id, task.started_at or self.now) for worker in workers for task in worker.tasks
        }
        now, finished = self.now, self.network.position.counts.finished
        per_second, span = await rate(self.network, now)
        self._finished = deque([(now - timedelta(seconds=span), finished - per_second * span)])
        if self._best.output is not None:
            await self.network.results.read()
            self._best.value = None
            self._best.take(self.network.results.records.numbers(self._best.output))
        failed = (await read_failed(self.network, 1_000)).tasks
        self.failure = failed[0].failure if failed else None
        self._judge()

    async def take(self, event: Event) -> None:
        """Takes an event."""
        from rush_async import events as kinds

        match event:
            case kinds.TasksStarted():
                self.running |= dict.fromkeys(event.keys, (event.worker_id or "", event.at))
            case kinds.TasksFinished() | kinds.TasksFailed() | kinds.TasksQueued():
                for key in event.keys:
                    self.running.pop(key, None)
                if isinstance(event, kinds.TasksFinished):
                    self._best.take(task.ys.get(self._best.output) for task in event.tasks or ())
                elif isinstance(event, kinds.TasksFailed):
                    self._failed_key = event.keys[-1]
            case kinds.WorkerStarted() if event.worker_id not in self.workers:
                self.workers.append(event.worker_id)
            case kinds.WorkerStopped() | kinds.WorkerLost() if event.worker_id in self.workers:
                self.workers.remove(event.worker_id)
            case kinds.NetworkReset() | kinds.EventsMissed():
                self._failed_key = None
                await self.read()
            case _:
                pass
        self._judge()

    def _judge(self) -> None:
        position = self.network.position
        self.has_ended = position.stop is not None and not position.counts.running

    async def read_failure(self) -> None:
        """Reads why the last task failed, where that is not known."""
        key, self._failed_key = self._failed_key, None
        if key is not None and (task := (await self.network.find([key], skips_malformed=True)).get(key)) is not None:
            self.failure = task.failure

    # what is shown

    def rate(self) -> float:
        """Returns how many tasks finish in a second, over the last minute."""
        from rush_async.cli.readings import WINDOW

        now, finished = self.now, self.network.position.counts.finished
        self._finished.append((now, finished))
        while (now - self._finished[1][0]).total_seconds() > WINDOW:
            self._finished.popleft()
        at, before = self._finished[0]
        return max(0.0, finished - before) / max((now - at).total_seconds(), 1e-3)

    def facts(self) -> dict[str, str]:
        """Returns what is shown in any form, by its name."""
        from rush_async.cli.output import as_text

        position = self.network.position
        counts = position.counts
        facts = {
            "tasks": ", ".join(f"{n:,} {state}" for state, n in counts._asdict().items()),
            "rate": f"{self.rate():.3g}/s",
            "workers": f"{position.n_workers:,}",
        }
        if self._best.output is not None:
            facts[f"best {self._best.output}"] = "none" if self._best.value is None else as_text(self._best.value)
        if self.failure is not None:
            facts["last failure"] = f"{self.failure.type or self.failure.kind}: {self.failure.message}"
        if position.stop is not None:
            facts["stopped"] = str(position.stop)
        return facts

    def rows(self) -> list[tuple[str, str, str]]:
        """Returns the workers, those with the oldest tasks first: worker, task, and since when it runs it."""
        from rush_async.cli.output import age

        oldest: dict[str, tuple[datetime, str]] = {}
        for key, (worker_id, at) in self.running.items():
            oldest[worker_id] = min(oldest.get(worker_id, (at, key)), (at, key))
        busy = [
            (worker_id, key, age((self.now - at).total_seconds()))
            for worker_id, (at, key) in sorted(oldest.items(), key=lambda item: item[1])
        ]
        return busy + [(worker_id, "", "") for worker_id in self.workers if worker_id not in oldest]


class LineView:
    """A line when something has changed.

    Attributes:
        every: seconds between two lines, at least.
        is_live: whether it also shows where nothing has changed.
    """

    every = 10.0
    is_live = False

    def __init__(self) -> None:
        self._last: dict[str, str] = {}

    def opened(self) -> AbstractContextManager[object]:
        """Returns a block in which it shows."""
        return nullcontext()

    def show(self, watch: Watch) -> None:
        """Prints a line."""
        from rush_async.cli.output import as_text

        facts = watch.facts()
        if facts != self._last:
            self._last = facts
            rows = watch.rows()
            oldest = f"; oldest task {rows[0][1]}, {rows[0][2]}, of {rows[0][0]}" if rows and rows[0][1] else ""
            text = "; ".join(text if name == "tasks" else f"{name} {text}" for name, text in facts.items())
            print(as_text(f"{watch.now:%H:%M:%S} {text}{oldest}"), flush=True)


class LiveView:
    """A picture that changes in its place. Its attributes are those of `LineView`."""

    every = 1.0  # it shows ages
    is_live = True

    def __init__(self) -> None:
        from rich.live import Live

        self._live = Live(auto_refresh=False)

    def opened(self) -> AbstractContextManager[object]:
        """Returns a block in which it shows."""
        return self._live

    def show(self, watch: Watch) -> None:
        """Draws the picture."""
        from rich import box
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        from rush_async.cli.output import as_text

        facts = Table.grid(padding=(0, 2))
        for name, text in {"network": watch.network.network_id, **watch.facts()}.items():
            facts.add_row(Text(name, "bold"), Text(as_text(text)))
        workers = Table("worker", "task", "since", box=box.SIMPLE_HEAD, pad_edge=False)
        rows = watch.rows()
        for row in rows[:_N_WORKERS]:
            workers.add_row(*[Text(as_text(text)) for text in row])
        if len(rows) > _N_WORKERS:
            workers.add_row(f"... and {len(rows) - _N_WORKERS:,} more", "", "")
        self._live.update(Group(facts, workers) if rows else facts, refresh=True)


def _has_rich() -> bool:
    from importlib.util import find_spec

    return find_spec("rich") is not None
