"""Shared state in the database: the form in which it is kept, and that bytes of other programs are named in an error."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rush_async import DecodeError, Rush, RushConfig, RushError
from rush_async.store.codec import encode
from rush_async.store.keys import NetworkKeys
from rush_async.store.shared_state import SharedStateStore
from tests.store.values import PLAIN


def keys_of(rush: Rush) -> NetworkKeys:
    return NetworkKeys.of(rush.network_id)


def store_of(rush: Rush) -> SharedStateStore:
    return rush._net.shared_state  # pyright: ignore[reportPrivateUsage]


async def test_values_are_kept_as_msgpack_and_rankings_as_sorted_sets(rush: Rush, raw: Any) -> None:
    store, keys = store_of(rush), keys_of(rush)
    await store.set_attrs({"a": [1, None]})
    assert await store.claim("b", "mine") == "mine"
    assert await store.rank("low", b"min", "key", 1.5) == (0, 1)
    assert await store.rank("high", b"max", "key", 1.5) == (0, 1)
    assert raw.hgetall(keys.attributes) == {b"a": encode([1, None], "")}
    assert raw.hgetall(keys.claims) == {b"b": encode("mine", "")}
    assert raw.hgetall(keys.rankings) == {b"low": b"min", b"high": b"max"}
    assert raw.zrange(f"{keys.rankings}:low", 0, -1, withscores=True) == [(b"key", 1.5)]
    assert raw.zrange(f"{keys.rankings}:high", 0, -1, withscores=True) == [(b"key", -1.5)]


async def test_a_repetition_of_a_claim_is_kept_without_its_value(rush: Rush, raw: Any) -> None:
    big = "x" * 10_000
    await rush.claim("a", big)
    before = sum(map(len, raw.hvals(keys_of(rush).calls)))
    assert await rush.claim("a", None) == big
    assert sum(map(len, raw.hvals(keys_of(rush).calls))) - before < 20


@settings(max_examples=20, deadline=None, database=None)
@given(values=st.dictionaries(st.text(min_size=1), PLAIN, min_size=1, max_size=5))
def test_any_value_of_the_library_is_read_as_it_was_set(rush_server: RushConfig, values: dict[str, Any]) -> None:
    async def main() -> None:
        async with Rush(config=rush_server) as rush:
            try:
                await store_of(rush).set_attrs(values)
                assert await store_of(rush).attrs([]) == values
                for name, value in values.items():
                    assert await store_of(rush).claim(name, value) == value
                    assert await store_of(rush).claim(name, "late") == value
            finally:
                await rush.reset()

    asyncio.run(main())


# what other programs wrote

GARBAGE = [b"", b"\xc1", b"\x01\x02", b"\x81\x01", b"\xd6\xff\0\0\0\0", b"\xc7\x01\x63\x00", b"\xdd\xff\xff\xff\xff"]


@pytest.mark.parametrize("value", GARBAGE)
async def test_a_value_of_another_program_is_a_decode_error_with_network_key_and_name(
    rush: Rush, raw: Any, value: bytes
) -> None:
    keys = keys_of(rush)
    await rush.set_attrs({"good": 1})
    raw.hset(keys.attributes, "bad", value)
    raw.hset(keys.claims, "bad", value)
    for call in (rush.attrs(), rush.attrs("good", "bad")):
        with pytest.raises(DecodeError, match=rf"rush:{{{rush.network_id}}}:attributes holds no value .* under b'bad'"):
            await call
    with pytest.raises(DecodeError, match=rf"rush:{{{rush.network_id}}}:claims holds no value .* under b'bad'"):
        await rush.claim("bad", 1)
    assert await rush.attrs("good") == {"good": 1}
    await rush.set_attrs({"bad": 2})  # an attribute may be set again
    assert await rush.attrs() == {"bad": 2, "good": 1}


async def test_names_that_are_no_text_are_decode_errors_with_network_and_key(rush: Rush, raw: Any) -> None:
    keys = keys_of(rush)
    await rush.ranking("rung").add("good", 1)
    raw.hset(keys.attributes, b"\xff", encode(1, ""))
    raw.zadd(f"{keys.rankings}:rung", {b"\xff\xfe": 2})
    with pytest.raises(DecodeError, match=rf"rush:{{{rush.network_id}}}:attributes holds a name that is not UTF-8: b'\\xff'"):
        await rush.attrs()
    with pytest.raises(DecodeError, match=rf"rush:{{{rush.network_id}}}:rankings:rung holds a name that is not UTF-8"):
        await rush.ranking("rung").best(2)
    assert await rush.ranking("rung").best(1) == [("good", 1.0)]
    assert await rush.ranking("rung").add("other", 1.5) == (1, 3)


async def test_a_direction_of_another_program_is_a_decode_error_of_every_call(rush: Rush, raw: Any) -> None:
    keys, ranking = keys_of(rush), rush.ranking("rung")
    await ranking.add("key", 1)
    raw.hset(keys.rankings, "rung", b"sideways")
    words = rf"rush:{{{rush.network_id}}}:rankings holds no direction of this library for 'rung': b'sideways'"
    for call in (ranking.add("key", 2), ranking.rank("key"), ranking.best(1), ranking.size()):
        with pytest.raises(DecodeError, match=words):
            await call
    assert raw.zscore(f"{keys.rankings}:rung", "key") == 1.0


OF_WRONG_TYPE: dict[str, tuple[str, list[Callable[[Rush], Awaitable[Any]]]]] = {
    "attributes": ("attributes", [lambda rush: rush.set_attrs({"a": 1}), lambda rush: rush.attrs()]),
    "claims": ("claims", [lambda rush: rush.claim("a", 1)]),
    "rankings": ("rankings", [lambda rush: rush.ranking("a").add("key", 1), lambda rush: rush.ranking("a").size()]),
    "ranking": ("rankings:a", [lambda rush: rush.ranking("a").add("key", 1), lambda rush: rush.ranking("a").size()]),
}


@pytest.mark.parametrize("name", OF_WRONG_TYPE)
async def test_a_key_of_another_type_is_an_error_and_neither_writes_nor_outlives_a_reset(
    rush: Rush, raw: Any, name: str
) -> None:
    key, calls = OF_WRONG_TYPE[name]
    place = f"rush:{{{rush.network_id}}}:{key}"
    raw.set(place, "something else")
    for call in calls:
        with pytest.raises(RushError, match="WRONGTYPE"):
            await call(rush)
    assert raw.keys("*") == [place.encode()]  # not even the network was created
    await rush.push_tasks([{"x": 1}])
    await rush.reset()
    if name == "ranking":  # its name is in no ranking, so it is not ours to delete
        assert raw.delete(place) == 1
    assert raw.keys("*") == []


async def test_a_claim_that_another_program_deleted_is_claimed_again(rush: Rush, raw: Any) -> None:
    await rush.claim("a", 1)
    raw.delete(keys_of(rush).claims)
    assert await rush.claim("a", 2) == 2


# attributes of tasks


async def test_attributes_of_a_task_are_kept_as_names_and_values_that_a_script_can_cut(rush: Rush, raw: Any) -> None:
    (key,) = await rush.push_tasks([{"x": 1}])
    await rush.set_task_attrs(key, {"a": 1, "ü": None})
    await rush.set_task_attrs(key, {"a": [2]})
    flat = [b"\xdb\0\0\0\x01a", b"\xc6\0\0\0\x02" + encode([2], ""), b"\xdb\0\0\0\x02\xc3\xbc", b"\xc6\0\0\0\x01\xc0"]
    assert raw.hgetall(keys_of(rush).task_attributes) == {key.encode(): b"".join(flat)}


@settings(max_examples=20, deadline=None, database=None)
@given(each=st.lists(st.dictionaries(st.text(min_size=1), PLAIN, min_size=1, max_size=5), min_size=1, max_size=4))
def test_attributes_of_a_task_are_merged_in_the_order_in_which_they_were_first_set(
    rush_server: RushConfig, each: list[dict[str, Any]]
) -> None:
    async def main() -> None:
        async with Rush(config=rush_server) as rush:
            try:
                (key,) = await rush.push_tasks([{"x": 1}])
                expected: dict[str, Any] = {}
                for values in each:
                    await rush.set_task_attrs(key, values)
                    expected |= values
                (found,) = await rush.task_attrs(key)
                assert list(found.items()) == list(expected.items())
            finally:
                await rush.reset()

    asyncio.run(main())


PAIR = b"\xdb\0\0\0\x01a\xc6\0\0\0\x01\x01"


@pytest.mark.parametrize("value", [*GARBAGE[1:], PAIR[:-1], PAIR[:6], PAIR[:3], PAIR + b"\x01", PAIR[6:] + PAIR[:6]])
async def test_attributes_of_a_task_that_another_program_wrote_are_decode_errors_and_stay(
    rush: Rush, raw: Any, value: bytes
) -> None:
    keys = await rush.push_tasks([{"x": 1}, {"x": 2}])
    place = keys_of(rush).task_attributes
    raw.hset(place, keys[0], value)
    await rush.set_task_attrs(keys[1], {"good": 1})
    for call in (rush.task_attrs(keys), rush.set_task_attrs(keys[0], {"a": 1})):
        with pytest.raises(DecodeError, match=rf"rush:{{{rush.network_id}}}:task_attributes.* holds no .* of this library"):
            await call
    assert await rush.task_attrs(keys[1]) == [{"good": 1}]
    assert raw.hget(place, keys[0]) == value


async def test_a_value_of_a_task_that_is_none_of_ours_is_a_decode_error_with_its_name(rush: Rush, raw: Any) -> None:
    (key,) = await rush.push_tasks([{"x": 1}])
    raw.hset(keys_of(rush).task_attributes, key, PAIR[:-1] + b"\xc1")
    with pytest.raises(DecodeError, match=rf"task_attributes, task '{key}', holds no value of this library under b'a'"):
        await rush.task_attrs(key)
    await rush.set_task_attrs(key, {"a": 2})  # it may be set again
    assert await rush.task_attrs(key) == [{"a": 2}]
