"""Rounds: clients work on a network while faults are injected; then everything is healed, drained and judged."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from benchmarks.faults.checker import Round, Violation, check, shrink
from benchmarks.faults.final import read_final_state
from benchmarks.faults.history import Call, History, read_history
from benchmarks.faults.injection import FAULTS, Injector
from benchmarks.faults.observer import Observer
from benchmarks.faults.server import BreakableServer
from benchmarks.faults.work import KINDS, Cancelled, Kind, Order, Recorder, config_of, pack_order, work
from benchmarks.measure import resident_memory
from rush_async import Failure, Rush, RushWorker
from rush_async.errors import RushError
from tests.proxy import Proxy

__all__ = ["Bench", "Plan", "Result", "longest_pause", "plan_of", "with_faults"]

_PATIENCE = 60.0  # seconds that clients may take to end their work once everything is healed
_MOST_SHRUNK = 10  # violations of a round whose history is shrunk
_MOST_FAULTS_SHOWN = 20  # of a shrunk history
_N_STOPS = 3  # by hand, in a round under a stop rule
_DRAIN = 30.0  # seconds in which nothing may be running any more


@dataclass(frozen=True)
class Plan:
    """One round.

    Attributes:
        kind: the kind of work.
        seed: decides what happens.
        n_tasks: about how many tasks it has.
        rate: how many faults a second, about.
        kinds: the faults to choose from, and how often each.
        n_workers: how many workers each process has.
        cancelled: the share of calls that are cancelled.
        patience: seconds that the clients may take once everything is healed.
    """

    kind: Kind
    seed: str
    n_tasks: int = 4_000
    rate: float = 4.0
    kinds: dict[str, int] = field(default_factory=lambda: FAULTS)
    n_workers: int = 6
    cancelled: float = 0.01
    patience: float = _PATIENCE


def plan_of(seed: int, at: int, **options: Any) -> Plan:
    """Returns the plan of a round of a soak."""
    return Plan(KINDS[at % len(KINDS)], f"{seed}:{at}", **options)


@dataclass
class Result:
    """What became of a round.

    Attributes:
        plan: the round.
        counts: its tasks by state.
        faults: by kind.
        fault_log: when each was injected, and its kind.
        n_calls: how many calls were recorded.
        n_cancelled: how many of them were cancelled.
        n_unknown: how many ended without an answer.
        pause: the longest time in which no call at all was answered, in seconds.
        violations: each with its shrunk history.
        seconds: how long it took.
    """

    plan: Plan
    counts: tuple[int, int, int, int] = (0, 0, 0, 0)
    faults: Counter[str] = field(default_factory=Counter[str])
    fault_log: list[tuple[float, str]] = field(default_factory=list[tuple[float, str]])
    n_calls: int = 0
    n_cancelled: int = 0
    n_unknown: int = 0
    pause: float = 0.0
    violations: list[tuple[Violation, list[str]]] = field(default_factory=list[tuple[Violation, list[str]]])
    seconds: float = 0.0

    @property
    def n_tasks(self) -> int:
        """How many tasks there were."""
        return sum(self.counts)


class _Child:
    """A process that works on orders.

    Attributes:
        is_mortal: whether it may be killed.
        memory: its resident memory after its last order, in bytes.
    """

    def __init__(self, mutant: str, *, is_mortal: bool) -> None:
        self.is_mortal = is_mortal
        self._mutant = mutant
        self.memory = 0
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Starts the process, and waits until it can take an order."""
        words = (sys.executable, "-m", "benchmarks.faults.work", *filter(None, (self._mutant,)))
        pipe = asyncio.subprocess.PIPE
        self.process = await asyncio.create_subprocess_exec(*words, stdin=pipe, stdout=pipe)
        await self._read()

    async def work(self, order: Order) -> Cancelled | None:
        """Works on an order. Returns what it has cancelled; None where the process was killed."""
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write(pack_order(order))
        answer = await self._read()
        if answer is None:
            status = await self.process.wait()
            if status != -signal.SIGKILL:
                raise RuntimeError(f"process {order.process} ended with {status}")
            return None
        self.memory = answer["memory"]
        return Cancelled(*answer["cancelled"])

    async def _read(self) -> Any:
        assert self.process is not None
        assert self.process.stdout is not None
        line = await self.process.stdout.readline()
        return json.loads(line) if line else None

    async def end(self) -> None:
        """Ends the process."""
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()


class Bench:
    """A server, a proxy in front of it, and processes that work on networks of that server.

    Args:
        directory: for sockets, data and histories; a short path.
        n_processes: how many processes work; 0 lets two groups of clients work in this one, which nothing can kill.
        mutant: the defect of the scripts of the processes.
        binary: the server, such as `redis-server`; by default the embedded one.
    """

    def __init__(self, directory: Path, *, n_processes: int = 3, mutant: str = "", binary: str = "") -> None:
        self._mutant = mutant
        self._directory = directory
        self._n_processes = n_processes
        self.server = BreakableServer(directory, binary)
        self._children: list[_Child] = []
        self._busy: set[_Child] = set()
        self._control: Rush | None = None
        self._n_histories = 0
        self._chance = random.Random()
        self._proxy: Proxy

    @classmethod
    @asynccontextmanager
    async def opened(
        cls, directory: Path, *, n_processes: int = 3, mutant: str = "", binary: str = ""
    ) -> AsyncGenerator[Bench]:
        """Starts all of it, and ends it after the block."""
        bench = cls(directory, n_processes=n_processes, mutant=mutant, binary=binary)
        try:
            await bench.server.start()
            async with Proxy(bench.server.url, directory, keeps_commands=False) as proxy:
                bench._proxy = proxy
                # The first one is never killed, so that its memory can be followed.
                bench._children = [_Child(bench._mutant, is_mortal=at > 0) for at in range(n_processes)]
                try:
                    await asyncio.gather(*(child.start() for child in bench._children))
                    yield bench
                finally:
                    await asyncio.gather(*(child.end() for child in bench._children))
        finally:
            bench.server.end()

    # what faults break

    def pids(self) -> Sequence[int]:
        """The processes that are at work."""
        return [child.process.pid for child in self._busy if child.process is not None and child.process.returncode is None]

    def mortal_pids(self) -> Sequence[int]:
        """Those of them that may be killed."""
        mortal = [child for child in self._busy if child.is_mortal]
        return [child.process.pid for child in mortal if child.process is not None and child.process.returncode is None]

    async def lose_a_worker(self, chance: random.Random) -> bool:
        """Declares a worker lost, as if its lease had expired."""
        control = self._control
        assert control is not None
        network = control._net  # pyright: ignore[reportPrivateUsage]
        alive = [entry.worker_id for entry in await network.workers.read() if entry.state == "running"]
        if not alive:
            return False
        failure = Failure("lost", None, "The fault bench has declared its worker lost")
        return bool(await network.workers.lose([chance.choice(alive)], "lost", failure))

    def memory(self) -> dict[str, int]:
        """The memory of the first process, of this one, and of the server, in bytes."""
        client = self._children[0].memory if self._children else resident_memory()
        return {"client": client, "proxy and checker": resident_memory(), "server": self.server.memory()}

    # a round

    async def round(self, plan: Plan) -> Result:
        """Runs a round, and judges it."""
        begun = time.monotonic()
        result = Result(plan)
        chance = self._chance = random.Random(plan.seed)
        network_id = f"round-{plan.seed}".replace(":", "-")
        seed = chance.randrange(2**31) if plan.kind == "proposals" else None
        files: list[Path] = []
        async with Observer(self.server.url, network_id) as observer:
            control = self._control = Rush(network_id, config_of(self.server.url), seed=seed)
            async with control:
                history = History(self._new_file(files, "control"), "control")
                try:
                    await self._prepare(control, plan, history)
                    violation = await self._work(plan, network_id, control, result, files)
                    if violation is None:
                        try:
                            violation = await self._drain(control, plan, history)
                        except RushError as error:
                            violation = Violation(f"after the last fault a client raised {error!r}")
                    await self._wait_for_last_event(control, observer)
                    finished = await control.fetch_finished_tasks()
                    self._record_read(history, finished["keys"].to_list() if len(finished) else [])
                finally:
                    history.close()
                final = read_final_state(self.server.raw, network_id)
                calls = [call for file in files for call in _read(file)]
                limit = plan.n_tasks
                known = Round(
                    plan.kind,
                    calls,
                    observer.messages,
                    final,
                    budget=limit if plan.kind in ("budget", "proposals") else None,
                    places=(limit // 3, limit) if plan.kind == "stop" else None,
                    finished=limit if plan.kind in ("budget", "proposals", "stop") else None,
                )
                violations = [] if violation is None else [violation]
                violations += check(known)
                await control.reset()
        if left := self.server.raw.keys("*"):
            violations.append(Violation(f"the reset left keys behind: {left[:5]}"))
            self.server.raw.flushall()
        await self.server.compact()
        self._sum_up(result, known)
        shrunk = [with_faults(shrink(each, known), result.fault_log) for each in violations[:_MOST_SHRUNK]]
        shrunk += [list[str]() for _ in violations[_MOST_SHRUNK:]]
        result.violations = list(zip(violations, shrunk, strict=True))
        for file in files:
            file.unlink(missing_ok=True)
        result.seconds = time.monotonic() - begun
        return result

    def _sum_up(self, result: Result, known: Round) -> None:
        result.counts = known.final.counts
        result.n_calls = len(known.calls)
        result.n_unknown = sum(call.outcome == "unknown" for call in known.calls)
        result.pause = longest_pause(known.calls)

    async def _prepare(self, control: Rush, plan: Plan, history: History) -> None:
        limit = plan.n_tasks
        if plan.kind == "stop":
            await control.stop_when(finished=limit // 3)
        if plan.kind in ("budget", "proposals", "stop"):
            calls = Recorder(history, self._chance, 0)
            n = calls.next_number()
            tokens = calls.tokens(n, limit // 10)
            async with calls.call("push", n, to="queued", tokens=tokens, retries=1) as call:
                call.got = await control.push_tasks([{"x": token} for token in tokens], retries=1)

    async def _work(self, plan: Plan, network_id: str, control: Rush, result: Result, files: list[Path]) -> Violation | None:
        """Lets the processes work while faults are injected. Returns a violation where they did not come to an end."""
        injector = Injector(self._proxy, self.server, self, random.Random(f"{plan.seed} faults"), plan.rate, self._kinds(plan))
        orders = self._orders(plan, network_id, files)
        injecting = asyncio.create_task(injector.run())
        working: list[asyncio.Task[Cancelled | None]] = []
        working += [asyncio.create_task(self._work_on(order, at, files)) for at, order in enumerate(orders)]
        if plan.kind == "stop":
            working.append(asyncio.create_task(self._stop_and_resume(control, plan.n_tasks)))
        violation = None
        try:
            # Faults come for as long as there is work, at the most; what is healed then comes to an end.
            faulty = 2 * plan.patience
            _, pending = await asyncio.wait(working, timeout=faulty, return_when=asyncio.FIRST_EXCEPTION)
            injecting.cancel()
            await asyncio.wait([injecting])
            if pending:
                _, pending = await asyncio.wait(pending, timeout=plan.patience)
            if pending:
                counts = await control.counts()
                which = f"{len(pending)} clients did not end within {plan.patience:g} s"
                violation = Violation(f"{which} after the last fault: {counts}")
        finally:
            for task in (injecting, *working):
                task.cancel()
            await asyncio.wait([injecting, *working])
            await self._replace_unfinished()
        if not injecting.cancelled() and (error := injecting.exception()) is not None:
            raise error
        for task in working:
            if not task.cancelled() and (error := task.exception()) is not None:
                violation = Violation(f"the clients raised {_first(error)!r}")
            elif not task.cancelled() and (cancelled := task.result()) is not None:
                result.n_cancelled += cancelled.calls
                injector.counts["worker cancelled at a random moment"] += cancelled.workers
        result.faults, result.fault_log = +injector.counts, injector.log
        return violation

    def _kinds(self, plan: Plan) -> dict[str, int]:
        if self._children:
            return plan.kinds
        return {kind: weight for kind, weight in plan.kinds.items() if not kind.startswith("process")}

    def _orders(self, plan: Plan, network_id: str, files: list[Path]) -> list[Order]:
        n = self._n_processes or 2
        return [
            Order(
                plan.kind,
                network_id,
                self._proxy.url,
                f"p{at}",
                str(self._new_file(files, f"p{at}")),
                self._chance.randrange(2**31),
                n_workers=plan.n_workers,
                quota=2 * plan.n_tasks // n,  # it takes less time than as many with a limit
                limit=plan.n_tasks,
                points=plan.n_tasks,
                cancelled=plan.cancelled,
            )
            for at in range(n)
        ]

    async def _work_on(self, order: Order, at: int, files: list[Path]) -> Cancelled:
        """Has a process work on an order, and another one continue where it is killed. Returns what was cancelled."""
        if not self._children:
            return await work(order)
        n_killed = 0
        while True:
            child = self._children[at]
            self._busy.add(child)
            try:
                cancelled = await child.work(order)
            finally:
                self._busy.discard(child)
            if cancelled is not None:
                return cancelled
            n_killed += 1
            child = self._children[at] = _Child(self._mutant, is_mortal=True)
            await child.start()
            name = f"p{at}k{n_killed}"
            order = replace(
                order,
                process=name,
                history=str(self._new_file(files, name)),
                quota=order.quota // 2,
                seed=order.seed + 1,
            )

    async def _replace_unfinished(self) -> None:
        """Ends the processes whose order did not come to an end, and starts others in their place."""
        for at, child in enumerate(self._children):
            if child in self._busy or child.process is None or child.process.returncode is not None:
                await child.end()
                self._children[at] = _Child(self._mutant, is_mortal=at > 0)
                await self._children[at].start()
        self._busy.clear()

    async def _stop_and_resume(self, control: Rush, limit: int) -> None:
        """Waits for the stop by the rule and resumes; then stops by hand and resumes, a few times, until the last stop."""
        await self._until_stopped(control)
        await _persist(control.resume, finished=limit)
        for _ in range(_N_STOPS):
            await asyncio.sleep(self._chance.uniform(0, 0.3))
            self._proxy.freeze()  # so that starts are on their way when the network stops
            try:
                await asyncio.sleep(0.02)
                await _persist(control.stop, "by hand")
            finally:
                self._proxy.thaw()
            await asyncio.sleep(self._chance.uniform(0, 0.3))
            try:
                await _persist(control.resume, finished=limit)
            except ValueError:  # so many have finished already
                return
        await self._until_stopped(control)

    async def _until_stopped(self, control: Rush) -> None:
        while True:
            with suppress(RushError):
                await control.wait_until_stopped(need_workers=False)
                return

    async def _drain(self, control: Rush, plan: Plan, history: History) -> Violation | None:
        """Works on what is still queued, until nothing is. Returns a violation where tasks stay running."""
        calls = Recorder(history, self._chance, 0)
        deadline = time.monotonic() + min(_DRAIN, plan.patience)
        async with RushWorker(control.network_id, control.config) as rush:
            while True:
                counts = await rush.counts()
                if counts.running == 0 and (counts.queued == 0 or plan.kind == "stop"):
                    return None
                if time.monotonic() > deadline:
                    return Violation(f"{counts.queued} tasks are queued and {counts.running} running, and no worker runs them")
                async with calls.call("pop", worker=rush.worker_id) as call:
                    task = await rush.pop_task(0.1)
                    call.got = None if task is None else [task.key, task.attempt, task.index, ""]
                if task is not None:
                    n = calls.next_number()
                    marks = calls.tokens(n, 1)
                    async with calls.call("finish", n, worker=rush.worker_id, keys=[task.key], marks=marks) as call:
                        call.got = await rush.finish_tasks(task.key, [{"y": 0.0, "by": marks[0]}])

    async def _wait_for_last_event(self, control: Rush, observer: Observer) -> None:
        """Waits until the observer has what has happened."""
        network = control._net  # pyright: ignore[reportPrivateUsage]
        deadline = time.monotonic() + 2.0
        seq = (await network.tasks.read_position()).seq
        while observer.seq < seq and time.monotonic() < deadline:  # noqa: ASYNC110 - the observer may have missed it
            await asyncio.sleep(0.01)

    def _record_read(self, history: History, keys: list[str]) -> None:
        n = history.next_number()
        history.begin(n, "new", {"reader": "control"})
        history.end(n, "ok", keys)

    def _new_file(self, files: list[Path], process: str) -> Path:
        self._n_histories += 1
        files.append(self._directory / f"{self._n_histories}.{process}.jsonl")
        return files[-1]


async def _persist(call: Any, *args: Any, **options: Any) -> None:
    """Calls until the server takes it."""
    while True:
        try:
            await call(*args, **options)
            return
        except (RushError, OSError):
            await asyncio.sleep(0.05)


def _first(error: BaseException) -> BaseException:
    """The first error of a group of errors."""
    while isinstance(error, BaseExceptionGroup):
        error = cast("BaseException", error.exceptions[0])
    return error


def _read(file: Path) -> list[Call]:
    if not file.exists():  # its process was killed before
        return []
    with file.open(encoding="utf-8") as lines:
        return read_history(file.name.split(".")[1], lines)


def with_faults(lines: Sequence[str], log: Iterable[tuple[float, str]]) -> list[str]:
    """Returns a shrunk history with the faults that came about when its calls were made."""
    times = [float(line.split()[0]) for line in lines if line[:1].isdigit()]
    near = [f"{at:.4f} fault: {kind}" for at, kind in log if times and min(times) - 0.5 <= at <= max(times) + 0.1]
    return [*lines, *near[:_MOST_FAULTS_SHOWN]]


def longest_pause(calls: Iterable[Call]) -> float:
    """The longest time in which no call was answered, from the first to the last."""
    ends = sorted(call.until for call in calls if call.until is not None and call.outcome == "ok")
    return max((after - before for before, after in itertools.pairwise(ends)), default=0.0)
