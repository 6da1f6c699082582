"""The errors: what catches them, and what they carry."""

from __future__ import annotations

import asyncio
import inspect
import pickle
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest

import rush_async
from rush_async import Rush, RushClient, RushConfig, RushWorker, errors
from rush_async.errors import RushError, ServerFullError, TasksNotDoneError, listed, redact

BUILT_IN = {
    "DecodeError": ValueError,
    "EncodeError": TypeError,
    "NetworkStateError": RuntimeError,
    "RushConfigError": ValueError,
    "RushConnectionError": ConnectionError,
    "RushTimeoutError": TimeoutError,
    "SchemaError": ValueError,
    "TasksNotDoneError": TimeoutError,
    "WorkersNotReadyError": TimeoutError,
}
CLASSES = [name for name in rush_async.__all__ if name.endswith("Error")]


@pytest.mark.parametrize("name", CLASSES)
def test_an_error_is_caught_as_rush_error_and_as_the_built_in_that_fits(name: str) -> None:
    error = getattr(errors, name)
    assert issubclass(error, RushError)
    assert issubclass(error, BUILT_IN.get(name, Exception))


MISSPELLED: list[tuple[Callable[[Any], Any], str, str]] = [
    (lambda wrong: Rush("net", **wrong), "data_directory", "; did you mean data_dir?"),
    (lambda wrong: Rush("net", **wrong), "url", "; did you mean config?"),
    (lambda wrong: RushClient("net", **wrong), "seeds", "; did you mean seed?"),
    (lambda wrong: RushWorker("net", **wrong), "id", "; did you mean worker_id?"),
    (lambda wrong: RushConfig(**wrong), "heartbeat", "; did you mean heartbeat_period?"),
    (lambda wrong: replace(RushConfig(), **wrong), "retry_dead", "; did you mean retry_deadline?"),
    (lambda wrong: cast("Any", RushWorker("net")).task({}, **wrong), "budgets", "; did you mean budget?"),
    (
        lambda wrong: cast("Any", RushWorker("net")).task(**wrong),
        "x1",
        "; it takes xs, xs_extra, budget, max_failed, catch, timeout",
    ),
    (lambda wrong: asyncio.run(Rush("net").stop_when(**wrong)), "finish", "; did you mean finished?"),
    (lambda wrong: asyncio.run(Rush("net").resume(**wrong)), "timeout", "; did you mean seconds?"),
]


@pytest.mark.parametrize(("call", "wrong", "hint"), MISSPELLED, ids=[wrong for _, wrong, _ in MISSPELLED])
def test_a_misspelled_argument_is_an_error_that_names_the_right_one(call: Any, wrong: str, hint: str) -> None:
    with pytest.raises(TypeError) as caught:
        call({wrong: 1})
    assert str(caught.value).endswith(f"() got an unexpected keyword argument {wrong!r}{hint}")
    assert "__init__" not in str(caught.value)


def test_the_error_of_another_wrong_call_is_that_of_python_and_signatures_stay() -> None:
    with pytest.raises(TypeError, match=r"missing 1 required positional argument: 'network_id'"):
        RushWorker()  # pyright: ignore[reportCallIssue]
    with pytest.raises(TypeError, match="seed must be a whole number, not str"):
        Rush("net", seed="7")  # pyright: ignore[reportArgumentType]
    assert inspect.iscoroutinefunction(Rush.stop_when)
    assert list(inspect.signature(RushWorker.task).parameters)[:3] == ["self", "xs", "xs_extra"]
    assert "heartbeat_period" in inspect.signature(RushConfig).parameters


@pytest.mark.parametrize("name", CLASSES)
def test_the_tree_in_the_module_names_every_error_with_its_bases(name: str) -> None:
    (line,) = [line for line in (errors.__doc__ or "").splitlines() if line.split("─ ")[-1].split(" ")[0] == name]
    assert line.count("(") == (name in BUILT_IN and name not in ("TasksNotDoneError", "WorkersNotReadyError"))
    if "(" in line:
        assert f"({BUILT_IN[name].__name__})" in line


@pytest.mark.parametrize("name", CLASSES)
def test_an_error_keeps_its_message_when_it_is_pickled(name: str) -> None:
    error = getattr(errors, name)("what happened")
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.__dict__) == (type(error), "what happened", error.__dict__)


@pytest.mark.parametrize("name", CLASSES)
def test_the_public_errors_are_those_of_this_module(name: str) -> None:
    assert getattr(rush_async, name) is getattr(errors, name)
    assert name in errors.__all__


def test_a_full_server_names_the_tasks_already_written() -> None:
    assert ServerFullError("full").keys == []
    assert pickle.loads(pickle.dumps(ServerFullError("full", ("a", "b")))).keys == ["a", "b"]


def test_tasks_not_done_error_names_the_tasks() -> None:
    assert TasksNotDoneError("late").pending == []
    assert pickle.loads(pickle.dumps(TasksNotDoneError("late", ("a", "b")))).pending == ["a", "b"]


def test_five_names_are_listed_and_more_are_hinted_at() -> None:
    assert listed([]) == ""
    assert listed(["a", "b"]) == "a, b"
    assert listed("abcde") == "a, b, c, d, e"
    assert listed({str(n): n for n in range(9)}) == "0, 1, 2, 3, 4, ..."


def test_the_passwords_of_all_urls_in_a_text_are_hidden() -> None:
    text = (
        "from redis://a:one@h to rediss://:two@h and unix:///s?password=three&db=1, unix://:fo/ur@/s or redis://h?p%61ssword=x"
    )
    assert redact(text) == (
        "from redis://a:***@h to rediss://:***@h and unix:///s?password=***&db=1, unix://:***@/s or redis://h?p%61ssword=***"
    )
    assert redact("GET http://localhost:8000/users/ann@host failed") == "GET http://localhost:8000/users/ann@host failed"


def test_a_long_line_of_urls_is_searched_in_no_time() -> None:
    begin = time.monotonic()
    redact("redis://host:" * 10_000 + "@")
    assert time.monotonic() - begin < 0.5
