"""Scripts with a defect each. The checker has to find every one of them.

A mutant replaces a piece of the source of one script, or of all that have it. It applies to this process until its block ends.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

from benchmarks.faults.work import Kind
from rush_async.store.scripts import Script, lua_text

__all__ = ["MUTANTS", "Mutant", "mutant_of", "mutated"]

_LATE, _LOST_REPLY = "late copy of a request delivered", "connection cut after a request was executed, its reply lost"
_LOST_WORKER = "worker declared lost while it works"
_HELD_BACK = "worker declared lost while its requests are held back"


@dataclass(frozen=True)
class Mutant:
    """A defect.

    Attributes:
        name: what is wrong.
        kind: the work that shows it.
        old: a piece of the source.
        new: what stands in its place.
        script: the script; '' for each that has the piece.
        faults: the kinds of faults that show it, and how often each; none for a defect that shows without.
        hangs: whether a round with it may never end.
    """

    name: str
    kind: Kind
    old: str
    new: str
    script: str = ""
    faults: tuple[tuple[str, int], ...] = ()
    hangs: bool = False

    @property
    def needs_processes(self) -> bool:
        """Whether only the death of a process shows it."""
        return any(kind.startswith("process") for kind, _ in self.faults)


MUTANTS = (
    # repeated calls
    Mutant(
        "a repeated call is executed again",
        "queue",
        "if number == NUMBER then\n  known",
        "if false then\n  known",
        "",
        ((_LOST_REPLY, 1),),
    ),
    Mutant(
        "answers are not stored",
        "queue",
        "call('HSET', CALLS, slot, NUMBER .. ' ' .. cmsgpack.pack(stored or answer))\n",
        "\n",
        "",
        ((_LOST_REPLY, 1),),
    ),
    Mutant(
        "a repeated pop takes other tasks",
        "queue",
        "if known then\n\n  local function held_end",
        "if false then\n\n  local function held_end",
        "pop",
        ((_LOST_REPLY, 1),),
    ),
    # counts and events
    Mutant(
        "the count of finished tasks is one too many",
        "queue",
        "call('LLEN', FINISHED), call('HLEN', FAILED), call('HLEN', ALIVE) }",
        "call('LLEN', FINISHED) + 1, call('HLEN', FAILED), call('HLEN', ALIVE) }",
    ),
    Mutant(
        "the event of an end is published before the move",
        "queue",
        "if #failed > 0 then call('HSET', FAILED, unpack(failed)) end\n",
        f"do {lua_text('lib/close_group')} {lua_text('lib/counts')} seq = seq + #events {lua_text('lib/publish_events')} end\n"
        "seq, EVENTS = seq - #events, EVENTS .. ':of none'\n"
        "if #failed > 0 then call('HSET', FAILED, unpack(failed)) end\n",
        "finish",
    ),
    Mutant(
        "a start has no event", "queue", "local kind = TASK_STARTED\n      do\n", "local kind\n      if false then\n", "pop"
    ),
    Mutant(
        "the number of events is not raised by one group",
        "queue",
        "seq = seq + #events\n",
        "seq = seq + math.min(#events, 1)\n",
    ),
    # who holds what
    Mutant(
        "a worker that is not alive may push",
        "budget",
        "if worker ~= '' and not alive[worker] then",
        "if false then",
        "push",
        ((_HELD_BACK, 1),),
    ),
    Mutant("a lost worker stays alive", "queue", "  call('HDEL', ALIVE, worker)\n", "", "lose", ((_LOST_WORKER, 1),)),
    Mutant("any worker ends any task", "queue", "held_end(record, packed(worker))", "started_end(record)", "finish"),
    Mutant("a key that is named twice ends twice", "queue", " and not seen[key] and held_end", " and held_end", "finish"),
    Mutant(
        "tasks of a lost worker stay running",
        "queue",
        "if worker then\n    gone",
        "if worker and byte(record, 2) > 0 then\n    gone",
        "lose",
        ((_LOST_WORKER, 1),),
    ),
    Mutant(
        "leases are never judged",
        "queue",
        "local expired = call('ZRANGEBYSCORE', LEASES, '-inf', string.format('(%.6f', now), 'LIMIT', 0, MOST_JUDGED)",
        "local expired = {}",
        "beat",
        (("process killed (SIGKILL)", 1),),
    ),
    # one state
    Mutant("a popped task stays queued", "queue", "  call('HDEL', QUEUED, unpack(keys))\n", "", "pop", hangs=True),
    Mutant("a task that is tried again stays failed", "queue", "  call('HDEL', FAILED, unpack(moved))\n", "", "retry"),
    Mutant("a cancelled task stays running", "queue", "  call('HDEL', RUNNING, unpack(stopped))\n", "", "cancel"),
    Mutant(
        "a finished record is appended twice",
        "queue",
        "  call('RPUSH', FINISHED, unpack(finished))\n",
        "  call('RPUSH', FINISHED, finished[1], unpack(finished))\n",
        "finish",
    ),
    Mutant(
        "the outputs of two tasks are swapped",
        "queue",
        "sub(record, HEADER + 1, started) .. ended .. stamp",
        "sub(record, HEADER + 1, started) .. (ARGV[FIRST] == 'finished' and ARGV[FIRST + ENDED] or ended) .. stamp",
        "finish",
    ),
    # limits
    Mutant("the budget is one too many", "budget", "tonumber(budget) - used", "tonumber(budget) + 1 - used", "push"),
    Mutant(
        "the stop rule has a place too many",
        "stop",
        "math.max(0, rules.finished - n_running",
        "math.max(0, rules.finished + 1 - n_running",
    ),
    Mutant(
        "a stopped network lets tasks start", "stop", "elseif target == 'running' and stop then", "elseif false then", "push"
    ),
    Mutant("a stopped network gives queued tasks", "stop", "local places = stop and 0 or judge", "local places = judge", "pop"),
    # indices and points
    Mutant(
        "two tasks of a push have one index",
        "queue",
        "next_index = next_index + take",
        "next_index = next_index + math.max(1, take - 1)",
        "push",
    ),
    Mutant(
        "a lost worker keeps its reserved places",
        "proposals",
        "  return_reserved(worker)\n",
        "",
        "lose",
        ((_LOST_WORKER, 1),),
        hangs=True,
    ),
    Mutant(
        "a returned index is given twice",
        "proposals",
        "call('ZPOPMIN', RETURNED)[1]",
        "call('ZRANGE', RETURNED, 0, 0)[1]",
        "reserve",
        ((_LOST_WORKER, 1),),
    ),
    Mutant(
        "points are not registered",
        "unique",
        "          registered[#registered + 1], registered[#registered + 2] = point, ARGV[to + KEY]\n",
        "",
        "push",
    ),
    # beside the tasks
    Mutant("a claim is overwritten", "queue", "if value then return commit(value, nil, 0) end\n", "", "claim"),
    Mutant(
        "a report is appended again",
        "queue",
        "if i < #taken then",
        "if i == 1 then call('XADD', REPORTS, '*', 'r', head .. values) end if i < #taken then",
        "report",
    ),
    Mutant(
        "attributes are not set",
        "queue",
        "  call('HSET', ATTRIBUTES, unpack(ARGV, first, math.min(first + MOST_WORDS - 1, #ARGV)))\n",
        "",
        "set_attrs",
    ),
)


def mutant_of(name: str) -> Mutant:
    """Returns the mutant of a name."""
    return next(mutant for mutant in MUTANTS if mutant.name == name)


@contextmanager
def mutated(mutant: Mutant) -> Generator[None]:
    """Puts the defect into the scripts of this process.

    Raises:
        ValueError: no script has the piece that it replaces.
    """
    scripts = [script for script in Script.all if mutant.script in ("", script.name) and mutant.old in script.source]
    if not scripts:
        raise ValueError(f"no script has {mutant.old!r}: the mutant {mutant.name!r} has to follow the scripts")
    before = [(script, script.source, script.digest) for script in scripts]
    try:
        for script in scripts:
            script.source = script.source.replace(mutant.old, mutant.new)
            script.digest = hashlib.sha1(script.source.encode(), usedforsecurity=False).hexdigest()
        yield
    finally:
        for script, source, digest in before:
            script.source, script.digest = source, digest
