"""The pages: the code that they show, the tables that must be complete, and the runner that follows them."""

from __future__ import annotations

import ast
import enum
import inspect
import math
import os
import re
import sys
import textwrap
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, fields
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, NamedTuple, get_args

import numpy as np
import polars as pl
import psutil
import pydantic
import pytest
from sybil import Document

import rush_async
import rush_async.extras.fastapi
import rush_async.extras.metrics
import rush_async.extras.opentelemetry
import rush_async.extras.progress
import rush_async.testing
from docs.run_pages import PageError, Reader, fences_of, is_followed, is_output
from docs.samples import SampleError, definitions, with_samples
from rush_async import Rush
from rush_async.cli.options import Parser
from rush_async.cli.program import COMMANDS, Command, fill, main
from rush_async.model import RESERVED_NAMES
from rush_async.network.network import Network
from rush_async.store.keys import NetworkKeys
from rush_async.store.scripts import Script
from rush_async.testing import wait_until
from tests.test_house import FLOORS

assert Network  # the modules that declare scripts are loaded with it

ROOT = Path(__file__).parents[1]
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])

LANGUAGES = {"sh", "python", "r", "text", "ini", "yaml", "json", "toml", "html", "js", "css", "dockerfile"}


def read(page: str) -> str:
    return (ROOT / page).read_text("utf-8")


class Block(NamedTuple):
    """A fenced block of a page, and whether a reader follows it."""

    language: str
    title: str | None
    text: str
    is_followed: bool = True


def blocks_of(text: str) -> list[Block]:
    """The blocks of a page, as the runner sees them."""
    regions = list(fences_of(Document(text, "page.md")))
    return [Block(each.lexemes["language"], each.lexemes["title"], each.parsed, is_followed(each)) for each in regions]


# samples that are pieces of an example

MODULE = '''"""A module."""

import functools

LEAST = 0.3979
LOW: float = -5.0
a, b = 1, 2


@functools.cache
def branin(x: float) -> float:
    """The Branin function."""

    def inner() -> float:
        return x

    return inner()


class Search:
    """A search."""

    n = 3


async def loop() -> None:
    pass
'''


def refreshed(tmp_path: Path, sample: str, *, indent: str = "") -> str:
    """What becomes of a sample whose file has the functions above."""
    (tmp_path / "module.py").write_text(MODULE, "utf-8")
    page = textwrap.indent(f'```python title="in module.py"\n{sample}```', indent)
    text = with_samples(f"Text\n\n{page}\n\nMore\n", root=tmp_path)
    assert text.startswith(f'Text\n\n{indent}```python title="in module.py"\n')
    assert text.endswith(f"\n{indent}```\n\nMore\n")
    return "\n".join(text.split("\n")[3:-4])


def test_a_definition_is_found_with_its_decorators_and_docstring() -> None:
    found = definitions(MODULE)
    assert list(found) == ["LEAST", "LOW", "a", "b", "branin", "Search", "loop"]
    assert found["branin"].startswith("@functools.cache\ndef branin")
    assert found["branin"].endswith("    return inner()")
    assert (found["LEAST"], found["LOW"], found["a"]) == ("LEAST = 0.3979", "LOW: float = -5.0", "a, b = 1, 2")


def test_a_sample_gets_what_its_file_has_under_the_same_names_in_the_same_order(tmp_path: Path) -> None:
    found = definitions(MODULE)
    old = "LOW = 1\nLEAST = 2\n\n\nasync def loop() -> None:\n    return\n\n\nclass Search:\n    n = 4\n"
    assert refreshed(tmp_path, old) == f"{found['LOW']}\n{found['LEAST']}\n\n\n{found['loop']}\n\n\n{found['Search']}"


def test_a_sample_in_a_list_stays_indented_and_its_empty_lines_stay_empty(tmp_path: Path) -> None:
    text = refreshed(tmp_path, "def branin() -> None: ...\n", indent="    ")
    assert text == textwrap.indent(definitions(MODULE)["branin"], "    ")


def test_only_blocks_with_the_name_of_a_file_are_samples(tmp_path: Path) -> None:
    text = '```python\nx = 1\n```\n\n```python title="in your program"\ny = 2\n```\n'
    assert with_samples(text, root=tmp_path) == text


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("nowhere.py", "a sample is from nowhere.py, which does not exist"),
        ("module.py", "module.py does not define inner; it defines LEAST, LOW"),
    ],
)
def test_the_error_names_what_a_sample_cannot_be_taken_from(tmp_path: Path, path: str, sentence: str) -> None:
    (tmp_path / "module.py").write_text(MODULE, "utf-8")
    with pytest.raises(SampleError, match=re.escape(sentence)):
        with_samples(f'```python title="in {path}"\ndef loop(): ...\n\n\ndef inner(): ...\n```\n', root=tmp_path)


@pytest.mark.parametrize("page", PAGES)
def test_the_samples_of_a_page_are_equal_to_the_examples(page: str) -> None:
    assert with_samples(read(page)) == read(page), "run `python -m docs.samples`"


@pytest.mark.parametrize("page", [page for page in PAGES if page not in ("docs/architecture.md", "docs/wire-format.md")])
def test_no_line_of_a_sample_is_cut_on_the_page(page: str) -> None:
    lines = [line for block in blocks_of(read(page)) for line in block.text.split("\n")]
    assert [line for line in lines if len(line) > 88] == []


# the pages as a whole


def test_every_page_is_in_the_navigation_once() -> None:
    named = re.findall(r"[\w/-]+\.md", read("mkdocs.yml"))
    assert sorted(f"docs/{page}" for page in named) == [page for page in PAGES if page != "README.md"]


@pytest.mark.parametrize("page", PAGES)
def test_every_fence_is_one_that_the_runner_understands(page: str) -> None:
    fences = [line.strip() for line in read(page).split("\n") if re.match(r" *`{3,} *[^` ]", line)]
    blocks = blocks_of(read(page))
    understood = [f'{block.language} title="{block.title}"' if block.title else block.language for block in blocks]
    assert [fence.lstrip("`") for fence in fences] == understood
    # Bash takes the failure of `a && b` in the middle of a block for a test, and would continue.
    lines = [line for block in blocks if block.language == "sh" and block.is_followed for line in block.text.split("\n")[:-2]]
    assert [line for line in lines if "&&" in line] == []
    # Blocks that run are marked `sh` or `python`; no other block is marked so.
    assert {block.language for block in blocks} <= LANGUAGES
    titles = [block.title for block in blocks if block.title and block.title.startswith("in examples/")]
    assert [title for title in titles if not (ROOT / title.removeprefix("in ")).is_file()] == []


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_the_links_of_the_repositorys_pages_lead_to_files(page: str) -> None:
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", read(page)) if "://" not in link]
    assert [link for link in links if link and not (ROOT / link).exists()] == []


@pytest.mark.parametrize("page", ["SECURITY.md", "docs/reliability.md"])
def test_the_tests_that_a_page_names_exist(page: str) -> None:
    named = re.findall(r"\btests/[\w/.]+", read(page))
    assert named
    assert [path for path in named if not (ROOT / path.rstrip(".")).exists()] == []


# the architecture

ARCHITECTURE = "docs/architecture.md"
PACKAGE = ROOT / "rush_async"


def names_in(source: str) -> set[str]:
    """The functions, classes and variables that a module defines; those of a class also with its name in front."""

    def names_of(node: ast.AST) -> list[str]:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                return [name]
            case ast.Assign(targets=targets):
                return [target.id for target in targets if isinstance(target, ast.Name)]
            case ast.AnnAssign(target=ast.Name(id=name)):
                return [name]
            case _:
                return []

    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        found.update(names_of(node))
        if isinstance(node, ast.ClassDef):
            found.update(f"{node.name}.{name}" for each in node.body for name in names_of(each))
    return found


def test_names_in_a_module_are_found_with_and_without_their_class() -> None:
    assert {"LEAST", "LOW", "branin", "inner", "Search", "n", "Search.n", "loop"} == names_in(MODULE)


def missing_names(page: str) -> list[str]:
    """The `path.py` and `path.py:name` of a page that do not exist; paths are those of the package or the repository."""
    missing: list[str] = []
    for path, name in re.findall(r"`([\w./-]+\.(?:py|lua))(?::([\w.]+))?`", read(page)):
        file = next((place / path for place in (PACKAGE, ROOT) if (place / path).is_file()), None)
        if file is None or (name and name not in names_in(file.read_text("utf-8"))):
            missing.append(f"{path}:{name}" if name else path)
    return missing


@pytest.mark.parametrize("page", [ARCHITECTURE, "CONTRIBUTING.md"])
def test_every_module_and_function_that_the_page_names_exists(page: str) -> None:
    assert missing_names(page) == []


def modules_of_tree() -> list[str]:
    """The modules that the tree of the page lists; of a folder, `__init__.py`."""
    (tree,) = [block.text.rstrip("\n") for block in blocks_of(read(ARCHITECTURE)) if block.language == "text"]
    modules: list[str] = []
    folders: list[str] = []
    for line in tree.split("\n"):
        depth = (len(line) - len(line.lstrip())) // 2
        del folders[depth:]
        if folder := re.match(r" *(\w+)/ ", line):
            folders.append(folder[1])
            modules.append("/".join([*folders, "__init__.py"]))
        else:
            names = re.match(r" *((?:\w+\.py *)+)", line)
            assert names is not None, line
            modules += ["/".join([*folders, name]) for name in names[1].split()]
    return modules


def test_the_tree_has_every_module_of_the_package_once() -> None:
    assert sorted(modules_of_tree()) == sorted(file.relative_to(PACKAGE).as_posix() for file in PACKAGE.rglob("*.py"))


def test_the_tree_has_the_folders_from_the_top_floor_down() -> None:
    folders = list(dict.fromkeys(module.partition("/")[0] for module in modules_of_tree() if "/" in module))
    rooms = [room for floor in reversed(FLOORS) for room in sorted(floor.rooms)]
    assert folders == [room for room in rooms if room in folders]


# the wire format

WIRE_FORMAT = "docs/wire-format.md"
_HEAD = ("epoch", "client", "number")  # the first arguments of every script


def named(cell: str) -> tuple[str, ...]:
    return tuple(re.findall(r"`(\w+)`", cell))


def test_the_table_of_scripts_has_every_script_with_its_keys_arguments_and_columns() -> None:
    rows = rows_of(WIRE_FORMAT, r"^\| `(\w+)` \|([^|\n]*)\|([^|\n]*)\|([^|\n]*)\|[^|\n]+\|$")
    on_page = {name: (named(keys), named(args), named(items)) for name, keys, args, items in rows}
    (base,) = re.findall(r"^((?:`\w+` ?)+)$", read(WIRE_FORMAT), flags=re.MULTILINE)
    in_code = {
        script.name: (
            script.keys[len(named(base)) :],
            script.args[len(_HEAD) :],
            (*script.group, *script.item),
        )
        for script in Script.all
    }
    for name, columns in in_code.items():
        assert on_page.get(name) == columns, (
            f"docs/wire-format.md, table of scripts: the row of {name} must have keys, args, items {columns}"
        )
    assert sorted(on_page) == sorted(in_code)
    for script in Script.all:
        assert script.keys[: len(named(base))] == named(base)
        assert script.args[: len(_HEAD)] == _HEAD


def test_the_table_of_keys_has_every_key_of_a_network() -> None:
    kinds = "hash|list|list, hash|set|sorted set|stream|shard channels"
    cells = re.findall(rf"^\| ((?:`\w+`(?:, )?)+) \| (?:{kinds}) \|", read(WIRE_FORMAT), flags=re.MULTILINE)
    assert sorted(name for cell in cells for name in named(cell)) == sorted(NetworkKeys._fields)


# the reference


def named_in_reference(prefix: str) -> list[str]:
    pages = [page for page in PAGES if page.startswith("docs/reference/")]
    text = "\n".join(read(page) for page in pages)
    return re.findall(rf"^::: {re.escape(prefix)}\.(\w+)$", text, flags=re.MULTILINE)


def test_the_reference_shows_every_public_name_once() -> None:
    assert sorted(named_in_reference("rush_async")) == sorted(rush_async.__all__)


_EXTRAS = [rush_async.extras.fastapi, rush_async.extras.metrics, rush_async.extras.opentelemetry, rush_async.extras.progress]


@pytest.mark.parametrize("module", [rush_async.testing, *_EXTRAS], ids=lambda module: module.__name__)
def test_the_reference_shows_every_fixture_and_every_function_of_the_extras_once(module: ModuleType) -> None:
    assert sorted(named_in_reference(module.__name__)) == sorted(module.__all__)


def test_the_table_of_all_calls_has_every_public_name_and_every_call_once() -> None:
    calls: set[str] = set()
    for name in ("RushClient", "Rush", "RushWorker", "Ranking", "Draw", "Replay", "Task", "Archive"):
        kind = getattr(rush_async, name)
        inherited = dir(rush_async.RushClient) if name in ("Rush", "RushWorker") else []
        own = [each for each in dir(kind) if not each.startswith("_") and each not in inherited]
        # The fields of a dataclass are described with it.
        calls |= {f"{name}.{each}" for each in own if isinstance(inspect.getattr_static(kind, each), (FunctionType, property))}
    listed = re.findall(
        r"^\| \[`[\w.]+`\]\(\w+\.md#rush_async\.([\w.]+)\) \|", read("docs/reference/index.md"), flags=re.MULTILINE
    )
    assert sorted(listed) == sorted({*rush_async.__all__, *calls})


@pytest.mark.parametrize("name", ["Rush", "RushWorker", "RushClient"])
def test_the_reference_lists_the_calls_of_a_client_that_exist(name: str) -> None:
    listed = re.search(rf"^::: rush_async\.{name}\n((?: .*\n)+)", read("docs/reference/client.md"), flags=re.MULTILINE)
    assert listed is not None
    members = re.findall(r"^ +- (\w+)$", listed[1], flags=re.MULTILINE)
    assert members
    assert [member for member in members if not hasattr(getattr(rush_async, name), member)] == []


def test_the_reference_lists_every_call_of_a_manager() -> None:
    text = read("docs/reference/client.md")
    public = {name for name in dir(rush_async.Rush) if not name.startswith("_")} - {"check_size"}
    assert sorted(public - set(re.findall(r"^ +- (\w+)$", text, flags=re.MULTILINE))) == []


def test_the_table_of_errors_has_every_error_with_the_built_in_that_it_is() -> None:
    rows = re.findall(
        r"^\| \[`(\w+)`\]\(#rush_async\.(\w+)\) \| (?:`(\w+)`)? ?\|", read("docs/reference/errors.md"), flags=re.MULTILINE
    )
    errors = {name: getattr(rush_async, name) for name in rush_async.__all__ if name.endswith("Error")}
    assert sorted(name for name, _, _ in rows) == sorted(errors.keys() - {"RushError"})
    for name, anchor, builtin in rows:
        assert anchor == name
        own = [base.__name__ for base in errors[name].__mro__ if base.__module__ == "builtins"]
        assert (builtin or "Exception") == own[0]


def rows_of(page: str, pattern: str) -> list[tuple[str, ...]]:
    return re.findall(pattern, read(page), flags=re.MULTILINE)


def test_the_table_of_events_has_every_event_with_what_it_carries() -> None:
    shown = {name: re.findall(r"\w+", fields) for name, fields in rows_of("docs/reference/events.md", r"^\| `(\w+)` \|(.*?)\|")}
    common = {"network_id", "seq", "at"}
    there = {
        kind.__name__: [each.name for each in fields(kind) if each.name not in common] for kind in get_args(rush_async.Event)
    }
    assert shown == there


@pytest.mark.parametrize(
    ("page", "alias"),
    [("docs/reference/workers.md", rush_async.WorkerState), ("docs/reference/client.md", rush_async.FailureKind)],
)
def test_tables_of_states_and_kinds_are_complete(page: str, alias: Any) -> None:
    assert sorted(name for name, _ in rows_of(page, r"^\| `(\w+)` \| (.+) \|$")) == sorted(get_args(alias))


# what can be stored

STORING = "docs/guides/storing.md"


@dataclass
class Point:
    x: float
    y: float


class Model(pydantic.BaseModel):
    x: int


class Colour(enum.Enum):
    RED = "red"


def value_of(expression: str) -> Any:
    names = {"Point": Point, "Model": Model, "Colour": Colour, "Decimal": Decimal, "math": math, "uuid": uuid, "numpy": np}
    names |= {"datetime": datetime, "timezone": timezone, "timedelta": timedelta, "date": date, "time": time, "polars": pl}
    return eval(expression, names)


@pytest.mark.filterwarnings("ignore:column 'v' is text")
async def test_the_tables_of_types_say_what_comes_back_and_what_the_column_has(rush: Rush) -> None:
    kinds = rows_of(STORING, r"^\| `(.+?)`(?:, .*)? \| `(.+?)` \| `(.+?)` \|$")
    mixtures = rows_of(STORING, r"^\| `([^|]+?)`, `([^|]+?)` \| `([^|]+?)` \|$")
    assert len(kinds) > 25
    assert len(mixtures) > 5
    found: list[tuple[str, ...]] = []
    for stored, back, _ in kinds:
        (key,) = await rush.push_finished_tasks([{"v": value_of(stored)}], [{"y": 1}])
        (task,) = await rush.get_tasks(key)
        assert task is not None
        value, expected = task.xs["v"], value_of(back)
        assert (value, type(value)) == (expected, type(expected)), stored
        found.append((stored, back, str((await rush.fetch_finished_tasks())["v"].dtype)))
        await rush.reset()
    assert found == kinds
    for first, second, dtype in mixtures:
        await rush.push_finished_tasks([{"v": value_of(first)}, {"v": value_of(second)}], [{"y": 1}, {"y": 2}])
        assert str((await rush.fetch_finished_tasks())["v"].dtype) == dtype, (first, second)
        await rush.reset()


async def test_the_table_of_what_cannot_be_stored_has_values_that_are_refused(rush: Rush) -> None:
    _, _, text = read(STORING).partition("## What cannot be stored")
    refused = re.findall(r"^\| `(.+?)`(?:, [^|]*)? \|", text.partition("## Columns")[0], flags=re.MULTILINE)
    assert len(refused) > 5
    for value in refused:
        with pytest.raises(rush_async.EncodeError, match=r"xs\['v'\]"):
            await rush.push_tasks([{"v": value_of(value)}])
    assert (await rush.counts()).total == 0


def test_the_page_names_the_columns_whose_names_are_taken() -> None:
    _, _, text = read(STORING).partition("## Names")
    assert set(re.findall(r"`(\w+)`", text.partition(" are those of")[0])) == RESERVED_NAMES


# the environment


def strings_in(node: ast.AST) -> list[str]:
    return [each.value for each in ast.walk(node) if isinstance(each, ast.Constant) and isinstance(each.value, str)]


def variables_of(source: str) -> set[str]:
    """The environment variables that a module reads; fails where it cannot tell."""
    tree = ast.parse(source)
    found: set[str] = set()
    loops = [each for each in ast.walk(tree) if isinstance(each, ast.For)]
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Attribute(attr="environ"), attr="get" | "pop"), args=[name, *_]):
                pass
            case ast.Subscript(value=ast.Attribute(attr="environ"), slice=name):
                pass
            case ast.Call(func=ast.Attribute(attr="getenv"), args=[name, *_]):
                pass
            case ast.Attribute(value=ast.Name(id="tempfile"), attr="gettempdir"):
                name = ast.Constant("TMPDIR")
            case ast.Attribute(value=ast.Name(id="shutil"), attr="which"):
                name = ast.Constant("PATH")
            case _:
                continue
        match name:
            case ast.Constant(value=str() as variable):
                found.add(variable)
            case _:
                around = [each for each in loops if ast.unparse(each.target) == ast.unparse(name) and node in ast.walk(each)]
                assert around, f"which variable is {ast.unparse(node)}?"
                found.update(strings_in(around[-1].iter))
    return found


def test_variables_are_found_however_they_are_read() -> None:
    assert variables_of('os.environ.get("A"); os.environ["B"]; os.getenv("C", "")') == {"A", "B", "C"}
    assert variables_of('for name in ("A", "B"):\n    os.environ.get(name)\nfor name in ("C",):\n    name') == {"A", "B"}
    assert variables_of("tempfile.gettempdir(); shutil.which(name)") == {"TMPDIR", "PATH"}
    with pytest.raises(AssertionError, match="which variable"):
        variables_of("os.environ[name()]")


def test_the_page_on_the_environment_names_what_the_code_reads() -> None:
    modules = sorted((ROOT / "rush_async").rglob("*.py"))
    read_by_code = set[str]().union(*(variables_of(module.read_text("utf-8")) for module in modules))
    named = re.findall(r"^\| `([A-Z_]+)` \|", read("docs/reference/environment.md"), flags=re.MULTILINE)
    assert sorted(named) == sorted(read_by_code)


# the command line


def options_of(command: Command) -> dict[str, Any]:
    """The options of a command, with their defaults."""
    parser = Parser(prog=command.name)
    fill(command, parser)
    actions = [action for action in vars(parser)["_actions"] if action.option_strings]
    return {name: action.default for action in actions for name in action.option_strings}


def section_of(page: str, heading: str) -> str:
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", page, flags=re.MULTILINE | re.DOTALL)
    assert found, f"the page has no section {heading!r}"
    return found[1]


def test_the_page_on_the_command_line_has_every_command_with_its_options() -> None:
    page = read("docs/reference/cli.md")

    def shown(heading: str) -> set[str]:
        rows = re.findall(r"^\| (`-.*?) \|", section_of(page, heading), flags=re.MULTILINE)
        return set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", " ".join(rows)))

    shared = shown("Options of every command")
    for command in COMMANDS:
        assert shown(command.name) == set(options_of(command)) - shared, command.name
    headings = re.findall(r"^## ([a-z-]+)$", page, flags=re.MULTILINE)
    assert sorted(headings) == sorted(command.name for command in COMMANDS)
    assert options_of(COMMANDS[0])["--drain"] == 30
    assert re.search(r"^\| `--drain S` \|.* 30 by default", page, flags=re.MULTILINE)


def test_the_pages_on_the_command_line_name_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["worker", "--help"])
    (sentence,) = re.findall(r"Exit codes: (.*?)\.", " ".join(capsys.readouterr().out.split()))
    codes = re.findall(r"(?:^|, |or )(\d+)(?= )", sentence)
    assert codes == ["0", "1", "2", "3", "69", "78", "130", "143"]
    for page, more in (("docs/reference/cli.md", ["141"]), ("docs/guides/command.md", [])):
        rows = re.findall(r"^\| (\d+(?:, \d+)*) \|", read(page), flags=re.MULTILINE)
        assert ", ".join(rows).split(", ") == codes + more


# the runner

PAGE = """Text

```sh
echo 1
```

- a list

    ```python title="search.py"
    x = 1

    y = 2
    ```

```text
not for running
```

```
also not
```

```sh title="on a cluster"
sbatch job.sh
```

```text title="output"
2
```
"""


def test_blocks_are_found_with_their_language_title_and_text() -> None:
    assert blocks_of(PAGE) == [
        Block("sh", None, "echo 1\n"),
        Block("python", "search.py", "x = 1\n\ny = 2\n"),
        Block("text", None, "not for running\n", is_followed=False),
        Block("sh", "on a cluster", "sbatch job.sh\n", is_followed=False),
        Block("text", "output", "2\n"),
    ]


@pytest.mark.parametrize("title", ["/etc/rush.env", "../search.py", "on a cluster", "in examples/random_search.py"])
def test_a_title_that_leads_out_of_the_page_or_is_a_sentence_is_no_file(title: str) -> None:
    (block,) = blocks_of(f'```sh title="{title}"\n```\n')
    assert not block.is_followed


FRAME = """
shape: (2, 3)
┌─────────────────────┬──────┬──────────────┐
│ worker_id           ┆ y    ┆ keys         │
╞═════════════════════╪══════╪══════════════╡
│ swift_jackal_180191 ┆ 3.25 ┆ 6mZtff92Q000 │
│ swift_jackal_180191 ┆ 1.5  ┆ 6mZtff92Q001 │
└─────────────────────┴──────┴──────────────┘
"""


def test_an_output_may_differ_in_numbers_names_and_keys() -> None:
    other = FRAME.replace("swift_jackal_180191", "calm_otter_ffabcd").replace("3.25", "-17.123e-05")
    assert is_output(FRAME, other.replace("6mZtff92Q", "XXtff92QQ").replace("─┬", "───┬"))
    assert is_output("at 2026-01-01 12:00:00.1\n...\nend", "at 2027-11-28 05:06:07.999\none\ntwo\nend\n")


@pytest.mark.parametrize(("old", "new"), [("shape: (2,", "shape: (3,"), ("┆ y ", "┆ z "), ("│ swift_jackal_180191 ┆ 1.5 ", "")])
def test_an_output_may_not_differ_in_whole_numbers_columns_or_rows(old: str, new: str) -> None:
    assert not is_output(FRAME, FRAME.replace(old, new))


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    reader = Reader(tmp_path, {**os.environ, "PATH": path})
    yield reader
    reader.leave()


def test_the_shell_of_a_page_keeps_what_its_blocks_set(reader: Reader, tmp_path: Path) -> None:
    reader.follow("sh", "export PLACE=here\nmkdir below && cd below")
    reader.follow("sh", 'echo "$PLACE" > found\ncat')  # it has no input to wait for
    assert (tmp_path / "below" / "found").read_text("utf-8") == "here\n"


@pytest.mark.parametrize("text", ["false", "false && true", "false\ntrue", "exit 3", "no_such_program", "(exit 2)"])
def test_a_block_that_fails_ends_the_page_with_what_it_wrote(reader: Reader, text: str) -> None:
    reader.follow("sh", "echo before")
    with pytest.raises(PageError, match="failed:\nthe words") as raised:
        reader.follow("sh", f"echo the words\n{text}")
    assert "before" not in str(raised.value)


async def test_processes_that_a_page_starts_in_the_background_end_with_the_page(reader: Reader, tmp_path: Path) -> None:
    reader.follow("sh", "sleep 100 & echo $! > pid")
    pid = int((tmp_path / "pid").read_text("utf-8"))
    assert psutil.pid_exists(pid)
    reader.follow("sh", "true")
    reader.leave()
    await wait_until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


def test_python_blocks_of_a_page_are_entered_into_one_console(reader: Reader, tmp_path: Path) -> None:
    reader.follow("python", "from pathlib import Path\n\nasync def double(x):\n    return 2 * x\n\ny = await double(4)\ny")
    reader.follow("python", 'Path("found").write_text(str(y))')
    assert (tmp_path / "found").read_text("utf-8") == "8"
    with pytest.raises(PageError, match="ZeroDivisionError"):
        reader.follow("python", "y / 0")


def test_a_python_block_that_a_console_would_not_take_is_refused(reader: Reader) -> None:
    with pytest.raises(PageError, match="SyntaxError"):
        reader.follow("python", "for x in range(3):\n    pass\nprint(x)")  # a console wants an empty line before `print`


def test_a_program_is_run_beside_the_files_of_the_page(reader: Reader) -> None:
    reader.follow("python", "ANSWER = 42", "answer.py")
    program = (
        "import asyncio\n\nfrom answer import ANSWER\n\n\nasync def main():\n    assert ANSWER == {}\n\n\nasyncio.run(main())"
    )
    reader.follow("python", program.format(42))
    with pytest.raises(PageError, match="AssertionError"):
        reader.follow("python", program.format(41))
