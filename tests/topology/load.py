"""Clients that work without a pause in one network, and what was acknowledged to them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace

from rush_async import EventsMissed, Rush, RushConfig, RushWorker, TasksFinished
from rush_async.testing import wait_until

__all__ = ["Load", "working"]

N_WORKERS = 3
_PAUSE = 0.002  # seconds between two pushes


class Load:
    """A program that pushes tasks, workers that finish them, and a program elsewhere that waits in every way there is.

    Args:
        rush: pushes.
        elsewhere: waits, fetches and listens, over connections of its own.
        workers: pop and finish.

    Attributes:
        longest: the longest call that returns at once where nothing is disturbed, in seconds, since it was last set to 0.
        pushed: the key of each acknowledged push, with its input.
        finished: the key of each acknowledged end, with its output.
        fetched: the keys that `fetch_new_tasks` gave, with their outputs.
        heard: the keys that events told.
        done: how often each kind of waiting has ended with a result.
        n_missed: how often a listener was told that events are missing.
    """

    def __init__(self, rush: Rush, elsewhere: Rush, workers: list[RushWorker]) -> None:
        self._rush = rush
        self._elsewhere = elsewhere
        self._workers = workers
        self._is_over = False
        self._listens = asyncio.Event()
        self._has_pushed = asyncio.Event()
        self.longest = 0.0
        self.pushed: dict[str, int] = {}
        self.finished: dict[str, int] = {}
        self.fetched: dict[str, int] = {}
        self.done = Counter[str]()
        self.heard = set[str]()
        self.n_missed = 0

    @property
    def is_connected(self) -> bool:
        """Whether the program that pushes has a connection."""
        return self._rush._net.link.connection.is_ready  # pyright: ignore[reportPrivateUsage]

    @contextmanager
    def _timed(self) -> Generator[None]:
        began = time.perf_counter()
        yield
        self.longest = max(self.longest, time.perf_counter() - began)

    async def push(self) -> None:
        """Pushes tasks until the load ends."""
        await self._listens.wait()
        while not self._is_over:
            x = len(self.pushed)
            with self._timed():
                (key,) = await self._rush.push_tasks([{"x": x}])
            self.pushed[key] = x
            self.done["push_tasks"] += 1
            await asyncio.sleep(_PAUSE)
        self._has_pushed.set()

    async def serve(self, worker: RushWorker) -> None:
        """Pops and finishes tasks."""
        while True:
            task = await worker.pop_task(timeout=None)
            if task is None:
                return
            self.done["pop_task"] += 1
            y = 2 * task.xs["x"]
            with self._timed():
                ended = await worker.finish_tasks(task.key, [{"y": y}])
            assert ended == [task.key], f"{task.key} was not held any more"
            assert task.key not in self.finished, f"{task.key} was finished twice"
            self.finished[task.key] = y

    async def wait(self) -> None:
        """Waits for the task that was pushed last, again and again."""
        while True:
            await wait_until(lambda: self.pushed, timeout=60)
            (task,) = await self._elsewhere.wait_for_tasks(next(reversed(self.pushed)), need_workers=False)
            assert task.ys == {"y": 2 * task.xs["x"]}
            self.done["wait_for_tasks"] += 1
            await asyncio.sleep(_PAUSE)

    async def fetch(self) -> None:
        """Fetches new tasks."""
        while True:
            frame = await self._elsewhere.fetch_new_tasks(timeout=None)
            self.fetched |= zip(frame["keys"], frame["y"], strict=True)
            self.done["fetch_new_tasks"] += 1

    async def listen(self) -> None:
        """Listens to events."""
        async with self._elsewhere.events(TasksFinished) as events:
            self._listens.set()
            async for event in events:
                if isinstance(event, EventsMissed):
                    self.n_missed += 1
                else:
                    self.done["events"] += 1
                    self.heard |= set(event.keys)

    async def continues(self) -> None:
        """Waits until every kind of waiting has ended twice more: once may have been under way."""
        before = self.done.copy()
        await wait_until(lambda: len(before) == 5 and all(self.done[kind] >= n + 2 for kind, n in before.items()), timeout=30)

    async def end(self) -> None:
        """Pushes nothing more, and waits until every task has ended."""
        self._is_over = True
        await self._has_pushed.wait()
        await self._rush.wait_until(lambda counts: counts.queued == counts.running == 0, timeout=60)
        await wait_until(lambda: len(self.finished) == len(self.fetched) == len(self.pushed), timeout=30)

    async def lost(self) -> set[str]:
        """Returns the keys of acknowledged ends that the network does not hold."""
        return set(self.finished) - set((await self._rush.fetch_finished_tasks())["keys"])

    async def check(self) -> None:
        """Compares what was acknowledged with what the network holds."""
        assert not await self.lost()
        for rush in (self._rush, self._elsewhere):
            frame = await rush.fetch_finished_tasks()
            assert frame["keys"].is_unique().all(), "a task has finished twice"
            held = dict(zip(frame["keys"], frame["y"], strict=True))
            assert held == {key: 2 * x for key, x in self.pushed.items()}, "what was pushed is not what has finished"
            assert held == self.finished, "an acknowledged end is lost"
            counts = await rush.counts()
            assert (counts.queued, counts.running, counts.finished, counts.failed) == (0, 0, len(held), 0)
        assert self.fetched == self.finished
        if not self.n_missed:
            await wait_until(lambda: self.heard >= set(self.finished))


@asynccontextmanager
async def working(network_id: str, config: RushConfig) -> AsyncGenerator[Load]:
    """A load that has begun; its network is deleted afterwards."""
    async with (
        Rush(network_id, config) as rush,
        Rush(network_id, replace(config, response_timeout=config.response_timeout + 1)) as elsewhere,
    ):
        workers = [await RushWorker(network_id, config).__aenter__() for _ in range(N_WORKERS)]
        load = Load(rush, elsewhere, workers)
        roles = [load.push(), load.wait(), load.fetch(), load.listen(), *map(load.serve, workers)]
        tasks = [asyncio.create_task(role) for role in roles]
        try:
            await wait_until(lambda: len(load.done) == 5, timeout=30)
            yield load
        finally:
            for task in tasks:
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
            for worker in workers:
                await worker.aclose()
            await rush.reset()
            if errors := [end for end in ends if isinstance(end, Exception)]:
                raise ExceptionGroup("roles of the load failed", errors)
