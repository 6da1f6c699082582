"""Numbered calls: which of them are merged, what a refusal does, and which answers the server keeps."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from rush_async import Rush, RushConfig, RushConnectionError, RushWorker
from rush_async.store.calls import Batcher
from rush_async.store.keys import NetworkKeys, client_name
from rush_async.store.numbering import WINDOW
from rush_async.store.tasks import FINISH, POP, PUSH, Popped
from rush_async.testing import wait_until
from tests.proxy import Command, Proxy, named

TIMEOUT = 10.0


@pytest.fixture
async def far(proxy: Proxy, rush: Rush) -> AsyncIterator[Rush]:
    """A manager of the network of `rush` whose commands the proxy sees; the network exists."""
    async with Rush(rush.network_id, rush.config.at(proxy.url)) as far:
        await far.push_failed_tasks([{"x": 0}])
        proxy.commands.clear()
        yield far


def calls_of(rush: Rush) -> Batcher:
    return rush._net.tasks.calls  # pyright: ignore[reportPrivateUsage]


def pushes(proxy: Proxy) -> list[Command]:
    return [each for each in proxy.commands if named("EVALSHA", PUSH.digest)(each)]


@pytest.mark.parametrize(
    ("n", "sizes"),
    [
        (15, [15]),  # at the end of the tick
        (64, [16, 16, 32]),  # sent early once as many wait as are in flight
        (200, [16, 16, 32, 64, 72]),
    ],
)
async def test_pushes_of_many_coroutines_in_one_tick_are_merged_into_few_commands(
    proxy: Proxy, far: Rush, n: int, sizes: list[int]
) -> None:
    keyss = await asyncio.gather(*[far.push_tasks([{"x": x}]) for x in range(n)])
    assert [sum(arg == b"queued" for arg in _arguments(each)) for each in pushes(proxy)] == sizes
    tasks = await far.get_tasks([key for (key,) in keyss])
    assert [task and task.xs["x"] for task in tasks] == list(range(n))


async def test_calls_are_merged_only_with_calls_of_their_kind(proxy: Proxy, far: Rush) -> None:
    async with RushWorker(far.network_id, far.config) as worker, RushWorker(far.network_id, far.config) as other:
        keys = await far.push_tasks([{"x": x} for x in range(10)])
        proxy.commands.clear()
        tasks = await asyncio.gather(*[(worker, other)[x % 2].pop_task(0) for x in range(10)])
        assert [task and task.key for task in tasks] == keys
        assert proxy.count("EVALSHA") == 1
        holders = [worker, other] * 5
        ends = [holder.finish_tasks(key, [{"y": 1}]) for holder, key in zip(holders[:6], keys[:6], strict=True)]
        ends += [holder.fail_tasks(key) for holder, key in zip(holders[6:], keys[6:], strict=True)]
        results = await asyncio.gather(*ends, far.push_tasks([{"x": 1}]))
        assert results[:10] == [[key] for key in keys]
        assert proxy.count("EVALSHA") == 3


async def test_a_call_moves_at_most_a_thousand_tasks(proxy: Proxy, far: Rush) -> None:
    keys = await far.push_tasks([{"x": x} for x in range(2_500)])
    assert len(set(keys)) == 2_500
    assert [int(_arguments(each)[9]) for each in pushes(proxy)] == [1_000, 1_000, 500]
    proxy.commands.clear()
    await asyncio.gather(*[far.push_tasks([{"x": x}] * 400) for x in range(5)])
    sizes = [sum(arg == b"queued" for arg in _arguments(each)) for each in pushes(proxy)]
    assert sizes == [2, 2, 1]
    assert (await far.counts()).queued == 4_500


async def test_a_call_carries_at_most_a_mebibyte(proxy: Proxy, far: Rush) -> None:
    await far.push_tasks([{"text": "t" * 100_000}] * 30)
    assert len(pushes(proxy)) == 3
    assert all(sum(map(len, each)) < 1_200_000 for each in pushes(proxy))


@pytest.mark.parametrize(("size", "n_commands"), [(15_000, 1), (17_000, 10)])
async def test_records_of_16_kib_and_more_are_not_merged(size: int, n_commands: int, proxy: Proxy, far: Rush) -> None:
    await asyncio.gather(*[far.push_tasks([{"text": "t" * size}]) for _ in range(10)])
    assert len(pushes(proxy)) == n_commands


async def test_a_refused_merged_call_is_sent_again_unmerged(proxy: Proxy, far: Rush, raw: Any) -> None:
    calls = [far.push_tasks([{"x": x}]) for x in range(5)]
    raw.config_set("maxmemory", 1)
    try:
        results = await asyncio.gather(*calls, return_exceptions=True)
    finally:
        raw.config_set("maxmemory", 0)
    assert len({id(result) for result in results if isinstance(result, BaseException)}) == 5
    assert len(pushes(proxy)) == 6
    assert (await far.counts()).queued == 0


async def test_a_failed_call_does_not_fail_the_calls_merged_with_it(far: Rush) -> None:
    """A budget that is not a number makes the merged call fail; sent again one by one, only the wrong call fails."""
    async with RushWorker(far.network_id, far.config) as worker:
        bad: Any = "many"
        results = await asyncio.gather(
            worker.push_running_tasks([{"x": 1}]),
            worker.push_running_tasks([{"x": 2}], budget=bad),
            worker.push_running_tasks([{"x": 3}], budget=2),
            return_exceptions=True,
        )
        assert [isinstance(result, Exception) for result in results] == [False, True, False]
        assert (await far.counts()).running == 2


async def test_no_more_calls_are_in_flight_than_the_server_keeps_answers_for(proxy: Proxy, far: Rush) -> None:
    proxy.freeze(up=False)
    large = [asyncio.create_task(far.push_tasks([{"text": "t" * 17_000}])) for _ in range(2 * WINDOW)]
    await proxy.seen("EVALSHA", times=WINDOW)
    for _ in range(100):
        await asyncio.sleep(0)
    assert len(pushes(proxy)) == WINDOW
    proxy.thaw()
    async with asyncio.timeout(TIMEOUT):
        await asyncio.gather(*large)
    assert (await far.counts()).queued == 2 * WINDOW


async def test_call_numbers_rise_by_one_and_slots_hold_the_last_answers(proxy: Proxy, far: Rush, raw: Any) -> None:
    for x in range(WINDOW + 10):
        await far.push_tasks([{"x": x}])
    numbers = [int(_arguments(each)[2]) for each in pushes(proxy)]
    assert numbers == list(range(numbers[0], numbers[0] + WINDOW + 10))
    client = calls_of(far).name.text
    slots = {name: held for name, held in raw.hgetall(NetworkKeys.of(far.network_id).calls).items() if _is_of(name, client)}
    assert len(slots) == WINDOW
    assert {int(held.split()[0]) for held in slots.values()} == set(numbers[-WINDOW:])


async def test_quiet_waits_for_the_calls_in_flight_but_not_for_later_ones(far: Rush) -> None:
    done = asyncio.Event()

    async def keep_pushing() -> None:
        while not done.is_set():
            await far.push_failed_tasks([{"x": 1}])

    busy = [asyncio.create_task(keep_pushing()) for _ in range(3)]
    pushing = asyncio.create_task(far.push_tasks([{"x": 2}]))
    await asyncio.sleep(0)
    async with asyncio.timeout(TIMEOUT):
        await calls_of(far).quiet()
    assert (await far.counts()).queued == 1
    done.set()
    await asyncio.gather(pushing, *busy)


async def test_quiet_ends_when_the_calls_in_flight_are_given_up(proxy: Proxy, rush: Rush) -> None:
    config = replace(rush.config.at(proxy.url), connect_timeout=0.05, response_timeout=0.1, retry_deadline=0.2)
    async with Rush(rush.network_id, config) as far:
        await far.push_failed_tasks([{"x": 0}])
        proxy.commands.clear()
        proxy.freeze(up=False)
        pushing = asyncio.create_task(far.push_failed_tasks([{"x": 1}]))
        await proxy.seen("EVALSHA")
        proxy.refuse()
        async with asyncio.timeout(TIMEOUT):
            await calls_of(far).quiet()
            with pytest.raises(RushConnectionError):
                await pushing
        proxy.refuse(False)
        proxy.thaw()


async def test_calls_that_have_not_left_fail_when_the_connection_is_closed(proxy: Proxy, rush: Rush) -> None:
    far = await Rush(rush.network_id, rush.config.at(proxy.url))
    await far.push_failed_tasks([{"x": 0}])
    proxy.commands.clear()
    try:
        proxy.freeze(up=False)
        large = [asyncio.create_task(far.push_tasks([{"text": "t" * 17_000}])) for _ in range(2 * WINDOW)]
        await proxy.seen("EVALSHA", times=WINDOW)
        await far._net.link.connection.aclose()  # pyright: ignore[reportPrivateUsage]
        async with asyncio.timeout(TIMEOUT):
            results = await asyncio.gather(*large, return_exceptions=True)
        assert {type(result) for result in results} == {RushConnectionError}
    finally:
        proxy.thaw()
        await far.aclose()


async def test_an_overdue_call_that_may_have_been_executed_keeps_its_number(proxy: Proxy, rush: Rush) -> None:
    """Under another number it would be executed twice, and take back a task that its worker was given again meanwhile."""
    config = replace(rush.config.at(proxy.url), connect_timeout=0.05, response_timeout=0.1, retry_deadline=0.2)
    is_end = named("EVALSHA", FINISH.digest)

    def is_the_first_end(command: Command) -> bool:
        if is_end(command):
            proxy.stop_listening()
        return is_end(command)

    async with Rush(rush.network_id, config) as far, asyncio.timeout(TIMEOUT):
        await far.push_failed_tasks([{"x": 0}])

        async def give_up() -> None:
            with pytest.raises(RushConnectionError):
                await far.counts()

        proxy.stop_listening()
        proxy.cut_all()
        tasks = far._net.tasks  # pyright: ignore[reportPrivateUsage]
        await wait_until(lambda: not tasks.connection.is_ready)
        tasks.put_back([Popped("key", b"")], "worker")
        await asyncio.sleep(0)
        await give_up()  # it never left, and is overdue
        executed = proxy.drop_reply(is_the_first_end)
        await proxy.listen()
        await executed.hit.wait()
        await give_up()
        await proxy.listen()
        await proxy.seen("EVALSHA", FINISH.digest, times=2)
        numbers = {_arguments(each)[2] for each in proxy.commands if is_end(each)}
        assert len(numbers) == 1


def _arguments(command: Command) -> Command:
    """Returns what follows the keys: epoch, client, number, ..."""
    return command[3 + int(command[2]) :]


def _is_of(name: bytes, client: str) -> bool:
    return name.startswith(client.encode() + b":")


async def test_a_pop_whose_reply_is_lost_continues_behind_stale_entries(proxy: Proxy, far: Rush, raw: Any) -> None:
    """The pop leaves off at many stale entries, and its repetition must tell that too."""
    async with RushWorker(far.network_id, far.config) as worker:
        raw.rpush(far._net.keys.queue, *[f"stale-{n}" for n in range(1_500)])  # pyright: ignore[reportPrivateUsage]
        (key,) = await far.push_tasks([{"x": 1}])
        proxy.drop_reply(named("EVALSHA", POP.digest))
        task = await worker.pop_task(0)
        assert task is not None
        assert task.key == key


async def test_a_freed_place_of_a_budget_wakes_one_waiting_block(proxy: Proxy, far: Rush) -> None:
    async with RushWorker(far.network_id, far.config) as worker:
        (key,) = await worker.push_running_tasks([{"x": 0}])

        async def wait_for_place() -> bool:
            async with worker.task({"x": 1}, budget=1) as task:
                return task is not None

        waiting = [asyncio.create_task(wait_for_place()) for _ in range(50)]
        await far.wait_until(lambda counts: counts.running == 1)
        await calls_of(far).quiet()
        await far.counts()
        n_before = sum(len(_groups(each)) for each in pushes(proxy))
        await worker.fail_tasks(key)
        done, _ = await asyncio.wait(waiting, timeout=TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
        assert len(done) == 1
        (task,) = done
        assert isinstance(task.exception(), ValueError)  # left without `ys`, which frees the place for the next
        async with asyncio.timeout(TIMEOUT):
            await asyncio.wait(waiting)
        n_pushed = sum(len(_groups(each)) for each in pushes(proxy)) - n_before
        assert n_pushed <= 2 * len(waiting)


def _groups(command: Command) -> list[bytes]:
    return [arg for arg in _arguments(command) if arg == b"running"]


async def test_a_closed_client_leaves_no_answers_on_the_server(rush: Rush, raw: Any) -> None:
    async with Rush(rush.network_id, RushConfig(url=rush.config.url, retry_deadline=29)) as other:
        for x in range(70):
            await other.push_tasks([{"x": x}])
        mine = set(calls_of(other).name.slots(calls_of(other).number))
        assert len(mine) == WINDOW
        assert mine <= {field.decode() for field in raw.hkeys(NetworkKeys.of(rush.network_id).calls)}
    assert not mine & {field.decode() for field in raw.hkeys(NetworkKeys.of(rush.network_id).calls)}


async def test_answers_are_kept_while_a_late_copy_may_still_arrive(proxy: Proxy, rush: Rush, raw: Any) -> None:
    async with Rush(rush.network_id, rush.config.at(proxy.url)) as far:
        for n in range(2):
            await far.push_tasks([{"x": n}])
            proxy.cut_all()
        await far.push_tasks([{"x": 2}])
        mine = {f"{calls_of(far).name.text}:{number}" for number in (2, 3, 4)}  # the first call was refused
    assert mine <= {field.decode() for field in raw.hkeys(NetworkKeys.of(rush.network_id).calls)}


async def test_answers_of_clients_that_were_killed_are_removed_hours_later(rush: Rush, raw: Any) -> None:
    keys, now, name = NetworkKeys.of(rush.network_id), time.time(), calls_of(rush).name
    killed = [client_name(now - age) for age in (86_400, 8_000, 7_300)]
    young = client_name(now - 7_100)
    for client in (*killed, young):
        raw.hset(keys.calls, mapping={f"{client}:{slot}": f"{slot + 1} \x01" for slot in range(WINDOW)})
        raw.zadd(f"{keys.calls}:clients", {client: int(client[:8], 16)})
    await rush.push_failed_tasks([{"x": 0}])  # the call that creates the network notes no name
    names = [client_name(), client_name()]
    for name.text in names:  # each new client removes the answers of two old ones
        await rush.push_tasks([{"x": 0}])
    fields = raw.hkeys(keys.calls)
    assert len([field for field in fields if _is_of(field, young)]) == WINDOW
    assert [field for field in fields for client in killed if _is_of(field, client)] == []
    assert set(raw.zrange(f"{keys.calls}:clients", 0, -1)) == {young.encode(), *[text.encode() for text in names]}


async def test_a_call_under_a_name_that_is_too_old_is_made_under_another(far: Rush, raw: Any) -> None:
    name, old = calls_of(far).name, client_name(time.time() - 4_000)
    name.text = old
    async with asyncio.timeout(TIMEOUT):
        keys = await asyncio.gather(*[far.push_tasks([{"x": x}]) for x in range(WINDOW)])
    assert (await far.fetch_queued_tasks())["x"].to_list() == list(range(WINDOW))
    assert len(set(map(tuple, keys))) == WINDOW
    assert (await far.counts()).queued == WINDOW
    assert name.text != old
    assert not [field for field in raw.hkeys(NetworkKeys.of(far.network_id).calls) if _is_of(field, old)]


async def test_a_repeated_call_whose_answer_may_have_been_removed_is_not_executed_again(proxy: Proxy, far: Rush) -> None:
    calls_of(far).name.text = client_name(time.time() - 4_000)
    fault = proxy.drop_reply(named("EVALSHA", PUSH.digest))
    with pytest.raises(RushConnectionError, match="does not know any more whether it executed a call"):
        async with asyncio.timeout(TIMEOUT):
            await far.push_tasks([{"x": 1}])
    assert fault.hit.is_set()
    assert (await far.counts()).queued == 0
    await far.push_tasks([{"x": 2}])
    assert (await far.counts()).queued == 1
