"""Judges a round: the histories of all clients, the events, and what the network holds in the end, against one another.

`check` is a function of what it is given, and reads nothing else. Each violation names the keys and calls that it is about.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from benchmarks.faults.final import FinalState, digest_of
from benchmarks.faults.history import Call
from benchmarks.faults.observer import Message
from benchmarks.faults.work import Kind, token_of
from rush_async.model import Task

__all__ = ["Round", "Violation", "check", "shrink"]

_MOST_SHOWN = 40  # lines of a shrunk history
_STATES = ("queued", "running", "finished", "failed")
_TARGET_OF = {"Q": "queued", "S": "running", "F": "finished", "X": "failed"}
# From which states an event may move a task; None is a task that is new.
_SOURCES: dict[str, tuple[str | None, ...]] = {
    "Q": (None, "running", "failed"),
    "S": (None, "queued"),
    "F": (None, "running"),
    "X": (None, "queued", "running"),
}


@dataclass(frozen=True)
class Round:
    """All that is known of a round.

    Attributes:
        kind: the kind of work.
        calls: the calls of all clients.
        messages: the events as the server published them.
        final: what the network holds in the end.
        budget: of work with a budget, how many tasks may be queued, running or finished.
        places: of work under a stop rule, how many may be running or finished before the first resumption and after it.
        finished: how many tasks finish; None for any number.
    """

    kind: Kind
    calls: list[Call]
    messages: list[Message]
    final: FinalState
    budget: int | None = None
    places: tuple[int, int] | None = None
    finished: int | None = None


@dataclass(frozen=True)
class Violation:
    """A promise that was not kept.

    Attributes:
        text: what happened.
        keys: the tasks that it is about.
        words: tokens, workers or names that it is about.
    """

    text: str
    keys: tuple[str, ...] = ()
    words: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.text


@dataclass
class _Facts:
    """What the histories say, by task."""

    given: dict[str, list[Call]] = field(default_factory=lambda: defaultdict(list))  # key -> calls that gave it to a worker
    ends: dict[str, list[Call]] = field(default_factory=lambda: defaultdict(list))  # key -> calls that tried to end it
    retries: dict[str, list[Call]] = field(default_factory=lambda: defaultdict(list))  # key -> retries that may have moved it
    mark_of: dict[str, tuple[Call, str]] = field(
        default_factory=dict[str, tuple[Call, str]]
    )  # mark of an end -> its call and key
    push_of: dict[str, Call] = field(default_factory=dict[str, Call])  # token -> its call
    pushed: dict[str, tuple[Call, str]] = field(
        default_factory=dict[str, tuple[Call, str]]
    )  # key -> its call and token, where it was answered


def check(known: Round) -> list[Violation]:
    """Returns which promises were not kept."""
    facts = _facts(known.calls)
    by_key: dict[str, list[Task]] = defaultdict(list)
    for task in known.final.tasks:
        by_key[task.key].append(task)
    return [
        *_check_states(known.final, by_key),
        *_check_pushes(known, facts, by_key),
        *_check_given(known.calls),
        *_check_ends(known, facts, by_key),
        *_check_removed(known, facts, by_key),
        *_check_archive(facts, known.final),
        *_check_attempts(facts, known.final),
        *_check_limits(known),
        *_check_indices(known),
        *_check_points(known),
        *_check_reports(known, facts),
        *_check_attributes(known, facts),
        *_check_reads(known),
        *_check_events(known, by_key),
    ]


def _keys(call: Call) -> list[str | None]:
    """The keys that a call was answered with."""
    return call.got or []


def _facts(calls: Iterable[Call]) -> _Facts:
    facts = _Facts()
    for call in calls:
        given = call.given
        match call.name:
            case "push" | "start":
                facts.push_of |= dict.fromkeys(given.get("tokens", ()), call)
                if call.name == "start" and call.got is not None:
                    facts.given[call.got[0]].append(call)
                elif call.name == "push" and call.outcome == "ok":
                    for key, token in zip(_keys(call), given["tokens"], strict=False):
                        if key is not None:
                            facts.pushed[key] = call, token
                            if given["to"] == "running":
                                facts.given[key].append(call)
            case "pop":
                if call.got is not None:
                    facts.given[call.got[0]].append(call)
            case "finish" | "fail":
                for key, mark in zip(given["keys"], given["marks"], strict=True):
                    facts.mark_of[mark] = call, key
                for key in dict.fromkeys(given["keys"]):
                    facts.ends[key].append(call)
            case "retry":
                if call.outcome != "refused":
                    for key in given["keys"]:
                        facts.retries[key].append(call)
            case _:
                pass
    return facts


# states


def _check_states(final: FinalState, by_key: dict[str, list[Task]]) -> Iterable[Violation]:
    """A task is in one state, once; the counts are what is there; none runs without a worker."""
    for key, tasks in by_key.items():
        if len(tasks) > 1:
            yield Violation(f"task {key} is {' and '.join(task.state for task in tasks)}", (key,))
    for problem in final.misplaced:
        yield Violation(problem)
    counted = Counter(task.state for task in final.tasks)
    if tuple(counted[state] for state in _STATES) != final.counts:
        yield Violation(f"the server counts {final.counts}, and holds {dict(counted)}")
    queued = {task.key for task in final.tasks if task.state == "queued"}
    if missing := queued - set(final.queue):
        yield Violation(f"{len(missing)} queued tasks have no entry in the queue", tuple(sorted(missing)))
    for task in final.tasks:
        if task.state == "running":
            is_alive = task.worker_id in final.alive
            yield Violation(
                f"task {task.key} still runs on {task.worker_id}, which {'holds it no more' if is_alive else 'is not alive'}",
                (task.key,),
                (str(task.worker_id),),
            )


def _check_pushes(known: Round, facts: _Facts, by_key: dict[str, list[Task]]) -> Iterable[Violation]:
    """Each acknowledged push exists, with what was pushed. What was refused does not, and nothing exists twice."""
    for key, (call, token) in facts.pushed.items():
        if key not in by_key:
            yield Violation(f"task {key} was pushed, and is gone", (key,), (token,))
        elif token_of(by_key[key][0]) != token:
            yield Violation(f"task {key} was pushed as {token}, and is {token_of(by_key[key][0])}", (key,), (token,))
        elif call.given["to"] == "finished" and by_key[key][0].ys != {"y": 1.0, "by": token}:
            yield Violation(f"task {key} was pushed as finished by {token}, and has {by_key[key][0].ys}", (key,), (token,))
    keys_of: dict[str, set[str]] = defaultdict(set)
    for task in known.final.tasks:
        token = token_of(task)
        if token is None:
            yield Violation(f"task {task.key} has no token", (task.key,))
            continue
        keys_of[token].add(task.key)
        call = facts.push_of.get(token)
        if call is None:
            if ":" not in token:  # of a proposal, whose tokens no call has
                yield Violation(f"no call pushed task {task.key} of {token}", (task.key,), (token,))
        elif call.outcome == "refused":
            yield Violation(f"the push of {token} was refused, and task {task.key} is {task.state}", (task.key,), (token,))
        elif call.outcome == "ok" and call.name == "push" and task.key not in call.got:
            yield Violation(f"the push of {token} did not name task {task.key}, which is {task.state}", (task.key,), (token,))
        elif call.outcome == "ok" and call.name == "start" and (call.got is None or call.got[0] != task.key):
            # A block that opened with another task, or with none, leaves none of its own.
            yield Violation(f"the block of {token} did not open with task {task.key}", (task.key,), (token,))
    for token, keys in keys_of.items():
        if len(keys) > 1:
            yield Violation(f"{token} was pushed {len(keys)} times", tuple(sorted(keys)), (token,))


def _check_given(calls: Sequence[Call]) -> Iterable[Violation]:
    """Each attempt of a task is given to one worker."""
    seen: dict[tuple[str, int], Call] = {}
    for call in calls:
        if call.name in ("pop", "start") and call.got is not None:
            attempt = call.got[0], call.got[1]
            if attempt in seen:
                workers = seen[attempt].given["worker"], call.given["worker"]
                yield Violation(
                    f"attempt {attempt[1]} of task {attempt[0]} was given to {workers[0]} and {workers[1]}", attempt[:1]
                )
            seen[attempt] = call


# ends


def _check_ends(known: Round, facts: _Facts, by_key: dict[str, list[Task]]) -> Iterable[Violation]:
    """Each task is ended once, by a worker that holds it, and an acknowledged end is what the record has."""
    for key, calls in facts.ends.items():
        ended = [call for call in calls if call.outcome == "ok" and key in call.got]
        for call in ended:
            if call.got.count(key) > 1:
                yield Violation(f"task {key} ended twice in one call", (key,))
            worker = call.given["worker"]
            if not any(given.given["worker"] == worker for given in facts.given[key]):
                yield Violation(f"worker {worker} ended task {key} and never held it", (key,), (worker,))
        finishes = [call for call in ended if call.name == "finish"]
        fails = [call for call in ended if call.name == "fail"]
        if len(finishes) > 1:
            yield Violation(f"task {key} finished {len(finishes)} times", (key,))
        if len(ended) > 1 + len(facts.retries[key]):
            yield Violation(f"task {key} ended {len(ended)} times and was retried {len(facts.retries[key])} times", (key,))
        tasks = by_key.get(key, [])
        if not ended or len(tasks) != 1:
            if ended and not tasks:
                yield Violation(f"task {key} ended, and is gone", (key,))
            continue
        (task,) = tasks
        if finishes:
            mark = _mark_of(finishes[0], key)
            if task.state != "finished" or task.ys is None or task.ys.get("by") != mark:
                yield Violation(f"task {key} was finished by {mark}, and is {task.state} with {task.ys}", (key,))
        elif fails and not facts.retries[key]:
            mark, message = _mark_of(fails[-1], key), "" if task.failure is None else task.failure.message
            if task.state != "failed" or mark not in message:
                yield Violation(f"task {key} failed by {mark}, and is {task.state}: {message}", (key,))


def _mark_of(call: Call, key: str) -> str:
    """What a call sent for a task; of a task that it names twice, the first time counts."""
    return call.given["marks"][call.given["keys"].index(key)]


def _check_removed(known: Round, facts: _Facts, by_key: dict[str, list[Task]]) -> Iterable[Violation]:
    """A task that was cancelled or taken from the queue has failed, unless it was retried; a named pop gives that task."""
    for call in known.calls:
        if call.name in ("cancel", "empty") and call.outcome == "ok":
            for key in call.got:
                states = [task.state for task in by_key.get(key, [])]
                if not facts.retries[key] and states != ["failed"]:
                    yield Violation(f"task {key} was failed by {call.name}, and is {' and '.join(states) or 'gone'}", (key,))
        elif call.name == "pop" and call.got is not None and call.given.get("wanted") not in (None, call.got[0]):
            yield Violation(
                f"a pop of task {call.given['wanted']} gave task {call.got[0]}", (call.given["wanted"], call.got[0])
            )


def _check_archive(facts: _Facts, final: FinalState) -> Iterable[Violation]:
    """Each finished record is the work of one finish that was not refused, by the worker that the record names."""
    for task in final.tasks:
        if task.state != "finished":
            continue
        ys: dict[str, Any] = task.ys or {}
        mark: str | None = ys.get("by")
        if mark is not None and mark == token_of(task):
            continue  # pushed as finished
        if mark not in facts.mark_of:
            yield Violation(f"no call finished task {task.key} with {ys}", (task.key,))
            continue
        call, key = facts.mark_of[mark]
        if key != task.key or call.name != "finish":
            yield Violation(f"task {task.key} has the outputs that were sent for {key}", (task.key, key))
        elif call.outcome == "refused" or (call.outcome == "ok" and key not in call.got):
            yield Violation(f"the finish {mark} of task {key} moved nothing, and it is finished", (key,))
        elif call.given["worker"] != task.worker_id:
            yield Violation(f"task {key} was finished by {call.given['worker']}, and is of {task.worker_id}", (key,))


def _check_attempts(facts: _Facts, final: FinalState) -> Iterable[Violation]:
    """A task goes back to the queue as often as its retries and calls of `retry_tasks` allow."""
    for task in final.tasks:
        if task.key in facts.pushed and facts.pushed[task.key][0].given["to"] == "queued":
            allowed = 1 + facts.pushed[task.key][0].given.get("retries", 0) + len(facts.retries[task.key])
            if task.attempt > allowed:
                yield Violation(f"task {task.key} had {task.attempt} attempts, and {allowed} were allowed", (task.key,))


# limits


def _check_limits(known: Round) -> Iterable[Violation]:
    """The budget and the stop rule were held at every moment, and as many tasks finished as they allow."""
    is_resumed = False
    for message in known.messages:
        queued, running, finished = message.counts[:3]
        is_resumed |= message.after_gap or any(group[0] == "R" for group in message.groups)
        if known.budget is not None and queued + running + finished > known.budget:
            yield Violation(f"{queued + running + finished} tasks at event {message.last} exceed the budget of {known.budget}")
            break
        places = None if known.places is None else known.places[is_resumed]
        if places is not None and running + finished > places:
            yield Violation(f"{running + finished} tasks at event {message.last} exceed the {places} of the stop rule")
            break
    if known.finished is not None and known.final.counts[2] != known.finished:
        yield Violation(f"{known.final.counts[2]} tasks have finished, not {known.finished}")


def _check_indices(known: Round) -> Iterable[Violation]:
    """Each index is exactly one task's, reserved, or returned; none is reserved in the end."""
    final = known.final
    owners: dict[int | None, list[str]] = defaultdict(list)
    for key, index in {(task.key, task.index) for task in final.tasks}:
        owners[index].append(key)
    for index, keys in owners.items():
        if len(keys) > 1:
            yield Violation(f"{len(keys)} tasks have the index {index}", tuple(sorted(keys)))
    known_indices = Counter([index for index in owners if index is not None] + final.returned + final.reserved)
    if known_indices != Counter(range(final.next_index)):
        expected = Counter(range(final.next_index))
        wrong = sorted((known_indices - expected).keys() | (expected - known_indices).keys())
        yield Violation(f"indices that are not in one place each: {wrong[:10]} of {final.next_index}")
    if final.n_reserved or final.reserved:
        yield Violation(f"{final.n_reserved} places are still reserved, for the indices {final.reserved[:10]}")


def _check_points(known: Round) -> Iterable[Violation]:
    """Each point is there once: one task that is queued, running or finished has it, and is registered with it."""
    holders: dict[Any, list[str]] = defaultdict(list)
    for task in known.final.tasks:
        if task.state != "failed" and "p" in task.xs:
            holders[task.xs.get("p")].append(task.key)
            if known.final.points.get(digest_of(task.xs)) != task.key:
                yield Violation(f"point {task.xs} of task {task.key} is not registered with it", (task.key,))
    for point, keys in holders.items():
        if len(keys) > 1:
            yield Violation(f"{len(keys)} tasks have the point {point}", tuple(sorted(keys)))


# what stands beside the tasks


def _check_reports(known: Round, facts: _Facts) -> Iterable[Violation]:
    """Reports are what was reported, each once. Of a task that its worker finished, all are there, or the log names it."""
    refused = {call.given["key"] for call in known.calls if call.name == "report refused"}
    made = {call.given["value"]: call for call in known.calls if call.name == "report"}
    stored: Counter[str] = Counter()
    steps: set[tuple[str, int, str, int]] = set()
    for at, report in enumerate(known.final.reports):
        value = (report.values or {}).get("v")
        call = made.get(str(value))
        if report.number != at + 1:
            yield Violation(f"report {report.number} follows {at} reports", (report.key,))
        if call is None or (call.given["key"], call.given["worker"]) != (report.key, report.worker_id):
            yield Violation(f"no call made the report {report.values} on task {report.key}", (report.key,))
            continue
        stored[str(value)] += 1
        step = report.key, report.attempt, report.worker_id, report.step
        if step in steps:
            yield Violation(
                f"report {report.step} of attempt {report.attempt} of task {report.key} is there twice", (report.key,)
            )
        steps.add(step)
    for value, call in made.items():
        key, worker = call.given["key"], call.given["worker"]
        if stored[value] > 1:
            yield Violation(f"the report {value} on task {key} is there {stored[value]} times", (key,))
        has_finished = any(
            end.name == "finish" and end.outcome == "ok" and key in end.got and end.given["worker"] == worker
            for end in facts.ends[key]
        )
        if call.outcome == "ok" and not stored[value] and has_finished and key not in refused:
            yield Violation(f"the report {value} on task {key} is gone", (key,))


def _check_attributes(known: Round, facts: _Facts) -> Iterable[Violation]:
    """Attributes have the last value that was acknowledged, or one that may have come later; a claim has one winner."""
    named: dict[str, list[Call]] = defaultdict(list)
    claims: dict[str, set[Any]] = defaultdict(set)
    of_tasks: dict[str, list[Call]] = defaultdict(list)
    for call in known.calls:
        if call.name == "attrs":
            named[call.given["name"]].append(call)
        elif call.name == "claim" and call.outcome == "ok":
            claims[call.given["name"]].add(call.got)
        elif call.name == "rank":
            found = known.final.ranking.get(call.given["key"])
            if found != call.given["score"] and (found is not None or call.outcome == "ok"):
                yield Violation(f"{call.given['key']} was ranked with {call.given['score']}, and has {found}")
        elif call.name == "task attrs":
            of_tasks[call.given["key"]].append(call)
    for name, calls in named.items():
        allowed, is_set = _allowed(calls)
        if (name in known.final.attributes or is_set) and known.final.attributes.get(name) not in allowed:
            yield Violation(f"attribute {name!r} is {known.final.attributes.get(name)}, not one of {allowed}", words=(name,))
    for name, winners in claims.items():
        if winners != {known.final.claims.get(name)}:
            yield Violation(f"claim {name!r} was answered {winners}, and is {known.final.claims.get(name)!r}", words=(name,))
    for key, calls in of_tasks.items():
        found = known.final.task_attributes.get(key, {}).get("a")
        workers = {call.given["worker"] for call in calls}
        allowed, is_set = _allowed(calls) if len(workers) == 1 else ([call.given["value"] for call in calls], False)
        if (found is not None or is_set) and found not in allowed:
            yield Violation(f"the attribute of task {key} is {found}, not one of {allowed}", (key,))


def _allowed(calls: Sequence[Call]) -> tuple[list[Any], bool]:
    """The values that a name may have after these calls of one client, and whether it has one for certain."""
    answered = [call.given["value"] for call in calls if call.outcome == "ok"]
    return answered[-1:] + [call.given["value"] for call in calls if call.outcome == "unknown"], bool(answered)


def _check_reads(known: Round) -> Iterable[Violation]:
    """A reader is given each finished task once."""
    finished = {task.key for task in known.final.tasks if task.state == "finished"}
    read: dict[str, Counter[str]] = defaultdict(Counter)
    for call in known.calls:
        if call.name == "new" and call.got is not None:
            read[call.given["reader"]].update(call.got)
        elif call.name == "heard an event again":
            yield Violation(f"a listener heard {call.given['event']} after event {call.given['before']}")
    for reader, keys in read.items():
        for key, n in keys.items():
            if n > 1:
                yield Violation(f"reader {reader} was given task {key} {n} times", (key,), (reader,))
            if key not in finished:
                yield Violation(f"reader {reader} was given task {key}, which has not finished", (key,), (reader,))


# events


def _check_events(known: Round, by_key: dict[str, list[Task]]) -> Iterable[Violation]:
    """Events have consecutive numbers, move tasks as they may move, and come with the counts that follow from them."""
    states: dict[str, str] = {}
    counts: list[int] | None = [0, 0, 0, 0]
    gone: set[str] = set()  # workers that are lost or have stopped
    is_whole, is_stopped, last = True, False, 0
    for at, message in enumerate(known.messages):
        if message.first != last + 1:
            if not message.after_gap:
                yield Violation(f"event {message.first} follows {last}")
            is_whole, is_stopped, counts = False, False, None
        last = message.last
        for group in message.groups:
            kind, worker, *keys = group
            if kind in _TARGET_OF:
                for key in keys:
                    source = states.get(key)
                    if is_whole and source not in _SOURCES[kind]:
                        yield Violation(f"event {kind} at {message.first} moves task {key} from {source}", (key,))
                    states[key] = _TARGET_OF[kind]
                    if counts is not None:
                        counts[_STATES.index(_TARGET_OF[kind])] += 1
                        if source is not None:
                            counts[_STATES.index(source)] -= 1
                if kind == "S" and worker in gone:
                    yield Violation(f"worker {worker} started a task after it had left", tuple(keys[:3]), (worker,))
                if kind == "S" and is_stopped:
                    yield Violation(f"task {keys[0]} started in a stopped network, at event {message.first}", tuple(keys[:3]))
            elif kind in "EL":
                gone.add(worker)
            elif kind in "TR":
                is_stopped = kind == "T"
        following = known.messages[at + 1] if at + 1 < len(known.messages) else None
        ends_call = following is None or following.at != message.at or following.first != last + 1
        # After a gap, the counts do not follow from the events.
        if ends_call and counts is not None and tuple(counts) != message.counts[:4]:
            yield Violation(f"event {last} comes with the counts {message.counts[:4]}, which are {tuple(counts)}")
            counts = list(message.counts[:4])
    if is_whole:
        if last != known.final.seq:
            yield Violation(f"the last event is {last}, and the network has had {known.final.seq}")
        for key in states.keys() | by_key.keys():
            found = by_key[key][0].state if by_key.get(key) else None
            if states.get(key) != found:
                yield Violation(f"task {key} is {found}, and {states.get(key)} by its events", (key,))


def shrink(violation: Violation, known: Round) -> list[str]:
    """Returns the lines of the histories and the events that a violation is about, in their order."""
    words = {*violation.keys, *violation.words}

    def concerns(value: Any) -> bool:
        if isinstance(value, str):
            return value in words
        if isinstance(value, dict):
            value = list(cast("dict[str, Any]", value).values())
        return isinstance(value, list) and any(map(concerns, cast("list[Any]", value)))

    for call in known.calls:  # the tokens under which its tasks were pushed
        if call.name == "push" and call.outcome == "ok":
            words |= {token for key, token in zip(_keys(call), call.given["tokens"], strict=False) if key in violation.keys}
    calls = [call for call in known.calls if concerns(call.given) or concerns(call.got)]
    lines = [call.about(words) for call in sorted(calls, key=lambda call: call.at)]
    lines += [message.about(words) for message in known.messages if concerns(message.groups)]
    lines += [f"in the end: {task}" for task in known.final.tasks if task.key in violation.keys]
    return lines if len(lines) <= _MOST_SHOWN else [*lines[: _MOST_SHOWN // 2], "...", *lines[-_MOST_SHOWN // 2 :]]
