"""The measures of the house, on small made-up packages: each finds what it counts, and nothing else."""

from __future__ import annotations

import ast
import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from benchmarks.house.__main__ import print_goal
from benchmarks.house.callables import callable_parameters
from benchmarks.house.goals import GOALS, Goal, Measured, Repository
from benchmarks.house.reference import public_classes, unlisted_names
from benchmarks.house.sources import code_lines, doors, lines, longest_chain, read_house, sizes, without_test_file
from benchmarks.house.walk import files_until_write
from benchmarks.house.words import WORDS, old_words


def named(found: list[str]) -> list[str]:
    """Returns the names without their places."""
    return [line.partition(" ")[2] for line in found]


# Files and imports


def test_sources_are_read_by_their_endings(tmp_path: Path) -> None:
    (tmp_path / "store" / "lua").mkdir(parents=True)
    for file in ("a.py", "store/b.py", "store/lua/c.lua", "py.typed"):
        (tmp_path / file).write_text(file, "utf-8")
    assert read_house(tmp_path) == {"a.py": "a.py", "store/b.py": "store/b.py"}
    assert list(read_house(tmp_path, ".lua")) == ["store/lua/c.lua"]


def test_doors_are_files_and_folders_at_the_top() -> None:
    assert doors({"__init__.py": "", "store/a.py": "", "store/b.py": "", "wire/lower/c.py": ""}) == [
        "__init__.py",
        "store",
        "wire",
    ]


@pytest.mark.parametrize(
    "late",
    [
        "def late():\n    from rush_async.c import x",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import rush_async.c",
        "import importlib\nimportlib.import_module('rush_async.c')",
    ],
)
def test_the_longest_chain_follows_late_imports_and_those_for_the_type_checker(late: str) -> None:
    house = {"a.py": "from rush_async import b\nfrom rush_async.d import x", "b.py": late, "c.py": "", "d.py": "import polars"}
    assert longest_chain(house) == ["rush_async.a", "rush_async.b", "rush_async.c"]


def test_the_longest_chain_ends_where_a_circle_closes() -> None:
    assert len(longest_chain({"a.py": "from rush_async import b", "b.py": "from rush_async import a"})) == 2
    assert longest_chain({}) == []


def test_a_module_is_tested_by_the_file_of_its_name() -> None:
    house = {
        "model.py": "",
        "store/keys.py": "",
        "store/tasks.py": "",
        "store/calls.py": "",
        "store/__init__.py": '"""The database."""\nfrom rush_async.store.keys import Keys',
        "extras/fastapi/__init__.py": "def rush_router(): ...",
        "extras/plots/__init__.py": "def plot(): ...",
        "__main__.py": "main()",
    }
    test = "async def test_it(): ..."
    tests = {
        "test_model.py": test,
        "store/test_keys.py": test,
        "test_tasks.py": test,
        "store/test_calls.py": "KEYS = 1",
        "extras/test_fastapi.py": test,
    }
    assert without_test_file(house, tests) == [
        "store/tasks.py has no tests/store/test_tasks.py",
        "store/calls.py has no tests/store/test_calls.py",
        "extras/plots/__init__.py has no tests/extras/plots/test_plots.py",
    ]
    assert without_test_file({"__main__.py": "def main(): ..."}, {}) == ["__main__.py has no tests/test_main.py"]


# Lines


SOURCE = '''"""A module.

Of two lines."""

import ast  # code with a comment

# a comment


class Search:
    """A class."""

    n: int = 3
    """An attribute."""

    @property
    def text(self) -> str:
        """A function."""
        return """
# no comment

"""
'''


def test_docstrings_comments_and_blank_lines_are_no_code() -> None:
    assert lines({"a.py": SOURCE}) == 22
    assert code_lines(SOURCE) == {5, 10, 13, 16, 17, 19, 20, 21, 22}


def test_sizes_are_of_modules_classes_and_functions_the_largest_first() -> None:
    house = {"a.py": SOURCE, "b.py": "def f():\n    async def inner():\n        ...\n"}
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    assert sizes(house, ast.Module) == [(9, "a.py"), (3, "b.py")]
    assert sizes(house, ast.ClassDef) == [(8, "a.py:10 Search")]
    assert sizes(house, *functions) == [(5, "a.py:17 text"), (3, "b.py:1 f"), (2, "b.py:2 inner")]


# Callables


@pytest.mark.parametrize(
    ("parameter", "body"),
    [
        ("p: Callable[[], None]", ""),
        ("p: Callable[[], None] | None = None", ""),
        ("*p: typing.Callable[..., int]", ""),
        ("**p: Callable", ""),
        ("p: 'Callable[[], None]'", ""),
        ("*, p: Mapping[str, Callable[[], None]]", ""),
        ("p: Maker", ""),
        ("p: Sequence[Makers]", ""),
        ("p: Given | None", ""),
        ("p: Renamed", ""),
        ("p: RunLoop", ""),
        ("p: Narrow", ""),
        ("p: Any", "p()"),
        ("p: object", "def later():\n        return p(1)"),
        ("p", "return [p(x) for x in []]"),
        ("p: Bound", "p()"),
    ],
)
def test_a_parameter_that_takes_something_to_be_called_is_named(parameter: str, body: str) -> None:
    house = {
        "ground.py": "Given: TypeAlias = Callable[[], int]\nclass Bound:\n    def __call__(self): ...",
        "a.py": dedent(
            """
            from collections.abc import Callable
            from rush_async.ground import Bound, Given, Given as Renamed
            Makers: TypeAlias = "list[Maker]"
            Maker = Callable[[int], str]
            class RunLoop(Protocol):
                def __call__(self, evals: int) -> None: ...
            class Narrow(RunLoop, Protocol): ...
            """
        )
        + f"async def f({parameter}):\n    {body or '...'}\n",
    }
    assert named(callable_parameters(house)) == ["f.p"]


@pytest.mark.parametrize(
    ("parameter", "body"),
    [
        ("p: Awaitable[int]", "await p"),
        ("p: Any", "p.run()"),
        ("p: Any", "other(p)"),
        ("p: Bound", ""),
        ("p: Given", ""),
        ("p: Literal['no', 'code at all']", ""),
        ("p: type[int]", "p(3)"),
        ("cls", "cls()"),
    ],
)
def test_a_parameter_that_is_not_called_is_not_named(parameter: str, body: str) -> None:
    house = {
        "ground.py": "Given: TypeAlias = Callable[[], int]",
        "a.py": "class Bound:\n    def __call__(self): ...\nclass Given: ...\n"
        f"def f({parameter}) -> Callable[[], None]:\n    {body or '...'}\n",
    }
    assert callable_parameters(house) == []


def test_a_parameter_kept_in_an_attribute_that_is_called_is_named_once() -> None:
    source = """
        class Batch:
            def __init__(self, done, size, owner: Any, make: type[T]) -> None:
                self._done = done
                self._size, self._owner, self.make = size, owner, make
                self.owner = owner
            def finish(self) -> None:
                self._done(self._size)
                self.owner.finish()
                self.start(1)
            def start(self, at: int) -> None: ...
    """
    assert callable_parameters({"a.py": dedent(source)}) == ["a.py:3 Batch.__init__.done"]


def test_a_field_that_takes_something_to_be_called_is_named() -> None:
    source = """
        @dataclass(frozen=True)
        class Launch:
            on_lost: Callable[[], None]
            ends: Any
            names: list[str]
            default: ClassVar[Callable[[], None]]
            def end(self): self.ends()
        class Channel(NamedTuple):
            on_message: Callable[[], None]
        class Plain:
            on_message: Callable[[], None]
    """
    found = named(callable_parameters({"a.py": dedent(source)}))
    assert found == ["Launch.on_lost", "Launch.ends", "Channel.on_message"]


# The reference


HOUSE = {
    "__init__.py": '__all__ = ["Rush", "Task", "rsh"]',
    "client.py": dedent(
        '''
        class Client:
            """What all share."""

            def __init__(self) -> None:
                self.config = 1
                self._seen = 2
            def counts(self): """Counts."""
            def check_size(self): """Checks."""
        '''
    ),
    "manager.py": dedent(
        '''
        from rush_async.client import Client
        class Rush(Client):
            """A manager.

            Attributes:
                name (str): its name.
            """

            limit = 3
            def __init__(self) -> None:
                self.name = "a"
                self.on_end = None
            def reset(self): """Resets."""
            def _close(self): """Closes."""
            @property
            def state(self): """The state."""
        def rsh(): ...
        '''
    ),
    "model.py": dedent(
        '''
        @dataclass
        class Base:
            at: float
        @dataclass
        class Task(Base):
            key: str
            def age(self): """An age."""
            def held(self): ...
        '''
    ),
}


def test_public_classes_are_those_in_all() -> None:
    assert public_classes(HOUSE) == ["Rush", "Task"]


def test_names_that_no_page_lists_are_named() -> None:
    page = "::: rush_async.Rush\n    options:\n      members:\n        - reset\n        - counts\n\n::: rush_async.Task\n"
    found = unlisted_names(HOUSE, {"client.md": page})
    assert found == ["Rush.check_size", "Rush.config", "Rush.limit", "Rush.on_end", "Rush.state", "Task.held"]


def test_what_the_page_of_a_base_lists_is_listed() -> None:
    pages = {
        "manager.md": "# Rush\n\n::: rush_async.Rush\n\nMore.\n",
        "client.md": "::: rush_async.Client\n    options:\n      inherited_members: true\n\n      members:\n        - config\n",
    }
    assert unlisted_names(HOUSE, pages) == [
        "Rush.check_size",
        "Rush.counts",
        "Rush.limit",
        "Rush.on_end",
        "Task.age",
        "Task.at",
        "Task.held",
        "Task.key",
    ]


def test_a_page_may_list_no_members() -> None:
    pages = {"a.md": "::: rush_async.Task\n    options:\n      members: []"}
    assert [name for name in unlisted_names(HOUSE, pages) if name.startswith("Task")] == ["Task.age", "Task.held"]


# The walk to the socket


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        one.setblocking(False)
        yield one, other


async def test_the_walk_has_the_files_that_run_until_the_write(
    pair: tuple[socket.socket, socket.socket], tmp_path: Path
) -> None:
    one, other = pair
    transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=one)

    async def write() -> None:
        await asyncio.sleep(0)
        transport.write(b"x")
        named([])

    try:
        assert await files_until_write(write, Path(__file__).parent) == [Path(__file__).name]
        assert other.recv(1) == b"x"
        with pytest.raises(RuntimeError, match="ended without a write"):
            await files_until_write(write, tmp_path)
    finally:
        transport.close()


# Old words


@pytest.mark.parametrize(
    ("source", "word"),
    [
        ("# whoever waits", "whoever"),
        ('"""A worker that\nstands by."""', "stands by"),
        ("n = 1\n'''Its heart.'''", "heart"),
        ("def _settle(): ...", "settle"),
        ("class WorkerCrew: ...", "crew"),
        ("def f(give_back): ...", "give back"),
        ("self.is_late = True", "is late"),
        ("def enter(): ...", "enter"),
        ("_PART = 1", "part"),
        ("history = 1", "history"),
        ("def f():\n    _seen_history = 1", "history"),
    ],
)
def test_an_old_word_is_named_with_what_to_say(source: str, word: str) -> None:
    (hit,) = old_words({"model.py": source}, {})
    assert f'says "{word}"' in hit
    assert ": say " in hit


@pytest.mark.parametrize(
    "source",
    [
        "# Part of the history: look for what is found here, and enter it by the clock.",
        "part = enter = look = 1",
        "def enter_blocks(self): ...",
        "def __enter__(self): ...",
        "stack.enter(journal.settle(crew))",
        "text = 'whoever'",
        "heartbeat = parceled = 1",
    ],
)
def test_words_of_the_field_and_ordinary_english_are_not_named(source: str) -> None:
    assert old_words({"model.py": source}, {}) == []


def test_old_words_are_found_in_lua_file_names_and_names_of_tests() -> None:
    house = {
        "store/journal.py": "",
        "store/lua/bye.lua": "local told, part = 1, 2 -- nobody\nlocal function leave(orders)\nreturn crew",
    }
    tests = {"test_a.py": "# told\ndef test_who_is_told(): ...\ndef crew(): ...\ndef test_the_history(): ..."}
    places = [hit.partition(" in ")[0] for hit in old_words(house, tests)]
    assert places == [
        'store/journal.py:1 says "journal"',
        'store/lua/bye.lua:1 says "bye"',
        'store/lua/bye.lua:1 says "nobody"',
        'store/lua/bye.lua:1 says "told"',
        'store/lua/bye.lua:2 says "leave"',
        'tests/test_a.py:2 says "told"',
    ]


def test_every_old_word_has_something_to_say_instead() -> None:
    assert [word.word for word in WORDS if not word.say] == []


# The table


def test_a_goal_is_measured_from_a_checkout(tmp_path: Path) -> None:
    files = {
        "rush_async/__init__.py": '__all__ = ["Rush"]\nfrom rush_async.manager import Rush',
        "rush_async/manager.py": "class Rush:\n    def crew(self, ask: Callable[[], None]):\n        'Asks.'\n        return 1",
        "rush_async/store/lua/push.lua": "return 1\n-- whoever",
        "tests/test_manager.py": "def test_nobody(): ...",
        "docs/reference/client.md": "# Clients\n",
    }
    for file, text in files.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text, "utf-8")
    at = Repository(tmp_path)
    assert [goal.measure(at).value for goal in GOALS if goal.measure is not None] == [2, 2, 1, 1, 3, 3, 2, 0, 3, 5]


def test_a_row_says_whether_its_goal_is_reached(capsys: pytest.CaptureFixture[str]) -> None:
    goal = Goal("doors", 1, 2)
    print_goal(goal, Measured.counted(["a.py"]), names=False)
    print_goal(goal, Measured.counted(["a.py", "b.py"]), names=True)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows == [["doors", "1", "<=", "1", "yes"], ["doors", "2", "<=", "1", "no"], ["a.py"], ["b.py"]]
