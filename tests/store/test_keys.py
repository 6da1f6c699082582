"""The keys of a network in the database, and the ids that may name a network or a worker."""

from __future__ import annotations

from typing import Any

import pytest

from rush_async import RushConfigError
from rush_async.store.keys import ALPHABET, NetworkKeys, check_network_id, check_worker_id, client_id, random_network_id


def test_the_keys_of_a_network_lie_in_one_slot_and_differ() -> None:
    keys = NetworkKeys.of("net")
    assert keys.queue == "rush:{net}:queue"
    assert all(key.startswith("rush:{net}:") for key in keys)
    assert len(set(keys)) == len(keys)


def test_only_channels_have_the_number_of_the_database_in_their_names() -> None:
    first, other = NetworkKeys.of("net"), NetworkKeys.of("net", db=3)
    changed = [name for name in NetworkKeys._fields if getattr(first, name) != getattr(other, name)]
    assert changed == ["events", "control", "report_events"]
    assert other.events == "rush:{net}:events:3"
    assert (first.report_events, other.report_events) == ("rush:{net}:events:reports", "rush:{net}:events:reports:3")


@pytest.mark.parametrize("name", ["a", "a b|c", "ü-1", "x" * 200])
def test_an_id_that_can_name_a_network_is_returned(name: str) -> None:
    assert check_network_id(name) == name


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (5, "must be a string, not int"),
        ("", "is empty: give a name of 1 to 200 characters, or leave it out for a random one"),
        ("x" * 201, "1 to 200 characters, not 201"),
        ("a{b", "contains '{'"),
        ("a\nb", r"contains '\\n'"),
        ("\ud800", "surrogates"),
    ],
)
def test_the_error_of_another_network_id_names_the_reason(name: Any, words: str) -> None:
    with pytest.raises(RushConfigError, match=f"network_id.*{words}"):
        check_network_id(name)


def test_ids_of_workers_are_shorter_and_have_no_separator() -> None:
    assert check_worker_id("owl" * 20) == "owl" * 20
    with pytest.raises(RushConfigError, match="worker_id must have 1 to 60 characters, not 61"):
        check_worker_id("x" * 61)
    with pytest.raises(RushConfigError, match=r"worker_id 'a\|b' contains '\|'"):
        check_worker_id("a|b")


def test_random_names_differ_and_are_valid() -> None:
    networks, clients = {random_network_id() for _ in range(100)}, {client_id() for _ in range(100)}
    assert len(networks) == len(clients) == 100
    assert all(check_network_id(name) == name for name in networks)
    assert all(len(name) == 10 and set(name) <= set(ALPHABET) for name in clients)
