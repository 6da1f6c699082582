"""What the clients of one process do in a round; each call goes into its history.

As a program, `python -m benchmarks.faults.work [MUTANT]`, it reads orders from standard input, a line each, and works until the
input ends. It writes a line when an order is done. With the name of a mutant, its scripts have that defect.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import importlib
import json
import logging
import random
import sys
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

import anyio
import anyio.lowlevel
import polars as pl

from benchmarks.faults.history import History, Outcome
from benchmarks.measure import resident_memory
from rush_async import (
    Draw,
    EventsMissed,
    NetworkStateError,
    NetworkStoppedError,
    Rush,
    RushConfig,
    RushConnectionError,
    RushError,
    RushWorker,
    ServerFullError,
    Task,
    WorkerLostError,
)

__all__ = [
    "EXPIRE",
    "KINDS",
    "RANKING",
    "Cancelled",
    "Kind",
    "Order",
    "config_of",
    "pack_order",
    "silence_log",
    "token_of",
    "work",
]

T = TypeVar("T")

Kind: TypeAlias = Literal["queue", "budget", "stop", "proposals", "unique"]
KINDS: tuple[Kind, ...] = ("queue", "budget", "stop", "proposals", "unique")

RANKING = "all"  # the ranking of each network
EXPIRE = 2.0  # seconds without a heartbeat after which a worker is lost
_SHORT = 0.02  # seconds
_PAUSE = 2.0  # seconds between two workers of a process that are cancelled, at the most
_MOST_CANCELLED = 0.01  # seconds after which a call is cancelled, at the most


@dataclass(frozen=True)
class Order:
    """What one process is to do in a round.

    Attributes:
        kind: the kind of work.
        network_id: the network of the round.
        url: the server, or the proxy in front of it.
        process: the name of the process in the histories.
        history: the file of its history.
        seed: decides what its clients do.
        n_workers: how many workers it has.
        quota: how many tasks it pushes; for work on a queue.
        limit: how many tasks finish; for work with a budget or a stop rule.
        points: how many points there are, for unique tasks; proposals have three times as many.
        cancelled: the share of calls that are cancelled at a random moment.
    """

    kind: Kind
    network_id: str
    url: str
    process: str
    history: str
    seed: int
    n_workers: int
    quota: int
    limit: int
    points: int
    cancelled: float


def config_of(url: str, process: str = "") -> RushConfig:
    """The configuration of the clients of a process: processes in one event loop share no connection."""
    own = sum(process.encode()) % 1000 / 1e6
    return RushConfig(url, heartbeat_period=0.5, heartbeat_expire=EXPIRE, response_timeout=1.5 + own, retry_deadline=60.0)


class Recorded:
    """A call that is being recorded.

    Attributes:
        n: its number.
        got: its answer, as JSON.
        outcome: what became of it.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self.got: Any = None
        self.outcome: Outcome = "unknown"

    @property
    def is_answered(self) -> bool:
        """Whether it has an answer."""
        return self.outcome == "ok"


class Recorder:
    """Records calls, and cancels some of them at a random moment.

    Args:
        history: where they are recorded.
        chance: decides which are cancelled.
        cancelled: the share that is.

    Attributes:
        n_cancelled: how many were cancelled.
    """

    def __init__(self, history: History, chance: random.Random, cancelled: float) -> None:
        self._history = history
        self._chance = chance
        self._cancelled = cancelled
        self.n_cancelled = 0

    def next_number(self) -> int:
        """The number of the next call."""
        return self._history.next_number()

    def tokens(self, n: int, size: int) -> list[str]:
        """Values that no other call has, for the tasks of call `n`."""
        return [f"{self._history.process}.{n}.{at}" for at in range(size)]

    @asynccontextmanager
    async def call(self, name: str, n: int | None = None, /, **given: Any) -> AsyncGenerator[Recorded]:
        """Records the call in its block. Errors of a broken connection or a full server end the block, and no more.

        Raises:
            WorkerLostError: the call raised it.
        """
        call = Recorded(self.next_number() if n is None else n)
        self._history.begin(call.n, name, given)
        limit = None
        if self._chance.random() < self._cancelled:
            limit = self._chance.uniform(0, _MOST_CANCELLED)
        why = "its process ended, or it was cancelled with all others"
        try:
            async with asyncio.timeout(limit):
                yield call
            call.outcome, why = "ok", ""
        except TimeoutError:
            self.n_cancelled += 1
            why = "cancelled"
        except WorkerLostError:
            # The server refuses what a lost worker ends; what it was to be given may have been given before.
            call.outcome, why = ("refused" if name in ("finish", "fail") else "unknown"), "the worker is lost"
            raise
        except (ServerFullError, NetworkStateError, NetworkStoppedError) as error:
            call.outcome, why = "refused", repr(error)[:200]
        except RushConnectionError as error:
            why = repr(error)[:200]
        except RushError as error:
            why = repr(error)[:200]
            raise
        finally:
            self._history.end(call.n, call.outcome, call.got if call.outcome == "ok" else None, why)


class Process:
    """The clients of one process in one round."""

    def __init__(self, order: Order, history: History) -> None:
        self.order = order
        self.chance = random.Random(order.seed)
        self.calls = Recorder(history, self.chance, order.cancelled)
        self.config = config_of(order.url, order.process)
        self.left = order.quota  # tasks to push
        self.is_over = False
        self.held: dict[str, str] = {}  # key -> worker, of this process
        self.failed: list[str] = []
        self.known: list[str] = []  # keys of some tasks
        self.lives: set[asyncio.Task[None]] = set()  # of its workers
        self.n_workers_cancelled = 0

    async def run(self) -> None:
        """Works until the order is done."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._manage())
            cancelling = group.create_task(self._cancel_workers())
            for at in range(self.order.n_workers):
                group.create_task(self._work(f"{self.order.process}-{at}"))
            while not self.is_over:  # noqa: ASYNC110 - any worker may end it
                await asyncio.sleep(_SHORT)
            cancelling.cancel()

    # the manager

    async def _manage(self) -> None:
        while not self.is_over:
            with suppress(RushConnectionError):
                async with Rush(self.order.network_id, self.config) as rush:
                    listening = asyncio.create_task(self._listen(rush))
                    try:
                        await self._produce(rush)
                    finally:
                        listening.cancel()
                        await asyncio.wait([listening])

    async def _listen(self, rush: Rush) -> None:
        seq = 0
        with suppress(RushConnectionError):
            async with rush.events() as events:
                async for event in events:
                    if event.seq <= seq and not isinstance(event, EventsMissed):
                        async with self.calls.call("heard an event again", before=seq, event=repr(event)):
                            pass
                    seq = event.seq

    async def _produce(self, rush: Rush) -> None:
        reader = f"{self.order.process}.{self.calls.next_number()}"
        kind = self.order.kind
        while not self.is_over:
            if kind in ("queue", "unique") and self.left > 0:
                await self._push(rush)
            await self._change_something(rush, reader)
            if kind == "stop":
                counts = await self._counts(rush)
                self.is_over = counts is not None and counts[2] >= self.order.limit
                if counts is not None and counts[0] < 20:
                    await self._push(rush)
                await asyncio.sleep(_SHORT)
            elif kind in ("budget", "proposals"):
                await asyncio.sleep(5 * _SHORT)
            elif self.left <= 0:
                counts = await self._counts(rush)
                self.is_over = counts is not None and counts[0] == 0
                await asyncio.sleep(_SHORT)
            elif len(self.held) < self.order.n_workers:
                await asyncio.sleep(0)
            else:
                await asyncio.sleep(_SHORT / 4)

    async def _counts(self, rush: Rush) -> tuple[int, ...] | None:
        async with self.calls.call("counts") as call:
            counts = await rush.counts()
            call.got = list(counts)
            return tuple(counts)
        return None

    async def _push(self, rush: Rush) -> None:
        n, chance = self.calls.next_number(), self.chance
        tokens = self.calls.tokens(n, chance.randint(1, 10 if self.order.kind == "stop" else 40))
        if self.order.kind == "unique":
            xss = [{"p": chance.randrange(self.order.points)} for _ in tokens]
            extra = [{"x": token} for token in tokens]
            async with self.calls.call("push", n, to="queued", tokens=tokens, points=[xs["p"] for xs in xss]) as call:
                call.got = await rush.push_tasks(xss, xss_extra=extra, unique=True)
            self.left -= len(tokens) if call.is_answered else 0
            return
        xss, to = [{"x": token} for token in tokens], "queued"
        if self.order.kind == "queue":
            to = chance.choices(("queued", "finished", "failed"), (90, 5, 5))[0]
        if to == "queued":
            retries = chance.randint(0, 2)
            async with self.calls.call("push", n, to=to, tokens=tokens, retries=retries) as call:
                call.got = await rush.push_tasks(xss, retries=retries)
        elif to == "finished":
            async with self.calls.call("push", n, to=to, tokens=tokens) as call:
                call.got = await rush.push_finished_tasks(xss, [{"y": 1.0, "by": token} for token in tokens])
        else:
            async with self.calls.call("push", n, to=to, tokens=tokens) as call:
                call.got = await rush.push_failed_tasks(xss, "pushed as failed")
        if call.is_answered:
            self.left -= len(tokens)
            self.known = [*self.known[-50:], *call.got]
            if to == "failed":
                self.failed += call.got

    async def _change_something(self, rush: Rush, reader: str) -> None:
        n, chance = self.calls.next_number(), self.chance
        names = ("attrs", "claim", "rank", "retry", "cancel", "empty", "new", "")
        what = chance.choices(names, (8, 10, 4, 10, 10, 1, 6, 51))[0]
        # What queues or fails tasks beside the workers would exceed a budget.
        if what == "attrs":
            async with self.calls.call("attrs", n, name=f"of {self.order.process}", value=n) as call:
                await rush.set_attrs({f"of {self.order.process}": n})
        elif what == "claim":
            name = f"claim {chance.randrange(20)}"
            async with self.calls.call("claim", n, name=name, value=f"{reader}.{n}") as call:
                call.got = await rush.claim(name, f"{reader}.{n}")
        elif what == "rank":
            score = chance.random()
            async with self.calls.call("rank", n, key=f"{reader}.{n}", score=score) as call:
                call.got = list(await rush.ranking(RANKING).add(f"{reader}.{n}", score))
        elif what == "empty" and self.order.kind == "queue":
            async with self.calls.call("empty", n) as call:
                call.got = await rush.empty_queue()
        elif what == "retry" and self.failed and self.order.kind == "queue":
            keys, self.failed = self.failed[:20], self.failed[20:]
            async with self.calls.call("retry", n, keys=keys) as call:
                call.got = await rush.retry_tasks(keys)
        elif what == "cancel" and self.order.kind in ("queue", "unique"):
            keys = chance.sample(self.known, min(len(self.known), 2)) + chance.sample(list(self.held), min(len(self.held), 1))
            async with self.calls.call("cancel", n, keys=keys) as call:
                call.got = await rush.cancel_tasks(keys)
        elif what == "new":
            async with self.calls.call("new", n, reader=reader) as call:
                frame = await rush.fetch_new_tasks()
                call.got = frame["keys"].to_list() if "keys" in frame.columns else []

    # workers

    async def _work(self, name: str) -> None:
        """Runs one worker after the other, until the work is over."""
        while not self.is_over:
            worker_id = f"{name}-{self.calls.next_number()}"
            life = asyncio.create_task(self._live(worker_id))
            self.lives.add(life)
            try:
                await asyncio.wait([life])  # which does not raise where it was cancelled
            finally:
                life.cancel()
                await asyncio.wait([life])
                self.lives.discard(life)
                self.held = {key: worker for key, worker in self.held.items() if worker != worker_id}
            if not life.cancelled():
                life.result()

    async def _live(self, worker_id: str) -> None:
        """The life of a worker, which errors of the connection end, too."""
        try:
            async with RushWorker(self.order.network_id, self.config, worker_id=worker_id) as rush:
                match self.order.kind:
                    case "budget":
                        await self._work_in_budget(rush)
                    case "proposals":
                        await self._work_on_proposals(rush)
                    case _:
                        await self._serve(rush)
        except WorkerLostError:
            pass
        except (RushConnectionError, ServerFullError):
            await asyncio.sleep(_SHORT)

    async def _cancel_workers(self) -> None:
        """Cancels a worker at a random moment, now and then."""
        while not self.is_over:
            await asyncio.sleep(self.chance.uniform(0, _PAUSE))
            if self.lives and self.order.cancelled:
                self.chance.choice(list(self.lives)).cancel()
                self.n_workers_cancelled += 1

    async def _serve(self, rush: RushWorker) -> None:
        """Works on queued tasks, and starts some."""
        chance = self.chance
        may_start = self.order.kind in ("queue", "stop", "unique")
        while not self.is_over:
            if rush.terminated:
                await asyncio.sleep(_SHORT)
                continue
            if may_start and (self.order.kind == "stop" or self.left > 0) and chance.random() < 0.5:
                keys = await self._start(rush)
            else:
                keys = [key for _ in range(chance.randint(1, 3)) if (key := await self._pop(rush)) is not None]
                if not keys:
                    await asyncio.sleep(_SHORT)
            await self._work_on(rush, keys)

    async def _start(self, rush: RushWorker) -> list[str]:
        n, chance = self.calls.next_number(), self.chance
        tokens = self.calls.tokens(n, chance.randint(1, 6))
        if self.order.kind == "unique":
            points = [chance.randrange(self.order.points) for _ in tokens]
            async with self.calls.call("push", n, to="running", worker=rush.worker_id, tokens=tokens, points=points) as call:
                xss, extra = [{"p": point} for point in points], [{"x": token} for token in tokens]
                call.got = await rush.push_running_tasks(xss, xss_extra=extra, unique=True)
        else:
            async with self.calls.call("push", n, to="running", worker=rush.worker_id, tokens=tokens) as call:
                call.got = await rush.push_running_tasks([{"x": token} for token in tokens])
        self.left -= len(tokens) if call.is_answered else 0
        keys = [key for key in call.got or () if key is not None] if call.is_answered else []
        self.held |= dict.fromkeys(keys, rush.worker_id)
        return keys

    async def _pop(self, rush: RushWorker) -> str | None:
        wanted = self.chance.choice(self.known) if self.known and self.chance.random() < 0.1 else None
        async with self.calls.call("pop", worker=rush.worker_id, wanted=wanted) as call:
            task = await rush.pop_task(0.05, key=wanted)
            call.got = _given(task)
        return self._took(rush, call)

    def _took(self, rush: RushWorker, call: Recorded) -> str | None:
        if not call.is_answered or call.got is None:
            return None
        key = call.got[0]
        self.held[key] = rush.worker_id
        return key

    async def _work_on(self, rush: RushWorker, keys: Sequence[str]) -> None:
        """Reports on tasks that the worker holds, gives them attributes, and ends them."""
        chance, worker = self.chance, rush.worker_id
        for key in keys:
            if chance.random() < 0.2:
                n = self.calls.next_number()
                async with self.calls.call("report", n, worker=worker, key=key, value=f"{self.order.process}.{n}"):
                    await rush.report_tasks(key, [{"v": f"{self.order.process}.{n}"}])
            if chance.random() < 0.1:
                n = self.calls.next_number()
                async with self.calls.call("task attrs", n, worker=worker, key=key, value=n):
                    await rush.set_task_attrs(key, {"a": n})
        if chance.random() < 0.05 and self.held:  # ends a task that another worker holds
            await self._end(rush, [chance.choice(list(self.held))], "finish")
        if chance.random() < 0.03 and keys:
            await self._end(rush, [*keys, keys[0]], "finish")
        elif keys and chance.random() < 0.15:
            await self._end(rush, keys, "fail")
        elif keys:
            await self._end(rush, keys, "finish")

    async def _end(self, rush: RushWorker, keys: Sequence[str], kind: str) -> None:
        n = self.calls.next_number()
        marks = self.calls.tokens(n, len(keys))
        async with self.calls.call(kind, n, worker=rush.worker_id, keys=list(keys), marks=marks) as call:
            if kind == "finish":
                call.got = await rush.finish_tasks(keys, [{"y": self.chance.random(), "by": mark} for mark in marks])
            else:
                call.got = await rush.fail_tasks(keys, marks)
        if call.is_answered and kind == "fail":
            self.failed += call.got
        for key in keys:
            if self.held.get(key) == rush.worker_id:
                del self.held[key]

    async def _work_in_budget(self, rush: RushWorker) -> None:
        """Opens blocks until the budget is spent."""
        chance = self.chance
        while not self.is_over:
            n = self.calls.next_number()
            (token,) = self.calls.tokens(n, 1)
            block = rush.task({"x": token}, budget=self.order.limit)
            task: Task | None = None
            async with self.calls.call("start", n, worker=rush.worker_id, tokens=[token]) as call:
                task = await block.__aenter__()
                call.got = _given(task)
            if call.is_answered and task is None:
                self.is_over = True
            if not call.is_answered or task is None:
                continue
            n = self.calls.next_number()
            (mark,) = self.calls.tokens(n, 1)
            if chance.random() < 0.15:
                async with self.calls.call("fail", n, worker=rush.worker_id, keys=[task.key], marks=[mark]) as call:
                    await block.__aexit__(RuntimeError, RuntimeError(mark), None)
                    call.got = [task.key] if task.state == "failed" else []
            else:
                async with self.calls.call("finish", n, worker=rush.worker_id, keys=[task.key], marks=[mark]) as call:
                    task.ys = {"y": chance.random(), "by": mark}
                    await block.__aexit__(None, None, None)
                    call.got = [task.key] if task.state == "finished" else []

    async def _work_on_proposals(self, rush: RushWorker) -> None:
        """Works on proposals until the budget is spent."""
        chance = self.chance
        n_proposed = 0

        async def propose(draw: Draw) -> tuple[dict[str, Any], dict[str, Any]]:
            nonlocal n_proposed
            n_proposed += 1
            if chance.random() < 0.1:
                await asyncio.sleep(chance.uniform(0, _MOST_CANCELLED))
            return {"p": draw.random().randrange(3 * self.order.points)}, {"x": f"{rush.worker_id}:{n_proposed}"}

        while not self.is_over:
            proposals = rush.proposals(propose, budget=self.order.limit, unique=True)
            while True:
                task: Task | None = None
                async with self.calls.call("start", worker=rush.worker_id) as call:
                    task = await anext(proposals, None)
                    call.got = _given(task)
                if call.is_answered and task is None:
                    self.is_over = True
                if not call.is_answered or task is None:
                    break
                self._took(rush, call)
                await self._work_on(rush, [task.key])


def _given(task: Task | None) -> list[Any] | None:
    """What a history keeps of a task that a worker was given."""
    return None if task is None else [task.key, task.attempt, task.index, token_of(task)]


def token_of(task: Task) -> str | None:
    """The value that the call that pushed a task has put into it."""
    return task.xs.get("x") or (task.xs_extra or {}).get("x")


class Cancelled(NamedTuple):
    """How many calls and workers were cancelled at a random moment."""

    calls: int
    workers: int


class _RefusedReports(logging.Handler):
    """Records the warnings of the library about reports that the network did not take: their calls return before."""

    def __init__(self, history: History) -> None:
        super().__init__(logging.WARNING)
        self._history = history

    def emit(self, record: logging.LogRecord) -> None:
        """Records a warning."""
        if str(record.msg).startswith("a report on task") and isinstance(record.args, tuple):
            n = self._history.next_number()
            self._history.begin(n, "report refused", {"key": record.args[0]})
            self._history.end(n, "ok", None, record.getMessage())


async def work(order: Order) -> Cancelled:
    """Works on an order. Returns what it has cancelled."""
    history = _with_descriptors(lambda: History(Path(order.history), order.process))
    warnings = _RefusedReports(history)
    logger = logging.getLogger("rush_async.worker.membership")
    logger.addHandler(warnings)
    try:
        process = Process(order, history)
        await process.run()
        return Cancelled(process.calls.n_cancelled, process.n_workers_cancelled)
    finally:
        logger.removeHandler(warnings)
        history.close()


def silence_log() -> None:
    """Keeps the log of the library from the terminal: the faults are intended."""
    logging.getLogger("rush_async").propagate = False
    logging.getLogger("rush_async").addHandler(logging.NullHandler())
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)


def pack_order(order: Order) -> bytes:
    """Returns an order as a line for the program."""
    return json.dumps(asdict(order)).encode() + b"\n"


def main() -> None:
    """Works on the orders of standard input."""
    silence_log()
    with ExitStack() as stack:
        for name in sys.argv[1:]:
            from benchmarks.faults.mutants import mutant_of, mutated  # which import this module

            stack.enter_context(mutated(mutant_of(name)))
        _work_on_input()


def _work_on_input() -> None:
    # What is imported for the first wait and the first frame opens files, which an order may have no descriptors for.
    asyncio.run(anyio.lowlevel.checkpoint())
    importlib.import_module("rush_async.frames.finished")
    pl.concat([pl.LazyFrame({"a": [1]})] * 2).collect()
    print(json.dumps({"ready": True}), flush=True)
    with asyncio.Runner() as runner:  # one event loop for all orders, as in a program that runs for long
        for line in sys.stdin:
            cancelled = runner.run(work(Order(**json.loads(line))))
            gc.collect()
            memory = _with_descriptors(resident_memory)
            print(json.dumps({"memory": memory, "cancelled": cancelled}), flush=True)


def _with_descriptors(call: Callable[[], T]) -> T:
    """Calls what takes a file descriptor, until there is one left."""
    while True:
        try:
            return call()
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
        time.sleep(_SHORT)


if __name__ == "__main__":
    main()
