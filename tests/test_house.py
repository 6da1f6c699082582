"""The house: which module may import which, and what only one room may do.

The checks read the sources and import nothing, so they also see what only a type checker or a rarely called function
imports. Each takes a house (file in the package -> source) and returns complaints, so that it is tested itself.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path, PurePosixPath

import pytest

PACKAGE = "rush_async"
ROOT = Path(__file__).parents[1] / PACKAGE

House = Mapping[str, str]


@dataclass(frozen=True)
class Floor:
    """A floor: the modules and packages (with all that is in them) that live on it.

    Attributes:
        name: the folder, or what its modules are together.
        rooms: modules or packages, without the name of ours.
        neighbours: whether modules of one room, or of the floor where rooms are single modules, may import one another.
    """

    name: str
    rooms: frozenset[str]
    neighbours: bool = False


# From the ground up: a line a floor. A folder is one floor; what is in it may import its neighbours.
FLOORS = (
    Floor("the ground", frozenset({"errors", "model", "events", "config", "plan", "supervisor"}), neighbours=True),
    Floor("embedded", frozenset({"embedded"}), neighbours=True),
    Floor("wire", frozenset({"wire"}), neighbours=True),
    Floor("store", frozenset({"store"}), neighbours=True),
    Floor("frames", frozenset({"frames"}), neighbours=True),
    Floor("heartbeat", frozenset({"heartbeat"}), neighbours=True),
    Floor("network", frozenset({"network"}), neighbours=True),
    Floor("client", frozenset({"client"}), neighbours=True),
    Floor("worker", frozenset({"worker"}), neighbours=True),
    Floor("launch", frozenset({"launch"}), neighbours=True),
    Floor("manager", frozenset({"manager"}), neighbours=True),
    Floor("cli", frozenset({"cli"}), neighbours=True),
    Floor("the edges", frozenset({"testing", "extras"})),
    Floor("the program", frozenset({"__main__"})),
    Floor("the roof", frozenset({""})),
)

ATTICS = {"util", "utils", "helper", "helpers", "common", "misc", "types"}
STARTS_TASKS = {"create_task", "ensure_future"}


@dataclass(frozen=True)
class Import:
    """One import as it stands in a file.

    Attributes:
        line: where.
        targets: what it may mean, the longest first: `from a import b` is `a.b` where that is a module, else `a`.
        eager: whether importing the file carries it out (not in a function, not for the type checker alone).
    """

    line: int
    targets: tuple[str, ...]
    eager: bool

    @property
    def library(self) -> str:
        """The top-level package."""
        return self.targets[0].partition(".")[0]


def module_of(file: str) -> str:
    """`store/codec.py` is `rush_async.store.codec`, `store/__init__.py` is `rush_async.store`."""
    parts = PurePosixPath(file).with_suffix("").parts
    return ".".join((PACKAGE, *(parts[:-1] if parts[-1] == "__init__" else parts)))


class _Imports(ast.NodeVisitor):
    def __init__(self, file: str) -> None:
        module = module_of(file)
        self._package = module if file.endswith("__init__.py") else module.rpartition(".")[0]
        self._eager = True
        self.found: list[Import] = []

    def _lazily(self, nodes: list[ast.stmt]) -> None:
        before, self._eager = self._eager, False
        for node in nodes:
            self.visit(node)
        self._eager = before

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        for outside in (*node.decorator_list, node.args):
            self.visit(outside)
        self._lazily(node.body)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test).rpartition(".")[2] != "TYPE_CHECKING":
            self.generic_visit(node)
            return
        self._lazily(node.body)
        for other in node.orelse:
            self.visit(other)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._add(node.lineno, alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = node.module or ""
        if node.level:
            parents = self._package.split(".")
            parents = parents[: len(parents) - node.level + 1]
            base = ".".join([*parents, base] if base else parents)
        for alias in node.names:
            self._add(node.lineno, f"{base}.{alias.name}", base)

    def visit_Call(self, node: ast.Call) -> None:
        name = ast.unparse(node.func).rpartition(".")[2]
        if name in {"import_module", "__import__"} and node.args:
            match node.args[0]:
                case ast.Constant(value=str(target)):
                    self._add(node.lineno, target)
                case _:
                    pass
        self.generic_visit(node)

    def _add(self, line: int, *targets: str) -> None:
        self.found.append(Import(line, targets, self._eager))


def imports_of(file: str, source: str) -> list[Import]:
    """Every import of a file, wherever it stands."""
    visitor = _Imports(file)
    visitor.visit(ast.parse(source, file))
    return visitor.found


def floor_of(module: str) -> tuple[int, str] | None:
    """The height of a module's floor and its room; None when the house does not know it."""
    room = module.removeprefix(PACKAGE).removeprefix(".").partition(".")[0]
    return next(((height, room) for height, floor in enumerate(FLOORS) if room in floor.rooms), None)


def own_imports(house: House) -> Iterator[tuple[str, Import, str]]:
    """(file, import, the module of ours that it means)."""
    modules = {module_of(file) for file in house}
    for file, source in house.items():
        for found in imports_of(file, source):
            if found.library == PACKAGE:
                yield file, found, next((t for t in found.targets if t in modules), found.targets[-1])


def strangers(house: House) -> list[str]:
    """Modules without a floor."""
    return [
        f"{file} has no floor: give it one in FLOORS of tests/test_house.py"
        for file in house
        if floor_of(module_of(file)) is None
    ]


def extra_of(module: str) -> str:
    """`rush_async.extras.fastapi.bodies` is a part of `rush_async.extras.fastapi`; no extra, the empty string."""
    parts = module.split(".")
    return ".".join(parts[:3]) if parts[1:2] == ["extras"] and len(parts) > 2 else ""


def climbs(house: House) -> list[str]:
    """Imports that do not go down."""
    complaints: list[str] = []
    for file, found, target in own_imports(house):
        here, there = floor_of(module_of(file)), floor_of(target)
        if here is None or there is None or there[0] < here[0]:
            continue
        floor = FLOORS[here[0]]
        if here[0] == there[0] and (floor.neighbours or extra_of(module_of(file)) == extra_of(target) != ""):
            continue
        way = "up" if there[0] > here[0] else "across"
        complaints.append(
            f"{file}:{found.line} (floor {floor.name}) imports {target} (floor {FLOORS[there[0]].name}): "
            f"imports go strictly down, this one goes {way}; pass the value in, or move what is shared further down"
        )
    return complaints


def circles(house: House) -> list[str]:
    """Modules that need each other."""
    graph: dict[str, set[str]] = {module_of(file): set() for file in house}
    for file, _, target in own_imports(house):
        graph[module_of(file)].add(target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        # graphlib lists predecessors: each is imported by the next.
        return ["modules import each other in a circle: " + " <- ".join(error.args[1])]
    return []


def smuggled_libraries(house: House) -> list[str]:
    """Libraries imported outside the one room they belong to."""
    complaints: list[str] = []
    for file, source in house.items():
        for found in imports_of(file, source):
            match found.library:
                case "redis" | "hiredis" if not file.startswith(("wire/", "store/")):
                    rule = "only wire/ and store/ talk to the server"
                case "msgpack" if file != "store/codec.py":
                    rule = "only store/codec.py knows the wire format"
                case "polars" if found.eager and not file.startswith("frames/"):
                    rule = "only frames/ may at module level, for it is loaded with the first frame"
                case _:
                    continue
            complaints.append(f"{file}:{found.line} imports {found.library}: {rule}")
    return complaints


def loose_tasks(house: House) -> list[str]:
    """Tasks started outside the supervisor."""
    complaints: list[str] = []
    for file, source in house.items():
        if file == "supervisor.py":
            continue
        for node in ast.walk(ast.parse(source, file)):
            match node:
                case ast.Attribute(attr=name) | ast.Name(id=name) | ast.alias(name=name) if name in STARTS_TASKS:
                    complaints.append(
                        f"{file}:{node.lineno} uses {name}: only supervisor.py starts tasks, so none is left behind"
                    )
                case _:
                    pass
    return complaints


def attics(house: House) -> list[str]:
    """Files and folders whose name is no noun of the domain."""
    return [
        f"{file}: a file is a noun of the domain (network, task, worker, archive ...), not an attic"
        for file in house
        if {part.strip("_") for part in PurePosixPath(file).with_suffix("").parts} & ATTICS
    ]


CHECKS = (strangers, climbs, circles, smuggled_libraries, loose_tasks, attics)


# The house as it stands


@pytest.fixture(scope="module")
def house() -> House:
    return {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in sorted(ROOT.rglob("*.py"))}


def test_every_module_has_a_floor(house: House) -> None:
    assert "__init__.py" in house
    assert strangers(house) == []


def test_imports_go_strictly_down(house: House) -> None:
    assert climbs(house) == []


def test_no_modules_import_each_other_in_a_circle(house: House) -> None:
    assert circles(house) == []


def test_redis_msgpack_and_polars_stay_in_their_rooms(house: House) -> None:
    assert smuggled_libraries(house) == []


def test_only_the_supervisor_starts_tasks(house: House) -> None:
    assert loose_tasks(house) == []


def test_no_file_is_an_attic(house: House) -> None:
    assert attics(house) == []


def test_importing_the_package_does_not_load_polars() -> None:
    program = f"import sys, {PACKAGE}; sys.exit('polars' in sys.modules and 'polars was loaded by the import alone')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# The checks themselves


def test_a_house_in_order_has_no_complaints() -> None:
    in_order = {
        "__init__.py": "from rush_async.manager.manager import Rush\nfrom rush_async.errors import RushError",
        "errors.py": "",
        "model.py": "from rush_async import errors\nfrom rush_async.errors import RushError",
        "events.py": "from rush_async.model import Task",
        "supervisor.py": "import asyncio\nasyncio.create_task(work())",
        "wire/transport.py": "import hiredis\nfrom redis.asyncio import connection",
        "store/__init__.py": "",
        "store/codec.py": "import msgpack\nfrom rush_async.errors import DecodeError",
        "store/tasks.py": "from . import codec\nfrom ..wire.transport import Transport\nfrom ..model import Task",
        "frames/columns.py": "import polars as pl",
        "frames/archive.py": "import polars as pl\nfrom rush_async.frames.columns import unify",
        "network/network.py": "def archive():\n    from rush_async.frames.archive import Archive\n    import polars",
        "client/client.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import polars as pl",
        "launch/handle.py": "",
        "launch/processes.py": "from rush_async.launch.handle import WorkerHandle",
        "manager/manager.py": "from rush_async.launch import processes",
        "cli/program.py": "import argparse",
        "__main__.py": "from rush_async.cli.program import main",
        "extras/optuna.py": "import optuna\nfrom rush_async.manager.manager import Rush",
    }
    assert {check.__name__: check(in_order) for check in CHECKS} == {check.__name__: [] for check in CHECKS}


def test_a_new_module_is_told_to_get_a_floor() -> None:
    (complaint,) = strangers({"errors.py": "", "cellar.py": "", "store/anything.py": ""})
    assert complaint.startswith("cellar.py has no floor: give it one")


@pytest.mark.parametrize(
    ("file", "source", "words"),
    [
        (
            "errors.py",
            "from rush_async.store.codec import encode",
            "errors.py:1 (floor the ground) imports rush_async.store.codec",
        ),
        ("store/tasks.py", "\nfrom ..network import network", "store/tasks.py:2 (floor store) imports rush_async.network"),
        ("store/tasks.py", "from rush_async.frames.archive import Archive", "(floor frames)"),
        ("model.py", "from rush_async import events\nfrom rush_async import Rush", "model.py:2 (floor the ground)"),
        ("cli/program.py", "import rush_async", "imports rush_async (floor the roof)"),
        (
            "worker/worker.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import rush_async.manager.manager",
            "worker/worker.py:3",
        ),
        (
            "worker/worker.py",
            "import typing\nif typing.TYPE_CHECKING:\n    from ..manager.manager import Rush",
            "worker/worker.py:3",
        ),
        ("client/client.py", "def late():\n    from rush_async.worker.worker import RushWorker", "client/client.py:2"),
        ("client/client.py", "class C:\n    async def late(self):\n        from ..worker import worker", "client/client.py:3"),
        (
            "client/client.py",
            "import importlib\nimportlib.import_module('rush_async.manager.manager')",
            "client/client.py:2",
        ),
        ("frames/archive.py", "import rush_async.client.client", "this one goes up"),
        ("extras/plots.py", "from rush_async.extras import dashboard", "this one goes across"),
        ("testing.py", "import rush_async.extras.dashboard", "this one goes across"),
        ("plan.py", "from rush_async.manager.manager import Rush", "plan.py:1 (floor the ground) imports rush_async.manager"),
    ],
)
def test_an_import_that_does_not_go_down_is_named(file: str, source: str, words: str) -> None:
    modules = ("__init__", "errors", "model", "events", "store/__init__", "store/codec", "network/network", "frames/archive")
    above = ("client/client", "worker/worker", "manager/manager", "testing", "extras/__init__", "extras/dashboard")
    (complaint,) = climbs({**{f"{module}.py": "" for module in (*modules, *above)}, file: source})
    assert words in complaint


def test_an_upward_import_of_a_module_that_is_not_there_yet_is_named() -> None:
    (complaint,) = climbs({"errors.py": "from rush_async.manager.manager import Rush"})
    assert "imports rush_async.manager.manager (floor manager)" in complaint


@pytest.mark.parametrize(
    "circular",
    [
        {"model.py": "import rush_async.events", "events.py": "from rush_async.model import Task"},
        {"store/keys.py": "from .tasks import push", "store/tasks.py": "def late():\n    from . import keys"},
        {"store/__init__.py": "from .tasks import push", "store/tasks.py": "from rush_async.store import version"},
        {"launch/a.py": "from . import b", "launch/b.py": "from . import c", "launch/c.py": "from .a import x"},
    ],
)
def test_a_circle_is_named(circular: House) -> None:
    assert climbs(circular) == []
    (complaint,) = circles(circular)
    assert complaint.startswith("modules import each other in a circle")
    assert all(module_of(file) in complaint for file in circular)


@pytest.mark.parametrize(
    ("file", "source", "words"),
    [
        ("heartbeat/thread.py", "import redis.asyncio", "imports redis: only wire/ and store/"),
        ("client.py", "def late():\n    from redis import Redis", "client.py:2 imports redis"),
        ("network.py", "from hiredis import Reader", "imports hiredis: only wire/ and store/"),
        ("store/tasks.py", "import msgpack", "imports msgpack: only store/codec.py"),
        ("logs.py", "if TYPE_CHECKING:\n    import msgpack", "logs.py:2 imports msgpack"),
        ("client.py", "import polars as pl", "imports polars: only frames/"),
        (
            "store/codec.py",
            "try:\n    from polars import DataFrame\nexcept ImportError: ...",
            "store/codec.py:2 imports polars",
        ),
        ("model.py", "class Task:\n    import polars", "model.py:2 imports polars"),
        ("model.py", "if TYPE_CHECKING: ...\nelse:\n    import polars", "model.py:3 imports polars"),
        ("model.py", "import importlib\npl = importlib.import_module('polars')", "model.py:2 imports polars"),
    ],
)
def test_a_library_outside_its_room_is_named(file: str, source: str, words: str) -> None:
    (complaint,) = smuggled_libraries({file: source})
    assert words in complaint


@pytest.mark.parametrize(
    "source",
    [
        "asyncio.create_task(work())",
        "asyncio.get_running_loop().create_task(work())",
        "task = asyncio.ensure_future(work())",
        "start = loop.create_task",
        "from asyncio import create_task as go",
    ],
)
def test_a_task_started_outside_the_supervisor_is_named(source: str) -> None:
    (complaint,) = loose_tasks({"supervisor.py": source, "network.py": f"\n{source}"})
    assert complaint.startswith("network.py:2 uses ")


@pytest.mark.parametrize("file", ["utils.py", "store/helpers.py", "common/keys.py", "launch/_types.py"])
def test_an_attic_is_named(file: str) -> None:
    (complaint,) = attics({"model.py": "", file: ""})
    assert complaint.startswith(file)
