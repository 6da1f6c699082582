"""Attributes, claims and rankings, as every client sees them: what is kept, who wins and who is first, until a reset."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from rush_async import Counts, EncodeError, NetworkStateError, Rush, RushClient, RushConfig, RushWorker, TasksQueued
from rush_async.store.keys import NetworkKeys
from rush_async.store.shared_state import CLAIM
from rush_async.testing import wait_until
from rush_async.wire.refusals import acl_remedy
from tests.proxy import Proxy, named

MIB = 1024 * 1024

VALUES: dict[str, Any] = {
    "nothing": None,
    "flag": True,
    "number": 2**70,
    "float": -math.inf,
    "text": "Füße\0\n",
    "bytes": b"\xff\0",
    "list": [1, [2.5, None], {"a": {}}],
    "decimal": Decimal("1.10"),
    "uuid": UUID(int=7),
    "date": datetime(2026, 2, 1, 12, tzinfo=UTC),
    "a name with spaces: {braces} and\nlines": 1,
}


@dataclass
class Point:
    x1: float
    x2: float


@pytest.fixture
def keys(rush: Rush) -> NetworkKeys:
    return NetworkKeys.of(rush.network_id)


def n_calls(proxy: Proxy) -> int:
    """How many commands with an answer of their own the clients have sent."""
    return proxy.count("EVALSHA") + proxy.count("EVAL") + proxy.count("HMGET") + proxy.count("HGETALL") + proxy.count("EXEC")


# attributes


async def test_attributes_of_all_types_are_read_as_they_were_set_by_another_client(rush: Rush, rush_worker: RushWorker) -> None:
    await rush_worker.set_attrs(VALUES)
    assert await rush.attrs() == VALUES
    assert await rush.attrs("text", "nothing") == {"text": "Füße\0\n", "nothing": None}


async def test_attributes_come_in_the_order_asked_for_else_by_name_and_unknown_ones_are_left_out(rush: Rush) -> None:
    await rush.set_attrs({name: at for at, name in enumerate(["zebra", "yak", "ape"])})
    assert list((await rush.attrs("yak", "unknown", "zebra", "ape")).items()) == [("yak", 1), ("zebra", 0), ("ape", 2)]
    assert list(await rush.attrs()) == ["ape", "yak", "zebra"]
    assert await rush.attrs("unknown") == {}


async def test_setting_attributes_replaces_them_and_leaves_others(rush: Rush) -> None:
    await rush.set_attrs({"best": 1.0, "stage": "design"})
    await rush.set_attrs(Point(1.0, np.float64(2.5)))
    await rush.set_attrs({"best": 0.5})
    await rush.set_attrs({})
    assert await rush.attrs() == {"best": 0.5, "stage": "design", "x1": 1.0, "x2": 2.5}


@pytest.mark.parametrize(
    ("values", "error", "words"),
    [
        ({"model": {"layers": [1, object()]}}, EncodeError, r"values\['model'\]\['layers'\]\[1\]: builtins.object cannot be"),
        ({"a": 1, "b": {2: 3}}, EncodeError, r"values\['b'\] has the key 2 of type int"),
        (
            {"big": "x" * MIB},
            EncodeError,
            r"values and names take 1,048,\d+ bytes, and a call takes at most 1,048,576: set them",
        ),
        ({"n" * MIB: 1}, EncodeError, "values and names take 1,048,577 bytes"),
        ({7: 1}, TypeError, "values has the name 7 of type int"),
        ({"": 1}, ValueError, "the name of an attribute must have at least one character"),
        ({"\ud800": 1}, ValueError, "the name of an attribute cannot be written as UTF-8"),
        ([("a", 1)], TypeError, "values must be a record"),
    ],
    ids=lambda value: str(value)[:20],
)
async def test_what_cannot_be_an_attribute_is_an_error_and_nothing_is_set(
    rush: Rush, raw: Any, values: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        await rush.set_attrs(values)
    assert raw.keys("*") == []


async def test_names_are_given_one_by_one(rush: Rush) -> None:
    with pytest.raises(TypeError, match=r"the name of an attribute must be a string, not list: \['a', 'b'\]"):
        await rush.attrs(["a", "b"])  # pyright: ignore[reportArgumentType]


async def test_a_network_has_at_most_10000_attributes_and_a_call_beyond_sets_none(rush: Rush) -> None:
    await rush.set_attrs({f"n{at}": at for at in range(9_999)})
    with pytest.raises(
        NetworkStateError, match=r"network '.*' may have 10,000 attributes and would have 2 more, so nothing was set"
    ):
        await rush.set_attrs({"n0": "new", "a": 1, "b": 2, "c": 3})
    assert await rush.attrs("n0", "a") == {"n0": 0}
    await rush.set_attrs({"n0": "new", "a": 1})
    await rush.set_attrs({f"n{at}": at + 1 for at in range(9_999)})
    with pytest.raises(NetworkStateError, match="would have 1 more"):
        await rush.set_attrs({"b": 2})
    attrs = await rush.attrs()
    assert len(attrs) == 10_000
    assert (attrs["n0"], attrs["n9998"], attrs["a"]) == (1, 9_999, 1)


async def test_too_many_attributes_for_a_network_that_does_not_exist_yet_create_none(rush: Rush, raw: Any) -> None:
    with pytest.raises(NetworkStateError, match="would have 1 more"):
        await rush.set_attrs({f"n{at}": at for at in range(10_001)})
    assert raw.keys("*") == []


# attributes of tasks


async def test_attributes_of_tasks_are_read_as_they_were_set_by_another_client(rush: Rush, rush_worker: RushWorker) -> None:
    first, second = await rush.push_tasks([{"x": 1}, {"x": 2}])
    await rush_worker.set_task_attrs(first, VALUES)
    await rush.set_task_attrs(second, Point(1.0, np.float64(2.5)))
    assert await rush.task_attrs([second, "unknown", first]) == [{"x1": 1.0, "x2": 2.5}, {}, VALUES]
    assert await rush.task_attrs(second) == [{"x1": 1.0, "x2": 2.5}]
    assert await rush.task_attrs([]) == []
    assert await rush.attrs() == {}  # those of the network are apart


async def test_clients_that_set_attributes_of_one_task_at_once_overwrite_none_of_another(
    rush: Rush, rush_server: RushConfig
) -> None:
    (key,) = await rush.push_tasks([{"x": 1}])
    async with AsyncExitStack() as stack:
        configs = [replace(rush_server, retry_deadline=20.0 + at) for at in range(3)]
        clients = [await stack.enter_async_context(Rush(rush.network_id, config)) for config in configs]
        names = [(client, f"{at}.{n}") for at, client in enumerate(clients) for n in range(50)]
        await asyncio.gather(*[client.set_task_attrs(key, {name: name, "last": name}) for client, name in names])
    (attrs,) = await rush.task_attrs(key)
    last = attrs.pop("last")
    assert attrs == {name: name for _, name in names}
    assert last in attrs


async def test_attributes_of_a_task_stay_through_its_attempts_and_change_no_more_once_it_has_ended(
    rush: Rush, rush_worker: RushWorker
) -> None:
    (key,) = await rush.push_tasks([{"x": 1}])
    await rush.set_task_attrs(key, {"while": "queued"})
    for attempt in (1, 2):
        assert await rush_worker.pop_task(0) is not None
        await rush.set_task_attrs(key, {"attempt": attempt})
        await rush_worker.fail_tasks(key)
        with pytest.raises(
            NetworkStateError, match=rf"task '{key}' of network '{rush.network_id}' is neither queued nor running"
        ):
            await rush.set_task_attrs(key, {"attempt": 0})
        await rush.retry_tasks(key)
    await rush_worker.pop_task(0)
    await rush_worker.finish_tasks(key, [{"y": 1}])
    with pytest.raises(NetworkStateError, match="so nothing was set: it ended, never existed, or was deleted by a reset"):
        await rush.set_task_attrs(key, {"attempt": 0})
    assert await rush.task_attrs(key) == [{"while": "queued", "attempt": 2}]
    await rush.set_task_attrs(key, {})  # nothing to do


@pytest.mark.parametrize(
    ("key", "values", "error", "words"),
    [
        ("unknown", {"a": 1}, NetworkStateError, "task 'unknown' of network '.*' is neither queued nor running"),
        ("task", {"a": [1, object()]}, EncodeError, r"values\['a'\]\[1\]: builtins.object cannot be"),
        ("task", {"a": "x" * MIB}, EncodeError, r"values and names take 1,048,\d+ bytes"),
        ("task", {"": 1}, ValueError, "the name of an attribute must have at least one character"),
        ("task", {7: 1}, TypeError, "values has the name 7 of type int"),
        ("task", [("a", 1)], TypeError, "values must be a record"),
        ("", {"a": 1}, ValueError, "a key must have at least one character"),
        (["task"], {"a": 1}, TypeError, "a key must be a string, not list"),
    ],
    ids=lambda value: str(value)[:20],
)
async def test_what_cannot_be_an_attribute_of_a_task_is_an_error_and_nothing_is_set(
    rush: Rush, raw: Any, keys: NetworkKeys, key: Any, values: Any, error: type[Exception], words: str
) -> None:
    (task,) = await rush.push_tasks([{"x": 1}])
    with pytest.raises(error, match=words):
        await rush.set_task_attrs(task if key == "task" else key, values)
    assert not raw.exists(keys.task_attributes)


async def test_a_task_has_at_most_1000_attributes_and_1_mib_of_them(rush: Rush) -> None:
    many, large = await rush.push_tasks([{"x": 1}, {"x": 2}])
    await rush.set_task_attrs(many, {f"n{at}": at for at in range(999)})
    with pytest.raises(NetworkStateError, match="would have more than 1,000 attributes, so nothing was set"):
        await rush.set_task_attrs(many, {"n0": "new", "a": 1, "b": 2})
    await rush.set_task_attrs(many, {"n0": "new", "a": 1})
    (attrs,) = await rush.task_attrs(many)
    assert (len(attrs), attrs["n0"], attrs["a"]) == (1_000, "new", 1)
    await rush.set_task_attrs(large, {"a": "x" * (MIB // 2)})
    with pytest.raises(EncodeError, match="would take more than 1,048,576 bytes, so nothing was set"):
        await rush.set_task_attrs(large, {"a": 1, "b": "x" * (MIB // 2), "c": "x" * (MIB // 2 - 20)})
    await rush.set_task_attrs(large, {"a": "y" * (MIB - 100)})  # in place of the first
    assert await rush.task_attrs(large) == [{"a": "y" * (MIB - 100)}]


async def test_attributes_of_many_tasks_are_read_in_few_commands(rush: Rush, proxy: Proxy) -> None:
    keys = await rush.push_tasks([{"x": x} for x in range(2_500)])
    await rush.set_task_attrs(keys[-1], {"a": 1})
    async with RushClient(rush.network_id, rush.config.at(proxy.url)) as far:
        before = n_calls(proxy)
        assert await far.task_attrs(keys) == [{}] * 2_499 + [{"a": 1}]
        assert n_calls(proxy) - before == 3


@pytest.mark.parametrize("workers", [False, True])
async def test_a_reset_deletes_the_attributes_of_tasks(rush: Rush, raw: Any, keys: NetworkKeys, workers: bool) -> None:
    (key,) = await rush.push_tasks([{"x": 1}])
    await rush.set_task_attrs(key, {"a": 1})
    await rush.reset(workers=workers)
    assert not raw.exists(keys.task_attributes)
    assert await rush.task_attrs(key) == [{}]


# claims


async def test_the_first_claim_of_a_name_stays_and_all_get_its_value(rush: Rush, rush_worker: RushWorker) -> None:
    assert await rush.claim("design", ("sobol", 16)) == ["sobol", 16]  # as it is stored
    assert await rush_worker.claim("design", "other") == ["sobol", 16]
    assert await rush.claim("design", "third") == ["sobol", 16]
    assert await rush.claim("other", None) is None
    assert await rush_worker.claim("other", 1) is None


async def test_claims_are_apart_from_attributes(rush: Rush) -> None:
    await rush.set_attrs({"design": "an attribute"})
    assert await rush.claim("design", "a claim") == "a claim"
    await rush.set_attrs({"design": "another attribute"})
    assert await rush.claim("design", "late") == "a claim"
    assert await rush.attrs() == {"design": "another attribute"}


async def test_one_of_many_workers_that_claim_at_once_wins(rush: Rush, rush_server: RushConfig) -> None:
    """Some share a connection, others have one of their own, as in other processes."""
    configs = [rush_server, *(replace(rush_server, retry_deadline=20.0 + at) for at in range(4))]
    async with AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(RushWorker(rush.network_id, config)) for config in configs for _ in range(8)]
        for name in ("a", "b", "c"):
            winners = await asyncio.gather(*[worker.claim(name, worker.worker_id) for worker in workers])
            assert len(set(winners)) == 1
            assert winners[0] in [worker.worker_id for worker in workers]
            assert await rush.claim(name, "late") == winners[0]


@pytest.mark.parametrize(("first", "winner"), [(None, "mine"), ("theirs", "theirs")])
async def test_a_claim_whose_reply_is_lost_is_answered_with_the_value_of_the_winner(
    rush: Rush, proxy: Proxy, first: str | None, winner: str
) -> None:
    await rush.claim("another name", 1)
    if first is not None:
        await rush.claim("design", first)
    async with Rush(rush.network_id, rush.config.at(proxy.url)) as far:
        fault = proxy.drop_reply(named("EVALSHA", CLAIM.digest))
        assert await far.claim("design", "mine") == winner
        assert fault.hit.is_set()
        assert proxy.count("EVALSHA", CLAIM.digest) == 2
    assert await rush.claim("design", "late") == winner


@pytest.mark.parametrize(
    ("name", "value", "error", "words"),
    [
        ("a", {"b": object()}, EncodeError, r"value\['b'\]: builtins.object cannot be stored"),
        ("a", b"x" * MIB, EncodeError, r"value and names take 1,048,\d+ bytes, and a call takes at most 1,048,576: store the"),
        ("", 1, ValueError, "the name of a claim must have at least one character"),
        (None, 1, TypeError, "the name of a claim must be a string, not NoneType"),
    ],
    ids=lambda value: str(value)[:20],
)
async def test_what_cannot_be_claimed_is_an_error(
    rush: Rush, raw: Any, name: Any, value: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        await rush.claim(name, value)
    assert raw.keys("*") == []


async def test_a_network_has_at_most_10000_claims_and_those_it_has_are_answered(rush: Rush) -> None:
    for first in range(0, 10_000, 1_000):
        await asyncio.gather(*[rush.claim(f"n{at}", at) for at in range(first, first + 1_000)])
    with pytest.raises(NetworkStateError, match=r"network '.*' has 10,000 claims, as many as it may, and none is 'one more'"):
        await rush.claim("one more", 1)
    assert await rush.claim("n9999", "late") == 9_999


# rankings


async def test_keys_are_ranked_by_score_from_the_lowest_and_equal_scores_by_key(rush: Rush) -> None:
    ranking = rush.ranking("rung 1")
    assert (ranking.name, ranking.maximize) == ("rung 1", False)
    assert await ranking.add("b", 2) == (0, 1)
    assert await ranking.add("d", 1.5) == (0, 2)
    assert await ranking.add("c", 2.0) == (2, 3)
    assert await ranking.add("a", np.float64(2)) == (1, 4)
    assert await ranking.best(10) == [("d", 1.5), ("a", 2.0), ("b", 2.0), ("c", 2.0)]
    assert [await ranking.rank(key) for key in "abcd"] == [1, 2, 3, 0]


async def test_the_highest_is_first_where_it_is_maximized_and_equal_scores_are_still_ordered_by_key(rush: Rush) -> None:
    ranking = rush.ranking("accuracy", maximize=True)
    assert await ranking.add("b", 0.5) == (0, 1)
    assert await ranking.add("a", 0.5) == (0, 2)
    assert await ranking.add("c", 0.75) == (0, 3)
    assert await ranking.add("d", -1) == (3, 4)
    assert await ranking.best(10) == [("c", 0.75), ("a", 0.5), ("b", 0.5), ("d", -1.0)]
    assert await ranking.rank("b") == 2
    assert repr(ranking) == "Ranking('accuracy', maximize=True)"


async def test_a_key_that_is_added_again_gets_the_new_score(rush: Rush) -> None:
    ranking = rush.ranking("rung 1")
    for key, score in (("a", 1.0), ("b", 2.0), ("a", 3.0)):
        rank, n = await ranking.add(key, score)
    assert (rank, n) == (1, 2)
    assert await ranking.best(2) == [("b", 2.0), ("a", 3.0)]


@pytest.mark.parametrize("maximize", [False, True])
async def test_scores_come_back_as_they_were_infinities_and_extremes_too(rush: Rush, maximize: bool) -> None:
    ranking = rush.ranking("extremes", maximize=maximize)
    scores = [-math.inf, -1.7976931348623157e308, -0.1, -5e-324, 0.0, 5e-324, 0.1 + 0.2, 2.0**53 + 2, math.inf]
    for at, score in enumerate(scores):
        await ranking.add(f"k{at}", score)
    best = [(f"k{at}", score) for at, score in enumerate(scores)]
    assert await ranking.best(100) == (best[::-1] if maximize else best)
    await ranking.add("k4", -0.0)
    (zero,) = [score for key, score in await ranking.best(100) if key == "k4"]
    assert math.copysign(1, zero) == 1


async def test_a_ranking_without_keys_has_no_rank_no_best_and_no_size(rush: Rush, raw: Any) -> None:
    ranking = rush.ranking("empty")
    assert (await ranking.rank("a"), await ranking.best(3), await ranking.size()) == (None, [], 0)
    assert raw.keys("*") == []
    await ranking.add("a", 1)
    assert (await ranking.rank("b"), await ranking.best(0), await ranking.size()) == (None, [], 1)


async def test_rankings_are_shared_by_name_and_apart_from_one_another(rush: Rush, rush_worker: RushWorker) -> None:
    await rush.ranking("rung: {1}").add("a", 1)
    await rush.ranking("rung 2").add("b", 1)
    assert await rush_worker.ranking("rung: {1}").add("c", 0) == (0, 2)
    assert await rush_worker.ranking("rung 2").best(5) == [("b", 1.0)]


async def test_concurrent_additions_get_the_rank_of_their_moment(rush: Rush, rush_server: RushConfig) -> None:
    async with Rush(rush.network_id, replace(rush_server, retry_deadline=21.0)) as other:
        rankings = [rush.ranking("rung"), other.ranking("rung")]
        await rankings[0].add("first", -1)
        await other.counts()
        answers = await asyncio.gather(*[rankings[at % 2].add(f"k{at:03}", at) for at in range(200)])
    assert sorted(n for _, n in answers) == list(range(2, 202))
    # Better are at most those that were there, and at least those that its own client had added.
    assert all(1 + at // 2 <= rank < n for at, (rank, n) in enumerate(answers))
    assert [key for key, _ in await rankings[0].best(201)] == ["first", *(f"k{at:03}" for at in range(200))]


@pytest.mark.parametrize("maximize", [False, True])
async def test_a_ranking_of_another_direction_is_refused_by_every_call(rush: Rush, maximize: bool) -> None:
    await rush.ranking("rung", maximize=maximize).add("a", 1)
    other = rush.ranking("rung", maximize=not maximize)
    words = (
        f"ranking 'rung' of network '{rush.network_id}' was created with maximize={maximize} and is used with "
        f"maximize={not maximize}: pass"
    )
    for call in (other.add("b", 2), other.rank("a"), other.best(1), other.size()):
        with pytest.raises(NetworkStateError, match=words):
            await call
    assert await rush.ranking("rung", maximize=maximize).best(5) == [("a", 1.0)]


@pytest.mark.parametrize(
    ("key", "score", "error", "words"),
    [
        ("a", math.nan, ValueError, "a score of nan has no rank"),
        ("a", "1.5", TypeError, "a score must be a number, not str: '1.5'"),
        ("a", None, TypeError, "a score must be a number, not NoneType"),
        ("a", 10**400, ValueError, "beyond the largest one"),
        ("", 1, ValueError, "a key must have at least one character"),
        (7, 1, TypeError, "a key must be a string, not int"),
        ("k" * MIB, 1, EncodeError, "key and names take"),
    ],
    ids=lambda value: str(value)[:20],
)
async def test_what_cannot_be_ranked_is_an_error(
    rush: Rush, raw: Any, key: Any, score: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        await rush.ranking("rung").add(key, score)
    assert raw.keys("*") == []


async def test_a_name_or_number_that_cannot_be_used_is_refused(rush: Rush) -> None:
    with pytest.raises(ValueError, match="has at most 200 characters, not 201"):
        rush.ranking("r" * 201)
    with pytest.raises(ValueError, match="the name of a ranking must have at least one character"):
        rush.ranking("")
    with pytest.raises(ValueError, match="n must be 0 to"):
        await rush.ranking("rung").best(-1)
    with pytest.raises(TypeError, match="a key must be a string"):
        await rush.ranking("rung").rank(7)  # pyright: ignore[reportArgumentType]


async def test_a_network_has_at_most_1000_rankings_and_those_it_has_still_grow(rush: Rush) -> None:
    assert {await rush.ranking(f"r{at}").add("a", 1) for at in range(1_000)} == {(0, 1)}
    with pytest.raises(NetworkStateError, match=r"network '.*' has 1,000 rankings, as many as it may, and none is 'one more'"):
        await rush.ranking("one more").add("a", 1)
    assert await rush.ranking("r999").add("b", 1) == (1, 2)
    assert await rush.ranking("one more").size() == 0


# all of them

Call = Callable[[Rush], Awaitable[Any]]
WRITES: dict[str, Call] = {
    "set_attrs": lambda rush: rush.set_attrs({"a": 1}),
    "claim": lambda rush: rush.claim("a", 1),
    "add": lambda rush: rush.ranking("a").add("key", 1),
}
READS: dict[str, Call] = {
    "attrs": lambda rush: rush.attrs(),
    "some_attrs": lambda rush: rush.attrs("a", "b"),
    "rank": lambda rush: rush.ranking("a").rank("key"),
    "best": lambda rush: rush.ranking("a").best(10),
    "size": lambda rush: rush.ranking("a").size(),
}


@pytest.mark.parametrize("name", WRITES)
async def test_a_call_creates_the_network_and_needs_no_worker(rush: Rush, raw: Any, keys: NetworkKeys, name: str) -> None:
    await WRITES[name](rush)
    assert raw.hget(keys.meta, "epoch") is not None
    assert await rush.counts() == Counts()
    (key,) = await rush.push_tasks([{"x": 1}])  # and the network is one that tasks can be pushed to
    assert (await rush.keys_with_state("queued"))["queued"] == [key]


async def test_no_call_raises_an_event(rush: Rush, raw: Any, keys: NetworkKeys) -> None:
    async with rush.events() as events:
        for call in (*WRITES.values(), *READS.values()):
            await call(rush)
        await rush.push_tasks([{"x": 1}])
        async with asyncio.timeout(5):
            event = await anext(events)
    assert isinstance(event, TasksQueued)
    assert event.seq == 1


@pytest.mark.parametrize("name", WRITES | READS)
async def test_each_call_is_one_round_trip(rush: Rush, proxy: Proxy, name: str) -> None:
    async with Rush(rush.network_id, rush.config.at(proxy.url)) as far:
        await (WRITES | READS)[name](far)
        await wait_until(lambda: far._net.feed.is_watching)  # pyright: ignore[reportPrivateUsage]
        n = n_calls(proxy)
        for _ in range(10):
            await (WRITES | READS)[name](far)
        assert n_calls(proxy) - n == 10


@pytest.mark.parametrize("workers", [False, True])
async def test_a_reset_deletes_all_of_it(
    rush: Rush, rush_worker: RushWorker, raw: Any, keys: NetworkKeys, workers: bool
) -> None:
    await rush.set_attrs({"a": 1})
    await rush.claim("a", 1)
    for at in range(3):
        await rush.ranking(f"rung: {at}\n", maximize=at == 1).add("key", 1)
    await rush._net.tasks.reset(workers=workers)  # pyright: ignore[reportPrivateUsage]
    left = {key for key in raw.keys("*") if b":attributes" in key or b":claims" in key or b":rankings" in key}
    assert left == set()
    assert await rush.attrs() == {}
    assert await rush.claim("a", 2) == 2
    assert await rush.ranking("rung: 1\n").add("other", 1) == (0, 1)  # its direction is forgotten, too


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("workers", [False, True])
async def test_a_late_copy_of_a_call_writes_nothing_after_a_reset(
    rush: Rush, rush_worker: RushWorker, raw: Any, proxy: Proxy, name: str, workers: bool
) -> None:
    async with Rush(rush.network_id, rush.config.at(proxy.url)) as far:
        late = proxy.late_copy(named("EVALSHA"))
        await WRITES[name](far)
        assert late.hit.is_set()
        await rush._net.tasks.reset(workers=workers)  # pyright: ignore[reportPrivateUsage]
        before = {key: raw.dump(key) for key in raw.keys("*")}
        async with asyncio.timeout(5):
            assert b"EPOCH" in await late.deliver()
        assert {key: raw.dump(key) for key in raw.keys("*")} == before


async def test_a_user_with_rights_to_the_keys_of_one_network_can_make_every_call(
    rush_server: RushConfig, raw: Any, directory: Path
) -> None:
    """The rule that the errors name, for one network."""
    rule = acl_remedy("net").partition("ACL SETUSER <user> ")[2]
    assert "~rush:{net}:*" in rule
    raw.execute_command("ACL", "SETUSER", "wren", "on", ">honey", "resetchannels", *rule.split())
    try:
        async with Rush("net", str(rush_server.url).replace("unix://", "unix://wren:honey@")) as rush:
            for call in (*WRITES.values(), *READS.values()):
                await call(rush)
            assert [key for key in raw.keys("*") if not key.startswith(b"rush:{net}:")] == []
            await rush.reset()
        assert raw.execute_command("ACL", "LOG") == []
    finally:
        raw.execute_command("ACL", "DELUSER", "wren")
