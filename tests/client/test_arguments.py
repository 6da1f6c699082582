"""What callers pass is checked once, and refused with words that name the remedy."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest

from rush_async import Failure, Rush, RushWorker, SchemaError, Task, TasksFinished
from rush_async.client.arguments import (
    as_failures,
    as_keys,
    as_schema,
    as_states,
    as_text,
    check_kinds,
    check_lengths,
)


def test_a_text_is_taken_as_it_is() -> None:
    assert as_text("ä b\0", "a name") == "ä b\0"


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (b"a", TypeError, "a name must be a string, not bytes"),
        ("", ValueError, "a name must have at least one character"),
        ("a\ud800", ValueError, "a name cannot be written as UTF-8: 'a.ud800': surrogates not allowed"),
    ],
)
def test_what_is_no_text_is_refused(value: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        as_text(value, "a name")


def test_one_key_or_several_become_a_list() -> None:
    assert as_keys("abc") == ["abc"]
    assert as_keys(("a", "b")) == ["a", "b"]
    assert as_keys(key for key in "ab") == ["a", "b"]


def test_keys_that_are_no_strings_are_refused() -> None:
    with pytest.raises(TypeError, match="a key is a string, not int"):
        as_keys(["a", 7])  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"task\.key"):
        as_keys(Task("a", "queued", {"x": 1}))  # pyright: ignore[reportArgumentType]


def test_states_come_once_each_and_none_means_all() -> None:
    assert as_states(["failed", "queued", "failed"]) == ("failed", "queued")
    assert as_states((["running", "finished"],)) == ("running", "finished")
    assert as_states(()) == ("queued", "running", "finished", "failed")
    with pytest.raises(ValueError, match="choose from queued, running, finished, failed"):
        as_states(["done"])


def test_a_failure_for_all_or_one_for_each() -> None:
    failure = Failure("error", None, "no")
    assert as_failures(failure, 3, "keys") == [failure] * 3
    assert [each.message for each in as_failures(["a", "b"], 2, "keys")] == ["a", "b"]
    with pytest.raises(ValueError, match="2 keys and 1 failures"):
        as_failures(["a"], 2, "keys")


def test_kinds_of_events_are_classes() -> None:
    check_kinds([TasksFinished])
    with pytest.raises(ValueError, match="no kind of event: choose from TasksQueued"):
        check_kinds(["TasksFinished"])


def test_paired_sequences_of_different_lengths_are_refused() -> None:
    check_lengths("xss", [1], "yss", [2])
    with pytest.raises(ValueError, match="xss has 1 entries and yss has 2"):
        check_lengths("xss", [1], "yss", [1, 2])


def with_timeout(client: Rush | RushWorker) -> dict[str, Callable[..., Any]]:
    """The methods that take a timeout, by name."""
    methods = inspect.getmembers(client, inspect.ismethod)
    return {name: method for name, method in methods if name[0] != "_" and "timeout" in inspect.signature(method).parameters}


async def test_every_call_refuses_a_timeout_that_is_none(rush: Rush, rush_worker: RushWorker) -> None:
    needed: dict[str, Any] = {"wait_until": (max,), "wait_for_tasks": ("key",), "wait_for_workers": (1,), "task": ({"x": 1},)}
    called = set[str]()
    for name, method in [*with_timeout(rush).items(), *with_timeout(rush_worker).items()]:
        called.add(name)
        for timeout, error in ((math.nan, ValueError), ("1", TypeError), (True, TypeError)):
            async with asyncio.timeout(5):
                with pytest.raises(error, match="timeout must be a number"):
                    answer = method(*needed.get(name, ()), timeout=timeout)
                    await (anext(answer) if inspect.isasyncgen(answer) else answer)
    assert {"wait_until", "wait_for_tasks", "fetch_new_tasks", "wait_until_stopped", "wait_for_workers"} <= called
    assert {"join_workers", "stop_workers", "pop_task", "task", "tasks"} <= called
    assert (await rush.counts()).total == 0


async def test_budgets_are_whole_numbers_that_a_double_holds(rush_worker: RushWorker) -> None:
    for budget, error, words in ((True, TypeError, "not bool"), (2**53 + 1, ValueError, "0 to"), (1.5, TypeError, "not float")):
        with pytest.raises(error, match=f"budget must be .*{words}"):
            rush_worker.task({"x": 1}, budget=budget)  # pyright: ignore[reportArgumentType, reportCallIssue]
        with pytest.raises(error, match=f"max_failed must be .*{words}"):
            rush_worker.task({"x": 1}, budget=1, max_failed=budget)  # pyright: ignore[reportArgumentType, reportCallIssue]


async def test_a_condition_on_counts_is_a_function(rush: Rush) -> None:
    wrong: Any = rush.wait_until
    for condition in (True, "finished"):
        with pytest.raises(TypeError, match=rf"`wait_until\(lambda counts: .*, not {type(condition).__name__}: "):
            await wrong(condition)


@pytest.mark.parametrize("schema", ["x", [1], 5])
def test_a_schema_is_a_mapping(schema: Any) -> None:
    with pytest.raises(SchemaError, match="does not map column names to polars dtypes: give a dict"):
        Rush(schema=schema)
    assert as_schema({}) is None
    assert as_schema({"x": int}) == {"x": int}
