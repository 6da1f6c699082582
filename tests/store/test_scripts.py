"""Scripts: each requires the Lua files that it uses, and has the keys and arguments that it names."""

from __future__ import annotations

import re
from importlib import resources

import pytest

from rush_async.network.network import Network
from rush_async.store.keys import NetworkKeys
from rush_async.store.records import NewTask
from rush_async.store.scripts import Script
from rush_async.store.tasks import FINISH, POP, PUSH, Ended

assert Network  # the modules that declare scripts are loaded with it

LUA = resources.files("rush_async.store") / "lua"


def texts(folder: str) -> dict[str, str]:
    files = [file for file in LUA.joinpath(folder).iterdir() if file.name.endswith(".lua")]
    return {file.name.removesuffix(".lua"): file.read_text("utf-8") for file in files}


SCRIPTS, PARTS = texts("."), texts("lib")
# Every script gets these keys.
BASE = {name for name in NetworkKeys._fields if all(name in script.keys for script in Script.all)}
EACH = pytest.mark.parametrize("script", Script.all, ids=lambda script: script.name)


def code(text: str) -> str:
    return re.sub(r"--.*", "", text)


def expanded(text: str) -> str:
    """A file with what it includes in its place."""
    return re.sub(r"^ *include\('(\w+)'\)$", lambda match: expanded(PARTS[match[1]]), code(text), flags=re.MULTILINE)


def required(text: str) -> list[str]:
    return re.findall(r"^ *require\('(\w+)'\)$", code(text), re.MULTILINE)


def defined(text: str) -> set[str]:
    """The names that a file defines, itself or by what it requires."""
    lists = re.findall(r"^local (?:function )?([\w, ]+)", expanded(text), re.MULTILINE)
    own = {name.strip() for names in lists for name in names.split(",")}
    return own.union(*(defined(PARTS[part]) for part in required(text)))


def words(text: str) -> set[str]:
    return set(re.findall(r"\b[A-Za-z_]\w*\b", expanded(text)))


def test_every_lua_file_is_declared_once() -> None:
    declared = [script.name for script in Script.all]
    for name in SCRIPTS:
        assert declared.count(name) == 1, f"lua/{name}.lua is declared {declared.count(name)} times: Script({name!r}, ...)"
    for name in declared:
        assert name in SCRIPTS, f"Script({name!r}) has no file lua/{name}.lua"


@pytest.mark.parametrize("name", [*SCRIPTS, *(f"lib/{name}" for name in PARTS)])
def test_a_file_requires_what_it_uses_and_no_other(name: str) -> None:
    text = PARTS[name[4:]] if name.startswith("lib/") else SCRIPTS[name]
    unused = [part for part in required(text) if not defined(PARTS[part]) & words(text)]
    assert not unused or name in ("lib/rules", "lib/call"), f"{name}.lua uses nothing of {unused}: remove its `require`"
    if not name.startswith("lib/"):
        functions = {word for part in PARTS.values() for word in re.findall(r"^local function (\w+)", part, re.MULTILINE)}
        missing = sorted((words(text) & (functions | {"judge", "known", "now", "stamp"})) - defined(text))
        assert not missing, f"{name}.lua uses {missing}: add a `require` of the file that defines it"


@EACH
def test_a_required_file_is_in_the_source_once(script: Script) -> None:
    assert not re.search(r"(require|include)\(", code(script.source))
    functions = re.findall(r"^ *local function (\w+)", script.source, re.MULTILINE)
    assert len(functions) == len(set(functions))
    assert script.source.count("local position = ") == 1


def test_what_workers_call_for_each_task_makes_few_functions() -> None:
    """The server makes each function anew at every call: they took a sixth of its time."""
    functions = {script.name: re.findall(r"^local function (\w+)", script.source, re.MULTILINE) for script in (PUSH, FINISH)}
    assert functions == {"push": ["packed"], "finish": ["packed", "held_end"]}


@EACH
def test_a_script_gets_the_keys_that_it_names(script: Script) -> None:
    # What is required may name more in functions that the script does not call.
    called = words(SCRIPTS[script.name])
    of_parts = re.findall(
        r"^local function .*?^end|^local function .* end$", "\n".join(PARTS.values()), re.DOTALL | re.MULTILINE
    )
    for _ in PARTS:  # one function calls another
        called |= {word for function in of_parts if defined(function) & called for word in words(function)}
    named = {name for name in NetworkKeys._fields if name.upper() in called}
    missing, unused = named - set(script.keys), set(script.keys) - named - BASE
    assert not missing, f"{script.name}.lua names these keys: add {sorted(missing)} to its `keys`"
    assert not unused, f"{script.name}.lua names none of these keys: remove {sorted(unused)} from its `keys`"
    assert set(script.keys) <= set(NetworkKeys._fields)


@EACH
def test_a_script_uses_the_arguments_that_are_declared(script: Script) -> None:
    named = words(script.source[script.source.index("local call") :])
    unused = [name for name in script.args if name.upper() not in named and name not in ("client", "epoch", "number")]
    assert not unused, f"{script.name}.lua uses none of these arguments: remove {unused} from its `args`"
    assert not re.search(r"ARGV\[\d", code(SCRIPTS[script.name])), "an argument is used by its place instead of its name"


def test_the_head_names_keys_arguments_and_columns() -> None:
    assert POP.head().splitlines() == [
        "local META, CALLS, EVENTS, QUEUED, RUNNING, FINISHED, FAILED, ALIVE, QUEUE = unpack(KEYS)",
        "local EPOCH, CLIENT, NUMBER = unpack(ARGV, 1, 3)",
        "local FIRST, ITEM_SIZE = 4, 2",
        "local WORKER, WANT = 0, 1",
    ]
    assert PUSH.head().splitlines()[1:] == [
        "local EPOCH, CLIENT, NUMBER, ORIGIN = unpack(ARGV, 1, 4)",
        "local FIRST, GROUP_SIZE, ITEM_SIZE = 5, 6, 3",
        "local TARGET, WORKER, BUDGET, MAX_FAILED, DIGESTS, N = 0, 1, 2, 3, 4, 5",
        "local KEY, CREATED, ENDED = 0, 1, 2",
    ]


def test_items_have_the_columns_of_what_python_sends() -> None:
    assert PUSH.item == NewTask._fields
    assert FINISH.item == Ended._fields


@EACH
def test_every_script_opens_with_what_it_guards_and_what_it_answers(script: Script) -> None:
    comment = re.match(r"(--[^\n]*\n)+", SCRIPTS[script.name])
    assert comment, f"{script.name}.lua has to open with a comment: what it guards and moves, its items, its answer"
    assert "-- answer: " in comment[0], f"the comment of {script.name}.lua has to end with a line '-- answer: ...'"
