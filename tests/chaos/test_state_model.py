"""Random calls of several clients of one network, compared with a small model in plain Python."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import pytest
import redis
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from rush_async import (
    Counts,
    Event,
    NetworkReset,
    NetworkResumed,
    NetworkStateError,
    NetworkStopped,
    Rush,
    RushClient,
    RushConfig,
    RushWorker,
    Task,
    TasksFailed,
    TasksFinished,
    TasksQueued,
    TasksStarted,
    WorkerLost,
    WorkerStarted,
)
from rush_async.store.records import NewTask, RecordEncoder
from rush_async.store.reservations import Reserved
from rush_async.store.workers import KILLED
from rush_async.testing import wait_until
from rush_async.worker.worker import membership_of

T = TypeVar("T")

TIMEOUT = 10.0
# A client with other settings has a connection and a view of the network of its own, as in another process.
ELSEWHERE, LISTENING = 29.0, 28.0
WORKERS, CLIENTS = st.integers(0, 2), st.integers(0, 4)
SIZES = st.integers(1, 4)
NAMES = st.sampled_from(["ape", "bee", "owl"])
MORE = st.none() | st.integers(0, 6)  # how many more tasks may finish or fail, by a rule
HUGE = 1_000_000


@dataclass
class Expected:
    """A task in the model; `message` is that of its last failure."""

    state: str
    xs: dict[str, Any]
    worker: int | None = None
    ys: dict[str, Any] | None = None
    message: str | None = None
    attempt: int = 0
    retries: int = 0


class Model:
    """A network in plain Python."""

    def __init__(self) -> None:
        self.tasks: dict[str, Expected] = {}
        self.queue: list[str] = []
        self.finished: list[str] = []
        self.attrs: dict[str, int] = {}
        self.task_attrs: dict[str, dict[str, int]] = {}
        self.claims: dict[str, int] = {}
        self.ranking: dict[str, float] = {}
        self.reports: list[tuple[str, int, int]] = []  # key, attempt, step
        self.points: dict[str, str] = {}  # name -> key of the last task that was pushed with it and `unique`
        self.rules: dict[str, int] = {}  # finished, failed
        self.is_stopped = False
        self.n_changes = 0  # of the rules of a network that runs, and returns of reservations: each has a number, and no event
        self.reserved: dict[int, list[int]] = {}  # worker -> its indices
        self.returned: list[int] = []

    @property
    def n_places(self) -> int:
        """How many tasks may start."""
        if self.is_stopped:
            return 0
        return max(0, self.rules.get("finished", HUGE) - self.counts.running - self.counts.finished - self.n_reserved)

    @property
    def n_reserved(self) -> int:
        """How many indices are reserved."""
        return sum(map(len, self.reserved.values()))

    def return_reserved(self, who: int, n: int) -> None:
        """The first indices of a worker return: those of one call have one number."""
        indices = self.reserved.get(who, [])
        self.returned += indices[:n]
        self.n_changes += bool(indices[:n])
        self.reserved[who] = indices[n:]

    def true_rule(self, rules: dict[str, int]) -> str | None:
        """The first rule that is true."""
        return next((rule for rule in ("finished", "failed") if getattr(self.counts, rule) >= rules.get(rule, HUGE)), None)

    def judge(self) -> None:
        """Stops the network where a rule is true: after each call that may finish or fail a task."""
        self.is_stopped = self.is_stopped or self.true_rule(self.rules) is not None

    def keys(self, *states: str) -> list[str]:
        return [key for key, task in self.tasks.items() if task.state in states]

    @property
    def counts(self) -> Counts:
        return Counts(*[len(self.keys(state)) for state in ("queued", "running", "finished", "failed")])


class Replay:
    """The states of tasks as the events alone show them. Checks that no event is missing."""

    def __init__(self) -> None:
        self.seq = 0
        self.states: dict[str, str] = {}
        self.queue: list[str] = []
        self.finished: list[str] = []
        self.n_resets = 0
        self.n_skipped = 0
        self.is_stopped = False
        self.wrong: list[str] = []

    def take(self, event: Event) -> None:
        match event:
            case NetworkReset():
                self.seq, self.states, self.queue, self.finished = 0, {}, [], []
                self.n_skipped, self.is_stopped = 0, False
                self.n_resets += 1
                return
            case TasksQueued(keys=keys):
                for key in keys:
                    # The task of a lost worker returns to the head of the queue.
                    at = 0 if self.states.get(key) == "running" else len(self.queue)
                    self._move(event, (key,), (None, "failed", "running"), "queued")
                    self.queue.insert(at, key)
            case TasksStarted(keys=keys):
                if self.is_stopped:
                    self.wrong.append(f"{event} in a stopped network")
                self._move(event, keys, (None, "queued"), "running")
            case TasksFinished(keys=keys):
                self._move(event, keys, (None, "running"), "finished")
                self.finished += keys
            case TasksFailed(keys=keys):
                self._move(event, keys, (None, "queued", "running"), "failed")
            case WorkerStarted() | WorkerLost():
                pass
            case NetworkStopped() | NetworkResumed():
                if self.is_stopped == isinstance(event, NetworkStopped):
                    self.wrong.append(f"{event} comes twice")
                self.is_stopped = isinstance(event, NetworkStopped)
            case _:
                self.wrong.append(f"unexpected {event}")
        self.n_skipped += event.seq - self.seq - 1
        if event.seq <= self.seq:
            self.wrong.append(f"{event} follows {self.seq}")
        self.seq = event.seq

    def _move(self, event: Event, keys: tuple[str, ...], sources: tuple[str | None, ...], state: str) -> None:
        for key in keys:
            if self.states.get(key) not in sources:
                self.wrong.append(f"{event} moves {key} from {self.states.get(key)}")
            if self.states.get(key) == "queued":
                self.queue.remove(key)
            self.states[key] = state


class RandomCalls(RuleBasedStateMachine):
    """Each rule is a call of a client; `all_clients_agree` holds after each."""

    url: str
    raw: redis.Redis

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        self.model = Model()
        self.replay = Replay()
        self.serial = 0
        self.clients: list[RushClient] = []
        self.workers: list[RushWorker] = []
        self.former: list[str] = []
        self.listening: asyncio.Task[None] | None = None

    def run(self, call: Awaitable[T]) -> T:
        async def bounded() -> T:
            async with asyncio.timeout(TIMEOUT):
                return await call

        return self.runner.run(bounded())

    @initialize()
    def open(self) -> None:
        self.run(self._open())

    async def _open(self) -> None:
        near = RushConfig(url=self.url)
        far = replace(near, retry_deadline=ELSEWHERE)
        self.manager = await self.stack.enter_async_context(Rush(config=near))
        name = self.manager.network_id
        self.other = await self.stack.enter_async_context(Rush(name, far))
        listener = await self.stack.enter_async_context(Rush(name, replace(near, retry_deadline=LISTENING)))
        events = await self.stack.enter_async_context(listener.events())

        async def listen() -> None:
            async for event in events:
                self.replay.take(event)

        self.listening = asyncio.create_task(listen())
        for config in (near, near, far):
            self.workers.append(await self.stack.enter_async_context(RushWorker(name, config)))
        self.clients = [self.manager, self.other, *self.workers]
        # A client follows the network from its first reading of a counter.
        assert [client.n_tasks for client in self.clients] == [0] * len(self.clients)

    def new_xss(self, n: int) -> list[dict[str, Any]]:
        self.serial += n
        return [{"x": serial, "name": f"n{serial}"} for serial in range(self.serial - n, self.serial)]

    def some_keys(self, data: st.DataObject, *, most: int = 5) -> list[str]:
        """Keys of tasks in any state, of unknown tasks, and of one task twice."""
        known = [*self.model.tasks, "unknown"]
        return data.draw(st.lists(st.sampled_from(known), max_size=most), "keys")

    # calls of one client

    @rule(who=CLIENTS, n=SIZES, retries=st.integers(0, 2))
    def push(self, who: int, n: int, retries: int) -> None:
        xss = self.new_xss(n)
        keys = self.run(self.clients[who].push_tasks(xss, retries=retries))
        self.created(keys, xss, "queued", retries=retries)
        self.model.queue += keys

    @rule(who=WORKERS, n=SIZES)
    def push_running(self, who: int, n: int) -> None:
        xss, is_full = self.new_xss(n), self.model.n_places == 0 and not self.model.is_stopped
        # Without a budget it would wait for a place.
        keys = self.run(self.workers[who].push_running_tasks(xss, budget=HUGE if is_full else None))
        self.created(keys, xss[: self.model.n_places], "running", worker=who, attempt=1)

    @rule(who=WORKERS, n=SIZES, room=st.integers(0, 5))
    def push_running_within_a_budget(self, who: int, n: int, room: int) -> None:
        counts = self.model.counts
        budget = counts.queued + counts.running + counts.finished + self.model.n_reserved + room
        xss = self.new_xss(n)
        keys = self.run(self.workers[who].push_running_tasks(xss, budget=budget))
        self.created(keys, xss[: min(n, room, self.model.n_places)], "running", worker=who, attempt=1)

    @rule(who=CLIENTS, names=st.lists(NAMES, min_size=1, max_size=4))
    def push_unique(self, who: int, names: list[str]) -> None:
        xss = [{"x": serial, "name": name} for serial, name in enumerate(names)]
        entries = self.run(self.clients[who].push_tasks(xss, unique="name"))
        assert len(entries) == len(xss)
        self.model.queue += self.created_with_points(entries, xss, "queued")

    @rule(who=WORKERS, names=st.lists(NAMES, min_size=1, max_size=4), room=st.integers(0, 3))
    def push_running_unique_within_a_budget(self, who: int, names: list[str], room: int) -> None:
        counts = self.model.counts
        budget = counts.queued + counts.running + counts.finished + self.model.n_reserved + room
        xss = [{"x": serial, "name": name} for serial, name in enumerate(names)]
        room = min(room, self.model.n_places)
        entries = self.run(self.workers[who].push_running_tasks(xss, unique=["name"], budget=budget))
        keys = self.created_with_points(entries, xss, "running", worker=who, attempt=1)
        if len(entries) < len(
            xss
        ):  # the first that is left out found its point free, but no place, or there was no place at all
            assert len(keys) == room
            assert room == 0 or not self.is_taken(names[len(entries)])

    def is_taken(self, name: str) -> bool:
        key = self.model.points.get(name)
        return key is not None and self.model.tasks[key].state != "failed"

    def created_with_points(
        self, entries: Sequence[str | None], xss: list[dict[str, Any]], state: str, **rest: Any
    ) -> list[str]:
        created: list[str] = []
        for key, xs in zip(entries, xss, strict=False):
            assert (key is None) == self.is_taken(xs["name"])
            if key is not None:
                self.created([key], [xs], state, **rest)
                self.model.points[xs["name"]] = key
                created.append(key)
        return created

    @rule(who=CLIENTS, n=SIZES)
    def push_finished(self, who: int, n: int) -> None:
        xss = self.new_xss(n)
        yss = [{"y": xs["x"] / 2} for xs in xss]
        keys = self.run(self.clients[who].push_finished_tasks(xss, yss))
        self.created(keys, xss, "finished")
        for key, ys in zip(keys, yss, strict=True):
            self.model.tasks[key].ys = ys
        self.model.finished += keys
        self.model.judge()

    @rule(who=CLIENTS, n=SIZES)
    def push_failed(self, who: int, n: int) -> None:
        xss = self.new_xss(n)
        keys = self.run(self.clients[who].push_failed_tasks(xss, "pushed as failed"))
        self.created(keys, xss, "failed")
        for key in keys:
            self.model.tasks[key].message = "pushed as failed"
        self.model.judge()

    def created(self, keys: list[str], xss: list[dict[str, Any]], state: str, **rest: Any) -> None:
        assert len(keys) == len(xss)
        for key, xs in zip(keys, xss, strict=True):
            assert key not in self.model.tasks
            self.model.tasks[key] = Expected(state, xs, **rest)

    @rule(who=WORKERS)
    def reserve(self, who: int) -> None:
        worker, model = self.workers[who], self.model
        reserved = self.run(self._reserve(worker))
        assert isinstance(reserved, Reserved)
        if model.is_stopped or not model.n_places:
            assert reserved.place == ("stopped" if model.is_stopped else "full")
            return
        index = reserved.place
        assert isinstance(index, int)
        if model.returned:
            assert index == min(model.returned)
            model.returned.remove(index)
        model.reserved.setdefault(who, []).append(index)

    @rule(who=WORKERS)
    def start(self, who: int) -> None:
        worker, model = self.workers[who], self.model
        if not model.reserved.get(who):
            return
        (xs,) = self.new_xss(1)
        task = RecordEncoder(1000).task(xs, None)
        started = self.run(self._start(worker, model.reserved[who][0], task))
        if model.is_stopped:
            assert started == "stopped"
            model.return_reserved(who, 1)
        else:
            assert started == "started"
            index = model.reserved[who].pop(0)
            membership_of(worker).hold([task.key])  # as proposals do: the worker fails it when it leaves
            self.created([task.key], [xs], "running", worker=who, attempt=1)
            (found,) = self.run(worker.get_tasks(task.key))
            assert found is not None
            assert found.index == index

    @rule(who=WORKERS)
    def unreserve(self, who: int) -> None:
        worker = self.workers[who]
        if self.model.reserved.get(who):
            self.run(self._unreserve(worker, self.model.reserved[who][0]))
            self.model.return_reserved(who, 1)

    async def _reserve(self, worker: RushWorker) -> object:
        reservations = worker._net.reservations  # pyright: ignore[reportPrivateUsage]
        return await reservations.reserve(worker.worker_id, budget=None, max_failed=None, queued_first=False)

    async def _start(self, worker: RushWorker, index: int, task: NewTask) -> object:
        return await worker._net.reservations.start(worker.worker_id, index, task)  # pyright: ignore[reportPrivateUsage]

    async def _unreserve(self, worker: RushWorker, index: int) -> None:
        network = worker._net  # pyright: ignore[reportPrivateUsage]
        network.reservations.unreserve(worker.worker_id, index)
        await network.tasks.calls.quiet()

    @rule(who=WORKERS)
    def pop(self, who: int) -> None:
        task = self.run(self.workers[who].pop_task(timeout=0))
        if not self.model.queue or not self.model.n_places:
            assert task is None
            return
        assert task is not None
        self.popped(who, task, self.model.queue.pop(0))

    @rule(who=WORKERS, data=st.data())
    def pop_named(self, who: int, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from([*self.model.tasks, "unknown"]), "key")
        task = self.run(self.workers[who].pop_task(timeout=0, key=key))
        if key not in self.model.queue or not self.model.n_places:
            assert task is None
            return
        assert task is not None
        self.model.queue.remove(key)
        self.popped(who, task, key)

    def popped(self, who: int, task: Task, key: str) -> None:
        expected = self.model.tasks[key]
        expected.attempt += 1
        assert (task.key, task.xs, task.attempt) == (key, expected.xs, expected.attempt)
        assert task.worker_id == self.workers[who].worker_id
        expected.state, expected.worker = "running", who

    @rule(who=WORKERS, data=st.data())
    def finish(self, who: int, data: st.DataObject) -> None:
        keys = self.some_keys(data)
        yss = [{"y": at + 0.5} for at in range(len(keys))]
        moved = self.run(self.workers[who].finish_tasks(keys, yss))
        assert moved == self.ended(who, keys, "finished")
        for key in moved:
            self.model.tasks[key].ys, self.model.tasks[key].message = yss[keys.index(key)], None
        self.model.finished += moved
        self.model.judge()

    @rule(who=WORKERS, data=st.data())
    def fail(self, who: int, data: st.DataObject) -> None:
        keys = self.some_keys(data)
        moved = self.run(self.workers[who].fail_tasks(keys, "it failed"))
        assert moved == self.ended(who, keys, "failed")
        for key in moved:
            self.model.tasks[key].message = "it failed"
        self.model.judge()

    @rule(who=WORKERS, data=st.data())
    def report(self, who: int, data: st.DataObject) -> None:
        keys = self.some_keys(data)
        tasks = [(key, self.model.tasks.get(key)) for key in keys]
        runs = [(key, task) for key, task in tasks if task is not None and task.state == "running" and task.worker == who]
        try:
            self.run(self._report(self.workers[who], keys))
        except NetworkStateError:
            assert len(runs) < len(keys)  # then nothing was reported
            return
        # A worker that has not heard of a cancellation or a reset yet hands over reports that are refused.
        for key, task in runs:
            step = 1 + sum(report[:2] == (key, task.attempt) for report in self.model.reports)
            self.model.reports.append((key, task.attempt, step))

    async def _report(self, worker: RushWorker, keys: list[str]) -> None:
        await worker.report_tasks(keys, [{"n": at} for at in range(len(keys))])
        await worker._net.tasks.calls.quiet()  # pyright: ignore[reportPrivateUsage]

    def ended(self, who: int, keys: list[str], state: str) -> list[str]:
        moved: list[str] = []
        for key in keys:
            task = self.model.tasks.get(key)
            if task is not None and task.state == "running" and task.worker == who:
                task.state = state
                moved.append(key)
        return moved

    @rule(who=CLIENTS, data=st.data())
    def retry(self, who: int, data: st.DataObject) -> None:
        keys = self.some_keys(data)
        moved = self.run(self.clients[who].retry_tasks(keys))
        assert moved == [key for key in dict.fromkeys(keys) if key in self.model.keys("failed")]
        self.retried(moved)

    @rule(who=CLIENTS)
    def retry_all(self, who: int) -> None:
        moved = self.run(self.clients[who].retry_tasks())
        assert sorted(moved) == sorted(self.model.keys("failed"))
        self.retried(moved)

    def retried(self, keys: list[str]) -> None:
        for key in keys:
            task = self.model.tasks[key]
            self.model.tasks[key] = Expected(
                "queued", task.xs, message=task.message, attempt=task.attempt, retries=task.retries
            )
        self.model.queue += keys

    @rule(who=CLIENTS)
    def empty(self, who: int) -> None:
        moved = self.run(self.clients[who].empty_queue())
        assert moved == self.model.queue
        for key in moved:
            self.model.tasks[key].state, self.model.tasks[key].message = "failed", "Removed from queue"
        self.model.queue = []
        self.model.judge()

    @rule(who=CLIENTS, data=st.data())
    def cancel(self, who: int, data: st.DataObject) -> None:
        keys = self.some_keys(data)
        moved = self.run(self.clients[who].cancel_tasks(keys))
        assert moved == [key for key in dict.fromkeys(keys) if key in self.model.keys("queued", "running")]
        for key in moved:
            task = self.model.tasks[key]
            if task.state == "queued":
                self.model.queue.remove(key)
            task.state, task.message = "failed", "Task was cancelled"
        self.model.judge()

    @rule(who=WORKERS)
    def kill(self, who: int) -> None:
        """A worker is killed and another takes its place. Its tasks return to the head of the queue, or fail."""
        worker = self.workers[who]
        held = [key for key in self.model.keys("running") if self.model.tasks[key].worker == who]
        again = [key for key in held if self.model.tasks[key].retries]
        self.run(self._kill(worker))
        self.model.return_reserved(who, HUGE)
        for key in held:
            task = self.model.tasks[key]
            task.state, task.message = "queued" if key in again else "failed", KILLED.message
            if key in again:
                task.retries, task.worker = task.retries - 1, None
        self.former.append(worker.worker_id)
        for task in self.model.tasks.values():
            if task.worker == who:
                task.worker = -len(self.former)
        head = self.run(self.manager.keys_with_state("queued"))["queued"][: len(again)]
        assert sorted(head) == sorted(again)
        self.model.queue = head + self.model.queue
        self.model.judge()
        self.run(self._replace(who))

    def name_of(self, worker: int) -> str:
        """The id of a worker: a killed one has a negative number."""
        return self.workers[worker].worker_id if worker >= 0 else self.former[-worker - 1]

    async def _kill(self, worker: RushWorker) -> None:
        workers = self.manager._net.workers  # pyright: ignore[reportPrivateUsage]
        assert await workers.lose([worker.worker_id], "killed", KILLED, KILLED) == [worker.worker_id]

    async def _replace(self, who: int) -> None:
        old = self.workers[who]
        await old.aclose()
        new = await self.stack.enter_async_context(RushWorker(old.network_id, old.config))
        self.workers[who] = self.clients[2 + who] = new
        assert new.n_tasks >= 0  # from now on it follows the network

    def limits(self, finished: int | None, failed: int | None) -> dict[str, Any]:
        """Rules that so many more tasks make true."""
        counts = self.model.counts
        limits = {"finished": (finished, counts.finished), "failed": (failed, counts.failed)}
        return {rule: max(1, n + more) for rule, (more, n) in limits.items() if more is not None}

    @rule(who=CLIENTS, finished=MORE, failed=MORE)
    def stop_when(self, who: int, finished: int | None, failed: int | None) -> None:
        rules, model = self.limits(finished, failed), self.model
        rules = rules or {"finished": 3}
        try:
            reason = self.run(self.clients[who].stop_when(**rules))
        except NetworkStateError:
            assert model.is_stopped
            assert rules != model.rules
            return
        assert not model.is_stopped or rules == model.rules
        model.n_changes += rules != model.rules
        model.rules = rules
        model.judge()
        assert (reason is not None) == model.is_stopped

    @rule(who=CLIENTS, finished=MORE, failed=MORE)
    def resume(self, who: int, finished: int | None, failed: int | None) -> None:
        rules, model = self.limits(finished, failed), self.model
        try:
            self.run(self.clients[who].resume(**rules))
        except ValueError:
            assert model.true_rule(rules) is not None
            return
        assert model.true_rule(rules) is None
        model.n_changes += not model.is_stopped
        model.rules, model.is_stopped = rules, False

    @rule(who=CLIENTS)
    def stop(self, who: int) -> None:
        reason = self.run(self.clients[who].stop("by the test"))
        assert (reason.rule == "manual") or self.model.is_stopped
        self.model.is_stopped = True

    @precondition(lambda self: self.model.tasks)
    @rule(who=st.integers(0, 1))
    def reset(self, who: int) -> None:
        self.run(cast("Rush", self.clients[who]).reset(workers=False))
        self.model = Model()
        self.run(wait_until(lambda: self.replay.n_resets))
        self.replay.n_resets = 0

    @rule(who=CLIENTS, values=st.dictionaries(NAMES, st.integers(), max_size=3))
    def set_attrs(self, who: int, values: dict[str, int]) -> None:
        self.run(self.clients[who].set_attrs(values))
        self.model.attrs |= values

    @rule(who=CLIENTS, values=st.dictionaries(NAMES, st.integers(), min_size=1, max_size=3), data=st.data())
    def set_task_attrs(self, who: int, values: dict[str, int], data: st.DataObject) -> None:
        key = data.draw(st.sampled_from([*self.model.tasks, "unknown"]), "key")
        try:
            self.run(self.clients[who].set_task_attrs(key, values))
        except NetworkStateError:
            assert key not in self.model.keys("queued", "running")
        else:
            assert key in self.model.keys("queued", "running")
            self.model.task_attrs[key] = self.model.task_attrs.get(key, {}) | values

    @rule(who=CLIENTS, name=NAMES, value=st.integers())
    def claim(self, who: int, name: str, value: int) -> None:
        assert self.run(self.clients[who].claim(name, value)) == self.model.claims.setdefault(name, value)

    @rule(who=CLIENTS, key=NAMES, score=st.sampled_from([0.0, 0.5, 1.0]))
    def rank(self, who: int, key: str, score: float) -> None:
        rank, n = self.run(self.clients[who].ranking("rung", maximize=True).add(key, score))
        self.model.ranking[key] = score
        assert (rank, n) == (self.ranked.index((key, score)), len(self.ranked))

    @property
    def ranked(self) -> list[tuple[str, float]]:
        return sorted(self.model.ranking.items(), key=lambda item: (-item[1], item[0]))

    # calls of several clients at once

    @rule(sizes=st.lists(st.integers(0, 3), min_size=5, max_size=5))
    def push_together(self, sizes: list[int]) -> None:
        xsss = [self.new_xss(n) for n in sizes]
        calls = [client.push_tasks(xss) for client, xss in zip(self.clients, xsss, strict=True)]
        keyss = self.run(_together(calls))
        for keys, xss in zip(keyss, xsss, strict=True):
            self.created(keys, xss, "queued")
        # The server chooses the order of the calls; the tasks of one client keep theirs.
        new = self.run(self.manager.keys_with_state("queued"))["queued"][len(self.model.queue) :]
        assert sorted(new) == sorted(key for keys in keyss for key in keys)
        for keys in keyss:
            assert [key for key in new if key in keys] == keys
        self.model.queue += new

    @rule()
    def pop_together(self) -> None:
        tasks = self.run(_together([worker.pop_task(timeout=0) for worker in self.workers]))
        n = min(3, self.model.n_places)
        taken, self.model.queue = self.model.queue[:n], self.model.queue[n:]
        assert sorted(task.key for task in tasks if task is not None) == sorted(taken)
        for who, task in enumerate(tasks):
            if task is not None:
                self.popped(who, task, task.key)

    @rule(data=st.data())
    def finish_the_same_tasks_together(self, data: st.DataObject) -> None:
        """All workers end the same tasks at once, one by failing them: only the holder of a task succeeds."""
        keys = self.some_keys(data)
        yss = [{"y": at + 0.25} for at in range(len(keys))]
        first, second, third = self.workers
        calls = [first.finish_tasks(keys, yss), second.fail_tasks(keys, "it failed"), third.finish_tasks(keys, yss)]
        results = self.run(_together(calls))
        for who, (state, moved) in enumerate(zip(("finished", "failed", "finished"), results, strict=True)):
            assert moved == self.ended(who, keys, state)
            for key in moved:
                task = self.model.tasks[key]
                task.ys, task.message = (yss[keys.index(key)], None) if state == "finished" else (None, "it failed")
        new = self.run(self.manager.keys_with_state("finished"))["finished"][len(self.model.finished) :]
        assert sorted(new) == sorted(results[0] + results[2])
        self.model.finished += new
        self.model.judge()

    # what holds after each call

    @invariant()
    def all_clients_agree(self) -> None:
        if self.clients:
            self.run(self._all_clients_agree())

    async def _all_clients_agree(self) -> None:
        model = self.model
        for client in self.clients:
            assert await client.counts() == model.counts
        for client in self.clients:
            await wait_until(lambda client=client: _local(client) == model.counts)
        keys = await self.clients[self.serial % 5].keys_with_state()
        assert keys["queued"] == model.queue
        assert await self.clients[self.serial % 5].attrs() == model.attrs
        known = list(model.tasks)
        assert await self.clients[self.serial % 5].task_attrs(known) == [model.task_attrs.get(key, {}) for key in known]
        assert await self.clients[self.serial % 5].ranking("rung", maximize=True).best(10) == self.ranked
        assert keys["finished"] == model.finished
        assert sorted(keys["running"]) == sorted(model.keys("running"))
        assert sorted(keys["failed"]) == sorted(model.keys("failed"))
        seq = int(cast("Any", self.raw).hget(f"rush:{{{self.manager.network_id}}}:meta", "seq") or 0)
        for client in self.clients:
            await wait_until(lambda client=client: (client.stop_reason is not None) == model.is_stopped)
        assert {worker.terminated for worker in self.workers} == {model.is_stopped}
        replay = self.replay
        await wait_until(lambda: replay.seq + model.n_changes - replay.n_skipped == seq or replay.wrong)
        assert replay.wrong == []
        assert replay.is_stopped == model.is_stopped
        assert self.replay.states == {key: task.state for key, task in model.tasks.items()}
        assert self.replay.queue == model.queue
        assert self.replay.finished == model.finished

    @rule(who=CLIENTS)
    def read(self, who: int) -> None:
        """Frames equal the model."""
        frame = self.run(self.clients[who].fetch_tasks(times=True))
        rows = {row["keys"]: row for row in frame.to_dicts()}
        assert len(frame) == len(rows) == len(self.model.tasks)
        for key, task in self.model.tasks.items():
            row = rows[key]
            worker = None if task.worker is None else self.name_of(task.worker)
            assert (row["state"], row["x"], row["name"]) == (task.state, task.xs["x"], task.xs["name"])
            assert row["worker_id"] == worker
            assert row.get("y") == (task.ys["y"] if task.ys else None)
            assert (row["condition"] and row["condition"]["message"]) == (task.message if task.state == "failed" else None)
        finished = self.run(self.clients[who].fetch_finished_tasks())
        assert finished["keys"].to_list() == self.model.finished
        reports = self.run(self.clients[who].fetch_reports())
        assert reports.select("keys", "attempt", "step").rows() == self.model.reports

    @precondition(lambda self: self.model.tasks)
    @rule(who=CLIENTS, data=st.data())
    def get(self, who: int, data: st.DataObject) -> None:
        keys = self.some_keys(data)
        for key, task in zip(keys, self.run(self.clients[who].get_tasks(keys)), strict=True):
            expected = self.model.tasks.get(key)
            if expected is None:
                assert task is None
            else:
                assert task is not None
                assert (task.state, task.xs, task.ys) == (expected.state, expected.xs, expected.ys)
                assert (task.failure.message if task.failure else None) == expected.message

    def teardown(self) -> None:
        try:
            if self.clients:
                self.run(self._close())
        finally:
            self.runner.close()

    async def _close(self) -> None:
        async with self.stack:
            assert self.listening is not None
            self.listening.cancel()
            await asyncio.wait([self.listening])
        async with Rush(self.manager.network_id, self.url) as rush:
            assert (await rush.counts()).running == 0, "a worker left a task running"
            await rush.reset()


def _local(client: RushClient) -> Counts:
    return Counts(client.n_queued_tasks, client.n_running_tasks, client.n_finished_tasks, client.n_failed_tasks)


async def _together(calls: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    return await asyncio.gather(*calls)


@pytest.mark.chaos
def test_random_calls_of_several_clients_agree_with_the_model(rush_server: RushConfig, raw: redis.Redis) -> None:
    assert rush_server.url is not None
    machine = type("RandomCalls", (RandomCalls,), {"url": rush_server.url, "raw": raw})
    run_state_machine_as_test(  # pyright: ignore[reportUnknownMemberType]
        machine,
        settings=settings(
            max_examples=25,
            stateful_step_count=25,
            deadline=None,
            database=None,
            print_blob=True,
        ),
    )
