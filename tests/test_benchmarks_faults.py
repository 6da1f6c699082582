"""The checker of the fault bench on small histories, each with one promise broken; and a round in which all are kept."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from benchmarks.faults.bench import Bench, Plan, Result, longest_pause, plan_of, with_faults
from benchmarks.faults.checker import Round, check, shrink
from benchmarks.faults.final import FinalState, digest_of
from benchmarks.faults.history import Call, History, Outcome, read_history
from benchmarks.faults.injection import FAULTS
from benchmarks.faults.mutants import MUTANTS, mutated
from benchmarks.faults.observer import Message
from benchmarks.faults.soak import Soak, report
from benchmarks.faults.work import KINDS
from rush_async.model import Failure, Task
from rush_async.store.report_entry import Report
from rush_async.store.scripts import Script

AT = datetime(2026, 1, 1, tzinfo=UTC)


def task(key: str, state: Any, token: str, index: int, **rest: Any) -> Task:
    return Task(key, state, {"x": token}, None, created_at=AT, index=index, **rest)


@dataclass
class World:
    """A round in which one client pushed two tasks, one worker popped and ended both, and all promises were kept."""

    calls: list[Call] = field(default_factory=list[Call])
    tasks: list[Task] = field(default_factory=list[Task])
    messages: list[Message] = field(default_factory=list[Message])
    state: dict[str, Any] = field(default_factory=dict[str, Any])
    known: dict[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        self.call("push", ["a", "b"], to="queued", tokens=["c.1.0", "c.1.1"], retries=1)
        self.call("pop", ["a", 1, 0, "c.1.0"], worker="w")
        self.call("pop", ["b", 1, 1, "c.1.1"], worker="w")
        self.call("report", None, worker="w", key="a", value="c.4")
        self.call("task attrs", None, worker="w", key="a", value=5)
        self.call("finish", ["a"], worker="w", keys=["a"], marks=["c.6.0"])
        self.call("fail", ["b"], worker="w", keys=["b"], marks=["c.7.0"])
        self.call("attrs", None, name="of c", value=8)
        self.call("claim", "c.9", name="claim", value="c.9")
        self.call("new", ["a"], reader="c")
        self.tasks += [
            task("a", "finished", "c.1.0", 0, ys={"y": 1.0, "by": "c.6.0"}, worker_id="w", attempt=1),
            task("b", "failed", "c.1.1", 1, failure=Failure("error", None, "c.7.0"), worker_id="w", attempt=1),
        ]
        self.message([["Q", "", "a", "b"]], 2, 0, 0, 0)
        self.message([["S", "w", "a", "b"]], 0, 2, 0, 0)
        self.message([["F", "w", "a"], ["X", "w", "b"]], 0, 0, 1, 1)

    def call(self, name: str, got: Any, outcome: Outcome = "ok", /, **given: Any) -> None:
        n = len(self.calls) + 1
        self.calls.append(Call("c", n, name, given, float(n), outcome, got if outcome == "ok" else None, n + 0.5))

    def message(self, groups: list[list[str]], *counts: int, after_gap: bool = False, skipped: int = 0) -> None:
        first = (self.messages[-1].last if self.messages else 0) + 1 + skipped
        self.messages.append(Message(first, float(len(self.messages)), (*counts, 1), groups, after_gap))

    def checked(self) -> list[str]:
        return [str(violation) for violation in check(self.round())]

    def round(self) -> Round:
        counted = Counter(task.state for task in self.tasks)
        state: dict[str, Any] = {
            "misplaced": [],
            "queue": [task.key for task in self.tasks if task.state == "queued"],
            "alive": ["w"],
            "counts": (counted["queued"], counted["running"], counted["finished"], counted["failed"]),
            "seq": self.messages[-1].last,
            "next_index": 2,
            "n_reserved": 0,
            "reserved": [],
            "returned": [],
            "points": {},
            "attributes": {"of c": 8},
            "task_attributes": {"a": {"a": 5}},
            "claims": {"claim": "c.9"},
            "ranking": {},
            "reports": [Report(1, "a", "w", 1, 1, 0.0, {"v": "c.4"})],
        }
        known: dict[str, Any] = {"kind": "queue", **self.known}
        return Round(calls=self.calls, messages=self.messages, final=FinalState(self.tasks, **state | self.state), **known)


def test_kept_promises_are_no_violation() -> None:
    assert World().checked() == []


def _twice(world: World) -> None:
    world.tasks.append(replace(world.tasks[0], state="queued"))


def _forgotten_push(world: World) -> None:
    world.calls[0].outcome, world.calls[0].got = "refused", None


def _another_task(world: World) -> None:
    world.tasks.append(task("z", "queued", "c.1.0", 2))


def _foreign_end(world: World) -> None:
    world.calls[5].given["worker"] = "v"


def _end_of_nothing(world: World) -> None:
    world.calls[5].got = []


def _ended_again(world: World) -> None:
    world.call("finish", ["a"], worker="w", keys=["a"], marks=["c.11.0"])


def _given_again(world: World) -> None:
    world.call("pop", ["a", 1, 0, "c.1.0"], worker="v")


def _started_after_its_end(world: World) -> None:
    world.messages.insert(1, Message(2, 0.5, (2, 0, 0, 0, 1), [["L", "w"]], False))
    world.messages[2:] = [replace(message, first=message.first + 1) for message in world.messages[2:]]


def _started_after_a_stop(world: World) -> None:
    world.messages.insert(1, Message(2, 0.5, (2, 0, 0, 0, 1), [["T", "", "manual", "why"]], False))
    world.messages[2:] = [replace(message, first=message.first + 1) for message in world.messages[2:]]


def _counted_wrongly(world: World) -> None:
    world.messages[1] = replace(world.messages[1], counts=(0, 1, 0, 0, 1))


def _event_missing(world: World) -> None:
    world.messages[2] = replace(world.messages[2], first=4)


def _moved_from_nowhere(world: World) -> None:
    world.messages[2] = replace(world.messages[2], groups=[["F", "w", "a"], ["F", "w", "b"]], counts=(0, 0, 2, 0, 1))


def _tried_too_often(world: World) -> None:
    world.tasks[0] = replace(world.tasks[0], attempt=3)


def _report_again(world: World) -> None:
    world.state["reports"] = [Report(n, "a", "w", 1, n, 0.0, {"v": "c.4"}) for n in (1, 2)]


def _read_again(world: World) -> None:
    world.call("new", ["a"], reader="c")


def _two_winners(world: World) -> None:
    world.call("claim", "c.11", name="claim", value="c.11")


def _same_index(world: World) -> None:
    world.tasks[1] = replace(world.tasks[1], index=0)


def _same_point(world: World) -> None:
    for at, key in enumerate("ab"):
        world.tasks[at] = replace(
            world.tasks[at], state="queued", xs={"p": 1}, xs_extra={"x": f"c.1.{at}"}, ys=None, failure=None
        )
        world.state["points"] = {digest_of({"p": 1}): key}


BROKEN: list[tuple[Callable[[World], object], str]] = [
    (_twice, "task a is finished and queued"),
    (lambda world: world.tasks.pop(0), "task a was pushed, and is gone"),
    (_forgotten_push, "the push of c.1.0 was refused, and task a is finished"),
    (_another_task, "c.1.0 was pushed 2 times"),
    (_foreign_end, "worker v ended task a and never held it"),
    (_end_of_nothing, "the finish c.6.0 of task a moved nothing, and it is finished"),
    (_ended_again, "task a finished 2 times"),
    (_given_again, "attempt 1 of task a was given to w and v"),
    (
        lambda world: world.tasks.__setitem__(0, replace(world.tasks[0], ys={"y": 1.0, "by": "c.7.0"})),
        "task a has the outputs that were sent for b",
    ),
    (lambda world: world.tasks.__setitem__(0, replace(world.tasks[0], worker_id="v")), "task a was finished by w, and is of v"),
    (
        lambda world: world.tasks.__setitem__(1, task("b", "running", "c.1.1", 1, worker_id="v", attempt=1)),
        "task b still runs on v, which is not alive",
    ),
    (lambda world: world.state.update(counts=(0, 0, 2, 1)), "the server counts (0, 0, 2, 1)"),
    (
        lambda world: world.tasks.__setitem__(1, replace(world.tasks[1], failure=Failure("lost", None, "lost"))),
        "task b failed by c.7.0",
    ),
    (_tried_too_often, "task a had 3 attempts, and 2 were allowed"),
    (lambda world: world.known.update(budget=1), "2 tasks at event 1 exceed the budget of 1"),
    (lambda world: world.known.update(places=(1, 2)), "2 tasks at event 2 exceed the 1 of the stop rule"),
    (lambda world: world.known.update(finished=2), "1 tasks have finished, not 2"),
    (_same_index, "2 tasks have the index 0"),
    (lambda world: world.state.update(next_index=3), "indices that are not in one place each: [2] of 3"),
    (lambda world: world.state.update(n_reserved=1, reserved=[2], next_index=3), "1 places are still reserved"),
    (_same_point, "2 tasks have the point 1"),
    (_report_again, "the report c.4 on task a is there 2 times"),
    (lambda world: world.state.update(reports=[]), "the report c.4 on task a is gone"),
    (lambda world: world.state.update(attributes={}), "attribute 'of c' is None"),
    (lambda world: world.state.update(task_attributes={"a": {"a": 4}}), "the attribute of task a is 4"),
    (_two_winners, "claim 'claim' was answered"),
    (lambda world: world.call("cancel", ["a"], keys=["a"]), "task a was failed by cancel, and is finished"),
    (lambda world: world.call("pop", ["a", 2, 0, "c.1.0"], worker="w", wanted="b"), "a pop of task b gave task a"),
    (lambda world: world.call("rank", [0, 1], key="k", score=0.5), "k was ranked with 0.5, and has None"),
    (_read_again, "reader c was given task a 2 times"),
    (_started_after_its_end, "worker w started a task after it had left"),
    (_started_after_a_stop, "task a started in a stopped network"),
    (_counted_wrongly, "event 2 comes with the counts (0, 1, 0, 0), which are (0, 2, 0, 0)"),
    (_event_missing, "event 4 follows 2"),
    (_moved_from_nowhere, "task b is failed, and finished by its events"),
]


@pytest.mark.parametrize(("spoil", "text"), BROKEN, ids=[text for _, text in BROKEN])
def test_a_broken_promise_is_found(spoil: Callable[[World], object], text: str) -> None:
    world = World()
    spoil(world)
    assert any(text in found for found in world.checked()), world.checked()


def test_an_unknown_call_may_or_may_not_have_been_executed() -> None:
    world = World()
    world.call("push", None, "unknown", to="queued", tokens=["c.11.0"], retries=0)
    world.call("finish", None, "unknown", worker="w", keys=["a"], marks=["c.12.0"])
    world.call("attrs", None, "unknown", name="of c", value=13)
    world.call("report", None, worker="w", key="a", value="c.14")
    world.call("report refused", None, key="a")
    assert world.checked() == []
    world.tasks.append(task("c", "failed", "c.11.0", 2, failure=Failure("cancelled", None, "cancelled")))
    world.message([["Q", "", "c"]], 1, 0, 1, 1)
    world.message([["X", "", "c"]], 0, 0, 1, 2)
    world.state |= {"next_index": 3, "attributes": {"of c": 13}}
    world.calls[5].outcome, world.calls[5].got = "unknown", None
    assert world.checked() == []


def test_after_a_gap_events_are_judged_by_what_is_known() -> None:
    world = World()
    world.messages[1:2] = []  # lost with the connection
    world.messages[1] = replace(world.messages[1], after_gap=True)
    assert world.checked() == []


def test_a_shrunk_history_has_the_lines_of_its_task_alone() -> None:
    world = World()
    _ended_again(world)
    known = world.round()
    violation = next(violation for violation in check(known) if "finished 2 times" in str(violation))
    lines = shrink(violation, known)
    assert [line.split()[2].partition("(")[0] for line in lines[:5]] == ["push", "pop", "report", "task", "finish"]
    assert not any("'b', 1, 1" in line for line in lines)
    assert lines[-1].startswith("in the end: Task(key='a'")
    assert with_faults(lines, [(5.0, "scripts flushed"), (99.0, "server paused")])[len(lines) :] == [
        "5.0000 fault: scripts flushed"
    ]
    text = report(4, 7, Result(plan_of(7, 4), violations=[(violation, lines)]), " --tasks 10")
    assert "VIOLATION: task a finished 2 times" in text
    assert "again: python -m benchmarks soak --seed 7 --round 4 --tasks 10" in text


def test_a_history_that_was_torn_by_a_kill_leaves_its_last_call_unknown(tmp_path: Path) -> None:
    history = History(tmp_path / "h", "p0")
    for outcome in ("ok", None):
        n = history.next_number()
        history.begin(n, "pop", {"worker": "w"})
        if outcome is not None:
            history.end(n, outcome, ["a", 1, 0, "t"])
    history.close()
    lines = (tmp_path / "h").read_text().splitlines()
    assert [json.loads(line)["n"] for line in lines] == [1, 1, 2]
    first, second = read_history("p0", lines)
    assert (first.outcome, first.got) == ("ok", ["a", 1, 0, "t"])
    assert (second.outcome, second.got, second.until) == ("unknown", None, None)
    assert longest_pause([first]) == 0.0


def test_each_mutant_changes_a_script_and_leaves_it_as_it_was() -> None:
    before = [(script.source, script.digest) for script in Script.all]
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 12
    for mutant in MUTANTS:
        assert {kind for kind, _ in mutant.faults} <= FAULTS.keys()
        with mutated(mutant):
            assert [(script.source, script.digest) for script in Script.all] != before
        assert [(script.source, script.digest) for script in Script.all] == before
    with pytest.raises(ValueError, match="has to follow the scripts"), mutated(replace(MUTANTS[0], old="no such piece")):
        pass


def test_the_page_on_reliability_has_every_kind_of_fault() -> None:
    text = (Path(__file__).parents[1] / "docs" / "reliability.md").read_text("utf-8")
    page = text[text.index("## The fault bench") :]
    kinds = re.findall(r"^\| ([^|]+) \| [^|]+ \|$", page, flags=re.MULTILINE)
    assert sorted(kinds) == sorted(["fault", *FAULTS, "worker cancelled at a random moment"])
    assert f"each of {len(MUTANTS)} scripts with a defect" in " ".join(page.split())


def test_the_rounds_of_a_soak_have_every_kind_and_seeds_of_their_own() -> None:
    plans = [plan_of(5, at, rate=1.0) for at in range(10)]
    assert [plan.kind for plan in plans] == [*KINDS, *KINDS]
    assert len({plan.seed for plan in plans}) == 10
    total = Soak(5)
    result = Result(plans[0], (0, 0, 3, 1), Counter({"server filled": 2}), n_calls=9, n_cancelled=1, n_unknown=2, pause=0.5)
    total.add(result, {"server": 2**20})
    summary = total.summary()
    assert "2 server filled" in summary
    assert "4 tasks, 9 calls, 2 of them without an answer" in summary
    assert summary.endswith("0 violations in 1 rounds, seed 5")


async def test_a_round_under_faults_keeps_all_promises(directory: Path) -> None:
    """A short one: those that take long are in tests/chaos."""
    kinds = {"connection cut after a request was executed, its reply lost": 1, "server filled": 1}
    async with Bench.opened(directory, n_processes=0) as bench:
        result = await bench.round(Plan("queue", "1", n_tasks=200, rate=20.0, kinds=kinds, cancelled=0.0))
    assert result.violations == []
    assert result.faults.keys() <= kinds.keys()
    assert result.n_tasks >= 200
    assert result.n_calls > 200
    assert os.listdir(directory) == ["data"]
