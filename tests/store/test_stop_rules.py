"""The calls that set the stop rules and stop a network: what they answer, and what they leave alone."""

from __future__ import annotations

import logging
import re
from typing import Any

import msgpack  # pyright: ignore[reportMissingTypeStubs]
import pytest

from rush_async import DecodeError, Rush, RushWorker
from rush_async.store.codec import decode, to_msgpack
from rush_async.store.keys import NetworkKeys, client_name
from rush_async.store.leases import Lease
from rush_async.store.scripts import WITHDRAW, ScriptCaller
from rush_async.store.stop_rules import EXPIRE, StopRules, StopRulesStore
from rush_async.testing import wait_until
from rush_async.worker.log_capture import capture
from rush_async.worker.worker import membership_of
from tests.launch.loops_of_tests import serve

XS = {"x": 1.0}


def rules_of(rush: Rush) -> StopRulesStore:
    return rush._net.stop_rules  # pyright: ignore[reportPrivateUsage]


def kept(rush: Rush, raw: Any) -> dict[str, Any]:
    """What `meta` keeps of the rules and the stop."""
    meta = raw.hgetall(rush._net.keys.meta)  # pyright: ignore[reportPrivateUsage]
    found = {name: meta[name.encode()] for name in ("rules", "stop") if name.encode() in meta}
    # A text of Lua may have any bytes.
    unpack: Any = msgpack.unpackb  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return {name: unpack(value, unicode_errors="surrogateescape") if value else "" for name, value in found.items()}


def test_equal_rules_are_packed_equally_and_without_what_is_not_given() -> None:
    rules = StopRules(finished=3, output="y", target=0.5)
    assert decode(rules.encode()) == {"finished": 3, "output": "y", "target": 0.5}
    assert rules.encode() == StopRules(3, None, None, "y", False, 0.5).encode()
    assert decode(rules._replace(maximize=True).encode()) == {"finished": 3, "output": "y", "target": 0.5, "maximize": True}
    assert decode(StopRules().encode()) == {}


async def test_rules_are_kept_in_meta_with_the_best_and_when_it_came(rush: Rush, raw: Any) -> None:
    rules = rules_of(rush)
    assert kept(rush, raw) == {}
    await rush.push_finished_tasks([XS] * 2, [{"y": 4.0}, {"y": 3.0}])
    given = StopRules(finished=9, output="y", patience=5, seconds=60.0)
    assert await rules.set(given, 4.0, 1, lifts=False) == "set"  # the second one is read by the script
    found = kept(rush, raw)
    assert found["stop"] == ""
    assert (found["rules"]["best"], found["rules"]["best_at"]) == (3, 2)
    assert found["rules"]["deadline"] > 60
    await rush.push_finished_tasks([XS] * 3, [{"y": 3.5}, {"y": 2.5}, {"y": 2.5}])
    found = kept(rush, raw)
    assert (found["rules"]["best"], found["rules"]["best_at"]) == (2.5, 4)
    assert await rules.set(given, 0.0, 5, lifts=False) == "same"
    assert kept(rush, raw) == found


async def test_a_caller_that_read_too_few_finished_tasks_or_more_than_there_are_is_behind(rush: Rush, raw: Any) -> None:
    rules = rules_of(rush)
    await rush.push_finished_tasks([XS] * 1_002, [{"y": 1.0}] * 1_001 + [{"y": 0.5}])
    given = StopRules(output="y", target=0.5)
    for n_read in (0, 1, 1_003):
        assert await rules.set(given, None, n_read, lifts=False) == "behind"
        assert kept(rush, raw) == {}
    assert await rules.set(given, None, 2, lifts=False) == "set"
    assert kept(rush, raw)["rules"]["best"] == 0.5
    assert rush.stop_reason is not None


async def test_what_a_call_answers_on_a_stopped_network(rush: Rush, raw: Any) -> None:
    rules = rules_of(rush)
    given = StopRules(finished=1)
    assert await rules.set(given, None, 0, lifts=False) == "set"
    await rush.push_finished_tasks([XS], [{"y": 1}])
    found = kept(rush, raw)
    assert found["stop"][0] == "finished"
    assert found["stop"][3] == "1 tasks have finished"
    assert await rules.set(given, None, 0, lifts=False) == "same"
    assert await rules.set(StopRules(finished=2), None, 0, lifts=False) == "stopped"
    assert await rules.set(given, None, 0, lifts=True) == "finished"
    await rules.stop("in vain")
    assert kept(rush, raw) == found
    assert await rules.set(StopRules(finished=2), None, 0, lifts=True) == "set"
    assert kept(rush, raw)["stop"] == ""
    assert await rules.set(StopRules(), None, 0, lifts=True) == "set"
    assert kept(rush, raw) == {}


async def test_a_call_answers_how_much_time_is_left_until_it_is_up(rush: Rush, raw: Any) -> None:
    rules = rules_of(rush)
    assert await rules.judge_time() is None
    assert raw.keys("*") == []
    await rules.set(StopRules(finished=9), None, 0, lifts=False)
    assert await rules.judge_time() is None
    await rules.set(StopRules(seconds=60.0), None, 0, lifts=False)
    left = await rules.judge_time()
    assert left is not None
    assert 50 < left <= 60
    await rules.set(StopRules(seconds=1e-6), None, 0, lifts=False)
    assert await rules.judge_time() is None
    assert kept(rush, raw)["stop"][0] == "seconds"
    assert await rules.judge_time() is None


async def test_rules_are_not_set_in_an_epoch_whose_archive_was_not_read(rush: Rush, elsewhere: Rush) -> None:
    await rush.push_finished_tasks([XS], [{"y": 1}])
    await elsewhere.counts()
    await rush.reset(workers=False)
    await rush.push_tasks([XS])
    assert await rules_of(elsewhere).set(StopRules(output="y", target=1.0), 1.0, 1, lifts=False) == "behind"
    assert rush.stop_reason is None


async def test_the_rules_are_read_as_they_were_given(rush: Rush, raw: Any) -> None:
    assert await rush.stop_rules() == {}
    rules: list[dict[str, Any]] = [
        {"finished": 5, "failed": 6, "seconds": 60.5},
        {"target": {"y": 0.1}, "patience": ("y", 7), "maximize": True},
        {"patience": ("y", 3)},
    ]
    for each in rules:
        await rush.stop_when(**each)
        assert await rush.stop_rules() == each
    await rush.stop()
    assert await rush.stop_rules() == rules[-1]
    await rush.resume()
    assert await rush.stop_rules() == {}
    await rush.stop()
    assert await rush.stop_rules() == {}


@pytest.mark.parametrize("found", [b"\xc1", b"\x01", b"\x80", to_msgpack({"spec": to_msgpack({"unheard": 1})})], ids=repr)
async def test_rules_of_another_program_are_refused(rush: Rush, raw: Any, found: bytes) -> None:
    await rush.stop_when(finished=5)
    raw.hset(rush._net.keys.meta, "rules", found)  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(DecodeError, match=r"not packed by a script|not the stop rules of a network"):
        await rush.stop_rules()
    raw.hdel(rush._net.keys.meta, "rules")  # pyright: ignore[reportPrivateUsage]


def expiry(rush: Rush, raw: Any) -> dict[str, int]:
    """When each key of the network expires (milliseconds since 1970); -1 for never."""
    prefix = f"rush:{{{rush.network_id}}}:"
    return {key.decode().removeprefix(prefix): raw.pexpiretime(key) for key in raw.keys(f"{prefix}*")}


def test_the_script_names_every_key_of_a_network() -> None:
    (names,) = re.findall(r"gmatch\('([^)]*)', '%S\+'\)", EXPIRE.source)
    channels = {"events", "control", "report_events"}
    assert set(re.findall(r"[\w:]+", names)) == set(NetworkKeys._fields) - channels | {"calls:clients"}


async def test_all_keys_of_an_ended_network_expire_at_one_moment_and_the_first_call_that_uses_it_lifts_that(
    rush: Rush, raw: Any
) -> None:
    await rush.set_attrs({"a": 1})
    await rush.claim("c", 1)
    await rush.ranking("r").add("k", 1.0)
    await rush.push_finished_tasks([XS, {"x": 2}], [{"y": 1}] * 2, unique=True)
    await rush.push_failed_tasks([XS])
    rush.worker_command(serve)
    await rush.expire(3600)  # while workers run
    async with RushWorker(rush.network_id, rush.config) as worker:
        with capture(worker.worker_id, {"my": "INFO"}, membership_of(worker)):
            logging.getLogger("my").warning("it is there")
        (key,) = await worker.push_running_tasks([XS])
        await rush.set_task_attrs(key, {"a": 1})
        await worker.report_tasks(key, [{"loss": 1.0}])
        assert set(expiry(rush, raw).values()) == {-1}
        await worker.finish_tasks(key, [{"y": 1}])
        assert set(expiry(rush, raw).values()) == {-1}
    found = expiry(rush, raw)
    assert {"rankings:r", "log", "reports", "points", "starts", "calls", "claims", "attributes", "failed"} <= found.keys()
    (at,) = set(found.values())
    assert 3590 < at / 1000 - raw.time()[0] < 3601
    network = rush._net  # pyright: ignore[reportPrivateUsage]
    raw.delete(network.keys.log)
    network.log_writer.start()
    network.log_writer.log(b"\x90")  # comes late
    await network.log_writer.flush()
    assert expiry(rush, raw)["log"] == at

    raw.delete(network.keys.calls, f"{network.keys.calls}:clients")
    withdrawn = ScriptCaller(network.keys).both(WITHDRAW, [str(network.position.epoch), client_name(), 1])
    await network.link.connection.ask_script(*withdrawn)
    found = expiry(rush, raw)
    assert {"calls", "calls:clients"} <= found.keys()
    assert -1 not in found.values()

    (key,) = await rush.push_tasks([{"x": 3}])
    assert set(expiry(rush, raw).values()) == {-1}
    await rush.cancel_tasks(str(key))
    (again,) = set(expiry(rush, raw).values())
    assert again >= at
    await rush.expire(None)
    assert set(expiry(rush, raw).values()) == {-1}
    await rush.set_attrs({"a": 2})
    assert set(expiry(rush, raw).values()) == {-1}

    await rush.expire(0.001)
    await wait_until(lambda: not expiry(rush, raw))
    assert (await rush.counts()).total == 0
    await rush.push_finished_tasks([XS], [{"y": 1}])  # founds another network, which has no time to live
    assert (await rush.fetch_finished_tasks()).height == 1
    assert set(expiry(rush, raw).values()) == {-1}


async def test_a_time_to_live_costs_no_command_while_a_network_is_in_use(rush: Rush, raw: Any) -> None:
    for _ in range(2):  # the first call creates the network, the next one notes the name of the client
        await rush.push_tasks([XS])

    async def commands() -> dict[str, int]:
        raw.config_resetstat()
        await rush.push_tasks([XS])
        stats = raw.info("commandstats")
        return {name: each["calls"] for name, each in stats.items() if "config" not in name and "info" not in name}

    without = await commands()
    await rush.expire(3600)
    assert await commands() == without
    assert not any("expire" in name or "persist" in name or "ttl" in name for name in without)


async def test_a_starting_worker_keeps_the_network(rush: Rush, raw: Any) -> None:
    store, lease = rush._net.workers, Lease("lease", 500.0, 2000.0)  # pyright: ignore[reportPrivateUsage]
    await store.announce(["owl"], {"pid": None}, lease)
    await rush.expire(3600)
    assert set(expiry(rush, raw).values()) == {-1}
    await store.report("owl", "failed", None)
    assert -1 not in expiry(rush, raw).values()
    await rush.reset(workers=False)
    assert -1 not in expiry(rush, raw).values()
