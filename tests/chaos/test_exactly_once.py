"""Every call that changes a network takes effect exactly once, whether its request or its reply is lost or arrives late."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import pytest

from rush_async import Failure, NetworkStateError, Rush, RushConfig, RushWorker
from rush_async.store import calls as store_calls
from rush_async.store.export_item import ExportItem
from rush_async.store.imports import IMPORT
from rush_async.store.keys import NetworkKeys
from rush_async.store.leases import LOSE
from rush_async.store.records import RecordEncoder, encode_created, encode_ended, encode_time, stamped
from rush_async.store.reports import REPORT
from rush_async.store.reservations import RESERVE, SET_SEED, START, UNRESERVE
from rush_async.store.scripts import Script
from rush_async.store.shared_state import CLAIM, RANK, SET_ATTRS, SET_TASK_ATTRS
from rush_async.store.stop_rules import EXPIRE, STOP_NETWORK, STOP_WHEN
from rush_async.store.tasks import CANCEL, DISCARD, FINISH, POP, POP_NAMED, PUSH, REMOVE, RESET, RETRY, Created
from rush_async.store.workers import DEREGISTER, PREPARE, REGISTER, RELEASE_LEASES, STOP, WorkerStore
from rush_async.testing import wait_until
from rush_async.worker.worker import membership_of
from tests.proxy import Command, Fault, LateCopy, Predicate, Proxy, named

TIMEOUT = 10.0
FURTHER_CALLS = 70  # more than the server keeps answers of a client

FaultName: TypeAlias = Literal["drop_reply", "cut_before", "late_copy"]


@dataclass
class Stage:
    """A network with a manager and a worker whose calls pass the proxy, and a worker whose calls do not.

    Attributes:
        far: the manager beyond the proxy.
        worker: the worker beyond the proxy.
        near: a worker that does not pass the proxy.
    """

    raw: Any
    far: Rush
    worker: RushWorker
    near: RushWorker
    keys: NetworkKeys
    names: dict[str, str] = field(default_factory=dict[str, str])
    newcomers: list[RushWorker] = field(default_factory=list[RushWorker])

    async def pushed(self, n: int) -> list[str]:
        keys = await self.near.push_tasks([{"x": x} for x in range(n)])
        self.names |= {key: f"task{at}" for at, key in enumerate(keys)}
        return keys

    async def running(self, n: int) -> list[str]:
        keys = await self.worker.push_running_tasks([{"x": x} for x in range(n)])
        self.names |= {key: f"task{at}" for at, key in enumerate(keys)}
        return keys

    async def failed(self, n: int) -> list[str]:
        keys = await self.near.push_failed_tasks([{"x": x} for x in range(n)], "failed before")
        self.names |= {key: f"task{at}" for at, key in enumerate(keys)}
        return keys

    @property
    def far_workers(self) -> WorkerStore:
        return self.far._net.workers  # pyright: ignore[reportPrivateUsage]

    def dump(self) -> dict[str, Any]:
        """Returns all that the server keeps of the network, without the answers of calls."""
        raw, keys = self.raw, self.keys
        return {
            "seq": raw.hget(keys.meta, "seq"),
            "epoch": raw.hget(keys.meta, "epoch"),
            "stop": raw.hget(keys.meta, "stop") or b"",
            "rules": raw.hget(keys.meta, "rules") or b"",
            "queue": raw.lrange(keys.queue, 0, -1),
            "queued": raw.hgetall(keys.queued),
            "running": raw.hgetall(keys.running),
            "finished": raw.lrange(keys.finished, 0, -1),
            "failed": raw.hgetall(keys.failed),
            "alive": raw.hgetall(keys.alive),
            "workers": raw.hgetall(keys.workers),
            "passing": raw.hgetall(keys.passing),
            "leases": raw.zrange(keys.leases, 0, -1),
            "processes": raw.hgetall(keys.processes),
            "starts": raw.hgetall(keys.starts),
            "attributes": raw.hgetall(keys.attributes),
            "claims": raw.hgetall(keys.claims),
            "points": raw.hgetall(keys.points),
            "rankings": raw.hgetall(keys.rankings),
            "ranking": raw.zrange(f"{keys.rankings}:rung", 0, -1, withscores=True),
            "reports": raw.xrange(keys.reports),
            "task_attributes": raw.hgetall(keys.task_attributes),
            "reserved": raw.hgetall(keys.reserved),
            "returned": raw.zrange(keys.returned, 0, -1),
            "seed": raw.hget(keys.meta, "seed") or b"",
            "imported": raw.hget(keys.meta, "imported_at") or b"",
            "imported_failed": raw.smembers(keys.imported_failed),
        }

    def shape(self) -> dict[str, Any]:
        """Returns what two runs of one scenario have in common: how many entries each key has."""
        dump = self.dump()
        shape: dict[str, Any] = {name: len(held) for name, held in dump.items() if name not in ("seq", "epoch")}
        return shape | {"seq": dump["seq"], "states": sorted(entry.split()[0] for entry in dump["workers"].values())}

    def named(self, keys: list[str]) -> list[str]:
        return [self.names.get(key, "new") for key in keys]


Prepare: TypeAlias = Callable[[Stage], Awaitable[Any]]
Act: TypeAlias = Callable[[Stage, Any], Awaitable[Any]]


@dataclass
class Call:
    """A call that changes the network: its script, what prepares the stage, and the call, whose result can be compared."""

    script: Script
    act: Act
    prepare: Prepare | None = None

    @property
    def predicate(self) -> Predicate:
        return named("EVALSHA", self.script.digest)


XSS = [{"x": 0}, {"x": 1}]


async def push_queued(stage: Stage, _: Any) -> Any:
    keys = await stage.far.push_tasks(XSS)
    return len(keys), (await stage.near.keys_with_state("queued"))["queued"] == keys


async def push_running(stage: Stage, _: Any) -> Any:
    keys = await stage.worker.push_running_tasks(XSS)
    return len(keys), await stage.near.is_running_task(keys)


async def push_running_within_a_budget(stage: Stage, _: Any) -> Any:
    keys = await stage.worker.push_running_tasks([*XSS, {"x": 2}], budget=2)
    return len(keys), await stage.near.is_running_task(keys)


async def push_unique(stage: Stage, theirs: list[str | None]) -> Any:
    keys = await stage.far.push_tasks([*XSS, {"x": 1.0}, {"x": 2}], unique=True)
    assert [key is None for key in theirs] == [False]
    return [key is None for key in keys], await stage.near.push_tasks([*XSS, {"x": 2}], unique=True)


async def push_running_unique(stage: Stage, _: Any) -> Any:
    keys = await stage.worker.push_running_tasks([*XSS, {"x": 2}, {"x": 3}], budget=3, unique="x")
    started = [key for key in keys if key is not None]
    return [key is None for key in keys], await stage.near.is_running_task(started)


async def one_point(stage: Stage) -> list[str | None]:
    return await stage.near.push_tasks([{"x": 1}], unique=True)


async def one_failed_point(stage: Stage) -> None:
    await stage.near.push_tasks([{"x": 1}], unique=True)
    await stage.near.empty_queue()
    await stage.near.push_tasks([{"x": 2}], unique=True)


async def push_finished(stage: Stage, _: Any) -> Any:
    keys = await stage.far.push_finished_tasks(XSS, [{"y": 0}, {"y": 1}])
    return len(keys), (await stage.near.keys_with_state("finished"))["finished"] == keys


async def push_imported(stage: Stage, _: Any) -> Any:
    tasks = RecordEncoder(1_000).tasks(XSS, has_header=False)
    ended = [task._replace(ended=encode_ended({"y": 1}, None)) for task in tasks]
    created = await stage.far._net.tasks.push("imported", ended)  # pyright: ignore[reportPrivateUsage]
    assert isinstance(created, Created)
    return len(created.keys), (await stage.near.keys_with_state("finished"))["finished"] == created.keys


async def push_failed(stage: Stage, _: Any) -> Any:
    keys = await stage.far.push_failed_tasks(XSS, "bad")
    return len(keys), await stage.near.is_failed_task(keys)


async def pop(stage: Stage, _: Any) -> Any:
    task = await stage.worker.pop_task(timeout=0)
    assert task is not None
    return stage.named([task.key]), task.xs, task.attempt, await stage.near.is_running_task(task.key)


async def pop_named(stage: Stage, keys: list[str]) -> Any:
    task = await stage.worker.pop_task(key=keys[1])
    assert task is not None
    again = await stage.near.pop_task(key=keys[1])
    return stage.named([task.key]), task.xs, task.attempt, again, await stage.near.is_running_task(task.key)


async def pop_named_in_vain(stage: Stage, keys: list[str]) -> Any:
    return await stage.worker.pop_task(key=keys[0])


async def pop_named_when_full(stage: Stage, keys: list[str]) -> Any:
    await stage.near.stop_when(finished=1)
    running = await stage.near.pop_task(0)
    assert running is not None
    task = await stage.worker.pop_task(0, key=keys[1])
    await stage.near.resume()
    return task


async def finish(stage: Stage, keys: list[str]) -> Any:
    moved = await stage.worker.finish_tasks(keys[:2], [{"y": 0}, {"y": 1}])
    return stage.named(moved), [task.ys for task in await stage.near.get_tasks(keys) if task]


async def fail(stage: Stage, keys: list[str]) -> Any:
    moved = await stage.worker.fail_tasks(keys[:2], ["a", "b"])
    return stage.named(moved), [task.state for task in await stage.near.get_tasks(keys) if task]


async def report(stage: Stage, keys: list[str]) -> Any:
    await stage.worker.report_tasks([keys[0], keys[1], keys[0]], [{"n": 0}, {"n": 1}, {"n": 2}])
    await stage.worker._net.tasks.calls.quiet()  # pyright: ignore[reportPrivateUsage] - a report returns before its answer
    frame = await stage.near.fetch_reports()
    return stage.named(frame["keys"].to_list()), frame.select("step", "n").rows()


async def empty_queue(stage: Stage, keys: list[str]) -> Any:
    return stage.named(await stage.far.empty_queue())


async def retry(stage: Stage, keys: list[str]) -> Any:
    return stage.named(await stage.far.retry_tasks(keys[:2]))


async def register(stage: Stage, _: Any) -> Any:
    worker = await RushWorker(stage.far.network_id, stage.far.config, worker_id="newcomer")
    alive = [name for name, entry in (await stage.far_workers.alive(["newcomer"])).items() if entry is not None]
    stage.newcomers.append(worker)
    return alive


async def join_a_shared_worker(stage: Stage, study: RushWorker) -> Any:
    (key,) = await study.push_running_tasks([{"x": 1}])
    worker = await RushWorker(stage.far.network_id, stage.far.config, worker_id="study", shared=True)
    stage.newcomers.append(worker)
    moved = await worker.finish_tasks(key, [{"y": 1}])
    return worker.number == study.number, moved == [key]


async def shared_worker(stage: Stage) -> RushWorker:
    worker = await RushWorker(stage.near.network_id, stage.near.config, worker_id="study", shared=True)
    stage.newcomers.append(worker)
    return worker


async def deregister(stage: Stage, _: Any) -> Any:
    await stage.worker.aclose()


async def lose(stage: Stage, keys: list[str]) -> Any:
    failure = Failure("lost", None, "Worker has crashed or was killed")
    completed = await stage.far_workers.lose([stage.worker.worker_id], "lost", failure)
    return len(completed), await stage.near.is_failed_task(keys)


async def cancel(stage: Stage, keys: list[str]) -> Any:
    (key,) = await stage.running(1)
    return stage.named(await stage.far.cancel_tasks([keys[0], key, "unknown", key]))


async def release_leases(stage: Stage, _: Any) -> Any:
    network = stage.far._net  # pyright: ignore[reportPrivateUsage]
    await network.workers.release_leases(network.heartbeat.leases)


async def prepare(stage: Stage, _: Any) -> Any:
    await stage.far_workers.prepare("a command", b"its start")


async def ask_to_stop(stage: Stage, _: Any) -> Any:
    asked = await stage.far_workers.ask_to_stop([stage.worker.worker_id, "unknown"])
    return asked == [stage.worker.worker_id]


async def reset_all(stage: Stage, _: Any) -> Any:
    # The script alone: the manager asks the workers to stop first.
    await stage.far._net.tasks.reset(workers=True)  # pyright: ignore[reportPrivateUsage]


async def reset_tasks(stage: Stage, _: Any) -> Any:
    await stage.far.reset(workers=False)


async def set_attrs(stage: Stage, _: Any) -> Any:
    await stage.far.set_attrs({"a": 1, "b": [2]})
    return await stage.near.attrs()


async def one_malformed(stage: Stage) -> None:
    await stage.near.push_finished_tasks([{"x": 1}], [{"y": 1}])
    stage.raw.rpush(stage.keys.finished, b"junk")
    stage.raw.hset(stage.keys.failed, "odd", b"junk")


async def discard(stage: Stage, _: Any) -> Any:
    return await stage.far.remove_malformed_records(), await stage.near.malformed_records()


async def set_task_attrs(stage: Stage, keys: list[str]) -> Any:
    await stage.far.set_task_attrs(keys[0], {"a": 1, "b": [2]})
    await stage.near.set_task_attrs(keys[0], {"b": 3})
    return await stage.far.task_attrs(keys)


async def claim(stage: Stage, theirs: Any) -> Any:
    return theirs, await stage.far.claim("design", "mine"), await stage.near.claim("design", "late")


async def claimed_by_another(stage: Stage) -> Any:
    return await stage.near.claim("design", "theirs")


async def begin_import(stage: Stage, _: Any) -> Any:
    begun = await stage.far._net.imports.begin("an export", 3, 1, [1])  # pyright: ignore[reportPrivateUsage]
    await stage.pushed(1)
    return begun.keeps_indices


async def begun_import(stage: Stage) -> Any:
    return await stage.far._net.imports.begin("an export", 3, 1, [])  # pyright: ignore[reportPrivateUsage]


async def import_some(stage: Stage, begun: Any) -> Any:
    created = stamped(encode_created("theirs", {"x": 1}, None), 1.0, 0)
    ended = b"\xc0" * 3 + encode_ended({"y": 1}, None) + encode_time(2.0)
    items = [
        ExportItem("finished", b"theirs", created + ended),
        ExportItem("failed", b"failed", b"\0\0\0\0\0\0"),
        ExportItem("ranking", b"min rung", b"a", b"1"),
        ExportItem("reports", b"1-1", b"report", b"1"),
    ]
    return await begun.add(items), await begun.add(items)


async def rank(stage: Stage, _: Any) -> Any:
    return await stage.far.ranking("rung").add("b", 2.0), await stage.near.ranking("rung").best(5)


async def two_ranked(stage: Stage) -> Any:
    return [await stage.near.ranking("rung").add(key, score) for key, score in (("a", 1.0), ("c", 3.0))]


async def stop_when(stage: Stage, _: Any) -> Any:
    reason = await stage.far.stop_when(finished=2, target={"y": 0.5}, patience=("y", 1))
    return reason and reason.detail, await seen_nearby(stage)


async def expire(stage: Stage, _: Any) -> Any:
    await stage.far.expire(3600)
    return stage.raw.hget(stage.keys.meta, "ttl"), stage.raw.ttl(stage.keys.meta)


async def stop_by_hand(stage: Stage, _: Any) -> Any:
    reason = await stage.far.stop("enough")
    return reason.detail, reason.seq, await seen_nearby(stage)


async def resume(stage: Stage, _: Any) -> Any:
    await stage.far.resume(finished=9)
    return stage.far.stop_reason, await seen_nearby(stage)


async def resume_in_vain(stage: Stage, _: Any) -> Any:
    with pytest.raises(ValueError, match="the rule 'finished' is true already"):
        await stage.far.resume(finished=1)
    return await seen_nearby(stage)


async def seen_nearby(stage: Stage) -> str:
    """Why the network has stopped, as another process sees it: its next start is refused, or not."""
    keys = await stage.near.push_running_tasks([{"x": 9}], budget=100)
    if keys:
        await stage.near.fail_tasks(keys)
    return str(stage.near.stop_reason)


async def refused_starts(stage: Stage, _: Any) -> Any:
    starts = [await stage.worker.push_running_tasks(XSS), await stage.worker.push_running_tasks(XSS[:1])]
    return starts, await stage.worker.pop_task(0), str(stage.worker.stop_reason)


async def start_on_a_full_network(stage: Stage, _: Any) -> Any:
    return await stage.worker.push_running_tasks(XSS, budget=100), str(stage.worker.stop_reason)


async def pop_on_a_full_network(stage: Stage, _: Any) -> Any:
    return await stage.worker.pop_task(0), str(stage.worker.stop_reason)


async def finish_the_last(stage: Stage, keys: list[str]) -> Any:
    moved = await stage.worker.finish_tasks(keys[:3], [{"y": 1}] * 3)
    return stage.named(moved), await seen_nearby(stage)


async def one_finished(stage: Stage) -> Any:
    return await stage.near.push_finished_tasks([{"x": 0}], [{"y": 0.25}])


async def two_finished_and_stopped(stage: Stage) -> Any:
    await stage.near.push_finished_tasks(XSS, [{"y": 1}] * 2)
    return await stage.near.stop("by another")


async def stopped(stage: Stage) -> Any:
    await stage.pushed(1)
    return await stage.near.stop("by another")


async def full(stage: Stage) -> Any:
    await stage.pushed(1)
    await stage.near.stop_when(finished=1)
    return await stage.near.push_running_tasks([{"x": 1}])


async def three_running_of_two(stage: Stage) -> list[str]:
    keys = await stage.running(3)
    await stage.near.stop_when(finished=2)
    return keys


async def reserve(stage: Stage, _: Any) -> Any:
    reservations, worker_id = stage.worker._net.reservations, stage.worker.worker_id  # pyright: ignore[reportPrivateUsage]
    return await reservations.reserve(worker_id, budget=3, max_failed=None, queued_first=True)


async def start(stage: Stage, index: int) -> Any:
    reservations, worker_id = stage.worker._net.reservations, stage.worker.worker_id  # pyright: ignore[reportPrivateUsage]
    task = RecordEncoder(1000).task({"x": 0}, None)
    is_started = await reservations.start(worker_id, index, task)
    return is_started, [task.index for task in await stage.near.get_tasks([task.key]) if task]


async def unreserve(stage: Stage, index: int) -> None:
    network = stage.worker._net  # pyright: ignore[reportPrivateUsage]
    network.reservations.unreserve(stage.worker.worker_id, index)
    await network.tasks.calls.quiet()


async def set_seed(stage: Stage, _: Any) -> Any:
    network = stage.far._net  # pyright: ignore[reportPrivateUsage]
    network.position.seed = 42
    return await network.reservations.set_seed()


async def reserved(stage: Stage) -> int:
    """Another worker has the index 0, and the one beyond the proxy 1."""
    for worker in (stage.near, stage.worker):
        reservations = worker._net.reservations  # pyright: ignore[reportPrivateUsage]
        await reservations.reserve(worker.worker_id, budget=None, max_failed=None, queued_first=True)
    return 1


async def three_queued(stage: Stage) -> list[str]:
    return await stage.pushed(3)


async def three_running(stage: Stage) -> list[str]:
    return await stage.running(3)


async def three_failed(stage: Stage) -> list[str]:
    return await stage.failed(3)


CALLS = {
    "push_queued": Call(PUSH, push_queued),
    "push_running": Call(PUSH, push_running),
    "push_running_within_a_budget": Call(PUSH, push_running_within_a_budget),
    "push_unique": Call(PUSH, push_unique, one_point),
    "push_running_unique": Call(PUSH, push_running_unique, one_failed_point),
    "push_finished": Call(PUSH, push_finished),
    "push_imported": Call(PUSH, push_imported),
    "push_failed": Call(PUSH, push_failed),
    "pop": Call(POP, pop, three_queued),
    "pop_named": Call(POP_NAMED, pop_named, three_queued),
    "pop_named_in_vain": Call(POP_NAMED, pop_named_in_vain, three_running),
    "pop_named_when_full": Call(POP_NAMED, pop_named_when_full, three_queued),
    "finish": Call(FINISH, finish, three_running),
    "fail": Call(FINISH, fail, three_running),
    "report": Call(REPORT, report, three_running),
    "empty_queue": Call(REMOVE, empty_queue, three_queued),
    "retry": Call(RETRY, retry, three_failed),
    "cancel": Call(CANCEL, cancel, three_queued),
    "register": Call(REGISTER, register),
    "join_a_shared_worker": Call(REGISTER, join_a_shared_worker, shared_worker),
    "release_leases": Call(RELEASE_LEASES, release_leases),
    "prepare": Call(PREPARE, prepare),
    "deregister": Call(DEREGISTER, deregister),
    "lose": Call(LOSE, lose, three_running),
    "ask_to_stop": Call(STOP, ask_to_stop),
    "discard": Call(DISCARD, discard, one_malformed),
    "set_attrs": Call(SET_ATTRS, set_attrs),
    "set_task_attrs": Call(SET_TASK_ATTRS, set_task_attrs, three_queued),
    "claim": Call(CLAIM, claim),
    "claim_in_vain": Call(CLAIM, claim, claimed_by_another),
    "begin_import": Call(IMPORT, begin_import),
    "import": Call(IMPORT, import_some, begun_import),
    "rank_in_a_new_ranking": Call(RANK, rank),
    "rank": Call(RANK, rank, two_ranked),
    "stop_when": Call(STOP_WHEN, stop_when),
    "stop_when_true_already": Call(STOP_WHEN, stop_when, one_finished),
    "resume": Call(STOP_WHEN, resume, stopped),
    "resume_in_vain": Call(STOP_WHEN, resume_in_vain, two_finished_and_stopped),
    "stop": Call(STOP_NETWORK, stop_by_hand),
    "stop_in_vain": Call(STOP_NETWORK, stop_by_hand, stopped),
    "expire": Call(EXPIRE, expire),
    "push_running_on_a_full_network": Call(PUSH, start_on_a_full_network, full),
    "pop_on_a_full_network": Call(POP, pop_on_a_full_network, full),
    "finish_the_last": Call(FINISH, finish_the_last, three_running_of_two),
    "reserve": Call(RESERVE, reserve),
    "start": Call(START, start, reserved),
    "unreserve": Call(UNRESERVE, unreserve, reserved),
    "set_seed": Call(SET_SEED, set_seed),
    "reset_all": Call(RESET, reset_all, three_queued),
    "reset_tasks": Call(RESET, reset_tasks, three_queued),
}
# These calls have no numbers of their own: leases may be renewed twice, a log record come twice, and a call be withdrawn twice.
UNNUMBERED = {"beat", "log", "withdraw"}
FAULTS: tuple[FaultName, ...] = ("drop_reply", "cut_before", "late_copy")


@asynccontextmanager
async def open_stage(proxy: Proxy, server: RushConfig, raw: Any) -> AsyncGenerator[Stage]:
    far_config = server.at(proxy.url)
    async with Rush(config=server) as rush:
        name = rush.network_id
        try:
            async with (
                Rush(name, far_config) as far,
                RushWorker(name, far_config) as worker,
                RushWorker(name, server) as near,
            ):
                stage = Stage(raw, far, worker, near, NetworkKeys.of(name))
                yield stage
                for newcomer in stage.newcomers:
                    await newcomer.aclose()
        finally:
            await rush.reset()


async def call_under_fault(call: Call, stage: Stage, arm: Callable[[Predicate], Fault] | None) -> tuple[Any, Fault | None]:
    """Prepares the stage and makes the call under a fault. Returns the result and the fault."""
    given = None if call.prepare is None else await call.prepare(stage)
    fault = None if arm is None else arm(call.predicate)
    async with asyncio.timeout(TIMEOUT):
        result = await call.act(stage, given)
        if fault is not None:
            await fault.hit.wait()  # what is handed over returns before its reply comes
    return result, fault


def test_every_script_that_writes_is_called_here() -> None:
    writes = {script.name for script in Script.all if "no-writes" not in script.source.partition("\n")[0]}
    missing = writes - UNNUMBERED - {call.script.name for call in CALLS.values()}
    assert not missing, f"add a call of each of these scripts to CALLS: {sorted(missing)}"


@pytest.mark.parametrize("fault_name", FAULTS)
@pytest.mark.parametrize("name", CALLS)
async def test_a_call_takes_effect_once_and_returns_the_right_answer_under_every_fault(
    name: str, fault_name: FaultName, proxy: Proxy, rush_server: RushConfig, raw: Any
) -> None:
    call = CALLS[name]
    async with open_stage(proxy, rush_server, raw) as stage:
        control_result, _ = await call_under_fault(call, stage, None)
        control = stage.shape()
    async with open_stage(proxy, rush_server, raw) as stage:
        result, fault = await call_under_fault(call, stage, getattr(proxy, fault_name))
        assert result == control_result
        assert stage.shape() == control
        if isinstance(fault, LateCopy):
            await assert_late_copies_change_nothing(fault, stage)


async def assert_late_copies_change_nothing(fault: LateCopy, stage: Stage) -> None:
    before = stage.dump()
    answers = [await deliver(fault)]
    assert stage.dump() == before
    for _ in range(FURTHER_CALLS):
        await stage.far.push_failed_tasks([{"x": -1}])
    before = stage.dump()
    answers.append(await deliver(fault))
    assert stage.dump() == before
    for answer in answers:
        assert answer.startswith(b"*"), answer
    assert b"$3\r\nOLD" in answers[1] or b"$5\r\nEPOCH" in answers[1]


async def deliver(fault: LateCopy) -> bytes:
    async with asyncio.timeout(TIMEOUT):
        return await fault.deliver()


# A stop, a resumption or a reset comes between the execution of a call and its repetition.


Between: TypeAlias = Callable[[Stage], Awaitable[Any]]
BETWEEN: dict[str, Between] = {
    "stop": lambda stage: stage.near.stop("in between"),
    "resume": lambda stage: stage.near.resume(),
    "reset": lambda stage: stage.near._net.tasks.reset(workers=False),  # pyright: ignore[reportPrivateUsage]
}


@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize("name", ["push_running", "pop", "finish", "fail", "stop", "stop_when", "resume", "refused"])
async def test_what_comes_between_a_call_and_its_repetition_does_not_change_what_the_call_did(
    name: str, between: str, proxy: Proxy, rush_server: RushConfig, raw: Any
) -> None:
    call = CALLS.get(name) or Call(PUSH, refused_starts, stopped)
    async with open_stage(proxy, rush_server, raw) as stage:
        given = None if call.prepare is None else await call.prepare(stage)
        if name == "refused":
            await wait_until(lambda: stage.worker.stop_reason is not None)
        fault = proxy.drop_reply(call.predicate)
        async with asyncio.timeout(TIMEOUT):
            acting = asyncio.ensure_future(call.act(stage, given))
            await fault.hit.wait()
            proxy.stop_listening()
            await BETWEEN[between](stage)
            before = stage.dump()
            await proxy.listen()
            result = (await asyncio.gather(acting, return_exceptions=True))[0]
        after = stage.dump()
        if isinstance(result, NetworkStateError):  # a stop that was lifted before its answer came
            assert (name, between) == ("stop", "resume")
        elif between == "reset":
            # What the call did is gone. A start is made anew in the next epoch, as is a stop; an end or a pop finds nothing.
            assert (after["epoch"], after["finished"]) == (before["epoch"], [])
            assert not isinstance(result, BaseException) or name == "pop"
        elif name == "refused":
            assert not isinstance(result, BaseException)
            assert result[0][0] == []  # as the first answer, though it may start by now
        else:
            held = ["finished", "queued", "queue", "rules", "stop"]
            assert {key: after[key] for key in held} == {key: before[key] for key in held}
            # `seen_nearby` starts a task and fails it.
            assert len(after["failed"]) - len(before["failed"]) in ([0, 1] if name in ("stop", "stop_when", "resume") else [0])


# The first call creates the network, and knows no epoch yet.


async def none_of(call: Awaitable[Any]) -> list[str]:
    await call
    return []


CREATING: dict[str, tuple[Script, Callable[[Rush], Awaitable[Any]]]] = {
    "push_queued": (PUSH, lambda rush: rush.push_tasks(XSS)),
    "push_finished": (PUSH, lambda rush: rush.push_finished_tasks(XSS, XSS)),
    "push_failed": (PUSH, lambda rush: rush.push_failed_tasks(XSS)),
    "stop_when": (STOP_WHEN, lambda rush: none_of(rush.stop_when(finished=1))),
    "stop": (STOP_NETWORK, lambda rush: none_of(rush.stop("enough"))),
    "enter": (REGISTER, lambda rush: RushWorker(rush.network_id, rush.config, worker_id="first").__aenter__()),
}


@pytest.mark.parametrize("fault_name", FAULTS)
@pytest.mark.parametrize("name", CREATING)
async def test_the_call_that_creates_a_network_takes_effect_once(
    name: str, fault_name: FaultName, proxy: Proxy, rush_server: RushConfig, raw: Any
) -> None:
    script, act = CREATING[name]
    created: Any = None  # the keys of tasks, or a worker
    async with Rush(config=rush_server) as near, Rush(near.network_id, rush_server.at(proxy.url)) as far:
        at = NetworkKeys.of(near.network_id)
        fault = getattr(proxy, fault_name)(named("EVALSHA", script.digest))
        async with asyncio.timeout(TIMEOUT):
            created = await act(far)
        assert fault.hit.is_set()
        assert raw.hget(at.meta, "seq") == b"1"
        if isinstance(created, RushWorker):
            assert raw.hlen(at.alive) == 1
            await created.aclose()
        else:
            found = await near.keys_with_state()
            assert sorted(key for state in found.values() for key in state) == sorted(created)  # a hash has no order
            assert raw.llen(at.queue) == len(found["queued"])
        if isinstance(fault, LateCopy):
            seq = raw.hget(at.meta, "seq")
            await deliver(fault)
            assert raw.hget(at.meta, "seq") == seq
        await near.reset()


async def test_a_repeated_merged_pop_returns_the_task_of_the_live_worker(
    proxy: Proxy, rush_server: RushConfig, raw: Any
) -> None:
    """One call pops for a worker that was shut out and for one that lives; its reply is lost."""
    async with open_stage(proxy, rush_server, raw) as stage:
        async with RushWorker(stage.far.network_id, stage.far.config) as other:
            await stage.pushed(1)
            tasks = stage.far._net.tasks  # pyright: ignore[reportPrivateUsage]
            fault = proxy.drop_reply(named("EVALSHA", POP.digest))
            async with asyncio.timeout(TIMEOUT):
                _, popped = await asyncio.gather(tasks.pop("unknown"), tasks.pop(other.worker_id))
            assert fault.hit.is_set()
            assert isinstance(popped.tasks, list)
            (task,) = popped.tasks
            membership_of(other).hold([task.key])
            assert await other.fail_tasks(task.key) == [task.key]


async def test_merged_calls_that_are_refused_and_then_cut_off_take_effect_once(
    proxy: Proxy, rush_server: RushConfig, raw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred pushes of one tick are refused as one, sent one by one, executed, and their replies lost."""
    n = 100
    monkeypatch.setattr(store_calls, "ENOUGH", n + 1)
    async with open_stage(proxy, rush_server, raw) as stage:
        pushes: list[Command] = []

        def first_that_goes_alone(command: Command) -> bool:
            if named("EVALSHA", PUSH.digest)(command):
                pushes.append(command)
                if len(pushes) == 2:
                    raw.config_set("maxmemory", 0)
                    proxy.freeze(up=False)
            return False

        proxy.cut_before(first_that_goes_alone)
        raw.config_set("maxmemory", 1)
        try:
            calls = asyncio.gather(*[stage.far.push_tasks([{"x": x}]) for x in range(n)])
            # As many as may be in flight are executed, and their replies are held.
            await wait_until(lambda: raw.hlen(stage.keys.queued) >= 50)
        finally:
            raw.config_set("maxmemory", 0)
        await wait_until(lambda: raw.hlen(stage.keys.queued) == len(pushes) - 1)
        proxy.cut_all()
        proxy.thaw()
        async with asyncio.timeout(TIMEOUT):
            keyss = await calls
        queued = (await stage.near.keys_with_state("queued"))["queued"]
        assert sorted(queued) == sorted(key for keys in keyss for key in keys)
        assert raw.llen(stage.keys.queue) == n
