"""Callers are cancelled at any point of any call: every other caller gets its own reply, and nothing is left behind.

`RUSH_CHAOS_EXAMPLES=1000 python -m pytest -m '' tests/chaos/test_cancellation.py` tries more.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from rush_async import Draw, NetworkStateError, Rush, RushConfig, RushWorker, TasksFinished
from rush_async.store.keys import NetworkKeys
from rush_async.store.report_entry import Report
from rush_async.testing import wait_until
from rush_async.worker.worker import membership_of

T = TypeVar("T")

TIMEOUT = 15.0
BUDGET = 6
# The effect of a cancellation also depends on timing, so a shrunk example often does not fail.
SETTINGS = settings(
    max_examples=int(os.environ.get("RUSH_CHAOS_EXAMPLES", "30")),
    deadline=None,
    database=None,
    print_blob=True,
    phases=(Phase.explicit, Phase.generate),
)
TICKS = st.integers(0, 40)

CallName = Literal[
    "push",
    "push_many",
    "push_running",
    "push_unique",
    "push_finished",
    "push_failed",
    "pop",
    "pop_waiting",
    "pop_named",
    "propose",
    "finish",
    "fail",
    "report",
    "block",
    "block_with_error",
    "block_without_ys",
    "fetch",
    "fetch_tasks",
    "wait_for_tasks",
    "wait_until",
    "events",
    "retry",
    "empty",
    "counts",
    "set_attrs",
    "attrs",
    "set_task_attrs",
    "task_attrs",
    "claim",
    "rank",
    "best",
    "stop_when",
    "resume",
    "wait_until_stopped",
    "open_manager",
    "open_worker",
    "open_elsewhere",
]
CALLS: tuple[CallName, ...] = CallName.__args__


@dataclass(frozen=True)
class Attempt:
    """A call, and after how many ticks of the event loop it is cancelled, once or twice."""

    call: CallName
    worker: int
    ticks: int
    more_ticks: int | None


ATTEMPTS = st.builds(Attempt, st.sampled_from(CALLS), st.integers(0, 2), TICKS, st.none() | st.integers(0, 5))
BATCHES = st.lists(st.lists(ATTEMPTS, min_size=1, max_size=6), min_size=1, max_size=8)


async def ticks(n: int) -> None:
    for _ in range(n):
        await asyncio.sleep(0)


async def cancelled(call: Coroutine[Any, Any, T], after: int, again_after: int | None = None) -> T | None:
    """Returns the result of a call that is cancelled after so many ticks; None if the cancellation was in time."""
    task = asyncio.ensure_future(call)
    await ticks(after)
    task.cancel()
    if again_after is not None:
        await ticks(again_after)
        task.cancel()
    await asyncio.wait([task])
    return None if task.cancelled() else task.result()


class Crowd:
    """Workers of one connection whose calls are cancelled, and one worker beside them that checks its own replies."""

    def __init__(self, config: RushConfig, raw: Any) -> None:
        self.config = config
        self.raw = raw
        self.serial = itertools.count()
        self.workers: list[RushWorker] = []
        self.held: list[dict[str, None]] = [{}, {}, {}]
        self.known: dict[str, dict[str, Any]] = {}
        self.reported: set[int] = set()  # by calls that were not cancelled
        self.stack = AsyncExitStack()

    async def open(self) -> None:
        self.rush = await self.stack.enter_async_context(Rush(config=self.config))
        self.keys = NetworkKeys.of(self.rush.network_id)
        for _ in range(4):
            self.workers.append(await self.stack.enter_async_context(RushWorker(self.rush.network_id, self.config)))
        self.steady = self.workers.pop()
        await self.rush.wait_until(lambda counts: True)
        self.n_connections = self.connections()
        self.tasks = asyncio.all_tasks()

    def connections(self) -> int:
        return len(self.raw.client_list())

    def xs(self) -> dict[str, Any]:
        return {"x": next(self.serial)}

    def created(self, keys: list[str], xss: list[dict[str, Any]]) -> None:
        assert len(keys) == len(xss)
        self.known |= dict(zip(keys, xss, strict=True))

    # the calls

    async def make(self, name: CallName, who: int) -> None:
        worker, held = self.workers[who], self.held[who]
        xss = [self.xs() for _ in range(1500 if name == "push_many" else 2)]
        key = next(iter(held), "unknown")
        match name:
            case "push" | "push_many":
                self.created(await worker.push_tasks(xss), xss)
            case "push_running":
                keys = await worker.push_running_tasks(xss)
                held |= dict.fromkeys(keys)
                self.created(keys, xss)
            case "push_unique":
                xss[0] = {"x": -1 - who}
                entries = await worker.push_running_tasks(xss, unique=True)
                held |= dict.fromkeys(key for key in entries if key is not None)
                self.known |= {key: xs for key, xs in zip(entries, xss, strict=True) if key is not None}
            case "push_finished":
                self.created(await worker.push_finished_tasks(xss, xss), xss)
            case "push_failed":
                self.created(await worker.push_failed_tasks(xss), xss)
            case "pop" | "pop_waiting":
                task = await worker.pop_task(timeout=0 if name == "pop" else None)
                if task is not None:
                    held[task.key] = None
                    assert task.worker_id == worker.worker_id
                    assert self.known.get(task.key, task.xs) == task.xs
            case "pop_named":
                task = await worker.pop_task(key=next(reversed(self.known), "unknown"))
                if task is not None:
                    held[task.key] = None
            case "propose":
                task = await anext(worker.proposals(propose, queued=False))
                held[task.key] = None
                self.known[task.key] = task.xs
            case "finish":
                assert await worker.finish_tasks(key, [{"y": 1.0}]) in ([], [key])
                held.pop(key, None)
            case "fail":
                assert await worker.fail_tasks(key, "failed") in ([], [key])
                held.pop(key, None)
            case "report":
                step = next(self.serial)
                try:
                    await worker.report_tasks(key, [{"serial": step}])
                except NetworkStateError:
                    assert key not in membership_of(worker).held_keys()
                else:
                    self.reported.add(step)
            case "block" | "block_with_error" | "block_without_ys":
                await self.block(worker, name, xss[0], None)
            case "fetch":
                frame = await worker.fetch_finished_tasks()
                assert len(frame) == 0 or frame["keys"].is_unique().all()
            case "fetch_tasks":
                frame = await worker.fetch_tasks()
                assert len(frame) == 0 or frame["keys"].is_unique().all()
            case "wait_for_tasks":
                done = list(self.known)[-1:]
                tasks = await worker.wait_for_tasks(done)
                assert [task.key for task in tasks] == done
            case "wait_until":
                await worker.wait_until(lambda counts: counts.failed > 1_000_000)
            case "events":
                async with worker.events(TasksFinished, results=True) as events:
                    await anext(events)
            case "retry":
                await worker.retry_tasks(list(self.known)[-3:])
            case "empty":
                await worker.empty_queue()
            case "counts":
                assert (await worker.counts()).total >= 0
            case "set_attrs":
                await worker.set_attrs({"a": 1, f"of {who}": next(self.serial)})
            case "attrs":
                assert (await worker.attrs()).get("a", 1) == 1
            case "set_task_attrs":
                with suppress(NetworkStateError):  # the task may have ended
                    await worker.set_task_attrs(key, {"a": 1, f"of {who}": next(self.serial)})
            case "task_attrs":
                (attrs,) = await worker.task_attrs(key)
                assert attrs.get("a", 1) == 1
            case "claim":
                winner = await worker.claim("who", worker.worker_id)
                assert winner == await self.steady.claim("who", "late")
            case "rank":
                rank, n = await worker.ranking("rung").add(str(next(self.serial)), 1.0)
                assert 0 <= rank < n
            case "best":
                best = await worker.ranking("rung").best(5)
                assert best == sorted(best)
            case "stop_when":  # never true here
                assert await worker.stop_when(finished=2**40, failed=2**40, patience=("y", 2**40)) is None
            case "resume":
                await worker.resume(seconds=10_000)
            case "wait_until_stopped":
                await worker.wait_until_stopped()
            case "open_manager":
                async with Rush(self.rush.network_id, self.config) as other:
                    await other.counts()
            case "open_worker":
                async with RushWorker(self.rush.network_id, self.config) as other:
                    await other.push_running_tasks(xss)
            case "open_elsewhere":
                async with RushWorker(self.rush.network_id, replace(self.config, retry_deadline=20.0)) as other:
                    await other.push_running_tasks(xss)

    async def block(self, worker: RushWorker, name: CallName, xs: dict[str, Any], budget: int | None) -> bool:
        """Runs one block. Returns whether there was a task for it."""
        try:
            async with worker.task(xs, budget=budget) as task:
                if task is None:
                    return False
                assert task.worker_id == worker.worker_id
                await ticks(3)
                await task.report({"serial": next(self.serial)})
                if name == "block_with_error":
                    raise KeyError("the evaluation failed")
                if name == "block":
                    task.ys = {"y": 1.0}
        except (KeyError, ValueError):
            pass
        return True

    async def check_own_replies(self, done: asyncio.Event) -> None:
        """Makes calls that are never cancelled and checks that each gets its own reply."""
        while not done.is_set():
            xss = [self.xs() for _ in range(2)]
            keys = await self.steady.push_running_tasks(xss)
            tasks = await self.steady.get_tasks(keys)
            assert [(task.xs, task.state, task.worker_id) for task in tasks if task] == [
                (xs, "running", self.steady.worker_id) for xs in xss
            ]
            assert await self.steady.finish_tasks(keys[0], [{"y": xss[0]["x"]}]) == keys[:1]
            assert await self.steady.fail_tasks(keys, str(xss[1]["x"])) == keys[1:]
            finished, failed = await self.steady.get_tasks(keys)
            assert finished is not None
            assert failed is not None
            assert finished.ys == {"y": xss[0]["x"]}
            assert failed.failure is not None
            assert failed.failure.message == str(xss[1]["x"])

    # what must hold once all calls have ended

    async def check_nothing_is_left(self) -> None:
        """Every running task has a holder, and the cancelled callers have left nothing behind."""
        await self.rush._net.tasks.calls.quiet()  # pyright: ignore[reportPrivateUsage]
        held = {key.encode() for keys in self.held for key in keys}
        await wait_until(lambda: set(self.raw.hkeys(self.keys.running)) <= held)
        keys = list(self.known)
        tasks = await self.rush.get_tasks(keys)
        assert [task and task.xs for task in tasks] == [self.known[key] for key in keys]
        reports = [Report.of(fields[b"r"]).values for _, fields in self.raw.xrange(self.keys.reports)]
        serials = [values["serial"] for values in reports if values]
        assert len(set(serials)) == len(serials)
        assert self.reported <= set(serials)
        alive = sorted(worker.worker_id.encode() for worker in [self.steady, *self.workers])
        await wait_until(lambda: sorted(self.raw.hkeys(self.keys.alive)) == alive)
        await wait_until(lambda: self.connections() == self.n_connections)
        await wait_until(lambda: asyncio.all_tasks() == self.tasks)
        for worker, own in zip(self.workers, self.held, strict=True):
            await worker.fail_tasks(list(own), "at the end")
        assert (await self.rush.counts()).running == 0

    async def close(self) -> None:
        await self.stack.aclose()
        async with Rush(self.rush.network_id, self.config) as rush:
            await rush.reset()


def run(config: RushConfig, raw: Any, story: Callable[[Crowd], Awaitable[None]]) -> None:
    async def main() -> None:
        crowd = Crowd(config, raw)
        async with asyncio.timeout(TIMEOUT):
            await crowd.open()
            try:
                await story(crowd)
            finally:
                await crowd.close()

    with asyncio.Runner() as runner:
        runner.run(main())


@SETTINGS
@given(batches=BATCHES)
def test_cancelled_callers_leave_nothing_behind_and_others_get_their_own_replies(
    rush_server: RushConfig, raw: Any, batches: list[list[Attempt]]
) -> None:
    async def story(crowd: Crowd) -> None:
        done = asyncio.Event()
        steady = asyncio.create_task(crowd.check_own_replies(done))
        for batch in batches:
            calls = [cancelled(crowd.make(each.call, each.worker), each.ticks, each.more_ticks) for each in batch]
            results = await asyncio.gather(*calls, return_exceptions=True)
            errors = [error for error in results if isinstance(error, BaseException)]
            # A wait for queued tasks that no worker runs, or for no task at all, is not tested here.
            assert not errors, errors
        done.set()
        await steady
        await crowd.check_nothing_is_left()

    run(rush_server, raw, story)


async def propose(draw: Draw) -> dict[str, Any]:
    await asyncio.sleep(0)
    return {"x": draw.seed}


@pytest.mark.parametrize("how", ["push", "push_many", "pop", "block", "budget block", "proposal", "seeded", "seeded budget"])
async def test_starts_cancelled_at_any_moment_give_their_places_within_the_rules_back(rush: Rush, how: str, raw: Any) -> None:
    """On a full network they wait; a place that becomes free while one is cancelled goes to another."""

    async def start(worker: RushWorker) -> Any:
        match how:
            case "push" | "push_many":
                return await worker.push_running_tasks([{"x": 1}] * (1 if how == "push" else 3))
            case "pop":
                task = await worker.pop_task(timeout=None)
                return [] if task is None else [task.key]
            case "proposal" | "seeded" | "seeded budget":
                limit = 1_000 if how == "seeded budget" else None
                return [(await anext(worker.proposals(propose, queued=False, budget=limit))).key]
            case _:
                task: Any = await worker.task({"x": 1}, budget=None if how == "block" else 1_000).__aenter__()
                return [task.key]

    seed = 42 if how.startswith("seeded") else None
    async with (
        RushWorker(rush.network_id, rush.config) as holder,
        RushWorker(rush.network_id, rush.config, seed=seed) as worker,
    ):
        await rush.push_tasks([{"x": 0}] * 200)
        await rush.stop_when(finished=2)
        held = await holder.push_running_tasks([{"x": 1}] * 2)
        for after in range(25):
            starting = asyncio.ensure_future(start(worker))
            await ticks(after % 5)
            failing = asyncio.ensure_future(holder.fail_tasks(held.pop()))
            await ticks(after)
            starting.cancel()
            await asyncio.wait([starting, failing])
            if not starting.cancelled():
                await worker.fail_tasks(starting.result())
            await rush._net.tasks.calls.quiet()  # pyright: ignore[reportPrivateUsage]
            held += await asyncio.wait_for(holder.push_running_tasks([{"x": 1}]), TIMEOUT)
            assert (await rush.counts()).running == 2
        await holder.fail_tasks(held)
        keys = NetworkKeys.of(rush.network_id)
        assert not raw.hlen(keys.reserved)
        assert raw.hget(keys.meta, "reserved") in (None, b"0")
        indices = (await rush.fetch_tasks(times=True))["index"].to_list() + [int(at) for at in raw.zrange(keys.returned, 0, -1)]
        assert sorted(indices) == list(range(int(raw.hget(keys.meta, "next_index"))))


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_a_call_cancelled_at_any_of_its_first_ticks_leaves_nothing_behind(
    rush_server: RushConfig, raw: Any, name: CallName, twice: bool
) -> None:
    """Each call alone, cancelled once or twice."""

    async def story(crowd: Crowd) -> None:
        for after in range(12 if name != "push_many" else 6):
            await crowd.make("push_running", 0)
            await crowd.make("push", 0)
            await cancelled(crowd.make(name, 0), after, 0 if twice else None)
        await crowd.check_nothing_is_left()

    run(rush_server, raw, story)


@SETTINGS
@given(
    attempts=st.lists(
        st.tuples(st.sampled_from(["block", "block_with_error", "block_without_ys"]), st.integers(0, 2), TICKS),
        min_size=1,
        max_size=40,
    )
)
def test_a_cancelled_block_gives_its_place_in_the_budget_back(
    rush_server: RushConfig, raw: Any, attempts: list[tuple[CallName, int, int]]
) -> None:
    async def story(crowd: Crowd) -> None:
        calls = [cancelled(crowd.block(crowd.workers[who], name, crowd.xs(), BUDGET), after) for name, who, after in attempts]
        await asyncio.gather(*calls)
        await crowd.check_nothing_is_left()
        assert (await crowd.rush.counts()).finished <= BUDGET

        async def use_up(worker: RushWorker) -> None:
            while await crowd.block(worker, "block", crowd.xs(), BUDGET):
                pass

        await asyncio.gather(*[use_up(worker) for worker in crowd.workers for _ in range(5)])
        counts = await crowd.rush.counts()
        assert (counts.queued, counts.running, counts.finished) == (0, 0, BUDGET)

    run(rush_server, raw, story)


@SETTINGS
@given(after=TICKS, again_after=st.none() | st.integers(0, 10), elsewhere=st.booleans())
@example(after=1, again_after=None, elsewhere=True)
@example(after=1, again_after=1, elsewhere=True)
def test_a_worker_whose_close_is_cancelled_deregisters_and_its_tasks_fail(
    rush_server: RushConfig, raw: Any, after: int, again_after: int | None, elsewhere: bool
) -> None:
    async def story(crowd: Crowd) -> None:
        config = replace(crowd.config, retry_deadline=20.0) if elsewhere else crowd.config
        worker = await RushWorker(crowd.rush.network_id, config)
        await worker.push_running_tasks([crowd.xs(), crowd.xs()])
        await worker.push_tasks([crowd.xs()])
        assert await worker.pop_task(timeout=0) is not None
        await cancelled(worker.aclose(), after, again_after)
        await worker.aclose()
        await crowd.check_nothing_is_left()
        assert (await crowd.rush.counts()).failed == 3

    run(rush_server, raw, story)


@pytest.mark.parametrize("after", range(8))
async def test_a_push_cancelled_while_its_client_closes_queues_all_tasks_or_none(
    rush: Rush, rush_server: RushConfig, after: int
) -> None:
    async def main() -> None:
        async with Rush(rush.network_id, replace(rush_server, retry_deadline=20.0)) as other:
            await other.push_tasks([{"x": x} for x in range(3)])

    await cancelled(main(), after + 20)
    assert (await rush.counts()).queued in (0, 3)


async def test_empty_queue_removes_the_tasks_behind_stale_entries_of_a_cancelled_push(rush: Rush) -> None:
    """A cancelled push leaves stale entries at the head of the queue."""
    kept = [await cancelled(rush.push_tasks([{"x": 1}, {"x": 2}]), after) for after in range(8)]
    assert None in kept
    await rush._net.tasks.calls.quiet()  # pyright: ignore[reportPrivateUsage]
    keys = [key for keys in kept for key in keys or []] + await rush.push_tasks([{"x": 3}])
    assert await rush.empty_queue() == keys
    kept = [await cancelled(rush.push_tasks([{"x": 1}] * 1500), after) for after in range(4)]
    assert None in kept
    keys = [key for keys in kept for key in keys or []] + await rush.push_tasks([{"x": 3}])
    await rush._net.tasks.calls.quiet()  # pyright: ignore[reportPrivateUsage]
    assert await rush.empty_queue() == keys


@pytest.mark.parametrize("after", range(12))
async def test_cancelling_one_of_two_clients_that_open_a_connection_leaves_the_other_working(
    rush_server: RushConfig, raw: Any, after: int
) -> None:
    config = replace(rush_server, retry_deadline=19.0)
    n, tasks = len(raw.client_list()), asyncio.all_tasks()

    async def use(network_id: str) -> int:
        async with Rush(network_id, config) as rush:
            return (await rush.counts()).total

    first = asyncio.ensure_future(use("one"))
    second = asyncio.ensure_future(use("two"))
    await ticks(after)
    first.cancel()
    assert await second == 0
    await asyncio.wait([first])
    await wait_until(lambda: len(raw.client_list()) == n)
    assert asyncio.all_tasks() == tasks


async def test_concurrent_closes_of_a_worker_fail_its_tasks_once(rush: Rush, raw: Any) -> None:
    worker = await RushWorker(rush.network_id, rush.config)
    await worker.push_running_tasks([{"x": 1}])
    await asyncio.gather(worker.aclose(), worker.aclose(), worker.aclose())
    assert await rush.counts() == (0, 0, 0, 1)
    assert raw.hlen(NetworkKeys.of(rush.network_id).alive) == 0
    await rush.push_tasks([{"x": 1}])  # the connection that they shared is still there
