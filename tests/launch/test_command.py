"""What a command carries, and how it is written; the program that it calls is tested in `test_cli`."""

from __future__ import annotations

import functools
import logging
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from urllib.parse import quote

import pytest
from redis.asyncio.connection import parse_url

from rush_async import DecodeError, EncodeError, RushConfig, RushConfigError, RushWorker
from rush_async.config import with_password_of_environment, without_password
from rush_async.launch.command import Command, Start, import_loop, prepare_command, read_start
from rush_async.store.codec import encode
from rush_async.worker.loop import WorkerLoop, bind_loop
from tests.launch.loops_of_tests import note_arguments, serve, show_arguments

URL = "redis://server:6379/0"
PASSWORD = 'it\'s $HOME `id` \\ "a" %41 & ; ü €'

lambda_loop: Any = eval("lambda rush: serve(rush)", {"serve": serve, "__name__": __name__})


class Loops:
    @staticmethod
    async def of_class(rush: RushWorker) -> None: ...

    @classmethod
    async def of_classmethod(cls, rush: RushWorker) -> None: ...

    async def of_instance(self, rush: RushWorker) -> None: ...

    async def __call__(self, rush: RushWorker) -> None: ...


@functools.wraps(serve)
async def stands_for_serve(rush: RushWorker) -> None: ...


def prepare(loop: Any, config: RushConfig | None = None, **options: Any) -> Command:
    args = options.pop("args", None)
    return prepare_command(bind_loop(loop, args, {}), "net", config or RushConfig(URL), **options)


async def read(command: Command, *, allow_pickle: bool = False) -> Start:
    return (await read_start(command.start, command.start_id, allow_pickle=allow_pickle))()


# the loop


async def test_a_loop_travels_by_name_and_its_arguments_as_values() -> None:
    when = datetime(2026, 1, 2, tzinfo=UTC)
    loop = functools.partial(note_arguments, a=1, when=when)
    start = await read(prepare(loop, args={"data": b"\0", "a": 2, "nested": {"list": [1, {"x": None}]}}, n_workers=3))
    assert start.loop == WorkerLoop(note_arguments, {"a": 2, "when": when, "data": b"\0", "nested": {"list": [1, {"x": None}]}})
    assert start.n_workers == 3


async def test_loops_of_classes_have_names() -> None:
    for loop in (Loops.of_class, Loops.of_classmethod):
        assert (await read(prepare(loop))).loop.function == loop


@pytest.mark.parametrize(
    ("loop", "words"),
    [
        (functools.partial(RushWorker.pop_task, RushWorker("net")), "positional arguments by functools.partial"),
        (lambda_loop, "is a lambda"),
        (Loops().of_instance, "gives another object"),
        (Loops(), "has no name"),
        (stands_for_serve, "gives another object"),
    ],
)
def test_a_loop_without_a_name_of_its_own_is_refused(loop: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words) as refused:
        prepare_command(WorkerLoop(loop, {}), "net", RushConfig(URL))
    assert "module" in str(refused.value) or "name=value" in str(refused.value)


def test_a_loop_inside_a_function_is_refused() -> None:
    async def inside(rush: RushWorker) -> None: ...

    with pytest.raises(TypeError, match="defined inside another function"):
        prepare(inside)


@pytest.mark.parametrize(("name", "words"), [(None, "a script or a notebook"), ("__main__", "a script"), ("tests.main", None)])
def test_a_loop_of_the_program_itself_needs_the_name_of_its_module(
    monkeypatch: pytest.MonkeyPatch, name: str | None, words: str | None
) -> None:
    main = ModuleType("__main__")
    exec("async def loop(rush): ...", main.__dict__)
    vars(main)["__spec__"] = None if name is None else SimpleNamespace(name=name)  # as `python -m` sets it
    monkeypatch.setitem(sys.modules, "__main__", main)
    if words is not None:
        with pytest.raises(TypeError, match=words):
            prepare(vars(main)["loop"])
    else:
        assert b"tests.main:loop" in prepare(vars(main)["loop"]).start


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no_such_module_here:loop", "there is no module 'no_such_module_here' in /.*, from where this was started"),
        ("tests.launch.loops_of_tests:no_loop", r"has no 'no_loop': its coroutine functions are do_some, serve"),
        ("tests.launch.nothing:loop", "no module 'tests.launch.nothing'"),
        ("tests.launch.broken_for_tests:loop", "importing the module .* failed: ModuleNotFoundError: .*'missing_package'"),
        ("nonsense", "write module:function"),
    ],
)
def test_a_loop_that_cannot_be_imported_says_what_was_tried(monkeypatch: pytest.MonkeyPatch, name: str, words: str) -> None:
    class Broken:
        def find_spec(self, name: str, *_: Any) -> None:
            if name == "tests.launch.broken_for_tests":
                raise ModuleNotFoundError("No module named 'missing_package'", name="missing_package")

    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(RushConfigError, match=words):
        import_loop(name)


# the start


def test_an_argument_that_cannot_be_stored_is_named() -> None:
    with pytest.raises(EncodeError, match=r"args\['model'\]: .*Loops"):
        prepare(show_arguments, args={"model": Loops()})


async def test_row_5_large_arguments_are_refused_or_lie_in_a_file(directory: Path) -> None:
    small = RushConfig(URL, max_start_args_size=1_000)
    with pytest.raises(EncodeError, match=r"serve|show_arguments.*: 1,\d\d\d bytes, more than max_start_args_size of 1,000"):
        prepare(show_arguments, small, args={"data": bytes(1_000)})
    command = prepare(
        show_arguments, RushConfig(URL, max_start_args_size=1_000, large_objects_path=directory), args={"data": bytes(1_000)}
    )
    assert len(command.start) < 1_000
    assert (await read(command)).loop.arguments == {"data": bytes(1_000)}


async def test_what_the_database_holds_cannot_be_exchanged() -> None:
    command, other = prepare(serve), prepare(note_arguments)
    with pytest.raises(DecodeError, match="has been altered"):
        await read_start(other.start, command.start_id, allow_pickle=True)


async def test_a_start_of_another_version_is_refused() -> None:
    settings = {"n_workers": 1, "log_levels": None, "settings": {"no_such_setting": 1}, "loop": "a:b"}
    for start in ({"loop": "a:b"}, [1], {**settings, "args": {"what": 1}}):
        with pytest.raises(DecodeError, match=r"malformed|no parcel"):
            await read(changed(start))
    with pytest.raises(RushConfigError, match="unknown setting 'no_such_setting'"):
        parcel = {"what": "", "size": 0, "inline": b"\x80", "path": None, "sha256": None}
        await read(changed({**settings, "args": parcel}))


def changed(start: Any) -> Command:
    import hashlib

    packed = encode(start, "start")
    return Command(hashlib.sha256(packed).hexdigest()[:32], packed, "", prepare(serve).parcel)


async def test_the_workers_take_over_settings_and_nothing_secret() -> None:
    config = RushConfig(f"redis://ann:{quote('secret')}@h", heartbeat_expire=50, retry_deadline=7, tls_ca_file="/ca")
    command = prepare(serve, config, log_levels={"a": "DEBUG"})
    start = await read(command)
    assert {**start.settings} | {"heartbeat_expire": 50, "retry_deadline": 7} == start.settings
    assert start.log_levels == {"a": "DEBUG"}
    assert b"secret" not in command.start
    assert "--tls-ca-file /ca" in command.line


async def test_pickles_need_both_sides() -> None:
    async def inside(rush: RushWorker, x: int) -> None: ...

    command = prepare(inside, args={"x": 5}, allow_pickle=True)
    assert "--allow-pickle" in command.line
    with pytest.raises(RushConfigError, match=r"holds a pickle.*--allow-pickle"):
        await read(command)
    start = await read(command, allow_pickle=True)
    assert (start.loop.name.endswith("inside"), start.loop.arguments) == (True, {"x": 5})
    with pytest.raises(EncodeError, match="cannot be pickled"):
        prepare(inside, args={"x": (at for at in [1])}, allow_pickle=True)


async def test_a_pickle_of_another_python_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    command = prepare(serve, allow_pickle=True)
    monkeypatch.setattr(sys, "version_info", (3, 99, 0))
    with pytest.raises(RushConfigError, match=r"pickle of Python 3\.\d+, and this is Python 3\.99"):
        await read(command, allow_pickle=True)


# the line


@pytest.fixture
def shell(directory: Path) -> Any:
    """Runs a line in a real shell; what the program would get: its words and RUSH_URL."""
    program = directory / "rush-async"
    program.write_text('#!/bin/sh\nprintf \'%s\\0\' "$RUSH_URL" "$@"\n')
    program.chmod(0o755)

    def run(line: str) -> list[str]:
        done = subprocess.run(
            ["sh", "-c", line], capture_output=True, text=True, check=True, env={"PATH": f"{directory}:/usr/bin:/bin"}
        )
        return done.stdout.split("\0")[:-1]

    return run


@pytest.mark.parametrize("password", [PASSWORD, "'", '"', "$(id)", "`id`", "\\", "a b\nc", "!#~*?", "%", "ü€漢", "***"])
def test_row_7_the_command_survives_a_shell_with_any_password(shell: Any, password: str, caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    # Such passwords are quoted in a URL. Some people do not, and what works is then to be kept as it is.
    urls = [f"redis://ann:{quote(password, safe='')}@server:6379/0"]
    if not set(password) & set("#?/%\n"):
        urls.append(f"redis://ann:{password}@server:6379/0")
    for url in urls:
        command = prepare(serve, RushConfig(url), with_password=True)
        assert shell(command.line) == [url, "worker", "net", "--start", command.start_id, "-n", "1"]
        assert parse_url(url).get("password") == password
        without = prepare(serve, RushConfig(url))
        assert shell(without.line)[5:7] == ["--url", "redis://ann@server:6379/0"]
        assert "RUSH_URL" not in without.line
    assert quote(password, safe="") not in caplog.text
    assert len(caplog.records) == 3 * len(urls)


def test_row_7_what_is_logged_has_the_password_redacted(caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    prepare(serve, RushConfig("redis://ann:hunter2@server/0?password=hunter2"), with_password=True)
    assert "hunter2" not in caplog.text
    assert "RUSH_URL='redis://ann:***@server/0?password=***' rush-async worker net" in caplog.text


def test_row_7_it_warns_when_the_server_is_embedded(caplog: Any) -> None:
    prepare(serve, RushConfig("unix:///tmp/socket"))
    assert not caplog.records
    prepare(serve, RushConfig("unix:///tmp/socket"), is_embedded=True)
    assert "works on this machine only" in caplog.text


def test_a_network_with_an_odd_name_is_one_word(shell: Any) -> None:
    for name, end in (("my net; $(id)", 1), ("-x", -1)):
        command = prepare_command(WorkerLoop(serve, {}), name, RushConfig(URL), n_workers=2)
        words = shell(command.line)[1:]
        assert words[end] == name
        assert (words[-2] == "--") is (end == -1)


# the password of the environment


@pytest.mark.parametrize(
    ("url", "expected", "bare"),
    [
        ("redis://h:6379/2", "redis://:{}@h:6379/2", "redis://h:6379/2"),
        ("rediss://ann@h?db=1", "rediss://ann:{}@h?db=1", "rediss://ann@h?db=1"),
        ("unix:///a/b?db=3", "unix://:{}@/a/b?db=3", "unix:///a/b?db=3"),
        ("redis://ann:@h", "redis://ann:{}@h", "redis://ann@h"),
        ("redis://ann:own@h", "redis://ann:own@h", "redis://ann@h"),
        ("redis://h?password=own&db=1", "redis://h?password=own&db=1", "redis://h?db=1"),
        ("redis://h?p%61ssword=own", "redis://h?p%61ssword=own", "redis://h"),
    ],
)
def test_rush_password_is_put_where_none_is(monkeypatch: pytest.MonkeyPatch, url: str, expected: str, bare: str) -> None:
    monkeypatch.setenv("RUSH_PASSWORD", PASSWORD)
    monkeypatch.setenv("RUSH_URL", url)
    found = with_password_of_environment(url)
    assert found == expected.format(quote(PASSWORD, safe=""))
    assert parse_url(found).get("password") == ("own" if "{" not in expected else PASSWORD)
    assert RushConfig.from_env().url == found
    assert without_password(found) == without_password(url) == bare
    assert PASSWORD not in repr(RushConfig.from_env())


def test_rush_password_that_is_no_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUSH_PASSWORD", "\udcff")
    with pytest.raises(RushConfigError, match="RUSH_PASSWORD is not UTF-8"):
        with_password_of_environment("redis://h")
