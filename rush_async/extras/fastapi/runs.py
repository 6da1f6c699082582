"""The runs of a service, read from the database: their states, why they ended, their reports and events."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Any

from rush_async.client.client import RushClient
from rush_async.client.event_stream import EventStream
from rush_async.events import Event, EventsMissed, NetworkReset, WorkerLost, WorkerStarted, WorkerStopped
from rush_async.extras.fastapi.bodies import (
    EndReason,
    EndView,
    FailureView,
    ReportView,
    RunStatus,
    RunSummary,
    StopReasonView,
    StopRules,
    TaskView,
)
from rush_async.model import Counts, StopReason, Task
from rush_async.store.workers import WorkerEntry

__all__ = ["START", "events_until_end", "living_workers", "read_reports", "read_status", "read_summary"]

START = "rush.run"  # the attribute of a run that has the loop and the budget of its last start
_LIVING = ("starting", "running")
_REPORT = ("keys", "worker_id", "at", "attempt", "step")  # columns of each report


async def read_summary(run: RushClient) -> RunSummary:
    """Reads what a list of runs shows of one."""
    return await _summary(run, await _read_workers(run))


async def read_status(run: RushClient, output: str, *, maximize: bool = False) -> RunStatus:
    """Reads the state of a run. A run that does not exist has ended and has no workers.

    Args:
        run: a client of the run.
        output: the numeric output that ranks the tasks.
        maximize: whether the best task has the largest output, not the smallest.
    """
    entries = await _read_workers(run)
    best = await _read_best(run, output, maximize)
    rules = await run.stop_rules()
    summary = await _summary(run, entries)  # its counts are read last, so that they include the best task
    reason = _stop_reason(run)
    return RunStatus(
        **dict(summary),
        failures=_failures(entries),
        best=None if best is None else TaskView.model_validate(best),
        stopped=None if reason is None else StopReasonView.model_validate(reason),
        stop_when=StopRules.model_validate(rules) if rules else None,
    )


async def _read_workers(run: RushClient) -> list[WorkerEntry]:
    workers = run._net.workers  # pyright: ignore[reportPrivateUsage]
    entries = await workers.read()
    # No process judges the leases of a run whose process was killed, unless a client of the run is open.
    if any(entry.state in _LIVING for entry in entries) and await workers.judge():
        entries = await workers.read()
    return entries


async def _summary(run: RushClient, entries: Sequence[WorkerEntry]) -> RunSummary:
    start: dict[str, Any] = (await run.attrs(START)).get(START) or {}
    counts = await run.counts()  # tells of a stop, too
    ended = _end(entries, counts, start.get("evals"), _stop_reason(run))
    states = [entry.state for entry in entries]
    return RunSummary(
        id=run.network_id.rpartition(".")[2],
        state="running" if ended is None else "ended",
        ended=ended,
        loop=start.get("loop"),
        evals=start.get("evals"),
        started_at=min((entry.started_at for entry in entries), default=None),
        workers={state: states.count(state) for state in sorted(set(states))},
        counts={"queued": counts.queued, "running": counts.running, "finished": counts.finished, "failed": counts.failed},
    )


def _stop_reason(run: RushClient) -> StopReason | None:
    # Reading `run.stop_reason` would begin to follow the events of the run.
    return run._net.position.stop  # pyright: ignore[reportPrivateUsage]


def _end(entries: Sequence[WorkerEntry], counts: Counts, evals: int | None, reason: StopReason | None) -> EndView | None:
    """Finds why a run has ended; None while it runs."""
    if any(entry.state in _LIVING for entry in entries):
        return None
    at = max((entry.ended_at for entry in entries if entry.ended_at is not None), default=None)
    why: EndReason
    if not entries:
        why, detail = "deleted", "the run was deleted"
    elif reason is not None and (at is None or reason.at <= at):  # a later stop is not why it ended
        why, detail = ("stopped", reason.detail) if reason.rule == "manual" else ("rule", str(reason))
    elif evals is not None and counts.finished >= evals:
        why, detail = "budget", f"{counts.finished:,} tasks are finished, and the budget is {evals:,}"
    elif any(entry.state in ("failed", "lost") for entry in entries):
        why, detail = "failed", "; ".join(_failures(entries)) or "its workers were lost"
    else:
        why, detail = "left", "its workers ended before the budget was spent"
    return EndView(why=why, detail=detail, at=at)


def _failures(entries: Sequence[WorkerEntry]) -> list[str]:
    failures = [FailureView.model_validate(entry.failure) for entry in entries if entry.failure is not None]
    return sorted({f"{each.type}: {each.message}" if each.type else each.message for each in failures})


async def _read_best(run: RushClient, output: str, maximize: bool) -> Task | None:
    frame = await run.fetch_finished_tasks()
    if output not in frame.columns or not frame.schema[output].is_numeric():
        return None
    column = frame[output].cast(float).fill_nan(None)
    at = column.arg_max() if maximize else column.arg_min()
    return None if at is None else (await run.get_tasks(frame["keys"][at]))[0]


async def read_reports(run: RushClient, keys: list[str] | None, since: datetime | None, limit: int) -> list[ReportView]:
    """Reads reports on tasks, oldest first.

    Args:
        run: a client of the run.
        keys: the tasks; None for all.
        since: only reports later than this.
        limit: how many. The reports of one instant stay together, so that none is missed by the next `since`.
    """
    frame = await run.fetch_reports(keys)
    if since is not None:
        frame = frame.filter(frame["at"] > since.astimezone(UTC))
    if frame.height > limit:
        frame = frame.filter(frame["at"] <= frame["at"][limit - 1])
    reports: list[ReportView] = []
    for row in frame.iter_rows(named=True):
        values = {name: value for name, value in row.items() if name not in _REPORT and value is not None}
        reports.append(ReportView(key=row["keys"], values=values, **{name: row[name] for name in _REPORT[1:]}))
    return reports


async def events_until_end(run: RushClient, events: EventStream[Event], living: set[str]) -> AsyncIterator[Event]:
    """Yields the events of a stream until the last worker of the run has ended.

    Args:
        run: a client of the run.
        events: the stream.
        living: the living workers, read when the stream was open.
    """
    while living:
        event = await anext(events)
        yield event
        match event:
            case WorkerStarted():
                living.add(event.worker_id)
            case WorkerStopped() | WorkerLost():
                living.discard(event.worker_id)
            case EventsMissed() | NetworkReset():
                living = await living_workers(run)
            case _:
                pass


async def living_workers(run: RushClient) -> set[str]:
    """Reads which workers start or run."""
    return {entry.worker_id for entry in await _read_workers(run) if entry.state in _LIVING}
