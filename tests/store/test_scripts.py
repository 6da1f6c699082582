"""The scripts as texts: each has the parts that it uses, and no key that it does not get."""

from __future__ import annotations

import re
from importlib import resources

import pytest

from rush_async.store.keys import NetworkKeys
from rush_async.store.scripts import SCRIPTS, Script

HERE = resources.files("rush_async.store") / "lua"
PARTS = ("finished", "records", "workers")
TEXTS = {file.name.removesuffix(".lua"): file.read_text("utf-8") for file in HERE.iterdir() if file.name.endswith(".lua")}


def code(text: str) -> str:
    return re.sub(r"--.*", "", text)


def functions(text: str) -> set[str]:
    return set(re.findall(r"local function (\w+)", text))


def words(text: str) -> set[str]:
    return set(re.findall(r"\b[A-Za-z_]\w*\b", code(text)))


def test_every_file_is_a_script_or_a_part() -> None:
    assert sorted(TEXTS) == sorted([script.name for script in SCRIPTS] + ["prelude", *PARTS])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_script_has_the_parts_that_it_uses_and_no_other(script: Script) -> None:
    used = {part for part in PARTS if functions(TEXTS[part]) & words(TEXTS[script.name])}
    had = {part for part in PARTS if TEXTS[part] in script.source}
    assert had == used


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_script_gets_every_key_that_it_names(script: Script) -> None:
    # What the parts name and the script does not is in functions that it does not call.
    called = words(TEXTS[script.name])
    for part in PARTS:
        for function in re.findall(r"^local function .*?^end|^local function .* end$", TEXTS[part], re.DOTALL | re.MULTILINE):
            if functions(function) & called:
                called |= words(function)
    missing = [name for name in NetworkKeys._fields[script.n_keys :] if name.upper() in called]
    assert not missing
