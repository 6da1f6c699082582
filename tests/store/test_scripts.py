"""Scripts as they are declared: each has the parts, keys and arguments that its Lua file uses, under the declared names."""

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


def functions(text: str) -> set[str]:
    return set(re.findall(r"local function (\w+)", text))


def words(text: str) -> set[str]:
    return set(re.findall(r"\b[A-Za-z_]\w*\b", code(text)))


def test_every_lua_file_is_declared_once() -> None:
    declared = [script.name for script in Script.all]
    for name in SCRIPTS:
        assert declared.count(name) == 1, f"lua/{name}.lua is declared {declared.count(name)} times: Script({name!r}, ...)"
    for name in declared:
        assert name in SCRIPTS, f"Script({name!r}) has no file lua/{name}.lua"


@EACH
def test_a_script_has_the_parts_that_it_uses_and_no_other(script: Script) -> None:
    called = words(SCRIPTS[script.name])
    for _ in PARTS:  # parts use one another
        called |= {word for part in PARTS.values() if functions(part) & called for word in words(part)}
    used = {name for name, part in PARTS.items() if functions(part) & called} | {"base", "call"}
    declared = {name for name, part in PARTS.items() if part in script.source}
    missing, unused = sorted(used - declared), sorted(declared - used)
    assert not missing, f"{script.name}.lua calls functions of these parts: add {missing} to its `parts`"
    assert not unused, f"{script.name}.lua calls nothing of these parts: remove {unused} from its `parts`"


@EACH
def test_a_script_gets_the_keys_that_it_names(script: Script) -> None:
    # What a part names and the script does not is in functions that it does not call.
    called = words(SCRIPTS[script.name])
    of_parts = re.findall(
        r"^local function .*?^end|^local function .* end$", "\n".join(PARTS.values()), re.DOTALL | re.MULTILINE
    )
    for _ in PARTS:  # parts use one another
        called |= {word for function in of_parts if functions(function) & called for word in words(function)}
    named = {name for name in NetworkKeys._fields if name.upper() in called}
    missing, unused = named - set(script.keys), set(script.keys) - named - BASE
    assert not missing, f"{script.name}.lua names these keys: add {sorted(missing)} to its `keys`"
    assert not unused, f"{script.name}.lua names none of these keys: remove {sorted(unused)} from its `keys`"
    assert set(script.keys) <= set(NetworkKeys._fields)


@EACH
def test_a_script_uses_the_arguments_that_are_declared(script: Script) -> None:
    named = words(SCRIPTS[script.name])
    own = [name for name in script.args if name not in ("epoch", "client", "number")]
    unused = [name for name in own if name.upper() not in named]
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
        "local EPOCH, CLIENT, NUMBER, LAST_KNOWN, SEED = unpack(ARGV, 1, 5)",
        "local FIRST, GROUP_SIZE, ITEM_SIZE = 6, 6, 3",
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
