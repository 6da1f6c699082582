"""Worker loops: which functions are accepted, how arguments reach them, and the errors for the others."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from rush_async.worker.loop import bind_loop, bound, name_of, with_worker_class


async def with_rate(rush: object, rate: float, steps: int = 3) -> tuple[object, float, int]:
    return rush, rate, steps


class Loop:
    async def __call__(self, rush: object, rate: float) -> tuple[object, float]:
        return rush, rate

    async def method(self, rush: object, rate: float) -> tuple[object, float]:
        return rush, rate


@pytest.mark.parametrize(
    ("loop", "name", "given"),
    [
        (with_rate, "with_rate", ("worker", 0.5, 3)),
        (functools.partial(with_rate, steps=7), "with_rate", ("worker", 0.5, 7)),
        (functools.partial(functools.partial(with_rate, steps=1), steps=2), "with_rate", ("worker", 0.5, 2)),
        (Loop(), "Loop", ("worker", 0.5)),
        (functools.partial(Loop()), "Loop", ("worker", 0.5)),
        (Loop().method, "Loop.method", ("worker", 0.5)),
    ],
)
async def test_every_callable_that_returns_an_awaitable_is_a_loop(loop: Callable[..., Any], name: str, given: Any) -> None:
    found = bind_loop(loop, {"rate": 0.5}, {})
    assert found.name == name
    assert await found("worker") == given


async def test_args_and_keywords_are_combined() -> None:
    assert await bind_loop(with_rate, {"rate": 0.5}, {"steps": 9})("worker") == ("worker", 0.5, 9)


def not_async(rush: object) -> None: ...


async def generator(rush: object) -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("loop", "args", "words"),
    [
        (
            not_async,
            {},
            r"not_async is not `async def`.*rush\.task\(.*not_async\(\*\*xs\).*Processes\(\).*to_thread\(",
        ),
        (functools.partial(not_async), {}, "not_async is not `async def`"),
        (generator, {}, "has a `yield`"),
        ("a string", {}, "is a coroutine function, not str: 'a string'"),
        (with_rate, {}, r"with_rate\(.*\).* cannot be called with no arguments beside the worker: missing .*'rate'"),
        (with_rate, {"rate": 1, "speed": 2}, r"\['rate', 'speed'\].*unexpected keyword argument 'speed'"),
        (with_rate, {"rate": 1, "rush": 2}, "multiple values for argument 'rush'"),
        (Loop, {"rate": 1}, "not `async def`"),
    ],
)
def test_a_loop_that_cannot_be_called_is_a_type_error(loop: Any, args: dict[str, Any], words: str) -> None:
    with pytest.raises(TypeError, match=words):
        bind_loop(loop, args, {})


def test_a_misspelled_argument_of_the_loop_is_named() -> None:
    with pytest.raises(TypeError, match=r"missing .*'rate'; did you mean rate in place of rat\?"):
        bind_loop(with_rate, {}, {"rat": 1}, {"args"})


def test_an_argument_given_in_args_and_as_a_keyword_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="'rate' is given twice"):
        bind_loop(with_rate, {"rate": 1}, {"rate": 2})


def test_a_misspelled_option_is_suggested() -> None:
    options = {"loop", "n_workers", "on", "args"}
    with pytest.raises(
        TypeError, match=r"unexpected keyword argument 'n_worker'; did you mean n_workers, an option of start_workers\?"
    ):
        bind_loop(with_rate, {"rate": 1}, {"n_worker": 2}, options)


@pytest.mark.parametrize(
    ("args", "keywords"),
    [({"n_worker": 2}, {}), ({}, {"speed": 2}), ({"n_workers": 1}, {"steps": 2})],
    ids=["in args", "not similar to an option", "a keyword of the loop"],
)
def test_no_option_is_suggested_for_other_arguments(args: dict[str, Any], keywords: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="cannot be called with") as caught:
        bind_loop(with_rate, {"rate": 1, **args}, keywords, {"n_workers", "on"})
    assert "did you mean" not in str(caught.value)


async def with_option(rush: object, on: str = "default") -> str:
    return on


async def test_a_parameter_with_the_name_of_an_option_is_a_type_error_with_the_remedy() -> None:
    words = r"parameter 'on', which is an option of start_workers: pass it as args=\{'on': ...\} or with functools\.partial"
    with pytest.raises(TypeError, match=words):
        bind_loop(with_option, None, {}, {"on"})
    assert await bind_loop(with_option, {"on": "there"}, {}, {"on"})("worker") == "there"
    assert await bind_loop(functools.partial(with_option, on="elsewhere"), None, {}, {"on"})("worker") == "elsewhere"


async def test_variadic_parameters_may_have_the_name_of_an_option() -> None:
    async def anything(rush: object, *args: object, **on: object) -> dict[str, object]:
        return on

    assert await bind_loop(anything, None, {"x": 1}, {"args", "on"})("worker") == {"x": 1}


def test_the_workers_parameter_may_have_the_name_of_an_option() -> None:
    async def loop(on: object) -> None: ...

    assert bind_loop(loop, None, {}, {"on"}).name.endswith("loop")
    assert name_of(functools.partial(with_rate, rate=1)) == "with_rate"


# bound


async def test_bound_takes_arguments_by_position_and_by_name() -> None:
    for each in (bound(with_rate, 0.5, steps=9), bound(with_rate, rate=0.5, steps=9)):
        assert each.arguments == {"rate": 0.5, "steps": 9}
        assert await each("worker") == ("worker", 0.5, 9)


async def test_a_bound_loop_is_a_loop_whose_arguments_may_have_the_names_of_options() -> None:
    async def with_option(rush: Any, on: str, n: int = 0) -> tuple[str, int]:
        return on, n

    again = bind_loop(bound(with_option, on="there"), {"n": 1}, {}, {"on"})
    assert await again("worker") == ("there", 1)


async def test_a_loop_that_is_bound_again_keeps_the_class_of_its_workers() -> None:
    class Worker:
        pass

    once = with_worker_class(bound(with_rate, 0.5), Worker, object)
    assert bind_loop(once, None, {}).worker_class is Worker


def test_wrong_arguments_of_bound_are_refused() -> None:
    wrong: Any = bound
    with pytest.raises(TypeError, match=r"with_rate takes \d arguments after rush, not 9"):
        wrong(with_rate, *range(9))
    with pytest.raises(TypeError, match=r"missing .*'rate'"):
        wrong(with_rate)
    with pytest.raises(TypeError, match="'rate' is given twice"):
        wrong(with_rate, 0.5, rate=0.5)
    with pytest.raises(TypeError, match="is not `async def`"):
        wrong(len)
