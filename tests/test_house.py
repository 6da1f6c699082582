"""The house: which module may import which, what only one room may do, and the goals in numbers.

The checks read the sources and import nothing, so they also see what only a type checker or a rarely called function
imports. Each takes a house (file in the package -> source) and returns complaints, so that it is tested itself. The goals are
measured by `benchmarks.house`, whose own tests are in `test_benchmarks_house.py`.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import PurePosixPath

import pytest

from benchmarks.house.goals import GOALS, TO_SOCKET, Goal, Measured, Repository
from benchmarks.house.sources import PACKAGE, House, imports_of, module_of, own_imports, read_house
from benchmarks.house.walk import files_to_socket
from rush_async import RushWorker


@dataclass(frozen=True)
class Floor:
    """The modules and packages of one height: they import only what is below them.

    Attributes:
        name: the folder, or a name for its single modules.
        rooms: modules or packages, without the name of the whole package.
        neighbours: whether its modules may import one another, as long as they form no circle.
    """

    name: str
    rooms: frozenset[str]
    neighbours: bool = False


# From the ground up, a line a floor. A folder is one floor.
FLOORS = (
    Floor("the ground", frozenset({"errors", "model", "events", "config", "plan", "process", "supervisor"}), neighbours=True),
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
    Floor("the edges", frozenset({"testing", "extras"})),
    Floor("cli", frozenset({"cli"}), neighbours=True),
    Floor("the program", frozenset({"__main__"})),
    Floor("the roof", frozenset({""})),
)

ATTICS = {"util", "utils", "helper", "helpers", "common", "misc", "types"}
STARTS_TASKS = {"create_task", "ensure_future"}


def floor_of(module: str) -> tuple[int, str] | None:
    """Returns the height of a module's floor and its room; None for a module without a floor."""
    room = module.removeprefix(PACKAGE).removeprefix(".").partition(".")[0]
    return next(((height, room) for height, floor in enumerate(FLOORS) if room in floor.rooms), None)


def modules_without_floor(house: House) -> list[str]:
    """Lists modules without a floor."""
    return [
        f"{file} has no floor: give it one in FLOORS of tests/test_house.py"
        for file in house
        if floor_of(module_of(file)) is None
    ]


def extra_of(module: str) -> str:
    """Returns `rush_async.extras.fastapi` for `rush_async.extras.fastapi.bodies`, and "" for what is no part of an extra."""
    parts = module.split(".")
    return ".".join(parts[:3]) if parts[1:2] == ["extras"] and len(parts) > 2 else ""


def imports_not_downward(house: House) -> list[str]:
    """Lists imports that do not go down."""
    complaints: list[str] = []
    for file, found, target in own_imports(house):
        own, other = floor_of(module_of(file)), floor_of(target)
        if own is None or other is None or other[0] < own[0]:
            continue
        floor = FLOORS[own[0]]
        if own[0] == other[0] and (floor.neighbours or extra_of(module_of(file)) == extra_of(target) != ""):
            continue
        way = "up" if other[0] > own[0] else "across"
        complaints.append(
            f"{file}:{found.line} (floor {floor.name}) imports {target} (floor {FLOORS[other[0]].name}): "
            f"imports go strictly down, this one goes {way}; pass the value in, or move what is shared further down"
        )
    return complaints


def circles(house: House) -> list[str]:
    """Names one circle of modules that import each other, if there is one."""
    graph: dict[str, set[str]] = {module_of(file): set() for file in house}
    for file, _, target in own_imports(house):
        graph[module_of(file)].add(target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        # graphlib lists predecessors: each is imported by the next.
        return ["modules import each other in a circle: " + " <- ".join(error.args[1])]
    return []


def misplaced_libraries(house: House) -> list[str]:
    """Lists imports of a library outside the folder that it belongs to."""
    complaints: list[str] = []
    for file, source in house.items():
        for found in imports_of(file, source):
            match found.library:
                case "redis" | "hiredis" if not file.startswith(("wire/", "store/")):
                    rule = "only wire/ and store/ talk to the server"
                case "msgpack" if file != "store/codec.py":
                    rule = "only store/codec.py knows the wire format"
                case "polars" if found.eager and not file.startswith("frames/"):
                    rule = "only frames/ imports it at module level, because it is loaded with the first frame"
                case _:
                    continue
            complaints.append(f"{file}:{found.line} imports {found.library}: {rule}")
    return complaints


def tasks_started_elsewhere(house: House) -> list[str]:
    """Lists places outside the supervisor that start tasks."""
    complaints: list[str] = []
    for file, source in house.items():
        if file == "supervisor.py":
            continue
        for node in ast.walk(ast.parse(source, file)):
            match node:
                case ast.Attribute(attr=name) | ast.Name(id=name) | ast.alias(name=name) if name in STARTS_TASKS:
                    complaints.append(
                        f"{file}:{node.lineno} uses {name}: only supervisor.py starts tasks, so that each is awaited"
                    )
                case _:
                    pass
    return complaints


def attics(house: House) -> list[str]:
    """Lists files and folders whose name is no noun of the domain."""
    return [
        f"{file}: a file is a noun of the domain (network, task, worker, archive ...), not an attic"
        for file in house
        if {part.strip("_") for part in PurePosixPath(file).with_suffix("").parts} & ATTICS
    ]


CHECKS = (modules_without_floor, imports_not_downward, circles, misplaced_libraries, tasks_started_elsewhere, attics)


# The package


@pytest.fixture(scope="module")
def house() -> House:
    return read_house()


@pytest.fixture(scope="module")
def repository() -> Repository:
    return Repository()


def test_every_module_has_a_floor(house: House) -> None:
    assert "__init__.py" in house
    assert modules_without_floor(house) == []


def test_imports_go_strictly_down(house: House) -> None:
    assert imports_not_downward(house) == []


def test_no_modules_import_each_other_in_a_circle(house: House) -> None:
    assert circles(house) == []


def test_redis_msgpack_and_polars_are_imported_only_in_their_folders(house: House) -> None:
    assert misplaced_libraries(house) == []


def test_only_the_supervisor_starts_tasks(house: House) -> None:
    assert tasks_started_elsewhere(house) == []


def test_no_file_is_an_attic(house: House) -> None:
    assert attics(house) == []


# The goals in numbers


WAY_OUT = "no change raises a limit of benchmarks/house/goals.py: delete, or move what another module would own"


def assert_within(goal: Goal, measured: Measured) -> None:
    """Fails with the names behind a figure that is over its limit."""
    if measured.value > goal.limit:
        names = "".join(f"\n  {name}" for name in measured.names)
        pytest.fail(f"{goal.name}: {measured.value}, at most {goal.limit} (goal: {goal.most}){names}\n{WAY_OUT}", pytrace=False)


@pytest.mark.parametrize("goal", [goal for goal in GOALS if goal.measure is not None], ids=lambda goal: goal.name)
def test_a_figure_is_within_its_limit(repository: Repository, goal: Goal) -> None:
    assert goal.measure is not None
    assert_within(goal, goal.measure(repository))


async def test_a_push_passes_few_files_on_its_way_to_the_socket(rush_worker: RushWorker) -> None:
    files = await files_to_socket(rush_worker)
    assert files[0] == "worker/worker.py"
    assert "wire/transport.py" in files
    assert_within(TO_SOCKET, Measured.counted(files))


def test_limits_are_not_below_their_goals() -> None:
    assert [goal.name for goal in GOALS if goal.limit < goal.most] == []


def test_a_figure_over_its_limit_fails_with_the_names_behind_it() -> None:
    goal = Goal("doors", 1, 2)
    assert_within(goal, Measured.counted(["a.py", "b.py"]))
    with pytest.raises(pytest.fail.Exception, match=r"doors: 3, at most 2 \(goal: 1\)\n  a.py\n  b.py\n  c.py"):
        assert_within(goal, Measured.counted(["a.py", "b.py", "c.py"]))


# The checks themselves, on small made-up packages


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
        "frames/column.py": "import polars as pl",
        "frames/finished.py": "import polars as pl\nfrom rush_async.frames.column import Column",
        "network/network.py": "def archive():\n    from rush_async.frames.finished import FinishedTable\n    import polars",
        "client/client.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import polars as pl",
        "launch/handle.py": "",
        "launch/processes.py": "from rush_async.launch.handle import WorkerHandle",
        "manager/manager.py": "from rush_async.launch import processes",
        "cli/program.py": "import argparse",
        "__main__.py": "from rush_async.cli.program import main",
        "extras/optuna.py": "import optuna\nfrom rush_async.manager.manager import Rush",
    }
    assert {check.__name__: check(in_order) for check in CHECKS} == {check.__name__: [] for check in CHECKS}


def test_a_module_without_a_floor_is_named() -> None:
    (complaint,) = modules_without_floor({"errors.py": "", "cellar.py": "", "store/anything.py": ""})
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
        ("store/tasks.py", "from rush_async.frames.finished import FinishedTable", "(floor frames)"),
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
        ("frames/finished.py", "import rush_async.client.client", "this one goes up"),
        ("extras/plots.py", "from rush_async.extras import dashboard", "this one goes across"),
        ("testing.py", "import rush_async.extras.dashboard", "this one goes across"),
        ("plan.py", "from rush_async.manager.manager import Rush", "plan.py:1 (floor the ground) imports rush_async.manager"),
    ],
)
def test_an_import_that_does_not_go_down_is_named(file: str, source: str, words: str) -> None:
    modules = ("__init__", "errors", "model", "events", "store/__init__", "store/codec", "network/network", "frames/finished")
    above = ("client/client", "worker/worker", "manager/manager", "testing", "extras/__init__", "extras/dashboard")
    (complaint,) = imports_not_downward({**{f"{module}.py": "" for module in (*modules, *above)}, file: source})
    assert words in complaint


def test_an_upward_import_of_a_missing_module_is_named() -> None:
    (complaint,) = imports_not_downward({"errors.py": "from rush_async.manager.manager import Rush"})
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
    assert imports_not_downward(circular) == []
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
def test_a_library_outside_its_folder_is_named(file: str, source: str, words: str) -> None:
    (complaint,) = misplaced_libraries({file: source})
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
    (complaint,) = tasks_started_elsewhere({"supervisor.py": source, "network.py": f"\n{source}"})
    assert complaint.startswith("network.py:2 uses ")


@pytest.mark.parametrize("file", ["utils.py", "store/helpers.py", "common/keys.py", "launch/_types.py"])
def test_an_attic_is_named(file: str) -> None:
    (complaint,) = attics({"model.py": "", file: ""})
    assert complaint.startswith(file)
