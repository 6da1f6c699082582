"""Errors name what another program has put in the place of a key."""

from __future__ import annotations

from typing import Any

import pytest

from rush_async import DecodeError, Rush, RushError
from rush_async.store.key_types import explained
from rush_async.store.keys import NetworkKeys

SCRIPT_FAILED = RushError("the server refused a call: ERR user_script:7: attempt to perform arithmetic on a string value")


async def explanation(rush: Rush, error: RushError = SCRIPT_FAILED) -> Exception:
    net = rush._net  # pyright: ignore[reportPrivateUsage]
    return await explained(net.link.connection, net.keys, error)


@pytest.mark.parametrize("name", ["meta", "queue", "finished", "workers", "leases", "returned", "log", "reports", "points"])
async def test_a_key_of_another_type_is_named(name: str, rush: Rush, raw: Any) -> None:
    key = getattr(NetworkKeys.of(rush.network_id), name)
    raw.set(key, "junk")
    error = await explanation(rush)
    assert isinstance(error, DecodeError)
    assert f"in the place of {key} (a string, not a " in str(error)
    raw.delete(key)


async def test_the_types_of_all_keys_are_known(rush: Rush, raw: Any) -> None:
    """A network with something in nearly every key: none of them is named."""
    await rush.push_tasks([{"x": 1}], unique=True)
    await rush.push_finished_tasks([{"x": 1}], [{"y": 1}])
    await rush.set_attrs({"a": 1})
    await rush.claim("c", 1)
    await rush.ranking("r").add("k", 1.0)
    await rush.push_tasks([{"x": 2}])
    raw.sadd(NetworkKeys.of(rush.network_id).imported_failed, "a failed task that was imported")
    assert "in the place of a value of " in str(await explanation(rush))


async def test_a_field_that_is_no_number_is_named(rush: Rush, raw: Any) -> None:
    meta = NetworkKeys.of(rush.network_id).meta
    raw.hset(meta, mapping={"seq": "abc", "asks": "", "epoch": 12})
    assert f"in the place of the field seq of {meta} (b'abc'), the field asks of {meta} (b'')" in str(await explanation(rush))
    raw.delete(meta)


async def test_another_error_is_left_as_it_is(rush: Rush) -> None:
    error = RushError("the server refused a call: ERR unknown command")
    assert await explanation(rush, error) is error
