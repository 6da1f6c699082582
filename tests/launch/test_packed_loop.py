"""Packed loops: by name with their arguments, or as a pickle."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from rush_async import EncodeError, RushConfig, RushConfigError, RushWorker
from rush_async.launch.packed_loop import PackedLoop, split_name
from rush_async.launch.payload import Payload
from rush_async.worker.loop import WorkerLoop, bind_loop
from tests.launch.loops_of_tests import CannotBeUnpickled, note_arguments, serve, show_arguments

ROOT = Path(__file__).parents[2]

CONFIG = RushConfig("redis://server:6379/0")

lambda_loop: Any = eval("lambda rush: serve(rush)", {"serve": serve, "__name__": __name__})


class Loops:
    @staticmethod
    async def of_class(rush: RushWorker) -> None: ...

    @classmethod
    async def of_classmethod(cls, rush: RushWorker) -> None: ...

    async def of_instance(self, rush: RushWorker) -> None: ...

    async def __call__(self, rush: RushWorker) -> None: ...


@functools.wraps(serve)
async def wrapper_of_serve(rush: RushWorker) -> None: ...


def named(loop: Any, config: RushConfig = CONFIG, **args: Any) -> PackedLoop:
    return PackedLoop.named(bind_loop(loop, args, {}), "net", config)


def pickled(loop: Any, **args: Any) -> PackedLoop:
    return PackedLoop.pickled(bind_loop(loop, args, {}), "net", CONFIG)


# by name


def test_a_loop_is_packed_by_name_with_its_arguments_as_values() -> None:
    when = datetime(2026, 1, 2, tzinfo=UTC)
    loop = functools.partial(note_arguments, a=1, when=when)
    packed = named(loop, data=b"\0", a=2, nested={"list": [1, {"x": None}]})
    assert packed.name == "tests.launch.loops_of_tests:note_arguments"
    arguments = {"a": 2, "when": when, "data": b"\0", "nested": {"list": [1, {"x": None}]}}
    assert packed.load() == WorkerLoop(note_arguments, arguments)


def test_static_and_class_methods_are_packed_by_name() -> None:
    for loop in (Loops.of_class, Loops.of_classmethod):
        assert named(loop).load().function == loop


def test_a_name_alone_is_a_loop_without_arguments() -> None:
    assert PackedLoop.without_arguments("tests.launch.loops_of_tests:serve").load() == WorkerLoop(serve, {})


@pytest.mark.parametrize(
    ("loop", "words"),
    [
        (functools.partial(RushWorker.pop_task, RushWorker("net")), "positional arguments by functools.partial"),
        (lambda_loop, "is a lambda"),
        (Loops().of_instance, "gives another object"),
        (Loops(), "has no name"),
        (wrapper_of_serve, "gives another object"),
    ],
)
def test_a_loop_that_cannot_be_imported_by_name_is_refused(loop: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words) as refused:
        PackedLoop.named(WorkerLoop(loop, {}), "net", CONFIG)
    assert "module" in str(refused.value) or "name=value" in str(refused.value)


def test_a_loop_inside_a_function_is_refused() -> None:
    async def inside(rush: RushWorker) -> None: ...

    with pytest.raises(TypeError, match="defined inside another function"):
        named(inside)


@pytest.mark.parametrize(("name", "words"), [(None, "a script or a notebook"), ("__main__", "a script"), ("tests.main", None)])
def test_a_loop_of_the_main_module_is_refused_unless_it_runs_as_a_named_module(
    monkeypatch: pytest.MonkeyPatch, name: str | None, words: str | None
) -> None:
    main = ModuleType("__main__")
    exec("async def loop(rush): ...", main.__dict__)
    vars(main)["__spec__"] = None if name is None else SimpleNamespace(name=name)  # as `python -m` sets it
    monkeypatch.setitem(sys.modules, "__main__", main)
    if words is not None:
        with pytest.raises(TypeError, match=words):
            named(vars(main)["loop"])
    else:
        assert named(vars(main)["loop"]).name == "tests.main:loop"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no_such_module_here:loop", "there is no module 'no_such_module_here' in /.*, from where this was started"),
        ("tests.launch.loops_of_tests:no_loop", r"has no 'no_loop': its coroutine functions are do_some, serve"),
        ("tests.launch.nothing:loop", "no module 'tests.launch.nothing'"),
        ("tests.launch.broken_for_tests:loop", "importing the module .* failed: ModuleNotFoundError: .*'missing_package'"),
        ("nonsense", "not of the form module:function"),
    ],
)
def test_the_error_of_a_failed_import_names_what_was_tried(monkeypatch: pytest.MonkeyPatch, name: str, words: str) -> None:
    class Broken:
        def find_spec(self, name: str, *_: Any) -> None:
            if name == "tests.launch.broken_for_tests":
                raise ModuleNotFoundError("No module named 'missing_package'", name="missing_package")

    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(RushConfigError, match=words):
        PackedLoop.without_arguments(name).load()


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("./good.py:loop", "write good:loop$"),
        ("good.py:loop", "write good:loop$"),
        ("sub/good.py:loop", "write good:loop in the directory sub$"),
        ("/srv/good.py:loop", "write good:loop in the directory /srv$"),
        (".good:loop", "write good:loop$"),
    ],
)
def test_a_file_name_instead_of_a_module_is_refused_with_the_remedy(
    name: str, remedy: str, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (directory / "good.py").write_text("async def loop(rush): ...")
    monkeypatch.chdir(directory)
    with pytest.raises(RushConfigError, match=remedy):
        split_name(name)


def test_a_name_is_split_into_module_and_function() -> None:
    assert split_name("package.module:Class.loop") == ("package.module", "Class.loop")


def test_the_error_names_the_argument_that_cannot_be_stored() -> None:
    with pytest.raises(EncodeError, match=r"args\['model'\]: .*Loops"):
        named(show_arguments, model=Loops())


def test_row_5_large_arguments_are_refused_or_written_to_a_file(directory: Path) -> None:
    small = RushConfig(CONFIG.url, max_start_args_size=1_000)
    with pytest.raises(EncodeError, match=r"show_arguments.*: 1,\d\d\d bytes, more than max_start_args_size of 1,000"):
        named(show_arguments, small, data=bytes(1_000))
    with_directory = RushConfig(CONFIG.url, max_start_args_size=1_000, large_objects_path=directory)
    packed = named(show_arguments, with_directory, data=bytes(1_000))
    assert packed.payload.inline is None
    assert packed.load().arguments == {"data": bytes(1_000)}


# as a pickle


async def test_a_loop_inside_a_function_is_packed_as_a_pickle(directory: Path) -> None:
    async def inside(rush: RushWorker, x: int) -> None: ...

    config = RushConfig(CONFIG.url, max_start_args_size=1, large_objects_path=directory)
    in_thread = await PackedLoop.pickled_in_thread(bind_loop(inside, {"x": 5}, {}), "net", config)
    for packed in (pickled(inside, x=5), in_thread):
        loop = packed.load()
        assert packed.name is None
        assert (loop.name.endswith("inside"), loop.arguments) == (True, {"x": 5})


def test_an_argument_that_cannot_be_pickled_is_refused_with_a_remedy() -> None:
    with pytest.raises(EncodeError, match=r"cannot be sent to another process: .*generator.*on=Coroutines\(\)"):
        pickled(note_arguments, x=(at for at in [1]))


def test_the_error_of_a_pickle_that_cannot_be_loaded_names_the_cause() -> None:
    packed = pickled(note_arguments, thing=CannotBeUnpickled())
    with pytest.raises(RushConfigError, match=r"note_arguments.* cannot be loaded here: ModuleNotFoundError.*missing_package"):
        packed.load()


def test_a_pickle_without_a_worker_loop_is_refused() -> None:
    import pickle

    with pytest.raises(RushConfigError, match="the pickle contains no worker loop but 5"):
        PackedLoop(Payload("five", 1, pickle.dumps(5))).load()


def test_a_module_that_starts_workers_when_it_is_imported_starts_no_more_in_them(directory: Path) -> None:
    (directory / "unguarded.py").write_text(
        "import rush_async\n"
        "from rush_async import Processes\n"
        "async def search(rush):\n"
        "    async with rush.task({'x': 1}) as task:\n"
        "        task.ys = {'y': 1}\n"
        "rush_async.run(search, n_workers=2, on=Processes())\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{directory}"}
    done = subprocess.run(
        [sys.executable, "-c", "import unguarded"], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "the loops of 2 of 2 workers failed" in done.stderr
    assert "put what starts the program under `if __name__ == '__main__':`" in done.stderr
