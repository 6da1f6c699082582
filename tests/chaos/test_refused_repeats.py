"""A call that was executed, its reply lost and its repetition refused by the server, is not taken for "nothing was done"."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from rush_async import Failure, Rush, RushConnectionError, RushError, RushWorker, ServerFullError, Task
from rush_async.store.decoding import decode_task
from rush_async.store.keys import NetworkKeys
from rush_async.store.leases import LOSE
from rush_async.store.records import RecordEncoder
from rush_async.store.report_entry import Report
from rush_async.store.reports import REPORT
from rush_async.store.reservations import RESERVE, START, Reserved
from rush_async.store.scripts import RECALL, Script
from rush_async.store.shared_state import CLAIM, RANK, SET_ATTRS, SET_TASK_ATTRS
from rush_async.store.stop_rules import STOP_NETWORK, STOP_WHEN
from rush_async.store.tasks import CANCEL, FINISH, POP, POP_NAMED, PUSH, RESET, RETRY
from rush_async.store.workers import DEREGISTER, REGISTER
from rush_async.testing import wait_until
from tests.chaos.servers import Refusal, SmallServer, small_server
from tests.proxy import Command, Proxy, named

__all__ = ["small_server"]

TIMEOUT = 10.0
REFUSED_FOR = 0.3  # seconds that the server refuses a repetition, unless the call ends before


@dataclass
class Stage:
    """A network whose clients all pass the proxy and share one connection, so that their calls of one tick are merged."""

    server: SmallServer
    proxy: Proxy
    rush: Rush
    workers: tuple[RushWorker, RushWorker]
    keys: NetworkKeys

    @property
    def names_alive(self) -> set[str]:
        return {name.decode() for name in self.server.raw.hkeys(self.keys.alive)}

    def states(self) -> dict[str, list[str]]:
        """The states in which each key is held; more than one where a task exists more than once."""
        raw, states = self.server.raw, dict[str, list[str]]()
        for state, name in (("queued", self.keys.queued), ("running", self.keys.running), ("failed", self.keys.failed)):
            for key in raw.hkeys(name):
                states.setdefault(key.decode(), []).append(state)
        for record in raw.lrange(self.keys.finished, 0, -1):
            states.setdefault(decode_task("finished", record).key, []).append("finished")
        return states


Act: TypeAlias = Callable[[Stage, Any, int], Awaitable[Any]]
Check: TypeAlias = Callable[[Stage, Any, list[Any]], None]


@dataclass
class Case:
    """A call: its script, what prepares the network, how a caller makes it, and what is true once all callers have a result."""

    script: Script
    act: Act
    check: Check
    prepare: Callable[[Stage], Awaitable[Any]] | None = None
    n_callers: int = 2


def state_of(state: str) -> Check:
    """Every caller got one task, each a different one, which is in this state."""

    def check(stage: Stage, given: Any, results: list[Any]) -> None:
        states = stage.states()
        keys = [key for result in results for key in result]
        assert len(set(keys)) == len(keys) == len(results)
        assert [states[key] for key in keys] == [[state]] * len(keys)

    return check


async def push_queued(stage: Stage, _: Any, n: int) -> Any:
    return await stage.rush.push_tasks([{"x": n}])


async def push_running(stage: Stage, _: Any, n: int) -> Any:
    return await stage.workers[n].push_running_tasks([{"x": n}])


async def push_within_a_budget(stage: Stage, _: Any, n: int) -> Any:
    return await stage.workers[n].push_running_tasks([{"x": n}], budget=2)


async def push_unique(stage: Stage, _: Any, n: int) -> Any:
    return await stage.workers[n].push_running_tasks([{"x": "of both"}, {"x": n}], unique=True)


def each_point_runs_once(stage: Stage, _: Any, results: list[list[str | None]]) -> None:
    assert [[key is None for key in keys] for keys in results] == [[False, False], [True, False]][: len(results)]
    assert stage.states() == {key: ["running"] for keys in results for key in keys if key is not None}


async def push_finished(stage: Stage, _: Any, n: int) -> Any:
    return await stage.rush.push_finished_tasks([{"x": n}], [{"y": n}])


async def push_failed(stage: Stage, _: Any, n: int) -> Any:
    return await stage.rush.push_failed_tasks([{"x": n}], "bad")


async def pop(stage: Stage, _: Any, n: int) -> Any:
    task = await stage.workers[n].pop_task(timeout=0)
    assert task is not None
    return [task.key]


async def pop_named(stage: Stage, keys: list[str], n: int) -> Any:
    task = await stage.workers[n].pop_task(key=keys[1 + n])
    assert task is not None
    return [task.key]


async def three_queued(stage: Stage) -> list[str]:
    return await stage.rush.push_tasks([{"x": x} for x in range(3)])


async def one_running_each(stage: Stage) -> list[list[str]]:
    return [await worker.push_running_tasks([{"x": 0}]) for worker in stage.workers]


async def three_failed(stage: Stage) -> list[str]:
    return await stage.rush.push_failed_tasks([{"x": x} for x in range(3)], "bad")


async def finish(stage: Stage, held: list[list[str]], n: int) -> Any:
    return await stage.workers[n].finish_tasks(held[n], [{"y": 0}])


async def fail(stage: Stage, held: list[list[str]], n: int) -> Any:
    return await stage.workers[n].fail_tasks(held[n], "bad")


async def report(stage: Stage, held: list[list[str]], n: int) -> Any:
    await stage.workers[n].report_tasks(held[n], [{"n": n}])
    await stage.rush._net.tasks.calls.quiet()  # pyright: ignore[reportPrivateUsage]
    return n


def each_is_stored_once(stage: Stage, held: list[list[str]], results: list[Any]) -> None:
    stream: list[Any] = stage.server.raw.xrange(stage.keys.reports)
    entries = [Report.of(fields[b"r"]) for _, fields in stream]
    reported: list[str] = [held[n][0] for n in results]
    assert sorted(entry.key for entry in entries) == sorted(reported)


async def retry(stage: Stage, keys: list[str], n: int) -> Any:
    return await stage.rush.retry_tasks(keys[n : n + 1])


async def cancel(stage: Stage, keys: list[str], n: int) -> Any:
    return await stage.rush.cancel_tasks(keys[n : n + 1])


async def register(stage: Stage, _: Any, n: int) -> Any:
    return await RushWorker(stage.rush.network_id, stage.rush.config, worker_id=f"newcomer{n}")


def newcomers_are_alive(stage: Stage, _: Any, results: list[Any]) -> None:
    assert {worker.worker_id for worker in results} <= stage.names_alive


async def leave(stage: Stage, _: Any, n: int) -> Any:
    await stage.workers[n].aclose()


def those_who_left_are_gone(stage: Stage, _: Any, results: list[Any]) -> None:
    gone = {worker.worker_id for worker in stage.workers[: len(results)]}
    assert not gone & stage.names_alive


async def lose(stage: Stage, _: Any, n: int) -> Any:
    failure = Failure("lost", None, "Worker has crashed or was killed")
    workers = stage.rush._net.workers  # pyright: ignore[reportPrivateUsage]
    return len(await workers.lose([stage.workers[n].worker_id], "lost", failure))


def the_lost_one_is_gone(stage: Stage, held: list[list[str]], results: list[Any]) -> None:
    assert results == [1]
    assert stage.workers[0].worker_id not in stage.names_alive
    assert stage.states() == {held[0][0]: ["failed"], held[1][0]: ["running"]}


async def reset(stage: Stage, _: Any, n: int) -> Any:
    await stage.rush.reset(workers=False)


def nothing_is_left(stage: Stage, _: Any, results: list[Any]) -> None:
    assert stage.states() == {}
    assert len(stage.names_alive) == 2


async def set_attrs(stage: Stage, _: Any, n: int) -> Any:
    await stage.rush.set_attrs({f"a{n}": n})


def attributes_are_set(stage: Stage, _: Any, results: list[Any]) -> None:
    assert stage.server.raw.hlen(stage.keys.attributes) == len(results)


async def set_task_attrs(stage: Stage, keys: list[str], n: int) -> Any:
    await stage.rush.set_task_attrs(keys[n], {"a": n})
    return await stage.rush.task_attrs(keys)


def attributes_of_the_task_are_set(stage: Stage, keys: list[str], results: list[Any]) -> None:
    assert results == [[{"a": 0}, {}, {}]]


async def claim(stage: Stage, _: Any, n: int) -> Any:
    return await stage.rush.claim("design", "mine")


async def claimed_by_another(stage: Stage) -> Any:
    return await stage.rush.claim("design", "theirs")


def all_got_the_same(stage: Stage, theirs: Any, results: list[Any]) -> None:
    assert set(results) == {theirs or "mine"}


async def rank(stage: Stage, _: Any, n: int) -> Any:
    return await stage.rush.ranking("rung").add(f"k{n}", n)


def ranks_are_those_of_their_moment(stage: Stage, _: Any, results: list[Any]) -> None:
    assert results == [(n, n + 1) for n in range(len(results))]
    assert stage.server.raw.zcard(f"{stage.keys.rankings}:rung") == len(results)


async def reserve(stage: Stage, _: Any, n: int) -> Any:
    worker = stage.workers[n % 2]
    reservations = worker._net.reservations  # pyright: ignore[reportPrivateUsage]
    reserved = await reservations.reserve(worker.worker_id, budget=None, max_failed=None, queued_first=True)
    assert isinstance(reserved, Reserved)
    return reserved.place


def each_index_is_reserved_once(stage: Stage, _: Any, results: list[Any]) -> None:
    assert sorted(results) == list(range(len(results)))
    held: list[bytes] = stage.server.raw.hvals(stage.keys.reserved)
    assert sorted(int(index) for each in held for index in each.split()) == sorted(results)


async def one_reserved_each(stage: Stage) -> list[int]:
    return [await reserve(stage, None, n) for n in range(2)]


async def start(stage: Stage, indices: list[int], n: int) -> Any:
    worker, task = stage.workers[n % 2], RecordEncoder(1000).task({"x": n}, None)
    reservations = worker._net.reservations  # pyright: ignore[reportPrivateUsage]
    assert await reservations.start(worker.worker_id, indices[n], task) == "started"
    return [task.key]


def reserved_tasks_run(stage: Stage, indices: list[int], results: list[Any]) -> None:
    assert stage.states() == {key: ["running"] for (key,) in results}
    assert len(stage.server.raw.hvals(stage.keys.reserved)) == len(indices) - len(results)
    for worker, (key,) in zip(stage.workers, results, strict=False):
        worker._membership.hold([key])  # pyright: ignore[reportPrivateUsage] - so that it fails when the worker leaves


async def stop_when(stage: Stage, _: Any, n: int) -> Any:
    return await stage.rush.stop_when(finished=2, seconds=60)


async def resume(stage: Stage, _: Any, n: int) -> Any:
    await stage.rush.resume(finished=2, seconds=60)


async def stopped(stage: Stage) -> Any:
    return await stage.rush.stop("before")


def rules_are_set_once(stage: Stage, _: Any, results: list[Any]) -> None:
    meta = stage.server.raw.hgetall(stage.keys.meta)
    assert meta[b"stop"] == b""
    assert meta[b"seq"] == b"4" if stage.rush.stop_reason else b"3"  # two workers, the stop if there was one, and the rules


async def stop(stage: Stage, _: Any, n: int) -> Any:
    return await stage.rush.stop("enough")


def all_got_the_reason(stage: Stage, _: Any, results: list[Any]) -> None:
    assert set(results) == {stage.rush.stop_reason}
    assert results[0].detail == "enough"


CASES = {
    "push_queued": Case(PUSH, push_queued, state_of("queued")),
    "push_running": Case(PUSH, push_running, state_of("running")),
    "push_within_a_budget": Case(PUSH, push_within_a_budget, state_of("running")),
    "push_unique": Case(PUSH, push_unique, each_point_runs_once),
    "push_finished": Case(PUSH, push_finished, state_of("finished")),
    "push_failed": Case(PUSH, push_failed, state_of("failed")),
    "pop": Case(POP, pop, state_of("running"), three_queued),
    "pop_named": Case(POP_NAMED, pop_named, state_of("running"), three_queued, n_callers=1),
    "finish": Case(FINISH, finish, state_of("finished"), one_running_each),
    "fail": Case(FINISH, fail, state_of("failed"), one_running_each),
    "report": Case(REPORT, report, each_is_stored_once, one_running_each),
    "retry": Case(RETRY, retry, state_of("queued"), three_failed),
    "cancel": Case(CANCEL, cancel, state_of("failed"), three_queued),
    "register": Case(REGISTER, register, newcomers_are_alive),
    "leave": Case(DEREGISTER, leave, those_who_left_are_gone),
    "lose": Case(LOSE, lose, the_lost_one_is_gone, one_running_each, n_callers=1),
    "reset": Case(RESET, reset, nothing_is_left, three_queued, n_callers=1),
    "set_attrs": Case(SET_ATTRS, set_attrs, attributes_are_set, n_callers=1),
    "set_task_attrs": Case(SET_TASK_ATTRS, set_task_attrs, attributes_of_the_task_are_set, three_queued, n_callers=1),
    "claim": Case(CLAIM, claim, all_got_the_same, n_callers=1),
    "claim_in_vain": Case(CLAIM, claim, all_got_the_same, claimed_by_another, n_callers=1),
    "rank": Case(RANK, rank, ranks_are_those_of_their_moment, n_callers=1),
    "reserve": Case(RESERVE, reserve, each_index_is_reserved_once, n_callers=2),
    "start": Case(START, start, reserved_tasks_run, one_reserved_each, n_callers=2),
    "stop_when": Case(STOP_WHEN, stop_when, rules_are_set_once, n_callers=1),
    "resume": Case(STOP_WHEN, resume, rules_are_set_once, stopped, n_callers=1),
    "stop": Case(STOP_NETWORK, stop, all_got_the_reason, n_callers=1),
}
GROWS = (
    *("push_queued", "push_running", "push_within_a_budget", "push_unique", "push_finished", "push_failed"),
    *("retry", "register", "set_attrs", "set_task_attrs", "claim", "claim_in_vain", "rank", "report", "stop_when", "resume"),
    *("reserve", "start"),
)


@asynccontextmanager
async def staged(server: SmallServer, directory: Path, retry_deadline: float = 30.0) -> AsyncGenerator[Stage]:
    """Sets the stage, and checks at its end that every task exists once and that nothing runs or lives without a worker."""
    async with Proxy(str(server.config.url), directory) as proxy:
        config = server.config.at(proxy.url)
        if retry_deadline < config.retry_deadline:
            limits = {"connect_timeout": retry_deadline / 4, "response_timeout": retry_deadline / 2}
            config = replace(config, retry_deadline=retry_deadline, **limits)
        try:
            async with Rush(config=config) as rush:
                name, keys = rush.network_id, NetworkKeys.of(rush.network_id)
                async with RushWorker(name, config) as first, RushWorker(name, config) as second:
                    stage = Stage(server, proxy, rush, (first, second), keys)
                    yield stage
                # The workers have failed what they held and left.
                states = stage.states()
                assert all(len(held) == 1 for held in states.values()), f"tasks exist more than once: {states}"
                assert "running" not in [state for held in states.values() for state in held], f"no worker runs it: {states}"
                queue: list[bytes] = server.raw.lrange(keys.queue, 0, -1)
                assert len(set(queue)) == len(queue), f"keys are queued more than once: {queue}"
                await wait_until(lambda: not stage.names_alive)
        finally:
            server.accept()
            server.raw.flushall()


async def refused_after(
    stage: Stage, refusal: Refusal, script: Script, calls: Callable[[], Awaitable[Any]], *, once: bool = False
) -> Any:
    """Makes calls whose first reply is lost; the server refuses their repetition for a while, or the first one only."""
    n_sent = 0

    def is_the_call(command: Command) -> bool:
        nonlocal n_sent
        n_sent += named("EVALSHA", script.digest)(command)
        if n_sent == 1:
            stage.proxy.stop_listening()  # until the server refuses, no call is repeated
        return n_sent == 1

    def accepts_the_third(command: Command) -> bool:
        nonlocal n_sent
        n_sent += named("EVALSHA", script.digest)(command)
        if n_sent == 3:
            stage.server.accept()
        return False

    fault = stage.proxy.drop_reply(is_the_call)
    if once:
        stage.proxy.cut_before(accepts_the_third)
    async with asyncio.timeout(TIMEOUT):
        caller = asyncio.ensure_future(calls())
        await fault.hit.wait()
        stage.server.refuse(refusal)
        try:
            await stage.proxy.listen()
            await asyncio.wait({caller}, timeout=REFUSED_FOR)
        finally:
            stage.server.accept()
        return await caller


def check_errors(results: list[Any]) -> list[BaseException]:
    errors = [result for result in results if isinstance(result, BaseException)]
    for error in errors:
        assert isinstance(error, RushError), repr(error)
        assert "nothing" not in str(error), f"the call was executed, and its caller reads: {error}"
    return errors


def cases(refusal: Refusal, *, merged: bool) -> list[Any]:
    names = [name for name in CASES if (refusal == "MISCONF" or name in GROWS) and (CASES[name].n_callers > 1 or not merged)]
    return [pytest.param(refusal, name, id=f"{refusal}-{name}") for name in names]


async def play(stage: Stage, refusal: Refusal, case: Case, n_callers: int, *, once: bool = False) -> None:
    given = None if case.prepare is None else await case.prepare(stage)

    async def calls() -> list[Any]:
        acts = [case.act(stage, given, n) for n in range(n_callers)]
        return await asyncio.gather(*acts, return_exceptions=True)

    results = await refused_after(stage, refusal, case.script, calls, once=once)
    try:
        if not check_errors(results):
            case.check(stage, given, results)
    finally:
        for result in results:
            if isinstance(result, RushWorker):
                await result.aclose()


@pytest.mark.parametrize(("refusal", "name"), [*cases("OOM", merged=False), *cases("MISCONF", merged=False)])
async def test_a_call_whose_repetition_is_refused_has_its_effect_once(
    refusal: Refusal, name: str, small_server: SmallServer, directory: Path
) -> None:
    async with staged(small_server, directory) as stage:
        await play(stage, refusal, CASES[name], 1)


@pytest.mark.parametrize(("refusal", "name"), [*cases("OOM", merged=True), *cases("MISCONF", merged=True)])
@pytest.mark.parametrize("once", [True, False], ids=["once", "for_a_while"])
async def test_merged_calls_whose_repetition_is_refused_have_their_effect_once(
    refusal: Refusal, name: str, once: bool, small_server: SmallServer, directory: Path
) -> None:
    async with staged(small_server, directory) as stage:
        await play(stage, refusal, CASES[name], 2, once=once)


@pytest.mark.parametrize("refusal", ["OOM", "MISCONF"])
async def test_merged_pushes_of_every_kind_exist_once_after_a_refused_repetition(
    refusal: Refusal, small_server: SmallServer, directory: Path
) -> None:
    async with staged(small_server, directory) as stage:
        kinds = {"queued": push_queued, "running": push_running, "finished": push_finished, "failed": push_failed}

        async def calls() -> list[Any]:
            return await asyncio.gather(*[act(stage, None, 0) for act in kinds.values()], return_exceptions=True)

        results = await refused_after(stage, refusal, PUSH, calls)
        if not check_errors(results):
            assert stage.states() == {keys[0]: [state] for state, keys in zip(kinds, results, strict=True)}


async def test_a_budget_is_kept_and_used_up_after_a_refused_repetition(small_server: SmallServer, directory: Path) -> None:
    """A task that runs nowhere would keep its place in the budget, and its workers would wait for it without end."""
    async with staged(small_server, directory) as stage:

        async def work(worker: RushWorker) -> None:
            while True:
                try:
                    async with worker.task({"x": 1}, budget=4) as task:
                        if task is None:
                            return
                        task.ys = {"y": 1}
                except ServerFullError:
                    pass  # a new push, which was not executed

        async def calls() -> None:
            await asyncio.gather(*[work(worker) for worker in stage.workers])

        await refused_after(stage, "OOM", PUSH, calls)
        assert stage.server.raw.llen(stage.keys.finished) == 4


@pytest.mark.parametrize("refusal", ["OOM", "MISCONF"])
async def test_a_call_that_was_refused_and_never_executed_says_that_nothing_was_done(
    refusal: Refusal, small_server: SmallServer, directory: Path
) -> None:
    async with staged(small_server, directory) as stage:
        small_server.refuse(refusal)
        try:
            pushes: list[Task | BaseException | list[str]] = []
            pushes += await asyncio.gather(*[push_queued(stage, None, n) for n in range(3)], return_exceptions=True)
        finally:
            small_server.accept()
        assert ["nothing" in str(error) for error in pushes if isinstance(error, RushError)] == [True] * 3
        assert stage.states() == {}


async def test_a_pop_is_put_back_whose_answer_could_not_be_looked_up(small_server: SmallServer, directory: Path) -> None:
    """The server goes away while it is asked what became of the call, for longer than the caller waits."""
    async with staged(small_server, directory, retry_deadline=0.3) as stage:
        (key,) = await stage.rush.push_tasks([{"x": 1}])

        def is_the_first(command: Command) -> bool:
            is_pop = named("EVALSHA", POP.digest)(command)
            if is_pop:
                stage.proxy.stop_listening()
            return is_pop

        def looks_it_up(command: Command) -> bool:
            is_recall = named("EVALSHA", RECALL.digest)(command)
            if is_recall:
                stage.proxy.stop_listening()
            return is_recall

        popped, asked = stage.proxy.drop_reply(is_the_first), stage.proxy.cut_before(looks_it_up)
        async with asyncio.timeout(TIMEOUT):
            caller = asyncio.ensure_future(stage.workers[0].pop_task(0))
            await popped.hit.wait()
            stage.server.refuse("MISCONF")
            await stage.proxy.listen()
            await asked.hit.wait()
            with pytest.raises(RushConnectionError):
                await caller
        stage.server.accept()
        await stage.proxy.listen()
        await wait_until(lambda: stage.states() == {key: ["queued"]})


@pytest.mark.parametrize("refusal", ["OOM", "MISCONF"])
@pytest.mark.parametrize("n_callers", [1, 2])
async def test_a_late_copy_of_a_call_that_was_given_up_after_a_refusal_leaves_nothing(
    refusal: Refusal, n_callers: int, small_server: SmallServer, directory: Path
) -> None:
    """The first copy arrives after the repetition was refused, and after the callers heard that nothing was done."""
    async with staged(small_server, directory) as stage:
        late = stage.proxy.late_copy(named("EVALSHA", PUSH.digest))
        async with asyncio.timeout(TIMEOUT):
            callers = [asyncio.ensure_future(push_running(stage, None, n)) for n in range(n_callers)]
            await late.hit.wait()
            small_server.refuse(refusal)
            results = await asyncio.gather(*callers, return_exceptions=True)
            small_server.accept()
            assert [type(result) for result in results] == [ServerFullError] * n_callers
            await late.deliver()
            await wait_until(lambda: all(state == ["failed"] for state in stage.states().values()))
            worker = stage.workers[0]
            assert await worker.push_running_tasks([{"x": 1}])  # later calls are executed
            assert (await worker.counts()).running == 1
        late.discard()


@pytest.mark.parametrize("ending", [RuntimeError("a defect"), asyncio.CancelledError()])
async def test_a_caller_gets_an_error_when_the_look_up_of_its_call_ends(
    ending: BaseException, small_server: SmallServer, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where its connection is closed at that moment."""
    async with staged(small_server, directory) as stage:

        async def end(*_: bytes) -> Any:
            raise ending

        fault = stage.proxy.drop_reply(named("EVALSHA", PUSH.digest))
        caller = asyncio.ensure_future(stage.rush.push_tasks([{"x": 1}]))
        await fault.hit.wait()
        with monkeypatch.context() as patched:
            patched.setattr(stage.rush._net.link.connection, "ask_script", end)  # pyright: ignore[reportPrivateUsage]
            stage.server.refuse("MISCONF")
            async with asyncio.timeout(TIMEOUT):
                with pytest.raises(RushConnectionError, match="not known whether a call was executed"):
                    await caller
        stage.server.accept()
        assert len(await stage.rush.push_tasks([{"x": 2}])) == 1


async def test_a_full_server_refuses_no_read_and_no_wait(small_server: SmallServer, directory: Path) -> None:
    async with staged(small_server, directory) as stage:
        rush, worker = stage.rush, stage.workers[0]
        (finished,) = await rush.push_finished_tasks([{"x": 1}], [{"y": 1}])
        (queued,) = await rush.push_tasks([{"x": 2}])
        (running,) = await worker.push_running_tasks([{"x": 3}])
        small_server.refuse("OOM")
        async with asyncio.timeout(TIMEOUT):
            waiting = asyncio.create_task(rush.wait_for_tasks([running], need_workers=False))
            assert (await rush.fetch_finished_tasks())["keys"].to_list() == [finished]
            assert (await rush.fetch_tasks_with_state("queued"))["keys"].to_list() == [queued]
            assert await rush.keys_with_state() == {
                "queued": [queued],
                "running": [running],
                "finished": [finished],
                "failed": [],
            }
            tasks = await rush.get_tasks([finished, queued, running, "unknown"])
            assert [task and task.xs["x"] for task in tasks] == [1, 2, 3, None]
            assert len(await rush.worker_info()) == 2
            assert (await rush.fetch_reports()).height == 0
            await worker.finish_tasks(running, [{"y": 3}])
            assert [task.key for task in await waiting] == [running]
        small_server.accept()
