"""What callers pass is checked once, and refused with words that name the remedy."""

from __future__ import annotations

from typing import Any

import pytest

from rush_async import Failure, Task, TasksFinished
from rush_async.client.arguments import (
    as_failures,
    as_keys,
    as_number,
    as_states,
    as_text,
    check_kinds,
    check_lengths,
)


@pytest.mark.parametrize(("value", "number"), [(0, 0), (7, 7), (True, 1), (2**53, 2**53)])
def test_whole_numbers_are_taken(value: Any, number: int) -> None:
    assert as_number(value, "budget") == number


@pytest.mark.parametrize("value", [1.0, "7", None])
def test_what_is_no_whole_number_is_a_type_error(value: Any) -> None:
    with pytest.raises(TypeError, match="budget must be a whole number"):
        as_number(value, "budget")


@pytest.mark.parametrize("value", [-1, 128])
def test_a_number_out_of_range_is_a_value_error(value: int) -> None:
    with pytest.raises(ValueError, match="retries must be 0 to 127"):
        as_number(value, "retries", 127)


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
